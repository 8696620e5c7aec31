"""`reproduce --plan`: what a table needs, what of it is here, and what it would cost; nothing is run or loaded."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pfl_platform.cli.output import console, note, print_json, print_rows
from pfl_platform.cli.reproducing import Order, remarks, requests
from pfl_platform.cli.sweeping import seeds_of
from pfl_platform.config import Choice, RunConfig
from pfl_platform.data import DATA
from pfl_platform.errors import UserError
from pfl_platform.federation.setup import assign
from pfl_platform.ledger.estimates import Estimate, estimate, named_backbones
from pfl_platform.ledger.shapes import Shapes
from pfl_platform.ledger.working import Tracer
from pfl_platform.outlines import Row, row_of
from pfl_platform.plugins import PluginManager, available, unadorned
from pfl_platform.recipes import Resolver
from pfl_platform.report.units import byte_text

HERE, MISSING = "there", "missing"
STORED = 2
"""Bytes of a param in published weights."""


@dataclass(frozen=True)
class Rates:
    """tflops: sustained by one GPU, 1e12 per second. tokens: of every row; None: as the benchmarks' cards say."""

    tflops: float
    tokens: int | None = None

    def check(self) -> None:
        if not (math.isfinite(self.tflops) and self.tflops > 0):
            raise UserError(f"--tflops is {self.tflops:g}; it must be a finite number above 0.")
        if self.tokens is not None and self.tokens < 1:
            raise UserError(f"--tokens is {self.tokens}; it must be at least 1.")


@dataclass
class Planning:
    """Plans tables one by one; what they have in common is found once."""

    rates: Rates
    folder: Path
    steps: int = 10
    manager: PluginManager = field(default_factory=PluginManager)
    _data: dict[str, dict[str, str]] = field(default_factory=dict)

    @cached_property
    def resolver(self) -> Resolver:
        return Resolver(self.manager, outlined=True)

    @cached_property
    def tracer(self) -> Tracer:
        return Tracer(self.folder, self.manager, self.steps)

    @cached_property
    def shapes(self) -> Shapes:
        return Shapes(self.manager)

    def plan(self, order: Order) -> dict[str, Any]:
        """Everything, as JSON."""
        table, request = requests(order)
        labels: list[str | None] = [*(order.rows or self.resolver.rows(request))] or [None]
        configs = {row or "": self.resolver.resolve(replace(request, row=row)) for row in labels}
        seeds = len(seeds_of(order.seeds))
        found = {row: self.estimate(config) for row, config in configs.items()}
        per_run = 3600 * self.rates.tflops * 1e12
        return {
            "table": table.title,
            "scale": order.scale,
            "notes": remarks(table, request, order),
            "runs": len(configs) * seeds,
            "seeds": seeds,
            "assumed": {"tflops": self.rates.tflops, "rows": self._rows(configs.values())},
            "models": [self.model(name) for name in sorted({name for c in configs.values() for name in self.uses(c)})],
            "data": self.data(configs.values()),
            "rows": [
                {"row": row, "runs": seeds, "gpu_hours": seeds * item.flops / per_run, **item.as_json()}
                for row, item in found.items()
            ],
            "gpu_hours": seeds * sum(item.flops for item in found.values()) / per_run,
            "memory": max(item.memory for item in found.values()),
            "disk": seeds * sum(item.disk for item in found.values()),
        }

    def estimate(self, config: RunConfig) -> Estimate:
        """What one run would take."""
        benchmark = self.resolver.benchmark(config.benchmark.model_dump())
        return estimate(
            config, benchmark, self.tracer.work(config), self.shapes, self.row(config), self.public_size(config)
        )

    def row(self, config: RunConfig) -> Row:
        row = row_of(str(config.benchmark.options.get("stand_in") or config.benchmark.name))
        return row if self.rates.tokens is None else Row(self.rates.tokens, 0, row.answers, True)

    def public_size(self, config: RunConfig) -> int:
        """Samples of the public set that are read: the first ones, where the server's option `samples` says so."""
        choice = config.aggregator
        said = choice.options.get("samples")
        if said is None and (model := self.manager.options("aggregator", choice.name)) is not None:
            option = model.model_fields.get("samples")
            said = option.default if option is not None else None
        return min(config.public.size, int(said or config.public.size))

    def uses(self, config: RunConfig) -> set[str]:
        """The backbones of a run: its clients', and those that components name."""
        benchmark = self.resolver.benchmark(config.benchmark.model_dump())
        found = {self.shapes.backbone(name).name for name in assign(config, benchmark).values()}
        return found | named_backbones(config)

    def model(self, name: str) -> dict[str, Any]:
        """Whether a backbone's files are here, and how to get them."""
        shape = self.shapes.of(name)
        plugin = _backbones().get(unadorned(name))
        about = plugin.about if plugin is not None else {}
        here = weights_here(name, str(about.get("source", "")))
        how = "" if here else f"hub: {about.get('source', '?')}; or a folder by --set backbone_options.path=DIR"
        return {
            "backbone": name,
            "params": shape.params,
            "bytes": STORED * shape.params,
            "state": HERE if here else MISSING,
            "how": how,
        }

    def data(self, configs: Any) -> list[dict[str, str]]:
        """Benchmarks and public sets: whether their files are here, and how to get them."""
        wanted: dict[str, Choice] = {}
        for config in configs:
            choice = config.benchmark
            if stand_in := choice.options.get("stand_in"):
                choice = Choice(name=str(stand_in))
            wanted.setdefault(choice.name, choice)
            if config.public.name in available("benchmark"):
                wanted.setdefault(config.public.name, Choice(name=config.public.name))
        return [self._state(choice) for _, choice in sorted(wanted.items())]

    def _state(self, choice: Choice) -> dict[str, str]:
        key = repr((choice.name, sorted(choice.options.items(), key=str), os.environ.get(DATA)))
        if key not in self._data:
            state, said = self._looked(choice)
            how = "" if state == HERE else f"pfl-platform data layout {choice.name}"
            self._data[key] = {"data": choice.name, "state": state, "said": said, "how": how}
        return self._data[key]

    def _looked(self, choice: Choice) -> tuple[str, str]:
        try:
            found = self.manager.check_data(choice.name, choice.options)
        except UserError as error:
            return MISSING, str(error)
        if found is None:
            return HERE, "in the package"
        absent = [file.path for file in found.files if file.state != "there"]
        if absent:
            return MISSING, f"{len(absent)} of {len(found.files)} files are not in {found.root}, such as {absent[0]}"
        fewer = sum(1 for file in found.files if (file.samples or 0) < (file.official or 0))
        return HERE, f"{found.root}" + (f"; {fewer} files hold fewer samples than the published ones" if fewer else "")

    def _rows(self, configs: Any) -> list[dict[str, Any]]:
        rows = {
            str(config.benchmark.options.get("stand_in") or config.benchmark.name): self.row(config)
            for config in configs
        }
        return [{"benchmark": name, **vars(row)} for name, row in rows.items()]


def _backbones() -> Mapping[str, Any]:
    return available("backbone")


def weights_here(name: str, source: str) -> bool:
    """Whether the files that a card names are on this machine: in its package, in another one, or in the hub's
    cache."""
    plugin = available("backbone").get(unadorned(name))
    if plugin is not None and plugin.folder is not None and (plugin.folder / source / "config.json").is_file():
        return True
    if source.startswith("package:"):
        return find_spec(source.removeprefix("package:").partition("/")[0]) is not None
    from huggingface_hub import try_to_load_from_cache

    try:
        return isinstance(try_to_load_from_cache(source, "config.json"), str)
    except ValueError:  # no name of a repository
        return False


def plan(order: Order, rates: Rates) -> None:
    """Prints the plan of one table."""
    rates.check()
    if not order.json:
        note("tracing methods on a small federation, counting backbones' shapes")
    with tempfile.TemporaryDirectory() as folder:
        found = Planning(rates, Path(folder)).plan(order)
    if order.json:
        print_json(found)
    else:
        show(found)


def show(found: Mapping[str, Any]) -> None:
    """The plan as text."""
    screen = console(width=1000)

    def say(text: str) -> None:
        screen.print(text, markup=False, highlight=False, soft_wrap=True)

    for sentence in found["notes"]:
        say(sentence)
    say(f"\n{found['runs']} runs: {len(found['rows'])} rows in {found['seeds']} seeds.\n")
    print_rows([_costs(row) for row in found["rows"]], ["row", "GPU-hours", "train", "server", "before", "evaluation",
                                                        "tried", "memory", "disk"])  # fmt: skip
    say(
        f"\nIn all {found['gpu_hours']:.3g} GPU-hours at an assumed {found['assumed']['tflops']:g} TFLOP/s "
        f"(--tflops), {byte_text(found['memory'])} on a GPU that holds all backbones of a row, "
        f"{byte_text(found['disk'])} of disk for the runs."
    )
    say("Train to evaluation: 1e15 FLOPs of one run. Tried: runs before it in which settings are chosen.")
    for row in found["assumed"]["rows"]:
        known = "" if row["known"] else " (not on the card)"
        say(
            f"Assumed of a row of {row['benchmark']}{known}: {row['text']} tokens of text, {row['pictures']:g} "
            f"pictures, {row['answers']} tokens of answer (--tokens)."
        )
    say("")
    print_rows(
        [{**item, "params": f"{item['params']:,}", "size": byte_text(item["bytes"])} for item in found["models"]],
        ["backbone", "state", "params", "size", "how"],
    )
    say("")
    print_rows(found["data"], ["data", "state", "said", "how"])


def _costs(row: Mapping[str, Any]) -> dict[str, str]:
    peta = {key: f"{row[key] / 1e15:.3g}" for key in ("train", "server", "before", "evaluation")}
    return {
        "row": row["row"] or "-",
        "GPU-hours": f"{row['gpu_hours']:.3g}",
        **peta,
        "tried": str(row["tuning"]),
        "memory": byte_text(row["memory"]),
        "disk": byte_text(row["disk"]),
    }
