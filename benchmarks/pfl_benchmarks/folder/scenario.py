"""Scenario files: which client has which tasks and which model.

A list of `{client_id, model_id, adapter?, datasets: [{dataset, subset_id, type, metric?}]}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, get_args

from pfl_benchmarks.folder.files import confined, kind_of, read_list
from pfl_platform.data import Kind
from pfl_platform.errors import UserError, nearest

LONGEST_NAME = 200
"""Bytes; names become parts of file names, which may have 255."""
IDLE = "dummy"
"""Data set of an idle task slot: the client has nothing to learn there, so the slot is skipped."""
KINDS: tuple[Kind, ...] = get_args(Kind)
METRICS: Mapping[str, str] = {"f1": "token_f1", "rougel": "rouge_l"}
"""Names of metrics in scenario files, in small letters -> metric plugins. Other names are taken as plugins' names."""
DEFAULT_METRICS: Mapping[Kind, str] = {"multi-choice": "choice", "open-ended": "token_f1"}


@dataclass(frozen=True)
class TaskSlot:
    """One task of a client: the subset that it reads and how it is scored."""

    dataset: str
    subset: str
    kind: Kind
    metric: str

    @property
    def name(self) -> str:
        return f"{self.dataset}-{self.subset}"

    @property
    def data(self) -> tuple[str, str]:
        """What is read, whatever its kind and metric."""
        return self.dataset, self.subset

    def file(self, root: Path, split: str) -> Path:
        """The record file of a split, `train` or `test`."""
        return root / "dataset" / self.dataset / split / f"dataset-{self.subset}.json"


@dataclass(frozen=True)
class ScenarioClient:
    """One entry of a scenario; `model_id` is empty when the file names none. `adapter` holds options of the run's
    adapter that are different for this client."""

    client_id: str
    model_id: str
    tasks: tuple[TaskSlot, ...]
    adapter: Mapping[str, Any] = field(default_factory=dict)


def find_scenario(root: Path, name: str | None) -> Path:
    """The scenario file: `name` as a path or below `scenarios/` (with or without `.json`), else the only one there.

    What is there, and what a name without separators finds there, has to lie in `root`; a path may lead anywhere.
    """
    known = {path.name: path for path in sorted((root / "scenarios").glob("*.json")) if not _is_task_list(path)}
    if (single := root / "scenario.json").is_file():
        known.setdefault(single.name, single)
    if name is not None:
        places = [Path(name), root / name, root / "scenarios" / name, root / "scenarios" / f"{name}.json"]
        found = next((path for path in places if _is_file(path)), None)
        if found is None:
            stems = [path.stem for path in known.values()]
            hint = nearest(name.removesuffix(".json"), stems) if stems else ""
            raise UserError(f"The scenario '{name}' is neither a file nor below {root / 'scenarios'}.{hint}")
        is_path = found == places[0] or len(Path(name).parts) > 1
        return found if is_path else confined(found, root)
    place = root / "scenarios"
    if not known:
        raise UserError(f"{root} has no scenario: put one into {place} or name it with the option 'scenario'.")
    if len(known) > 1:
        names = ", ".join(sorted(known))
        raise UserError(f"{root} has several scenarios; choose one with the option 'scenario': {names}.")
    return confined(next(iter(known.values())), root)


def read_scenario(path: Path) -> tuple[ScenarioClient, ...]:
    """The clients of a scenario file. Idle slots are left out."""
    entries = read_list(path, "clients")
    if not entries:
        raise UserError(f"{path} names no client.")
    clients: dict[str, ScenarioClient] = {}
    for index, entry in enumerate(entries):
        where = f"{path}, entry {index}"
        if isinstance(entry, dict) and "dataset" in entry and "datasets" not in entry:
            raise UserError(
                f"{where}: this is a list of tasks, not a scenario; a scenario lists clients with 'datasets'."
            )
        client = _client(entry, where)
        if client.client_id in clients:
            raise UserError(f"{where}: the client id '{client.client_id}' is there twice.")
        clients[client.client_id] = client
    return tuple(clients.values())


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long for any file
        return False


def _is_task_list(path: Path) -> bool:
    return path.stem.endswith("_task_list")


def _client(entry: Any, where: str) -> ScenarioClient:
    entry = _object(entry, where, "client_id, model_id and datasets")
    client_id = _identifier(entry, "client_id", where)
    model_id = entry.get("model_id") or ""
    if not isinstance(model_id, str):
        raise UserError(f"{where}: 'model_id' is the name of a backbone, and is {kind_of(model_id)}.")
    adapter = entry.get("adapter") or {}
    if not isinstance(adapter, dict):
        raise UserError(f"{where}: 'adapter' holds options by name, such as {{\"r\": 4}}, and is {kind_of(adapter)}.")
    slots = entry.get("datasets")
    if not isinstance(slots, list):
        raise UserError(f"{where}: 'datasets' must be a list of tasks.")
    places = [(slot, f"{where}, task {position}") for position, slot in enumerate(slots)]
    tasks = tuple(
        _task(slot, at) for slot, at in places if not (isinstance(slot, dict) and slot.get("dataset") == IDLE)
    )
    if not tasks:
        raise UserError(f"{where}: the client '{client_id}' has no task.")
    data = [task.data for task in tasks]
    if twice := next((task.name for task in tasks if data.count(task.data) > 1), None):
        raise UserError(f"{where}: the client '{client_id}' has the task '{twice}' twice.")
    return ScenarioClient(client_id, model_id, tasks, adapter)


def _task(slot: Any, where: str) -> TaskSlot:
    slot = _object(slot, where, "dataset, subset_id and type")
    dataset, subset = _identifier(slot, "dataset", where), _identifier(slot, "subset_id", where)
    kind = slot.get("type")
    if kind not in KINDS:
        raise UserError(f"{where}: the type {kind!r} is unknown; it is 'multi-choice' or 'open-ended'.")
    metric = slot.get("metric") or DEFAULT_METRICS[cast(Kind, kind)]
    if not isinstance(metric, str):
        raise UserError(f"{where}: 'metric' is the name of a metric (F1, RougeL), and is {kind_of(metric)}.")
    return TaskSlot(dataset, subset, cast(Kind, kind), METRICS.get(metric.lower(), metric))


def _object(value: Any, where: str, keys: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected an object with {keys}, and found {kind_of(value)}.")
    return value


def _identifier(entry: dict[str, Any], key: str, where: str) -> str:
    """A name or number that becomes part of a path or a client's id."""
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, str | int) or str(value).strip() == "":
        raise UserError(f"{where}: '{key}' must be a name or a whole number, and is {kind_of(value)}.")
    text = str(value)
    if any(part in text for part in ("/", "\\", "\0")) or text in {".", ".."}:
        raise UserError(f"{where}: '{key}' is '{text}', which is not allowed: no path separators.")
    if len(text.encode()) > LONGEST_NAME:
        raise UserError(f"{where}: '{key}' is {len(text.encode())} bytes long, and at most {LONGEST_NAME} are allowed.")
    return text
