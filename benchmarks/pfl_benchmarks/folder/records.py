"""Record files to samples.

A record is `{id, image, conversations}`: `image` a path or a list of paths, absent for text; `conversations` an
alternating list of `{from: "human" | "gpt", value}`. Other keys are ignored.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from pfl_benchmarks.folder.choices import parse_choices
from pfl_benchmarks.folder.files import kind_of, read_list
from pfl_platform.data import IMAGE_MARK, FilePicture, Sample, Turn
from pfl_platform.errors import UserError


def read_records(path: Path, root: Path, prefix: str, *, choices: bool) -> list[Sample]:
    """The samples of a record file, in file order. Sample ids start with `prefix` and are unique in the file:
    an id that several records have is followed by `#` and the record's index.

    root: what picture paths are relative to. choices: look for the options of multi-choice questions.
    """
    records = read_list(path, "records")
    ids = [record.get("id", index) if isinstance(record, dict) else index for index, record in enumerate(records)]
    repeats = Counter(str(record_id) for record_id in ids)
    own = {record_id for record_id, count in repeats.items() if count == 1}
    samples = []
    for index, (record_id, record) in enumerate(zip(ids, records, strict=True)):
        name = str(record_id)
        if name not in own:
            name = f"{name}#{index}"
            while name in own:  # another record is called so by itself; an index at the end is in no other made name
                name = f"{name}#{index}"
        samples.append(sample_of(record, f"{path}, record {index}", root, f"{prefix}/{name}", choices=choices))
    return samples


def sample_of(record: Any, where: str, root: Path, sample_id: str, *, choices: bool) -> Sample:
    """One record as a sample; `where` (file and record) stands in every error."""
    if not isinstance(record, dict):
        raise UserError(f"{where}: a record is an object, and this is {kind_of(record)}.")
    pictures = tuple(FilePicture(root / path) for path in _image_paths(record, where))
    turns = _turns(record, where)
    marks = sum(turn.human.count(IMAGE_MARK) for turn in turns)
    if marks > len(pictures):
        raise UserError(
            f"{where}: the question has {marks} {IMAGE_MARK} marks and the record {len(pictures)} pictures."
        )
    missing = f"{IMAGE_MARK}\n" * (len(pictures) - marks)
    first = Turn(missing + turns[0].human, turns[0].answer)
    options = parse_choices(first.human) if choices else ()
    return Sample(sample_id, (first, *turns[1:]), pictures, options)


def _image_paths(record: dict[str, Any], where: str) -> list[str]:
    given = record.get("image")
    paths = given if isinstance(given, list) else [] if given is None else [given]
    for path in paths:
        if not isinstance(path, str) or not path:
            raise UserError(f"{where}: 'image' is a path or a list of paths, and holds {kind_of(path)}.")
        if "\0" in path:
            raise UserError(f"{where}: the picture path {path!r} holds a null character.")
        parts = PurePosixPath(path)
        if parts.is_absolute() or PureWindowsPath(path).is_absolute() or ".." in parts.parts:
            raise UserError(f"{where}: the picture path '{path}' leaves the root; use a path below it.")
    return paths


def _turns(record: dict[str, Any], where: str) -> tuple[Turn, ...]:
    said = record.get("conversations")
    if not isinstance(said, list) or not said or len(said) % 2:
        raise UserError(f"{where}: 'conversations' must be a list of pairs, each a human turn and a gpt turn.")
    for position, turn in enumerate(said):
        speaker = ("human", "gpt")[position % 2]
        if not isinstance(turn, dict) or turn.get("from") != speaker:
            found = repr(turn.get("from")) if isinstance(turn, dict) else kind_of(turn)
            raise UserError(f"{where}: turn {position} must be from '{speaker}', and is from {found}.")
    texts = [_text(turn.get("value"), f"{where}: turn {position}") for position, turn in enumerate(said)]
    if any(IMAGE_MARK in answer for answer in texts[1::2]):
        raise UserError(
            f"{where}: an answer holds the mark {IMAGE_MARK}, which stands for a picture in questions only."
        )
    return tuple(Turn(human, answer) for human, answer in zip(texts[::2], texts[1::2], strict=True))


def _text(value: Any, where: str) -> str:
    """A turn's text; numbers and truth values are written as Python writes them (`True` is an option of many tasks)."""
    if not isinstance(value, str | int | float):
        raise UserError(f"{where} has {kind_of(value)} as its 'value', where a text is needed.")
    return value if isinstance(value, str) else str(value)
