"""Blocks through `torch.compile`: the same run but for its last bits, and refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch._dynamo

from pfl_platform.adapters.host import Host
from pfl_platform.adapters.surfaces import Keys, Slot
from pfl_platform.config import EngineOptions
from pfl_platform.engines import compiling
from pfl_platform.engines.inprocess import InProcessEngine
from pfl_platform.errors import UserError
from pfl_platform.federation.rounds import drive, one_round, prepare
from pfl_platform.federation.setup import build
from pfl_platform.plugins import PluginManager
from pfl_platform.rng import torch_rng
from pfl_platform.store.memory import MemoryStore
from pfl_platform.testing import Bench
from pfl_platform.testing.bench import samples
from pfl_platform.training.losses import answer_loss
from pfl_platform.training.view import BatchView

pytestmark = [  # of torch's own making
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
]


def adapters(folder: Path, method: str, compiler: str) -> tuple[dict[str, torch.Tensor], int]:
    """One client's tensors after two rounds, and how many blocks torch has compiled."""
    torch._dynamo.reset()
    bench = Bench(
        method, folder, ("tiny-llama-s", "tiny-llama-s"), ["backbone_options.init=0", f"engine.compile={compiler}"]
    )
    setup, store = build(bench.config(), bench.manager, bench.benchmark()), MemoryStore()
    fed, engine = setup.federation(store), InProcessEngine(setup.worker(store))
    torch._dynamo.utils.counters.clear()
    progress = drive(prepare(fed, setup.parts), engine)
    for index in range(2):
        progress = drive(one_round(fed, setup.parts, progress, index), engine).progress
    state = store.get(progress.states[fed.clients[-1].client_id])
    return dict(state), torch._dynamo.utils.counters["stats"]["unique_graphs"]


def gradients(compiler: str, dropout: float) -> tuple[dict[str, torch.Tensor], torch.Tensor, int]:
    """Of one batch through one backbone, what its last linear map read in a pass after that, and how many operators
    were compiled."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    manager = PluginManager()
    host = Host(
        manager.make("backbone", "tiny-llama-s", {"init": 0}),
        manager.make("adapter", "lora", {"r": 2, "dropout": dropout}),
        [Slot("own")],
    )
    generator = torch.Generator().manual_seed(0)
    for tensor in host.params.values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.05)
    if compiler != "off":
        compiling.compile_blocks(host, compiler)
    batch = samples("compiled", 2)
    view = BatchView(lambda _: host, "tiny-llama-s", batch, step=0, rng=torch_rng)
    chosen = host.select(Keys("own/*"))
    found = torch.autograd.grad(answer_loss(view.forward({"own": 1.0})).sum(), list(chosen.values()))
    count = torch._dynamo.utils.counters["stats"]["calls_captured"]
    last = host.backbone.last_linear
    return dict(zip(chosen, found, strict=True)), view.forward({}, grad=False, taps=(last,)).taps[last], count


@pytest.mark.parametrize("dropout", [0.0, pytest.param(0.1, marks=pytest.mark.slow)])
def test_compiled_blocks_give_the_same_gradients_and_the_same_dropout(dropout: float) -> None:
    plain, read, none = gradients("off", dropout)
    found, read_too, operators = gradients("aot_eager", dropout)
    assert none == 0 < operators
    torch.testing.assert_close(read_too, read)  # a tap in a block that was compiled before
    for key, value in plain.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-6, msg=key)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "compiler"), [("sft", "inductor"), ("ditto", "aot_eager")])
def test_a_compiled_run_is_the_run(method: str, compiler: str, tmp_path: Path) -> None:
    plain, none = adapters(tmp_path, method, "off")
    found, graphs = adapters(tmp_path, method, compiler)
    assert none == 0 < graphs
    assert plain.keys() == found.keys()
    for key, value in plain.items():  # an optimiser makes much of the last bits of single small gradients
        assert (found[key] - value).norm() <= 1e-4 * value.norm(), key


def test_a_mix_that_is_learned_in_every_layer_is_not_compiled(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'fedmosaic' learns in every layer"):
        adapters(tmp_path, "fedmosaic", "aot_eager")


@pytest.mark.parametrize(
    ("options", "said"),
    [({"name": "deepspeed", "zero": 3}, "spread over ranks"), ({"batch_clients": 4}, "side by side are not compiled")],
)
def test_what_is_compiled_nowhere(options: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        compiling.check(EngineOptions(compile="inductor", **options))  # type: ignore[arg-type]
    compiling.check(EngineOptions(compile="off", **options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("device", "said"), [("cpu", r"needs a C\+\+ compiler"), ("cuda", r"needs (the package triton|a C )")]
)
def test_a_machine_without_a_compiler(device: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=said):
        compiling.check_here(EngineOptions(compile="inductor", device=device))
    compiling.check_here(EngineOptions(compile="aot_eager", device=device))
    compiling.check(EngineOptions(compile="inductor", device=device))  # a plan is for whatever machine
