"""A classifier for each of two models of a client: trained apart, judged apart, merged as it is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from heads_support import HEAD_BYTES, benchmark, config, encoder, same, states
from pfl_platform.adapters.heads import HEADS, OWN_HEADS, as_own, first_heads, head_of
from pfl_platform.adapters.host import Host
from pfl_platform.adapters.surfaces import Keys, Slot, Tensors
from pfl_platform.federation import session
from pfl_platform.federation.line import walk
from pfl_platform.lowrank.deltas import Delta
from pfl_platform.plugins import PluginManager
from pfl_platform.store.run_folder import RunFolder
from pfl_plugins.potara.config import MergeConfig
from pfl_plugins.potara.personalizer import Merge, exactly

pytestmark = pytest.mark.usefixtures("one_thread")
QUICK = {"evaluation.others": False, "evaluation.baseline": False}


def run(out: Path, method: str, **changes: Any) -> RunFolder:
    session.run(config(method, **{**QUICK, **changes}), out, quiet=True, benchmark=benchmark())
    return RunFolder.open(out)


def test_each_pass_goes_through_its_own_head() -> None:
    """The head of slot `g` is in passes under g alone; every other pass has the client's."""
    backbone = encoder()
    adapter = PluginManager().make("adapter", "lora", {"r": 2})
    host = Host(backbone, adapter, [Slot("g", head=True), Slot("l")])
    own = {key: torch.full_like(value, 0.25) for key, value in host.params.items() if key in OWN_HEADS}
    assert {key for key in host.params if key in HEADS} == {key.replace("head@g", "head") for key in own}
    host.load(own)
    inputs = backbone.codec.encode(benchmark().clients[0].tasks[0].test[:2]).inputs

    def logits(mix: Any) -> torch.Tensor:
        with torch.no_grad(), host.mixing(mix):
            found: torch.Tensor = backbone.model(**inputs).logits
        return found

    plain = logits({})
    theirs = logits({"g": 1.0})
    assert bool((theirs == theirs[:, :1]).all())  # a head of equal numbers gives all classes the same
    assert not torch.allclose(plain, theirs)
    assert torch.equal(logits({"l": 1.0}), plain)  # B is 0
    assert torch.equal(logits({"g": 0.5, "l": 0.5}), plain)
    chosen = host.select(Keys("head@g/*"))
    with host.mixing({"g": 1.0}):
        loss = backbone.model(**inputs).logits.sum()
    assert all(bool(gradient.abs().sum() > 0) for gradient in torch.autograd.grad(loss, list(chosen.values()))[-1:])


def test_both_models_are_those_of_their_own_methods(tmp_path: Path) -> None:
    """Bit for bit, heads included: Local's is what `sft` trains, FedIT's what `fedit` does."""
    both, alone, averaged = (states(run(tmp_path / name, name)) for name in ("potara", "sft", "fedit"))
    for client, state in both.items():
        assert same(Keys("local/*", "head/*").of(state), Keys("local/*", "head/*").of(alone[client]))
        assert same(as_own(HEADS.of(averaged[client]), "global"), head_of("global").of(state))
        assert not same(as_own(HEADS.of(state), "global"), head_of("global").of(state))


@pytest.mark.parametrize("method", ["potara", "fishermerge"])
def test_ends_of_the_line_have_their_own_heads(method: str, tmp_path: Path) -> None:
    changes = {"personalizer.samples": 3}
    folder = run(tmp_path / "run", method, **changes, **({"personalizer.space": "full"} if method != "potara" else {}))
    for address in server_tensors(folder):  # private heads never leave
        assert not any(key in HEADS or key in OWN_HEADS for key in folder.store.get(address))
    found = walk(tmp_path / "run", points=2, split="test", benchmark=benchmark())
    for entry in found["clients"].values():
        assert entry["line"][0][1] != entry["line"][1][1]


def server_tensors(folder: RunFolder) -> list[str]:
    """Addresses of what the server has made of the clients' messages."""
    last = folder.last_round()
    assert last is not None
    return list(last["server"]["tensors"].values())


def test_shared_heads_are_those_of_the_federated_model(tmp_path: Path) -> None:
    folder = run(tmp_path / "run", "potara", heads="shared")
    last = folder.last_round()
    assert last is not None
    (address,) = last["heads"].values()
    common = folder.store.get(address)
    assert all(key in head_of("global") for key in common)
    for state in states(folder).values():
        assert not same(as_own(HEADS.of(state), "global"), common)
    results = folder.read_results()
    assert results is not None
    plain = run(tmp_path / "plain", "potara").read_results()
    assert plain is not None
    more = results["cost"]["up_payload"] - plain["cost"]["up_payload"]
    assert more == 3 * 2 * HEAD_BYTES  # three clients, two rounds


def state(weight: float | None) -> Tensors:
    own = {} if weight is None else {"potara/weight/all": torch.tensor(weight, dtype=torch.float64)}
    return {
        **own,
        "local/x/A": torch.tensor([[0.0, 4.0]]),
        "local/x/B": torch.tensor([[1.0]]),
        "global/x/A": torch.tensor([[8.0, 0.0]]),
        "global/x/B": torch.tensor([[3.0]]),
        "head/c/bias": torch.tensor([0.0]),
        "head@global/c/bias": torch.tensor([4.0]),
        "potara/scale": torch.tensor(2.0),
    }


@pytest.mark.parametrize(("choice", "value"), [("merged", 1.0), ("local", 0.0), ("federated", 4.0)])
def test_the_merged_head_by_hand(choice: Any, value: float) -> None:
    merge = Merge(MergeConfig(head=choice))
    assert merge.params(state(0.25), None)["head/c/bias"].tolist() == [value]
    assert merge.params(state(0.25), 0.0)["head/c/bias"].tolist() == [0.0]  # the ends of the line are the two models
    assert merge.params(state(0.25), 1.0)["head/c/bias"].tolist() == [4.0]
    one = {key: value for key, value in state(0.25).items() if "@" not in key}
    assert not HEADS.of(merge.params(one, None))


def test_the_exact_merge_by_hand() -> None:
    """2 (1/4 * 3 * (8, 0) + 3/4 * 1 * (0, 4)) = (12, 6); factors apart give 2 * 1.5 * (2, 3)."""
    merge = Merge(MergeConfig(space="delta", rank="exact", weight=0.25))
    assert merge.params(state(0.25), None)["base/x/W"].tolist() == [[12.0, 6.0]]
    found = exactly(*(Keys(f"{slot}/*").of(state(None)) for slot in ("global", "local")), lambda _: 0.25, 2.0)
    pair = [Delta(state(None)[f"{slot}/x/B"], state(None)[f"{slot}/x/A"]) for slot in ("global", "local")]
    expected = 2 * (0.25 * pair[0].dense() + 0.75 * pair[1].dense())
    torch.testing.assert_close(found["base/x/W"], expected)
    apart = Merge(MergeConfig(weight=0.25)).params(state(0.25), None)
    assert (2 * apart["local/x/B"] @ apart["local/x/A"]).tolist() == [[6.0, 9.0]]
    with pytest.raises(ValueError, match="set space to delta"):
        MergeConfig(rank="exact")


def test_the_exact_merge_runs(tmp_path: Path) -> None:
    folder = run(tmp_path / "run", "potara", **{"personalizer.space": "delta", "personalizer.rank": "exact"})
    assert folder.read_results() is not None
    assert len(first_heads(encoder(), 0, [Slot("g", head=True), Slot("l")])) == 2 * len(first_heads(encoder(), 0))
