"""Personal models on the line between two models of each client, of a run that has ended. Nothing is trained.

A personalizer that makes one model of two says how (`pfl_platform.evaluation.surfaces.Blend`). From the states that a
run has kept, this measures the loss and the score at every weight from 0 to 1, which weight would have been best, and
what the client's own weight reaches; and, for every round whose adapters were kept, the score with the second model as
it was then, beside the bytes that were exchanged by then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from pfl_platform.adapters.host import BASE
from pfl_platform.adapters.surfaces import Keys, Mix, Tensors
from pfl_platform.data import Benchmark, ClientData
from pfl_platform.engines.worker import Worker
from pfl_platform.errors import UserError
from pfl_platform.evaluation.surfaces import Blend, Split
from pfl_platform.federation.cells import items_of, own_cells
from pfl_platform.federation.components import Federation
from pfl_platform.federation.ended import Ended
from pfl_platform.federation.records import progress_of
from pfl_platform.federation.rounds import Parts, context, taken_in
from pfl_platform.federation.session import numerics
from pfl_platform.federation.setup import Setup
from pfl_platform.federation.tasks import Task
from pfl_platform.plugins import PluginManager
from pfl_platform.store.memory import Overlay
from pfl_platform.training.losses import answer_loss
from pfl_platform.training.streams import Epochs, Pooled
from pfl_platform.training.surfaces import Source, Statistic, View

Say = Callable[[str], None]
FILE = "line.json"


@dataclass(frozen=True)
class Measured:
    """Loss (mean over answer tokens) and score (mean over the client's own tasks, 0 to 100) of one model."""

    loss: float
    score: float | None


class AnswerLoss(Statistic):
    """The mean loss over all answer tokens of a pass, without dropout. Sends `line/loss`."""

    def __init__(self, mix: Mix, source: Source, amount: int) -> None:
        self.name, self.mix, self.data, self.amount = "line", mix, source, amount

    def add(self, acc: Any, view: View) -> tuple[float, int]:
        total, tokens = acc if acc is not None else (0.0, 0)
        output = view.forward(self.mix, grad=False, train=False)
        count = output.encoded.supervised
        return total + float(answer_loss(output).mean()) * count, tokens + count

    def finish(self, acc: Any, private: Tensors, rng: Callable[..., torch.Generator]) -> tuple[Tensors, Tensors]:
        total, tokens = acc
        return {}, {"line/loss": torch.tensor(total / tokens, dtype=torch.float64)}


def barrier(losses: Mapping[float, float]) -> float:
    """How far the loss rises above the straight line between its ends (linear mode connectivity's barrier), at least 0.

    >>> barrier({0.0: 1.0, 0.5: 2.5, 1.0: 3.0}), barrier({0.0: 1.0, 0.5: 0.5, 1.0: 1.0})
    (0.5, 0.0)
    """
    return max(loss - ((1.0 - weight) * losses[0.0] + weight * losses[1.0]) for weight, loss in losses.items())


@dataclass
class _Walk:
    """A finished run, opened."""

    setup: Setup
    fed: Federation
    parts: Parts
    blend: Blend
    worker: Worker

    def task(self, client: ClientData, state: Tensors, split: Split) -> Task:
        """One client's turn: nothing but its state, whose loss and score are wanted."""
        name, options = client.client_id, self.setup.config
        pool = Pooled([items_of(options.evaluation, task, split, own=True) for task in client.tasks])
        source = Epochs(pool, options.evaluation.batch_size, self.fed.seed, f"line {name}", shuffle=False)
        mix = self.parts.recipe().passes[0]
        host = self.fed.host_of(name)
        dense = Keys(f"{BASE}/*").of(state)
        return Task(
            actor=name,
            stage="line",
            round_index=options.rounds,
            backbone=host,
            state=self.fed.store.put({key: value for key, value in state.items() if key not in dense}),
            frozen=self.fed.frozen.get(host),
            base=self.fed.store.put(dense) if dense else None,
            statistics=(AnswerLoss(mix, source, source.steps()),),
            score=own_cells(client),
            recipe=replace(self.parts.recipe(), blend=None),
            split=split,
            salt=self.fed.salt,
        )

    def measure(self, client: ClientData, state: Tensors, weight: float | None, split: Split) -> Measured:
        outcome = self.worker.execute(self.task(client, {**state, **self.blend.params(state, weight)}, split))
        loss = float(self.fed.store.get(outcome.new_state)["line/loss"])
        scores = list(outcome.scores.values())
        return Measured(loss, sum(scores) / len(scores) if scores else None)

    def weighed(self, client: ClientData, state: dict[str, Tensor], number: int) -> dict[str, Tensor]:
        """A state with what the personalizer measures on it, its own weights among that."""
        ctx = context(self.fed, client, number - 1)
        host = self.fed.host_of(client.client_id)
        task = Task(
            actor=client.client_id,
            stage="line",
            round_index=number,
            backbone=host,
            state=self.fed.store.put(state),
            frozen=self.fed.frozen.get(host),
            statistics=self.parts.measured(ctx),
            salt=self.fed.salt,
        )
        return self.fed.store.get(self.worker.execute(task).new_state)


def opened(out: Path, plugins: PluginManager | None, benchmark: Benchmark | None) -> tuple[_Walk, Ended]:
    """A finished run whose personal models are blends. Raises `UserError` for any other."""
    run = Ended.open(out, plugins, benchmark)
    setup = run.setup
    blend = setup.parts.recipe().blend
    if blend is None:
        raise UserError(
            f"The personal models of '{run.config.method}' are not made of two models by a weight, so there is no "
            "line between them; choose a personalizer that blends."
        )
    store = Overlay(run.folder.store)
    return _Walk(setup, run.federation(store), setup.parts, blend, setup.worker(store)), run


def walk(
    out: Path,
    *,
    points: int = 11,
    split: Split = "validation",
    plugins: PluginManager | None = None,
    benchmark: Benchmark | None = None,
    say: Say = lambda sentence: None,
) -> dict[str, Any]:
    """Measures the lines of all clients of a finished run.

    points: weights from 0 to 1. split: whose samples the line and the search over the weight are on; scores that are to
    be compared with other methods' are on the test samples.

        ends, points, split
        clients   id -> {"weight": its own, "best": the best of the points on `split`, "barrier": of the loss,
                         "line": [[weight, loss, score], ...] on `split`,
                         "test": {"first", "second", "own", "best": score}}
        rounds    number -> {"weight", "score": means over clients on the test samples, "megabytes": both ways, mean}
    """
    opened_run, run = opened(out, plugins, benchmark)
    if split not in get_args(Split):
        raise UserError(f"The samples of a line are {' or '.join(get_args(Split))}, not '{split}'.")
    if points < 2:
        raise UserError(f"A line has at least two points, its ends; --points is {points}.")
    for client in opened_run.fed.clients:
        if split == "validation" and any(not task.validation for task in client.tasks):
            raise UserError(
                f"The client '{client.client_id}' has no validation samples; --split test draws the line on its test "
                "samples, where the best weight is no fair choice."
            )
    records = run.folder.rounds()
    kept = sorted({*run.config.keep_rounds, len(records)})
    grid = [index / (points - 1) for index in range(points)]
    clients: dict[str, Any] = {}
    rounds: dict[int, dict[str, list[float]]] = {}
    with numerics(run.config):
        for client in opened_run.fed.clients:
            name = client.client_id
            last = taken_in(opened_run.fed, opened_run.parts, progress_of(records[-1]), name, len(records))
            for number in kept:
                say(f"{name}, round {number}")
                then = taken_in(opened_run.fed, opened_run.parts, progress_of(records[number - 1]), name, number)
                state = opened_run.weighed(client, {**last, **opened_run.blend.keys[1].of(then)}, number)
                own = opened_run.measure(client, state, None, "test")
                row = rounds.setdefault(number, {"weight": [], "score": [], "megabytes": []})
                row["weight"].append(opened_run.blend.weight(state))
                row["megabytes"].append(_exchanged(records[:number], name) / 1e6)
                if own.score is not None:
                    row["score"].append(own.score)
            clients[name] = _line(opened_run, client, state, grid, split, own)
    found = {
        "ends": list(opened_run.blend.ends),
        "points": points,
        "split": split,
        "clients": clients,
        "rounds": {number: {key: _mean(values) for key, values in row.items()} for number, row in rounds.items()},
    }
    run.folder.write_extra(FILE, found)
    return found


def _line(
    walk: _Walk, client: ClientData, state: dict[str, Tensor], grid: Sequence[float], split: Split, own: Measured
) -> dict[str, Any]:
    """One client's line, and what its ends, its own weight and the best of the points reach on the test samples."""
    line = {weight: walk.measure(client, state, weight, split) for weight in grid}
    best = max(line, key=lambda weight: (line[weight].score or 0.0, -line[weight].loss))
    tested = {
        weight: line[weight] if split == "test" else walk.measure(client, state, weight, "test")
        for weight in {0.0, 1.0, best}
    }
    return {
        "weight": walk.blend.weight(state),
        "best": best,
        "barrier": barrier({weight: at.loss for weight, at in line.items()}),
        "line": [[weight, at.loss, at.score] for weight, at in line.items()],
        "test": {
            "first": tested[0.0].score,
            "second": tested[1.0].score,
            "own": own.score,
            "best": tested[best].score,
        },
    }


def _exchanged(records: Sequence[Mapping[str, Any]], name: str) -> float:
    """Payload bytes of a client, up and down, over the rounds of these records."""
    costs = [record["clients"][name]["cost"] for record in records if name in record["clients"]]
    return float(sum(cost["up_payload"] + cost["down_payload"] for cost in costs))


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
