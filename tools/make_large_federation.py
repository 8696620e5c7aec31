"""Makes a federation of any size in the official form, to see what opening it takes.

    python tools/make_large_federation.py OUT [--clients N] [--tasks N] [--train N] [--test N] [--pictures N]

The defaults make 274,000 questions about 375,000 pictures: ten clients of four tasks with 5,475 train and 1,375 test
records each. Questions are drawn from a seed and have one or two pictures. Pictures are PNG files of 8 x 8 pixels; as
many different ones as `--distinct` says are drawn; all other names are hard links to them, in folders of a thousand.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import numpy as np
from PIL import Image

WORDS = ("red", "green", "blue", "small", "large", "round", "square", "left", "right", "above", "below", "near", "same")


def make_pictures(folder: Path, count: int, distinct: int, rng: np.random.Generator) -> list[str]:
    """Paths of the pictures, relative to the folder's parent."""
    names = []
    made: list[Path] = []
    for number in range(count):
        below = folder / f"{number // 1000:04d}"
        below.mkdir(parents=True, exist_ok=True)
        file = below / f"{number:07d}.png"
        if number < distinct:
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file)
            made.append(file)
        else:
            os.link(made[number % distinct], file)
        names.append(str(file.relative_to(folder.parent)))
    return names


def records(name: str, count: int, pictures: list[str], rng: np.random.Generator) -> list[dict[str, object]]:
    """Multi-choice questions; every picture of the list is shown."""
    shown = np.array_split(np.arange(len(pictures)), count)
    found: list[dict[str, object]] = []
    for number in range(count):
        words = [WORDS[int(place)] for place in rng.integers(0, len(WORDS), 12)]
        options = [f"{WORDS[int(word)]} {number % 97}" for word in rng.permutation(len(WORDS))[:3]]
        listed = " | ".join(f"{letter}. {option}" for letter, option in zip("ABC", options, strict=True))
        own = [pictures[int(place)] for place in shown[number]] or [pictures[number % len(pictures)]]
        marks = "<image>" * len(own)
        question = f"{marks}\n{name} {number}: which is {' '.join(words)}? Choice list:[{listed}]. Your answer is:"
        answer = options[int(rng.integers(3))]
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        found.append({"id": f"{name}-{number}", "image": own, "conversations": turns})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--tasks", type=int, default=4, help="per client")
    parser.add_argument("--train", type=int, default=5475, help="records per task")
    parser.add_argument("--test", type=int, default=1375, help="records per task")
    parser.add_argument("--pictures", type=int, default=375_000)
    parser.add_argument("--distinct", type=int, default=2_000)
    parser.add_argument("--backbone", default="tiny-llava-llama-s")
    options = parser.parse_args()
    if options.pictures < 2 * options.clients * options.tasks:
        parser.error("every task needs at least two pictures, one to train and one to test on; give more --pictures")
    rng = np.random.default_rng(0)
    pictures = make_pictures(options.out / "dataset" / "pictures", options.pictures, options.distinct, rng)
    pictures = [f"dataset/{path}" for path in pictures]
    parts = [(task, split) for task in range(options.clients * options.tasks) for split in ("train", "test")]
    sizes = np.array([getattr(options, split) for _, split in parts], dtype=np.float64)
    ends = np.rint(np.cumsum(sizes) / sizes.sum() * len(pictures)).astype(int)
    for (task, split), begin, end in zip(parts, [0, *ends[:-1]], ends, strict=True):
        folder = options.out / "dataset" / f"Made{task}" / split
        folder.mkdir(parents=True, exist_ok=True)
        made = records(f"made-{task}-{split}", getattr(options, split), pictures[begin:end], rng)
        (folder / "dataset-0.json").write_text(json.dumps(made), encoding="utf-8")
    clients = [
        {
            "client_id": client,
            "model_id": options.backbone,
            "datasets": [
                {"dataset": f"Made{client * options.tasks + task}", "subset_id": 0, "type": "multi-choice"}
                for task in range(options.tasks)
            ],
        }
        for client in range(options.clients)
    ]
    (options.out / "scenario.json").write_text(json.dumps(clients), encoding="utf-8")


if __name__ == "__main__":
    main()
