"""What `run` and `plan` are asked, as a request to the resolver."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pfl_platform.cli.arguments import MachineOptions, RunOptions
from pfl_platform.cli.running import public_name
from pfl_platform.recipes import Request
from pfl_platform.tuning import grid


def request(
    asked: RunOptions, machine: MachineOptions, *, tune: Sequence[str] | None = None, force: bool = False
) -> Request:
    """The request that these options make."""
    given: dict[str, Any] = {
        "adapter.name": asked.adapter,
        "backbones": {"*": asked.backbone} if asked.backbone is not None else None,
        "rounds": asked.rounds,
        "local_steps": asked.local_steps,
        "seed": asked.seed,
        "public.name": public_name(asked.public),
        "public.size": asked.public_size,
        "engine.batch_clients": asked.batch_clients,
        "engine.force": force or None,
        "tune": dict(map(grid, tune)) if tune else None,
    }
    return Request(
        method=asked.plugin,
        benchmark=asked.benchmark,
        recipe=asked.recipe,
        options={key: value for key, value in given.items() if value is not None} | machine.settings,
        sets=asked.settings or (),
    )
