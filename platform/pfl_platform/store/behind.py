"""A store that reads ahead and writes behind, so that a device need not wait for the disk between two clients.

What is expected is read by a thread before it is asked for; what is put is written by another, in the order in which it
was put, so that an outcome's file never comes before the tensors that it names. `flush` waits until all of it is there.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from torch import Tensor

from pfl_platform.adapters.surfaces import Keys, Tensors
from pfl_platform.federation.tasks import Address, Outcome
from pfl_platform.store.disk import DiskStore
from pfl_platform.store.layout import content_address

MOST = 8
"""Writes that may wait; whoever puts more waits with them, so that slow disks do not fill the memory."""


class Behind:
    """Implements `Store` in front of a `DiskStore`, for one user at a time. What others put into the same folder can be
    read as well.

    Errors: those of `DiskStore`; what goes wrong in writing is raised by a later `put`, `put_text` or `cache`, or by
    `flush`.
    """

    def __init__(self, disk: DiskStore) -> None:
        self._disk = disk
        self._writer = ThreadPoolExecutor(1, "writing-behind")
        self._reader = ThreadPoolExecutor(1, "reading-ahead")
        self._waiting: deque[Future[object]] = deque()
        self._writes: dict[Address, Future[object]] = {}
        self._expected: dict[Address, Future[dict[str, Tensor]]] = {}

    def put(self, tensors: Tensors) -> Address:
        address = content_address(tensors)
        if address not in self._writes and not self._disk.tensor_path(address).exists():
            copies = {key: tensor.detach().clone() for key, tensor in tensors.items()}
            self._writes[address] = self._write(lambda: self._disk.write(address, copies))
        return address

    def put_text(self, text: str) -> Address:
        address = hashlib.sha256(text.encode()).hexdigest()
        if address not in self._writes:
            self._writes[address] = self._write(lambda: self._disk.put_text(text))
        return address

    def cache(self, digest: str, outcome: Outcome) -> None:
        """The outcome is told by `cached` when it is written."""
        self._write(lambda: self._disk.cache(digest, outcome))

    def get(self, address: Address, keys: Keys | None = None) -> dict[str, Tensor]:
        found = self._expected.pop(address, None)
        if found is not None and keys is None:
            return found.result()
        self._settled(address)
        return self._disk.get(address, keys)

    def expect(self, addresses: Iterable[Address]) -> None:
        """These are asked for next, and whatever was expected before and not asked for is not."""
        wanted = dict.fromkeys(addresses)
        kept = {address: found for address, found in self._expected.items() if address in wanted}
        for address in wanted:
            if address not in kept and address not in self._writes:
                kept[address] = self._reader.submit(self._disk.get, address)
        self._expected = kept

    def names(self, address: Address) -> tuple[str, ...]:
        self._settled(address)
        return self._disk.names(address)

    def get_text(self, address: Address) -> str:
        self._settled(address)
        return self._disk.get_text(address)

    def cached(self, digest: str) -> Outcome | None:
        return self._disk.cached(digest)

    def flush(self) -> None:
        """Waits until everything is written. Raises what went wrong first; what was put after that is written all the
        same where that is possible."""
        waiting, self._waiting, self._writes, self._expected = self._waiting, deque(), {}, {}
        errors = [error for write in waiting if (error := write.exception()) is not None]
        if errors:
            raise errors[0]

    def _write(self, write: Callable[[], object]) -> Future[object]:
        while self._waiting and (len(self._waiting) >= MOST or self._waiting[0].done()):
            self._waiting[0].result()
            self._waiting.popleft()
        found = self._writer.submit(write)
        self._waiting.append(found)
        return found

    def _settled(self, address: Address) -> None:
        if address in self._writes:
            self._writes[address].result()
