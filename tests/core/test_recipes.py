"""How a request becomes a configuration: what wins over what, and which sentence a mistake gets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pfl_platform.config import RunConfig
from pfl_platform.errors import UserError
from pfl_platform.plugins import PluginManager, available
from pfl_platform.recipes import Request, Resolver, find_recipe, recipes
from pfl_platform.settings import read

PLUGIN = """
from pydantic import BaseModel
from pfl_platform import hookimpl
from pfl_platform.data import ClientData, FixedBenchmark

class Config(BaseModel, extra="forbid"):
    size: int = 1
    path: str = ""

@hookimpl
def pfl_make_benchmark(name, options):
    if name not in ("toy", "toy-folder"):
        return None
    config = Config(**options)
    defaults = {
        "rounds": 3,
        "local_steps": config.size,
        "training": {"lr": 0.1, "batch_size": 8, "lr_scale": {"*/A": 0.5}},
        "methods": {"red": {"training": {"lr": 0.4}}},
    }
    if config.path == "ranked":
        defaults["adapter"] = {"options": {"r": 6, "width": 2}}
    clients = (ClientData("north", "big", ()), ClientData("south", "big", ()))
    return FixedBenchmark("toy", clients, "toy-1", defaults=defaults)
"""
ADAPTERS = """
from pydantic import BaseModel
from pfl_platform import hookimpl

class Narrow(BaseModel, extra="forbid"):
    r: int = 1

class Wide(Narrow):
    deep: bool = False
    width: int = 1

@hookimpl
def pfl_make_adapter(name, options):
    return {"narrow": Narrow, "wide": Wide}[name](**options)
"""
RED = """
summary: The red method.
citation: Nobody, nowhere.
objective: goal
aggregator: {name: sum, power: 2}
adapter: {name: wide, r: 4, deep: true}
training: {lr: 0.2, weight_decay: 0.01, lr_scale: {"*/B": 0.25}}
"""
BLUE = """
objective: goal
aggregator: sum
adapter: {name: narrow}
training: {lr: 0.3}
"""
SHORT = "summary: A short one.\nrounds: 2\nmethods: {red: {adapter: {r: 9}}, blue: {training: {clip: 0.5}}}\n"
FOR_RED = "method: red\nbenchmark: toy\nrounds: 7\nadapter: {r: 8}\ntraining: {warmup: 5}\n"


@pytest.fixture
def toys(publish: Callable[..., Path]) -> Path:
    return publish(
        "toys",
        {
            "methods": {"red": "toys.red", "blue": "toys.blue"},
            "benchmarks": {"toy": "toys.bench.plugin", "toy-folder": "toys.bench.plugin"},
            "adapters": {"wide": "toys.adapters", "narrow": "toys.adapters"},
            "objectives": {"goal": "toys.parts"},
            "aggregators": {"sum": "toys.parts"},
            "backbones": {"big": "toys.parts", "small": "toys.parts"},
        },
        {
            "toys/__init__.py": "",
            "toys/red/default.yaml": RED,
            "toys/blue/default.yaml": BLUE,
            "toys/red/recipes/short.yaml": SHORT,
            "toys/adapters.py": ADAPTERS,
            "toys/bench/__init__.py": "",
            "toys/bench/plugin.py": PLUGIN,
            "toys/bench/recipes/for-red.yaml": FOR_RED,
        },
    )


@pytest.fixture
def resolve(toys: Path) -> Callable[..., RunConfig]:
    def resolved(method: str | None = "red", *sets: str, benchmark: str | None = "toy", **request: Any) -> RunConfig:
        return Resolver(PluginManager()).resolve(Request(method=method, benchmark=benchmark, sets=sets, **request))

    return resolved


Resolve = Callable[..., RunConfig]


class TestOrder:
    def test_every_layer_wins_over_those_before(self, resolve: Resolve, tmp_path: Path) -> None:
        recipe = tmp_path / "mine.yaml"
        recipe.write_text("training: {lr: 0.5}\nmethods: {red: {training: {clip: 0.6}}}\n", encoding="utf-8")
        blue, red = resolve("blue").training, resolve("red").training
        assert RunConfig.model_fields["training"].default_factory is not None
        assert (blue.clip, blue.batch_size) == (1.0, 8)  # RunConfig's own < the benchmark's
        assert blue.lr == 0.3  # ... < the method's
        assert red.lr == 0.4  # ... < the benchmark's preset for the method
        with_recipe = resolve("red", recipe=str(recipe)).training
        assert (with_recipe.lr, with_recipe.clip) == (0.5, 0.6)  # ... < the recipe, and its own preset
        assert resolve("red", recipe=str(recipe), options={"training.lr": 0.7}).training.lr == 0.7  # ... < options
        assert resolve("red", "training.lr=0.8", recipe=str(recipe), options={"training.lr": 0.7}).training.lr == 0.8

    def test_what_is_not_said_again_stays(self, resolve: Resolve) -> None:
        config = resolve("red", "training.warmup=3")
        assert (config.training.weight_decay, config.training.batch_size, config.rounds) == (0.01, 8, 3)

    def test_later_patterns_of_rates_are_tried_first(self, resolve: Resolve) -> None:
        assert list(resolve("red", "training.lr_scale.*/gate=1").training.lr_scale) == ["*/gate", "*/B", "*/A"]

    def test_options_of_the_benchmark_reach_it(self, resolve: Resolve) -> None:
        assert resolve("red", "benchmark.size=6").local_steps == 6

    def test_resolving_the_result_again_changes_nothing(self, resolve: Resolve, tmp_path: Path) -> None:
        import yaml

        config = resolve("red", "rounds=11", "backbones.north=small", "adapter.r=7")
        again = tmp_path / "again.yaml"
        again.write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
        assert resolve(None, benchmark=None, recipe=str(again)) == config


class TestComponents:
    def test_options_may_be_written_short(self, resolve: Resolve) -> None:
        assert resolve("red").adapter.options == {"r": 4, "deep": True}
        assert resolve("red", "adapter.r=5").adapter.options == {"r": 5, "deep": True}
        assert resolve("red", "adapter.options.r=5") == resolve("red", "adapter.r=5")

    def test_another_name_loses_the_options_of_the_former(self, resolve: Resolve) -> None:
        config = resolve("red", "adapter.width=3", options={"adapter.name": "narrow"})
        assert (config.adapter.name, config.adapter.options) == ("narrow", {"width": 3})
        assert config.aggregator.options == {"power": 2}

    def test_what_a_benchmark_proposes_for_any_adapter_outlives_its_name(self, resolve: Resolve) -> None:
        """As far as the one that is named in the end has the option, and nobody has said otherwise."""

        def options(*sets: str, **request: Any) -> dict[str, Any]:
            return resolve("red", "benchmark.path=ranked", *sets, **request).adapter.options

        assert options() == {"r": 4, "deep": True, "width": 2}  # the method's own rank wins
        assert options(options={"adapter.name": "narrow"}) == {"r": 6}
        assert options("adapter.r=5", options={"adapter.name": "narrow"}) == {"r": 5}

    def test_lists_are_replaced_and_may_hold_names(self, resolve: Resolve, publish: Callable[..., Path]) -> None:
        publish("noises", {"postprocessors": {"cut": "x", "noise": "x"}}, {})
        config = resolve("red", "postprocessors=[cut, {name: noise, sigma: 1e-3}]")
        assert [(part.name, part.options) for part in config.postprocessors] == [
            ("cut", {}),
            ("noise", {"sigma": 0.001}),
        ]

    def test_a_star_forgets_single_clients(self, resolve: Resolve) -> None:
        config = resolve("red", "backbones={north: small}", "backbones={'*': big}")
        assert config.backbones == {"*": "big"}


class TestRecipes:
    def test_found_by_name_beside_methods_and_benchmarks(self, toys: Path) -> None:
        assert {"short", "for-red"} <= set(recipes())
        assert find_recipe("short") == toys / "toys" / "red" / "recipes" / "short.yaml"

    def test_may_name_method_and_benchmark(self, resolve: Resolve) -> None:
        config = resolve(None, benchmark=None, recipe="for-red")
        assert (config.method, config.benchmark.name, config.rounds) == ("red", "toy", 7)
        assert config.adapter.options == {"r": 8, "deep": True}

    def test_components_belong_to_the_method_it_names(self, resolve: Resolve) -> None:
        config = resolve("blue", recipe="for-red")
        assert (config.rounds, config.training.warmup) == (7, 5)
        assert (config.adapter.name, config.adapter.options) == ("narrow", {})

    def test_presets_by_method(self, resolve: Resolve) -> None:
        red, blue = resolve("red", recipe="short"), resolve("blue", recipe="short")
        assert (red.adapter.options["r"], red.training.clip) == (9, 1.0)
        assert (blue.training.clip, blue.rounds) == (0.5, 2)

    def test_two_of_one_name(self, resolve: Resolve, publish: Callable[..., Path]) -> None:
        publish(
            "more", {"methods": {"green": "more"}}, {"more/default.yaml": BLUE, "more/recipes/short.yaml": "rounds: 5"}
        )
        assert resolve("green", recipe="short").rounds == 5
        assert resolve("red", recipe="short").rounds == 2
        with pytest.raises(UserError, match=r"Several recipes are called 'short'.*give the path"):
            find_recipe("short")

    def test_a_folder_in_a_recipe_is_relative_to_it(self, resolve: Resolve, tmp_path: Path) -> None:
        (tmp_path / "a" / "data").mkdir(parents=True)
        recipe = tmp_path / "a" / "mine.yaml"
        recipe.write_text("method: red\nbenchmark: ./data\n", encoding="utf-8")
        from pfl_platform.recipes import benchmark_setting

        assert benchmark_setting("./data", recipe.parent)["options"] == {"path": str(tmp_path / "a" / "data")}


class TestComparison:
    def alongside(self, method: str, *sets: str, **request: Any) -> tuple[RunConfig, RunConfig]:
        asked = Request(method="red", benchmark="toy", sets=sets, **request)
        resolver = Resolver(PluginManager())
        first = resolver.resolve(asked)
        return first, resolver.alongside(asked, first, method)

    def test_the_budget_is_equal_and_components_are_not(self, toys: Path) -> None:
        first, other = self.alongside(
            "blue", "training.batch_size=2", "training.clip=0.1", "adapter.r=32", "aggregator.power=9", "seed=5",
            options={"rounds": 13, "engine.threads": 1},
        )  # fmt: skip
        for key in (
            "benchmark",
            "seed",
            "rounds",
            "local_steps",
            "cohort",
            "backbones",
            "evaluation",
            "public",
            "engine",
        ):
            assert getattr(first, key) == getattr(other, key), key
        assert (other.rounds, other.seed, other.training.batch_size, other.engine.threads) == (13, 5, 2, 1)
        assert other.training.clip == 0.1  # a setting for all
        assert (other.method, other.training.lr) == ("blue", 0.3)  # its own
        assert (other.adapter.name, other.adapter.options, other.aggregator.options) == ("narrow", {"r": 32}, {})

    def test_the_first_methods_recipe_lends_its_budget_only(self, toys: Path) -> None:
        first, other = self.alongside("blue", recipe="for-red")
        assert (first.rounds, other.rounds, other.training.warmup) == (7, 7, 5)
        assert other.adapter.name == "narrow"

    @pytest.mark.parametrize(
        ("options", "sets"),
        [
            ({"adapter.name": "wide"}, ["adapter.r=3"]),
            ({}, ["adapter=wide", "adapter.r=3"]),
            ({}, ["adapter={name: wide, r: 3}"]),
        ],
    )
    def test_an_adapter_asked_for_holds_for_all(self, toys: Path, options: dict[str, Any], sets: list[str]) -> None:
        first, other = self.alongside("blue", *sets, options=options)
        assert (first.adapter.options["r"], first.adapter.name) == (3, "wide")
        assert (other.adapter.name, other.adapter.options) == ("wide", {"r": 3})

    def test_what_both_adapters_know_is_kept_equal(self, toys: Path) -> None:
        first, other = self.alongside("blue", "adapter.r=3", "adapter.width=2")
        assert first.adapter.options == {"r": 3, "deep": True, "width": 2}
        assert (other.adapter.name, other.adapter.options) == ("narrow", {"r": 3})

    def test_a_preset_cannot_change_the_budget(self, toys: Path, tmp_path: Path) -> None:
        recipe = tmp_path / "x.yaml"
        recipe.write_text("methods: {blue: {rounds: 99, training: {lr: 0.9}}}", encoding="utf-8")
        first, other = self.alongside("blue", recipe=str(recipe))
        assert (other.rounds, other.training.lr) == (first.rounds, 0.9)


class TestMistakes:
    @pytest.mark.parametrize(
        ("words", "sentence"),
        [
            (("rd",), "There is no method called 'rd'. Did you mean 'red'?"),
            (("red", "trainig.lr=1"), "There is no setting 'trainig'. Did you mean 'training'?"),
            (("red", "training.lrr=1"), "There is no setting 'training.lrr'. Did you mean 'lr'?"),
            (("red", "training.lr.x=1"), "The setting 'training.lr' has no parts; 'training.lr.x' cannot be set."),
            (
                ("red", "rounds=0"),
                "The setting 'rounds' cannot be 0 (from --set): input should be greater than or equal to 1.",
            ),
            (
                ("red", "stream.sampler=uniformly"),
                "The setting 'stream.sampler' cannot be 'uniformly' (from --set); it is one of: uniform, least_used.",
            ),
            (("red", "rounds"), "'rounds' is no setting; write it as key=value, such as training.lr=1e-3."),
            (("red", "rounds={"), "Not readable as YAML: the value of rounds, line 1, column 2"),
            (("red", "adapter=wyde"), "There is no adapter called 'wyde'. Did you mean 'wide'?"),
            (("red", "backbones.*=bigg"), "There is no backbone called 'bigg'. Did you mean 'big'?"),
            (
                ("red", "backbones.nroth=big"),
                "The setting 'backbones' names the client 'nroth', whom 'toy' does not have. Did you mean 'north'?",
            ),
            (("red", "benchmark.sise=2"), "There is no option 'sise' of the benchmark 'toy'. Did you mean 'size'?"),
            (("red", "adapter=3"), "The setting 'adapter' must be a name, or a name with options, not 3."),
            (
                ("red", "adapter={name: wide, r: 1, options: {r: 2}}"),
                "The option 'r' of 'adapter' is given twice, beside 'options' and in it.",
            ),
        ],
    )
    def test_settings(self, resolve: Resolve, words: tuple[str, ...], sentence: str) -> None:
        with pytest.raises(UserError) as caught:
            resolve(*words)
        assert str(caught.value).startswith(sentence)

    @pytest.mark.parametrize(
        ("text", "sentence"),
        [
            ("rounds: 3\nrounds: 4\n", "line 2, column 1: the key 'rounds' occurs twice."),
            ("rounds: [3", "line 1, column 11"),
            ("- rounds", "must hold settings by name, such as `rounds: 20`."),
            ("trainig: {lr: 1}\n", "There is no setting 'trainig' (from the recipe"),
            ("training: {lr: fast}\n", "cannot be 'fast' (from the recipe"),
            ("methods: [red]\n", "The setting 'methods' must hold settings by method."),
            ("benchmark: tooy\n", "There is no benchmark called 'tooy'. Did you mean 'toy'?"),
            ("benchmark: ./nowhere\n", "The benchmark folder "),
        ],
    )
    def test_recipes(self, resolve: Resolve, tmp_path: Path, text: str, sentence: str) -> None:
        recipe = tmp_path / "bad.yaml"
        recipe.write_text(text, encoding="utf-8")
        with pytest.raises(UserError) as caught:
            resolve("red", recipe=str(recipe))
        assert sentence in str(caught.value)

    def test_names_of_recipes(self, resolve: Resolve) -> None:
        with pytest.raises(UserError, match=r"There is no recipe called 'shrt'. Did you mean 'short'\?"):
            resolve("red", recipe="shrt")
        with pytest.raises(UserError, match=r"The recipe ./none.yaml does not exist."):
            resolve("red", recipe="./none.yaml")

    def test_nothing_named(self, resolve: Resolve) -> None:
        with pytest.raises(UserError, match="No method is named; name one with --plugin"):
            resolve(None)

    def test_a_method_without_its_file(self, publish: Callable[..., Path], toys: Path) -> None:
        publish("empty", {"methods": {"hollow": "empty"}}, {"empty/__init__.py": ""})
        with pytest.raises(UserError, match=r"method 'hollow' of package empty 1.0 has no default.yaml"):
            Resolver(PluginManager()).resolve(Request(method="hollow", benchmark="toy"))

    def test_a_method_that_lacks_a_component(self, publish: Callable[..., Path], toys: Path) -> None:
        publish(
            "partial", {"methods": {"partial": "partial"}}, {"partial/default.yaml": "objective: goal\nadapter: wide\n"}
        )
        with pytest.raises(UserError, match="The setting 'aggregator' is missing"):
            Resolver(PluginManager()).resolve(Request(method="partial", benchmark="toy"))


@pytest.mark.parametrize("method", sorted(available("method")))
def test_every_method_resolves_on_the_default_benchmark(method: str) -> None:
    config = Resolver(PluginManager()).resolve(Request(method=method))
    assert config.method == method
    assert RunConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize("recipe", sorted(recipes()))
def test_every_recipe_resolves(recipe: str) -> None:
    for file in recipes()[recipe]:
        if {"rows", "grid"} & set(read(file)):
            continue  # a table: each of its rows has a test of its own
        method = None if "method" in read(file) else next(iter(available("method")))
        assert Resolver(PluginManager()).resolve(Request(method=method, recipe=str(file)))
