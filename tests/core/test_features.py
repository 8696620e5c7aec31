"""What is kept of pictures changes how long a run takes, and no bit of what it gives."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from pfl_model_zoo.families.sight import TowerSight
from pfl_platform.adapters.host import Host
from pfl_platform.adapters.surfaces import Slot
from pfl_platform.backbones import FEATURES, Backbone
from pfl_platform.data import FilePicture, Sample, Turn
from pfl_platform.errors import UserError
from pfl_platform.evaluation.generate import greedy
from pfl_platform.features.disk import Disk, digest
from pfl_platform.features.shelf import Keeper, decided_by, frozen_stages
from pfl_platform.federation import session
from pfl_platform.plugins import PluginManager
from pfl_platform.recipes import Request, Resolver
from pfl_platform.store.atomic import TEMPORARY
from run_support import left

SETS = (
    "rounds=1",
    "local_steps=2",
    "training.batch_size=2",
    "adapter.r=4",
    "benchmark.backbones=tiny-llava-llama-s",
    "benchmark.num_clients=2",
    "benchmark.train_size=8",
    "benchmark.validation_size=4",
    "benchmark.test_size=4",
    "evaluation.others=false",
    "public.size=16",
    "evaluation.max_new_tokens=2",
    "engine.threads=1",
    "backbone_options.init=0",
)


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures went through the tower at a time, a number per pass of features that are to be kept."""
    seen: list[int] = []
    before = TowerSight.run

    def run(self: TowerSight, model: Any, values: Tensor, first: int, last: int) -> Tensor:
        if first == 0:
            seen.append(len(values))
        return before(self, model, values, first, last)

    monkeypatch.setattr(TowerSight, "run", run)
    return seen


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    made: Backbone = PluginManager().make("backbone", "tiny-llava-llama-s", {"init": 0})
    return made


def pictures(folder: Path, count: int) -> list[FilePicture]:
    found = []
    for number in range(count):
        file = folder / f"{number}.png"
        pixels = torch.randint(0, 256, (20, 30, 3), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(file)
        found.append(FilePicture(file))
    return found


def test_a_run_with_and_without_kept_features_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passed: list[int]
) -> None:
    """None kept, none there yet, all there from before, and a part of them damaged: adapters, predictions and FLOPs."""
    monkeypatch.setenv("PFL_CACHE", str(tmp_path / "cache"))
    manager = PluginManager()
    seen: dict[str, tuple[dict[str, bytes], Any]] = {}
    counts: dict[str, int] = {}
    for name, kept in {"off": (0, 0), "cold": (8, 8), "warm": (8, 8), "damaged": (8, 8)}.items():
        if name == "damaged":
            for file in (tmp_path / "cache" / "features").rglob("*.safetensors"):
                content = bytearray(file.read_bytes())
                content[len(content) // 3] ^= 1
                file.write_bytes(content)
        sets = [*SETS, f"features.memory_mb={kept[0]}", f"features.disk_mb={kept[1]}"]
        config = Resolver(manager).resolve(Request(method="fedmosaic", sets=sets))
        passed.clear()
        results = session.run(config, tmp_path / name, quiet=True, plugins=manager)
        counts[name] = len(passed)
        flops = [results["cost"]["flops"], [client["cost"]["flops"] for client in results["clients"].values()]]
        seen[name] = (left(tmp_path / name), flops)
    assert len(seen["off"][0]) > 2
    assert all(found == seen["off"] for found in seen.values())
    assert counts["warm"] == 0 < counts["damaged"] < counts["cold"] < counts["off"]


def test_company_does_not_change_a_picture(backbone: Backbone, tmp_path: Path) -> None:
    """Alone, among others, twice in a batch, and at another place: the same bits. 35 are more than two passes."""
    shown = pictures(tmp_path, 35)
    alone = torch.cat([Keeper().shelf(backbone, 2).of([picture]) for picture in shown[:5]])
    together = Keeper().shelf(backbone, 2)
    assert torch.equal(together.of([*reversed(shown), shown[0]])[-1], alone[0])
    assert torch.equal(together.of(shown)[:5], alone)
    assert together.computed == 35
    nothing_kept = Keeper(memory=0).shelf(backbone, 2)
    assert torch.equal(nothing_kept.of(shown[:3]), nothing_kept.of([*shown[3:], *shown[:3]])[-3:])
    assert nothing_kept.computed == 38


def test_files_are_known_by_their_content(backbone: Backbone, tmp_path: Path) -> None:
    shown = pictures(tmp_path, 3)
    keeper = Keeper(disk=1 << 20, folder=tmp_path / "kept")
    first = keeper.shelf(backbone, 2).of(shown)
    keeper.flush()
    moved = tmp_path / "moved.png"
    shown[0].path.rename(moved)
    shown[2].path.write_bytes(moved.read_bytes())  # other content under a known name
    again = Keeper(disk=1 << 20, folder=tmp_path / "kept").shelf(backbone, 2)
    assert torch.equal(again.of([FilePicture(moved), shown[1], shown[2]]), first[[0, 1, 0]])
    assert again.computed == 0
    with pytest.raises(UserError, match=r"The picture .*gone\.png does not exist"):
        again.of([FilePicture(tmp_path / "gone.png")])
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"The picture .*broken\.png cannot be read"):
        again.of([FilePicture(tmp_path / "broken.png")])


def test_other_weights_threads_and_depths_have_shelves_of_their_own(backbone: Backbone, tmp_path: Path) -> None:
    keeper = Keeper()
    assert keeper.shelf(backbone, 2) is keeper.shelf(backbone, 2) is not keeper.shelf(backbone, 1)
    other = PluginManager().make("backbone", "tiny-llava-llama-s", {"init": 1})
    half = PluginManager().make("backbone", "tiny-llava-llama-s", {"init": 0, "dtype": "bfloat16"})
    shelves = [keeper.shelf(one, 2) for one in (backbone, other, half)]
    torch.set_num_threads(torch.get_num_threads() + 1)
    try:
        shelves.append(keeper.shelf(backbone, 2))
    finally:
        torch.set_num_threads(torch.get_num_threads() - 1)
    assert len(set(map(id, shelves))) == 4
    assert backbone.sight is not None
    assert torch.backends.cpu.get_cpu_capability() in decided_by(backbone, backbone.sight, 2)["processor"]
    shown = pictures(tmp_path, 1)
    assert shelves[2].of(shown).dtype == torch.bfloat16
    assert not torch.equal(shelves[0].of(shown), shelves[1].of(shown))


@dataclass(frozen=True)
class Reaching:
    """An adapter whose sites are said to lie elsewhere, too."""

    inner: Any
    path: str

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def install(self, *args: Any) -> Any:
        layers = dict(self.inner.install(*args))
        first = next(iter(layers.values()))
        first.site = replace(first.site, path=self.path)
        return layers


@pytest.mark.parametrize(
    ("path", "depth"),
    [("model.multi_modal_projector.linear_2", 1), ("model.vision_tower.encoder.layers.1.mlp.fc1", 0), ("", 0)],
)
def test_features_end_before_the_first_adapted_module(path: str, depth: int) -> None:
    manager = PluginManager()
    fresh = manager.make("backbone", "tiny-llava-llama-s", {"init": 0})
    host = Host(fresh, Reaching(manager.make("adapter", "lora", {"r": 2}), path), (Slot("local"),))  # type: ignore[arg-type]
    assert host.depth == depth
    assert Host(fresh, whole=True).depth == 0
    assert frozen_stages(fresh.sight, ["model.language_model.layers.0.mlp.up_proj"]) == 2


def test_a_projector_that_trains_has_gradients(backbone: Backbone, tmp_path: Path) -> None:
    """Behind kept features of the tower alone: the same logits and gradient as with the pictures themselves."""
    sample = Sample("a", (Turn("<image> What?", "yes"),), tuple(pictures(tmp_path, 1)))
    host = Host(backbone)
    weight = backbone.module("model.multi_modal_projector.linear_1").get_parameter("weight")
    gradients, logits = [], []
    try:
        for depth in (0, 1):
            host.depth = depth
            encoded = host.encode([sample])
            assert (FEATURES in encoded.inputs) == (depth == 1)
            weight.requires_grad_(True)
            logits.append(host.run(encoded.inputs, use_cache=False).logits)
            gradients.append(torch.autograd.grad(logits[-1].square().sum(), weight)[0])
    finally:
        weight.requires_grad_(False)
    assert torch.equal(*logits)
    assert torch.equal(*gradients)
    assert bool(gradients[0].any())


def test_the_disk_tier(tmp_path: Path) -> None:
    values = {digest(bytes([number])): torch.full((2, 3), float(number)) for number in range(40)}
    one, other = (Disk(tmp_path, "shelf", {"what": "a test"}, 1 << 20) for _ in range(2))
    for key, value in values.items():
        one.put(key, value)
    assert len(one) == 40
    assert all(torch.equal(one.get(key), value) for key, value in values.items())  # type: ignore[arg-type]
    assert other.get(next(iter(values))) is None
    one.flush()
    other.flush()  # looks again
    for disk in (one, other, Disk(tmp_path, "shelf", {}, 1 << 20)):
        assert len(disk) == 40
        assert all(torch.equal(disk.get(key), value) for key, value in values.items())  # type: ignore[arg-type]
    assert json.loads((tmp_path / "shelf" / "about.json").read_text()) == {"what": "a test"}
    (file,) = (tmp_path / "shelf").glob("*.safetensors")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 3])
    assert len(Disk(tmp_path, "shelf", {}, 1 << 20)) == 0  # cut off
    assert other.get(list(values)[-1]) is None  # whoever has it open already
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 255]))
    spoilt = Disk(tmp_path, "shelf", {}, 1 << 20)
    assert [spoilt.get(key) is None for key in values].count(True) == 1
    file.unlink()
    assert spoilt.get(next(iter(values))) is None


def test_the_disk_tier_keeps_to_its_budget(tmp_path: Path) -> None:
    """A shelf that was opened lately stays; one that rests gives way; a full one keeps what it has."""
    budget = 3000

    def fill(name: str, count: int) -> Disk:
        disk = Disk(tmp_path, name, {}, budget)
        for number in range(count):
            disk.put(digest(f"{name}{number}".encode()), torch.zeros(100))
            disk.flush()
        return disk

    def held() -> int:
        return sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())

    fill("first", 4)
    assert 1600 < held() <= budget
    assert len(fill("second", 4)) == 1  # all that fits beside the first
    assert held() <= budget
    os.utime(tmp_path / "first", (0, 0))
    assert len(fill("third", 4)) == 4
    assert not (tmp_path / "first").exists()
    assert held() <= budget
    leftover = tmp_path / "third" / f".segment.1-0{TEMPORARY}"
    leftover.write_bytes(bytes(budget))  # of a process that was killed
    assert len(fill("third", 1)) == 4
    os.utime(leftover, (0, 0))
    fill("third", 5)
    assert not leftover.exists()
    (tmp_path / "file").write_text("in the way")
    blocked = Disk(tmp_path / "file", "shelf", {}, budget)
    blocked.put(digest(b"a"), torch.zeros(100))
    blocked.flush()
    assert len(blocked) == 0


def test_answers_of_one_merged_map(backbone: Backbone, tmp_path: Path) -> None:
    """The merged map gives what base and slots give, but for rounding, and is gone afterwards."""
    manager = PluginManager()
    for name in ("lora", "pqlora"):
        fresh = manager.make("backbone", "tiny-llava-llama-s", {"init": 0})
        adapter = manager.make("adapter", name, {"r": 4})
        host = Host(fresh, adapter, (Slot("local"), Slot("global")))
        host.load(adapter.frozen(fresh, 0))
        generator = torch.Generator().manual_seed(0)
        host.load({key: 0.3 * torch.randn(value.shape, generator=generator) for key, value in host.params.items()})
        samples = [Sample("a", (Turn("<image> What?", "yes"),), tuple(pictures(tmp_path, 1)))]
        inputs = host.encode(samples, answers=False).inputs
        mix = {"local": 0.75, "global": 0.5}
        with torch.no_grad(), host.mixing(mix, host.masks(inputs)):
            apart = host.run(inputs).logits
            with host.merging(mix):
                together = host.run(inputs).logits
            assert torch.equal(host.run(inputs).logits, apart)
        assert not torch.equal(together, apart)  # it does round in other places, so it was another way
        assert torch.allclose(together, apart, rtol=1e-4, atol=1e-4 * float(apart.abs().max()))
        plain = greedy(host, samples, (mix,), 6)
        with host.merging(mix):
            assert greedy(host, samples, (mix,), 6) == plain
        with host.merging({"local": torch.ones(1)}):  # weights per row are no one map
            assert all(layer.merged is None for layer in host.layers.values())
