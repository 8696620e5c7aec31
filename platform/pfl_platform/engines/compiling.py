"""A backbone's blocks through `torch.compile`, where a run asks for it.

Blocks are compiled one by one and not the model as a whole: what lies between them (masks, pictures, the head that is
given answers alone) has other shapes in every batch. Sizes are left open, so that batches of another length find what
is there. Results change in their last bits.
"""

from __future__ import annotations

import os
import shutil
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

from pfl_platform.config import EngineOptions
from pfl_platform.errors import UserError

if TYPE_CHECKING:
    from pfl_platform.adapters.host import Host

FORMS = 64
"""Forms of a block (which params train, which slots are mixed, whether keys are cached) that are kept compiled; torch's
own limit of 8 for all blocks together is reached by two methods."""


def check(engine: EngineOptions) -> None:
    """Raises `UserError` for what is compiled nowhere."""
    if engine.compile == "off":
        return
    if engine.zero == 3:
        raise UserError("Blocks that are spread over ranks (engine.zero=3) are not compiled; leave out engine.compile.")
    if engine.batch_clients not in ("off", 1):
        raise UserError("Clients that train side by side are not compiled; set engine.batch_clients=off.")


def check_here(engine: EngineOptions) -> None:
    """Raises `UserError` where this machine has nothing that makes code."""
    if engine.compile == "inductor" and (missing := _missing(engine)):
        raise UserError(f"engine.compile=inductor needs {missing}, which is not here; leave it out, or install it.")


def _missing(engine: EngineOptions) -> str:
    """What makes code for the device, where it is not there."""
    import torch

    on_gpu = engine.device.startswith("cuda") or (engine.device == "auto" and torch.cuda.is_available())
    if on_gpu and not find_spec("triton"):
        return "the package triton"
    if on_gpu:  # triton has small programs made, too
        names = [os.environ.get("CC", ""), "cc", "gcc", "clang"]
        return "" if any(name and shutil.which(name) for name in names) else "a C compiler (gcc, or what CC names)"
    names = [os.environ.get("CXX", ""), "g++", "clang++", "cl"]
    return "" if any(name and shutil.which(name) for name in names) else "a C++ compiler (g++, or what CXX names)"


def compile_blocks(host: Host, backend: str) -> None:
    """Compiles each block of a host's backbone when it is first passed."""
    import torch._dynamo

    torch._dynamo.config.recompile_limit = max(FORMS, torch._dynamo.config.recompile_limit)
    # Numbers that are drawn at an address have another one in each step, for which nothing is to be compiled anew.
    control = host.control
    control.chances = torch.compiler.disable(control.chances)  # type: ignore[method-assign, no-untyped-call]
    host.eager = partial(torch.compiler.set_stance, "force_eager")
    for path in host.backbone.blocks:
        host.backbone.module(path).compile(backend=backend, dynamic=True)
