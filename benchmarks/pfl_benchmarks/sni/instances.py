"""Task files of Super-NaturalInstructions, and their instances as samples."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pfl_benchmarks.folder.files import kind_of, read_json
from pfl_platform.data import IMAGE_MARK, Sample, Turn
from pfl_platform.errors import UserError

Definition = Literal["full", "first_sentence", "none"]
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'(])")


@dataclass(frozen=True)
class SniTask:
    """One task: its definition, its first category, and its instances by input, in file order.

    An instance is an input with all its accepted outputs. Inputs that occur twice in a file are kept once, with the
    outputs of both, so that splits by input are disjoint. `ids` are the instances' own, by input.
    """

    name: str
    definition: str
    category: str
    instances: Mapping[str, tuple[str, ...]]
    ids: Mapping[str, str]


def read_task(path: Path) -> SniTask:
    """Reads one official task file (`Definition`, `Categories`, `Instances[{id, input, output}]`)."""
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("Instances"), list):
        raise UserError(f"{path} is no task of Super-NaturalInstructions: it has no list 'Instances'.")
    outputs: dict[str, tuple[str, ...]] = {}
    ids: dict[str, str] = {}
    for index, instance in enumerate(content["Instances"]):
        text, accepted = _instance(instance, f"{path}, instance {index}")
        if accepted:
            outputs[text] = tuple(dict.fromkeys((*outputs.get(text, ()), *accepted)))
            ids.setdefault(text, str(instance.get("id", index)))
    return SniTask(path.stem, _joined(content.get("Definition")), _first(content.get("Categories")), outputs, ids)


def sample_of(task: SniTask, text: str, how: Definition) -> Sample:
    """One instance as a sample: learned is its first accepted output, scored are all."""
    outputs = task.instances[text]
    human = prompt(task.definition, text, how)
    return Sample(f"{task.name}/{task.ids[text]}", (Turn(human, outputs[0]),), references=outputs)


def prompt(definition: str, text: str, how: Definition) -> str:
    """The instruction form of the benchmark, with the whole definition, its first sentence, or none.

    >>> prompt("Add the numbers. Be exact.", "1 and 2", "first_sentence")
    'Definition: Add the numbers.\\n\\nInput: 1 and 2\\nOutput:'
    >>> prompt("Add the numbers. Be exact.", "1 and 2", "none")
    'Input: 1 and 2\\nOutput:'
    """
    if how == "first_sentence":
        definition = _SENTENCE.split(definition, maxsplit=1)[0]
    asked = f"Input: {text}\nOutput:"
    return asked if how == "none" else f"Definition: {definition}\n\n{asked}"


def _instance(instance: Any, where: str) -> tuple[str, tuple[str, ...]]:
    if not isinstance(instance, dict) or not isinstance(instance.get("input"), str):
        raise UserError(f"{where}: an instance is an object with a text 'input'.")
    output = instance.get("output")
    accepted: list[str] = []
    for text in output if isinstance(output, list) else [output]:
        if not isinstance(text, str):
            raise UserError(f"{where}: 'output' must be a text or a list of texts, and holds {kind_of(text)}.")
        accepted.append(text)
    text = instance["input"].strip()
    if IMAGE_MARK in text:
        raise UserError(f"{where}: the input holds the mark {IMAGE_MARK}, which stands for a picture.")
    return text, tuple(answer.strip() for answer in accepted if answer.strip())


def _joined(definition: Any) -> str:
    """Definitions are a list of one text in newer files, a text in older ones."""
    parts = definition if isinstance(definition, list) else [definition or ""]
    return " ".join(str(part).strip() for part in parts)


def _first(categories: Any) -> str:
    return str(categories[0]) if isinstance(categories, list) and categories else ""
