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
from pfl_platform.lowrank.decompose import SVD, leading, svd
from pfl_platform.lowrank.decompose import Leading as Part
from pfl_platform.lowrank.deltas import Delta, double, shared_precision
from pfl_platform.lowrank.gauge import signs
from pfl_plugins.merging.operands import Operand
from pfl_plugins.merging.outcomes import Isotropic, Leading, Outcome, led
from pfl_plugins.merging.spaces import Space

_WIDE = 1e5
"""Ratio of largest to smallest singular value beyond which a basis is found again, instead of made from coordinates."""


class KnotsSpace(Space):
    """Operands are V_k^T, in which all directions count alike, or S V_k^T.

    axis "output": deltas are joined along their inputs, and U is a basis of the outputs; "input" the other way round.
    A rule may walk all modules several times. The small factors of coordinates and the singular values are kept, in
    float64; they give `U S = sum_k D_k V_k` back, so that a basis is looked for once. It is found again for target
    "sv", which needs U itself, and for values so far apart that U S would lose digits.
    """

    def __init__(self, target: Literal["v", "sv"] = "v", axis: Axis = "output", tol: float | None = None) -> None:
        self.target, self.axis, self.tol = target, axis, tol
        self._last: tuple[str, CommonBasis] | None = None
        self._found: dict[str, tuple[tuple[Tensor, ...], Tensor]] = {}
        self._done: str | None = None

    def basis(self, inputs: Inputs, module: str) -> CommonBasis:
        """That of one module; the last one is kept."""
        if self._last is None or self._last[0] != module:
            self._last = None  # its memory goes first
            self._last = (module, common_basis(inputs.deltas(module), self.axis, self.tol))
        return self._last[1]

    def operands(self, inputs: Inputs, module: str, index: int) -> tuple[Operand, ...]:
        return (Operand(module, "", index, self._coordinates(inputs, module)),)

    def _coordinates(self, inputs: Inputs, module: str) -> tuple[Delta, ...]:
        """`(S^-1 U^T s_k up_k) down_k`; the factor in brackets is kept."""
        if module not in self._found:
            basis = self.basis(inputs, module)
            weighted = self.target == "sv"
            parts = [basis.coordinates(k, weighted=weighted).up.T for k in range(len(inputs))]
            # In one piece: small ones that stay, among others that go, would leave memory in pieces.
            kept = torch.split(torch.cat(parts), [len(part) for part in parts])
            self._found[module] = tuple(part.T for part in kept), basis.values
            if not self._again(module):
                self._last = None
        return tuple(
            Delta(left, delta.down, 1.0, delta.name, delta.dtype)
            for left, delta in zip(self._found[module][0], self._turned(inputs, module), strict=True)
        )

    def _turned(self, inputs: Inputs, module: str) -> tuple[Delta, ...]:
        deltas = inputs.deltas(module)
        return deltas if self.axis == "output" else tuple(delta.T for delta in deltas)

    def _again(self, module: str) -> bool:
        """Whether the way back needs the basis itself."""
        values = self._found[module][1]
        return self.target == "sv" or not len(values) or float(values[0]) > _WIDE * float(values[-1])

    def assembled(self, inputs: Inputs, module: str, outcomes: Sequence[Outcome]) -> Outcome:
        if self._done not in (None, module):  # a merge goes from map to map and does not come back
            self._found.pop(str(self._done), None)
        self._done = module
        if self._again(module):
            return Lifted(outcomes[0], self.basis(inputs, module), self.target == "sv")
        lefts, values = self._found[module]
        turned = self._turned(inputs, module)
        parts = zip(turned, lefts, strict=True)
        columns = tuple(
            Delta(delta.up, _across(delta, left), delta.scale, delta.name, delta.dtype) for delta, left in parts
        )
        return Raised(outcomes[0], columns, values, self.axis)


def _across(delta: Delta, left: Tensor) -> Tensor:
    """What maps coordinates to the inner dimension of `D_k V_k`: `(down down^T) left^T` (r, R)."""
    down = double(delta.down)
    return (down @ down.T) @ left.T


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


@dataclass(frozen=True, eq=False)
class Raised(Outcome):
    """An outcome in coordinates V, taken back by `U S = sum_k D_k V_k`. columns: the terms of that sum, as deltas of
    shape (d, R); values: S; axis: as in `KnotsSpace`."""

    inner: Outcome
    columns: tuple[Delta, ...]
    values: Tensor
    axis: Axis

    def _times(self, right: Tensor | None = None) -> Tensor:
        """`U S X` for X (R, c); U S itself for None."""
        total = torch.zeros((), dtype=torch.float64, device=self.values.device)
        for one in self.columns:
            total = total + (one.scale * double(one.up)) @ (one.down if right is None else one.down @ right)
        return total

    def _given(self) -> tuple[Tensor | None, Tensor]:
        """X as the two factors of a delta, the first None for a matrix that has been written out."""
        whole = self.inner.whole()
        return (
            (None, whole.double())
            if isinstance(whole, Tensor)
            else (whole.scale * double(whole.up), double(whole.down))
        )

    def whole(self) -> Delta:
        up, down = self._given()
        return self._turned(Delta(self._times(up), down, precision=shared_precision(self.columns)))

    def _turned(self, delta: Delta) -> Delta:
        return delta if self.axis == "output" else delta.T

    def leading(self, ranks: Sequence[int], tol: float | None) -> dict[int, Leading]:
        if isinstance(self.inner, Isotropic) and self.inner.matrix.rank == len(self.values):
            return self._of_isometry(self.inner, ranks)
        up, down = self._given()
        # U is an isometry: S X has the singular values of U S X, and its right singular vectors.
        left = torch.diag(self.values) if up is None else self.values[:, None] * up
        inside = Delta(left, down, precision=shared_precision(self.columns))
        found = leading(inside, max(ranks), tol)
        turn = down @ (found.svd.vt.T / found.svd.s)
        u = self._times(turn if up is None else up @ turn)
        return led(found._replace(svd=self._turned_svd(replace(found.svd, u=u))), ranks, lambda: inside, tol)

    def _of_isometry(self, inner: Isotropic, ranks: Sequence[int]) -> dict[int, Leading]:
        """X with orthonormal rows, all of one length t: `U (t S) (X / t)` is the SVD as it stands."""
        matrix, count = inner.matrix, max(ranks)
        values = inner.value(matrix.s) * self.values
        unit = torch.eye(len(values), count, dtype=torch.float64, device=values.device) / self.values[:count]
        rows = matrix.u[:count] @ matrix.vt
        flips = signs(rows)
        made = replace(matrix, u=self._times(unit) * flips, s=values[:count], vt=rows * flips[:, None])
        found = Part(self._turned_svd(made), float(values[count:].square().sum()), values)
        return led(found, ranks, self.whole, inner.tol)

    def _turned_svd(self, found: SVD) -> SVD:
        """That of the transpose, for axis "input"."""
        if self.axis == "output":
            return found
        flips = signs(found.u.T)
        return replace(found, u=found.vt.T * flips, vt=found.u.T * flips[:, None])
