"""FedMosaic's client (1.1 of the spec sheet; 4 of the paper): local adapter and gate train, global is frozen."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from pfl_platform.adapters.surfaces import Keys, Mix, MixFactory, Slot, Tensors, renamed, shared
from pfl_platform.errors import UserError
from pfl_platform.federation.components import ClientContext, Federation, Needs, Objective
from pfl_platform.federation.tasks import Address, Program, Share, shares_of
from pfl_platform.training.losses import answers_under
from pfl_platform.training.surfaces import Phase, Step
from pfl_plugins.fedmosaic.align import align, needs_alignment
from pfl_plugins.fedmosaic.config import Config
from pfl_plugins.fedmosaic.gate import InputGate, ScalarGate

GATE = "gate"


class FedMosaic(Objective):
    """Slots `local` (trained, sent) and `global` (received, frozen), mixed by a gate that stays at the client."""

    def __init__(self, config: Config) -> None:
        self.config = config

    @property
    def slots(self) -> tuple[Slot, ...]:
        return (Slot("local"), Slot("global"))

    @property
    def mixes(self) -> Mapping[str, MixFactory]:
        return {GATE: ScalarGate if self.config.gate == "scalar" else InputGate}

    @property
    def mix(self) -> Mix:
        return GATE

    @property
    def up(self) -> tuple[Share, ...]:
        return shares_of("local")

    @property
    def down(self) -> tuple[Share, ...]:
        return shares_of("global")

    @property
    def needs(self) -> Needs:
        """Alignment reads the hidden states behind an answer's tokens, in the row of the question."""
        return Needs(continues=True)

    def check(self, fed: Federation) -> None:
        """When backbones have to be aligned, the public set is there and all clients have the same adapter."""
        if needs_alignment(fed, self.config.alignment):
            if clause := fed.unequal(client.client_id for client in fed.clients):
                raise UserError(f"Backbones are aligned for one shape of adapter, but {clause}; give them the same.")
            fed.public()

    def prepare(self, fed: Federation) -> Program[Mapping[str, Address]]:
        return (yield from align(fed, self.config.alignment))

    def initial(self, ctx: ClientContext) -> dict[str, Tensor]:
        """Alg. 1: local and global start from the same aligned adapter; beta = 0."""
        gates = {
            f"{GATE}/{site.name}/{name}": parameter.detach().clone()
            for site in ctx.sites
            for name, parameter in self.mixes[GATE](site).named_parameters()
        }
        return {**ctx.start("local", "global"), **gates}

    def receive(self, state: dict[str, Tensor], reply: Tensors) -> Mapping[str, Tensor]:
        """G_i. Conventional layers that the server did not send, because nobody shares this backbone, are the
        client's own."""
        own = renamed(shared("local", "backbone").of(state), "local", "global")
        return {**state, **own, **reply}

    def phases(self, ctx: ClientContext) -> tuple[Phase, ...]:
        train = Keys(*ctx.adapter.trainable("local").patterns, f"{GATE}/*")
        return (ctx.phase(Step(train, answers_under(self.mix), ctx.optim)),)
