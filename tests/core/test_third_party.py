"""A stranger's package: both wheels are built, installed outside the checkout, listed, run, and checked by the
contract kit.

The new environment takes the heavy packages from the one that runs the tests. Its own folder comes first on the
path, and the path files of the other are not followed, so that the platform can only be the wheel's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]
SMALL = [
    "--rounds=2", "--local-steps=2", "--seed=1", "--threads=1", "--set=training.batch_size=2",
    "--set=adapter.r=4",
    "--set=evaluation.items=2", "--set=evaluation.others=false", "--set=evaluation.every=2",
]  # fmt: skip


def checked(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, f"{' '.join(map(str, done.args))}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheels(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("wheels")
    for source in (checkout, checkout / "tests" / "third_party" / "pfl-median"):
        words = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)]
        checked(subprocess.run(words, capture_output=True, text=True, check=False))
    return {file.name.split("-")[0]: file for file in folder.glob("*.whl")}


@pytest.fixture(scope="module")
def outside(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs a program of a fresh environment that holds the two wheels, in a folder outside the checkout."""
    folder = tmp_path_factory.mktemp("outside")
    venv = folder / "venv"
    checked(
        subprocess.run(
            [sys.executable, "-m", "venv", "--without-pip", str(venv)], capture_output=True, text=True, check=False
        )
    )
    pip = [sys.executable, "-m", "pip", "--python", str(venv / "bin" / "python"), "install", "--quiet", "--no-deps"]
    checked(
        subprocess.run([*pip, "--no-index", *map(str, wheels.values())], capture_output=True, text=True, check=False)
    )
    paths = sysconfig.get_paths()
    (site,) = venv.glob("lib/python*/site-packages")
    (site / "zz-the-tests-own-packages.pth").write_text(f"{paths['purelib']}\n{paths['platlib']}\n", encoding="utf-8")
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}

    def run(program: str, *words: str) -> subprocess.CompletedProcess[str]:
        command = [str(venv / "bin" / program), *words]
        return subprocess.run(
            command,
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )

    return run


def test_the_wheel_holds_everything_that_is_not_code(wheels: dict[str, Path], checkout: Path) -> None:
    names = set(zipfile.ZipFile(wheels["pfl_platform"]).namelist())
    for root in ("platform", "plugins", "benchmarks", "model_zoo"):
        for file in (checkout / root).glob("pfl_*/**/*"):
            ignored = any(part.startswith(".") or part == "__pycache__" for part in file.parts) or file.suffix == ".pyc"
            if file.is_file() and not ignored:
                assert file.relative_to(checkout / root).as_posix() in names
    assert "pfl_platform/py.typed" in names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert not any(name.startswith(("platform/", "tests/", "tools/")) for name in names)


def test_the_wheels_are_what_is_imported(outside: Run, checkout: Path) -> None:
    code = (
        "import json, sys, pfl_platform, pfl_median, pfl_plugins.lora.plugin as lora;"
        "print(json.dumps([sys.prefix, pfl_platform.__file__, pfl_median.__file__, lora.__file__, *sys.path]))"
    )
    prefix, *files = json.loads(checked(outside("python", "-c", code)))
    assert all(file.startswith(prefix + os.sep) for file in files[:3])
    assert not any(Path(path).is_relative_to(checkout / root) for path in files for root in ("platform", "plugins"))


def test_the_stranger_is_listed_and_shown(outside: Run) -> None:
    rows = {row["name"]: row for row in json.loads(checked(outside("pfl-platform", "list", "plugins", "--json")))}
    assert (rows["median"]["package"], rows["median"]["version"]) == ("pfl-median", "0.2.0")
    assert rows["median"]["summary"].startswith("Clients fine-tune a global adapter")
    assert {"sft", "fedit", "fedmosaic"} <= set(rows)
    shown = checked(outside("pfl-platform", "show", "median"))
    assert "ICML 2018" in shown
    assert "beta, fraction left out at either end" in shown


def test_the_stranger_runs(outside: Run) -> None:
    checked(outside("pfl-platform", "run", "--plugin", "median", *SMALL, "--out", "run", "--quiet"))
    code = "import json; print(json.dumps(json.load(open('run/results.json'))))"
    assert json.loads(checked(outside("python", "-c", code)))
    assert "trim: 0.5" in checked(outside("pfl-platform", "show", "run"))


def test_the_strangers_aggregator_under_another_method(outside: Run) -> None:
    words = ["run", "--plugin", "fedit", "--set=aggregator=median", "--set=aggregator.trim=0.1", "--print-config"]
    assert "name: median\n  options:\n    trim: 0.1" in checked(outside("pfl-platform", *words))
    refused = outside("pfl-platform", "run", "--plugin", "median", "--set=aggregator.trmi=0.1", "--out", "never")
    assert refused.returncode == 2
    assert refused.stderr == "error: There is no option 'trmi' of the aggregator 'median'. Did you mean 'trim'?\n"


def test_the_strangers_own_examples(outside: Run) -> None:
    code = "import doctest, sys, pfl_median.aggregator as m; sys.exit(doctest.testmod(m).attempted != 1)"
    checked(outside("python", "-c", code))


def test_the_stranger_passes_the_contract_kit(outside: Run) -> None:
    checked(outside("python", "-m", "pfl_platform.testing", "median"))
