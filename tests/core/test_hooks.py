"""Every hook is documented with its exact arguments, and every hook is exercised in a run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from pfl_platform import hookspecs
from pfl_platform.adapters.surfaces import Tensors
from pfl_platform.config import Choice
from pfl_platform.errors import UserError
from pfl_platform.evaluation.surfaces import InferenceRecipe
from pfl_platform.federation import session
from pfl_platform.federation.components import Objective, Personalizer, Postprocessor
from pfl_platform.federation.observers import Observer
from pfl_platform.hookspecs import KINDS, hookimpl
from pfl_platform.store.run_folder import RunFolder
from pfl_platform.testing import Bench

HOOKS = sorted(name for name in vars(hookspecs) if name.startswith("pfl_make_"))
PAGE = (Path(__file__).parents[2] / "platform" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_is_on_the_page_with_its_arguments(name: str) -> None:
    arguments = ", ".join(inspect.signature(getattr(hookspecs, name)).parameters)
    assert f"### `{name}({arguments})`" in PAGE
    assert KINDS[name.removeprefix("pfl_make_")] in PAGE
    assert (getattr(hookspecs, name).__doc__ or "").strip()


def test_every_kind_but_the_method_has_a_hook() -> None:
    assert {f"pfl_make_{kind}" for kind in KINDS if kind != "method"} == set(HOOKS)


class Bare(Personalizer):
    """Evaluates the bare backbone, so that it can be told from the trained model."""

    def recipe(self, objective: Objective) -> InferenceRecipe:
        return InferenceRecipe(({},))


class Halve(Postprocessor):
    """Sends half of everything."""

    def apply(self, update: Tensors, received: Tensors, rng: Callable[..., torch.Generator]) -> Tensors:
        return {key: value / 2 for key, value in update.items()}


class Leak(Postprocessor):
    """Adds a key that nobody declared."""

    def apply(self, update: Tensors, received: Tensors, rng: Callable[..., torch.Generator]) -> Tensors:
        return {**update, "secret/x/y": torch.zeros(1)}


class Listen(Observer):
    heard: list[str] = []  # noqa: RUF012 - one list for all, on purpose

    def round_done(self, round_index: int, summary: Mapping[str, Any]) -> None:
        self.heard.append(f"round {round_index}")

    def run_done(self, results: Mapping[str, Any]) -> None:
        self.heard.append("done")

    def close(self) -> None:
        self.heard.append("closed")


class Stranger:
    """A plugin with the hooks that no in-tree method needs."""

    __name__ = "stranger"

    @staticmethod
    @hookimpl
    def pfl_make_personalizer(name: str, options: Mapping[str, Any]) -> Personalizer | None:
        return Bare() if name == "bare" else None

    @staticmethod
    @hookimpl
    def pfl_make_postprocessor(name: str, options: Mapping[str, Any]) -> Postprocessor | None:
        return {"halve": Halve, "leak": Leak}[name]() if name in ("halve", "leak") else None

    @staticmethod
    @hookimpl
    def pfl_make_observer(name: str, options: Mapping[str, Any]) -> Observer | None:
        return Listen() if name == "listen" else None


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    made = Bench("fedit", tmp_path, ("tiny-llama-s", "tiny-llama-m"), ["backbone_options.init=0"], rounds=1)
    made.manager.register(Stranger)  # type: ignore[arg-type]
    return made


def run(bench: Bench, name: str, **changes: Any) -> RunFolder:
    config = bench.config().model_copy(update=changes)
    session.run(config, bench.folder / name, quiet=True, plugins=bench.manager, benchmark=bench.benchmark())
    return RunFolder.open(bench.folder / name)


def sent_by(folder: RunFolder, client: str) -> Tensors:
    """What the server kept of a client alone on its backbone after one round: its own update."""
    last = folder.last_round()
    assert last is not None
    backbone = folder.read_results()["clients"][client]["backbone"]  # type: ignore[index]
    return folder.store.get(last["server"]["tensors"][backbone])


def test_a_postprocessor_changes_what_is_sent(bench: Bench) -> None:
    plain = sent_by(run(bench, "plain"), "c")
    halved = sent_by(run(bench, "halved", postprocessors=(Choice(name="halve"),)), "c")
    assert plain
    for key, value in plain.items():
        torch.testing.assert_close(halved[key], value / 2)


def test_a_postprocessor_cannot_send_what_is_private(bench: Bench) -> None:
    with pytest.raises(UserError, match="update of a holds 'secret/x/y', which may not leave"):
        run(bench, "leak", postprocessors=(Choice(name="leak"),))


def test_a_personalizer_decides_what_is_evaluated(bench: Bench) -> None:
    # Own tasks on more items than others': start and end must be scored on the same ones, so nothing is gained.
    items = bench.config().evaluation.model_copy(update={"items": 3, "items_others": 1})
    folder = run(bench, "bare", personalizer=Choice(name="bare"), evaluation=items)
    results = folder.read_results()
    assert results is not None
    for client in results["clients"].values():
        assert client["self"]["gain"] == client["others"]["gain"] == 0.0


def test_an_observer_hears_of_rounds(bench: Bench) -> None:
    Listen.heard.clear()
    run(bench, "heard", observers=(Choice(name="listen"),))
    assert Listen.heard == ["round 0", "done", "closed"]
