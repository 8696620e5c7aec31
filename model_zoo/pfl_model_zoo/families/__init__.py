"""Backbone families: how weights of one kind become a `Backbone`."""

from __future__ import annotations

import torch

from pfl_model_zoo.cards import ZooCard
from pfl_model_zoo.families import encoder, encoder_decoder, llava, text, vit
from pfl_model_zoo.families.models import device_of
from pfl_model_zoo.families.quantised import library, quantised
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
    if options.load is None:
        return FAMILIES[card.family](card, options)
    device = torch.device("meta") if options.device == "meta" else device_of(options)
    if device.type != "meta":
        library(card.name)  # before any file is read
        options = options.model_copy(update={"device": "cpu"})  # whole weights never lie on the device
    return quantised(card, FAMILIES[card.family](card, options), options, device)
