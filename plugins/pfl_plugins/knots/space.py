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
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from pfl_platform.federation.merging import Inputs
from pfl_platform.lowrank.basis import Axis, CommonBasis, common_basis
from pfl_platform.lowrank.decompose import svd
from pfl_platform.lowrank.deltas import Delta
from pfl_plugins.merging.operands import Operand
from pfl_plugins.merging.outcomes import Factored, Isotropic, Leading, Outcome
from pfl_plugins.merging.spaces import Space


class KnotsSpace(Space):
    """Operands are V_k^T, in which all directions count alike, or S V_k^T.

    axis "output": deltas are joined along their inputs, and U is a basis of the outputs; "input" the other way round.
    For a second walk over the modules, bases are kept while all of them take less room than the adapters; the last one
    always is.
    """

    def __init__(self, target: Literal["v", "sv"] = "v", axis: Axis = "output", tol: float | None = None) -> None:
        self.target, self.axis, self.tol = target, axis, tol
        self._kept: dict[str, CommonBasis] = {}
        self._last: tuple[str, CommonBasis] | None = None

    def basis(self, inputs: Inputs, module: str) -> CommonBasis:
        if self._last is not None and self._last[0] == module:
            return self._last[1]
        found = self._kept.get(module)
        if found is None:
            deltas = inputs.deltas(module)
            found = common_basis(deltas, self.axis, self.tol)
            room = len(inputs.modules) * sum(_bytes(delta.up, delta.down) for delta in deltas)
            if _bytes(found.basis, *(basis.basis for basis in self._kept.values())) <= room:
                self._kept[module] = found
        self._last = (module, found)
        return found

    def operands(self, inputs: Inputs, module: str, index: int) -> tuple[Operand, ...]:
        basis = self.basis(inputs, module)
        coordinates = tuple(basis.coordinates(k, weighted=self.target == "sv") for k in range(len(inputs)))
        return (Operand(module, "", index, coordinates),)

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
        if not (self.weighted and isinstance(self.inner, Isotropic)):
            return Factored(self.whole()).leading(ranks, tol)
        # U is an isometry: the spectrum is still flat, and directions are chosen before it was made so.
        found = self.inner.leading(ranks, tol)
        return {
            rank: lead._replace(svd=svd(self.basis.lift(lead.svd.delta(), weighted=True), tol))
            for rank, lead in found.items()
        }
