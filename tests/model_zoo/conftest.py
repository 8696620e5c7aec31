"""Tiny random backbones of the zoo, and pictures made in place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest
from PIL import Image

from pfl_model_zoo.plugin import pfl_make_backbone
from pfl_platform.backbones import Backbone
from pfl_platform.data import Sample, Turn


@dataclass(frozen=True)
class Plain:
    """A picture of one colour."""

    colour: tuple[int, int, int]
    size: tuple[int, int] = (32, 32)

    @property
    def key(self) -> str:
        return f"plain-{self.colour}-{self.size}"

    def load(self) -> Image.Image:
        return Image.new("RGB", self.size, self.colour)


def picture(red: int, size: tuple[int, int] = (32, 32)) -> Plain:
    return Plain((red, 20, 40), size)


@cache
def _random(name: str) -> Backbone:
    backbone: Backbone | None = pfl_make_backbone(name, {"init": 7})
    assert backbone is not None
    return backbone


@pytest.fixture(scope="session")
def random_backbone() -> Callable[[str], Backbone]:
    """A backbone of the zoo with random weights, made once per name."""
    return _random


@pytest.fixture(params=["tiny-llava-llama-s", "tiny-llava-qwen-s"])
def llava(request: pytest.FixtureRequest) -> Backbone:
    """One backbone of each tokenizer that reads pictures."""
    return _random(request.param)


@pytest.fixture
def ask() -> Callable[..., Sample]:
    """A sample of one turn with so many plain pictures."""

    def make(human: str, answer: str = "red", pictures: int = 0, name: str = "s") -> Sample:
        return Sample(name, (Turn(human, answer),), tuple(picture(10 * index) for index in range(pictures)))

    return make
