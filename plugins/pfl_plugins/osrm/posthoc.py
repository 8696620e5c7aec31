"""OSRM for adapters that are trained already (section 5.4 of the paper).

`D_hat = D A^T A`, where A is what OSRM would have begun with. Of a delta that knew nothing of A about r / d_in of the
energy is left; the paper's own Table 16 falls from 88 to 35 by it. What is kept does not disturb the others.

    python -m pfl_plugins.osrm.posthoc ADAPTER... --rows FILE... --out DIR

writes one adapter per input, for `pfl-platform merge`. A file of rows holds features of that adapter's own data as
safetensors: module path -> (n, d_in); `tools/osrm_diagnostics.py --rows` writes them for the clients of a run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from pfl_platform.adapters.folders import AdapterFolder, agree, open_adapter, save_adapter
from pfl_platform.errors import UserError
from pfl_platform.lowrank.deltas import Delta, double, norm
from pfl_platform.rng import seed_of
from pfl_plugins.osrm.subspace import quietest, stacked


def recovered(delta: Delta, down: Tensor) -> Delta:
    """`D A^T A` in the scale s that the delta has; A = down (r, d_in), orthonormal rows.

    `argmin_B ||B A - D||_F` is `D A^T`. It holds s already, and the adapter multiplies by s again: up is `D A^T / s`.

    >>> import torch
    >>> delta = Delta(torch.tensor([[1.0]]), torch.tensor([[3.0, 4.0]]), scale=2.0)
    >>> found = recovered(delta, torch.tensor([[1.0, 0.0]]))
    >>> found.up.tolist(), found.dense().tolist()
    ([[3.0]], [[6.0, 0.0]])
    """
    up = double(delta.up) @ (double(delta.down) @ double(down).T)
    return Delta(up, double(down), delta.scale, delta.name, delta.dtype).cast()


def energy_kept(delta: Delta, down: Tensor) -> float:
    """`||D A^T A||_F^2 / ||D||_F^2`; about r / d_in for a delta that has nothing to do with A. 1 for a zero delta."""
    whole = norm(delta)
    return (norm(recovered(delta, down)) / whole) ** 2 if whole > 0 else 1.0


def recover(
    adapters: Sequence[AdapterFolder], rows: Sequence[Mapping[str, Tensor]], out: Path, seed: int = 0
) -> dict[str, float]:
    """Writes `out/<name>` for every adapter, in its own rank; returns the mean share of energy that each keeps.

    rows[k]: module -> features (n, d_in) of the data of adapter k. Raises `UserError` for what does not fit.
    """
    agree(adapters)
    _check(adapters, rows, out)
    shares = {}
    for number, adapter in enumerate(adapters):
        factors, kept = {}, []
        for module in adapter.modules:
            delta = adapter.delta(module)
            others = stacked(found[module] for k, found in enumerate(rows) if k != number)
            down = quietest(others, delta.rank, seed_of(seed, "osrm", "posthoc", adapter.name, module))
            factors[module] = recovered(delta, down)
            kept.append(energy_kept(delta, down))
        save_adapter(out / adapter.name, factors, adapter, {key: adapter.tensor(key) for key in adapter.extra})
        shares[adapter.name] = sum(kept) / len(kept)
    return shares


def _check(adapters: Sequence[AdapterFolder], rows: Sequence[Mapping[str, Tensor]], out: Path) -> None:
    if len(adapters) < 2 or len(rows) != len(adapters):
        raise UserError(
            f"OSRM needs at least two adapters, and a file of rows for each; there are {len(adapters)} and {len(rows)}."
        )
    names = [adapter.name for adapter in adapters]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"Two adapters are called '{twice[0]}'; rename a folder.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not empty; choose another folder.")
    for adapter, found in zip(adapters, rows, strict=True):
        for module, (_, _, width) in adapter.shapes.items():
            have = tuple(found[module].shape) if module in found else None
            if have is None or len(have) != 2 or not have[0] or have[1] != width:
                raise UserError(
                    f"The rows for {adapter.path} must hold '{module}' as (n, {width}), n at least 1"
                    + (f", not {have}." if have else ", and do not.")
                )


def main(words: Sequence[str] | None = None) -> int:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    about = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m pfl_plugins.osrm.posthoc", description=about)
    parser.add_argument("adapters", nargs="+", type=Path, metavar="ADAPTER", help="a folder that peft has saved")
    parser.add_argument("--rows", nargs="+", type=Path, required=True, metavar="FILE", help="features, one per adapter")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(words)
    try:
        rows = []
        for file in given.rows:
            try:
                rows.append(load_file(str(file)))
            except (OSError, SafetensorError) as error:
                raise UserError(f"{file} cannot be read as safetensors: {error}.") from None
        shares = recover([open_adapter(path) for path in given.adapters], rows, given.out, given.seed)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    for name, share in shares.items():
        print(f"{name}: {100 * share:.2f} % of the energy is kept")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
