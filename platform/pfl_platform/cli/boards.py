"""`leaderboard`: one page from the manifests of many folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pfl_platform import manifests
from pfl_platform.cli.output import console
from pfl_platform.cli.running import is_run, results_of
from pfl_platform.errors import UserError
from pfl_platform.naming import distinct
from pfl_platform.report import leaderboard as pages
from pfl_platform.report.reproduced import MEAN
from pfl_platform.store.atomic import write_atomic


def leaderboard(folders: Sequence[Path], out: Path) -> None:
    """Writes the page; a folder without a manifest is refused."""
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; name a file, such as board.html.")
    if out.exists() and not out.read_bytes().startswith(pages.BEGINNING):
        raise UserError(f"{out} is there and is no leaderboard; name another file with --out.")
    lines = [line for folder, name in zip(folders, distinct(folders), strict=True) for line in lines_of(folder, name)]
    write_atomic(out, [pages.page(lines).encode()])
    console().print(f"{len(lines)} lines from {len(folders)} folders: {out}", soft_wrap=True)


def lines_of(folder: Path, name: str) -> list[pages.Line]:
    """What a folder's manifest says: of a table's, a line for each row; of a finished run's own files, one."""
    if (folder / manifests.FILE).is_file():
        return _of_table(folder, name, manifests.read(folder))
    if is_run(folder) and (folder / "results.json").is_file():
        return [_of_run(folder, name)]
    raise UserError(
        f"The folder {folder} has no {manifests.FILE} and is no finished run; a leaderboard needs manifests."
    )


def _of_table(folder: Path, name: str, found: dict[str, Any]) -> list[pages.Line]:
    lines = []
    try:
        for row in found["rows"]:
            if row["what"] != MEAN:
                continue
            runs = [run for run in found["runs"] if run["row"] == row["row"]]
            others = [run["summary"]["others"]["last"]["mean"] for run in runs]
            known = [value for value in others if value is not None]
            lines.append(
                pages.Line(
                    table=f"{found['table']}" + (f" ({found['scale']})" if found["scale"] != "full" else ""),
                    row=row["row"],
                    method=runs[0]["method"],
                    backbones=", ".join(runs[0]["pins"]["backbones"]),
                    seeds=row["seeds"],
                    score=row["ours"],
                    deviation=row["deviation"],
                    published=row["theirs"],
                    others=sum(known) / len(known) if known else None,
                    up=sum(run["cost"]["up_payload"] for run in runs) / len(runs),
                    seconds=sum(run["cost"]["seconds"] for run in runs) / len(runs),
                    version=found["versions"].get("pfl-platform", "?"),
                    folder=name,
                )
            )
    except (KeyError, IndexError, TypeError) as error:
        raise UserError(f"The manifest in {folder} was changed, or another program wrote it: {error!r}.") from None
    return lines


def _of_run(folder: Path, name: str) -> pages.Line:
    results = results_of(folder)
    pins = manifests.entry(folder, "", results)["pins"]
    summary, config = results["summary"], results["config"]
    return pages.Line(
        table=f"{results['benchmark']}, a run",
        row=config.get("label") or results["method"],
        method=results["method"],
        backbones=", ".join(pins["backbones"]),
        seeds=1,
        score=summary["self"]["last"]["mean"],
        deviation=None,
        published=(config.get("published") or {}).get(MEAN),
        others=summary["others"]["last"]["mean"],
        up=results["cost"]["up_payload"],
        seconds=results["cost"]["seconds"],
        version=pins["versions"].get("pfl-platform", "?"),
        folder=name,
    )
