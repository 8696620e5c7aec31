"""What a command imports: a listing must not wait for torch."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "deepspeed", "peft", "datasets", "sklearn", "scipy", "numpy", "PIL", "tensorboard")
PROBE = """
import contextlib, io, json, sys
with contextlib.redirect_stdout(io.StringIO()):
    {code}
print(json.dumps(sorted(name for name in {heavy!r} if name in sys.modules)))
"""
MAIN = "from pfl_platform.cli import main; assert main({words!r}) == 0"


def heavy_after(code: str) -> list[str]:
    probe = PROBE.format(code=code, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout)
    return found


def test_the_probe_sees_a_heavy_import() -> None:
    assert "torch" in heavy_after("import torch")


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["run", "--help"],
        ["list", "plugins"],
        ["list", "benchmarks", "--json"],
        ["list", "backbones"],
        ["list", "adapters"],
        ["list", "recipes"],
        ["show", "sft"],
        ["show", "pqlora"],
    ],
    ids=" ".join,
)
def test_light_commands(words: list[str]) -> None:
    assert heavy_after(MAIN.format(words=words)) == []


@pytest.mark.parametrize(
    "module", ["pfl_platform", "pfl_platform.plugins", "pfl_platform.recipes", "pfl_platform.config"]
)
def test_light_modules(module: str) -> None:
    assert heavy_after(f"import {module}") == []


def test_deepspeed_is_required_but_not_imported_with_everything_else() -> None:
    code = "import torch, peft, transformers, pfl_platform.federation.session, pfl_platform.engines.inprocess"
    assert "deepspeed" not in heavy_after(code)
