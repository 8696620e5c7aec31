"""The side of a rank other than 0: requests to the hub, and a store that lies there."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from multiprocessing.connection import Connection
from typing import Any

from torch import Tensor

from pfl_platform.adapters.surfaces import Keys, Tensors
from pfl_platform.engines.ranks.wire import TORN, receive, receive_tensors, send, send_bytes
from pfl_platform.federation.tasks import Address, Outcome
from pfl_platform.store.disk import outcome_json
from pfl_platform.store.layout import content_address, file_length


class Severed(BaseException):
    """Rank 0 is gone: it says why, or the launcher does, and this rank ends without a word."""


class Link:
    """Requests of one rank, one at a time."""

    def __init__(self, connection: Connection, rank: int) -> None:
        self.rank = rank
        self._connection = connection
        self._lock = threading.Lock()
        self._say({"rank": rank})

    def told(self, number: int) -> Any:
        return self._ask({"do": "told", "number": number})["value"]

    def get(self, address: Address, keys: Keys | None) -> dict[str, Tensor]:
        with self._lock:
            found = self._asked({"do": "get", "address": address, "keys": None if keys is None else keys.patterns})
            try:
                return receive_tensors(self._connection, found["bytes"])
            except TORN as error:
                raise Severed from error

    def put(self, tensors: Tensors) -> Address:
        with self._lock:
            self._say({"do": "put", "bytes": file_length(tensors)})
            try:
                send_bytes(self._connection, tensors)
                return str(receive(self._connection)["address"])
            except TORN as error:
                raise Severed from error

    def names(self, address: Address) -> tuple[str, ...]:
        return tuple(self._ask({"do": "names", "address": address})["names"])

    def get_text(self, address: Address) -> str:
        return str(self._ask({"do": "get_text", "address": address})["text"])

    def put_text(self, text: str) -> Address:
        return str(self._ask({"do": "put_text", "text": text})["address"])

    def done(self, digest: str, outcome: Outcome) -> None:
        self._say({"do": "done", "digest": digest, "outcome": outcome_json(outcome)})

    def about(self, about: Mapping[str, Any]) -> None:
        self._say({"do": "about", "about": about})

    def failed(self, sentence: str, *, stopped: bool) -> None:
        self._say({"do": "failed", "sentence": sentence, "stopped": stopped})

    def bye(self) -> None:
        self._say({"do": "bye"})

    def _say(self, message: Mapping[str, Any]) -> None:
        try:
            send(self._connection, message)
        except TORN as error:
            raise Severed from error

    def _asked(self, message: Mapping[str, Any]) -> dict[str, Any]:
        self._say(message)
        try:
            return receive(self._connection)
        except TORN as error:
            raise Severed from error

    def _ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        with self._lock:
            return self._asked(message)


class LinkStore:
    """Implements `Store`: what is asked for comes from rank 0, what is kept goes there.

    speaks: whether this rank's tensors are wanted there; of the ranks of a group, all of which have the same ones, only
    the first speaks.
    """

    def __init__(self, link: Link, *, speaks: bool = True) -> None:
        self._link = link
        self._speaks = speaks

    def put(self, tensors: Tensors) -> Address:
        return self._link.put(tensors) if self._speaks else content_address(tensors)

    def get(self, address: Address, keys: Keys | None = None) -> dict[str, Tensor]:
        return self._link.get(address, keys)

    def names(self, address: Address) -> tuple[str, ...]:
        return self._link.names(address)

    def put_text(self, text: str) -> Address:
        return self._link.put_text(text) if self._speaks else ""

    def get_text(self, address: Address) -> str:
        return self._link.get_text(address)

    def cached(self, digest: str) -> Outcome | None:
        return None

    def cache(self, digest: str, outcome: Outcome) -> None:
        if self._speaks:
            self._link.done(digest, outcome)

    def expect(self, addresses: Iterable[Address]) -> None:
        pass

    def flush(self) -> None:
        pass
