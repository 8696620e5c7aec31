"""Matching the positions of two tokenizers by the characters they cover."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor

from pfl_platform.distillation import spans as sp
from pfl_platform.errors import UserError
from pfl_platform.rng import torch_rng

R, D_P, D_T, N = 4, 9, 13, 400  # rank, output sizes of pivot and target, observations

Cut = tuple[list[sp.Span], set[int]]


@st.composite
def tokenisations(draw: st.DrawFn, length: int) -> Cut:
    """Spans that cover a text of `length` characters, some covered several times, some padding; and the boundaries."""
    inner = draw(st.sets(st.integers(1, length - 1))) if length > 1 else set()
    edges = sorted({0, length} | inner)
    spans: list[sp.Span] = []
    for span in itertools.pairwise(edges):
        spans += [span] * draw(st.integers(1, 3))
    padding = [(-1, -1)] * draw(st.integers(0, 2))
    return (spans + padding if draw(st.booleans()) else padding + spans), set(edges)


pairs_of_cuts = st.integers(1, 12).flatmap(lambda n: st.tuples(tokenisations(n), tokenisations(n)))


@settings(max_examples=200, deadline=None)
@given(pairs_of_cuts)
def test_segments_partition_the_text_in_order_and_are_minimal(cuts: tuple[Cut, Cut]) -> None:
    (ours, our_edges), (theirs, their_edges) = cuts
    segments = sp.common_segments(ours, theirs)
    for side, spans in enumerate((ours, theirs)):
        positions = [position for segment in segments for position in segment[side]]
        # Every position that covers text is in exactly one group, in order; padding is in none.
        assert positions == [position for position, span in enumerate(spans) if span != (-1, -1)]
    covered = []
    for a, b in segments:
        piece = (min(ours[i][0] for i in a), max(ours[i][1] for i in a))
        assert piece == (min(theirs[j][0] for j in b), max(theirs[j][1] for j in b))  # the same text on both sides
        covered.append(piece)
    edges = sorted({edge for piece in covered for edge in piece})
    assert edges == sorted(our_edges & their_edges)  # every common boundary cuts, and nothing else does
    assert sp.common_segments(theirs, ours) == [(b, a) for a, b in segments]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12).flatmap(tokenisations))
def test_equal_tokenisers_give_the_identity(cut: Cut) -> None:
    spans, _ = cut
    positions = [position for position, span in enumerate(spans) if span != (-1, -1)]
    assert sp.common_segments(spans, spans) == [((i,), (i,)) for i in positions]


def test_pictures_and_gaps_by_hand() -> None:
    # "<image>ab cd": the picture's mark is characters 0-7.
    picture = (0, 7)
    four = [(-1, -1), *[picture] * 4, (7, 9), (9, 12)]
    assert sp.common_segments(four, [*[picture] * 4, (7, 12)]) == [
        ((1,), (0,)),
        ((2,), (1,)),
        ((3,), (2,)),
        ((4,), (3,)),
        ((5, 6), (4,)),
    ]
    # Another number of positions for the picture: averaged. The space, which only one tokenizer covers, is no obstacle.
    two = [picture, picture, (7, 9), (10, 12), (12, 13)]
    assert sp.common_segments(four, two) == [((1, 2, 3, 4), (0, 1)), ((5,), (2,)), ((6,), (3,))]
    assert sp.common_segments([(0, 3)], [(3, 5)]) == []
    assert sp.common_segments([(0, 0), (0, 2)], [(0, 2)]) == [((1,), (0,))]  # a mark of no width
    assert sp.common_segments([(0, 3), (1, 1)], [(0, 3)]) == [((0,), (0,))]  # the same inside a word
    answers = sp.only(four, [False] * 5 + [True, True])
    assert sp.common_segments(answers, two) == [((5,), (2,)), ((6,), (3,))]


def test_real_tokenisers_cut_the_same_text() -> None:
    corpus = [
        "the quick brown fox jumps over the lazy dog",
        "pack my box with five dozen jugs",
        "naïve café 🦊 übung",
    ] * 3
    text = "the naïve quick 🦊 jugs"
    cut = []
    for size in (260, 320):
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
        tokenizer.train_from_iterator(corpus, trainer)
        cut.append(tokenizer.encode(text).offsets)
    assert cut[0] != cut[1]
    segments = sp.common_segments(*cut)
    for a, b in segments:
        assert {c for i in a for c in range(*cut[0][i])} == {c for j in b for c in range(*cut[1][j])}
    assert sorted(i for a, _ in segments for i in a) == list(range(len(cut[0])))
    assert sorted(j for _, b in segments for j in b) == list(range(len(cut[1])))


def test_pool_by_hand() -> None:
    features = torch.tensor([[1.0, 2.0], [3.0, 6.0], [9.0, 9.0]])
    assert sp.pool(features, [(0, 1), (2,)]).tolist() == [[2, 4], [9, 9]]
    half = sp.pool(features.bfloat16(), [(2,)])
    assert half.dtype == torch.float32


@settings(max_examples=50, deadline=None)
@given(st.lists(pairs_of_cuts, min_size=1, max_size=3), st.integers(0, 999))
def test_a_plan_for_a_batch_equals_row_by_row_pooling(cuts: list[tuple[Cut, Cut]], seed: int) -> None:
    sides: list[list[list[sp.Span]]] = []
    for side in (0, 1):
        longest = max(len(cut[side][0]) for cut in cuts)
        sides.append([cut[side][0] + [(-1, -1)] * (longest - len(cut[side][0])) for cut in cuts])
    features = [
        torch.randn(len(spans), len(spans[0]), 3, generator=torch_rng("batch", seed, side)).requires_grad_()
        for side, spans in enumerate(sides)
    ]
    plan = sp.MatchPlan.of(sides[0], sides[1])
    expected: tuple[list[Tensor], list[Tensor]] = ([], [])
    rows = []
    for row in range(len(cuts)):
        for groups in sp.common_segments(sides[0][row], sides[1][row]):
            for side in (0, 1):
                expected[side].append(features[side][row, list(groups[side])].mean(dim=0))
            rows.append(row)
    assert len(plan) == len(rows)
    assert plan.rows.tolist() == rows
    for side, pooling in enumerate((plan.a, plan.b)):
        pooled = pooling(features[side])
        torch.testing.assert_close(pooled, torch.stack(expected[side]))
        (gradient,) = torch.autograd.grad(pooled.sum(), features[side])
        assert gradient.sum().item() == pytest.approx(3 * len(plan), rel=1e-5)


def test_a_plan_of_equal_tokenisers_is_bit_exact_and_rows_must_match() -> None:
    spans = [[(0, 1), (1, 3)], [(0, 2), (-1, -1)]]
    features = torch.randn(2, 2, 3, generator=torch_rng("exact"))
    plan = sp.MatchPlan.of(spans, spans)
    assert torch.equal(plan.a(features), features.flatten(0, 1)[:3])
    assert torch.equal(plan.a(features), plan.b(features))
    with pytest.raises(UserError, match="2 rows with one of 1 rows"):
        sp.MatchPlan.of(spans, spans[:1])
