"""pfl-platform: personalised federated fine-tuning of multimodal foundation models.

Importing this package imports neither torch nor transformers nor deepspeed. Plugin authors need
`pfl_platform.hookspecs.hookimpl` and the surfaces that it names.
"""

from __future__ import annotations

from pfl_platform.errors import UserError
from pfl_platform.hookspecs import hookimpl, hookspec

__all__ = ["UserError", "__version__", "hookimpl", "hookspec"]
__version__ = "0.1.0"
