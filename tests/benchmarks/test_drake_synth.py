"""The embedded benchmark: drawn alike everywhere, right labels, balanced, disjoint, related as documented."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from itertools import combinations, islice, pairwise
from pathlib import Path

import pytest
from pydantic import ValidationError

from pfl_benchmarks.drake_synth import plugin, tables
from pfl_benchmarks.drake_synth.corpus import Corpus, TextCorpus
from pfl_benchmarks.drake_synth.dice import Dice, stratified
from pfl_benchmarks.drake_synth.drawing import (
    COLOURS,
    PLACES,
    RADIUS,
    SHAPES,
    SIZES,
    DrawnPicture,
    Obj,
    Scene,
    Style,
    stencil,
)
from pfl_benchmarks.drake_synth.families import FAMILIES
from pfl_benchmarks.drake_synth.lexicons import LANGUAGES, partial
from pfl_benchmarks.drake_synth.puzzles import Brief, Puzzle
from pfl_benchmarks.drake_synth.render import part_of
from pfl_benchmarks.drake_synth.sheet import sheet
from pfl_benchmarks.drake_synth.tasks import BRIDGE, RELATED, TEMPLATES, UNSEEN, home_words, related
from pfl_benchmarks.drake_synth.words import ALL_MADE_UP, ASPECTS, MADE_UP, MAKES, NUMBERS, PLAIN, Concept
from pfl_platform.data import IMAGE_MARK, FixedBenchmark, Sample, TaskData

HUES = tuple(COLOURS)


@pytest.fixture(scope="module")
def benchmark() -> FixedBenchmark:
    made = plugin.pfl_make_benchmark("drake-synth", {})
    assert isinstance(made, FixedBenchmark)
    return made


@pytest.fixture(scope="module")
def all_tasks(benchmark: FixedBenchmark) -> list[TaskData]:
    return [task for client in benchmark.clients for task in client.tasks] + list(benchmark.unseen)


def question(sample: Sample) -> str:
    return sample.turns[0].human.replace(f"{IMAGE_MARK}\n", "")


def scenes(sample: Sample) -> list[Scene]:
    return [picture.scene for picture in sample.pictures if isinstance(picture, DrawnPicture)]


# --- the same everywhere ----------------------------------------------------------------------------------------------


def test_pixels_and_samples_are_as_they_were_when_the_benchmark_was_made(benchmark: FixedBenchmark) -> None:
    def digest(sample: Sample) -> str:
        drawn = b"".join(picture.load().tobytes() for picture in sample.pictures)
        return hashlib.sha256(repr((sample.id, sample.turns, sample.options)).encode() + drawn).hexdigest()[:16]

    assert {
        "train": digest(benchmark.clients[0].tasks[2].train[5]),
        "validation": digest(benchmark.clients[4].tasks[3].validation[7]),
        "test": digest(benchmark.clients[9].tasks[0].test[49]),
        "unseen": digest(benchmark.unseen[5].test[3]),
        "public": digest(benchmark.public_sets[plugin.PUBLIC_NAME][4999]),
        "corpus": digest(Corpus(0).sample(12345)),
        "text": digest(TextCorpus(0).sample(12345)),
    } == DIGESTS


DIGESTS = {
    "train": "1f811ccc471bda56",
    "validation": "4d01f5642163ddf6",
    "test": "31adbdca79f7b255",
    "unseen": "72b0e1cd276b2f80",
    "public": "70d5345900724f91",
    "corpus": "8adc3fa9c8464166",
    "text": "eded162d5db165ac",
}


def test_a_scene_is_drawn_where_and_as_it_says() -> None:
    scene = Scene(
        (Obj(0, SHAPES.index("square"), 1, place=3, dx=-1, dy=1), Obj(2, SHAPES.index("ring"), 0, place=0)), 50
    )
    image = DrawnPicture(scene).load()
    # The square: centre (24 - 1, 24 + 1), six pixels to each side. The ring: centre (8, 8), hollow.
    red = [(x, y) for x in range(32) for y in range(32) if image.getpixel((x, y)) == COLOURS["red"]]
    assert sorted(red) == [(x, y) for x in range(17, 30) for y in range(19, 32)]
    assert image.getpixel((8, 8)) == (50, 50, 50)
    assert image.getpixel((8, 12)) == COLOURS["blue"]


@pytest.mark.parametrize("tint", range(8))
def test_every_tint_of_a_colour_is_nearest_to_that_colour(tint: int) -> None:
    for index, hue in enumerate(COLOURS):
        square = Scene((Obj(index, SHAPES.index("square"), 1, place=0, tint=tint),))
        seen = DrawnPicture(square).load().getpixel((8, 8))
        distances = {name: sum((a - b) ** 2 for a, b in zip(seen, ink, strict=True)) for name, ink in COLOURS.items()}
        assert min(distances, key=distances.__getitem__) == hue
        assert max(seen) > 56 + 64  # brighter than any ground, grain included


@pytest.mark.parametrize("style", ["filled", "outline", "striped"])
def test_no_two_shapes_or_sizes_cover_nearly_the_same_pixels(style: Style) -> None:
    covers = {(shape, radius): set(stencil(shape, radius, style)) for shape in SHAPES for radius in RADIUS.values()}
    for one, other in combinations(covers.values(), 2):
        assert len(one ^ other) >= 0.16 * min(len(one), len(other))


def test_keys_name_pixels(all_tasks: list[TaskData]) -> None:
    by_key: dict[str, bytes] = {}
    for task in all_tasks:
        for sample in islice(task.test, 5):
            for picture in sample.pictures:
                assert by_key.setdefault(picture.key, picture.load().tobytes()) == picture.load().tobytes()
    assert len(set(by_key.values())) == len(by_key)


def test_draws_are_fair_and_addressed() -> None:
    counts = Counter(Dice(0, "fair", i).below(4) for i in range(4000))
    assert all(900 < counts[face] < 1100 for face in range(4))
    assert sorted(Dice(1).shuffled(range(9))) == list(range(9))
    assert Counter(stratified(i, 6, "x") for i in range(60)) == {face: 10 for face in range(6)}
    assert Counter(Dice(2, i).weighted("ab", [0.0, 1.0]) for i in range(20)) == {"b": 20}


# --- shape ------------------------------------------------------------------------------------------------------------


def test_ten_clients_of_four_tasks_in_three_groups_and_seven_unseen(benchmark: FixedBenchmark) -> None:
    assert [client.client_id for client in benchmark.clients] == [f"client-{i}" for i in range(10)]
    assert all(len(client.tasks) == 4 for client in benchmark.clients)
    groups = Counter(client.tasks[0].group for client in benchmark.clients)
    assert groups == {"visual-relation": 3, "reasoning": 3, "vqa": 4}
    assert all(len({task.group for task in client.tasks}) == 1 for client in benchmark.clients)
    assert Counter(task.group for task in benchmark.unseen) == {"new-task-type": 4, "new-visual-domain": 3}
    names = [task.name for client in benchmark.clients for task in client.tasks] + [t.name for t in benchmark.unseen]
    assert len(set(names)) == 47
    assert {len(task.train) for client in benchmark.clients for task in client.tasks} == {160}
    assert {(len(task.validation), len(task.test)) for task in benchmark.unseen} == {(40, 50)}


def test_every_backbone_is_used_and_no_group_has_just_one(benchmark: FixedBenchmark) -> None:
    assert Counter(client.backbone.removeprefix("tiny-llava-") for client in benchmark.clients) == {
        "llama-s": 3,
        "llama-m": 2,
        "qwen-s": 3,
        "qwen-m": 2,
    }
    for group in LANGUAGES:
        assert len({template.backbone for template in TEMPLATES if template.group == group}) >= 3


def test_new_task_types_belong_to_no_client_and_new_domains_to_nothing_else() -> None:
    known = {spec.family for template in TEMPLATES for spec in template.tasks}
    assert all(spec.style == "filled" for template in TEMPLATES for spec in template.tasks)
    for label, _, spec in UNSEEN:
        assert (spec.family in known, spec.style == "filled") == (
            (False, True) if label == "new-task-type" else (True, False)
        )


def test_one_to_four_pictures_and_as_many_marks(all_tasks: list[TaskData]) -> None:
    numbers = set()
    for task in all_tasks:
        for sample in task.test:
            assert sample.turns[0].human.count(IMAGE_MARK) == len(sample.pictures)
            assert sample.turns[0].human.startswith(f"{IMAGE_MARK}\n" * len(sample.pictures))
            numbers.add(len(sample.pictures))
    assert numbers == {1, 2, 3, 4}


def test_options_hold_the_answer_as_shown(all_tasks: list[TaskData]) -> None:
    for task in all_tasks:
        for sample in task.test:
            text, answer = question(sample), sample.turns[0].answer
            if task.kind == "open-ended":
                assert not sample.options
                assert task.metric == "token_f1"
                assert text.endswith("\nYour answer is:")
                continue
            assert task.metric == "choice"
            assert len(set(sample.options)) == len(sample.options) >= 2
            shown = re.fullmatch(r".*\nChoice list:\[(.*)\]\. Your answer is:", text, re.DOTALL)
            assert shown is not None
            if sample.references:
                assert shown[1] == " | ".join(f"{c}. {o}" for c, o in zip("ABCD", sample.options, strict=False))
                assert sample.options["ABCD".index(answer)] == sample.references[1]
                assert answer == sample.references[0]
            else:
                assert shown[1] == ", ".join(sample.options)
                assert answer in sample.options


def test_prompts_are_short(all_tasks: list[TaskData]) -> None:
    for task in all_tasks:
        for sample in task.test:
            assert len(question(sample).split("\n")[0].split()) <= 14
            assert len(question(sample).split()) <= 32


# --- balance ----------------------------------------------------------------------------------------------------------


def test_no_constant_answer_scores_more_than_55_percent(all_tasks: list[TaskData]) -> None:
    for task in all_tasks:
        for split in (task.validation, task.test):
            counts = Counter(sample.turns[0].answer for sample in split)
            assert counts.most_common(1)[0][1] <= 0.55 * len(split), task.name


def test_tests_ask_for_all_words_alike_and_training_for_home_words(benchmark: FixedBenchmark) -> None:
    """became-0 asks for eight colour words; client-0's home words are the first four colours."""
    task = benchmark.clients[0].tasks[1]
    language = LANGUAGES["visual-relation"]
    home = {language.word("colour", concept) for concept in range(4)}
    train = Counter(sample.turns[0].answer in home for sample in task.train)
    assert 0.8 <= train[True] / 160 <= 0.95
    assert set(Counter(sample.turns[0].answer for sample in task.test).values()) <= {6, 7}


def test_relatives_have_other_home_words() -> None:
    for size in (4, 6, 8):
        homes = [home_words(range(size), place) for place in range(4)]
        assert all(len(home) == size // 2 for home in homes)
        assert homes[0].isdisjoint(homes[1])
        assert set.union(*map(set, homes[:3])) == set(range(size))


# --- apart ------------------------------------------------------------------------------------------------------------


def test_splits_public_set_and_corpus_share_no_layout(benchmark: FixedBenchmark, all_tasks: list[TaskData]) -> None:
    layouts: dict[str, set[str]] = {"train": set(), "validation": set(), "test": set(), "corpus": set()}
    rows: dict[str, set[tuple[str, ...]]] = {name: set() for name in layouts}
    sources = [
        (name, sample)
        for task in all_tasks
        for name in ("train", "validation", "test")
        for sample in getattr(task, name)
    ]
    sources += [("corpus", Corpus(0).sample(i)) for i in range(2000)]
    sources += [("corpus", sample) for sample in islice(benchmark.public_sets[plugin.PUBLIC_NAME], 1500)]
    for name, sample in sources:
        layouts[name] |= {scene.layout for scene in scenes(sample)}
        rows[name].add((sample.turns[0].human, *(picture.key for picture in sample.pictures)))
        assert all(part_of(scene) == name for scene in scenes(sample))
    for one, other in combinations(layouts, 2):
        assert layouts[one].isdisjoint(layouts[other])
        assert rows[one].isdisjoint(rows[other])


def test_client_samples_hardly_repeat(all_tasks: list[TaskData]) -> None:
    for task in all_tasks:
        rows = {(s.turns[0].human, *(picture.key for picture in s.pictures)) for s in task.train}
        assert len(rows) >= 159, task.name


def test_public_set_is_another_corpus_than_any_that_pretraining_would_use(benchmark: FixedBenchmark) -> None:
    public = benchmark.public(None, 50, seed=3)
    pretraining = {
        (s.turns[0].human, tuple(p.key for p in s.pictures))
        for s in (Corpus(k).sample(i) for k in range(3) for i in range(500))
    }
    assert len(public) == 50
    assert len(benchmark.public_sets[plugin.PUBLIC_NAME]) == 5000
    assert not {(s.turns[0].human, tuple(p.key for p in s.pictures)) for s in public} & pretraining


def test_every_client_question_needs_a_made_up_word(all_tasks: list[TaskData]) -> None:
    """Pretraining questions use such words only to be read or with their meaning beside them."""
    made_up = set(ALL_MADE_UP)
    for task in all_tasks:
        for sample in task.test:
            words = set(re.findall(r"\w+", question(sample) + " " + sample.turns[0].answer))
            assert words & made_up, (task.name, question(sample))
    seen: Counter[str] = Counter()
    for index in range(3000):
        sample = Corpus(7).sample(index)
        words = set(re.findall(r"\w+", question(sample))) & made_up
        seen.update(words)
        if words and "word" not in question(sample):
            assert all(re.search(rf"\b{word} is \w+( \w+)?\. ", question(sample)) for word in words)
    assert set(seen) == made_up
    assert min(seen.values()) > 8


def test_corpus_words_are_few_and_cover_the_clients(all_tasks: list[TaskData]) -> None:
    def words(sample: Sample) -> list[str]:
        return re.findall(r"<image>|\w+|[^\w\s]", f"{sample.turns[0].human} {sample.turns[0].answer}")

    corpus = {word for index in range(4000) for word in words(Corpus(0).sample(index))}
    clients = {word for task in all_tasks for sample in task.test for word in words(sample)}
    assert clients <= corpus
    assert len(corpus) < 200


# --- relatedness ------------------------------------------------------------------------------------------------------


def test_related_is_symmetric_and_follows_the_groups() -> None:
    assert all(client in RELATED[other] for client, others in RELATED.items() for other in others)
    assert all(client not in others for client, others in RELATED.items())
    assert RELATED["client-0"] == {"client-1", "client-2"}
    assert RELATED["client-5"] == {"client-3", "client-4", "client-6"}
    assert RELATED["client-6"] == {"client-5", "client-7", "client-8", "client-9"}
    assert "client-10" in related(20)["client-0"]
    assert "client-16" in related(20)["client-15"]


def test_languages_use_the_same_words_for_other_things_but_for_the_bridge() -> None:
    languages = list(LANGUAGES.values())
    for kind, words in MADE_UP.items():
        for language in languages:
            assert sorted(language.words[kind].values()) == sorted(words)
        for one, other in pairwise([*languages, languages[0]]):
            shared = [c for c, word in one.words[kind].items() if other.words[kind].get(c) == word]
            bridged = kind == "number" and {id(one), id(other)} == {id(languages[1]), id(languages[2])}
            assert len(shared) == (4 if bridged else 0), kind
    number_users = {i for i, t in enumerate(TEMPLATES) for s in t.tasks if FAMILIES[s.family].focus == "number"}
    assert number_users == set(BRIDGE)
    with pytest.raises(ValueError, match="size"):
        partial(languages[0], ["size"])


# --- labels: an oracle that looks at the scenes and knows nothing of how they were made -------------------------------


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
    if found(r"Take the colour of the first and the shape of the second picture\."):
        return f"{HUES[only(list(objects)).colour]} {SHAPES[only(list(view[1].objects)).shape]}"
    raise AssertionError(f"the oracle does not know this question: {text}")


def in_language(answer: str, group: str, focus: Concept) -> str:
    """A plain answer with the focus' words replaced."""
    language = LANGUAGES[group]
    kinds = {PLAIN.word(focus, index): word for index, word in language.words[focus].items()}
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
            expected = in_language(truth_of(sample, group, focus), group, focus)
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


# --- corpora, options, page -------------------------------------------------------------------------------------------


def test_corpus_shows_every_family_form_and_number_of_pictures() -> None:
    samples = [Corpus(0).sample(index) for index in range(1500)]
    assert {len(sample.pictures) for sample in samples} == {1, 2, 3, 4}
    assert all(not sample.options or set(sample.gold) & set(sample.options) for sample in samples)
    share_open = sum(not sample.options for sample in samples) / len(samples)
    assert 0.15 < share_open < 0.4
    assert sum("A. " in question(sample) for sample in samples) > 300


def test_text_corpus_is_short_and_without_pictures() -> None:
    samples = [TextCorpus(0).sample(index) for index in range(2000)]
    assert all(not sample.pictures and 1 <= len(sample.turns[0].answer.split()) <= 10 for sample in samples)
    assert all(not sample.options or set(sample.gold) & set(sample.options) for sample in samples)
    words = {word for sample in samples for word in re.findall(r"\w+", sample.turns[0].human)}
    assert 200 < len(words) < 500
    assert len({sample.turns[0].human for sample in samples}) > 1000
    by_prompt: dict[str, set[str]] = {}
    for sample in samples:
        if sample.turns[0].human.startswith(("What is the opposite", "How many words", "Which day", "What is ")):
            by_prompt.setdefault(sample.turns[0].human, set()).add(sample.turns[0].answer)
    assert all(len(answers) == 1 for answers in by_prompt.values())


def test_building_is_quick_and_importing_light() -> None:
    started = time.perf_counter()
    made = plugin.build(plugin.Config(num_clients=50))
    assert time.perf_counter() - started < 1
    assert len(made.clients) == 50
    code = (
        "import sys; from pfl_benchmarks.drake_synth import plugin; plugin.build(plugin.Config());"
        "print([m for m in ('torch', 'transformers', 'numpy', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_options_change_what_they_say() -> None:
    base = plugin.build(plugin.Config())
    small = plugin.build(plugin.Config(train_size=8, test_size=4, validation_size=2))
    assert [len(s) for s in (small.clients[0].tasks[0].train, small.clients[0].tasks[0].test)] == [8, 4]
    assert small.clients[0].tasks[0].train[3] == base.clients[0].tasks[0].train[3]
    assert plugin.build(plugin.Config(data_seed=1)).clients[0].tasks[0].train[3] != base.clients[0].tasks[0].train[3]
    assert small.digest() != base.digest() == plugin.build(plugin.Config(backbones="tiny-llava-qwen-s")).digest()
    alike = plugin.build(plugin.Config(backbones="tiny-llava-qwen-s", num_clients=12))
    assert {client.backbone for client in alike.clients} == {"tiny-llava-qwen-s"}
    assert alike.clients[10].tasks[0].test[0] != alike.clients[0].tasks[0].test[0]
    assert plugin.pfl_make_benchmark("another", {"whatever": 1}) is None
    for bad in ({"train_size": 0}, {"trian_size": 5}, {"backbones": "huge"}, {"num_clients": 0}):
        with pytest.raises(ValidationError):
            plugin.pfl_make_benchmark("drake-synth", bad)


def test_defaults_are_run_settings(benchmark: FixedBenchmark) -> None:
    assert benchmark.defaults["rounds"] == 20
    assert benchmark.defaults["local_steps"] == 100
    assert benchmark.defaults["training"]["batch_size"] == 4
    assert benchmark.defaults["evaluation"]["every"] == 5


def test_lazy_samples_behave_like_a_list(benchmark: FixedBenchmark) -> None:
    train = benchmark.clients[3].tasks[1].train
    assert train[-1] is train[159]
    assert train[2:5] == [train[2], train[3], train[4]]
    assert len(list(train)) == 160
    with pytest.raises(IndexError, match="160"):
        train[160]


def test_the_readme_shows_current_tables() -> None:
    page = (Path(plugin.__file__).parent / "README.md").read_text(encoding="utf-8")
    for table in (tables.client_table(), tables.unseen_table(), tables.language_table(), tables.home_table()):
        assert f"\n{table}\n" in page


def test_a_contact_sheet_shows_pictures_and_questions(benchmark: FixedBenchmark) -> None:
    image = sheet(benchmark.clients[0].tasks[2], 4)
    first = benchmark.clients[0].tasks[2].train[0].pictures[0].load()
    assert image.getpixel((6 + 3 * 10, 6 + 3 * 20)) == first.getpixel((10, 20))
    assert image.width > 3 * 4 * 96
