"""What a rehearsal works with in place of what a run has: hosts without values, a store of shapes, a tagging driver."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from pfl_platform.adapters.host import Host
from pfl_platform.adapters.surfaces import Keys, Tensors
from pfl_platform.backbones import Backbone
from pfl_platform.errors import UserError
from pfl_platform.features.shelf import Keeper, Shelf
from pfl_platform.federation.tasks import Address
from pfl_platform.ledger.bytes import wire_bytes
from pfl_platform.ledger.hollow import SMALL, Account
from pfl_platform.ledger.largest import Lengths
from pfl_platform.store.layout import content_address
from pfl_platform.store.memory import MemoryStore
from pfl_platform.training.driver import Portion, TorchDriver, TorchStepper
from pfl_platform.training.surfaces import Optim

if TYPE_CHECKING:
    from pfl_platform.engines.worker import Worker

PARTS: Mapping[str, str] = {
    "weights": "frozen weights of all backbones that a process serves",
    "adapters": "slots of the adapters, with heads and what they share",
    "gradients": "of what trains",
    "optimiser": "Adam's moments, and what its step takes",
    "activations": "what a pass and its way back hold",
    "logits": "logits, and what losses and inputs hold beside the pass",
    "state": "a client's state and messages, in the machine's memory",
    "zero": "buffers of ZeRO",
}

Form: TypeAlias = tuple[tuple[str, torch.dtype, tuple[int, ...], str | int | None], ...]
"""Key, dtype and shape of each tensor; and its values, where they are no floating point: the one that all are, or the
name under which they are kept. None: nothing is known of them."""


class ShapeStore(MemoryStore):
    """Implements `Store` for tensors without values: equal keys, dtypes and shapes have equal addresses.

    Whole numbers and truth values, which a rehearsal really has, are kept: counts by which others are read, masks.
    """

    def __init__(self, account: Account) -> None:
        super().__init__()
        self._account = account
        self._forms: dict[Address, Form] = {}
        self._values: dict[str, Tensor] = {}

    def put(self, tensors: Tensors) -> Address:
        with _disable_current_modes():  # what is looked up here is not the run's
            values = {key: self._known(tensors[key]) for key in sorted(tensors)}
        return self._put(tuple((key, tensors[key].dtype, tuple(tensors[key].shape), values[key]) for key in values))

    def _known(self, tensor: Tensor) -> str | int | None:
        """What `Form` holds of the values."""
        if tensor.is_meta or tensor.is_floating_point() or tensor.is_complex() or not 0 < tensor.numel() <= SMALL:
            return None
        one = tensor.flatten()[0]
        if bool((tensor == one).all()):
            return int(one)
        name = content_address({"": tensor})
        self._values.setdefault(name, tensor.detach().clone())
        return name

    def _put(self, form: Form) -> Address:
        text = json.dumps([[key, str(dtype), shape, values] for key, dtype, shape, values in form])
        address = hashlib.sha256(text.encode()).hexdigest()
        self._forms[address] = form
        return address

    def get(self, address: Address, keys: Keys | None = None) -> dict[str, Tensor]:
        if address not in self._forms:
            raise UserError(f"This store holds no tensors at the address {address}.")
        with self._account.making("state"):
            form = self._forms[address]
            return {entry[0]: self._made(*entry[1:]) for entry in form if keys is None or entry[0] in keys}

    def _made(self, dtype: torch.dtype, shape: tuple[int, ...], values: str | int | None) -> Tensor:
        if isinstance(values, str):
            return self._values[values].clone()
        return torch.full(shape, values, dtype=dtype) if values else torch.zeros(shape, dtype=dtype)

    def names(self, address: Address) -> tuple[str, ...]:
        return tuple(entry[0] for entry in self._forms[address])

    def has(self, address: Address) -> bool:
        return address in self._forms

    def merged(self, first: Address, over: Address) -> Address:
        """The address of what lies at the first, where the second has the same keys as it has them."""
        found = {entry[0]: entry for entry in (*self._forms[first], *self._forms[over])}
        return self._put(tuple(found[key] for key in sorted(found)))

    def wire(self, address: Address) -> int:
        """Bytes of what lies at an address, as a file."""
        form = self._forms[address]
        return wire_bytes({key: torch.empty(shape, dtype=dtype, device="meta") for key, dtype, shape, _ in form})


class Hosts:
    """The hosts of a rehearsal, whose weights and adapters are booked."""

    def __init__(self, worker: Worker, account: Account) -> None:
        self._worker = worker
        self.account = account
        self._names: list[str] = []
        self._lengths: dict[str, Lengths] = {}

    def make(self, names: Iterable[str]) -> None:
        """Makes hosts; outside of `hollow`, with `meta` as the default device."""
        for name in sorted(names):
            backbone = self._worker.place.load(name)
            if backbone.device.type != "meta":
                raise UserError(f"The backbone '{name}' cannot be loaded without weights, so nothing can be foreseen.")
            host = self._worker.host(name)
            own = {id(tensor) for tensor in host.params.values()}
            for tensor in (*host.backbone.model.parameters(), *host.backbone.model.buffers()):
                self.account.take(tensor, "adapters" if id(tensor) in own else "weights")
            for tensor in host.params.values():
                self.account.take(tensor, "adapters")
            self._names.append(name)

    def host(self, name: str) -> Host:
        return self._worker.host(name)

    def lengths(self, name: str) -> Lengths:
        if name not in self._lengths:
            self._lengths[name] = Lengths(self._worker.host(name))
        return self._lengths[name]

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Inside, what is made is booked by where it was made."""
        account = self.account
        with ExitStack() as stack:
            stack.enter_context(account.making("logits"))
            for name in self._names:
                host = self._worker.host(name)
                parts = {host.backbone.model: "activations", host.backbone.module(host.backbone.head): "logits"}
                for module, part in parts.items():
                    before: list[str] = []

                    def enter(*_: Any, part: str = part, before: list[str] = before) -> None:
                        before.append(account.part)
                        account.part = part

                    def leave(*_: Any, before: list[str] = before) -> None:
                        account.part = before.pop()

                    stack.callback(module.register_forward_pre_hook(enter).remove)
                    stack.callback(module.register_forward_hook(leave, always_call=True).remove)
                for tensor in host.params.values():
                    if tensor.is_leaf:
                        tensor.requires_grad_(True)
                        hook = tensor.register_post_accumulate_grad_hook(self._graded)  # type: ignore[no-untyped-call]
                        tensor.requires_grad_(False)
                        stack.callback(hook.remove)
            yield

    def _graded(self, tensor: Tensor) -> None:
        if tensor.grad is not None:
            self.account.move(tensor.grad, "gradients")


class TaggingDriver(TorchDriver):
    """Torch's own, which says what it holds. shards: it takes as many rows of a micro-batch as a rank of so many."""

    def __init__(self, account: Account, shards: int = 1) -> None:
        self._account = account
        self.portion = Portion(shards - 1, shards)

    def open(self, name: str, params: Mapping[str, Tensor], optim: Optim, private: Tensors) -> TorchStepper:
        with self._account.making("optimiser"):
            return _Tagging(self._account, name, params, optim, private)


class _Tagging(TorchStepper):
    def __init__(
        self, account: Account, name: str, params: Mapping[str, Tensor], optim: Optim, private: Tensors
    ) -> None:
        super().__init__(name, params, optim, private)
        self._account = account

    def backward(self, loss: Tensor) -> None:
        with self._account.making("activations"):
            super().backward(loss)

    def update(self, index: int) -> None:
        with self._account.making("optimiser"):
            super().update(index)


class Shelves(Keeper):
    """Keeps nothing: every picture goes through the frozen part, in passes of the run's size."""

    def shelf(self, backbone: Backbone, depth: int) -> Shelf:
        assert backbone.sight is not None
        return _Shelf(backbone, backbone.sight, depth, 0, None)


class _Shelf(Shelf):
    def _kept(self, key: str) -> Tensor | None:
        return None

    def _keep(self, key: str, values: Tensor) -> None:
        pass
