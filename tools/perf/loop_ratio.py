"""What the platform's training loop costs over a hand-written one, and what FedMosaic costs over SFT.

    python tools/perf/loop_ratio.py [--backbone NAME] [--steps N] [--pairs N]

Both figures are ratios of medians' pairs on this machine: the two sides run in turn, A B A B ..., on the same
batches, and the median of the pairwise ratios is printed with the smallest and largest.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from peft import LoraConfig, get_peft_model

from pfl_platform.adapters.host import Host
from pfl_platform.adapters.surfaces import Slot
from pfl_platform.config import RunConfig
from pfl_platform.data import Benchmark, Sample
from pfl_platform.engines.inprocess import InProcessEngine
from pfl_platform.federation.rounds import client_task, drive, prepare
from pfl_platform.federation.setup import build
from pfl_platform.ledger.sampling import FlopMeter
from pfl_platform.plugins import PluginManager
from pfl_platform.recipes import Request, Resolver
from pfl_platform.rng import torch_rng
from pfl_platform.store.memory import MemoryStore
from pfl_platform.training.driver import TorchDriver
from pfl_platform.training.loop import Actor, train
from pfl_platform.training.losses import answers_under
from pfl_platform.training.streams import ClientStream
from pfl_platform.training.surfaces import Optim, Phase, Step


def pairs(first: Callable[[], float], second: Callable[[], float], count: int) -> list[float]:
    """Ratios first / second of alternating runs, after one of each that is not counted."""
    first(), second()
    return [first() / second() for _ in range(count)]


def say(what: str, ratios: Sequence[float], bound: float) -> None:
    median = statistics.median(ratios)
    verdict = "holds" if median <= bound else "MISSED"
    spread = f"min {min(ratios):.3f}, max {max(ratios):.3f}, n={len(ratios)}"
    print(f"{what}: median {median:.3f} ({spread}); bound {bound}: {verdict}")


def loop_against_hand(backbone_name: str, steps: int, count: int) -> list[float]:
    """Platform against a plain loop: peft's LoRA, AdamW, clipping, the same encoded batches."""
    manager = PluginManager()
    options = {"r": 16, "scale": 2.0}
    adapter = manager.make("adapter", "lora", options)
    ours = manager.make("backbone", backbone_name, {})
    theirs = manager.make("backbone", backbone_name, {})
    host = Host(ours, adapter, (Slot("local"),))
    host.load(adapter.initial(ours, "local", 0))
    benchmark: Benchmark = manager.make("benchmark", "drake-synth", {})
    config = _config(manager, "sft", backbone_name)
    stream = ClientStream(benchmark.clients[0], config.stream, 0, 4, 0, steps)

    def batches() -> list[Sequence[Sample]]:
        opened = stream.open({})
        return [opened.batch(step) for step in range(steps)]

    ours.codec.encode([sample for batch in batches() for sample in batch])  # fills the caches of both codecs
    theirs.codec.encode([sample for batch in batches() for sample in batch])
    peft_config = LoraConfig(r=16, lora_alpha=32, target_modules=[site.path for site in adapter.sites(ours)])
    model = get_peft_model(theirs.model, peft_config)
    params = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def platform() -> float:
        step = Step(adapter.trainable("local"), answers_under({"local": 1.0}), Optim(1e-4))
        phase = Phase("local", (step,), steps, stream)
        rng, meter = (
            (lambda *parts: torch_rng(0, *parts)),
            FlopMeter(),
        )  # every real task counts FLOPs, so this one does
        actor = Actor("a", backbone_name, lambda _: host, rng, TorchDriver(), flops=meter)
        begun = time.perf_counter()
        with meter.watching(host, ("local",)):
            train(actor, (phase,))
        return time.perf_counter() - begun

    def hand() -> float:
        begun = time.perf_counter()
        optimiser = torch.optim.AdamW(params, lr=1e-4, weight_decay=0.0, fused=True)
        opened = stream.open({})
        for index in range(steps):
            encoded = theirs.codec.encode(opened.batch(index))
            loss = model(**encoded.inputs, labels=encoded.labels, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(params, 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            loss.item()
        return time.perf_counter() - begun

    return pairs(platform, hand, count)


def _config(manager: PluginManager, method: str, backbone: str, **changes: object) -> RunConfig:
    sets = [f"backbones={{'*': {backbone}}}", "adapter.options.r=16", *(f"{k}={v}" for k, v in changes.items())]
    return Resolver(manager).resolve(Request(method=method, sets=sets))


def method_against_method(first: str, second: str, backbone: str, steps: int, count: int) -> list[float]:
    """Training seconds of a client's task under two methods, with statistics and mixing, without evaluation."""
    runs = []
    for method in (first, second):
        manager = PluginManager()
        config = _config(manager, method, backbone, local_steps=steps, rounds=1, **{"evaluation.every": 10**6})
        setup = build(config, manager)
        store = MemoryStore()
        fed, worker = setup.federation(store), setup.worker(store)
        progress = drive(prepare(fed, setup.parts), InProcessEngine(worker))
        task = client_task(fed, setup.parts, progress, fed.clients[0], 0)

        def timed(worker: object = worker, task: object = task) -> float:
            return worker.execute(task).cost.train_seconds  # type: ignore[attr-defined, no-any-return]

        runs.append(timed)
    return pairs(runs[0], runs[1], count)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backbone", default="tiny-llava-llama-s")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    say("platform loop / hand-written loop", loop_against_hand(options.backbone, options.steps, options.pairs), 1.05)
    ratios = method_against_method("fedmosaic", "sft", options.backbone, options.steps, options.pairs)
    say("FedMosaic / SFT, time per local step", ratios, 1.35)


if __name__ == "__main__":
    main()
