"""Peak memory of a run with 5 and with 50 clients of one architecture, in a process of its own each.

    python tools/perf/memory.py [--backbone NAME] [--clients 5,50]

Clients' adapters and private state lie in the run folder, so the peak should not grow with their number; the figure
to compare with is what one client's state takes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

CHILD = """
import json, sys
from pathlib import Path
from pfl_platform.federation import session
from pfl_platform.ledger.memory import peak_memory
from pfl_platform.plugins import PluginManager
from pfl_platform.recipes import Request, Resolver
from pfl_platform.store.run_folder import RunFolder
import torch
out, clients, backbone, method = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
manager = PluginManager()
sets = [f"benchmark.options.num_clients={clients}", f"benchmark.options.backbones={backbone}",
        "rounds=2", "local_steps=3",
        "evaluation.others=false", "evaluation.items=2", "evaluation.every=2", "engine.threads=1", "adapter.r=16",
        "benchmark.options.train_size=8"]
session.run(Resolver(manager).resolve(Request(method=method, sets=sets)), out, quiet=True, plugins=manager)
folder = RunFolder.open(out)
state = folder.store.get(next(iter(folder.last_round()["states"].values())))
size = sum(value.numel() * value.element_size() for value in state.values())
print(json.dumps({"peak": peak_memory(torch.device("cpu")), "state": size}))
"""


def measure(clients: int, backbone: str, method: str) -> dict[str, int]:
    """Peak resident bytes of the process, and bytes of one client's adapters and private state."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", CHILD, str(Path(folder) / "run"), str(clients), backbone, method]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backbone", default="tiny-llava-llama-s")
    parser.add_argument("--clients", default="5,50")
    parser.add_argument("--method", default="fedmosaic")
    options = parser.parse_args()
    few, many = (int(text) for text in options.clients.split(","))
    small, large = (measure(count, options.backbone, options.method) for count in (few, many))
    grown, states = large["peak"] - small["peak"], (many - few) * small["state"]
    print(f"{few} clients: {small['peak'] / 2**20:.0f} MiB, {many} clients: {large['peak'] / 2**20:.0f} MiB")
    print(f"growth {grown / 2**20:.1f} MiB; adapters and private state of the clients added: {states / 2**20:.1f} MiB")
    print(f"ratio {grown / states:.2f}; bound 1.2 in memory, 0 with the states on disk")


if __name__ == "__main__":
    main()
