"""The configuration of a run: YAML in, resolved YAML out; unknown keys are errors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

LARGEST = 10**9
"""Bound of counts: what is larger is a slip of the finger, and products of counts stay within 64 bits."""


class Section(BaseModel):
    """Base of every section: immutable; unknown keys, infinite numbers and NaN are forbidden."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Choice(Section):
    """A component by name, with its options (checked by the plugin itself)."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)


class Training(Section):
    """Local training. Rates are per optimiser step."""

    batch_size: int = Field(4, ge=1, le=LARGEST, description="samples per local step")
    micro_batch: int = Field(0, ge=0, description="rows per forward; 0: the whole batch")
    by_length: bool = Field(False, description="rows of a batch go into micro-batches by length, the longest first")
    lr: float = Field(2e-5, gt=0, description="learning rate")
    lr_scale: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict, description="key pattern -> factor of lr, first match"
    )
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(1.0, ge=0, description="largest gradient norm; 0: off")
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup: int = Field(0, ge=0, description="warm-up steps, counted over the whole run")
    warmup_ratio: float = Field(
        0.0, ge=0, le=1, description="warm-up as a share of a client's steps over the whole run, where `warmup` is 0"
    )


class Stream(Section):
    """How a client's data arrives."""

    protocol: Literal["dynamic", "static", "passes"] = Field(
        "dynamic",
        description="dynamic: tasks one after another; static: all tasks' samples, shuffled; both through a memory. "
        "passes: shuffled passes over all samples, which go on from round to round",
    )
    sampler: Literal["uniform", "least_used"] = Field(
        "uniform", description="how batches are drawn from the episodic memory"
    )
    decay: float = Field(0.99, gt=0, le=1, description="least_used: use counts shrink by this at each draw")
    temperature: float = Field(0.125, gt=0, description="least_used: probability ~ exp(-count / temperature)")
    capacity: int = Field(0, ge=0, description="samples that the memory holds; 0: no limit")


class Participation(Section):
    """Who can be drawn into a round's cohort, and how."""

    by: Literal["uniform", "samples"] = Field(
        "uniform", description="how a cohort is drawn: all clients alike, or in proportion to their train samples"
    )
    availability: dict[str, Annotated[float, Field(gt=0, le=1)]] = Field(
        default_factory=dict,
        description="client id -> share of rounds in which it can be reached; '*' for all others; default: always",
    )


class Evaluation(Section):
    """When and what is evaluated."""

    every: int = Field(5, ge=1, description="rounds between evaluations; the last round is always evaluated")
    others: bool = Field(True, description="evaluate on other clients' tasks too")
    others_last_only: bool = Field(False, description="fill Others in the last round only")
    unseen: bool = Field(False, description="evaluate on the benchmark's unseen tasks in the last round")
    baseline: bool = Field(True, description="evaluate before training (gain over no training)")
    items: int = Field(0, ge=0, description="test items per task, the first ones; 0: all")
    items_others: int = Field(0, ge=0, description="test items per task for Others; 0: as `items`")
    batch_size: int = Field(32, ge=1)
    max_new_tokens: int = Field(16, ge=1)
    choose: Literal["written", "likelihood", "likelihood_per_token"] = Field(
        "written",
        description="multi-choice questions: by what is written, or by the likeliest of the options' answers (of the "
        "whole answer, or in the mean of its tokens)",
    )
    seen_only: bool = Field(
        False, description="Self counts a client's task from when it has begun; off: every task at every point"
    )
    split: Literal["test", "validation"] = "test"


class Features(Section):
    """What is kept of what the frozen part of a backbone makes of a picture. Decides how long a run takes, and none of
    its results."""

    memory_mb: int = Field(256, ge=0, le=LARGEST, description="MiB in memory, in each process; 0: none")
    disk_mb: int = Field(
        1024,
        ge=0,
        le=LARGEST,
        description="MiB on disk, in the folder `features` of PFL_CACHE (else ~/.cache/pfl-platform), of all runs "
        "together; 0: none is read or written",
    )


class Public(Section):
    """The public set."""

    name: str | None = Field(None, description="one of the benchmark's public sets, another benchmark, or a folder")
    size: int = Field(5000, ge=1)


def _clients_at_once(value: Any) -> Any:
    """`off`, `auto` or a number, also as text."""
    number = int(value) if isinstance(value, str) and value.isdecimal() else value
    whole = isinstance(number, int) and not isinstance(number, bool) and 1 <= number <= 1024
    if not whole and number not in ("off", "auto"):
        raise PydanticCustomError("clients_at_once", "it is off, auto, or a number of clients from 1 to 1024")
    return number


class EngineOptions(Section):
    """Where tasks run and the numeric options that are pinned in a run."""

    name: Literal["inprocess", "deepspeed"] = Field(
        "inprocess", description="inprocess: one client after another; deepspeed: clients at all ranks of a launch"
    )
    zero: Literal[0, 1, 2, 3] = Field(
        0,
        description="ZeRO stage of the engine 'deepspeed', what the ranks of one client share; 1: moments, 2: also "
        "gradients, 3: also the frozen blocks of the backbone",
    )
    shards: int = Field(1, ge=1, le=1024, description="ranks that serve one client together, in the engine 'deepspeed'")
    offload: Literal["none", "cpu", "disk"] = Field(
        "none",
        description="where frozen blocks lie that zero 3 spreads, while they are not passed: on the devices, in the "
        "machine's memory, or in files, which the system reads when they are needed",
    )
    offload_folder: str = Field("", description="of those files; default: the system's temporary folder")
    batch_clients: Annotated[int | Literal["off", "auto"], BeforeValidator(_clients_at_once)] = Field(
        "off",
        description="clients of one backbone that train side by side, in one pass, which changes the last bits; auto: "
        "as many as bring 32 rows, at most 8",
    )
    force: bool = Field(False, description="begin even what seems not to fit into memory or onto the disk")
    threads: int = Field(
        0, ge=0, le=1024, description="torch threads, which change the last bits; 0: torch's own choice"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="of the frozen backbones")
    compile: Literal["off", "inductor", "aot_eager", "eager"] = Field(
        "off",
        description="a backend of torch.compile for the backbones' blocks, which changes the last bits; inductor makes "
        "code, the others only trace",
    )
    device: str = Field("auto", description="auto: cuda when there is one, else cpu")


class ClientOptions(Section):
    """What is different for one client."""

    adapter: dict[str, Any] = Field(default_factory=dict, description="options laid over those of the run's adapter")


class MetricOptions(Section):
    """Options of one metric, which the metric itself checks."""

    options: dict[str, Any] = Field(default_factory=dict)


class Budget(Section):
    """What a run that is compared may cost; solved from measured costs before any run began. All numbers are of whole
    runs: what comes before round 0, every client, all rounds, and what the server trains in them. See
    `pfl_platform.ledger.budget`."""

    name: str = Field(description="what was asked for: steps, flops, bytes, seconds, or a table of local steps")
    quantity: Literal["steps", "flops", "bytes", "seconds"]
    method: str = Field(description="whose run the others are held to")
    asked: float = Field(ge=0, description="that run's cost, as it was measured beforehand")
    expected: float = Field(ge=0, description="this run's cost with its rounds and local steps")
    per_step: float = Field(ge=0, description="what one local step of every client of a round adds")
    per_round: float = Field(description="what a round costs whatever its number of local steps")


class RunConfig(Section):
    """Everything that decides a run. `pfl-platform run` writes it, resolved, as `config.yaml` in the run folder."""

    method: str
    benchmark: Choice
    adapter: Choice
    objective: Choice
    aggregator: Choice
    personalizer: Choice | None = None
    postprocessors: tuple[Choice, ...] = ()
    observers: tuple[Choice, ...] = ()
    backbones: dict[str, str] = Field(default_factory=dict, description="client id -> backbone; '*' for all others")
    backbone_options: dict[str, Any] = Field(default_factory=dict, description="options for every backbone")
    clients: dict[str, ClientOptions] = Field(default_factory=dict, description="client id -> what differs for it")
    seed: int = Field(0, ge=0)
    rounds: int = Field(20, ge=1, le=LARGEST)
    local_steps: int = Field(100, ge=1, le=LARGEST)
    local_epochs: int = Field(
        0,
        ge=0,
        le=LARGEST,
        description="shuffled passes of a client over all its samples per round, instead of `local_steps` batches from "
        "the `stream`; 0: local_steps",
    )
    start: str = Field(
        "", description="folder of a finished run: adapters start from the mean of its clients' on the same backbone"
    )
    cohort: int = Field(0, ge=0, description="clients per round; 0: all")
    participation: Participation = Field(default_factory=Participation)
    budget: Budget | None = Field(
        None, description="what `--budget` solved for this run; its `rounds` and `local_steps` follow from it"
    )
    label: str = Field("", description="what tables call the run; a row of a recipe that is a table")
    published: dict[str, float] = Field(
        default_factory=dict,
        description="what a paper reports, to be shown beside: `mean`, and scores by client or task; decides nothing",
    )
    tune: dict[str, tuple[Any, ...]] | None = Field(
        None,
        description="dotted setting -> values that are tried, in all combinations, and scored on validation samples; "
        "the best are taken for the run",
    )
    keep_rounds: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (),
        description="rounds, counted from 1, whose adapters stay in the run folder; those of the last round do anyway",
    )
    heads: Literal["private", "shared", "frozen"] = Field(
        "private", description="task heads, such as classifiers: each client's own, averaged, or not trained"
    )
    training: Training = Field(default_factory=Training)
    stream: Stream = Field(default_factory=Stream)
    evaluation: Evaluation = Field(default_factory=Evaluation)
    metrics: dict[str, MetricOptions] = Field(
        default_factory=dict, description="options of metrics that the benchmark's tasks are scored by"
    )
    public: Public = Field(default_factory=Public)
    engine: EngineOptions = Field(default_factory=EngineOptions)
    features: Features = Field(default_factory=Features)

    @property
    def partial(self) -> bool:
        """Whether clients may miss rounds."""
        return self.cohort > 0 or any(share < 1 for share in self.participation.availability.values())

    @field_validator("start")
    @classmethod
    def _from_anywhere(cls, value: str) -> str:
        """A run may be resumed from another working directory."""
        return str(Path(value).expanduser().resolve()) if value else value
