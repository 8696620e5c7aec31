"""The card of a published federation: its clients, models, unseen tasks and settings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from pfl_benchmarks.folder.scenario import DEFAULT_METRICS, METRICS, ScenarioClient, TaskSlot
from pfl_platform.errors import UserError, nearest

CARDS = Path(__file__).with_name("cards")
REST, EVEN = "rest", "even"
"""In a preset: all clients that no other model names; those with an even id."""
TINY: Mapping[str, tuple[str, str]] = {
    "llava-llama": ("tiny-llava-llama-s", "tiny-llava-llama-m"),
    "llava-qwen": ("tiny-llava-qwen-s", "tiny-llava-qwen-m"),
    "llama": ("tiny-llama-s", "tiny-llama-m"),
}
"""A small and a larger backbone of the zoo in the places of each family's models."""
_FAMILY = re.compile(r"(llava-llama|llava-qwen|llama)-?[\d.]+-([\d.]+)b")


def tiny(models: Iterable[str]) -> dict[str, str]:
    """The zoo's backbone in the place of each model: of a family the smallest gets the small one, the others get the
    larger. Names of other forms stay.

    >>> tiny(["llama-3.2-3b", "llama-3.1-8b", "mine"])
    {'llama-3.2-3b': 'tiny-llama-s', 'llama-3.1-8b': 'tiny-llama-m', 'mine': 'mine'}
    >>> tiny(["llava-qwen2.5-3b", "llava-qwen2.5-0.5b", "llava-llama-3.2-3b"]).values()
    dict_values(['tiny-llava-qwen-m', 'tiny-llava-qwen-s', 'tiny-llava-llama-s'])
    """
    found = {model: _FAMILY.fullmatch(model) for model in models}
    smallest: dict[str, float] = {}
    for match in found.values():
        if match:
            smallest[match[1]] = min(float(match[2]), smallest.get(match[1], float("inf")))
    return {
        model: TINY[match[1]][float(match[2]) > smallest[match[1]]] if match else model
        for model, match in found.items()
    }


@cache
def card(name: str) -> Mapping[str, Any]:
    """A suite's card as it is written."""
    content: Mapping[str, Any] = yaml.safe_load((CARDS / f"{name}.yaml").read_text(encoding="utf-8"))
    return content


def slot(name: str, sheet: Mapping[str, Any], metric: str | None = None) -> TaskSlot:
    """A task by its name, `Dataset-subset`.

    >>> slot("SEED-Bench-2-1", card("drake"))
    TaskSlot(dataset='SEED-Bench-2', subset='1', kind='multi-choice', metric='choice')
    >>> slot("iconqa-2", card("drake")).metric, slot("FedchatbotIT-20", card("fedllm-large")).metric
    ('token_f1', 'rouge_l')
    """
    dataset, _, subset = name.rpartition("-")
    written = sheet.get("open_ended", {}).get(name) or sheet.get("metric")
    if written is None:
        return TaskSlot(dataset, subset, "multi-choice", DEFAULT_METRICS["multi-choice"])
    chosen = str(metric or written)
    return TaskSlot(dataset, subset, "open-ended", METRICS.get(chosen.lower(), chosen))


def presets(name: str, order: str = "published") -> Mapping[str, Mapping[str, Any]]:
    """The presets that an order of clients has, by name."""
    sheet = card(name)
    found = dict(sheet["presets"])
    if order == "paper":
        published = {given["is"]: client for client, given in sheet["paper"].items()}
        found = {
            preset: {
                model: chosen if isinstance(chosen, str) else [published[client] for client in chosen]
                for model, chosen in models.items()
            }
            for preset, models in found.items()
        }
        found |= sheet.get("paper_presets", {})
    return found


def clients(name: str, *, order: str, preset: str | None, metric: str | None = None) -> tuple[ScenarioClient, ...]:
    """The clients of a suite in one of its orders, with a preset's models."""
    sheet = card(name)
    if order == "paper" and "paper" not in sheet:
        raise UserError(f"The clients of '{name}' have one order only; leave out order: paper.")
    tasks: Mapping[str, Sequence[str]] = (
        {client: given["tasks"] for client, given in sheet["paper"].items()} if order == "paper" else sheet["clients"]
    )
    known = presets(name, order)
    chosen = preset or next(iter(known))
    if chosen not in known:
        raise UserError(f"'{name}' has no preset '{chosen}'." + nearest(chosen, known))
    models = model_of(tasks, known[chosen])
    return tuple(
        ScenarioClient(client, models[client], tuple(slot(task, sheet, metric) for task in names))
        for client, names in tasks.items()
    )


def model_of(names: Iterable[str], preset: Mapping[str, Any]) -> dict[str, str]:
    """The model of each client.

    >>> model_of(["0", "1", "2"], {"small": ["1"], "large": "rest"})
    {'0': 'large', '1': 'small', '2': 'large'}
    >>> model_of(["0", "1", "2"], {"small": "even", "large": "rest"})
    {'0': 'small', '1': 'large', '2': 'small'}
    """
    (rest,) = (model for model, chosen in preset.items() if chosen == REST)
    found = {}
    for name in names:
        own = (
            model
            for model, chosen in preset.items()
            if chosen != REST and (int(name) % 2 == 0 if chosen == EVEN else name in chosen)
        )
        found[name] = next(own, rest)
    return found


def unseen(name: str) -> tuple[tuple[str, ScenarioClient], ...]:
    """The unseen tasks, each with the name of its group. Their models do not matter."""
    sheet = card(name)
    return tuple(
        (group, ScenarioClient(f"{group}-{index}", "", (slot(task, sheet),)))
        for group, names in sheet.get("unseen", {}).items()
        for index, task in enumerate(names)
    )


def settings(name: str) -> dict[str, Any]:
    """The run settings that a suite proposes: FedMosaic's protocol."""
    protocol = card(name)["protocol"]
    found: dict[str, Any] = {
        "rounds": protocol["rounds"],
        "local_steps": protocol["local_steps"],
        "stream": {"protocol": protocol["stream"]},
        "training": {"batch_size": 4},
    }
    if "max_new_tokens" in protocol:
        found["evaluation"] = {"max_new_tokens": protocol["max_new_tokens"]}
    return found
