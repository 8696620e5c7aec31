"""Who has which tasks, and how a task draws its samples.

A task is a question family seen through its group's language. In training a client meets half of the words (its home
words) often and the rest rarely; its relatives have other home words. Validation and test ask for all words alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from pfl_benchmarks.drake_synth.dice import Address, Dice, stratified
from pfl_benchmarks.drake_synth.drawing import Style
from pfl_benchmarks.drake_synth.families import FAMILIES
from pfl_benchmarks.drake_synth.lazy import LazySamples
from pfl_benchmarks.drake_synth.lexicons import LANGUAGES, partial
from pfl_benchmarks.drake_synth.puzzles import Brief, Family
from pfl_benchmarks.drake_synth.render import Form, asked, placed, sample_of
from pfl_benchmarks.drake_synth.words import PLAIN, Lexicon
from pfl_platform.data import ClientData, Sample, TaskData

Split = Literal["train", "validation", "test"]
HOME_SHARE = 0.88
"""Share of a client's training questions that ask about its home words."""

SLOTS = 12
"""The answer's place among its options is balanced over runs of twelve samples, whether they are two, three or four."""


@dataclass(frozen=True)
class Spec:
    """One task of a client: a family, the form and wording of its questions, and what unseen tasks change.

    The family's focus is what made-up words name; everything else is plain English.
    """

    family: str
    form: Form
    wording: int = 0
    style: Style = "filled"

    @property
    def name(self) -> str:
        return self.family.replace("_", "-")


@dataclass(frozen=True)
class Template:
    """A client: group, place in it (which decides the home words), backbone, and tasks in order of arrival."""

    group: str
    place: int
    backbone: str
    tasks: tuple[Spec, ...]


LLAMA_S, LLAMA_M, QWEN_S, QWEN_M = (f"tiny-llava-{name}" for name in ("llama-s", "llama-m", "qwen-s", "qwen-m"))
BACKBONES = (LLAMA_S, LLAMA_M, QWEN_S, QWEN_M)
_V, _R, _Q = LANGUAGES

TEMPLATES: tuple[Template, ...] = (
    Template(_V, 0, LLAMA_S, (
        Spec("same", "list"), Spec("became", "list"), Spec("mix", "list", 1), Spec("both", "list"),
    )),
    Template(_V, 1, LLAMA_M, (
        Spec("changed", "open"), Spec("both", "yes", 1), Spec("odd_3", "list"), Spec("became", "open"),
    )),
    Template(_V, 2, QWEN_S, (
        Spec("became", "open", 1), Spec("same", "yes", 1), Spec("which_colour_4", "list", 1), Spec("odd_4", "list"),
    )),
    Template(_R, 0, LLAMA_S, (
        Spec("make_of", "open", 1), Spec("rule", "list"), Spec("mix", "list"), Spec("fits", "list"),
    )),
    Template(_R, 1, QWEN_S, (
        Spec("rule", "list", 1), Spec("make_of", "list", 1), Spec("fits", "yes", 1), Spec("mix", "open"),
    )),
    Template(_R, 2, QWEN_M, (
        Spec("make_of", "open"), Spec("next_number", "list"), Spec("rule", "list"), Spec("fits", "list"),
    )),
    Template(_Q, 0, LLAMA_S, (
        Spec("colour_of", "open"), Spec("count", "open"), Spec("verify_colour", "list"), Spec("where_colour", "list"),
    )),
    Template(_Q, 1, LLAMA_M, (
        Spec("shape_of", "list"), Spec("most", "open"), Spec("where_shape", "list"), Spec("verify_shape", "yes"),
    )),
    Template(_Q, 2, QWEN_S, (
        Spec("most", "open", 1), Spec("colour_of", "list"), Spec("shape_of", "open"), Spec("beside", "list"),
    )),
    Template(_Q, 3, QWEN_M, (
        Spec("colour_of", "open", 1), Spec("most", "list", 1), Spec("verify_shape", "list", 1),
        Spec("where_shape", "list", 1),
    )),
)  # fmt: skip

UNSEEN: tuple[tuple[str, str, Spec], ...] = (
    ("new-task-type", _V, Spec("more", "list")),
    ("new-task-type", _R, Spec("verify_make", "list")),
    ("new-task-type", _R, Spec("total", "list")),
    ("new-task-type", _Q, Spec("size_of", "list")),
    ("new-visual-domain", _V, Spec("both", "list", style="striped")),
    ("new-visual-domain", _R, Spec("make_of", "list", style="grainy")),
    ("new-visual-domain", _Q, Spec("colour_of", "open", style="outline")),
)
"""(set, group whose language is spoken, task). The first four families belong to no client."""

BRIDGE = (5, 6)
"""Two clients of different groups whose number words mean the same."""


def client_id(index: int) -> str:
    return f"client-{index}"


def related(num_clients: int = len(TEMPLATES)) -> dict[str, set[str]]:
    """Per client, the others whose words mean the same: its group, and across groups the bridge. For reports and tests
    only; no method may see it."""
    kind = [index % len(TEMPLATES) for index in range(num_clients)]
    return {
        client_id(i): {
            client_id(j)
            for j in range(num_clients)
            if i != j and (TEMPLATES[kind[i]].group == TEMPLATES[kind[j]].group or {kind[i], kind[j]} == set(BRIDGE))
        }
        for i in range(num_clients)
    }


RELATED: Mapping[str, set[str]] = related()


def home_words(concepts: Sequence[int], place: int) -> frozenset[int]:
    """The half of the concepts that a client of this place in its group meets often.

    >>> [sorted(home_words(range(8), place)) for place in range(4)]
    [[0, 1, 2, 3], [4, 5, 6, 7], [2, 3, 4, 5], [0, 1, 6, 7]]
    """
    size = len(concepts)
    start = size * (0, 2, 1, 3)[place % 4] // 4
    return frozenset(concepts[(start + step) % size] for step in range(size // 2))


@dataclass(frozen=True)
class Plan:
    """How one task draws: at an address, in a group's language; `home`: concepts that training asks for often."""

    spec: Spec
    group: str
    address: tuple[Address, ...]
    home: frozenset[int] = frozenset()

    @cached_property
    def family(self) -> Family:
        return FAMILIES[self.spec.family]

    @cached_property
    def lexicon(self) -> Lexicon:
        """Plain English but for the family's focus; of that, open tasks keep the first word plain.

        Nobody can guess a made-up word that no list shows: an open task would start at zero whatever a backbone sees.
        """
        spoken, kind = partial(LANGUAGES[self.group], [self.family.focus]), self.family.focus
        if self.spec.form != "open":
            return spoken
        first = spoken.named(kind)[0]
        return spoken.renamed(kind, {**spoken.words[kind], first: PLAIN.word(kind, first)})

    def asks(self, split: Split, index: int, dice: Dice) -> tuple[int, int]:
        """(focus, outcome) of a sample. Outcomes are balanced; so is the focus, unless training prefers home words."""
        concepts, outcomes = self.lexicon.named(self.family.focus), self.family.outcomes
        address = (*self.address, self.spec.name, split)
        if split == "train" and self.home:
            rare = (1 - HOME_SHARE) / (len(concepts) - len(self.home))
            weights = [HOME_SHARE / len(self.home) if concept in self.home else rare for concept in concepts]
            return dice.weighted(concepts, weights), stratified(index, outcomes, *address)
        cell, outcome = divmod(stratified(index, len(concepts) * outcomes, *address), outcomes)
        return concepts[cell], outcome

    def sample(self, split: Split, index: int) -> Sample:
        """Sample `index` of a split."""
        dice = Dice(*self.address, self.spec.name, split, index)
        focus, outcome = self.asks(split, index, dice)
        wording = self.family.wordings[self.spec.wording]
        puzzle = self.family.make(Brief(dice, self.lexicon, focus, outcome, wording))
        scenes = [placed(objects, dice, split, self.spec.style) for objects in puzzle.scenes]
        name = "-".join(map(str, (*self.address[1:], self.spec.name, split, index)))
        slot = stratified(index, SLOTS, *self.address, self.spec.name, split, "slot")
        return sample_of(name, asked(puzzle, self.spec.form, dice, slot=slot), scenes)


class Drawn(LazySamples):
    """One split of a task."""

    def __init__(self, plan: Plan, split: Split, size: int) -> None:
        super().__init__(size)
        self.plan = plan
        self.split = split

    def draw(self, index: int) -> Sample:
        return self.plan.sample(self.split, index)


@dataclass(frozen=True)
class Sizes:
    """How many samples a task has."""

    train: int
    validation: int
    test: int


def task_data(name: str, label: str, plan: Plan, sizes: Sizes) -> TaskData:
    """A task with its three splits."""
    return TaskData(
        name=name,
        kind="open-ended" if plan.spec.form == "open" else "multi-choice",
        metric="token_f1" if plan.spec.form == "open" else "choice",
        train=Drawn(plan, "train", sizes.train),
        validation=Drawn(plan, "validation", sizes.validation),
        test=Drawn(plan, "test", sizes.test),
        group=label,
    )


def make_clients(num_clients: int, sizes: Sizes, data_seed: int, backbone: str | None = None) -> tuple[ClientData, ...]:
    """The clients; beyond ten the templates start over with samples and home words of their own."""
    clients = []
    for index in range(num_clients):
        lap, kind = divmod(index, len(TEMPLATES))
        template, client = TEMPLATES[kind], client_id(index)
        tasks = []
        for spec in template.tasks:
            concepts = LANGUAGES[template.group].named(FAMILIES[spec.family].focus)
            plan = Plan(spec, template.group, (data_seed, client), home_words(concepts, template.place + lap))
            tasks.append(task_data(f"{spec.name}-{index}", template.group, plan, sizes))
        clients.append(ClientData(client, backbone or template.backbone, tuple(tasks)))
    return tuple(clients)


def make_unseen(sizes: Sizes, data_seed: int) -> tuple[TaskData, ...]:
    """The seven tasks that no client has; they ask for all words alike in training, too."""
    return tuple(
        task_data(
            spec.name if spec.style == "filled" else f"{spec.style}-{spec.name}",
            label,
            Plan(spec, group, (data_seed, "unseen")),
            sizes,
        )
        for label, group, spec in UNSEEN
    )
