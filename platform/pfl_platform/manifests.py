"""What was run to make a table, in one file: versions, seeds, hashes of data, weights and configuration, results.

`manifest.json` is written by `reproduce` when all runs have ended. A leaderboard needs nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pfl_platform.errors import UserError
from pfl_platform.report.reproduced import Compared
from pfl_platform.store.atomic import write_atomic
from pfl_platform.store.pins import software
from pfl_platform.store.run_folder import RunFolder

FORMAT = 1
FILE = "manifest.json"


def machine() -> dict[str, Any]:
    """The class of this machine, and no name of it: processor, cores, memory in GiB, accelerators."""
    import torch

    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    cards = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(pages * size / 2**30),
        "accelerators": cards,
    }


def entry(folder: Path, name: str, results: Mapping[str, Any]) -> dict[str, Any]:
    """One run: where it lies below the manifest, what it began with, what came of it."""
    run = RunFolder(folder / name)
    config = (run.path / "config.yaml").read_bytes()
    return {
        "row": results["config"].get("label") or results["method"],
        "seed": results["seed"],
        "folder": name,
        "method": results["method"],
        "config_sha256": hashlib.sha256(config).hexdigest(),
        "pins": run.pins,
        "summary": results["summary"],
        "clients": {client: value["tasks"] for client, value in results["clients"].items()},
        "cost": results["cost"],
        "notes": list(results.get("notes", ())),
    }


def write(
    folder: Path,
    about: Mapping[str, Any],
    runs: Mapping[str, Mapping[str, Any]],
    rows: Sequence[Compared],
) -> dict[str, Any]:
    """Writes the manifest of a folder of runs. about: the table's title, citation, note, scale and so on. runs: folder
    below -> results."""
    found = {
        "format": FORMAT,
        "kind": "reproduce",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        **about,
        "versions": software(),
        "machine": machine(),
        "seeds": sorted({result["seed"] for result in runs.values()}),
        "rows": [row.as_json() for row in rows],
        "runs": [entry(folder, name, result) for name, result in runs.items()],
    }
    text = json.dumps(found, indent=1, ensure_ascii=False, default=str)
    write_atomic(folder / FILE, [text.encode()])
    return found


def read(folder: Path) -> dict[str, Any]:
    """The manifest in a folder."""
    file = folder / FILE
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"The manifest {file} cannot be read: {error}.") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT or not isinstance(found.get("rows"), list):
        raise UserError(f"The file {file} is no manifest of format {FORMAT}.")
    return found
