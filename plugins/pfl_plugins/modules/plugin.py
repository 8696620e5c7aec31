"""Whole modules of a backbone, trained in place of low-rank additions: a projector, or all weights.

Full fine-tuning with a float32 master copy per slot, as mixed-precision training has it (Micikevicius et al., "Mixed
Precision Training", ICLR 2018, 1710.03740).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pfl_platform.hookspecs import hookimpl
from pfl_plugins.modules.config import Config

if TYPE_CHECKING:
    from pfl_platform.adapters.surfaces import AdapterType


@hookimpl
def pfl_make_adapter(name: str, options: Mapping[str, Any]) -> AdapterType | None:
    if name != "modules":
        return None
    config = Config(**options)
    from pfl_plugins.modules.adapter import Modules

    return Modules(config)
