"""A checkpoint in the layout of the original LLaVA code to one in that of transformers."""

from __future__ import annotations

from pathlib import Path

from pfl_model_zoo.cards import ZooCard
from pfl_model_zoo.families.files import weight_files
from pfl_model_zoo.families.llava import image_token
from pfl_model_zoo.families.llava_original import _raw, _tower, is_original, llava_config, renamed
from pfl_model_zoo.families.models import read_tokenizer, require_complete
from pfl_model_zoo.making.folder import dtype_name, existing, names_in, new_folder, pieces
from pfl_model_zoo.options import LoadOptions
from pfl_platform.errors import UserError
from pfl_platform.store.reading import tensor_names

TOWER = "model.vision_tower."
HEAD = "lm_head.weight"


def convert(source: Path, vision: Path | None, out: Path) -> int:
    """Writes the checkpoint of `source` as `LlavaForConditionalGeneration` into `out`, file by file; returns how many
    params it has. vision: folder of the CLIP tower, where the checkpoint comes without."""
    existing(source, "checkpoint")
    if not is_original(source):
        raise UserError(
            f"The folder {source} is not in the layout of the original LLaVA code; it can be used as it is."
        )
    files = weight_files(source, source.name, allow_pickle=False)
    raw = _raw(source)
    card = ZooCard(
        name=source.name, family="llava", modality="vision-language", layers=1, hidden_size=1, num_params=1,
        source=str(source), config={},
    )  # fmt: skip
    own = "vision_config" in raw and any(name.startswith(TOWER) for file in files for name in tensor_names(file))
    if not own and vision is None:
        raise UserError(
            f"The checkpoint {source} comes without its vision tower; name the tower's folder with --vision."
        )
    with new_folder(out) as folder:
        kind = ""
        for file in files:
            tensors = pieces(file, lambda name: None if _left_out(name, own) else renamed(name))
            kind = kind or dtype_name(tensors)
            folder.add(tensors)
        settings = raw.get("vision_config")
        if not own:
            assert vision is not None
            tower, settings = _tower(existing(vision, "vision tower"), LoadOptions.model_validate({"dtype": kind}))
            folder.add({TOWER + name: value for name, value in tower.items() if "position_ids" not in name})
        config = llava_config(raw, settings or {}, card)
        tokenizer = read_tokenizer(source, source.name)
        config.image_token_id = image_token(tokenizer, config, card)
        config.dtype = kind
        config.architectures = ["LlavaForConditionalGeneration"]
        wanted = names_in(config)
        tied = {HEAD} if config.tie_word_embeddings else set()
        require_complete([name for name in wanted if name not in folder.names | tied], source, card)
        if strange := sorted(folder.names - set(wanted)):
            raise UserError(
                f"The checkpoint {source} has tensors that the model has no place for, such as '{strange[0]}'."
            )
        folder.finish(config, tokenizer)
        return folder.numbers


def _left_out(name: str, own_tower: bool) -> bool:
    """What transformers works out itself, and a tower without its configuration."""
    return name.endswith(("inv_freq", "position_ids")) or (not own_tower and renamed(name).startswith(TOWER))
