"""What is there of Super-NaturalInstructions."""

from __future__ import annotations

from pfl_benchmarks.roots import find_root
from pfl_benchmarks.sni.instances import read_task
from pfl_benchmarks.sni.loading import find_split, split_names
from pfl_benchmarks.sni.options import NAME, SniOptions
from pfl_platform.inventory import Inventory, looked_at

OFFICIAL = 6_500
"""Instances of a published task, at most."""


def check(options: SniOptions) -> Inventory:
    """The task files that the split names."""
    root = find_root(options.root, NAME, "Super-NaturalInstructions", ("tasks", "splits"))
    split = find_split(root, options.split)
    names = [*split_names(split / "train_tasks.txt")]
    if (tests := split / "test_tasks.txt").is_file():
        names += split_names(tests)
    files = [
        looked_at(path, root, lambda path=path: len(read_task(path).instances))  # type: ignore[misc]
        for path in (root / "tasks" / f"{name}.json" for name in names)
    ]
    return Inventory(root, files, [f"The split is {split.name}; a published task has at most {OFFICIAL:,} instances."])
