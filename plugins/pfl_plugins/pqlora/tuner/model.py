"""The peft tuner that puts `PQLinear` layers into a model, and its registration with peft."""

from __future__ import annotations

from typing import Any

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING, register_peft_method
from torch import nn

from pfl_plugins.pqlora.tuner.config import NAME, PQLoraConfig, peft_type
from pfl_plugins.pqlora.tuner.layer import PQLinear


class PQLoraModel(BaseTuner):
    """Replaces each target module by a `PQLinear` around it; all else is peft's."""

    prefix = "pqlora_"
    tuner_layer_cls = PQLinear
    target_module_mapping = {  # noqa: RUF012 - peft declares it without ClassVar
        model: list(names) for model, names in TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.items()
    }

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        assert isinstance(peft_config, PQLoraConfig)
        layer = target if isinstance(target, PQLinear) else PQLinear(target, current_key)
        if layer is not target:
            layer.set_adapter(self.active_adapters)
        layer.update_layer(
            adapter_name,
            peft_config.r,
            peft_config.lora_alpha,
            peft_config.seed,
            inference_mode=peft_config.inference_mode,
        )
        if layer is not target:
            self._replace_module(parent, target_name, layer, target)


def register() -> None:
    """Makes peft know `PQLORA`: its type, configuration, tuner and prefix. Safe to call more than once."""
    if peft_type() in PEFT_TYPE_TO_TUNER_MAPPING:
        return
    kwargs: dict[str, Any] = {"config_cls": PQLoraConfig, "model_cls": PQLoraModel}
    register_peft_method(name=NAME.lower(), prefix=PQLoraModel.prefix, **kwargs)
