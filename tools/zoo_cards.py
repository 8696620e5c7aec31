"""Writes into the cards of the model zoo what follows from shapes: adaptable maps, and bytes of weights by precision.

    python tools/zoo_cards.py

Nothing is loaded; models are made on the meta device. Run it after adding a card.
"""

from __future__ import annotations

from typing import Any

import yaml

from pfl_model_zoo.cards import CARDS, ZooCard, all_cards
from pfl_model_zoo.plugin import FORMS, pfl_make_backbone
from pfl_platform.backbones import shape_of
from pfl_platform.errors import UserError

FRAMES = {
    "llava": "USER: {question} ASSISTANT: {answer}{end}",
    "text": "USER: {question} ASSISTANT: {answer}{end}",
    "encoder": "{question}",
    "encoder_decoder": "{question}",
    "vit": "",
}


def derived(card: ZooCard) -> dict[str, Any]:
    """The fields that follow from the family and the shapes."""
    backbone = pfl_make_backbone(card.name, {"device": "meta"})
    assert backbone is not None
    params = sum(value.numel() for value in backbone.model.parameters())
    memory = {"float32": 4 * params, "bfloat16": 2 * params}
    for form in reversed(FORMS):
        try:
            few = pfl_make_backbone(f"{card.name}@{form}", {"device": "meta"})
        except UserError:
            continue  # its maps are of sizes that cannot be held so
        assert few is not None
        held = sum(rows * columns for rows, columns in (shape_of(few.module(path)) for path in few.few))
        memory[form] = round(2 * (params - held) + few.few_bytes)
    return {"chat_template": FRAMES[card.family], "adaptable": list(backbone.linears), "memory": memory}


def main() -> None:
    for name, card in all_cards().items():
        path = CARDS / f"{name}.yaml"
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
        after = {key: fields.pop(key) for key in ("config", "options", "measured") if key in fields}
        written = {**fields, **derived(card), **after}
        path.write_text(yaml.safe_dump(written, sort_keys=False, width=118, allow_unicode=True), encoding="utf-8")


if __name__ == "__main__":
    main()
