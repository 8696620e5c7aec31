"""Adapters as the core sees them: sites, slots, mixes, and the one layer that applies them.

A *site* is an adapted linear map. Its canonical name means the same in every backbone when its scope is "all", and
within one backbone when its scope is "backbone". A *key* is `slot/site/part`, for example
`local/block1.mlp.down_proj/P`."""

from __future__ import annotations

import fnmatch
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from pfl_platform.backbones import Answers, Backbone

Scope = Literal["all", "backbone"]
Tensors: TypeAlias = Mapping[str, Tensor]
Mix: TypeAlias = Mapping[str, "float | Tensor"] | str
"""Slot -> weight (a number, or one per row, shape (rows,)); or the name of a learned mix. `{}` is the bare backbone."""


@dataclass(frozen=True)
class Site:
    """One adapted linear map: `path` in the model, canonical `name`, shape, and with whom its params may be combined.

    The name begins with `block` when the scope is "all" (the k-th adapted block of any backbone) and with `layer`
    when it is "backbone", so that a set of keys can be told apart by name alone (see `shared`).
    """

    name: str
    path: str
    in_features: int
    out_features: int
    scope: Scope = "backbone"
    block: int = 0  # index of the decoder block, from 0


@dataclass(frozen=True)
class Keys:
    """A set of keys, as shell patterns over `slot/site/part`. A key belongs to it when any pattern matches.

    >>> Keys("local/*/A", "local/*/B").match("local/layer0.q_proj/A")
    True
    >>> "global/x/A" in Keys("local/*")
    False
    """

    patterns: tuple[str, ...]

    def __init__(self, *patterns: str) -> None:
        object.__setattr__(self, "patterns", patterns)

    def match(self, key: str) -> bool:
        return any(fnmatch.fnmatchcase(key, pattern) for pattern in self.patterns)

    __contains__ = match

    def names(self, slot: str) -> bool:
        """Whether a pattern asks for keys of a slot by its name.

        >>> Keys("base/*/W").names("base"), Keys("*").names("base")
        (True, False)
        """
        return any(pattern.startswith(f"{slot}/") for pattern in self.patterns)

    def of(self, tensors: Tensors) -> dict[str, Tensor]:
        """The chosen part of `tensors`, sorted by key."""
        return {key: tensors[key] for key in sorted(tensors) if self.match(key)}


def shared(slot: str, scope: Scope) -> Keys:
    """The keys of a slot whose sites have this scope.

    >>> "local/block1.mlp.up_proj/P" in shared("local", "all")
    True
    """
    return Keys(f"{slot}/block*" if scope == "all" else f"{slot}/layer*")


@dataclass(frozen=True)
class Slot:
    """Role of an adapter. `client` slots belong to each client; a `backbone` slot is shared by all clients of a
    backbone. head: on backbones with a task head, the model that is this slot alone has a head of its own, beside the
    client's."""

    name: str
    scope: Literal["client", "backbone"] = "client"
    head: bool = False


class LearnedMix(nn.Module, ABC):
    """Weights of slots that are trained, one module per site. Its parameters are keys `<mix name>/site/<parameter>`."""

    @abstractmethod
    def forward(self, x: Tensor, mask: Tensor | None, rng: torch.Generator | None) -> Mapping[str, Tensor]:
        """Slot -> weight, broadcastable to (rows, positions, 1), from the site's input x (rows, positions, d_in).
        mask (rows, positions) is 1 where x is no padding; None: nowhere. `rng` is there in training only (for mixes
        that draw noise)."""

    def static(self) -> Mapping[str, float] | None:
        """The weights when they do not depend on the input, else None; a static mix can be saved as one plain
        adapter."""
        return None


MixFactory: TypeAlias = Callable[[Site], LearnedMix]


@dataclass(frozen=True)
class Part:
    """The rows of a pass that are one client's, where rows of several clients are in it.

    positions: how many there are in its longest row, by the path of a site; what is behind them is padding that its
    rows would not have alone. rng: as in `Control`. params: its live tensors by key.
    """

    rows: slice
    positions: Callable[[str], int]
    rng: Callable[[str], torch.Generator] | None
    params: Tensors


@dataclass
class Control:
    """What a forward pass tells every site of one backbone: the mix, and where its dropout comes from.

    One object is shared by all `SlotLayer`s of a backbone, so that a pass sets it once. parts: whose rows are in the
    pass, where they are of several clients; then what `SlotLayer.by_row` holds is one value for each of them. answers:
    whose logits alone are computed, None where all are. lengths: of each row, the positions that are not padding, where
    somebody has counted them.
    """

    mix: Mix = field(default_factory=dict)
    rng: Callable[[str], torch.Generator] | None = None  # site name -> generator; None: no dropout, no noise
    # Attention mask of the pass, (rows, all positions so far); by the path of the site where there are two.
    mask: Tensor | Callable[[str], Tensor] | None = None
    parts: Sequence[Part] = ()
    answers: Answers | None = None
    lengths: Sequence[int] | None = None

    def chances(self, site: Site, x: Tensor) -> Tensor | None:
        """Numbers in [0, 1) for dropout at a site, of the shape of its input x; None where nothing is dropped."""
        if self.parts:
            return chances_of_parts(self.parts, site, x)
        return None if self.rng is None else _chances(self.rng(site.name), x.shape, x.device)

    def weights(self, layer: SlotLayer, x: Tensor) -> Mapping[str, float | Tensor]:
        """The weight of each slot at this site for this input."""
        return self.learned(self.mix, layer, x) if isinstance(self.mix, str) else self.mix

    def learned(self, name: str, layer: SlotLayer, x: Tensor) -> Mapping[str, float | Tensor]:
        """The weights that a learned mix gives each slot at this site."""
        if self.parts:
            return weights_of_parts(name, layer, x)
        generator = self.rng(f"mix:{layer.site.name}") if self.rng is not None else None
        weights: Mapping[str, float | Tensor] = layer.mixes[name](x, self.masked(layer.site, x), generator)
        return weights

    def masked(self, site: Site, x: Tensor) -> Tensor | None:
        """The part of the pass's mask that stands for a site's input (rows, positions, ...)."""
        whole = self.mask(site.path) if callable(self.mask) else self.mask
        return whole[:, -x.shape[1] :] if whole is not None else None


def _chances(generator: torch.Generator, shape: Sequence[int], device: torch.device) -> Tensor:
    if device.type != "cpu":
        generator = torch.Generator(device).manual_seed(generator.initial_seed())
    return torch.rand(shape, generator=generator, device=device)


def chances_of_parts(parts: Sequence[Part], site: Site, x: Tensor) -> Tensor | None:
    """`Control.chances` of several clients' rows: each has the numbers that it would have alone."""
    found = torch.ones(x.shape, device=x.device)  # where a client has no positions nothing matters
    for part in parts:
        if part.rng is None:
            return None
        own = found[part.rows, : part.positions(site.path)]
        own.copy_(_chances(part.rng(site.name), own.shape, x.device))
    return found


def weights_of_parts(mix: str, layer: SlotLayer, x: Tensor) -> dict[str, float | Tensor]:
    """A learned mix's weights (rows, 1 or positions, 1) of several clients' rows, each by its own params."""
    control, site, module = layer.control, layer.site, layer.mixes[mix]
    mask, names = control.masked(site, x), [name for name, _ in module.named_parameters()]
    found: dict[str, list[Tensor]] = {}
    for part in control.parts:
        longest = part.positions(site.path)
        seen = x[part.rows, :longest]
        own = {name: part.params[f"{mix}/{site.name}/{name}"] for name in names}
        generator = part.rng(f"mix:{site.name}") if part.rng is not None else None
        own_mask = None if mask is None else mask[part.rows, :longest]
        for slot, weight in functional_call(module, own, (seen, own_mask, generator)).items():
            own_rows = weight if weight.dim() == 3 else weight.reshape(1, 1, 1)
            found.setdefault(slot, []).append(own_rows.expand(seen.shape[0], -1, -1))
    wide = {slot: any(weight.shape[1] > 1 for weight in weights) for slot, weights in found.items()}
    return {
        slot: torch.cat([_widened(weight, x.shape[1]) if wide[slot] else weight for weight in weights])
        for slot, weights in found.items()
    }


def _widened(weight: Tensor, positions: int) -> Tensor:
    if weight.shape[1] == 1:
        return weight.expand(-1, positions, -1)
    return functional.pad(weight, (0, 0, 0, positions - weight.shape[1]))


class SlotLayer(nn.Module, ABC):
    """`W x + sum_s mix[row, s] * delta_s(x)` at one site.

    Wraps the base linear map, frozen. Implementations hold the params of all slots and compute the mixture in one go.

    row_parts: the parts of a slot that rows of a batch may have of their own. Where `by_row` holds `slot/part`, shape
    (groups, *shape), `mixture` takes these in place of the slot's: each for the same number of rows, one behind the
    other.
    low_rank: whether a slot is a low-rank map beside the base (`factors`). Where it is not, a slot has params that a
    pass takes in place of the base's own, and `whole` gives them; such a layer may wrap a module of any kind.
    """

    row_parts: ClassVar[frozenset[str]] = frozenset()
    low_rank: ClassVar[bool] = True

    def __init__(self, site: Site, base: nn.Module, control: Control) -> None:
        super().__init__()
        self.site = site
        self.base = base
        self.mixes = nn.ModuleDict()
        self.by_row: dict[str, Tensor] = {}
        # (d_out, d_in) and (d_out,), added to the base map in every pass; see `Host.load_base`.
        self.shift: Tensor | None = None
        self.offset: Tensor | None = None
        self.merged: tuple[Tensor, Tensor | None] | None = None  # weight and bias in place of all; see `Host.merging`
        # Held in a tuple so that nn.Module does not treat it as a child.
        self._control = (control,)

    @property
    def control(self) -> Control:
        return self._control[0]

    @property
    def weight(self) -> Tensor:
        """The base's weight: some models look at the dtype of their own linear maps."""
        return cast(Tensor, self.base.weight)

    @abstractmethod
    def slot_params(self, slot: str) -> Mapping[str, Tensor]:
        """part -> the live tensor (parameter or buffer) of a slot, for example A and B."""

    @abstractmethod
    def mixture(self, x: Tensor, weights: Mapping[str, float | Tensor]) -> Tensor:
        """`sum_s weights[s] * delta_s(x)`, shape (rows, positions, d_out); weights holds at least one slot."""

    @abstractmethod
    def factors(self, slot: str) -> Factors:
        """A slot's live params as `delta(x) = U (V x) + c`, the scale included in U and c."""

    def whole(self, weights: Mapping[str, float]) -> Mapping[str, Tensor]:
        """Of a layer that is not `low_rank`: name -> the base's params under a mix of plain numbers."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        if self.merged is not None:
            return functional.linear(x, *self.merged)
        out: Tensor = self.base(x)
        if self.shift is not None:
            out = out + functional.linear(x.to(self.shift.dtype), self.shift, self.offset).to(out.dtype)
        control = self.control
        if not control.mix:
            return out
        weights = control.weights(self, x)
        for name, own in self.by_row.items():
            rows = control.parts[-1].rows.stop if control.parts else own.shape[0]
            if x.dim() != 3 or x.shape[0] != rows:
                raise ValueError(
                    f"{self.site.path} reads {tuple(x.shape)} where {rows} rows have '{name}' of their own; a "
                    "backbone that mixes rows has `rows_apart=False`."
                )
        return out + self.mixture(x, weights).to(out.dtype)

    @torch.no_grad()
    def merge(self, weights: Mapping[str, float]) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the one linear map that the base and these slots are together, in the base's dtype."""
        weight, bias = self.weight, cast("Tensor | None", self.base.bias)
        if self.shift is not None:
            weight = weight + self.shift
        if self.offset is not None:
            bias = self.offset if bias is None else bias + self.offset
        for slot, part in weights.items():
            found = self.factors(slot)
            weight = torch.addmm(weight, found.u, found.v, alpha=part)
            if found.c is not None:
                bias = part * found.c if bias is None else bias + part * found.c
        return weight, bias


@dataclass(frozen=True)
class Factors:
    """A low-rank affine map: delta(x) = U (V x) + c. U (d_out, k), V (k, d_in), c (d_out,) or None."""

    u: Tensor
    v: Tensor
    c: Tensor | None = None

    def dense(self) -> Tensor:
        return self.u @ self.v


class AdapterType(ABC):
    """A kind of adapter, for example low-rank factors in every linear map. Built once per run."""

    @property
    @abstractmethod
    def name(self) -> str: ...

    @abstractmethod
    def sites(self, backbone: Backbone) -> tuple[Site, ...]:
        """Where it attaches in this backbone, in a fixed order."""

    @abstractmethod
    def install(self, backbone: Backbone, slots: Sequence[Slot], control: Control) -> Mapping[str, SlotLayer]:
        """Puts a layer in place of every site and returns them by site name. Injects through peft, so that the params
        have peft's shapes and a saved adapter has peft's format."""

    @abstractmethod
    def initial(self, backbone: Backbone, slot: str, seed: int) -> dict[str, Tensor]:
        """First params of a slot: key -> tensor on the CPU, fp32. The same seed gives the same tensors on every
        machine."""

    def frozen(self, backbone: Backbone, seed: int) -> dict[str, Tensor]:
        """Params that all slots of a backbone share and that no client trains, under the slot name `frozen`; often
        none."""
        return {}

    @abstractmethod
    def trainable(self, slot: str) -> Keys:
        """The keys of a slot that training may change."""

    def sizes(self, backbone: Backbone) -> Mapping[str, int]:
        """`site/part` -> how many values, of a slot's params that train, for plans. Found by making first params; an
        adapter that knows it from the shapes alone says so."""
        trained, first = self.trainable("form"), self.initial(backbone, "form", 0)
        return {key.partition("/")[2]: tensor.numel() for key, tensor in first.items() if key in trained}

    def signature(self) -> Mapping[str, Any]:
        """What must be equal between clients whose params are combined (rank, number of blocks ...)."""
        return {}

    def check(self, backbone: Backbone) -> None:
        """Raises `UserError` when the adapter cannot attach to this backbone (for example a rank that is too large)."""
        self.sites(backbone)


def renamed(tensors: Tensors, old: str, new: str) -> dict[str, Tensor]:
    """The keys of slot `old` under the slot name `new`, others left out.

    >>> renamed({"local/a/P": torch.zeros(1), "gate/a/beta": torch.ones(1)}, "local", "global")
    {'global/a/P': tensor([0.])}
    """
    return {new + key[len(old) :]: value for key, value in tensors.items() if key.startswith(old + "/")}
