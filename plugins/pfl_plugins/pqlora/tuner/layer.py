"""One linear map with PQ-LoRA adapters (FedMosaic, Eq. 5), as a peft tuner layer."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from pfl_platform.errors import UserError
from pfl_platform.rng import torch_rng


def orthonormal(rows: int, cols: int, generator: torch.Generator) -> Tensor:
    """A random matrix, uniform among those with orthonormal rows (rows <= cols) or orthonormal columns. float32.

    A Gaussian matrix is drawn and orthogonalised (QR) in float64. R's diagonal is made positive, which makes the
    factor unique (and uniformly distributed), so the same generator gives the same matrix. Rounding to float32 comes
    last.

    >>> a = orthonormal(2, 5, torch_rng(0, "doc"))
    >>> bool((a @ a.T - torch.eye(2)).abs().max() < 1e-6)
    True
    """
    tall = torch.randn(max(rows, cols), min(rows, cols), generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(tall)
    q *= torch.where(r.diagonal() < 0, -1.0, 1.0)
    matrix: Tensor = (q if rows >= cols else q.T).float().contiguous()
    return matrix


class PQLinear(nn.Module, BaseTunerLayer):
    """`W x + b + sum over active adapters of s * B (P A x + Q)`, s = lora_alpha / r.

    Per adapter: P (r, r) and Q (r) are parameters that start at zero, so a fresh adapter changes nothing, yet both
    receive gradient at once. A (r, d_in) and B (d_out, r) are buffers: saved, never trained; A has orthonormal rows and
    B orthonormal columns. All four are float32 (float64 on a float64 base), whatever half precision the base has,
    because A and B would lose their orthonormality to rounding.

    Merging adds a bias to a base layer that has none (B Q has to go somewhere); unmerging takes it away again. A model
    that was merged for good therefore has biases that its architecture's configuration may not know of.
    """

    adapter_layer_names = ("pqlora_P", "pqlora_Q")
    other_param_names = ("pqlora_A", "pqlora_B", "r", "scaling")

    def __init__(self, base_layer: nn.Module, path: str) -> None:
        super().__init__()
        if not isinstance(base_layer, nn.Linear):
            kind = "already adapted" if isinstance(base_layer, BaseTunerLayer) else f"a {type(base_layer).__name__}"
            raise UserError(f"PQ-LoRA adapts plain linear modules, but '{path}' is {kind}: change target_modules.")
        self.base_layer = base_layer
        self.path = path
        self.in_features = base_layer.in_features
        self.out_features = base_layer.out_features
        self.r: dict[str, int] = {}
        self.scaling: dict[str, float] = {}
        self.pqlora_P = nn.ParameterDict()
        self.pqlora_Q = nn.ParameterDict()
        self.pqlora_A = BufferDict(persistent=True)
        self.pqlora_B = BufferDict(persistent=True)
        self._disable_adapters = False
        self._active_adapter: str | list[str] = []
        self.merged_adapters: list[str] = []
        self._base_had_bias = base_layer.bias is not None

    def update_layer(
        self, adapter_name: str, r: int, lora_alpha: float, seed: int, *, inference_mode: bool = False
    ) -> None:
        """Adds an adapter; its A and B come from the address (seed, path of this module, "A" or "B").

        Raises `UserError` when r is larger than a side of this module, for then no r orthonormal rows exist.
        """
        smaller = min(self.in_features, self.out_features)
        if r > smaller:
            raise UserError(
                f"PQ-LoRA rank r={r} is too large for '{self.path}' ({self.in_features} -> {self.out_features}): "
                f"choose r <= {smaller}."
            )
        weight = self.base_layer.weight
        like: dict[str, Any] = {"device": weight.device, "dtype": torch.promote_types(weight.dtype, torch.float32)}
        self.r[adapter_name] = r
        self.scaling[adapter_name] = lora_alpha / r
        self.pqlora_P[adapter_name] = nn.Parameter(torch.zeros(r, r, **like))
        self.pqlora_Q[adapter_name] = nn.Parameter(torch.zeros(r, **like))
        if weight.is_meta:
            self.pqlora_A[adapter_name] = torch.empty(r, self.in_features, **like)
            self.pqlora_B[adapter_name] = torch.empty(self.out_features, r, **like)
        else:
            a = orthonormal(r, self.in_features, torch_rng(seed, self.path, "A"))
            b = orthonormal(self.out_features, r, torch_rng(seed, self.path, "B"))
            self.pqlora_A[adapter_name] = a.to(**like)
            self.pqlora_B[adapter_name] = b.to(**like)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """As in peft, but the precision stays: the base's half precision is not taken over."""
        target = device if device is not None else self.base_layer.weight.device
        for entries in (self.pqlora_P, self.pqlora_Q, self.pqlora_A, self.pqlora_B):
            if not entries[adapter_name].is_meta:
                entries[adapter_name] = entries[adapter_name].to(target)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters and self.merged:
            self.unmerge()
        result: Tensor = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return result
        for name in self.active_adapters:
            if name in self.pqlora_P:
                result = result + self._delta(name, x).to(result.dtype)
        return result

    def _delta(self, name: str, x: Tensor) -> Tensor:
        """s * B (P A x + Q), shape (..., d_out), in the adapter's dtype."""
        z = F.linear(self._cast_input_dtype(x, self.pqlora_A[name].dtype), self.pqlora_A[name])
        z = F.linear(z, self.pqlora_P[name], self.pqlora_Q[name])
        return F.linear(self.scaling[name] * z, self.pqlora_B[name])

    def get_delta_weight(self, adapter: str) -> Tensor:
        """s * B P A, shape (d_out, d_in)."""
        delta: Tensor = self.pqlora_B[adapter] @ self.pqlora_P[adapter] @ self.pqlora_A[adapter]
        return delta * self.scaling[adapter]

    def get_delta_bias(self, adapter: str) -> Tensor:
        """s * B Q, shape (d_out,)."""
        delta: Tensor = self.pqlora_B[adapter] @ self.pqlora_Q[adapter]
        return delta * self.scaling[adapter]

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Adds the named (else the active) adapters to the base layer's weight and bias.

        With `safe_merge`, raises `ValueError` instead of merging an adapter that is not finite.
        """
        for name in check_adapters_to_merge(self, adapter_names):
            if name in self.pqlora_P:
                self._add_to_base(name, 1.0, safe_merge)
                self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Takes all merged adapters out again, exact up to rounding in the base's dtype."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        while self.merged_adapters:
            self._add_to_base(self.merged_adapters.pop(), -1.0)
        if not self._base_had_bias:
            self.base_layer.register_parameter("bias", None)

    @torch.no_grad()
    def _add_to_base(self, name: str, sign: float, safe: bool = False) -> None:
        base = self.base_layer
        wide = self.pqlora_A[name].dtype
        weight = base.weight.to(wide) + sign * self.get_delta_weight(name)
        bias = sign * self.get_delta_bias(name)
        if safe and not (weight.isfinite().all() and bias.isfinite().all()):
            raise ValueError(f"PQ-LoRA adapter '{name}' of '{self.path}' is not finite and was not merged.")
        base.weight.data = weight.to(base.weight.dtype)
        if base._parameters["bias"] is None:
            base.register_parameter("bias", nn.Parameter(bias.to(base.weight.dtype), requires_grad=False))
        else:
            base.bias.data = (base.bias.to(wide) + bias).to(base.bias.dtype)
