"""Evaluation against a plain `generate` loop: the same items, batch, adapter, stop tokens and longest answer.

    python tools/perf/evaluation_ratio.py [--backbone NAME] [--items N] [--batch N] [--pairs N]

The plain loop takes the items as they come, encodes a batch, calls `model.generate` of a peft model, decodes and
scores. Figures are medians of pairs of processor times that run in turn, on one thread: *first*, by a process that has
no features of the pictures yet, *again*, as every later evaluation of a run finds them, and *run*, all evaluations of a
run that has so many of them. Answers are compared text by text, also with those of the platform in other batches and
with its adapter apart from the weights, since both move the last bits of logits.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from loop_ratio import pairs
from peft import LoraConfig, get_peft_model

from pfl_platform.adapters.host import Host
from pfl_platform.adapters.surfaces import Slot
from pfl_platform.data import Benchmark, Sample, TaskData
from pfl_platform.evaluation.generate import Judge, greedy
from pfl_platform.evaluation.surfaces import Cell, InferenceRecipe
from pfl_platform.features.shelf import Keeper
from pfl_platform.plugins import PluginManager
from pfl_platform.rng import torch_rng

MIX = {"local": 1.0}
Cells = Sequence[tuple[Cell, TaskData, Sequence[Sample]]]


def cells_of(manager: PluginManager, items: int) -> Cells:
    """Test items of all tasks of the first clients of drake-synth."""
    benchmark: Benchmark = manager.make("benchmark", "drake-synth", {})
    return [
        (Cell(client.client_id, task.name), task, list(task.test[:items]))
        for client in benchmark.clients[:5]
        for task in client.tasks
    ]


class Platform:
    """Cells scored by the platform."""

    def __init__(self, manager: PluginManager, name: str, cells: Cells, batch: int, longest: int) -> None:
        self.adapter = manager.make("adapter", "lora", {"r": 16, "scale": 2.0})
        self.backbone = manager.make("backbone", name, {})
        self.host = Host(self.backbone, self.adapter, (Slot("local"),))
        params = self.adapter.initial(self.backbone, "local", 0)
        for key in params:  # an adapter that does something
            params[key] += 0.02 * torch.randn(params[key].shape, generator=torch_rng(0, "evaluation ratio", key))
        self.host.load(params)
        self.cells = cells
        names = {task.metric for _, task, _ in cells}
        self.judge = Judge({name: manager.make("metric", name, {}) for name in names}, batch, longest)
        self.texts: list[str] = []

    def again(self) -> float:
        begun = time.process_time()
        results = self.judge.score(self.host, InferenceRecipe((MIX,)), self.cells)
        seconds = time.process_time() - begun
        self.texts = [item.text for result in results for item in result.predictions]
        return seconds

    def first(self) -> float:
        self.host._keeper = Keeper()
        self.host.__dict__.pop("shelf", None)
        return self.again()

    def run(self, evaluations: int) -> float:
        return self.first() + sum(self.again() for _ in range(evaluations - 1))

    def in_batches(self, size: int) -> list[str]:
        """Answers in the order of the items, in batches of this size."""
        samples = [sample for _, _, items in self.cells for sample in items]
        found: list[str] = []
        for start in range(0, len(samples), size):
            found += greedy(self.host, samples[start : start + size], (MIX,), self.judge.max_new_tokens)
        return found


class Plain:
    """The same items through `model.generate`."""

    def __init__(self, manager: PluginManager, name: str, platform: Platform) -> None:
        self.backbone = manager.make("backbone", name, {})
        sites = platform.adapter.sites(platform.backbone)
        config = LoraConfig(r=16, lora_alpha=32, target_modules=[site.path for site in sites])
        self.model: Any = get_peft_model(self.backbone.model, config).eval()
        live = dict(self.model.named_parameters())
        with torch.no_grad():
            for site in sites:
                for part in ("A", "B"):
                    value = platform.host.params[f"local/{site.name}/{part}"]
                    live[f"base_model.model.{site.path}.lora_{part}.default.weight"].copy_(value)
        self.cells, self.judge = platform.cells, platform.judge
        self.texts: list[str] = []

    @torch.no_grad()
    def run(self) -> float:
        codec = self.backbone.codec
        self.texts = []
        pool = [(task, sample) for _, task, items in self.cells for sample in items]
        begun = time.process_time()
        for start in range(0, len(pool), self.judge.batch_size):
            batch = pool[start : start + self.judge.batch_size]
            inputs = codec.encode([sample for _, sample in batch], answers=False).inputs
            ids = self.model.generate(
                **inputs,
                do_sample=False,
                max_new_tokens=self.judge.max_new_tokens,
                eos_token_id=list(codec.stop_ids),
                pad_token_id=codec.pad_id,
            )
            texts = [codec.decode(row) for row in ids[:, inputs["input_ids"].shape[1] :].tolist()]
            for text, (task, sample) in zip(texts, batch, strict=True):
                self.judge.metrics[task.metric].score(text, sample)
            self.texts += texts
        return time.process_time() - begun


def say(what: str, ratios: Sequence[float], bound: float) -> None:
    median = statistics.median(ratios)
    spread = f"min {min(ratios):.3f}, max {max(ratios):.3f}, n={len(ratios)}"
    print(f"{what}: plain / platform median {median:.3f} ({spread}); {bound} wanted: {median >= bound}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backbone", default="tiny-llava-llama-s")
    parser.add_argument("--items", type=int, default=16, help="per task")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--evaluations", type=int, default=4, help="of a run")
    parser.add_argument("--pairs", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    manager = PluginManager()
    ours = Platform(manager, options.backbone, cells_of(manager, options.items), options.batch, options.tokens)
    plain = Plain(manager, options.backbone, ours)
    say("first", pairs(plain.run, ours.first, options.pairs), 1.5)
    say("again", pairs(plain.run, ours.again, options.pairs), 1.5)
    count = options.evaluations
    whole = pairs(lambda: sum(plain.run() for _ in range(count)), lambda: ours.run(count), options.pairs)
    say(f"run of {count}", whole, 1.5)
    for other, texts in {
        "the plain loop": plain.texts,
        "batch 1": ours.in_batches(1),
        "batch 7": ours.in_batches(7),
    }.items():
        differ = sum(text != own for text, own in zip(texts, ours.texts, strict=True))
        print(f"answers unlike those of {other}: {differ} of {len(ours.texts)}")


if __name__ == "__main__":
    main()
