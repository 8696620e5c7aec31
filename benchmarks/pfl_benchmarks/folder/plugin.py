"""A federation of your own: a folder in the DRAKE/HFLB on-disk form, with pictures or text only."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pfl_benchmarks.folder.options import FolderOptions
from pfl_platform.hookspecs import hookimpl

if TYPE_CHECKING:
    from pfl_platform.data import Benchmark
    from pfl_platform.inventory import Inventory

NAME = "folder"


@hookimpl
def pfl_make_benchmark(name: str, options: Mapping[str, Any]) -> Benchmark | None:
    """The folder in the option `path`, or the one that `name` itself is the path of."""
    if name != NAME:
        if os.sep not in name and not Path(name).is_dir():
            return None
        options = {"path": name, **options}
    settings = FolderOptions.model_validate(options)

    from pfl_benchmarks.folder.loading import load

    return load(settings)


@hookimpl
def pfl_check_data(name: str, options: Mapping[str, Any]) -> Inventory | None:
    """What is there of the files."""
    if name != NAME:
        return None
    settings = FolderOptions.model_validate(options)

    from pfl_benchmarks.folder.check import check

    return check(settings)
