"""Tensors by content address, in memory and on disk: what goes in comes out, and nothing is ever half there."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save
from torch import Tensor

from pfl_platform.adapters.surfaces import Keys
from pfl_platform.errors import RunStopped, UserError
from pfl_platform.federation.tasks import Cost, Outcome, Store
from pfl_platform.store import atomic
from pfl_platform.store.disk import DiskStore
from pfl_platform.store.layout import DTYPES, content_address, file_chunks, file_length
from pfl_platform.store.memory import MemoryStore, Overlay
from pfl_platform.store.reading import read_tensors

DIGEST = "d" * 64
NOWHERE = "0" * 64


def some_tensors() -> dict[str, Tensor]:
    base = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    return {
        "local/site/B": base.T,  # not contiguous
        "local/site/A": base,
        "local/site/row": base[1],  # shares storage with the two above
        "local/site/half": torch.tensor([1.5, -2.25], dtype=torch.bfloat16),
        "memory/count": torch.tensor(7),  # 0-d
        "memory/none": torch.zeros(0, 3, dtype=torch.int64),
        "memory/seen": torch.tensor([True, False]),
        "local/site/P": torch.nn.Parameter(torch.ones(2)),  # wants a gradient
    }


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture(params=["memory", "disk"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return MemoryStore() if request.param == "memory" else DiskStore(tmp_path)


def test_what_goes_in_comes_out(store: Store) -> None:
    tensors = some_tensors()
    found = store.get(store.put(tensors))
    assert list(found) == sorted(tensors)
    for key, tensor in found.items():
        assert tensor.dtype == tensors[key].dtype
        assert tensor.shape == tensors[key].shape
        assert torch.equal(tensor, tensors[key])
        assert tensor.is_contiguous()
        assert not tensor.requires_grad
        assert tensor.untyped_storage().nbytes() == tensor.nbytes  # it keeps nothing else alive


def test_only_the_keys_asked_for_are_returned(store: Store) -> None:
    address = store.put(some_tensors())
    assert list(store.get(address, Keys("memory/*", "*/half"))) == [
        "local/site/half",
        "memory/count",
        "memory/none",
        "memory/seen",
    ]


def test_keys_are_told_without_values(store: Store) -> None:
    address = store.put({"b/y": torch.ones(2), "a/x": torch.zeros(1)})
    assert store.names(address) == ("a/x", "b/y")
    assert Overlay(store).names(address) == ("a/x", "b/y")
    with pytest.raises(UserError):
        store.names("0" * 64)


def test_stored_tensors_belong_to_nobody_else(store: Store) -> None:
    mine = {"a": torch.ones(3)}
    address = store.put(mine)
    mine["a"].zero_()
    store.get(address)["a"].fill_(5)
    assert store.get(address)["a"].tolist() == [1, 1, 1]


def test_both_stores_give_the_same_address_and_size(tmp_path: Path) -> None:
    memory, disk = MemoryStore(), DiskStore(tmp_path)
    address = memory.put(some_tensors())
    assert disk.put(some_tensors()) == address == content_address(some_tensors())
    assert disk.tensor_path(address).stat().st_size == file_length(some_tensors())


def test_in_memory_equal_slots_are_held_once_and_what_is_not_kept_goes() -> None:
    store = MemoryStore()
    state = store.put({"local/a/A": torch.ones(8), "global/a/A": torch.zeros(4)})
    sent = store.put({"local/a/A": torch.ones(8)})
    text = store.put_text("line")
    assert store.held == 4 * 8 + 4 * 4
    store.cache(DIGEST, Outcome("client", state, sent, 1, {}, predictions=text))
    store.keep([sent, text])
    assert store.held == 4 * 8
    assert (store.get(sent)["local/a/A"].tolist(), store.get_text(text)) == ([1.0] * 8, "line")
    assert store.cached(DIGEST) is None  # its state is gone
    with pytest.raises(UserError, match=state):
        store.get(state)
    store.keep([])
    assert store.held == 0


def test_texts_come_back(store: Store) -> None:
    text = '{"text": "Zoë\\n"}\n\r\nlast'
    assert store.get_text(store.put_text(text)) == text


def test_what_is_not_there_is_a_sentence(store: Store) -> None:
    with pytest.raises(UserError, match=NOWHERE):
        store.get(NOWHERE)
    with pytest.raises(UserError, match=NOWHERE):
        store.get_text(NOWHERE)
    assert store.cached(DIGEST) is None


def test_an_outcome_is_cached_as_it_was(store: Store) -> None:
    state, text = store.put({"a": torch.ones(1)}), store.put_text("x")
    outcome = Outcome("client", state, None, 3, {"loss/local": 0.1 + 0.2}, {"o:t": 1 / 3}, text, Cost(1.5, steps=7))
    store.cache(DIGEST, outcome)
    assert store.cached(DIGEST) == outcome


# --- addresses


def test_the_address_is_over_keys_dtypes_shapes_and_values() -> None:
    """Redone with the library that everybody has: the listing of the module's docstring, hashed by hand."""
    import hashlib

    tensors = {"b": torch.tensor([[1, 2]], dtype=torch.uint8), "a": torch.tensor(3, dtype=torch.int16)}
    by_hand = b'["a", "I16", []]\n' + b"\x03\x00" + b'["b", "U8", [1, 2]]\n' + b"\x01\x02"
    assert content_address(tensors) == hashlib.sha256(by_hand).hexdigest()


@given(st.permutations(sorted(some_tensors())))
def test_the_order_of_insertion_does_not_count(order: list[str]) -> None:
    tensors = some_tensors()
    assert content_address({key: tensors[key] for key in order}) == content_address(tensors)


@pytest.mark.parametrize(
    "other",
    [
        {"b": torch.zeros(2, 3)},
        {"a": torch.zeros(3, 2)},
        {"a": torch.zeros(2, 3, dtype=torch.int32)},
        {"a": torch.tensor([[0, 0, 0], [0, 0, -0.0]])},
        {"a": torch.zeros(2, 3), "b": torch.zeros(0)},
        {},
    ],
    ids=["key", "shape", "dtype", "sign of zero", "an empty tensor more", "nothing"],
)
def test_whatever_differs_has_another_address(other: dict[str, Tensor]) -> None:
    assert content_address(other) != content_address({"a": torch.zeros(2, 3)})


# --- the file form


@st.composite
def named_tensors(draw: st.DrawFn) -> dict[str, Tensor]:
    keys = draw(st.lists(st.text(max_size=8).filter(_writable), unique=True, max_size=5))
    result = {}
    for key in keys:
        shape = draw(st.lists(st.integers(0, 4), max_size=3))
        dtype = draw(st.sampled_from(sorted(DTYPES, key=str)))
        count = torch.Size(shape).numel() * dtype.itemsize
        data = bytes(draw(st.lists(st.integers(0, 1 if dtype == torch.bool else 255), min_size=count, max_size=count)))
        values = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.zeros(0, dtype=torch.uint8)
        result[key] = values.view(dtype).reshape(shape)
    return result


def _writable(key: str) -> bool:
    return key != "__metadata__" and not any("\ud800" <= letter <= "\udfff" for letter in key)


def bits(tensors: dict[str, Tensor]) -> dict[str, tuple[torch.dtype, tuple[int, ...], list[int]]]:
    """NaN payloads and signs of zeros included."""
    return {
        key: (value.dtype, tuple(value.shape), value.contiguous().reshape(-1).view(torch.uint8).tolist())
        for key, value in tensors.items()
    }


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(named_tensors())
def test_any_tensors_survive_the_disk_bit_by_bit(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    store = DiskStore(tmp_path, verify=True)
    address = store.put(tensors)
    assert bits(store.get(address)) == bits(tensors)
    assert bits(load_file(store.tensor_path(address))) == bits(tensors)  # the library reads what we wrote
    (tmp_path / "library").write_bytes(save(tensors))
    assert bits(read_tensors(tmp_path / "library")) == bits(tensors)  # and we read what it wrote
    assert store.tensor_path(address).stat().st_size == file_length(tensors)
    memory = MemoryStore()
    assert memory.put(tensors) == address
    assert bits(memory.get(address)) == bits(tensors)


@settings(max_examples=40, deadline=None)
@given(named_tensors(), st.sampled_from([torch.float32, torch.bfloat16]))
def test_with_one_dtype_the_file_is_the_library_s_own(tensors: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Where the library's order leaves no choice, every byte agrees with what it writes."""
    same = {key: torch.zeros(value.shape, dtype=dtype) for key, value in tensors.items()}
    assert b"".join(file_chunks(same)) == save(same)


def test_every_tensor_starts_at_a_multiple_of_its_item_size(tmp_path: Path) -> None:
    """An odd number of 2-byte values before an 8-byte one would make it unreadable without a copy."""
    tensors = {
        "a": torch.ones(3, dtype=torch.bool),
        "b": torch.ones(3, dtype=torch.bfloat16),
        "c": torch.ones(2).double(),
    }
    data = b"".join(file_chunks(tensors))
    head = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert [head[key]["data_offsets"] for key in "cba"] == [[0, 16], [16, 22], [22, 25]]


def test_what_cannot_be_stored_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="complex128"):
        DiskStore(tmp_path).put({"a": torch.zeros(1, dtype=torch.complex128)})
    with pytest.raises(ValueError, match="__metadata__"):
        DiskStore(tmp_path).put({"__metadata__": torch.zeros(1)})
    assert files_in(tmp_path) == []


# --- nothing is half there


def test_equal_content_is_written_once(tmp_path: Path) -> None:
    store = DiskStore(tmp_path)
    path = store.tensor_path(store.put(some_tensors()))
    before = path.stat()
    store.put(dict(reversed(some_tensors().items())))
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert path.stat().st_ino == before.st_ino
    assert len(files_in(tmp_path)) == 1


def no_space(*_: object) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


def part_then_no_space() -> Callable[..., int]:
    write, calls = os.write, iter(range(9))

    def half(descriptor: int, data: memoryview) -> int:
        return write(descriptor, data[:1]) if next(calls) < 2 else no_space()

    return half


@pytest.mark.parametrize("call", ["write", "fsync", "replace", "late write"])
def test_a_full_disk_stops_the_run_and_leaves_nothing(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = DiskStore(tmp_path)
    earlier = store.put({"a": torch.ones(2)})
    kept = files_in(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, call.split()[-1], part_then_no_space() if call == "late write" else no_space)
        for action in (
            lambda: store.put(some_tensors()),
            lambda: store.put_text("x"),
            lambda: store.cache(DIGEST, Outcome("client", None, None, 1, {})),
        ):
            with pytest.raises(RunStopped, match=f"disk that holds {tmp_path} is full; free some space"):
                action()
    assert files_in(tmp_path) == kept
    assert torch.equal(store.get(earlier)["a"], torch.ones(2))
    assert torch.equal(store.get(store.put(some_tensors()))["local/site/A"], some_tensors()["local/site/A"])


def test_another_failed_write_is_told_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(atomic.os, "fsync", denied)
    with pytest.raises(RunStopped, match="cannot be written: .*Input/output error"):
        DiskStore(tmp_path).put_text("x")


def test_a_write_in_pieces_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system may take fewer bytes than it was given."""
    write = os.write
    monkeypatch.setattr(atomic.os, "write", lambda descriptor, data: write(descriptor, data[:7]))
    store = DiskStore(tmp_path, verify=True)
    assert bits(store.get(store.put(some_tensors()))) == bits(dict(sorted(some_tensors().items())))


KILLED = """
import os, sys
from pathlib import Path
from pfl_platform.store import atomic
setattr(atomic.os, sys.argv[2], lambda *_: os.kill(os.getpid(), 9))
atomic.write_atomic(Path(sys.argv[1]), [b"half", b"whole"])
"""


@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
def test_a_killed_write_leaves_only_a_temporary_file(moment: str, tmp_path: Path) -> None:
    store, tensors = DiskStore(tmp_path, verify=True), {"a": torch.arange(1000)}
    address = content_address(tensors)
    path = store.tensor_path(address)
    done = subprocess.run([sys.executable, "-c", KILLED, str(path), moment], capture_output=True, timeout=60)
    assert done.returncode == -9, done.stderr
    left = files_in(tmp_path)
    assert len(left) == 1
    assert left[0].endswith(atomic.TEMPORARY)
    with pytest.raises(UserError, match="missing"):
        store.get(address)
    assert store.put(tensors) == address
    assert torch.equal(store.get(address)["a"], tensors["a"])
