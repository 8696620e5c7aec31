"""Benchmarks without their files, against what their files give; and federations on another benchmark's tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cifar_support import write_cifar
from pfl_platform.data import ClientData
from pfl_platform.errors import UserError
from pfl_platform.outlines import row_of
from pfl_platform.plugins import PluginManager, available
from text_support import make_commonsense, make_flan, make_suite

manager = PluginManager()
LOCAL = {"drake-synth", "folder", "instructions", "llava-instruct", "chatbotit", "visual-storytelling"}
"""Without files, by their paths alone, or without clients."""


@pytest.mark.parametrize("name", sorted(set(available("benchmark")) - LOCAL))
def test_every_benchmark_that_reads_files_has_an_outline(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PFL_DATA", raising=False)
    if available("benchmark")[name].package != "pfl-platform":
        pytest.skip("a stranger's")
    found = manager.outline(name, {})
    assert found.clients
    assert all(client.num_examples > 0 and all(task.test for task in client.tasks) for client in found.clients)
    assert row_of(name).known
    with pytest.raises(UserError, match="can be counted, and not read"):
        found.clients[0].tasks[0].train[0]
    assert available("benchmark")[name].about["tiny"]


def form(clients: tuple[ClientData, ...]) -> list[Any]:
    """What does not depend on what files hold."""
    return [
        (client.client_id, client.backbone, [(task.metric, len(task.train), len(task.test)) for task in client.tasks])
        for client in clients
    ]


@pytest.mark.parametrize("name", ["flan8", "commonsense", "glue"])
def test_an_outline_has_the_clients_of_the_files(name: str, tmp_path: Path) -> None:
    sizes = {"train_size": 4, "test_size": 3, "validation_size": 2}
    root = Path(__file__).parents[1] / "data" / "glue" if name == "glue" else tmp_path
    if name == "flan8":
        make_flan(tmp_path, "flan8")
    if name == "commonsense":
        make_commonsense(tmp_path, train=14)
        sizes["clients_per_task"] = 2
    read = manager.make("benchmark", name, {"root": str(root), **sizes})
    assert form(manager.outline(name, sizes).clients) == form(read.clients)


def test_an_outline_of_pictures_has_the_mean_client(tmp_path: Path) -> None:
    write_cifar(tmp_path)
    sizes = {"num_clients": 4, "train_size": 5, "test_size": 2, "public_size": 10}
    read = manager.make("benchmark", "cifar100", {"root": str(tmp_path), **sizes})
    assert form(manager.outline("cifar100", sizes).clients) == form(read.clients)
    whole = manager.outline("cifar100", {"num_clients": 10, "public_size": 0}).clients
    assert {(client.num_examples, len(client.tasks[0].test)) for client in whole} == {(4500, 1000)}


@pytest.mark.parametrize("name", ["drake", "hflb", "fedaya", "fedscope", "fedllm-large"])
def test_an_outline_of_a_suite_has_its_clients_and_models(name: str, tmp_path: Path) -> None:
    make_suite(tmp_path, name)
    read = manager.make("benchmark", name, {"root": str(tmp_path), **({"evaluate": []} if name == "fedscope" else {})})
    drawn = manager.outline(name, {"evaluate": []} if name == "fedscope" else {})
    assert [(client.client_id, client.backbone, [(task.name, task.kind, task.metric) for task in client.tasks])
            for client in drawn.clients] == [
        (client.client_id, client.backbone, [(task.name, task.kind, task.metric) for task in client.tasks])
        for client in read.clients
    ]  # fmt: skip
    assert drawn.defaults["rounds"] == read.defaults["rounds"]


def test_another_benchmark_stands_in() -> None:
    """DRAKE's ten clients with their models in small, on the drawn tasks."""
    made = manager.make("benchmark", "drake", {"stand_in": "drake-synth", "models": "tiny", "preset": "llama-1b-3b"})
    source = manager.make("benchmark", "drake-synth", {})
    assert [client.client_id for client in made.clients] == [str(index) for index in range(10)]
    names = [[[task.name for task in client.tasks] for client in found.clients] for found in (made, source)]
    assert names[0] == names[1]
    small = [client.client_id for client in made.clients if client.backbone == "tiny-llava-llama-s"]
    assert small == ["0", "1", "8", "9"]
    assert made.digest() != source.digest()
    assert "not comparable" in made.notes[0]
    many = manager.outline("fedllm-large", {"stand_in": "flan-feddpa1"})
    assert len(many.clients) == 52
    assert many.clients[8].tasks == many.clients[0].tasks  # eight tasks, then from the first again
    with pytest.raises(UserError, match="leave out 'root'"):
        manager.make("benchmark", "drake", {"stand_in": "drake-synth", "root": "/tmp"})
