"""The store on disk: tensors and texts by content address, outcomes by the task's digest.

    tensors/<aa>/<address>.safetensors     named tensors; <aa> are the address's first two digits
    texts/<aa>/<address>.txt               predictions as JSON lines
    outcomes/<digest>.json                 what came of a task of the round that is under way

Every file is written under a temporary name, flushed and renamed, and never changed after that.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from pfl_platform.adapters.surfaces import Keys, Tensors
from pfl_platform.errors import UserError
from pfl_platform.federation.tasks import Address, Cost, Outcome
from pfl_platform.store.atomic import stopping_run, write_atomic
from pfl_platform.store.layout import content_address, file_chunks, text_address
from pfl_platform.store.reading import read_tensors, tensor_names

_ADDRESS = re.compile(r"[0-9a-f]{64}")


class DiskStore:
    """Implements `Store` in a folder, usually a run's. Any number of processes may use the same folder at once.

    verify: compare contents with the address at each full read (`get` without keys, `get_text`).

    Errors: `UserError` naming the file when what was asked for is missing or damaged; `RunStopped` on a full disk.
    """

    def __init__(self, folder: Path, *, verify: bool = False) -> None:
        self.folder = folder
        self.verify = verify

    def put(self, tensors: Tensors) -> Address:
        address = content_address(tensors)
        self.write(address, tensors)
        return address

    def write(self, address: Address, tensors: Tensors) -> None:
        """`put` by whoever knows the content's address."""
        path = self.tensor_path(address)
        if not path.exists():
            with stopping_run(self.folder):
                write_atomic(path, file_chunks(tensors))

    def get(self, address: Address, keys: Keys | None = None) -> dict[str, Tensor]:
        """Only the tensors asked for are read. They belong to the caller."""
        path = self._existing(self.tensor_path(address))
        try:
            tensors = read_tensors(path) if keys is None else read_tensors(path, keys.match)
        except (ValueError, OSError) as error:
            raise UserError(_damaged(path, str(error))) from error
        if self.verify and keys is None and content_address(tensors) != address:
            raise UserError(_damaged(path, "its content does not match its name"))
        return tensors

    def names(self, address: Address) -> tuple[str, ...]:
        path = self._existing(self.tensor_path(address))
        try:
            return tensor_names(path)
        except (ValueError, OSError) as error:
            raise UserError(_damaged(path, str(error))) from error

    def put_text(self, text: str) -> Address:
        address = text_address(text)
        self.write_text(address, text)
        return address

    def write_text(self, address: Address, text: str) -> None:
        """`put_text` by whoever knows the text's address."""
        path = self.text_path(address)
        if not path.exists():
            with stopping_run(self.folder):
                write_atomic(path, [text.encode()])

    def get_text(self, address: Address) -> str:
        path = self._existing(self.text_path(address))
        try:
            data = path.read_bytes()
            text = data.decode()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(_damaged(path, str(error))) from error
        if self.verify and text_address(text) != address:
            raise UserError(_damaged(path, "its content does not match its name"))
        return text

    def cached(self, digest: str) -> Outcome | None:
        """The outcome, when its file can be read and all that it refers to is there; else None: the task runs again."""
        try:
            fields = json.loads(self.outcome_path(digest).read_bytes())
            outcome = outcome_of(fields)
            there = [self.tensor_path(address).exists() for address in (outcome.state, outcome.sent) if address]
            texts = [*outcome.messages.values(), *([outcome.predictions] if outcome.predictions else [])]
            there += [self.text_path(address).exists() for address in texts]
        except (OSError, ValueError, TypeError, KeyError, UserError):
            return None
        return outcome if all(there) else None

    def cache(self, digest: str, outcome: Outcome) -> None:
        with stopping_run(self.folder):
            write_atomic(self.outcome_path(digest), [json.dumps(outcome_json(outcome)).encode()])

    def expect(self, addresses: Iterable[Address]) -> None:
        """Nothing is read before it is asked for; see `pfl_platform.store.behind`."""

    def flush(self) -> None:
        """What was put is there already."""

    def tensor_path(self, address: Address) -> Path:
        """Where tensors of this address lie, whether they do or not."""
        return self.folder / "tensors" / _checked(address)[:2] / f"{address}.safetensors"

    def text_path(self, address: Address) -> Path:
        """Where the text of this address lies, whether it does or not."""
        return self.folder / "texts" / _checked(address)[:2] / f"{address}.txt"

    def outcome_path(self, digest: str) -> Path:
        """Where the outcome of a task with this digest lies, whether it does or not."""
        return self.folder / "outcomes" / f"{_checked(digest)}.json"

    def _existing(self, path: Path) -> Path:
        if not path.exists():
            raise UserError(f"The file {path} is missing; the run folder is not complete.")
        return path


def outcome_json(outcome: Outcome) -> dict[str, Any]:
    """An outcome as JSON: its fields by name, the cost as fields of its own."""
    fields = {**vars(outcome), "metrics": dict(outcome.metrics), "scores": dict(outcome.scores)}
    fields["messages"] = dict(outcome.messages)
    return {**fields, "cost": asdict(outcome.cost)}


def outcome_of(fields: Mapping[str, Any]) -> Outcome:
    """The outcome that `outcome_json` has written down."""
    return Outcome(**{**fields, "cost": Cost(**fields["cost"])})


def _checked(address: str) -> str:
    """Addresses come out of JSON that a person may have edited, and become paths."""
    if not _ADDRESS.fullmatch(address):
        raise UserError(f"'{address}' is no content address (64 hexadecimal digits).")
    return address


def _damaged(path: Path, why: str) -> str:
    return f"The file {path} is damaged ({why}); put back a good copy of it, or start the run again in a new folder."
