"""The cache on disk: what it gives back is what was put, whatever it forgot."""

from __future__ import annotations

import copy
import os
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfl_platform.store import scratch as module
from pfl_platform.store.scratch import OVERHEAD, Scratch


@given(
    st.lists(st.tuples(st.integers(0, 12), st.binary(max_size=60)), max_size=60),
    st.integers(1, 20),
    st.integers(OVERHEAD + 1, 400),
)
def test_it_forgets_but_never_mixes_up(puts: list[tuple[int, bytes]], places: int, capacity: int) -> None:
    cache, last = Scratch(places, capacity), dict[bytes, bytes]()
    for number, data in puts:
        key = str(number).encode()
        cache.put(key, data)
        if OVERHEAD + len(data) <= capacity:
            last[key] = data
            found = cache.get(key)
            assert found is not None
            assert bytes(found) == data  # the newest is always there
        for other in range(13):
            found = cache.get(str(other).encode())
            assert found is None or bytes(found) == last[str(other).encode()]
    assert len(cache) <= places
    assert len(cache) * OVERHEAD <= capacity


def test_the_newest_records_stay() -> None:
    """Room for ten records of 30 bytes: of the last ten none is overwritten, of older ones none is left."""
    cache = Scratch(places=4096, capacity=10 * (30 + OVERHEAD))
    for number in range(35):
        cache.put(str(number).encode(), bytes([number]) * 30)
    kept = [number for number in range(35) if cache.get(str(number).encode()) is not None]
    assert kept == list(range(25, 35))
    assert len(cache) == 10


def test_what_comes_out_is_a_copy() -> None:
    cache = Scratch(8, 1000)
    cache.put(b"a", b"same")
    found = cache.get(b"a")
    assert found is not None
    found[:] = b"else"
    assert bytes(cache.get(b"a") or b"") == b"same"


@pytest.mark.parametrize(("places", "capacity"), [(0, 1000), (8, 0), (8, OVERHEAD)])
def test_without_room_nothing_is_kept(places: int, capacity: int) -> None:
    cache = Scratch(places, capacity)
    cache.put(b"a", b"x")
    assert (cache.get(b"a"), len(cache)) == (None, 0)


def test_a_full_disk_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Scratch(8, 1000)
    cache.put(b"a", b"x")

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "pwrite", full)
    cache.put(b"b", b"y")
    assert (cache.get(b"a"), cache.get(b"b"), len(cache)) == (None, None, 0)
    monkeypatch.undo()
    cache.put(b"c", b"z")
    assert cache.get(b"c") is None  # it does not try again and again


def test_the_file_has_no_name_and_goes_with_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path))
    opened = set(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else set()
    cache = Scratch(8, 1000)
    cache.put(b"a", b"x")
    assert list(tmp_path.iterdir()) == []
    del cache
    if opened:
        assert set(os.listdir("/proc/self/fd")) <= opened


def test_copies_start_empty() -> None:
    cache = Scratch(8, 1000)
    cache.put(b"a", b"x")
    for other in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
        assert (other.get(b"a"), other.places, other.capacity) == (None, 8, 1000)
        other.put(b"a", b"y")
    assert bytes(cache.get(b"a") or b"") == b"x"


def test_memory_is_the_same_empty_or_full() -> None:
    cache = Scratch(256, 1 << 16)
    before = [value.nbytes for value in vars(cache).values() if hasattr(value, "nbytes")]
    for number in range(1000):
        cache.put(str(number).encode(), bytes(50))
    assert [value.nbytes for value in vars(cache).values() if hasattr(value, "nbytes")] == before
    assert not [value for value in vars(cache).values() if isinstance(value, dict | list | bytes)]
