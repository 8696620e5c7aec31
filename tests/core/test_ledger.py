"""Costs: what is counted agrees with what a person counts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from torch import nn
from torch.nn.functional import scaled_dot_product_attention as attention
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from pfl_platform.federation.tasks import Cost
from pfl_platform.ledger.bytes import payload_bytes, wire_bytes
from pfl_platform.ledger.costs import FIELDS, total
from pfl_platform.ledger.flops import adapter_flops, backward_flops, count_flops, forward_flops, training_flops
from pfl_platform.ledger.memory import peak_memory, reset_peak
from pfl_platform.plugins import PluginManager
from pfl_platform.store.disk import DiskStore
from pfl_platform.testing.bench import samples

ON_A_CPU = {  # of shapes: rows, heads, positions, width; by hand below
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda q, k, v, *_, **__: 2 * q[0] * q[1] * q[2] * k[2] * (q[3] + v[3])
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda g, q, k, v, *_, **__: 2 * q[0] * q[1] * q[2] * k[2] * (3 * q[3] + 2 * v[3])
    ),
}


def test_payload_is_values_times_item_size() -> None:
    """Factors of rank 8 on a 32 -> 48 map in bfloat16: 2 bytes x 8 x (32 + 48) = 1280; a gate of 32 floats: 128."""
    message = {
        "local/site/A": torch.zeros(8, 32, dtype=torch.bfloat16),
        "local/site/B": torch.zeros(48, 8, dtype=torch.bfloat16),
        "gate/site/w": torch.zeros(32),
    }
    assert payload_bytes(message) == 1280 + 128
    assert payload_bytes({}) == 0


def test_wire_bytes_are_the_length_on_the_wire(tmp_path: Path) -> None:
    message = {f"local/layer{index}.q_proj/{part}": torch.zeros(16, 4) for index in range(12) for part in "AB"}
    assert wire_bytes(message) == len(save(message))
    store = DiskStore(tmp_path)
    assert wire_bytes(message) == store.tensor_path(store.put(message)).stat().st_size > payload_bytes(message)
    assert wire_bytes({key: value.to("meta") for key, value in message.items()}) == wire_bytes(message)


def test_a_view_weighs_what_it_shows() -> None:
    """Not the storage behind it: a row of a large matrix travels alone."""
    assert payload_bytes({"row": torch.zeros(1000, 8)[3]}) == 32
    assert wire_bytes({"row": torch.zeros(1000, 8)[3]}) == len(save({"row": torch.zeros(8)}))


class Adapted(nn.Module):
    """A frozen map with a trained bypass of rank r."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.base = nn.Linear(width, width, bias=False).requires_grad_(False)
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.base(x) + self.up(self.down(x))
        return out


def test_the_formula_is_what_the_counter_finds() -> None:
    """Five adapted layers on an input that itself wants a gradient, as behind an embedding with adapters in front."""
    width, rank, tokens, layers = 24, 3, 10, 5
    model = nn.Sequential(*(Adapted(width, rank) for _ in range(layers)))
    x = torch.randn(tokens, width, requires_grad=True)
    _, counted = count_flops(lambda: model(x).sum().backward())
    frozen, adapter = layers * width * width, layers * 2 * width * rank
    assert counted == training_flops(frozen, adapter, tokens)
    # By hand: 4 x 2880 x 10 + 6 x 720 x 10.
    assert counted == 115_200 + 43_200


def test_recomputing_is_a_second_forward() -> None:
    width, tokens = 16, 4
    layer = nn.Linear(width, width, bias=False).requires_grad_(False)
    x = torch.randn(tokens, width, requires_grad=True)
    _, counted = count_flops(lambda: checkpoint(layer, x, use_reentrant=False).sum().backward())
    # The counter shows no second product here: nothing of a single frozen linear map has to be recomputed.
    assert counted == forward_flops(256, tokens) + backward_flops(256, tokens)
    assert backward_flops(256, tokens, recompute=True) == 2 * backward_flops(256, tokens)


def test_formulas_by_hand() -> None:
    assert forward_flops(100, 7) == 1400
    assert backward_flops(100, 7) == 1400
    assert adapter_flops(10, 7) == 420
    assert training_flops(100, 10, 7) == 1400 + 1400 + 420
    assert training_flops(100, 10, 7, recompute=True) == 1400 + 2800 + 420
    # A second slot that is mixed in but frozen: its 10 params cost 4 FLOPs per token each.
    assert training_flops(100, 10, 7, idle_adapter=10) - training_flops(100, 10, 7) == 280
    # One more forward pass makes a plain step half as expensive again, as published for a method with two.
    assert training_flops(100, 0, 7, extra_forwards=1) == 1.5 * training_flops(100, 0, 7)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_counts_on_a_cpu_too(causal: bool) -> None:
    """2 rows, 3 heads, 5 queries, 7 keys, widths 4 and 4: forward 2*2*3*5*7*(4+4), backward 2*2*3*5*7*(12+8)."""
    query = torch.randn(2, 3, 5, 4, requires_grad=True)
    key, value = (torch.randn(2, 3, 7, 4, requires_grad=True) for _ in range(2))
    _, forward = count_flops(attention, query, key, value, is_causal=causal)
    assert forward == 2 * 2 * 3 * 5 * 7 * 8
    _, both = count_flops(lambda: attention(query, key, value, is_causal=causal).sum().backward())
    assert both == forward + 2 * 2 * 3 * 5 * 7 * 20


@pytest.mark.parametrize("name", ["tiny-llava-llama-s", "tiny-llava-qwen-s", "tiny-t5"])
@pytest.mark.parametrize("way", ["training", "no_grad", "inference"])
def test_whole_backbones_count_as_by_torchs_table(name: str, way: str) -> None:
    """The same total as torch's own counter, which has a table per module."""
    backbone = PluginManager().make("backbone", name, {"init": 0})
    batch = backbone.codec.encode(samples("counted", 2))
    backbone.model.requires_grad_(True)

    def run() -> None:
        if way != "training":
            with torch.no_grad() if way == "no_grad" else torch.inference_mode():
                backbone.model(**batch.inputs)
            return
        backbone.model(**batch.inputs).logits.sum().backward()

    with FlopCounterMode(display=False, custom_mapping=ON_A_CPU) as table:
        run()
    assert count_flops(run)[1] == table.get_total_flops() > 0


def test_counting_changes_no_number() -> None:
    model = Adapted(8, 2)
    x = torch.randn(3, 8)
    result, flops = count_flops(model, x)
    assert flops > 0
    assert torch.equal(result, model(x))


def test_resident_memory_is_this_process_s_own_and_grows_with_what_is_held() -> None:
    """The process that starts it has held 400 MB more; the other one must not seem to."""
    held = torch.ones(100_000_000)
    own = peak_memory()
    assert own > 400e6
    del held
    code = (
        "import torch\n"
        "from pfl_platform.ledger.memory import peak_memory, reset_peak\n"
        "before = peak_memory()\n"
        f"assert before < {own} - 300e6, before\n"
        "held = torch.ones(25_000_000)\n"
        "reset_peak()\n"
        "grown = peak_memory() - before\n"
        "assert 95e6 < grown < 130e6, grown\n"
        "del held\n"
        "assert peak_memory() - before > 95e6"  # the peak stays; the kernel keeps it to some pages
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_device_memory_is_of_its_tensors() -> None:
    reset_peak("cuda")
    before = peak_memory("cuda")
    held = torch.ones(1_000_000, device="cuda")
    del held
    assert peak_memory("cuda") - before >= 4_000_000


def test_costs_add_up_but_the_peak_does_not() -> None:
    one = Cost(seconds=1.5, steps=2, flops=10.0, peak_memory=700, up_payload=8, up_wire=80, down_payload=4)
    two = {"seconds": 0.5, "steps": 3, "peak_memory": 900, "down_wire": 1}
    assert total([one, two]) == {
        "seconds": 2.0,
        "train_seconds": 0.0,
        "steps": 5,
        "flops": 10.0,
        "flops_formula": 0.0,
        "peak_memory": 900,
        "up_payload": 8,
        "up_wire": 80,
        "down_payload": 4,
        "down_wire": 1,
        "head_payload": 0,
        "head_wire": 0,
        "score_payload": 0,
        "score_wire": 0,
    }
    assert total([]) == dict.fromkeys(FIELDS, 0)


def test_every_field_of_a_cost_is_summed() -> None:
    from dataclasses import fields

    assert tuple(field.name for field in fields(Cost)) == FIELDS
