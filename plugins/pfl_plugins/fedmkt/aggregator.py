"""FedMKT's server: models of its own that learn from the best client's predictions of each public sample."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pfl_platform.adapters.surfaces import Tensors
from pfl_platform.distillation.exchange import Exchange, ordered
from pfl_platform.distillation.predictions import Predicted
from pfl_platform.distillation.public import PublicSet, check_matching, learning
from pfl_platform.distillation.targets import NOTHING, Teacher, own
from pfl_platform.errors import UserError
from pfl_platform.federation.components import Aggregator, Federation, Needs, ServerState, Updates
from pfl_platform.federation.groups import of_backbone
from pfl_platform.federation.tasks import Address, Program
from pfl_plugins.fedmkt.config import Config
from pfl_plugins.fedmkt.equations import best_of, selected
from pfl_plugins.fedmkt.learning import KNOWLEDGE, SLOT, TAUGHT, Lesson, measure, message


class FedMKTServer(Aggregator):
    """State: `model/NAME`, the params of the server's model of each backbone; `losses/NAME`, its loss on each public
    sample; `taught/NAME`, the message for clients of a backbone. Clients' predictions are not kept: who takes no part
    in a round is not learned from in it."""

    @property
    def needs(self) -> Needs:
        return Needs(consumes=(KNOWLEDGE,), replies=(TAUGHT,), equal=(), continues=True, combines="nothing")

    def models(self, fed: Federation) -> tuple[str, ...]:
        chosen = options(fed).server_model
        return (chosen,) if chosen else fed.backbones

    def others(self, fed: Federation) -> tuple[str, ...]:
        chosen = options(fed).server_model
        return (chosen,) if chosen else ()

    def check(self, fed: Federation) -> None:
        """The public set is there; server models and clients can learn from each other."""
        if fed.config.objective.name != "fedmkt":
            raise UserError("The aggregator 'fedmkt' goes with the objective 'fedmkt', whose options it reads.")
        models, public = self.models(fed), PublicSet.of(fed, options(fed).samples)
        check_matching(fed, public, models, fed.backbones)
        if options(fed).server_model:
            check_matching(fed, public, fed.backbones, models)

    def init(self, fed: Federation) -> ServerState:
        return ServerState(
            {
                f"model/{name}": fed.store.put(fed.adapter.initial(fed.load(name), SLOT, fed.seed))
                for name in self.models(fed)
            }
        )

    def absorb(self, fed: Federation, state: ServerState, updates: Updates, round_index: int) -> Program[ServerState]:
        if len(updates) == 0:
            return state
        config = options(fed)
        exchange = Exchange(fed, PublicSet.of(fed, config.samples), top_k=config.top_k)
        clients = {
            update.client_id: self._read(exchange, update.backbone, update.tensors()) for update in ordered(updates)
        }
        losses = yield from self._losses(exchange, state, round_index)
        who, lowest = best_of([predicted.losses for predicted in clients.values()])
        addresses = dict(state.tensors)
        tasks, learnt = {}, {}
        for name in self.models(fed):
            teachers = [
                self._teacher(exchange, predicted, fed.backbone_of[client], name, who == number)
                for number, (client, predicted) in enumerate(clients.items())
            ]
            told = {**message(exchange.targets(teachers, name), lowest), f"{KNOWLEDGE}/losses": losses[name]}
            learnt[name] = selected(lowest, losses[name])
            statistic = measure(fed, config)
            tasks[name] = learning(
                fed,
                exchange.public,
                f"server model {name}",
                round_index,
                name,
                state.tensors[f"model/{name}"],
                Lesson(fed, config, name),
                fed.adapter.trainable(SLOT),
                lr=config.lr,
                batch_size=config.batch_size,
                inbox=fed.store.put(told),
                epochs=config.epochs,
                statistics=(statistic,),
            )
        outcomes = yield list(tasks.values())
        said = {}
        for name, task in tasks.items():
            outcome = outcomes[task.actor]
            addresses[f"model/{name}"] = outcome.new_state
            said[name] = Predicted.read(fed.store.get(outcome.message), KNOWLEDGE)
            addresses[f"losses/{name}"] = fed.store.put({"losses": said[name].losses})
        for name in fed.backbones:
            addresses[f"taught/{name}"] = self._taught(exchange, said, name)
        return ServerState(addresses, report=self._report(clients, who, lowest, losses, learnt, said))

    def _read(self, exchange: Exchange, backbone: str, tensors: Tensors) -> Predicted:
        """A client's message; how many answer tokens a sample has, the server knows itself."""
        return Predicted.read({**tensors, f"{KNOWLEDGE}/counts": exchange.answers(backbone).counts}, KNOWLEDGE)

    def _losses(self, exchange: Exchange, state: ServerState, round_index: int) -> Program[dict[str, Tensor]]:
        """Of each server model as it is now; measured in the first round, known from the last one later."""
        fed = exchange.fed
        known = {
            name: fed.store.get(state.tensors[f"losses/{name}"])["losses"]
            for name in self.models(fed)
            if f"losses/{name}" in state.tensors
        }
        missing = [name for name in self.models(fed) if name not in known]
        models = [(f"server model {name}, before", name, state.tensors[f"model/{name}"]) for name in missing]
        found = yield from exchange.asked(models, measure(fed, options(fed)), round_index)
        return known | {name: found[actor].losses for name, (actor, _, _) in zip(missing, models, strict=True)}

    def _teacher(self, exchange: Exchange, predicted: Predicted, source: str, target: str, chosen: Tensor) -> Teacher:
        """A client as a teacher of those samples, bool (S,), on which it is the best."""
        teacher = exchange.teacher(predicted, source, target)
        counts = exchange.answers(target).counts.long()
        places = teacher.at(0, int(counts.sum()))
        places = torch.where(torch.repeat_interleave(chosen, counts), places, NOTHING)
        return Teacher(predicted, places, teacher.tokens)

    def _taught(self, exchange: Exchange, said: Mapping[str, Predicted], backbone: str) -> Address:
        """The message for clients of a backbone."""
        source = backbone if backbone in said else next(iter(said))
        predicted = said[source]
        if source == backbone:
            targets = own(predicted)
        else:
            targets = exchange.targets([exchange.teacher(predicted, source, backbone)], backbone)
        return exchange.fed.store.put(message(targets, predicted.losses))

    def _report(
        self,
        clients: Mapping[str, Predicted],
        who: Tensor,
        lowest: Tensor,
        losses: Mapping[str, Tensor],
        learnt: Mapping[str, Tensor],
        said: Mapping[str, Predicted],
    ) -> dict[str, object]:
        names = list(clients)
        return {
            "best_client": {name: int((who == number).sum()) for number, name in enumerate(names)},
            "server": {
                name: {
                    "learnt": int(learnt[name].sum()),
                    "loss_before": float(losses[name].mean()),
                    "loss_after": float(said[name].losses.mean()),
                    "best_clients": float(lowest.mean()),
                }
                for name in said
            },
        }

    def reply(self, fed: Federation, state: ServerState, client_id: str) -> dict[str, Tensor]:
        return of_backbone(fed, state, client_id, "taught/")


def options(fed: Federation) -> Config:
    """What the objective was given."""
    return Config(**fed.config.objective.options)
