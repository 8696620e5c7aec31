"""Merging adapter folders: reads them module by module, runs a rule, writes what comes out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from pfl_platform.adapters.folders import AdapterFolder, agree, save_adapter
from pfl_platform.errors import UserError
from pfl_platform.federation.merging import Inputs, Merged, Merger, Target
from pfl_platform.lowrank.decompose import svd
from pfl_platform.lowrank.deltas import Delta, norm
from pfl_platform.lowrank.similarity import subspace_alignment
from pfl_platform.rng import torch_rng

REPORT = "merge_report.json"
Watch = Callable[[int, int, str], None]
"""(modules done, modules, the last one's name)"""


@dataclass(frozen=True)
class Job:
    """What to merge. `rank` 0: the largest of the inputs. `backbone`: a folder whose weights get the merged delta."""

    adapters: tuple[AdapterFolder, ...]
    merger: Merger
    weights: tuple[float, ...]
    out: Path
    rank: int = 0
    backbone: Path | None = None
    seed: int = 0

    @property
    def inputs(self) -> Inputs:
        adapters = self.adapters
        return Inputs(
            names=tuple(adapter.name for adapter in adapters),
            modules=adapters[0].modules,
            weights=self.weights,
            read=lambda k, module: adapters[k].delta(module),
            rng=lambda *parts: torch_rng(self.seed, "merge", *parts),
        )

    @property
    def target(self) -> Target:
        """The rank asked for, and the scale of the inputs where they have one in common, else 1."""
        rank = self.rank or max(adapter.rank for adapter in self.adapters)
        scales = {adapter.scale(module) for adapter in self.adapters for module in adapter.modules}
        return Target(rank, scales.pop() if len(scales) == 1 else 1.0)


def check(job: Job) -> None:
    """Raises `UserError` for whatever cannot be merged; nothing has been written."""
    agree(job.adapters)
    if job.merger.statistics:
        wanted = " and ".join(job.merger.statistics)
        raise UserError(
            f"This rule needs {wanted} statistics measured on every adapter's data; run it as a federation "
            "(`pfl-platform run --set aggregator=...`), or choose a rule that looks at the adapters alone."
        )
    if job.out.exists() and (not job.out.is_dir() or any(job.out.iterdir())):
        raise UserError(f"{job.out} is not empty; choose another folder for the merged adapter.")
    smallest = min(min(d_out, d_in) for d_out, _, d_in in job.adapters[0].shapes.values())
    if job.target.rank > smallest:
        raise UserError(f"Rank {job.target.rank} is larger than the smallest adapted map, which has size {smallest}.")
    if job.merger.personal and job.backbone is not None:
        raise UserError("This rule gives every adapter a result of its own; a backbone can take only one.")
    job.merger.check(job.inputs)


def without_bad(adapters: Sequence[AdapterFolder]) -> tuple[list[AdapterFolder], list[str]]:
    """The adapters whose factors are all finite, and a sentence for each of the others."""
    good, left_out = [], []
    for adapter in adapters:
        try:
            for module in adapter.modules:
                adapter.delta(module)
        except UserError as error:
            left_out.append(f"Left out: {error}")
        else:
            good.append(adapter)
    return good, left_out


def carry_out(job: Job, watch: Watch | None = None) -> dict[str, Any]:
    """Merges and writes; returns the report. The folder appears whole or not at all."""
    staging = job.out.with_name(f".{job.out.name}.part")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        report = _write(job, staging, watch)
        if job.out.exists():
            job.out.rmdir()
        staging.rename(job.out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return report


def _write(job: Job, folder: Path, watch: Watch | None) -> dict[str, Any]:
    inputs, target = job.inputs, job.target
    targets: list[Target | None] = [target]
    if job.merger.personal:
        targets = [replace(target, rank=job.rank or adapter.rank) for adapter in job.adapters]
    if job.backbone is not None:
        targets = [None]
    results: list[dict[str, Delta]] = [{} for _ in targets]
    shards = Shards(job.backbone, folder, inputs.modules) if job.backbone is not None else None
    rows = []
    for done, merged in enumerate(job.merger.merge(inputs, targets), start=1):
        rows.append(described(merged, inputs))
        for result, delta in zip(results, merged.deltas, strict=True):
            if shards is not None:
                shards.add(merged.module, delta)
            elif isinstance(delta, Delta):
                result[merged.module] = delta.cast()
            else:
                raise UserError("This space gives dense matrices; name the backbone that takes them with --full.")
        if watch is not None:
            watch(done, len(inputs.modules), merged.module)
    if shards is not None:
        shards.finish()
    elif job.merger.personal:
        for adapter, result in zip(job.adapters, results, strict=True):
            save_adapter(folder / adapter.name, result, adapter, {key: adapter.tensor(key) for key in adapter.extra})
    else:
        save_adapter(folder, results[0], job.adapters[0], averaged(job.adapters, job.weights))
    report = {"adapters": list(inputs.names), "weights": list(inputs.weights), "modules": rows, **overall(rows)}
    (folder / REPORT).write_text(json.dumps(report, indent=2), encoding="utf-8")
    return report


def averaged(adapters: Sequence[AdapterFolder], weights: Sequence[float]) -> dict[str, Tensor]:
    """Whole tensors that were trained beside the factors: the weighted mean of those that all adapters have in one
    shape. Others (heads of different label sets) have no mean and are left out."""
    found = {}
    for key in adapters[0].extra:
        if all(key in adapter.extra for adapter in adapters):
            tensors = [adapter.tensor(key) for adapter in adapters]
            if len({tensor.shape for tensor in tensors}) == 1:
                total = sum(weight * tensor.double() for weight, tensor in zip(weights, tensors, strict=True))
                assert isinstance(total, Tensor)
                found[key] = total.to(tensors[0].dtype)
    return found


def described(merged: Merged, inputs: Inputs) -> dict[str, Any]:
    """Numbers of one module: what the rule reports, energy kept by truncation, sizes, agreement of signs, SAR between
    inputs and with the result.

    sign agreement: the share of pairs of adapters, over a seeded sample of entries, whose entries have one sign.
    """
    deltas = inputs.deltas(merged.module)
    whole = [svd(delta) for delta in deltas]
    sar = [[subspace_alignment(one, other) for other in whole] for one in deltas]
    row: dict[str, Any] = {"module": merged.module, **merged.report}
    if "error" in row:
        row["energy"] = 1.0 - row["error"] ** 2
    row["norm_inputs"] = sum(norm(delta) for delta in deltas) / len(deltas)
    first = merged.deltas[0]
    row["norm_merged"] = norm(first) if isinstance(first, Delta) else float(first.norm())
    row["sign_agreement"] = sign_agreement(deltas, inputs.rng("signs", merged.module))
    row["sar_between"] = sar
    if isinstance(first, Delta):
        result = svd(first)
        row["sar_merged"] = [subspace_alignment(delta, result) for delta in deltas]
    return row


def sign_agreement(deltas: Sequence[Delta], generator: torch.Generator, sample: int = 4096) -> float:
    """In [0, 1]; 1/2 for adapters that have nothing to do with each other, 1 for one adapter alone."""
    if len(deltas) < 2:
        return 1.0
    d_out, d_in = deltas[0].shape
    rows = torch.randint(d_out, (sample,), generator=generator)
    columns = torch.randint(d_in, (sample,), generator=generator)
    entries = torch.stack(
        [delta.scale * (delta.up[rows].double() * delta.down[:, columns].T.double()).sum(dim=1) for delta in deltas]
    )
    positive = (entries > 0).sum(dim=0).double()
    count = len(deltas)
    pairs = (positive * (positive - 1) + (count - positive) * (count - positive - 1)) / (count * (count - 1))
    return float(pairs.mean())


def overall(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over the modules."""
    between = torch.tensor([row["sar_between"] for row in rows], dtype=torch.float64).mean(dim=0)
    found: dict[str, Any] = {"sar_between": between.tolist()}
    for key in ("sign_agreement", "norm_inputs", "norm_merged"):
        found[key] = sum(row[key] for row in rows) / len(rows)
    if all("sar_merged" in row for row in rows):
        found["sar_merged"] = torch.tensor([row["sar_merged"] for row in rows]).mean(dim=0).tolist()
    return found


class Shards:
    """A backbone's safetensors files, copied one tensor at a time with merged deltas added."""

    def __init__(self, source: Path, folder: Path, modules: Sequence[str]) -> None:
        self.folder = folder
        files = sorted(source.glob("*.safetensors")) if source.is_dir() else []
        if not files:
            raise UserError(f"{source} holds no safetensors of a backbone.")
        self._home: dict[str, Path] = {}
        for file in files:
            with safe_open(str(file), framework="pt") as opened:
                self._home.update(dict.fromkeys(opened.keys(), file))
        for module in modules:
            if f"{module}.weight" not in self._home:
                raise UserError(f"{source} has no '{module}.weight', which the adapters adapt; is it their backbone?")
        self._source, self._files = source, files
        self._changed: dict[str, Tensor] = {}

    def add(self, module: str, delta: Delta | Tensor) -> None:
        key = f"{module}.weight"
        with safe_open(str(self._home[key]), framework="pt") as opened:
            weight: Tensor = opened.get_tensor(key)
        change = delta.dense(torch.float64) if isinstance(delta, Delta) else delta.double()
        if weight.shape != change.shape:
            raise UserError(f"'{key}' is {tuple(weight.shape)} in {self._source}, not {tuple(change.shape)}.")
        self._changed[key] = (weight.double() + change).to(weight.dtype)

    def finish(self) -> None:
        from safetensors.torch import save_file

        for file in self._files:
            with safe_open(str(file), framework="pt") as opened:
                keys, metadata = list(opened.keys()), opened.metadata()
                tensors = {key: self._changed.get(key, opened.get_tensor(key)) for key in keys}
            save_file(tensors, str(self.folder / file.name), metadata=metadata)
        for other in sorted(self._source.iterdir()):
            if other.is_file() and other.suffix in {".json", ".txt", ".model", ".jinja"}:
                shutil.copyfile(other, self.folder / other.name)
