"""TAKFL's server: averages in each prototype, distils every prototype into every other, adds up the task vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pfl_platform.adapters.surfaces import Keys, Tensors
from pfl_platform.distillation.exchange import Exchange, by_backbone
from pfl_platform.distillation.losses import towards
from pfl_platform.distillation.predictions import Predicted
from pfl_platform.distillation.public import PublicSet, check_matching, learning, mixed
from pfl_platform.distillation.targets import Targets, own
from pfl_platform.errors import UserError, nearest
from pfl_platform.federation.components import Aggregator, Federation, Needs, ServerState, Update, Updates
from pfl_platform.federation.groups import mean, of_backbone, sizes, weighed
from pfl_platform.federation.tasks import Address, Program
from pfl_platform.training.surfaces import Loss, View
from pfl_plugins.takfl.config import Config
from pfl_plugins.takfl.equations import candidates, length, merged, task_vector

SLOT = "global"
TARGETS, INITIAL = "targets", "initial"

Students = Mapping[str, dict[str, dict[str, Tensor]]]
"""Student's backbone -> teacher's backbone -> task vector."""


@dataclass(frozen=True)
class Prototype:
    """The clients of one backbone that took part, and where their average lies."""

    backbone: str
    host: str
    updates: Sequence[Update]
    start: Address


class Takfl(Aggregator):
    """State: per backbone, the address of the merged params. A backbone of which no client took part keeps what it
    had, and teaches nobody in that round."""

    def __init__(self, config: Config) -> None:
        self.config = config

    @property
    def needs(self) -> Needs:
        return Needs(consumes=(SLOT,), replies=(SLOT,), continues=True)

    def check(self, fed: Federation) -> None:
        """The public set is there, every backbone can learn from every other, and lambdas name backbones."""
        config, known = self.config, fed.backbones
        public = PublicSet.of(fed, config.samples)
        if config.choose == "validated":
            public.split(config.validation)
        check_matching(fed, public, known, known)
        named = {*config.self_weights, *config.lam, *(name for row in config.lam.values() for name in row)}
        for name in sorted(named - set(known)):
            raise UserError(f"Options of the aggregator name '{name}', which no client has." + nearest(name, known))

    def absorb(self, fed: Federation, state: ServerState, updates: Updates, round_index: int) -> Program[ServerState]:
        config = self.config
        prototypes = [
            Prototype(
                name,
                fed.host_of(group[0].client_id),
                group,
                fed.store.put(mean(group, sizes(group, examples=config.weighting == "examples"), Keys(f"{SLOT}/*"))),
            )
            for name, group in by_backbone(fed, updates).items()
        ]
        if not prototypes:
            return state
        public = PublicSet.of(fed, config.samples)
        held = None
        if config.choose == "validated":
            public, held = public.split(config.validation)
        exchange = Exchange(fed, public, top_k=config.top_k, temperature=config.temperature)
        predicted = yield from exchange.asked_clients(
            [update for one in prototypes for update in one.updates], exchange.statistic(mixed(SLOT)), round_index
        )
        initial = yield from self._initial(exchange, prototypes, round_index)
        vectors, shares = yield from self._taught(exchange, prototypes, predicted, initial, round_index)
        lambdas = yield from self._lambdas(fed, held, prototypes, vectors, round_index)
        addresses = dict(state.tensors)
        for one in prototypes:
            teachers = vectors[one.backbone]
            done = merged(fed.store.get(one.start), list(teachers.values()), lambdas[one.backbone])
            addresses[one.backbone] = fed.store.put(done)
        table = weighed(fed, updates, examples=config.weighting == "examples")
        return ServerState(addresses, report={"weights": table, **_report(vectors, lambdas, shares)})

    def _initial(
        self, exchange: Exchange, prototypes: Sequence[Prototype], round_index: int
    ) -> Program[dict[str, Predicted]]:
        """What each student says before it is taught, for the self-regularisation."""
        models = {f"{one.backbone} before": one for one in prototypes if self._self_weight(one.backbone) > 0}
        statistic = exchange.statistic(mixed(SLOT), temperature=self.config.self_temperature)
        asked = [(name, one.host, one.start) for name, one in models.items()]
        found = yield from exchange.asked(asked, statistic, round_index)
        return {one.backbone: found[name] for name, one in models.items()}

    def _taught(
        self,
        exchange: Exchange,
        prototypes: Sequence[Prototype],
        predicted: Mapping[str, Predicted],
        initial: Mapping[str, Predicted],
        round_index: int,
    ) -> Program[tuple[Students, dict[str, dict[str, float]]]]:
        """Task vectors of every student from every teacher, and the share of its answer tokens that a teacher knows.

        All students learn from one teacher at a time; each begins at its prototype's average.
        """
        fed, config = exchange.fed, self.config
        vectors: dict[str, dict[str, dict[str, Tensor]]] = {one.backbone: {} for one in prototypes}
        shares: dict[str, dict[str, float]] = {one.backbone: {} for one in prototypes}
        last = {one.backbone: one.start for one in prototypes}
        for teacher in prototypes:
            tasks = []
            for student in prototypes:
                name = student.backbone
                targets = exchange.targets(
                    [
                        exchange.teacher(predicted[update.client_id], teacher.backbone, name)
                        for update in teacher.updates
                    ],
                    name,
                    config.ensemble,
                )
                shares[name][teacher.backbone] = float(targets.known.float().mean())
                before = own(initial[name]).tensors(INITIAL) if name in initial else {}
                tasks.append(
                    learning(
                        fed,
                        exchange.public,
                        f"{name} from {teacher.backbone}",
                        round_index,
                        student.host,
                        last[name] if config.official_no_reset else student.start,
                        self._loss(exchange.public, name),
                        fed.adapter.trainable(SLOT),
                        lr=config.lr,
                        batch_size=config.batch_size,
                        inbox=fed.store.put({**targets.tensors(TARGETS), **before}),
                        epochs=config.epochs,
                    )
                )
            outcomes = yield tasks
            for student, task in zip(prototypes, tasks, strict=True):
                address = last[student.backbone] = outcomes[task.actor].new_state
                taught = fed.store.get(address)
                start: Tensors = fed.store.get(student.start)
                if config.official_zero_vectors:
                    start = {key: taught[key] for key in start}
                vectors[student.backbone][teacher.backbone] = task_vector(start, taught)
        return vectors, shares

    def _self_weight(self, backbone: str) -> float:
        return self.config.self_weights.get(backbone, self.config.self_weight)

    def _loss(self, public: PublicSet, backbone: str) -> Loss:
        """`T^2 KL(teacher || student) + A T_self^2 KL(student || itself before)`."""
        config, numbers, strength = self.config, public.numbers, self._self_weight(backbone)

        def loss(view: View) -> Tensor:
            output = view.forward(mixed(SLOT))
            learnt = Targets.read(view.refs, TARGETS)
            rows = towards(view, output, numbers, learnt, config.temperature, tail=config.tail)
            if strength > 0:
                before, warm = Targets.read(view.refs, INITIAL), config.self_temperature
                rows = rows + strength * towards(view, output, numbers, before, warm, reverse=True)
            return rows

        return loss

    def _lambdas(
        self,
        fed: Federation,
        held: PublicSet | None,
        prototypes: Sequence[Prototype],
        vectors: Students,
        round_index: int,
    ) -> Program[dict[str, tuple[float, ...]]]:
        """lambda_ij of every student, in the order of its teachers."""
        equal = {one.backbone: candidates(len(prototypes))[0] for one in prototypes}
        chosen = dict(equal)
        if held is not None:
            exchange = Exchange(fed, held, top_k=1)
            trials, models = {}, []
            for one in prototypes:
                start, teachers = fed.store.get(one.start), list(vectors[one.backbone].values())
                for number, lambdas in enumerate(candidates(len(prototypes))):
                    name = f"{one.backbone}, candidate {number}"
                    trials[name] = (one.backbone, lambdas)
                    models.append((name, one.host, fed.store.put(merged(start, teachers, lambdas))))
            found = yield from exchange.asked(models, exchange.statistic(mixed(SLOT)), round_index)
            best: dict[str, float] = {}
            for name, (backbone, lambdas) in trials.items():
                loss = float(found[name].losses.double().mean())
                if loss < best.get(backbone, float("inf")):
                    best[backbone], chosen[backbone] = loss, lambdas
        for student, row in self.config.lam.items():
            if student in chosen:
                chosen[student] = tuple(
                    row.get(teacher, default) for teacher, default in zip(vectors[student], equal[student], strict=True)
                )
        return chosen

    def reply(self, fed: Federation, state: ServerState, client_id: str) -> dict[str, Tensor]:
        return of_backbone(fed, state, client_id)


def _report(
    vectors: Students, lambdas: Mapping[str, Sequence[float]], shares: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    return {
        "lambda": {name: dict(zip(vectors[name], row, strict=True)) for name, row in lambdas.items()},
        "task_vector_norm": {
            name: {teacher: length(vector) for teacher, vector in row.items()} for name, row in vectors.items()
        },
        "matched_tokens": shares,
    }
