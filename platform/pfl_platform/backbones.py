"""What the core knows of a frozen foundation model.

A family's plugin (see the model zoo) loads the weights and says how samples become tensors; the core only sees this
page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from pfl_platform.data import Sample

IGNORE = -100
"""Label of a position that is not supervised."""

Span = tuple[int, int]
"""Half-open range of characters in a row's text; (-1, -1) for padding and marks that stand for no character."""


@dataclass(frozen=True)
class Encoded:
    """A batch as one backbone reads it.

    inputs: keyword arguments of the model's forward: `input_ids` and `attention_mask`, int64 (rows, positions), and
    what the family adds (for example `pixel_values`, float32 (pictures, 3, height, width)).
    labels: int64 (rows, positions), `IGNORE` where nothing is supervised; a label stands at its own token's position.
    spans: per row and position, which characters of `texts[row]` the token covers. All backbones render a sample to the
        same text, so spans match positions across tokenizers.
    """

    inputs: Mapping[str, Tensor]
    labels: Tensor
    spans: Sequence[Sequence[Span]]
    texts: Sequence[str]

    @property
    def rows(self) -> int:
        return int(self.labels.shape[0])

    @property
    def tokens(self) -> int:
        """Positions that are not padding."""
        return int(self.inputs["attention_mask"].sum())


class Codec(Protocol):
    """Samples to tensors and back, for one backbone."""

    def encode(self, samples: Sequence[Sample], *, answers: bool = True) -> Encoded:
        """With answers: right-padded, only answer tokens (and the end token after each) are supervised.
        Without: the first human turn only, left-padded, ready for generation."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids, up to the first stop token."""
        ...

    @property
    def stop_ids(self) -> tuple[int, ...]: ...

    @property
    def pad_id(self) -> int: ...


@dataclass(frozen=True)
class Card:
    """What is known of a backbone without loading it."""

    name: str
    modality: str  # "text" or "vision-language"
    layers: int
    hidden_size: int
    num_params: int
    source: str = ""  # folder or hub id
    notes: str = ""
    measured: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Backbone:
    """A loaded, frozen model with the few names that adapters and statistics need.

    blocks: module paths of the decoder (or encoder) layers, first to last.
    linears: paths of a block's linear maps relative to the block, in a fixed order; adapters attach to these.
    final_norm, head: paths of the norm before the head and of the head itself.
    last_linear: path of the last block's output projection, whose gradient sketches a batch.
    digest: names the weights' content.
    """

    card: Card
    model: nn.Module
    codec: Codec
    blocks: tuple[str, ...]
    linears: tuple[str, ...]
    final_norm: str
    head: str
    last_linear: str
    digest: str

    @property
    def name(self) -> str:
        return self.card.name

    def module(self, path: str) -> nn.Module:
        return self.model.get_submodule(path)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device
