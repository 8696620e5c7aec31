"""From the client x task x round matrix to the numbers that are reported.

A cell score is 0 to 100 and has the key `owner:task`: the test items of `task` of client `owner`, answered by the model
of some client. For client i (conventions where papers are silent are marked *):

- Self(i): mean over i's own tasks. Others(i): mean over the tasks of all other clients. Unseen(i): over nobody's tasks.
- Every task weighs the same*. Tasks of the same name are one task*: what i shares with another client counts in its
  Self and not in its Others; what two others share counts once, with the mean of their cells.
- A_last: the value after the last round. A_AUC: the mean of the values at all evaluation points (the rectangle rule
  with equal widths; there is no point before the first round)*. The baseline (no training) is kept apart.
- Self is over all tasks at every point, also over those that have not begun, as the papers' A_AUC is; with `seen_only`
  a task counts from when it has begun. Forgetting always looks at tasks that had begun.
- What was not measured is None, never 0: A_AUC is None when one of its points is.

Everything but `results` is pure, and nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Any, TypeAlias

from pfl_platform.ledger.costs import held, total

if TYPE_CHECKING:
    from pfl_platform.federation.setup import Setup
    from pfl_platform.store.run_folder import RunFolder

FORMAT = 1
KINDS = ("self", "others", "unseen")
"""Which tasks a value is over."""

VALUES = ("last", "auc", "baseline", "gain")
"""A_last, A_AUC, the value before training, and A_last minus that."""

Cells: TypeAlias = Mapping[str, float]
"""Cell key -> score of one client's model at one evaluation point."""

Matrix: TypeAlias = Mapping[int, Mapping[str, Cells]]
"""Index of an evaluated round -> client id -> cells."""

Begun: TypeAlias = Mapping[int, Mapping[str, Collection[str]]]
"""Index of an evaluated round -> client id -> keys of its own cells whose task had begun by then."""


def values_of(client_id: str, cells: Cells) -> dict[str, float | None]:
    """Self, Others and Unseen of one client at one evaluation point; None for what its cells do not cover.

    Client a, whose task t is also b's; b's task u is also c's:

    >>> cells = {"a:s": 50.0, "a:t": 70.0, "b:t": 0.0, "b:u": 20.0, "c:u": 40.0, "c:v": 60.0}
    >>> values_of("a", cells)   # (50 + 70) / 2; ((20 + 40) / 2 + 60) / 2
    {'self': 60.0, 'others': 45.0, 'unseen': None}
    """
    own: dict[str, list[float]] = {}
    foreign: dict[str, list[float]] = {}
    unseen: dict[str, list[float]] = {}
    for key, score in cells.items():
        owner, _, task = key.partition(":")
        group = own if owner == client_id else foreign if owner else unseen
        group.setdefault(task, []).append(score)
    others = {task: scores for task, scores in foreign.items() if task not in own}
    return {
        kind: mean(fmean(scores) for scores in tasks.values())
        for kind, tasks in zip(KINDS, (own, others, unseen), strict=True)
    }


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of what was measured; None when nothing was.

    >>> mean([1.0, None, 3.0]), mean([None])
    (2.0, None)
    """
    measured = [value for value in values if value is not None]
    return fmean(measured) if measured else None


def curve(client_id: str, kind: str, matrix: Matrix) -> dict[int, float | None]:
    """One client's values by round number, counted from 1, in order.

    >>> curve("a", "self", {9: {"a": {"a:t": 3.0}}, 4: {"a": {"a:t": 2.0}}})
    {5: 2.0, 10: 3.0}
    """
    return {index + 1: values_of(client_id, matrix[index].get(client_id, {}))[kind] for index in sorted(matrix)}


def a_last(points: Mapping[int, float | None]) -> float | None:
    """The value at the last point; None when there is none.

    >>> a_last({5: 40.0, 10: 60.0})
    60.0
    """
    return points[max(points)] if points else None


def a_auc(points: Mapping[int, float | None]) -> float | None:
    """The mean over all points; None when one of them was not measured.

    >>> a_auc({5: 40.0, 10: 60.0, 15: 59.0, 20: 61.0}), a_auc({5: None, 10: 60.0})
    (55.0, None)
    """
    values = list(points.values())
    return mean(values) if None not in values else None


def client_values(client_id: str, kind: str, matrix: Matrix, baseline: Cells) -> dict[str, float | None]:
    """A_last, A_AUC, baseline and gain of one client over one kind of tasks."""
    points = curve(client_id, kind, matrix)
    last, before = a_last(points), values_of(client_id, baseline)[kind]
    gain = last - before if last is not None and before is not None else None
    return {"last": last, "auc": a_auc(points), "baseline": before, "gain": gain}


def forgetting(client_id: str, matrix: Matrix, begun: Begun) -> float | None:
    """What a client's model has lost: the mean over its tasks of the best score at an earlier point, from when the task
    had begun, minus the last score (Chaudhry et al. 2018, Eq. 3). Negative where the last is the best; None where
    there is no earlier point.

    >>> matrix = {0: {"a": {"a:s": 60.0, "a:t": 90.0}}, 1: {"a": {"a:s": 50.0, "a:t": 70.0}}}
    >>> forgetting("a", matrix, {0: {"a": ["a:s"]}, 1: {"a": ["a:s", "a:t"]}})   # t had not begun at the first point
    10.0
    """
    *earlier, last = sorted(matrix) or [-1]
    lost = []
    for key, score in matrix.get(last, {}).get(client_id, {}).items():
        if key.partition(":")[0] != client_id:
            continue
        before = [
            matrix[index][client_id][key]
            for index in earlier
            if key in begun[index][client_id] and key in matrix[index].get(client_id, {})
        ]
        if before:
            lost.append(max(before) - score)
    return mean(lost)


def from_begin(matrix: Matrix, begun: Begun) -> Matrix:
    """The matrix without clients' own tasks that had not begun.

    >>> from_begin({0: {"a": {"a:s": 60.0, "a:t": 20.0, "b:u": 5.0}}}, {0: {"a": ["a:s"]}})
    {0: {'a': {'a:s': 60.0, 'b:u': 5.0}}}
    """
    return {
        index: {
            client: {
                key: score
                for key, score in cells.items()
                if key.partition(":")[0] != client or key in begun[index][client]
            }
            for client, cells in rows.items()
        }
        for index, rows in matrix.items()
    }


def over_clients(values: Mapping[str, float | None]) -> dict[str, Any]:
    """Mean, population standard deviation and minimum over the clients that have a value, with their number.

    The deviation is the population's, since all clients are there and none is a sample.

    >>> over_clients({"a": 40.0, "b": 60.0, "c": None})
    {'mean': 50.0, 'std': 10.0, 'min': 40.0, 'min_client': 'a', 'count': 2}
    """
    measured = {client: value for client, value in values.items() if value is not None}
    if not measured:
        return {"mean": None, "std": None, "min": None, "min_client": None, "count": 0}
    lowest = min(measured, key=lambda client: measured[client])
    return {
        "mean": fmean(measured.values()),
        "std": pstdev(measured.values()),
        "min": measured[lowest],
        "min_client": lowest,
        "count": len(measured),
    }


def report_of(
    *,
    config: Mapping[str, Any],
    benchmark: str,
    backbones: Mapping[str, str],
    matrix: Matrix,
    baseline: Mapping[str, Cells],
    costs: Mapping[str, Mapping[str, float]],
    shared_costs: Mapping[str, float] | None = None,
    tuning: Mapping[str, Any] | None = None,
    budget: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    begun: Begun | None = None,
    mixed: Collection[str] = (),
) -> dict[str, Any]:
    """The content of `results.json`.

    config: the run's configuration as JSON. backbones: client id -> backbone, in the benchmark's order. baseline:
    client id -> cells before training. costs: client id -> sum of its tasks' costs (`pfl_platform.ledger.costs.total`).
    shared_costs: the sum over all that was no client's (preparation, the server), where it was booked. begun: without
    it, every task had begun at every point. mixed: clients of whose Others the last point is over other items than
    those before, so that they have no A_AUC together.

        format, method, benchmark, seed, rounds, local_steps
        evaluated     round numbers, counted from 1
        clients       id -> {"backbone",
                             "self", "others", "unseen": {"last", "auc", "baseline", "gain"},
                             "forgetting",
                             "curve": {"self", "others", "unseen": [[round number, value], ...]},
                             "tasks": {cell key: score after the last round},
                             "cost": {"seconds", "train_seconds", "steps", "flops", "flops_formula", "peak_memory",
                                      "up_payload", "up_wire", "down_payload", "down_wire",
                                      "head_payload", "head_wire",
                                      "score_payload", "score_wire"}}   sums over the run; bytes
        summary       "self", "others", "unseen" -> value ("last" ...) -> {"mean", "std", "min", "min_client", "count"},
                      and "forgetting" -> the same
        cost          the clients' costs summed
        shared_cost   the same fields; null where not booked
        tuning        what was tried and chosen on validation samples (`federation.tuning.record`); null without
        budget        asked and reached (`ledger.costs.held`); null for a run without one
        notes         what the metrics say of their scores
        config        the whole configuration, with the values that were chosen
    """
    last = max(matrix, default=None)
    begun = matrix if begun is None else begun
    lost = {client: forgetting(client, matrix, begun) for client in backbones}
    tasks = {client: dict(matrix[last].get(client, {})) if last is not None else {} for client in backbones}
    if config.get("evaluation", {}).get("seen_only"):
        matrix = from_begin(matrix, begun)
    clients: dict[str, Any] = {}
    for client, backbone in backbones.items():
        values = {kind: client_values(client, kind, matrix, baseline.get(client, {})) for kind in KINDS}
        if client in mixed:
            values["others"]["auc"] = None
        clients[client] = {
            "backbone": backbone,
            **values,
            "forgetting": lost[client],
            "curve": {kind: [list(point) for point in curve(client, kind, matrix).items()] for kind in KINDS},
            "tasks": tasks[client],
            "cost": total([costs.get(client, {})]),
        }
    return {
        "format": FORMAT,
        "method": config["method"],
        "benchmark": benchmark,
        "seed": config["seed"],
        "rounds": config["rounds"],
        "local_steps": config["local_steps"],
        "evaluated": [index + 1 for index in sorted(matrix)],
        "clients": clients,
        "summary": {
            kind: {
                name: over_clients({client: entry[kind][name] for client, entry in clients.items()}) for name in VALUES
            }
            for kind in KINDS
        }
        | {"forgetting": over_clients(lost)},
        "cost": total(entry["cost"] for entry in clients.values()),
        "shared_cost": None if shared_costs is None else total([shared_costs]),
        "tuning": None if tuning is None else dict(tuning),
        "budget": None if budget is None else dict(budget),
        "notes": list(notes),
        "config": dict(config),
    }


def results(folder: RunFolder, setup: Setup) -> dict[str, Any]:
    """`report_of` a run on disk, so that a resumed run reports what an undisturbed one does."""
    from pfl_platform.report.profiles import read_profile
    from pfl_platform.training.relief import notes_of

    prepared = folder.read_prepare() or {}
    rounds = folder.rounds()
    scored = {
        record["round_index"]: {
            client: entry["scores"] for client, entry in record["clients"].items() if entry["scores"]
        }
        for record in rounds
    }
    clients = [client.client_id for client in setup.benchmark.clients]
    later = folder.read_cells() or {"clients": {}, "baseline": {}}
    known = scored[rounds[-1]["round_index"]] if rounds else {}
    mixed = [client for client, cells in later["clients"].items() if any(key in known.get(client, {}) for key in cells)]
    for client, cells in later["clients"].items():
        known[client] = {**known.get(client, {}), **{key: cell["score"] for key, cell in cells.items()}}
    before = {
        client: {
            **prepared.get("baseline", {}).get(client, {}),
            **{key: cell["score"] for key, cell in later["baseline"].get(client, {}).items()},
        }
        for client in clients
    }
    shared = [prepared.get("cost"), *(record.get("shared_cost") for record in rounds)]
    config = setup.config.model_dump(mode="json")
    matrix = {index: cells for index, cells in scored.items() if cells}
    found = report_of(
        config=config,
        benchmark=setup.benchmark.name,
        backbones={client: setup.backbone_of[client] for client in clients},
        matrix=matrix,
        mixed=mixed,
        begun={index: _begun(setup, index) for index in matrix},
        baseline=before,
        costs={
            client: total(record["clients"][client]["cost"] for record in rounds if client in record["clients"])
            for client in clients
        },
        shared_costs=total(item for item in shared if item is not None),
        tuning=folder.read_tuning(),
        budget=held(config["budget"], rounds, prepared.get("cost") or {}) if config["budget"] else None,
        notes=[*(note for metric in setup.metrics.values() for note in metric.notes), *notes_of(rounds)],
    )
    profile = read_profile(folder.path)
    return {**found, "profile": profile} if profile is not None else found


def _begun(setup: Setup, index: int) -> dict[str, set[str]]:
    """Client id -> keys of its own cells whose task had begun by the end of a round."""
    from pfl_platform.training.streams import begun

    config = setup.config
    total_steps, step = config.rounds * config.local_steps, (index + 1) * config.local_steps
    return {
        client.client_id: {
            f"{client.client_id}:{task.name}"
            for task in (
                client.tasks if config.local_epochs else begun(client, config.stream.protocol, step, total_steps)
            )
        }
        for client in setup.benchmark.clients
    }
