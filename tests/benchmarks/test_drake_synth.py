"""The embedded benchmark: drawn alike everywhere, balanced, disjoint, related as documented."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from itertools import combinations, islice, pairwise

import pytest

from drake_synth_support import question, scenes
from pfl_benchmarks.drake_synth import plugin
from pfl_benchmarks.drake_synth.corpus import Corpus, TextCorpus
from pfl_benchmarks.drake_synth.dice import Dice, stratified
from pfl_benchmarks.drake_synth.drawing import (
    COLOURS,
    RADIUS,
    SHAPES,
    DrawnPicture,
    Obj,
    Scene,
    Style,
    stencil,
)
from pfl_benchmarks.drake_synth.families import FAMILIES
from pfl_benchmarks.drake_synth.lexicons import LANGUAGES, partial
from pfl_benchmarks.drake_synth.render import part_of
from pfl_benchmarks.drake_synth.tasks import BRIDGE, RELATED, TEMPLATES, UNSEEN, home_words, related
from pfl_benchmarks.drake_synth.words import ALL_MADE_UP, MADE_UP
from pfl_platform.data import IMAGE_MARK, FixedBenchmark, Sample, TaskData

HUES = tuple(COLOURS)


@pytest.fixture(scope="module")
def all_tasks(benchmark: FixedBenchmark) -> list[TaskData]:
    return [task for client in benchmark.clients for task in client.tasks] + list(benchmark.unseen)


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
    "train": "7c8f9baa89e04887",
    "validation": "ffbae49f187475c6",
    "test": "1cf2d552406b8180",
    "unseen": "72b0e1cd276b2f80",
    "public": "37301d4fcb39068f",
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
            lines = sample.turns[0].human.split("\n")[: len(sample.pictures)]
            ordinals = ["first: ", "second: ", "third: ", "fourth: "] if len(lines) > 1 else [""]
            assert lines == [f"{ordinal}{IMAGE_MARK}" for ordinal in ordinals[: len(lines)]]
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
        plain = []
        for sample in task.test:
            words = set(re.findall(r"\w+", question(sample) + " " + sample.turns[0].answer))
            if not words & made_up:
                plain.append(sample.turns[0].answer)
        if task.kind == "open-ended":  # one word of the kind stays plain, and is asked for as often as the others
            kinds = {"aspect": 4, "number": 4, "shape": 6, "make": 6, "colour": 8}
            share = len(plain) / len(task.test)
            assert any(abs(share - 1 / size) <= 1 / len(task.test) for size in kinds.values()), (task.name, share)
            assert len({answer.split()[0] for answer in plain}) == 1
        else:
            assert not plain, (task.name, plain)
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
