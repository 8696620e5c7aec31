"""Backbone families: how weights of one kind become a `Backbone`."""

from __future__ import annotations

from pfl_model_zoo.cards import ZooCard
from pfl_model_zoo.families import encoder, encoder_decoder, llava, text, vit
from pfl_model_zoo.options import LoadOptions
from pfl_platform.backbones import Backbone

FAMILIES = {
    "encoder": encoder.load,
    "encoder_decoder": encoder_decoder.load,
    "llava": llava.load,
    "text": text.load,
    "vit": vit.load,
}


def load(card: ZooCard, options: LoadOptions) -> Backbone:
    """Loads a card's backbone: frozen, in evaluation mode, on the device and in the precision of the options."""
    return FAMILIES[card.family](card, options)
