"""The costs of methods at real shapes: what each of them runs (`tracing`), at what such a pass costs (`prices`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from pfl_platform.adapters.surfaces import Keys
from pfl_platform.backbones import Backbone
from pfl_platform.errors import UserError
from pfl_platform.ledger.holding import vocabulary
from pfl_platform.ledger.prices import Prices, memory, weight_bytes
from pfl_platform.ledger.tracing import Trace, Turn, trace
from pfl_platform.plugins import PluginManager, available
from pfl_platform.settings import assignment, choice
from pfl_platform.training.surfaces import Planned

FLOAT = 4
"""Bytes of a value that travels: adapters train, and are sent, in float32."""
ROWS = 4
"""Rows of a local step, where what a server computes per round is set against clients' steps."""


@dataclass(frozen=True)
class Options:
    """backbones: small and large, real ones. rank: of all adapters. tokens: of a row; answers: of its answer. steps:
    local steps per round that are traced. rounds: of the planned run. clients: numbers of clients for the scaling."""

    backbones: tuple[str, str]
    small: tuple[str, str]
    rank: int = 128
    tokens: int = 512
    answers: int = 64
    steps: int = 10
    rounds: int = 20
    clients: tuple[int, ...] = (1, 10, 100, 1000)
    settings: tuple[str, ...] = ()


@dataclass
class Row:
    """One method at one real backbone. flops: of a local step in which every adapter that trains is updated once, one
    row. server: FLOPs of server tasks per client and such a step. adapter: values of one adapter that train. sent:
    values by key and client, once: before round 0; in units of four bytes, so that values of another width count for
    what they weigh. training: bytes that a local step holds beside the backbone (see `Planner._held`). graphs: passes
    of which it holds activations at once. unknown: what is sent, too, in a size that nobody declares. received: values
    of params."""

    method: str
    backbone: str
    flops: float
    server: float
    memory: float
    adapter: int
    others: tuple[str, ...]
    sent: dict[str, int]
    unknown: tuple[str, ...]
    sending: int
    received: int
    once: int = 0
    training: float = 0.0
    graphs: int = 1
    work: Callable[[int], float] = field(repr=False, default=lambda clients: 0.0)

    @property
    def shared(self) -> int:
        """Values that are combined over all clients."""
        return sum(size for key, size in self.sent.items() if _site(key).startswith("block"))

    @property
    def grouped(self) -> int:
        """Values that are combined among the clients of a backbone."""
        return sum(size for key, size in self.sent.items() if _site(key).startswith("layer"))

    @property
    def measured(self) -> int:
        """Values that statistics send."""
        return sum(self.sent.values()) - self.shared - self.grouped

    def part(self, name: str) -> int:
        """Values of one factor, such as A."""
        return sum(size for key, size in self.sent.items() if key.rpartition("/")[2] == name and key.count("/") == 2)


def weighed(tensor: Tensor) -> int:
    """What a tensor weighs, in values of four bytes, rounded up.

    >>> import torch
    >>> weighed(Planned.tensor(3, 5)), weighed(Planned.tensor(3, 5, dtype=torch.float16))
    (15, 8)
    """
    return math.ceil(tensor.numel() * tensor.element_size() / FLOAT)


def _site(key: str) -> str:
    return key.split("/")[1] if key.count("/") >= 2 else ""


def real_backbones() -> tuple[str, str]:
    """The two smallest installed text backbones of at least a billion params, by their cards."""
    found = sorted(_cards("text", least=10**9))
    if len(found) < 2:
        raise UserError("No two backbones of a billion params are installed; name them with --backbones A,B.")
    return found[0][1], found[1][1]


def small_backbones(manager: PluginManager) -> tuple[str, str]:
    """The two smallest installed text backbones whose answers go on from the question; a trace runs on them."""
    found: list[str] = []
    for _, name in sorted(_cards("text")):
        try:
            backbone: Backbone = manager.make("backbone", name, {"device": "meta"})
        except UserError:
            continue  # it needs files that are not here
        if not backbone.task_head and not backbone.answer_side:
            found.append(name)
        if len(found) == 2:
            return found[0], found[1]
    raise UserError("Plans need two small installed text backbones on which methods are traced.")


def _cards(modality: str, least: int = 0) -> list[tuple[int, str]]:
    cards = {name: plugin.about for name, plugin in available("backbone").items()}
    sizes = [(int(card.get("num_params", 0)), name) for name, card in cards.items() if card.get("modality") == modality]
    return [(size, name) for size, name in sizes if size >= max(least, 1)]


@dataclass
class Planner:
    """Prices methods one by one; passes that methods have in common are counted once."""

    options: Options
    folder: Path
    manager: PluginManager = field(default_factory=PluginManager)
    _prices: dict[str, Prices] = field(default_factory=dict)

    def rows(self, method: str) -> list[Row]:
        """A method at the small and at the large backbone. Raises `UserError` where it cannot be traced."""
        options = self.options
        traced = trace(
            method, options.small, self.folder, steps=options.steps, rounds=options.rounds, settings=options.settings
        )
        name = traced.setup.config.adapter.name
        adapter = self._adapter_options(method, name)
        form = f"{name} {sorted(adapter.items())!r}"
        if form not in self._prices:
            made = self.manager.make("adapter", name, adapter)
            self._prices[form] = Prices(self._meta, made, options.tokens, options.answers)
        real = dict(zip(options.small, options.backbones, strict=True))
        found = []
        for small, large in real.items():
            client = next(c for c, host in traced.setup.backbone_of.items() if host == small)
            found.append(self._row(method, traced, traced.clients[client], large, real, self._prices[form]))
        return found

    def _adapter_options(self, method: str, adapter: str) -> dict[str, Any]:
        """What the method's own recipe and the user say of the adapter, at the planned rank. The benchmark on which a
        trace runs has its own proposals, which are for backbones of its size."""
        own = choice(available("method")[method].about.get("adapter") or adapter, "adapter")
        found = dict(own.get("options", {})) if own["name"] == adapter else {}
        for key, value in (assignment(text) for text in self.options.settings):
            if key.startswith("adapter.") and key != "adapter.name":
                found[key.removeprefix("adapter.").removeprefix("options.")] = value
        return {**found, "r": self.options.rank}

    def _meta(self, name: str) -> Backbone:
        backbone: Backbone = self.manager.make("backbone", name, {"device": "meta", "dtype": "bfloat16"})
        return backbone

    def _row(self, method: str, traced: Trace, turn: Turn, name: str, real: Mapping[str, str], prices: Prices) -> Row:
        parts = traced.setup.parts
        assert turn.task is not None
        steps = turn.whole_steps or self.options.steps
        values = prices.values(name)
        names = [slot.name for slot in parts.objective.slots]
        up = Keys(*(pattern for share in turn.task.up for pattern in share.keys.patterns))
        down = Keys(*(pattern for share in parts.objective.down for pattern in share.keys.patterns))
        sent = {f"{slot}/{place}": size for slot in names for place, size in values.items() if f"{slot}/{place}" in up}
        took = sum(size for slot in names for place, size in values.items() if f"{slot}/{place}" in down)

        def loaded(other: str | None) -> Backbone:
            return prices.host(name if other is None else real.get(other, other)).backbone

        sites = tuple(prices.adapter.sites(prices.host(name).backbone))
        plan = Planned(loaded, sites, prices.readers(name), values, self.options.answers)
        measured = {
            key: weighed(tensor)
            for statistic in turn.task.statistics
            for key, tensor in statistic.sends(plan).items()
            if key in up
        }
        sent |= measured
        asked = {pattern.partition("/")[0] for pattern in up.patterns}
        unknown = sorted(asked - set(names) - {key.partition("/")[0] for key in measured} - {"head"})
        first = next((task for task in traced.before if task.up and task.backbone == turn.task.backbone), None)
        once = first.statistics if first is not None else ()
        others = tuple(real.get(other, other) for other in turn.task.others)
        trained = max(1, sum(item.whole_steps or self.options.steps for item in traced.clients.values()))
        return Row(
            method=method,
            backbone=name,
            flops=self._spent(turn, name, real, prices) / steps,
            server=self._spent(traced.server, name, real, prices) / trained,
            memory=memory(prices.host(name).backbone.card.num_params, sum(values.values()), len(names)),
            adapter=sum(values.values()),
            others=others,
            sent=sent,
            unknown=tuple(unknown),
            sending=traced.sending,
            received=took,
            training=self._held(turn, names, name, prices),
            graphs=max((len(graph.passes) for graph in turn.graphs), default=0),
            once=sum(weighed(tensor) for statistic in once for tensor in statistic.sends(plan).values()),
            work=lambda clients: parts.aggregator.work(clients, sent),
        )

    def _held(self, turn: Turn, slots: Sequence[str], name: str, prices: Prices) -> float:
        """Bytes beside the backbone in the largest local step of `ROWS` rows: adapters of all slots and what they
        share, moments of all that its phase trains, gradients of one step, activations, logits, and what the loss makes
        of them. Adapters train in float32; activations are the backbone's, of 16 bits."""
        assert turn.task is not None
        values = prices.values(name)
        keys = {f"{slot}/{place}": size for slot in slots for place, size in values.items()}
        largest = 0
        for phase in turn.task.phases:
            trained = [sum(size for key, size in keys.items() if key in step.train) for step in phase.steps]
            largest = max(largest, 2 * sum(trained) + max(trained))
        entries = ROWS * self.options.answers * vocabulary(prices.host(name))
        graphs = [
            sum(prices.held(name, kind, ROWS) for kind in graph.passes) + graph.beside * entries
            for graph in turn.graphs
        ]
        return FLOAT * (sum(keys.values()) + prices.frozen(name) + largest) + max(graphs, default=0.0)

    def _spent(self, turn: Turn, own: str, real: Mapping[str, str], prices: Prices) -> float:
        """FLOPs of a turn at rows of the planned length: small backbones stand for the real ones in the same place."""
        main = turn.task.backbone if turn.task is not None else ""
        row = sum(turn.tokens.values()) / max(1, turn.passes)  # a pass of the trace has one row
        total = 0.0
        for kind, tokens in turn.tokens.items():
            name = own if kind.backbone == main else real.get(kind.backbone, kind.backbone)
            total += prices.per_token(name, kind) * self.options.tokens * tokens / row
        return total


def scaling(row: Row, reference: Row, clients: Sequence[int], steps: int = 100) -> list[dict[str, float]]:
    """Relative FLOPs per client, the server's sums shared among the clients, and bytes up, by number of clients."""
    round_of = ROWS * steps * reference.flops
    return [
        {
            "clients": count,
            "flops": (row.flops + row.server) / reference.flops + row.work(count) / count / round_of,
            "bytes": float(FLOAT * sum(row.sent.values())),
        }
        for count in clients
    ]


def variants(names: Sequence[str], bits: Sequence[int] = (16, 8, 4)) -> list[dict[str, Any]]:
    """Weight bytes of further backbones that a method may run, over the first of them at 16 bits."""
    cards = {name: plugin.about for name, plugin in available("backbone").items()}
    for name in names:
        if "num_params" not in cards.get(name, {}):
            raise UserError(f"The size of the backbone '{name}' is on no card.")
    first = weight_bytes(int(cards[names[0]]["num_params"])) if names else 1.0
    return [
        {"backbone": name, "bits": width, "relative": weight_bytes(int(cards[name]["num_params"]), width) / first}
        for name in names
        for width in bits
    ]
