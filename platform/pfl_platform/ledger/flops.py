"""Floating-point operations: counted by torch's counter, and by formula.

A multiplication and an addition are two operations; only matrix products and convolutions count. In the formulas `N`
are params that every token passes once: an embedding table that is looked up is not among them, and an output head is
passed by the tokens whose logits are computed: those in front of an answer's, unless a method asks for all.

What is in the figures of a task (`Cost.flops`, counted, and `Cost.flops_formula`):

- both: all forward passes of training, alignment and statistics, on every backbone they run, by the tokens that are no
  padding; of passes with a gradient the way back to the params that train.
- only counted: attention scores, the vision tower and its projector (in every pass, also where features of a picture
  were kept: a method's cost does not depend on what a cache held), what losses and statistics compute beside their
  forward passes, and the padding of no batch but the shape of one row (see `sampling`).
- only in the formula: nothing. An adapter's factors are taken as if each token met each of them once, so factors that
  slots share count once, and an encoder-decoder's blocks as if all of them read question and answer.
- in neither: the optimiser's step, evaluation, the server's sums of tensors.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

P = ParamSpec("P")
R = TypeVar("R")


def count_flops(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> tuple[R, int]:
    """Calls `function` once and counts; returns (its result, FLOPs). Backward calls inside it count too.

    Counting slows every operator down, so the loop does it on sampled batches only. Numbers do not change.

    >>> linear = torch.nn.Linear(3, 5)
    >>> count_flops(linear, torch.ones(2, 3))[1]   # 2 rows x 3 x 5, times two
    60
    """
    with _as_written(), _Counter() as counter:
        result = function(*args, **kwargs)
    return result, counter.total


def _as_written() -> AbstractContextManager[Any]:
    """Where code was compiled, it is not inside: the counter would see none of its operators."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own class
    """Adds up torch's formulas for the products that run. `torch.utils.flop_counter.FlopCounterMode` has the same total
    from the same formulas, but takes three times as long: it keeps a table per module, and tries to take every
    operator apart."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = _FORMULAS.get(func.overloadpacket)
        if formula is None and _is_composite(func):
            with self:
                return func.decompose(*args, **kwargs)
        result = func(*args, **kwargs)
        if formula is not None:
            self.total += int(formula(*args, **kwargs, out_val=result))
        return result


def formula_of(operator: Any) -> Callable[..., int] | None:
    """Counts what one operator does, from its arguments and `out_val`; None where it is no product."""
    return _FORMULAS.get(operator)


@cache
def _is_composite(func: Any) -> bool:
    """Whether an operator is a Python function of others, as in inference mode, where autograd has not opened it."""
    return bool(func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd))


def forward_flops(params: int, tokens: int) -> int:
    """`2 N tokens`: one multiplication and one addition per param and token.

    >>> forward_flops(1_000, 10)
    20000
    """
    return 2 * params * tokens


def backward_flops(params: int, tokens: int, *, recompute: bool = False) -> int:
    """`2 N tokens` through frozen params: gradients of activations only. `recompute` (gradient checkpointing) adds a
    second forward pass."""
    return 2 * params * tokens * (2 if recompute else 1)


def adapter_flops(params: int, tokens: int) -> int:
    """`6 P tokens` for trained params: forward, gradient of activations, gradient of the params; two each."""
    return 6 * params * tokens


def training_flops(
    frozen: int, adapter: int, tokens: int, *, recompute: bool = False, extra_forwards: int = 0, idle_adapter: int = 0
) -> int:
    """One local step: forward and backward through the backbone, plus the adapters.

    frozen, adapter: params of the backbone and of what trains. tokens: all positions of the batch. extra_forwards:
    further passes without gradient on the same batch (a teacher, a second mix), each `2 N tokens`: half a plain step.
    idle_adapter: params of adapters that are mixed in but do not train; they cost what frozen params cost.

    >>> training_flops(1_000, 10, 5), training_flops(1_000, 0, 5, extra_forwards=1) / training_flops(1_000, 0, 5)
    (20300, 1.5)
    """
    base = frozen + idle_adapter
    passes = forward_flops(base, tokens) + backward_flops(base, tokens, recompute=recompute)
    return passes + extra_forwards * forward_flops(base, tokens) + adapter_flops(adapter, tokens)


def pass_flops(
    frozen: int, trained: int, idle: int, tokens: int, *, gradient: bool, head: int = 0, answers: int = 0
) -> int:
    """One forward pass as it was made, with its way back where there is one.

    frozen: params of the backbone that every token passes; head: of a head that `answers` of them pass. trained, idle:
    params of the adapters in the mix that train and that do not. gradient: whether the pass keeps what a backward pass
    needs; without trained params it leads nowhere.

    >>> pass_flops(1_000, 10, 4, 5, gradient=True) == 4 * (1_000 + 4) * 5 + 6 * 10 * 5
    True
    >>> pass_flops(1_000, 10, 4, 5, gradient=False) == 2 * (1_000 + 10 + 4) * 5
    True
    >>> pass_flops(1_000, 10, 0, 5, gradient=True, head=300, answers=2) == 4 * (1_000 * 5 + 300 * 2) + 6 * 10 * 5
    True
    """
    if gradient and trained:
        return training_flops(frozen, trained, tokens, idle_adapter=idle) + training_flops(head, 0, answers)
    return forward_flops(frozen + trained + idle, tokens) + forward_flops(head, answers)


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    """Scores and their product with the values: 2 rows heads q k (d_qk + d_v)."""
    rows, heads, queries, width = query.shape
    return 2 * rows * heads * queries * key.shape[2] * (width + value.shape[3])


def _attention_backward(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    """The scores again, and gradients of scores, values, queries and keys: 2 rows heads q k (3 d_qk + 2 d_v)."""
    rows, heads, queries, width = query.shape
    return 2 * rows * heads * queries * key.shape[2] * (3 * width + 2 * value.shape[3])


# torch's counter knows the attention kernels of GPUs but not the one that a CPU uses.
_FORMULAS: Mapping[Any, Callable[..., int]] = {
    **flop_registry,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
