"""Encoders with a classifier, of the RoBERTa and BERT kind.

The model's logits are (rows, 2, classes), so that a class is learned as an answer of one token: what position 0 says is
compared with the label at position 1 (see `ClassCodec`). The classifier is the task head; BERT's pooler is part of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import BertForSequenceClassification, RobertaForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutput

from pfl_model_zoo.cards import ENCODER_LINEARS, ZooCard
from pfl_model_zoo.classes import ClassCodec
from pfl_model_zoo.families.files import locate
from pfl_model_zoo.families.models import (
    LONGEST_ROW,
    check_type,
    config_in,
    definition,
    digest_of_files,
    digest_of_random,
    from_files,
    frozen,
    random_model,
    read_classifier,
    read_tokenizer,
)
from pfl_model_zoo.options import LoadOptions
from pfl_model_zoo.questions import QuestionReader
from pfl_platform.backbones import Backbone
from pfl_platform.rng import torch_rng

MASKED = -1e4
"""Logit of a class that a row does not have: its probability is exactly 0, and divergences between two models stay
finite, which minus infinity would not let them."""
DEVIATION = 0.02
"""Standard deviation of a new head's weights, as in the models' own code; its biases are 0."""


class RobertaClassifier(RobertaForSequenceClassification):  # type: ignore[no-untyped-call]
    """Takes `choices` (rows,), how many classes each row has."""

    def forward(self, *args: Any, choices: Tensor | None = None, **inputs: Any) -> SequenceClassifierOutput:
        return one_step(super().forward(*args, **without_cache(inputs)).logits, choices)


class BertClassifier(BertForSequenceClassification):  # type: ignore[no-untyped-call]
    """Takes `choices` (rows,), how many classes each row has."""

    def forward(self, *args: Any, choices: Tensor | None = None, **inputs: Any) -> SequenceClassifierOutput:
        return one_step(super().forward(*args, **without_cache(inputs)).logits, choices)


def without_cache(inputs: dict[str, Any]) -> dict[str, Any]:
    """An encoder has no cache to use or not to use."""
    return {name: value for name, value in inputs.items() if name != "use_cache"}


def one_step(logits: Tensor, choices: Tensor | None) -> SequenceClassifierOutput:
    """(rows, classes) to (rows, 2, classes); classes beyond a row's own are masked."""
    if choices is not None:
        beyond = torch.arange(logits.shape[1], device=logits.device) >= choices[:, None]
        logits = logits.masked_fill(beyond, MASKED)
    return SequenceClassifierOutput(logits=logits[:, None].expand(-1, 2, -1))


KINDS: Mapping[str, Any] = {"roberta": RobertaClassifier, "bert": BertClassifier}
HEADS = {"roberta": ("classifier",), "bert": ("bert.pooler", "classifier")}
LAST = {"roberta": "classifier.out_proj", "bert": "classifier"}


def load(card: ZooCard, options: LoadOptions) -> Backbone:
    """An encoder with a classifier as a backbone. A head that the files lack is drawn from the option `init` (else 0),
    and declared as new."""
    classes = options.classes or int(card.config["num_labels"])
    if from_files(options):
        folder = locate(card, options)
        kind = check_type(config_in(folder, card), card, KINDS)
        heads = HEADS[kind]
        model, fresh = read_classifier(KINDS[kind], folder, card, options, heads, classes)
        draw_heads(model, fresh, options.init or 0)
        digest = digest_of_files(folder, card, options, f"{classes} classes")
    else:
        config, folder = definition(card, options)
        config.num_labels = classes
        kind = check_type(config, card, KINDS)
        heads, fresh = HEADS[kind], ()
        model = random_model(KINDS[kind]._from_config, config, options)
        digest = digest_of_random(config, folder, options)
    tokenizer = read_tokenizer(folder, card.name, generates=False)
    reader = QuestionReader(
        card.name,
        tokenizer.backend_tokenizer,
        pad=int(tokenizer.pad_token_id),
        opening=first_of(tokenizer.cls_token_id, tokenizer.bos_token_id),
        closing=first_of(tokenizer.sep_token_id, tokenizer.eos_token_id),
        max_length=options.max_length or longest(model.config),
        cache_rows=options.cache_rows,
    )
    blocks = tuple(f"{kind}.encoder.layer.{index}" for index in range(model.config.num_hidden_layers))
    return Backbone(
        card=card.to_card(),
        model=frozen(model, options),
        codec=ClassCodec(reader, classes),
        blocks=blocks,
        linears=ENCODER_LINEARS,
        final_norm=f"{blocks[-1]}.output.LayerNorm",
        head=LAST[kind],
        last_linear=f"{blocks[-1]}.output.dense",
        digest=digest,
        task_head=heads,
        fresh_head=fresh,
    )


def longest(config: Any) -> int:
    """Rows that the position table has room for. RoBERTa counts positions from behind the padding token's id."""
    spare = int(config.pad_token_id) + 1 if config.model_type == "roberta" else 0
    return min(int(config.max_position_embeddings) - spare, LONGEST_ROW)


def first_of(*ids: int | None) -> int | None:
    return next((int(token) for token in ids if token is not None), None)


def draw_heads(model: torch.nn.Module, paths: tuple[str, ...], seed: int) -> None:
    """New weights at the address (seed, "head", parameter)."""
    with torch.no_grad():
        for path in paths:
            for name, value in model.get_submodule(path).named_parameters(prefix=path):
                if name.endswith("bias"):
                    value.zero_()
                else:
                    value.copy_(DEVIATION * torch.randn(value.shape, generator=torch_rng(seed, "head", name)))
