"""Greedy generation with a key-value cache and left padding, and the scoring of cells.

Several passes of the same backbone under different mixes may be combined: their logits are added at every token,
each pass with a cache of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pfl_platform.adapters.host import Host
from pfl_platform.adapters.surfaces import Mix
from pfl_platform.data import Sample, TaskData
from pfl_platform.evaluation.surfaces import Cell, CellResult, InferenceRecipe, Metric, Prediction
from pfl_platform.training.view import to_device


@torch.no_grad()
def greedy(host: Host, samples: Sequence[Sample], passes: Sequence[Mix], max_new_tokens: int) -> list[str]:
    """The generated answer of each sample, up to its first stop token."""
    codec, model = host.backbone.codec, host.backbone.model
    encoded = to_device(codec.encode(samples, answers=False), host.backbone.device)
    inputs: dict[str, Tensor] = dict(encoded.inputs)
    mask = inputs["attention_mask"]
    stops = torch.tensor(codec.stop_ids, device=mask.device)
    caches: list[object] = [None] * len(passes)
    alive = torch.ones(len(samples), dtype=torch.bool, device=mask.device)
    written: list[Tensor] = []
    for _ in range(max_new_tokens):
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -inputs["input_ids"].shape[1] :]
        logits: Tensor | None = None
        for number, mix in enumerate(passes):
            with host.mixing(mix, mask):
                out = model(
                    **inputs, position_ids=positions, past_key_values=caches[number], use_cache=True, logits_to_keep=1
                )
            caches[number] = out.past_key_values
            last = out.logits[:, -1].float()
            logits = last if logits is None else logits + last
        assert logits is not None
        token = logits.argmax(-1)
        token = torch.where(alive, token, codec.pad_id)
        written.append(token)
        alive = alive & ~torch.isin(token, stops)
        if not bool(alive.any()):
            break
        mask = torch.cat([mask, mask.new_ones(len(samples), 1)], dim=1)
        inputs = {"input_ids": token[:, None], "attention_mask": mask}
    ids = torch.stack(written, dim=1).tolist()
    return [codec.decode(row) for row in ids]


@dataclass(frozen=True)
class Judge:
    """How cells are scored: the metric of each task by name, and the batching of generation."""

    metrics: Mapping[str, Metric]
    batch_size: int
    max_new_tokens: int

    def score(
        self, host: Host, recipe: InferenceRecipe, cells: Sequence[tuple[Cell, TaskData, Sequence[Sample]]]
    ) -> list[CellResult]:
        """Scores cells. Items of all cells are generated together, ordered by length, so that padding stays small."""
        pool = [(number, sample) for number, (_, _, samples) in enumerate(cells) for sample in samples]
        order = sorted(range(len(pool)), key=lambda k: _length(pool[k][1]))
        texts: list[str] = [""] * len(pool)
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            made = greedy(host, [pool[k][1] for k in chosen], recipe.passes, self.max_new_tokens)
            for k, text in zip(chosen, made, strict=True):
                texts[k] = text
        by_cell: dict[int, list[Prediction]] = {}
        for (number, sample), text in zip(pool, texts, strict=True):
            metric = self.metrics[cells[number][1].metric]
            by_cell.setdefault(number, []).append(Prediction(sample.id, text, metric.score(text, sample)))
        results = []
        for number, (cell, _, _) in enumerate(cells):
            predictions = by_cell.get(number, [])
            if not predictions:
                continue  # no items: not measured, which is not zero
            score = 100.0 * sum(item.score for item in predictions) / len(predictions)
            results.append(CellResult(cell, score, predictions))
        return results


def _length(sample: Sample) -> tuple[int, int]:
    return (len(sample.pictures), len(sample.turns[0].human))


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
