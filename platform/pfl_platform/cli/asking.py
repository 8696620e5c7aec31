"""What `run` and `plan` are asked: the options that both have, as a request to the resolver."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pfl_platform.cli.running import public_name
from pfl_platform.recipes import Request
from pfl_platform.tuning import grid


def request(
    *,
    plugin: str | None,
    benchmark: str | None,
    recipe: str | None,
    adapter: str | None = None,
    backbone: str | None = None,
    rounds: int | None = None,
    local_steps: int | None = None,
    seed: int | None = None,
    public: str | None = None,
    public_size: int | None = None,
    settings: Sequence[str] | None = None,
    tune: Sequence[str] | None = None,
    threads: int | None = None,
    engine: str | None = None,
    gpus: int | None = None,
    zero: int | None = None,
    shards: int | None = None,
    batch_clients: str | None = None,
    force: bool = False,
) -> Request:
    """The request that these options make."""
    given: dict[str, Any] = {
        "adapter.name": adapter,
        "backbones": {"*": backbone} if backbone is not None else None,
        "rounds": rounds,
        "local_steps": local_steps,
        "seed": seed,
        "public.name": public_name(public),
        "public.size": public_size,
        "engine.threads": threads,
        "engine.name": engine,
        "engine.zero": zero,
        "engine.shards": shards,
        "engine.batch_clients": batch_clients,
        "engine.force": force or None,
        "engine.device": "cuda" if gpus is not None else None,
        "tune": dict(map(grid, tune)) if tune else None,
    }
    return Request(
        method=plugin,
        benchmark=benchmark,
        recipe=recipe,
        options={key: value for key, value in given.items() if value is not None},
        sets=settings or (),
    )
