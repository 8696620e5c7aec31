"""Federations from a folder: the real slices in their authors' form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pfl_benchmarks.folder.benchmark import FolderBenchmark
from pfl_benchmarks.folder.plugin import pfl_make_benchmark
from pfl_platform.errors import UserError


def load(path: Path, **options: Any) -> FolderBenchmark:
    made = pfl_make_benchmark("folder", {"path": str(path), **options})
    assert isinstance(made, FolderBenchmark)
    return made


@pytest.mark.realdata
def test_real_nlvr_and_cifar(realdata: Path, tmp_path: Path) -> None:
    root = realdata / "drake_hflb"
    tasks = [
        {"dataset": name, "subset_id": subset, "type": "multi-choice"}
        for name, subset in (("NLVR", 0), ("CIFAR10", 0), ("CIFAR10", 1))
    ]
    scenario = tmp_path / "real.json"
    models = ("thkim0305/llama3.2_1B_vl", "thkim0305/llama3.2_3B_vl")
    clients = [
        {"client_id": 0, "model_id": models[0], "datasets": tasks[:2]},
        {"client_id": 1, "model_id": models[1], "datasets": tasks[2:]},
    ]
    scenario.write_text(json.dumps(clients), encoding="utf-8")
    benchmark = load(root, scenario=str(scenario), backbone_map={models[0]: "tiny-llava-llama-s"})
    assert [client.backbone for client in benchmark.clients] == ["tiny-llava-llama-s", models[1]]
    nlvr, pairs, kinds = (task for client in benchmark.clients for task in client.tasks)
    assert [(len(task.train), len(task.validation), len(task.test)) for task in (nlvr, pairs, kinds)] == [
        (855, 95, 500), (360, 40, 150), (360, 40, 150),
    ]  # fmt: skip
    assert nlvr.train[0].options == ("True", "False")
    assert len(pairs.test[0].pictures) == 2
    assert all(len(sample.options) == 4 and sample.gold[0] in "ABCD" for sample in kinds.test)
    assert kinds.test[0].pictures[0].load().size == (32, 32)
    assert all(line.in_any_train == 0 for line in benchmark.overlap_report())
    capped_benchmark = load(root, scenario=str(scenario), max_train=20, max_test=10, check="header")
    assert [len(client.tasks[0].test) for client in capped_benchmark.clients] == [10, 10]


@pytest.mark.realdata
def test_real_scenarios_name_data_that_is_not_there(realdata: Path) -> None:
    root = realdata / "drake_hflb"
    with pytest.raises(UserError, match=r"several scenarios; choose one .*DRAKE_hetero_llava_llama_1B_3B\.json"):
        load(root)
    with pytest.raises(
        UserError, match=r"DRAKE_hetero.*the client '0' needs .*Fashion200K/train/dataset-0\.json, which does not"
    ):
        load(root, scenario="DRAKE_hetero_llava_llama_1B_3B")
    with pytest.raises(UserError, match="a list of tasks, not a scenario"):
        load(root, scenario="HFLB_task_list")


@pytest.mark.realdata
def test_real_llava_instruct_names_pictures_that_are_not_there(realdata: Path, tmp_path: Path) -> None:
    file = realdata / "llava_format" / "llava_instruct_90.json"
    with pytest.raises(
        UserError, match=r"llava_instruct_90\.json, record 0: the picture .*COCO_val2014_\d+\.jpg does not exist"
    ):
        pfl_make_benchmark("folder", {"public": str(file)})
    for index, raw in enumerate(json.loads(file.read_text(encoding="utf-8"))):
        Image.new("RGB", (4, 4), (index, 0, 0)).save(tmp_path / raw["image"])
    made = pfl_make_benchmark("folder", {"public": str(file), "public_root": str(tmp_path)})
    assert made is not None
    assert len(made.public(None, 1000, 0)) == 90
