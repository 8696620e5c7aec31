"""The public set as teachers and students read it, and the tasks in which they predict and learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from pfl_platform.adapters.surfaces import Keys, Mix
from pfl_platform.backbones import IGNORE, Backbone
from pfl_platform.data import Sample
from pfl_platform.distillation.losses import Remaining
from pfl_platform.distillation.predictions import Predictions
from pfl_platform.distillation.targets import Answers
from pfl_platform.distillation.vocabularies import between
from pfl_platform.errors import UserError
from pfl_platform.federation.components import Federation
from pfl_platform.federation.rows import BLANK
from pfl_platform.federation.setup import public_digest
from pfl_platform.federation.tasks import Address, Share, Task
from pfl_platform.training.streams import Epochs
from pfl_platform.training.surfaces import Loss, Optim, Phase, Step

STAGE = "server"
_ROWS = 64


@dataclass(frozen=True)
class PublicSet:
    """The samples that everybody predicts, each with an id of its own: its number."""

    samples: tuple[Sample, ...]
    seed: int

    @staticmethod
    def of(fed: Federation, size: int = 0) -> PublicSet:
        """The first `size` samples of the run's public set (0: all). Raises `UserError` when there is none."""
        found = fed.public()
        chosen = found[:size] if size else found
        if not len(chosen):
            raise UserError("The public set is empty; name one that has samples with --public PATH.")
        return PublicSet.numbered(chosen, fed.seed)

    @staticmethod
    def numbered(samples: Sequence[Sample], seed: int) -> PublicSet:
        named = tuple(replace(sample, id=str(number)) for number, sample in enumerate(samples))
        return PublicSet(named, seed)

    @cached_property
    def digest(self) -> str:
        """Names the content."""
        return public_digest(self.samples)

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def numbers(self) -> Mapping[str, int]:
        """Sample id -> number."""
        return {sample.id: number for number, sample in enumerate(self.samples)}

    def split(self, share: float) -> tuple[PublicSet, PublicSet]:
        """The first samples, and the last `share` of them (rounded; at least one on either side)."""
        if len(self) < 2:
            raise UserError(
                "A part of the public set is held out, so it needs two samples at least; take more with --public-size."
            )
        held = min(len(self) - 1, max(1, round(share * len(self))))
        kept = len(self) - held
        return self.numbered(self.samples[:kept], self.seed), self.numbered(self.samples[kept:], self.seed)

    def answers(self, backbone: Backbone) -> Answers:
        """Where a backbone's answer tokens are. Pictures stay closed: how text is cut does not depend on them."""
        spans = []
        for begin in range(0, len(self), _ROWS):
            some = self.samples[begin : begin + _ROWS]
            encoded = backbone.codec.encode([replace(one, pictures=(BLANK,) * len(one.pictures)) for one in some])
            for labels, row in zip(encoded.labels, encoded.spans, strict=True):
                spans.append(tuple(row[k] for k in (labels != IGNORE).nonzero()[:, 0].tolist()))
        return Answers(tuple(spans))

    def in_order(self, batch_size: int) -> Epochs:
        """One pass, for predictions."""
        return Epochs(self.samples, batch_size, self.seed, "public in order", shuffle=False)


def check_matching(fed: Federation, public: PublicSet, students: Sequence[str], teachers: Sequence[str]) -> None:
    """Raises `UserError` when some student could learn nothing from some teacher, both given as backbones' names."""
    answers = {name: public.answers(fed.load(name)) for name in {*students, *teachers}}
    for student in students:
        for teacher in teachers:
            between(fed.load(teacher), fed.load(student))
            if not bool((answers[student].places(answers[teacher]) >= 0).any()):
                raise UserError(
                    f"'{student}' and '{teacher}' cut every answer of the public set into other tokens, so that one "
                    "cannot learn from the other; choose another set with --public PATH."
                )


def measuring(
    fed: Federation,
    public: PublicSet,
    actor: str,
    round_index: int,
    host: str,
    state: Address,
    statistics: Sequence[Predictions | Remaining],
    *,
    stage: str = STAGE,
) -> Task:
    """What a model says about the public set, as what its outcome sends."""
    return Task(
        actor=actor,
        stage=stage,
        round_index=round_index,
        backbone=host,
        state=state,
        frozen=fed.frozen.get(host),
        statistics=tuple(statistics),
        up=tuple(Share(statistic.keys) for statistic in statistics),
        salt={**fed.salt, "public": public.digest},
    )


def learning(
    fed: Federation,
    public: PublicSet,
    actor: str,
    round_index: int,
    host: str,
    state: Address,
    loss: Loss,
    train: Keys,
    *,
    lr: float,
    batch_size: int,
    inbox: Address | None = None,
    epochs: int = 1,
    steps: tuple[int, int] | None = None,
    cosine: bool = False,
    statistics: Sequence[Predictions | Remaining] = (),
    stage: str = STAGE,
) -> Task:
    """A student that is trained on the public set for some epochs; `inbox` holds its targets. Adam starts afresh.

    batch_size: samples per step; 0: as in training. statistics: what the student measures at the end and sends.
    steps: only the steps from the first to before the second, of a training that is done in parts. Each part takes the
    state of the one before, with Adam's moments, so that the parts together are the whole. The actors of the parts may
    differ in what follows a colon.
    """
    config = fed.config.training
    order = f"{actor.partition(':')[0]}, {stage}, round {round_index}"
    source = Epochs(public.samples, batch_size or config.batch_size, fed.seed, order)
    whole = source.steps(epochs)
    first, last = steps if steps is not None else (0, whole)
    optim = Optim(
        lr,
        clip=config.clip,
        moments="reset" if steps is None else "keep",
        schedule="cosine" if cosine else "constant",
        total_steps=whole,
        first_step=first,
    )
    phase = Phase(
        "distil",
        (Step(train, loss, optim),),
        last - first,
        replace(source, first=first),
        config.micro_batch,
        by_length=config.by_length,
    )
    task = measuring(fed, public, actor, round_index, host, state, statistics, stage=stage)
    return replace(task, inbox=inbox, phases=(phase,) if last > first else ())


def mixed(slot: str) -> Mix:
    """A model that is one slot and nothing else."""
    return {slot: 1.0}
