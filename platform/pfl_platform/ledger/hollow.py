"""Runs code on floating-point tensors that have a shape and no values, and keeps account of what it holds.

Whole numbers and truth values stay what they are, since code looks at them: ids, masks, labels, lengths. Those that are
made of floating point (comparisons, places of the largest) are true and 0. Everything in floating point is on the
device `meta` and says that it is on the CPU, so that the same kernels are chosen as there; attention is the one that
keeps no scores, as on a GPU. A number that is read out of a hollow tensor is 1. Small tensors that code makes for
itself, such as a table of weights, are real, and what is written into them from hollow ones are ones; on the diagonal
alone where a matrix is added to one, so that sums of squares stay of full rank.

What is held is what autograd, the optimiser and the code itself keep alive: each storage once, from the operator that
made it to the moment in which nobody holds it any more. What a kernel takes for itself while it works is not seen.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from pfl_platform.ledger.flops import formula_of

ATEN = torch.ops.aten
CPU = torch.device("cpu")
META = torch.device("meta")
SMALL = 1 << 22
"""Whole numbers of up to so many entries are really held."""
LITTLE = 1 << 12
"""Entries of tensors that keep their values."""
NOWHERE = "nowhere"
"""The part of what no run would hold."""


@dataclass
class Account:
    """Bytes that are held now, by part, and what they were when they were most. operators: how many have run. flops: of
    them. part: what is made now belongs to this one. apart: parts that are not counted, since they lie elsewhere."""

    now: dict[str, int] = field(default_factory=dict)
    peak: dict[str, int] = field(default_factory=dict)
    most: int = 0
    operators: int = 0
    flops: float = 0.0
    part: str = "other"
    apart: frozenset[str] = frozenset()
    _held: dict[int, tuple[str, int]] = field(default_factory=dict)
    _total: int = 0

    @contextmanager
    def making(self, part: str) -> Iterator[None]:
        """What is made inside belongs to a part."""
        before, self.part = self.part, part
        try:
            yield
        finally:
            self.part = before

    def reset(self) -> None:
        """Begins a new peak, at what is held now."""
        self.peak, self.most = dict(self.now), self._total

    def take(self, tensor: Tensor, part: str | None = None) -> None:
        """Books a tensor's storage, if it is new."""
        storage = tensor.untyped_storage()
        name = storage._cdata
        if name in self._held:
            return
        part = part or self.part
        size = self._counts(part, storage.nbytes())
        self._held[name] = (part, size)
        self.now[part] = self.now.get(part, 0) + size
        self._total += size
        weakref.finalize(storage, self._freed, name)
        if self._total > self.most:
            self.reset()

    def move(self, tensor: Tensor, part: str) -> None:
        """Books a tensor's storage under another part than before."""
        name = tensor.untyped_storage()._cdata
        if name not in self._held:
            self.take(tensor, part)
            return
        before, size = self._held[name]
        counts = self._counts(part, tensor.untyped_storage().nbytes())
        self._held[name] = (part, counts)
        self.now[before] -= size
        self.now[part] = self.now.get(part, 0) + counts
        self._total += counts - size
        if self._total > self.most:
            self.reset()

    def _counts(self, part: str, size: int) -> int:
        return 0 if part in self.apart or part == NOWHERE else size

    @property
    def total(self) -> int:
        """Bytes that are held now."""
        return self._total

    def _freed(self, name: int) -> None:
        part, size = self._held.pop(name)
        self.now[part] -= size
        self._total -= size


@contextmanager
def hollow(account: Account) -> Iterator[None]:
    """Inside, whatever is computed in floating point has no values, and is booked."""
    with _Facade(), _Ledger(account):
        yield


def is_hollow(tensor: Any) -> bool:
    """Whether a tensor has no values."""
    with torch._C.DisableTorchFunction():
        return isinstance(tensor, Tensor) and bool(tensor.is_meta)


class _Facade(TorchFunctionMode):
    """What code sees of a hollow tensor where it does not compute: that it is on the CPU, and ones for its values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func == _DEVICE:
            return CPU if is_hollow(args[0]) else func(*args)
        if func is torch.nn.functional.scaled_dot_product_attention and is_hollow(args[0]):
            return _attention(*args, **kwargs)
        if func in (Tensor.tolist, Tensor.numpy) and is_hollow(args[0]):
            with _disable_current_modes(), torch._C.DisableTorchFunction():
                ones = torch.ones(args[0].shape, dtype=args[0].dtype)
                return ones.tolist() if func is Tensor.tolist else ones.numpy()
        return func(*args, **kwargs)


_DEVICE: Any = Tensor.device.__get__


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The kernel that keeps no scores: its result, and a number per position and head."""
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    if attn_mask is not None and attn_mask.dtype != query.dtype:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype)
    found: Tensor = ATEN._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
    )[0]
    return found


class _Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own class
    """Carries operators out on what has values as they are, and on what has none on the meta device."""

    def __init__(self, account: Account) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._account = account

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunction():
            account, kwargs = self._account, dict(kwargs or {})
            account.operators += 1
            given = [*_tensors(args), *_tensors(kwargs.values())]
            empty = [tensor for tensor in given if tensor.is_meta]
            if empty and func in (ATEN._local_scalar_dense.default, ATEN.equal.default):
                return 1.0 if func is ATEN._local_scalar_dense.default else True
            if not empty and (not _makes_floats(given, kwargs) or _little(given, args, kwargs)):
                found = self._as_it_is(func, args, kwargs)
            else:
                found = self._empty(func, args, kwargs)
            if isinstance(found, Tensor):
                account.take(found)
            elif isinstance(found, list | tuple):
                for item in _tensors(found):
                    account.take(item)
            return found

    def _as_it_is(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if kwargs.get("device") is not None:
            kwargs["device"] = CPU
        return func(*args, **kwargs)

    def _empty(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if (special := _SPECIAL.get(func.overloadpacket)) is not None:
            args = special(args)
        if args and isinstance(args[0], Tensor) and not args[0].is_meta and func._schema.is_mutable:
            made = _ones if func.overloadpacket in _WRITES else _diagonal
            return self._as_it_is(func, _each(made, args), {name: _each(made, item) for name, item in kwargs.items()})
        kwargs |= {"generator": None} if "generator" in kwargs else {}
        if "device" in kwargs or not any(True for _ in _tensors(args)):
            kwargs["device"] = META
        kwargs.pop("pin_memory", None)
        args = tuple(map(_emptied, args))
        kwargs = {name: _emptied(value) for name, value in kwargs.items()}
        found = func(*args, **kwargs)
        if (formula := formula_of(func.overloadpacket)) is not None:
            self._account.flops += float(formula(*args, **kwargs, out_val=found))
        return _counted(found)


def _makes_floats(given: list[Tensor], kwargs: Mapping[str, Any]) -> bool:
    """Whether an operator on tensors with values, or on none, gives floating point."""
    dtype = kwargs.get("dtype")
    if dtype is not None:
        return bool(dtype.is_floating_point)
    if given:
        return any(tensor.is_floating_point() for tensor in given)
    return False


def _little(given: list[Tensor], args: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether what has values is so small that it keeps them."""
    if kwargs.get("device") == META:
        return False
    if given:
        return sum(tensor.numel() for tensor in given) <= LITTLE
    shape = args[0] if args and isinstance(args[0], list | tuple) else ()
    return math.prod(size for size in shape if isinstance(size, int)) <= LITTLE


def _each(change: Callable[[Tensor], Tensor], item: Any) -> Any:
    """Changes tensors without values, also those in lists."""
    if isinstance(item, list | tuple):
        return type(item)(_each(change, part) for part in item)
    return change(item) if isinstance(item, Tensor) and item.is_meta else item


def _ones(tensor: Tensor) -> Tensor:
    return torch.ones((), dtype=tensor.dtype).expand(tensor.shape)


def _diagonal(tensor: Tensor) -> Tensor:
    return torch.eye(*tensor.shape, dtype=tensor.dtype) if tensor.dim() == 2 else _ones(tensor)


def _tensors(items: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among arguments and in lists of them."""
    for item in items:
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, list | tuple):
            yield from _tensors(item)


def _emptied(item: Any) -> Any:
    """A tensor with the same shape and no values, or a list with such tensors."""
    if isinstance(item, list | tuple):
        return [_emptied(part) for part in item]
    if isinstance(item, Tensor) and not item.is_meta:
        return torch.empty_strided(item.shape, item.stride(), dtype=item.dtype, device=META)
    return item


def _counted(found: Any) -> Any:
    """What an operator gives, with values where it is no floating point."""
    if isinstance(found, list | tuple):
        return type(found)(map(_counted, found)) if type(found) in (list, tuple) else found
    if not isinstance(found, Tensor) or found.is_floating_point() or found.is_complex():
        return found
    value = torch.ones((), dtype=found.dtype) if found.dtype == torch.bool else torch.zeros((), dtype=found.dtype)
    spread = value.expand(found.shape)
    return spread.clone() if spread.numel() <= SMALL else spread


def _indices(args: Any) -> Any:
    """Masks among indices as the places where they are true."""
    places: list[Any] = []
    for index in args[1]:
        if isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8):
            places += index.nonzero().unbind(1)
        else:
            places.append(index)
    return (args[0], places, *args[2:])


_WRITES = {ATEN.copy_, ATEN.index_put_, ATEN.index_copy_, ATEN.fill_, ATEN.masked_fill_, ATEN.scatter_}
_SPECIAL: Mapping[Any, Callable[[Any], Any]] = {
    ATEN.index: _indices,
    ATEN.index_put: _indices,
    ATEN.index_put_: _indices,
}
