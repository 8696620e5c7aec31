"""KnOTS coordinates: deltas in one orthonormal basis of the outputs (or inputs).

Stoica, Ramesh, Ecsedi, Choshen, Hoffman, "Model Merging with SVD to Tie the Knots", ICLR 2025, arXiv 2410.19735.
Published code: gstoica27/KnOTS. Side by side the deltas have one SVD,

    [D_1, ..., D_K] = U S [V_1^T, ..., V_K^T],     D_k = U S V_k^T exactly

and a rule M merges what is the client's own:

    D_G = alpha U S M({V_k^T})      target "v": the paper, and "From Aggregation to Guidance"
    D_G = alpha U M({S V_k^T})      target "sv": the published code

For a linear M both are M({D_k}); and since U is an isometry, Iso-C in "sv" is Iso-C of the deltas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from pfl_platform.federation.merging import Inputs
from pfl_platform.lowrank.basis import Axis, CommonBasis, common_basis
from pfl_platform.lowrank.decompose import svd
from pfl_platform.lowrank.deltas import Delta
from pfl_plugins.merging.operands import Operand
from pfl_plugins.merging.outcomes import Isotropic, Leading, Outcome
from pfl_plugins.merging.spaces import Space

_HOLD = 2**29
"""Bytes of bases that are kept for a second walk."""


class KnotsSpace(Space):
    """Operands are V_k^T, in which all directions count alike, or S V_k^T.

    axis "output": deltas are joined along their inputs, and U is a basis of the outputs; "input" the other way round.
    A rule may walk all modules several times, and looks for a basis twice at most: the small factors of coordinates
    are kept. So are bases while all of them take little room, and the last one always.
    """

    def __init__(self, target: Literal["v", "sv"] = "v", axis: Axis = "output", tol: float | None = None) -> None:
        self.target, self.axis, self.tol = target, axis, tol
        self._kept: dict[str, CommonBasis] = {}
        self._last: tuple[str, CommonBasis] | None = None
        self._lefts: dict[str, tuple[Tensor, ...]] = {}

    def basis(self, inputs: Inputs, module: str) -> CommonBasis:
        if self._last is not None and self._last[0] == module:
            return self._last[1]
        deltas = inputs.deltas(module)
        if module in self._kept:
            found = replace(self._kept[module], deltas=deltas)
        else:
            found = common_basis(deltas, self.axis, self.tol)
            room = min(_HOLD, len(inputs.modules) * sum(_bytes(delta.up, delta.down) for delta in deltas))
            if _bytes(found.basis, *(basis.basis for basis in self._kept.values())) <= room:
                self._kept[module] = replace(found, deltas=())
        self._last = (module, found)
        return found

    def operands(self, inputs: Inputs, module: str, index: int) -> tuple[Operand, ...]:
        return (Operand(module, "", index, self._coordinates(inputs, module)),)

    def _coordinates(self, inputs: Inputs, module: str) -> tuple[Delta, ...]:
        """`(S^-1 U^T s_k up_k) down_k`; the factor in brackets is kept, in the precision of what came in."""
        if module not in self._lefts:
            basis = self.basis(inputs, module)
            whole = (basis.coordinates(k, weighted=self.target == "sv") for k in range(len(inputs)))
            self._lefts[module] = tuple(one.up.to(torch.promote_types(one.dtype, torch.float32)) for one in whole)
        deltas = inputs.deltas(module)
        turned = deltas if self.axis == "output" else tuple(delta.T for delta in deltas)
        return tuple(
            Delta(left, delta.down, 1.0, delta.name, delta.dtype)
            for left, delta in zip(self._lefts[module], turned, strict=True)
        )

    def assembled(self, inputs: Inputs, module: str, outcomes: Sequence[Outcome]) -> Outcome:
        return Lifted(outcomes[0], self.basis(inputs, module), self.target == "sv")


def _bytes(*tensors: Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@dataclass(frozen=True, eq=False)
class Lifted(Outcome):
    """An outcome in coordinates, taken back: `U S X`, or `U X` when the coordinates hold S already."""

    inner: Outcome
    basis: CommonBasis
    weighted: bool

    def whole(self) -> Delta:
        return self.basis.lift(self.inner.whole(), weighted=self.weighted)

    def leading(self, ranks: Sequence[int], tol: float | None) -> dict[int, Leading]:
        basis = self.basis
        if self.weighted and isinstance(self.inner, Isotropic):
            # U is an isometry: the spectrum is still flat, and directions are chosen before it was made so.
            found = self.inner.leading(ranks, tol)
            return {rank: lead._replace(svd=basis.raised(lead.svd)) for rank, lead in found.items()}
        inside = svd(basis.inside(self.inner.whole(), weighted=self.weighted), tol)
        return dict.fromkeys(ranks, Leading(basis.raised(inside), 0.0, inside.rank))
