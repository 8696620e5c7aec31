"""`data check`, `data layout` and `list benchmarks`: what is expected, what is there, how benchmarks compare."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from pfl_platform.cli import main
from pfl_platform.data import DATA
from pfl_platform.plugins import available
from text_support import commonsense_record, make_commonsense, make_flan, make_scope, make_suite, put

FEATURES = ("multi data sources", "distribution shifts", "multi image", "multi modalities", "unseen evaluation")
TABLE_1 = {
    "sni": ("yes", "no", "-", "no", "no"),
    "fedaya": ("no", "no", "-", "no", "no"),
    "flan-feddpa1": ("yes", "no", "-", "no", "no"),
    "hflb": ("yes", "no", "no", "yes", "no"),
    "drake": ("yes", "yes", "yes", "yes", "yes"),
}
"""FedMosaic's Table 1, of the benchmarks that are here."""


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a command: exit code and what it printed, as JSON where it was asked for."""
    monkeypatch.setenv(DATA, "")

    def run(*words: str) -> tuple[int, Any]:
        code = main(list(words))
        out, err = capsys.readouterr()
        return code, json.loads(out) if "--json" in words and not err else out + err

    return run


def test_benchmarks_are_listed_with_the_columns_of_table_1(said: Any) -> None:
    code, rows = said("list", "benchmarks", "--json")
    assert code == 0
    found = {row["name"]: row for row in rows}
    for name, features in TABLE_1.items():
        assert tuple(found[name][feature] for feature in FEATURES) == features, name
    assert (found["drake"]["clients x tasks"], found["fedllm-large"]["scored by"]) == ("10 x 4", "ROUGE-L")
    assert found["folder"]["clients x tasks"] == "-"
    code, text = said("list", "benchmarks")
    assert all(column in text.split("\n")[0] for column in FEATURES)


def test_every_card_says_where_files_come_from_and_go(said: Any) -> None:
    for plugin in available("benchmark").values():
        about = plugin.about
        if "folders" in about and plugin.package == "pfl-platform":
            assert about["folders"], plugin
            for key in ("layout", "published_at", "licence", "citation"):
                assert about[key], (plugin, key)
            code, told = said("data", "layout", plugin.name, "--json")
            assert code == 0
            assert told["layout"] == about["layout"]
    code, text = said("data", "layout", "drake")
    assert "$PFL_DATA/drake/" in text
    assert "dataset/<Dataset>/train/dataset-<subset>.json" in text
    assert "SNUMPR/DRAKE" in text
    assert said("data", "layout", "draek")[0] == 2
    assert "no files are listed; see" in said("data", "layout", "folder")[1]


def test_a_broken_picture_is_no_whole_federation(tmp_path: Path, said: Any) -> None:
    root = make_suite(tmp_path / "drake", "drake")
    picture = root / "dataset" / "one.png"
    picture.write_bytes(picture.read_bytes()[:20])
    code, found = said("data", "check", "drake", "--data", str(tmp_path), "--json")
    assert (code, found["whole"]) == (1, False)
    assert all(file["state"] == "there" for file in found["files"])
    assert "one.png" in found["faults"][0]


def test_a_whole_federation_and_what_is_missing_or_broken_in_it(tmp_path: Path, said: Any) -> None:
    root = make_suite(tmp_path / "drake", "drake")
    code, found = said("data", "check", "drake", "--data", str(tmp_path), "--json")
    assert (code, found["whole"], len(found["files"])) == (0, True, 94)
    assert {file["samples"] for file in found["files"]} == {2, 3}
    assert found["files"][0] == {
        "path": "dataset/Fashion200K/train/dataset-0.json",
        "state": "there",
        "samples": 3,
        "official": 10_000,
        "said": "",
    }
    (root / "dataset" / "WCVQA" / "test" / "dataset-3.json").unlink()
    put(root / "dataset" / "TQA" / "train" / "dataset-0.json", '[{"id": 1},')
    shutil.copy(root / "dataset/VSR/train/dataset-0.json", root / "dataset/VSR/test/dataset-0.json")
    code, text = said("data", "check", "drake", "--data", str(tmp_path))
    assert code == 1
    assert "94 expected: 92 there, 1 missing, 1 broken." in text
    assert "is not valid JSON: " in text
    put(root / "dataset" / "TQA" / "train" / "dataset-0.json", [])
    text = said("data", "check", "drake", "--set", f"root={root}")[1]
    assert "TQA/train/dataset-0.json holds no record" in text
    shutil.copy(root / "dataset/TQA/test/dataset-0.json", root / "dataset/TQA/train/dataset-0.json")
    text = said("data", "check", "drake", "--set", f"root={root}")[1]
    assert "Of 3 test records of the task 'VSR-0', 3 stand in training data too, 3 of them in the task's own." in text
    assert "Licence: scenarios MIT" in text


def test_text_sets_are_counted_and_compared(tmp_path: Path, said: Any) -> None:
    make_flan(tmp_path / "flan" / "potara8", "flan8")
    make_commonsense(tmp_path / "commonsense")
    make_scope(tmp_path / "fedscope")
    code, found = said("data", "check", "flan8", "--data", str(tmp_path), "--json")
    assert code == 0
    assert [(file["samples"], file["official"]) for file in found["files"]] == [(6, 2_000)] * 8 + [(24, 2_400)]
    assert found["notes"] == ["No test sample stands in the train file of its task."]
    same = [commonsense_record("piqa", number, "train") for number in range(3)]
    put(tmp_path / "commonsense" / "dataset" / "piqa" / "test.json", same)
    code, found = said("data", "check", "commonsense", "--data", str(tmp_path), "--json")
    assert found["notes"] == ["Of 3 test samples of 'piqa', 3 stand in its train file too."]
    assert [file["official"] for file in found["files"][:2]] == [1_119, 1_172]
    code, found = said("data", "check", "fedscope", "--data", str(tmp_path), "--json")
    assert (code, len(found["files"]), found["whole"]) == (0, 40, True)
    code, text = said("data", "check", "fedscope", "--data", str(tmp_path), "--set", "code=code_alpaca")
    assert code == 1
    assert "FS_LLM_Instruct/train/dataset-20.json" in text


def test_a_folder_of_ones_own_is_checked(tmp_path: Path, said: Any) -> None:
    root = make_suite(tmp_path / "mine", "hflb")
    tasks = [{"dataset": "GQA", "subset_id": 10, "type": "multi-choice"}]
    put(root / "scenarios" / "one.json", [{"client_id": 0, "model_id": "tiny-llava-llama-s", "datasets": tasks}])
    code, found = said("data", "check", str(root), "--json")
    assert (code, found["notes"]) == (0, ["No test record stands in training data."])
    assert [file["samples"] for file in found["files"]] == [3, 2]
    file = root / "dataset" / "GQA" / "test" / "dataset-10.json"
    records = json.loads(file.read_text(encoding="utf-8"))
    records[0]["conversations"][1]["value"] = "none of these"
    put(file, records)
    code, text = said("data", "check", str(root))
    assert "Of 2 test answers of the task 'GQA-10', 1 are none of the options that their questions show." in text
    file.unlink()
    assert said("data", "check", str(root))[0] == 1
    assert said("data", "check", str(tmp_path))[0] == 2


def test_a_benchmark_is_shown_with_its_tasks_and_samples(tmp_path: Path, said: Any, monkeypatch: Any) -> None:
    code, text = said("show", "drake")
    assert code == 0
    assert "as published; Where are the files of DRAKE?" in text
    assert "  6\n    WCVQA-0\n    iconqa-2\n" in text
    make_suite(tmp_path / "drake", "drake")
    monkeypatch.setenv(DATA, str(tmp_path))
    code, text = said("show", "drake")
    assert "  6 (llava-llama-3.2-3b)\n    WCVQA-0: multi-choice, choice, 2/1/2 train/validation/test, WCVQA\n" in text
    sheet = r"  WCVQA-0 \[1 pictures\]: <image> WCVQA-0 train \d\? Choice list:\[A\. this \| B\. that\] -> [AB]\n"
    assert re.search(sheet, text)
    (card,) = said("show", "drake", "--json")[1]
    assert len(card["tree"]) == len(card["samples"]) == 40
    make_flan(tmp_path / "flan" / "potara8", "flan8")
    assert len(said("show", "flan8", "--json")[1][0]["samples"]) == 8


def test_what_cannot_be_checked_says_so(tmp_path: Path, said: Any) -> None:
    for words, sentence in (
        (("flan8",), "Where are the files of FLAN-8?"),
        (("flan8", "--data", str(tmp_path / "none")), "The data folder .* does not exist"),
        (("folder",), "The benchmark folder None does not exist"),
        (("drake-synth",), "says nothing of files"),
        (("flan8", "--set", "rot=x"), "There is no option 'rot' of the benchmark 'flan8'. Did you mean 'root'"),
    ):
        code, text = said("data", "check", *words)
        assert code == 2, words
        assert re.search(sentence, text), text


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["glue", "sni", "cifar100", "commonsense", "flan-feddpa2", "fedllm-large"])
def test_the_real_slices(name: str, realdata: Path, said: Any) -> None:
    code, found = said("data", "check", name, "--data", str(realdata), "--json")
    missing = {file["path"] for file in found["files"] if file["state"] != "there"}
    assert code == (1 if name == "fedllm-large" else 0)
    assert all("FedDPA" not in path for path in missing)
    assert len(missing) == (144 if name == "fedllm-large" else 0)
    assert all(file["samples"] for file in found["files"] if file["state"] == "there")
