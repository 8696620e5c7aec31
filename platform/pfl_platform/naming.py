"""What folders are called where a reader must tell them apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pfl_platform.errors import UserError


def distinct(paths: Sequence[Path]) -> list[str]:
    """Names by which a reader tells the folders apart: the last part of the path, with as many before it as needed.

    >>> distinct([Path("/a/x/run"), Path("/a/y/run")])
    ['x-run', 'y-run']
    """
    resolved = [path.resolve() for path in paths]
    if len(set(resolved)) < len(resolved):
        twice = next(path for path in resolved if resolved.count(path) > 1)
        raise UserError(f"{twice} is given twice.")
    for depth in range(1, max(len(path.parts) for path in resolved) + 1):
        names = ["-".join(part for part in path.parts[-depth:] if part != path.anchor) for path in resolved]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in resolved]
