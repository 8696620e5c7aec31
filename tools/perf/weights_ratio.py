"""What Potara's weights cost, over the backward passes that they need.

    python tools/perf/weights_ratio.py [--backbone NAME] [--samples N] [--pairs N]

One side measures the gradients of the samples at both models and makes the weights of them; the other only takes the
samples one by one through a plain peft model, forth and back, twice each. They run in turn, and the median of the
pairwise ratios is printed with the smallest and largest.
"""

from __future__ import annotations

import argparse
import time

import torch
from loop_ratio import pairs, say
from peft import LoraConfig, get_peft_model

from pfl_platform.federation.rounds import context, drive, prepare
from pfl_platform.federation.setup import build
from pfl_platform.plugins import PluginManager
from pfl_platform.recipes import Request, Resolver
from pfl_platform.rng import torch_rng
from pfl_platform.store.memory import MemoryStore
from pfl_platform.training.driver import TorchDriver
from pfl_platform.training.loop import Actor, train
from pfl_plugins.potara.config import MergeConfig
from pfl_plugins.potara.statistic import Gradients, drawn

BOUND = 1.2


def ratios(backbone: str, samples: int, count: int) -> list[float]:
    manager = PluginManager()
    sets = [f"backbones={{'*': {backbone}}}", "adapter.r=8", "adapter.dropout=0", f"personalizer.samples={samples}"]
    setup = build(Resolver(manager).resolve(Request("potara", benchmark="drake-synth", sets=sets)), manager)
    store = MemoryStore()
    fed, worker = setup.federation(store), setup.worker(store)
    client = fed.clients[0]
    state = store.get(drive(prepare(fed, setup.parts), _Nobody()).states[client.client_id])
    host = worker.host(backbone)
    draw = torch_rng("weights")
    host.load({key: torch.randn(value.shape, generator=draw) / 10 for key, value in state.items()})
    ctx = context(fed, client, 0)
    actor = Actor(client.client_id, backbone, lambda _: host, torch_rng, TorchDriver())
    batch = drawn(ctx, samples)

    config = LoraConfig(r=8, lora_alpha=16, target_modules=sorted({site.path.rpartition(".")[2] for site in ctx.sites}))
    other = manager.make("backbone", backbone, {})
    plain = get_peft_model(other.model, config)

    def ours() -> float:
        begun = time.perf_counter()
        train(actor, (), (Gradients(ctx, MergeConfig(samples=samples)),))
        return time.perf_counter() - begun

    def theirs() -> float:
        begun = time.perf_counter()
        chosen = [parameter for parameter in plain.parameters() if parameter.requires_grad]
        for sample in batch:
            encoded = other.codec.encode([sample])
            for _ in range(2):
                logits = plain(**encoded.inputs).logits[:, :-1].float()
                loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), encoded.labels[:, 1:].flatten())
                torch.autograd.grad(loss, chosen)
        return time.perf_counter() - begun

    return pairs(ours, theirs, count)


class _Nobody:
    """Implements `Engine` where nothing is to be done."""

    def run(self, tasks: object) -> dict[str, object]:
        assert not tasks
        return {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="tiny-llava-llama-s")
    parser.add_argument("--samples", type=int, default=30)
    parser.add_argument("--pairs", type=int, default=5)
    order = parser.parse_args()
    torch.set_num_threads(1)
    found = ratios(order.backbone, order.samples, order.pairs)
    say(f"Potara's weights of {order.samples} samples over twice as many plain backward passes", found, BOUND)


if __name__ == "__main__":
    main()
