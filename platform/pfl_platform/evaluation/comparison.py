"""Results of several runs, grouped by setting over their seeds. Pure, and nothing here imports torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from pfl_platform.evaluation.matrix import KINDS, VALUES


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
        forgetting  `over_runs` of the runs' means over clients
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
            "forgetting": over_runs([run["summary"].get("forgetting", {}).get("mean") for run in members]),
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
