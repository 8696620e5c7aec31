"""The way of a picture through a CLIP tower and a projector, so that what is frozen of it can be kept."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pfl_model_zoo.codec import ChatCodec
from pfl_platform.backbones import Encoded
from pfl_platform.data import Picture, Sample

TOWER = "model.vision_tower"
PROJECTOR = "model.multi_modal_projector"


@dataclass(frozen=True)
class TowerSight:
    """Implements `pfl_platform.backbones.Sight` for `LlavaForConditionalGeneration`."""

    codec: ChatCodec
    layers: tuple[int, ...]
    """Layers of the tower whose states are taken, side by side; the class token is left out."""
    digest: str

    @property
    def stages(self) -> tuple[str, ...]:
        return (TOWER, PROJECTOR)

    def encode(self, samples: Sequence[Sample], *, answers: bool = True) -> Encoded:
        return self.codec.encode(samples, answers=answers, pixels=False)

    def pixels(self, picture: Picture) -> Tensor:
        """float32 (1, 3, size, size)."""
        assert self.codec.reader is not None
        return self.codec.reader.batch([picture])

    def run(self, model: nn.Module, values: Tensor, first: int, last: int) -> Tensor:
        """Pixels (pictures, 3, size, size) through the tower, (pictures, patches, width), to the decoder's width."""
        if first == 0 < last:
            states = model.get_submodule(TOWER)(values, output_hidden_states=True).hidden_states
            values = torch.cat([states[layer][:, 1:] for layer in self.layers], dim=-1)
        if first < 2 == last:
            values = model.get_submodule(PROJECTOR)(values)
        return values

    def joined(self, model: nn.Module, inputs: Mapping[str, Any], features: Tensor) -> Mapping[str, Any]:
        """Features (pictures, patches, width) in the places of their marks, as the model itself puts them there. It
        would compare the counts on the device, which waits for all that is under way; the codec writes as many marks as
        a picture has patches."""
        whole: Any = model
        rest = dict(inputs)
        ids = rest.pop("input_ids")
        embedded = whole.get_input_embeddings()(ids)
        places = (ids == whole.config.image_token_id)[..., None]
        return {**rest, "inputs_embeds": embedded.masked_scatter(places, features.to(embedded.dtype))}


def sight_of(model: nn.Module, codec: ChatCodec, digest: str) -> TowerSight:
    """The sight of a model that is loaded. digest: of its weights."""
    config: Any = model.config
    layer = config.vision_feature_layer
    reader = codec.reader
    assert reader is not None
    about = {
        "weights": digest,
        "dtype": str(model.get_submodule(TOWER).dtype),
        "attention": str(config.vision_config._attn_implementation),
        "pictures": reader.about,
    }
    layers = (layer,) if isinstance(layer, int) else tuple(layer)
    return TowerSight(codec, layers, json.dumps(about, sort_keys=True))
