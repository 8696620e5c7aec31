"""What the core knows of a frozen foundation model.

A family's plugin (see the model zoo) loads the weights and says how samples become tensors; the core only sees this
page."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from pfl_platform.data import Picture, Sample

IGNORE = -100
"""Label of a position that is not supervised."""

FEATURES = "picture_features"
"""Input of a batch whose pictures were read by the frozen part already; see `Sight`."""

Span = tuple[int, int]
"""Half-open range of characters in a row's text; (-1, -1) for padding and marks that stand for no character."""


MASKS = ("attention_mask", "decoder_attention_mask")


@dataclass(frozen=True)
class Answers:
    """Where a batch's answer tokens are predicted: P places, row after row.

    places: int64 (P,), of the position in front of each token, in (rows x positions) laid flat. rows: int64 (P,), whose
    they are. tokens: int64 (P,), the answer tokens themselves. counts: int64 (rows,), how many each row has; per_row:
    the same as plain numbers. shape: (rows, positions).
    """

    places: Tensor
    rows: Tensor
    tokens: Tensor
    counts: Tensor
    per_row: tuple[int, ...]
    shape: tuple[int, int]

    @staticmethod
    def of(labels: Tensor) -> Answers:
        """From labels (rows, positions); see `Encoded`.

        >>> found = Answers.of(torch.tensor([[IGNORE, IGNORE, 7, 2], [IGNORE, 5, IGNORE, IGNORE]]))
        >>> found.places.tolist(), found.rows.tolist(), found.tokens.tolist(), found.per_row
        ([1, 2, 4], [0, 0, 1], [7, 2, 5], (2, 1))
        """
        rows, positions = int(labels.shape[0]), int(labels.shape[1])
        picked = labels[:, 1:] != IGNORE
        row, before = picked.nonzero().unbind(1)
        counts = picked.sum(dim=1)
        tokens = labels[:, 1:][row, before]
        return Answers(row * positions + before, row, tokens, counts, tuple(counts.tolist()), (rows, positions))

    def to(self, device: torch.device) -> Answers:
        """The same on a device."""
        places, rows, tokens, counts = (
            value.to(device, non_blocking=True) for value in (self.places, self.rows, self.tokens, self.counts)
        )
        return Answers(places, rows, tokens, counts, self.per_row, self.shape)

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Encoded:
    """A batch as one backbone reads it.

    inputs: keyword arguments of the model's forward: `input_ids` and `attention_mask`, int64 (rows, positions), and
        what the family adds (for example `pixel_values`, float32 (pictures, 3, height, width)). A backbone that reads
        no text has the mask of its positions and no `input_ids`. An encoder-decoder has `decoder_input_ids` and
        `decoder_attention_mask`, int64 (rows, answer positions), too.
    labels: int64 (rows, positions), `IGNORE` where nothing is supervised; a label stands at its own token's position,
        one behind the logits that predict it. Of an encoder-decoder the positions are the answer's; a classifier has
        two, of which the second holds the class.
    spans: per row and position, which characters of `texts[row]` the token covers: of labels, for a classifier of
        what it reads. All backbones render a sample to the same text, so spans match positions across tokenizers.
    values: float32 (rows,), the number that a row is to be given, NaN where it has a class instead; None when all rows
        have one. See `answer_loss`.
    pictures: those that `inputs` leaves unread, row after row in the order of their marks; see `Sight`.
    """

    inputs: Mapping[str, Tensor]
    labels: Tensor
    spans: Sequence[Sequence[Span]]
    texts: Sequence[str]
    values: Tensor | None = None
    pictures: Sequence[Picture] = ()

    @property
    def rows(self) -> int:
        return int(self.labels.shape[0])

    def to(self, device: torch.device) -> Encoded:
        """The same batch on a device; nothing is copied when it is there."""
        if all(value.device == device for value in (*self.inputs.values(), self.labels)):
            return self
        inputs = {name: value.to(device, non_blocking=True) for name, value in self.inputs.items()}
        values = None if self.values is None else self.values.to(device)
        found = replace(self, inputs=inputs, labels=self.labels.to(device), values=values)
        # Counted where the labels and masks come from: on a device each count would wait for all that is under way.
        vars(found).update(answers=self.answers.to(device), unpadded=self.unpadded, supervised=self.supervised)
        return found

    @cached_property
    def answers(self) -> Answers:
        """Where its answer tokens are predicted."""
        return Answers.of(self.labels)

    @cached_property
    def supervised(self) -> int:
        """Positions that are supervised, and rows that have a value instead."""
        rated = 0 if self.values is None else int((~self.values.isnan()).sum())
        return len(self.answers) + rated

    @cached_property
    def unpadded(self) -> Mapping[str, Sequence[int]]:
        """By mask: of each row, the positions that are not padding."""
        return {name: self.inputs[name].sum(dim=1).tolist() for name in MASKS if name in self.inputs}

    @property
    def lengths(self) -> tuple[int, ...]:
        """Of each row, the positions that are not padding, those of an encoder-decoder's answers included."""
        return tuple(sum(row) for row in zip(*self.unpadded.values(), strict=True))

    @property
    def tokens(self) -> int:
        """Positions that are not padding, of all rows."""
        return sum(self.lengths)


class Codec(Protocol):
    """Samples to tensors and back, for one backbone."""

    def encode(self, samples: Sequence[Sample], *, answers: bool = True) -> Encoded:
        """With answers: right-padded, only answer tokens (and the end token after each) are supervised.
        Without: the first human turn only, ready for generation; left-padded where answers go on from the prompt."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids, up to the first stop token."""
        ...

    @property
    def stop_ids(self) -> tuple[int, ...]: ...

    @property
    def pad_id(self) -> int: ...


@runtime_checkable
class OneStepCodec(Codec, Protocol):
    """Codec of a backbone that answers in one forward pass, such as a classifier; nothing is generated then."""

    def read(self, logits: Tensor, samples: Sequence[Sample]) -> list[str]:
        """The answer to each sample, from logits (rows, 2, classes) of its prompt."""
        ...


@runtime_checkable
class PieceCodec(Codec, Protocol):
    """Codec whose tokens can be compared with those of another tokenizer, by the text that they stand for."""

    @property
    def pieces(self) -> tuple[bytes | None, ...]:
        """The text of each token as UTF-8 (perhaps a part of a character), by id; None for a token that stands for no
        text, such as padding, a picture or an end."""
        ...

    @property
    def end_id(self) -> int:
        """The token that is learned as the end of an answer."""
        ...


class Sight(Protocol):
    """How a backbone's pictures become what its blocks read: by stages, each a module that reads what the one before
    has made of one picture. What leading stages that nobody trains or adapts make of a picture is worked out once."""

    @property
    def stages(self) -> tuple[str, ...]:
        """Paths of the modules, in the order in which a picture passes them."""
        ...

    @property
    def digest(self) -> str:
        """Names what decides their results beside the picture: weights, how pictures are read, precision."""
        ...

    def encode(self, samples: Sequence[Sample], *, answers: bool = True) -> Encoded:
        """As the codec does, with the pictures unread in `Encoded.pictures`."""
        ...

    def pixels(self, picture: Picture) -> Tensor:
        """One picture as the first stage reads it, on the CPU, (1, ...)."""
        ...

    def run(self, model: nn.Module, values: Tensor, first: int, last: int) -> Tensor:
        """Takes pictures (pictures, ...) through the stages `first` to `last - 1`."""
        ...

    def joined(self, model: nn.Module, inputs: Mapping[str, Any], features: Tensor) -> Mapping[str, Any]:
        """What the model's forward is given for a batch's inputs (without pixels) and its pictures when these have
        passed all stages: (pictures, tokens, d)."""
        ...


@dataclass(frozen=True)
class Card:
    """What is known of a backbone without loading it."""

    name: str
    modality: str  # "text", "vision" (pictures and no text) or "vision-language"
    layers: int
    hidden_size: int
    num_params: int
    source: str = ""  # folder or hub id
    notes: str = ""
    measured: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Backbone:
    """A loaded, frozen model with the few names that adapters and statistics need.

    blocks: module paths of the decoder (or encoder) layers, first to last; of an encoder-decoder the encoder's first.
    linears: paths of a block's linear maps relative to the block, in a fixed order; adapters attach to these. Blocks
        may lack some (see `linears_in`).
    final_norm, head: paths of the norm before the head and of the head itself, a linear map.
    last_linear: path of the last block's output projection, whose gradient sketches a batch.
    digest: names the weights' content.
    task_head: paths of modules whose meaning is a task's own, such as a classifier; empty for backbones that answer in
        words. fresh_head: those among them that no weights were read for; each run draws them by its seed.
    answer_side: shell patterns of the paths of linear maps that read an encoder-decoder's answer, not its input.
    rows_apart: whether a row of a batch goes through the model as it would alone, and the adapted maps read (rows,
        positions, size). Where not (statistics over a batch, rows that are packed or flattened), gradients of single
        samples are found one at a time.
    sight: how pictures pass the frozen part, where the family lets their features be kept.
    few: paths of linear maps whose weights are held in fewer bits than the others. few_bytes: what these take in all.
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
    task_head: tuple[str, ...] = ()
    fresh_head: tuple[str, ...] = ()
    answer_side: tuple[str, ...] = ()
    rows_apart: bool = True
    sight: Sight | None = None
    few: tuple[str, ...] = ()
    few_bytes: float = 0.0

    @property
    def name(self) -> str:
        return self.card.name

    @cached_property
    def loaded_head(self) -> Mapping[str, Mapping[str, Tensor]]:
        """Copies of the task head's params as they were when first asked for: path -> name -> float32 on the CPU. Of a
        backbone without weights they are shapes, too."""

        def copied(parameter: Tensor) -> Tensor:
            device = "meta" if parameter.is_meta else "cpu"
            return parameter.detach().to(device, torch.float32, copy=True)

        return {
            path: {name: copied(parameter) for name, parameter in self.module(path).named_parameters()}
            for path in self.task_head
        }

    def linears_in(self, block: str) -> tuple[str, ...]:
        """The linear maps that a block has, in the order of `linears`."""
        there = {name for name, _ in self.module(block).named_modules()}
        return tuple(name for name in self.linears if name in there)

    def mask(self, path: str, inputs: Mapping[str, Tensor]) -> Tensor:
        """Attention mask (rows, positions) of what the linear map at `path` reads, from a batch's inputs."""
        answers = any(fnmatch.fnmatchcase(path, pattern) for pattern in self.answer_side)
        return inputs["decoder_attention_mask" if answers else "attention_mask"]

    def module(self, path: str) -> nn.Module:
        return self.model.get_submodule(path)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device


def shape_of(linear: nn.Module) -> tuple[int, int]:
    """(d_out, d_in) of a linear map, whose weight may be packed."""
    return int(linear.out_features), int(linear.in_features)  # type: ignore[arg-type]


@torch.no_grad()
def dense_weight(linear: nn.Module) -> Tensor:
    """The weight of a linear map, (d_out, d_in); of one in fewer bits what its values stand for, found by sending the
    identity through it."""
    weight, bias = linear.weight, getattr(linear, "bias", None)
    assert isinstance(weight, Tensor)
    if weight.is_floating_point():
        return weight
    out: Tensor = linear(torch.eye(shape_of(linear)[1], device=weight.device))
    return (out if bias is None else out - bias).T
