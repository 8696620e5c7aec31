"""Backward and optimiser steps by DeepSpeed.

There is one DeepSpeed engine per host, and its ZeRO optimiser holds all params that a client of that host may train.
It gathers and averages gradients and spreads updated params; the update itself is AdamW as `training.driver` does it,
on those params that a step trains. The others are left alone, with their moments, and clients are swapped by writing
params and reading them again, as on one process. What DeepSpeed would do by itself is not what is wanted: it steps
every param of a group, those without a gradient by weight decay and old moments.

The only module that imports DeepSpeed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pfl_platform.adapters.host import BACKBONE, FROZEN, Host
from pfl_platform.adapters.surfaces import Tensors
from pfl_platform.engines.ranks.buffers import BUCKET
from pfl_platform.engines.ranks.grid import Grid
from pfl_platform.engines.ranks.place import SPREAD
from pfl_platform.engines.ranks.splitting import Offload, split
from pfl_platform.errors import RunStopped, UserError
from pfl_platform.training.driver import Portion, Stepper, TorchStepper
from pfl_platform.training.surfaces import Optim


class ZeroDriver:
    """Implements `Driver`. stage: of ZeRO, 0 to 3. grid: who shares a gradient. offload: of blocks, at stage 3."""

    def __init__(self, stage: int, grid: Grid, offload: Offload | None = None) -> None:
        self.stage = stage
        self.offload = offload or Offload()
        self.grid = grid
        self.portion = Portion(grid.place.shard, grid.place.shards)
        self._hosts: dict[int, _Hosted] = {}  # by the id of each live tensor

    def total(self, value: float) -> float:
        if self.portion.of == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=self.grid.device)
        dist.all_reduce(total, group=self.grid.group)
        return float(total)

    def adopt(self, host: Host) -> None:
        params = managed(host)
        if self.stage == SPREAD:
            split(host, self.grid, self.offload)
        if params:
            hosted = _Hosted(host.backbone.model, params, min(self.stage, SPREAD - 1), self.grid)
            self._hosts |= {id(tensor): hosted for tensor in params.values()}

    def open(self, name: str, params: Mapping[str, Tensor], optim: Optim, private: Tensors) -> Stepper:
        found = {id(hosted): hosted for tensor in params.values() if (hosted := self._hosts.get(id(tensor)))}
        strange = [key for key, tensor in params.items() if id(tensor) not in self._hosts]
        if strange and self.portion.of > 1:
            raise UserError(f"'{strange[0]}' is no parameter of a module and cannot be trained by several ranks.")
        if not found:
            return TorchStepper(name, params, optim, private)
        (hosted,) = found.values()
        return ZeroStepper(hosted, name, params, optim, private)


def managed(host: Host) -> dict[str, nn.Parameter]:
    """What a client may train on a host: params of its modules, but for those that all share."""
    return {
        key: tensor
        for key, tensor in sorted(host.params.items())
        if isinstance(tensor, nn.Parameter) and key.partition("/")[0] not in (FROZEN, BACKBONE)
    }


@dataclass(frozen=True)
class Piece:
    """The part of a param that a rank's optimiser updates. master: a view of it, flat, or the param itself without
    ZeRO. start: where it lies in the optimiser's flat params. offset: where it begins in the param."""

    master: Tensor
    start: int
    offset: int

    def of(self, whole: Tensor) -> Tensor:
        """The same part of a tensor of the param's shape, in the master's shape."""
        return whole.reshape(-1).narrow(0, self.offset, self.master.numel()).reshape(self.master.shape)


class _Hosted:
    """A DeepSpeed engine around a host's backbone."""

    def __init__(self, model: nn.Module, params: Mapping[str, nn.Parameter], stage: int, grid: Grid) -> None:
        self.stage = stage
        self.grid = grid
        self.params = params
        self.touched: set[str] = set()
        for key, param in params.items():
            param.requires_grad_(True)  # what has no gradient when the engine is made never gets one
            param.register_post_accumulate_grad_hook(self._touch(key))  # type: ignore[no-untyped-call]
        self.optimiser = _Ours(params.values(), flat=stage > 0)
        self.engine = _engine(model, self.optimiser, stage, grid, sum(param.numel() for param in params.values()))
        for param in params.values():
            param.requires_grad_(False)

    def _touch(self, key: str) -> Callable[[Tensor], None]:
        def touch(_param: Tensor) -> None:
            self.touched.add(key)

        return touch

    def piece(self, key: str) -> Piece | None:
        """What this rank's optimiser updates of a param; None where another rank holds all of it."""
        if self.stage == 0:
            return Piece(self.params[key], 0, 0)
        mapping = self.params[key]._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:
            return None
        return Piece(mapping.hp_fragment.detach(), mapping.hp_fragment_address.start, mapping.lp_fragment_address.start)

    def refresh(self) -> None:
        """Takes over the params as they are now: somebody has written them."""
        if self.stage:
            self.engine.optimizer.refresh_fp32_params()

    def backward(self, loss: Tensor) -> None:
        if self.stage:
            self.engine.optimizer.clear_backward_seen_flag()  # as the engine's own forward does, which is not used
        self.engine.backward(loss)

    def step(self, update: Callable[[Tensor | None], None]) -> None:
        """One step of the engine; `update` is given the flat gradient, or nothing without ZeRO."""
        self.optimiser.update = update
        self.engine.step()
        self.touched.clear()


class ZeroStepper:
    """Implements `Stepper`: the gradients are DeepSpeed's, the update is `TorchStepper`'s, on what this rank holds."""

    def __init__(
        self, hosted: _Hosted, name: str, params: Mapping[str, Tensor], optim: Optim, private: Tensors
    ) -> None:
        self._hosted = hosted
        self._params = params
        self._pieces: dict[str, Piece] = {}
        masters: dict[str, Tensor] = {}
        self._prefix = f"moments/{name}/"
        restored = {key: value for key, value in private.items() if key == self._prefix + "count"}
        hosted.refresh()
        for key, tensor in params.items():
            if key not in hosted.params:  # not the engine's, but trained: stepped as it is
                masters[key] = tensor
            elif (piece := hosted.piece(key)) is not None:
                masters[key], self._pieces[key] = piece.master, piece
            for moment in ("#1", "#2"):
                if key in masters and (kept := private.get(self._prefix + key + moment)) is not None:
                    restored[self._prefix + key + moment] = self._pieces[key].of(kept) if key in self._pieces else kept
        sharded = hosted.stage > 0 and hosted.grid.place.shards > 1
        self._inner = _ShardStepper(hosted.grid, name, masters, optim, restored) if sharded else None
        self._whole = None if self._inner else TorchStepper(name, masters, optim, restored)

    @property
    def _stepper(self) -> TorchStepper:
        found = self._inner or self._whole
        assert found is not None
        return found

    def backward(self, loss: Tensor) -> None:
        self._hosted.backward(loss)

    def update(self, index: int) -> None:
        done = False

        def stepped(gradient: Tensor | None) -> None:
            nonlocal done
            done = True
            for key, piece in self._pieces.items():
                if gradient is not None:
                    # A param that no loss has reached is not stepped; its part of the flat gradient is zero.
                    reached = key in self._hosted.touched
                    piece.master.grad = gradient.narrow(0, piece.start, piece.master.numel()) if reached else None
            self._stepper.update(index)

        self._hosted.step(stepped)
        if not done:  # DeepSpeed leaves such a step out without a word
            raise RunStopped(f"A gradient is not finite at local step {index}: lower the learning rate.")

    def drop(self) -> None:
        if self._hosted.stage:
            raise RunStopped(
                "Out of memory: ZeRO has taken in a part of this batch's gradients, which cannot be taken back; set "
                "training.micro_batch to less."
            )
        for param in self._hosted.params.values():
            param.grad = None
        self._hosted.touched.clear()

    def moments(self) -> Tensors:
        found = self._stepper.moments()
        if self._inner is not None:
            return self._inner.gathered(found, self._prefix, self._params, self._pieces)
        start = len(self._prefix)
        return {
            key: value.reshape(self._params[key[start:-2]].shape) if key.endswith(("#1", "#2")) else value
            for key, value in found.items()
        }


class _ShardStepper(TorchStepper):
    """Steps the pieces of params that this rank of a group holds."""

    def __init__(self, grid: Grid, name: str, masters: Mapping[str, Tensor], optim: Optim, private: Tensors) -> None:
        self._grid = grid
        self._idle = not masters  # all is held by the other ranks
        if not self._idle:
            super().__init__(name, masters, optim, private)
        self._clip = optim.clip

    def update(self, index: int) -> None:
        if not self._idle:
            super().update(index)
        elif self._clip > 0:
            self.clip([], self._clip)

    def clip(self, params: Sequence[Tensor], largest: float) -> None:
        squares = torch.zeros((), dtype=torch.float64, device=self._grid.device)
        gradients = [param.grad for param in params if param.grad is not None]
        for gradient in gradients:
            squares += gradient.double().square().sum()
        dist.all_reduce(squares, group=self._grid.group)
        factor = largest / (float(squares.sqrt()) + 1e-6)
        if factor < 1:
            for gradient in gradients:
                gradient.mul_(factor)

    def moments(self) -> dict[str, Tensor]:
        return {} if self._idle else super().moments()

    def gathered(
        self, found: Tensors, prefix: str, params: Mapping[str, Tensor], pieces: Mapping[str, Piece]
    ) -> dict[str, Tensor]:
        """Whole moments, of the pieces of all ranks of the group."""
        names = [f"{prefix}{key}{moment}" for key in sorted(params) for moment in ("#1", "#2")]
        sizes = [params[name[len(prefix) : -2]].numel() for name in names]
        # Values, then for each param whether anybody has them, then the count of steps.
        table = torch.zeros(sum(sizes) + len(names) + 1, dtype=torch.float64, device=self._grid.device)
        start = 0
        for number, (name, size) in enumerate(zip(names, sizes, strict=True)):
            if name in found:
                piece = pieces[name[len(prefix) : -2]]
                table[start + piece.offset : start + piece.offset + piece.master.numel()] = found[name].to(table.device)
                table[sum(sizes) + number] = 1
            start += size
        count = found.get(prefix + "count")
        dist.all_reduce(table[:-1], group=self._grid.group)
        last = table[-1:]
        last += 0.0 if count is None else float(count)
        dist.all_reduce(last, op=dist.ReduceOp.MAX, group=self._grid.group)
        whole: dict[str, Tensor] = {}
        start = 0
        for number, (name, size) in enumerate(zip(names, sizes, strict=True)):
            if table[sum(sizes) + number] > 0:
                shape = params[name[len(prefix) : -2]].shape
                whole[name] = table[start : start + size].float().reshape(shape).cpu()
                whole[prefix + "count"] = torch.tensor(float(last), dtype=torch.float32)
            start += size
        return whole


class _Ours(torch.optim.Optimizer):
    """Stands for an optimiser before DeepSpeed; what a step does is said anew for each."""

    def __init__(self, params: Iterable[Tensor], *, flat: bool) -> None:
        super().__init__(list(params), {"lr": 0.0})
        self._flat = flat  # ZeRO puts one flat tensor in the params' place
        self.update: Callable[[Tensor | None], None] | None = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert self.update is not None
        self.update(self.param_groups[0]["params"][0].grad if self._flat else None)


def _engine(model: nn.Module, optimiser: _Ours, stage: int, grid: Grid | None, values: int) -> Any:
    import deepspeed
    from deepspeed.runtime.engine import DeepSpeedEngine

    bucket = max(BUCKET, values)  # by what trains, not DeepSpeed's half a billion
    zero = {"stage": stage, "reduce_bucket_size": bucket, "allgather_bucket_size": bucket, "overlap_comm": False}
    if stage in (1, 2):
        zero["compute_grad_norm"] = False  # clipping is ours; a gradient that is not finite must not be skipped
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,  # any number of backward passes, then a step
        "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": zero,
        "steps_per_print": None,
    }
    # All ranks have loaded the same files, which was checked; besides, a param without dimensions cannot be broadcast.
    unsent = patch.object(DeepSpeedEngine, "_broadcast_model", lambda _self: None)
    stays = patch.object(model, "to", lambda *_args, **_options: model)  # it is where it belongs, spread or whole
    with _quiet(), _without_compiling(), unsent, stays:
        engine, *_ = deepspeed.initialize(
            model=model, optimizer=optimiser, config=config, mpu=grid, dist_init_required=False
        )
    return engine


def connect(device: str) -> None:
    """Lets DeepSpeed use the connection that torch has. No operation of its own is compiled."""
    if device == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed
    import deepspeed.ops

    if device == "cpu":
        # Else the first connection compiles a library for shared memory, which training never calls.
        deepspeed.ops.__compatible_ops__ = {}
    with _quiet():
        deepspeed.init_distributed(verbose=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """DeepSpeed's own log says nothing that a user can act on."""
    import logging

    log = logging.getLogger("DeepSpeed")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


@contextmanager
def _without_compiling() -> Iterator[None]:
    """One of DeepSpeed's optimisers is decorated by torch's compiler, whose import takes as long as all the rest; it is
    never called here."""

    def plain(function: Any = None, **_options: Any) -> Any:
        return (lambda other: other) if function is None else function

    with patch.object(torch, "compile", plain):
        yield
