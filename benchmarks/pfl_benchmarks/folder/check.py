"""What is there of a federation in a folder, task by task."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pfl_benchmarks.checking import counted
from pfl_benchmarks.folder.benchmark import FolderBenchmark
from pfl_benchmarks.folder.loading import load
from pfl_benchmarks.folder.options import FolderOptions
from pfl_benchmarks.folder.scenario import find_scenario, read_scenario
from pfl_platform.errors import UserError
from pfl_platform.inventory import Inventory, looked_at


def check(options: FolderOptions) -> Inventory:
    """Train and test records of each task of the scenario; a scenario that cannot be read raises `UserError`."""
    path = options.path
    if path is None or not path.is_dir():
        raise UserError(f"The benchmark folder {path} does not exist or is no folder.")
    root = options.root or path
    clients = [
        client for name in (options.scenario, *options.unseen) for client in read_scenario(find_scenario(path, name))
    ]
    slots = dict.fromkeys(slot for client in clients for slot in client.tasks)
    files = [
        looked_at(file, root, counted(file))
        for slot in slots
        for file in (slot.file(root, "train"), slot.file(root, "test"))
    ]
    whole = all(file.state == "there" for file in files)
    notes, faults = remarks(lambda: load(options)) if whole else ((), ())
    return Inventory(root, files, notes, faults)


def remarks(read: Callable[[], FolderBenchmark]) -> tuple[Sequence[str], Sequence[str]]:
    """What is to be said of a federation once it has been read; and why it cannot be."""
    try:
        made = read()
    except UserError as error:
        return (), [str(error)]
    said = list(made.notes)
    if not any(line.in_any_train for line in made.overlap_report()):
        said.append("No test record stands in training data.")
    return said, ()
