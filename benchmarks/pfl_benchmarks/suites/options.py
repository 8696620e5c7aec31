"""What a user can set for a published federation."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from pfl_benchmarks.folder.options import ReadingOptions

SUITES = ("drake", "hflb", "fedaya", "fedscope", "fedllm-large")
Exam = Literal["mmlu", "gsm8k", "humaneval"]


class SuiteOptions(ReadingOptions):
    """Options of the published federations."""

    root: Path | None = Field(None, description="the folder that holds `dataset/`; default: in $PFL_DATA")
    preset: str | None = Field(None, description="which models the clients have; default: the first that `show` lists")
    order: Literal["published", "paper"] = Field(
        "published", description="clients and tasks in the order of the published files, or of the paper's tables"
    )
    scenario: str | None = Field(None, description="a scenario file instead of the built-in ones, by name or path")
    unseen: bool = Field(False, description="read the unseen tasks as well, for evaluation.unseen=true")
    models: Literal["published", "tiny"] = Field(
        "published", description="tiny: the zoo's small backbones in the places of the published models"
    )
    stand_in: str | None = Field(
        None, description="a benchmark whose clients' tasks take the places of the published ones; results say so"
    )
    metric: str | None = Field(None, description="another metric for open-ended tasks, such as RougeL")
    missing: Literal["refuse", "skip"] = Field(
        "refuse", description="skip: leave out tasks without files, and clients without tasks; results say so"
    )


class LargeOptions(SuiteOptions):
    """Options of `fedllm-large`."""

    feddpa: Path | None = Field(
        None, description="FedDPA's own files, `dataset1` and `dataset2`; default: `flan/feddpa` in or beside the root"
    )


class ScopeOptions(SuiteOptions):
    """Options of `fedscope`."""

    evaluate: tuple[Exam, ...] = Field(
        ("mmlu", "gsm8k"),
        description="tests that take the place of held-out samples; humaneval runs generated code, and only if allowed",
    )
    code: Literal["rosetta", "code_alpaca"] = Field("rosetta", description="what the two clients with code learn from")
    shots: int = Field(0, ge=0, le=5, description="solved questions that stand before one of MMLU or GSM8K")


OPTIONS: dict[str, type[SuiteOptions]] = {
    **dict.fromkeys(SUITES, SuiteOptions),
    "fedscope": ScopeOptions,
    "fedllm-large": LargeOptions,
}
