"""What annotation files hold, as items: pictures, a question, an answer, and what else may be answered."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from annotation_sets.rules import spoken_of, subset_of_art, subset_of_pairs

TRUTH = ("True", "False")
CHOICES = 4


@dataclass(frozen=True)
class Item:
    """One question. subset: of the data set that it goes to. pictures: names of files. wrong: options beside the
    answer, in any order; with none the answer is one of `TRUTH`."""

    subset: int
    pictures: tuple[str, ...]
    question: str
    answer: str
    wrong: tuple[str, ...] = ()


def lines_or_list(file: Path) -> list[Any]:
    """The records of a JSON list or of JSON lines."""
    text = file.read_text(encoding="utf-8")
    try:
        if text.lstrip().startswith("["):
            return list(json.loads(text))
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except json.JSONDecodeError as error:
        raise SystemExit(f"{file} is neither a JSON list nor JSON lines: {error.msg} in line {error.lineno}.") from None


def vsr(records: Sequence[Mapping[str, Any]], _: np.random.Generator) -> Iterator[Item]:
    """Is a sentence about where things are true of a picture? (VSR-0)"""
    for record in records:
        yield Item(0, (record["image"],), f"Is this true? {record['caption']}", TRUTH[not record["label"]])


def nlvr2(records: Sequence[Mapping[str, Any]], _: np.random.Generator) -> Iterator[Item]:
    """Is a sentence true of two pictures? (NLVR2-0 and -1: the sentences in turn.)"""
    order = {sentence: place for place, sentence in enumerate(dict.fromkeys(r["sentence"] for r in records))}
    for record in records:
        yield Item(order[record["sentence"]] % 2, _pair(record), *_said(record))


def nlvr2_feddat(records: Sequence[Mapping[str, Any]], _: np.random.Generator) -> Iterator[Item]:
    """The same, by what a sentence speaks of (NLVR2_feddat-0 to -3)."""
    for record in records:
        yield Item(subset_of_pairs(record["sentence"]), _pair(record), *_said(record))


def _pair(record: Mapping[str, Any]) -> tuple[str, str]:
    """Files of a pair: `split-set-pair-sentence` is of the pictures `split-set-pair-img0` and `-img1`."""
    stem = str(record["identifier"]).rpartition("-")[0]
    return f"{stem}-img0.png", f"{stem}-img1.png"


def _said(record: Mapping[str, Any]) -> tuple[str, str]:
    return f"Is this true of the two pictures? {record['sentence']}", TRUTH[str(record["label"]) != "True"]


def cirr(records: Sequence[Mapping[str, Any]], rng: np.random.Generator) -> Iterator[Item]:
    """Does a sentence lead from the first picture to the second? False ones show another picture of the same set
    (CIRR-0)."""
    for record in records:
        first, second = record["reference"], record["target_hard"]
        others = [name for name in record["img_set"]["members"] if name not in (first, second)]
        right = not others or bool(rng.integers(2))
        shown = second if right else others[int(rng.integers(len(others)))]
        question = f"Is the second picture what this asks of the first? {record['caption']}"
        yield Item(0, (f"{first}.png", f"{shown}.png"), question, TRUTH[not right])


def fashioniq(records: Sequence[Mapping[str, Any]], rng: np.random.Generator) -> Iterator[Item]:
    """Do two sentences lead from one garment to another? False ones have another pair's sentences (FashionIQ-0)."""
    for place, record in enumerate(records):
        right = len(records) < 2 or bool(rng.integers(2))
        other = int(rng.integers(len(records) - 1)) if not right else place
        said = records[place if right else other + (other >= place)]["captions"]
        question = f"Compared with the first garment, the second {' and '.join(said)}. Is this true?"
        yield Item(0, (f"{record['candidate']}.jpg", f"{record['target']}.jpg"), question, TRUTH[not right])


def aqua(records: Sequence[Mapping[str, Any]], rng: np.random.Generator) -> Iterator[Item]:
    """What a painting shows, by the verb of the question; wrong options are answers to others of its kind (AQUA-0 to
    -3)."""
    plain = [record for record in records if not record.get("need_external_knowledge")]
    answers: dict[int, list[str]] = {}
    for record in plain:
        answers.setdefault(subset_of_art(record["question"]), []).append(str(record["answer"]))
    known = {subset: sorted(set(found)) for subset, found in answers.items()}
    for record in plain:
        subset, answer = subset_of_art(record["question"]), str(record["answer"])
        others = [text for text in known[subset] if spoken_of(text) != spoken_of(answer)]
        if len(others) >= CHOICES - 1:
            chosen = rng.choice(len(others), CHOICES - 1, replace=False)
            wrong = tuple(others[int(index)] for index in chosen)
            yield Item(subset, (record["image"],), f"{record['question']}?", answer, wrong)


Maker = Callable[[Sequence[Mapping[str, Any]], np.random.Generator], Iterator[Item]]
MAKERS: Mapping[str, Maker] = {
    "VSR": vsr,
    "NLVR2": nlvr2,
    "NLVR2_feddat": nlvr2_feddat,
    "CIRR": cirr,
    "FashionIQ": fashioniq,
    "AQUA": aqua,
}
"""Name of the data set in the scenarios -> what makes its items."""
