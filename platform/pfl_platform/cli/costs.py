"""`costs`: what methods cost at real backbones' shapes, as tables, as JSON and as pictures."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pfl_platform.cli.output import console, note, print_json, print_rows
from pfl_platform.errors import UserError, nearest
from pfl_platform.ledger.plan import FLOAT, Options, Planner, Row, real_backbones, scaling, small_backbones, variants
from pfl_platform.plugins import available


@dataclass(frozen=True)
class Order:
    """What the user asked for."""

    methods: str
    backbones: str | None
    reference: str | None
    rank: int
    tokens: int
    answers: int
    steps: int
    rounds: int
    clients: str
    others: str | None
    settings: tuple[str, ...]
    plots: Path | None


def costs(order: Order, as_json: bool) -> None:
    for name, value in (
        ("rank", order.rank),
        ("tokens", order.tokens),
        ("answers", order.answers),
        ("local-steps", order.steps),
    ):
        if value < 1:
            raise UserError(f"--{name} is {value}; it must be at least 1.")
    wanted, counts = chosen(order.methods), counted(order.clients)
    with tempfile.TemporaryDirectory() as folder:
        planner = planned(order, Path(folder))
        rows, refused = priced(planner, wanted)
        base = against(planner, rows, order.reference)
    found = content(rows, base, counts, order.rounds)
    if order.others is not None:
        found["variants"] = variants(parts(order.others))
    found["refused"] = refused
    if order.plots is not None:
        draw(found, order.plots)
    if as_json:
        print_json(found)
        return
    tables(found, order)


def parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def chosen(text: str) -> list[str]:
    """Method names, each installed."""
    known = available("method")
    names = sorted(known) if text == "all" else parts(text)
    for name in names:
        if name not in known:
            raise UserError(f"No method is called '{name}'." + nearest(name, known))
    if not names:
        raise UserError("--methods names none.")
    return names


def counted(text: str) -> list[int]:
    """Numbers of clients.

    >>> counted("1..1000"), counted("4,10")
    ([1, 2, 5, 10, 20, 50, 100, 200, 500, 1000], [4, 10])
    """
    if span := re.fullmatch(r"(\d+)\.\.(\d+)", text.strip()):
        first, last = int(span[1]), int(span[2])
        grid = [factor * 10**power for power in range(len(str(last))) for factor in (1, 2, 5)]
        found = sorted({first, *(number for number in grid if first <= number <= last), last})
    else:
        found = [int(part) for part in parts(text) if part.isdigit()]
        if len(found) != len(parts(text)):
            found = []
    if not found or found[0] < 1:
        raise UserError(f"The numbers of clients '{text}' are no list such as 1,10,100 and no span such as 1..1000.")
    return found


def planned(order: Order, folder: Path) -> Planner:
    names = parts(order.backbones) if order.backbones is not None else list(real_backbones())
    if len(names) != 2:
        raise UserError(f"--backbones takes two names, a small and a large one; '{order.backbones}' has {len(names)}.")
    planner = Planner(Options((names[0], names[1]), ("", "")), folder)
    options = Options(
        backbones=(names[0], names[1]),
        small=small_backbones(planner.manager),
        rank=order.rank,
        tokens=order.tokens,
        answers=order.answers,
        steps=order.steps,
        rounds=order.rounds,
        settings=order.settings,
    )
    return Planner(options, folder, planner.manager)


def priced(planner: Planner, names: Sequence[str]) -> tuple[list[Row], dict[str, str]]:
    """The rows of all methods, and why some have none."""
    rows: list[Row] = []
    refused: dict[str, str] = {}
    for name in names:
        note(f"tracing {name}")
        try:
            rows += planner.rows(name)
        except UserError as error:
            refused[name] = str(error)
    if not rows:
        raise UserError(" ".join(refused.values()))
    return rows, refused


def against(planner: Planner, rows: Sequence[Row], name: str | None) -> dict[str, Row]:
    """By backbone, the rows that all others are relative to."""
    if name is None:
        name = next((row.method for row in rows if not row.sent and not row.received), None)
        name = name or next(iter(_silent()), rows[0].method)
    found = [row for row in rows if row.method == name]
    if not found:  # what the user set of a component was meant for the methods that were asked for
        meant = ("objective", "aggregator", "personalizer", "postprocessors")
        common = tuple(text for text in planner.options.settings if re.split(r"[.=]", text)[0] not in meant)
        found = replace(planner, options=replace(planner.options, settings=common)).rows(name)
    return {row.backbone: row for row in found}


def _silent() -> list[str]:
    """Methods that declare an aggregator which does nothing."""
    return [name for name, plugin in available("method").items() if plugin.about.get("aggregator") == "none"]


def content(rows: Sequence[Row], base: Mapping[str, Row], counts: Sequence[int], rounds: int) -> dict[str, Any]:
    """All numbers, as JSON.

    reference, rows: [{method, backbone, flops, server, memory, training, training_bytes, graphs, adapter, up: {...},
    down, rounds, factors}]
    scaling: method -> backbone -> [{clients, flops, bytes}, ...]
    """
    return {
        "reference": next(iter(base.values())).method,
        "rows": [entry(row, base[row.backbone], rounds) for row in rows],
        "scaling": {
            method: {row.backbone: scaling(row, base[row.backbone], counts) for row in rows if row.method == method}
            for method in dict.fromkeys(row.method for row in rows)
        },
    }


def entry(row: Row, base: Row, rounds: int) -> dict[str, Any]:
    whole = base.adapter
    total = sum(row.sent.values())
    return {
        "method": row.method,
        "backbone": row.backbone,
        "flops": row.flops / base.flops,
        "server": row.server / base.flops,
        "memory": row.memory / base.memory,
        "training": row.training / base.training,
        "training_bytes": row.training,
        "graphs": row.graphs,
        "adapter": row.adapter,
        "others": list(row.others),
        "up": {
            "values": total,
            "bytes": FLOAT * total,
            "relative": total / whole,
            "shared": row.shared / whole,
            "grouped": row.grouped / whole,
            "measured": row.measured / whole,
            "without_shared": (total - row.shared) / whole,
            "unknown": list(row.unknown),
        },
        "down": {"values": row.received, "bytes": FLOAT * row.received},
        "once": {"values": row.once, "bytes": FLOAT * row.once},
        "rounds": {
            "sending": row.sending,
            "of": rounds,
            "megabytes_up": FLOAT * (row.once + total * row.sending) / 1e6,
        },
        "factors": {name: row.part(name) for name in "AB"},
    }


def tables(found: Mapping[str, Any], order: Order) -> None:
    for backbone in dict.fromkeys(row["backbone"] for row in found["rows"]):
        mine = [row for row in found["rows"] if row["backbone"] == backbone]
        console().print(
            f"\n{backbone}, rank {order.rank}, rows of {order.tokens} tokens; relative to {found['reference']}"
        )
        columns = ["method", "FLOPs", "server", "memory", "training", "graphs", "further backbones"]
        print_rows([compute_row(row) for row in mine], columns)
        console().print("\nBytes up in a round, relative to one adapter of the reference")
        columns = ["method", "up", "all clients", "one backbone", "statistics", "net", "net w/o all clients"]
        print_rows([bytes_row(row) for row in mine], columns)
        console().print(f"\nOver {order.rounds} rounds, per client, one direction")
        print_rows(
            [rounds_row(row) for row in mine],
            ["method", "A", "B", "MB before", "MB per round", "rounds that send", "MB"],
        )
        scaled = [
            scaling_row(method, parts_[backbone]) for method, parts_ in found["scaling"].items() if backbone in parts_
        ]
        console().print("\nFLOPs by number of clients, the server's sums among them")
        print_rows(scaled, list(scaled[0]))
    if "variants" in found:
        console().print("\nWeights of a further backbone")
        print_rows(
            [{**row, "relative": f"{row['relative']:.2f}"} for row in found["variants"]],
            ["backbone", "bits", "relative"],
        )
    console().print("")
    for name, reason in found["refused"].items():
        console().print(f"{name}: {reason}")
    console().print(
        "FLOPs: a local step in which every adapter that trains is updated once, with what runs beside it; counted at "
        "these shapes. Server: what the server trains, per client. Memory: weights at 16 bits, no further backbones. "
        "Training: what a local step of four rows holds beside the backbone: adapters, moments and gradients in "
        "float32, activations and logits at 16 bits without checkpointing. Graphs: passes held at once. "
        "All clients: values combined over all of them; net: less than one adapter of the reference (minus) or more. "
        "Values are of four bytes; what is narrower counts for what it weighs. Before: what is sent before round 0. "
        f"Answers have {order.answers} tokens. By the data, and more: what is sent beside is as large as the data "
        "makes it."
    )


def compute_row(row: Mapping[str, Any]) -> dict[str, str]:
    return {
        "method": row["method"],
        "FLOPs": f"{row['flops']:.3f}",
        "server": f"{row['server']:.3f}",
        "memory": f"{row['memory']:.3f}",
        "training": f"{row['training']:.3f}",
        "graphs": str(row["graphs"]),
        "further backbones": ", ".join(row["others"]) or "-",
    }


def bytes_row(row: Mapping[str, Any]) -> dict[str, str]:
    up = row["up"]
    if not up["values"]:
        columns = ("up", "all clients", "one backbone", "statistics", "net", "net w/o all clients")
        said = {"up": f"{', '.join(up['unknown'])}, by the data"} if up["unknown"] else {}
        return dict.fromkeys(columns, "-") | {"method": row["method"]} | said
    more = f" and {', '.join(up['unknown'])}" if up["unknown"] else ""
    return {
        "method": row["method"],
        "up": f"{up['values']:,} values{more}",
        "all clients": f"{up['shared']:.2%}",
        "one backbone": f"{up['grouped']:.2%}",
        "statistics": f"{up['measured']:.2%}",
        "net": f"{up['relative'] - 1:+.2%}",
        "net w/o all clients": f"{up['without_shared'] - 1:+.2%}",
    }


def rounds_row(row: Mapping[str, Any]) -> dict[str, str]:
    more = " and more" if row["up"]["unknown"] else ""
    return {
        "method": row["method"],
        "A": f"{row['factors']['A']:,}",
        "B": f"{row['factors']['B']:,}",
        "MB before": f"{row['once']['bytes'] / 1e6:.2f}",
        "MB per round": f"{row['up']['bytes'] / 1e6:.2f}{more}",
        "rounds that send": str(row["rounds"]["sending"]),
        "MB": f"{row['rounds']['megabytes_up']:.1f}{more}",
    }


def scaling_row(method: str, points: Sequence[Mapping[str, float]]) -> dict[str, str]:
    return {"method": method, **{f"{point['clients']:.0f}": f"{point['flops']:.3f}" for point in points}}


def draw(found: Mapping[str, Any], folder: Path) -> None:
    """`clients-flops.png` and `clients-bytes.png`."""
    from pfl_platform.report.pictures import scatter

    folder.mkdir(parents=True, exist_ok=True)
    for name, axis in (
        ("flops", f"FLOPs relative to {found['reference']}"),
        ("bytes", "bytes up per client and round"),
    ):
        curves = {
            f"{method}, {backbone}": [(point["clients"], point[name]) for point in points]
            for method, by_backbone in found["scaling"].items()
            for backbone, points in by_backbone.items()
        }
        scatter(curves, "clients", axis, folder / f"clients-{name}.png")
        note(f"drawn: {folder / f'clients-{name}.png'}")
