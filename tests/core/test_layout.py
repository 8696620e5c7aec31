"""The layout: four source roots that are never packages themselves, and a file or entry point for whatever is
announced."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import pfl_platform
from pfl_platform import plugins
from pfl_platform.hookspecs import KINDS

ROOTS = {
    "platform": "pfl_platform",
    "plugins": "pfl_plugins",
    "benchmarks": "pfl_benchmarks",
    "model_zoo": "pfl_model_zoo",
}


@pytest.fixture(scope="module")
def project(checkout: Path) -> dict:
    return tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_standard_module_platform_is_not_shadowed_in_the_root_of_the_checkout(checkout: Path) -> None:
    code = "import platform, sys; print(platform.system(), platform.python_version(), hasattr(platform, '__path__'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=checkout, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["Linux" if sys.platform == "linux" else "Darwin", sys.version.split()[0], "False"]


def test_no_file_that_would_make_platform_importable(checkout: Path) -> None:
    assert [path.name for path in (checkout / "platform").glob("*.py")] == []
    assert [path for path in (checkout / "tests").rglob("__init__.py") if "third_party" not in path.parts] == []
    assert not (checkout / "tests" / "platform").exists()


@pytest.mark.parametrize(("root", "package"), ROOTS.items())
def test_each_root_holds_one_typed_package(checkout: Path, root: str, package: str) -> None:
    holds = {path.name for path in (checkout / root).iterdir() if path.name[0] not in "._" and path.suffix != ".md"}
    assert holds == {package}
    assert (checkout / root / package / "__init__.py").is_file()
    assert (checkout / root / package / "py.typed").is_file()


def test_both_lists_of_roots_in_the_project_file_agree(project: dict) -> None:
    hatch = project["tool"]["hatch"]["build"]
    assert hatch["dev-mode-dirs"] == list(ROOTS)
    assert hatch["targets"]["wheel"]["packages"] == [f"{root}/{package}" for root, package in ROOTS.items()]


def test_the_version_is_the_packages_own() -> None:
    assert plugins.available("metric")["exact"].version == pfl_platform.__version__


def test_every_entry_point_names_a_file_that_is_there(project: dict) -> None:
    groups = project["project"]["entry-points"]
    assert set(groups) - {plugins.DEFAULTS, plugins.COMMANDS} <= set(KINDS.values())
    for group, entries in groups.items():
        for name, module in entries.items():
            path = plugins.locate(module.partition(":")[0])
            assert path is not None, f"{group}: {name} = {module}"
            assert path.is_file(), f"{group}: {name} = {module}"


def test_the_installed_entry_points_are_those_of_the_project_file(project: dict) -> None:
    """Fails when a line was added and the project was not installed again: `make setup` does it."""
    for group, entries in project["project"]["entry-points"].items():
        installed = {entry.name: entry.module for entry in plugins._announced(group) if entry.package == "pfl-platform"}
        assert installed == entries, f"{group}: install the project again (make setup)"


def test_every_folder_of_a_plugin_has_its_entry_point(checkout: Path, project: dict) -> None:
    announced = {module for entries in project["project"]["entry-points"].values() for module in entries.values()}
    for pattern in ("plugins/pfl_plugins/*/plugin.py", "benchmarks/pfl_benchmarks/*/plugin.py"):
        for file in checkout.glob(pattern):
            assert ".".join(file.relative_to(checkout).with_suffix("").parts[1:]) in announced, file
    for file in checkout.glob("plugins/pfl_plugins/*/default.yaml"):
        assert f"pfl_plugins.{file.parent.name}" in announced, file


def test_every_yaml_file_of_the_packages_parses(checkout: Path) -> None:
    files = [file for root in ROOTS for file in (checkout / root).rglob("*.yaml")]
    assert files
    for file in files:
        assert isinstance(yaml.safe_load(file.read_text(encoding="utf-8")), dict), file


def test_no_file_is_longer_than_400_lines(checkout: Path) -> None:
    for root in (*ROOTS, "tools", "tests"):
        for file in (checkout / root).rglob("*.py"):
            assert len(file.read_text(encoding="utf-8").splitlines()) <= 400, file


def test_everything_that_is_required_is_pinned(checkout: Path, project: dict) -> None:
    lines = (checkout / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {line.partition("==")[0] for line in lines if "==" in line}
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line) for line in lines if line and line[0] != "#")
    wanted = [*project["project"]["dependencies"], *project["project"]["optional-dependencies"]["dev"]]
    for requirement in wanted:
        name = re.match(r"[A-Za-z0-9._-]+", requirement)
        assert name is not None
        assert name.group().lower().replace("_", "-") in pins, requirement
