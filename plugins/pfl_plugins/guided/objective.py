"""Guided clients: hard initialisation, parametric and function-space regularisation (section 4 of the paper)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pfl_platform.adapters.surfaces import Keys, Mix, Slot, Tensors, renamed
from pfl_platform.errors import UserError
from pfl_platform.federation.components import ClientContext, Federation, Needs, Objective
from pfl_platform.federation.tasks import Share, shares_of
from pfl_platform.lowrank.deltas import Delta
from pfl_platform.training.losses import answer_loss, answers_under
from pfl_platform.training.surfaces import Loss, Output, Penalty, Phase, Step, View
from pfl_plugins.guided.config import Config
from pfl_plugins.guided.equations import adjusted, distance, divergence, gauged, similarity

LOCAL, GLOBAL = "local", "global"
BETA = "guide/beta"
"""The strength of this round, a private scalar; not there before a global adapter has arrived."""


class Guided(Objective):
    """Slot `local` is trained and sent. What comes back under the same keys is the global adapter: it replaces `local`
    (hard), or becomes the anchor or the teacher in slot `global`."""

    def __init__(self, config: Config) -> None:
        self.config = config

    @property
    def needs(self) -> Needs:
        return Needs(adapters=("lora",))

    @property
    def slots(self) -> tuple[Slot, ...]:
        return (Slot(LOCAL), Slot(GLOBAL)) if self.config.guide == "kd" else (Slot(LOCAL),)

    @property
    def up(self) -> tuple[Share, ...]:
        return shares_of(LOCAL)

    @property
    def mix(self) -> Mix:
        return {LOCAL: 1.0}

    def check(self, fed: Federation) -> None:
        """Betas are given for clients that exist; a client's own adapter is not in the backbone as well."""
        if self.config.guide != "hard" and fed.config.aggregator.options.get("relora"):
            raise UserError(
                "With aggregator.options.relora the backbone takes in the merged delta, and clients that keep own "
                f"adapters (objective.guide '{self.config.guide}') would count it twice; set guide=hard."
            )
        fed.check_names("objective.betas", self.config.betas)

    def initial(self, ctx: ClientContext) -> dict[str, Tensor]:
        """Slot `global` is empty until a global adapter arrives."""
        return ctx.start(LOCAL)

    def phases(self, ctx: ClientContext) -> tuple[Phase, ...]:
        config = self.config
        replaced = config.guide == "hard"
        moments = config.moments if config.moments != "auto" else ("reset" if replaced else "keep")
        own = config.betas.get(ctx.client.client_id, config.beta)
        loss, penalty = self._losses(own)
        optim = ctx.afresh(LOCAL) if moments == "reset" else ctx.optim
        return (ctx.phase(Step(ctx.adapter.trainable(LOCAL), loss, optim, penalty)),)

    def _losses(self, beta: float) -> tuple[Loss, Penalty | None]:
        if self.config.guide == "hard":
            return answers_under(self.mix), None
        if self.config.guide == "kd":
            return distilled(self.config, beta), None
        return softened(beta), pulled(beta)

    def receive(self, state: dict[str, Tensor], reply: Tensors) -> Mapping[str, Tensor]:
        """The global adapter arrives; how near the client's last adapter is to it decides this round's strength."""
        config = self.config
        if config.guide == "hard":
            return {**state, **reply}
        own, merged = deltas(state, LOCAL), deltas(reply, LOCAL)
        names = sorted(merged)
        kept = {key: value for key, value in state.items() if not key.startswith(f"{GLOBAL}/")}
        if config.guide == "parametric" and config.gauge == "align":
            merged = gauged(merged, own)
            kept.update(written(merged, GLOBAL))
        else:
            kept.update(renamed(reply, LOCAL, GLOBAL))
        alike = 1.0
        if config.adjust != "fixed":
            ordered = ([own[name] for name in names], [merged[name] for name in names])
            alike = similarity(*ordered, config.adjust, space=config.cosine_space, eps=config.sar_eps)
            kept["log/similarity"] = torch.tensor(alike)
        return {**kept, BETA: torch.tensor(adjusted(1.0, alike))}

    def replied(self, state: dict[str, Tensor], reply: Tensors) -> Mapping[str, Tensor]:
        """The global adapter in the client's place, whatever it is used for in training."""
        return {**state, **reply}


def strength(refs: Tensors, beta: float) -> float:
    """beta of this round: 0 while there is no global adapter, else the option times the similarity."""
    return beta * float(refs[BETA]) if BETA in refs else 0.0


def softened(beta: float) -> Loss:
    """`(1 - beta) L_SFT`; the other part is a penalty."""
    plain = answers_under({LOCAL: 1.0})
    return lambda view: (1.0 - strength(view.refs, beta)) * plain(view)


def pulled(beta: float) -> Penalty:
    """`beta sum ||A_k - A_G||^2 + ||B_k - B_G||^2`; the global factors are constants."""

    def penalty(params: Mapping[str, Tensor], refs: Tensors) -> Tensor | None:
        anchors = renamed(Keys(f"{GLOBAL}/*").of(refs), GLOBAL, LOCAL)
        return None if not anchors else strength(refs, beta) * distance(params, anchors)

    return penalty


def distilled(config: Config, beta: float) -> Loss:
    """`(1 - beta) L_SFT + beta L_REG`, L_REG the mean over an answer's positions of `divergence`. The teacher is the
    same backbone under the slot `global`: one more forward pass, without gradient, and no second model."""

    def loss(view: View) -> Tensor:
        weight = strength(view.refs, beta)
        own = view.forward({LOCAL: 1.0})
        rows = (1.0 - weight) * answer_loss(own)
        if weight == 0.0:
            return rows
        teacher = view.forward({GLOBAL: 1.0}, grad=False, train=False)
        return rows + weight * guidance(own, teacher, config)

    return loss


def guidance(own: Output, teacher: Output, config: Config) -> Tensor:
    """L_REG per row: the mean divergence over its answer positions, shape (rows,). Of a row that is given a number it
    is the squared difference of the two numbers: the divergence of Gaussians whose likelihood is `answer_loss`."""
    each = divergence(own.answers, teacher.answers, config.temperature, vocab_mean=config.kd_vocab_mean)
    rows = own.by_row(each) / own.encoded.answers.counts.clamp(min=1)
    values = own.encoded.values
    if values is None:
        return rows
    rated = (~values.isnan()).nonzero()[:, 0]
    apart = (own.logits[rated, 0, 0].float() - teacher.logits[rated, 0, 0].float()).square()
    return rows.index_add(0, rated, apart)


def deltas(tensors: Tensors, slot: str) -> dict[str, Delta]:
    """Site -> its factors. Scales are left at 1: they are the same for a client and the global adapter."""
    sites = sorted(key.split("/")[1] for key in tensors if key.startswith(f"{slot}/") and key.endswith("/A"))
    return {site: Delta(tensors[f"{slot}/{site}/B"], tensors[f"{slot}/{site}/A"], name=site) for site in sites}


def written(merged: Mapping[str, Delta], slot: str) -> dict[str, Tensor]:
    """Deltas as params of a slot."""
    factors = {}
    for site, delta in merged.items():
        factors[f"{slot}/{site}/A"] = delta.down.float().contiguous()
        factors[f"{slot}/{site}/B"] = delta.up.float().contiguous()
    return factors
