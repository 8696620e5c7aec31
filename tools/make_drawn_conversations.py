"""Conversations about drawn pictures, to train a composed LLaVA on: things of the tiny zoo, one in each picture.

    python tools/make_drawn_conversations.py OUT --count 3000

writes `OUT/images`, `OUT/names.json` (which colour a picture's thing has), `OUT/talks.json` (colour, then shape, in one
conversation) and `OUT/tower`, the CLIP tower of `tiny-llava-llama-s` in a folder of its own.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from pfl_benchmarks.drake_synth.dice import Dice
from pfl_benchmarks.drake_synth.drawing import COLOURS, PLACES, SHAPES, TINTS, DrawnPicture, Obj, Scene
from pfl_model_zoo.families.sight import TOWER
from pfl_model_zoo.plugin import pfl_make_backbone

QUESTIONS = ("<image>\nWhich colour?", "Which shape?")


def conversation(answers: tuple[str, ...]) -> list[dict[str, str]]:
    turns = zip(QUESTIONS, answers, strict=False)
    return [
        turn for asked, said in turns for turn in ({"from": "human", "value": asked}, {"from": "gpt", "value": said})
    ]


def thing(number: int) -> Obj:
    """A big thing of any colour and shape, somewhere."""
    dice = Dice("pictures", number)
    colour, shape, place = dice.below(len(COLOURS)), dice.below(len(SHAPES)), dice.below(len(PLACES))
    return Obj(colour, shape, 1, place, dice.below(3) - 1, dice.below(3) - 1, dice.below(TINTS))


def make(out: Path, count: int) -> None:
    (out / "images").mkdir(parents=True)
    names, talks = [], []
    for number in range(count):
        seen = thing(number)
        DrawnPicture(Scene((seen,))).load().save(out / "images" / f"{number}.png")
        answers = (tuple(COLOURS)[seen.colour], SHAPES[seen.shape])
        record = {"id": str(number), "image": f"{number}.png"}
        names.append({**record, "conversations": conversation(answers[:1])})
        talks.append({**record, "conversations": conversation(answers)})
    (out / "names.json").write_text(json.dumps(names), encoding="utf-8")
    (out / "talks.json").write_text(json.dumps(talks), encoding="utf-8")
    backbone = pfl_make_backbone("tiny-llava-llama-s", {})
    assert backbone is not None
    tower: Any = backbone.module(TOWER)
    tower.save_pretrained(out / "tower")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=3000)
    arguments = parser.parse_args()
    make(arguments.out, arguments.count)


if __name__ == "__main__":
    main()
