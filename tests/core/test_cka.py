"""CKA against its definition, its invariances, and on real backbones."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pfl_platform.cli import main
from pfl_platform.errors import UserError
from pfl_platform.evaluation.cka import Cka, hsic, kernels, layer_similarity, representations, straightness
from pfl_platform.plugins import PluginManager
from pfl_platform.rng import torch_rng
from pfl_platform.testing.bench import samples


def drawn(name: str, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch_rng(0, "cka", name), dtype=torch.float64)


def by_definition(x: Tensor, y: Tensor) -> float:
    """HSIC as a U-statistic: over all (i, j, q, r) of different samples, the mean of
    k_ij l_ij + k_ij l_qr - 2 k_ij l_iq (Gretton et al. 2005)."""
    k, m, n = x @ x.T, y @ y.T, len(x)
    total = count = 0.0
    for i, j, q, r in permutations(range(n), 4):
        total += float(k[i, j] * m[i, j] + k[i, j] * m[q, r] - 2 * k[i, j] * m[i, q])
        count += 1
    return total / count


def test_hsic_is_the_u_statistic() -> None:
    x, y = drawn("x", 7, 3), drawn("y", 7, 5)
    found = hsic(kernels([x, y]), kernels([x, y]))
    for i, left in enumerate((x, y)):
        for j, right in enumerate((x, y)):
            assert float(found[i, j]) == pytest.approx(by_definition(left, right), rel=1e-12)


def test_cka_does_not_see_rotation_scale_or_shift() -> None:
    x = drawn("x", 40, 6)
    turned = 3.0 * x @ torch.linalg.qr(drawn("q", 6, 6)).Q + 5.0
    sums = Cka()
    sums.add([x], [turned, drawn("z", 40, 6)])
    same, other = sums.table()[0].tolist()
    assert same == pytest.approx(1.0, abs=1e-12)
    assert abs(other) < 0.1


def test_batches_are_averaged_before_the_quotient() -> None:
    """Two batches by hand: the sums of HSIC, not the mean of two CKAs."""
    parts = [(drawn(f"x{k}", 6, 2), drawn(f"y{k}", 6, 3)) for k in range(2)]
    sums = Cka()
    for x, y in parts:
        sums.add([x], [y])
    cross, left, right = (sum(by_definition(*pair) for pair in pairs) for pairs in (
        parts, [(x, x) for x, _ in parts], [(y, y) for _, y in parts]
    ))  # fmt: skip
    assert float(sums.table()[0, 0]) == pytest.approx(cross / (left * right) ** 0.5, rel=1e-12)


def test_layers_of_real_backbones() -> None:
    manager = PluginManager()
    small, large = (manager.make("backbone", name, {}) for name in ("tiny-llama-s", "tiny-llama-m"))
    asked = samples("cka", 40)
    own = layer_similarity(small, small, asked, batch_size=16)
    assert own.shape == (len(small.blocks), len(small.blocks))
    assert torch.allclose(own.diagonal(), torch.ones(len(small.blocks), dtype=torch.float64), atol=1e-9)
    assert torch.allclose(own, own.T, atol=1e-9)
    heard: list[int] = []
    across = layer_similarity(small, large, asked, batch_size=19, at="last", say=heard.append)
    assert across.shape == (len(small.blocks), len(large.blocks))
    assert heard == [19, 38]  # the two samples left over are too few
    # What stands for a sample does not depend on the padding that its batch brings.
    alone, together = representations(small, asked[:1], "mean"), representations(small, asked[:9], "mean")
    for one, many in zip(alone, together, strict=True):
        assert torch.allclose(one[0], many[0], atol=1e-4)


def test_straightness_by_hand() -> None:
    """Three layers against five: 0, 1/2, 1 meet 0, 1/4, 1/2, 3/4, 1. Rows are like columns 1, 3, 5, and columns 2 and 4
    like the row before them, a quarter away: 1 - (0 + 0 + 0 + 0 + 1/4 + 0 + 1/4 + 0) / 8."""
    table = torch.tensor([[1.0, 0.9, 0.1, 0.0, 0.0], [0.2, 0.3, 1.0, 0.9, 0.1], [0.0, 0.0, 0.1, 0.5, 1.0]])
    assert straightness(table) == 1 - 0.5 / 8


def test_what_cannot_be_compared_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    backbone = PluginManager().make("backbone", "tiny-llama-s", {})
    with pytest.raises(UserError, match=r"at least 4 samples; here are 8 in batches of 3\."):
        layer_similarity(backbone, backbone, samples("cka", 8), batch_size=3)
    with pytest.raises(UserError, match=r"by its mean or its last, not by 'first'\."):
        layer_similarity(backbone, backbone, samples("cka", 8), at="first")  # type: ignore[arg-type]
    out = tmp_path / "deep" / "cka.png"
    words = ["cka", "tiny-llava-qwen-s", "tiny-llava-qwen-s", "--size", "8", "--out", str(out)]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["best"] == [1, 2, 3, 4]
    assert out.read_bytes().startswith(b"\x89PNG")
    assert main([*words, "--at", "first"]) == 2
    assert main(["cka", "tiny-llama-s", "tiny-llama-s", "--out", "cka.xyz"]) == 2
    assert "should end in .png, .pdf or .svg" in capsys.readouterr().err
    assert main(["cka", "tiny-llama-s", "tiny-llama-s", "--out", "/proc/none/cka.png"]) == 2
    assert "/proc/none/cka.png cannot be written" in capsys.readouterr().err
    assert main([*words, "--json", "--size", "7", "--batch-size", "4"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 4
    refused = tmp_path / "refused.png"
    assert main(["cka", "tiny-llama-s", "tiny-lama-m", "--out", str(refused)]) == 2
    assert "Did you mean 'tiny-llama-m'" in capsys.readouterr().err
    assert not refused.exists()
