"""LLaVA's two stages as runs of the platform: one client, no exchange, whole modules in place of an adapter.

The run folder, going on where it stopped, the ranks of a launch and the ledger are those of every run. Here are the
stages' settings, and what comes out as a folder in the form of transformers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pfl_model_zoo.families.sight import PROJECTOR
from pfl_platform.cli import running
from pfl_platform.cli.launching import Ask
from pfl_platform.config import RunConfig
from pfl_platform.data import Benchmark
from pfl_platform.engines.ranks.place import here
from pfl_platform.errors import UserError
from pfl_platform.plugins import PluginManager
from pfl_platform.recipes import Request, Resolver
from pfl_platform.settings import assignment
from pfl_platform.store.run_folder import RunFolder
from pfl_platform.training.streams import Epochs, Pooled

LANGUAGE = ("model.language_model", "lm_head")
COUNTED = ("rounds", "local_steps", "local_epochs", "stream.protocol")

Stage = Literal["projector", "instructions"]


@dataclass(frozen=True)
class Wish:
    """What is to be trained on what. rank: of LoRA in the language model's blocks; 0 trains all of its weights."""

    stage: Stage
    folder: Path
    data: Path
    images: Path | None
    rank: int = 0
    epochs: float = 1.0
    save_every: int = 500
    options: Mapping[str, Any] | None = None
    """Dotted settings of the run that were given, None where nothing was said."""
    sets: Sequence[str] = ()


def published(wish: Wish) -> dict[str, Any]:
    """LLaVA-1.5's settings of a stage, as dotted keys (Liu et al., "Improved Baselines with Visual Instruction
    Tuning", 2310.03744, table 9; with LoRA those of its published scripts)."""
    found: dict[str, Any] = {
        "training.lr": 1e-3 if wish.stage == "projector" else 2e-4 if wish.rank else 2e-5,
        "training.batch_size": 256 if wish.stage == "projector" else 128,
        "training.micro_batch": 16,
        "training.schedule": "cosine",
        "training.warmup_ratio": 0.03,
        "adapter.modules": [PROJECTOR],
        "benchmark.need": "pictures" if wish.stage == "projector" else "nothing",
        "evaluation.others": False,
        "evaluation.max_new_tokens": 64,
    }
    if wish.stage == "instructions" and wish.rank:
        found["adapter.lora"] = {"r": wish.rank, "scale": 2.0}
        found["training.lr_scale"] = {f"local/layer.{PROJECTOR}*": 0.1}
    elif wish.stage == "instructions":
        found["adapter.modules"] = [PROJECTOR, *LANGUAGE]
    return found


def configured(wish: Wish) -> RunConfig:
    """The run that trains a stage. Raises `UserError` for what cannot be trained."""
    folder = checked(wish.folder)
    for text in wish.sets:
        if (key := assignment(text)[0]) in COUNTED:
            raise UserError(f"The setting '{key}' follows from --epochs and --save-every; leave it out.")
    if not wish.data.is_file():
        raise UserError(f"The file of records {wish.data} does not exist.")
    given = {key: value for key, value in (wish.options or {}).items() if value is not None}
    options = {
        "adapter.name": "modules",
        **published(wish),
        "backbones": {"*": str(folder)},
        "benchmark.file": str(wish.data.resolve()),
        **({} if wish.images is None else {"benchmark.pictures": str(wish.images.resolve())}),
        "stream.protocol": "passes",
        **given,
    }
    resolver = Resolver(PluginManager())
    config = resolver.resolve(Request("sft", "instructions", options=options, sets=wish.sets))
    rounds, steps = counted(resolver.benchmark(config.benchmark.model_dump()), config, wish)
    return RunConfig.model_validate({**config.model_dump(), "rounds": rounds, "local_steps": steps})


def counted(benchmark: Benchmark, config: RunConfig, wish: Wish) -> tuple[int, int]:
    """Rounds of about `save_every` steps, and the steps of each: together those of the epochs, and at most one less
    than there are rounds more."""
    (client,) = benchmark.clients
    pool = Pooled([task.train for task in client.tasks])
    each = Epochs(pool, config.training.batch_size, config.seed, "all").steps()
    if not math.isfinite(wish.epochs):
        raise UserError("--epochs is a number of passes over the data.")
    total = max(1, round(wish.epochs * each))
    rounds = max(1, round(total / wish.save_every))
    return rounds, -(-total // rounds)


def checked(folder: Path) -> Path:
    """The folder of a model that can be trained, as an absolute path."""
    from pfl_model_zoo.families.llava_original import is_original
    from pfl_model_zoo.from_folder import card_of
    from pfl_model_zoo.making.folder import existing

    found = existing(folder.expanduser(), "model").resolve()
    if is_original(found):
        raise UserError(f"The folder {folder} is in the layout of the original LLaVA code; use `zoo convert` first.")
    if card_of(str(found)).family != "llava":
        raise UserError(f"The folder {folder} holds no vision-language model; make one with `zoo build llava`.")
    return found


def carry_out(wish: Wish, out: Path, run: Path | None, quiet: bool, ask: Ask) -> None:
    """Trains, or goes on where the run stopped, and writes `out`, which must be new or empty."""
    from pfl_model_zoo.making.exporting import export
    from pfl_model_zoo.making.folder import refuse_used

    refuse_used(out)
    place = run if run is not None else out.with_name(f"{out.name}.run")
    config = configured(wish)
    if running.is_run(place):
        _refuse_other(place, config)
        running.resume(place, quiet, ask)
    else:
        running.start({"": config}, place, quiet, None, ask)
    rank = here()
    if rank is not None and rank.rank != 0:
        return
    if not (out / "config.json").is_file():  # the first rank of a launch has written it
        params = export(RunFolder.open(place).adapter_folder("all"), checked(wish.folder), out)
        print(f"{out}: {params:,} params. Use it as a backbone: --backbone {out.resolve()}")


def _refuse_other(place: Path, config: RunConfig) -> None:
    """A run that was begun can only be gone on with under the same settings."""
    begun = RunFolder.open(place).config
    threads = begun.engine.threads if config.engine.threads == 0 else config.engine.threads
    same = config.model_copy(update={"engine": config.engine.model_copy(update={"threads": threads})})
    if begun != same:
        raise UserError(
            f"The run in {place} was begun with other settings; go on with it by `pfl-platform resume {place}`, or "
            "name another folder with --run."
        )
