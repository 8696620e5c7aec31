"""What is foreseen of a run, beside the run; and the parts that foresee it, by hand."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pfl_platform.cli import forecasting
from pfl_platform.cli.app import main
from pfl_platform.errors import UserError
from pfl_platform.federation import session
from pfl_platform.federation.setup import build
from pfl_platform.ledger import calibration, fitting
from pfl_platform.ledger.capacity import Capacity, container_limit
from pfl_platform.ledger.hollow import NOWHERE, Account, hollow, is_hollow
from pfl_platform.ledger.outlook import PROCESS, Asked, helps, needed, outlook, proposals
from pfl_platform.ledger.rehearsal import Rehearsal
from pfl_platform.ledger.stage import ShapeStore
from pfl_platform.ledger.typical import typical
from pfl_platform.outlines import Row
from pfl_platform.plugins import PluginManager
from pfl_platform.testing.bench import Bench
from pfl_platform.testing.peaks import task_peaks

METHOD = "fedit"
TINY = ("tiny-llama-s", "tiny-llama-s")
SETTINGS = ("local_steps=2", "evaluation.baseline=false", "evaluation.others=false", "training.batch_size=4")


def test_what_is_held_by_hand() -> None:
    account = Account()
    with torch.device("meta"):
        linear = torch.nn.Linear(10, 20, bias=False)
    with hollow(account):
        account.take(linear.weight, "weights")
        x = torch.zeros(1000, 10)
        y = linear(x).relu()
        y.sum().backward()
        assert is_hollow(y)
        assert (y > 0).tolist() == [[True] * 20] * 1000
        assert float(y.detach().sum()) == 1.0
        assert str(y.device) == "cpu"
        held = account.total
    # weight and its gradient, x, and y, of which relu's result is the one that stays
    assert held == 2 * 4 * 200 + 4 * 10_000 + 4 * 20_000
    # the product, relu's result, and their gradients: never more than these beside what stays
    assert held < account.most <= held + 3 * 4 * 20_000
    with hollow(account), account.making(NOWHERE):
        z = torch.zeros(1000, 10)
    assert account.total == held
    account.move(z, "logits")
    assert account.total == held + 4 * 10_000
    del x, y, z, linear
    assert account.total == 0


def test_small_tables_keep_their_values() -> None:
    with hollow(Account()), torch.no_grad():
        table = torch.zeros(4, 4)
        big = torch.ones(100, 100)
        table[0, 1:3] = big[0, :2] * 0.5
        squares = torch.zeros(3, 3)
        squares += big[:, :3].T @ big[:, :3]
        assert table[0].tolist() == [0.0, 1.0, 1.0, 0.0]
        assert not bool(table[1].any())
        assert torch.linalg.matrix_rank(squares) == 3


def test_a_store_of_shapes_keeps_whole_numbers() -> None:
    account = Account()
    store = ShapeStore(account)
    with hollow(account):
        counts, known = torch.tensor([2, 0, 3], dtype=torch.int32), torch.tensor([True, False])
        first = store.put({"a/counts": counts, "a/known": known, "a/ones": torch.ones(5, dtype=torch.bool)})
        other = store.put({"a/counts": counts + 1, "a/known": known, "a/big": torch.ones(100, 100)})
        found = store.get(first)
        assert found["a/counts"].tolist() == [2, 0, 3]
        assert found["a/known"].tolist() == [True, False]
        assert bool(found["a/ones"].all())
        assert is_hollow(store.get(other)["a/big"])
        assert store.put({"a/counts": counts, "a/known": known, "a/ones": known.new_ones(5)}) == first != other
        both = store.get(store.merged(first, other))
        assert both["a/counts"].tolist() == [3, 1, 4]
        assert len(both) == 4


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(METHOD, tmp_path_factory.mktemp("plan"), TINY, SETTINGS)


@pytest.fixture(scope="module")
def asked(bench: Bench) -> Asked:
    return Asked(bench.config(), bench.manager, bench.benchmark(), "cpu")


@pytest.fixture(scope="module")
def rehearsed(asked: Asked) -> Rehearsal:
    return asked.rehearsed()


def test_memory_and_bytes_are_those_of_the_run(bench: Bench, asked: Asked, rehearsed: Rehearsal) -> None:
    assert not rehearsed.stopped
    with task_peaks() as peaks:
        out = bench.run()
    assert needed(asked.config, rehearsed) == pytest.approx(max(peak for _, peak in peaks), rel=0.15)
    foreseen = outlook(asked, rehearsed, Capacity(1 << 40, "x"))
    records = [json.loads(file.read_text()) for file in sorted((out / "rounds").glob("*.json"))]
    for name in ("up_payload", "up_wire", "down_payload", "down_wire"):
        spent = sum(entry["cost"][name] for record in records for entry in record["clients"].values())
        assert foreseen["bytes"][name] == spent > 0
    spent = sum(entry["cost"]["flops"] for record in records for entry in record["clients"].values())
    assert foreseen["flops"]["train"] == pytest.approx(spent, rel=0.15)
    folder = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    assert foreseen["disk"]["left"] == pytest.approx(folder, rel=0.2)


def test_what_does_not_fit_gets_proposals_that_do(
    asked: Asked, rehearsed: Rehearsal, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, evaluation = rehearsed.most("training"), rehearsed.most("evaluation")
    assert training is not None
    assert evaluation is not None
    room = Capacity(training.total - training.parts["activations"] // 4, "a small device")
    (smaller,) = [text for text in proposals(asked, rehearsed, room) if "micro_batch" in text]
    assert "--set training.micro_batch=2" in smaller or "--set training.micro_batch=3" in smaller
    settings = {"micro_batch": int(smaller.partition("micro_batch=")[2][0])}
    changed = asked.config.model_copy(update={"training": asked.config.training.model_copy(update=settings)})
    again = asked.rehearsed(changed, 1).most("training")
    assert again is not None
    assert again.total <= room.bytes < training.total
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    roomy = Capacity(2 * (needed(asked.config, rehearsed) + PROCESS), "a large device")
    many = ["2 such processes would fit on a large device (--engine deepspeed --ranks N)"]
    assert proposals(asked, rehearsed, roomy) == many
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert not proposals(asked, rehearsed, roomy)
    assert "training.micro_batch" in helps(("activations", 1))


def test_a_container_has_less_than_its_machine(tmp_path: Path) -> None:
    groups = tmp_path / "groups"
    groups.write_text("0::/outer/inner\n")
    inner = tmp_path / "root" / "outer" / "inner"
    inner.mkdir(parents=True)
    (inner / "memory.max").write_text("max\n")
    assert container_limit(tmp_path / "root", groups) > 1 << 50
    (inner.parent / "memory.max").write_text("1000000\n")
    assert container_limit(tmp_path / "root", groups) == 1_000_000
    groups.write_text("4:memory:/v1\n")
    old = tmp_path / "root" / "memory" / "v1"
    old.mkdir(parents=True)
    (old / "memory.limit_in_bytes").write_text("2000\n")
    assert container_limit(tmp_path / "root", groups) == 2000


def test_time_is_that_of_a_calibration(asked: Asked, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PFL_CACHE", str(tmp_path))
    seconds = calibration.Seconds(1.0, 2.0, 0.5, 0.25, 0.125, 1e9, {"a": 0.01, "b": 0.03})
    assert calibration.known(asked.config) is None
    assert calibration.rate(asked.config) is None
    calibration.keep(asked.config, seconds)
    more = asked.config.model_copy(update={"rounds": 10, "local_steps": 8})
    assert calibration.known(more) == seconds
    # 1 + 2 + 10 x (0.5 + 8 x 0.25) + 10 x 0.125 + 100 x 0.01 + 100 x 0.02, for a backbone that was not asked
    assert seconds.of(10, 8, {"a": 100, "c": 100})["total"] == pytest.approx(3 + 25 + 1.25 + 3)
    other = asked.config.model_copy(update={"method": "x"})
    assert calibration.known(other) is None
    assert calibration.rate(other) == (1e9, METHOD)


def test_some_steps_of_a_run_calibrate_it(asked: Asked) -> None:
    config = asked.config.model_copy(update={"rounds": 1})
    seconds = calibration.measured(config, asked.manager, asked.benchmark)
    assert min(seconds.start, seconds.step, seconds.rate, *seconds.question.values()) > 0
    assert set(seconds.question) == {"tiny-llama-s"}
    assert seconds.of(1, 2, {"tiny-llama-s": 4})["train"] == pytest.approx(seconds.turn + 2 * seconds.step)


def test_what_cannot_fit_is_refused_and_forced(bench: Bench, asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark, manager, out = bench.benchmark(), bench.manager, bench.folder / "refused"
    room = Capacity(2_000_000, "a small device")
    monkeypatch.setattr(fitting, "memory_of", lambda device: room)
    config = asked.config.model_copy(update={"rounds": 1})
    with pytest.raises(UserError, match=r"a small device has 2.00 MB: weights take most, 2.41 MB;.*`run --force`"):
        session.run(config, out, quiet=True, plugins=manager, benchmark=benchmark)
    room = Capacity(3_000_000, "a small device")  # room for the weights, and not for the passes
    with pytest.raises(UserError, match=r"The run needs about .* MB of memory and a small device has 3.00 MB"):
        session.run(config, out, quiet=True, plugins=manager, benchmark=benchmark)
    assert not out.exists()
    config = config.model_copy(update={"engine": config.engine.model_copy(update={"force": True})})
    session.run(config, out, quiet=True, plugins=manager, benchmark=benchmark)
    assert (out / "results.json").is_file()


def test_a_full_disk_is_known_before(bench: Bench, asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "disk_free", lambda folder: 1000)
    out = bench.folder / "full"
    with pytest.raises(UserError, match=r"1.00 kB are free where .*full lies: .*--out. `run --force`"):
        session.run(asked.config, out, quiet=True, plugins=bench.manager, benchmark=bench.benchmark())
    assert not out.exists()


def test_clients_side_by_side_need_more(bench: Bench, asked: Asked) -> None:
    def needs(clients: int) -> tuple[float, int]:
        engine = asked.config.engine.model_copy(update={"batch_clients": clients})
        config = asked.config.model_copy(update={"engine": engine})
        return fitting.bound(build(config, bench.manager, bench.benchmark())), needed(config, found)

    found = asked.rehearsed(rounds=1)
    together = Counter(found.fed.backbone_of.values()).most_common(1)[0][1]
    assert together > 1
    (low, one), (high, two) = needs(1), needs(2)
    held = max((held for held in found.held if held.what == "training"), key=lambda held: held.total)
    grown = sum(size for part, size in held.parts.items() if part not in ("weights", "state"))
    assert two <= one + grown
    assert (high, two) > (low, one)


def test_weights_are_not_judged_by_a_card_that_options_change(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "memory_of", lambda device: Capacity(1000, "a small device"))
    with pytest.raises(UserError, match="weights take most"):
        fitting.refuse_weights(asked.config, ["tiny-llama-s"])
    fitting.refuse_weights(asked.config.model_copy(update={"backbone_options": {"load": "4bit"}}), ["tiny-llama-s"])


def test_what_surely_fits_is_not_rehearsed(bench: Bench, asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any, **options: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(fitting, "rehearse", never)
    setup = build(asked.config, bench.manager, bench.benchmark())
    assert fitting.bound(setup) < 2e9  # of some twenty MB that are needed
    begun = time.process_time()
    fitting.refuse(setup, bench.manager, bench.folder)
    assert time.process_time() - begun < 0.5


def test_samples_of_files_that_are_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PFL_DATA", raising=False)
    outlined = PluginManager().outline("glue", {})
    made = typical(outlined, Row(text=5, pictures=2.0, answers=3, known=True))
    task, published = made.clients[0].tasks[0], outlined.clients[0].tasks[0]
    assert (len(task.train), len(task.test)) == (len(published.train), len(published.test))
    sample = task.train[7]
    assert (sample.turns[0].human, sample.turns[0].answer, len(sample.pictures)) == ("a a a a a", "a a a", 2)
    assert sample.id != task.train[8].id != task.test[8].id


def test_a_public_set_whose_pictures_are_not_here(
    federation: Callable[..., Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "llava-instruct").mkdir()
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cat."}]
    records = [{"id": "1", "image": "none.jpg", "conversations": turns}]
    (tmp_path / "llava-instruct" / "llava_instruct_158k.json").write_text(json.dumps(records), encoding="utf-8")
    monkeypatch.setenv("PFL_DATA", str(tmp_path))
    words = ["plan", "--plugin=fedmosaic", "--benchmark", str(federation(a="tiny-llava-llama-s")), "--rounds=1"]
    words += ["--local-steps=1", "--public=llava-instruct", "--public-size=8"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["assumed_row"], found["assumed_public"]["name"]) == (None, "llava-instruct")
    assert "none.jpg does not exist" in found["assumed_public"]["why"]
    assert not found["stopped"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "The public set's files are not all here (" in shown
    assert "none.jpg does not exist or cannot be read); assumed of a row: " in shown
    assert main([*words, "--calibrate"]) == 2
    assert "The public set's files are not all here" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize("option", ["--zero=2", "--shards=2"])
def test_what_one_process_has_no_use_for(
    command: str, option: str, federation: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--print-config"] if command == "run" else []
    words = [command, "--plugin=sft", "--benchmark", str(federation(a="tiny-llama-s")), option, *more]
    assert main(words) == 2
    assert "is for the engine 'deepspeed'; add --engine deepspeed, or leave it out." in capsys.readouterr().err


def test_the_command(
    federation: Callable[..., Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PFL_CACHE", str(tmp_path))
    words = ["plan", "--plugin", "sft", "--benchmark", str(federation(a="tiny-llama-s")), "--rounds", "1"]
    words += ["--local-steps", "1", "--set", "training.batch_size=2", "--set", "evaluation.max_new_tokens=1"]
    assert main([*words, "--memory", "0.001", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (backbone,) = found["backbones"]
    assert backbone["training"]["parts"]["weights"] == pytest.approx(4 * backbone["params"], rel=0.01)
    assert found["bytes"]["up_payload"] == 0
    assert not found["fits"]
    assert found["seconds"] is None
    assert found["proposals"]
    forecasting.show(found)
    assert "does not fit into 1.00 MB of that device" in capsys.readouterr().out
    assert main(["plan", "--plugin", "sft", "--memory", "-1"]) == 2
