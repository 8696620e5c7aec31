"""The service of rank 0: it holds the run folder, and everything that other ranks need goes through it.

A thread per other rank answers its requests; the main thread trains, and looks now and then whether somebody failed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Listener
from typing import Any

from pfl_platform.adapters.surfaces import Keys
from pfl_platform.engines.ranks.wire import TORN, receive, receive_tensors, send, send_tensors, stay_alert
from pfl_platform.errors import RunStopped, UserError
from pfl_platform.federation.tasks import Outcome, Store
from pfl_platform.store.disk import outcome_of
from pfl_platform.store.pins import differing

PATIENCE = 0.2
"""Seconds between two looks at whether a rank has failed, while waiting."""


@dataclass
class _Fact:
    """Something that all ranks are told. readers: the ranks that have asked for it."""

    value: Any = None
    there: bool = False
    readers: set[int] = field(default_factory=set)


class Hub:
    """Rank 0's side. `others`: the ranks that will come. `join_timeout`: seconds in which they must."""

    def __init__(self, listener: Listener, others: Sequence[int], join_timeout: float) -> None:
        self._listener = listener
        self._others = set(others)
        self._join_timeout = join_timeout
        self._changed = threading.Condition()
        self._here: set[int] = set()
        self._gone: set[int] = set()
        self._facts: dict[int, _Fact] = {}
        self._store: Store | None = None
        self._done: dict[str, Outcome] = {}
        self.wrong: UserError | None = None  # what has gone wrong first at another rank
        self._about: dict[int, Mapping[str, Any]] = {}
        self._closing = False
        threading.Thread(target=self._accept, daemon=True).start()

    def wait_for_all(self) -> None:
        """Until every other rank has come."""
        late = time.monotonic() + self._join_timeout
        with self._changed:
            while missing := self._others - self._here:
                self.check()
                if time.monotonic() > late:
                    raise UserError(f"Rank {min(missing)} has not come within {self._join_timeout:.0f} seconds.")
                self._changed.wait(PATIENCE)

    def serve(self, store: Store) -> None:
        """From now on requests for tensors are answered from here."""
        with self._changed:
            self._store = store
            self._changed.notify_all()

    def publish(self, number: int, value: Any, *, gather: bool = False) -> None:
        """Tells all ranks a fact; with `gather` not before all of them ask for it."""
        if not self._others:
            return
        with self._changed:
            fact = self._facts.setdefault(number, _Fact())
            while gather and fact.readers != self._others:
                self.check()
                self._changed.wait(PATIENCE)
            fact.value, fact.there = value, True
            self._changed.notify_all()

    def others_about(self) -> Mapping[int, Mapping[str, Any]]:
        """What the others have said of themselves in `agree`, once all have."""
        with self._changed:
            while set(self._about) != self._others:
                self.check()
                self._changed.wait(PATIENCE)
            found, self._about = self._about, {}
            return found

    def agree(self, about: Mapping[str, Any]) -> None:
        """Raises `UserError` for the first rank that says something else of itself."""
        for rank, theirs in sorted(self.others_about().items()):
            for path, ours, other in differing(about, theirs):
                raise UserError(
                    f"The ranks of this launch differ: '{'.'.join(path)}' is {other} at rank {rank} and {ours} at "
                    "rank 0; start them all from the same installation, with the same data."
                )

    def take_done(self, digest: str) -> Outcome | None:
        """The outcome of a task that another rank has ended, once."""
        with self._changed:
            return self._done.pop(digest, None)

    def wait(self) -> None:
        """A moment, or until something happens."""
        with self._changed:
            self._changed.wait(PATIENCE)
        self.check()

    def check(self) -> None:
        """Raises what has gone wrong at another rank."""
        if self.wrong is not None:
            raise self.wrong

    def close(self) -> None:
        self._closing = True
        self._listener.close()

    def _accept(self) -> None:
        for _ in self._others:
            try:
                connection = self._listener.accept()
            except Exception:  # closed, or a stranger without the key
                if self._closing:
                    return
                continue
            threading.Thread(target=self._attend, args=(connection,), daemon=True).start()

    def _attend(self, connection: Connection) -> None:
        rank = -1
        try:
            stay_alert(connection)
            rank = int(receive(connection)["rank"])
            with self._changed:
                self._here.add(rank)
                self._changed.notify_all()
            while self._answer(rank, connection, receive(connection)):
                pass
        except TORN:
            self._fail(RunStopped(f"Rank {rank} has ended without a word: it was killed, or ran out of memory."))
        except UserError as error:  # the store's: a full disk, for example
            self._fail(error)
        except Exception as error:
            self._fail(RunStopped(f"Rank 0 could not serve rank {rank}: {type(error).__name__}: {error}."))
        finally:
            connection.close()

    def _fail(self, error: UserError) -> None:
        with self._changed:
            if self.wrong is None and not self._closing:
                self.wrong = error
            self._changed.notify_all()

    def _answer(self, rank: int, connection: Connection, asked: dict[str, Any]) -> bool:
        """Whether more requests may come."""
        match asked["do"]:
            case "told":
                send(connection, {"value": self._told(rank, asked["number"])})
            case "get":
                keys = None if asked["keys"] is None else Keys(*asked["keys"])
                send_tensors(connection, self._served().get(asked["address"], keys))
            case "put":
                tensors = receive_tensors(connection, asked["bytes"])
                send(connection, {"address": self._served().put(tensors)})
            case "names":
                send(connection, {"names": self._served().names(asked["address"])})
            case "get_text":
                send(connection, {"text": self._served().get_text(asked["address"])})
            case "put_text":
                send(connection, {"address": self._served().put_text(asked["text"])})
            case "done":
                outcome = outcome_of(asked["outcome"])
                self._served().cache(asked["digest"], outcome)
                with self._changed:
                    self._done[asked["digest"]] = outcome
                    self._changed.notify_all()
            case "about":
                with self._changed:
                    self._about[rank] = asked["about"]
                    self._changed.notify_all()
            case "failed":
                kind = RunStopped if asked["stopped"] else UserError
                self._fail(kind(asked["sentence"]))
                return False
            case "bye":
                return False
        return True

    def _served(self) -> Store:
        with self._changed:
            while self._store is None:
                self._changed.wait(PATIENCE)
            return self._store

    def _told(self, rank: int, number: int) -> Any:
        with self._changed:
            fact = self._facts.setdefault(number, _Fact())
            fact.readers.add(rank)
            self._changed.notify_all()
            while not fact.there:
                self._changed.wait(PATIENCE)
                if self._closing:
                    raise EOFError
            if fact.readers == self._others:
                self._facts.pop(number, None)
            return fact.value
