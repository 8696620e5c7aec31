"""A leaderboard as one HTML page that needs nothing else: no file beside it, no network."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from pfl_platform.report.units import byte_text, score_text, time_text


@dataclass(frozen=True)
class Line:
    """One row of a table, or one run. score, deviation: Self A_last over seeds; others: Others A_last; up: bytes of all
    clients in a run; seconds: of a run."""

    table: str
    row: str
    method: str
    backbones: str
    seeds: int
    score: float | None
    deviation: float | None
    published: float | None
    others: float | None
    up: float
    seconds: float
    version: str
    folder: str

    @property
    def difference(self) -> float | None:
        return None if self.score is None or self.published is None else self.score - self.published


HEADS = (
    "table", "row", "method", "backbones", "seeds", "Self A_last", "± seeds", "published", "difference",
    "Others A_last", "bytes up", "time", "version", "folder",
)  # fmt: skip

SCRIPT = """
document.querySelectorAll('th button').forEach((button, place) => button.addEventListener('click', () => {
  const head = button.parentElement, body = document.querySelector('tbody');
  const down = head.getAttribute('aria-sort') === 'ascending';
  document.querySelectorAll('th').forEach(other => other.removeAttribute('aria-sort'));
  head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
  const key = row => row.cells[place].dataset.sort;
  const order = (a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === '' || y === '') return (x === '') - (y === '');
    const numbers = x - y;
    return (Number.isNaN(numbers) ? x.localeCompare(y) : numbers) * (down ? -1 : 1);
  };
  [...body.rows].sort(order).forEach(row => body.append(row));
}));
document.querySelector('input').addEventListener('input', event => {
  const wanted = event.target.value.toLowerCase();
  for (const row of document.querySelector('tbody').rows)
    row.hidden = !row.textContent.toLowerCase().includes(wanted);
});
"""


BEGINNING = b'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Leaderboard</title>'
"""How every such page begins; another file is not overwritten."""


def page(lines: Sequence[Line]) -> str:
    """The whole page. What is not known sorts last, whichever way."""
    heads = "".join(f'<th scope="col"><button type="button">{html.escape(head)}</button></th>' for head in HEADS)
    rows = "\n".join(f"<tr>{''.join(map(_cell, _cells(line)))}</tr>" for line in lines)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Leaderboard</title><style>
body {{ font: 14px/1.4 system-ui, sans-serif; margin: 1.5rem; color: #222 }}
h1 {{ font-size: 1.3rem }}
table {{ border-collapse: collapse }}
th, td {{ padding: .3rem .6rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top }}
td.number {{ text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }}
th {{ position: sticky; top: 0; background: #f3f3f3 }}
th button {{ font: inherit; font-weight: 600; background: none; border: 0; padding: 0; cursor: pointer }}
th[aria-sort=ascending] button::after {{ content: " ▲" }}
th[aria-sort=descending] button::after {{ content: " ▼" }}
tbody tr:hover {{ background: #fafae8 }}
</style></head><body>
<h1>Leaderboard</h1>
<p>Scores are means over clients of what each client's model scores on its own tasks after the last round. Published
numbers are at full scale, also beside a miniature.</p>
<p><label>Show lines with <input type="search"></label></p>
<table><thead><tr>{heads}</tr></thead><tbody>
{rows}
</tbody></table>
<script>{SCRIPT}</script>
</body></html>
"""


def _cells(line: Line) -> list[tuple[str, str | float | None]]:
    """What is shown, and what is sorted by, in the order of `HEADS`."""
    return [
        *((text, text) for text in (line.table, line.row, line.method, line.backbones)),
        (str(line.seeds), line.seeds),
        *((score_text(value), value) for value in (line.score, line.deviation, line.published)),
        (score_text(line.difference, sign=True), line.difference),
        (score_text(line.others), line.others),
        (byte_text(line.up), line.up),
        (time_text(line.seconds), line.seconds),
        *((text, text) for text in (line.version, line.folder)),
    ]


def _cell(cell: tuple[str, str | float | None]) -> str:
    shown, key = cell
    kind = "" if isinstance(key, str) else ' class="number"'
    value = "" if key is None else key if isinstance(key, str) else f"{key:.10g}"
    return f'<td{kind} data-sort="{html.escape(value)}">{html.escape(shown)}</td>'
