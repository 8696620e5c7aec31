"""A store that forgets: for tests, notebooks and plans."""

from __future__ import annotations

import hashlib

from torch import Tensor

from pfl_platform.adapters.surfaces import Keys, Tensors
from pfl_platform.errors import UserError
from pfl_platform.federation.tasks import Address, Outcome
from pfl_platform.store.layout import content_address, file_length


class MemoryStore:
    """Implements `Store` in this process's memory; addresses are those of `DiskStore`.

    >>> import torch
    >>> store = MemoryStore()
    >>> address = store.put({"slot/site/A": torch.ones(2), "slot/site/B": torch.zeros(1)})
    >>> store.get(address, Keys("*/B"))
    {'slot/site/B': tensor([0.])}
    """

    def __init__(self) -> None:
        self._tensors: dict[Address, dict[str, Tensor]] = {}
        self._texts: dict[Address, str] = {}
        self._outcomes: dict[str, Outcome] = {}

    def put(self, tensors: Tensors) -> Address:
        address = content_address(tensors)
        if address not in self._tensors:
            self._tensors[address] = {key: _copy(tensors[key].detach().cpu()) for key in sorted(tensors)}
        return address

    def get(self, address: Address, keys: Keys | None = None) -> dict[str, Tensor]:
        return {key: _copy(tensor) for key, tensor in self._find(address).items() if keys is None or key in keys}

    def size(self, address: Address) -> int:
        return file_length(self._find(address))

    def put_text(self, text: str) -> Address:
        address = hashlib.sha256(text.encode()).hexdigest()
        self._texts[address] = text
        return address

    def get_text(self, address: Address) -> str:
        if address not in self._texts:
            raise UserError(f"This store holds no text at the address {address}.")
        return self._texts[address]

    def cached(self, digest: str) -> Outcome | None:
        return self._outcomes.get(digest)

    def cache(self, digest: str, outcome: Outcome) -> None:
        self._outcomes[digest] = outcome

    def _find(self, address: Address) -> dict[str, Tensor]:
        if address not in self._tensors:
            raise UserError(f"This store holds no tensors at the address {address}.")
        return self._tensors[address]


def _copy(tensor: Tensor) -> Tensor:
    """Own storage, row-major, no more than the values."""
    return tensor.resolve_conj().resolve_neg().contiguous().clone()
