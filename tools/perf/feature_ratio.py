"""What keeping the features of pictures gains in training: the same local steps with the tower in every pass, and with
features that were kept.

    python tools/perf/feature_ratio.py [--backbone NAME] [--steps N] [--pairs N] [--path FOLDER --scenario FILE]
    python tools/perf/feature_ratio.py --flops

Three figures, each a median of pairs of processor times that run in turn on the same batches, on one thread. *Warm*:
everything that either side keeps is there already, resized pictures for the one, features for the other. *Nothing
kept*: the one side reads and resizes a picture whenever a step has it, as a loop does that gives its batches to a
processor. *First time*: what a process does that has read no picture yet; features then come from the disk, where an
earlier run has left them.
Params after the steps are compared bit for bit.

`--flops` counts instead, at the shapes of all cards that read pictures: FLOPs of a local step on one picture and 64
tokens of text, with the tower and without.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from loop_ratio import pairs
from torch import Tensor

from pfl_model_zoo.cards import all_cards
from pfl_platform.adapters.host import Host
from pfl_platform.adapters.surfaces import Slot
from pfl_platform.config import Stream
from pfl_platform.data import Benchmark, ClientData
from pfl_platform.features.shelf import Keeper
from pfl_platform.ledger.flops import count_flops
from pfl_platform.plugins import PluginManager
from pfl_platform.rng import torch_rng
from pfl_platform.training.driver import TorchDriver
from pfl_platform.training.loop import Actor, train
from pfl_platform.training.losses import answers_under
from pfl_platform.training.streams import ClientStream
from pfl_platform.training.surfaces import Optim, Phase, Step


class Side:
    """One way of running the local steps; times them, and keeps what was trained."""

    def __init__(
        self, name: str, client: ClientData, steps: int, batch: int, keeper: Keeper | None, *, pixels: bool = True
    ) -> None:
        self.manager = PluginManager()
        self.name, self.keeper = name, keeper
        self.options = {} if pixels else {"cache_mb": 0}
        self.adapter = self.manager.make("adapter", "lora", {"r": 16, "scale": 2.0})
        self.stream = ClientStream(client, Stream(), 0, batch, 0, steps)
        self.steps = steps
        self.params: dict[str, Tensor] = {}
        self.host = self.fresh()

    def fresh(self) -> Host:
        """A host whose codec has read nothing."""
        backbone = self.manager.make("backbone", self.name, self.options)
        host = Host(backbone, self.adapter, (Slot("local"),), keeper=self.keeper)
        if self.keeper is None:
            host.depth = 0  # pictures go through the model as they are
        return host

    def run(self) -> float:
        host = self.host
        host.load(self.adapter.initial(host.backbone, "local", 0))
        step = Step(self.adapter.trainable("local"), answers_under({"local": 1.0}), Optim(1e-4))
        phase = Phase("local", (step,), self.steps, self.stream)
        actor = Actor("a", self.name, lambda _: host, lambda *parts: torch_rng(0, *parts), TorchDriver())
        begun = time.process_time()
        train(actor, (phase,))
        seconds = time.process_time() - begun
        self.params = host.read(sorted(host.params))
        return seconds

    def run_first(self) -> float:
        """The same, of a process that has read no picture."""
        if self.keeper is not None:
            self.keeper.flush()
            self.keeper = Keeper(self.keeper.memory, self.keeper.disk, self.keeper.folder)
        self.host = self.fresh()
        return self.run()


def say(what: str, ratios: Sequence[float]) -> None:
    spread = f"min {min(ratios):.3f}, max {max(ratios):.3f}, n={len(ratios)}"
    print(f"{what}: without / with features median {statistics.median(ratios):.3f} ({spread})")


def compare(what: str, without: Side, kept: Side, run: Callable[[Side], float], count: int) -> None:
    say(what, pairs(lambda: run(without), lambda: run(kept), count))
    same = all(torch.equal(without.params[key], kept.params[key]) for key in kept.params)
    print(f"  params after the steps are {'the same bits' if same else 'NOT the same bits'}")


def counted(name: str, text: int = 64) -> tuple[int, int]:
    """FLOPs of the tower on one picture, and of a step of LoRA on the rest, found on the meta device."""
    manager = PluginManager()
    backbone = manager.make("backbone", name, {"device": "meta", "dtype": "bfloat16"})
    adapter = manager.make("adapter", "lora", {"r": 16})
    host = Host(backbone, adapter, (Slot("local"),))
    chosen = list(host.select(adapter.trainable("local")).values())
    reader, model = backbone.codec.reader, backbone.model
    tokens = text + reader.tokens
    ids = torch.zeros(1, tokens, dtype=torch.int64, device="meta")
    mask = torch.zeros(1, 1, tokens, tokens, dtype=torch.bfloat16, device="meta")  # nobody looks into four dimensions
    pixels = torch.empty(1, 3, reader.size, reader.size, dtype=torch.bfloat16, device="meta")

    def step() -> None:
        with host.mixing({"local": 1.0}):
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        torch.autograd.grad(logits.float().sum(), chosen)

    with torch.no_grad():
        tower = count_flops(lambda: backbone.sight.run(model, pixels, 0, 2))[1]
    return tower, count_flops(step)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backbone", default="tiny-llava-llama-s")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--path", type=Path, help="folder of a federation with pictures; default: drake-synth")
    parser.add_argument("--scenario", default="scenario.json")
    parser.add_argument("--client", type=int, default=0)
    parser.add_argument("--flops", action="store_true", help="count FLOPs at the shapes of all cards")
    options = parser.parse_args()
    if options.flops:
        for name in sorted(name for name, card in all_cards().items() if card.modality == "vision-language"):
            tower, step = counted(name)
            print(f"{name}: {tower:.3g} + {step:.3g}, with / without {1 + tower / step:.3f}")
        return
    torch.set_num_threads(1)
    given = {} if options.path is None else {"path": options.path, "scenario": options.scenario}
    name = "drake-synth" if options.path is None else "folder"
    benchmark: Benchmark = PluginManager().make("benchmark", name, given)
    client = benchmark.clients[options.client]
    with tempfile.TemporaryDirectory() as folder:
        keeper = Keeper(disk=1 << 30, folder=Path(folder))
        without = Side(options.backbone, client, options.steps, options.batch, None)
        kept = Side(options.backbone, client, options.steps, options.batch, keeper)
        compare("warm", without, kept, Side.run, options.pairs)
        plain = Side(options.backbone, client, options.steps, options.batch, None, pixels=False)
        compare("nothing kept", plain, kept, Side.run, options.pairs)
        compare("first time", without, kept, Side.run_first, options.pairs)


if __name__ == "__main__":
    main()
