"""The zoo's hooks. Every card is announced as an entry point that names this module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pfl_model_zoo.cards import lookup
from pfl_model_zoo.options import read_options
from pfl_platform.hookspecs import hookimpl

if TYPE_CHECKING:
    from pfl_platform.backbones import Backbone, Card


@hookimpl
def pfl_make_backbone(name: str, options: Mapping[str, Any]) -> Backbone | None:
    """Loads a backbone of the zoo by name or alias; see `LoadOptions` for what may be said."""
    card = lookup(name)
    if card is None:
        return None
    chosen = read_options(name, card.options, options)
    from pfl_model_zoo.families import load

    return load(card, chosen)


def pfl_backbone_card(name: str) -> Card | None:
    """What is known of a backbone without loading it; None for names that are not in the zoo."""
    card = lookup(name)
    return None if card is None else card.to_card()
