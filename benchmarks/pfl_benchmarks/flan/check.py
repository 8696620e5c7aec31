"""What is there of a FLAN set's files."""

from __future__ import annotations

from pfl_benchmarks.checking import counted, overlaps_of
from pfl_benchmarks.flan.loading import client_file, read_pools, test_file
from pfl_benchmarks.flan.options import SETS, FlanOptions
from pfl_benchmarks.roots import find_root
from pfl_platform.errors import UserError
from pfl_platform.inventory import FileState, Inventory, looked_at


def check(name: str, options: FlanOptions) -> Inventory:
    """The eight client files and the test file."""
    chosen = SETS[name]
    root = find_root(options.root, chosen.folder, chosen.title)
    train, test = chosen.official
    files = [
        looked_at(path, root, counted(path), train)
        for path in (client_file(root, client) for client in range(len(chosen.tasks)))
    ]
    try:
        path = test_file(root)
        files.append(looked_at(path, root, counted(path), test * len(chosen.tasks)))
    except UserError as error:
        files.append(FileState("flan_test*.jsonl", "missing", official=test * len(chosen.tasks), said=str(error)))
    return Inventory(root, files, overlaps_of(lambda: read_pools(root, name), files))
