"""Gradients of single samples from one pass over a batch are those of one pass per sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from PIL import Image

from pfl_platform.adapters.host import Host
from pfl_platform.adapters.surfaces import Keys, Slot, Tensors
from pfl_platform.data import Sample, Turn
from pfl_platform.plugins import PluginManager
from pfl_platform.rng import torch_rng
from pfl_platform.training import gradients
from pfl_platform.training.driver import TorchDriver
from pfl_platform.training.gradients import Gradients, alone, rows_at_a_time, together
from pfl_platform.training.loop import Actor, train
from pfl_platform.training.losses import answers_under
from pfl_platform.training.streams import Epochs
from pfl_platform.training.surfaces import Statistic, View, Want
from pfl_platform.training.view import BatchView

pytestmark = pytest.mark.usefixtures("one_thread")
SLOTS = ("local", "global")
WORDS = ("red", "a blue circle", "left of the green one", "no", "seven and twelve make nineteen")


@dataclass(frozen=True)
class Plain:
    """A picture of one colour."""

    red: int

    @property
    def key(self) -> str:
        return f"plain {self.red}"

    def load(self) -> Image.Image:
        return Image.new("RGB", (32, 32), (self.red, 90, 30))


@cache
def host_of(backbone: str, adapter: str) -> Host:
    """With adapters that are not zero anywhere. In float64, where no classifier is kept in float32: what is left are
    roundings of the loss, which is float32."""
    manager = PluginManager()
    kind = manager.make("adapter", adapter, {"r": 3})
    model = manager.make("backbone", backbone, {"init": 0})
    host = Host(model, kind, [Slot(name) for name in SLOTS])
    if not model.task_head:
        model.model.double()
        model.model.register_forward_pre_hook(_in_float64, with_kwargs=True)
    draw = torch_rng("sample gradients")
    host.load({key: 0.05 * torch.randn(value.shape, generator=draw) for key, value in host.params.items()})
    return host


def _in_float64(_module: Any, args: Any, inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return args, {name: value.double() if name == "pixel_values" else value for name, value in inputs.items()}


def view_of(host: Host, samples: Sequence[Sample]) -> BatchView:
    return BatchView(lambda _: host, "own", samples, step=0, rng=lambda *_: torch.Generator())


def wants(host: Host, **mix: float) -> tuple[Want, ...]:
    keys = {key for key in host.params if key.split("/")[0] in mix and key.rpartition("/")[2] in "ABPQ"}
    return (Want("loss", Keys(*keys), answers_under(mix, dropout=False), apart=True),)


def assert_same(host: Host, asked: tuple[Want, ...], samples: Sequence[Sample]) -> None:
    batch = together(host, asked, view_of(host, samples))
    assert len(batch) == len(samples)
    for sample, found in zip(samples, batch, strict=True):
        expected = alone(host, asked, view_of(host, [sample]))
        assert found.keys() == expected.keys()
        for name, own in expected.items():
            whole = torch.cat([value.flatten() for value in own.values()]).norm()
            assert whole > 0
            for key, value in own.items():
                off = (found[name][key] - value).norm()
                assert off <= 1e-5 * value.norm() + 1e-7 * whole, (key, float(off / value.norm()))


@st.composite
def batches(draw: st.DrawFn, pictures: bool = False) -> list[Sample]:
    """1 to 6 samples whose questions, answers and numbers of pictures differ in length."""
    found = []
    for number in range(draw(st.integers(1, 6))):
        shown = draw(st.integers(0, 2)) if pictures else 0
        asked = "<image>" * shown + " ".join(draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=4)))
        turn = Turn(asked, draw(st.sampled_from(WORDS)))
        found.append(Sample(str(number), (turn,), tuple(Plain(20 * number + index) for index in range(shown))))
    return found


@examples(max_examples=12)
@given(samples=batches(), mixed=st.booleans(), adapter=st.sampled_from(["lora", "pqlora"]))
def test_on_texts_of_any_length(samples: list[Sample], mixed: bool, adapter: str) -> None:
    """One slot, and two that are mixed."""
    host = host_of("tiny-llama-s", adapter)
    asked = wants(host, local=0.3, **{"global": 0.7}) if mixed else wants(host, local=1.0)
    assert rows_at_a_time(host, asked) > 6
    assert_same(host, asked, samples)


@examples(max_examples=4)
@given(samples=batches(pictures=True))
def test_on_pictures_and_text(samples: list[Sample]) -> None:
    host = host_of("tiny-llava-qwen-s", "lora")
    assert_same(host, wants(host, local=1.0), samples)


@pytest.mark.parametrize("backbone", ["tiny-t5", "tiny-roberta", "tiny-vit"])
def test_on_other_kinds_of_backbones(backbone: str) -> None:
    """A picture or a question of another length in each row; an encoder-decoder pads both sides."""
    kinds = ("no", "seven")
    samples = [
        Sample(
            str(number),
            (Turn("What is it? " * (number + 1), kinds[number % 2]),),
            (Plain(40 * number),) if backbone == "tiny-vit" else (),
            () if backbone == "tiny-t5" else kinds,
        )
        for number in range(4)
    ]
    host = host_of(backbone, "lora")
    assert_same(host, wants(host, local=1.0), samples)


class Rows(Statistic):
    """Keeps the gradients that it is shown, in order."""

    name = "rows"
    every = None

    def __init__(self, asked: tuple[Want, ...], samples: Sequence[Sample]) -> None:
        self.wants, self.data, self.amount = asked, Epochs(list(samples), len(samples), 0, "rows", shuffle=False), 1
        self.seen: list[tuple[str, Gradients]] = []

    def add(self, acc: Any, view: View) -> None:
        (sample,) = view.samples
        self.seen.append((sample.id, view.gradients))

    def finish(self, acc: Any, private: Tensors, rng: Any) -> tuple[Tensors, Tensors]:
        return {}, {}


SAMPLES = [Sample(str(number), (Turn(f"Say {word}.", word),)) for number, word in enumerate(WORDS)]


def passes(monkeypatch: pytest.MonkeyPatch, host: Host, asked: tuple[Want, ...]) -> list[int]:
    """Rows of each forward pass that a statistic with these wants takes."""
    rows: list[int] = []
    before = BatchView.forward

    def forward(self: BatchView, *args: Any, **options: Any) -> Any:
        rows.append(len(self.samples))
        return before(self, *args, **options)

    monkeypatch.setattr(BatchView, "forward", forward)
    statistic = Rows(asked, SAMPLES)
    train(Actor("a", "own", lambda _: host, torch_rng, TorchDriver()), (), (statistic,))
    assert [name for name, _ in statistic.seen] == [sample.id for sample in SAMPLES]
    assert not any(layer.by_row for layer in host.layers.values())
    return rows


def test_one_pass_for_each_model_and_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    host = host_of("tiny-llama-s", "lora")
    asked = (*wants(host, local=1.0), replace(wants(host, **{"global": 1.0})[0], name="other"))
    assert passes(monkeypatch, host, asked) == [5, 5]
    size = 4 * sum(value.numel() for key, value in host.params.items() if key.split("/")[0] in SLOTS)
    monkeypatch.setattr(gradients, "HELD", 2 * size + 1)
    assert passes(monkeypatch, host, asked) == [2, 2, 2, 2, 1, 1]


def test_one_sample_at_a_time_where_a_batch_will_not_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backbone that mixes rows, a layer that takes no params by row, a loss that is not said to keep rows apart."""
    host = host_of("tiny-llama-s", "lora")
    asked = wants(host, local=1.0)
    assert passes(monkeypatch, host, (replace(asked[0], apart=False),)) == [1] * 5
    with monkeypatch.context() as patched:
        patched.setattr(type(next(iter(host.layers.values()))), "row_parts", frozenset({"A"}))
        assert passes(monkeypatch, host, asked) == [1] * 5
    with monkeypatch.context() as patched:
        patched.setattr(host, "backbone", replace(host.backbone, rows_apart=False))
        assert passes(monkeypatch, host, asked) == [1] * 5


def test_rows_that_were_flattened_are_refused() -> None:
    host = host_of("tiny-llama-s", "lora")
    layer = next(iter(host.layers.values()))
    with host.by_row(Keys("local/*"), 2), host.mixing({"local": 1.0}):
        with pytest.raises(ValueError, match="rows_apart=False"):
            layer(torch.zeros(6, layer.site.in_features).double())
        with pytest.raises(ValueError, match="rows_apart=False"):
            layer(torch.zeros(3, 1, layer.site.in_features).double())
