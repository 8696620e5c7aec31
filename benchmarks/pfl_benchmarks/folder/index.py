"""An index of a large federation: its samples in an Arrow file that is mapped into memory, so that opening it again
parses no JSON and takes no more memory however many samples there are.

An index belongs to the content of the record files (their SHA-256, taken at every opening), the scenario, and the
options that decide what is read. It lies in the folder `federations` of `PFL_CACHE`, else of `~/.cache/pfl-platform`.
Pictures were checked when it was made; at every opening each must still have the size and the time of change that it
had then, else all is read and checked anew. An index that cannot be read counts as not there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from pfl_benchmarks.folder.benchmark import FolderBenchmark
from pfl_benchmarks.folder.options import ReadingOptions
from pfl_benchmarks.folder.pictures import Pictures, paths_of
from pfl_benchmarks.folder.splits import Odd, Overlap
from pfl_platform.data import ClientData, FilePicture, FixedBenchmark, OnDemand, Sample, TaskData, Turn
from pfl_platform.store.atomic import clear_temporary, temporary_name, write_atomic
from pfl_platform.store.pins import software

LARGE = 20_000
"""Samples from which on a federation is indexed; a smaller one is read in seconds."""
FORM = 1
"""Of the files below; another one is another index."""
SAMPLES, PICTURES, ABOUT = "samples.arrow", "pictures.arrow", "about.json"
BATCH = 2_000


def cache_folder() -> Path | None:
    """Where indices lie; None for a user without a home."""
    try:
        return Path(os.environ.get("PFL_CACHE") or Path.home() / ".cache" / "pfl-platform") / "federations"
    except RuntimeError:
        return None


def index_folder(plan: Any, files: Iterable[Path], options: ReadingOptions) -> Path | None:
    """The folder of the index of these record files, read so; None where there can be none."""
    root = cache_folder()
    if root is None:
        return None
    total = hashlib.sha256()
    told = [FORM, software(), repr(plan), options.model_dump(mode="json"), str(Path.cwd())]
    total.update(json.dumps(told, sort_keys=True, default=str).encode())
    try:
        for file in files:
            total.update(f"{file}\0".encode())
            with file.open("rb") as opened:
                total.update(hashlib.file_digest(opened, "sha256").digest())
    except OSError:
        return None  # reading says which file it is
    return root / total.hexdigest()


class Indexed(OnDemand):
    """A part of an index: the samples from `begin` to `end`."""

    def __init__(self, table: Any, begin: int, end: int) -> None:
        self._table = table
        self._begin = begin
        self._end = end

    def __len__(self) -> int:
        return self._end - self._begin

    def at(self, place: int) -> Sample:
        row = self._table[self._begin + place]
        said = row["said"]
        turns = tuple(Turn(human, answer) for human, answer in zip(said[::2], said[1::2], strict=True))
        pictures = tuple(FilePicture(Path(path)) for path in row["pictures"])
        return Sample(row["id"], turns, pictures, tuple(row["options"]), tuple(row["references"]))

    def longest(self, most: int) -> Sequence[Sample]:
        """See `pfl_platform.data.Measured`."""
        columns = {
            name: self._table.data.column(name).slice(self._begin, len(self)).to_numpy()
            for name in ("shown", "answered", "asked")
        }
        chosen: set[int] = set()
        for count in np.unique(columns["shown"]):
            places = np.flatnonzero(columns["shown"] == count)
            for keys in ((columns["asked"], columns["answered"]), (columns["asked"],)):
                order = np.lexsort([-key[places] for key in keys])
                chosen.update(places[order[:most]].tolist())
        return [self.at(place) for place in sorted(chosen)]


def write(folder: Path, made: FolderBenchmark) -> bool:
    """Writes the index of a federation that was read; False where that could not be done."""
    parts: list[Sequence[Sample]] = []

    def placed(samples: Sequence[Sample]) -> list[int]:
        begin = sum(map(len, parts))
        parts.append(samples)
        return [begin, begin + len(samples)]

    fixed = made.fixed
    tasks = {task.name: task for client in fixed.clients for task in client.tasks} | {t.name: t for t in fixed.unseen}
    about = {
        "name": fixed.name,
        "tasks": {
            name: {
                **{key: getattr(task, key) for key in ("kind", "metric", "group")},
                "parts": [placed(part) for part in (task.train, task.validation, task.test)],
            }
            for name, task in tasks.items()
        },
        "clients": [[c.client_id, c.backbone, [task.name for task in c.tasks]] for c in fixed.clients],
        "unseen": [task.name for task in fixed.unseen],
        "public": {name: placed(samples) for name, samples in fixed.public_sets.items()},
        "defaults": fixed.defaults,
        "content": fixed.content,
        "overlap": [asdict(line) for line in made.overlap],
        "odd": [asdict(line) for line in made.odd],
        "remarks": made.remarks,
    }
    temporary = temporary_name(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        clear_temporary(folder.parent)
        _store(temporary / SAMPLES, _sample_rows(parts))
        _store(temporary / PICTURES, _picture_rows(parts))
        write_atomic(temporary / ABOUT, [json.dumps(about).encode()])
        temporary.rename(folder)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        return folder.is_dir()  # another process was faster
    return True


def _store(file: Path, rows: Iterator[dict[str, Any]]) -> None:
    """Writes rows as an Arrow stream, some thousand at a time."""
    import pyarrow as pa

    file.parent.mkdir(parents=True, exist_ok=True)
    first = list(islice(rows, BATCH))
    schema = pa.schema([(name, _kind(value)) for name, value in (first[0] if first else {}).items()])
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, schema) as stream:
        while first:
            stream.write_batch(pa.RecordBatch.from_pylist(first, schema=schema))
            first = list(islice(rows, BATCH))


def _kind(value: Any) -> Any:
    import pyarrow as pa

    if isinstance(value, list):
        return pa.list_(pa.string())
    return pa.int64() if isinstance(value, int) else pa.string()


def _sample_rows(parts: Sequence[Sequence[Sample]]) -> Iterator[dict[str, Any]]:
    for part in parts:
        for sample in part:
            yield {
                "id": sample.id,
                "said": [text for turn in sample.turns for text in (turn.human, turn.answer)],
                "pictures": [str(path) for path in paths_of(sample)],
                "options": list(sample.options),
                "references": list(sample.references),
                "shown": len(sample.pictures),
                "answered": sum(len(turn.answer.encode()) for turn in sample.turns),
                "asked": len(sample.turns[0].human),
            }


def _picture_rows(parts: Sequence[Sequence[Sample]]) -> Iterator[dict[str, Any]]:
    for path in dict.fromkeys(path for part in parts for sample in part for path in paths_of(sample)):
        found = path.stat()
        yield {"path": str(path), "size": found.st_size, "time": found.st_mtime_ns}


def read(folder: Path, options: ReadingOptions) -> FolderBenchmark | None:
    """The federation of an index; None where there is none, or its pictures are not those that were checked."""
    if not (folder / ABOUT).is_file():
        return None
    from datasets import Dataset
    from pyarrow import ArrowException

    try:
        about = json.loads((folder / ABOUT).read_bytes())
        table, pictures = (Dataset.from_file(str(folder / name)) for name in (SAMPLES, PICTURES))
        made = _made(about, table, options)
    except (OSError, ValueError, KeyError, TypeError, ArrowException):
        shutil.rmtree(folder, ignore_errors=True)
        return None
    if not _unchanged(pictures):
        shutil.rmtree(folder, ignore_errors=True)
        return None
    return made


def _made(about: dict[str, Any], table: Any, options: ReadingOptions) -> FolderBenchmark:
    def part(place: Sequence[int]) -> Indexed:
        if place[1] > len(table):
            raise ValueError("the samples are cut off")
        return Indexed(table, *place)

    tasks = {}
    for name, told in about["tasks"].items():
        train, validation, test = map(part, told["parts"])
        tasks[name] = TaskData(name, told["kind"], told["metric"], train, validation, test, group=told["group"])
    fixed = FixedBenchmark(
        about["name"],
        tuple(
            ClientData(name, backbone, tuple(map(tasks.__getitem__, own))) for name, backbone, own in about["clients"]
        ),
        about["content"],
        tuple(map(tasks.__getitem__, about["unseen"])),
        about["defaults"],
        {name: part(place) for name, place in about["public"].items()},
    )
    overlap = tuple(Overlap(**line) for line in about["overlap"])
    odd = tuple(Odd(**line) for line in about["odd"])
    return FolderBenchmark(fixed, options, Pictures(options.max_pixels), overlap, odd, tuple(about["remarks"]))


def _unchanged(pictures: Any) -> bool:
    """Whether every picture has the size and the time of change that it had."""
    for batch in pictures.data.to_batches():
        columns = (batch.column(name).to_pylist() for name in ("path", "size", "time"))
        for path, size, time in zip(*columns, strict=True):
            try:
                found = os.stat(path)
            except OSError:
                return False
            if found.st_size != size or found.st_mtime_ns != time:
                return False
    return True
