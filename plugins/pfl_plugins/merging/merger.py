"""A rule in a space: the merger that aggregators and the command line use."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial

from pfl_platform.errors import UserError
from pfl_platform.federation.merging import Inputs, Merged, Merger, Numbers, Target
from pfl_platform.lowrank.deltas import inner
from pfl_plugins.knots.space import KnotsSpace
from pfl_plugins.merging.config import MergeConfig
from pfl_plugins.merging.outcomes import Fit, Refit
from pfl_plugins.merging.rules import Rule, Sharing
from pfl_plugins.merging.spaces import DeltaSpace, FactorSpace, Space, WeightSpace


class SpaceMerger(Merger):
    """`D_G = merge_coef * lift(rule({operands}))`, truncated to each target.

    Raises `UserError`, with the reason, for a rule that is not defined in the space.
    """

    def __init__(self, name: str, rule: Rule, config: MergeConfig) -> None:
        self.name, self.rule, self.config = name, rule, config
        reason = rule.refused(config.space)
        if reason is not None:
            raise UserError(f"'{name}' cannot merge in the space '{config.space}': {reason}.")

    @property
    def space(self) -> str:
        config = self.config
        return f"knots-{config.knots_target}" if config.space == "knots" else config.space

    @property
    def statistics(self) -> tuple[str, ...]:
        return self.rule.statistics(self.config.space)

    @property
    def personal(self) -> bool:
        return self.rule.personal

    def check(self, inputs: Inputs) -> None:
        if self.statistics and inputs.statistic is None:
            raise UserError(
                f"'{self.name}' needs {' and '.join(self.statistics)}, measured on the data of every adapter; run it "
                "in a federation."
            )
        space_of(self.config).check(inputs)

    def merge(self, inputs: Inputs, targets: Sequence[Target | None]) -> Iterator[Merged]:
        self.check(inputs)
        if self.personal and len(targets) != len(inputs):
            raise UserError(f"'{self.name}' gives every adapter its own result: {len(inputs)}, not {len(targets)}.")
        space = space_of(self.config)
        if space.dense and any(target is not None for target in targets):
            raise UserError(
                f"The space '{self.space}' gives dense matrices, which no adapter can hold; add them to the backbone, "
                "or choose the space 'delta', which truncates."
            )
        field = space.field(inputs)
        bound = self.rule.bind(field)
        shares = bound.shares if isinstance(bound, Sharing) else ()
        for module in inputs.modules:
            how = self._refit(inputs, module)
            operands = field.read(module)
            fits: list[Fit] = []
            for turn, part in enumerate([[target] for target in targets] if self.personal else [list(targets)]):
                outcomes = [bound(operand, turn) for operand in operands]
                fits += space.assembled(inputs, module, outcomes).fit(part, how)
            yield Merged(
                module, tuple(fit.delta for fit in fits), Numbers(partial(described, inputs, module, fits)), shares
            )

    def _refit(self, inputs: Inputs, module: str) -> Refit:
        config = self.config
        given = config.merge_coef
        coef = self.rule.coefficient(len(inputs)) if given is None else given
        seed = inputs.rng("completion", module).initial_seed()
        return Refit(coef, "left" if config.tsvd_split == "flexlora" else "symmetric", seed, config.tol)


def described(inputs: Inputs, module: str, fits: Sequence[Fit]) -> dict[str, float]:
    """Numbers for people. error: largest truncation error. norm_ratio: norm of the result against the adapters' mean
    norm; near K or 1/K it tells a sum from a mean, near a scale that one was folded wrongly. rank: numerical rank.
    stable_rank: `||D||_F^2 / ||D||_2^2`. Means over the results of a personal rule; what is not known is left out."""
    # Half of the digits will do here, and the root of an inner product takes a fraction of the time.
    typical = sum(math.sqrt(max(0.0, inner(delta, delta))) for delta in inputs.deltas(module)) / len(inputs)
    found = [fit.measures for fit in fits]
    mean = sum(one.norm for one in found) / len(found)
    report = {"error": max(one.error for one in found), "norm_ratio": mean / typical if typical > 0 else 0.0}
    if all(one.rank is not None for one in found):
        report["rank"] = float(max(one.rank or 0 for one in found))
    stable = [(one.norm / one.top) ** 2 for one in found if one.top > 0 and not math.isnan(one.top)]
    if len(stable) == len(found):
        report["stable_rank"] = sum(stable) / len(stable)
    return report


def space_of(config: MergeConfig) -> Space:
    """The space that the options name, fresh for one merge."""
    if config.space == "ab":
        return FactorSpace(config.ab_reference == "previous_global")
    if config.space == "knots":
        return KnotsSpace(config.knots_target, "output" if config.knots_axis == "input_concat" else "input", config.tol)
    return DeltaSpace() if config.space == "delta" else WeightSpace()
