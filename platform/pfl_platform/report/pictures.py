"""Pictures of what the tables say, as PNG files. matplotlib is imported when a picture is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MANY = 24
"""Above so many rows the cells of a heat map hold no numbers."""


def figure(width: float, height: float) -> Figure:
    """An empty figure that belongs to no window; sizes in inches."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def heat_maps(
    matrices: Mapping[str, Sequence[Sequence[float | None]]], rows: Sequence[str], columns: Sequence[str], file: Path
) -> None:
    """Matrices beside each other, by title, all in one colour scale; None is left blank."""
    side = 2.0 + 0.5 * max(len(rows), 2)
    picture = figure(side * len(matrices) + 1.0, side)
    values = [value for matrix in matrices.values() for row in matrix for value in row if value is not None]
    axes = picture.subplots(1, len(matrices), squeeze=False)[0]
    image = None
    for place, (title, matrix) in zip(axes, matrices.items(), strict=True):
        filled = [[float("nan") if value is None else value for value in row] for row in matrix]
        image = place.imshow(filled, vmin=min(values, default=0.0), vmax=max(values, default=1.0), cmap="viridis")
        turned = {"rotation": 60, "ha": "right", "rotation_mode": "anchor"}
        place.set_xticks(range(len(columns)), labels=columns, fontsize=8, **turned)
        place.set_yticks(range(len(rows)), labels=rows, fontsize=8)
        place.set_title(title, fontsize=9)
        if len(rows) <= _MANY:
            middle = (min(values, default=0.0) + max(values, default=1.0)) / 2
            for i, row in enumerate(matrix):
                for j, value in enumerate(row):
                    if value is not None:
                        colour = "w" if value < middle else "k"
                        place.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
    if image is not None:
        picture.colorbar(image, ax=list(axes), shrink=0.8)
    picture.savefig(file)


def lines(found: Mapping[str, Any], file: Path) -> None:
    """Loss and score along the weight, a curve per client, its own weight marked. `found`: what `line.walk` returns."""
    picture = figure(10.0, 4.2)
    left, right = picture.subplots(1, 2)
    for number, (name, entry) in enumerate(found["clients"].items()):
        weights = [point[0] for point in entry["line"]]
        for axes, index in ((left, 1), (right, 2)):
            values = [point[index] for point in entry["line"]]
            if None in values:
                continue
            (curve,) = axes.plot(weights, values, color=f"C{number % 10}", label=name, linewidth=1.2)
            axes.axvline(entry["weight"], color=curve.get_color(), linestyle=":", linewidth=1.0)
    for axes, title in ((left, f"loss on {found['split']}"), (right, f"score on {found['split']}")):
        axes.set_xlabel(f"weight: 0 {found['ends'][0]}, 1 {found['ends'][1]}; dotted: the client's own")
        axes.set_title(title, fontsize=10)
    left.legend(fontsize=7)
    picture.savefig(file)


def curve_grid(panels: Mapping[str, Mapping[str, Sequence[float]]], steps: Sequence[float], file: Path) -> None:
    """Lines over the same steps, a panel for each title; all panels have the same names, and one legend."""
    across = min(4, len(panels))
    down = -(-len(panels) // across)
    picture = figure(3.4 * across, 2.7 * down + 0.5)
    grid = picture.subplots(down, across, squeeze=False, sharex=True, sharey=True)
    for place, (title, lines_) in zip(grid.flat, panels.items(), strict=False):
        for name, values in lines_.items():
            place.plot(steps, values, marker="o", markersize=2.5, linewidth=1.2, label=name)
        place.set_title(title, fontsize=9)
        place.grid(alpha=0.3)
    for place in list(grid.flat)[len(panels) :]:
        place.set_visible(False)
    for place in grid[-1]:
        place.set_xlabel("steps", fontsize=8)
    for row in grid:
        row[0].set_ylabel("score", fontsize=8)
    handles, names = grid[0][0].get_legend_handles_labels()
    picture.legend(handles, names, loc="outside lower center", ncols=len(names), fontsize=8)
    picture.savefig(file)


def bars(
    series: Mapping[str, Sequence[tuple[float | None, float | None]]], names: Sequence[str], vertical: str, file: Path
) -> None:
    """Groups of bars, one for each name: (height, deviation) of every series; None is left out."""
    picture = figure(2.0 + 0.9 * len(names), 4.2)
    axes = picture.add_subplot()
    width = 0.8 / len(series)
    for number, (title, values) in enumerate(series.items()):
        places = [k + (number - (len(series) - 1) / 2) * width for k in range(len(names))]
        heights = [float("nan") if height is None else height for height, _ in values]
        errors = [deviation or 0.0 for _, deviation in values]
        axes.bar(places, heights, width, yerr=errors, capsize=3, label=title)
    axes.set_xticks(range(len(names)), labels=names, rotation=30, ha="right", rotation_mode="anchor", fontsize=8)
    axes.set_ylabel(vertical)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=8)
    picture.savefig(file)


def scatter(points: Mapping[str, Sequence[tuple[float, float]]], horizontal: str, vertical: str, file: Path) -> None:
    """Named points, one mark and label per name; on a logarithmic scale when they span more than a factor of ten."""
    picture = figure(6.4, 4.6)
    axes = picture.add_subplot()
    for name, pairs in points.items():
        xs, ys = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        axes.plot(xs, ys, marker="o", markersize=5, linewidth=1.0, label=name)
    spread = [x for pairs in points.values() for x, _ in pairs if x > 0]
    if spread and max(spread) > 10 * min(spread):
        axes.set_xscale("symlog", linthresh=min(spread))
    axes.set_xlabel(horizontal)
    axes.set_ylabel(vertical)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    picture.savefig(file)
