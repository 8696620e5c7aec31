"""Adapter options of single clients: who may differ, and what a client that differs gets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from pfl_platform.adapters.surfaces import AdapterType, Keys, Site, shared
from pfl_platform.config import Choice, RunConfig
from pfl_platform.errors import UserError
from pfl_platform.federation.checks import _shares
from pfl_platform.federation.components import Federation
from pfl_platform.federation.own_adapters import adapters_of_clients, twin
from pfl_platform.federation.tasks import Share
from pfl_platform.plugins import PluginManager

SMALL, OTHER = "tiny-llama-s", "tiny-llama-m"


def ranks(out: Path) -> dict[str, int]:
    """The rank of each client's personal adapter."""
    files = sorted((out / "adapters").glob("*/adapter_model.safetensors"))
    return {
        file.parent.name: next(value.shape[0] for key, value in load_file(file).items() if "lora_A" in key)
        for file in files
    }


def weights(out: Path, client: str) -> bytes:
    return (out / "adapters" / client / "adapter_model.safetensors").read_bytes()


def test_clients_that_exchange_nothing_may_differ(federation: Any, pfl: Any, tmp_path: Path) -> None:
    where = federation(a=SMALL, b=SMALL, c=SMALL)
    alike, differing = tmp_path / "alike", tmp_path / "differing"
    assert pfl("run", "--plugin", "sft", "--benchmark", where, "--out", alike).code == 0
    own = ("--set", "clients.b.adapter.r=2", "--set", "clients.c.adapter={r: 6, scale: 1}")
    assert pfl("run", "--plugin", "sft", "--benchmark", where, *own, "--out", differing).code == 0
    assert ranks(alike) == {"a": 4, "b": 4, "c": 4}
    assert ranks(differing) == {"a": 4, "b": 2, "c": 6}
    assert weights(alike, "a") == weights(differing, "a")  # nobody else notices
    plain = PluginManager().make("backbone", SMALL, {"init": 0})
    model = PeftModel.from_pretrained(plain.model, str(differing / "adapters" / "b"))
    assert model.peft_config["default"].r == 2
    assert json.loads((differing / "results.json").read_text())["clients"]["b"]["backbone"] == SMALL


def test_the_scenario_may_say_it(federation: Any, pfl: Any, tmp_path: Path) -> None:
    where = federation(a=SMALL, b=SMALL, more={"b": {"adapter": {"r": 3}}})
    assert pfl("run", "--plugin", "sft", "--benchmark", where, "--rounds=1", "--out", tmp_path / "one").code == 0
    assert ranks(tmp_path / "one") == {"a": 4, "b": 3}
    words = ("--set", "clients.b.adapter.r=5", "--rounds=1", "--out", tmp_path / "two")
    assert pfl("run", "--plugin", "sft", "--benchmark", where, *words).code == 0
    assert ranks(tmp_path / "two") == {"a": 4, "b": 5}


@pytest.mark.parametrize(
    ("method", "own", "sentence"),
    [
        (
            "fedit", "b.adapter.r=2",
            "error: The aggregator 'fedavg' combines adapters, which must be of one shape, but that of client 'a' has "
            "r=4 and that of client 'b' r=2; give these clients the same options, or choose a method that combines "
            "nothing.\n",
        ),
        ("fedit", "b.adapter.targets=[q_proj]", "has targets=[] and that of client 'b' targets=['q_proj'];"),
        ("fedmosaic", "c.adapter.r=2", "combines adapters, … that of client 'a' has r=4 and that of client 'c' r=2;"),
        ("fedit", "b.adapter.rank=2", "error: Client 'b': There is no option 'rank' of the adapter 'lora'."),
        ("sft", "b.adapter.r=4096", "error: Rank 4096 is larger than … of tiny-llama-s [r=4096], which has size"),
        ("sft", "d.adapter.r=2", "error: The setting 'clients' names the client 'd', whom 'federation' does not have."),
        ("sft", "b.rank=2", "There is no setting 'clients.b.rank'; it must be of the form clients.NAME.adapter."),
    ],
)  # fmt: skip
def test_what_is_refused(
    method: str, own: str, sentence: str, federation: Any, pfl: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PFL_CACHE", str(tmp_path / "cache"))
    where = federation(a=SMALL, b=SMALL, c=OTHER)
    said = pfl("run", "--plugin", method, "--benchmark", where, "--set", f"clients.{own}", "--out", tmp_path / "never")
    assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)
    rest = said.err
    for part in sentence.split(" … "):
        assert part in rest, said.err
        rest = rest.split(part, 1)[1]
    assert not (tmp_path / "never").exists()


def test_conventional_adapters_need_to_be_equal_within_a_backbone_only(
    federation: Any, pfl: Any, tmp_path: Path
) -> None:
    where = federation(a=SMALL, b=SMALL, c=OTHER)
    words = ("--plugin", "fedit", "--set", "clients.c.adapter.r=2", "--rounds=1", "--out", tmp_path / "run")
    assert pfl("run", "--benchmark", where, *words).code == 0
    assert ranks(tmp_path / "run") == {"a": 4, "b": 4, "c": 2}


def test_aligned_backbones_need_equal_adapters_even_where_nothing_is_combined(
    federation: Any, pfl: Any, tmp_path: Path
) -> None:
    where = federation(a=SMALL, c=OTHER)
    words = ("--set", "aggregator=none", "--set", "clients.c.adapter.r=2", "--out", tmp_path / "never")
    said = pfl("run", "--plugin", "fedmosaic", "--benchmark", where, *words)
    assert said.code == 2
    assert said.err == (
        "error: Backbones are aligned for one shape of adapter, but that of client 'a' has r=4 and that of client 'c' "
        "r=2; give them the same.\n"
    )


def test_options_that_shape_nothing_may_differ_among_clients_that_are_averaged(
    federation: Any, pfl: Any, tmp_path: Path
) -> None:
    """Dropout is no part of the signature: such a client has a host of its own, and the average of its backbone."""
    where = federation(a=SMALL, b=SMALL)
    words = ("--set", "clients.b.adapter.dropout=0.5", "--set", "evaluation.every=3")
    assert pfl("run", "--plugin", "fedit", "--benchmark", where, *words, "--out", tmp_path / "run").code == 0
    (server,) = json.loads((tmp_path / "run" / "rounds" / "0002.json").read_text())["server"]["tensors"]
    assert server == SMALL


def test_a_twin_shares_every_tensor_and_no_module() -> None:
    backbone = PluginManager().make("backbone", SMALL, {"init": 0})
    other = twin(backbone, "second")
    ours, theirs = dict(backbone.model.named_parameters()), dict(other.model.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(ours[name].data_ptr() == theirs[name].data_ptr() for name in ours)
    assert not {id(module) for module in backbone.model.modules()} & {id(module) for module in other.model.modules()}
    assert (other.name, backbone.name, other.digest) == ("second", SMALL, backbone.digest)


def test_equal_options_share_a_host() -> None:
    part = Choice(name="x", options={"r": 4})
    own = {client: {"adapter": {"r": r}} for client, r in (("a", 2), ("b", 2), ("c", 3), ("d", 4))}
    config = RunConfig.model_validate(
        {"method": "m", "benchmark": part, "adapter": part, "objective": part, "aggregator": part, "clients": own}
    )
    made: list[dict[str, Any]] = []

    def make(options: Any) -> AdapterType:
        made.append(dict(options))
        return made[-1]  # type: ignore[return-value]

    hosts, adapters = adapters_of_clients(config, dict.fromkeys("abcd", "n"), make)
    assert hosts == {"a": "n [r=2]", "b": "n [r=2]", "c": "n [r=3]"}  # d asks for what everybody has
    assert made == [{"r": 2}, {"r": 3}]
    assert adapters["a"] is adapters["b"]


@pytest.mark.parametrize(
    ("share", "covered"),
    [
        (Share(shared("local", "all")), True),
        (Share(shared("local", "backbone")), False),
        (Share(Keys("local/*/P")), True),
        (Share(Keys("other/*")), False),
        (Share(Keys("local/block0.*")), True),
        (Share(Keys("local/block1.*")), False),
        (Share(Keys("*")), True),
    ],
)
def test_what_a_share_covers(share: Share, covered: bool) -> None:
    class Fake:
        def sites(self, backbone: Any) -> tuple[Site, ...]:
            return (Site("block0.up", "path", 4, 4, "all"),)

    load: Callable[[str], Any] = lambda name: name  # noqa: E731
    fed = Federation(None, None, Fake(), {"a": "n"}, None, load, tuple)  # type: ignore[arg-type]
    assert _shares(fed, "a", share, ["local"]) is covered


def test_the_clause_names_the_first_two_that_differ() -> None:
    class Fake:
        def __init__(self, **signature: Any) -> None:
            self.values = signature

        def signature(self) -> dict[str, Any]:
            return self.values

    adapters: Any = {"b": Fake(r=8, blocks=2), "c": Fake(r=4, blocks=2)}
    fed = Federation(
        None, None, Fake(r=4, blocks=2), dict.fromkeys("abc", "n"), None, str, tuple, own_adapters=adapters
    )  # type: ignore[arg-type]
    assert fed.unequal(["a", "c"]) is None
    assert fed.unequal(["c", "a", "b"]) == "that of client 'c' has r=4 and that of client 'b' r=8"


def test_shapes_that_meet_unchecked_are_still_refused() -> None:
    """What an aggregator with needs of its own lets through is caught where params are added."""
    from pfl_platform.federation.components import combine

    with pytest.raises(UserError, match=r"'k' has shape \(2, 3\) at one client and \(4, 3\) at another"):
        combine([{"k": torch.zeros(2, 3)}, {"k": torch.zeros(4, 3)}], [0.5, 0.5])
