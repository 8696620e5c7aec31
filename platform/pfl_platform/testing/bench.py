"""A small federation on which a method's contract is checked: three clients, two backbones, two rounds, text only."""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pfl_platform.config import RunConfig
from pfl_platform.data import ClientData, FixedBenchmark, Sample, TaskData, Turn
from pfl_platform.errors import UserError
from pfl_platform.evaluation.surfaces import Metric
from pfl_platform.hookspecs import hookimpl
from pfl_platform.plugins import PluginManager, available
from pfl_platform.recipes import Request, Resolver
from pfl_platform.rng import seed_of

WORDS = ("red", "blue", "green", "round", "square", "big", "small", "left")


def samples(name: str, count: int) -> list[Sample]:
    """Questions that can be answered by copying: `Say red.` -> `red`."""
    dice = random.Random(seed_of("contract", name))
    made = []
    for index in range(count):
        first, second = dice.sample(WORDS, 2)
        made.append(Sample(f"{name}-{index}", (Turn(f"Say {first}, not {second}, please. Number {index}.", first),)))
    return made


def client(client_id: str, backbone: str, size: int) -> ClientData:
    task = TaskData(
        name=f"copy-{client_id}",
        kind="open-ended",
        metric="contract-exact",
        train=samples(f"{client_id}-train", size),
        validation=samples(f"{client_id}-validation", 4),
        test=samples(f"{client_id}-test", 4),
    )
    return ClientData(client_id, backbone, (task,))


class _Exact(Metric):
    """The metric of the kit's benchmark: 1 for the very word."""

    name = "contract-exact"

    def score(self, prediction: str, sample: Sample) -> float:
        return float(prediction.strip() in sample.gold)


class _Plugin:
    """What the kit itself adds to the registry."""

    __name__ = "pfl_platform.testing.bench"

    @staticmethod
    @hookimpl
    def pfl_make_metric(name: str, options: Mapping[str, Any]) -> _Exact | None:
        return _Exact() if name == _Exact.name else None


def two_backbones() -> tuple[str, str]:
    """The two smallest installed text backbones whose weights are here and whose answers go on from the question."""
    manager = PluginManager()
    found = []
    for name in sorted(available("backbone")):
        try:
            backbone = manager.make("backbone", name, {})
        except UserError:
            continue  # its weights are not on this machine
        if backbone.card.modality == "text" and not backbone.task_head and not backbone.answer_side:
            found.append((backbone.card.num_params, name))
    if len(found) < 2:
        raise UserError("The contract kit needs two installed text backbones; name them with --backbones A,B.")
    first, second, *_ = [name for _, name in sorted(found)]
    return first, second


@dataclass
class Bench:
    """One method on the kit's federation. `settings` are laid over the method's own (`key=value`), to make it small.
    What checks share lies in `reference`; see `pfl_platform.testing.reference`."""

    method: str
    folder: Path
    backbones: tuple[str, str]
    settings: Sequence[str] = ()
    rounds: int = 2
    reference: Any = field(default=None, init=False, repr=False)
    _manager: PluginManager | None = field(default=None, repr=False)
    _count: int = 0

    @property
    def manager(self) -> PluginManager:
        if self._manager is None:
            self._manager = PluginManager()
            self._manager.register(_Plugin)  # type: ignore[arg-type]
        return self._manager

    def benchmark(self, clients: int = 3, *, reverse: bool = False) -> FixedBenchmark:
        """Clients a, b, c ...: the first backbone for a and b, the second for c, in turn; different amounts of data."""
        small, large = self.backbones
        made = [client(chr(97 + k), large if k % 3 == 2 else small, 12 + 4 * k) for k in range(clients)]
        if reverse:
            made.reverse()
        return FixedBenchmark("contract", tuple(made), "contract-1", public_sets={"public": samples("public", 16)})

    def config(self, **changes: Any) -> RunConfig:
        """The method's own recipe, made small."""
        request = Request(
            method=self.method,
            sets=[
                f"rounds={self.rounds}",
                "local_steps=3",
                "training.batch_size=2",
                "training.lr=0.001",
                "adapter.options.r=4",
                "evaluation.every=1",
                "evaluation.max_new_tokens=3",
                "public.size=8",
                "engine.threads=1",
                *self.settings,
                *(f"{key}={value}" for key, value in changes.items()),
            ],
        )
        return Resolver(self.manager).resolve(request)

    def run(self, *, clients: int = 3, reverse: bool = False, **changes: Any) -> Path:
        """Runs to the end in a folder of its own, which is returned."""
        from pfl_platform.federation import session

        self._count += 1
        out = self.folder / f"run-{self._count}"
        session.run(
            self.config(**changes),
            out,
            quiet=True,
            plugins=self.manager,
            benchmark=self.benchmark(clients, reverse=reverse),
        )
        return out

    def resume(self, out: Path, **options: Any) -> None:
        from pfl_platform.federation import session

        session.resume(out, quiet=True, plugins=self.manager, benchmark=copy.copy(self.benchmark(**options)))
