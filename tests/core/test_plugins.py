"""Finding, loading and asking plugins, with packages that are made up on the spot."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import BaseModel

from pfl_platform import hookimpl, hookspecs
from pfl_platform.errors import UserError
from pfl_platform.hookspecs import KINDS
from pfl_platform.plugins import PluginManager, _hook_names, available, default, find, locate

Publish = Callable[..., Path]

SCALES = '''
"""Adapters that only scale."""
from typing import Literal
from pydantic import BaseModel, Field
from pfl_platform import hookimpl

class Inner(BaseModel, extra="forbid"):
    depth: int = 1

class Config(BaseModel, extra="forbid"):
    factor: float = Field(2.0, gt=0)
    side: Literal["left", "right"] = "left"
    inner: Inner = Inner()

@hookimpl
def pfl_make_adapter(name, options):
    return ("scale", Config(**options).factor) if name == "scale" else None
'''

HOOK = "from pfl_platform import hookimpl\n@hookimpl\ndef pfl_make_{kind}({arguments}):\n    {body}\n"


@pytest.fixture
def scales(publish: Publish) -> None:
    publish(
        "scale-plugins", {"adapters": {"scale": "scale_plugin", "ghost": "scale_plugin"}}, {"scale_plugin.py": SCALES}
    )


@pytest.mark.usefixtures("scales")
class TestDiscovery:
    def test_metadata_are_read_and_nothing_is_imported(self) -> None:
        plugin = available("adapter")["scale"]
        assert (plugin.package, plugin.version, plugin.module) == ("scale-plugins", "1.0", "scale_plugin")
        assert plugin.summary == "Adapters that only scale."
        assert "scale_plugin" not in sys.modules

    def test_names_are_sorted(self) -> None:
        assert list(available("adapter")) == sorted(available("adapter"))
        assert {"ghost", "scale"} <= set(available("adapter"))

    def test_only_the_announcing_module_is_imported(self, publish: Publish) -> None:
        publish("bystander", {"adapters": {"other": "bystander_plugin"}}, {"bystander_plugin.py": "1 / 0"})
        assert PluginManager().make("adapter", "scale", {"factor": 3}) == ("scale", 3.0)
        assert "bystander_plugin" not in sys.modules

    def test_two_packages_with_one_name_are_refused(self, publish: Publish) -> None:
        publish("rival", {"adapters": {"scale": "rival"}}, {}, version="0.3")
        with pytest.raises(UserError, match=r"Two packages announce the adapter 'scale': .*; uninstall one") as caught:
            find("adapter", "scale")
        assert "scale-plugins 1.0" in str(caught.value)
        assert "rival 0.3" in str(caught.value)
        assert "none" in available("aggregator")  # other kinds do not suffer

    def test_mistyped_names_get_the_nearest(self) -> None:
        with pytest.raises(UserError, match=r"There is no adapter called 'scael'. Did you mean 'scale'\?"):
            PluginManager().make("adapter", "scael", {})
        with pytest.raises(UserError, match=r"'adaptor' is no kind of plugin. Did you mean 'adapter'\?"):
            available("adaptor")


@pytest.mark.usefixtures("scales")
class TestOptions:
    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            ({"factr": 1}, "There is no option 'factr' of the adapter 'scale'. Did you mean 'factor'?"),
            (
                {"factor": "wide"},
                "The option 'factor' of the adapter 'scale' cannot be 'wide': input should be a valid number, "
                "unable to parse string as a number.",
            ),
            (
                {"factor": -1},
                "The option 'factor' of the adapter 'scale' cannot be -1: input should be greater than 0.",
            ),
            (
                {"side": "lef"},
                "The option 'side' of the adapter 'scale' cannot be 'lef'; it is one of: left, right.",
            ),
            ({"inner": {"dept": 2}}, "There is no option 'inner.dept' of the adapter 'scale'. Did you mean 'depth'?"),
        ],
    )
    def test_bad_options_are_one_sentence(self, options: dict, sentence: str) -> None:
        with pytest.raises(UserError) as caught:
            PluginManager().make("adapter", "scale", options)
        assert str(caught.value) == sentence

    def test_the_model_of_the_options_is_found(self) -> None:
        model = PluginManager().options("adapter", "scale")
        assert model is not None
        assert list(model.model_fields) == ["factor", "side", "inner"]

    def test_models_of_the_same_name_are_told_apart(self, publish: Publish) -> None:
        base = "from pydantic import BaseModel\nclass Config(BaseModel, extra='forbid'):\n    a: int = 1\n"
        more = (
            "from pfl_platform import hookimpl\nfrom twin_base import Config as Base\n"
            "class Config(Base):\n    b: int = 2\n"
            + HOOK.format(kind="adapter", arguments="name, options", body="return Config(**options)").split("\n", 1)[1]
        )
        publish("twin", {"adapters": {"twin": "twin_plugin"}}, {"twin_base.py": base, "twin_plugin.py": more})
        model = PluginManager().options("adapter", "twin")
        assert model is not None
        assert list(model.model_fields) == ["a", "b"]

    def test_a_refusal_in_a_plugins_own_words_still_shows_the_model(self, publish: Publish) -> None:
        code = SCALES + (
            "\n@hookimpl\ndef pfl_make_metric(name, options):\n    from pfl_platform import UserError\n"
            "    try:\n        Config(**options)\n    except ValueError:\n        raise UserError('no') from None\n"
        )
        publish("own-words", {"metrics": {"own": "own_words"}}, {"own_words.py": code})
        model = PluginManager().options("metric", "own")
        assert model is not None
        assert model.__name__ == "Config"


class TestBrokenPlugins:
    def test_a_hook_that_does_not_answer(self, scales: None) -> None:
        with pytest.raises(
            UserError, match=r"package scale-plugins 1.0 cannot be made: .* does not answer to that name"
        ):
            PluginManager().make("adapter", "ghost", {})

    @pytest.mark.parametrize(
        ("code", "cause"),
        [
            ("import no_such_package_here", "ModuleNotFoundError: No module named 'no_such_package_here'"),
            ("1 / 0", "ZeroDivisionError: division by zero"),
            ("def f(:", "SyntaxError"),
        ],
    )
    def test_an_import_that_fails(self, publish: Publish, code: str, cause: str) -> None:
        publish("broken", {"metrics": {"bad": "broken_plugin"}}, {"broken_plugin.py": code})
        with pytest.raises(UserError, match=r"metric 'bad' of package broken 1\.0 cannot be loaded") as caught:
            PluginManager().make("metric", "bad", {})
        assert cause in str(caught.value)

    def test_an_import_that_fails_inside_the_hook(self, publish: Publish) -> None:
        code = HOOK.format(kind="metric", arguments="name, options", body="import no_such_one")
        publish("lazy", {"metrics": {"late": "lazy_plugin"}}, {"lazy_plugin.py": code})
        with pytest.raises(
            UserError, match=r"metric 'late' cannot be loaded: lazy_plugin: No module named 'no_such_one'"
        ):
            PluginManager().make("metric", "late", {})

    def test_a_mistyped_hook(self, publish: Publish) -> None:
        code = HOOK.format(kind="metrik", arguments="name, options", body="return 1")
        publish("typo", {"metrics": {"typo": "typo_plugin"}}, {"typo_plugin.py": code})
        with pytest.raises(UserError, match=r"unknown hook 'pfl_make_metrik'.* Did you mean 'pfl_make_metric'\?"):
            PluginManager().make("metric", "typo", {})

    def test_a_mistyped_argument(self, publish: Publish) -> None:
        code = HOOK.format(kind="metric", arguments="nam, options", body="return 1")
        publish("wrong-argument", {"metrics": {"arg": "arg_plugin"}}, {"arg_plugin.py": code})
        with pytest.raises(
            UserError, match=r"metric 'arg' of package wrong-argument 1.0 has a hook that does not fit.*nam"
        ):
            PluginManager().make("metric", "arg", {})

    def test_an_alias_is_known_only_to_its_plugin(self, publish: Publish) -> None:
        code = (
            "from pfl_platform import hookimpl\n@hookimpl\ndef pfl_make_backbone(name, options):\n"
            "    return 'loaded' if name in ('plain', 'hub/id') else None\n"
        )
        publish("aliases", {"backbones": {"plain": "alias_plugin", "aaa": "gone_plugin"}}, {"alias_plugin.py": code})
        assert PluginManager().make("backbone", "hub/id", {}) == "loaded"


class TestGivenModules:
    def test_a_registered_module_is_asked_first(self, scales: None) -> None:
        module = types.ModuleType("given")

        @hookimpl
        def pfl_make_adapter(name: str) -> str | None:
            return "given" if name in {"scale", "notebook"} else None

        module.pfl_make_adapter = pfl_make_adapter  # type: ignore[attr-defined]
        manager = PluginManager()
        manager.register(module)
        assert manager.make("adapter", "scale", {}) == "given"
        assert manager.make("adapter", "notebook", {}) == "given"
        assert PluginManager().make("adapter", "scale", {}) == ("scale", 2.0)


class TestHookspecs:
    def test_there_is_one_documented_hook_per_kind_but_methods(self) -> None:
        assert {name.removeprefix("pfl_make_") for name in _hook_names()} == set(KINDS) - {"method"}
        for name in _hook_names():
            assert "Entry points: `pfl_platform." in (getattr(hookspecs, name).__doc__ or ""), name

    def test_a_method_is_not_made(self) -> None:
        with pytest.raises(UserError, match="not made by a hook"):
            PluginManager().make("method", next(iter(available("method"))), {})

    @pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "method"])
    def test_every_hook_is_called_with_name_and_options(self, kind: str, publish: Publish) -> None:
        code = HOOK.format(kind=kind, arguments="name, options", body="return name, dict(options)")
        publish("echo", {f"{kind}s": {"echo": "echo_plugin"}}, {"echo_plugin.py": code})
        assert PluginManager().make(kind, "echo", {"a": 1}) == ("echo", {"a": 1})


class TestInTree:
    def test_every_announced_name_has_a_summary(self) -> None:
        silent = [str(plugin) for kind in KINDS for plugin in available(kind).values() if not plugin.summary]
        assert silent == []

    @pytest.mark.parametrize("kind", ["adapter", "objective", "aggregator", "benchmark", "metric"])
    def test_every_component_forbids_unknown_options(self, kind: str) -> None:
        manager = PluginManager()
        for plugin in available(kind).values():
            model = manager.options(kind, plugin.name)
            assert model is not None, plugin
            assert issubclass(model, BaseModel)
            with pytest.raises(UserError, match="no option 'no_such_option'"):
                manager.make(kind, plugin.name, {"no_such_option": 1})

    def test_the_defaults(self) -> None:
        assert default("benchmark").kind == "benchmark"
        assert default("benchmark-from-path").kind == "benchmark"
        assert default("local-training", "method").kind == "method"
        with pytest.raises(UserError, match="No installed package announces a default 'lunch'"):
            default("lunch")


def test_two_defaults_are_refused(publish: Publish) -> None:
    publish("other-default", {"defaults": {"benchmark": "whatever"}}, {})
    with pytest.raises(UserError, match="other-default and pfl-platform both announce a default 'benchmark'"):
        default("benchmark")


def test_locate_finds_packages_modules_and_namespaces(publish: Publish) -> None:
    site = publish("files", {}, {"one.py": "", "pack/__init__.py": "1 / 0", "pack/part.py": "", "bare/inner/x.py": ""})
    assert locate("one") == site / "one.py"
    assert locate("pack") == site / "pack" / "__init__.py"
    assert locate("pack.part") == site / "pack" / "part.py"
    assert locate("bare.inner.x") == site / "bare" / "inner" / "x.py"
    assert locate("bare.inner") == site / "bare" / "inner" / "__init__.py"
    assert locate("pack.none") is None
