"""The contract kit: what every method must hold, for authors to run on their own plugins.

    python -m pfl_platform.testing NAME          all checks, one line each
    from pfl_platform.testing import CHECKS      the same from pytest, one test per check

A check takes a `Bench` and raises `AssertionError` with a sentence when the method breaks the contract.
"""

from __future__ import annotations

from pfl_platform.testing.bench import Bench
from pfl_platform.testing.checks import CHECKS, run_checks

__all__ = ["CHECKS", "Bench", "run_checks"]
