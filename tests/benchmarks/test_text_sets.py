"""FLAN and commonsense: small files that are written here, and the real slices."""

from __future__ import annotations

import doctest
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pfl_benchmarks.commonsense import loading as commonsense
from pfl_benchmarks.commonsense.options import TASKS
from pfl_benchmarks.commonsense.plugin import pfl_make_benchmark as make_commonsense_benchmark
from pfl_benchmarks.flan import loading as flan
from pfl_benchmarks.flan.options import SETS
from pfl_benchmarks.flan.plugin import pfl_make_benchmark as make_flan_benchmark
from pfl_benchmarks.metrics.choice import score
from pfl_platform.data import FixedBenchmark, Sample
from pfl_platform.errors import UserError
from text_support import commonsense_record, flan_record, make_commonsense, make_flan, put


def load(name: str, root: Path, **options: Any) -> FixedBenchmark:
    make = make_commonsense_benchmark if name == "commonsense" else make_flan_benchmark
    made = make(name, {"root": str(root), **options})
    assert isinstance(made, FixedBenchmark)
    return made


def asked(samples: Any) -> list[str]:
    return [sample.turns[0].human for sample in samples]


@pytest.mark.parametrize("module", [flan, commonsense])
def test_examples_in_the_documentation_run(module: Any) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("name", SETS)
def test_every_record_of_a_flan_set_comes_back(name: str, tmp_path: Path) -> None:
    benchmark = load(name, make_flan(tmp_path, name))
    assert [client.tasks[0].name for client in benchmark.clients] == list(SETS[name].tasks)
    assert [client.client_id for client in benchmark.clients] == [str(number) for number in range(8)]
    for client in benchmark.clients:
        (task,) = client.tasks
        written = [flan_record(task.name, number, part) for part, size in (("train", 6), ("test", 3))
                   for number in range(size)]  # fmt: skip
        read = {sample.turns[0].human: sample.turns[0].answer for sample in (*task.train, *task.test)}
        assert read == {record["instruction"]: record["output"] for record in written}
        assert task.kind == ("open-ended" if len(task.name) % 2 == 0 else "multi-choice")
        assert {sample.options for sample in task.test} == {() if task.kind == "open-ended" else ("yes", "no")}
        assert task.metric == "rouge_1"
    assert "fewer samples than the published setting" in benchmark.notes[0]


def test_every_commonsense_record_comes_back(tmp_path: Path) -> None:
    benchmark = load("commonsense", make_commonsense(tmp_path))
    assert [client.client_id for client in benchmark.clients] == list(TASKS)
    for client in benchmark.clients:
        (task,) = client.tasks
        written = [commonsense_record(task.name, number, "train") for number in range(6)]
        read = {sample.turns[0].human: (sample.turns[0].answer, sample.gold) for sample in task.train}
        assert read == {record["instruction"]: (record["output"], (record["answer"],)) for record in written}
        assert score("the correct answer is " + task.test[0].gold[0], task.test[0]) == 1.0
        assert score("true false answer1 answer2", task.test[0]) == 0.0


def test_sixteen_clients_share_tasks_and_learn_from_different_samples(tmp_path: Path) -> None:
    root = make_commonsense(tmp_path, train=9)
    clients = load("commonsense", root, clients_per_task=2, validation_size=1).clients
    assert [client.client_id for client in clients[:3]] == ["ARC-Challenge-0", "ARC-Challenge-1", "ARC-Easy-0"]
    assert len(clients) == 16
    for first, second in zip(clients[::2], clients[1::2], strict=True):
        one, other = first.tasks[0], second.tasks[0]
        assert one.name == other.name
        assert one.test == other.test
        assert len(one.train) == len(other.train) == 4
        assert len({*asked(one.train), *asked(other.train), *asked(one.validation)}) == 9
    with pytest.raises(UserError, match="9 different train .* too few for 0 of validation and 10 clients"):
        load("commonsense", root, clients_per_task=10)


def test_draws_keep_test_and_validation_whatever_is_learned(tmp_path: Path) -> None:
    root = make_flan(tmp_path, "flan8", train=8)
    first, second = (load("flan8", root, train_size=size, validation_size=2).clients[3].tasks[0] for size in (2, 6))
    assert first.test == second.test
    assert first.validation == second.validation
    assert set(asked(first.train)) < set(asked(second.train))
    other = load("flan8", root, train_size=2, validation_size=2, data_seed=1)
    assert asked(other.clients[3].tasks[0].train) != asked(first.train)
    again, changed = load("flan8", root, train_size=2, validation_size=2), load("flan8", root, train_size=3)
    assert again.digest() != other.digest() != changed.digest()
    assert again.digest() == load("flan8", root, train_size=2, validation_size=2).digest()


def test_overlap_of_test_and_train_is_said_and_validation_keeps_out_of_it(tmp_path: Path) -> None:
    root = make_commonsense(tmp_path)
    same = [commonsense_record("piqa", number, "train") for number in range(3)]
    put(root / "dataset" / "piqa" / "test.json", [*same[:2], *same])
    benchmark = load("commonsense", root, validation_size=3)
    assert "Of 3 test samples of the task 'piqa', 3 stand in its train file too." in benchmark.notes
    (task,) = next(client.tasks for client in benchmark.clients if client.client_id == "piqa")
    assert not {*asked(task.validation)} & {*asked(task.test), *asked(task.train)}
    assert len(task.test) == 3
    with pytest.raises(UserError, match="too few for 4 of validation"):
        load("commonsense", root, validation_size=4)


def _first(record: dict[str, Any]) -> Callable[[str], list[Any]]:
    """A file whose first record has other fields; a field that is None is left out."""

    def changed(text: str) -> list[Any]:
        given, *rest = json.loads(text)
        return [{key: value for key, value in {**given, **record}.items() if value is not None}, *rest]

    return changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_first({"output": 3}), r"local_training_0\.json, record 0: 'output' must be a text and is a number"),
        (_first({"output": None}), "record 0: 'output' must be a text and is missing"),
        (_first({"output": "perhaps"}), "record 0: the output 'perhaps' is none of the options shown: yes, no"),
        (_first({"output": " "}), "record 0: 'output' is empty"),
        (_first({"instruction": "<image> what?"}), "holds the mark <image>, which stands for a picture"),
        (_first({"task": "trec"}), "record 0: the task is 'trec', and client 0 of 'flan8' has 'arc_challenge'"),
        (lambda _: ["text"], "record 0: a record is an object, and this is a string"),
        (lambda _: [], r"local_training_0\.json holds no record"),
        (lambda _: {"data": []}, "must hold a list of records, and holds an object"),
        (lambda _: "[{", "is not valid JSON"),
    ],
)
def test_bad_flan_files_are_refused(tmp_path: Path, change: Callable[[str], Any], message: str) -> None:
    file = make_flan(tmp_path, "flan8") / "8" / "local_training_0.json"
    put(file, change(file.read_text(encoding="utf-8")))
    with pytest.raises(UserError, match=message):
        load("flan8", tmp_path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    root = make_flan(tmp_path / "a", "flan8")
    (root / "8" / "local_training_5.json").unlink()
    with pytest.raises(UserError, match=r"local_training_5\.json does not exist"):
        load("flan8", root)
    test = next(root.glob("*.jsonl"))
    shutil.copy(test, root / "flan_test_2.jsonl")
    with pytest.raises(UserError, match=r"must hold one test file flan_test\*\.jsonl, and holds 2"):
        load("flan8", root)
    (root / "flan_test_2.jsonl").unlink()
    put(test, '{"instruction": "a"\n')
    with pytest.raises(UserError, match=r"\.jsonl, line 1 is not valid JSON"):
        load("flan8", root)
    put(test, [flan_record("arc_challenge", 0, "test")])
    with pytest.raises(UserError, match="has no record of the task 'cosmos_qa' of client 1"):
        load("flan8", root)
    with pytest.raises(UserError, match="FLAN-8 is not at .*: there is no folder '8'"):
        load("flan8", tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"answer": "answer9"}, "the answer 'answer9' is none of the options true, false"),
        ({"answer": True}, "'answer' must be a text and is a truth value"),
        ({"output": "the correct answer is false"}, "the output 'the correct answer is false' does not name"),
        ({"instruction": "Is it so?"}, "does not end in 'Answer format: a/b/...'"),
    ],
)
def test_bad_commonsense_records_are_refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    root = make_commonsense(tmp_path)
    put(root / "dataset" / "boolq" / "train.json", [{**commonsense_record("boolq", 0, "train"), **fields}])
    with pytest.raises(UserError, match=rf"boolq/train\.json, record 0: .*{message}"):
        load("commonsense", root)


def test_an_archive_in_place_of_files_and_wrong_names_are_refused(tmp_path: Path) -> None:
    root = make_commonsense(tmp_path / "data")
    packed = shutil.make_archive(str(tmp_path / "dataset"), "zip", root)
    shutil.copy(packed, root / "dataset" / "boolq" / "train.json")
    with pytest.raises(UserError, match=r"boolq/train\.json is a zip archive; unpack it first"):
        load("commonsense", root)
    with pytest.raises(UserError, match=r"dataset\.zip is an archive; unpack it"):
        load("commonsense", Path(packed))
    with pytest.raises(UserError, match="has no task 'bolq'. Did you mean 'boolq'"):
        load("commonsense", root, tasks=["bolq"])
    with pytest.raises(UserError, match="names 'piqa' twice"):
        load("commonsense", root, tasks=["piqa", "piqa"])


@pytest.mark.realdata
def test_the_real_slices(realdata: Path) -> None:
    for name, chosen in SETS.items():
        benchmark = load(name, realdata / chosen.folder)
        assert [len(client.tasks[0].train) >= 299 for client in benchmark.clients] == [True] * 8
        kinds = [client.tasks[0].kind for client in benchmark.clients]
        assert kinds.count("open-ended") == {"flan8": 1, "flan-feddpa1": 2, "flan-feddpa2": 2}[name]
        assert not any("stand in its train file" in note for note in benchmark.notes)
    benchmark = load("commonsense", realdata / "commonsense", validation_size=50)
    sizes = {client.client_id: len(client.tasks[0].train) for client in benchmark.clients}
    assert sizes["boolq"] == 950
    assert sizes["winogrande"] == 650
    samples: list[Sample] = [sample for client in benchmark.clients for sample in client.tasks[0].test]
    assert all(score(sample.turns[0].answer, sample) == 1.0 for sample in samples)
