"""What a forward pass costs at a real backbone's shapes: counted on the meta device, where tensors have no values.

Nothing is read but the backbone's shapes, so a laptop prices a model of any size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pfl_platform.adapters.host import FROZEN, Host
from pfl_platform.adapters.surfaces import AdapterType, Keys, Slot
from pfl_platform.backbones import Answers, Backbone, Encoded
from pfl_platform.errors import UserError
from pfl_platform.ledger.flops import count_flops
from pfl_platform.ledger.holding import Saved, held_by
from pfl_platform.ledger.sampling import Pass

_FORM = "form"  # slots have the same shapes, so only their number counts


@dataclass
class Prices:
    """Prices of one adapter type. load: a fresh backbone on the meta device, by name. tokens: length of the one row
    that is counted, so the share of attention scores is that of rows of this length; answers: those of its answer.

    Slots of a learned mix are priced at a constant mix; what the gate or router itself computes is left out.
    """

    load: Callable[[str], Backbone]
    adapter: AdapterType
    tokens: int
    answers: int
    most: int = 3
    _hosts: dict[str, Host] = field(default_factory=dict)
    _known: dict[tuple[str, int, int, bool], float] = field(default_factory=dict)
    _held: dict[tuple[str, int, int, int], int] = field(default_factory=dict)
    _readers: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def host(self, name: str) -> Host:
        if name not in self._hosts:
            backbone = self.load(name)
            if backbone.device.type != "meta":
                raise UserError(f"The backbone '{name}' cannot be loaded without weights; plan with another one.")
            if backbone.card.modality == "vision":
                raise UserError(
                    f"Plans are made for rows of text, and '{name}' reads none; plan with another backbone."
                )
            slots = [Slot(f"{_FORM}{index}") for index in range(self.most)]
            with torch.device("meta"):  # adapters of a real size are not made on the CPU first
                self._hosts[name] = Host(backbone, self.adapter, slots)
        return self._hosts[name]

    def values(self, name: str) -> dict[str, int]:
        """`site/part` -> how many values, of one slot's params that train."""
        trained = self.adapter.trainable(f"{_FORM}0")
        return {
            key.partition("/")[2]: tensor.numel() for key, tensor in self.host(name).params.items() if key in trained
        }

    def readers(self, name: str) -> tuple[int, ...]:
        """For each adapted map the first that reads the same input, found by a pass over one token."""
        if name not in self._readers:
            host = self.host(name)
            sites = self.adapter.sites(host.backbone)
            seen: dict[int, Tensor] = {}

            def look(index: int) -> Callable[..., None]:
                return lambda _module, inputs: seen.__setitem__(index, inputs[0])

            hooks = [
                host.backbone.module(site.path).register_forward_pre_hook(look(index))
                for index, site in enumerate(sites)
            ]
            try:
                with host.mixing({}), torch.no_grad():
                    host.scores(_row(1))
            finally:
                for hook in hooks:
                    hook.remove()
            self._readers[name] = tuple(
                next(first for first in sorted(seen) if seen[first] is seen[index]) for index in range(len(sites))
            )
        return self._readers[name]

    def frozen(self, name: str) -> int:
        """Values that all slots share and that no client trains."""
        shared = [tensor for key, tensor in self.host(name).params.items() if key.partition("/")[0] == FROZEN]
        return sum(tensor.numel() for tensor in shared)

    def held(self, name: str, kind: Pass, rows: int) -> int:
        """Bytes that a pass over `rows` rows holds for its way back: activations, each storage once, and the logits.
        What a loss makes of the logits is not among them, and neither are attention scores, which the kernels of GPUs
        do not keep."""
        form = (name, len(kind.trained), len(kind.idle), rows)
        if form not in self._held:
            host, slots, _ = self._formed(*form[:3])
            saved = Saved(held_by(host), (self.tokens, self.tokens))
            with host.mixing(dict.fromkeys(slots, 1.0)), saved.watching():
                logits = host.scores(_row(self.tokens, rows, self.answers))
            self._held[form] = saved.bytes + logits.untyped_storage().nbytes()
        return self._held[form]

    def per_token(self, name: str, kind: Pass) -> float:
        """FLOPs per token of a pass like this one, the way back included where there is one."""
        trained, idle = len(kind.trained), len(kind.idle)
        form = (name, trained, idle, kind.gradient)
        if form not in self._known:
            self._known[form] = self._count(*form) / self.tokens
        return self._known[form]

    def _count(self, name: str, trained: int, idle: int, gradient: bool) -> int:
        host, slots, chosen = self._formed(name, trained, idle)
        row = _row(self.tokens, answers=self.answers)

        def run() -> None:
            with host.mixing(dict.fromkeys(slots, 1.0)), torch.set_grad_enabled(gradient):
                logits = host.scores(row)
                if gradient:
                    torch.autograd.grad(logits.sum(), chosen)

        return count_flops(run)[1]

    def _formed(self, name: str, trained: int, idle: int) -> tuple[Host, list[str], list[Tensor]]:
        """A host in which so many slots train, all slots of a pass, and the params that train."""
        if trained + idle > self.most:
            raise UserError(f"A pass mixes {trained + idle} adapters; plans are made for at most {self.most}.")
        host = self.host(name)
        slots = [f"{_FORM}{index}" for index in range(trained + idle)]
        patterns = [pattern for slot in slots[:trained] for pattern in self.adapter.trainable(slot).patterns]
        return host, slots, list(host.select(Keys(*patterns)).values())


def _row(tokens: int, rows: int = 1, answers: int = 0) -> Encoded:
    """Rows without values, each with so many answer tokens."""
    ids = torch.zeros(rows, tokens, dtype=torch.int64, device="meta")
    # Of four dimensions, so that nobody looks into it for values. Every position meets every other, as in a count of
    # the kernels that GPUs use.
    mask = torch.zeros(rows, 1, tokens, tokens, dtype=torch.bfloat16, device="meta")
    found = Encoded({"input_ids": ids, "attention_mask": mask}, ids, (), ())
    places = ids.new_empty(rows * answers)
    counts = ids.new_empty(rows)
    chosen = Answers(places, places, places, counts, (answers,) * rows, (rows, tokens))
    vars(found).update(answers=chosen, unpadded={"attention_mask": (tokens,) * rows})
    return found


def weight_bytes(params: int, bits: int = 16) -> float:
    """Bytes of a frozen model.

    >>> weight_bytes(1_000, 4)
    500.0
    """
    return params * bits / 8


def memory(params: int, adapter: int, slots: int) -> float:
    """Bytes of a backbone with so many adapters, all at 16 bits: weights only, as papers count them."""
    return weight_bytes(params) + slots * weight_bytes(adapter)


def shares_of(values: Mapping[str, int], keys: Keys, slot: str) -> dict[str, int]:
    """The part of a slot's values that a set of keys covers, by `site/part`."""
    return {place: size for place, size in values.items() if f"{slot}/{place}" in keys}
