"""Super-NaturalInstructions: the largest tasks, one per client, scored by ROUGE-L (text only)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pfl_platform.hookspecs import hookimpl

if TYPE_CHECKING:
    from pfl_platform.data import Benchmark

NAME = "sni"


class SniOptions(BaseModel):
    """Options of the benchmark `sni`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    root: Path | None = Field(None, description="folder with `tasks/` and `splits/`; default: `sni` in $PFL_DATA")
    split: str | None = Field(None, description="folder below `splits/`; default: `default`, or the only one")
    tasks: tuple[str, ...] = Field((), description="tasks in the clients' order; default: the largest of the split")
    num_clients: int = Field(10, ge=1, description="clients, where `tasks` names none")
    train_size: int = Field(500, ge=1, description="train instances per client")
    validation_size: int = Field(50, ge=0, description="validation instances per client")
    test_size: int = Field(50, ge=1, description="test instances per client")
    data_seed: int = Field(0, description="seed of the draw of instances")
    definition: Literal["full", "first_sentence", "none"] = Field(
        "full", description="how much of a task's definition stands in the prompt"
    )
    backbones: tuple[str, ...] = Field(
        ("tiny-llama-s", "tiny-llama-m"), min_length=1, description="backbones of the clients, in turn"
    )
    public_per_task: int = Field(500, ge=0, description="public instances per test task of the split; 0: no public set")


@hookimpl
def pfl_make_benchmark(name: str, options: Mapping[str, Any]) -> Benchmark | None:
    """The benchmark `sni`."""
    if name != NAME:
        return None
    settings = SniOptions.model_validate(options)

    from pfl_benchmarks.sni.loading import load

    return load(settings)
