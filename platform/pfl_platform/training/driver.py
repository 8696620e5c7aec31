"""Who owns backward and the optimiser step. The loop only calls a `Stepper`; another engine brings its own `Driver`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from pfl_platform.adapters.surfaces import Tensors
from pfl_platform.training.surfaces import Optim

if TYPE_CHECKING:
    from pfl_platform.adapters.host import Host

T = TypeVar("T")
Arrived: TypeAlias = dict[tuple[float, float, float, float, float, bool], list[tuple[Tensor, dict[str, Tensor]]]]
"""(rate, betas, eps, weight decay, fused) -> params whose gradients have arrived, with Adam's state of each."""


class Stepper(Protocol):
    """One optimiser over the params of one step of a phase."""

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of a scalar."""
        ...

    def update(self, index: int) -> None:
        """Clips, takes the optimiser step at the rate for the phase's step `index`, clears gradients."""
        ...

    def drop(self) -> None:
        """Forgets the gradients since the last update."""
        ...

    def moments(self) -> Tensors:
        """Adam's state, as keys `moments/<name>/...`; {} when the policy is to reset them."""
        ...


@dataclass(frozen=True)
class Portion:
    """The rows of every micro-batch that this process takes, where several processes train one actor: the `index`-th of
    `of` equal parts.

    >>> Portion(1, 2).rows([1, 2, 3]), Portion(0, 2).rows([1]), Portion().rows([1, 2])
    ([2, 3], [], [1, 2])
    """

    index: int = 0
    of: int = 1

    def rows(self, batch: Sequence[T]) -> Sequence[T]:
        return batch[len(batch) * self.index // self.of : len(batch) * (self.index + 1) // self.of]


class Driver(Protocol):
    @property
    def portion(self) -> Portion: ...

    def total(self, value: float) -> float:
        """The sum of a number over the processes that share a batch; each has its own."""
        ...

    def adopt(self, host: Host) -> None:
        """Told of every host once, when it has its slots and before anything is loaded into them."""
        ...

    def open(self, name: str, params: Mapping[str, Tensor], optim: Optim, private: Tensors) -> Stepper:
        """An optimiser whose moments are restored from `private` when the policy says keep."""
        ...


def rate_factor(optim: Optim, step: int) -> float:
    """Multiplier of the learning rate at a step of the run, counted from 0.

    >>> rate_factor(Optim(1.0, schedule="linear", warmup=2, total_steps=6), 0)
    0.5
    >>> rate_factor(Optim(1.0, schedule="linear", warmup=2, total_steps=6), 4)
    0.5
    """
    if step < optim.warmup:
        return (step + 1) / optim.warmup
    if optim.schedule == "constant":
        return 1.0
    done = (step - optim.warmup) / max(1, optim.total_steps - optim.warmup)
    done = min(1.0, done)
    return 1.0 - done if optim.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))


class TorchStepper:
    """AdamW of torch over plain tensors."""

    def __init__(self, name: str, params: Mapping[str, Tensor], optim: Optim, private: Tensors) -> None:
        self._name = name
        self._params = dict(params)
        self._optim = optim
        rates: dict[float, list[Tensor]] = {}
        for key, tensor in self._params.items():
            rates.setdefault(optim.rate(key), []).append(tensor)
        self._rates = list(rates)
        # Fused AdamW keeps its step count on the params' device, the plain one on the CPU.
        self._fused = all(tensor.dtype == torch.float32 for tensor in self._params.values())
        self._adamw = torch.optim.AdamW(
            [{"params": tensors, "lr": rate} for rate, tensors in rates.items()],
            betas=optim.betas,
            eps=optim.eps,
            weight_decay=optim.weight_decay,
            fused=self._fused,
        )
        self._adamw.zero_grad(set_to_none=True)  # the tensors are shared by clients: nobody inherits a gradient
        if optim.moments == "keep":
            self._restore(private)

    def _restore(self, private: Tensors) -> None:
        prefix = f"moments/{self._name}/"
        count = private.get(prefix + "count")
        if count is None:
            return
        for key, tensor in self._params.items():
            if prefix + key + "#1" in private and key not in self._optim.reset:
                self._adamw.state[tensor] = {
                    "step": count.to(tensor.device if self._fused else "cpu", torch.float32, copy=True),
                    "exp_avg": private[prefix + key + "#1"].to(tensor.device, copy=True),
                    "exp_avg_sq": private[prefix + key + "#2"].to(tensor.device, copy=True),
                }

    def backward(self, loss: Tensor) -> None:
        torch.autograd.backward(loss)

    def update(self, index: int) -> None:
        if self._optim.clip > 0:
            self.clip(list(self._params.values()), self._optim.clip)
        factor = rate_factor(self._optim, self._optim.first_step + index)
        for group, rate in zip(self._adamw.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)

    def drop(self) -> None:
        self._adamw.zero_grad(set_to_none=True)

    def arrived(self, index: int) -> Arrived:
        """What an update would step, clipped; the caller steps it in this stepper's place."""
        optim, state = self._optim, self._adamw.state
        if optim.clip > 0:
            self.clip(list(self._params.values()), optim.clip)
        found: Arrived = {}
        factor = rate_factor(optim, optim.first_step + index)
        for group, rate in zip(self._adamw.param_groups, self._rates, strict=True):
            kind = (rate * factor, *optim.betas, optim.eps, optim.weight_decay, self._fused)
            reached = [tensor for tensor in group["params"] if tensor.grad is not None]
            for tensor in reached:
                if not state[tensor]:
                    state[tensor] = {
                        "step": torch.zeros((), device=tensor.device if self._fused else "cpu"),
                        "exp_avg": torch.zeros_like(tensor),
                        "exp_avg_sq": torch.zeros_like(tensor),
                    }
            found.setdefault(kind, []).extend((tensor, state[tensor]) for tensor in reached)
        return found

    def clip(self, params: Sequence[Tensor], largest: float) -> None:
        """Scales the gradients of all params such that their common norm is at most `largest`."""
        torch.nn.utils.clip_grad_norm_(params, largest)

    def moments(self) -> dict[str, Tensor]:
        if self._optim.moments == "reset":
            return {}
        prefix = f"moments/{self._name}/"
        kept: dict[str, Tensor] = {}
        for key, tensor in self._params.items():
            state = self._adamw.state.get(tensor)
            if state and key not in self._optim.reset:
                kept[prefix + key + "#1"] = state["exp_avg"].detach().cpu()
                kept[prefix + key + "#2"] = state["exp_avg_sq"].detach().cpu()
                kept[prefix + "count"] = state["step"].detach().cpu()
        return kept


def update_all(steppers: Sequence[TorchStepper], indices: Sequence[int]) -> None:
    """`update` of several steppers over different params, each by its own count of steps: one call for all that have
    the same rate."""
    alike: Arrived = {}
    for stepper, index in zip(steppers, indices, strict=True):
        for kind, reached in stepper.arrived(index).items():
            alike.setdefault(kind, []).extend(reached)
    for (rate, beta1, beta2, eps, decay, fused), reached in alike.items():
        tensors, states = [tensor for tensor, _ in reached], [state for _, state in reached]
        with torch.no_grad():
            adamw(
                tensors,
                [tensor.grad for tensor in tensors if tensor.grad is not None],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                [state["step"] for state in states],
                fused=bool(fused),
                amsgrad=False,
                beta1=beta1,
                beta2=beta2,
                lr=rate,
                weight_decay=decay,
                eps=eps,
                maximize=False,
            )
        for tensor in tensors:
            tensor.grad = None


class TorchDriver:
    """Backward and steps by torch in this process."""

    portion = Portion()

    def total(self, value: float) -> float:
        return value

    def adopt(self, host: Host) -> None:
        pass

    def open(self, name: str, params: Mapping[str, Tensor], optim: Optim, private: Tensors) -> TorchStepper:
        return TorchStepper(name, params, optim, private)
