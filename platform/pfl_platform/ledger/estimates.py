"""What a run would take: FLOPs, memory and disk, by formula, from its configuration and its benchmark's outline.

What is in it and what is not:

- rows are as long as the benchmark's card says, or as the caller says; all alike, and nothing for padding;
- training and the server's training: the passes of a traced miniature (`working`) at the formula of `flops.pass_flops`,
  with a vision tower forward beside each row's pictures. Statistics that look at batches are in it; of those that make
  a pass of their own, as much as a trace of a few samples shows;
- evaluation: a forward pass over every question and every token of an answer;
- memory of a process that holds all backbones of the run: weights, one client's adapters in float32 with gradient and
  Adam's two moments, activations of a micro-batch (34 bytes per position, layer and width at 16 bits, without
  attention scores: Korthikanti et al., arXiv 2205.05198), logits of the answers;
- disk: each client's adapters and moments for the last round, those of kept rounds, and the saved personal adapters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from pfl_platform.config import RunConfig
from pfl_platform.data import Benchmark, ClientData
from pfl_platform.federation.setup import assign
from pfl_platform.ledger.flops import forward_flops, pass_flops
from pfl_platform.ledger.sampling import Pass
from pfl_platform.ledger.shapes import Shape, Shapes
from pfl_platform.ledger.working import LARGE, SEEN, SMALL, Passes, Work
from pfl_platform.outlines import Row
from pfl_platform.plugins import available, unadorned
from pfl_platform.tuning import candidates

FLOAT, MOMENTS = 4, 2
TRACED = 3
"""Clients of a trace."""
PER_POSITION = 34
WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Estimate:
    """FLOPs of one run (train, server, before round 0, evaluation), bytes of memory and disk, runs that tuning adds."""

    train: float
    server: float
    before: float
    evaluation: float
    memory: float
    disk: float
    tuning: int

    @property
    def flops(self) -> float:
        """Of the run and of the whole runs in which its settings are chosen."""
        return (self.train + self.server + self.before + self.evaluation) * (1 + self.tuning)

    def as_json(self) -> dict[str, float]:
        return {item.name: getattr(self, item.name) for item in fields(self)} | {"flops": self.flops}


@dataclass(frozen=True)
class _Priced:
    """Rows of a run at its backbones. places: the run's backbones in the places of the trace's two."""

    config: RunConfig
    row: Row
    shapes: Shapes
    places: Mapping[str, str]

    def tokens(self, shape: Shape) -> int:
        return self.row.tokens(shape.per_picture)

    def passes(self, passes: Passes, own: str, place: str) -> float:
        """FLOPs of rows through passes; `own` is the backbone in `place`."""
        total = 0.0
        for kind, rows in passes.items():
            name = own if kind.backbone == place else self.places[kind.backbone]
            total += rows * self.one(kind, name)
        return total

    def one(self, kind: Pass, name: str) -> float:
        """FLOPs of one row."""
        shape, values = self.shapes.of(name), self.shapes.values(name, self.config.adapter)
        tower = forward_flops(shape.picture, round(self.row.pictures * shape.per_picture))
        trained, idle, blocks = values * len(kind.trained), values * len(kind.idle), shape.linear - shape.head
        head = {"head": shape.head, "answers": self.row.answers}
        return pass_flops(blocks, trained, idle, self.tokens(shape), gradient=kind.gradient, **head) + tower

    def question(self, name: str) -> float:
        """FLOPs of one answered question."""
        shape = self.shapes.of(name)
        tower = forward_flops(shape.picture, round(self.row.pictures * shape.per_picture))
        blocks = forward_flops(shape.linear - shape.head, self.tokens(shape))
        return blocks + forward_flops(shape.head, self.row.answers) + tower


def cohort_size(config: RunConfig, benchmark: Benchmark) -> float:
    """Clients of a round, as far as it is known beforehand: those that can be reached on average, at most `cohort`."""
    shares = config.participation.availability
    reached = sum(shares.get(client.client_id, shares.get("*", 1.0)) for client in benchmark.clients)
    return min(config.cohort or reached, max(1.0, reached))


def estimate(config: RunConfig, benchmark: Benchmark, work: Work, shapes: Shapes, row: Row, public: int) -> Estimate:
    """One run. public: samples that the server, or preparation, reads of the public set."""
    backbone_of = {client: shapes.of(name).name for client, name in assign(config, benchmark).items()}
    used = sorted(set(backbone_of.values()), key=lambda name: shapes.of(name).params)
    priced = _Priced(config, row, shapes, {SMALL: used[0], LARGE: used[-1]})
    clients = len(benchmark.clients)
    cohort = cohort_size(config, benchmark)
    train = 0.0
    for client in benchmark.clients:
        own = backbone_of[client.client_id]
        place = LARGE if own == used[-1] and len(used) > 1 else SMALL
        rows = rows_of_round(config, client) * config.rounds * work.trained * cohort / clients
        train += rows * priced.passes(work.step[place], own, place)
    share = public / SEEN
    server = sum(
        priced.passes({kind: rows}, priced.places[kind.backbone], kind.backbone) for kind, rows in work.server.items()
    )
    before = sum(
        priced.passes({kind: rows}, priced.places[kind.backbone], kind.backbone) for kind, rows in work.before.items()
    )
    asked = questions(config, benchmark)
    return Estimate(
        train=train,
        server=server * share * config.rounds * clients / TRACED,
        before=before * share,
        evaluation=sum(count * work.passes * priced.question(backbone_of[who]) for who, count in asked.items()),
        memory=memory_of(config, used, work, shapes, row),
        disk=disk_of(config, backbone_of, work, shapes),
        tuning=tuned(config),
    )


def rows_of_round(config: RunConfig, client: ClientData) -> int:
    """Rows that a client learns from in a round."""
    if config.local_epochs:
        return config.local_epochs * client.num_examples
    return config.local_steps * config.training.batch_size


def questions(config: RunConfig, benchmark: Benchmark) -> dict[str, int]:
    """How many questions each client's model answers over the whole run."""
    options = config.evaluation
    points = -(-config.rounds // options.every)

    def count(client: ClientData, items: int) -> int:
        sizes = [len(task.test if options.split == "test" else task.validation) for task in client.tasks]
        return sum(min(size, items or size) for size in sizes)

    own = {client.client_id: count(client, options.items) for client in benchmark.clients}
    rest = {client.client_id: count(client, options.items_others or options.items) for client in benchmark.clients}
    unseen = sum(min(len(task.test), options.items or len(task.test)) for task in benchmark.unseen)
    found = {}
    for client, mine in own.items():
        foreign = sum(rest.values()) - rest[client] if options.others else 0
        found[client] = points * mine + (1 if options.others_last_only else points) * foreign
        found[client] += (mine if options.baseline else 0) + (unseen if options.unseen else 0)
    return found


def tuned(config: RunConfig) -> int:
    """Whole runs that precede the run because settings are chosen; none where only replies are scored anew."""
    tried = len(candidates(config))
    grids = config.tune or {}
    replies = config.rounds == 1 and config.personalizer is not None and all(k.startswith("aggregator.") for k in grids)
    return 0 if tried < 2 or replies else tried


def named_backbones(config: RunConfig) -> set[str]:
    """Backbones that components name, beside those of the clients."""
    known, found = available("backbone"), set()
    for choice in (config.objective, config.aggregator):
        found |= {value for value in choice.options.values() if isinstance(value, str) and unadorned(value) in known}
    return found


def memory_of(config: RunConfig, used: list[str], work: Work, shapes: Shapes, row: Row) -> float:
    """Bytes at the peak, in a process that serves all backbones of a run."""
    width = WIDTHS[config.engine.dtype]
    every = {*used, *(shapes.of(name).name for name in named_backbones(config))}
    weights = sum(shapes.loaded(name, config.backbone_options).weights(width) for name in sorted(every))
    largest = 0.0
    for name in used:
        shape, values = shapes.of(name), shapes.values(name, config.adapter)
        rows = config.training.micro_batch or config.training.batch_size
        positions = rows * row.tokens(shape.per_picture)
        activations = positions * shape.layers * shape.width * PER_POSITION * width / 2
        logits = rows * row.answers * shape.outcomes * (width + 2 * FLOAT)
        largest = max(largest, values * FLOAT * (work.slots + 1 + MOMENTS) + activations + logits)
    return weights + largest


def disk_of(config: RunConfig, backbone_of: Mapping[str, str], work: Work, shapes: Shapes) -> float:
    """Bytes of a run folder."""
    values = sum(shapes.values(name, config.adapter) for name in backbone_of.values())
    kept = len(set(config.keep_rounds) - {config.rounds})
    return float(values * FLOAT * (work.slots * (1 + kept) + MOMENTS + 1))
