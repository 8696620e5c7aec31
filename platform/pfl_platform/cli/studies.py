"""Commands that study what there is: finished runs, saved adapters, backbones, costs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pfl_platform.cli.arguments import Data, Json, Markdown, Quiet, Threads
from pfl_platform.cli.output import form_of
from pfl_platform.errors import UserError

studies = typer.Typer()


@studies.command()
def merge(
    adapters: Annotated[list[Path], typer.Argument(metavar="ADAPTER...", help="Folders that peft has saved.")],
    method: Annotated[str, typer.Option("--method", "-m", help="A rule of `list aggregators` that merges adapters.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder of the merged adapter; must be new or empty.")],
    space: Annotated[str | None, typer.Option("--space", help="Where the rule works; see `show METHOD`.")] = None,
    rank: Annotated[int | None, typer.Option("--rank", help="Rank of the result; default: the largest given.")] = None,
    density: Annotated[float | None, typer.Option("--density", help="Share of entries that are kept.")] = None,
    coef: Annotated[float | None, typer.Option("--coef", help="Factor of the merged delta.")] = None,
    weights: Annotated[str | None, typer.Option("--weights", help="One per adapter: 1,2,1; default: equal.")] = None,
    full: Annotated[
        Path | None, typer.Option("--full", help="Folder of the backbone: write it with the merged delta added.")
    ] = None,
    drop_bad: Annotated[bool, typer.Option("--drop-bad", help="Leave out adapters with NaN or infinity.")] = False,
    settings: Annotated[list[str] | None, typer.Option("--set", help="Any option of the rule: key=value.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of rules that draw.")] = 0,
    threads: Threads = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Merge adapters that peft has saved, without loading their backbone."""
    from pfl_platform.cli import merging

    named = {"space": space, "density": density, "merge_coef": coef}
    merging.merge(
        merging.Order(
            adapters=adapters,
            method=method,
            out=out,
            options={key: value for key, value in named.items() if value is not None},
            settings=settings or (),
            rank=rank,
            weights=weights,
            backbone=full,
            drop_bad=drop_bad,
            seed=seed,
            threads=threads,
        ),
        json=json,
        quiet=quiet,
    )


@studies.command()
def costs(
    methods: Annotated[str, typer.Option("--methods", help="Names of `list plugins`, a,b; or all.")] = "all",
    backbones: Annotated[
        str | None, typer.Option("--backbones", help="A small and a large one, a,b; default: about 1B and 3B.")
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option("--reference", help="A method; default: one that sends nothing."),
    ] = None,
    rank: Annotated[int, typer.Option("--rank", help="Rank of all adapters.")] = 128,
    tokens: Annotated[int, typer.Option("--tokens", help="Length of a row.")] = 512,
    answers: Annotated[int, typer.Option("--answers", help="Tokens of an answer, where predictions are sent.")] = 64,
    local_steps: Annotated[int, typer.Option("--local-steps", help="Local steps of the traced rounds.")] = 10,
    rounds: Annotated[int, typer.Option("--rounds", help="Rounds of the planned run.")] = 20,
    clients: Annotated[str, typer.Option("--clients", help="Numbers of clients: 1,10 or 1..1000.")] = "1..1000",
    others: Annotated[
        str | None, typer.Option("--others", help="Backbones to stand in for a method's further one: a,b.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Any setting of the methods: key=value. May be repeated.")
    ] = None,
    plots: Annotated[
        Path | None, typer.Option("--plots", help="Draw costs by number of clients into this folder.")
    ] = None,
    json: Json = False,
) -> None:
    """What methods cost at real backbones' shapes: FLOPs, memory and bytes. No weights are read."""
    from pfl_platform.cli import costs as command

    command.costs(
        command.Order(
            methods=methods,
            backbones=backbones,
            reference=reference,
            rank=rank,
            tokens=tokens,
            answers=answers,
            steps=local_steps,
            rounds=rounds,
            clients=clients,
            others=others,
            settings=tuple(settings or ()),
            plots=plots,
        ),
        json,
    )


@studies.command()
def line(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")],
    points: Annotated[int, typer.Option("--points", help="Weights from 0 to 1 that are measured.")] = 11,
    split: Annotated[str, typer.Option("--split", help="Samples of the line: validation or test.")] = "validation",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure personal models that are made of two, at every weight; nothing is trained."""
    from pfl_platform.cli import lines

    lines.line(run, points, split, json, quiet)


@studies.command()
def evaluate(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="The folder of a finished run; with --zero-shot a backbone's name.")
    ],
    others: Annotated[bool, typer.Option("--others", help="Every client's model on the others' tasks.")] = False,
    unseen: Annotated[bool, typer.Option("--unseen", help="Every client's model on the unseen tasks.")] = False,
    items: Annotated[
        int | None, typer.Option("--items", help="Test items of each task, 0: all; default: as the run does.")
    ] = None,
    zero_shot: Annotated[
        bool, typer.Option("--zero-shot", help="Score a bare backbone by tasks of lm-eval, an extra of this package.")
    ] = False,
    task: Annotated[
        list[str] | None, typer.Option("--task", help="With --zero-shot: a task's name, or its YAML file.")
    ] = None,
    json: Json = False,
    markdown: Markdown = False,
    quiet: Quiet = False,
) -> None:
    """Score what a finished run left out, from its last round; nothing is trained, and no cell is scored twice."""
    from pfl_platform.cli import evaluating

    if zero_shot:
        if others or unseen or markdown:
            raise UserError("--zero-shot scores a bare backbone: it knows no --others, --unseen and --markdown.")
        evaluating.zero_shot(str(run), task or (), items, json)
        return
    if task:
        raise UserError("--task names tasks of --zero-shot; give that with it.")
    evaluating.evaluate(run, others, unseen, items, form_of(json, markdown), quiet)


@studies.command()
def score(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")],
    adapters: Annotated[
        list[Path],
        typer.Argument(
            metavar="ADAPTER...",
            help="Folders that peft or `merge` has saved or with one for each client.",
        ),
    ],
    split: Annotated[str | None, typer.Option("--split", help="Whose samples; default: as the run does.")] = None,
    json: Json = False,
    markdown: Markdown = False,
    quiet: Quiet = False,
) -> None:
    """Score saved adapters, a merged one for example, on the own tasks of a run's clients."""
    from pfl_platform.cli import scoring

    scoring.score(run, adapters, split, form_of(json, markdown), quiet)


@studies.command()
def sweep(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A name of `list recipes`, or a YAML file.")],
    grids: Annotated[list[str], typer.Argument(metavar="KEY=A,B,C...", help="Settings and the values they take.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the runs, the table and the picture go.")],
    plugin: Annotated[str | None, typer.Option("--plugin", "-p", help="The method, where the recipe has none.")] = None,
    benchmark: Annotated[
        str | None, typer.Option("--benchmark", "-b", help="A name of `list benchmarks`, or a folder.")
    ] = None,
    row: Annotated[str | None, typer.Option("--row", help="The row of a recipe that is a table.")] = None,
    seeds: Annotated[str, typer.Option("--seeds", help="How many seeds, or which: 3, or 0,5,7.")] = "1",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Any other setting: key=value. May be repeated.")
    ] = None,
    data: Data = None,
    quiet: Quiet = False,
) -> None:
    """One run for each combination of values and seeds; the same command goes on where it was stopped."""
    from pfl_platform.cli import sweeping
    from pfl_platform.recipes import Request

    request = Request(plugin, benchmark, recipe, sets=settings or (), row=row)
    sweeping.sweep(request, grids, seeds, out, quiet)


@studies.command()
def cka(
    left: Annotated[str, typer.Argument(metavar="BACKBONE", help="A name of `list backbones`.")],
    right: Annotated[str, typer.Argument(metavar="BACKBONE", help="Another, or the same.")],
    benchmark: Annotated[
        str | None, typer.Option("--benchmark", "-b", help="Whose public set is read: a name, or a folder.")
    ] = None,
    public: Annotated[str | None, typer.Option("--public", help="One of its public sets; default: the first.")] = None,
    size: Annotated[int, typer.Option("--size", help="Samples.")] = 512,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Samples that are held at a time.")] = 64,
    at: Annotated[str, typer.Option("--at", help="A sample is the mean of its tokens, or its last one.")] = "mean",
    out: Annotated[Path, typer.Option("--out", help="The picture.")] = Path("cka.png"),
    seed: Annotated[int, typer.Option("--seed", help="Which samples.")] = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """How similar the layers of two backbones are (CKA): why blocks at the same relative depth are matched."""
    from pfl_platform.cli import similarity

    similarity.cka(similarity.Order(left, right, benchmark, public, size, batch_size, at, out, seed), json, quiet)


@studies.command()
def adapt(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of finished runs.")],
    out: Annotated[Path, typer.Option("--out", help="Where the new runs, the table and the picture go.")],
    tasks: Annotated[str, typer.Option("--tasks", help="What is learned: unseen.")] = "unseen",
    steps: Annotated[int, typer.Option("--steps", help="Local steps on each task.")] = 200,
    every: Annotated[int, typer.Option("--every", help="Steps between scores.")] = 10,
    items: Annotated[int, typer.Option("--items", help="Test items of each task, 0: all.")] = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """How fast unseen tasks are learned from what runs ended with, against fresh adapters."""
    from pfl_platform.cli import adaptation

    if tasks != "unseen":
        raise UserError(f"What can be learned anew are the benchmark's unseen tasks: --tasks unseen, not '{tasks}'.")
    adaptation.adapt(runs, out, steps, every, items, json, quiet)
