"""What is there of GLUE's files."""

from __future__ import annotations

from pfl_benchmarks.checking import lines_in
from pfl_benchmarks.glue.loading import TRAIN, choose
from pfl_benchmarks.glue.options import NAME, GlueOptions
from pfl_benchmarks.roots import find_root
from pfl_platform.inventory import Inventory, looked_at

OFFICIAL = {
    "CoLA": (8_551, 1_043), "MNLI": (392_702, 9_815), "MRPC": (3_668, 408), "QNLI": (104_743, 5_463),
    "QQP": (363_846, 40_430), "RTE": (2_490, 277), "SST-2": (67_349, 872), "STS-B": (5_749, 1_500),
}  # fmt: skip
"""Rows of the published train and development files."""


def check(options: GlueOptions) -> Inventory:
    """Train and development file of each task."""
    root = find_root(options.root, NAME, "GLUE")
    files = [
        looked_at(path, root, lines_in(path, 0 if task.positions else 1), official)
        for task in choose(options.tasks)
        for part, official in zip((TRAIN, task.test), OFFICIAL[task.name], strict=True)
        for path in (root / task.name / part,)
    ]
    return Inventory(root, files)
