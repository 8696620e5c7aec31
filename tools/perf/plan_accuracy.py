"""A plan beside the run that it is of: peak memory, bytes and, with a calibration, time.

    python tools/perf/plan_accuracy.py [--methods a,b] [--backbones a,b] [--rounds N] [--local-steps N] [--no-time]

Memory is the allocator's: `torch.profiler` tells of every tensor that torch's allocator makes or frees on the CPU; what
a task adds to the hosts' weights and adapters is the peak of their running sum, over all tasks of the run, answers
included. Resident memory would be of no use here: the interpreter and its libraries take fifty times as much as these
models. Each run has a process of its own; the timed one has no profiler.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile

CHILD = """
import json, sys, time
from contextlib import nullcontext
from pathlib import Path

import torch

from pfl_platform.federation import session
from pfl_platform.plugins import PluginManager
from pfl_platform.recipes import Request, Resolver
from pfl_platform.testing.peaks import task_peaks

out, method, backbone, rounds, steps, memory = Path(sys.argv[1]), *sys.argv[2:7]
torch.set_num_threads(1)
manager = PluginManager()
sets = [f"rounds={rounds}", f"local_steps={steps}", "engine.threads=1", "features.disk_mb=0", "evaluation.items=10"]
begun = time.perf_counter()
config = Resolver(manager).resolve(
    Request(method=method, benchmark="drake-synth", options={"backbones": {"*": backbone}}, sets=sets)
)
with task_peaks() if memory == "memory" else nullcontext([]) as peaks:
    results = session.run(config, out, quiet=True, plugins=manager)
records = [json.loads(file.read_text()) for file in sorted((out / "rounds").glob("*.json"))]
costs = [entry["cost"] for record in records for entry in record["clients"].values()]
fields = ("up_payload", "up_wire", "down_payload", "down_wire")
peak = max((peak for stage, peak in peaks if stage != "baseline"), default=0)
print(json.dumps({"peak": peak, "seconds": time.perf_counter() - begun,
                  **{name: sum(cost[name] for cost in costs) for name in fields}}))
"""


def _json(command: list[str]) -> dict[str, object]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        sys.exit(done.stderr)
    text = done.stdout
    found: dict[str, object] = json.loads(text[text.index("{") :] if text.startswith("{") else text.splitlines()[-1])
    return found


def plan(options: argparse.Namespace, method: str, backbone: str) -> dict[str, object]:
    command = [sys.executable, "-m", "pfl_platform", "plan", "--plugin", method, "--benchmark", "drake-synth"]
    command += ["--backbone", backbone, "--rounds", str(options.rounds), "--local-steps", str(options.local_steps)]
    command += ["--set", "evaluation.items=10", "--set", "features.disk_mb=0", "--threads", "1", "--json"]
    return _json([*command, *([] if options.no_time else ["--calibrate"])])


def run(options: argparse.Namespace, method: str, backbone: str, kind: str) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        given = [f"{folder}/run", method, backbone, str(options.rounds), str(options.local_steps), kind]
        return _json([sys.executable, "-c", CHILD, *given])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--methods", default="sft,fedmosaic,ditto")
    parser.add_argument("--backbones", default="tiny-llava-llama-s")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--local-steps", type=int, default=10)
    parser.add_argument("--no-time", action="store_true")
    options = parser.parse_args()
    for backbone in options.backbones.split(","):
        for method in options.methods.split(","):
            planned = plan(options, method, backbone)
            measured = run(options, method, backbone, "memory")
            memory, peak = float(str(planned["memory"])), float(str(measured["peak"]))
            planned_bytes = planned["bytes"]
            assert isinstance(planned_bytes, dict)
            same = all(planned_bytes[name] == measured[name] for name in planned_bytes if name in measured)
            said = f"{method} on {backbone}: planned {memory / 1e6:.2f} MB, measured {peak / 1e6:.2f} MB "
            said += f"({100 * (memory / peak - 1):+.1f} %); bytes {'equal' if same else 'DIFFER'}"
            if not options.no_time:
                seconds, taken = planned["seconds"], float(str(run(options, method, backbone, "time")["seconds"]))
                assert isinstance(seconds, dict)
                foreseen = float(seconds["total"])
                said += f"; planned {foreseen:.1f} s, took {taken:.1f} s ({100 * (foreseen / taken - 1):+.0f} %)"
            print(said, flush=True)


if __name__ == "__main__":
    main()
