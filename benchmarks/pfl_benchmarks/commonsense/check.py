"""What is there of the commonsense tasks' files."""

from __future__ import annotations

from pfl_benchmarks.checking import counted, overlaps_of
from pfl_benchmarks.commonsense.loading import choose, read_pool
from pfl_benchmarks.commonsense.options import NAME, CommonsenseOptions
from pfl_benchmarks.roots import find_root
from pfl_platform.inventory import Inventory, looked_at

OFFICIAL = {
    "ARC-Challenge": (1_119, 1_172), "ARC-Easy": (2_251, 2_376), "boolq": (9_427, 3_270), "hellaswag": (39_905, 10_042),
    "openbookqa": (4_957, 500), "piqa": (16_113, 1_838), "social_i_qa": (33_410, 1_954), "winogrande": (63_238, 1_267),
}  # fmt: skip
"""Records of the published train and test files."""


def check(options: CommonsenseOptions) -> Inventory:
    """Train and test file of each task."""
    root = find_root(options.root, NAME, "the commonsense tasks of LLM-Adapters")
    tasks = choose(options.tasks)
    files = [
        looked_at(path, root, counted(path), official)
        for task in tasks
        for part, official in zip(("train", "test"), OFFICIAL[task], strict=True)
        for path in (root / "dataset" / task / f"{part}.json",)
    ]
    return Inventory(root, files, overlaps_of(lambda: [read_pool(root / "dataset", task) for task in tasks], files))
