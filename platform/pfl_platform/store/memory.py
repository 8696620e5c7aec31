"""A store in memory: for tests, notebooks, plans, and runs that leave no folder.

A client's state is a few hundred small tensors, each of which would take more as an object than its values do. So the
values of one slot lie together in one piece of bytes, and equal pieces are held once: what an update has in common with
the state that it came from, or a state with the reply that it was given, takes no room of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from pfl_platform.adapters.surfaces import Keys, Tensors
from pfl_platform.errors import UserError
from pfl_platform.federation.tasks import Address, Outcome, Store
from pfl_platform.store.layout import content_address, raw, text_address

Spec: TypeAlias = tuple[tuple[str, torch.dtype, torch.Size], ...]
"""Key, dtype and shape of each tensor of a piece, in order."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """The tensors of one slot."""

    spec: Spec
    values: bytes


class MemoryStore:
    """Implements `Store` in this process's memory; addresses are those of `DiskStore`.

    It holds everything until `keep` says what is still needed.

    >>> store = MemoryStore()
    >>> address = store.put({"slot/site/A": torch.ones(2), "slot/site/B": torch.zeros(1)})
    >>> store.get(address, Keys("*/B"))
    {'slot/site/B': tensor([0.])}
    """

    def __init__(self) -> None:
        self._sets: dict[Address, tuple[str, ...]] = {}  # the names of its pieces
        self._pieces: dict[str, _Piece] = {}
        self._specs: dict[Spec, Spec] = {}  # clients of one backbone share theirs
        self._texts: dict[Address, str] = {}
        self._outcomes: dict[str, Outcome] = {}

    def put(self, tensors: Tensors) -> Address:
        address = content_address(tensors)
        if address not in self._sets:
            slots: dict[str, dict[str, Tensor]] = {}
            for key in sorted(tensors):
                slots.setdefault(key.partition("/")[0], {})[key] = tensors[key]
            self._sets[address] = tuple(self._piece(group) for group in slots.values())
        return address

    def get(self, address: Address, keys: Keys | None = None) -> dict[str, Tensor]:
        if address not in self._sets:
            raise UserError(f"This store holds no tensors at the address {address}.")
        found: dict[str, Tensor] = {}
        for name in self._sets[address]:
            piece, start = self._pieces[name], 0
            for key, dtype, shape in piece.spec:
                size = shape.numel() * dtype.itemsize
                if keys is None or key in keys:
                    found[key] = tensor = torch.empty(shape, dtype=dtype)
                    if size:
                        raw(tensor)[:] = piece.values[start : start + size]
                start += size
        return {key: found[key] for key in sorted(found)}

    def names(self, address: Address) -> tuple[str, ...]:
        if address not in self._sets:
            raise UserError(f"This store holds no tensors at the address {address}.")
        return tuple(sorted(key for name in self._sets[address] for key, _, _ in self._pieces[name].spec))

    def put_text(self, text: str) -> Address:
        address = text_address(text)
        self._texts[address] = text
        return address

    def get_text(self, address: Address) -> str:
        if address not in self._texts:
            raise UserError(f"This store holds no text at the address {address}.")
        return self._texts[address]

    def cached(self, digest: str) -> Outcome | None:
        outcome = self._outcomes.get(digest)
        if outcome is None:
            return None
        there = [address in self._sets for address in (outcome.state, outcome.sent) if address]
        there += [outcome.predictions in self._texts] if outcome.predictions else []
        return outcome if all(there) else None

    def cache(self, digest: str, outcome: Outcome) -> None:
        self._outcomes[digest] = outcome

    def expect(self, addresses: Iterable[Address]) -> None:
        """All is here already."""

    def flush(self) -> None:
        """All is here already."""

    def keep(self, addresses: Iterable[Address]) -> None:
        """Forgets all tensors and texts at other addresses, and every cached outcome that refers to one."""
        wanted = set(addresses)
        self._sets = {address: names for address, names in self._sets.items() if address in wanted}
        used = {name for names in self._sets.values() for name in names}
        self._pieces = {name: piece for name, piece in self._pieces.items() if name in used}
        self._texts = {address: text for address, text in self._texts.items() if address in wanted}
        self._outcomes = {digest: outcome for digest, outcome in self._outcomes.items() if self.cached(digest)}

    @property
    def held(self) -> int:
        """Bytes of values that are held, texts not counted."""
        return sum(len(piece.values) for piece in self._pieces.values())

    def has(self, address: Address) -> bool:
        """Whether this memory holds tensors at an address."""
        return address in self._sets

    def _piece(self, tensors: Tensors) -> str:
        name = content_address(tensors)
        if name not in self._pieces:
            spec = tuple((key, tensor.dtype, tensor.shape) for key, tensor in tensors.items())
            spec = self._specs.setdefault(spec, spec)
            self._pieces[name] = _Piece(spec, b"".join(raw(tensor) for tensor in tensors.values()))
        return name


class Overlay(MemoryStore):
    """Reads what lies in another store, such as a finished run's, and keeps what is added in memory.

    >>> below = MemoryStore()
    >>> address = below.put({"a": torch.ones(1)})
    >>> above = Overlay(below)
    >>> above.get(address), below.has(above.put({"a": torch.zeros(1)}))
    ({'a': tensor([1.])}, False)
    """

    def __init__(self, below: Store) -> None:
        super().__init__()
        self._below = below

    def get(self, address: Address, keys: Keys | None = None) -> dict[str, Tensor]:
        return super().get(address, keys) if self.has(address) else self._below.get(address, keys)

    def names(self, address: Address) -> tuple[str, ...]:
        return super().names(address) if self.has(address) else self._below.names(address)
