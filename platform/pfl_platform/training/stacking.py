"""Rows of several clients in one pass: which passes can be one, the rows one behind the other, and each client's part
of what comes out."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pfl_platform.adapters.host import Host
from pfl_platform.adapters.surfaces import Mix, Part
from pfl_platform.backbones import IGNORE, MASKS, Encoded
from pfl_platform.training.surfaces import Output
from pfl_platform.training.view import BatchView, Call

QUESTION, ANSWER = MASKS
MASK_OF = {QUESTION: QUESTION, "input_ids": QUESTION, ANSWER: ANSWER, "decoder_input_ids": ANSWER}
"""Inputs by row and position that a client's part of a batch has, and the mask of the positions that are there."""


@dataclass(frozen=True)
class Stack:
    """The rows of several views, one behind the other. parts: each view's own, as long as its longest row. longest: of
    each view, by the name of the mask."""

    views: Sequence[BatchView]
    encoded: Encoded
    rows: Sequence[slice]
    longest: Mapping[str, Sequence[int]]
    parts: Sequence[Encoded]

    def of(self, views: Sequence[BatchView]) -> bool:
        """Whether it is of these views."""
        return len(views) == len(self.views) and all(a is b for a, b in zip(views, self.views, strict=True))

    def who(self, host: Host, calls: Sequence[Call], params: Sequence[Mapping[str, Tensor]]) -> list[Part]:
        """Whose rows they are, for the layers."""

        def positions(number: int) -> Callable[[str], int]:
            def found(path: str) -> int:
                answers = any(fnmatch.fnmatchcase(path, pattern) for pattern in host.backbone.answer_side)
                return self.longest[ANSWER if answers else QUESTION][number]

            return found

        return [
            Part(rows, positions(number), view.rng(call), own)
            for number, (rows, view, call, own) in enumerate(zip(self.rows, self.views, calls, params, strict=True))
        ]

    def outputs(self, scores: Tensor) -> list[Output]:
        """Each view's own part of what a pass of all has given (see `Output`)."""
        if scores.dim() == 2:
            cut = torch.split(scores, [sum(self.encoded.answers.per_row[rows]) for rows in self.rows])
        else:
            whole = torch.split(scores, [rows.stop - rows.start for rows in self.rows])
            cut = tuple(own[:, : part.labels.shape[1]] for own, part in zip(whole, self.parts, strict=True))
        return [view.output(own, part) for view, own, part in zip(self.views, cut, self.parts, strict=True)]


def stacked(host: Host, views: Sequence[BatchView]) -> Stack:
    """Reads the samples of all views as one batch."""
    encoded = host.seen(host.read_batch([sample for view in views for sample in view.samples]))
    rows, start = [], 0
    for view in views:
        rows.append(slice(start, start + len(view.samples)))
        start += len(view.samples)
    longest = {name: [max(found[part]) for part in rows] for name, found in encoded.unpadded.items()}
    supervised = (encoded.labels != IGNORE).int()
    last = (supervised * torch.arange(1, supervised.shape[1] + 1)).amax(dim=1).tolist()
    parts = []
    for number, part in enumerate(rows):
        there = longest.get(ANSWER, longest[QUESTION])[number]
        parts.append(
            _part(encoded, part, max(there, *last[part]), {name: found[number] for name, found in longest.items()})
        )
    device = host.backbone.device
    return Stack(views, encoded.to(device), rows, longest, [part.to(device) for part in parts])


def _part(encoded: Encoded, rows: slice, labelled: int, longest: Mapping[str, int]) -> Encoded:
    """Some rows, without what only the model reads, such as pictures, and without the padding of longer ones."""
    return Encoded(
        inputs={
            name: encoded.inputs[name][rows, : longest[mask]]
            for name, mask in MASK_OF.items()
            if name in encoded.inputs and mask in longest
        },
        labels=encoded.labels[rows, :labelled],
        spans=[spans[:labelled] for spans in encoded.spans[rows]],
        texts=encoded.texts[rows],
        values=None if encoded.values is None else encoded.values[rows],
    )


def kind(call: Call, params: Mapping[str, Tensor]) -> tuple[object, ...]:
    """What has to be equal for two clients' calls to be one pass: its kind, the slots of its mix, what trains."""
    mix = call.mix if isinstance(call.mix, str) else tuple(call.mix)
    training = tuple(key for key, tensor in params.items() if tensor.requires_grad) if call.grad else ()
    return (call.grad, call.train, call.taps, call.whole, mix, training)


def common_mix(mixes: Sequence[Mix], rows: Sequence[int], device: torch.device) -> Mix:
    """Several clients' mixes of the same slots as one, by row where they differ.

    >>> common_mix([{"a": 1.0}, {"a": 1.0}], [1, 2], torch.device("cpu"))
    {'a': 1.0}
    >>> common_mix([{"a": 1.0}, {"a": 0.5}], [1, 2], torch.device("cpu"))
    {'a': tensor([1.0000, 0.5000, 0.5000])}
    """
    first, given = mixes[0], [mix for mix in mixes if not isinstance(mix, str)]
    if isinstance(first, str):
        return first
    plain = all(isinstance(weight, float | int) for mix in given for weight in mix.values())
    if plain and all(mix == first for mix in given):
        return first
    return {
        slot: torch.cat([_by_row(mix[slot], count, device) for mix, count in zip(given, rows, strict=True)])
        for slot in first
    }


def _by_row(weight: float | Tensor, rows: int, device: torch.device) -> Tensor:
    if not isinstance(weight, Tensor):
        return torch.full((rows,), float(weight), device=device)
    return weight.expand(rows) if weight.dim() == 0 else weight
