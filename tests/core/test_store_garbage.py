"""Collecting garbage: only what nothing refers to goes, and a collection that is cut short does no harm."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch

from pfl_platform.config import Choice, RunConfig
from pfl_platform.federation.tasks import Outcome
from pfl_platform.store.run_folder import RunFolder


def new_run(path: Path) -> RunFolder:
    part = Choice(name="x")
    config = RunConfig(method="m", benchmark=part, adapter=part, objective=part, aggregator=part)
    return RunFolder.create(path, config, {"benchmark": "b" * 64})


def filled(path: Path) -> tuple[RunFolder, dict[str, str]]:
    """A run of two rounds, with one task of the third done, and two temporary files of a process that died."""
    run = new_run(path)
    names = ("frozen", "state0", "state1", "state2", "server1", "lost", "next")
    held = {name: run.store.put({"a": torch.tensor([ord(letter) for letter in name])}) for name in names}
    held |= {name: run.store.put_text(name) for name in ("text0", "text1", "lost text")}
    run.write_prepare({"frozen": {"tiny": held["frozen"]}})
    run.commit_round(0, {"states": {"c": held["state0"]}, "clients": {"c": {"predictions": held["text0"]}}})
    server = {"deep": [{"er": held["server1"]}]}
    run.commit_round(
        1, {"states": {"c": held["state1"]}, "server": server, "clients": {"c": {"predictions": held["text1"]}}}
    )
    run.store.cache("d" * 64, Outcome("c", held["state2"], None, 1, {}))
    for place in ("rounds", "tensors/ab", "adapters/.c.1-0.tmp"):
        (run.path / place).mkdir(parents=True, exist_ok=True)
        (run.path / place / ".x.1-1.tmp").write_text("half")
    return run, held


def present(run: RunFolder, held: dict[str, str]) -> set[str]:
    stems = {path.stem for path in run.path.glob("t*s/*/*") if path.is_file()}
    return {name for name, address in held.items() if address in stems}


@pytest.mark.parametrize("keep", ["all", "last"])
def test_only_what_nothing_refers_to_is_deleted(keep: Literal["all", "last"], tmp_path: Path) -> None:
    run, held = filled(tmp_path / "run")
    swept = run.collect_garbage(keep, also=[held["next"]])
    gone = {"lost", "lost text"} | ({"state0"} if keep == "last" else set())
    assert present(run, held) == set(held) - gone
    assert swept.files == len(gone)
    assert swept.bytes > 0
    assert not list(run.path.rglob("*.tmp"))
    assert run.store.cached("d" * 64) is not None
    assert run.collect_garbage(keep, also=[held["next"]]).files == 0


def test_a_collection_that_is_cut_short_has_deleted_nothing_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, held = filled(tmp_path / "run")
    unlink, calls = Path.unlink, iter(range(99))

    def dies(self: Path, missing_ok: bool = False) -> None:
        if next(calls) == 1:
            raise KeyboardInterrupt
        unlink(self, missing_ok=missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", dies)
        with pytest.raises(KeyboardInterrupt):
            run.collect_garbage("last")
    needed = {"frozen", "state1", "state2", "server1", "text0", "text1"}
    assert needed <= present(run, held)
    assert len(present(run, held)) == len(held) - 1
    run.collect_garbage("last")
    assert present(run, held) == needed
