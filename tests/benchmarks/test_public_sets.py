"""Public sets by their names: three forms of records, pictures, what is missing, and a run that uses one."""

from __future__ import annotations

import doctest
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pfl_benchmarks.publics import loading
from pfl_benchmarks.publics.options import SETS
from pfl_benchmarks.publics.plugin import pfl_check_data, pfl_make_benchmark
from pfl_platform.cli import main
from pfl_platform.config import RunConfig
from pfl_platform.data import DATA, FixedBenchmark
from pfl_platform.errors import UserError
from pfl_platform.federation.setup import public_set
from pfl_platform.plugins import PluginManager
from pfl_platform.recipes import Request, Resolver, recipes
from text_support import make_suite, put

TURNS = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]


def load(name: str, root: Path, **options: Any) -> FixedBenchmark:
    made = pfl_make_benchmark(name, {"root": str(root), **options})
    assert isinstance(made, FixedBenchmark)
    return made


def draw(path: Path, shade: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (shade, 0, 0)).save(path)


def test_examples_in_the_documentation_run() -> None:
    result = doctest.testmod(loading)
    assert result.attempted > 0
    assert result.failed == 0


def test_conversations_about_pictures_come_back(tmp_path: Path) -> None:
    for number in range(3):
        draw(tmp_path / "train2017" / f"{number}.jpg", number * 90)
    records = [{"id": number, "image": f"{number}.jpg", "conversations": TURNS} for number in (0, 1, 2, 1)]
    put(tmp_path / "llava_instruct_150k.json", records)
    benchmark = load("llava-instruct", tmp_path)
    assert benchmark.clients == ()
    samples = benchmark.public("llava-instruct", 100, 0)
    assert [sample.id for sample in samples] == ["llava-instruct/0", "llava-instruct/1#1", "llava-instruct/2"]
    assert [picture.load().size for sample in samples for picture in sample.pictures] == [(4, 4)] * 3
    assert len(load("llava-instruct", tmp_path, most=2).public(None, 100, 0)) == 2
    put(tmp_path / "llava_instruct_158k.json", records[:1])  # the first of the names holds
    assert len(load("llava-instruct", tmp_path).public(None, 100, 0)) == 1
    assert len(load("llava-instruct", tmp_path, file="llava_instruct_150k.json").public(None, 100, 0)) == 3


@pytest.mark.parametrize("answer", ["output", "response"])
@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_instructions_come_back(tmp_path: Path, answer: str, ending: str) -> None:
    records = [{"instruction": "Add.", "input": "1 2", answer: "3"}, {"instruction": "Hi", "input": "", answer: "Ho"}]
    put(tmp_path / f"chatbotit.{ending}", records)
    samples = load("chatbotit", tmp_path).public(None, 9, 0)
    assert [(sample.turns[0].human, sample.turns[0].answer) for sample in samples] == [("Add.\n1 2", "3"), ("Hi", "Ho")]


def test_what_is_missing_or_wrong_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds none of the files of LLaVA.*data layout llava-instruct"):
        load("llava-instruct", tmp_path)
    file = put(tmp_path / "llava_instruct_158k.json", [{"id": 0, "image": "0.jpg", "conversations": TURNS}])
    with pytest.raises(UserError, match=r"record 0: the picture .*0\.jpg does not exist"):
        load("llava-instruct", tmp_path)
    found = pfl_check_data("llava-instruct", {"root": str(tmp_path)})
    assert found is not None
    assert [(state.state, state.samples, state.official) for state in found.files] == [
        ("there", 1, 157_712), ("missing", 0, 1),
    ]  # fmt: skip
    assert "1 of 1 are missing in" in found.files[1].said
    with pytest.raises(UserError, match="The folder of pictures .*none does not exist"):
        load("llava-instruct", tmp_path, pictures=str(tmp_path / "none"))
    for records, message in (
        ([], "holds no record"),
        ([{"instruction": "What?"}], "record 0: a record has 'conversations', or an 'instruction' with its"),
        ([{"instruction": "What?", "response": None}], "has null as its 'value'"),
        ([{"image": "../x.png", "conversations": TURNS}], "leaves the root"),
    ):
        put(file, records)
        with pytest.raises(UserError, match=message):
            load("llava-instruct", tmp_path)
    (tmp_path / "other.json").symlink_to("/etc/hostname")
    with pytest.raises(UserError, match="leaves the folder .* through a link"):
        load("llava-instruct", tmp_path, file="other.json")


def test_the_recipes_resolve_for_every_size_and_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_suite(tmp_path / "drake", "drake")
    monkeypatch.setenv(DATA, str(tmp_path))
    resolver = Resolver(PluginManager())
    sizes = []
    for name in ("fedmosaic-table26", "fedmosaic-table27"):
        assert name in recipes()
        for row in resolver.rows(Request(recipe=name)):
            config = resolver.resolve(Request(recipe=name, row=row))
            assert isinstance(config, RunConfig)
            assert (config.method, config.benchmark.name) == ("fedmosaic", "drake")
            sizes.append((config.public.name, config.public.size, config.published["mean"]))
    assert [size for name, size, _ in sizes[:5]] == [625, 1_250, 2_500, 5_000, 10_000]
    assert [name for name, _, _ in sizes[5:]] == list(SETS)
    assert sizes[3][2] == sizes[5][2] == 67.96


def test_a_run_takes_its_public_set_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(DATA, "")
    monkeypatch.chdir(tmp_path)
    spoken = [{"instruction": f"Say {number}.", "output": str(number)} for number in range(8)]
    put(tmp_path / "data" / "chatbotit" / "chatbotit.json", spoken)
    words = ["run", "-p", "sft", "-q", "--rounds", "1", "--local-steps", "1", "--public", "chatbotit", "--data", "data"]
    for text in ("benchmark.num_clients=2", "evaluation.items=1", "evaluation.others=false",
                 "evaluation.baseline=false"):  # fmt: skip
        words += ["--set", text]
    assert main([*words, "--threads", "1", "--out", "run"]) == 0, capsys.readouterr().err
    config = RunConfig.model_validate(json.loads((tmp_path / "run" / "results.json").read_text("utf-8"))["config"])
    found = public_set(config, FixedBenchmark("none", (), ""), PluginManager())
    assert [sample.turns[0].answer for sample in found] == [str(number) for number in range(8)]
    assert main(["run", "-p", "sft", "-b", "chatbotit", "--data", "data"]) == 2
    assert "The benchmark 'chatbotit' has no clients" in capsys.readouterr().err


@pytest.mark.realdata
def test_the_real_slices(realdata: Path, tmp_path: Path) -> None:
    root = realdata / "llava_format"
    names = {raw["image"] for raw in json.loads((root / "llava_instruct_90.json").read_text(encoding="utf-8"))}
    for shade, name in enumerate(sorted(names)):
        draw(tmp_path / name, 8 * shade)
    for file in ("llava_instruct_90.json", "coco2014_val_gpt4_qa_30x3.jsonl"):
        samples = load("llava-instruct", root, file=file, pictures=str(tmp_path)).public(None, 1_000, 0)
        assert len(samples) == 90
        assert all(sample.turns[0].human.startswith("<image>\n") for sample in samples)
    with pytest.raises(UserError, match=r"COCO_val2014_\d+\.jpg does not exist"):
        load("llava-instruct", root)
    with pytest.raises(UserError, match="record 0: a record has 'conversations', or an 'instruction' with its"):
        load("chatbotit", realdata / "fed_llm_large", file="chatbot_testset.json")
