"""What is known of a backbone at its real size, from the meta device: no weights are read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pfl_platform.adapters.host import linear_values
from pfl_platform.backbones import Backbone, shape_of
from pfl_platform.config import Choice
from pfl_platform.plugins import PluginManager, available, unadorned


@dataclass(frozen=True)
class Shape:
    """params: all of them. linear: what a token is multiplied with, the head included. head: that alone. picture:
    what a picture passes beside, such as a vision tower. outcomes: width of the head. per_picture: positions that a
    picture takes. few: values that are held in fewer bits than the others, `few_bytes` in all."""

    name: str
    params: int
    linear: int
    head: int
    picture: int
    layers: int
    width: int
    outcomes: int
    per_picture: int
    few: int = 0
    few_bytes: float = 0.0

    def weights(self, width: float) -> float:
        """Bytes of all weights where one takes `width`, but for those in fewer bits."""
        return (self.params - self.few) * width + self.few_bytes


@dataclass
class Shapes:
    """Shapes by backbone, and how many values an adapter trains in each."""

    manager: PluginManager
    _backbones: dict[str, Backbone] = field(default_factory=dict)
    _shapes: dict[str, Shape] = field(default_factory=dict)
    _values: dict[str, int] = field(default_factory=dict)

    def backbone(self, name: str) -> Backbone:
        """On the meta device, without adapters."""
        if name not in self._backbones:
            found: Backbone = self.manager.make("backbone", name, {"device": "meta", "dtype": "bfloat16"})
            self._backbones[name] = self._backbones.setdefault(found.name, found)
        return self._backbones[name]

    def loaded(self, name: str, options: Mapping[str, Any]) -> Shape:
        """Of a backbone under a run's own options, such as those that hold weights in fewer bits."""
        if not options:
            return self.of(name)
        key = repr((name, sorted(options.items(), key=str)))
        if key not in self._shapes:
            asked = {**options, "device": "meta", "dtype": "bfloat16"}
            self._shapes[key] = _shape(self.manager.make("backbone", name, asked))
        return self._shapes[key]

    def of(self, name: str) -> Shape:
        backbone = self.backbone(name)
        if backbone.name not in self._shapes:
            self._shapes[backbone.name] = _shape(backbone)
        return self._shapes[backbone.name]

    def values(self, name: str, adapter: Choice) -> int:
        """Values of one adapter that train."""
        key = repr((name, adapter.name, sorted(adapter.options.items(), key=str)))
        if key not in self._values:
            made = self.manager.make("adapter", adapter.name, adapter.options)
            self._values[key] = sum(made.sizes(self.backbone(name)).values())
        return self._values[key]


def _shape(backbone: Backbone) -> Shape:
    model: Any = backbone.model
    head = backbone.module(backbone.head)
    table = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    text = {id(parameter) for module in (head, table) if module is not None for parameter in module.parameters()}
    for path in backbone.blocks:
        text |= {id(parameter) for parameter in backbone.module(path).parameters()}
    beside = sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in text)
    weight: Any = head.weight
    plugin = available("backbone").get(unadorned(backbone.name))
    about: Mapping[str, Any] = plugin.about if plugin is not None else {}
    pictures = "vision" in backbone.card.modality
    return Shape(
        name=backbone.name,
        params=backbone.card.num_params,
        linear=linear_values(backbone),
        head=math.prod(shape_of(head)),
        picture=beside if pictures else 0,
        layers=len(backbone.blocks),
        width=backbone.card.hidden_size,
        outcomes=int(weight.shape[0]),
        per_picture=int(about.get("picture_tokens", 0)),
        few=sum(rows * columns for rows, columns in (shape_of(backbone.module(path)) for path in backbone.few)),
        few_bytes=backbone.few_bytes,
    )
