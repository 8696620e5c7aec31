"""Labels of the embedded benchmark: an oracle looks at the scenes and knows nothing of how they were made."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from itertools import islice

import pytest

from drake_synth_support import question, scenes
from pfl_benchmarks.drake_synth.dice import Dice
from pfl_benchmarks.drake_synth.drawing import (
    COLOURS,
    PLACES,
    SHAPES,
    SIZES,
    Obj,
    Scene,
)
from pfl_benchmarks.drake_synth.families import FAMILIES
from pfl_benchmarks.drake_synth.lexicons import LANGUAGES
from pfl_benchmarks.drake_synth.puzzles import Brief, Puzzle
from pfl_benchmarks.drake_synth.tasks import TEMPLATES, UNSEEN
from pfl_benchmarks.drake_synth.words import ASPECTS, MAKES, NUMBERS, PLAIN, Concept
from pfl_platform.data import FixedBenchmark, Sample

HUES = tuple(COLOURS)


def meaning(sample: Sample, group: str, kind: Concept) -> Callable[[str], int]:
    """Word -> concept, for one kind of words of a group."""
    names = {word: index for index, word in LANGUAGES[group].words[kind].items()}
    return lambda word: names[word]


def looks(scene: Scene) -> tuple[object, ...]:
    first = scene.objects[0]
    assert all((o.colour, o.shape, o.size) == (first.colour, first.shape, first.size) for o in scene.objects)
    return first.colour, first.shape, first.size, len(scene.objects)


def truth_of(sample: Sample, group: str, focus: Concept) -> str:
    """The right answer in plain words, from the scenes and the question (made-up focus words are looked up)."""
    view = scenes(sample)
    objects = view[0].objects
    text = question(sample).split("\n")[0]
    named = meaning(sample, group, focus)

    def colour(word: str) -> int:
        return named(word) if focus == "colour" else HUES.index(word)

    def shape(word: str) -> int:
        return named(word) if focus == "shape" else SHAPES.index(word)

    def only(found: list[Obj]) -> Obj:
        assert len(found) == 1
        return found[0]

    def say(held: bool) -> str:
        return "True" if held else "False"

    def found(pattern: str) -> re.Match[str] | None:
        return re.fullmatch(pattern, text)

    if m := found(r"What colour is the (\w+)\?|The (\w+) has which colour\?"):
        return HUES[only([o for o in objects if o.shape == shape(m[1] or m[2])]).colour]
    if m := found(r"What shape is the (\w+) thing\?"):
        return SHAPES[only([o for o in objects if o.colour == colour(m[1])]).shape]
    if m := found(r"What size is the (\w+) thing\?"):
        return SIZES[only([o for o in objects if o.colour == colour(m[1])]).size]
    if m := found(r"Describe the thing\."):
        return f"{HUES[only(list(objects)).colour]} {SHAPES[objects[0].shape]}"
    if m := found(r"There is a (\w+) (\w+)\.|Does the picture show a (\w+) (\w+)\?"):
        pair = (colour(m[1] or m[3]), shape(m[2] or m[4]))
        return say(any((o.colour, o.shape) == pair for o in objects))
    if m := found(r"How many (\w+) things are there\?"):
        return NUMBERS[sum(o.colour == colour(m[1]) for o in objects) - 1]
    if m := found(r"Where is the (\w+) thing\?"):
        return PLACES[only([o for o in objects if o.colour == colour(m[1])]).place]
    if m := found(r"Where is the (\w+)\?|In which corner is the (\w+)\?"):
        return PLACES[only([o for o in objects if o.shape == shape(m[1] or m[2])]).place]
    if m := found(r"The (\w+) thing is (left of|right of|above|below) the (\w+) thing\."):
        one, other = (only([o for o in objects if o.colour == colour(word)]).place for word in (m[1], m[3]))
        x, y = one % 2 - other % 2, one // 2 - other // 2
        assert (x == 0) != (y == 0)
        return say({"left of": x < 0, "right of": x > 0, "above": y < 0, "below": y > 0}[m[2]])
    if found(r"Which colour is most common\?|Most things have which colour\?"):
        (first, many), *rest = Counter(o.colour for o in objects).most_common()
        assert not rest or rest[0][1] < many
        return HUES[first]
    if m := found(r"(?:What|Which kind) is the (\w+) thing\?"):
        target = only([o for o in objects if o.colour == colour(m[1])])
        return MAKES[6 * target.size + target.shape]
    if m := found(r"The (\w+) thing is a (\w+)\."):
        target = only([o for o in objects if o.colour == colour(m[1])])
        return say(6 * target.size + target.shape == named(m[2]))
    if m := found(r"If a (\w+) thing is there say (\w+), else say (\w+)\.|Say (\w+) for a (\w+) thing, else (\w+)\."):
        word, yes, no = (m[1], m[2], m[3]) if m[1] else (m[5], m[4], m[6])
        return yes if any(o.colour == colour(word) for o in objects) else no
    if m := found(r"Both pictures have the same (\w+)\.|Do the pictures agree in (\w+)\?"):
        aspect = named(m[1] or m[2])
        return say(looks(view[0])[aspect] == looks(view[1])[aspect])
    if found(r"What changes between the pictures\?"):
        pairs = zip(looks(view[0]), looks(view[1]), strict=True)
        return " ".join(name for name, (one, other) in zip(ASPECTS, pairs, strict=True) if one != other)
    if m := found(r"The third picture fits the others by (\w+)\.|By (\w+), does the last picture fit\?"):
        values = [looks(scene)[named(m[1] or m[2])] for scene in view]
        assert values[0] == values[1]
        return say(values[2] == values[0])
    if m := found(r"Which picture has another (\w+)\?"):
        values = [looks(scene)[named(m[1])] for scene in view]
        odd = [i for i, value in enumerate(values) if values.count(value) == 1]
        assert len(odd) == 1
        return ("first", "second", "third", "fourth")[odd[0]]
    if m := found(r"Which picture shows a (\w+) (\w+)\?|In which picture is a (\w+) (\w+)\?"):
        pair = (colour(m[1] or m[3]), shape(m[2] or m[4]))
        right = [i for i, scene in enumerate(view) if any((o.colour, o.shape) == pair for o in scene.objects)]
        assert len(right) == 1
        return ("first", "second", "third", "fourth")[right[0]]
    if m := found(r"What colour did the (\w+) become\?|Which colour is new in the second picture\?"):
        new = [o for o in view[1].objects if o.colour not in {old.colour for old in objects}]
        assert m[1] is None or only(new).shape == shape(m[1])
        old = only([o for o in objects if o.place == only(new).place])
        assert (old.shape, old.size) == (new[0].shape, new[0].size)
        return HUES[new[0].colour]
    if m := found(r"Both pictures show a (\w+) thing\.|Is a (\w+) thing in both pictures\?"):
        return say(all(any(o.colour == colour(m[1] or m[2]) for o in scene.objects) for scene in view))
    if m := found(r"Which picture has more (\w+) things\?"):
        counts = [sum(o.colour == colour(m[1]) for o in scene.objects) for scene in view]
        assert counts[0] != counts[1]
        return "first" if counts[0] > counts[1] else "second"
    if m := found(r"How many (\w+) things are in both pictures together\?"):
        return NUMBERS[sum(o.colour == colour(m[1]) for scene in view for o in scene.objects) - 1]
    if found(r"The pictures count on\. How many things come next\?"):
        first, second = (len(scene.objects) for scene in view)
        assert abs(second - first) == 1
        return NUMBERS[2 * second - first - 1]
    if found(
        r"Take the colour of the first and the shape of the second picture\.|"
        r"Give the second thing the colour of the first\."
    ):
        return f"{HUES[only(list(objects)).colour]} {SHAPES[only(list(view[1].objects)).shape]}"
    raise AssertionError(f"the oracle does not know this question: {text}")


def in_language(answer: str, group: str, focus: Concept, *, loan: bool) -> str:
    """A plain answer with the focus' words replaced; with `loan` all but the first."""
    language = LANGUAGES[group]
    kinds = {PLAIN.word(focus, index): word for index, word in [*language.words[focus].items()][loan:]}
    return kinds.get(answer) or " ".join(kinds.get(word, word) for word in answer.split())


def test_labels_are_right(benchmark: FixedBenchmark) -> None:
    checked = 0
    plans = [
        (task, spec, template.group)
        for client, template in zip(benchmark.clients, TEMPLATES, strict=True)
        for task, spec in zip(client.tasks, template.tasks, strict=True)
    ]
    plans += [(task, spec, group) for task, (_, group, spec) in zip(benchmark.unseen, UNSEEN, strict=True)]
    for task, spec, group in plans:
        focus = FAMILIES[spec.family].focus
        for sample in [*islice(task.train, 60), *task.test]:
            expected = in_language(truth_of(sample, group, focus), group, focus, loan=spec.form == "open")
            if spec.form == "yes":
                expected = {"True": "yes", "False": "no"}[expected]
            assert sample.gold[-1] == expected, (task.name, question(sample), scenes(sample))
            checked += 1
    assert checked == 47 * 110


def test_wrong_options_are_wrong() -> None:
    """No family offers a second right answer: the answer stands once among all answers."""
    for family in FAMILIES.values():
        for index in range(60):
            dice = Dice("options", family.name, index)
            brief = Brief(
                dice, PLAIN, dice.pick(PLAIN.named(family.focus)), index % family.outcomes, family.wordings[0]
            )
            puzzle: Puzzle = family.make(brief)
            assert puzzle.answers.count(puzzle.answer) == 1
            assert puzzle.answer not in puzzle.near
            assert all(1 <= len(scene) <= 4 for scene in puzzle.scenes)


@pytest.mark.parametrize("name", ["same", "both", "rule", "verify_colour", "which_colour_3", "more"])
def test_without_the_word_the_pictures_do_not_tell_the_answer(name: str) -> None:
    """The best guess from how many things and how many agreeing aspects there are stays near chance."""
    family = FAMILIES[name]
    table: dict[tuple[object, ...], Counter[str]] = {}
    for index in range(3000):
        dice = Dice("hints", name, index)
        brief = Brief(dice, PLAIN, dice.pick(PLAIN.named(family.focus)), index % family.outcomes, family.wordings[0])
        puzzle = family.make(brief)
        first, last = puzzle.scenes[0], puzzle.scenes[-1]
        agreeing = sum(getattr(first[0], a) == getattr(last[0], a) for a in ("colour", "shape", "size"))
        numbers = tuple(len(scene) for scene in puzzle.scenes)
        common = len({o.colour for o in first} & {o.colour for o in last})
        hint = (numbers, common) if name != "same" else (agreeing + (len(first) == len(last)),)
        answer = puzzle.answer if name != "rule" else str(brief.outcome)
        table.setdefault(hint, Counter())[answer] += 1
    best = sum(counts.most_common(1)[0][1] for counts in table.values()) / 3000
    assert best < 1 / family.outcomes + 0.07
