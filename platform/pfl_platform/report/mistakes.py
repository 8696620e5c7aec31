"""What a run's personal models answered wrongly: the question, the accepted answers, what was said, the pictures."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfl_platform.data import Benchmark, Picture, Sample
from pfl_platform.errors import UserError, nearest
from pfl_platform.evaluation.surfaces import Split

SIDE = 224
"""Pixels of a picture's longer side on the page."""


@dataclass(frozen=True)
class Mistake:
    """One prediction below full score."""

    client: str
    cell: str
    sample: Sample
    said: str
    score: float

    @property
    def question(self) -> str:
        return self.sample.turns[0].human

    def row(self) -> dict[str, Any]:
        return {
            "client": self.client,
            "cell": self.cell,
            "id": self.sample.id,
            "question": self.question,
            "wanted": list(self.sample.gold),
            "said": self.said,
            "score": self.score,
        }


def mistakes(
    run: Path, benchmark: Benchmark, split: Split, *, client: str | None = None, task: str | None = None
) -> Iterator[Mistake]:
    """The mistakes in `predictions.jsonl` of a finished run, in its order: of clients on their own tasks, or on one
    task of anybody's. Raises `UserError` for names that are not there and for a file that does not fit the
    benchmark."""
    clients = [each.client_id for each in benchmark.clients]
    cells = {f"{each.client_id}:{item.name}": item for each in benchmark.clients for item in each.tasks}
    cells |= {f":{item.name}": item for item in benchmark.unseen}
    names = {key.partition(":")[2] for key in cells}
    for what, name, known in (("client", client, clients), ("task", task, sorted(names))):
        if name is not None and name not in known:
            raise UserError(f"The run has no {what} '{name}'." + nearest(name, known))
    samples: dict[str, dict[str, Sample]] = {}
    for number, line in enumerate(_lines(run / "predictions.jsonl"), 1):
        row = _row_of(line, f"Line {number} of {run / 'predictions.jsonl'}")
        owner, _, name = row["cell"].partition(":")
        wanted = owner == row["client"] if task is None else name == task
        if not wanted or row["score"] >= 1 or client not in (None, row["client"]):
            continue
        if row["cell"] not in samples and row["cell"] in cells:
            items = getattr(cells[row["cell"]], split)
            samples[row["cell"]] = {sample.id: sample for sample in items}
        sample = samples.get(row["cell"], {}).get(row["id"])
        if sample is None:
            raise UserError(
                f"Line {number} of {run / 'predictions.jsonl'} is about '{row['id']}' of '{row['cell']}', which the "
                "benchmark does not have."
            )
        yield Mistake(row["client"], row["cell"], sample, row["text"], row["score"])


def _row_of(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
        if isinstance(row, dict) and {"client", "cell", "id", "text", "score"} <= row.keys():
            return row
    except json.JSONDecodeError:
        pass
    raise UserError(f"{where} is no prediction; put back the file as it was.")


def _lines(file: Path) -> Sequence[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(f"The run has no {file.name}; it is written when a run ends.") from None


def page(found: Sequence[Mistake], title: str) -> str:
    """An HTML page that needs nothing else: pictures are inside."""
    rows = "\n".join(_row(item) for item in found)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title><style>
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #222 }}
h1 {{ font-size: 1.3rem }}
article {{ border-top: 1px solid #ccc; padding: .8rem 0; display: flex; gap: 1rem; flex-wrap: wrap }}
article > div {{ flex: 1 1 20rem }}
img {{ border: 1px solid #ccc; margin: 0 .3rem .3rem 0; image-rendering: pixelated; max-height: {SIDE}px }}
.where {{ color: #666; font-size: .85rem }}
.question {{ white-space: pre-wrap }}
b {{ display: inline-block; width: 4.5rem; font-weight: 600 }}
.said {{ color: #b00020 }}
</style></head><body>
<h1>{html.escape(title)}</h1>
{rows}
</body></html>
"""


def _row(item: Mistake) -> str:
    pictures = "".join(f'<img alt="" src="{_source(picture)}">' for picture in item.sample.pictures)
    gold = " or ".join(f"“{answer}”" for answer in item.sample.gold)
    return (
        f'<article><div class="pictures">{pictures}</div><div>'
        f'<p class="where">{html.escape(item.client)} on {html.escape(item.cell)}, {html.escape(item.sample.id)}, '
        f"score {item.score:.2f}</p>"
        f'<p class="question">{html.escape(item.question)}</p>'
        f'<p><b>wanted</b> {html.escape(gold)}<br><b>said</b> <span class="said">“{html.escape(item.said)}”</span></p>'
        "</div></article>"
    )


def _source(picture: Picture) -> str:
    """The picture as a data address: large ones made smaller, small ones larger by a whole factor."""
    image = picture.load()
    longer = max(image.size)
    if longer > SIDE:
        image.thumbnail((SIDE, SIDE))
    elif (factor := min(4, SIDE // longer)) > 1:
        image = image.resize((image.width * factor, image.height * factor), resample=0)
    held = io.BytesIO()
    image.save(held, "PNG")
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()
