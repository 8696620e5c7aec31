"""Cards: what is known of each backbone without loading it.

One YAML file per backbone in `cards/`. Reading them needs neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from pfl_platform.errors import UserError, nearest

if TYPE_CHECKING:
    from pfl_platform.backbones import Card

PACKAGE = Path(__file__).parent
CARDS = PACKAGE / "cards"


class ZooCard(BaseModel):
    """One backbone. File name and `name` are equal.

    family: module of `pfl_model_zoo.families` that loads it. layers: blocks, of an encoder-decoder those of both sides.
    source: a folder in this package (`weights/...`), in another installed one (`package:NAME/...`), or a hub id.
    aliases: other names of the same backbone, for example the model ids of published scenario files.
    tokenizer: folder in this package whose tokenizer stands in where no files are read (random or shapes-only weights);
        empty for a backbone that reads no text.
    config: the model's configuration, as transformers spells it; sizes of adapters follow from it.
    picture_tokens: positions that a picture takes in a row; 0 where none is read.
    chat_template: the frame of a turn as runs put it, whatever template a tokenizer brings; empty where no text is
        read. adaptable: linear maps of a block, to which adapters attach. memory: bytes of the weights by precision; in
        `8bit` and `4bit` what is not quantised is bfloat16.
    stand_in: the tiny backbone that takes its place where a recipe is run in small.
    options: defaults of `LoadOptions`. measured: number by name, written by the script that made the weights.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    family: Literal["llava", "text", "encoder", "encoder_decoder", "vit"]
    modality: Literal["vision-language", "text", "vision"]
    layers: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    num_params: int = Field(gt=0)
    source: str
    aliases: tuple[str, ...] = ()
    notes: str = ""
    tokenizer: str = ""
    picture_tokens: int = Field(0, ge=0)
    stand_in: str = ""
    chat_template: str = ""
    adaptable: tuple[str, ...] = ()
    memory: dict[str, int] = Field(default_factory=dict)
    config: dict[str, Any]
    options: dict[str, Any] = Field(default_factory=dict)
    measured: dict[str, float] = Field(default_factory=dict)

    @property
    def bundled(self) -> bool:
        """Whether the weights are inside this package."""
        return self.source.startswith("weights/")

    @property
    def text_config(self) -> Mapping[str, Any]:
        """Configuration of the language model."""
        text: Mapping[str, Any] = self.config.get("text_config", self.config)
        return text

    def linear_shapes(self) -> tuple[tuple[str, int, int], ...]:
        """(path in a block, inputs, outputs) of the linear maps of one block, in the order in which adapters list them;
        of an encoder-decoder those of either kind of block.

        >>> find("llava-llama-3.2-1b").linear_shapes()[1]
        ('self_attn.k_proj', 2048, 512)
        >>> find("roberta-large").linear_shapes()[0]
        ('attention.self.query', 1024, 1024)
        """
        text = self.text_config
        if self.family in ("encoder", "vit"):
            hidden, inner = text["hidden_size"], text["intermediate_size"]
            sizes = ((hidden, hidden),) * 4 + ((hidden, inner), (inner, hidden))
            maps = ENCODER_LINEARS if self.family == "encoder" else VIT_LINEARS
            return tuple((name, *size) for name, size in zip(maps, sizes, strict=True))
        if self.family == "encoder_decoder":
            hidden, inner, values = text["d_model"], text["d_ff"], text["d_kv"] * text["num_heads"]
            into, out = (hidden, values), (values, hidden)
            kinds = {"q": into, "k": into, "v": into, "o": out, "wo": (inner, hidden)}
            names = encoder_decoder_linears(text)
            return tuple((name, *kinds.get(name.rpartition(".")[2], (hidden, inner))) for name in names)
        hidden, inner = text["hidden_size"], text["intermediate_size"]
        head = text.get("head_dim", hidden // text["num_attention_heads"])
        query, value = head * text["num_attention_heads"], head * text["num_key_value_heads"]
        attention = ((hidden, query), (hidden, value), (hidden, value), (query, hidden))
        mlp = ((hidden, inner), (hidden, inner), (inner, hidden))
        return tuple((name, *size) for name, size in zip(LINEARS, attention + mlp, strict=True))

    def to_card(self) -> Card:
        """The core's own kind of card; this imports torch."""
        from pfl_platform.backbones import Card

        return Card(
            name=self.name,
            modality=self.modality,
            layers=self.layers,
            hidden_size=self.hidden_size,
            num_params=self.num_params,
            source=self.source,
            notes=self.notes,
            measured=self.measured,
        )


LINEARS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
"""Linear maps of a decoder block of the Llama and Qwen2 kind, in the order in which adapters list them."""

ENCODER_LINEARS = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)
"""Linear maps of a block of the RoBERTa and BERT kind."""

VIT_LINEARS = (
    "attention.q_proj",
    "attention.k_proj",
    "attention.v_proj",
    "attention.o_proj",
    "mlp.fc1",
    "mlp.fc2",
)
"""Linear maps of a block of the ViT kind, as transformers names them now; files with the former names (`query` ...)
are read all the same."""


def encoder_decoder_linears(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Linear maps of the blocks of the T5 kind. A decoder's block has an attention more, and its MLP is layer 2, not 1.

    >>> encoder_decoder_linears({"feed_forward_proj": "relu"})[-4:]   # an encoder's two, then a decoder's
    ('layer.1.DenseReluDense.wi', 'layer.1.DenseReluDense.wo', 'layer.2.DenseReluDense.wi', 'layer.2.DenseReluDense.wo')
    """
    gated = str(config.get("feed_forward_proj", "relu")).startswith("gated")
    attentions = [f"layer.{place}.{part}" for place in ("0.SelfAttention", "1.EncDecAttention") for part in "qkvo"]
    parts = ("wi_0", "wi_1", "wo") if gated else ("wi", "wo")
    return (*attentions, *(f"layer.{layer}.DenseReluDense.{part}" for layer in (1, 2) for part in parts))


@cache
def all_cards() -> Mapping[str, ZooCard]:
    """Every card by name, sorted."""
    return {path.stem: read_card(path) for path in sorted(CARDS.glob("*.yaml"))}


def read_card(path: Path) -> ZooCard:
    """One card from its file."""
    try:
        return ZooCard.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise UserError(f"The card {path} is not valid: {' '.join(str(error).split())}") from None


def find(name: str) -> ZooCard:
    """The card of a name or alias; a `UserError` with the nearest name when there is none."""
    card = lookup(name)
    if card is None:
        raise UserError(f"There is no backbone '{name}'." + nearest(name, all_cards()))
    return card


def lookup(name: str) -> ZooCard | None:
    """The card of a name or alias, or None. Aliases match without regard to case.

    >>> lookup("thkim0305/llama3.2_1B_vl").name
    'llava-llama-3.2-1b'
    """
    cards = all_cards()
    if name in cards:
        return cards[name]
    wanted = name.casefold()
    return next((card for card in cards.values() if wanted in (alias.casefold() for alias in card.aliases)), None)
