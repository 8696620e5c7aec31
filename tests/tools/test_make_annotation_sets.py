"""Data sets of DRAKE and HFLB from annotation files: keyword rules, split, caps, and what a loader makes of them."""

from __future__ import annotations

import doctest
import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from pfl_benchmarks.suites.plugin import pfl_make_benchmark
from text_support import put


@pytest.fixture
def tool(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(checkout / "tools"))
    return importlib.import_module("make_annotation_sets")


def draw(folder: Path, names: Sequence[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        Image.new("RGB", (3, 3), (number % 256, number // 256, 0)).save(folder / name)


def read(root: Path, name: str, subset: int) -> dict[str, list[dict[str, Any]]]:
    return {
        split: json.loads((root / "dataset" / name / split / f"dataset-{subset}.json").read_text(encoding="utf-8"))
        for split in ("train", "test")
    }


def test_the_rules_of_the_documentation_hold(tool: ModuleType) -> None:
    result = doctest.testmod(importlib.import_module("annotation_sets.rules"))
    assert result.attempted > 0
    assert result.failed == 0


def test_vsr_is_split_by_pictures_and_loaded(tool: ModuleType, tmp_path: Path) -> None:
    names = [f"{number}.jpg" for number in range(20)]
    draw(tmp_path / "coco" / "train2017", names)
    records = [
        {"image": names[number % 20], "caption": f"The cat is left of dog {number}.", "label": number % 2}
        for number in range(40)
    ] + [{"image": "gone.jpg", "caption": "None.", "label": 1}]
    file = put(tmp_path / "vsr.jsonl", records)
    tool.main(["--name", "VSR", "--annotations", str(file), "--pictures", str(tmp_path / "coco"), "--out",
               str(tmp_path / "drake")])  # fmt: skip
    found = read(tmp_path / "drake", "VSR", 0)
    assert [len(found[split]) for split in ("train", "test")] == [32, 8]
    seen = {split: {record["image"][0] for record in part} for split, part in found.items()}
    assert not seen["train"] & seen["test"]
    for part in found.values():
        for record in part:
            asked, said = (turn["value"] for turn in record["conversations"])
            number = int(asked.split("dog ")[1].split(".")[0])
            assert said == str(bool(number % 2))
            assert asked.endswith("Choice list:[True, False]. Your answer is:")
    made = pfl_make_benchmark("drake", {"root": str(tmp_path / "drake"), "missing": "skip", "models": "tiny"})
    assert made is not None
    (client,) = made.clients
    assert (client.client_id, [task.name for task in client.tasks]) == ("1", ["VSR-0"])
    assert client.tasks[0].test[0].options == ("True", "False")
    assert client.tasks[0].test[0].pictures[0].load().size == (3, 3)


def test_paintings_go_by_the_verb_and_get_other_answers(tool: ModuleType, tmp_path: Path) -> None:
    verbs = ("stand", "sit", "wear", "be")
    records = [
        {"image": f"{number}.jpg", "question": f"what {verb} there", "answer": f"{verb} thing {number // 4 % 6}",
         "need_external_knowledge": number == 99}
        for number in range(100) for verb in (verbs[number % 4],)
    ]  # fmt: skip
    draw(tmp_path / "art", [f"{number}.jpg" for number in range(100)])
    file = put(tmp_path / "aqua.json", records)
    tool.main(["--name", "AQUA", "--annotations", str(file), "--pictures", str(tmp_path / "art"), "--out",
               str(tmp_path / "hflb"), "--copy"])  # fmt: skip
    for subset, verb in enumerate(verbs):
        for part in read(tmp_path / "hflb", "AQUA", subset).values():
            for record in part:
                asked, said = (turn["value"] for turn in record["conversations"])
                options = asked.split("Choice list:[")[1].split("]")[0].split(" | ")
                assert [option[:3] for option in options] == ["A. ", "B. ", "C. ", "D. "]
                texts = [option[3:] for option in options]
                assert len(set(texts)) == 4
                assert all(text.startswith(f"{verb} thing") for text in texts)
                number = int(record["image"][0].rpartition("/")[2].removesuffix(".jpg"))
                assert texts["ABCD".index(said)] == f"{verb} thing {number // 4 % 6}"
    whole = sum(len(part) for subset in range(4) for part in read(tmp_path / "hflb", "AQUA", subset).values())
    assert whole == 99


def test_subsets_are_capped_and_the_seed_repeats_them(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tool.MOST, "train", 10)
    monkeypatch.setitem(tool.MOST, "test", 3)
    members = [f"dev-{number}-img0" for number in range(40)]
    draw(tmp_path / "nlvr", [f"{name}.png" for name in members])
    records = [
        {"reference": members[number], "target_hard": members[number - 1], "caption": f"change {number}",
         "img_set": {"members": members[:6]}}
        for number in range(40)
    ]  # fmt: skip
    file = put(tmp_path / "cirr.json", records)
    for out in ("first", "again"):
        tool.main(["--name", "CIRR", "--annotations", str(file), "--pictures", str(tmp_path / "nlvr"), "--out",
                   str(tmp_path / out)])  # fmt: skip
    found = read(tmp_path / "first", "CIRR", 0)
    assert found == read(tmp_path / "again", "CIRR", 0)
    assert [len(part) for part in found.values()] == [10, 3]
    for record in found["train"]:
        asked, said = (turn["value"] for turn in record["conversations"])
        number = int(asked.split("change ")[1].split("\n")[0])
        right = record["image"][1].endswith(f"/{members[number - 1]}.png")
        assert (said == "True") == right


def test_wrong_files_are_refused(tool: ModuleType, tmp_path: Path) -> None:
    draw(tmp_path / "p", ["1.jpg"])
    for content, message in (
        ('[{"image": "1.jpg"}]', "not those of VSR: 'caption' is missing"),
        ("{", "neither a JSON list nor JSON lines"),
        ('[{"image": "2.jpg", "caption": "c", "label": 1}]', "None of the pictures of 1 questions"),
        ('[{"image": "1.jpg", "caption": "c", "label": 1}]', "too few to be split"),
    ):
        file = put(tmp_path / "a.json", content)
        with pytest.raises(SystemExit, match=message):
            tool.main(["--name", "VSR", "--annotations", str(file), "--pictures", str(tmp_path / "p"), "--out",
                       str(tmp_path / "o")])  # fmt: skip


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "files", "subsets", "whole"),
    [
        ("VSR", "vsr/random/*.jsonl", 1, 1_300),
        ("NLVR2", "nlvr2/*.json", 2, 1_000),
        ("NLVR2_feddat", "nlvr2/*.json", 4, 1_000),
        ("CIRR", "cirr/*.json", 1, 1_000),
        ("FashionIQ", "fashioniq/*.json", 1, 1_200),
        ("AQUA", "aqua/*.json", 4, 1_000),
    ],
)
def test_the_real_annotations_become_questions(
    tool: ModuleType, realdata: Path, name: str, files: str, subsets: int, whole: int
) -> None:
    np = importlib.import_module("numpy")
    items = importlib.import_module("annotation_sets.items")
    found = sorted((realdata / "drake_hflb" / "annotations").glob(files))
    records = [record for file in found for record in items.lines_or_list(file)]
    made = list(items.MAKERS[name](records, np.random.default_rng(0)))
    assert {item.subset for item in made} == set(range(subsets))
    counts = [sum(item.subset == subset for item in made) for subset in range(subsets)]
    assert min(counts) >= 30
    if name == "AQUA":
        assert len(made) == sum(not record["need_external_knowledge"] for record in records)
        assert all(len({item.answer, *item.wrong}) == 4 for item in made)
    else:
        assert len(made) == whole
        right = sum(item.answer == "True" for item in made) / whole
        assert 0.4 < right < 0.6
