"""What a federation in a folder allows beside what it refuses, and what a run says and keeps of its data."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pfl_benchmarks.folder.plugin import pfl_make_benchmark
from pfl_benchmarks.folder.records import read_records
from pfl_platform.cli import main
from pfl_platform.errors import UserError
from pfl_platform.federation import session

QUICK = (
    "--rounds=1", "--local-steps=1", "--threads=1", "--set=training.batch_size=2", "--set=adapter.r=4",
    "--set=evaluation.max_new_tokens=1", "--set=evaluation.baseline=false", "--set=backbone_options.init=0",
    "--plugin=sft", "--out=out",
)  # fmt: skip


def turns(question: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": "x"}]


@pytest.mark.parametrize(
    ("given", "made"),
    [
        (["a", "b", 3, None], ["a", "b", "3", "None"]),
        (["a", "a", "b"], ["a#0", "a#1", "b"]),
        (["a", "a", "a#1"], ["a#0", "a#1#1", "a#1"]),
        (["a#1#1", "a", "a#1", "a"], ["a#1#1", "a#1#1#1", "a#1", "a#3"]),
        (["a#1", "a#1", "a", "a"], ["a#1#0", "a#1#1", "a#2", "a#3"]),
    ],
)
def test_ids_are_unique_and_kept_where_nothing_clashes(tmp_path: Path, given: list[Any], made: list[str]) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps([{"id": name, "conversations": turns("q")} for name in given]), encoding="utf-8")
    found = [sample.id for sample in read_records(file, tmp_path, "p", choices=False)]
    assert found == [f"p/{name}" for name in made]
    assert len(set(found)) == len(found)


def test_a_scenario_given_as_a_path_may_lie_anywhere(tiny: Any, tmp_path: Path) -> None:
    (tiny.root / "scenarios" / "tiny.json").rename(tmp_path / "mine.json")
    link = tiny.root / "scenarios" / "tiny.json"
    link.symlink_to(tmp_path / "mine.json")
    for path in (tmp_path / "mine.json", link, "../mine.json"):
        made = pfl_make_benchmark("folder", {"path": str(tiny.root), "scenario": str(path)})
        assert made is not None
        assert len(made.clients) == 2


def test_links_within_the_folder_are_followed(tiny: Any) -> None:
    file = tiny.root / "dataset" / "Sum" / "train" / "dataset-0.json"
    file.rename(tiny.root / "records.json")
    file.symlink_to(tiny.root / "records.json")
    assert pfl_make_benchmark("folder", {"path": str(tiny.root)}) is not None


@pytest.mark.parametrize("check", ["full", "header"])
def test_large_pictures_that_were_allowed_can_be_opened(tiny: Any, check: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow warns above its limit and refuses above twice of it, also when a picture is used."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    made = pfl_make_benchmark("folder", {"path": str(tiny.root), "max_pixels": 144, "check": check})
    assert made is not None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert made.clients[0].tasks[0].test[0].pictures[0].load().size == (12, 12)


def test_a_picture_that_has_become_huge_is_a_sentence(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = pfl_make_benchmark("folder", {"path": str(tiny.root)})
    assert made is not None
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with pytest.raises(UserError, match=r"test-0\.png cannot be read: Image size"):
        made.clients[0].tasks[0].test[0].pictures[0].load()


def test_a_run_tells_of_overlap_and_keeps_to_its_public_set(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped in preparation, it goes on only with the public set that it began with."""
    monkeypatch.chdir(tmp_path)
    tiny.scenario = [tiny.scenario[1] | {"model_id": "tiny-llama-s"}]
    tiny.records["Sum/test/dataset-0"][0]["conversations"] = tiny.records["Sum/train/dataset-0"][2]["conversations"]
    tiny.write()
    public = tmp_path / "public.json"
    content = json.dumps([{"id": 1, "conversations": turns("new?")}])
    public.write_text(content, encoding="utf-8")

    def stopped(*_: Any) -> Any:
        raise UserError("Stopped here.")

    with monkeypatch.context() as context:
        context.setattr(session, "prepare", stopped)
        assert main(["run", *QUICK, "--benchmark", str(tiny.root), "--public", "./public.json"]) == 1
    told = capsys.readouterr().err
    note = "note: Of 4 test records of the task 'Sum-0', 1 stand in training data too, 1 of them in the task's own."
    assert note in told.splitlines()

    public.write_text(content.replace("new?", "newer?"), encoding="utf-8")
    assert main(["resume", "out", "--quiet"]) == 2
    assert capsys.readouterr().err == (
        "error: The run out cannot go on with the same numbers: "
        "The public set is not the one that the run began with.\n"
    )
    public.write_text(content, encoding="utf-8")
    assert main(["resume", "out"]) == 0
