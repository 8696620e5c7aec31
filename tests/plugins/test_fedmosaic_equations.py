"""FedMosaic's equations with numbers to redo by hand, and its two theorems."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pfl_platform.errors import UserError
from pfl_platform.rng import torch_rng
from pfl_plugins.fedmosaic import equations as eq

matrices = st.integers(0, 10**6).map(lambda seed: torch_rng("matrices", seed))


def rows(*values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


# Eq. 2 ---------------------------------------------------------------------------------------------------------------


def test_decayed_gradient_by_hand() -> None:
    # alpha = 1/4: 8, then 3/4 * 8 + 1/4 * 0 = 6, then 3/4 * 6 + 1/4 * 2 = 5
    state = eq.ema(None, rows([8.0]), 0.25)
    state = eq.ema(state, rows([0.0]), 0.25)
    assert state.item() == 6.0
    assert eq.ema(state, rows([2.0]), 0.25).item() == 5.0


def test_starting_from_zeros_only_scales_the_first_gradient() -> None:
    first = rows([2.0, -4.0])
    assert torch.equal(eq.ema(None, first, 0.25), first)
    assert torch.equal(eq.ema(None, first, 0.25, start="zeros"), 0.25 * first)
    assert eq.ema(None, first, 0.5) is not first  # a copy


def test_order_of_tasks_leaves_a_trace_in_the_decayed_gradient() -> None:
    # The reason for Eq. 2: A then B is not B then A, although the plain means are equal.
    a, b = rows([1.0, 0.0]), rows([0.0, 1.0])
    assert not torch.equal(eq.ema(eq.ema(None, a, 0.25), b, 0.25), eq.ema(eq.ema(None, b, 0.25), a, 0.25))


def test_ema_refuses_bad_options() -> None:
    with pytest.raises(UserError, match=r"must lie in \(0, 1\], not 0"):
        eq.ema(None, rows([1.0]), 0.0)
    with pytest.raises(UserError, match="Did you mean 'zeros'"):
        eq.ema(None, rows([1.0]), 0.5, start="zero")  # type: ignore[arg-type]


# Eq. 3 ---------------------------------------------------------------------------------------------------------------


def test_sanitising_without_noise_selects() -> None:
    gradient = torch.arange(6.0).reshape(2, 3)
    kept = eq.sanitise(gradient, torch.tensor([1, 4, 5], dtype=torch.int32), 0.0, torch_rng(0))
    assert kept.tolist() == [1.0, 4.0, 5.0]


def test_noise_has_scale_mu_and_an_address() -> None:
    zero, everything = torch.zeros(20_000), torch.arange(20_000)
    kept = eq.sanitise(zero, everything, 0.5, torch_rng(1, "noise", "client-0", 3))
    assert abs(kept.mean().item()) < 4 * 0.5 / math.sqrt(20_000)
    assert abs(kept.std().item() - 0.5) < 0.02
    assert torch.equal(kept, eq.sanitise(zero, everything, 0.5, torch_rng(1, "noise", "client-0", 3)))
    assert not torch.equal(kept, eq.sanitise(zero, everything, 0.5, torch_rng(1, "noise", "client-1", 3)))


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 500), fraction=st.floats(0.01, 1.0), seed=st.integers(0, 99))
def test_kept_coordinates_are_a_subset_of_the_right_size(size: int, fraction: float, seed: int) -> None:
    kept = eq.kept_coordinates(size, fraction, seed)
    assert len(kept) == max(1, math.floor(size * fraction + 1e-9))
    assert torch.equal(kept, kept.unique())  # sorted and distinct
    assert kept.min() >= 0
    assert kept.max() < size
    assert torch.equal(kept, eq.kept_coordinates(size, fraction, seed))


def test_kept_coordinates_are_uniform_across_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    # 10 coordinates in chunks of 3, 3, 3, 1; each is kept with probability 0.4, a pair with 0.4 * 3/9 = 0.1333.
    monkeypatch.setattr(eq, "_CHUNK", 3)
    draws = torch.zeros(2000, 10)
    for seed in range(2000):
        draws[seed, eq.kept_coordinates(10, 0.4, seed)] = 1.0
    together = draws.T @ draws / 2000
    pairs = together[~torch.eye(10, dtype=torch.bool)]
    assert (together.diagonal() - 0.4).abs().max() < 4 * math.sqrt(0.24 / 2000)
    assert (pairs - 2 / 15).abs().max() < 4.5 * math.sqrt(0.1156 / 2000)


def test_fraction_of_rows_is_the_published_one() -> None:
    assert eq.kept_rows(2048, 0.4) * 8192 == 6_709_248  # of 2048 x 8192 = 16,777,216
    assert eq.kept_rows(3, 0.1) == 1
    assert eq.kept_rows(100, 0.29) == 29  # 0.29 * 100 is 28.999999999999996 in floating point
    with pytest.raises(UserError, match="fraction of the gradient"):
        eq.kept_rows(10, 1.5)


# Eq. 4 ---------------------------------------------------------------------------------------------------------------


def test_relevance_by_hand() -> None:
    # Clients 1 and 3 have gradients that point the same way, client 2's is orthogonal.
    similarities = eq.cosine_matrix([torch.tensor([2.0, 0.0]), torch.tensor([0.0, 5.0]), torch.tensor([1.0, 0.0])])
    assert similarities.tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
    # tau = 1 / ln 3 turns e^(cos / tau) into 3^cos: row 1 is (3, 1, 3) / 7, row 2 is (1, 3, 1) / 5.
    tau = 1 / math.log(3)
    weights = eq.relevance_weights(similarities, tau)
    expected = torch.tensor([[3 / 7, 1 / 7, 3 / 7], [1 / 5, 3 / 5, 1 / 5], [3 / 7, 1 / 7, 3 / 7]], dtype=torch.float64)
    torch.testing.assert_close(weights, expected)
    # Without self, row 1 is (0, 1, 3) / 4.
    others = eq.relevance_weights(similarities, tau, include_self=False)
    torch.testing.assert_close(others[0], torch.tensor([0, 1 / 4, 3 / 4], dtype=torch.float64))


def test_a_lone_client_keeps_its_own() -> None:
    one = torch.ones(1, 1, dtype=torch.float64)
    for include_self in (True, False):
        assert eq.relevance_weights(one, 0.5, include_self).tolist() == [[1.0]]


def test_zero_gradient_is_related_to_nobody() -> None:
    similarities = eq.cosine_matrix([torch.zeros(2), torch.tensor([1.0, 1.0])])
    assert similarities.tolist() == [[1, 0], [0, 1]]


def test_cosine_refuses_what_cannot_be_compared() -> None:
    with pytest.raises(UserError, match="Gradient 1 has 3 values and gradient 0 has 2"):
        eq.cosine_matrix([torch.ones(2), torch.ones(3)])
    with pytest.raises(UserError, match="Gradient 1 is not finite"):
        eq.cosine_matrix([torch.ones(2), torch.tensor([1.0, math.nan])])
    with pytest.raises(UserError, match="4 values do not make 3 rows"):
        eq.cosine_matrix([torch.ones(4)], "official_columns", rows=3)
    with pytest.raises(UserError, match="tau must be positive"):
        eq.relevance_weights(torch.eye(2), 0.0)


def test_column_similarity_of_the_published_code() -> None:
    # Columns of the first: (1, 0) and (0, 1); of the second: (2, 0) and (0, 0). Cosines 1 and 0, mean 1/2.
    first, second = torch.tensor([1.0, 0, 0, 1]), torch.tensor([2.0, 0, 0, 0])
    assert eq.cosine_matrix([first, second], "official_columns", rows=2)[0, 1].item() == 0.5
    assert eq.cosine_matrix([first, second])[0, 1].item() == pytest.approx(1 / math.sqrt(2))


def test_long_gradients_are_read_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = [torch.randn(60, generator=torch_rng("long", i)) for i in range(3)]
    whole, columns = eq.cosine_matrix(vectors), eq.cosine_matrix(vectors, "official_columns", rows=4)
    monkeypatch.setattr(eq, "_CHUNK", 8)
    torch.testing.assert_close(eq.cosine_matrix(vectors), whole)
    torch.testing.assert_close(eq.cosine_matrix(vectors, "official_columns", rows=4), columns)
    torch.testing.assert_close(whole[0, 1].item(), F.cosine_similarity(vectors[0], vectors[1], dim=0).item())
    by_column = F.cosine_similarity(vectors[0].reshape(4, 15), vectors[2].reshape(4, 15), dim=0).mean()
    torch.testing.assert_close(columns[0, 2].item(), by_column.item())


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 6), tau=st.floats(0.05, 5.0), include_self=st.booleans(), rng=matrices)
def test_relevance_properties(n: int, tau: float, include_self: bool, rng: torch.Generator) -> None:
    vectors = [torch.randn(5, generator=rng) for _ in range(n)]
    similarities = eq.cosine_matrix(vectors)
    weights = eq.relevance_weights(similarities, tau, include_self)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(n, dtype=torch.float64))
    assert torch.equal(similarities, similarities.T)
    # Order: who is more similar weighs no less.
    for i in range(n):
        others = [j for j in range(n) if include_self or j != i]
        ranked = sorted(others, key=lambda j: similarities[i, j].item())
        assert all(weights[i, a] <= weights[i, b] for a, b in itertools.pairwise(ranked))
    # Scale: only directions count.
    scaled = eq.relevance_weights(eq.cosine_matrix([7 * v for v in vectors]), tau, include_self)
    torch.testing.assert_close(scaled, weights)


def test_conventional_layers_use_the_same_backbone_only() -> None:
    row = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    # Clients 0 and 2 share a backbone: 0.5 / 0.7 and 0.2 / 0.7.
    expected = torch.tensor([5 / 7, 0, 2 / 7], dtype=torch.float64)
    torch.testing.assert_close(eq.renormalised(row, [0, 2], own=0), expected)
    # Alone in its type with self excluded, or with no partner present: its own update.
    alone = torch.tensor([0.0, 0.6, 0.4], dtype=torch.float64)
    assert eq.renormalised(alone, [0], own=0).tolist() == [1, 0, 0]
    assert eq.renormalised(alone, [], own=0).tolist() == [1, 0, 0]


# Eq. 5, Eq. 7, payload -----------------------------------------------------------------------------------------------


def test_pq_forward_by_hand() -> None:
    # A x = (3, 2); P A x = (1 * 3 + 2 * 2, 1 * 2) = (7, 2); plus Q: (8, 2); times B: (8, 2, -8); twice: (16, 4, -16).
    # W x + bias = (2, 3, 5) + (0, 0, 1).
    out = eq.pq_forward(
        x=rows([2.0, 3.0]),
        weight=rows([1, 0], [0, 1], [1, 1]),
        bias=torch.tensor([0.0, 0.0, 1.0]),
        a=rows([0, 1], [1, 0]),
        p=rows([1, 2], [0, 1]),
        q=torch.tensor([1.0, 0.0]),
        b=rows([1, 0], [0, 1], [-1, 0]),
        scale=2.0,
    )
    assert out.tolist() == [[18.0, 7.0, -10.0]]


def test_gate_by_hand() -> None:
    base, local, global_ = rows([1.0]), rows([4.0]), rows([8.0])
    assert eq.mix(base, local, global_, 0.0).item() == 7.0  # 1 + 4 / 2 + 8 / 2
    # sigmoid(ln 3) = 3 / 4: 1 + 4 / 4 + 8 * 3 / 4 = 8
    assert eq.mix(base, local, global_, math.log(3)).item() == pytest.approx(8.0)


@pytest.mark.parametrize(
    ("hidden", "kv", "ff", "layers", "values"),
    [
        (2048, 512, 8192, 16, 68_095_488),  # Llama-3.2-1B
        (3072, 1024, 8192, 28, 167_185_920),  # Llama-3.2-3B
        (4096, 1024, 14336, 32, 294_063_616),  # Llama-3.1-8B
    ],
)
def test_payload_of_the_papers_backbones(hidden: int, kv: int, ff: int, layers: int, values: int) -> None:
    one_layer = [
        (hidden, hidden),
        (hidden, kv),
        (hidden, kv),
        (hidden, hidden),
        (hidden, ff),
        (hidden, ff),
        (ff, hidden),
    ]
    conventional = one_layer * (layers - 4)
    assert eq.upload_values(conventional, rank=128, pq_modules=4 * 7) == values
    gradient = eq.kept_rows(2048, 0.4) * 8192
    assert eq.upload_values(conventional, 128, 28, gradient) - values == 6_709_248
    assert eq.upload_values([], 128, 28) == 462_336


# The theorems --------------------------------------------------------------------------------------------------------


def span_of_updates(a: Tensor, b: Tensor) -> int:
    """Dimension of {B P A}: rank of the r^2 outer products b_i a_j^T, each flattened to a row."""
    outer = torch.einsum("oi,jd->ijod", b.double(), a.double())
    return int(torch.linalg.matrix_rank(outer.reshape(a.shape[0] ** 2, -1)))


def test_theorem_1_by_hand() -> None:
    a = rows([1, 0, 0], [0, 1, 0])
    independent = rows([1, 1], [0, 1], [0, 0])  # columns (1, 0, 0) and (1, 1, 0): not orthogonal, yet independent
    dependent = rows([1, 2], [1, 2], [0, 0])  # the second column is twice the first
    assert span_of_updates(a, independent) == 4  # r^2
    assert span_of_updates(a, dependent) == 2  # only b_1 a_1^T and b_1 a_2^T
    assert span_of_updates(rows([1, 1, 1], [2, 2, 2]), dependent) == 1


@settings(max_examples=40, deadline=None)
@given(r=st.integers(1, 4), rank_a=st.integers(1, 4), rank_b=st.integers(1, 4), rng=matrices)
def test_theorem_1(r: int, rank_a: int, rank_b: int, rng: torch.Generator) -> None:
    rank_a, rank_b = min(rank_a, r), min(rank_b, r)

    def of_rank(rows_: int, cols: int, rank: int) -> Tensor:
        left = torch.randn(rows_, rank, generator=rng, dtype=torch.float64)
        return left @ torch.randn(rank, cols, generator=rng, dtype=torch.float64)

    assert span_of_updates(of_rank(r, 6, rank_a), of_rank(5, r, rank_b)) == rank_a * rank_b


def test_theorem_2_averaging_p_and_q_averages_outputs() -> None:
    x, weight = rows([1, 2, -1], [0, 3, 2]), rows([1, 0, 2], [0, 1, 1])
    a, b = rows([1, 0, 1], [0, 1, 0]), rows([1, 2], [0, 1])
    p1, q1 = rows([1, 2], [0, 4]), torch.tensor([2.0, 0.0])
    p2, q2 = rows([3, 0], [2, 2]), torch.tensor([0.0, -4.0])
    one, two = (eq.pq_forward(x, weight, None, a, p, q, b, 2.0) for p, q in ((p1, q1), (p2, q2)))
    averaged = eq.pq_forward(x, weight, None, a, (p1 + p2) / 2, (q1 + q2) / 2, b, 2.0)
    assert torch.equal(averaged, (one + two) / 2)  # small integers and halves: exact
    weighted = eq.pq_forward(x, weight, None, a, 0.25 * p1 + 0.75 * p2, 0.25 * q1 + 0.75 * q2, b, 2.0)
    assert torch.equal(weighted, 0.25 * one + 0.75 * two)


def test_theorem_2_does_not_hold_for_the_factors_of_lora() -> None:
    # Client 1: B A = (1, 0)^T (1, 0). Client 2: (0, 1)^T (0, 1). The mean of the products is I / 2; the product of the
    # means is (1/2, 1/2)^T (1/2, 1/2), every entry 1/4. The error has Frobenius norm sqrt(4 / 16) = 1/2.
    b1, a1, b2, a2 = rows([1], [0]), rows([1, 0]), rows([0], [1]), rows([0, 1])
    ideal = (b1 @ a1 + b2 @ a2) / 2
    practical = ((b1 + b2) / 2) @ ((a1 + a2) / 2)
    assert ideal.tolist() == [[0.5, 0], [0, 0.5]]
    assert practical.tolist() == [[0.25, 0.25], [0.25, 0.25]]
    assert (ideal - practical).norm().item() == 0.5
