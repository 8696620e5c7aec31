"""Fed-ET's server: averages in each backbone; a larger model that learns their consensus, and gives it back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from pfl_platform.adapters.surfaces import Keys
from pfl_platform.distillation.exchange import Exchange, by_backbone, ordered
from pfl_platform.distillation.losses import targets_under, towards
from pfl_platform.distillation.predictions import Predicted
from pfl_platform.distillation.public import PublicSet, check_matching, learning, mixed
from pfl_platform.distillation.targets import Targets
from pfl_platform.distillation.vocabularies import width
from pfl_platform.federation.components import Aggregator, Federation, Needs, ServerState, Update, Updates
from pfl_platform.federation.groups import EVERYBODY, handed_on, mean_for, of_backbone, sizes, weighed
from pfl_platform.federation.tasks import Program
from pfl_platform.training.surfaces import Loss, View
from pfl_plugins.fedet.config import Config
from pfl_plugins.fedet.equations import consensus, diversity

SLOT = "global"
SERVER = "server model"
AGREED, DIVERSE, TARGETS = "agreed", "diverse", "targets"


class FedET(Aggregator):
    """State: per backbone, the address of what its clients get; "server model", the params of the server's model,
    which stay from round to round. A backbone of which no client took part keeps what it had."""

    def __init__(self, config: Config) -> None:
        self.config = config

    @property
    def needs(self) -> Needs:
        return Needs(consumes=(SLOT,), replies=(SLOT,), continues=self.config.server == "distil")

    def server_model(self, fed: Federation) -> str:
        return self.config.server_model or fed.backbones[-1]

    def others(self, fed: Federation) -> tuple[str, ...]:
        given = self.config.server_model
        return (given,) if given and self.config.server == "distil" else ()

    def check(self, fed: Federation) -> None:
        """For the distillation: the public set is there; the server's model and the clients' can learn from each
        other."""
        if self.config.server == "group_average":
            return
        public, server = PublicSet.of(fed, self.config.samples), self.server_model(fed)
        check_matching(fed, public, [server], fed.backbones)
        if self.config.back == "distil":
            check_matching(fed, public, fed.backbones, [server])

    def absorb(self, fed: Federation, state: ServerState, updates: Updates, round_index: int) -> Program[ServerState]:
        everyone = ordered(updates)
        weights = sizes(everyone, examples=self.config.weighting == "examples")
        found = by_backbone(fed, everyone)
        averages = {name: Keys(f"{SLOT}/*").of(mean_for(name, everyone, weights)) for name in found}
        common = EVERYBODY.of(next(iter(averages.values()), {}))  # the same in all of them
        stored = {name: fed.store.put(tensors) for name, tensors in averages.items()}
        addresses = handed_on(fed, {**state.tensors, **stored}, common, found)
        table = weighed(fed, updates, examples=self.config.weighting == "examples")
        if not found or self.config.server == "group_average":
            return ServerState(addresses, report={"weights": table})
        exchange = Exchange(
            fed,
            PublicSet.of(fed, self.config.samples),
            top_k=self.config.top_k,
            temperature=self.config.temperature,
        )
        said, report = yield from self._ensemble(exchange, everyone, addresses, round_index)
        if self.config.back == "distil":
            yield from self._back(exchange, said, found, addresses, round_index)
        return ServerState(addresses, report={"weights": table, **report})

    def _ensemble(
        self, exchange: Exchange, updates: Sequence[Update], addresses: dict[str, str], round_index: int
    ) -> Program[tuple[Predicted, dict[str, Any]]]:
        """The server's model learns from the clients; returns what it then predicts."""
        fed, config, server = exchange.fed, self.config, self.server_model(exchange.fed)
        predicted = yield from exchange.asked_clients(
            updates, exchange.statistic(mixed(SLOT), variance=True), round_index
        )
        teachers = []
        for update in updates:
            one = predicted[update.client_id]
            assert one.variance is not None
            teachers.append(exchange.teacher(one, update.backbone, server, one.variance))
        vocabulary = width(fed.load(server))
        agreed = consensus(teachers, exchange.answers(server).counts, vocabulary)
        diverse, where = diversity(teachers, agreed, vocabulary, config.top_k)
        inbox = {**agreed.tensors(AGREED), **diverse.tensors(DIVERSE), f"{DIVERSE}/where": where}
        statistic = exchange.statistic(mixed(SLOT))
        start = addresses.get(SERVER) or fed.store.put(fed.adapter.initial(fed.load(server), SLOT, fed.seed))
        task = learning(
            fed,
            exchange.public,
            SERVER,
            round_index,
            server,
            start,
            self._server_loss(exchange.public),
            fed.adapter.trainable(SLOT),
            lr=config.lr,
            batch_size=config.batch_size,
            inbox=fed.store.put(inbox),
            epochs=config.epochs,
            statistics=(statistic,),
        )
        outcome = (yield [task])[SERVER]
        addresses[SERVER] = outcome.new_state
        said = Predicted.read(fed.store.get(outcome.message), statistic.name)
        return said, {
            "server_loss": float(said.losses.mean()),
            "matched_tokens": float(agreed.known.float().mean()),
            "disputed_tokens": float(where.mean()),
        }

    def _server_loss(self, public: PublicSet) -> Loss:
        """`CE(student, consensus) + lambda T^2 KL(those who disagree || student)`."""
        config, numbers = self.config, public.numbers

        def loss(view: View) -> Tensor:
            output = view.forward(mixed(SLOT))
            rows = towards(view, output, numbers, Targets.read(view.refs, AGREED))
            if config.diversity > 0:
                rows = rows + config.diversity * towards(
                    view,
                    output,
                    numbers,
                    Targets.read(view.refs, DIVERSE),
                    config.temperature,
                    tail=config.tail,
                    weights=view.refs[f"{DIVERSE}/where"],
                )
            return rows

        return loss

    def _back(
        self,
        exchange: Exchange,
        said: Predicted,
        found: Mapping[str, Sequence[Update]],
        addresses: dict[str, str],
        round_index: int,
    ) -> Program[None]:
        """Every average of this round learns what the server's model predicts."""
        fed, config, server = exchange.fed, self.config, self.server_model(exchange.fed)
        # T^2 KL(server's model || student)
        loss = targets_under(mixed(SLOT), TARGETS, exchange.public.numbers, config.temperature, tail=config.tail)
        tasks = {}
        for name, group in found.items():
            targets = exchange.targets([exchange.teacher(said, server, name)], name)
            tasks[name] = learning(
                fed,
                exchange.public,
                f"average of {name}",
                round_index,
                fed.host_of(group[0].client_id),
                addresses[name],
                loss,
                fed.adapter.trainable(SLOT),
                lr=config.lr,
                batch_size=config.batch_size,
                inbox=fed.store.put(targets.tensors(TARGETS)),
                epochs=config.epochs,
            )
        outcomes = yield list(tasks.values())
        for name, task in tasks.items():
            addresses[name] = outcomes[task.actor].new_state

    def reply(self, fed: Federation, state: ServerState, client_id: str) -> dict[str, Tensor]:
        return of_backbone(fed, state, client_id)
