"""Errors that a user can act on.

The command line prints the sentence of a `UserError` and exits with its code; anything else is a defect of the
platform and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input, found before anything was written. One clear sentence; exit code 2."""

    exit_code = 2


class RunStopped(UserError):
    """A run that began had to stop (NaN loss, full disk, signal). What was committed stays; exit code 1."""

    exit_code = 1


def nearest(name: str, known: Iterable[str]) -> str:
    """The clause ` Did you mean 'x'?` for a mistyped `name`, or the known names when nothing is near.

    >>> nearest("medain", ["mean", "median"])
    " Did you mean 'median'?"
    >>> nearest("zzz", ["b", "a"])
    ' Known: a, b.'
    """
    names = sorted(set(known))
    match = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if match:
        return f" Did you mean '{match[0]}'?"
    return f" Known: {', '.join(names)}." if names else " None is installed."
