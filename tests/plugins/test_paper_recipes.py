"""Every recipe of the tree: each row is a run that could start, shown in miniature with tiny backbones and data."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from cifar_support import write_cifar
from pfl_benchmarks.suites.options import SUITES
from pfl_platform.config import RunConfig
from pfl_platform.federation.setup import build
from pfl_platform.plugins import PluginManager
from pfl_platform.recipes import Request, Resolver, recipes, rows_of, written_in
from pfl_platform.settings import read
from text_support import make_commonsense, make_flan, make_scope, make_suite

FILES = {name: files[0] for name, files in recipes().items() if "pfl_" in str(files[0])}
TABLES = {name for name in FILES if name.startswith(("osrm-", "guidance-", "potara-", "fedmosaic-"))}
TINY = {
    "roberta": "tiny-roberta",
    "minilm": "tiny-roberta",
    "t5": "tiny-t5",
    "llama": "tiny-llama-s",
    "vit": "tiny-vit",
    "qwen": "tiny-llama-s",
}
UNPUBLISHED = {"FedALT", "Fisher Merging"}
"""Rows of methods that a paper has in other tables."""
manager = PluginManager()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten tasks in the form of Super-NaturalInstructions, and beside them pictures in the form of CIFAR-100 and tasks
    in the forms of FLAN and LLM-Adapters."""
    root = tmp_path_factory.mktemp("sni")
    write_cifar(root)
    make_flan(root, "flan8")
    make_commonsense(root, train=14)
    for name in ("drake", "hflb", "fedaya", "fedllm-large"):
        make_suite(root / name, name)
    make_scope(root / "fedscope")
    (root / "tasks").mkdir()
    (root / "splits" / "default").mkdir(parents=True)
    names = [f"task{number:03d}_sums" for number in range(10)]
    for number, name in enumerate(names):
        instances = [
            {"id": f"{name}-{k}", "input": f"{number} and {k}?", "output": [str(number + k)]} for k in range(9)
        ]
        task = {"Definition": ["Add two numbers. Say the sum."], "Categories": ["Sums"], "Instances": instances}
        (root / "tasks" / f"{name}.json").write_text(json.dumps(task), encoding="utf-8")
    (root / "splits" / "default" / "train_tasks.txt").write_text("\n".join(names), encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def resolver() -> Resolver:
    return Resolver(manager)


def small(written: dict[str, Any], sni: Path) -> dict[str, Any]:
    """Options that put tiny data and a tiny backbone in the place of what a recipe names."""
    benchmark = written.get("benchmark", {}).get("name")
    if benchmark in SUITES:
        return {"benchmark": {"options": {"root": str(sni / benchmark), "models": "tiny"}}}
    if benchmark not in ("glue", "sni", "cifar100", "commonsense", "flan8"):
        return {}
    root = Path(__file__).parents[1] / "data" / "glue" if benchmark == "glue" else sni
    backbone = next(tiny for part, tiny in TINY.items() if part in written["backbones"]["*"])
    sizes = {"train_size": 4, "test_size": 3, "validation_size": 2}
    if benchmark == "cifar100":
        del sizes["validation_size"]
    tasks = {"tasks": []} if benchmark == "sni" else {}  # recipes in small name some of the real ones
    return {"benchmark": {"options": {"root": str(root), **sizes, **tasks}}, "backbones": {"*": backbone}}


@cache
def in_miniature(name: str, resolver: Resolver, sni: Path) -> dict[str, RunConfig]:
    written = written_in(FILES[name])
    options = small(written, sni)
    method = None if rows_of(written) or "method" in written else "fedit"  # some are for any method
    rows: list[str | None] = [*rows_of(written)] or [None]
    return {
        str(row): resolver.resolve(Request(method, recipe=str(FILES[name]), row=row, options=options)) for row in rows
    }


@pytest.mark.parametrize("name", sorted(FILES))
def test_every_row_is_a_run(name: str, resolver: Resolver, data: Path) -> None:
    configs = in_miniature(name, resolver, data)
    if name in TABLES:
        assert len(configs) > 1
        assert [config.label for config in configs.values()] == list(configs)
        assert read(FILES[name])["summary"]
    for config in configs.values():  # the options of components are checked when these are made
        for kind in ("adapter", "objective", "aggregator"):
            choice = getattr(config, kind)
            manager.make(kind, choice.name, choice.options)


@pytest.mark.parametrize("name", sorted(name for name in TABLES if "table" in name))
def test_published_numbers_go_with_every_row_of_a_table(name: str, resolver: Resolver, data: Path) -> None:
    for config in in_miniature(name, resolver, data).values():
        tasks = [value for key, value in config.published.items() if key != "mean"]
        if tasks:  # the paper's own average, to the digits that it prints
            assert sum(tasks) / len(tasks) == pytest.approx(config.published["mean"], abs=0.02)
        assert not config.published or 0 < config.published["mean"] < 100
        assert config.published or config.label in UNPUBLISHED


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("osrm-table1", "Fisher, OSRM"),
        ("osrm-table2", "RegMean"),
        ("osrm-table3", "EMR, OSRM"),
        ("osrm-table7", "TA, Q, OSRM"),
        ("guidance-table1", "Iso-C, KnOTS, ReLoRA"),
        ("guidance-table3-small", "FedAvg, SAR"),
        ("potara-table2", "Fisher Merging"),
        ("potara-table2-small", "Potara"),
        ("potara-table6", "FedIT"),
        ("potara-table9", "Potara"),
    ],
)
def test_a_row_can_start(name: str, row: str, resolver: Resolver, data: Path) -> None:
    config = in_miniature(name, resolver, data)[row]
    setup = build(config, manager)
    fed = setup.federation(None)  # type: ignore[arg-type]
    sites = setup.adapter.sites(fed.load(fed.backbones[0]))
    kinds = {site.name.rpartition(".")[2] for site in sites}
    wanted = config.adapter.options["targets"]
    assert all(any(kind.endswith(target) for target in wanted) for kind in kinds)
    assert len(kinds) == len(wanted)


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("fedmosaic-table7-drake", "Vanilla"),
        ("fedmosaic-table29", "SFT (N_B = 2)"),
        ("fedmosaic-table30", "Training model gradients"),
        ("fedmosaic-table31", "LLaVA-Qwen-0.5B (16bit)"),
        ("fedmosaic-table33", "FedMosaic w/ NBS"),
    ],
)
def test_a_row_of_pictures_can_start(name: str, row: str, resolver: Resolver, data: Path) -> None:
    """Its components agree on what they send; with public pictures drawn in place, and ranks of the tiny backbones."""
    written = written_in(FILES[name])
    options = {
        **small(written, data),
        "public": {"name": "drake-synth", "size": 4},
        "adapter": {"options": {"r": 4, **({"blocks": 2} if row != "Vanilla" else {})}},
    }
    if "Qwen" in row:
        options["aggregator"] = {"options": {"small_model": "tiny-llava-qwen-s"}}
    config = resolver.resolve(Request(recipe=str(FILES[name]), row=row, options=options))
    assert set(build(config, manager).backbone_of.values()) == {"tiny-llava-llama-s", "tiny-llava-llama-m"}
