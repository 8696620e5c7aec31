"""Published federations: their clients against the published scenario files, their files, what is missing."""

from __future__ import annotations

import doctest
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from judge_support import serving
from pfl_benchmarks.folder.benchmark import FolderBenchmark
from pfl_benchmarks.folder.scenario import read_scenario
from pfl_benchmarks.suites import scope, sheet
from pfl_benchmarks.suites.options import SUITES
from pfl_benchmarks.suites.plugin import pfl_make_benchmark
from pfl_model_zoo.cards import find
from pfl_platform.cli import main
from pfl_platform.errors import UserError
from text_support import make_flan, make_scope, make_suite, put

PUBLISHED = {
    ("drake", "llama-1b-3b"): "DRAKE_hetero_llava_llama_1B_3B",
    ("drake", "llama-3b"): "DRAKE_homo_llava_llama_3B",
    ("hflb", "llama-1b-3b"): "HFLB_hetero_llava_llama_1B_3B",
    ("hflb", "llama-3b"): "HFLB_homo_llava_llama_3B",
    ("fedaya", "llama-1b-3b"): "Fed-aya_hetero_llama_1B_3B",
    ("fedscope", "llama-3b-8b"): "Fed-Scope_hetero_llama_3B_8B",
    ("fedllm-large", "llama-1b-3b"): "Fed-LLM_hetero_llama_1B_3B",
}
TABLE_14 = {  # Llama 1B, 3B, 8B, Qwen 0.5B, 1.5B, 3B
    ("drake", "llama-1b-3b"): (4, 6, 0, 0, 0, 0),
    ("hflb", "llama-1b-3b"): (3, 6, 0, 0, 0, 0),
    ("drake", "llama-3b-qwen-1.5b-3b"): (0, 3, 0, 0, 4, 3),
    ("drake", "llama-1b-3b-8b"): (3, 5, 2, 0, 0, 0),
    ("drake", "llama-3b"): (0, 10, 0, 0, 0, 0),
    ("hflb", "llama-3b"): (0, 9, 0, 0, 0, 0),
    ("drake", "qwen-3b"): (0, 0, 0, 0, 0, 10),
    ("drake", "qwen-0.5b-1.5b-3b"): (0, 0, 0, 3, 2, 5),
    ("drake", "llama-3b-qwen-1.5b"): (0, 6, 0, 0, 4, 0),
    ("drake", "llama-1b-3b-qwen-1.5b"): (2, 5, 0, 0, 3, 0),
    ("fedllm-large", "llama-1b-3b"): (26, 26, 0, 0, 0, 0),
    ("fedscope", "llama-3b-8b"): (0, 3, 2, 0, 0, 0),
    ("fedaya", "llama-1b-3b"): (4, 4, 0, 0, 0, 0),
}
SIZES = ("-1b", "-3b", "-8b", "-0.5b", "-1.5b", "-3b")


def load(name: str, root: Path, **options: Any) -> FolderBenchmark:
    made = pfl_make_benchmark(name, {"root": str(root), "models": "tiny", **options})
    assert isinstance(made, FolderBenchmark)
    return made


@pytest.mark.parametrize("module", [sheet, scope])
def test_examples_in_the_documentation_run(module: Any) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.realdata
@pytest.mark.parametrize(("name", "preset"), PUBLISHED)
def test_clients_are_those_of_the_published_files(name: str, preset: str, realdata: Path) -> None:
    file = realdata / "drake_hflb" / "scenarios" / f"{PUBLISHED[name, preset]}.json"
    metric = "RougeL" if name == "fedaya" else None  # the file names what it is not scored by
    ours = sheet.clients(name, order="published", preset=preset, metric=metric)
    theirs = read_scenario(file)
    assert [(client.client_id, client.tasks) for client in ours] == [(c.client_id, c.tasks) for c in theirs]
    assert [find(client.model_id).source for client in ours] == [client.model_id for client in theirs]


@pytest.mark.realdata
def test_unseen_tasks_are_those_of_the_published_files_with_their_names_exchanged(realdata: Path) -> None:
    ours: dict[str, set[str]] = {}
    for group, client in sheet.unseen("drake"):
        ours.setdefault(group, set()).add(client.tasks[0].name)
    folder = realdata / "drake_hflb" / "scenarios"
    for group, file in (("new_visual_domain", "newtasktype"), ("new_task_type", "newvisualdomain")):
        clients = read_scenario(folder / f"DRAKE_unseen_{file}.json")
        assert ours[group] == {client.tasks[0].name for client in clients}


@pytest.mark.parametrize(("name", "preset"), TABLE_14)
def test_presets_have_the_counts_of_table_14(name: str, preset: str) -> None:
    order = "paper" if preset == "qwen-0.5b-1.5b-3b" else "published"
    found = Counter(client.model_id for client in sheet.clients(name, order=order, preset=preset))
    families = ["llama-3"] * 3 + ["qwen2.5"] * 3
    counts = tuple(
        sum(count for model, count in found.items() if family in model and model.endswith(size))
        for family, size in zip(families, SIZES, strict=True)
    )
    assert counts == TABLE_14[name, preset]


@pytest.mark.parametrize("name", ["drake", "hflb"])
def test_both_orders_have_the_same_clients_and_every_task_once(name: str) -> None:
    written = sheet.card(name)
    tasks = [task for names in written["clients"].values() for task in names]
    assert len(tasks) == len(set(tasks)) == {"drake": 40, "hflb": 36}[name]
    for given in written["paper"].values():
        assert sorted(given["tasks"]) == sorted(written["clients"][given["is"]])
    paper = sheet.clients(name, order="paper", preset=None)
    small = [client.client_id for client in paper if client.model_id.endswith("-1b")]
    assert small == {"drake": ["1", "2", "3", "4"], "hflb": ["1", "2", "3"]}[name]
    same = sheet.clients(name, order="paper", preset="llama-3b")
    assert {client.model_id for client in same} == {"llava-llama-3.2-3b"}


def test_a_published_preset_follows_its_clients_into_the_papers_order() -> None:
    def of(order: str) -> dict[str, str]:
        clients = sheet.clients("drake", order=order, preset="llama-3b-qwen-1.5b")
        return {client.client_id: client.model_id for client in clients}

    published, paper = of("published"), of("paper")
    pairs = [(ours, given["is"]) for ours, given in sheet.card("drake")["paper"].items()]
    assert [paper[ours] for ours, _ in pairs] == [published[theirs] for _, theirs in pairs]
    assert len(set(paper.values())) == 2


@pytest.mark.parametrize("name", [name for name in SUITES if name != "fedscope"])
def test_a_whole_federation_comes_back(name: str, tmp_path: Path) -> None:
    root = make_suite(tmp_path, name)
    benchmark = load(name, root, unseen=True, validation_fraction=0.0)
    assert [client.client_id for client in benchmark.clients] == list(sheet.card(name)["clients"])
    for client in benchmark.clients:
        assert [task.name for task in client.tasks] == sheet.card(name)["clients"][client.client_id]
        for task in client.tasks:
            assert [sample.turns[0].answer for sample in task.train] == ["B", "A", "B"]
            assert len(task.test) == 2
    assert len(benchmark.unseen) == (7 if name == "drake" else 0)
    protocol = sheet.card(name)["protocol"]
    assert (benchmark.defaults["rounds"], benchmark.defaults["local_steps"]) == (
        protocol["rounds"], protocol["local_steps"],
    )  # fmt: skip
    assert benchmark.notes == ()
    metrics = Counter(task.metric for client in benchmark.clients for task in client.tasks)
    assert metrics == {
        "drake": {"choice": 38, "token_f1": 2},
        "hflb": {"choice": 36},
        "fedaya": {"rating": 32},
        "fedllm-large": {"rouge_l": 104},
    }[name]  # fmt: skip


def test_what_is_missing_is_named_and_may_be_skipped(tmp_path: Path) -> None:
    root = make_suite(tmp_path, "hflb")
    for part in ("train", "test"):
        (root / "dataset" / "GQA" / part / "dataset-10.json").unlink()
    for subset in range(4):
        (root / "dataset" / "AQUA" / "train" / f"dataset-{subset}.json").unlink()
    said = r"Of the 36 tasks of HFLB, 5 have no files in .*: GQA \(10\); AQUA \(0, 1, 2, 3\)\. They are"
    with pytest.raises(UserError, match=said + r" published as the hub's data set SNUMPR/HFLB.*data layout hflb"):
        load("hflb", root)
    benchmark = load("hflb", root, missing="skip")
    assert [client.client_id for client in benchmark.clients] == [str(number) for number in range(8)]
    assert len(benchmark.clients[0].tasks) == 3
    assert "left out, so results are not comparable" in benchmark.notes[0]
    with pytest.raises(UserError, match="Of the 40 tasks of DRAKE, 40 have no files"):
        load("drake", root, missing="skip")


def test_bad_choices_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'drake' has no preset 'lama-3b'. Did you mean 'llama-3b'"):
        load("drake", tmp_path, preset="lama-3b")
    with pytest.raises(UserError, match="have one order only"):
        load("fedaya", tmp_path, order="paper")
    with pytest.raises(UserError, match="leave out 'preset' and 'order'"):
        load("drake", tmp_path, scenario="x", order="paper")
    with pytest.raises(UserError, match="DRAKE is not at .*nowhere"):
        load("drake", tmp_path / "nowhere")
    put(tmp_path / "drake.tar", "")
    with pytest.raises(UserError, match=r"drake\.tar is an archive; unpack it"):
        load("drake", tmp_path / "drake.tar")


def test_feddpa_subsets_come_from_its_own_files(tmp_path: Path) -> None:
    for number in (1, 2):
        make_flan(tmp_path / "flan" / "feddpa" / f"dataset{number}", f"flan-feddpa{number}", train=6, test=4)
    root = tmp_path / "fed_llm_large"
    root.mkdir()
    benchmark = load("fedllm-large", root, missing="skip", validation_fraction=0.0)
    assert len(benchmark.clients) == 16
    found = {task.name: task for client in benchmark.clients for task in client.tasks}
    first, second = found["FedDPA-131"], found["FedDPA-132"]  # set 1, client 3: glue_qqp
    assert [sample.turns[0].human.split("\n")[0] for sample in first.train] == [
        f"train glue_qqp {n}: what is it?" for n in range(3)
    ]
    assert [sample.id for sample in second.test] == [f"FedDPA-132/glue_qqp/test/{n}" for n in _order(second)]
    assert first.metric == "rouge_l"
    make_suite(root, "fedllm-large")
    assert len(load("fedllm-large", root).clients) == 52


def _order(task: Any) -> list[int]:
    """The places of the last two of a task's four test records in the file, which holds all tasks."""
    return [int(sample.id.rpartition("/")[2]) for sample in task.test if "what" in sample.turns[0].human]


def test_fedscope_is_scored_on_the_tests_of_its_domains(tmp_path: Path) -> None:
    root = make_scope(tmp_path)
    benchmark = load("fedscope", root, evaluate=["mmlu", "gsm8k", "humaneval"], validation_fraction=0.0)
    metrics = {client.client_id: [task.metric for task in client.tasks] for client in benchmark.clients}
    assert metrics == {
        "0": ["gsm8k"] * 4, "1": ["choice"] * 4, "2": ["choice"] * 4, "3": ["humaneval"] * 4, "4": ["humaneval"] * 4,
    }  # fmt: skip
    first, general, code = (benchmark.clients[number].tasks for number in (0, 1, 3))
    assert sorted(sample.turns[0].human for task in first for sample in task.test) == [f"test {n}?" for n in range(8)]
    trained = [sample.turns[0].human for task in first for sample in task.train]
    assert len(set(trained)) == len(trained) == 36  # of 40, a tenth of each quarter is held out
    assert {sample.turns[0].human.split(" ")[0] for sample in general[1].train} == {"closed_qa"}
    (question,) = (sample for sample in general[3].test if "physics" in sample.id)
    assert question.turns[0].human == "physics 0?\nA. one\nB. two, or more\nC. three\nD. four\nAnswer:"
    assert (question.options, question.gold) == (("one", "two, or more", "three", "four"), ("B",))
    assert {sample.turns[0].human.split("\n\n")[1] for sample in code[1].train} == {"C", "PHP"}
    assert code[0].test[0].gold[0].endswith("check(f0)\n")
    shown = load("fedscope", root, shots=1).clients[1].tasks[0].test[0].turns[0].human
    assert shown.count("Answer:") == 2
    assert [note.split(",")[0] for note in load("fedscope", root).notes] == [
        "Tasks of the domain of humaneval are scored on held-out samples"
    ]
    held = load("fedscope", root, evaluate=[]).clients[0].tasks[0]
    assert held.metric == "rouge_l"
    assert not {sample.turns[0].human for sample in held.test} & {sample.turns[0].human for sample in held.train}


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("mmlu/data/test/physics_test.csv", "q,a,b,c,d\n", r"physics_test\.csv, row 1: a question, four options"),
        ("mmlu/data/test/physics_test.csv", "q,a,b,c,d,E\n", "a letter A to D"),
        ("gsm8k/test.jsonl", [{"question": "q", "answer": "3"}], "line 1: the answer does not end in '#### number'"),
        ("humaneval/HumanEval.jsonl.gz", "no archive", r"HumanEval\.jsonl\.gz cannot be read"),
    ],
)
def test_bad_files_of_fedscope_are_refused(tmp_path: Path, file: str, content: Any, message: str) -> None:
    root = make_scope(tmp_path)
    put(root / file, content)
    with pytest.raises(UserError, match=message):
        load("fedscope", root, evaluate=["mmlu", "gsm8k", "humaneval"])


def test_a_run_says_who_rated_and_a_judge_that_goes_away_stops_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_suite(tmp_path / "data", "fedaya")
    monkeypatch.chdir(tmp_path)
    words = ["run", "-p", "sft", "-b", "fedaya", "-q", "--rounds", "1", "--local-steps", "1", "--threads", "1"]
    for text in (f"benchmark.root={root}", "benchmark.models=tiny", "evaluation.others=false",
                 "evaluation.baseline=false", "evaluation.items=1", "evaluation.max_new_tokens=2"):  # fmt: skip
        words += ["--set", text]
    words_of_judge: list[str] = []
    assert main([*words, "--out", "stub"]) == 0
    assert "No judge has read an answer" in capsys.readouterr().out
    results = json.loads((tmp_path / "stub" / "results.json").read_text(encoding="utf-8"))
    assert "from the offline stub" in results["notes"][0]
    with serving() as server:
        server.says = ["Good. [[7]]", 500]
        for text in ("judge=http", f"url={server.url}", "verdicts=verdicts.jsonl", "retries=1", "wait=0"):
            words_of_judge += ["--set", f"metrics.rating.options.{text}"]
        assert main([*words, *words_of_judge, "--out", "judged"]) == 1
        assert "gave no rating" in (said := capsys.readouterr().err)
        assert "resume" in said
        server.says = ["Good. [[7]]"]
        before = len(server.asked)
        assert main(["resume", "judged", "-q"]) == 0
        asked = [call["messages"][0]["content"] for call in server.asked]
    assert set(asked[:1]).isdisjoint(asked[before:])  # what was rated is not asked for again
    results = json.loads((tmp_path / "judged" / "results.json").read_text(encoding="utf-8"))
    assert results["summary"]["self"]["last"]["mean"] == pytest.approx(70.0)
    assert "by 'gpt-4o-mini-2024-07-18' at http://127.0.0.1" in results["notes"][0]
    assert main([*words, "--set", "metrics.ratng.options.judge=stub", "--out", "other"]) == 2
    assert "by which no task is scored. Did you mean 'rating'" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
    assert main([*words, "--set", "metrics.rating.options.juge=stub", "--out", "other"]) == 2
    assert "no option 'juge' of the metric 'rating'" in capsys.readouterr().err


@pytest.mark.realdata
def test_the_real_slices(realdata: Path) -> None:
    root = realdata / "fed_scope"
    exams = ["mmlu", "gsm8k", "humaneval"]
    benchmark = load("fedscope", root, code="code_alpaca", evaluate=exams, validation_fraction=0.0)
    assert [sum(len(task.test) for task in client.tasks) for client in benchmark.clients] == [500, 1710, 1710, 114, 114]
    assert [len(task.train) for task in benchmark.clients[0].tasks] == [450] * 4
    with pytest.raises(UserError, match=r"8 have no files in .*FS_LLM_Instruct \(20, 21, 22, 23, 24, 25, 26, 27\)"):
        load("fedscope", root)
    large = load("fedllm-large", realdata / "fed_llm_large", missing="skip", validation_fraction=0.0)
    assert [len(task.train) for client in large.clients for task in client.tasks] == [150] * 32
