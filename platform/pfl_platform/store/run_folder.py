"""The folder that holds everything of one run.

    config.yaml              the resolved configuration
    run.json                 {"format", "created", "pins": {"versions", "threads", "benchmark", "backbones", ...}},
                             with the pin "public" where a public set was named
    prepare.json             what preparation left (frozen addresses per backbone, ...); absent until it has ended
    rounds/0000.json ...     one file per finished round; see `pfl_platform.federation.records.round_record`
    tuning.json              what tuning tried and chose, when settings are tuned; tuning/000 ... runs of candidates
    results.json             scores and costs, once the run has ended; see `pfl_platform.evaluation.matrix.report_of`
    cells.json               cells of the last round that were scored after the run, when there are any
    predictions.jsonl        every prediction of the last evaluation
    adapters/<client>/       the personal adapter of each client, as peft saves it
    tensors/ texts/ outcomes/    the store; see `pfl_platform.store.disk`
    tensorboard/ events.jsonl    what observers wrote
    .lock                    held by the one process that works here

The presence of `run.json` makes a folder a run. Files are there whole or not at all, whenever the process was killed. A
round is finished when its file is there: it names states by address, and their tensors were on the disk before. Nothing
here imports torch until `store` is asked for.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from pfl_platform.errors import UserError
from pfl_platform.store import garbage
from pfl_platform.store.atomic import stopping_run, sync_folder, temporary_name, write_atomic
from pfl_platform.store.lock import locked
from pfl_platform.store.pins import differences

if TYPE_CHECKING:
    from pfl_platform.config import RunConfig
    from pfl_platform.store.disk import DiskStore

FORMAT = 1
_ROUND = re.compile(r"(\d{4,})\.json")


class RunFolder:
    """One run on disk. Made by `create` or `open`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path, config: RunConfig, pins: Mapping[str, Any]) -> RunFolder:
        """A new run at `path`, which must not be there or be empty. On any error nothing is left behind."""
        made: list[Path] = []
        try:
            _refuse_used(path)
            _make_parents(path, made)
            if path.is_dir():
                _fill_given(path, config, pins)
            else:
                _fill_new(path, config, pins)
        except BaseException as error:
            for parent in reversed(made):
                with suppress(OSError):
                    parent.rmdir()
            if isinstance(error, OSError):
                raise UserError(f"The folder {path} cannot be made: {error.strerror or error}.") from error
            raise
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run, in whatever state it was left."""
        if not path.is_dir():
            raise UserError(f"There is no run at {path}: {'it is a file' if path.exists() else 'no such folder'}.")
        run = cls(path)
        if not (path / "run.json").is_file():
            raise UserError(f"The folder {path} is no run: it holds no run.json.")
        if not (path / "config.yaml").is_file():
            raise UserError(f"The run {path} is not complete: it holds no config.yaml.")
        if run._about.get("format") != FORMAT:
            raise UserError(
                f"The run {path} has the format {run._about.get('format')!r}; this pfl-platform reads format {FORMAT}."
            )
        require(path / "run.json", run._about, {"created": str, "pins": dict})
        return run

    @classmethod
    def ended(cls, path: Path) -> RunFolder:
        """An existing run that has come to its end."""
        run = cls.open(path)
        if run.read_results() is None:
            raise UserError(f"The run in {path} is not finished; go on with: pfl-platform resume {path}")
        return run

    @cached_property
    def store(self) -> DiskStore:
        from pfl_platform.store.disk import DiskStore

        return DiskStore(self.path)

    @cached_property
    def config(self) -> RunConfig:
        """The resolved configuration, checked again."""
        import yaml
        from pydantic import ValidationError

        from pfl_platform.config import RunConfig
        from pfl_platform.validation import explain

        file = self.path / "config.yaml"
        try:
            return RunConfig.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
        except ValidationError as error:
            raise UserError(f"The file {file} was changed: {explain(error, RunConfig)}") from None
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise UserError(f"The file {file} cannot be read: {' '.join(str(error).split())}") from error

    @property
    def created(self) -> str:
        """When the run began, in UTC, such as 2030-01-31T12:00:00+00:00."""
        return str(self._about["created"])

    @property
    def pins(self) -> Mapping[str, Any]:
        return dict(self._about["pins"])

    def check_pins(self, current: Mapping[str, Any]) -> list[str]:
        """What is not as it was when the run began, as sentences; see `pfl_platform.store.pins`."""
        return differences(self.pins, json.loads(json.dumps(current)))

    def lock(self) -> AbstractContextManager[None]:
        """Held while a process works here; a second one gets a `UserError`. Ends with the process."""
        return locked(self.path / ".lock", self.path)

    def write_prepare(self, prepared: Mapping[str, Any]) -> None:
        """Ends preparation. Its cached outcomes are no longer needed and go."""
        self._write_json(self.path / "prepare.json", prepared)
        self._forget_outcomes()

    def read_prepare(self) -> dict[str, Any] | None:
        file = self.path / "prepare.json"
        return _read_json(file) if file.exists() else None

    def commit_round(self, index: int, record: Mapping[str, Any]) -> None:
        """Finishes a round by one rename. Whatever is needed later must be in the record: the cached outcomes of the
        round go with it."""
        if index != (expected := len(self._indices())):
            raise ValueError(f"round {index} cannot be committed: the next one is {expected}")
        self._write_json(self._round_file(index), {"round_index": index, **record})
        self._forget_outcomes()

    def rounds(self) -> list[dict[str, Any]]:
        """The records of all finished rounds, in order."""
        return [self._read_round(index) for index in self._indices()]

    def last_round(self) -> dict[str, Any] | None:
        """The record of the last finished round; None before the first."""
        indices = self._indices()
        return self._read_round(indices[-1]) if indices else None

    def write_tuning(self, found: Mapping[str, Any]) -> None:
        """Ends tuning; see `pfl_platform.federation.tuning.record`."""
        self._write_json(self.path / "tuning.json", found)

    def read_tuning(self) -> dict[str, Any] | None:
        """None before it has ended."""
        file = self.path / "tuning.json"
        return _read_json(file) if file.exists() else None

    def write_cells(self, found: Mapping[str, Any]) -> None:
        """Keeps cells of the matrix that were scored after the run; see `pfl_platform.federation.filling`."""
        self._write_json(self.path / "cells.json", found)
        self._forget_outcomes()

    def read_cells(self) -> dict[str, Any] | None:
        """None where none were scored after the run."""
        file = self.path / "cells.json"
        return _read_json(file) if file.exists() else None

    def candidate_folder(self, number: int) -> Path:
        """Where the run of a candidate lies, whether it does or not."""
        return self.path / "tuning" / f"{number:03d}"

    def write_results(self, results: Mapping[str, Any]) -> None:
        self._write_json(self.path / "results.json", results)

    def write_extra(self, name: str, content: Mapping[str, Any]) -> None:
        """Replaces a JSON file that a later command leaves beside the results."""
        self._write_json(self.path / name, content)

    def read_extra(self, name: str) -> dict[str, Any]:
        return _read_json(self.path / name)

    def read_results(self) -> dict[str, Any] | None:
        """None while the run has not ended."""
        file = self.path / "results.json"
        return _read_json(file) if file.exists() else None

    def write_predictions(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Replaces `predictions.jsonl`, one row per line."""
        lines = (json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)
        with stopping_run(self.path):
            write_atomic(self.path / "predictions.jsonl", lines)

    def adapter_folder(self, client_id: str) -> Path:
        """Where a client's adapter lies, whether it does or not."""
        return self.path / "adapters" / safe_name(client_id)

    @contextmanager
    def exporting(self, client_id: str) -> Iterator[Path]:
        """An empty folder to save a client's adapter in; it replaces an earlier one when the block ends well."""
        target = self.adapter_folder(client_id)
        temporary = temporary_name(target)
        with stopping_run(self.path):
            temporary.mkdir(parents=True)
            try:
                yield temporary
                if target.exists():
                    shutil.rmtree(target)
                temporary.rename(target)
                sync_folder(target.parent)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise

    def collect_garbage(
        self, keep: Literal["all", "last"] = "last", also: Iterable[str] = (), rounds: Iterable[int] = ()
    ) -> garbage.Swept:
        """Deletes tensors that no finished round, no cached outcome and no other file of the run refers to.

        keep: `all` keeps the tensors of every round, `last` those of the last one (texts of all rounds stay anyway).
        also: addresses that only the caller's memory holds. rounds: indices of further rounds whose tensors are kept.
        Call it between rounds, with the lock held.
        """
        chosen = [self._round_file(index) for index in rounds if self._round_file(index).exists()]
        files = [self._round_file(index) for index in self._indices()]
        common = [self.path / name for name in ("prepare.json", "results.json", "run.json", "cells.json")]
        common += (self.path / "outcomes").glob("*.json")
        held = garbage.references(common) | set(also)
        tensors = held | garbage.references(files if keep == "all" else [*chosen, *files[-1:]])
        swept = garbage.sweep(self.path / "tensors", tensors)
        texts = garbage.sweep(self.path / "texts", held | garbage.references(files))
        garbage.clear_temporary(self.path)
        return garbage.Swept(swept.files + texts.files, swept.bytes + texts.bytes)

    @cached_property
    def _about(self) -> dict[str, Any]:
        return _read_json(self.path / "run.json")

    def _round_file(self, index: int) -> Path:
        return self.path / "rounds" / f"{index:04d}.json"

    def _indices(self) -> list[int]:
        folder = self.path / "rounds"
        names = (_ROUND.fullmatch(name) for name in os.listdir(folder)) if folder.is_dir() else ()
        indices = sorted(int(match[1]) for match in names if match)
        for expected, index in enumerate(indices):
            if index != expected:
                raise UserError(
                    f"The run lacks {self._round_file(expected)} although a later round is there; put it back."
                )
        return indices

    def _read_round(self, index: int) -> dict[str, Any]:
        file = self._round_file(index)
        record = _read_json(file)
        if record.get("round_index") != index:
            raise UserError(
                f"The file {file} holds round {record.get('round_index')!r} instead of {index}; put back the right one."
            )
        return record

    def _write_json(self, file: Path, content: Mapping[str, Any]) -> None:
        data = json.dumps(content, indent=1, ensure_ascii=False).encode()
        with stopping_run(self.path):
            write_atomic(file, [data, b"\n"])

    def _forget_outcomes(self) -> None:
        for file in (self.path / "outcomes").glob("*.json"):
            file.unlink(missing_ok=True)


def safe_name(client_id: str) -> str:
    """A client id as the name of a folder: different ids give different names, and none leaves its parent.

    >>> safe_name("client-3"), safe_name("../a/b"), safe_name("Zoë")
    ('client-3', '%2E.%2Fa%2Fb', 'Zo%C3%AB')
    """
    if not client_id:
        raise UserError("A client id must not be empty.")
    name = quote(client_id, safe=" ")
    if name.startswith("."):
        name = "%2E" + name[1:]
    if len(name) > 200:
        raise UserError(
            f"The client id '{client_id[:40]}...' is too long to be the name of a folder; use a shorter one."
        )
    return name


def _refuse_used(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file; choose a folder with --out.")
    if (path / "run.json").exists():
        raise UserError(
            f"The folder {path} already holds a run; choose another with --out, or go on with it: "
            f"pfl-platform resume {path}"
        )
    if path.is_dir() and (entries := sorted(os.listdir(path))):
        raise UserError(f"The folder {path} is not empty (it holds '{entries[0]}'); choose a new one with --out.")


def _make_parents(path: Path, made: list[Path]) -> None:
    """Makes the parents of `path` that are not there, and adds them to `made`, outermost first."""
    for parent in reversed(path.absolute().parents):
        if not parent.exists():
            parent.mkdir()
            made.append(parent)


def _fill_new(path: Path, config: RunConfig, pinned: Mapping[str, Any]) -> None:
    """All under another name, then one rename: the folder is there whole or not at all."""
    staging = temporary_name(path)
    staging.mkdir()
    try:
        _claim(staging)
        _fill(staging, config, pinned)
        staging.rename(path)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _fill_given(path: Path, config: RunConfig, pinned: Mapping[str, Any]) -> None:
    """The user's empty folder is filled, not replaced: it may be a mount point or the working directory."""
    _claim(path)
    try:
        _fill(path, config, pinned)
    except BaseException:
        for entry in path.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        raise


def _claim(folder: Path) -> None:
    """Makes the lock's file, exclusively: of two processes that find the same folder empty only one fills it."""
    os.close(os.open(folder / ".lock", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))


def _fill(folder: Path, config: RunConfig, pinned: Mapping[str, Any]) -> None:
    import yaml

    about = {"format": FORMAT, "created": datetime.now(UTC).isoformat(timespec="seconds"), "pins": pinned}
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)
    (folder / "rounds").mkdir()
    write_atomic(folder / "config.yaml", [text.encode()])
    write_atomic(folder / "run.json", [json.dumps(about, indent=1).encode(), b"\n"])


def require(file: Path, content: Mapping[str, Any], fields: Mapping[str, Any], path: str = "") -> None:
    """Raises `UserError` for the first field that is missing or of another type; `fields` nest as the file does. So an
    edited file is told of by name, not by a traceback."""
    for name, kind in fields.items():
        value = content.get(name)
        if not isinstance(value, dict if isinstance(kind, Mapping) else kind):
            raise UserError(f"The file {file} has no '{path}{name}' that can be used; put back the file as it was.")
        if isinstance(kind, Mapping):
            require(file, value, kind, f"{path}{name}.")


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(
            f"The file {file} is not JSON (line {error.lineno}, column {error.colno}: {error.msg})."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The file {file} cannot be read: {error}.") from error
    if not isinstance(content, dict):
        raise UserError(f"The file {file} does not hold a JSON object.")
    return content
