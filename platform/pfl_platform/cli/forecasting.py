"""`plan`: rehearses what was asked for and prints what it would take."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pfl_platform.cli.launching import check_plan
from pfl_platform.cli.output import console, note, print_json, print_rows
from pfl_platform.config import RunConfig
from pfl_platform.data import Benchmark
from pfl_platform.errors import UserError
from pfl_platform.federation.setup import assign, device_of
from pfl_platform.ledger import calibration
from pfl_platform.ledger.capacity import Capacity, memory_of
from pfl_platform.ledger.estimates import questions
from pfl_platform.ledger.outlook import Asked, outlook, proposals
from pfl_platform.ledger.stage import PARTS
from pfl_platform.ledger.typical import typical, with_public
from pfl_platform.outlines import row_of
from pfl_platform.plugins import PluginManager, available
from pfl_platform.recipes import Request, Resolver
from pfl_platform.report.units import byte_text, time_text


@dataclass(frozen=True)
class Order:
    """What the user asked for. ranks, gpus: of the launch. memory: GB of the device, where that is said."""

    request: Request
    rows: Sequence[str]
    ranks: int | None
    gpus: int | None
    memory: float | None
    calibrate: bool
    json: bool


def forecast(order: Order) -> None:
    """Prints the plan of each run that was asked for."""
    if order.memory is not None and not (math.isfinite(order.memory) and order.memory > 0):
        raise UserError(f"--memory is {order.memory:g}; it must be a finite number of GB above 0.")
    if order.rows and order.request.recipe is None:
        raise UserError("--row names rows of a recipe; name the recipe.")
    found = {row: _one(order, replace(order.request, row=row)) for row in _rows(order)}
    if order.json:
        print_json(next(iter(found.values())) if len(found) == 1 else found)
        return
    for row, plan in found.items():
        if row:
            console(width=1000).print(f"\n{row}", markup=False, highlight=False)
        show(plan)


def _rows(order: Order) -> list[str | None]:
    resolver = Resolver(PluginManager(), outlined=True)
    return [*(order.rows or resolver.rows(order.request))] or [None]


def _one(order: Order, request: Request) -> dict[str, Any]:
    manager = PluginManager()
    try:
        resolver = Resolver(manager)
        config = resolver.resolve(request)
        benchmark, assumed = resolver.benchmark(config.benchmark.model_dump()), None
    except UserError:
        resolver = Resolver(manager, outlined=True)
        config = resolver.resolve(request)
        assumed = row_of(str(config.benchmark.options.get("stand_in") or config.benchmark.name))
        benchmark = typical(resolver.benchmark(config.benchmark.model_dump()), assumed)
    processes = check_plan(config.engine, order.ranks, order.gpus)
    config, benchmark, public = _with_public(config, benchmark, manager)
    if order.calibrate and (assumed is not None or public is not None):
        whose = "benchmark" if assumed is not None else "public set"
        raise UserError(f"The {whose}'s files are not all here, so no step of the run can be measured.")
    if not order.json:
        note("rehearsing rounds on shapes")
    asked = Asked(config, manager, benchmark, device_of(config))
    capacity = Capacity(round(order.memory * 1e9), "that device") if order.memory else memory_of(asked.device)
    rehearsal = asked.rehearsed()
    found = outlook(asked, rehearsal, capacity)
    found["assumed_row"] = None if assumed is None else vars(assumed)
    found["assumed_public"] = public
    found["proposals"] = proposals(asked, rehearsal, capacity)
    if order.calibrate:
        calibration.keep(config, calibration.measured(config, manager, benchmark))
    found["seconds"] = _seconds(config, benchmark, found["flops"], processes)
    return found


def _with_public(
    config: RunConfig, benchmark: Benchmark, manager: PluginManager
) -> tuple[RunConfig, Benchmark, dict[str, Any] | None]:
    """Puts typical samples in the place of a public set that is known by name and whose files are not all here. The
    third is what was assumed, and why."""
    name = config.public.name
    if name not in available("benchmark"):
        return config, benchmark, None
    try:
        manager.make("benchmark", name, {})
    except UserError as error:
        row = row_of(name)
        public = config.public.model_copy(update={"name": None})
        assumed = {"name": name, "why": str(error), **vars(row)}
        return config.model_copy(update={"public": public}), with_public(benchmark, row), assumed
    return config, benchmark, None


def _seconds(
    config: RunConfig, benchmark: Benchmark, flops: Mapping[str, float], processes: int
) -> dict[str, Any] | None:
    """What is known of the run's time; with several processes clients' work is shared among them."""
    known = calibration.known(config)
    if known is None:
        rough = calibration.rate(config)
        if rough is None:
            return None
        rate, method = rough
        return {"total": sum(flops.values()) / rate / processes, "by": f"the rate of a run of '{method}', roughly"}
    backbone_of, asked = assign(config, benchmark), Counter[str]()
    for client, count in questions(config, benchmark).items():
        asked[backbone_of[client]] += count
    parts = known.of(config.rounds, config.local_steps, asked)
    for name in ("train", "evaluation"):
        parts["total"] -= parts[name] * (1 - 1 / processes)
        parts[name] /= processes
    return {**parts, "by": "a calibration of this run"}


def show(found: Mapping[str, Any]) -> None:
    """The plan as text."""
    screen = console(width=1000)

    def say(text: str) -> None:
        screen.print(text, markup=False, highlight=False, soft_wrap=True)

    engine = found["engine"]
    say(f"{found['method']} on {found['benchmark']}, engine {engine['name']}, {engine['device']}, {engine['dtype']}")
    rows = {"Its files are": found["assumed_row"], "The public set's files are": found["assumed_public"]}
    for whose, row in rows.items():
        if row is not None:
            why = f" ({row['why'].rstrip('.')})" if "why" in row else ""
            say(
                f"{whose} not all here{why}; assumed of a row: {row['text']} tokens of text, {row['pictures']:g} "
                f"pictures, {row['answers']} tokens of answer."
            )
    say("")
    columns = [part for part in PARTS if any(part in plan["parts"] for plan in _plans(found))]
    print_rows(
        [
            {
                "backbone": backbone["backbone"],
                "when": what,
                **{part: byte_text(backbone[what]["parts"].get(part, 0)) for part in columns},
                "in all": byte_text(backbone[what]["total"]),
            }
            for backbone in found["backbones"]
            for what in ("training", "evaluation")
            if what in backbone
        ],
        ["backbone", "when", *columns, "in all"],
    )
    capacity = found["capacity"]
    verdict = "fits" if found["fits"] else "does not fit"
    if engine["batch_clients"] != "off":
        say("\nOf clients that train side by side the table shows one; below, each holds as much beside the weights.")
    say(f"\nAt most {byte_text(found['memory'])} of tensors: {verdict} into {byte_text(capacity['bytes'])} of "
        f"{capacity['whose']}.")  # fmt: skip
    for sentence in found["proposals"]:
        say(f"  {sentence}")
    say("")
    traffic = [{"rounds": row["rounds"], "backbone": row["backbone"], **_sent(row)} for row in found["rounds"]]
    print_rows(traffic, ["rounds", "backbone", "up", "down", "up as a file", "down as a file"])
    total, flops, disk = found["bytes"], found["flops"], found["disk"]
    say(
        f"\nOf one client in one round; in all {byte_text(total['up_payload'])} up, "
        f"{byte_text(total['down_payload'])} down."
    )
    say(
        f"FLOPs: {sum(flops.values()):.3g} (clients {flops['train']:.3g}, server {flops['server']:.3g}, before round 1 "
        f"{flops['before']:.3g}, answers {flops['evaluation']:.3g})."
    )
    say(f"Disk: {byte_text(disk['left'])} at the end, {byte_text(disk['most'])} while a round is under way.")
    say(_time(found["seconds"]))
    if found["stopped"]:
        say(f"Not all is known: {found['stopped']}.")


def _plans(found: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [
        backbone[what] for backbone in found["backbones"] for what in ("training", "evaluation") if what in backbone
    ]


def _sent(row: Mapping[str, Any]) -> dict[str, str]:
    return {
        "up": f"{row['up_payload']:,}",
        "down": f"{row['down_payload'] + row['score_payload']:,}",
        "up as a file": f"{row['up_wire']:,}",
        "down as a file": f"{row['down_wire'] + row['score_wire']:,}",
    }


def _time(seconds: Mapping[str, Any] | None) -> str:
    if seconds is None:
        return "Time: not known; --calibrate measures this run's speed on this machine."
    parts = ", ".join(f"{name} {time_text(value)}" for name, value in seconds.items() if name not in ("total", "by"))
    return f"Time: {time_text(seconds['total'])}" + (f" ({parts})" if parts else "") + f", by {seconds['by']}."
