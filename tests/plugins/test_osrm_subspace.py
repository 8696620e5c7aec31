"""OSRM's choice of A, the post-hoc variant and the diagnostics, on numbers that can be redone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from pfl_platform.adapters.folders import open_adapter
from pfl_platform.errors import UserError
from pfl_platform.lowrank.deltas import Delta
from pfl_plugins.osrm import diagnostics, posthoc
from pfl_plugins.osrm.subspace import loudness, quietest, stacked


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthonormal(a: Tensor) -> bool:
    return torch.allclose(a @ a.T, torch.eye(len(a), dtype=a.dtype), atol=1e-10)


def test_the_last_rows_of_a_thin_svd_are_the_wrong_ones() -> None:
    """With fewer rows than inputs they lie inside the row space of H: nothing could interfere more."""
    rows = gaussian(2, 16)
    thin = torch.linalg.svd(rows, full_matrices=False).Vh[-2:]
    full = torch.linalg.svd(rows, full_matrices=True).Vh[-2:]
    found = quietest(rows, 2, seed=0)
    assert loudness(thin, rows) == pytest.approx(float(rows.square().sum()))  # all of the energy
    assert loudness(full, rows) < 1e-20
    assert loudness(found, rows) < 1e-20
    assert orthonormal(found)


@given(
    n=st.integers(1, 12),
    width=st.integers(1, 9),
    rank=st.integers(1, 9),
    inner=st.integers(0, 9),
    seed=st.integers(0, 99),
)
def test_the_value_is_the_sum_of_the_smallest_eigenvalues(n: int, width: int, rank: int, inner: int, seed: int) -> None:
    """Full or deficient rank, more rows or fewer, and H = 0."""
    rank = min(rank, width)
    rows = gaussian(n, inner, seed=seed) @ gaussian(inner, width, seed=seed + 100)
    found = quietest(rows, rank, seed)
    assert found.shape == (rank, width)
    assert orthonormal(found)
    eigenvalues = torch.linalg.eigvalsh(rows.T @ rows)  # ascending
    assert loudness(found, rows) == pytest.approx(float(eigenvalues[:rank].sum()), abs=1e-9)


def test_all_free_directions_come_before_the_quietest_of_the_others() -> None:
    rows = torch.diag(torch.tensor([5.0, 1.0, 3.0, 0.0]))[:3]  # nothing along the last axis
    found = quietest(rows, 3, seed=0)
    assert found.abs().round().tolist() == [[0, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0]]
    assert loudness(found, rows) == pytest.approx(1.0 + 9.0)


def test_the_mean_is_not_taken_off() -> None:
    """Rows (10, 1) and (10, -1): their common part is what interferes most, though it has no variance."""
    rows = torch.tensor([[10.0, 1.0], [10.0, -1.0]])
    assert quietest(rows, 1, seed=0).abs().round().tolist() == [[0.0, 1.0]]


def test_a_choice_in_the_null_space_has_a_seed_and_no_order() -> None:
    rows = gaussian(3, 20)
    found = quietest(rows, 4, seed=7)
    assert torch.equal(found, quietest(rows, 4, seed=7))
    assert torch.allclose(found, quietest(rows[[2, 0, 1]], 4, seed=7), atol=1e-10)
    assert (found - quietest(rows, 4, seed=8)).norm() > 0.5


def test_rows_of_many_samples_may_be_replaced_by_their_triangle() -> None:
    many, few = gaussian(40, 6, seed=1), gaussian(2, 6, seed=2)
    short = stacked([many, few])
    assert short.shape == (8, 6)
    whole = torch.cat([many, few])
    assert torch.allclose(short.T @ short, whole.T @ whole)
    assert loudness(quietest(short, 2, 0), whole) == pytest.approx(
        float(torch.linalg.eigvalsh(whole.T @ whole)[:2].sum())
    )


def test_it_interferes_less_than_an_ordinary_start() -> None:
    """The mean of 7 tasks' features is avoided, and so is most of single samples that scatter about it."""
    centres = gaussian(7, 64, seed=3)
    samples = torch.cat([centre + 0.3 * gaussian(20, 64, seed=10 + k) for k, centre in enumerate(centres)])
    ordinary = torch.linalg.qr(gaussian(64, 8, seed=4)).Q.T
    found = quietest(centres, 8, seed=0)
    assert loudness(found, centres) < 1e-20 < loudness(ordinary, centres)
    assert loudness(found, samples) < 0.2 * loudness(ordinary, samples)


@pytest.mark.parametrize("rank", [0, 4])
def test_a_rank_that_does_not_fit_is_refused(rank: int) -> None:
    with pytest.raises(UserError, match=f"from 1 to 3 rows, not {rank}"):
        quietest(gaussian(2, 3), rank, 0)


def test_the_posthoc_delta_is_the_nearest_and_holds_the_scale_once() -> None:
    delta = Delta(gaussian(5, 2), gaussian(2, 9, seed=1), scale=2.0)
    down = quietest(gaussian(3, 9, seed=2), 4, seed=0)
    found = posthoc.recovered(delta, down)
    best = torch.linalg.lstsq(down.T, delta.dense().T).solution.T @ down  # argmin_B ||B A - D||
    assert found.scale == 2.0
    assert torch.allclose(found.dense(), best, atol=1e-10)
    assert torch.allclose(found.scale * found.up @ found.down, delta.dense() @ down.T @ down, atol=1e-10)
    again = posthoc.recovered(found, down)  # what lies in the span of A stays as it is
    assert torch.allclose(again.dense(), found.dense(), atol=1e-10)


def test_of_a_delta_that_knew_nothing_of_A_r_of_d_in_is_left() -> None:
    """E ||D A^T A||^2 = r / d_in ||D||^2 for a random subspace: 4 of 64 here, as 8 of 1024 in the paper's Table 16."""
    delta = Delta(gaussian(16, 4), gaussian(4, 64, seed=1), scale=2.0)
    shares = [posthoc.energy_kept(delta, quietest(gaussian(3, 64, seed=k), 4, seed=k)) for k in range(200)]
    assert sum(shares) / len(shares) == pytest.approx(4 / 64, rel=0.1)


def folder(path: Path, seed: int, rank: int = 2) -> Path:
    path.mkdir()
    tensors = {}
    for module, d_out, d_in in (("a.q", 6, 12), ("a.v", 4, 12)):
        prefix = f"base_model.model.{module}."
        tensors[prefix + "lora_A.weight"] = gaussian(rank, d_in, seed=seed).float()
        tensors[prefix + "lora_B.weight"] = gaussian(d_out, rank, seed=seed + 1).float()
    save_file(tensors, str(path / "adapter_model.safetensors"))
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "base_model_name_or_path": "m"}
    (path / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return path


def test_posthoc_on_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = [folder(tmp_path / name, seed) for name, seed in (("one", 0), ("two", 5))]
    files = []
    for k in range(2):
        rows = {module: gaussian(3, 12, seed=20 + k).float() for module in ("a.q", "a.v")}
        files.append(tmp_path / f"{k}.safetensors")
        save_file(rows, str(files[-1]))
    out = tmp_path / "out"
    assert posthoc.main([*map(str, inputs), "--rows", *map(str, files), "--out", str(out)]) == 0
    assert "% of the energy is kept" in capsys.readouterr().out
    for name, other in (("one", files[1]), ("two", files[0])):
        before, after = open_adapter(tmp_path / name), open_adapter(out / name)
        assert after.modules == before.modules
        for module in after.modules:
            found = after.delta(module)
            a, rows = found.down.double(), load_file(str(other))[module].double()
            assert torch.allclose(a @ a.T, torch.eye(2, dtype=torch.float64), atol=1e-6)
            assert diagnostics.response(found, rows) < 1e-6 < diagnostics.response(before.delta(module), rows)
            assert torch.allclose(found.dense().double(), before.delta(module).dense().double() @ a.T @ a, atol=1e-5)
    assert posthoc.main([*map(str, inputs), "--rows", *map(str, files), "--out", str(out)]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_posthoc_refuses_rows_that_do_not_fit(tmp_path: Path) -> None:
    adapters = [open_adapter(folder(tmp_path / name, seed)) for name, seed in (("one", 0), ("two", 5))]
    good = {"a.q": gaussian(1, 12), "a.v": gaussian(1, 12)}
    with pytest.raises(UserError, match=r"must hold 'a.v' as \(n, 12\).*not \(1, 11\)"):
        posthoc.recover(adapters, [good, {**good, "a.v": gaussian(1, 11)}], tmp_path / "out")
    with pytest.raises(UserError, match="there are 2 and 1"):
        posthoc.recover(adapters, [good], tmp_path / "out")


def test_the_diagnostics() -> None:
    rows = torch.tensor([[0.0, 2.0], [0.0, 1.0]])
    quiet = Delta(torch.tensor([[3.0], [4.0]]), torch.tensor([[1.0, 0.0]]), scale=2.0)
    loud = Delta(torch.tensor([[3.0], [4.0]]), torch.tensor([[0.0, 1.0]]), scale=2.0)
    assert diagnostics.ranks(torch.eye(4), [1, 3, 4]) == [1, 3, 4]
    assert diagnostics.response(loud, rows) == pytest.approx(2.0 * 5.0)  # s ||B|| |A h| / |h|
    assert diagnostics.response(quiet, rows) == diagnostics.reach(quiet, rows) == 0.0
    assert diagnostics.reach(loud, rows) == pytest.approx(1.0)
    assert diagnostics.reach(Delta(torch.zeros(2, 1), torch.zeros(1, 2)), rows) == 0.0
    features = {"a": {"s": rows}, "b": {"s": rows.flip(1)}}
    table = diagnostics.table({"a": {"s": quiet}, "b": {"s": loud}}, features, diagnostics.response)
    assert torch.allclose(table, torch.tensor([[0.0, 10.0], [10.0, 0.0]], dtype=torch.float64))
    assert diagnostics.apart(table) == (0.0, 10.0)
    # A rotation of the factors is no change; half the length is one half.
    turned = Delta(torch.zeros(2, 2), torch.tensor([[0.0, 1.0], [-1.0, 0.0]]))
    assert diagnostics.change({"s": Delta(torch.zeros(2, 2), torch.eye(2))}, {"s": turned})["s"] < 1e-7
    half = Delta(torch.zeros(2, 2), torch.eye(2) / 2)
    assert diagnostics.change({"s": turned}, {"s": half})["s"] == pytest.approx(0.5)
    state = {"local/s/A": loud.down, "local/s/B": loud.up, "moments/local/s/A#1": loud.up, "global/s/A": loud.down}
    (found,) = diagnostics.deltas_of(state, "local", 2.0).values()
    assert torch.equal(found.dense(), loud.dense())
