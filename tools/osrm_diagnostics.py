"""The figures of OSRM's paper for run folders: rank of H, change of A by training, interference between clients.

    python tools/osrm_diagnostics.py RUN... [--samples 100] [--out DIR] [--rows DIR]

Works for any run whose clients have low-rank factors, with OSRM or without. Features are measured again, on training
samples of each client, with the bare backbone; the run folder is only read.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pfl_platform.adapters.surfaces import Tensors
from pfl_platform.engines.inprocess import InProcessEngine
from pfl_platform.errors import UserError
from pfl_platform.federation.setup import Setup, build
from pfl_platform.plugins import PluginManager
from pfl_platform.store.memory import MemoryStore
from pfl_platform.store.run_folder import RunFolder, safe_name
from pfl_plugins.merging.aggregator import scale_of
from pfl_plugins.osrm import diagnostics
from pfl_plugins.osrm.config import Config
from pfl_plugins.osrm.features import INPUTS, rows_key
from pfl_plugins.osrm.starts import features_task, sites_of

COUNTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


def features(setup: Setup, samples: int) -> dict[str, dict[str, Tensor]]:
    """Client -> site -> rows (k, d_in), one per sample, from the bare backbone."""
    store = MemoryStore()
    fed, engine = setup.federation(store), InProcessEngine(setup.worker(store))
    config = Config(variant="full", samples=samples)
    found = {}
    for client in fed.clients:
        (outcome,) = engine.run([features_task(fed, config, client)]).values()
        assert outcome.sent is not None
        assert outcome.state is not None
        sent, sites = store.get(outcome.sent), sites_of(fed, client.client_id)
        inputs = store.get(outcome.state)[INPUTS].tolist()
        found[client.client_id] = {
            site.name: sent[rows_key(sites[index].name)] for site, index in zip(sites, inputs, strict=True)
        }
    return found


def measure(
    setup: Setup, first: Mapping[str, Tensors], last: Mapping[str, Tensors], rows: Mapping[str, diagnostics.Rows]
) -> dict[str, Any]:
    """All figures as JSON, for each backbone. first, last: client -> its state before and after training."""
    slot = setup.parts.objective.slots[0].name
    fed = setup.federation(MemoryStore())
    report: dict[str, Any] = {}
    for backbone in fed.backbones:
        clients = [name for name in rows if fed.backbone_of[name] == backbone]
        mine = {name: rows[name] for name in clients}
        longest = min(len(found) for sites in mine.values() for found in sites.values())
        counts = [*(count for count in COUNTS if count < longest), longest]
        ranked = [diagnostics.ranks(found, counts) for sites in mine.values() for found in sites.values()]
        before, after = (
            {name: diagnostics.deltas_of(states[name], slot, scale_of(fed, name)) for name in clients}
            for states in (first, last)
        )
        report[backbone] = {
            "clients": clients,
            "rank": {
                "samples": counts,
                "mean": [sum(column) / len(column) for column in zip(*ranked, strict=True)],
                "least": [min(column) for column in zip(*ranked, strict=True)],
            },
            "change_of_A": {name: diagnostics.change(before[name], after[name]) for name in clients},
            "reach_before": diagnostics.table(before, mine, diagnostics.reach).tolist(),
            "reach_after": diagnostics.table(after, mine, diagnostics.reach).tolist(),
            "response": diagnostics.table(after, mine, diagnostics.response).tolist(),
        }
    return report


def of_run(folder: RunFolder, samples: int) -> tuple[dict[str, Any], Setup, dict[str, dict[str, Tensor]]]:
    prepared, last = folder.read_prepare(), folder.last_round()
    if prepared is None or last is None:
        raise UserError(f"The run {folder.path} has not finished a round.")
    setup = build(folder.config, PluginManager())
    read = {
        when: {name: folder.store.get(address) for name, address in states.items()}
        for when, states in (("first", prepared["states"]), ("last", last["states"]))
    }
    rows = features(setup, samples)
    return measure(setup, read["first"], read["last"], rows), setup, rows


def show(title: str, report: Mapping[str, Any]) -> None:
    print(title)
    for backbone, found in report.items():
        rank = found["rank"]
        told = ", ".join(f"{k}: {mean:.1f}" for k, mean in zip(rank["samples"], rank["mean"], strict=True))
        print(f"  {backbone}, clients {', '.join(found['clients'])}")
        print(f"    rank of H by samples, mean over inputs    {told}")
        moved = [value for sites in found["change_of_A"].values() for value in sites.values()]
        mean = sum(moved) / len(moved)
        print(f"    change of A by training                   mean {mean:.3f}, most {max(moved):.3f}")
        for name, what in (
            ("reach_before", "||A_j H_i|| / ||A_j|| ||H_i|| before"),
            ("reach_after", "the same after training"),
            ("response", "||s B_j A_j H_i|| / ||H_i|| after"),
        ):
            own, others = diagnostics.apart(torch.tensor(found[name]))
            print(f"    {what:<41} own {own:.2e}, others {others:.2e}")


def draw(report: Mapping[str, Any], folder: Path) -> None:
    """One picture per backbone: the three figures beside each other."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    for backbone, found in report.items():
        figure = Figure(figsize=(13, 3.6), dpi=110, layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        samples = found["rank"]["samples"]
        left.plot(samples, samples, color="0.7", label="y = x")
        left.plot(samples, found["rank"]["mean"], "o-", label="mean over inputs")
        left.set(xlabel="samples k", ylabel="rank of H", xscale="log", yscale="log")
        left.legend()
        for name, sites in found["change_of_A"].items():
            middle.plot([100 * value for value in sites.values()], label=name)
        middle.set(xlabel="adapted map", ylabel="change of A (%)")
        middle.legend(fontsize=6)
        image = right.imshow(found["response"])
        places = range(len(found["clients"]))
        right.set_xticks(places, labels=found["clients"], rotation=60, fontsize=7)
        right.set_yticks(places, labels=found["clients"], fontsize=7)
        right.set(title="response of an adapter (row) to data (column)")
        figure.colorbar(image, ax=right)
        figure.suptitle(backbone)
        figure.savefig(folder / f"osrm-{safe_name(backbone)}.png")


def save_rows(setup: Setup, rows: Mapping[str, Mapping[str, Tensor]], folder: Path) -> None:
    """One file per client, by module path, as `pfl_plugins.osrm.posthoc` reads them."""
    from safetensors.torch import save_file

    fed = setup.federation(MemoryStore())
    folder.mkdir(parents=True, exist_ok=True)
    for name, found in rows.items():
        by_path = {site.path: found[site.name].clone() for site in sites_of(fed, name)}
        save_file(by_path, str(folder / f"{safe_name(name)}.safetensors"))


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--samples", type=int, default=100, help="of each client, at most (k)")
    parser.add_argument("--out", type=Path, help="a folder for numbers and pictures")
    parser.add_argument("--rows", type=Path, help="a folder for the features, one file per client")
    given = parser.parse_args(words)
    try:
        for path in given.runs:
            report, setup, rows = of_run(RunFolder.open(path), given.samples)
            show(str(path), report)
            if given.out is not None:
                target = given.out / path.resolve().name
                target.mkdir(parents=True, exist_ok=True)
                (target / "osrm.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
                draw(report, target)
            if given.rows is not None:
                save_rows(setup, rows, given.rows / path.resolve().name)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
