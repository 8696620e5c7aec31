"""A contact sheet: samples of a task side by side, for the eye."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pfl_benchmarks.drake_synth.drawing import SIDE
from pfl_platform.data import IMAGE_MARK, Sample, TaskData

if TYPE_CHECKING:
    from PIL.Image import Image

ZOOM = 3
GAP = 6
COLUMNS = 3
CELL_WIDTH = 4 * (SIDE * ZOOM + GAP) + GAP
LINES = 5
LINE_HEIGHT = 12
CELL_HEIGHT = SIDE * ZOOM + LINES * LINE_HEIGHT + 2 * GAP


def sheet(task: TaskData, n: int) -> Image:
    """The first `n` training samples of a task: pictures, question and answer."""
    return sheet_of(task.train[index] for index in range(n))


def sheet_of(samples: Iterable[Sample]) -> Image:
    """The samples in rows of three; pictures are enlarged without smoothing."""
    from PIL import Image as images
    from PIL import ImageDraw

    shown = list(samples)
    rows = -(-len(shown) // COLUMNS)
    canvas = images.new("RGB", (COLUMNS * CELL_WIDTH, max(1, rows) * CELL_HEIGHT), "white")
    pen = ImageDraw.Draw(canvas)
    for index, sample in enumerate(shown):
        left, top = (index % COLUMNS) * CELL_WIDTH + GAP, (index // COLUMNS) * CELL_HEIGHT + GAP
        for place, picture in enumerate(sample.pictures):
            large = picture.load().resize((SIDE * ZOOM, SIDE * ZOOM), images.Resampling.NEAREST)
            canvas.paste(large, (left + place * (SIDE * ZOOM + GAP), top))
        caption = f"{sample.turns[0].human.replace(IMAGE_MARK, '').strip()} -> {sample.turns[0].answer}"
        lines = [line for part in caption.split("\n") for line in textwrap.wrap(part, CELL_WIDTH // 6 - 2)]
        pen.multiline_text((left, top + SIDE * ZOOM + 2), "\n".join(lines[:LINES]), fill="black", spacing=1)
    return canvas
