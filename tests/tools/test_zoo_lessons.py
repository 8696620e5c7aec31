"""What the tiny backbones are taught is true: an oracle reads each question and looks at the scenes."""

from __future__ import annotations

import importlib
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pfl_benchmarks.drake_synth.drawing import COLOURS, PLACES, SHAPES, SIZES, DrawnPicture, Obj
from pfl_benchmarks.drake_synth.puzzles import ORDINALS, TRUTH
from pfl_benchmarks.drake_synth.words import ASPECTS, NUMBERS
from pfl_platform.data import IMAGE_MARK, Sample

HUES = tuple(COLOURS)
Things = Sequence[Sequence[Obj]]


@pytest.fixture
def lessons(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Any]:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "tools"))
    for name in [name for name in sys.modules if name.startswith("zoo_")]:
        monkeypatch.delitem(sys.modules, name)
    return lambda module, name: getattr(importlib.import_module(module), name)


def hue(thing: Obj) -> str:
    return HUES[thing.colour]


def make(thing: Obj) -> str:
    return f"{SIZES[thing.size]} {SHAPES[thing.shape]}"


def name(thing: Obj) -> str:
    return f"{hue(thing)} {SHAPES[thing.shape]}"


def of(things: Sequence[Obj], word: str) -> Obj:
    """The only thing of a colour or of a shape."""
    (found,) = [thing for thing in things if word in (hue(thing), SHAPES[thing.shape])]
    return found


def inked(things: Sequence[Obj], colour: str) -> int:
    return sum(hue(thing) == colour for thing in things)


def aspect(things: Sequence[Obj], word: str) -> int:
    looks = {(thing.colour, thing.shape, thing.size, len(things)) for thing in things}
    assert len(looks) == 1
    return looks.pop()[ASPECTS.index(word)]


def truth(held: bool) -> str:
    return TRUTH[not held]


def odd(values: Sequence[int]) -> str:
    (place,) = [place for place, value in enumerate(values) if values.count(value) == 1]
    return ORDINALS[place]


def most(things: Sequence[Obj]) -> str:
    (first, many), *rest = Counter(map(hue, things)).most_common()
    assert not rest or rest[0][1] < many
    return first


def beside(things: Sequence[Obj], one: str, relation: str, other: str) -> str:
    here, there = of(things, one).place, of(things, other).place
    x, y = here % 2 - there % 2, here // 2 - there // 2
    assert (x == 0) != (y == 0)
    return truth({"left of": x < 0, "right of": x > 0, "above": y < 0, "below": y > 0}[relation])


def changed(v: Things) -> str:
    (word,) = [word for word in ASPECTS if aspect(v[0], word) != aspect(v[1], word)]
    return word


def became(v: Things) -> str:
    (new,) = {thing.colour for thing in v[1]} - {thing.colour for thing in v[0]}
    return HUES[new]


ORACLE: tuple[tuple[str, Callable[..., str]], ...] = (
    (r"(?:What colour is the (\w+)|The (\w+) has which colour)\?", lambda v, w: hue(of(v[0], w))),
    (r"(?:What shape is the (\w+) thing|The (\w+) thing has which shape)\?", lambda v, w: SHAPES[of(v[0], w).shape]),
    (r"(?:What size is the (\w+) thing|Is the (\w+) thing small or big)\?", lambda v, w: SIZES[of(v[0], w).size]),
    (r"(?:Where|In which corner) is the (\w+)(?: thing)?\?", lambda v, w: PLACES[of(v[0], w).place]),
    (r"What is (top \w+|bottom \w+)\?", lambda v, p: name(*[t for t in v[0] if PLACES[t.place] == p])),
    (r"What is (top \w+|bottom \w+) in the (\w+) picture\?",
     lambda v, p, n: name(*[t for t in v[ORDINALS.index(n)] if PLACES[t.place] == p])),
    (r"(?:What|Which kind) is the (\w+) thing\?", lambda v, w: make(of(v[0], w))),
    (r"(?:The (\w+) thing is|Is the (\w+) thing) a ((?:small|big) \w+)[.?]",
     lambda v, w, m: truth(make(of(v[0], w)) == m)),
    (r"(?:There is|Does the picture show) a (\w+ \w+)[.?]", lambda v, n: truth(n in map(name, v[0]))),
    (r"(?:How many (\w+) things are there\?|Count the (\w+) things\.)", lambda v, w: NUMBERS[inked(v[0], w) - 1]),
    (r"The (\w+) thing is (left of|right of|above|below) the (\w+) thing\.", lambda v, a, r, b: beside(v[0], a, r, b)),
    (r"If a (\w+) thing is there say (\w+), else say (\w+)\.", lambda v, w, yes, no: yes if inked(v[0], w) else no),
    (r"Say (\w+) for a (\w+) thing, else (\w+)\.", lambda v, yes, w, no: yes if inked(v[0], w) else no),
    (r"Which colour is most common\?|Most things have which colour\?", lambda v: most(v[0])),
    (r"Describe the thing\.|What is shown\?", lambda v: name(*v[0])),
    (r"(?:Both pictures have the same|Do the pictures agree in) (\w+)[.?]",
     lambda v, a: truth(aspect(v[0], a) == aspect(v[1], a))),
    (r"What changes between the pictures\?|In what do the pictures differ\?", changed),
    (r"(?:The third picture fits the others by (\w+)\.|By (\w+), does the last picture fit\?)",
     lambda v, a: truth(aspect(v[0], a) == aspect(v[1], a) == aspect(v[2], a))),
    (r"Which picture (?:has another|is odd by) (\w+)\?", lambda v, a: odd([aspect(things, a) for things in v])),
    (r"(?:Which picture shows|In which picture is) a (\w+ \w+)\?",
     lambda v, n: ORDINALS[[n in map(name, things) for things in v].index(True)]),
    (r"(?:Both pictures show|Is) a (\w+) thing(?: in both pictures)?[.?]",
     lambda v, w: truth(all(inked(things, w) for things in v))),
    (r"(?:Which picture has more (\w+) things|More (\w+) things are in which picture)\?",
     lambda v, w: ORDINALS[inked(v[0], w) < inked(v[1], w)]),
    (r"(?:How many (\w+) things are in both pictures together\?|Add the (\w+) things of both pictures\.)",
     lambda v, w: NUMBERS[inked(v[0], w) + inked(v[1], w) - 1]),
    (r"Take the colour of the first and the shape of the second picture\.|Give the second thing the colour of the .*",
     lambda v: f"{hue(*v[0])} {SHAPES[v[1][0].shape]}"),
    (r"What colour did the \w+ become\?|Which colour is new in the second picture\?", became),
    (r"The pictures count on\. How many things come next\?|How many things would come next\?",
     lambda v: NUMBERS[2 * len(v[1]) - len(v[0]) - 1]),
)  # fmt: skip
"""Pattern of a question, and the answer from the pictures' things and the pattern's words."""


def answers(sample: Sample) -> list[tuple[str, str, str]]:
    """(question, answer given, true answer) of each turn."""
    view = [picture.scene.objects for picture in sample.pictures if isinstance(picture, DrawnPicture)]
    found = []
    for turn in sample.turns:
        text = re.sub(rf"^(?:(?:\w+: )?{IMAGE_MARK}\n)+", "", turn.human).split("\n")[0]
        (hit,) = [(rule, match) for pattern, rule in ORACLE if (match := re.fullmatch(pattern, text))]
        rule, match = hit
        right = rule(view, *(word for word in match.groups() if word is not None))
        found.append((text, {"yes": "True", "no": "False"}.get(turn.answer, turn.answer), right))
    return found


@pytest.mark.parametrize(
    ("module", "kind", "least"),
    [("zoo_quizzes", "Lookups", 2.5), ("zoo_drills", "Drills", 5.0), ("zoo_quizzes", "Quizzes", 3.0)],
)
def test_lessons_are_true(lessons: Callable[[str, str], Any], module: str, kind: str, least: float) -> None:
    source = lessons(module, kind)(0, 0.5)
    said = [turn for index in range(400) for turn in answers(source.sample(index))]
    assert [turn for turn in said if turn[1] != turn[2]] == []
    assert len(said) >= least * 400
    assert source.sample(7) == lessons(module, kind)(0, 0.5).sample(7)


def test_drills_ask_one_kind_of_question_evenly(lessons: Callable[[str, str], Any]) -> None:
    """A judgement is true about as often as not, and a picture's place in the row does not give it away."""
    said = [turn for index in range(800) for turn in answers(lessons("zoo_drills", "Drills")(1, 1.0).sample(index))]
    judged = Counter(answer for _, answer, _ in said if answer in TRUTH)
    assert 0.4 < judged["True"] / judged.total() < 0.65
    placed = Counter(answer for text, answer, _ in said if re.match(r"Which picture shows|In which", text))
    assert min(placed[word] for word in ORDINALS[:3]) > 0.2 * placed.total()


def test_the_named_kind_is_the_only_or_the_biggest_thing(lessons: Callable[[str, str], Any]) -> None:
    corpus, kinds = lessons("zoo_kinds", "Kinds")(1), lessons("zoo_kinds", "KINDS")
    samples = [corpus.sample(index) for index in range(400)]
    assert len(set(kinds)) == len(kinds) == 96
    styles: Counter[str] = Counter()
    for sample in samples:
        (picture,) = sample.pictures
        assert isinstance(picture, DrawnPicture)
        big = SIZES.index("big")
        things = list(picture.scene.objects)
        found = things[0] if len(things) == 1 else next(thing for thing in things if thing.size == big)
        assert len(things) == 1 or sum(thing.size == big for thing in things) == 1
        assert sample.turns[0].answer == f"{SIZES[found.size]} {name(found)}"
        assert sample.options == kinds
        styles[picture.scene.style] += 1
    assert min(styles.values()) > 70
    assert 150 < sum(len(sample.pictures[0].scene.objects) == 1 for sample in samples) < 250
