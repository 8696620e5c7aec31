"""`pfl-platform zoo ...`; the work is done beside this file, and imported only when it is needed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pfl_platform.cli import typed
from pfl_platform.cli.arguments import EngineName, Gpus, Hostfile, Quiet, Ranks, Shards, Threads, Zero

if TYPE_CHECKING:
    from pfl_model_zoo.making.stages import Stage

zoo = typer.Typer(help="Folders of backbones from others.", no_args_is_help=True, rich_markup_mode=None)
parts = typer.Typer(help="A backbone of parts.", no_args_is_help=True, rich_markup_mode=None)
zoo.add_typer(parts, name="build")

Out = Annotated[Path, typer.Option("--out", "-o", help="The new folder.")]
Model = Annotated[Path, typer.Argument(metavar="FOLDER", help="A LLaVA in the form of transformers.")]
Records = Annotated[Path, typer.Option("--data", help="Records {id, image, conversations}: JSON, or JSON lines.")]
Images = Annotated[
    Path | None, typer.Option("--images", help="Folder that their pictures are relative to; default: the file's.")
]
Run = Annotated[Path | None, typer.Option("--run", help="Folder of the run that trains; default: OUT.run.")]
Epochs = Annotated[float, typer.Option("--epochs", min=0.0, help="Passes over the records.")]
SaveEvery = Annotated[int, typer.Option("--save-every", min=1, help="Steps between places to go on from, about.")]
Rate = Annotated[float | None, typer.Option("--lr", help="Learning rate; default: LLaVA-1.5's.")]
Batch = Annotated[int | None, typer.Option("--batch-size", help="Records a step; default: LLaVA-1.5's.")]
Micro = Annotated[int | None, typer.Option("--micro-batch", help="Records in a pass; default: 16.")]
HeldOut = Annotated[
    int | None, typer.Option("--held-out", help="Records that are asked before and after, and not learned; default: 0.")
]
MetricName = Annotated[str | None, typer.Option("--metric", help="Scores the answers to these; default: token_f1.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of everything that is random.")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="Any setting of a run: key=value. May be repeated.")]


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
def train_projector(
    folder: Model,
    data: Records,
    out: Out,
    images: Images = None,
    run: Run = None,
    epochs: Epochs = 1.0,
    save_every: SaveEvery = 500,
    lr: Rate = None,
    batch_size: Batch = None,
    micro_batch: Micro = None,
    held_out: HeldOut = None,
    metric: MetricName = None,
    seed: Seed = None,
    sets: Sets = None,
    threads: Threads = None,
    engine: EngineName = None,
    gpus: Gpus = None,
    ranks: Ranks = None,
    hostfile: Hostfile = None,
    zero: Zero = None,
    shards: Shards = None,
    quiet: Quiet = False,
) -> None:
    """LLaVA's first stage: train the projector alone, on captions or names of pictures."""
    _train("projector", 0, locals())


@zoo.command("instruct-tune")
def instruct_tune(
    folder: Model,
    data: Records,
    out: Out,
    images: Images = None,
    rank: Annotated[
        int, typer.Option("--rank", min=0, help="Of LoRA in the language model; 0 trains all of its weights.")
    ] = 0,
    run: Run = None,
    epochs: Epochs = 1.0,
    save_every: SaveEvery = 500,
    lr: Rate = None,
    batch_size: Batch = None,
    micro_batch: Micro = None,
    held_out: HeldOut = None,
    metric: MetricName = None,
    seed: Seed = None,
    sets: Sets = None,
    threads: Threads = None,
    engine: EngineName = None,
    gpus: Gpus = None,
    ranks: Ranks = None,
    hostfile: Hostfile = None,
    zero: Zero = None,
    shards: Shards = None,
    quiet: Quiet = False,
) -> None:
    """LLaVA's second stage: train projector and language model on instructions; the loss is of answers alone."""
    _train("instructions", rank, locals())


def _train(stage: Stage, rank: int, said: dict[str, Any]) -> None:
    """said: the arguments of the command by name. Ranks share every batch unless --shards says otherwise."""
    from pfl_model_zoo.making.stages import Wish, carry_out
    from pfl_platform.cli.launching import Ask

    shards = said["shards"]
    options = {
        "training.lr": said["lr"],
        "training.batch_size": said["batch_size"],
        "training.micro_batch": said["micro_batch"],
        "benchmark.held_out": said["held_out"],
        "benchmark.metric": said["metric"],
        "seed": said["seed"],
        "engine.threads": said["threads"],
        "engine.name": said["engine"],
        "engine.zero": said["zero"],
        "engine.shards": shards if shards is not None else said["ranks"] or said["gpus"],
        "engine.device": "cuda" if said["gpus"] is not None else None,
    }
    wish = Wish(
        stage, said["folder"], said["data"], said["images"], rank, said["epochs"], said["save_every"], options,
        said["sets"] or (),
    )  # fmt: skip
    ask = Ask(typed.words(), said["ranks"], said["gpus"], said["hostfile"])
    carry_out(wish, said["out"], said["run"], said["quiet"], ask)


@parts.callback()
def _parts() -> None:
    """More kinds may follow."""


def _said(out: Path, params: int) -> None:
    print(f"{out}: {params:,} params. Use it as a backbone: --backbone {out.resolve()}")
