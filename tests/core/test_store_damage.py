"""Files of the store that were changed or cut: found, named, and never taken for what they were."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest
import torch

from pfl_platform.errors import UserError
from pfl_platform.federation.tasks import Outcome
from pfl_platform.store.disk import DiskStore

DIGEST = "d" * 64


TENSORS = {"local/site/A": torch.arange(12, dtype=torch.float32).reshape(3, 4), "memory/seen": torch.tensor([True])}


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    store = DiskStore(tmp_path)
    address = store.put(TENSORS)
    path = store.tensor_path(address)
    whole = path.read_bytes()
    for length in (0, 5, 40, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=f"{path} is damaged"):
            store.get(address)


def headed(entries: object) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (headed(b"{"), "Expecting"),
        (headed(b"\xff\xff"), "utf-8"),
        (headed([1]), "not a JSON object"),
        (headed({"a": 1}), "nothing readable of 'a'"),
        (headed({"a": {**ENTRY, "dtype": "F7"}}) + bytes(8), "nothing readable of 'a'"),
        (headed({"a": {**ENTRY, "data_offsets": [0, 4, 8]}}) + bytes(8), "nothing readable of 'a'"),
        (headed({"a": {**ENTRY, "shape": [-1, -2]}}) + bytes(8), "contradicts itself about 'a'"),
        (headed({"a": {**ENTRY, "shape": [2.0]}}) + bytes(8), "contradicts itself about 'a'"),
        (headed({"a": {**ENTRY, "shape": [3]}}) + bytes(8), "contradicts itself about 'a'"),
        (headed({"a": {**ENTRY, "data_offsets": [-8, 0]}}) + bytes(8), "contradicts itself about 'a'"),
        (headed({"a": {**ENTRY, "data_offsets": [8, 16]}}) + bytes(8), "its header names"),
        (headed({"a": ENTRY}) + bytes(9), "its header names"),
        ((1 << 62).to_bytes(8, "little") + b"{}", "shorter than its header"),
    ],
)
def test_a_header_that_lies_is_found(content: bytes, why: str, tmp_path: Path) -> None:
    store = DiskStore(tmp_path)
    address = store.put(TENSORS)
    store.tensor_path(address).write_bytes(content)
    with pytest.raises(UserError, match=f"is damaged .*{why}"):
        store.get(address)


def test_reading_keeps_nothing(tmp_path: Path) -> None:
    """The library's own reader keeps some bytes of each tensor for good, which sums up over clients and rounds."""
    tensors = {f"slot/site{index}/A": torch.zeros(40, 40) for index in range(100)}
    store = DiskStore(tmp_path)
    address = store.put(tensors)
    store.get(address)
    tracemalloc.start()
    try:
        for _ in range(5):
            store.get(address)
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(20):
            store.get(address)
        assert tracemalloc.get_traced_memory()[0] - before < 20_000  # 10 bytes of each tensor
    finally:
        tracemalloc.stop()


def test_changed_content_is_found_when_verifying(tmp_path: Path) -> None:
    address, text = DiskStore(tmp_path).put({"a": torch.ones(4)}), DiskStore(tmp_path).put_text("four")
    path = DiskStore(tmp_path).tensor_path(address)
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    DiskStore(tmp_path).text_path(text).write_text("fore")
    careful, quick = DiskStore(tmp_path, verify=True), DiskStore(tmp_path)
    with pytest.raises(UserError, match=f"{path} is damaged .*does not match"):
        careful.get(address)
    with pytest.raises(UserError, match="does not match"):
        careful.get_text(text)
    assert quick.get(address)["a"].tolist() != [1, 1, 1, 1]
    assert quick.get_text(text) == "fore"


@pytest.mark.parametrize("address", ["", "../../etc/passwd", "A" * 64, "0" * 63])
def test_an_address_never_leaves_the_folder(address: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no content address"):
        DiskStore(tmp_path).get(address)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"actor": "a", "unknown": 1, "cost": {}}'])
def test_a_broken_outcome_is_as_if_it_were_not_there(content: str, tmp_path: Path) -> None:
    store = DiskStore(tmp_path)
    store.cache(DIGEST, Outcome("client", None, None, 1, {}))
    assert store.cached(DIGEST) is not None
    store.outcome_path(DIGEST).write_text(content)
    assert store.cached(DIGEST) is None


@pytest.mark.parametrize("field", ["state", "sent", "predictions"])
def test_an_outcome_without_its_tensors_is_as_if_it_were_not_there(field: str, tmp_path: Path) -> None:
    store = DiskStore(tmp_path)
    there = store.put_text("x") if field == "predictions" else store.put({"a": torch.ones(1)})
    addresses = {"state": None, "sent": None, "predictions": None, field: there}
    store.cache(DIGEST, Outcome("client", num_examples=1, metrics={}, **addresses))
    assert store.cached(DIGEST) is not None
    (store.text_path(there) if field == "predictions" else store.tensor_path(there)).unlink()
    assert store.cached(DIGEST) is None
