"""Memory that runs out in a pass: micro-batches are halved, and gradients stay what they are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pfl_platform.adapters.host import Host
from pfl_platform.adapters.surfaces import Keys, Slot, Tensors
from pfl_platform.backbones import IGNORE
from pfl_platform.data import Sample, Turn
from pfl_platform.errors import RunStopped
from pfl_platform.federation import session
from pfl_platform.plugins import PluginManager
from pfl_platform.rng import torch_rng
from pfl_platform.testing.bench import Bench
from pfl_platform.training.driver import TorchDriver, TorchStepper
from pfl_platform.training.loop import Actor, Micro, train
from pfl_platform.training.losses import answers_under
from pfl_platform.training.relief import METRIC, Relief, out_of_memory
from pfl_platform.training.streams import Epochs
from pfl_platform.training.surfaces import Optim, Phase, Step
from pfl_platform.training.view import BatchView

ANSWERS = ("red", "a blue one", "big", "left and right and left again", "no")
SAMPLES = [Sample(str(k), (Turn(f"Say {word}.", word),)) for k, word in enumerate(ANSWERS)]
LOCAL = Keys("local/*/A", "local/*/B")
pytestmark = pytest.mark.usefixtures("one_thread")


class Recording(TorchDriver):
    """Keeps the gradients of every update."""

    def __init__(self) -> None:
        self.found: list[dict[str, Tensor]] = []

    def open(self, name: str, params: Mapping[str, Tensor], optim: Optim, private: Tensors) -> TorchStepper:
        found = self.found

        class Stepper(TorchStepper):
            def update(self, index: int) -> None:
                found.append({key: tensor.grad.clone() for key, tensor in params.items() if tensor.grad is not None})
                super().update(index)

        return Stepper(name, params, optim, private)


def small(monkeypatch: pytest.MonkeyPatch, most: int, error: Exception) -> None:
    """From here on no pass has room for more than `most` rows; it fails behind its way back, when gradients are in."""
    alone = Micro.alone

    def short(micro: Micro) -> float:
        found = alone(micro)
        if len(micro.view.samples) > most:
            raise error
        return found

    monkeypatch.setattr(Micro, "alone", short)


def trained(host: Host, relief: Relief, micro_batch: int = 0) -> tuple[list[dict[str, Tensor]], list[float]]:
    adapter = PluginManager().make("adapter", "lora", {"r": 2})
    host.load(adapter.initial(host.backbone, "local", 0))
    with torch.no_grad():
        for key, tensor in host.params.items():
            if key.endswith("/B"):
                tensor.fill_(0.01)
    driver = Recording()
    actor = Actor("alice", "tiny", lambda _: host, lambda *parts: torch_rng(0, *parts), driver, relief=relief)
    step = Step(LOCAL, answers_under({"local": 1.0}), Optim(1e-6, clip=0.0))
    done = train(actor, (Phase("p", (step,), 2, Epochs(SAMPLES, 5, 0, "test"), micro_batch),))
    return driver.found, done.losses["p"]


@pytest.fixture(scope="module")
def host() -> Host:
    manager = PluginManager()
    adapter = manager.make("adapter", "lora", {"r": 2})
    return Host(manager.make("backbone", "tiny-llama-s", {"init": 0}), adapter, (Slot("local"),))


GPU = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
CPU = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:125] DefaultCPUAllocator: not enough memory: you tried to allocate 8."
)


@pytest.mark.parametrize("error", [GPU, CPU])
def test_halved_micro_batches_have_the_gradients_of_whole_ones(
    host: Host, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    told: list[str] = []
    whole, losses = trained(host, Relief())
    small(monkeypatch, 2, error)
    relief = Relief(tell=told.append)
    halves, again = trained(host, relief)
    assert relief.parts == 4  # five rows, three, two
    assert len(told) == 2
    assert "alice in phase 'p' does not fit with 5 rows in a pass" in told[0]
    assert again == pytest.approx(losses, rel=1e-5)
    for one, other in zip(whole, halves, strict=True):
        assert sorted(one) == sorted(other)
        assert all(torch.allclose(one[key], other[key], rtol=1e-4, atol=1e-7) for key in one)
        assert max(float(value.abs().max()) for value in one.values()) > 1e-3


def test_parts_of_a_batch_count_as_the_whole_does(host: Host) -> None:
    rows = [*SAMPLES[:2], Sample("none", (Turn("Say nothing.", ""),))]
    view = BatchView(lambda _: host, "tiny", rows, step=0, rng=lambda *parts: torch_rng(0, *parts))
    parts, whole = view.parts(4), view.encoded().supervised
    assert [len(part.samples) for part in parts] == [1, 1, 1]
    assert sum(part.encoded().supervised for part in parts) == whole > 0
    for part in parts:
        output = part.forward({"local": 1.0}, grad=False)
        counts = (output.encoded.labels[:, 1:] != IGNORE).sum(dim=1)
        assert float(output.per_supervised(counts)) == pytest.approx(3 / whole)


def test_a_row_that_does_not_fit_is_said(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch, 0, GPU)
    with pytest.raises(RunStopped, match=r"alice in phase 'p' does not fit with a single row in a pass; a smaller"):
        trained(host, Relief(tell=lambda sentence: None), micro_batch=2)


def test_what_is_no_lack_of_memory_stays_what_it_is(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    assert out_of_memory(GPU)
    assert out_of_memory(CPU)
    assert out_of_memory(MemoryError())
    assert not out_of_memory(RuntimeError("shapes do not fit"))
    small(monkeypatch, 2, RuntimeError("shapes do not fit"))
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        trained(host, Relief())


def test_a_run_remembers_what_it_has_halved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = Bench("sft", tmp_path, ("tiny-llama-s", "tiny-llama-s"), ["evaluation.every=9", "local_steps=1"], rounds=2)
    small(monkeypatch, 1, GPU)
    chosen = session._Run._chosen

    def stopped(run: Any, fed: Any, progress: Any, engine: Any, round_index: int) -> Any:
        if round_index == 1:
            raise RunStopped("stopped")
        return chosen(run, fed, progress, engine, round_index)

    monkeypatch.setattr(session._Run, "_chosen", stopped)
    with pytest.raises(RunStopped):
        bench.run()
    assert "every micro-batch goes in 2 parts" in capsys.readouterr().err
    monkeypatch.setattr(session._Run, "_chosen", chosen)
    out = tmp_path / "run-1"
    (last,) = (out / "rounds").glob("*.json")
    clients = json.loads(last.read_text())["clients"]
    assert {client["metrics"][METRIC] for client in clients.values()} == {2.0}
    seen: list[int] = []
    split = Relief.split

    def watched(relief: Relief, views: Sequence[Any]) -> Any:
        seen.append(relief.parts)
        return split(relief, views)

    monkeypatch.setattr(Relief, "split", watched)
    bench.resume(out)
    assert set(seen) == {2}
    results = json.loads((out / "results.json").read_text())
    assert any("2 parts" in note for note in results["notes"])
