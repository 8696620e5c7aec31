"""Vision transformers with a classifier (ViT, Dosovitskiy et al., arXiv 2010.11929): one picture in, one class out.

As with the encoders of text, logits are (rows, 2, classes), so that a class is learned as an answer of one token is.
The classifier, which reads the class token behind the last norm, is the task head.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig, ViTForImageClassification
from transformers.modeling_outputs import SequenceClassifierOutput

from pfl_model_zoo.cards import VIT_LINEARS, ZooCard
from pfl_model_zoo.classes import ClassCodec
from pfl_model_zoo.families.encoder import draw_heads, one_step, without_cache
from pfl_model_zoo.families.files import locate
from pfl_model_zoo.families.models import (
    check_type,
    config_in,
    definition,
    digest_of_files,
    digest_of_random,
    from_files,
    frozen,
    random_model,
    read_classifier,
)
from pfl_model_zoo.options import LoadOptions
from pfl_model_zoo.pictures import PictureReader
from pfl_model_zoo.single_picture import SinglePictureReader
from pfl_platform.backbones import Backbone
from pfl_platform.errors import UserError

HEAD = "classifier"
SEEN = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "resample": 2}
"""How pictures are read where the files do not say: as ViT's own."""


class ViTClassifier(ViTForImageClassification):  # type: ignore[no-untyped-call]
    """Takes `choices` (rows,), how many classes each row has. All rows have all positions, so the mask, of ones, is
    counted by the core and not given to the attention, which is faster without."""

    def forward(
        self, *args: Any, choices: Tensor | None = None, attention_mask: Tensor | None = None, **inputs: Any
    ) -> SequenceClassifierOutput:
        return one_step(super().forward(*args, **without_cache(inputs)).logits, choices)


def load(card: ZooCard, options: LoadOptions) -> Backbone:
    """A vision transformer with a classifier as a backbone. A classifier that the files lack, or have in another size,
    is drawn from the option `init` (else 0), and declared as new.

    >>> from pfl_model_zoo.cards import find
    >>> backbone = load(find("vit-b16"), LoadOptions(device="meta"))
    >>> len(backbone.blocks), backbone.linears_in(backbone.blocks[0])[0], backbone.task_head
    (12, 'attention.q_proj', ('classifier',))
    """
    classes = options.classes or int(card.config["num_labels"])
    if from_files(options):
        folder = locate(card, options)
        check_kind(config_in(folder, card), card)
        seen = how_seen(folder, card)
        model, fresh = read_classifier(ViTClassifier, folder, card, options, (HEAD,), classes)
        draw_heads(model, fresh, options.init or 0)
        digest = digest_of_files(folder, card, options, f"{classes} classes", json.dumps(seen, sort_keys=True))
    else:
        config, folder = definition(card, options)
        check_kind(config, card)
        config.num_labels = classes
        seen, fresh = how_seen(folder, card), ()
        model = random_model(ViTClassifier._from_config, config, options)
        digest = digest_of_random(config, folder, options)
    if not hasattr(model.vit, "layers"):
        raise UserError(f"The backbone '{card.name}' needs a newer transformers, at least 5.23.")
    reader = PictureReader(
        int(model.config.image_size),
        int(model.config.patch_size),
        mean=seen["image_mean"],
        std=seen["image_std"],
        resample=seen["resample"],
        cache_bytes=options.cache_mb << 20,
    )
    blocks = tuple(f"vit.layers.{index}" for index in range(model.config.num_hidden_layers))
    return Backbone(
        card=card.to_card(),
        model=frozen(model, options),
        codec=ClassCodec(SinglePictureReader(card.name, reader), classes),
        blocks=blocks,
        linears=VIT_LINEARS,
        final_norm="vit.layernorm",
        head=HEAD,
        last_linear=f"{blocks[-1]}.mlp.fc2",
        digest=digest,
        task_head=(HEAD,),
        fresh_head=fresh,
    )


def check_kind(config: PreTrainedConfig, card: ZooCard) -> None:
    """Raises `UserError` for the configuration of anything but a ViT with square pictures."""
    check_type(config, card, ("vit",))
    if not all(isinstance(size, int) for size in (config.image_size, config.patch_size)):
        raise UserError(f"The files of backbone '{card.name}' are for pictures that are not square.")


def how_seen(folder: Path, card: ZooCard) -> Mapping[str, Any]:
    """`SEEN` with what the folder's `preprocessor_config.json`, if there is one, says otherwise."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return SEEN
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        found = {name: said.get(name, value) for name, value in SEEN.items()}
        sound = all(
            len(found[name]) == 3 and all(isinstance(x, int | float) for x in found[name])
            for name in ("image_mean", "image_std")
        )
        sound = sound and min(found["image_std"]) > 0 and found["resample"] in range(6)
    except (ValueError, TypeError, AttributeError, OSError):
        sound = False
    if not sound:
        raise UserError(f"The file {path} of backbone '{card.name}' does not say how pictures are read.")
    return found
