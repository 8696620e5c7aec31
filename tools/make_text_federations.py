"""Writes stand-ins for text federations whose own files are not at hand, from real texts that are.

    python tools/make_text_federations.py --data DATA --form fedaya --out fedaya
    pfl-platform run --plugin sft --benchmark fedaya --set benchmark.root=fedaya --set benchmark.models=tiny

`fedaya`: a client's topic is an article of XQuAD, its four tasks are four of XQuAD's eleven languages. `fedllm-large`:
the same under Fed-LLM-Large's numbers, and its Fed-ChatbotIT clients get instructions of Dolly and Alpaca. The form and
the numbers of clients, tasks and languages are the published ones; the texts are not, so nothing that is measured on
them can be compared with published results.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

CLIENTS, LANGUAGES_EACH = 8, 4
CHATS, CHAT_SAMPLES = 40, 60
TEST_SHARE = 0.2


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with fed_aya/xquad and fed_scope")
    parser.add_argument("--form", choices=("fedaya", "fedllm-large"), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--longest",
        type=int,
        default=800,
        help="characters of a text, at most: the part of a paragraph around the answer, and whole instructions",
    )
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    rng = np.random.default_rng(given.seed)
    first = 0 if given.form == "fedaya" else 100
    for subset, pairs in questions(given.data / "fed_aya" / "xquad", given.longest):
        write(given.out, "Fed-aya_topic", first + subset, pairs, rng)
    if given.form == "fedllm-large":
        for subset, pairs in chats(given.data / "fed_scope", given.longest, rng):
            write(given.out, "FedchatbotIT", subset, pairs, rng)
    print(
        f"{given.out}: stand-ins in the form of {given.form}; results on them cannot be compared with published ones."
    )


def questions(folder: Path, longest: int) -> Iterator[tuple[int, list[tuple[str, str]]]]:
    """(subset, questions about an article in a language with their answers); client c has subsets 10c to 10c + 3."""
    files = sorted(folder.glob("xquad.*.json"))
    if len(files) < LANGUAGES_EACH:
        raise SystemExit(f"{folder} holds fewer than {LANGUAGES_EACH} files xquad.<language>.json.")
    for client in range(CLIENTS):
        for place in range(LANGUAGES_EACH):
            file = files[(LANGUAGES_EACH * client + place) % len(files)]
            article = json.loads(file.read_text(encoding="utf-8"))["data"][client]
            yield (
                10 * client + place,
                [
                    (f"{around(paragraph['context'], answer, longest)}\n\n{asked['question']}", answer["text"])
                    for paragraph in article["paragraphs"]
                    for asked in paragraph["qas"]
                    for answer in asked["answers"][:1]
                ],
            )


def around(context: str, answer: dict[str, Any], longest: int) -> str:
    """The part of a paragraph that has the answer in its middle."""
    first = max(int(answer["answer_start"]) - (longest - len(answer["text"])) // 2, 0)
    return context[first : first + longest]


def chats(folder: Path, longest: int, rng: np.random.Generator) -> Iterator[tuple[int, list[tuple[str, str]]]]:
    """(subset, instructions with their answers), each instruction in one subset."""
    lines = (folder / "dolly" / "databricks-dolly-15k.jsonl").read_text(encoding="utf-8").splitlines()
    dolly = [json.loads(line) for line in lines]
    alpaca = json.loads((folder / "alpaca" / "alpaca_data.json").read_text(encoding="utf-8"))
    pairs = [(each["instruction"], each["response"]) for each in dolly if not each["context"]]
    pairs += [(f"{each['instruction']}\n{each['input']}".strip(), each["output"]) for each in alpaca]
    pairs = [pair for pair in dict(pairs).items() if pair[1] and sum(map(len, pair)) <= longest]
    order = rng.permutation(len(pairs))[: CHATS * CHAT_SAMPLES]
    for subset in range(CHATS):
        yield subset, [pairs[int(index)] for index in order[subset::CHATS]]


def write(root: Path, dataset: str, subset: int, pairs: list[tuple[str, str]], rng: np.random.Generator) -> None:
    """One task's train and test file."""
    order = [int(index) for index in rng.permutation(len(pairs))]
    tested = max(round(TEST_SHARE * len(pairs)), 1)
    for split, chosen in (("test", order[:tested]), ("train", order[tested:])):
        records: list[dict[str, Any]] = [
            {
                "id": index,
                "conversations": [
                    {"from": "human", "value": pairs[index][0]},
                    {"from": "gpt", "value": pairs[index][1]},
                ],
            }
            for index in chosen
        ]
        file = root / "dataset" / dataset / split / f"dataset-{subset}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(records, ensure_ascii=False, indent=0), encoding="utf-8")


if __name__ == "__main__":
    main()
