"""Federations from a folder, on a tiny one: what comes out, splits, public sets."""

from __future__ import annotations

import copy
import doctest
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from pfl_benchmarks.folder import choices, files, records
from pfl_benchmarks.folder.benchmark import FolderBenchmark
from pfl_benchmarks.folder.pictures import Pictures
from pfl_benchmarks.folder.plugin import pfl_make_benchmark
from pfl_benchmarks.folder.splits import capped, cut_validation
from pfl_platform.data import FilePicture, Sample, Turn
from pfl_platform.errors import UserError

Record = dict[str, Any]


def record(name: str, question: str, answer: Any, image: Any = None) -> Record:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": name, "conversations": turns, **({} if image is None else {"image": image})}


def load(path: Path, **options: Any) -> FolderBenchmark:
    made = pfl_make_benchmark("folder", {"path": str(path), **options})
    assert isinstance(made, FolderBenchmark)
    return made


def ids(samples: Any) -> set[str]:
    return {sample.id for sample in samples}


@pytest.mark.parametrize("module", [choices, files])
def test_examples_in_the_documentation_run(module: Any) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


# What comes out.


def test_clients_and_tasks(tiny: Any) -> None:
    benchmark = load(tiny.root)
    assert benchmark.name == "tiny"
    assert [(client.client_id, client.backbone) for client in benchmark.clients] == [("1", "tiny-a"), ("two", "tiny-b")]
    tasks = [task for client in benchmark.clients for task in client.tasks]
    assert [(task.name, task.kind, task.metric, task.group) for task in tasks] == [
        ("Colour-0", "multi-choice", "choice", "Colour"),
        ("Same-3", "multi-choice", "choice", "Same"),
        ("Sum-0", "open-ended", "rouge_l", "Sum"),
    ]
    assert [(len(task.train), len(task.validation), len(task.test)) for task in tasks] == [(9, 1, 4)] * 3
    assert benchmark.clients[0].num_examples == 18


def test_samples_follow_the_rules_of_the_form(tiny: Any) -> None:
    (colour, same), (total,) = (client.tasks for client in load(tiny.root).clients)
    first = colour.test[0]
    assert first.turns[0].human == "<image>\nWhich colour?\nChoice list:[A. red | B. green | C. blue | D. grey]"
    assert first.options == ("red", "green", "blue", "grey")
    assert first.gold == ("A",)
    assert [picture.load().size for picture in first.pictures] == [(12, 12)]
    assert same.test[0].options == ("True", "False")
    assert [sample.gold for sample in same.test] == [("True",), ("False",), ("False",), ("False",)]
    assert len(same.test[0].pictures) == 2
    assert (total.test[0].gold, total.test[0].options, total.test[0].pictures) == (("1",), (), ())
    everything = [
        sample for task in (colour, same, total) for part in (task.train, task.validation, task.test) for sample in part
    ]
    assert (
        len(ids(everything)) == len(everything) == 42
    )  # ids are unique although every record of `Same` is called "same"


def test_several_turns_and_missing_marks(tmp_path: Path) -> None:
    said = [("human", "What is it? <image>"), ("gpt", "a cat"), ("human", "And this?"), ("gpt", 2.5)]
    raw = {"image": ["a.png", "b.png"], "conversations": [{"from": who, "value": value} for who, value in said]}
    sample = records.sample_of(raw, "here", tmp_path, "x", choices=True)
    assert sample.turns == (Turn("<image>\nWhat is it? <image>", "a cat"), Turn("And this?", "2.5"))


@pytest.mark.parametrize(
    ("question", "options"),
    [
        ("Choice list:[True, False]. Your answer is:", ("True", "False")),
        ("Choice list: [a,b,c]", ("a", "b", "c")),
        ("Choice List:[1,000, 20]", ("1,000", "20")),
        ("Choice lists: ['A cat', \"a dog's bone\"]", ("A cat", "a dog's bone")),
        ("Choice lists: ['unclosed, b]", ("'unclosed", "b")),
        ("Choice list:[x[0] | x[1]]. Your answer is:", ("x[0]", "x[1]")),
        ("Choice list:[A. deer, B. frog]", ("deer", "frog")),
        ("Choice list:[A. deer | B frog]", ("A. deer", "B frog")),
        ("Choice list:[Image A, Image B]", ("Image A", "Image B")),
        ("First Choice list:[no]. Then Choice list:[a, b]", ("a", "b")),
        ("Pick. A: a red one| B: a blue one| C: none", ("a red one", "a blue one", "none")),
        ("Pick.\nA. one\nB. two\nC. three\nAnswer:", ("one", "two", "three")),
        ("Pick.\n(A) one\n(B) two", ("one", "two")),
        ("A. This is a sentence.\nNo choices here.", ()),
        ("What is it?", ()),
    ],
)
def test_option_formats(question: str, options: tuple[str, ...]) -> None:
    assert choices.parse_choices(question) == options


def test_lists_and_lines_give_back_what_was_written() -> None:
    words = st.text("abcdefghij ", min_size=1, max_size=8).map(str.strip).filter(bool)

    @given(st.lists(words, min_size=2, max_size=6))
    def check(options: list[str]) -> None:
        letters = "ABCDEF"
        labelled = [f"{letter}. {option}" for letter, option in zip(letters, options, strict=False)]
        for shown in (f"[{', '.join(options)}]", f"[{' | '.join(labelled)}]", f"[{', '.join(map(repr, options))}]"):
            assert choices.parse_choices(f"Which? Choice list:{shown}. Your answer is:") == tuple(options)
        assert choices.parse_choices("Which?\n" + "\n".join(labelled)) == tuple(options)

    check()


def test_backbones_by_option(tiny: Any) -> None:
    mapped = load(tiny.root, backbone_map={"tiny-a": "big"})
    assert [client.backbone for client in mapped.clients] == ["big", "tiny-b"]
    del tiny.scenario[0]["model_id"]
    tiny.write()
    assert load(tiny.root, default_backbone="small").clients[0].backbone == "small"


def test_metrics_of_a_scenario(tiny: Any) -> None:
    for given_metric, metric in (
        ("F1", "token_f1"),
        ("RougeL", "rouge_l"),
        ("rougel", "rouge_l"),
        ("mine", "mine"),
        (None, "token_f1"),
    ):
        tiny.scenario[1]["datasets"][0]["metric"] = given_metric
        tiny.write()
        assert load(tiny.root).clients[1].tasks[0].metric == metric


# Splits.


def test_validation_is_seeded_and_disjoint(tiny: Any) -> None:
    first, again, other = (load(tiny.root, validation_fraction=0.4, data_seed=seed) for seed in (0, 0, 1))
    parts = [benchmark.clients[1].tasks[0] for benchmark in (first, again, other)]
    assert [len(task.validation) for task in parts] == [4, 4, 4]
    assert not ids(parts[0].train) & ids(parts[0].validation)
    assert parts[0].validation == parts[1].validation
    assert ids(parts[0].validation) != ids(parts[2].validation)
    assert load(tiny.root, validation_fraction=0).clients[0].tasks[0].validation == ()


def test_copies_stay_together_and_what_others_have_stays_in_train(tiny: Any) -> None:
    train = tiny.records["Sum/train/dataset-0"]
    tiny.records["Sum/train/dataset-0"] = [
        *train,
        record("copy", train[0]["conversations"][0]["value"], "another answer"),
        record("leak", tiny.records["Sum/test/dataset-0"][0]["conversations"][0]["value"], "1"),
    ]
    tiny.write()
    benchmark = load(tiny.root, validation_fraction=0.9)
    task = benchmark.clients[1].tasks[0]
    asked = {
        name: {sample.turns[0].human for sample in getattr(task, name)} for name in ("train", "validation", "test")
    }
    assert len(task.train) + len(task.validation) == 12
    assert not asked["validation"] & (asked["train"] | asked["test"])
    assert asked["train"] & asked["test"] == {"test 0 + 1 ="}
    report = {line.task: (line.num_test, line.in_own_train, line.in_any_train) for line in benchmark.overlap_report()}
    assert report == {"Colour-0": (4, 0, 0), "Same-3": (4, 0, 0), "Sum-0": (4, 1, 1)}


def test_overlap_is_found_under_other_file_names(tiny: Any) -> None:
    folder = tiny.root / "dataset" / "Colour" / "images"
    shutil.copy(folder / "train-2.png", folder / "test-1.png")
    overlap = {line.task: (line.in_own_train, line.in_any_train) for line in load(tiny.root).overlap_report()}
    assert overlap["Colour-0"] == (1, 1)
    assert overlap["Same-3"] == (0, 0)  # its first picture differs
    assert load(tiny.root, check="header").overlap_report() == load(tiny.root).overlap_report()


@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=30),
    st.floats(0, 0.99),
    st.sets(st.integers(0, 6)),
    st.integers(0, 3),
)
def test_validation_laws(contents: list[int], fraction: float, elsewhere: set[int], seed: int) -> None:
    samples = [Sample(str(index), (Turn("", ""),)) for index in range(len(contents))]
    keys = {sample.id: content for sample, content in zip(samples, contents, strict=True)}
    counts = {content: 1 + (content in elsewhere) for content in contents}
    train, validation = cut_validation(samples, fraction, keys, counts, seed)
    held_out = {keys[sample.id] for sample in validation}
    assert sorted(ids(train) | ids(validation), key=int) == [sample.id for sample in samples]
    assert train
    assert not held_out & ({keys[sample.id] for sample in train} | elsewhere)
    assert len(validation) <= max(1, round(fraction * len(samples)))
    if fraction and len(set(contents)) == len(contents) > 1 and not set(contents) & elsewhere:
        assert len(validation) == min(max(1, round(fraction * len(samples))), len(samples) - 1)


def test_caps_are_seeded_and_nested(tiny: Any) -> None:
    small, large = load(tiny.root, max_train=4, max_test=2), load(tiny.root, max_train=7, max_test=3)
    for few, more in zip(small.clients[1].tasks, large.clients[1].tasks, strict=True):
        assert (len(few.train) + len(few.validation), len(few.test)) == (4, 2)
        assert ids([*few.train, *few.validation]) < ids([*more.train, *more.validation])
        assert ids(few.test) < ids(more.test)
    samples = [Sample(str(index), (Turn("", ""),)) for index in range(9)]
    assert list(capped(samples, None, 0)) == list(range(9))
    assert list(capped(samples, 5, 0)) == sorted(capped(samples, 5, 0))


def test_clients_that_share_a_subset_share_its_splits_and_it_is_read_once(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.scenario[1]["datasets"] = copy.deepcopy(tiny.scenario[0]["datasets"])
    tiny.write()
    opened: list[Path] = []

    def counting(path: Path) -> Any:
        opened.append(path)
        return json.loads(path.read_text(encoding="utf-8"))

    monkeypatch.setattr(files, "read_json", counting)
    first, second = load(tiny.root).clients
    assert first.tasks == second.tasks
    assert len(opened) == len(set(opened)) == 5


def test_unseen_tasks(tiny: Any) -> None:
    tiny.put("scenarios/new.json", [tiny.scenario.pop()])
    tiny.put("scenarios/tiny.json", tiny.scenario)
    benchmark = load(tiny.root, scenario="tiny", unseen="new")
    assert [client.client_id for client in benchmark.clients] == ["1"]
    assert [task.name for task in benchmark.unseen] == ["Sum-0"]
    with pytest.raises(UserError, match="'Colour-0' is not unseen"):
        load(tiny.root, scenario="tiny", unseen=["tiny"])


def test_digest_names_the_content(tiny: Any, tmp_path: Path) -> None:
    digest = load(tiny.root).digest()
    shutil.copytree(tiny.root, tmp_path / "moved")
    assert load(tmp_path / "moved").digest() == digest
    assert load(tiny.root, data_seed=1).digest() != digest
    Image.new("RGB", (12, 12), (1, 2, 3)).save(tmp_path / "moved" / "dataset" / "Colour" / "images" / "train-0.png")
    assert load(tmp_path / "moved").digest() != digest
    tiny.records["Sum/test/dataset-0"][0]["conversations"][1]["value"] = 5
    tiny.write()
    assert load(tiny.root).digest() != digest


def test_the_hook_answers_to_its_name_and_to_folders(tiny: Any, tmp_path: Path) -> None:
    assert pfl_make_benchmark("sni", {}) is None
    by_path = pfl_make_benchmark(str(tiny.root), {"max_test": 2})
    assert by_path is not None
    assert by_path.digest() == load(tiny.root, max_test=2).digest()
    with pytest.raises(ValidationError, match="max_tset"):
        load(tiny.root, max_tset=2)
    with pytest.raises(UserError, match="needs the option 'path'"):
        pfl_make_benchmark("folder", {})
    with pytest.raises(UserError, match="does not exist or is no folder"):
        pfl_make_benchmark(str(tmp_path / "nowhere"), {})


def test_scenario_choice(tiny: Any, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text(json.dumps(tiny.scenario[1:]), encoding="utf-8")
    assert len(load(tiny.root, scenario=str(other)).clients) == 1
    assert len(load(tiny.root, scenario="tiny.json").clients) == 2
    tiny.put("scenarios/X_task_list.json", [{"dataset": "Sum", "subset_id": 0, "type": "open-ended", "Desc": ""}])
    assert len(load(tiny.root).clients) == 2  # task lists are no scenarios
    (tiny.root / "scenarios").rename(tiny.root / "scenarios-away")
    tiny.put("scenario.json", tiny.scenario)
    assert len(load(tiny.root).clients) == 2


def test_proposed_settings(tiny: Any) -> None:
    assert load(tiny.root).defaults == {}
    tiny.put("defaults.yaml", "rounds: 3\ntraining: {lr: 1e-3}\n")
    assert load(tiny.root).defaults == {"rounds": 3, "training": {"lr": 0.001}}
    for text, message in (("seed: 1", "cannot propose 'seed'"), ("a: [", "Not readable as YAML"), ("- 1", "must hold")):
        tiny.put("defaults.yaml", text)
        with pytest.raises(UserError, match=message):
            load(tiny.root)


def test_pictures_are_opened_on_use(tiny: Any) -> None:
    broken = tiny.root / "dataset" / "Colour" / "images" / "test-0.png"
    Image.effect_noise((32, 32), 99).save(broken)
    content = broken.read_bytes()
    broken.write_bytes(content[:200])
    for check in ("full", "header", "auto"):
        with pytest.raises(UserError, match=r"test/dataset-0\.json, record 0: .*test-0\.png is broken"):
            load(tiny.root, check=check)
    broken.write_bytes(content[:200] + bytes(60) + content[260:])  # beginning and end are whole, the pixels are not
    with pytest.raises(UserError, match=r"test/dataset-0\.json, record 0: .*test-0\.png is broken"):
        load(tiny.root)
    picture = load(tiny.root, check="header").clients[0].tasks[0].test[0].pictures[0]
    with pytest.raises(UserError, match=r"test-0\.png cannot be read"):
        picture.load()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM"])
@pytest.mark.parametrize("kept", ["all", "half", "all but the last 40 bytes", "all and two more"])
def test_the_quick_check_refuses_exactly_what_cannot_be_loaded(tmp_path: Path, form: str, kept: str) -> None:
    file = tmp_path / f"a.{form.lower()}"
    Image.effect_noise((64, 64), 99).convert("P" if form == "GIF" else "RGB").save(file, format=form)
    whole = file.read_bytes()
    change = {"all": whole, "half": whole[: len(whole) // 2], "all and two more": whole + b"xx"}
    file.write_bytes(change.get(kept, whole[:-40]))
    picture = FilePicture(file)
    pictures = Pictures()
    pictures.add({0: Sample("s", (Turn("q", "a"),), (picture,))}, tmp_path / "x.json", tmp_path)
    if kept.startswith("all and") or kept == "all":
        pictures.check("header")
        assert picture.load().size == (64, 64)
    else:
        with pytest.raises(UserError, match=r"record 0: .* is broken"):
            pictures.check("header")
        with pytest.raises(UserError, match="cannot be read"):
            picture.load()


# Public sets.


def test_public_sets_have_nothing_of_the_clients(tiny: Any, tmp_path: Path) -> None:
    fresh = [record(f"p{index}", f"public {index}?", "yes") for index in range(6)]
    taken = tiny.records["Sum/train/dataset-0"][3]
    tiny.put("public/a.json", [*fresh, fresh[0], taken, tiny.records["Colour/test/dataset-0"][1]])
    tiny.put("public/b.json", [record("q", "only one?", "yes")])
    benchmark = load(tiny.root)
    assert [sample.turns[0].human for sample in benchmark.public(None, 100, 0)] == [f"public {i}?" for i in range(6)]
    assert len(benchmark.public("b", 100, 0)) == 1
    drawn = benchmark.public("a", 3, 0)
    assert len(drawn) == 3
    assert drawn == benchmark.public("a", 3, 0)
    with pytest.raises(UserError, match="'c' is no public set"):
        benchmark.public("c", 3, 0)

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name, samples in (("a", [*fresh, taken]), ("b", [record("q", "only one?", "yes")])):
        (elsewhere / f"{name}.json").write_text(json.dumps(samples), encoding="utf-8")
    assert len(benchmark.public(str(elsewhere), 100, 0)) == 6
    assert len(load(tiny.root, public=str(elsewhere / "b.json")).public(None, 100, 0)) == 1
    assert len(load(tiny.root, public=str(elsewhere), public_size=2).public("a", 100, 0)) <= 2
    only = pfl_make_benchmark("folder", {"public": str(elsewhere)})
    assert only is not None
    assert only.clients == ()
    tiny.put("public/a.json", [record("p", "what?", "x", "dataset/none.png")])
    with pytest.raises(UserError, match=r"public/a\.json, record 0: the picture .*none\.png does not exist"):
        load(tiny.root)


def test_a_public_set_in_the_form_of_llava_instruct(tiny: Any, tmp_path: Path) -> None:
    pictures = tmp_path / "coco"
    pictures.mkdir()
    Image.new("RGB", (8, 8)).save(pictures / "1.jpg")
    content = [{"id": "1-conv", **record("", "<image>\nWhat is it?", "Nothing.", "1.jpg")}]
    file = tiny.put("instruct.json", content)
    shown = load(tiny.root, public=str(file), public_root=str(pictures)).public("instruct", 5, 0)
    assert shown[0].pictures[0].load().size == (8, 8)


def test_no_public_set(tiny: Any) -> None:
    with pytest.raises(UserError, match="'tiny' has no public set"):
        load(tiny.root).public(None, 10, 0)
    tiny.put("public/a.json", tiny.records["Sum/train/dataset-0"])
    with pytest.raises(UserError, match=r"'a' of .* has no sample that the clients do not have"):
        load(tiny.root)
    with pytest.raises(UserError, match="neither a record file nor a folder"):
        load(tiny.root, public=str(tiny.root / "dataset"))
