"""Multi-choice questions by the likelihood of their options' answers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pfl_platform.adapters.host import Host
from pfl_platform.adapters.surfaces import Mix, Slot
from pfl_platform.data import Sample, TaskData, Turn
from pfl_platform.errors import UserError
from pfl_platform.evaluation.choosing import by_option, is_choice, likeliest
from pfl_platform.evaluation.generate import Judge, greedy
from pfl_platform.evaluation.surfaces import Cell, InferenceRecipe
from pfl_platform.federation import rows
from pfl_platform.plugins import PluginManager

COLOURS = ("red", "dark green", "green", "blue")


def asked(number: int, answer: str = "green", options: tuple[str, ...] = COLOURS) -> Sample:
    return Sample(f"q{number}", (Turn(f"Say a colour for {number}.", answer),), options=options, references=(answer,))


def host_of(name: str) -> Host:
    manager = PluginManager()
    backbone = manager.make("backbone", name, {"init": 0})
    host = Host(backbone, manager.make("adapter", "lora", {"r": 2}), [Slot("one"), Slot("other")])
    generator = torch.Generator().manual_seed(0)
    for tensor in host.params.values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)
    return host


def alone(host: Host, sample: Sample, text: str, passes: tuple[Mix, ...]) -> tuple[float, int]:
    """The log-likelihood of one answer, token by token from the whole logits of one row; and its tokens."""
    encoded = host.encode([replace(sample, turns=(replace(sample.turns[0], answer=text),))])
    logits: torch.Tensor | float = 0.0
    for mix in passes:
        with torch.no_grad(), host.mixing(mix, host.masks(encoded.inputs)):
            logits = logits + host.run(encoded.inputs, use_cache=False).logits[0]
    assert isinstance(logits, torch.Tensor)
    labels = encoded.labels[0].tolist()
    told = [float(logits[at - 1].log_softmax(-1)[token]) for at, token in enumerate(labels) if at and token >= 0]
    return sum(told), len(told)


@pytest.mark.parametrize("name", ["tiny-llama-s", "tiny-llava-llama-s", "tiny-t5"])
@pytest.mark.parametrize("per_token", [False, True])
def test_the_likeliest_is_chosen(name: str, per_token: bool) -> None:
    host = host_of(name)
    passes: tuple[Mix, ...] = ({"one": 1.0}, {"other": 0.5})
    samples = [asked(number) for number in range(6)] + [asked(6, "no", ("yes", "no"))]
    expected = []
    for sample in samples:
        found = {text: alone(host, sample, text, passes) for text in sample.options}
        expected.append(max(found, key=lambda text: found[text][0] / (found[text][1] if per_token else 1)))
    assert likeliest(host, samples, passes, per_token=per_token) == expected


def test_questions_with_weights_of_their_own() -> None:
    host, samples = host_of("tiny-llama-s"), [asked(0), asked(1, "no", ("yes", "no")), asked(2)]
    weights = torch.tensor([0.0, 1.0, 2.0])
    found = likeliest(host, samples, ({"one": weights, "other": 1.0},))
    by_one = [
        likeliest(host, [sample], ({"one": float(w), "other": 1.0},))[0]
        for sample, w in zip(samples, weights, strict=True)
    ]
    assert found == by_one


FORMS = {
    "frog": ("deer", "frog"),
    "Frog.": ("Deer.", "Frog."),
    "It is a frog.": ("It is a deer.", "It is a frog."),
    " B": (" A", " B"),
    "(b)": ("(a)", "(b)"),
    "B. frog": ("A. deer", "B. frog"),
    "the answer is (B) frog": ("the answer is (A) deer", "the answer is (B) frog"),
}


@pytest.mark.parametrize("answer", FORMS)
def test_the_form_of_an_answer_is_kept(answer: str) -> None:
    assert by_option(Sample("l", (Turn("A. deer B. frog", answer),), options=("deer", "frog"))) == FORMS[answer]


@pytest.mark.parametrize("answer", ["pink", "", "frog: a frog says so", "frog, that is B.", "deer or frog", "frogs"])
def test_an_answer_that_would_tell_which_is_right_is_refused(answer: str) -> None:
    """Whatever option stands in the place of the right one, the rest of these answers names it, or nothing does."""
    with pytest.raises(UserError, match=r"'q9' cannot be scored by likelihood"):
        by_option(Sample("q9", (Turn("A. deer B. frog", answer),), options=("deer", "frog"), references=("frog",)))


def test_more_options_than_letters() -> None:
    options = tuple(f"thing {number}" for number in range(40))
    assert by_option(Sample("m", (Turn("?", "thing 30"),), options=options)) == options


def test_words_and_not_parts_of_words() -> None:
    sample = Sample("n", (Turn("?", "no, I do not know"),), options=("yes", "no"), references=("no",))
    assert by_option(sample) == ("yes, I do not know", "no, I do not know")


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_no_pass_has_more_rows_than_are_asked_for(rows: int) -> None:
    host, seen = host_of("tiny-llama-s"), []
    hook = host.backbone.model.register_forward_pre_hook(
        lambda _m, _a, inputs: seen.append(len(inputs["input_ids"])), with_kwargs=True
    )
    samples = [asked(0), asked(1, "no", ("yes", "no"))]
    mix: Mix = {"one": torch.tensor([0.5, 2.0])}
    found = likeliest(host, samples, (mix,), rows=rows)
    hook.remove()
    assert sum(seen) == 6
    assert max(seen) == min(rows, 6)
    assert found == likeliest(host, samples, (mix,))


@pytest.mark.parametrize("size", [1, 4, 7, 64])
def test_a_judge_scores_the_same_in_batches_of_any_size(size: int) -> None:
    """Open questions are written, questions with options chosen; a batch has at most `size` rows, or one question."""
    host = host_of("tiny-llama-s")
    samples = [asked(0), replace(asked(1), options=()), asked(2, "no", ("yes", "no")), asked(3)]
    judge = Judge({"choice": PluginManager().make("metric", "choice", {})}, size, 2, "likelihood")
    task = TaskData("colours", "multi-choice", "choice", train=(), validation=(), test=samples)
    (result,) = judge.score(host, InferenceRecipe(({"one": 1.0},)), [(Cell("a", "colours"), task, samples)])
    texts = {item.sample_id: item.text for item in result.predictions}
    choices = [samples[k] for k in (0, 2, 3)]
    assert [texts[sample.id] for sample in choices] == likeliest(host, choices, ({"one": 1.0},))
    assert texts["q1"] == greedy(host, [samples[1]], ({"one": 1.0},), 2)[0]
    for batch in judge._batches(host, range(4), samples.__getitem__):
        assert len({is_choice(host, samples[k]) for k in batch}) == 1
        assert len(batch) == 1 or sum(max(1, len(samples[k].options)) for k in batch) <= size


def test_a_classifier_reads_its_classes() -> None:
    assert not is_choice(host_of("tiny-roberta"), asked(0))


def test_answers_are_looked_at_before_a_run() -> None:
    where = "Client 'a', task 'colours', test data"
    rows._check_choices([rows.Row(asked(0), where), rows.Row(replace(asked(1), options=()), where)])
    with pytest.raises(UserError, match=rf"{where}: Sample 'q9' cannot be scored by likelihood"):
        rows._check_choices([rows.Row(asked(0), where), rows.Row(asked(9, "pink"), where)])
