"""GLUE: small files of the project's own in the official columns, and the real slices."""

from __future__ import annotations

import doctest
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pfl_benchmarks.glue import tasks
from pfl_benchmarks.glue.plugin import pfl_make_benchmark
from pfl_benchmarks.glue.tables import read_table
from pfl_benchmarks.glue.tasks import TASKS
from pfl_platform.data import Benchmark, Sample, TaskData
from pfl_platform.errors import UserError

SMALL = {"validation_size": 4}


@pytest.fixture
def root(checkout: Path, tmp_path: Path) -> Path:
    """A copy of the small files, to be spoilt."""
    return Path(shutil.copytree(checkout / "tests" / "data" / "glue", tmp_path / "glue"))


def load(root: Path, **options: Any) -> Benchmark:
    made = pfl_make_benchmark("glue", {"root": str(root), **SMALL, **options})
    assert made is not None
    return made


def only(root: Path, task: str, **options: Any) -> TaskData:
    (client,) = load(root, tasks=[task], **options).clients
    (data,) = client.tasks
    return data


def prompts(samples: Sequence[Sample]) -> list[str]:
    return [sample.turns[0].human for sample in samples]


def change(file: Path, line: int, text: str) -> None:
    """Puts `text` in the place of a line, counted from 1."""
    lines = file.read_text(encoding="utf-8").split("\n")
    lines[line - 1] = text
    file.write_text("\n".join(lines), encoding="utf-8")


def test_examples_in_the_documentation_run() -> None:
    result = doctest.testmod(tasks)
    assert result.attempted > 0
    assert result.failed == 0


def test_one_task_per_client_with_its_metric(root: Path) -> None:
    clients = load(root).clients
    assert [client.client_id for client in clients] == list(TASKS)
    assert {client.backbone for client in clients} == {"tiny-roberta"}
    found = {client.client_id: client.tasks[0] for client in clients}
    assert {name: data.metric for name, data in found.items() if data.metric != "choice"} == {
        "CoLA": "matthews",
        "STS-B": "pearson-spearman",
    }
    assert [name for name, data in found.items() if data.kind == "open-ended"] == ["STS-B"]
    for data in found.values():
        assert [len(part) for part in (data.train, data.validation, data.test)] == [20, 4, 8]
        assert len({*prompts(data.train), *prompts(data.validation), *prompts(data.test)}) == 32


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("CoLA", ("unacceptable", "acceptable")),
        ("MNLI", ("entailment", "neutral", "contradiction")),
        ("QNLI", ("entailment", "not entailment")),
        ("QQP", ("different", "duplicate")),
        ("SST-2", ("negative", "positive")),
    ],
)
def test_labels_are_words_in_the_order_of_the_classes(root: Path, task: str, options: tuple[str, ...]) -> None:
    for sample in only(root, task).test:
        assert sample.options == options
        assert sample.gold == (sample.turns[0].answer,)
        assert sample.gold[0] in options
        assert sample.turns[0].human.endswith(f"Choice list:[{', '.join(options)}]. Your answer is:")


def test_the_right_sentences_and_labels_are_read(root: Path) -> None:
    """By hand from the files: columns by name, by place where there is no header, and quotes as they stand."""
    (root / "CoLA" / "dev.tsv").write_text('made\t0\t*\tHe "said.\nmade\t1\t\tShe left.\n', encoding="utf-8")
    first, second = only(root, "CoLA").test
    assert first.turns[0].human.startswith('Sentence: He "said.\n')
    assert (first.id, first.gold, second.gold) == ("CoLA/dev/1", ("unacceptable",), ("acceptable",))
    (root / "MRPC" / "dev.tsv").write_text(
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\tOne\u2028more.\tTwo.\r\n", encoding="utf-8"
    )
    (sample,) = only(root, "MRPC").test
    assert sample.turns[0].human.startswith("Sentence 1: One\u2028more.\nSentence 2: Two.\n")
    assert sample.gold == ("equivalent",)


def test_scores_are_numbers(root: Path) -> None:
    change(root / "STS-B" / "dev.tsv", 2, "0\tm\tm\t1\t0\tn\tn\tOne.\tTwo.\t2.667")
    sample = only(root, "STS-B").test[0]
    assert (sample.turns[0].answer, sample.references, sample.options) == ("2.7", ("2.667",), ())
    assert "Choice list" not in sample.turns[0].human


def test_draws_are_seeded_and_parts_do_not_depend_on_each_others_size(root: Path) -> None:
    first, again, other = (only(root, "RTE", data_seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert prompts(first.validation) != prompts(other.validation)
    smaller = only(root, "RTE", train_size=5, test_size=3)
    assert smaller.validation == first.validation
    assert list(smaller.train) == list(first.train)[:5]
    assert set(prompts(smaller.test)) < set(prompts(first.test))
    assert prompts(smaller.test) == [text for text in prompts(first.test) if text in prompts(smaller.test)]


def test_what_is_tested_on_is_not_learned(root: Path) -> None:
    tested = (root / "RTE" / "dev.tsv").read_text(encoding="utf-8").split("\n")[1]
    change(root / "RTE" / "train.tsv", 2, tested)
    change(root / "RTE" / "train.tsv", 3, (root / "RTE" / "train.tsv").read_text(encoding="utf-8").split("\n")[3])
    data = only(root, "RTE")
    learned = [*prompts(data.train), *prompts(data.validation)]
    assert len(learned) == len(set(learned)) == 22  # of 24 rows one is tested on and one occurs twice
    assert not set(learned) & set(prompts(data.test))


def test_the_digest_names_the_content(root: Path) -> None:
    digest = load(root).digest()
    assert load(root).digest() == digest
    assert load(root, data_seed=1).digest() != digest
    assert load(root, validation_size=5).digest() != digest
    change(root / "SST-2" / "dev.tsv", 2, "a different one\t1")
    assert load(root).digest() != digest


def test_where_the_data_is(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PFL_DATA", str(root.parent))
    made = pfl_make_benchmark("glue", SMALL)
    assert made is not None
    assert made.digest() == load(root).digest()
    monkeypatch.delenv("PFL_DATA")
    with pytest.raises(UserError, match="option 'root', or set PFL_DATA"):
        pfl_make_benchmark("glue", SMALL)
    with pytest.raises(UserError, match=r"not at .*none: there is no such folder"):
        load(tmp_path / "none")


@pytest.mark.parametrize(
    ("task", "file", "line", "text", "message"),
    [
        ("SST-2", "train.tsv", 1, "text\tlabel", r"train\.tsv, line 1: there is no column 'sentence'; .* 'text', 'lab"),
        ("SST-2", "dev.tsv", 3, "no label", r"dev\.tsv, line 3: 1 fields where there should be 2; .* skip_broken"),
        ("SST-2", "train.tsv", 4, "well\t2", r"train\.tsv, line 4: '2' is no label of SST-2; there are 0, 1\."),
        ("SST-2", "train.tsv", 4, "\t1", r"train\.tsv, line 4: the column 'sentence' is empty"),
        ("SST-2", "train.tsv", 4, "<image> here\t1", r"line 4: the text holds the mark <image>"),
        ("CoLA", "train.tsv", 1, "made\t1", r"train\.tsv, line 1: 2 fields where there should be 4"),
        (
            "RTE",
            "dev.tsv",
            2,
            "0\ta\tb\tneutral",
            r"'neutral' is no label of RTE; there are entailment, not_entailment",
        ),
        ("STS-B", "dev.tsv", 2, "0\tm\tm\t1\t0\tn\tn\ta\tb\tmuch", r"line 2: 'much' is no score of STS-B"),
        ("STS-B", "dev.tsv", 2, "0\tm\tm\t1\t0\tn\tn\ta\tb\t7", r"'7' is no score of STS-B; scores are .* 0 to 5"),
        ("STS-B", "dev.tsv", 2, "0\tm\tm\t1\t0\tn\tn\ta\tb\tnan", r"'nan' is no score"),
    ],
)
def test_broken_files(root: Path, task: str, file: str, line: int, text: str, message: str) -> None:
    change(root / task / file, line, text)
    with pytest.raises(UserError, match=message):
        load(root)


def test_broken_rows_can_be_left_out(root: Path) -> None:
    """The official file of QQP has rows that are cut off."""
    change(root / "QQP" / "train.tsv", 5, "77\t1\t2\tWho?")
    with pytest.raises(UserError, match="line 5: 4 fields where there should be 6"):
        load(root)
    assert len(only(root, "QQP", skip_broken=True).train) == 19
    assert [line.number for line in read_table(root / "QQP" / "train.tsv", ["question1"], skip_broken=True)][:5] == [
        2, 3, 4, 6, 7,
    ]  # fmt: skip


def test_missing_files(root: Path) -> None:
    (root / "MNLI" / "dev_matched.tsv").rename(root / "MNLI" / "dev.tsv")
    with pytest.raises(UserError, match=r"MNLI/dev_matched\.tsv does not exist"):
        load(root)
    assert len(load(root, tasks=["RTE", "CoLA"]).clients) == 2
    shutil.rmtree(root / "QNLI")
    with pytest.raises(UserError, match=r"has no folder 'QNLI'; name the tasks that are there"):
        load(root, tasks=["QNLI"])
    (root / "RTE" / "dev.tsv").write_text("index\tsentence1\tsentence2\tlabel\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"dev\.tsv has no rows"):
        load(root, tasks=["RTE"])
    (root / "CoLA" / "dev.tsv").write_bytes(b"made\t1\t\t\xff\n")
    with pytest.raises(UserError, match=r"dev\.tsv is not UTF-8 text"):
        load(root, tasks=["CoLA"])


def test_bad_options(root: Path) -> None:
    assert pfl_make_benchmark("folder", {}) is None
    for options, message in (
        ({"tasks": ["SST2"]}, r"GLUE has no task 'SST2'\. Did you mean 'SST-2'\?"),
        ({"tasks": ["RTE", "RTE"]}, r"names 'RTE' twice"),
        ({"train_size": 30}, r"has 24 different rows .* validation_size 4 and train_size 30 ask for 34"),
        ({"validation_size": 24}, r"validation_size 24 and train_size of at least 1 ask for 25"),
        ({"test_size": 9}, r"dev\.tsv of CoLA has 8 different rows, and 9 are asked for"),
    ):
        with pytest.raises(UserError, match=message):
            load(root, **options)
    for options in ({"clients": 3}, {"train_size": -1}, {"backbones": []}):
        with pytest.raises(ValidationError):
            load(root, **options)


@pytest.mark.realdata
def test_the_eight_real_clients(realdata: Path) -> None:
    made = pfl_make_benchmark("glue", {"root": str(realdata / "glue")})
    assert made is not None
    assert [client.client_id for client in made.clients] == list(TASKS)
    for client in made.clients:
        (data,) = client.tasks
        assert len(data.validation) == 200
        assert 1790 <= len(data.train) <= 1880
        assert len(data.test) == (127 if data.name == "RTE" else 500)
        parts = [set(prompts(part)) for part in (data.train, data.validation, data.test)]
        assert sum(map(len, parts)) == len(set.union(*parts))
        for sample in (*data.train, *data.test):
            assert sample.gold[0] in sample.options if data.kind == "multi-choice" else 0 <= float(sample.gold[0]) <= 5
        assert data.kind == "open-ended" or {sample.gold[0] for sample in data.test} == set(data.test[0].options)
