"""The contract kit over every method of the tree."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pfl_platform.plugins import available
from pfl_platform.testing import CHECKS, Bench

METHODS = sorted(name for name, plugin in available("method").items() if plugin.module.startswith("pfl_plugins."))


def test_the_methods_of_the_tree_are_all_there() -> None:
    folders = {
        file.parent.name for file in (Path(__file__).parents[2] / "plugins" / "pfl_plugins").glob("*/default.yaml")
    }
    assert {available("method")[name].module.rpartition(".")[2] for name in METHODS} == folders


@pytest.fixture(scope="module")
def benches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bench]:
    """One bench per method, so that its checks share its plain run."""
    return {
        name: Bench(name, tmp_path_factory.mktemp(name), ("tiny-llama-s", "tiny-llama-m"), ["backbone_options.init=0"])
        for name in METHODS
    }


@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed")  # peft: such an adapter cannot be merged
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("method", METHODS)
def test_contract(
    method: str,
    check: Callable[[Bench], None],
    benches: dict[str, Bench],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PFL_CACHE", str(tmp_path / "cache"))
    check(benches[method])
