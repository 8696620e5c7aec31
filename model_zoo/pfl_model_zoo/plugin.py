"""The zoo's hooks. Every card is announced as an entry point that names this module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pfl_model_zoo.cards import lookup
from pfl_model_zoo.from_folder import card_of, named
from pfl_model_zoo.options import read_options
from pfl_platform.errors import UserError
from pfl_platform.hookspecs import hookimpl

if TYPE_CHECKING:
    from pfl_platform.backbones import Backbone, Card

FORMS = ("4bit", "8bit")


@hookimpl
def pfl_make_backbone(name: str, options: Mapping[str, Any]) -> Backbone | None:
    """Loads a backbone of the zoo by name or alias, or one in a folder by its path; see `LoadOptions` for what may be
    said. `NAME@4bit` and `NAME@8bit` are the option `load` for this backbone alone."""
    name, at, form = name.rpartition("@") if name.endswith(tuple(f"@{form}" for form in FORMS)) else (name, "", "")
    card = card_of(name) if named(name) else lookup(name)
    if card is None:
        return None
    if at:
        if options.get("load", form) != form:
            raise UserError(f"The backbone {name}@{form} cannot be loaded in {options['load']} too; say it once.")
        card = card.model_copy(update={"name": f"{card.name}@{form}"})
        options = {**options, "load": form}
    if named(name) and "path" in options:
        raise UserError(f"The backbone {name} is a folder already; leave out the backbone option path.")
    chosen = read_options(name, card.options, options)
    from pfl_model_zoo.families import load

    return load(card, chosen)


def pfl_backbone_card(name: str) -> Card | None:
    """What is known of a backbone without loading it; None for names that are not in the zoo."""
    card = lookup(name)
    return None if card is None else card.to_card()
