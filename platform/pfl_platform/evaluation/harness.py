"""Zero-shot scores of a bare backbone by the tasks of lm-eval, the extra `zero-shot`.

The harness renders a task's questions, collects answers and scores them. Here a question is put to the backbone as a
run puts it: as a human's turn in its own chat form, with a candidate as the answer. So scores are those of the backbone
that adapters are trained on; plain continuations of raw text, as other drivers of the harness make them, score
otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pfl_platform.adapters.host import Host
from pfl_platform.backbones import IGNORE, OneStepCodec
from pfl_platform.data import Sample, Turn
from pfl_platform.errors import UserError
from pfl_platform.evaluation.generate import greedy

EXTRA = "zero-shot"
LONGEST = 256
"""Tokens of an answer where a task says nothing."""


def likelihoods(host: Host, samples: Sequence[Sample]) -> list[tuple[float, bool]]:
    """Of each sample's answer, its end included: the sum of log-probabilities, and whether greedy decoding gives it."""
    encoded = host.encode(samples)
    with torch.no_grad(), host.mixing({}, host.masks(encoded.inputs)):
        logits = host.run(encoded.inputs, use_cache=False).logits[:, :-1].float()
    labels = encoded.labels[:, 1:]
    picked = labels != IGNORE
    chances: Tensor = logits.log_softmax(-1)
    wanted = chances.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    sums = (wanted * picked).sum(1)
    best = ((chances.argmax(-1) == labels) | ~picked).all(1)
    return [(float(total), bool(same)) for total, same in zip(sums, best, strict=True)]


def zero_shot(
    host: Host, tasks: Sequence[str], *, limit: int | None, shots: int, batch_size: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Task -> metric -> value, as the harness names them. tasks: its names, or YAML files in its form, which may read
    local data sets; a named task loads its data as the harness does."""
    lm = require()
    backbone = host.backbone
    if isinstance(backbone.codec, OneStepCodec) or backbone.card.modality == "vision":
        raise UserError(f"'{backbone.name}' answers with classes and not in words, so it has no zero-shot answers.")
    given = [_task(name) for name in tasks]
    found = lm.simple_evaluate(
        model=_driver(lm, host, batch_size),
        tasks=given,
        num_fewshot=shots or None,
        limit=limit,
        log_samples=False,
        bootstrap_iters=0,
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
    )
    results: Mapping[str, Mapping[str, Any]] = found["results"]
    return {
        task: {
            key.partition(",")[0]: value
            for key, value in scores.items()
            if isinstance(value, int | float) and "stderr" not in key and not key.startswith("sample")
        }
        for task, scores in results.items()
    }


def require() -> Any:
    """The package, or one sentence where it is not installed."""
    try:
        import lm_eval
    except ImportError as error:
        raise UserError(
            f"Zero-shot scores need lm-eval, which is not installed ({error}): pip install 'pfl-platform[{EXTRA}]'."
        ) from None
    return lm_eval


def _task(name: str) -> str | dict[str, Any]:
    """A task's name, or the content of its file."""
    if not name.endswith((".yaml", ".yml")):
        return name
    from lm_eval import utils

    if not Path(name).is_file():
        raise UserError(f"The task file {name} does not exist.")
    load: Any = getattr(utils, "load_yaml_config", None)
    found: Any = load(yaml_path=name, mode="full") if load is not None else _read(Path(name))
    return dict(found)


def _read(file: Path) -> Mapping[str, Any]:
    from pfl_platform.settings import read

    return read(file)


def _driver(lm: Any, host: Host, batch_size: int) -> Any:
    """The backbone as the harness wants a model."""

    class Driver(lm.api.model.LM):  # type: ignore[misc]
        def loglikelihood(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
            samples = [_sample(number, *request.args) for number, request in enumerate(requests)]
            return _batched(samples, batch_size, lambda part: likelihoods(host, part))

        def loglikelihood_rolling(self, requests: Sequence[Any], **_: Any) -> list[float]:
            raise UserError("A task that scores whole texts asks nothing, so a chat form has no place for it.")

        def generate_until(self, requests: Sequence[Any], **_: Any) -> list[str]:
            found = []
            for number, request in enumerate(requests):
                context, options = request.args
                longest = int(options.get("max_gen_toks", LONGEST))
                (text,) = greedy(host, [_sample(number, context, "")], [{}], longest)
                stops = options.get("until") or []
                for stop in [stops] if isinstance(stops, str) else stops:
                    text = text.split(stop)[0] if stop else text
                found.append(text)
            return found

    return Driver()


def _sample(number: int, context: str, answer: str) -> Sample:
    return Sample(str(number), (Turn(context.strip(), answer.strip()),))


def _batched(samples: Sequence[Sample], size: int, look: Any) -> list[tuple[float, bool]]:
    """Answers in the order of the samples; rows of like length go together."""
    order = sorted(range(len(samples)), key=lambda k: -len(samples[k].turns[0].human) - len(samples[k].turns[0].answer))
    found: dict[int, tuple[float, bool]] = {}
    for start in range(0, len(order), size):
        part = order[start : start + size]
        found |= dict(zip(part, look([samples[k] for k in part]), strict=True))
    return [found[k] for k in range(len(samples))]
