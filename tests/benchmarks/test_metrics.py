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
from pfl_platform.evaluation.surfaces import Metric, Prediction

ANIMALS = ("deer", "horse", "bird", "frog")
LETTERED = "<image>\nWhich? Choice list:[A. deer | B. horse | C. bird | D. frog]. Your answer is:"


def sample(question: str, gold: str, options: tuple[str, ...] = (), references: tuple[str, ...] = ()) -> Sample:
    return Sample("0", (Turn(question, gold),), (), options, references)


def metric(name: str, **options: object) -> Metric:
    made = pfl_make_metric(name, options)
    assert made is not None
    assert made.name == name
    return made


@pytest.mark.parametrize("module", ["text", "exact", "token_f1", "rouge_l", "choice", "matthews", "pearson_spearman"])
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


def cell(name: str, items: list[tuple[str, str]], options: tuple[str, ...] = (), **given: object) -> float:
    """The total of (prediction, gold) pairs."""
    chosen = metric(name, **given)
    samples = [sample("?", gold, options) for _, gold in items]
    made = [
        Prediction(str(k), text, chosen.score(text, asked))
        for k, ((text, _), asked) in enumerate(zip(items, samples, strict=True))
    ]
    return chosen.total(made, samples)


def test_a_total_is_the_mean_unless_the_metric_says_otherwise() -> None:
    assert cell("exact", [("a", "a"), ("b", "a"), ("a", "a"), ("", "a")]) == 0.5


WORDS = ("no", "yes")


def test_matthews_by_hand() -> None:
    """6 right yes, 1 false yes, 2 missed, 3 right no: (6 * 3 - 1 * 2) / sqrt(7 * 8 * 4 * 5) = 16 / sqrt(1120)."""
    items = [("yes", "yes")] * 6 + [("yes", "no")] + [("No.", "yes")] * 2 + [("no", "no")] * 3
    assert cell("matthews", items, WORDS) == pytest.approx(16 / 1120**0.5)
    turned = [("no" if text == "yes" else "yes", gold) for text, gold in items]
    assert cell("matthews", turned, WORDS) == pytest.approx(-16 / 1120**0.5)
    assert cell("matthews", [(gold, gold) for _, gold in items], WORDS) == pytest.approx(1.0)


def test_matthews_where_nothing_varies_is_zero() -> None:
    assert cell("matthews", [("yes", "yes"), ("yes", "no")], WORDS) == 0.0
    assert cell("matthews", [("yes", "yes"), ("no", "yes")], WORDS) == 0.0
    assert cell("matthews", [("well", "yes"), ("", "no")], WORDS) == 0.0  # no answer at all is not the wrong one


def test_an_answer_that_names_no_option_is_a_class_of_its_own() -> None:
    """With classes yes 1, no 0, none -1, from the definition for many classes: (c s - sum p t) over the two roots."""
    items = [("yes", "yes"), ("no", "no"), ("maybe", "yes"), ("no", "no")]
    # c = 3 right of s = 4; predicted yes 1, no 2, none 1; right yes 2, no 2.
    found = (3 * 4 - (1 * 2 + 2 * 2)) / ((16 - (1 + 4 + 1)) ** 0.5 * (16 - (4 + 4)) ** 0.5)
    assert cell("matthews", items, WORDS) == pytest.approx(found)
    assert metric("matthews").score("maybe", sample("?", "yes", WORDS)) == 0.0


def test_pearson_and_spearman_by_hand() -> None:
    """x = 1, 2, 6 and y = 0, 3, 3 (ties share rank 2.5): Pearson 6 / sqrt(14 * 6), Spearman 1.5 / sqrt(2 * 1.5)."""
    items = [("1", "0.0"), ("2.0", "3.0"), ("It is 6", "3.0")]
    assert cell("pearson-spearman", items) == pytest.approx((6 / 84**0.5 + 1.5 / 3**0.5) / 2)
    mirrored = [(str(-float(text.split()[-1])), gold) for text, gold in items]
    assert cell("pearson-spearman", mirrored) == pytest.approx(-(6 / 84**0.5 + 1.5 / 3**0.5) / 2)


def test_answers_without_a_number_count_as_minus_one() -> None:
    items = [("1", "1.0"), ("none", "2.0"), ("4", "4.5")]
    assert cell("pearson-spearman", items) == cell("pearson-spearman", [("1", "1.0"), ("-1", "2.0"), ("4", "4.5")])
    assert cell("pearson-spearman", [("x", "1.0"), ("y", "2.0")]) == 0.0
    assert cell("pearson-spearman", [("3", "1.0")]) == 0.0


def test_an_items_own_score_is_nearness() -> None:
    asked = sample("?", "4.0")
    scores = [metric("pearson-spearman").score(text, asked) for text in ("4.0", "3", "9.5", "nothing")]
    assert scores == [1.0, pytest.approx(0.8), 0.0, 0.0]
    assert metric("pearson-spearman", scale=2.0).score("3", asked) == 0.5


@given(st.lists(st.tuples(st.sampled_from(["no", "yes", "x"]), st.sampled_from(WORDS)), min_size=1, max_size=20))
def test_matthews_lies_between_its_bounds_and_knows_no_order(items: list[tuple[str, str]]) -> None:
    value = cell("matthews", items, WORDS)
    assert -1.0 - 1e-12 <= value <= 1.0 + 1e-12
    assert cell("matthews", items[::-1], WORDS) == pytest.approx(value)
