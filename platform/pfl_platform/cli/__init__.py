"""The command line: `pfl-platform run | resume | compare | list | show`."""

from __future__ import annotations

from pfl_platform.cli.app import main

__all__ = ["main"]
