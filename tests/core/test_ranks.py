"""What the ranks of a launch are made of, without a launch; see `test_ranks_launch.py` for the whole."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from multiprocessing.connection import Client, Listener
from pathlib import Path

import pytest
import torch

from pfl_platform.adapters.surfaces import Keys
from pfl_platform.cli import main
from pfl_platform.engines.ranks import launcher, start
from pfl_platform.engines.ranks.assign import Assigner
from pfl_platform.engines.ranks.hub import Hub
from pfl_platform.engines.ranks.link import Link, LinkStore
from pfl_platform.engines.ranks.place import Place, here
from pfl_platform.engines.ranks.together import Following, Leading
from pfl_platform.errors import UserError
from pfl_platform.federation.tasks import Cost, Outcome, Program, Task
from pfl_platform.store.memory import MemoryStore

KEY = secrets.token_bytes(16)


@pytest.fixture
def pair() -> Iterator[tuple[Leading, Following]]:
    listener = Listener(("127.0.0.1", 0), authkey=KEY)
    hub = Hub(listener, [1], 20.0)
    link = Link(Client(listener.address, authkey=KEY), 1)
    hub.wait_for_all()
    yield Leading(hub), Following(link)
    hub.close()


def test_what_every_rank_says_is_gathered_and_waiting_is_told(pair: tuple[Leading, Following]) -> None:
    leading, following = pair
    entered: list[str] = []
    for together, name in ((leading, "leading"), (following, "following")):
        together.waiting = lambda name=name: nullcontext(entered.append(name))
    assert following.gathered({"seconds": 2.0}) == []
    assert leading.gathered({"seconds": 1.0}) == [{"seconds": 1.0}, {"seconds": 2.0}]
    assert entered == ["leading"]
    leading.tell("a fact")
    assert following.told() == "a fact"
    assert entered == ["leading", "leading", "following"]
    assert (leading.rank, following.rank) == (0, 1)


def wait_for_ever(leading: Leading) -> None:
    while True:
        leading.hub.wait()


def task(actor: str, backbone: str, cells: int = 1) -> Task:
    from pfl_platform.evaluation.surfaces import Cell

    return Task(actor, "round", 0, backbone, score=tuple(Cell(actor, str(k)) for k in range(cells)))


def test_tensors_and_outcomes_travel_whole(pair: tuple[Leading, Following], monkeypatch: pytest.MonkeyPatch) -> None:
    leading, following = pair
    monkeypatch.setattr("pfl_platform.engines.ranks.wire.PIECE", 7)
    kept = MemoryStore()
    leading.hub.serve(kept)
    store = LinkStore(following.link)
    tensors = {
        "a/x/A": torch.arange(6.0).reshape(2, 3).T,
        "b/x/B": torch.tensor([[-0.0]], dtype=torch.bfloat16),
        "c": torch.empty(0),
    }
    address = store.put(tensors)
    assert address == MemoryStore().put(tensors)
    for found in (kept.get(address), store.get(address)):
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[key], value) and found[key].dtype == value.dtype for key, value in tensors.items())
    assert store.get(address, Keys("a/*")).keys() == {"a/x/A"}
    assert store.names(address) == ("a/x/A", "b/x/B", "c")
    text = store.put_text("zwei Wörter")
    assert kept.get_text(text) == store.get_text(text) == "zwei Wörter"
    outcome = Outcome("a", address, None, 3, {"loss/local": 0.5}, predictions=text, cost=Cost(steps=2))
    store.cache("digest", outcome)
    while (found := leading.hub.take_done("digest")) is None:
        leading.hub.wait()
    assert found == outcome == kept.cached("digest")


def test_facts_are_told_in_order_and_a_program_runs_where_it_must(pair: tuple[Leading, Following]) -> None:
    leading, following = pair
    ran: list[str] = []

    def program(name: str, yields: bool) -> Program[int]:
        ran.append(name)
        if yields:
            yield []
        return 7

    def lead() -> None:
        leading.once(lambda: {"x": [1, None]})
        for yields in (False, True):
            walk = leading.led(program("leader", yields))
            assert list(walk) == ([[]] if yields else [])

    thread = threading.Thread(target=lead)
    thread.start()
    assert following.once(lambda: pytest.fail("worked out twice")) == {"x": [1, None]}
    assert list(following.led(program("never", False))) == []
    assert list(following.led(program("follower", True))) == [[]]
    thread.join()
    assert sorted(ran) == ["follower", "leader", "leader"]


def test_a_rank_that_fails_dies_or_differs_is_told_of(pair: tuple[Leading, Following]) -> None:
    leading, following = pair
    following.agree({"versions": {"torch": "1.0"}})
    with pytest.raises(UserError, match=r"'versions\.torch' is 1\.0 at rank 1 and 2\.0 at rank 0"):
        leading.agree({"versions": {"torch": "2.0"}})
    following.link._connection.close()
    with pytest.raises(UserError, match="Rank 1 has ended without a word"):
        wait_for_ever(leading)


def test_an_error_of_a_rank_is_said_by_rank_0_in_its_words(pair: tuple[Leading, Following]) -> None:
    leading, following = pair
    following.link.failed("The picture x is broken.", stopped=False)
    with pytest.raises(UserError, match="^The picture x is broken.$"):
        wait_for_ever(leading)


def test_a_group_serves_few_backbones_and_the_longest_come_first() -> None:
    tasks = [task(f"a{k}", "A", 4) for k in range(4)] + [task(f"b{k}", "B", 2) for k in range(4)]
    found = Assigner(2).assign([[item] for item in tasks])
    of = {group: {item.backbone for item in tasks if found[item.actor] == group} for group in (0, 1)}
    assert sum(map(len, of.values())) == 3, "three of A fill a group; the other takes the rest of A and all of B"
    load = [sum(len(item.score) for item in tasks if found[item.actor] == group) for group in (0, 1)]
    assert abs(load[0] - load[1]) <= 4
    assert Assigner(3).assign([[item] for item in tasks[:2]]).keys() == {"a0", "a1"}


def test_what_tasks_took_decides_the_next_round() -> None:
    tasks = [task(name, "A") for name in "abcd"]
    assigner = Assigner(2)
    alone = [[item] for item in tasks]
    assigner.assign(alone)
    seconds = {"a": 9.0, "b": 1.0, "c": 1.0, "d": 1.0}
    assigner.learn(tasks, {name: Outcome(name, None, None, 1, {}, cost=Cost(seconds=seconds[name])) for name in "abcd"})
    found = assigner.assign(alone)
    assert [name for name in "abcd" if found[name] == found["a"]] == ["a"]
    found = assigner.assign([tasks[:2], tasks[2:]])  # who trains side by side goes to one group
    assert found["a"] == found["b"] != found["c"] == found["d"]


def test_places_in_a_grid() -> None:
    assert here({}) is None
    with pytest.raises(UserError, match="4 shards need as many ranks; there are 2"):
        start.gridded(Place(0, 2, 0), 4)
    with pytest.raises(UserError, match="3 ranks cannot be divided into groups of 2"):
        start.gridded(Place(0, 3, 0), 2)
    assert start.gridded(Place(3, 4, 3), 2).members(1) == [2, 3]
    for broken in ({"RANK": "x", "WORLD_SIZE": "2"}, {"RANK": "2", "WORLD_SIZE": "2"}):
        with pytest.raises(UserError, match="launcher"):
            here(broken)


RUN = ("run", "--plugin", "fedit", "--benchmark", "drake-synth", "--engine", "deepspeed")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--gpus", "2"), "2 GPUs are asked for, and this machine has none; --ranks starts processes without."),
        (("--ranks", "0"), "A launch has at least one rank."),
        (("--ranks", "2", "--gpus", "2"), "Give --gpus, or --ranks"),
        (("--ranks", "2", "--shards", "4"), "4 shards need as many ranks; there are 2."),
        (("--ranks", "3", "--shards", "2"), "3 ranks cannot be divided into groups of 2 shards."),
        (("--ranks", "2", "--zero", "5"), "zero"),
        (("--ranks", "2", "--zero", "3"), "say over how many with --shards."),
        (("--ranks", "1", "--zero", "2", "--set", "engine.offload=cpu"), "at ZeRO stage 3 alone; add --zero 3."),
        (("--ranks", "1", "--zero", "3", "--set", "engine.offload_folder=/tmp"), "is for engine.offload=disk"),
        (
            ("--ranks", "1", "--zero", "3", "--set", "engine.offload=disk", "--set", "engine.offload_folder=/nowhere"),
            "is '/nowhere', which is no folder that can be written to.",
        ),
        ((), "Say how many ranks are to be started"),
        (("--ranks", "2", "--hostfile", "no-such-file"), "The hostfile no-such-file cannot be read"),
    ],
)
def test_bad_launches_are_refused_at_once(
    words: tuple[str, ...],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(launcher, "launch", lambda *_a, **_k: pytest.fail("it was launched"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    out = tmp_path / "out"
    assert main([*RUN, *words, "--out", str(out)]) == 2
    assert sentence in capsys.readouterr().err
    assert not out.exists()


def test_hostfiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "hosts"
    file.write_text("# two\none slots=2\n\ntwo slots=4  # big\n")
    assert launcher.read_hostfile(file) == {"one": 2, "two": 4}
    launcher.check_shape(launcher.Machines(2, file), 4)
    tools = tmp_path / "bin"
    tools.mkdir()
    monkeypatch.setenv("PATH", str(tools))
    with pytest.raises(UserError, match="needs the program `ssh`"):
        launcher.check_hosts(launcher.Machines(2, file))
    for name in ("ssh", "pdsh"):
        (tools / name).write_text('#!/bin/sh\ncase "$*" in *one*) exit 0;; esac\nexit 255\n')
        (tools / name).chmod(0o755)
    with pytest.raises(UserError, match="'two' of the hostfile .* cannot be reached by ssh"):
        launcher.check_hosts(launcher.Machines(2, file))
    with pytest.raises(UserError, match="4 ranks are asked for on each machine; 'one' has 2 slots"):
        launcher.check_hosts(launcher.Machines(4, file))
    for text, sentence in (("one\n", "Line 1"), ("-oProxyCommand=x slots=1\n", "Line 1"), ("#\n", "names no machine")):
        file.write_text(text)
        with pytest.raises(UserError, match=sentence):
            launcher.read_hostfile(file)


def test_the_port_is_free_or_the_one_that_was_named() -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        number = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"MASTER_PORT={number} is taken"):
            launcher.free_port({"MASTER_PORT": str(number)})
        assert launcher.free_port({}) != number
    with pytest.raises(UserError, match="is none"):
        launcher.free_port({"MASTER_PORT": "http"})


def runs(number: int) -> bool:
    """Whether a process is there, and is not only waited for."""
    try:
        return Path("/proc", str(number), "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_signal_ends_all_processes_of_a_launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a launcher that starts a rank which ignores nothing, as DeepSpeed's does."""
    rank = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(60)"
    outer = (
        f"import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', {rank!r}, sys.argv[1]]).returncode)"
    )
    file = tmp_path / "pid"
    monkeypatch.setattr(launcher, "command", lambda *_: [sys.executable, "-c", outer, str(file)])

    def stop() -> None:
        while not file.is_file() or not file.read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    assert launcher.launch(launcher.Machines(1), [], cpu=True) is None
    number, until = int(file.read_text()), time.monotonic() + 10  # far less than the rank sleeps
    while runs(number) and time.monotonic() < until:
        time.sleep(0.05)
    assert not runs(number), "the rank is still there"


def test_deepspeed_is_imported_only_when_it_is_used() -> None:
    code = (
        "import sys, json, pfl_platform.cli.running, pfl_platform.federation.session, pfl_platform.engines.ranks.start;"
        "print(json.dumps([name for name in sys.modules if name.startswith('deepspeed')]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
