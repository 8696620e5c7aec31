"""What a run will take, from its rehearsal: memory by part, disk, bytes, FLOPs; and what would make it fit."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pfl_platform.config import RunConfig
from pfl_platform.data import Benchmark
from pfl_platform.engines.batches import clients_of
from pfl_platform.engines.ranks.buffers import zero_bytes
from pfl_platform.engines.ranks.place import SPREAD, leaves
from pfl_platform.federation.cohorts import select
from pfl_platform.federation.setup import device_of
from pfl_platform.federation.tasks import Cost
from pfl_platform.ledger.capacity import Capacity
from pfl_platform.ledger.costs import BYTES
from pfl_platform.ledger.estimates import questions
from pfl_platform.ledger.rehearsal import Held, Rehearsal, rehearse
from pfl_platform.plugins import PluginManager

PROCESS = 2**29
"""Bytes that a process takes beside its tensors, about: libraries above all."""
LINE = 300
"""Bytes that a prediction takes on disk, about."""
BY_ROWS = ("activations", "logits")
"""Parts that grow with the rows of a forward pass."""


@dataclass(frozen=True)
class Asked:
    """What is to be foreseen. device: where the run will be."""

    config: RunConfig
    manager: PluginManager
    benchmark: Benchmark
    device: str

    def rehearsed(self, config: RunConfig | None = None, rounds: int | None = None) -> Rehearsal:
        config = config or self.config
        return rehearse(
            config, self.manager, self.benchmark, rounds=rounds, shards=config.engine.shards, device=self.device
        )


def outlook(asked: Asked, found: Rehearsal, capacity: Capacity) -> dict[str, Any]:
    """Everything but time, as JSON."""
    config = asked.config
    need = needed(config, found)
    return {
        "method": config.method,
        "benchmark": asked.benchmark.name,
        "engine": {**config.engine.model_dump(), "device": asked.device},
        "backbones": [_backbone(name, config, found) for name in found.fed.backbones],
        "memory": need,
        "capacity": {"bytes": capacity.bytes, "whose": capacity.whose},
        "fits": need <= capacity.bytes,
        "rounds": _traffic(found),
        "bytes": {way: _sum(found, way) for way in BYTES},
        "flops": flops(config, asked.benchmark, found),
        "disk": disk(config, asked.benchmark, found),
        "stopped": found.stopped,
    }


def needed(config: RunConfig, found: Rehearsal) -> int:
    """Bytes that a process holds when it holds most."""
    most = max((held.total + zero(config, held) + beside(config, found, held) for held in found.held), default=0)
    return most - spread(config, found)


def at_once(config: RunConfig) -> int:
    """Clients that train side by side, at most."""
    return clients_of(config.engine.batch_clients, config.training.micro_batch or config.training.batch_size)


def beside(config: RunConfig, found: Rehearsal, held: Held) -> int:
    """What those take that train beside the client that was rehearsed: as many more rows, and adapters of their own."""
    if held.what != "training":
        return 0
    most = min(at_once(config), max(Counter(found.fed.backbone_of.values()).values(), default=1))
    return (most - 1) * sum(held.parts.get(part, 0) for part in (*BY_ROWS, "adapters", "gradients", "optimiser"))


def zero(config: RunConfig, held: Held) -> int:
    """Buffers that the engine itself has beside, by formula."""
    if config.engine.name != "deepspeed" or held.what != "training":
        return 0
    return zero_bytes(held.parts.get("adapters", 0), config.engine.zero, config.engine.shards)


def spread(config: RunConfig, found: Rehearsal) -> int:
    """Bytes of frozen blocks that lie elsewhere where ZeRO spreads them: at other ranks, or off the device. One block
    at a time is whole."""
    engine = config.engine
    if engine.name != "deepspeed" or engine.zero != SPREAD:
        return 0
    elsewhere = 0
    for name in found.fed.backbones:
        backbone = found.fed.load(name)
        sizes = [sum(tensor.nbytes for tensor in backbone.module(path).parameters()) for path in backbone.blocks]
        kept = 0 if leaves(engine.offload, device_of(config)) else sum(sizes) // engine.shards
        elsewhere += sum(sizes) - kept - max(sizes, default=0)
    return max(0, elsewhere)


def _backbone(name: str, config: RunConfig, found: Rehearsal) -> dict[str, Any]:
    fed = found.fed
    hosts = {fed.host_of(client): client for client, own in fed.backbone_of.items() if own == name}
    result: dict[str, Any] = {
        "backbone": name,
        "params": fed.load(name).card.num_params,
        "clients": sum(own == name for own in fed.backbone_of.values()),
    }
    for what in ("training", "evaluation"):
        most = max(
            (held for host in hosts if (held := found.most(what, host)) is not None),
            key=lambda held: held.total,
            default=None,
        )
        if most is not None:
            parts = dict(most.parts) | ({"zero": zero(config, most)} if zero(config, most) else {})
            parts["weights"] = parts.get("weights", 0) - spread(config, found)
            result[what] = {"actor": most.actor, "parts": parts, "total": sum(parts.values())}
    return result


def _traffic(found: Rehearsal) -> list[dict[str, Any]]:
    """Bytes of one client of each backbone, for each kind of round."""
    fed = found.fed
    kinds: dict[int, list[int]] = {}
    for index in range(fed.config.rounds):
        kinds.setdefault(found.like(index), []).append(index + 1)
    alike: dict[tuple[Any, ...], set[int]] = {}
    for like, rounds in kinds.items():
        for client, cost in found.turns.get(like, {}).items():
            key = (fed.backbone_of[client], *(getattr(cost, way) for way in BYTES))
            alike.setdefault(key, set()).update(rounds)
    names = ("backbone", *BYTES)
    return [{"rounds": _spans(sorted(rounds)), **dict(zip(names, key, strict=True))} for key, rounds in alike.items()]


def _spans(numbers: Sequence[int]) -> str:
    """Whole numbers as spans.

    >>> _spans([1]), _spans([2, 3, 4, 7])
    ('1', '2-4, 7')
    """
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


def _turns(found: Rehearsal) -> list[tuple[int, Mapping[str, Cost]]]:
    return [(index, found.turns[found.like(index)]) for index in range(found.fed.config.rounds)] if found.turns else []


def _of(turns: Mapping[str, Cost], client: str, found: Rehearsal) -> Cost:
    """A client's cost, or that of one like it where it was in no rehearsed round of the kind."""
    if client in turns:
        return turns[client]
    host = found.fed.host_of(client)
    return next((cost for other, cost in turns.items() if found.fed.host_of(other) == host), Cost())


def _sum(found: Rehearsal, field: str) -> float:
    """Over all clients and rounds of the run."""
    total = 0.0
    for index, turns in _turns(found):
        total += sum(getattr(_of(turns, client.client_id, found), field) for client in select(found.fed, index))
    return total


def flops(config: RunConfig, benchmark: Benchmark, found: Rehearsal) -> dict[str, float]:
    """Of the run: training and statistics of clients, the server's training, what comes before round 1; answers at what
    the longest questions take."""
    server = sum(cost.flops for index, _ in _turns(found) for cost in found.server.get(found.like(index), ()))
    asked = questions(config, benchmark)
    hosts = found.fed.host_of
    answered = sum(count * found.per_question.get(hosts(client), 0.0) for client, count in asked.items())
    return {
        "train": _sum(found, "flops"),
        "server": server,
        "before": sum(cost.flops for cost in found.before),
        "evaluation": answered,
    }


def disk(config: RunConfig, benchmark: Benchmark, found: Rehearsal) -> dict[str, float]:
    """Bytes of the run folder: what a round has there while it is under way, and what is left at the end."""
    states, kept = sum(found.states.values()), len(set(config.keep_rounds) - {config.rounds})
    last = max(found.turns, default=0)
    sent = sum(cost.up_wire for cost in found.turns.get(last, {}).values())
    answers = LINE * sum(questions(config, benchmark).values())
    left = states * (1 + kept) + found.kept + found.exported + answers
    return {"most": left + states + sent, "left": left}


def proposals(asked: Asked, found: Rehearsal, capacity: Capacity) -> list[str]:
    """Settings under which a run would fit, by proportion of its parts, or what else could be done; of a run that fits,
    how many processes would."""
    config, need = asked.config, needed(asked.config, found)
    if need <= capacity.bytes:
        count = min(capacity.bytes // max(1, need + PROCESS), len(found.fed.clients))
        if asked.device == "cpu":
            count = min(count, os.cpu_count() or 1)
        return (
            [f"{count} such processes would fit on {capacity.whose} (--engine deepspeed --ranks N)"]
            if count > 1
            else []
        )
    result = []
    training, evaluation = found.most("training"), found.most("evaluation")
    rows = config.training.micro_batch or config.training.batch_size
    fit = rows if training is None else _rows(training, rows, capacity, zero(config, training))
    asks = config.evaluation.batch_size
    answered = asks if evaluation is None else _rows(evaluation, asks, capacity)
    if fit and answered and (fit, answered) != (rows, asks):
        smaller = [f"--set training.micro_batch={fit}"] if fit < rows else []
        smaller += [f"--set evaluation.batch_size={answered}"] if answered < asks else []
        result.append(f"{' '.join(smaller)}: smaller passes, the same batches")
    if config.engine.dtype == "float32" and max(map(_halved, found.held), default=0) <= capacity.bytes:
        result.append("--set engine.dtype=bfloat16: frozen weights and activations of half the size")
    if training is not None and not fit:
        for shards in (2, 4, 8):
            if shards <= rows and (stage := _stage(training, config, found, shards, capacity)):
                what = "devices share each micro-batch" + (" and the frozen blocks" if stage == SPREAD else "")
                result.append(f"--engine deepspeed --shards {shards} --zero {stage}: {what}")
                break
    return result or [helps(largest(found))]


def _rows(held: Held, rows: int, capacity: Capacity, beside: int = 0) -> int:
    """Rows of a pass with which a task fits; 0 where none do."""
    moving = sum(held.parts.get(part, 0) for part in BY_ROWS)
    room = capacity.bytes - (held.total + beside - moving)
    return max(0, min(rows, int(rows * room / max(1, moving))))


def _halved(held: Held) -> int:
    """Bytes of a task at 16 bits; adapters, their moments and what travels stay at 32."""
    return held.total - sum(held.parts.get(part, 0) for part in ("weights", "activations")) // 2


def _stage(held: Held, config: RunConfig, found: Rehearsal, shards: int, capacity: Capacity) -> int:
    """The stage of ZeRO at which so many devices have room for a task; 0 for none."""
    need = _shared(held, config, shards)
    engine = config.engine.model_copy(update={"name": "deepspeed", "shards": shards, "zero": SPREAD})
    there = spread(config.model_copy(update={"engine": engine}), found)
    return 2 if need <= capacity.bytes else SPREAD if need - there <= capacity.bytes else 0


def _shared(held: Held, config: RunConfig, shards: int) -> int:
    """Bytes of a rank where so many share a client's micro-batches and ZeRO spreads moments and gradients."""
    parts = dict(held.parts)
    for part in (*BY_ROWS, "optimiser", "gradients"):
        parts[part] = parts.get(part, 0) // shards
    return sum(parts.values()) + zero_bytes(parts.get("adapters", 0), 2, shards)


def largest(found: Rehearsal) -> tuple[str, int]:
    """The part that takes most where most is held, and its bytes."""
    most = found.most()
    return max(most.parts.items(), key=lambda part: part[1]) if most is not None and most.parts else ("weights", 0)


HELP: Mapping[str, str] = {
    "weights": "engine.dtype=bfloat16, a smaller backbone, fewer backbones in one process (--engine deepspeed), or "
    "blocks spread over several (--shards N --zero 3)",
    "adapters": "a smaller rank (adapter.r)",
    "gradients": "a smaller rank (adapter.r)",
    "optimiser": "a smaller rank (adapter.r), or --shards with --zero 1",
    "activations": "training.micro_batch, evaluation.batch_size, or engine.dtype=bfloat16",
    "logits": "training.micro_batch or evaluation.batch_size",
    "state": "a smaller rank (adapter.r)",
    "zero": "--zero 0",
}


def helps(part: tuple[str, int]) -> str:
    """What makes a part smaller."""
    return f"{part[0]} take most; smaller by {HELP.get(part[0], 'a smaller backbone')}"
