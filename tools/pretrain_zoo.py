"""Pretrains the tiny backbones of the model zoo, through the platform's one training loop.

    python tools/zoo_tokenizers.py
    python tools/pretrain_zoo.py --only tiny-llava-llama-s

Weights start at random from `--seed`, see questions of the synthetic corpus that are never repeated, and are written as
fp16 safetensors with their configuration and tokenizer; what was measured on held-out questions goes into the card.
The same command gives the same weights on the same machine; training uses one core.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
import yaml
from tokenizers import Tokenizer

from pfl_benchmarks.drake_synth.corpus import Corpus, TextCorpus, draw, form_for
from pfl_benchmarks.drake_synth.dice import Dice
from pfl_benchmarks.drake_synth.families import FAMILIES
from pfl_benchmarks.drake_synth.render import asked, placed, sample_of
from pfl_benchmarks.drake_synth.stories import MAKERS
from pfl_benchmarks.drake_synth.words import PLAIN
from pfl_model_zoo.cards import CARDS, PACKAGE, ZooCard, all_cards
from pfl_model_zoo.families import load
from pfl_model_zoo.options import LoadOptions
from pfl_platform.adapters.host import Host
from pfl_platform.adapters.surfaces import Keys, Tensors
from pfl_platform.backbones import IGNORE, Backbone
from pfl_platform.data import Sample, Turn
from pfl_platform.rng import numpy_rng, torch_rng
from pfl_platform.training.driver import TorchDriver
from pfl_platform.training.loop import Actor, train
from pfl_platform.training.losses import answers_under
from pfl_platform.training.surfaces import OpenSource, Optim, Phase, Source, Step
from zoo_choices import CHOOSERS, Choices, as_sample
from zoo_drills import Drills
from zoo_kinds import KINDS, SKILLS, Kinds, kind_of
from zoo_masking import Told, hidden_words
from zoo_naming import Pictures, naming
from zoo_quizzes import Lookups, Quizzes

BATCH = 32
NAMED = 64
"""Pictures in one step of naming."""
NAMING_STEPS, NAMING_LR = 1000, 2e-3
MASKING_STEPS = 2500
BUCKET = 8
"""Batches that are drawn together and sorted by the number of pictures, so that rows need little padding."""


Shares = tuple[float, float, float, float]
"""Of the rows of a batch: look-ups, drills, quizzes, single questions."""
Stages = tuple[tuple[float, Shares], ...]
"""After the look-ups: for how much of the training (then to the end) which shares. What comes later is made of what
came before: learned in this order, each takes hundreds of steps; all at once, thousands are not enough."""

DRILLED: Stages = ((0.45, (0.15, 0.7, 0.1, 0.05)), (1.0, (0.05, 0.25, 0.15, 0.55)))
QUIZZED: Stages = ((0.4, (0.3, 0.0, 0.6, 0.1)), (1.0, (0.05, 0.0, 0.2, 0.75)))

BARE = 0.5
"""Share of questions in look-ups, drills and quizzes without a list of options."""


class Drawn(Protocol):
    """Samples by number."""

    def sample(self, index: int) -> Sample: ...


@dataclass(frozen=True)
class Naming(Source):
    """Single pictures, `NAMED` a step."""

    pictures: Pictures

    def describe(self) -> Mapping[str, Any]:
        return {"corpus": "pictures", "seed": self.pictures.seed}

    def open(self, private: Tensors) -> OpenSource:
        return self

    def batch(self, step: int) -> Sequence[Sample]:
        return [self.pictures.sample(step * NAMED + index) for index in range(NAMED)]

    def private(self) -> Tensors:
        return {}


@dataclass(frozen=True)
class Curriculum(Source):
    """Look-ups first, then drills and quizzes, questions last; backbones that only read, or only see, get questions
    alone. Nothing is shown twice."""

    questions: Corpus | TextCorpus | Kinds
    steps: int
    lookups: float = 0.0
    stages: Stages = DRILLED
    batch_size: int = BATCH

    def describe(self) -> Mapping[str, Any]:
        return {
            "corpus": type(self.questions).__name__,
            "seed": self.questions.seed,
            "steps": self.steps,
            "first": self.lookups,
            "then": self.stages,
        }

    def open(self, private: Tensors) -> OpenSource:
        return OpenCurriculum(self)


class OpenCurriculum:
    """Draws `BUCKET` batches at a time; they are of like length within and in random order among themselves."""

    def __init__(self, source: Curriculum) -> None:
        seed = source.questions.seed
        self._source = source
        self._corpora: tuple[Drawn, ...] = (
            Lookups(seed, BARE),
            Drills(seed, BARE),
            Quizzes(seed, BARE),
            source.questions,
        )
        self._waiting: list[list[Sample]] = []

    def batch(self, step: int) -> Sequence[Sample]:
        bucket, position = divmod(step, BUCKET)
        if position == 0:
            source = self._source
            size, begin = source.batch_size, step * source.batch_size
            rng = numpy_rng(source.questions.seed, "curriculum", bucket)
            kinds = rng.choice(len(self._corpora), size=BUCKET * size, p=self._shares(step))
            drawn = [self._corpora[kind].sample(begin + index) for index, kind in enumerate(kinds)]
            drawn.sort(key=length)
            self._waiting = [drawn[int(k) * size : (int(k) + 1) * size] for k in rng.permutation(BUCKET)]
        return self._waiting[position]

    def _shares(self, step: int) -> tuple[float, ...]:
        if isinstance(self._source.questions, TextCorpus | Kinds):
            return 0.0, 0.0, 0.0, 1.0
        if step < self._source.lookups * self._source.steps:
            return 1.0, 0.0, 0.0, 0.0
        (length, first), (_, last) = self._source.stages
        return first if step < (self._source.lookups + length) * self._source.steps else last

    def private(self) -> Tensors:
        return {}


def length(sample: Sample) -> tuple[int, int]:
    """Sorts samples by how long their rows will be."""
    return len(sample.pictures), sum(len(turn.human) + len(turn.answer) for turn in sample.turns)


def skills(backbone: Backbone, count: int) -> dict[str, list[Sample]]:
    """Held-out questions by skill: `count` each, with picture layouts that no pretraining picture has."""
    if backbone.card.modality == "vision":
        return {
            name: [kind_of(f"{name}-{k}", name, Dice("held out", name, k), "validation") for k in range(count)]
            for name in SKILLS
        }
    if backbone.task_head:
        return {
            name: [as_sample(f"{name}-{index}", maker(Dice("held out", name, index))) for index in range(count)]
            for name, maker in CHOOSERS.items()
        }
    if backbone.card.modality == "text":
        exchanges = {maker.__name__.strip("_"): maker for maker in MAKERS}
        return {
            name: [
                Sample(f"{name}-{index}", (Turn(exchange.prompt, exchange.answer),))
                for index in range(count)
                for exchange in [maker(Dice("held out", name, index))]
            ]
            for name, maker in exchanges.items()
        }
    found: dict[str, list[Sample]] = {}
    for name, family in FAMILIES.items():
        found[name] = []
        for index in range(count):
            dice = Dice("held out", name, index)
            puzzle = draw(family, PLAIN, dice)
            text = asked(puzzle, form_for(puzzle, dice), dice, 2 + dice.below(3))
            scenes = [placed(objects, dice, "validation") for objects in puzzle.scenes]
            found[name].append(sample_of(f"{name}-{index}", text, scenes))
    return found


def accuracy(backbone: Backbone, samples: Sequence[Sample]) -> float:
    """Percentage of samples whose answer is exactly what greedy generation gives.

    Greedy generation gives an answer exactly when each of its tokens, and the end token, is the most likely one after
    the right ones before it; so one forward pass per batch is enough.
    """
    right = 0
    for start in range(0, len(samples), 50):
        encoded = backbone.codec.encode(samples[start : start + 50])
        with torch.no_grad():
            guesses = backbone.model(**encoded.inputs, use_cache=False).logits[:, :-1].argmax(-1)
        labels = encoded.labels[:, 1:]
        right += int(((guesses == labels) | (labels == IGNORE)).all(dim=1).sum())
    return 100.0 * right / len(samples)


def measure(backbone: Backbone, count: int) -> dict[str, float]:
    """Accuracy per skill and their mean, in per cent."""
    found = {name: accuracy(backbone, items) for name, items in skills(backbone, count).items()}
    return {
        "mean": round(sum(found.values()) / len(found), 1),
        **{name: round(value, 1) for name, value in found.items()},
    }


@dataclass(frozen=True)
class Budget:
    """How one backbone is pretrained: steps, largest learning rate, warm-up steps, the seed of everything, the part of
    the training that shows look-ups alone, and what follows them."""

    steps: int
    lr: float
    warmup: int
    seed: int
    lookups: float = 0.0
    stages: Stages = DRILLED


VISION = ("backbone/model.vision_tower*", "backbone/model.multi_modal_projector*")


def phases(backbone: Backbone, budget: Budget) -> list[Phase]:
    """Naming, which trains what sees and the words' embeddings; then the curriculum, which trains the rest and leaves
    the vision tower as it is, as LLaVA does."""
    optim = Optim(budget.lr, warmup=budget.warmup, clip=1.0, moments="reset", betas=(0.9, 0.99), schedule="cosine")
    optim = replace(optim, total_steps=budget.steps)
    if backbone.card.modality == "vision":
        step = Step(Keys("backbone/*"), answers_under({}), optim)
        return [Phase("pretraining", (step,), budget.steps, Curriculum(Kinds(budget.seed), budget.steps))]
    if backbone.card.modality == "text":
        step = Step(Keys("backbone/*"), answers_under({}), optim)
        if not backbone.task_head:
            return [Phase("pretraining", (step,), budget.steps, Curriculum(TextCorpus(budget.seed), budget.steps))]
        begin = Step(step.train, hidden_words(budget.seed), replace(optim, total_steps=MASKING_STEPS))
        return [
            Phase("masking", (begin,), MASKING_STEPS, Curriculum(Told(budget.seed), MASKING_STEPS)),
            Phase("pretraining", (step,), budget.steps, Curriculum(Choices(budget.seed), budget.steps)),
        ]
    tokenizer = Tokenizer.from_file(str(PACKAGE / backbone.card.source / "tokenizer.json"))

    def tokens_of(word: str) -> list[int]:
        ids: list[int] = tokenizer.encode(f" {word}", add_special_tokens=False).ids
        return ids

    names = replace(optim, lr=NAMING_LR, warmup=50, total_steps=NAMING_STEPS)
    sight = Step(Keys(*VISION, "backbone/model.language_model.embed_tokens/*"), naming(tokens_of), names)
    rest = Step(Keys(VISION[1], "backbone/model.language_model*"), answers_under({}), optim)
    return [
        Phase("naming", (sight,), NAMING_STEPS, Naming(Pictures(budget.seed))),
        Phase(
            "pretraining",
            (rest,),
            budget.steps,
            Curriculum(Corpus(budget.seed), budget.steps, budget.lookups, budget.stages),
        ),
    ]


def pretrain(backbone: Backbone, budget: Budget, every: int) -> float:
    """Trains a backbone in place; prints progress each `every` steps. Returns the last mean loss."""
    host = Host(backbone, whole=True)
    actor = Actor(
        name=backbone.name,
        backbone=backbone.name,
        hosts=lambda _: host,
        rng=lambda *parts: torch_rng(budget.seed, "pretraining", *parts),
        driver=TorchDriver(),
    )
    recent: list[float] = []
    begun = time.perf_counter()

    def observe(index: int, amount: int, loss: float) -> None:
        recent.append(loss)
        if (index + 1) % every == 0 or index + 1 == amount:
            last = sum(recent[-every:]) / len(recent[-every:])
            report = measure(backbone, 50) if (index + 1) % (5 * every) == 0 else {}
            seconds = time.perf_counter() - begun
            print(f"{backbone.name} step {index + 1}/{amount} loss {last:.4f} {seconds:.0f} s {report}", flush=True)

    train(actor, phases(backbone, budget), observe=observe)
    backbone.model.requires_grad_(False)
    return sum(recent[-every:]) / len(recent[-every:])


def published_name(config: Path, model: Any) -> None:
    """A class of ours that only changes what a model's forward pass returns is saved under its base's name."""
    kind = next(kind for kind in type(model).__mro__ if kind.__module__.startswith("transformers."))
    fields = json.loads(config.read_text(encoding="utf-8"))
    fields["architectures"] = [kind.__name__]
    config.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write(backbone: Backbone, card: ZooCard, folder: Path, measured: Mapping[str, float], cards: Path) -> None:
    """Weights in fp16, configuration and tokenizer into `folder`; numbers into the card."""
    model: Any = backbone.model.half()
    if card.tokenizer:
        with_tokenizer(model, PACKAGE / card.tokenizer, card.name, folder)
    model.save_pretrained(folder, safe_serialization=True)
    published_name(folder / "config.json", model)
    path = cards / f"{card.name}.yaml"
    fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    fields["measured"] = dict(measured)
    path.write_text(yaml.safe_dump(fields, sort_keys=False, width=118, allow_unicode=True), encoding="utf-8")


def with_tokenizer(model: Any, source: Path, name: str, folder: Path) -> None:
    """Writes the tokenizer, and its special tokens into the model's configuration."""
    from pfl_model_zoo.families.models import read_tokenizer

    tokenizer = read_tokenizer(source, name)
    for part in (model.config, getattr(model.config, "text_config", model.config)):
        part.bos_token_id, part.eos_token_id, part.pad_token_id = (
            tokenizer.bos_token_id,
            tokenizer.eos_token_id,
            tokenizer.pad_token_id,
        )
    tokenizer.save_pretrained(folder)


BUDGETS: Mapping[str, Budget] = {
    "tiny-llava-llama-s": Budget(4500, 1e-3, 200, 0, 0.2, QUIZZED),
    "tiny-llava-llama-m": Budget(5000, 1e-3, 200, 0, 0.22),
    "tiny-llava-qwen-s": Budget(4500, 1e-3, 200, 0, 0.2, QUIZZED),
    "tiny-llava-qwen-m": Budget(5000, 1e-3, 200, 0, 0.22),
    "tiny-llama-s": Budget(2400, 2e-3, 200, 0),
    "tiny-llama-m": Budget(4000, 2e-3, 200, 0),
    "tiny-roberta": Budget(1500, 1e-3, 200, 0),
    "tiny-t5": Budget(3000, 2e-3, 200, 0),
    "tiny-vit": Budget(2200, 1.5e-3, 200, 0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=sorted(BUDGETS), help="a backbone; all when left out")
    parser.add_argument("--steps", type=int, help="instead of the backbone's own budget")
    parser.add_argument("--lr", type=float)
    parser.add_argument("--every", type=int, default=200)
    parser.add_argument("--out", type=Path, default=PACKAGE / "weights")
    parser.add_argument("--cards", type=Path, default=CARDS)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    for name in chosen.only or sorted(BUDGETS):
        card, budget = all_cards()[name], BUDGETS[name]
        budget = replace(budget, steps=chosen.steps or budget.steps, lr=chosen.lr or budget.lr)
        backbone = load(card, LoadOptions(init=budget.seed, classes=len(KINDS) if card.family == "vit" else None))
        begun = time.perf_counter()
        loss = pretrain(backbone, budget, chosen.every)
        seconds = time.perf_counter() - begun
        measured = {"steps": budget.steps, "seconds": round(seconds), "loss": round(loss, 4), **measure(backbone, 200)}
        write(backbone, card, chosen.out / name, measured, chosen.cards)
        print(name, measured, flush=True)


if __name__ == "__main__":
    main()
