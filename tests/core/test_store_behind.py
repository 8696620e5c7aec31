"""A store that reads ahead and writes behind: the same files in the same order, and what a failed write leaves."""

from __future__ import annotations

import errno
import threading
import time
from pathlib import Path

import pytest
import torch

from pfl_platform.adapters.surfaces import Keys
from pfl_platform.errors import RunStopped
from pfl_platform.federation.tasks import Cost, Outcome
from pfl_platform.store import behind as behind_module
from pfl_platform.store import disk as disk_module
from pfl_platform.store.behind import MOST, Behind
from pfl_platform.store.disk import DiskStore


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {"local/a": torch.full((3,), value), "local/b": torch.arange(4.0)}


def outcome(state: str) -> Outcome:
    return Outcome("a", state, None, 1, {}, cost=Cost())


class Gate:
    """Holds up whatever is written until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        self.written: list[str] = []
        write = disk_module.write_atomic

        def held(path: Path, chunks: object) -> None:
            assert self.open.wait(20)
            write(path, chunks)  # type: ignore[arg-type]
            self.written.append(path.suffix)

        monkeypatch.setattr(disk_module, "write_atomic", held)


def test_what_is_put_is_written_behind_in_its_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, plain = Gate(monkeypatch), DiskStore(tmp_path / "plain")
    store = Behind(DiskStore(tmp_path / "behind"))
    given = tensors(1.0)
    address, text = store.put(given), store.put_text("said")
    store.cache("0" * 64, outcome(address))
    given["local/a"].zero_()  # what was put is a copy
    assert store.cached("0" * 64) is None
    assert not gate.written
    gate.open.set()
    store.flush()
    assert gate.written == [".safetensors", ".txt", ".json"]
    assert (address, text) == (plain.put(tensors(1.0)), plain.put_text("said"))
    found = store.cached("0" * 64)
    assert found is not None
    assert found.state == address
    assert torch.equal(store.get(address)["local/a"], torch.ones(3))
    for path in (plain.tensor_path(address), plain.text_path(text)):
        assert path.read_bytes() == (tmp_path / "behind" / path.relative_to(plain.folder)).read_bytes()


def test_what_is_still_being_written_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, store = Gate(monkeypatch), Behind(DiskStore(tmp_path))
    address, text = store.put(tensors(2.0)), store.put_text("hello")
    threading.Timer(0.2, gate.open.set).start()
    assert store.names(address) == ("local/a", "local/b")
    assert list(store.get(address, Keys("local/a"))) == ["local/a"]
    assert store.get_text(text) == "hello"


def test_what_is_expected_is_read_once_and_before_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = DiskStore(tmp_path)
    first, second = disk.put(tensors(1.0)), disk.put(tensors(2.0))
    reads: list[tuple[str, bool]] = []
    get = disk.get

    def noted(address: str, keys: Keys | None = None) -> dict[str, torch.Tensor]:
        reads.append((address, threading.current_thread() is threading.main_thread()))
        return get(address, keys)

    monkeypatch.setattr(disk, "get", noted)
    store = Behind(disk)
    store.expect([first, first])
    assert torch.equal(store.get(first)["local/a"], torch.ones(3))
    assert reads == [(first, False)]
    mine = store.get(first)  # belongs to whoever asked, so it is read again
    mine["local/a"].zero_()
    assert torch.equal(store.get(first)["local/a"], torch.ones(3))
    store.expect([second])
    store._expected[second].result(20)
    store.expect([first])  # nobody asked for the second: it is not kept
    assert torch.equal(store.get(second)["local/a"], torch.full((3,), 2.0))
    assert [main for address, main in reads if address == second] == [False, True]


def test_a_full_disk_stops_the_run_and_spares_what_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, write = Behind(DiskStore(tmp_path)), disk_module.write_atomic
    full, both = iter([True]), threading.Event()

    def fails_once(path: Path, chunks: object) -> None:
        assert both.wait(20)
        if next(full, False):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, chunks)  # type: ignore[arg-type]

    monkeypatch.setattr(disk_module, "write_atomic", fails_once)
    lost = store.put(tensors(1.0))
    store.cache("1" * 64, outcome(lost))
    both.set()

    def put_many() -> None:
        for number in range(2 * MOST):
            store.put(tensors(10.0 + number))

    with pytest.raises(RunStopped, match="is full; free some space"):
        put_many()
    with pytest.raises(RunStopped, match="is full"):
        store.flush()
    assert store.cached("1" * 64) is None, "its tensors are not there"
    assert store.cached("2" * 64) is None
    kept = store.put(tensors(3.0))
    store.cache("2" * 64, outcome(kept))
    store.flush()
    assert store.cached("2" * 64) is not None


def test_who_puts_again_what_was_not_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(path: Path, chunks: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(disk_module, "write_atomic", fails)
    store = Behind(DiskStore(tmp_path))
    store._writes[store.put(tensors(1.0))].exception(20)
    with pytest.raises(RunStopped, match="is full"):
        store.put(tensors(1.0))


def test_what_waits_is_bounded_by_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, store = Gate(monkeypatch), Behind(DiskStore(tmp_path))
    monkeypatch.setattr(behind_module, "HELD", 100)
    done: list[int] = []

    def many() -> None:
        for number in range(3):  # 28 bytes, then 400 alone, then 28
            store.put({"a": torch.full((100 if number == 1 else 7,), float(number))})
            done.append(number)

    thread = threading.Thread(target=many)
    thread.start()
    while not done:
        time.sleep(0.01)
    thread.join(0.3)
    assert done == [0]
    gate.open.set()
    thread.join(20)
    store.flush()
    assert done == [0, 1, 2]
    assert len(gate.written) == 3


def test_slow_disks_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, store = Gate(monkeypatch), Behind(DiskStore(tmp_path))
    done = threading.Event()

    def many() -> None:
        for number in range(MOST + 1):
            store.put_text(str(number))
        done.set()

    thread = threading.Thread(target=many)
    thread.start()
    assert not done.wait(0.3)
    gate.open.set()
    thread.join(20)
    store.flush()
    assert len(gate.written) == MOST + 1
