"""Writes data sets of DRAKE and HFLB in their on-disk form, from their authors' annotation files.

    python tools/make_annotation_sets.py --name VSR --annotations vsr/random/*.jsonl --pictures coco --out drake
    python tools/make_annotation_sets.py --name AQUA --annotations aqua/*.json --pictures semart/Images --out hflb
    pfl-platform data check drake --set root=drake

Data sets: VSR, NLVR2, NLVR2_feddat, CIRR, FashionIQ, AQUA. Subsets go by keyword rules, train and test by 8:2 with seed
42, all questions about the same pictures on one side, and at most 10,000 and 1,000 of a subset are kept. The published
files of DRAKE and HFLB are not these: their questions have other words, and how they were cut is not published in full.

Pictures are linked into `dataset/<name>/images`, or copied with --copy. Questions whose pictures are not there are left
out and counted.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from annotation_sets.items import MAKERS, TRUTH, Item, lines_or_list

SEED = 42
TRAIN_SHARE = 0.8
MOST = {"train": 10_000, "test": 1_000}
LETTERS = "ABCDEFGH"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", choices=MAKERS, required=True, help="the data set, as scenarios call it")
    parser.add_argument("--annotations", type=Path, nargs="+", required=True, help="its authors' files")
    parser.add_argument("--pictures", type=Path, required=True, help="folder with the pictures, at any depth")
    parser.add_argument("--out", type=Path, required=True, help="the folder that holds, or will hold, `dataset/`")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--copy", action="store_true", help="copy pictures instead of linking them")
    given = parser.parse_args(arguments)
    rng = np.random.default_rng(given.seed)
    records = [record for file in given.annotations for record in lines_or_list(file)]
    try:
        items = list(MAKERS[given.name](records, rng))
    except (KeyError, TypeError) as error:
        raise SystemExit(f"The annotations are not those of {given.name}: {error} is missing.") from None
    files = {path.name: path for path in sorted(given.pictures.rglob("*")) if path.is_file()}
    kept = [item for item in items if all(name in files for name in item.pictures)]
    if not kept:
        raise SystemExit(f"None of the pictures of {len(items)} questions is in {given.pictures}.")
    folder = given.out / "dataset" / given.name
    for subset in sorted({item.subset for item in kept}):
        chosen = [item for item in kept if item.subset == subset]
        for split, whole in zip(MOST, split_by_pictures(chosen, rng), strict=True):
            part = whole[: MOST[split]]
            content = [record_of(item, number, given.name, rng) for number, item in enumerate(part)]
            target = folder / split / f"dataset-{subset}.json"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
            for name in {name for item in part for name in item.pictures}:
                bring(files[name], folder / "images" / name, given.copy)
            print(f"{given.name}-{subset}, {split}: {len(part)} questions")
    print(f"{len(items) - len(kept)} of {len(items)} questions have no pictures in {given.pictures} and are left out.")


def split_by_pictures(items: Sequence[Item], rng: np.random.Generator) -> tuple[list[Item], list[Item]]:
    """(train, test), 8:2 by the number of questions; those about a picture stay together. Shuffled."""
    groups: dict[tuple[str, ...], list[Item]] = {}
    for item in items:
        groups.setdefault(tuple(sorted(item.pictures)), []).append(item)
    order = [list(groups.values())[int(index)] for index in rng.permutation(len(groups))]
    train: list[Item] = []
    test: list[Item] = []
    for group in order:
        (train if len(train) < TRAIN_SHARE * len(items) else test).extend(group)
    if not test:
        raise SystemExit(f"{len(items)} questions about {len(groups)} pictures are too few to be split.")
    return train, test


def record_of(item: Item, number: int, name: str, rng: np.random.Generator) -> dict[str, Any]:
    """A record of the form: a mark per picture, the question, its options, and the right one or its letter."""
    if item.wrong:
        options = [item.answer, *item.wrong]
        options = [options[int(index)] for index in rng.permutation(len(options))]
        listed = " | ".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
        answer = LETTERS[options.index(item.answer)]
    else:
        listed, answer = ", ".join(TRUTH), item.answer
    marks = "<image>\n" * len(item.pictures)
    question = f"{marks}{item.question}\nChoice list:[{listed}]. Your answer is:"
    return {
        "id": f"{name}-{item.subset}-{number}",
        "image": [f"dataset/{name}/images/{picture}" for picture in item.pictures],
        "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}],
    }


def bring(source: Path, target: Path, copy: bool) -> None:
    """A picture into the data set: a hard link where that is possible, else a copy (loaders follow no links)."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if not copy:
        try:
            target.hardlink_to(source.resolve())
            return
        except OSError:  # another disk, or a system without links
            pass
    shutil.copyfile(source, target)


if __name__ == "__main__":
    main()
