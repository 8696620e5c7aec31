"""Runs whose server adds merged deltas to the backbone: who has which backbone, and what is saved of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pfl_platform.errors import UserError
from pfl_platform.federation.setup import build
from pfl_platform.federation.tasks import Task
from pfl_platform.store.run_folder import RunFolder
from pfl_platform.testing import Bench

BACKBONES = ("tiny-llama-s", "tiny-llama-m")
RELORA = ("backbone_options.init=0", "aggregator.name=flexlora", "aggregator.options.relora=true", "local_steps=2")


def bench(folder: Path, *settings: str, method: str = "fedit", rounds: int = 2) -> Bench:
    return Bench(method, folder, BACKBONES, (*RELORA, "evaluation.others=false", *settings), rounds=rounds)


def saved(folder: Path) -> dict[str, Tensor]:
    """Module -> the delta that plain peft adds to it."""
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["alpha_pattern"] == config["rank_pattern"]  # every scale is 1
    tensors = load_file(str(folder / "adapter_model.safetensors"))
    ends = ("base_model.model.", ".lora_A.weight")
    return {
        key[len(ends[0]) : -len(ends[1])]: tensors[key.replace("lora_A", "lora_B")] @ value
        for key, value in tensors.items()
        if key.endswith(ends[1])
    }


@pytest.mark.parametrize("personalizer", ["null", "replied"])
def test_saved_adapters_hold_the_base(personalizer: str, tmp_path: Path) -> None:
    kit = bench(tmp_path, f"personalizer={personalizer}")
    run = RunFolder.open(kit.run(clients=2))
    record = run.rounds()[-1]
    newest = next(address for place, address in record["server"]["tensors"].items() if place.startswith("base "))
    base = run.store.get(newest if personalizer == "replied" else record["bases"]["a"]["address"])
    own = run.store.get(record["states"]["a"])
    scale = float(kit.manager.make("adapter", "lora", {"r": 4}).signature()["scale"])
    found = saved(run.adapter_folder("a"))
    assert len(found) == len(base)
    for key, shift in base.items():
        site = key.split("/")[1]
        expected = shift.clone()
        if personalizer == "null":  # the reply's adapter is a fresh one, which adds nothing
            expected += scale * own[f"global/{site}/B"] @ own[f"global/{site}/A"]
        path = next(path for path in found if path.endswith(site.partition(".")[2]) and site[5:].split(".")[0] in path)
        assert shift.any()
        assert torch.allclose(found[path], expected, atol=1e-5 * float(expected.abs().max()))


def test_who_is_absent_keeps_the_backbone_of_its_last_turn(tmp_path: Path, executed: list[Task]) -> None:
    run = RunFolder.open(bench(tmp_path, "cohort=1", "seed=3", rounds=5).run(clients=2))
    records = run.rounds()
    last: dict[str, str | None] = {"a": None, "b": None}
    received = dict.fromkeys(last, 0)
    absences = 0
    for task in executed:
        if task.stage == "round":
            last[task.actor] = task.base
            received[task.actor] += task.base_bytes
        elif task.stage == "score":
            assert task.base == last[task.actor]
            absences += task.base is not None
    assert absences > 0  # somebody who had a base was absent, else nothing was tested
    assert len({task.base for task in executed if task.stage == "round"}) == 5  # it moved in every round
    bases = records[-1]["bases"]
    assert {name: base["address"] for name, base in bases.items()} == {k: v for k, v in last.items() if v is not None}
    assert {name: base["sent"] for name, base in bases.items()} == {name: received[name] for name in bases}
    # Every round brings as much, and who was away for some of them gets all of it at once.
    share = next(task.base_bytes for task in executed if task.base_bytes)
    turns = [task for task in executed if task.stage == "round"]
    latest = {task.actor: task.round_index for task in turns}
    assert received == {name: share * latest.get(name, 0) for name in received}


@pytest.mark.parametrize("method", ["ditto", "fedsim", "feddat", "potara"])
def test_what_stays_at_a_client_beside_a_moving_backbone_is_refused(method: str, tmp_path: Path) -> None:
    made = bench(tmp_path, "aggregator=flexlora", "aggregator.relora=true", method=method)
    with pytest.raises(UserError, match="clients keep 'local/.*', which would count twice"):
        build(made.config(), made.manager, made.benchmark())


def test_own_adapters_beside_a_moving_backbone_are_refused(tmp_path: Path) -> None:
    made = bench(tmp_path, "aggregator=flexlora", "aggregator.relora=true", "objective.guide=kd", method="guided")
    with pytest.raises(UserError, match="would count it twice; set guide=hard"):
        build(made.config(), made.manager, made.benchmark())
