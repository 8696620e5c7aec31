"""Greedy generation with a key-value cache, and the scoring of cells.

Several passes of the same backbone under different mixes may be combined: their logits are added at every token,
each pass with a cache of its own. Of a backbone that answers in one step they are averaged.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

import torch
from torch import Tensor

from pfl_platform.adapters.host import Host
from pfl_platform.adapters.surfaces import Mix, Tensors
from pfl_platform.backbones import OneStepCodec
from pfl_platform.data import Sample, TaskData
from pfl_platform.evaluation.choosing import is_choice, likeliest
from pfl_platform.evaluation.surfaces import Cell, CellResult, InferenceRecipe, Metric, Prediction
from pfl_platform.training.surfaces import Output
from pfl_platform.training.view import tapping


@torch.no_grad()
def greedy(host: Host, samples: Sequence[Sample], passes: Sequence[Mix], max_new_tokens: int) -> list[str]:
    """The generated answer of each sample, up to its first stop token."""
    codec = host.backbone.codec
    inputs = dict(host.encode(samples, answers=False).inputs)
    if isinstance(codec, OneStepCodec):
        return codec.read(_one_step(host, inputs, passes), samples)
    answers = _Answers(host, inputs, passes) if host.backbone.answer_side else _Continuations(host, inputs, passes)
    mask = inputs["attention_mask"]
    stops = torch.tensor(codec.stop_ids, device=mask.device)
    alive = torch.ones(len(samples), dtype=torch.bool, device=mask.device)
    written: list[Tensor] = []
    for _ in range(max_new_tokens):
        token = torch.where(alive, answers.logits().argmax(-1), codec.pad_id)
        written.append(token)
        alive = alive & ~torch.isin(token, stops)
        if not bool(alive.any()):
            break
        answers.append(token)
    ids = torch.stack(written, dim=1).tolist()
    return [codec.decode(row) for row in ids]


class HostPrompts:
    """Implements `Prompts` on a host."""

    def __init__(self, host: Host, samples: Sequence[Sample]) -> None:
        self._host = host
        self.backbone = host.backbone
        self._encoded = host.encode(samples, answers=False)

    @torch.no_grad()
    def forward(self, mix: Mix, taps: Sequence[str] = ()) -> Output:
        host, backbone, inputs = self._host, self.backbone, self._encoded.inputs
        goes_on = not backbone.answer_side and not isinstance(backbone.codec, OneStepCodec)
        options: dict[str, Any] = {"logits_to_keep": 1, "use_cache": False} if goes_on else {}
        if goes_on:
            options["position_ids"] = positions_of(inputs["attention_mask"])
        with host.mixing(mix, host.masks(inputs)), tapping(host, taps) as seen:
            logits = host.run(inputs, **options).logits
        return Output(logits, self._encoded, seen)


def _one_step(host: Host, inputs: Mapping[str, Tensor], passes: Sequence[Mix]) -> Tensor:
    """Mean logits of the passes, float32 (rows, positions, classes)."""
    found = []
    for mix in passes:
        with host.mixing(mix, host.masks(inputs)):
            found.append(host.run(inputs).logits.float())
    return torch.stack(found).mean(dim=0)


class _Writing(ABC):
    """Answers while they are written, token by token; every pass has a cache of its own."""

    def __init__(self, host: Host, passes: Sequence[Mix]) -> None:
        self._host = host
        self._passes = passes
        self._kept: list[dict[str, Any]] = [{} for _ in passes]
        self.inputs: dict[str, Any] = {}
        self.masks: Tensor | Callable[[str], Tensor] | None = None

    def logits(self) -> Tensor:
        """Of the next token, added over the passes in their order, float32 (rows, vocabulary)."""
        return reduce(torch.add, map(self._run, range(len(self._passes))))

    def _run(self, number: int) -> Tensor:
        with self._host.mixing(self._passes[number], self.masks):
            out = self._host.run(self.inputs, **self._kept[number], use_cache=True)
        self._kept[number] = self.kept(out)
        last: Tensor = out.logits[:, -1].float()
        return last

    def kept(self, out: Any) -> dict[str, Any]:
        """What a pass hands to its next one, as arguments of the model."""
        return {"past_key_values": out.past_key_values}

    @abstractmethod
    def append(self, token: Tensor) -> None:
        """Takes the token that was chosen, int64 (rows,)."""


class _Continuations(_Writing):
    """Answers that go on from a left-padded prompt."""

    def __init__(self, host: Host, inputs: Mapping[str, Tensor], passes: Sequence[Mix]) -> None:
        super().__init__(host, passes)
        self._read(inputs)

    def _read(self, inputs: Mapping[str, Tensor]) -> None:
        self.masks = inputs["attention_mask"]
        positions = positions_of(self.masks)[:, -inputs["input_ids"].shape[1] :]
        self.inputs = {**inputs, "position_ids": positions, "logits_to_keep": 1}

    def append(self, token: Tensor) -> None:
        mask = self.inputs["attention_mask"]
        mask = torch.cat([mask, mask.new_ones(len(token), 1)], dim=1)
        self._read({"input_ids": token[:, None], "attention_mask": mask})


class _Answers(_Writing):
    """Answers that a decoder writes to what an encoder has read, once."""

    def __init__(self, host: Host, inputs: Mapping[str, Tensor], passes: Sequence[Mix]) -> None:
        super().__init__(host, passes)
        self.masks = host.masks(inputs)  # one column for the answer's side: every token written so far is one
        self.inputs = {name: value for name, value in inputs.items() if name != "decoder_attention_mask"}

    def kept(self, out: Any) -> dict[str, Any]:
        return {**super().kept(out), "encoder_outputs": (out.encoder_last_hidden_state,)}

    def append(self, token: Tensor) -> None:
        self.inputs = {"attention_mask": self.inputs["attention_mask"], "decoder_input_ids": token[:, None]}


def positions_of(mask: Tensor) -> Tensor:
    """Places of the tokens of left-padded rows, int64 (rows, columns); 0 at the padding."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


@dataclass(frozen=True)
class Judge:
    """How cells are scored: the metric of each task by name, how answers are batched, and how questions with options
    are answered."""

    metrics: Mapping[str, Metric]
    batch_size: int
    max_new_tokens: int
    choose: Literal["written", "likelihood", "likelihood_per_token"] = "written"

    def score(
        self,
        host: Host,
        recipe: InferenceRecipe,
        cells: Sequence[tuple[Cell, TaskData, Sequence[Sample]]],
        state: Tensors | None = None,
    ) -> list[CellResult]:
        """Scores cells. Items of all cells are generated together, ordered by length, so that padding stays small.
        `state` is the client's, for recipes that make their passes from it.

        Samples are asked for more than once and not held in between: a benchmark may draw them, and there may be many
        clients.
        """
        pool = [(number, place) for number, (_, _, samples) in enumerate(cells) for place in range(len(samples))]
        lengths = [cells[number][2][place].prompt_length for number, place in pool]
        order = sorted(range(len(pool)), key=lengths.__getitem__)
        found: dict[int, Prediction] = {}
        one = recipe.passes[0] if recipe.rows is None and len(recipe.passes) == 1 else {}
        with host.merging(one):
            for chosen in self._batches(host, order, lambda k: cells[pool[k][0]][2][pool[k][1]]):
                batch = [cells[number][2][place] for number, place in (pool[k] for k in chosen)]
                passes = recipe.passes if recipe.rows is None else recipe.rows(HostPrompts(host, batch), state or {})
                texts = self._answers(host, batch, passes)
                for k, sample, text in zip(chosen, batch, texts, strict=True):
                    metric = self.metrics[cells[pool[k][0]][1].metric]
                    found[k] = Prediction(sample.id, text, metric.score(text, sample))
        by_cell: dict[int, list[Prediction]] = {}
        for k, (number, _) in enumerate(pool):
            by_cell.setdefault(number, []).append(found[k])
        results = []
        for number, (cell, data, samples) in enumerate(cells):
            predictions = by_cell.get(number, [])
            if not predictions:
                continue  # no items: not measured, which is not zero
            score = 100.0 * self.metrics[data.metric].total(predictions, samples)
            results.append(CellResult(cell, score, predictions))
        return results

    def _batches(self, host: Host, order: Sequence[int], sample: Callable[[int], Sample]) -> Iterator[list[int]]:
        """The items in this order, those apart whose options are scored; each option is a row of a batch."""
        if self.choose == "written":
            yield from (list(order[k : k + self.batch_size]) for k in range(0, len(order), self.batch_size))
            return
        waiting: dict[bool, list[int]] = {False: [], True: []}
        rows = {False: 0, True: 0}
        for k in order:
            found = sample(k)
            kind = is_choice(host, found)
            size = len(found.options) if kind else 1
            if waiting[kind] and rows[kind] + size > self.batch_size:
                yield waiting[kind]
                waiting[kind], rows[kind] = [], 0
            waiting[kind].append(k)
            rows[kind] += size
        yield from (rest for rest in waiting.values() if rest)

    def _answers(self, host: Host, batch: Sequence[Sample], passes: Sequence[Mix]) -> list[str]:
        if self.choose == "written" or not is_choice(host, batch[0]):
            return greedy(host, batch, passes, self.max_new_tokens)
        return likeliest(host, batch, passes, per_token=self.choose == "likelihood_per_token", rows=self.batch_size)


def to_lines(results: Iterable[CellResult]) -> str:
    """Predictions as JSON lines: cell, sample id, text, score."""
    lines = [
        json.dumps({"cell": result.cell.key, "id": item.sample_id, "text": item.text, "score": item.score})
        for result in results
        for item in result.predictions
    ]
    return "\n".join(lines) + ("\n" if lines else "")


CellData = Callable[[Cell], TaskData]
"""Finds a cell's task in the benchmark."""
