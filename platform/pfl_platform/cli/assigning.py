"""`assign`: who gets which backbone, by what local training gains with each, or by chance."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pfl_platform.cli import plans, running
from pfl_platform.cli.output import console, print_json, print_rows
from pfl_platform.config import RunConfig
from pfl_platform.data import Benchmark
from pfl_platform.errors import UserError, nearest
from pfl_platform.plugins import PluginManager, available, default, find
from pfl_platform.recipes import Request, Resolver, benchmark_setting
from pfl_platform.report.units import score_text
from pfl_platform.rng import numpy_rng
from pfl_platform.store.atomic import write_atomic

RANDOM = "random"
"""Instead of the name of a method, whose scores decide."""


@dataclass(frozen=True)
class Order:
    """What the user asked for."""

    benchmark: str
    backbones: str
    by: str | None
    ratio: str | None
    seed: int
    out: Path
    sets: Sequence[str]
    json: bool
    quiet: bool


def counts_of(ratio: str | None, backbones: Sequence[str], clients: int) -> list[int]:
    """How many clients each backbone gets: the parts of the ratio, scaled to the clients by largest remainders.

    >>> counts_of("3:7", ["a", "b"], 10), counts_of("1:1:2", ["a", "b", "c"], 10), counts_of(None, ["a", "b"], 5)
    ([3, 7], [3, 2, 5], [3, 2])
    """
    words = ratio.split(":") if ratio is not None else ["1"] * len(backbones)
    if len(words) != len(backbones) or not all(word.strip().isdigit() for word in words):
        raise UserError(f"--ratio has a whole number for each of the {len(backbones)} backbones, such as 3:7.")
    parts = [int(word) for word in words]
    if not sum(parts):
        raise UserError(f"--ratio {ratio} gives nobody a backbone.")
    exact = [part * clients / sum(parts) for part in parts]
    found = [int(value) for value in exact]
    for index in sorted(range(len(parts)), key=lambda k: (found[k] - exact[k], k))[: clients - sum(found)]:
        found[index] += 1
    return found


def by_gain(
    scores: Mapping[str, Mapping[str, float]], backbones: Sequence[str], counts: Sequence[int]
) -> dict[str, str]:
    """The clients that gain most from the last backbone over the first get the last, and so on down to the first. Of
    equal gains the later client counts as the smaller one.

    >>> table = {"x": {"a": 50.0, "b": 51.0}, "y": {"a": 40.0, "b": 60.0}, "z": {"a": 50.0, "b": 55.0}}
    >>> by_gain(table, ["a", "b"], [1, 2])
    {'x': 'a', 'y': 'b', 'z': 'b'}
    """
    first, last = backbones[0], backbones[-1]
    rising = sorted(reversed(list(scores)), key=lambda client: scores[client][last] - scores[client][first])
    chosen = dict(zip(rising, _dealt(backbones, counts), strict=True))
    return {client: chosen[client] for client in scores}


def by_chance(clients: Sequence[str], backbones: Sequence[str], counts: Sequence[int], seed: int) -> dict[str, str]:
    """A draw at the address (seed, "assign")."""
    order = numpy_rng(seed, "assign").permutation(len(clients))
    chosen = dict(zip((clients[int(index)] for index in order), _dealt(backbones, counts), strict=True))
    return {client: chosen[client] for client in clients}


def _dealt(backbones: Sequence[str], counts: Sequence[int]) -> list[str]:
    return [name for name, count in zip(backbones, counts, strict=True) for _ in range(count)]


def assign(order: Order) -> None:
    """Trains clients alone with each backbone where that decides, then writes the scenario and the table."""
    backbones = list(dict.fromkeys(running.names(order.backbones)))
    if len(backbones) < 2:
        raise UserError("--backbones takes two names or more, the smallest first: A,B.")
    by = order.by or _local()
    if by != RANDOM and by not in available("method"):
        raise UserError(
            f"--by is a method or {RANDOM}; '{by}' is neither." + nearest(by, [*available("method"), RANDOM])
        )
    if order.out.is_dir():
        raise UserError(f"--out {order.out} is a folder; name a file, such as scenario.yaml.")
    for name in backbones:
        if "/" not in name:
            find("backbone", name)
    resolver = Resolver(PluginManager())
    method = _local() if by == RANDOM else by
    runs = {name: _config(resolver, order, method, name) for name in backbones}
    benchmark = resolver.benchmark(next(iter(runs.values())).benchmark.model_dump())
    clients = [client.client_id for client in benchmark.clients]
    counts = counts_of(order.ratio, backbones, len(clients))
    scores: dict[str, dict[str, float]] = {}
    if by != RANDOM:
        _check_samples(next(iter(runs.values())), benchmark)
        scores = trained(order, runs, clients)
        chosen = by_gain(scores, backbones, counts)
    else:
        chosen = by_chance(clients, backbones, counts, order.seed)
    write(order, by, chosen, scores, dict(zip(backbones, counts, strict=True)))


def _local() -> str:
    """The installed method whose clients train alone."""
    module = default("local-training", "method").module
    return next(name for name, plugin in available("method").items() if plugin.module == module)


def _config(resolver: Resolver, order: Order, method: str, backbone: str) -> RunConfig:
    """Clients alone on one backbone, scored on validation samples unless the user says otherwise."""
    options: dict[str, Any] = {
        "backbones": {"*": backbone},
        "seed": order.seed,
        "label": backbone,
        "evaluation.others": False,
        "evaluation.baseline": False,
        "evaluation.split": "validation",
    }
    return resolver.resolve(Request(method, order.benchmark, options=options, sets=order.sets))


def _check_samples(config: RunConfig, benchmark: Benchmark) -> None:
    """Every client needs samples of the split that decides."""
    split = config.evaluation.split
    for client in benchmark.clients:
        if not any(len(getattr(task, split)) for task in client.tasks):
            raise UserError(
                f"The client '{client.client_id}' has no {split} samples, on which backbones are compared; "
                "--set evaluation.split=test compares them on test samples."
            )


def trained(order: Order, runs: Mapping[str, RunConfig], clients: Sequence[str]) -> dict[str, dict[str, float]]:
    """Client -> backbone -> Self A_last. The runs lie beside the file; what is finished is not run again."""
    folder = order.out.with_name(f"{order.out.stem}-runs")
    plan = {name.replace("/", "_"): config for name, config in runs.items()}
    if not plans.begun(folder, plan, "another file"):
        running.lay_out(plan, folder)
    running.resume(folder, order.quiet or order.json, show=False)
    results = {name: running.results_of(folder / name.replace("/", "_")) for name in runs}
    return {
        client: {name: float(results[name]["clients"][client]["self"]["last"]) for name in runs} for client in clients
    }


def write(
    order: Order,
    by: str,
    chosen: Mapping[str, str],
    scores: Mapping[str, Mapping[str, float]],
    counts: Mapping[str, int],
) -> None:
    """The scenario as a recipe, which `run --recipe` takes with any method, and the table beside it."""
    benchmark = benchmark_setting(order.benchmark, Path())
    options = {**benchmark.get("options", {}), **_benchmark_options(order.sets)}
    told = ", ".join(f"{count} x {name}" for name, count in counts.items())
    how = f"by chance, seed {order.seed}" if by == RANDOM else f"by what {by} gains, seed {order.seed}"
    scenario = {
        "summary": f"Backbones of the clients of {benchmark['name']}: {told}; {how}.",
        "benchmark": {"name": benchmark["name"], **({"options": options} if options else {})},
        "backbones": dict(chosen),
    }
    write_atomic(order.out, [yaml.safe_dump(scenario, sort_keys=False, allow_unicode=True).encode()])
    found = {
        "by": by,
        "seed": order.seed,
        "counts": dict(counts),
        "clients": {
            client: {"backbone": name, "scores": dict(scores.get(client, {}))} for client, name in chosen.items()
        },
    }
    table = order.out.with_name(f"{order.out.stem}-{by}.json")
    write_atomic(table, [json.dumps(found, indent=1, ensure_ascii=False).encode()])
    if order.json:
        print_json({**found, "scenario": str(order.out)})
        return
    backbones = list(counts)
    rows = [
        {
            "client": client,
            **{name: score_text(scores.get(client, {}).get(name)) for name in backbones},
            "gain": score_text(_gain(scores.get(client), backbones), sign=True),
            "gets": name,
        }
        for client, name in chosen.items()
    ]
    print_rows(rows, ["client", *(backbones if scores else []), *(["gain"] if scores else []), "gets"])
    console().print(f"The scenario is {order.out}, for `run --recipe`; the table is {table}.", soft_wrap=True)


def _gain(scores: Mapping[str, float] | None, backbones: Sequence[str]) -> float | None:
    return scores[backbones[-1]] - scores[backbones[0]] if scores else None


def _benchmark_options(sets: Sequence[str]) -> dict[str, Any]:
    """What was set of the benchmark belongs to the scenario too."""
    from pfl_platform.settings import assignment, lay_over, nested

    merged: dict[str, Any] = {}
    for text in sets:
        key, value = assignment(text)
        if key.startswith("benchmark."):
            merged = lay_over(merged, nested(key, value))
    found: dict[str, Any] = merged.get("benchmark", {}).get("options", {})
    return {key: _absolute(value) for key, value in found.items()}


def _absolute(value: Any) -> Any:
    """A path that was given relative to here means the same file wherever the scenario lies."""
    return str(Path(value).resolve()) if isinstance(value, str) and value and Path(value).exists() else value
