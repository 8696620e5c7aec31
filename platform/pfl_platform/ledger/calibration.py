"""How long a run takes on this machine: measured by a probe of that very run, and kept for runs like it.

What is kept lies in the folder `calibration` of `PFL_CACHE` (else of `~/.cache/pfl-platform`), in one file for each
kind of machine and set of versions. A run is like another when only rounds, local steps, seed and what is evaluated
when differ. For any other run on the same machine, device and precision there is a rate, FLOPs of training per second,
of the run that was measured last; it is a rough one.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from pfl_platform.config import RunConfig
from pfl_platform.data import Benchmark
from pfl_platform.evaluation.surfaces import Cell
from pfl_platform.features.shelf import processor, usual_folder
from pfl_platform.federation.setup import Setup, build
from pfl_platform.ledger.probe import Probe, probing
from pfl_platform.plugins import PluginManager
from pfl_platform.store.atomic import write_atomic
from pfl_platform.store.pins import software

FREE = ("rounds", "local_steps", "seed", "label", "published", "keep_rounds", "observers", "budget", "features")
"""Settings in which runs that are alike may differ."""
ITEMS = 16
"""Questions that are answered for a calibration, of each backbone."""


@dataclass(frozen=True)
class Seconds:
    """What a run takes. start: making and loading all. before: before round 1. step: a local step of all clients of a
    round; turn: what a round's training takes however many there are. aside: a round's rest. question: an answer, by
    backbone. rate: FLOPs of training per second."""

    start: float
    before: float
    turn: float
    step: float
    aside: float
    rate: float
    question: Mapping[str, float] = field(default_factory=dict)

    def of(self, rounds: int, local_steps: int, asked: Mapping[str, int]) -> dict[str, float]:
        """Seconds of a run of so many rounds and local steps. asked: questions by backbone."""
        usual = median(self.question.values()) if self.question else 0.0
        found = {
            "start": self.start,
            "before": self.before,
            "train": rounds * (self.turn + local_steps * self.step),
            "rest of rounds": rounds * self.aside,
            "evaluation": sum(count * self.question.get(name, usual) for name, count in asked.items()),
        }
        return {**found, "total": sum(found.values())}


def measured(config: RunConfig, manager: PluginManager, benchmark: Benchmark) -> Seconds:
    """Probes a run: a few rounds of three local steps, and some questions. Weights are loaded."""
    from pfl_platform.federation.session import numerics, pinned

    config = pinned(config)
    begun = time.perf_counter()
    setup = build(config, manager, benchmark)
    start = time.perf_counter() - begun
    with numerics(config), probing(setup) as probe:
        rounds, steps = config.rounds, config.local_steps
        before = probe.before("seconds")
        once = probe.cost("seconds", rounds, steps)
        step = (probe.cost("seconds", rounds, 2 * steps) - once) / (rounds * steps)
        spent = once - before
        rate = (probe.cost("flops", rounds, steps) - probe.before("flops")) / spent if spent else 0.0
        question = {name: _question(setup, probe, name) for name in sorted(set(setup.backbone_of.values()))}
        aside = max(0.0, probe.aside[-1]) if probe.aside else 0.0
    return Seconds(start, before, spent / rounds - steps * step, step, aside, rate, question)


def _question(setup: Setup, probe: Probe, backbone: str) -> float:
    """Seconds of one answer, in batches as the run has them."""
    client = next(item for item in setup.benchmark.clients if setup.backbone_of[item.client_id] == backbone)
    assert probe.worker is not None
    place, options, recipe = probe.worker.place, setup.config.evaluation, setup.parts.recipe()
    size = min(ITEMS, options.batch_size)
    cells = [
        (cell, task, list(place.cell_items(cell, task, client.client_id, options.split)[:size]))
        for task in client.tasks
        if (cell := Cell(client.client_id, task.name))
    ]
    count = sum(len(items) for _, _, items in cells)
    if not count:
        return 0.0
    host, state = (
        probe.worker.host(probe.fed.host_of(client.client_id)),
        probe.fed.store.get(probe.states[client.client_id]),
    )
    host.load(state)
    times = []
    for _ in range(2):
        begun = time.perf_counter()
        place.judge.score(host, recipe, cells, state)
        times.append(time.perf_counter() - begun)
    return min(times) / count


def keep(config: RunConfig, seconds: Seconds) -> None:
    """Keeps what was measured; a place that cannot be written is no reason to stop."""
    file = _file()
    if file is None:
        return
    known = _read(file)
    known.setdefault("runs", {})[_form(config)] = asdict(seconds)
    known.setdefault("rates", {})[_where(config)] = {"flops_per_second": seconds.rate, "method": config.method}
    known["machine"] = machine()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, [json.dumps(known, indent=1).encode()])
    except OSError:
        return


def known(config: RunConfig) -> Seconds | None:
    """What was measured for a run like this one, on a machine like this one."""
    found = _read(_file()).get("runs", {}).get(_form(config))
    try:
        return Seconds(**found) if found is not None else None
    except TypeError:
        return None


def rate(config: RunConfig) -> tuple[float, str] | None:
    """FLOPs of training per second, on this device in this precision, and the method that it was measured with."""
    found = _read(_file()).get("rates", {}).get(_where(config))
    return (float(found["flops_per_second"]), str(found["method"])) if found else None


def machine() -> dict[str, Any]:
    """What decides how fast this machine is, as far as it can be named."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return {"processor": processor(), "gpu": gpu, "versions": software()}


def _file() -> Path | None:
    folder = usual_folder()
    name = hashlib.sha256(json.dumps(machine(), sort_keys=True).encode()).hexdigest()[:32]
    return None if folder is None else folder.parent / "calibration" / f"{name}.json"


def _read(file: Path | None) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8")) if file is not None else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _form(config: RunConfig) -> str:
    from pfl_platform.federation.session import pinned

    told = pinned(config).model_dump(mode="json", exclude=set(FREE))
    told["evaluation"] = {key: told["evaluation"][key] for key in ("batch_size", "max_new_tokens", "choose")}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:32]


def _where(config: RunConfig) -> str:
    from pfl_platform.federation.session import pinned

    engine = pinned(config).engine
    return f"{engine.device} {engine.dtype} {engine.threads} threads"
