"""The configuration of a PQ-LoRA adapter, as peft saves it in `adapter_config.json`, and its name in peft."""

from __future__ import annotations

from dataclasses import dataclass, field

from peft import PeftConfig, PeftType

from pfl_platform.errors import UserError

NAME = "PQLORA"


def peft_type() -> PeftType:
    """The member `PeftType.PQLORA`, added to peft's enum when it is not there yet.

    `register_peft_method` accepts only names that are members of `PeftType`, and that enum is closed. So one member is
    built the way the enum machinery builds its own: a `str` of the right class with its private fields, set on the
    class (past the guard against reassignment, hence `type.__setattr__`) and entered into the three tables by which
    the enum iterates, finds by name, and finds by value. The class attribute comes first, because the guard would
    refuse it once the name is a known member. Calling this again returns the same member.

    >>> peft_type() is peft_type() is PeftType("PQLORA")
    True
    """
    known = PeftType._member_map_.get(NAME)
    if known is not None:
        return PeftType(NAME)
    member = str.__new__(PeftType, NAME)
    member._name_ = NAME
    member._value_ = NAME
    setattr(member, "_sort_order_", len(PeftType._member_names_))  # noqa: B010 - private to the enum machinery
    type.__setattr__(PeftType, NAME, member)
    PeftType._member_names_.append(NAME)
    PeftType._member_map_[NAME] = member
    PeftType._value2member_map_[NAME] = member
    return member


@dataclass
class PQLoraConfig(PeftConfig):
    """What a PQ-LoRA adapter is: `h = W x + (lora_alpha / r) * B (P A x + Q)` in every target module.

    P (r x r) and Q (r) train; A (r x d_in) and B (d_out x r) are frozen and orthonormal. The names of the fields are
    those of peft's `LoraConfig`. There is no dropout: noise comes from the platform's addressed generators.

    `seed` is the address of A and B: two models with equal module paths, shapes, rank and seed get equal A and B.
    `bias` is "none", "all" or "pqlora_only", with peft's meaning: which biases of the backbone train along.

    Raises `UserError` for a rank or alpha that is not positive, and for `layers_pattern` without
    `layers_to_transform`.
    """

    r: int = field(default=8, metadata={"help": "Rank: P is r x r, Q has r entries."})
    lora_alpha: float = field(default=16, metadata={"help": "The adapter's output is scaled by lora_alpha / r."})
    target_modules: list[str] | set[str] | str | None = field(
        default=None, metadata={"help": "Names of the linear modules to adapt, or a regular expression."}
    )
    exclude_modules: list[str] | set[str] | str | None = field(
        default=None, metadata={"help": "Names of modules to leave out, or a regular expression."}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules besides the adapters that train and are saved."}
    )
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Indices, from 0, of the layers to adapt; see `pq_layers`."}
    )
    layers_pattern: list[str] | str | None = field(
        default=None, metadata={"help": "Name of the list of layers, when it cannot be told from the module's path."}
    )
    bias: str = field(default="none", metadata={"help": "Which biases train: none, all, pqlora_only."})
    seed: int = field(default=0, metadata={"help": "Address of the frozen A and B."})

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = peft_type()
        if self.r < 1:
            raise UserError(f"PQ-LoRA needs a rank r of at least 1, but r={self.r} was given.")
        if self.lora_alpha <= 0:
            raise UserError(f"PQ-LoRA needs a positive lora_alpha, but lora_alpha={self.lora_alpha} was given.")
        if self.bias not in ("none", "all", "pqlora_only"):
            raise UserError(f"PQ-LoRA's bias must be 'none', 'all' or 'pqlora_only', not '{self.bias}'.")
        if self.layers_pattern and self.layers_to_transform is None:
            raise UserError("PQ-LoRA's layers_pattern has no meaning without layers_to_transform: give both.")
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)
