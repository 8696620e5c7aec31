"""From the client x task x round matrix to the numbers that are reported.

A cell score is 0 to 100 and has the key `owner:task`: the test items of `task` of client `owner`, answered by the model
of some client. For client i (conventions where papers are silent are marked *):

- Self(i): mean over i's own tasks. Others(i): mean over the tasks of all other clients. Unseen(i): over nobody's tasks.
- Every task weighs the same*. Tasks of the same name are one task*: what i shares with another client counts in its
  Self and not in its Others; what two others share counts once, with the mean of their cells.
- A_last: the value after the last round. A_AUC: the mean of the values at all evaluation points (the rectangle rule
  with equal widths; there is no point before the first round)*. The baseline (no training) is kept apart.
- What was not measured is None, never 0: A_AUC is None when one of its points is.

Everything but `results` is pure, and nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean, pstdev, stdev
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
) -> dict[str, Any]:
    """The content of `results.json`.

    config: the run's configuration as JSON. backbones: client id -> backbone, in the benchmark's order. baseline:
    client id -> cells before training. costs: client id -> sum of its tasks' costs (`pfl_platform.ledger.costs.total`).
    shared_costs: the sum over all that was no client's (preparation, the server), where it was booked.

        format, method, benchmark, seed, rounds, local_steps
        evaluated     round numbers, counted from 1
        clients       id -> {"backbone",
                             "self", "others", "unseen": {"last", "auc", "baseline", "gain"},
                             "curve": {"self", "others", "unseen": [[round number, value], ...]},
                             "tasks": {cell key: score after the last round},
                             "cost": {"seconds", "train_seconds", "steps", "flops", "flops_formula", "peak_memory",
                                      "up_payload", "up_wire", "down_payload", "down_wire",
                                      "head_payload", "head_wire",
                                      "score_payload", "score_wire"}}   sums over the run; bytes
        summary       "self", "others", "unseen" -> value ("last" ...) -> {"mean", "std", "min", "min_client", "count"}
        cost          the clients' costs summed
        shared_cost   the same fields; null where not booked
        tuning        what was tried and chosen on validation samples (`federation.tuning.record`); null without
        budget        asked and reached (`ledger.costs.held`); null for a run without one
        notes         what the metrics say of their scores
        config        the whole configuration, with the values that were chosen
    """
    last = max(matrix, default=None)
    clients: dict[str, Any] = {}
    for client, backbone in backbones.items():
        values = {kind: client_values(client, kind, matrix, baseline.get(client, {})) for kind in KINDS}
        clients[client] = {
            "backbone": backbone,
            **values,
            "curve": {kind: [list(point) for point in curve(client, kind, matrix).items()] for kind in KINDS},
            "tasks": dict(matrix[last].get(client, {})) if last is not None else {},
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
        },
        "cost": total(entry["cost"] for entry in clients.values()),
        "shared_cost": None if shared_costs is None else total([shared_costs]),
        "tuning": None if tuning is None else dict(tuning),
        "budget": None if budget is None else dict(budget),
        "notes": list(notes),
        "config": dict(config),
    }


def results(folder: RunFolder, setup: Setup) -> dict[str, Any]:
    """`report_of` a run on disk, so that a resumed run reports what an undisturbed one does."""
    prepared = folder.read_prepare() or {}
    rounds = folder.rounds()
    scored = {
        record["round_index"]: {
            client: entry["scores"] for client, entry in record["clients"].items() if entry["scores"]
        }
        for record in rounds
    }
    clients = [client.client_id for client in setup.benchmark.clients]
    shared = [prepared.get("cost"), *(record.get("shared_cost") for record in rounds)]
    config = setup.config.model_dump(mode="json")
    return report_of(
        config=config,
        benchmark=setup.benchmark.name,
        backbones={client: setup.backbone_of[client] for client in clients},
        matrix={index: cells for index, cells in scored.items() if cells},
        baseline={client: prepared.get("baseline", {}).get(client, {}) for client in clients},
        costs={
            client: total(record["clients"][client]["cost"] for record in rounds if client in record["clients"])
            for client in clients
        },
        shared_costs=total(item for item in shared if item is not None),
        tuning=folder.read_tuning(),
        budget=held(config["budget"], rounds, prepared.get("cost") or {}) if config["budget"] else None,
        notes=[note for metric in setup.metrics.values() for note in metric.notes],
    )


def over_runs(values: Sequence[float | None]) -> dict[str, Any]:
    """Mean and sample standard deviation over runs that measured it; no deviation is known of a single run.

    >>> over_runs([50.0, 52.0, 54.0]), over_runs([50.0])
    ({'mean': 52.0, 'std': 2.0, 'count': 3}, {'mean': 50.0, 'std': None, 'count': 1})
    """
    measured = [value for value in values if value is not None]
    return {
        "mean": fmean(measured) if measured else None,
        "std": stdev(measured) if len(measured) > 1 else None,
        "count": len(measured),
    }


def summarise(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Groups the results of several runs by setting, in order of first appearance.

    The setting is all of the configuration but the seed, the observers, what a budget was solved from, and what was
    tuned: chosen values may differ from seed to seed. Each group holds:

        label       the configuration's own; else the method, and what tells the group from others of the same method
        published   the mean that a paper reports for it, where the configuration has one
        method, benchmark, seeds, clients (how many)
        self, others, unseen -> value -> `over_runs` of the runs' means over clients
        min         `over_runs` of the lowest client's Self A_last
        cost        field -> `over_runs` of the sums over clients (of `peak_memory`: the largest)
        budget      of the first run, with its rounds and local steps, and the means of `reached` and `spent`; or None
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    settings: dict[str, dict[str, Any]] = {}
    for run in runs:
        config = {key: value for key, value in run["config"].items() if key not in ("label", "published", "budget")}
        aside = {"seed", "observers", *(config.get("tune") or ())}
        setting = {key: value for key, value in _leaves(config) if key not in aside}
        name = repr((run["config"].get("label", ""), sorted(setting.items())))
        settings[name] = setting
        groups.setdefault(name, []).append(run)
    labels = _labels({name: (members[0]["method"], settings[name]) for name, members in groups.items()})
    labels |= {name: given for name, members in groups.items() if (given := members[0]["config"].get("label"))}
    return [
        {
            "label": labels[name],
            "published": members[0]["config"].get("published", {}).get("mean"),
            "method": members[0]["method"],
            "benchmark": members[0]["benchmark"],
            "seeds": [run["seed"] for run in members],
            "clients": len(members[0]["clients"]),
            **{
                kind: {value: over_runs([run["summary"][kind][value]["mean"] for run in members]) for value in VALUES}
                for kind in KINDS
            },
            "min": over_runs([run["summary"]["self"]["last"]["min"] for run in members]),
            "cost": {field: over_runs([run["cost"][field] for run in members]) for field in members[0]["cost"]},
            "budget": _budget(members),
        }
        for name, members in groups.items()
    ]


def _budget(members: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    given = [found for run in members if (found := run.get("budget"))]
    if len(given) < len(members):
        return None
    spent = {name: fmean(item["spent"][name] for item in given) for name in given[0]["spent"]}
    size = {name: members[0][name] for name in ("rounds", "local_steps")}
    return {**given[0], **size, "reached": fmean(item["reached"] for item in given), "spent": spent}


def _labels(groups: Mapping[str, tuple[str, Mapping[str, Any]]]) -> dict[str, str]:
    """The method's name; where several groups share it, with the settings in which they differ."""
    labels = {}
    for name, (method, setting) in groups.items():
        rivals = [other for rival, other in groups.values() if rival == method]
        keys = sorted({key for other in rivals for key in other} | set(setting))
        differing = [key for key in keys if len({repr(other.get(key)) for other in rivals}) > 1]
        told = ", ".join(f"{key.rpartition('.')[2]}={setting[key]}" for key in differing if key in setting)
        labels[name] = f"{method} ({told})" if told else method
    return labels


def _leaves(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """`("a.b", value)` for every value that is no mapping."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value
