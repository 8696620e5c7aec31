"""Logits are computed where an answer token is predicted, and nowhere else unless somebody asks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pfl_platform.adapters.host import Host
from pfl_platform.adapters.surfaces import Keys, Slot
from pfl_platform.backbones import IGNORE
from pfl_platform.errors import UserError
from pfl_platform.plugins import PluginManager
from pfl_platform.testing.bench import samples
from pfl_platform.training import losses
from pfl_platform.training.losses import answer_loss, token_losses
from pfl_platform.training.view import BatchView


def host_of(name: str) -> Host:
    manager = PluginManager()
    backbone = manager.make("backbone", name, {"init": 0})
    host = Host(backbone, manager.make("adapter", "lora", {"r": 2}), [Slot("own")])
    generator = torch.Generator().manual_seed(0)
    for tensor in host.params.values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.05)
    return host


def view_of(host: Host, *options: str) -> BatchView:
    drawn = [replace(sample, options=options) for sample in samples("answers", 3)]
    return BatchView(lambda _: host, host.backbone.name, drawn, step=0, rng=lambda *_: torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["tiny-llama-s", "tiny-llava-qwen-s", "tiny-t5"])
def test_the_same_answers_and_gradients_as_from_all_positions(name: str) -> None:
    host = host_of(name)
    seen: list[tuple[int, ...]] = []
    head = host.backbone.module(host.backbone.head)
    hook = head.register_forward_hook(lambda _module, _args, out: seen.append(tuple(out.shape)))
    labels = view_of(host).encoded().labels
    count, vocabulary = int((labels[:, 1:] != IGNORE).sum()), int(head.weight.shape[0])  # type: ignore[index]
    found: list[tuple[Tensor, ...]] = []
    for whole in (False, True):
        chosen = host.select(Keys("own/*"))
        output = view_of(host).forward({"own": 1.0}, whole=whole)
        rows = answer_loss(output)
        found.append((output.answers.detach(), rows.detach(), *torch.autograd.grad(rows.sum(), list(chosen.values()))))
        assert output.scores.dim() == (3 if whole else 2)
    hook.remove()
    assert seen == [(1, count, vocabulary), (*labels.shape, vocabulary)]
    for packed, every in zip(*found, strict=True):
        torch.testing.assert_close(packed, every, rtol=1e-5, atol=1e-6)
    assert all(bool(gradient.any()) for gradient in found[0][2:])


def test_a_classifier_has_logits_of_its_own() -> None:
    host = host_of("tiny-roberta")
    assert not host.picks
    encoded = view_of(host, "small", "round", "red").encoded()
    assert host.scores(encoded).shape[:2] == encoded.labels.shape
    assert host.work(encoded) == encoded.tokens


def test_all_positions_are_there_for_who_asks() -> None:
    view = view_of(host_of("tiny-llama-s"))
    with pytest.raises(UserError, match=r"whole=True"):
        _ = view.forward({"own": 1.0}).logits
    assert view.forward({"own": 1.0}, whole=True).logits.shape[:2] == view.encoded().labels.shape


def test_what_a_batch_takes() -> None:
    """Tokens go through 405,504 numbers of blocks, answers through 196,608 of the head beside."""
    host = host_of("tiny-llama-s")
    encoded = view_of(host).encoded()
    assert (host.linear_values - host.head_values, host.head_values) == (405_504, 196_608)
    assert host.work(encoded) == encoded.tokens + len(encoded.answers) * 196_608 / 405_504


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_long_answer_is_scored_part_by_part(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven tokens of eleven words, of which 25 entries may be held: two tokens at a time."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 11, generator=generator).to(dtype).requires_grad_()
    tokens = torch.randint(11, (7,), generator=generator)
    sizes: list[int] = []

    def counted(part: Tensor, *rest: Tensor) -> Tensor:
        sizes.append(len(part))
        return whole_losses(part, *rest)

    whole_losses = losses._token_losses
    monkeypatch.setattr(losses, "_token_losses", counted)
    parts = token_losses(logits, tokens, largest=25)
    assert sizes == [2, 2, 2, 1]
    (by_part,) = torch.autograd.grad(parts.sum(), logits)
    assert len(sizes) == 8, "each part is taken again on the way back"
    at_once = token_losses(logits, tokens)
    (whole,) = torch.autograd.grad(at_once.sum(), logits)
    assert parts.dtype == torch.float32
    assert torch.equal(parts, at_once)
    assert torch.equal(by_part, whole)
    expected = -logits.detach().float().log_softmax(-1)[torch.arange(7), tokens]
    torch.testing.assert_close(parts.detach(), expected)
