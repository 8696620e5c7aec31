"""Metrics: numbers that can be redone by hand, and laws that hold for any text."""

from __future__ import annotations

import doctest
import subprocess
import sys
from importlib import import_module

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pfl_benchmarks.metrics.plugin import pfl_make_metric
from pfl_benchmarks.metrics.rouge_l import rouge_l
from pfl_benchmarks.metrics.token_f1 import f1
from pfl_platform.data import Sample, Turn
from pfl_platform.evaluation.surfaces import Metric

ANIMALS = ("deer", "horse", "bird", "frog")
LETTERED = "<image>\nWhich? Choice list:[A. deer | B. horse | C. bird | D. frog]. Your answer is:"


def sample(question: str, gold: str, options: tuple[str, ...] = (), references: tuple[str, ...] = ()) -> Sample:
    return Sample("0", (Turn(question, gold),), (), options, references)


def metric(name: str, **options: object) -> Metric:
    made = pfl_make_metric(name, options)
    assert made is not None
    assert made.name == name
    return made


@pytest.mark.parametrize("module", ["text", "exact", "token_f1", "rouge_l", "choice"])
def test_examples_in_the_documentation_run(module: str) -> None:
    result = doctest.testmod(import_module(f"pfl_benchmarks.metrics.{module}"))
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize(
    ("prediction", "score"),
    [
        ("C", 1.0),
        ("c", 1.0),
        (" C. ", 1.0),
        ("(C)", 1.0),
        ("C. bird", 1.0),
        ("C: a bird", 1.0),
        ("bird", 1.0),
        ("BIRD!", 1.0),
        ("It is a bird.", 1.0),
        ("The answer is C", 1.0),
        ("A bird", 1.0),  # the article is no letter
        ("A", 0.0),
        ("horse", 0.0),
        ("B. bird", 0.0),  # letter and text name two options
        ("C or D", 0.0),
        ("A and C", 0.0),
        ("a bird or a frog", 0.0),
        ("birdhouse", 0.0),  # words, not letters
        ("E", 0.0),
        ("", 0.0),
    ],
)
@pytest.mark.parametrize("gold", ["C", "bird", "C. bird"])
def test_lettered_options_accept_the_letter_or_the_text(prediction: str, score: float, gold: str) -> None:
    assert metric("choice").score(prediction, sample(LETTERED, gold, ANIMALS)) == score


@pytest.mark.parametrize(
    ("options", "gold", "right", "wrong"),
    [
        (("True", "False"), "False", ["false", "False.", "It is false"], ["True", "B", "true or false", "falsehood"]),
        (("yes", "no"), "yes", ["Yes", "yes, it does"], ["no", "A", "yes and no"]),
        (("Image 1", "Image 2"), "Image 2", ["image 2", "2", "Image 2."], ["Image 1", "1", "Image 3", "Image"]),
        (("green", "dark green"), "dark green", ["Dark green", "a dark green one"], ["green", "dark"]),
        (("C", "C++", "C#"), "C++", ["C++", "c++"], ["C", "C#", "B"]),
        (("3", "4"), "4", ["4", "There are 4.", " 4 "], ["3", "34", "3 or 4"]),
        (("A", "B"), "B", ["B", "b.", "The answer is B"], ["A", "B and A", "a"]),
    ],
)
def test_options_without_letters(options: tuple[str, ...], gold: str, right: list[str], wrong: list[str]) -> None:
    asked = sample(f"Choice list:[{', '.join(options)}]. Your answer is:", gold, options)
    choice = metric("choice")
    assert {text: choice.score(text, asked) for text in right} == dict.fromkeys(right, 1.0)
    assert {text: choice.score(text, asked) for text in wrong} == dict.fromkeys(wrong, 0.0)


def test_an_article_is_no_letter() -> None:
    asked = sample(LETTERED, "A", ANIMALS)
    said = {
        text: metric("choice").score(text, asked) for text in ("A", "A is right", "A fish", "Well. A fish", "a fish")
    }
    assert said == {"A": 1.0, "A is right": 1.0, "A fish": 0.0, "Well. A fish": 0.0, "a fish": 0.0}


def test_choice_without_known_options_is_an_exact_match() -> None:
    choice = metric("choice")
    assert choice.score("(b)", sample("Which?", "B")) == 1.0
    assert choice.score("B or C", sample("Which?", "B")) == 0.0
    assert choice.score("Cow.", sample(LETTERED, "cow", ANIMALS)) == 1.0  # a gold answer that is no option
    assert choice.score("deer", sample(LETTERED, "cow", ANIMALS)) == 0.0


@given(st.sampled_from(ANIMALS), st.sampled_from(ANIMALS), st.sampled_from(["{}", " {}.", "({})", "{}!", "It is {}."]))
def test_choice_is_right_exactly_when_the_option_is(answer: str, gold: str, form: str) -> None:
    asked = sample(LETTERED, gold, ANIMALS)
    letter = "ABCD"[ANIMALS.index(answer)]
    for text in (answer, answer.upper(), letter, f"{letter}. {answer}"):
        assert metric("choice").score(form.format(text), asked) == float(answer == gold)


def test_f1_by_hand() -> None:
    # prediction {the, cat, sat}, answer {the, cat, lay, down}: precision 2/3, recall 2/4, F1 = 2 * 2 / (3 + 4)
    assert f1("The cat sat.", "the cat lay down") == pytest.approx(4 / 7)
    # multiset: {a: 2, b: 1} and {a: 1, b: 2} share 2 of 3 and 3
    assert f1("a a b", "a b b") == 1.0
    assert f1("a a b", "a b b", multiset=True) == pytest.approx(4 / 6)
    asked = sample("?", "red", references=("red", "dark red"))
    assert metric("token_f1").score("dark red", asked) == 1.0
    assert metric("token_f1", multiset=True).score("red red", sample("?", "red")) == pytest.approx(2 / 3)


@given(st.text(), st.text(), st.booleans())
def test_f1_is_symmetric_and_bounded(first: str, second: str, multiset: bool) -> None:
    score = f1(first, second, multiset=multiset)
    assert 0.0 <= score <= 1.0
    assert score == f1(second, first, multiset=multiset)
    assert f1(first, first, multiset=multiset) == 1.0


def test_rouge_l_by_hand() -> None:
    # longest common subsequence of "a b c d" and "a x c d e": a c d; precision 3/4, recall 3/5, F = 2 * 3 / (4 + 5)
    assert rouge_l("a b c d", "a x c d e") == pytest.approx(2 / 3)
    asked = sample("?", "nothing alike", references=("nothing alike", "he was running"))
    assert metric("rouge_l").score("he was run", asked) == 1.0
    assert metric("rouge_l", use_stemmer=False).score("he was run", asked) == pytest.approx(2 / 3)
    assert metric("rouge_l").score("кот", sample("?", "кот")) == 0.0
    assert metric("rouge_l", any_language=True).score("кот", sample("?", "кот")) == 1.0


def test_exact() -> None:
    asked = sample("?", "Lima", references=("Lima", "La Lima"))
    scores = [metric("exact").score(text, asked) for text in ("lima", " LIMA! ", "la  lima", "in Lima", "")]
    assert scores == [1.0, 1.0, 1.0, 0.0, 0.0]


def test_the_hook_knows_its_names_and_its_options() -> None:
    assert pfl_make_metric("bleu", {}) is None
    with pytest.raises(ValidationError, match="stemmer"):
        pfl_make_metric("rouge_l", {"stemmer": True})
    with pytest.raises(ValidationError, match="multiset"):
        pfl_make_metric("exact", {"multiset": True})


def test_importing_plugins_is_light() -> None:
    modules = ", ".join(f"pfl_benchmarks.{name}.plugin" for name in ("metrics", "folder", "sni"))
    heavy = "{'torch', 'transformers', 'rouge_score', 'numpy', 'PIL'}"
    code = f"import sys, {modules}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
