"""The analytic last-layer gradient (Eq. 1): by hand, and against autograd on real models."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from pfl_platform.errors import UserError
from pfl_platform.rng import torch_rng
from pfl_plugins.fedmosaic import equations as eq
from pfl_plugins.fedmosaic import sketch


def rows(*values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def test_last_layer_gradient_by_hand() -> None:
    # h = (1, 1), weight 1, eps 0: the norm is the identity here, s = 1. Head = I: logits (1, 1), softmax (1/2, 1/2).
    # Label 0: g = (-1/2, 1/2). h . g = 0, so the exact Jacobian leaves g; its diagonal part is 1 - 1/2.
    # u = 2: dL/dW = (-1, 1) and (-1/2, 1/2).
    arguments = {
        "hidden": torch.ones(1, 2, 2),
        "inputs": torch.full((1, 2, 1), 2.0),
        "labels": torch.tensor([[-100, 0]]),
        "norm_weight": torch.ones(2),
        "eps": 0.0,
        "head_weight": torch.eye(2),
    }
    torch.testing.assert_close(sketch.last_layer_gradient(**arguments), rows([-1.0], [1.0]))
    approximate = sketch.last_layer_gradient(**arguments, jacobian="official_approx")
    torch.testing.assert_close(approximate, rows([-0.5], [0.5]))


class Captured:
    """A tiny language model with random weights, one pass over random text, and autograd's answer."""

    def __init__(self, model: PreTrainedModel, seed: int, dtype: torch.dtype) -> None:
        model = model.to(dtype).eval()
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=torch_rng("weights", seed, name), dtype=torch.float64)
            parameter.data = (1.0 + 0.3 * noise if "norm" in name else 0.3 * noise).to(dtype)
        self.norm, self.head = model.model.norm, model.lm_head
        self.labels = torch.randint(0, 57, (3, 11), generator=torch_rng("labels", seed))
        ids = self.labels.clone()
        self.labels[torch.rand(3, 11, generator=torch_rng("mask", seed)) < 0.6] = -100
        seen: dict[str, Tensor] = {}
        down = model.model.layers[-1].mlp.down_proj
        hooks = [
            self.norm.register_forward_pre_hook(lambda _, args: seen.update(hidden=args[0].detach())),
            down.register_forward_pre_hook(lambda _, args: seen.update(inputs=args[0].detach())),
        ]
        logits = model(input_ids=ids).logits
        for hook in hooks:
            hook.remove()
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), self.labels[:, 1:].flatten())
        if dtype == torch.float32:  # the loss is the one that transformers computes
            torch.testing.assert_close(model(input_ids=ids, labels=self.labels).loss, loss)
        (self.truth,) = torch.autograd.grad(loss, [down.weight])
        self.hidden, self.inputs = seen["hidden"], seen["inputs"]
        self.eps = model.config.rms_norm_eps

    def gradient(self, **options: object) -> Tensor:
        weights = {"norm_weight": self.norm.weight, "eps": self.eps, "head_weight": self.head.weight}
        return sketch.last_layer_gradient(self.hidden, self.inputs, self.labels, **weights, **options)


class DoubleNorm(nn.Module):
    """RMSNorm in the precision of its input; the one in transformers always computes in float32."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(weight), eps

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + self.eps)


def language_model(family: str, tied: bool) -> PreTrainedModel:
    sizes = {
        "vocab_size": 57,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": tied,
    }
    if family == "llama":
        return LlamaForCausalLM(LlamaConfig(**sizes))
    return Qwen2ForCausalLM(Qwen2Config(**sizes))


def relative(error: Tensor, truth: Tensor) -> float:
    return ((error - truth).norm() / truth.norm()).item()


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("family", "tied"), [("llama", False), ("llama", True), ("qwen2", False), ("qwen2", True)])
def test_analytic_gradient_equals_autograd(family: str, tied: bool, seed: int) -> None:
    single = Captured(language_model(family, tied), seed, torch.float32)
    assert relative(single.gradient(), single.truth) <= 1e-5
    assert relative(single.gradient(dtype=torch.float64).float(), single.truth) <= 1e-5
    # The published code's diagonal Jacobian is another gradient, not a rounding of this one.
    assert relative(single.gradient(jacobian="official_approx"), single.truth) > 1e-2


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_analytic_gradient_equals_autograd_in_double_precision(family: str) -> None:
    model = language_model(family, tied=True)
    model.model.norm = DoubleNorm(model.model.norm.weight.data, model.config.rms_norm_eps)
    double = Captured(model, 3, torch.float64)
    assert relative(double.gradient(dtype=torch.float64), double.truth) <= 1e-10


def test_parts_of_the_gradient_equal_the_whole() -> None:
    captured = Captured(language_model("llama", tied=True), 4, torch.float32)
    whole = captured.gradient()
    torch.testing.assert_close(captured.gradient(budget=50), whole, atol=1e-6, rtol=1e-5)  # 2 of 57 words at a time
    torch.testing.assert_close(captured.gradient(rows=eq.kept_rows(24, 0.4)), whole[:9])
    for kept in (eq.kept_coordinates(24 * 40, 0.4, seed=1), torch.tensor([0, 39, 40, 959])):
        for budget in (1, 100, 10_000):
            entries = captured.gradient(coordinates=kept, budget=budget)
            torch.testing.assert_close(entries, whole.flatten()[kept], atol=1e-6, rtol=1e-5)


def test_bias_of_the_head_and_large_logits() -> None:
    rng = torch_rng("head")
    normed = (30 * torch.randn(4, 6, generator=rng)).requires_grad_()
    head, bias = torch.randn(19, 6, generator=rng), torch.randn(19, generator=rng)
    targets = torch.tensor([0, 18, 7, 7])
    loss = F.cross_entropy(F.linear(normed, head, bias), targets, reduction="sum")
    (truth,) = torch.autograd.grad(loss, [normed])
    for budget in (1, 25, 1000):
        mine = sketch.head_gradient(normed.detach(), targets, head, bias, budget=budget)
        torch.testing.assert_close(mine, truth, atol=2e-5, rtol=1e-5)


def test_reductions_by_hand() -> None:
    # Row 0 predicts two tokens, row 1 one, row 2 none. The first label of a row is never predicted.
    labels = torch.tensor([[5, 1, 2], [5, -100, 3], [5, -100, -100]])
    mask, weights = sketch.token_weights(labels, "tokens")
    assert mask.tolist() == [[True, True], [False, True], [False, False]]
    assert weights.tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3])
    assert sketch.token_weights(labels, "rows")[1].tolist() == [0.25, 0.25, 0.5]
    assert sketch.token_weights(labels, "sum")[1].tolist() == [1, 1, 1]


def test_a_batch_without_supervised_tokens_has_a_zero_gradient() -> None:
    captured = Captured(language_model("llama", tied=False), 5, torch.float32)
    captured.labels.fill_(-100)
    for options in ({}, {"reduction": "rows"}, {"coordinates": torch.tensor([3, 7])}):
        gradient = captured.gradient(**options)
        assert torch.equal(gradient, torch.zeros_like(gradient))
    with pytest.raises(UserError, match="Did you mean 'exact'"):
        captured.gradient(jacobian="exakt")
