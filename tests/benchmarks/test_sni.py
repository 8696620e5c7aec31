"""Super-NaturalInstructions: small task files that are written here, and the real slice."""

from __future__ import annotations

import doctest
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pfl_benchmarks.sni import instances
from pfl_benchmarks.sni.plugin import pfl_make_benchmark
from pfl_platform.cli import main
from pfl_platform.data import Benchmark, Sample
from pfl_platform.errors import UserError

SMALL = {"train_size": 4, "validation_size": 2, "test_size": 2, "num_clients": 2}


def task(size: int, name: str, **fields: Any) -> dict[str, Any]:
    listed = [{"id": f"{name}-{i}", "input": f"{name} question {i}", "output": [f"answer {i}"]} for i in range(size)]
    return {"Definition": [f"Do {name}. Be brief."], "Categories": [f"{name} kind"], "Instances": listed, **fields}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four train tasks of 8, 9, 12 and 9 instances and one test task."""
    folder = tmp_path / "sni"
    (folder / "tasks").mkdir(parents=True)
    (folder / "splits" / "own").mkdir(parents=True)
    for name, size in (("a", 8), ("b", 9), ("c", 12), ("d", 9), ("t", 5)):
        write(folder, name, task(size, name))
    (folder / "splits" / "own" / "train_tasks.txt").write_text("a\nb\nc\nd\n", encoding="utf-8")
    (folder / "splits" / "own" / "test_tasks.txt").write_text("t\n", encoding="utf-8")
    return folder


def write(root: Path, name: str, content: Any) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    (root / "tasks" / f"{name}.json").write_text(text, encoding="utf-8")


def load(root: Path, **options: Any) -> Benchmark:
    made = pfl_make_benchmark("sni", {"root": str(root), **SMALL, **options})
    assert made is not None
    return made


def prompts(samples: Any) -> list[str]:
    return [sample.turns[0].human for sample in samples]


def test_examples_in_the_documentation_run() -> None:
    result = doctest.testmod(instances)
    assert result.attempted > 0
    assert result.failed == 0


def test_the_largest_tasks_are_the_clients_and_ties_go_by_order(root: Path) -> None:
    clients = load(root, num_clients=3).clients
    assert [client.tasks[0].name for client in clients] == ["c", "b", "d"]
    assert [client.backbone for client in clients] == ["tiny-llama-s", "tiny-llama-m", "tiny-llama-s"]
    (data,) = clients[0].tasks
    assert (data.kind, data.metric, data.group) == ("open-ended", "rouge_l", "c kind")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [4, 2, 2]
    assert len({*prompts(data.train), *prompts(data.validation), *prompts(data.test)}) == 8


def test_tasks_by_name(root: Path) -> None:
    clients = load(root, tasks=["a", "d"], backbones=["x"]).clients
    assert [(client.client_id, client.backbone, client.tasks[0].name) for client in clients] == [
        ("0", "x", "a"),
        ("1", "x", "d"),
    ]


@pytest.mark.parametrize(
    ("definition", "start"),
    [
        ("full", "Definition: Do c. Be brief.\n\nInput: c "),
        ("first_sentence", "Definition: Do c.\n\nInput: c "),
        ("none", "Input: c "),
    ],
)
def test_prompts(root: Path, definition: str, start: str) -> None:
    for text in prompts(load(root, definition=definition).clients[0].tasks[0].train):
        assert text.startswith(start)
        assert text.endswith("\nOutput:")


def test_draws_are_seeded_and_the_test_set_does_not_depend_on_the_train_size(root: Path) -> None:
    first, again, other = (load(root, data_seed=seed).clients[0].tasks[0] for seed in (0, 0, 1))
    assert first == again
    assert prompts(first.test) != prompts(other.test)
    larger = load(root, train_size=6, num_clients=1).clients[0].tasks[0]
    assert (larger.test, larger.validation, larger.train[:4]) == (first.test, first.validation, first.train)


def test_all_references_are_kept_and_repeated_inputs_are_merged(root: Path) -> None:
    repeated = task(8, "a")
    repeated["Instances"] += [
        {"id": "again", "input": "a question 0 ", "output": ["another"]},
        {"id": "empty", "input": "no answer", "output": [" "]},
    ]
    repeated["Definition"] = "A text as in older files."
    write(root, "a", repeated)
    data = load(root, tasks=["a"]).clients[0].tasks[0]
    samples: dict[str, Sample] = {s.id: s for part in (data.train, data.validation, data.test) for s in part}
    assert sorted(samples) == [f"a/a-{i}" for i in range(8)]
    assert samples["a/a-0"].gold == ("answer 0", "another")
    assert samples["a/a-0"].turns[0].answer == "answer 0"
    assert samples["a/a-0"].turns[0].human.startswith("Definition: A text as in older files.\n")


def test_the_public_set_is_the_test_tasks(root: Path) -> None:
    content = task(5, "t")
    content["Instances"][0]["input"] = "c question 3"  # a client has this input
    write(root, "t", content)
    public = load(root).public("test_tasks", 100, 0)
    assert [sample.id.split("/")[0] for sample in public] == ["t"] * 4
    assert not any("c question" in text for text in prompts(public))
    assert len(load(root, public_per_task=2).public(None, 100, 0)) == 2
    with pytest.raises(UserError, match="no public set"):
        load(root, public_per_task=0).public(None, 100, 0)


def test_digest_names_the_content(root: Path) -> None:
    digest = load(root).digest()
    assert load(root).digest() == digest
    assert load(root, definition="none").digest() != digest
    changed = task(12, "c")
    for instance in changed["Instances"]:
        instance["output"] = ["other"]
    write(root, "c", changed)
    assert load(root).digest() != digest


def test_where_the_data_is(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PFL_DATA", str(root.parent))
    made = pfl_make_benchmark("sni", SMALL)
    assert made is not None
    assert made.digest() == load(root).digest()
    monkeypatch.delenv("PFL_DATA")
    with pytest.raises(UserError, match="option 'root', or set PFL_DATA"):
        pfl_make_benchmark("sni", SMALL)
    with pytest.raises(UserError, match=r"not at .*empty: there is no folder 'tasks'; .*PFL_DATA"):
        load(tmp_path / "empty")


def test_splits(root: Path) -> None:
    (root / "splits" / "other").mkdir()
    (root / "splits" / "other" / "train_tasks.txt").write_text("a\nb\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"has 2 splits; choose one with 'split': other, own\."):
        load(root)
    with pytest.raises(UserError, match=r"no split 'owm' .* Did you mean 'own'\?"):
        load(root, split="owm")
    assert [client.tasks[0].name for client in load(root, split="other").clients] == ["b", "a"]
    (root / "splits" / "other").rename(root / "splits" / "default")
    assert [client.tasks[0].name for client in load(root).clients] == ["b", "a"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"c\.json is not valid JSON: .* at line 1, column 2"),
        ([], r"c\.json is no task .* no list 'Instances'"),
        (task(0, "c", Instances=[3]), r"c\.json, instance 0: an instance is an object with a text 'input'"),
        (task(0, "c", Instances=[{"input": "x"}]), r"c\.json, instance 0: 'output' must be .* and holds null"),
        (
            task(0, "c", Instances=[{"input": "<image>", "output": "x"}]),
            r"instance 0: the input holds the mark <image>",
        ),
    ],
)
def test_broken_task_files(root: Path, content: Any, message: str) -> None:
    write(root, "c", content)
    with pytest.raises(UserError, match=message):
        load(root)


def test_bad_options(root: Path) -> None:
    assert pfl_make_benchmark("folder", {}) is None
    for options, message in (
        ({"num_clients": 5}, r"has 4 train tasks, and num_clients is 5"),
        ({"train_size": 20}, r"'c' has 12 different instances, .* ask for 24"),
        ({"tasks": ["a", "a"]}, r"names 'a' twice"),
        ({"tasks": ["task_c"]}, r"task_c\.json does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            load(root, **options)
    for options in ({"clients": 3}, {"definition": "half"}, {"backbones": []}):
        with pytest.raises(ValidationError):
            load(root, **options)


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("tasks/c.json", b'{"Instances": [}', "tasks/c.json is not valid JSON: Expecting value at line 1, column 16."),
        ("tasks/c.json", b"[]", "tasks/c.json is no task of Super-NaturalInstructions: it has no list 'Instances'."),
        ("splits/own/train_tasks.txt", b"a\n\xff\n", "train_tasks.txt cannot be read: 'utf-8' codec can't decode byte"),
        ("splits/own/train_tasks.txt", b"a\nbb\n", "tasks/bb.json does not exist."),
        ("splits/own/train_tasks.txt", b"a\n", "has 1 train tasks, and num_clients is 2."),
    ],
)
def test_the_command_refuses_bad_files(
    root: Path, file: str, content: bytes, sentence: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (root / file).write_bytes(content)
    sets = [f"--set=benchmark.{name}={value}" for name, value in {"root": root, **SMALL}.items()]
    assert main(["run", "--plugin", "sft", "--benchmark", "sni", *sets, "--out", str(tmp_path / "never")]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert sentence in err
    assert not (tmp_path / "never").exists()


@pytest.mark.realdata
def test_the_ten_real_clients(realdata: Path) -> None:
    made = pfl_make_benchmark("sni", {"root": str(realdata / "sni")})
    assert made is not None
    order = (realdata / "sni" / "splits" / "slice" / "train_tasks.txt").read_text(encoding="utf-8").split()
    tasks = [client.tasks[0] for client in made.clients]
    assert {len(client.tasks) for client in made.clients} == {1}
    assert sorted(task.name for task in tasks) == sorted(order[:10])  # all have 650 instances: the order decides
    for data in tasks:
        assert [len(part) for part in (data.train, data.validation, data.test)] == [500, 50, 50]
        assert len({*prompts(data.train), *prompts(data.validation), *prompts(data.test)}) == 600
    assert max(len(sample.gold) for data in tasks for sample in data.test) > 1
    public = made.public(None, 5000, 0)
    assert len(public) == 2000
    assert not {sample.id.split("/")[0] for sample in public} & set(order)
