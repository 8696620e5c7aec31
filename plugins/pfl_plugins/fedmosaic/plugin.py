"""FedMosaic = RELA + PQ-LoRA: each client gets a global adapter of its own, made of what related clients learned.

Citation: Seo, Kim, Lee, Choi, Tuytelaars, "Not All Clients Are Equal: Collaborative Model Personalization on
Heterogeneous Multi-Modal Clients", ICLR 2026. Published code: snumprlab/fedmosaic at 7887f5f.

A client trains its `local` adapter and a gate; the frozen `global` adapter is what the server made for it (Eq. 7).
It sends its local adapter and a sanitised sketch of its data's gradient in a small frozen model W_s (Eq. 1-3). The
server weighs clients by the softmax of the sketches' cosines (Eq. 4). Params of PQ layers are combined over all
clients, those of conventional layers among the clients of a backbone. A and B of the PQ layers are aligned once,
before round 0.

The paper's reading is the default; options that begin with `official` are what its published code does instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pfl_platform.hookspecs import hookimpl
from pfl_plugins.fedmosaic.config import Config, RelaConfig

if TYPE_CHECKING:
    from pfl_platform.federation.components import Aggregator, Objective


@hookimpl
def pfl_make_objective(name: str, options: Mapping[str, Any]) -> Objective | None:
    if name != "fedmosaic":
        return None
    config = Config(**options)
    from pfl_plugins.fedmosaic.objective import FedMosaic

    return FedMosaic(config)


@hookimpl
def pfl_make_aggregator(name: str, options: Mapping[str, Any]) -> Aggregator | None:
    if name != "rela":
        return None
    config = RelaConfig(**options)
    from pfl_plugins.fedmosaic.rela import Rela

    return Rela(config)
