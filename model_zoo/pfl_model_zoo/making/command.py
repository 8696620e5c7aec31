"""`pfl-platform zoo ...`; the work is done beside this file, and imported only when it is needed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pfl_platform.cli import typed
from pfl_platform.cli.arguments import Hostfile, MachineOptions, Quiet, Seed, Settings
from pfl_platform.cli.grouped import grouped

if TYPE_CHECKING:
    from pfl_model_zoo.making.stages import Stage

zoo = typer.Typer(help="Folders of backbones from others.", no_args_is_help=True, rich_markup_mode=None)
parts = typer.Typer(help="A backbone of parts.", no_args_is_help=True, rich_markup_mode=None)
zoo.add_typer(parts, name="build")

Out = Annotated[Path, typer.Option("--out", "-o", help="The new folder.")]


@dataclass(frozen=True, kw_only=True)
class StageOptions:
    """What both of LLaVA's stages are told."""

    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A LLaVA in the form of transformers.")]
    data: Annotated[Path, typer.Option("--data", help="Records {id, image, conversations}: JSON, or JSON lines.")]
    out: Out
    images: Annotated[
        Path | None, typer.Option("--images", help="Folder that their pictures are relative to; default: the file's.")
    ] = None
    run: Annotated[Path | None, typer.Option("--run", help="Folder of the run that trains; default: OUT.run.")] = None
    epochs: Annotated[float, typer.Option("--epochs", min=0.0, help="Passes over the records.")] = 1.0
    save_every: Annotated[
        int, typer.Option("--save-every", min=1, help="Steps between places to go on from, about.")
    ] = 500
    lr: Annotated[float | None, typer.Option("--lr", help="Learning rate; default: LLaVA-1.5's.")] = None
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Records a step; default: LLaVA-1.5's.")] = None
    micro_batch: Annotated[int | None, typer.Option("--micro-batch", help="Records in a pass; default: 16.")] = None
    held_out: Annotated[
        int | None,
        typer.Option("--held-out", help="Records that are asked before and after, and not learned; default: 0."),
    ] = None
    metric: Annotated[str | None, typer.Option("--metric", help="Scores the answers to these; default: token_f1.")] = (
        None
    )
    seed: Seed = None
    sets: Settings = None
    hostfile: Hostfile = None
    quiet: Quiet = False


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


@zoo.command("train-projector")
@grouped
def train_projector(asked: StageOptions, machine: MachineOptions) -> None:
    """LLaVA's first stage: train the projector alone, on captions or names of pictures."""
    _train("projector", 0, asked, machine)


@zoo.command("instruct-tune")
@grouped
def instruct_tune(
    asked: StageOptions,
    machine: MachineOptions,
    rank: Annotated[
        int, typer.Option("--rank", min=0, help="Of LoRA in the language model; 0 trains all of its weights.")
    ] = 0,
) -> None:
    """LLaVA's second stage: train projector and language model on instructions; the loss is of answers alone."""
    _train("instructions", rank, asked, machine)


def _train(stage: Stage, rank: int, asked: StageOptions, machine: MachineOptions) -> None:
    """Ranks share every batch unless --shards says otherwise."""
    from pfl_model_zoo.making.stages import Wish, carry_out
    from pfl_platform.cli.launching import Ask

    options = {
        "training.lr": asked.lr,
        "training.batch_size": asked.batch_size,
        "training.micro_batch": asked.micro_batch,
        "benchmark.held_out": asked.held_out,
        "benchmark.metric": asked.metric,
        "seed": asked.seed,
        "engine.shards": machine.ranks or machine.gpus,
        **machine.settings,
    }
    wish = Wish(
        stage, asked.folder, asked.data, asked.images, rank, asked.epochs, asked.save_every, options, asked.sets or ()
    )
    ask = Ask(typed.words(), machine.ranks, machine.gpus, asked.hostfile)
    carry_out(wish, asked.out, asked.run, asked.quiet, ask)


@parts.callback()
def _parts() -> None:
    """More kinds may follow."""


def _said(out: Path, params: int) -> None:
    print(f"{out}: {params:,} params. Use it as a backbone: --backbone {out.resolve()}")
