"""Finding plugins by their entry points, and asking their hooks.

`available` and `find` read the metadata of installed packages and import nothing, so a listing is quick and one
broken plugin harms nobody else. `PluginManager.make` imports the one module that announces a name, checks its hooks
and asks it.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pluggy
import yaml
from pydantic import BaseModel, ValidationError

from pfl_platform import hookspecs
from pfl_platform.errors import UserError, nearest
from pfl_platform.hookspecs import KINDS, PROJECT
from pfl_platform.validation import explain

if TYPE_CHECKING:
    from pfl_platform.data import Benchmark
    from pfl_platform.inventory import Inventory

DEFAULTS = "pfl_platform.defaults"
"""Entry-point group of what runs when the user names nothing. The name is a role (`benchmark`: the benchmark of a
run that names none; `benchmark-from-path`: the one that reads a folder, given to it as option `path`;
`local-training`: the method whose clients train alone), the value the module of a plugin."""


COMMANDS = "pfl_platform.commands"
"""Entry-point group of commands beside the platform's own: a name, and `module:attribute` of a `typer.Typer`."""


def commands() -> Mapping[str, Callable[[], Any]]:
    """What loads each announced command; nothing is imported before."""
    return {point.name: point.load for point in entry_points(group=COMMANDS)}


@dataclass(frozen=True)
class Plugin:
    """One announced name: what the metadata of an installed package say of it."""

    kind: str
    name: str
    module: str
    package: str
    version: str

    @property
    def folder(self) -> Path | None:
        """Where its files lie (README, `default.yaml`, `recipes/`), found without importing it."""
        path = locate(self.module)
        return path.parent if path is not None else None

    @property
    def about(self) -> Mapping[str, Any]:
        """What its package wrote of it as data: a method's `default.yaml`, or `cards/<name>.yaml` beside the module."""
        folder = self.folder
        if folder is None:
            return {}
        file = folder / ("default.yaml" if self.kind == "method" else f"cards/{self.name}.yaml")
        return _mapping_in(file) if file.is_file() else {}

    @property
    def summary(self) -> str:
        """One sentence, read without an import: `summary` or `notes` of `about`, else the first docstring line of
        `<name>.py` beside the announced module, else of that module itself."""
        about = self.about
        if written := str(about.get("summary") or about.get("notes") or ""):
            return re.split(r"(?<=\.) ", " ".join(written.split()))[0]
        folder, path = self.folder, locate(self.module)
        if folder is None or path is None:
            return ""
        own = folder / f"{self.name.replace('-', '_')}.py"
        return _docstring(own if own.is_file() else path).strip().split("\n")[0]

    def __str__(self) -> str:
        return f"{self.kind} '{self.name}' of package {self.package} {self.version}"


def locate(module: str) -> Path | None:
    """The source file of a module (of a package: its `__init__.py`, there or not), without importing it or its parents.

    >>> locate("pfl_platform.plugins").name
    'plugins.py'
    >>> locate("no_such_package.part") is None
    True
    """
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None:
        return None
    if not rest and not spec.submodule_search_locations:
        return Path(spec.origin) if spec.origin else None
    for location in spec.submodule_search_locations or ():
        path = Path(location, *rest)
        if path.is_dir():
            return path / "__init__.py"
        if path.with_name(path.name + ".py").is_file():
            return path.with_name(path.name + ".py")
    return None


def _docstring(path: Path) -> str:
    try:
        return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    except (OSError, SyntaxError, UnicodeDecodeError):
        return ""


def _mapping_in(file: Path) -> Mapping[str, Any]:
    """A YAML file for a listing, which must not fail when one of many is bad."""
    try:
        value = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return value if isinstance(value, dict) else {}


@cache
def _announced(group: str) -> tuple[Plugin, ...]:
    kind = next((kind for kind, name in KINDS.items() if name == group), "")
    return tuple(
        Plugin(
            kind,
            entry.name,
            entry.value,
            entry.dist.name if entry.dist else "?",
            entry.dist.version if entry.dist else "",
        )
        for entry in entry_points(group=group)
    )


def available(kind: str) -> dict[str, Plugin]:
    """All plugins of a kind, by name, sorted. Imports none of them.

    Errors: an unknown kind; a name that two packages announce (which one would run is nobody's guess).
    """
    if kind not in KINDS:
        raise UserError(f"'{kind}' is no kind of plugin." + nearest(kind, KINDS))
    found: dict[str, Plugin] = {}
    for plugin in sorted(_announced(KINDS[kind]), key=lambda plugin: plugin.name):
        if (other := found.get(plugin.name)) is not None:
            raise UserError(
                f"Two packages announce the {kind} '{plugin.name}': {other.package} {other.version} and "
                f"{plugin.package} {plugin.version}; uninstall one of them."
            )
        found[plugin.name] = plugin
    return found


def unadorned(backbone: str) -> str:
    """The name under which a backbone is announced: what stands behind an `@` says in which form it is loaded.

    >>> unadorned("a-model@4bit"), unadorned("a-model")
    ('a-model', 'a-model')
    """
    return backbone.partition("@")[0]


def find(kind: str, name: str) -> Plugin:
    """The plugin of that kind and name; an unknown name is a `UserError` with the nearest known one."""
    known = available(kind)
    if name not in known:
        raise UserError(f"There is no {kind} called '{name}'." + nearest(name, known))
    return known[name]


def default(role: str, kind: str = "benchmark") -> Plugin:
    """The plugin that an installed package announces for a role (see `DEFAULTS`)."""
    announced = [entry for entry in _announced(DEFAULTS) if entry.name == role]
    if not announced:
        raise UserError(f"No installed package announces a default '{role}'; name a {kind}.")
    if len(announced) > 1:
        packages = " and ".join(sorted(entry.package for entry in announced))
        raise UserError(f"The packages {packages} both announce a default '{role}'; name a {kind}.")
    plugins = available(kind).values()
    for plugin in plugins:
        if plugin.module == announced[0].module:
            return plugin
    raise UserError(
        f"Package {announced[0].package} announces {announced[0].module} as default '{role}', which is no {kind}."
    )


class PluginManager:
    """Loads plugins one by one and asks their hooks.

    >>> PluginManager().make("metric", "exakt", {})
    Traceback (most recent call last):
    ...
    pfl_platform.errors.UserError: There is no metric called 'exakt'. Did you mean 'exact'?
    """

    def __init__(self) -> None:
        self._hooks = pluggy.PluginManager(PROJECT)
        self._hooks.add_hookspecs(hookspecs)
        self._given: list[ModuleType] = []

    def register(self, module: ModuleType) -> None:
        """Adds a module that no entry point announces (a test's, a notebook's). Such modules are asked first, the
        latest before the others."""
        self._check(module, f"The module {module.__name__}")
        self._given.append(module)

    def make(self, kind: str, name: str, options: Mapping[str, Any]) -> Any:
        """The object that the plugin of this kind and name builds from `options`.

        Only the announcing module is imported and asked; for a name that nobody announces, all of the kind are,
        because it may be an alias. Errors (all `UserError`): unknown name; a plugin that cannot be imported, has a
        hook the platform does not know, or does not answer to the name it announced; a bad option.
        """
        for module in reversed(self._given):
            made = self._ask(kind, name, options, module)
            if made is not None:
                return made
        if name not in available(kind) and (made := self._ask_all(kind, name, options)) is not None:
            return made
        plugin = find(kind, name)
        made = self._ask(kind, name, options, self._load(plugin))
        if made is None:
            raise UserError(
                f"The {plugin} cannot be made: the hook pfl_make_{kind} in {plugin.module} "
                "does not answer to that name."
            )
        return made

    def options(self, kind: str, name: str) -> type[BaseModel] | None:
        """The pydantic model that checks a plugin's options; None when it uses none.

        It is found by asking for an option that cannot exist: the plugin's refusal names its model.
        """
        plugin = find(kind, name)
        module = self._load(plugin)
        try:
            self._call(kind, name, {"\x00": None}, module)
        except Exception as error:
            refusal: BaseException | None = error
            while refusal is not None and not isinstance(refusal, ValidationError):
                refusal = refusal.__context__  # a plugin may have put it into words of its own
            return _model(refusal, module) if refusal is not None else None
        return None

    def check_data(self, name: str, options: Mapping[str, Any]) -> Inventory | None:
        """What the benchmark of this name says of its files; None when it says nothing."""
        plugin = find("benchmark", name)
        module = self._load(plugin)
        found: Inventory | None = self._ask("benchmark", name, options, module, hook="pfl_check_data")
        return found

    def outline(self, name: str, options: Mapping[str, Any]) -> Benchmark:
        """The benchmark of this name without its files, where it says what they hold; else the benchmark itself."""
        plugin = find("benchmark", name)
        module = self._load(plugin)
        found: Benchmark | None = self._ask("benchmark", name, options, module, hook="pfl_outline_benchmark")
        return found if found is not None else self.make("benchmark", name, options)

    def _ask_all(self, kind: str, name: str, options: Mapping[str, Any]) -> Any:
        """Asks every plugin of a kind for a name that none announces: an alias, such as a model's id on a hub."""
        for module in dict.fromkeys(plugin.module for plugin in available(kind).values()):
            plugin = next(plugin for plugin in available(kind).values() if plugin.module == module)
            try:
                loaded = self._load(plugin)
            except UserError:  # a broken plugin that was not asked for
                continue
            if (made := self._ask(kind, name, options, loaded)) is not None:
                return made
        return None

    def _load(self, plugin: Plugin) -> ModuleType:
        try:
            module = importlib.import_module(plugin.module)
        except Exception as error:
            raise UserError(f"The {plugin} cannot be loaded: {type(error).__name__}: {error}.") from error
        self._check(module, f"The {plugin}")
        return module

    def _check(self, module: ModuleType, who: str) -> None:
        """Registers a module once, and refuses hooks that would never be called."""
        if self._hooks.is_registered(module):
            return
        try:
            self._hooks.register(module)
            self._hooks.check_pending()
        except pluggy.PluginValidationError as error:
            if self._hooks.is_registered(module):
                self._hooks.unregister(module)
            unknown = [name for name in vars(module) if name.startswith("pfl_make_") and not hasattr(hookspecs, name)]
            hint = nearest(unknown[0], _hook_names()) if unknown else ""
            raise UserError(f"{who} has a hook that does not fit: {' '.join(str(error).split())}.{hint}") from error

    def _call(
        self, kind: str, name: str, options: Mapping[str, Any], module: ModuleType, hook: str | None = None
    ) -> Any:
        if f"pfl_make_{kind}" not in _hook_names():
            raise UserError(f"A {kind} is not made by a hook; its parts are.")
        others = [plugin for plugin in self._hooks.get_plugins() if plugin is not module]
        caller = self._hooks.subset_hook_caller(hook or f"pfl_make_{kind}", remove_plugins=others)
        return caller(name=name, options=options)

    def _ask(
        self, kind: str, name: str, options: Mapping[str, Any], module: ModuleType, hook: str | None = None
    ) -> Any:
        try:
            return self._call(kind, name, options, module, hook)
        except ValidationError as error:
            raise UserError(
                explain(error, _model(error, module), noun="option", of=f" of the {kind} '{name}'")
            ) from None
        except ImportError as error:
            raise UserError(f"The {kind} '{name}' cannot be loaded: {module.__name__}: {error}.") from error


def _hook_names() -> Iterable[str]:
    return [name for name in vars(hookspecs) if name.startswith("pfl_make_")]


def _model(error: ValidationError, module: ModuleType) -> type[BaseModel] | None:
    """The model that raised `error`, by its title: one that the module defines, else one that it uses, else any in its
    package."""
    used = [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, BaseModel)]
    package = module.__name__.rpartition(".")[0]
    near = [model for model in _subclasses(BaseModel) if package and model.__module__.startswith(package)]
    for model in sorted((*used, *near), key=lambda model: model.__module__ != module.__name__):
        if (model.model_config.get("title") or model.__name__) == error.title:
            return model
    return None


def _subclasses(base: type[BaseModel]) -> Iterable[type[BaseModel]]:
    for model in base.__subclasses__():
        yield model
        yield from _subclasses(model)
