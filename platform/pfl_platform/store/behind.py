"""A store that reads ahead and writes behind, so that a device need not wait for the disk between two clients.

What is expected is read by a thread before it is asked for; what is put is written by another, in the order in which it
was put, so that an outcome's file never comes before the tensors that it names. `flush` waits until all of it is there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from torch import Tensor

from pfl_platform.adapters.surfaces import Keys, Tensors
from pfl_platform.federation.tasks import Address, Outcome
from pfl_platform.store.disk import DiskStore
from pfl_platform.store.layout import content_address, text_address

MOST = 8
"""Writes that may wait."""

HELD = 256 * 2**20
"""Bytes of tensors that may wait to be written, or one put of whatever size. Whoever puts more waits until there is
room, so that slow disks do not fill the memory."""


class Behind:
    """Implements `Store` in front of a `DiskStore`, for one user at a time. What others put into the same folder can be
    read as well.

    Errors: those of `DiskStore`; what goes wrong in writing is raised by a later `put`, `put_text` or `cache`, or by
    `flush`.
    """

    def __init__(self, disk: DiskStore) -> None:
        self._disk = disk
        self._writer = ThreadPoolExecutor(1, "files-behind")
        self._reader = ThreadPoolExecutor(1, "files-ahead")
        self._waiting: deque[tuple[Future[object], int]] = deque()
        self._writes: dict[Address, Future[object]] = {}
        self._expected: dict[Address, Future[dict[str, Tensor]]] = {}

    def put(self, tensors: Tensors) -> Address:
        address = content_address(tensors)
        if not self._begun(address) and not self._disk.tensor_path(address).exists():
            size = sum(tensor.nbytes for tensor in tensors.values())
            self._make_room(size)
            copies = {key: tensor.detach().clone() for key, tensor in tensors.items()}

            def write() -> None:
                self._disk.write(address, copies)
                copies.clear()  # nothing of it is held when whoever waits goes on

            self._writes[address] = self._write(write, size)
        return address

    def put_text(self, text: str) -> Address:
        address = text_address(text)
        if not self._begun(address):
            self._make_room(0)
            self._writes[address] = self._write(lambda: self._disk.write_text(address, text))
        return address

    def cache(self, digest: str, outcome: Outcome) -> None:
        """The outcome is told by `cached` when it is written."""
        self._make_room(0)
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
        errors = [error for write, _ in waiting if (error := write.exception()) is not None]
        if errors:
            raise errors[0]

    def _make_room(self, size: int) -> None:
        """Forgets writes that are done, and waits for others until there is room for one more. Raises what went wrong
        in them."""
        while self._waiting:
            write, _ = self._waiting[0]
            held = sum(waits for _, waits in self._waiting)
            if not (write.done() or len(self._waiting) >= MOST or held + size > HELD):
                return
            write.result()
            self._waiting.popleft()

    def _write(self, write: Callable[[], object], size: int = 0) -> Future[object]:
        found = self._writer.submit(write)
        self._waiting.append((found, size))
        return found

    def _begun(self, address: Address) -> bool:
        """Whether this is being written. Raises what went wrong in it."""
        write = self._writes.get(address)
        if write is not None and write.done():
            write.result()
        return write is not None

    def _settled(self, address: Address) -> None:
        if address in self._writes:
            self._writes[address].result()
