"""CIFAR-100 over clients: files, partition, bad input, and a small run of each kind of method."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from cifar_support import write_cifar
from pfl_benchmarks.cifar100.files import RECORD, read_pictures
from pfl_benchmarks.cifar100.partition import dealt, shares
from pfl_benchmarks.cifar100.plugin import pfl_make_benchmark
from pfl_platform.cli import main
from pfl_platform.data import FixedBenchmark, Sample, TaskData
from pfl_platform.errors import UserError


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that no test changes."""
    root = tmp_path_factory.mktemp("data") / "cifar100"
    write_cifar(root)
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_cifar(tmp_path / "cifar100")
    return tmp_path / "cifar100"


def load(root: Path, **options: Any) -> FixedBenchmark:
    made = pfl_make_benchmark("cifar100", {"root": str(root), "num_clients": 4, "public_size": 20, **options})
    assert isinstance(made, FixedBenchmark)
    return made


def tasks(benchmark: FixedBenchmark) -> list[TaskData]:
    return [task for client in benchmark.clients for task in client.tasks]


def keys(samples: Any) -> list[str]:
    return [sample.pictures[0].key for sample in samples]


def test_a_sample_is_the_record_of_its_place(shared: Path) -> None:
    (task, *_) = tasks(load(shared))
    sample: Sample = task.train[0]
    part, _, place = sample.id.partition("/")
    row = np.frombuffer((shared / "cifar-100-binary" / f"{part}.bin").read_bytes(), np.uint8).reshape(-1, RECORD)
    row = row[int(place)]
    assert sample.turns[0].answer == f"fine kind {row[1]}" == sample.options[row[1]]
    assert len(sample.options) == 100
    assert sample.turns[0].human.startswith("<image>\n")
    image = np.asarray(sample.pictures[0].load())
    assert image.shape == (32, 32, 3)
    assert np.array_equal(image, row[2:].reshape(3, 32, 32).transpose(1, 2, 0))  # red, green, blue planes


def test_coarse_classes(shared: Path) -> None:
    fine, coarse = (tasks(load(shared, classes=kind))[0] for kind in ("fine", "coarse"))
    assert [sample.id for sample in coarse.train] == [sample.id for sample in fine.train]
    for one, other in zip(fine.train, coarse.train, strict=True):
        assert len(other.options) == 20
        assert other.options.index(other.turns[0].answer) == one.options.index(one.turns[0].answer) // 5


@pytest.mark.parametrize("alpha", [0.1, 0.5, 100.0])
def test_every_picture_has_one_place(shared: Path, alpha: float) -> None:
    benchmark = load(shared, alpha=alpha)
    parts = [part for task in tasks(benchmark) for part in (task.train, task.validation)]
    learned = [sample.id for part in (*parts, benchmark.public_sets["held_out"]) for sample in part]
    assert len(learned) == len(set(learned)) == 400
    tested = [sample.id for task in tasks(benchmark) for sample in task.test]
    assert len(tested) == len(set(tested)) == 200
    assert not set(learned) & set(tested)
    assert len(benchmark.public_sets["held_out"]) == 20


def test_train_and_test_go_by_one_law() -> None:
    law = shares(20, 5, 0.5, np.random.default_rng(3))
    assert law.shape == (20, 5)
    np.testing.assert_allclose(law.sum(axis=1), 1.0)
    for per_class in (10, 400):
        labels = np.repeat(np.arange(20), per_class)
        parts = dealt(labels, law, np.arange(len(labels)), np.random.default_rng(per_class))
        counts = np.stack([np.bincount(labels[part], minlength=20) for part in parts], axis=1)
        assert np.abs(counts - per_class * law).max() <= 1.0  # cut at rounded sums: at most one picture off
        assert counts.sum() == len(labels)


def test_a_small_alpha_gives_few_classes(shared: Path) -> None:
    def classes(alpha: float) -> float:
        parts = [task.train for task in tasks(load(shared, alpha=alpha))]
        return float(np.mean([len({sample.turns[0].answer for sample in part}) / len(part) for part in parts]))

    even = load(shared, alpha=1e6)
    sizes = [len(task.train) + len(task.validation) for task in tasks(even)]
    assert max(sizes) - min(sizes) <= 20
    assert classes(0.05) < 0.6 * classes(1e6)


def test_the_parts_do_not_depend_on_each_others_size(shared: Path) -> None:
    whole, less = tasks(load(shared))[1], tasks(load(shared, train_size=12, test_size=5))[1]
    assert [len(part) for part in (less.train, less.test)] == [12, 5]
    for part in ("train", "validation", "test"):
        cut = getattr(less, part)
        assert keys(cut) == keys(getattr(whole, part))[: len(cut)]
    assert len(less.validation) == len(whole.validation) == (len(whole.train) + len(whole.validation)) // 10
    assert len(tasks(load(shared, validation_share=0.0))[1].validation) == 0


def test_the_digest_names_the_content(root: Path) -> None:
    digest = load(root).digest()
    assert load(root).digest() == digest == load(root / "cifar-100-binary").digest()
    for change in ({"data_seed": 1}, {"alpha": 0.4}, {"classes": "coarse"}, {"test_size": 3}, {"public_size": 21}):
        assert load(root, **change).digest() != digest
    path = root / "cifar-100-binary" / "train.bin"
    data = bytearray(path.read_bytes())
    data[RECORD - 1] ^= 1  # a single bit of a pixel
    path.write_bytes(data)
    assert load(root).digest() != digest


def test_what_is_tested_on_is_not_learned(root: Path) -> None:
    folder = root / "cifar-100-binary"
    train, test = ((folder / f"{part}.bin").read_bytes() for part in ("train", "test"))
    (folder / "train.bin").write_bytes(train + test[: 3 * RECORD] + train[:RECORD])
    benchmark = load(root)
    sizes = [len(task.train) + len(task.validation) for task in tasks(benchmark)]
    assert sum(sizes) + 20 == 400
    learned = {key for task in tasks(benchmark) for key in keys(task.train)}
    assert not learned & {key for task in tasks(benchmark) for key in keys(task.test)}


def test_where_the_data_is(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PFL_DATA", str(root.parent))
    assert pfl_make_benchmark("cifar100", {}) is not None
    monkeypatch.delenv("PFL_DATA")
    with pytest.raises(UserError, match="Where are the files of CIFAR-100.* option 'root', or set PFL_DATA"):
        pfl_make_benchmark("cifar100", {})
    with pytest.raises(UserError, match=r"not at .*none: there is no such folder"):
        load(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty has no folder 'cifar-100-binary'; unpack the binary version"):
        load(tmp_path / "empty")


def test_pickled_files_are_never_read(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    (folder / "train").write_bytes(b"\x80\x04cos\nsystem\n")
    for place in (tmp_path, folder):
        with pytest.raises(UserError, match="in pickled files only, which can run foreign code and are never read"):
            load(place)


def test_broken_files(root: Path) -> None:
    folder = root / "cifar-100-binary"
    whole = (folder / "train.bin").read_bytes()
    for data, message in (
        (whole[:-1], rf"train\.bin has {400 * RECORD - 1} bytes, which are not whole records of 3074; .* truncated"),
        (b"", r"train\.bin has 0 bytes"),
        (b"\x14" + whole[1:], r"train\.bin, record 1: there is no coarse class 20; there are 20"),
        (whole[: RECORD + 1] + b"\x64" + whole[RECORD + 2 :], r"record 2: there is no fine class 100; there are 100"),
    ):
        (folder / "train.bin").write_bytes(data)
        with pytest.raises(UserError, match=message):
            load(root)
    (folder / "train.bin").write_bytes(whole)
    names = folder / "fine_label_names.txt"
    names.write_text("apple\n" * 100, encoding="utf-8")
    with pytest.raises(UserError, match=r"fine_label_names\.txt has 1 different names where there should be 100"):
        load(root)
    names.unlink()
    with pytest.raises(UserError, match=r"fine_label_names\.txt does not exist"):
        load(root)
    assert load(root, classes="coarse").clients
    test = (folder / "test.bin").read_bytes()
    (folder / "test.bin").write_bytes(test[: 3 * RECORD])
    with pytest.raises(UserError, match=r"Client '\d' of 4 gets no test pictures at alpha 0\.5; choose"):
        load(root, classes="coarse")
    (folder / "test.bin").unlink()
    with pytest.raises(UserError, match=r"test\.bin does not exist"):
        load(root)


def test_bad_options(shared: Path) -> None:
    assert pfl_make_benchmark("folder", {}) is None
    for options in ({"alpha": 0.0}, {"alpha": -1}, {"alpha": float("inf")}, {"classes": "both"}, {"clients": 3}):
        with pytest.raises(ValidationError):
            load(shared, **options)
    for options, message in (
        ({"num_clients": 300, "alpha": 0.01}, r"gets no train pictures at alpha 0\.01; choose a larger alpha"),
        ({"public_size": 400}, r"public_size is 400, but .*train\.bin has 400 pictures"),
    ):
        with pytest.raises(UserError, match=message):
            load(shared, **options)


def test_the_pictures_of_a_file_are_read_as_they_are_needed(shared: Path) -> None:
    pictures = read_pictures(shared / "cifar-100-binary" / "test.bin")
    assert isinstance(pictures.records, np.memmap)
    assert len(pictures) == 200
    assert sorted(set(pictures.labels("coarse").tolist())) == list(range(20))


RUNS = {
    "sft": [],
    "fedit": ["heads=shared"],
    "ffa-lora": [],
    "fedalt": [],
    "ditto": [],
    "potara": ["personalizer.samples=4"],
    "fishermerge": ["personalizer.samples=4", "personalizer.space=full"],
    "feddpa": ["heads=frozen"],
}


def words(root: Path, method: str, out: Path, *more: str) -> list[str]:
    found = ["run", "--plugin", method, "--benchmark", "cifar100", "--backbone", "tiny-vit", "--rounds", "2"]
    found += ["--local-steps", "2", "--threads", "1", "--quiet", "--out", str(out)]
    sets = ["num_clients=2", "train_size=20", "test_size=6", f"root={root}"]
    settings = [f"benchmark.{setting}" for setting in sets]
    settings += ["adapter.r=2", "adapter.targets=[q_proj,v_proj]", "backbone_options.init=0", "training.batch_size=4"]
    return [*found, *(word for setting in (*settings, *more) for word in ("--set", setting))]


@pytest.mark.parametrize("method", sorted(RUNS))
def test_a_small_run(method: str, shared: Path, tmp_path: Path) -> None:
    assert main(words(shared, method, tmp_path / "run", *RUNS[method])) == 0
    found = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))
    assert set(found["clients"]) == {"1", "2"}
    for entry in found["clients"].values():
        assert entry["backbone"] == "tiny-vit"
        assert all(0.0 <= score <= 100.0 for score in entry["tasks"].values())
        assert (entry["cost"]["up_payload"] > 0) == (method != "sft")
    lines = (tmp_path / "run" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2 * 2 * 6  # each client's model on both test parts
    assert all(json.loads(line)["text"].startswith("fine kind ") for line in lines)


def test_plain_peft_and_transformers_answer_as_the_run_did(shared: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    from pfl_model_zoo.plugin import pfl_make_backbone

    rate = ["training.lr=0.02", "evaluation.others=false"]
    assert main(words(shared, "sft", tmp_path / "run", *rate)) == 0
    backbone = pfl_make_backbone("tiny-vit", {"init": 0})
    assert backbone is not None
    model = PeftModel.from_pretrained(backbone.model, str(tmp_path / "run" / "adapters" / "1")).eval()
    samples = tasks(load(shared, num_clients=2, train_size=20, test_size=6, public_size=200))[0].test
    with torch.no_grad():
        pixels = backbone.codec.encode(samples).inputs["pixel_values"]
        answers = [samples[0].options[int(row[0].argmax())] for row in model(pixel_values=pixels).logits]
    lines = (tmp_path / "run" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    said = {line["id"]: line["text"] for line in map(json.loads, lines) if line["client"] == "1"}
    assert [said[sample.id] for sample in samples] == answers


def test_methods_that_need_words_say_so(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for method in ("fedmosaic", "fedmkt"):
        assert main(words(shared, method, tmp_path / "run")) == 2
        assert "'tiny-vit' of client '1' chooses its answers or writes them apart" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.realdata
def test_the_real_pictures(realdata: Path) -> None:
    benchmark = pfl_make_benchmark("cifar100", {"root": str(realdata / "cifar100")})
    assert isinstance(benchmark, FixedBenchmark)
    assert len(benchmark.clients) == 10
    sizes = np.array([[len(part) for part in (task.train, task.validation, task.test)] for task in tasks(benchmark)])
    assert sizes[:, :2].sum() + 200 == 4000
    assert sizes[:, 2].sum() == 1000
    # The same law for both: clients with more to learn have more to be tested on.
    assert np.corrcoef(sizes[:, 0], sizes[:, 2])[0, 1] > 0.5
    apple = next(sample for task in tasks(benchmark) for sample in task.train if sample.turns[0].answer == "apple")
    assert apple.options[:3] == ("apple", "aquarium fish", "baby")
