"""Learning from other models' predictions: divergences, maps between tokenizers, means of teachers, on numbers that
can be redone."""

from __future__ import annotations

import math

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from torch import Tensor
from torch.nn import functional

from pfl_model_zoo.pieces import pieces_of
from pfl_platform.backbones import IGNORE, Backbone, Encoded
from pfl_platform.data import Sample, Turn
from pfl_platform.distillation.losses import divergence, towards
from pfl_platform.distillation.predictions import Predicted, Predictions
from pfl_platform.distillation.public import PublicSet
from pfl_platform.distillation.spans import same_places
from pfl_platform.distillation.targets import Answers, Targets, Teacher, combined, own, shares
from pfl_platform.distillation.vocabularies import Vocabulary, between, vocabulary_map
from pfl_platform.errors import UserError
from pfl_platform.plugins import PluginManager
from pfl_platform.training.streams import Epochs
from pfl_platform.training.surfaces import Output
from pfl_platform.training.view import BatchView

LLAMA, QWEN = "tiny-llava-llama-s", "tiny-llava-qwen-s"


@pytest.fixture(scope="module")
def backbones() -> dict[str, Backbone]:
    manager = PluginManager()
    names = (LLAMA, "tiny-llava-llama-m", QWEN)
    return {name: manager.make("backbone", name, {"init": 3}) for name in names}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def predicted(
    probs: list[list[float]], ids: list[list[int]] | None = None, counts: list[int] | None = None
) -> Predicted:
    given = torch.tensor(probs)
    return Predicted(
        torch.tensor(counts or [len(probs)], dtype=torch.int32),
        torch.zeros(len(counts or [1])),
        given.log(),
        None if ids is None else torch.tensor(ids, dtype=torch.int32),
        None,
    )


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("reverse", [False, True])
def test_over_all_tokens_it_is_the_plain_divergence(temperature: float, reverse: bool) -> None:
    student, teacher = noise(5, 7), noise(5, 7, seed=1)
    p, q = ((x / temperature).log_softmax(1) for x in (teacher, student))
    first, second = (q, p) if reverse else (p, q)
    expected = functional.kl_div(second, first, reduction="none", log_target=True).sum(1) * temperature**2
    found = divergence(student, p.exp(), None, temperature, reverse=reverse)
    torch.testing.assert_close(found, expected)
    order = torch.stack([torch.randperm(7, generator=torch.Generator().manual_seed(k)) for k in range(5)])
    named = divergence(student, p.exp().gather(1, order)[:, :6], order[:, :6], temperature, reverse=reverse)
    torch.testing.assert_close(named, expected)  # one token is left to the rest: the same outcomes


def test_few_tokens_are_a_coarser_divergence_that_vanishes_where_both_agree() -> None:
    logits = noise(4, 50).requires_grad_()
    p = logits.detach().softmax(1)
    probs, ids = p.topk(3, dim=1)
    agreed = divergence(logits, probs, ids)
    assert float(agreed.detach().abs().max()) < 1e-6
    (gradient,) = torch.autograd.grad(agreed.sum(), logits)
    assert float(gradient.abs().max()) < 1e-6
    other = noise(4, 50, seed=2)
    assert bool((divergence(other, probs, ids) <= divergence(other, p, None) + 1e-6).all())
    # The form of published code lets the named tokens grow for ever.
    (gradient,) = torch.autograd.grad(divergence(logits, probs, ids, tail="drop").sum(), logits)
    assert float(gradient.abs().max()) > 0.1


def test_a_position_learns_from_the_same_text_and_no_shorter_token() -> None:
    # " red" + end | " re" "d" + end
    whole, parts = [(5, 9), (9, 10)], [(5, 8), (8, 9), (9, 10)]
    assert same_places(parts, whole) == [0, -1, 1]
    assert same_places(whole, parts) == [-1, 2]
    assert same_places(whole, whole) == [0, 1]
    student, teacher = Answers((tuple(parts), tuple(whole))), Answers((tuple(whole), tuple(whole)))
    assert student.places(teacher).tolist() == [0, -1, 1, 2, 3]
    assert student.counts.tolist() == [3, 2]
    with pytest.raises(UserError, match="2 samples with those to 1"):
        student.places(Answers((tuple(whole),)))


def test_teachers_of_another_tokenizer_by_hand() -> None:
    # Teacher's tokens: 0 "ab", 1 "abc", 2 "x", 3 end; student's: 0 end, 1 "ab", 2 "x", 3 padding.
    tokens = vocabulary_map(Vocabulary((b"ab", b"abc", b"x", None), 3, 4), Vocabulary((None, b"ab", b"x", None), 0, 4))
    assert tokens.tolist() == [1, 1, 2, 0]
    teacher = Teacher(predicted([[0.5, 0.2, 0.1]], [[0, 1, 3]]), torch.tensor([0, -1]), tokens)
    target = combined([teacher], torch.tensor([2]), 4, 0)
    # "ab" gets 0.5 + 0.2, the end 0.1; the 0.2 that the teacher left open is shared by the two others.
    torch.testing.assert_close(target.probs[0], torch.tensor([0.1, 0.7, 0.1, 0.1]))
    assert target.known.tolist() == [True, False]
    few = combined([teacher], torch.tensor([2]), 4, 1)
    assert few.ids is not None
    assert (few.ids[0].tolist(), few.known.tolist()) == ([1], [True, False])
    assert float(few.probs[0]) == pytest.approx(0.7)


def test_the_mean_of_teachers_by_hand() -> None:
    one, two = predicted([[0.8, 0.2]]), predicted([[0.2, 0.8]])
    counts = torch.tensor([1])
    assert combined([Teacher(one), Teacher(two)], counts, 2, 0).probs[0].tolist() == pytest.approx([0.5, 0.5])
    weighted = [Teacher(one, weights=torch.tensor([3.0])), Teacher(two, weights=torch.tensor([1.0]))]
    assert shares(weighted, 0, 1).flatten().tolist() == [0.75, 0.25]
    # logits: odds 4^0.75 / 4^0.25 = 2; probabilities: 0.75 * 0.8 + 0.25 * 0.2
    assert combined(weighted, counts, 2, 0).probs[0].tolist() == pytest.approx([2 / 3, 1 / 3])
    assert combined(weighted, counts, 2, 0, "probabilities").probs[0].tolist() == pytest.approx([0.65, 0.35])
    idle = [Teacher(one, weights=0.0), Teacher(two, weights=0.0)]
    assert shares(idle, 0, 1).flatten().tolist() == [0.5, 0.5]
    absent = [Teacher(one, torch.tensor([-1])), Teacher(two)]
    assert combined(absent, counts, 2, 0).probs[0].tolist() == pytest.approx([0.2, 0.8])


def test_the_mean_of_logits_over_all_tokens_is_the_ensembles_softmax() -> None:
    logits, counts = [noise(300, 40, seed=k) for k in range(3)], torch.tensor([120, 180])
    teachers = [Teacher(Predicted(counts, torch.zeros(2), x.log_softmax(1), None, None)) for x in logits]
    found = combined(teachers, counts, 40, 0)
    torch.testing.assert_close(found.probs, torch.stack(logits).mean(0).softmax(1), rtol=1e-4, atol=1e-6)


def test_llama_and_qwen_tokens_stand_for_the_same_text(backbones: dict[str, Backbone]) -> None:
    llama, qwen = backbones[LLAMA], backbones[QWEN]
    tokens = between(llama, qwen)
    assert tokens is not None
    ours, theirs = llama.codec, qwen.codec
    for text in (" red", " 7", "?"):
        source = ours.tokenizer.encode(text, add_special_tokens=False).ids  # type: ignore[attr-defined]
        target = theirs.tokenizer.encode(text, add_special_tokens=False).ids  # type: ignore[attr-defined]
        if len(source) == len(target) == 1:
            assert int(tokens[source[0]]) == target[0]
    pieces = pieces_of(ours.tokenizer)  # type: ignore[attr-defined]
    assert b" " in {piece[:1] for piece in pieces if piece}
    for token, piece in enumerate(pieces):
        found = int(tokens[token])
        if piece is None:
            assert found == (theirs.end_id if token == ours.end_id else -1)  # type: ignore[attr-defined]
        else:
            text = theirs.pieces[found]  # type: ignore[attr-defined]
            assert piece.startswith(text)
            assert not any(
                other and piece.startswith(other) and len(other) > len(text)
                for other in theirs.pieces  # type: ignore[attr-defined]
            )
    assert between(llama, backbones["tiny-llava-llama-m"]) is None  # one tokenizer: nothing to map


def test_pieces_of_a_tokenizer_that_writes_blanks_and_bytes_otherwise() -> None:
    tokenizer = Tokenizer(models.WordLevel({"\u2581red": 0, "<0x0A>": 1, "d": 2}, unk_token="d"))
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<pad>"])
    tokenizer.add_tokens(["plain"])
    assert pieces_of(tokenizer) == [b" red", b"\n", b"d", None, b"plain"]


def samples() -> list[Sample]:
    words = ["red", "blue", "green square", "a round thing", "7 apples"]
    return [Sample("x", (Turn(f"Say {word}.", word),)) for word in words]


def view_of(backbone: Backbone, some: list[Sample]) -> BatchView:
    from pfl_platform.adapters.host import Host

    host = Host(backbone)
    return BatchView(lambda _: host, backbone.name, some, step=0, rng=lambda *_: torch.Generator())


def measured(backbone: Backbone, public: PublicSet, top_k: int, temperature: float = 1.0) -> Predicted:
    statistic = Predictions({}, public.in_order(2), 3, top_k=top_k, temperature=temperature, variance=True)
    acc = None
    for begin in (0, 2, 4):
        acc = statistic.add(acc, view_of(backbone, list(public.samples[begin : begin + 2])))
    sent, kept = statistic.finish(acc, {}, lambda *_: torch.Generator())
    assert kept == {}
    return Predicted.read(sent)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_with_equal_tokenizers_the_loss_of_a_batch_is_the_plain_divergence(
    backbones: dict[str, Backbone], temperature: float
) -> None:
    """From one model's predictions to another's loss, through all parts, against a few lines without them."""
    teacher, student = backbones["tiny-llava-llama-m"], backbones[LLAMA]
    public = PublicSet.numbered(samples(), 0)
    places = public.answers(student).places(public.answers(teacher))
    assert places.tolist() == list(range(len(places)))
    seen = measured(teacher, public, 0, temperature)
    target = combined(
        [Teacher(seen, places, between(teacher, student))], public.answers(student).counts, seen.logp.shape[1], 0
    )
    batch = [public.samples[k] for k in (3, 0)]
    view = view_of(student, batch)
    output = view.forward({}, train=False)
    found = towards(view, output, public.numbers, target, temperature).mean()
    encoded = student.codec.encode(batch)
    with torch.no_grad():
        p, q = (
            (backbone.model(**encoded.inputs).logits[:, :-1][encoded.labels[:, 1:] != IGNORE] / temperature)
            .float()
            .log_softmax(1)
            for backbone in (teacher, student)
        )
    expected = functional.kl_div(q, p, log_target=True, reduction="batchmean") * temperature**2
    assert float(found) == pytest.approx(float(expected), rel=1e-4)
    assert float(towards(view, output, public.numbers, own(measured(student, public, 5)), 1.0).abs().max()) < 1e-5


def test_predictions_say_losses_and_variances(backbones: dict[str, Backbone]) -> None:
    backbone, public = backbones[QWEN], PublicSet.numbered(samples(), 0)
    seen = measured(backbone, public, 4)
    for number, sample in enumerate(public.samples):
        encoded = backbone.codec.encode([sample])
        with torch.no_grad():
            logits = backbone.model(**encoded.inputs).logits[:, :-1][encoded.labels[:, 1:] != IGNORE]
        golds = encoded.labels[:, 1:][encoded.labels[:, 1:] != IGNORE]
        assert float(seen.losses[number]) == pytest.approx(float(functional.cross_entropy(logits, golds)), rel=1e-4)
        assert int(seen.counts[number]) == len(golds)
        assert seen.variance is not None
        at = int(seen.counts[:number].sum())
        assert float(seen.variance[at]) == pytest.approx(
            float((logits[0] - logits[0].mean()).square().mean()), rel=1e-3
        )
    assert seen.ids is not None
    assert seen.ids.shape == seen.logp.shape == (int(seen.counts.sum()), 4)


def test_llama_learns_from_qwen(backbones: dict[str, Backbone]) -> None:
    """Most answer tokens have a counterpart, and there the target is the teacher's own distribution, mapped."""
    teacher, student = backbones[QWEN], backbones[LLAMA]
    public = PublicSet.numbered(samples(), 0)
    places = public.answers(student).places(public.answers(teacher))
    assert float((places >= 0).float().mean()) > 0.3
    tokens = between(teacher, student)
    assert tokens is not None
    seen = measured(teacher, public, 8)
    target = combined([Teacher(seen, places, tokens)], public.answers(student).counts, 768, 0)
    assert seen.ids is not None
    for ours, theirs in enumerate(places.tolist()):
        assert bool(target.known[ours]) == (theirs >= 0)
        if theirs >= 0:
            named: dict[int, float] = {}
            for token, logp in zip(seen.ids[theirs].tolist(), seen.logp[theirs].tolist(), strict=True):
                if int(tokens[token]) >= 0:
                    named[int(tokens[token])] = named.get(int(tokens[token]), 0.0) + math.exp(logp)
            for token, probability in named.items():
                assert float(target.probs[ours, token]) == pytest.approx(probability, rel=1e-4)


def test_a_loss_leaves_out_samples_and_counts_known_positions_once() -> None:
    class View:
        samples = (Sample("1", ()), Sample("0", ()))

    labels = torch.tensor([[IGNORE, 1, 2], [IGNORE, 1, IGNORE]])
    logits = noise(2, 3, 4)
    output = Output(logits, Encoded({}, labels, (), ()))
    probs = torch.full((3, 4), 0.25)
    targets = Targets(torch.tensor([1, 2], dtype=torch.int32), probs, None, torch.tensor([True, True, False]))
    numbers = {"0": 0, "1": 1}
    each = divergence(torch.stack([logits[0, 0], logits[1, 0]]), probs[:2], None)
    found = towards(View(), output, numbers, targets)  # type: ignore[arg-type]
    torch.testing.assert_close(found, each)  # two rows, two known positions: the factor is 1
    only = towards(View(), output, numbers, targets, samples=torch.tensor([False, True]))  # type: ignore[arg-type]
    torch.testing.assert_close(only, torch.stack([2 * each[0], torch.tensor(0.0)]))
    logits.requires_grad_()
    nothing = towards(View(), Output(logits, output.encoded), numbers, targets, samples=torch.zeros(2).bool())  # type: ignore[arg-type]
    nothing.sum().backward()
    assert float(nothing.detach().sum()) == 0.0
    assert logits.grad is not None
    assert not logits.grad.any()
    short = Targets(torch.tensor([1, 1]), probs[:2], None, torch.ones(2).bool())
    with pytest.raises(ValueError, match="3 answer tokens in a batch whose targets have 2"):
        towards(View(), output, numbers, short)  # type: ignore[arg-type]


def test_the_public_set_is_numbered_and_split() -> None:
    public = PublicSet.numbered(samples(), 0)
    assert [sample.id for sample in public.samples] == ["0", "1", "2", "3", "4"]  # given ids may repeat
    kept, held = public.split(0.2)
    assert (len(kept), len(held)) == (4, 1)
    assert kept.digest != held.digest
    assert isinstance(public.in_order(2), Epochs)
    with pytest.raises(UserError, match="--public-size"):
        PublicSet.numbered(samples()[:1], 0).split(0.2)
