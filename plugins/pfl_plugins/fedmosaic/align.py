"""Weight alignment of PQ-LoRA as a program (Alg. 3 and 4): one task per backbone other than the pivot, before round 0.

The task's phase trains A on the public set, its `after` projects A (Eq. 21-23), and a statistic then collects the
covariances from which B follows. It runs through the one training loop like everything else.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pfl_platform.adapters.host import FROZEN
from pfl_platform.adapters.surfaces import Keys, Site, Tensors, renamed
from pfl_platform.backbones import IGNORE, Encoded, Span, dense_weight
from pfl_platform.data import Sample
from pfl_platform.distillation.spans import MatchPlan, only
from pfl_platform.federation.components import Federation
from pfl_platform.federation.setup import public_digest
from pfl_platform.federation.tasks import Address, Cost, Program, Task
from pfl_platform.store.pins import software
from pfl_platform.training.streams import Epochs
from pfl_platform.training.surfaces import Optim, Output, Phase, Source, Statistic, Step, View
from pfl_plugins.fedmosaic.alignment import Covariances, a_distances, a_penalty, align_b, polar
from pfl_plugins.fedmosaic.config import Alignment

PIVOT = "pivot"


def align(fed: Federation, options: Alignment) -> Program[Mapping[str, Address]]:
    """Aligned frozen params of every backbone but the smallest, by address. Nothing to do for a single backbone, an
    adapter without shared sites, or `a: random` with `b: random`."""
    if not needs_alignment(fed, options):
        return {}
    pivot, *targets = fed.backbones
    sites = {name: _shared_sites(fed, name) for name in fed.backbones}
    samples = fed.public()
    aligned: dict[str, Address] = {}
    tasks = []
    for name in targets:
        known = _read(fed, options, pivot, name, samples)
        task = _task(fed, options, pivot, name, samples, sites)
        tasks.append(task if known is None else _done(fed, task, *known))
    outcomes = yield tasks
    for task in tasks:
        outcome = outcomes[task.actor]
        aligned[task.backbone] = outcome.new_state
        if task.recorded is None:
            _write(fed, options, pivot, task.backbone, samples, fed.store.get(outcome.new_state), outcome.cost)
    return aligned


def _done(fed: Federation, task: Task, tensors: Tensors, cost: Cost) -> Task:
    """The task as another run has done it, at the cost that it had there."""
    return Task(task.actor, task.stage, task.round_index, task.backbone, state=fed.store.put(tensors), recorded=cost)


def needs_alignment(fed: Federation, options: Alignment) -> bool:
    """Whether there are several backbones with shared sites, and something is to be aligned."""
    several = len(fed.backbones) > 1 and bool(_shared_sites(fed, fed.backbones[0]))
    return several and not (options.a == options.b == "random")


def _shared_sites(fed: Federation, name: str) -> tuple[Site, ...]:
    return tuple(site for site in fed.adapter.sites(fed.load(name)) if site.scope == "all")


def _task(
    fed: Federation,
    options: Alignment,
    pivot: str,
    target: str,
    samples: Sequence[Sample],
    sites: Mapping[str, Sequence[Site]],
) -> Task:
    pairs = tuple(zip(sites[pivot], sites[target], strict=True))
    matched = Matched(pivot, pairs, options.tokens)
    source = Epochs(samples, options.batch_size, fed.seed, "alignment")
    steps = source.steps(options.epochs)
    warmup = int(options.warmup_ratio * steps)
    optim = Optim(options.lr, clip=0.0, moments="reset", schedule="cosine", warmup=warmup, total_steps=steps)
    trained = Step(Keys(f"{FROZEN}/block*/A"), matched.a_loss, optim, matched.penalty(options))
    phase = Phase("align A", (trained,), steps, source, after=project)
    few = samples[: options.samples_b] if options.samples_b else samples
    second = Epochs(few, options.batch_size, fed.seed, "alignment of B", shuffle=False)
    frozen = fed.frozen[target]
    return Task(
        actor=f"alignment of {target}",
        stage="prepare",
        round_index=0,
        backbone=target,
        state=frozen,
        inbox=fed.store.put(renamed(fed.store.get(fed.frozen[pivot]), FROZEN, PIVOT)),
        phases=(phase,) if options.a == "l2" else (),
        statistics=() if options.b == "random" else (AlignB(options, matched, second, second.steps()),),
        others=(pivot,),
        salt={**fed.salt, "pivot": pivot, "public": public_digest(samples)},
    )


def project(tensors: dict[str, Tensor], _refs: Tensors) -> Mapping[str, Tensor]:
    """Eq. 21-23 on every A."""
    return {key: polar(value) for key, value in tensors.items()}


@dataclass(frozen=True)
class Matched:
    """The inputs of the adapted maps of pivot and target, as rows that stand for the same piece of text."""

    pivot: str
    pairs: tuple[tuple[Site, Site], ...]
    tokens: str

    def features(self, view: View, *, outputs: bool = False) -> tuple[MatchPlan, list[tuple[Tensor, Tensor]]]:
        """Per pair of sites: (pivot's inputs, target's inputs), both unpooled, (rows, positions, d_in); the
        adapters' scale is 0."""
        ours = view.forward(
            {}, grad=False, train=False, taps=[site.path for site, _ in self.pairs], backbone=self.pivot
        )
        theirs = view.forward({}, grad=False, train=False, taps=[site.path for _, site in self.pairs])
        plan = MatchPlan.of(self._spans(ours), self._spans(theirs))
        return plan, [(ours.taps[a.path], theirs.taps[b.path]) for a, b in self.pairs]

    def _spans(self, output: Output) -> Sequence[Sequence[Span]]:
        spans = output.encoded.spans
        return spans if self.tokens == "spans" else _answers(output.encoded)

    def a_loss(self, view: View) -> Tensor:
        """First term of Eq. 20 per row: `||A_p h_p - A_t h_t||^2`, averaged over the row's matched pieces, summed
        over sites."""
        plan, pairs = self.features(view)
        rows = len(view.samples)
        counts = torch.bincount(plan.rows, minlength=rows).clamp(min=1)
        total = torch.zeros(rows)
        for (ours, theirs), (site_p, site_t) in zip(pairs, self.pairs, strict=True):
            z_p = plan.a(ours) @ view.refs[f"{PIVOT}/{site_p.name}/A"].to(ours.device).T
            z_t = plan.b(theirs) @ view.params[f"{FROZEN}/{site_t.name}/A"].T
            distances = a_distances(z_p, z_t).cpu()
            total = total + torch.zeros(rows).index_add(0, plan.rows, distances) / counts
        return total

    def penalty(self, options: Alignment) -> Callable[[Mapping[str, Tensor], Tensors], Tensor]:
        """Second term of Eq. 20, summed over sites."""
        keys = [f"{FROZEN}/{site.name}/A" for _, site in self.pairs]

        def term(params: Mapping[str, Tensor], refs: Tensors) -> Tensor:
            return torch.stack([a_penalty(params[key], options.lam, options.penalty) for key in keys]).sum()

        return term


def _answers(encoded: Encoded) -> list[list[Span]]:
    return [
        only(spans, (labels != IGNORE).tolist()) for spans, labels in zip(encoded.spans, encoded.labels, strict=True)
    ]


class AlignB(Statistic):
    """Covariances over the public set, then B of every site (Alg. 4)."""

    name = "align B"

    def __init__(self, options: Alignment, matched: Matched, data: Source, amount: int) -> None:
        self.options = options
        self.matched = matched
        self.data = data
        self.amount = amount

    def add(self, acc: Any, view: View) -> Any:
        plan, pairs = self.matched.features(view)
        state = acc or {"start": {}, "refs": dict(view.refs)}
        for (ours, theirs), (site_p, site_t) in zip(pairs, self.matched.pairs, strict=True):
            x, y = plan.a(ours), plan.b(theirs)
            if self.options.features == "adapter":
                x = x @ view.refs[f"{PIVOT}/{site_p.name}/A"].to(x.device).T
                y = y @ view.params[f"{FROZEN}/{site_t.name}/A"].T
            else:
                x = _outputs(view, self.matched.pivot, site_p, x)
                y = _outputs(view, None, site_t, y)
            cov = state.setdefault(site_t.name, Covariances.empty(x.shape[1], y.shape[1]))
            cov.add(x, y)
            state["start"][site_t.name] = view.params[f"{FROZEN}/{site_t.name}/B"].detach().cpu()
        return state

    def finish(self, acc: Any, private: Tensors, rng: Callable[..., torch.Generator]) -> tuple[Tensors, Tensors]:
        options = self.options
        kept = {}
        for site_p, site_t in self.matched.pairs:
            b_pivot = acc["refs"][f"{PIVOT}/{site_p.name}/B"]
            rule = "official_whitening" if options.b == "official_whitening" else "cca"
            cov: Covariances = acc[site_t.name]
            adapter = options.features == "adapter"
            rank = b_pivot.shape[1] if adapter else None
            start = acc["start"][site_t.name]
            bases = {"pivot_basis": b_pivot, "target_basis": start} if adapter else {}
            kept[f"{FROZEN}/{site_t.name}/B"] = align_b(
                b_pivot,
                cov,
                rank,
                rule=rule,  # type: ignore[arg-type]
                reorthonormalise=options.reorthonormalize_B,
                ridge=options.ridge,
                **bases,
            )
        return {}, kept


def _outputs(view: View, backbone: str | None, site: Site, pooled: Tensor) -> Tensor:
    """The adapted map's own outputs W h of pooled inputs (a mean of outputs is the output of the mean)."""
    module = view.backbone(backbone).module(site.path)
    weight = dense_weight(getattr(module, "base", module))
    return pooled @ weight.to(pooled.dtype).T


def _cache_file(fed: Federation, options: Alignment, pivot: str, target: str, samples: Sequence[Sample]) -> Path | None:
    if not options.cache:
        return None
    content = {
        "backbones": [fed.load(pivot).digest, fed.load(target).digest],
        "frozen": [fed.frozen[pivot], fed.frozen[target]],
        "adapter": dict(fed.adapter.signature()),
        "options": options.model_dump(),
        "public": public_digest(samples),
        "seed": fed.seed,
        "numeric": [fed.config.engine.threads, fed.config.engine.dtype, fed.load(target).device.type, software()],
        "options of backbones": fed.config.backbone_options,
    }
    name = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
    try:
        root = os.environ.get("PFL_CACHE") or Path.home() / ".cache" / "pfl-platform"
    except RuntimeError:  # a user without a home, as in some containers
        return None
    return Path(root) / "alignment" / f"{name}.safetensors"


def _read(
    fed: Federation, options: Alignment, pivot: str, target: str, samples: Sequence[Sample]
) -> tuple[dict[str, Tensor], Cost] | None:
    from safetensors import SafetensorError, safe_open

    file = _cache_file(fed, options, pivot, target, samples)
    if file is None or not file.is_file():
        return None
    try:
        with safe_open(str(file), "pt") as content:
            cost = Cost(**json.loads((content.metadata() or {})["cost"]))
            return {key: content.get_tensor(key) for key in content.keys()}, cost  # noqa: SIM118  # it is no mapping
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        return None  # a cache entry that is damaged, or says no cost, or cannot be read is made anew


def _write(
    fed: Federation,
    options: Alignment,
    pivot: str,
    target: str,
    samples: Sequence[Sample],
    tensors: Tensors,
    cost: Cost,
) -> None:
    from safetensors.torch import save_file

    file = _cache_file(fed, options, pivot, target, samples)
    if file is None:
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_name(f".{file.name}.{os.getpid()}")
        save_file(dict(tensors), str(draft), {"cost": json.dumps(asdict(cost))})
        draft.replace(file)
    except OSError:
        return  # a cache that cannot be written is no reason to stop
