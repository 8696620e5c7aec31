"""PQ-LoRA as a peft tuner: importing this package makes `peft` know the method `PQLORA`.

Whoever loads a saved PQ-LoRA adapter imports this package first; everything else is plain peft.
"""

from __future__ import annotations

from pfl_plugins.pqlora.placement import pq_layers
from pfl_plugins.pqlora.tuner.config import PQLoraConfig
from pfl_plugins.pqlora.tuner.layer import PQLinear, orthonormal
from pfl_plugins.pqlora.tuner.model import PQLoraModel, register

register()

__all__ = ["PQLinear", "PQLoraConfig", "PQLoraModel", "orthonormal", "pq_layers", "register"]
