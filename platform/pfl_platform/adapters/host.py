"""One backbone with slots: the place into which clients' adapters are swapped.

A process holds one `Host` per backbone and serves all its clients with it. Loading a client is a copy into the slots'
tensors; nothing is rebuilt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property, partial
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from pfl_platform.adapters.heads import key_of
from pfl_platform.adapters.surfaces import (
    AdapterType,
    Control,
    Factors,
    Keys,
    Mix,
    MixFactory,
    Slot,
    SlotLayer,
    Tensors,
)
from pfl_platform.backbones import FEATURES, Backbone, Encoded, shape_of
from pfl_platform.data import Sample
from pfl_platform.features.shelf import Keeper, Shelf, frozen_stages

FROZEN = "frozen"
"""Slot name of params that all slots of a backbone share."""
BASE = "base"
"""Slot name of a delta that is always on, whatever the mix; dense, one per backbone."""
_LAID = "laid"  # no address: whatever base comes next, it is loaded
SMALL = 256 << 20
"""Bytes of adapted maps up to which `Host.merging` holds a second copy of them."""
RESOLUTION = 1e-6
"""Singular values of a base this small, relative to the largest, are rounding errors of float32."""
BACKBONE = "backbone"
"""Slot name under which a backbone's own params are exposed, for pretraining only."""


class Host:
    """A backbone, its slot layers and the live tensors by key.

    Without an adapter it serves the bare backbone; with `whole=True` the backbone's own params are keys
    `backbone/<module path>/<name>` and can be trained, which is how tiny backbones are pretrained. The task head of a
    backbone that has one is kept in float32 under keys `head/<module path>/<name>`; a slot that has a head of its own
    has it under `head@<slot>/...`, and a pass under the mix that is this slot alone goes through that one.
    """

    def __init__(
        self,
        backbone: Backbone,
        adapter: AdapterType | None = None,
        slots: Sequence[Slot] = (),
        mixes: Mapping[str, MixFactory] | None = None,
        *,
        whole: bool = False,
        keeper: Keeper | None = None,
    ) -> None:
        self.backbone = backbone
        self._keeper = keeper or Keeper()
        self._reading = Lock()
        self.control = Control()
        self.eager: Callable[[], AbstractContextManager[Any]] = nullcontext
        """What passes run in that modules are tapped in: compiled blocks do not look for hooks."""
        self.layers: Mapping[str, SlotLayer] = {}
        self._own_heads: dict[str, list[tuple[nn.Module, str, nn.Parameter]]] = {}
        self.params: dict[str, Tensor] = {}
        self.frozen_address: str | None = None
        self.base_address: str | None = None
        self._base_factors: dict[str, Factors | None] = {}
        if adapter is not None:
            adapter.check(backbone)
            with torch.random.fork_rng(devices=[]):  # what libraries draw here is overwritten by `load`
                self.layers = adapter.install(backbone, slots, self.control)
                self._collect([slot.name for slot in slots], mixes or {})
        if whole:
            for name, parameter in backbone.model.named_parameters():
                path, _, part = name.rpartition(".")
                self.params[f"{BACKBONE}/{path}/{part}"] = parameter
        else:
            self._collect_heads([slot.name for slot in slots if slot.head])
        for tensor in self.params.values():
            tensor.requires_grad_(False)
        sites = [layer.site.path for layer in self.layers.values()]
        sight = backbone.sight
        self.depth = 0 if sight is None or whole else frozen_stages(sight, [*sites, *backbone.task_head])
        """How many stages of the backbone's sight nobody changes here; what they give is worked out once."""

    def _collect(self, slots: Sequence[str], mixes: Mapping[str, MixFactory]) -> None:
        for name, layer in self.layers.items():
            for slot in (*slots, FROZEN):
                for part, tensor in layer.slot_params(slot).items():
                    self.params[f"{slot}/{name}/{part}"] = tensor
            for mix, factory in mixes.items():
                module = factory(layer.site).to(self.backbone.device)
                layer.mixes[mix] = module
                for part, parameter in module.named_parameters():
                    self.params[f"{mix}/{name}/{part}"] = parameter

    def _collect_heads(self, slots: Sequence[str]) -> None:
        if self.backbone.task_head and self.backbone.device.type != "meta":
            _ = self.backbone.loaded_head  # as it is before any client loads its own
        for path in self.backbone.task_head:
            module = self.backbone.module(path).float()
            module.register_forward_pre_hook(_in_float32)
            for name, parameter in module.named_parameters():
                self.params[key_of(path, name)] = parameter
                for slot in slots:
                    own = nn.Parameter(parameter.detach().clone())
                    self.params[key_of(path, name, slot)] = own
                    where, _, part = f"{path}.{name}".rpartition(".")
                    self._own_heads.setdefault(slot, []).append((self.backbone.module(where), part, own))

    @contextmanager
    def _own_head(self, mix: Mix) -> Iterator[None]:
        """Puts the own head of the slot that a mix is, if it has one, in the place of the client's."""
        slot = next(iter(mix)) if not isinstance(mix, str) and len(mix) == 1 else ""
        parts = self._own_heads.get(slot, ())
        before = [getattr(module, name) for module, name, _ in parts]
        for module, name, own in parts:
            setattr(module, name, own)
        try:
            yield
        finally:
            for (module, name, _), parameter in zip(parts, before, strict=True):
                setattr(module, name, parameter)

    @cached_property
    def linear_values(self) -> int:
        """Numbers in the linear maps of the blocks and of the head: what a token is multiplied with. Embeddings are
        only looked up, and a vision tower runs once per picture; neither counts here. Both sides of an encoder-decoder
        do, though a token passes one of them."""
        return linear_values(self.backbone)

    @cached_property
    def head_values(self) -> int:
        """Those of the head among them."""
        rows, columns = shape_of(plain(self.backbone.module(self.backbone.head)))
        return rows * columns

    @cached_property
    def picks(self) -> bool:
        """Whether the head can be given some positions alone: it is one linear map, which nobody adapts."""
        return not self.backbone.task_head and isinstance(self.backbone.module(self.backbone.head), nn.Linear)

    def work(self, encoded: Encoded, *, whole: bool = False) -> float:
        """What a pass over a batch takes, in tokens that go through blocks and head; through the blocks alone where the
        head is given the answers only, each of which then counts with what the head is to the blocks (as every token
        does where the logits of all are asked for: `whole`)."""
        if not self.picks:
            return encoded.tokens
        headed = encoded.tokens if whole else len(encoded.answers)
        return encoded.tokens + headed * self.head_values / (self.linear_values - self.head_values)

    @cached_property
    def shelf(self) -> Shelf:
        return self._keeper.shelf(self.backbone, self.depth)

    def encode(self, samples: Sequence[Sample], *, answers: bool = True, pixels: bool = False) -> Encoded:
        """A batch on the backbone's device, with features of its pictures where stages are frozen. `pixels`: with the
        pictures themselves, so that a pass takes them through all stages."""
        return self.seen(self.read_batch(samples, answers=answers, pixels=pixels)).to(self.backbone.device)

    def read_batch(self, samples: Sequence[Sample], *, answers: bool = True, pixels: bool = False) -> Encoded:
        """A batch on the CPU, its pictures unread where features take their place. One thread reads at a time."""
        backbone = self.backbone
        with self._reading:
            if pixels or backbone.sight is None or not self.depth:
                return backbone.codec.encode(samples, answers=answers)
            return backbone.sight.encode(samples, answers=answers)

    def seen(self, encoded: Encoded) -> Encoded:
        """The same batch with features in the place of pictures that were left unread; these may be on a device, the
        rest stays where it is."""
        if not encoded.pictures:
            return encoded
        with self._reading:
            found = self.shelf.of(encoded.pictures)
        return replace(encoded, inputs={**encoded.inputs, FEATURES: found}, pictures=())

    def run(self, inputs: Mapping[str, Any], **options: Any) -> Any:
        """One pass of the model over a batch's inputs; features go through the stages that are left."""
        backbone = self.backbone
        features = inputs.get(FEATURES)
        if features is None or backbone.sight is None:
            return backbone.model(**inputs, **options)
        sight = backbone.sight
        seen = sight.run(backbone.model, features, self.depth, len(sight.stages))
        rest = {name: value for name, value in inputs.items() if name != FEATURES}
        return backbone.model(**sight.joined(backbone.model, rest, seen), **options)

    def scores(self, encoded: Encoded, *, whole: bool = False) -> Tensor:
        """One pass over a batch: the logits that predict answers, (P, vocabulary); of all positions where `whole` is
        asked for, or where the model has no head for single positions (see `Output.scores`)."""
        self.control.lengths = encoded.lengths
        try:
            return self._scores(encoded, whole=whole)
        finally:
            self.control.lengths = None

    def _scores(self, encoded: Encoded, *, whole: bool) -> Tensor:
        if whole or not self.picks:
            every: Tensor = self.run(encoded.inputs, use_cache=False).logits
            return every
        answers = encoded.answers

        def pick(_head: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
            if not given or tuple(given[0].shape[:2]) != answers.shape:
                return None  # the model has its own way to the head
            self.control.answers = answers
            return (given[0].flatten(0, 1).index_select(0, answers.places)[None], *given[1:])

        hook = self.backbone.module(self.backbone.head).register_forward_pre_hook(pick)
        try:
            logits: Tensor = self.run(encoded.inputs, use_cache=False).logits
            return logits if self.control.answers is None else logits[0]
        finally:
            hook.remove()
            self.control.answers = None

    def load(self, tensors: Tensors) -> None:
        """Copies every tensor whose key is live; keys that are not (moments, counts) are left alone."""
        with torch.no_grad():
            for key, value in tensors.items():
                live = self.params.get(key)
                if live is not None:
                    live.copy_(value)

    def load_frozen(self, address: str | None, read: Callable[[str], Tensors]) -> None:
        """Loads shared frozen params unless they are there already."""
        if address is not None and address != self.frozen_address:
            self.load(read(address))
            self.frozen_address = address

    def load_base(self, address: str | None, read: Callable[[str], Tensors]) -> None:
        """Switches on the delta of the backbone that lies at an address (`base/site/W`, and where it has an offset
        `base/site/c`), and off what was on before."""
        if address == self.base_address:
            return
        tensors = read(address) if address is not None else {}
        for name, layer in self.layers.items():
            shift = tensors.get(f"{BASE}/{name}/W")
            layer.shift = None if shift is None else shift.to(self.backbone.device, torch.float32)
            offset = tensors.get(f"{BASE}/{name}/c")
            layer.offset = None if offset is None else offset.to(self.backbone.device, torch.float32)
        self.base_address = address
        self._base_factors.clear()

    def base_factors(self, name: str) -> Factors | None:
        """The delta that is always on at a site, as factors of its numerical rank in float32; None where there is none.
        Computed once for all clients of the backbone."""
        if name not in self._base_factors:
            self._base_factors[name] = factored(self.layers[name].shift)
        return self._base_factors[name]

    def lay_base(self, tensors: Tensors) -> None:
        """Adds dense deltas `base/site/W` to what is always on, until the next `load_base`."""
        for name, layer in self.layers.items():
            added = tensors.get(f"{BASE}/{name}/W")
            if added is not None:
                added = added.to(self.backbone.device, torch.float32)
                layer.shift = added if layer.shift is None else layer.shift + added
                self.base_address = _LAID
                self._base_factors.pop(name, None)

    @contextmanager
    def dense(self) -> Iterator[None]:
        """Inside, `base/site/W` are live tensors, zero where no base is on: their gradients are those of the dense
        weights of the adapted maps. Holds a float32 copy of each of these weights."""
        before = {name: layer.shift for name, layer in self.layers.items()}
        for name, layer in self.layers.items():
            size = (layer.site.out_features, layer.site.in_features)
            start = before[name]
            live = torch.zeros(size, device=self.backbone.device) if start is None else start.clone()
            layer.shift = self.params[f"{BASE}/{name}/W"] = live
        try:
            yield
        finally:
            for name, layer in self.layers.items():
                layer.shift = before[name]
                del self.params[f"{BASE}/{name}/W"]

    def read(self, keys: Sequence[str]) -> dict[str, Tensor]:
        """Copies on the CPU of live tensors."""
        return {key: self.params[key].detach().to("cpu", copy=True) for key in keys}

    def select(self, keys: Keys) -> dict[str, Tensor]:
        """Makes exactly these live tensors trainable and returns them, sorted by key."""
        chosen = {key: self.params[key] for key in sorted(self.params) if key in keys}
        for key, tensor in self.params.items():
            tensor.requires_grad_(key in chosen)
        return chosen

    def takes_rows(self, keys: Keys) -> bool:
        """Whether rows of a batch can have params of their own in place of these."""
        places = [key.split("/") for key in self.params if key in keys]
        return self.backbone.rows_apart and all(
            len(place) == 3 and place[1] in self.layers and place[2] in self.layers[place[1]].row_parts
            for place in places
        )

    @contextmanager
    def by_row(self, keys: Keys, rows: int) -> Iterator[dict[str, Tensor]]:
        """Inside, each of `rows` rows goes through params of its own, which are as the live ones: key -> leaf
        (rows, *shape), whose gradient holds every row's. They take no memory until there is one. Only for keys that
        `takes_rows`."""
        leaves = {
            key: self.params[key].detach().expand(rows, *self.params[key].shape).requires_grad_(True)
            for key in sorted(self.params)
            if key in keys
        }
        for key, leaf in leaves.items():
            slot, site, part = key.split("/")
            self.layers[site].by_row[f"{slot}/{part}"] = leaf
        try:
            yield leaves
        finally:
            for layer in self.layers.values():
                layer.by_row.clear()

    def masks(self, inputs: Mapping[str, Tensor]) -> Tensor | Callable[[str], Tensor]:
        """The attention mask of a pass, for `mixing`; by path where a backbone reads two texts."""
        if self.backbone.answer_side:
            return partial(self.backbone.mask, inputs=inputs)
        return inputs["attention_mask"]

    @contextmanager
    def merging(self, mix: Mix) -> Iterator[None]:
        """Inside, passes under this mix go through one map per site, where that is the same but for rounding: a mix of
        plain numbers, on weights in float32, whose second copy is small. Other passes must not be made inside."""
        layers = [layer for layer in self.layers.values() if layer.low_rank]
        plain = not isinstance(mix, str) and all(isinstance(weight, float | int) for weight in mix.values())
        kinds = all(type(layer.base) is nn.Linear and layer.weight.dtype == torch.float32 for layer in layers)
        kinds = kinds and all(type(layer.weight) is nn.Parameter for layer in layers)  # and not spread over ranks
        small = sum(layer.weight.nbytes for layer in layers) <= SMALL
        if isinstance(mix, str) or not mix or not (layers and plain and kinds and small):
            yield
            return
        try:
            for layer in layers:
                layer.merged = layer.merge({slot: float(weight) for slot, weight in mix.items()})
            yield
        finally:
            for layer in layers:
                layer.merged = None

    @contextmanager
    def mixing(
        self,
        mix: Mix,
        mask: Tensor | Callable[[str], Tensor] | None = None,
        rng: Callable[[str], torch.Generator] | None = None,
    ) -> Iterator[None]:
        """Runs what is inside under a mix. `mask` is the pass's attention mask (see `masks`); `rng` gives dropout and
        noise their generators, None switches both off."""
        control = self.control
        before = (control.mix, control.mask, control.rng)
        control.mix, control.mask, control.rng = mix, mask, rng
        try:
            with self._own_head(mix):
                yield
        finally:
            control.mix, control.mask, control.rng = before


def linear_values(backbone: Backbone) -> int:
    """See `Host.linear_values`."""
    paths = [f"{block}.{linear}" for block in backbone.blocks for linear in backbone.linears_in(block)]
    modules = [backbone.module(path) for path in (*paths, backbone.head)]
    return sum(rows * columns for rows, columns in map(shape_of, map(plain, modules)))


def plain(module: nn.Module) -> nn.Module:
    """A linear map without its adapters."""
    return module.base if isinstance(module, SlotLayer) else module


def factored(dense: Tensor | None) -> Factors | None:
    """A dense delta as factors of its numerical rank, on the CPU in float32; None for nothing and for zero."""
    if dense is None or not bool(dense.any()):
        return None
    u, s, vt = torch.linalg.svd(dense.detach().double().cpu(), full_matrices=False)
    rank = int((s / s[0] > RESOLUTION).sum())
    return Factors((u[:, :rank] * s[:rank]).float(), vt[:rank].float())


def _in_float32(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a module of float32 params is given, in that precision."""
    return tuple(x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in args)
