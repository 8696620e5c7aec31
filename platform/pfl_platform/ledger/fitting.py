"""Whether a run fits into memory and onto the disk, asked before anything is written.

First by a bound that costs milliseconds; only a run that might not fit is rehearsed (`rehearsal`), which says what is
held to within a few per cent. What a process takes beside its tensors does not count, so that nothing is refused that
could run.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from pfl_platform.backbones import Backbone
from pfl_platform.config import RunConfig
from pfl_platform.data import ClientData
from pfl_platform.engines.ranks.place import SPREAD, leaves
from pfl_platform.errors import UserError
from pfl_platform.federation.setup import Setup, device_of
from pfl_platform.ledger.capacity import Capacity, disk_free, memory_of
from pfl_platform.ledger.estimates import FLOAT, WIDTHS
from pfl_platform.ledger.outlook import HELP, at_once, largest, needed
from pfl_platform.ledger.rehearsal import rehearse
from pfl_platform.plugins import PluginManager, available
from pfl_platform.report.units import byte_text

SLACK = 0.95
"""A foreseen need is refused where so much of it is too much: a rehearsal may be off by a few per cent."""
PER_POSITION = 600
"""Bytes that a pass and its way back hold for each position, layer and unit of width, at most about."""
LOOKED_AT = 2
"""Samples of each task by which the bound takes rows to be long: twice as long as the longest of them."""
ANYWAY = "`run --force`, elsewhere --set engine.force=true, starts it all the same."


def refuse_weights(config: RunConfig, names: Sequence[str]) -> None:
    """Refuses backbones whose weights alone are more than there is, by their cards. Nothing is loaded. Options of
    backbones may make them smaller, so that none is judged by its card where there are any."""
    capacity = memory_of(device_of(config))
    cards, engine = available("backbone"), config.engine
    if engine.force or config.backbone_options or not capacity.bytes:
        return
    sizes = {name: int(cards[name].about.get("num_params", 0)) for name in names if name in cards}
    if engine.name == "deepspeed" and leaves(engine.offload, device_of(config)):
        return  # all but one block lie elsewhere, and cards do not say how large a block is
    ranks = engine.shards if engine.name == "deepspeed" and engine.zero == SPREAD else 1
    need = WIDTHS[engine.dtype] * sum(sizes.values()) / ranks
    if need * SLACK > capacity.bytes:
        raise UserError(_sentence(need, capacity, "weights", need))


def refuse(setup: Setup, manager: PluginManager, out: Path) -> None:
    """Refuses a run that cannot fit, with one sentence that names what takes most and what would help."""
    config = setup.config
    capacity = memory_of(device_of(config))
    if config.engine.force or not capacity.bytes:
        return
    if bound(setup) > capacity.bytes:
        found = rehearse(
            config, manager, setup.benchmark, rounds=1, shards=config.engine.shards, device=device_of(config)
        )
        need, (part, size) = needed(config, found), largest(found)
        if need * SLACK > capacity.bytes:
            raise UserError(_sentence(need, capacity, part, size))
    least, free = smallest_folder(setup), disk_free(out)
    if least > free:
        raise UserError(
            f"The run folder will hold at least {byte_text(least)}, and {byte_text(free)} are free where {out} lies: "
            f"the clients' adapters take most; smaller by a smaller rank (adapter.r), or name another folder with "
            f"--out. {ANYWAY}"
        )


def _sentence(need: float, capacity: Capacity, part: str, size: float) -> str:
    return (
        f"The run needs about {byte_text(need)} of memory and {capacity.whose} has {byte_text(capacity.bytes)}: "
        f"{part} take most, {byte_text(size)}; they get smaller by {HELP[part]}. {ANYWAY}"
    )


def bound(setup: Setup) -> float:
    """Bytes that a run hardly exceeds, from sizes alone and a few samples."""
    config, options = setup.config, setup.config.evaluation
    trained = (config.training.micro_batch or config.training.batch_size) * at_once(config)
    rows = max(trained, options.batch_size)
    longest = 2 * max((length(client) for client in setup.benchmark.clients), default=0)
    weights = largest_pass = 0.0
    for name in set(setup.backbone_of.values()):
        backbone = setup.load(name)
        about = available("backbone")[name].about if name in available("backbone") else {}
        pictures = int(about.get("picture_tokens", 0)) * pictures_of(setup.benchmark.clients)
        positions = rows * (longest + pictures + options.max_new_tokens)
        card = backbone.card
        width = card.hidden_size * card.layers * PER_POSITION + _outcomes(backbone) * 4 * FLOAT
        largest_pass = max(largest_pass, positions * (width + (longest + pictures) * FLOAT))
        slots = len(setup.parts.objective.slots)
        adapters = FLOAT * sum(setup.adapter.sizes(backbone).values())
        weights += sum(tensor.nbytes for tensor in backbone.model.parameters()) + 8 * slots * adapters * at_once(config)
    return weights + largest_pass


def _outcomes(backbone: Backbone) -> int:
    return int(backbone.module(backbone.head).weight.shape[0])  # type: ignore[index]


def length(client: ClientData) -> int:
    """Bytes of text in a client's longest sample, of the first of each task: no tokenizer makes more tokens of them."""
    samples = (
        sample for task in client.tasks for part in (task.train, task.test) for sample in islice(part, LOOKED_AT)
    )
    return max(
        (sum(len(turn.human.encode()) + len(turn.answer.encode()) + 16 for turn in s.turns) for s in samples), default=0
    )


def pictures_of(clients: Sequence[ClientData]) -> int:
    """Pictures in a sample, at most, of the first of each task."""
    firsts = (sample for client in clients for task in client.tasks for sample in islice(task.train, 1))
    return max((len(sample.pictures) for sample in firsts), default=0)


def smallest_folder(setup: Setup) -> int:
    """Bytes that a run's folder has at least: one adapter of every client, in float32."""
    sizes = {name: sum(setup.adapter.sizes(setup.load(name)).values()) for name in set(setup.backbone_of.values())}
    return FLOAT * sum(sizes[name] for name in setup.backbone_of.values())
