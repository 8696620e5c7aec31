"""From what a user asked for to the configuration of a run.

Later wins: the defaults of `RunConfig`; the benchmark's `defaults`; the method's `default.yaml`; the benchmark's preset
for this method (`defaults["methods"][method]`, such as a higher rate for its small backbones); the recipe, then its own
`methods: {method: ...}`; options of the command line; `--set`. A component that gets another name loses the options of
the former one, but not those that the benchmark proposes for any.

A recipe is a YAML file with any settings of `RunConfig`, among them `method` and `benchmark`. It is named by its
path, or by its name when it lies in the folder `recipes/` of an installed method or benchmark. Its components
(adapter, objective, aggregator, ...) belong to the method that it names; under another method only its other
settings hold.

A recipe may be a table: `rows: {label: settings}`, each laid over what the recipe says for all rows, and `grid: {key:
values}`, by which every row is multiplied. `like: NAME` starts from another recipe's settings and rows. `published`
holds what a paper reports; it is shown beside what was measured. How recipes are read: `recipe_files`; how they run in
small: `miniature`.

When several methods are compared, the first is resolved as above. The others run under its budget (`BUDGET`), with
their own components.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pfl_platform.config import RunConfig
from pfl_platform.data import Benchmark
from pfl_platform.errors import UserError, nearest
from pfl_platform.miniature import row_in_miniature, rows_in_miniature
from pfl_platform.plugins import Plugin, PluginManager, available, default, find, unadorned
from pfl_platform.recipe_files import (
    ABOUT,
    benchmark_setting,
    configuring,
    find_recipe,
    in_row,
    recipes,
    rows_of,
    written_in,
)
from pfl_platform.settings import COMPONENTS, LISTS, Settings, assignment, lay_over, leaves, long_form, nested, read
from pfl_platform.tuning import candidates
from pfl_platform.validation import explain

__all__ = [
    "ABOUT", "BUDGET", "Request", "Resolver", "benchmark_setting", "check_client_names", "find_recipe", "in_row",
    "method_file", "recipes", "rows_of", "written_in",
]  # fmt: skip

BUDGET = (
    "benchmark", "seed", "rounds", "local_steps", "local_epochs", "cohort", "backbones", "backbone_options",
    "training.batch_size", "training.micro_batch", "stream.protocol", "evaluation", "public", "engine", "heads",
)  # fmt: skip
"""What is equal between methods that are compared."""


@dataclass(frozen=True)
class Request:
    """What a user asked for. `benchmark` and `recipe` are names or paths; `options` are dotted keys, which the
    options of the command line stand for; `sets` are texts `key=value`."""

    method: str | None = None
    benchmark: str | None = None
    recipe: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    sets: Sequence[str] = ()
    row: str | None = None  # of a recipe that is a table
    tiny: bool = False  # the recipe's miniature


@dataclass(frozen=True)
class Layer:
    """Settings in their long form, and where they were written."""

    source: str
    settings: Settings


def method_file(plugin: Plugin) -> Path:
    """The `default.yaml` of a method."""
    file = plugin.folder / "default.yaml" if plugin.folder is not None else None
    if file is None or not file.is_file():
        raise UserError(
            f"The {plugin} has no default.yaml in {plugin.module}; a method's entry point names a package with one."
        )
    return file


class Resolver:
    """Resolves requests; builds each benchmark once.

    plugins: the manager that makes benchmarks, the caller's own. outlined: benchmarks that read files are made without
    them, for plans.
    """

    def __init__(self, plugins: PluginManager, *, outlined: bool = False) -> None:
        self._plugins = plugins
        self._outlined = outlined
        self._made: dict[str, Benchmark] = {}

    def resolve(self, request: Request) -> RunConfig:
        """The configuration for a request, checked as far as metadata and the benchmark allow."""
        return self._resolve(request, follows=False)

    def _resolve(self, request: Request, follows: bool) -> RunConfig:
        asked = self._asked(request, follows)
        top = _merged(asked)
        method = find("method", self._method(top))
        own = read(method_file(method))
        named = Layer(f"the defaults of {method.name}", long_form(configuring(own)))
        choice = _merged([named, *asked]).get("benchmark") or {}
        choice = choice if "name" in choice else {**choice, "name": default("benchmark").name}
        benchmark = self.benchmark(choice)
        proposed, preset = _with_preset(benchmark.defaults, method.name)
        name = choice["name"]
        layers = [
            Layer(f"the defaults of {name}", proposed),
            named,
            Layer(f"the preset of {name} for {method.name}", preset),
            *asked,
            Layer("", {"method": method.name, "benchmark": choice}),
        ]
        layers.append(Layer(f"the defaults of {name}", self._for_any_name(proposed, _merged(layers))))
        config = _validated(layers)
        if len(tried := candidates(config)) == 1:  # nothing to choose from
            config = tried[0].config
        _check_names(config, benchmark)
        return config

    def _for_any_name(self, proposed: Settings, merged: Settings) -> Settings:
        """Options that a benchmark proposes for a component without naming one, such as a rank: they hold for whatever
        is named in the end, as far as it has them and nothing else was said."""
        found: Settings = {}
        for kind, choice in proposed.items():
            if kind not in COMPONENTS or "name" in choice or "name" not in merged.get(kind, {}):
                continue
            model = self._plugins.options(kind, find(kind, merged[kind]["name"]).name)
            said = merged[kind].get("options", {})
            options = choice.get("options", {})
            known = {key: options[key] for key in options if model and key in model.model_fields and key not in said}
            if known:
                found[kind] = {"options": known}
        return found

    def alongside(self, request: Request, first: RunConfig, method: str) -> RunConfig:
        """The configuration of another method, compared with `first` (the resolved `request`) under the same budget.

        Settings of `request` for components belong to the first method and are left out, but for the adapter's. One
        that is named holds for all methods, with its options. Else those options hold that the other method's adapter
        has too, such as a rank: it is a part of what a comparison keeps equal.
        """
        dumped = first.model_dump(mode="json")
        typed = _typed(request)
        adapter = _merged([Layer("", nested(key, value)) for key, value, _ in typed if key.startswith("adapter")])
        other = replace(
            request,
            method=method,
            benchmark=None,
            recipe=str(self._recipe(request)) if request.recipe is not None else None,
            options={
                **_without_components({key: value for key, value, _ in typed}),
                **{key: _at(dumped, key) for key in BUDGET},
                **({"adapter": adapter["adapter"]} if adapter.get("adapter", {}).get("name") else {}),
            },
            sets=(),
        )
        config = self._resolve(other, follows=True)
        if not adapter or "adapter" in other.options:
            return config
        model = self._plugins.options("adapter", config.adapter.name)
        known = {
            key: value for key, value in adapter["adapter"]["options"].items() if model and key in model.model_fields
        }
        return self._resolve(replace(other, options={**other.options, "adapter": {"options": known}}), follows=True)

    def _asked(self, request: Request, follows: bool) -> list[Layer]:
        """The recipe, its preset, the options and the settings of a request. `follows`: the request's method is
        compared with the one that the recipe is for."""
        layers: list[Layer] = []
        if request.recipe is not None:
            file = self._recipe(request)
            written = row_in_miniature(file, request.row) if request.tiny else in_row(file, request.row)
            owner = written.get("method")
            if not isinstance(owner, str | None):
                raise UserError(f"The recipe {file} names the method {owner!r}, which is no name.")
            method = request.method or owner
            if (owner is None and follows) or (owner is not None and method != owner):
                written = _without_components(written)
            common, preset = _with_preset(written, method)
            layers += [Layer(f"the recipe {file}", common), Layer(f"the recipe {file}", preset)]
        if request.method is not None:
            layers.append(Layer("--plugin", {"method": request.method}))
        if request.benchmark is not None:
            layers.append(Layer("--benchmark", {"benchmark": benchmark_setting(request.benchmark, Path())}))
        return layers + [Layer(source, nested(key, value)) for key, value, source in _typed(request)]

    def rows(self, request: Request) -> list[str]:
        """The labels of a recipe's rows; [] where the recipe is no table."""
        if request.recipe is None:
            return []
        file = self._recipe(request)
        return rows_in_miniature(file) if request.tiny else list(rows_of(written_in(file)))

    def _recipe(self, request: Request) -> Path:
        near: list[Plugin] = []
        if request.method is not None:
            near.append(find("method", request.method))
        if request.benchmark is not None and request.benchmark in available("benchmark"):
            near.append(find("benchmark", request.benchmark))
        elif request.benchmark is None:
            near.append(default("benchmark"))
        return find_recipe(request.recipe or "", near)

    def _method(self, top: Settings) -> str:
        if top.get("method") is None:
            raise UserError("No method is named; name one with --plugin, or a recipe that names one with --recipe.")
        return str(top["method"])

    def benchmark(self, choice: Mapping[str, Any]) -> Benchmark:
        """The benchmark of this name and these options."""
        key = repr({"name": choice["name"], "options": choice.get("options", {})})
        if key not in self._made:
            make = self._plugins.outline if self._outlined else partial(self._plugins.make, "benchmark")
            self._made[key] = make(choice["name"], choice.get("options", {}))
        return self._made[key]


def _with_preset(settings: Mapping[str, Any], method: str | None) -> tuple[Settings, Settings]:
    """The settings for all methods, and those below `methods` for this one."""
    presets = settings.get("methods") or {}
    if not isinstance(presets, Mapping):
        raise UserError("The setting 'methods' must hold settings by method.")
    preset = presets.get(method) or {}
    if not isinstance(preset, Mapping):
        raise UserError(f"The setting 'methods.{method}' must hold settings, not {preset!r}.")
    rest = {key: value for key, value in settings.items() if key != "methods"}
    return long_form(rest), long_form(preset)


def _typed(request: Request) -> list[tuple[str, Any, str]]:
    """Key, value and source of every setting that was typed, in the order in which they are laid over each other."""
    options = [(key, value, "the command line") for key, value in request.options.items()]
    return options + [(*assignment(text), "--set") for text in request.sets]


def _of_component(key: str) -> bool:
    first = key.partition(".")[0]
    return first in (*COMPONENTS, *LISTS) and first != "observers"


def _without_components(settings: Mapping[str, Any]) -> Settings:
    """Settings by dotted key without those of components, and without what is tuned of them."""
    found = {key: value for key, value in settings.items() if not _of_component(key)}
    if isinstance(found.get("tune"), Mapping):
        found["tune"] = {key: value for key, value in found["tune"].items() if not _of_component(str(key))}
    return found


def _at(settings: Mapping[str, Any], key: str) -> Any:
    value: Any = settings
    for part in key.split("."):
        value = value[part]
    return value


def _merged(layers: Sequence[Layer]) -> Settings:
    result: Settings = {}
    for layer in layers:
        result = lay_over(result, layer.settings)
    return result


def _validated(layers: Sequence[Layer]) -> RunConfig:
    origins = {key: layer.source for layer in layers if layer.source for key in leaves(layer.settings)}
    try:
        return RunConfig.model_validate(_merged(layers))
    except ValidationError as error:
        raise UserError(explain(error, RunConfig, origins=origins)) from None


def _check_names(config: RunConfig, benchmark: Benchmark) -> None:
    """Every named plugin is installed, and every client that is given a backbone exists."""
    for kind in COMPONENTS:
        if (choice := getattr(config, kind)) is not None:
            find(kind, choice.name)
    for setting, kind in LISTS.items():
        for choice in getattr(config, setting):
            find(kind, choice.name)
    for backbone in config.backbones.values():
        if "/" not in backbone:  # with one it is an alias, such as a hub's id, which only the plugins know
            find("backbone", unadorned(backbone))
    check_client_names(config, benchmark)


def check_client_names(config: RunConfig, benchmark: Benchmark) -> None:
    """Every client that the configuration names exists, and there are as many as it wants in a round."""
    if config.cohort > len(benchmark.clients):
        raise UserError(
            f"The setting 'cohort' is {config.cohort}, but '{benchmark.name}' has {len(benchmark.clients)} clients; "
            "0 takes all of them."
        )
    known = {client.client_id for client in benchmark.clients}
    for setting, named in (
        ("backbones", set(config.backbones) - {"*"}),
        ("clients", set(config.clients)),
        ("participation.availability", set(config.participation.availability) - {"*"}),
    ):
        if strangers := sorted(named - known):
            raise UserError(
                f"The setting '{setting}' names the client '{strangers[0]}', whom '{benchmark.name}' does not have."
                + nearest(strangers[0], known)
            )
