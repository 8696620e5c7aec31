"""The three sets, and the options that they share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import Field

from pfl_benchmarks.text.options import TextOptions


@dataclass(frozen=True)
class FlanSet:
    """A set of eight tasks, one per client: what it is called, its folder in $PFL_DATA, and how many samples a client
    has in the published setting (train, test)."""

    title: str
    folder: str
    tasks: tuple[str, ...]
    official: tuple[int, int]


SETS: Mapping[str, FlanSet] = {
    "flan8": FlanSet(
        "FLAN-8",
        "flan/potara8",
        (
            "arc_challenge", "cosmos_qa", "definite_pronoun_resolution", "glue_qqp",
            "hellaswag", "mnli", "squad_v1", "sst2",
        ),
        (2_000, 300),
    ),
    "flan-feddpa1": FlanSet(
        "FedDPA's first FLAN set",
        "flan/feddpa/dataset1",
        ("definite_pronoun_resolution", "snli", "cola", "glue_qqp", "trec", "web_nlg_en", "fix_punct", "wic"),
        (300, 200),
    ),
    "flan-feddpa2": FlanSet(
        "FedDPA's second FLAN set",
        "flan/feddpa/dataset2",
        ("hellaswag", "qnli", "arc_easy", "paws_wiki", "bool_q", "sentiment140", "gigaword", "word_segment"),
        (300, 200),
    ),
}  # fmt: skip
"""By the benchmark's name. The tasks are in the clients' order."""


class FlanOptions(TextOptions):
    """Options of the three FLAN benchmarks."""

    train_size: int = Field(0, ge=0, description="train samples per client, at most; 0: as many as were published")
    test_size: int = Field(0, ge=0, description="test samples per client, at most; 0: as many as were published")
