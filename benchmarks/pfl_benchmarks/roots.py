"""Where the files of benchmarks lie that are not in the package."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from pfl_platform.data import DATA
from pfl_platform.errors import UserError


def find_root(given: Path | None, name: str, title: str, parts: Sequence[str] = ("",)) -> Path:
    """The folder of the benchmark `name`: the given one, else the one of that name in PFL_DATA. Raises `UserError` when
    there is none, or one of the `parts` is no folder in it; "" is the folder itself."""
    data = os.environ.get(DATA)
    root = given or (Path(data) / name if data else None)
    how = f"name the folder with the option 'root', or set {DATA} to the folder that holds '{name}'"
    if root is None:
        raise UserError(f"Where are the files of {title}? Please {how}.")
    if root.is_file() and root.suffix in {".zip", ".tar", ".gz", ".tgz", ".7z"}:
        raise UserError(f"{root} is an archive; unpack it and name the folder.")
    missing = next((part for part in parts if not (root / part).is_dir()), None)
    if missing is not None:
        what = f"no folder '{missing}'" if missing else "no such folder"
        raise UserError(f"{title} is not at {root}: there is {what}; {how}.")
    return root
