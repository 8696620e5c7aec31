"""Naming: what the tiny vision-language backbones learn before they see a question.

The vision tower and the projector alone are trained: the token of each corner of a picture must lie near the words of
what is there. So the language model finds pictures made of words that it has. Half a minute of naming saves hours: a
tower that has to find out about shapes through the answers to questions has hardly begun by then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pfl_benchmarks.drake_synth.dice import Dice
from pfl_benchmarks.drake_synth.drawing import COLOURS, PLACES, SHAPES, SIZES, DrawnPicture, Obj, Scene
from pfl_benchmarks.drake_synth.render import Part, marks, placed
from pfl_platform.data import Sample, Turn
from pfl_platform.training.surfaces import View

INKS = tuple(COLOURS)
WORDS = (INKS, SHAPES, SIZES, PLACES)


@dataclass(frozen=True)
class Pictures:
    """Single pictures of one to four random things; sample i is a function of (seed, i) alone."""

    seed: int
    part: Part = "corpus"

    def sample(self, index: int) -> Sample:
        dice = Dice(self.seed, "naming", index)
        scene = placed([any_thing(dice) for _ in range(1 + dice.below(len(PLACES)))], dice, self.part)
        return Sample(f"naming-{self.seed}-{index}", (Turn(marks(1), ""),), (DrawnPicture(scene),))


def any_thing(dice: Dice) -> Obj:
    return Obj(dice.below(len(COLOURS)), dice.below(len(SHAPES)), dice.below(len(SIZES)))


def naming(tokens_of: Callable[[str], list[int]]) -> Callable[[View], Tensor]:
    """The loss of naming: per image token, the cross-entropies of its colour, shape, size and place among the words
    for them, with scores `token . word`. A word is the embedding of its tokens (their mean); an empty corner has a
    place only. Needs one image token per corner. Returns one value per row."""
    ids = [[torch.tensor(tokens_of(word)) for word in words] for words in WORDS]

    def loss(view: View) -> Tensor:
        backbone = view.backbone()
        model: Any = backbone.model
        pixels = backbone.codec.encode(view.samples).inputs["pixel_values"]
        found = model.model.get_image_features(pixel_values=pixels)
        seen = torch.stack(list(getattr(found, "pooler_output", found)))  # (rows, corners, width)
        table = model.get_input_embeddings().weight
        total = seen.new_zeros(len(view.samples))
        truth = torch.full((len(WORDS), *seen.shape[:2]), -100)
        truth[-1] = torch.arange(len(PLACES))
        for row, sample in enumerate(view.samples):
            for thing in scene_of(sample).objects:
                truth[:3, row, thing.place] = torch.tensor([thing.colour, thing.shape, thing.size])
        for kind, words in enumerate(ids):
            scores = seen @ torch.stack([table[word].mean(dim=0) for word in words]).T
            losses = functional.cross_entropy(scores.transpose(1, 2), truth[kind], reduction="none")
            total = total + losses.sum(dim=1) / len(PLACES)
        return total

    return loss


def scene_of(sample: Sample) -> Scene:
    """What a sample's only picture shows."""
    (picture,) = sample.pictures
    assert isinstance(picture, DrawnPicture)
    return picture.scene
