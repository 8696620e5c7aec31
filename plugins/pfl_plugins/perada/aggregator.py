"""PerAda's server: the average of each backbone's clients is distilled towards the mean of all clients' predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from pfl_platform.adapters.surfaces import Keys
from pfl_platform.distillation.exchange import Exchange, by_backbone, ordered
from pfl_platform.distillation.losses import Remaining, targets_under
from pfl_platform.distillation.predictions import Predicted
from pfl_platform.distillation.public import PublicSet, check_matching, learning, mixed
from pfl_platform.distillation.targets import Targets
from pfl_platform.federation.components import Aggregator, Federation, Needs, ServerState, Update, Updates
from pfl_platform.federation.groups import EVERYBODY, handed_on, mean_for, of_backbone, sizes, weighed
from pfl_platform.federation.tasks import Address, Program, Task
from pfl_plugins.perada.config import ServerConfig
from pfl_plugins.perada.equations import parts

SLOT = "global"
TARGETS, HELD = "targets", "held_out"


@dataclass
class Student:
    """A backbone's average while it is distilled. last: where it stands now; found: (distance on held-out samples,
    params) after each part, the first being the average itself."""

    backbone: str
    host: str
    last: Address
    inbox: Address
    matched: float
    found: list[tuple[float, Address]] = field(default_factory=list)


class PerAda(Aggregator):
    """State: per backbone, the address of the distilled average. Whatever other slots clients send are averaged and
    sent back, and not distilled. A backbone of which no client took part keeps what it had."""

    def __init__(self, config: ServerConfig) -> None:
        self.config = config

    @property
    def needs(self) -> Needs:
        return Needs(consumes=(SLOT,), replies=(SLOT,), continues=True)

    def check(self, fed: Federation) -> None:
        """The public set is there, and every backbone can learn from those that teach it."""
        public = PublicSet.of(fed, self.config.samples)
        if self.config.keep == "best":
            public.split(self.config.validation)
        for name in fed.backbones:
            check_matching(fed, public, [name], fed.backbones if self.config.teachers == "all" else [name])

    def absorb(self, fed: Federation, state: ServerState, updates: Updates, round_index: int) -> Program[ServerState]:
        everyone = ordered(updates)
        weights = sizes(everyone, examples=self.config.weighting == "examples")
        averages = {name: mean_for(name, everyone, weights) for name in by_backbone(fed, everyone)}
        common = EVERYBODY.of(next(iter(averages.values()), {}))  # the same in all of them, until they learn
        table = weighed(fed, updates, examples=self.config.weighting == "examples")
        report = {}
        if averages and (not self.config.rounds or round_index < self.config.rounds):
            students = yield from self._distilled(fed, averages, everyone, round_index)
            for student in students:
                distance, kept = min(student.found, key=lambda pair: pair[0])
                averages[student.backbone] |= fed.store.get(kept, Keys(f"{SLOT}/*"))
                report[student.backbone] = {
                    "matched_tokens": student.matched,
                    "held_out": [pair[0] for pair in student.found] if self.config.keep == "best" else [],
                    "kept": student.found.index((distance, kept)),
                }
        addresses = {**state.tensors, **{name: fed.store.put(tensors) for name, tensors in averages.items()}}
        return ServerState(
            handed_on(fed, addresses, common, averages), report={"weights": table, "distillation": report}
        )

    def _distilled(
        self, fed: Federation, averages: Mapping[str, dict[str, Tensor]], updates: Sequence[Update], round_index: int
    ) -> Program[list[Student]]:
        """Every backbone's average on its way, measured `checks` times."""
        config = self.config
        whole, held = PublicSet.of(fed, config.samples), None
        public = whole
        if config.keep == "best":
            public, held = whole.split(config.validation)
        lessons = Exchange(fed, public, top_k=config.top_k, temperature=config.temperature)
        predicted = yield from lessons.asked_clients(updates, lessons.statistic(mixed(SLOT)), round_index)
        exam, checked = None, {}
        if held is not None:
            exam = Exchange(fed, held, top_k=config.top_k, temperature=config.temperature)
            checked = yield from exam.asked_clients(
                updates, exam.statistic(mixed(SLOT)), round_index, stage="server, held out"
            )
        students = []
        for name, tensors in averages.items():
            targets = self._targets(lessons, predicted, updates, name)
            inbox = targets.tensors(TARGETS)
            if exam is not None:
                inbox |= self._targets(exam, checked, updates, name).tensors(HELD)
            host = fed.host_of(next(update.client_id for update in updates if update.backbone == name))
            start = fed.store.put(Keys(f"{SLOT}/*").of(tensors))
            students.append(Student(name, host, start, fed.store.put(inbox), float(targets.known.float().mean())))
        for part in parts(self._steps(public, fed), config.checks if held is not None else 1, start=held is not None):
            tasks = [self._task(fed, public, exam, student, part, round_index) for student in students]
            outcomes = yield tasks
            for student, task in zip(students, tasks, strict=True):
                outcome = outcomes[task.actor]
                student.last = outcome.new_state
                distance = -float(part[1])  # the last one, when nothing is held out
                if outcome.sent is not None:
                    distance = float(fed.store.get(outcome.sent)[f"{HELD}/mean"])
                student.found.append((distance, student.last))
        return students

    def _steps(self, public: PublicSet, fed: Federation) -> int:
        batch = self.config.batch_size or fed.config.training.batch_size
        return self.config.epochs * -(-len(public) // batch)

    def _targets(
        self, exchange: Exchange, predicted: Mapping[str, Predicted], updates: Sequence[Update], student: str
    ) -> Targets:
        teachers = [
            exchange.teacher(predicted[update.client_id], update.backbone, student)
            for update in updates
            if self.config.teachers == "all" or update.backbone == student
        ]
        return exchange.targets(teachers, student, self.config.ensemble)

    def _task(
        self,
        fed: Federation,
        public: PublicSet,
        exam: Exchange | None,
        student: Student,
        part: tuple[int, int],
        round_index: int,
    ) -> Task:
        config = self.config
        measures: tuple[Remaining, ...] = ()
        if exam is not None:
            held, numbers = exam.in_order, exam.public.numbers
            measures = (Remaining(HELD, mixed(SLOT), held, held.steps(), numbers, config.temperature, config.tail),)
        # T^2 KL(mean of the clients || student)
        loss = targets_under(mixed(SLOT), TARGETS, public.numbers, config.temperature, tail=config.tail)
        return learning(
            fed,
            public,
            f"average of {student.backbone}: {part[1]} steps",
            round_index,
            student.host,
            student.last,
            loss,
            fed.adapter.trainable(SLOT),
            lr=config.lr,
            batch_size=config.batch_size,
            inbox=student.inbox,
            epochs=config.epochs,
            steps=part,
            cosine=True,
            statistics=measures,
        )

    def reply(self, fed: Federation, state: ServerState, client_id: str) -> dict[str, Tensor]:
        return of_backbone(fed, state, client_id)
