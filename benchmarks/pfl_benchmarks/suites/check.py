"""What is there of a published federation's files, task by task."""

from __future__ import annotations

from collections.abc import Sequence

from pfl_benchmarks.checking import counted
from pfl_benchmarks.folder.check import remarks
from pfl_benchmarks.folder.scenario import TaskSlot
from pfl_benchmarks.suites import sheet
from pfl_benchmarks.suites.loading import SPLITS, Suite, load, suite
from pfl_benchmarks.suites.options import SuiteOptions
from pfl_platform.errors import UserError
from pfl_platform.inventory import FileState, Inventory, looked_at


def check(name: str, options: SuiteOptions) -> Inventory:
    """Train and test records of each task; unseen tasks are looked for, too."""
    options = options.model_copy(update={"unseen": True, "missing": "skip"})
    found = suite(name, options)
    official = sheet.card(name).get("official", {})
    files = [_state(found, slot, split, official.get(split)) for slot in found.slots for split in SPLITS]
    return Inventory(found.root, files, *_said(name, options, files))


def _state(found: Suite, slot: TaskSlot, split: str, official: int | None) -> FileState:
    file = slot.file(found.root, split)
    if found.source is not None and found.source.has(slot, split):
        source = found.source
        try:
            return FileState(f"{slot.name}, {split}", "there", len(source(slot, split) or ()))
        except UserError as error:
            return FileState(f"{slot.name}, {split}", "broken", said=str(error))
    return looked_at(file, found.root, counted(file), official)


def _said(name: str, options: SuiteOptions, files: list[FileState]) -> tuple[Sequence[str], Sequence[str]]:
    """Notes and faults."""
    if not any(file.state == "there" for file in files):
        return (), ()
    read, faults = remarks(lambda: load(name, options))
    notes = [*read]
    total = sum(file.samples or 0 for file in files)
    if published := sheet.card(name)["official"].get("questions"):
        notes.append(f"{total:,} samples in all; published are about {published:,}.")
    return notes, faults
