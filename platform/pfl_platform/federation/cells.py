"""What is scored, for whom and when: cells of the evaluation matrix."""

from __future__ import annotations

from collections.abc import Sequence

from pfl_platform.config import Evaluation
from pfl_platform.data import ClientData, Sample, TaskData
from pfl_platform.evaluation.surfaces import Cell, Split
from pfl_platform.federation import heads
from pfl_platform.federation.components import Federation


def evaluated(fed: Federation, round_index: int) -> bool:
    """Whether the protocol scores after this round."""
    return (round_index + 1) % fed.config.evaluation.every == 0 or round_index + 1 == fed.config.rounds


def own_cells(client: ClientData) -> tuple[Cell, ...]:
    return tuple(Cell(client.client_id, task.name) for task in client.tasks)


def items_of(options: Evaluation, task: TaskData, split: Split, *, own: bool) -> Sequence[Sample]:
    """The held-out samples that a cell is scored on, the first ones; `own`: it is one of the client's own."""
    items = task.test if split == "test" else task.validation
    limit = options.items if own or not options.items_others else options.items_others
    return items[:limit] if limit else items


def cells_for(fed: Federation, client: ClientData | None) -> tuple[Cell, ...]:
    """Every client's cells, a client's own first."""
    first = own_cells(client) if client is not None else ()
    rest = tuple(cell for other in fed.clients for cell in own_cells(other) if cell not in first)
    return first + rest


def cells_due(fed: Federation, client: ClientData, round_index: int) -> tuple[Cell, ...]:
    """What to score for a client after a round: Self always, Others and Unseen as configured."""
    options = fed.config.evaluation
    last = round_index + 1 == fed.config.rounds
    with_others = options.others and (last or not options.others_last_only)
    cells = cells_for(fed, client) if with_others else own_cells(client)
    if options.unseen and last:
        cells += tuple(Cell("", task.name) for task in fed.benchmark.unseen)
    return heads.measurable(fed, fed.backbone_of[client.client_id], cells)
