"""`cka A B`: the similarity of two backbones' layers, as numbers and a picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfl_platform.cli.output import console, note, print_json, print_rows
from pfl_platform.errors import UserError
from pfl_platform.plugins import PluginManager, default
from pfl_platform.recipes import benchmark_setting


@dataclass(frozen=True)
class Order:
    """What was asked for."""

    left: str
    right: str
    benchmark: str | None
    public: str | None
    size: int
    batch_size: int
    at: Any
    out: Path
    seed: int


def cka(order: Order, as_json: bool, quiet: bool) -> None:
    """Measures on a public set, draws the heat map into `order.out`, and prints."""
    from pfl_platform.evaluation.cka import layer_similarity, left_over, straightness
    from pfl_platform.report.pictures import heat_maps

    if order.size < 1:
        raise UserError(f"--size is the number of samples, at least 1; {order.size} is not.")
    prepare(order.out)
    manager = PluginManager()
    chosen = benchmark_setting(order.benchmark or default("benchmark").name, Path.cwd())
    benchmark = manager.make("benchmark", chosen["name"], chosen.get("options", {}))
    samples = benchmark.public(order.public, order.size, order.seed)
    left, right = (manager.make("backbone", name, {}) for name in (order.left, order.right))
    say = (lambda done: None) if quiet or as_json else (lambda done: note(f"{done} of {len(samples)} samples"))
    table = layer_similarity(left, right, samples, batch_size=order.batch_size, at=order.at, say=say)
    used = len(samples) - left_over(len(samples), order.batch_size)
    sides = zip((order.left, order.right), table.shape, strict=True)
    rows, columns = ([f"{name} {k + 1}" for k in range(count)] for name, count in sides)
    heat_maps({f"CKA, {used} samples of {benchmark.name}": table.tolist()}, rows, columns, order.out)
    found = {
        "backbones": [order.left, order.right],
        "benchmark": benchmark.name,
        "samples": used,
        "at": order.at,
        "cka": table.tolist(),
        "best": [int(k) + 1 for k in table.argmax(1)],
        "straightness": straightness(table),
    }
    if as_json:
        print_json(found)
        return
    heads = [str(k + 1) for k in range(table.shape[1])]
    body = [
        {
            "layer": name,
            **{head: f"{value:.3f}" for head, value in zip(heads, row, strict=True)},
            "most like": str(best),
        }
        for name, row, best in zip(rows, table.tolist(), found["best"], strict=True)
    ]
    print_rows(body, ["layer", *heads, "most like"])
    console().print(
        f"Columns: layers of {order.right}. Straightness {found['straightness']:.3f}: 1 where the layers most alike "
        f"are at the same relative depth. Picture: {order.out}",
        soft_wrap=True,
    )


def prepare(file: Path) -> None:
    """Whether the picture can be written, before anything is measured."""
    if file.suffix not in (".png", ".pdf", ".svg"):
        raise UserError(f"The picture {file} should end in .png, .pdf or .svg.")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        there = file.exists()
        with file.open("ab"):
            pass
        if not there:
            file.unlink()  # what is refused later leaves no empty picture
    except OSError as error:
        raise UserError(f"The picture {file} cannot be written: {error.strerror}.") from None
