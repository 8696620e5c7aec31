"""Options of the benchmark `commonsense`."""

from __future__ import annotations

from pydantic import Field

from pfl_benchmarks.text.options import TextOptions

NAME = "commonsense"
TASKS = (
    "ARC-Challenge",
    "ARC-Easy",
    "boolq",
    "hellaswag",
    "openbookqa",
    "piqa",
    "social_i_qa",
    "winogrande",
)
"""Folders of the authors' `dataset/`, in the clients' order."""
OFFICIAL = (1_000, 500)
"""Train and test samples of a client in the published setting."""


class CommonsenseOptions(TextOptions):
    """Options of the benchmark `commonsense`."""

    tasks: tuple[str, ...] = Field((), description="tasks in the clients' order; default: all eight")
    clients_per_task: int = Field(
        1, ge=1, le=100, description="clients that share a task, with different train samples; 2 makes the 16 clients"
    )
    train_size: int = Field(OFFICIAL[0], ge=0, description="train samples per client, at most; 0: all")
    test_size: int = Field(OFFICIAL[1], ge=0, description="test samples per client, at most; 0: all")
