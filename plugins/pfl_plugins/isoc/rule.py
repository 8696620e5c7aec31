"""Iso-C: one value for all singular directions of the summed deltas.

Marczak, Magistri, Cygert, Twardowski, Bagdanov, van de Weijer, "No Task Left Behind: Isotropic Model Merging with
Common and Task-Specific Subspaces", ICML 2025, arXiv 2502.04959, equations 7 to 9. Published code:
danielm1405/iso-merging.

    D_TA = sum_k D_k = U S V^T                     (7)
    sbar = (1 / R) sum_i S_i                       (8)
    D_iso = sbar U V^T,    D_G = alpha D_iso       (9)

R is the numerical rank. It is what the paper's full-rank matrices have as min(d_out, d_in); a sum of low-rank deltas
has much less, and the other directions, which an SVD returns at random, must not get a value.
"""

from __future__ import annotations

from torch import Tensor

from pfl_platform.lowrank.deltas import Delta, weighted_sum
from pfl_plugins.isoc.config import IsoOptions
from pfl_plugins.merging.operands import Field, Operand
from pfl_plugins.merging.outcomes import Isotropic, Outcome
from pfl_plugins.merging.rules import Bound, Rule, summed


def isotropic(total: Delta, options: IsoOptions, tol: float | None = None) -> Isotropic:
    """Equations 8 and 9."""
    smaller = None if options.iso_average == "rank" else min(total.shape)
    return Isotropic(total, smaller, options.iso_value == "kept", tol)


def iso_c(matrix: Tensor, iso_average: str = "rank") -> Tensor:
    """Equations 7 to 9 for the sum of dense deltas (d_out, d_in).

    >>> iso_c(Tensor([[3.0, 0.0], [0.0, 1.0]])).round(decimals=4)
    tensor([[2., 0.],
            [0., 2.]])
    """
    options = IsoOptions.model_validate({"iso_average": iso_average})
    return isotropic(Delta.from_dense(matrix), options).whole().dense()


class IsoC(Rule):
    """Iso-C of the sum of the operands (of the mean, where a space averages)."""

    def __init__(self, options: IsoOptions, tol: float | None = None) -> None:
        self.options, self.tol = options, tol

    def coefficient(self, count: int) -> float:
        return 1.0 / count

    def bind(self, field: Field) -> Bound:
        weights = field.inputs.weights

        def outcome(operand: Operand, _: int) -> Outcome:
            total = weighted_sum(operand.deltas, summed(weights, averaged=operand.averaged))
            return isotropic(total, self.options, self.tol)

        return outcome
