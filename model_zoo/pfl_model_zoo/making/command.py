"""`pfl-platform zoo ...`; the work is done beside this file, and imported only when it is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

zoo = typer.Typer(help="Folders of backbones from others.", no_args_is_help=True, rich_markup_mode=None)
parts = typer.Typer(help="A backbone of parts.", no_args_is_help=True, rich_markup_mode=None)
zoo.add_typer(parts, name="build")

Out = Annotated[Path, typer.Option("--out", "-o", help="The new folder.")]


@zoo.command("convert")
def convert_(
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help="A checkpoint in the layout of the original LLaVA code.")
    ],
    out: Out,
    vision: Annotated[
        Path | None, typer.Option("--vision", help="Folder of the CLIP tower, where SRC comes without.")
    ] = None,
) -> None:
    """Convert a published checkpoint to the form of transformers, file by file."""
    from pfl_model_zoo.making.convert import convert

    _said(out, convert(source, vision, out))


@parts.command("llava")
def build_llava(
    language: Annotated[Path, typer.Option("--language", help="Folder of a Llama or Qwen2.")],
    vision: Annotated[Path, typer.Option("--vision", help="Folder of a CLIP tower.")],
    out: Out,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the projector, which has learned nothing yet.")] = 0,
    layer: Annotated[int, typer.Option("--layer", help="Layer of the tower that is read; -1 is the last.")] = -2,
) -> None:
    """Compose a vision-language model of a language model and a CLIP tower."""
    from pfl_model_zoo.making.build import build

    _said(out, build(language, vision, out, seed, layer))


@parts.callback()
def _parts() -> None:
    """More kinds may follow."""


def _said(out: Path, params: int) -> None:
    print(f"{out}: {params:,} params. Use it as a backbone of its size: --set backbone_options.path={out}")
