"""The objective: ordinary fine-tuning from an A that other clients' features hardly reach (section 4 of the paper)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from pfl_platform.adapters.surfaces import Keys, Mix, Slot, Tensors, shared
from pfl_platform.errors import UserError
from pfl_platform.federation.components import ClientContext, Federation, Needs, Objective
from pfl_platform.federation.tasks import Address, Program, Share
from pfl_platform.training.losses import answers_under
from pfl_platform.training.surfaces import Phase, Step
from pfl_plugins.osrm.config import Config
from pfl_plugins.osrm.starts import neighbours, picked, received, sites_of, starts

LOCAL = "local"


class Osrm(Objective):
    """Slot `local`, trained and sent. The reply comes under the keys that were sent; `start` says what it is for."""

    def __init__(self, config: Config) -> None:
        self.config = config

    @property
    def needs(self) -> Needs:
        """Every client's A spans directions of its own: means of A and of B have no meaning."""
        return Needs(adapters=("lora",), own_keys=True)

    @property
    def slots(self) -> tuple[Slot, ...]:
        return (Slot(LOCAL),)

    @property
    def up(self) -> tuple[Share, ...]:
        return (Share(shared(LOCAL, "backbone"), "backbone"),)

    @property
    def mix(self) -> Mix:
        return {LOCAL: 1.0}

    def check(self, fed: Federation) -> None:
        """The server merges deltas; the clients of a backbone adapt the same maps and have samples to measure."""
        check_server(fed, self.config)
        for client in fed.clients:
            name, others = client.client_id, neighbours(fed, client.client_id)
            if not others:
                continue
            picked(fed, client, self.config.model_copy(update={"samples": 1}))
            mine, theirs = ({site.name for site in sites_of(fed, each)} for each in (name, others[0]))
            if differing := sorted(mine ^ theirs):
                raise UserError(
                    f"'{differing[0]}' is adapted by one only of the clients '{name}' and '{others[0]}', which share a "
                    "backbone; OSRM needs the same targets for both."
                )

    def prepare(self, fed: Federation) -> Program[Mapping[str, Address]]:
        found = yield from starts(fed, self.config, LOCAL)
        fed.prepared.update(found)
        return {}

    def initial(self, ctx: ClientContext) -> dict[str, Tensor]:
        """B = 0, so that the first forward pass is the bare backbone's; A as prepared."""
        return {**ctx.start(LOCAL), **received(ctx.fed, ctx.client.client_id, LOCAL)}

    def phases(self, ctx: ClientContext) -> tuple[Phase, ...]:
        trainable = ctx.adapter.trainable(LOCAL)
        keys = Keys(*(key for key in trainable.patterns if not (self.config.freeze_a and key.endswith("/A"))))
        optim = ctx.optim if self.config.start == "own" else ctx.afresh(LOCAL)
        return (ctx.phase(Step(keys, answers_under(self.mix), optim)),)

    def receive(self, state: dict[str, Tensor], reply: Tensors) -> Mapping[str, Tensor]:
        return state if self.config.start == "own" else {**state, **reply}

    def replied(self, state: dict[str, Tensor], reply: Tensors) -> Mapping[str, Tensor]:
        """The merged model, whatever the client itself goes on from."""
        return {**state, **reply}


def check_server(fed: Federation, config: Config) -> None:
    """Refuses a delta that would be counted twice."""
    options = fed.config.aggregator.options
    if options.get("relora") and config.start == "own" and fed.config.rounds > 1:
        raise UserError(
            "With aggregator.options.relora the backbone takes in the merged delta, and clients that go on from their "
            "own adapters would count it twice; set rounds=1 or objective.options.start=global."
        )
