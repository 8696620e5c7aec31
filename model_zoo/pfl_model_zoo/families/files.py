"""Where a backbone's files are, what may be read of them, and the digest that names their content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from pfl_model_zoo.cards import PACKAGE, ZooCard
from pfl_model_zoo.options import LoadOptions
from pfl_platform.errors import UserError

SAFE = ("*.safetensors",)
PICKLED = ("*.bin", "*.pt", "*.pth")
ELSEWHERE = "package:"
DESCRIBING = ("*.json", "*.model", "*.txt", "*.jinja")


def locate(card: ZooCard, options: LoadOptions) -> Path:
    """The folder with the backbone's files: the user's, that of this or another package, or the hub cache's."""
    if options.path is not None:
        if not (options.path / "config.json").is_file():
            raise UserError(
                f"The folder {options.path} for backbone '{card.name}' does not exist or has no config.json; "
                "give a folder that was written by save_pretrained."
            )
        return options.path
    if card.bundled:
        folder = PACKAGE / card.source
        if not (folder / "config.json").is_file():
            raise UserError(
                f"The weights of '{card.name}' are not in this installation ({folder}); "
                "install the package anew, or make them with tools/pretrain_zoo.py."
            )
        return folder
    if card.source.startswith(ELSEWHERE):
        return from_package(card)
    return from_hub(card.name, card.source, options)


def from_package(card: ZooCard) -> Path:
    """The folder in an installed package, which is not imported."""
    name, _, below = card.source.removeprefix(ELSEWHERE).partition("/")
    spec = find_spec(name)
    folder = Path(spec.origin).parent / below if spec is not None and spec.origin else None
    if folder is None or not (folder / "config.json").is_file():
        raise UserError(
            f"The backbone '{card.name}' comes with the package {name.replace('_', '-')}, which is not installed; "
            "install it, or give a folder with the backbone option path."
        )
    return folder


def from_hub(name: str, source: str, options: LoadOptions) -> Path:
    """The snapshot of a hub repository in the local cache; the network is used only when `download` says so."""
    from huggingface_hub import snapshot_download

    patterns = [*SAFE, *DESCRIBING, *(("*.bin",) if options.allow_pickle else ())]
    try:
        return Path(snapshot_download(source, local_files_only=not options.download, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        if not options.download:
            raise UserError(
                f"The backbone '{name}' ({source}) is not in the local hub cache; "
                "give its folder with the backbone option path, or set download to true."
            ) from None
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"The backbone '{name}' ({source}) could not be downloaded: {reason}.") from None


def weight_files(folder: Path, name: str, *, allow_pickle: bool) -> tuple[Path, ...]:
    """The weight files that may be read: safetensors, or pickled ones where they are asked for by name."""
    safe = sorted(path for pattern in SAFE for path in folder.glob(pattern))
    if safe:
        return tuple(safe)
    pickled = sorted(path for pattern in PICKLED for path in folder.glob(pattern))
    if not pickled:
        raise UserError(f"The folder {folder} of backbone '{name}' has no weights; it needs model.safetensors.")
    if not allow_pickle:
        raise UserError(
            f"The weights of backbone '{name}' ({pickled[0]}) are pickled, which can run foreign code; "
            "convert them to safetensors, or set the backbone option allow_pickle to true if you trust them."
        )
    readable = tuple(path for path in pickled if path.suffix == ".bin")
    if not readable:
        raise UserError(
            f"The weights of backbone '{name}' ({pickled[0]}) are in a form that cannot be read; "
            "convert them to safetensors."
        )
    return readable


def digest_of(files: Iterable[Path], *also: str) -> str:
    """SHA-256 over names and contents of files, in the order of their names, and over further texts."""
    total = hashlib.sha256()
    for path in sorted(files, key=lambda path: path.name):
        total.update(f"{path.name}\0".encode())
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    for text in also:
        total.update(text.encode())
    return total.hexdigest()


def describing_files(folder: Path) -> tuple[Path, ...]:
    """Configuration and tokenizer: what decides, next to the weights, how a backbone behaves."""
    names = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model")
    return tuple(path for path in (folder / name for name in names) if path.is_file())
