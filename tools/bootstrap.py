"""Makes the virtual environment that the Makefile works in. Needs Python 3.11 or newer and pip, nothing else.

    python3 tools/bootstrap.py .venv

torch comes first, because its build depends on the machine: with an NVIDIA GPU the ordinary one, without a GPU a
CPU build, which brings no CUDA packages (gigabytes). Everything else follows at the versions in `constraints.txt`.

Environment: TORCH replaces the requirement for torch (`TORCH="torch==2.13.0"` accepts whatever pip finds);
TORCH_INDEX is the address of a package index that torch is taken from; all of pip's own variables are honoured.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints.txt"
OLDEST = (3, 11)
CUDA_PREFIXES = ("nvidia-", "cuda-", "triton")


class SetupError(Exception):
    """One sentence on what is wrong and what to do."""


def say(sentence: str) -> None:
    print(f"set-up: {sentence}", flush=True)


def has_gpu() -> bool:
    """Whether an NVIDIA driver answers and knows a GPU."""
    if shutil.which("nvidia-smi") is None:
        return False
    try:
        answer = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return answer.returncode == 0 and "GPU " in answer.stdout


def pinned(package: str) -> str:
    """The line of `constraints.txt` for a package.

    >>> pinned("torch").startswith("torch==")
    True
    """
    for line in CONSTRAINTS.read_text(encoding="utf-8").splitlines():
        if line.partition("==")[0].lower() == package:
            return line.strip()
    raise SetupError(f"{CONSTRAINTS.name} does not pin {package}.")


def cuda_packages(report: str) -> list[str]:
    """Names of CUDA packages among those that pip would install, from its JSON report.

    >>> cuda_packages('{"install": [{"metadata": {"name": "torch"}}, {"metadata": {"name": "nvidia-cublas"}}]}')
    ['nvidia-cublas']
    """
    names = [item["metadata"]["name"].lower().replace("_", "-") for item in json.loads(report)["install"]]
    return sorted(name for name in names if name.startswith(CUDA_PREFIXES))


class Environment:
    """A virtual environment and its pip."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / "bin" / "python"

    def create(self) -> None:
        """Makes it when it is not there. Where Python comes without `ensurepip`, the outer pip puts a pip into it."""
        if self.python.exists() and self._works("import pip"):
            return
        say(f"creating {self.folder}")
        made = subprocess.run(
            [sys.executable, "-m", "venv", str(self.folder)], capture_output=True, text=True, check=False
        )
        if made.returncode == 0:
            return
        outer = [sys.executable, "-m", "pip", "--python", str(self.python), "install", "--quiet", "pip"]
        bare = subprocess.run(
            [sys.executable, "-m", "venv", "--clear", "--without-pip", str(self.folder)],
            capture_output=True,
            check=False,
        )
        if bare.returncode or subprocess.run(outer, check=False).returncode:
            said = made.stderr.strip() or made.stdout.strip()
            raise SetupError(
                f"Python cannot make a virtual environment in {self.folder} ({said}); "
                "install your system's package for venv (often called python3-venv)."
            )

    def pip(self, *arguments: str, quiet_failure: bool = False) -> subprocess.CompletedProcess[str]:
        """Runs pip; shows what it says only when it fails."""
        command = [str(self.python), "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        if done.returncode and not quiet_failure:
            sys.stderr.write(done.stdout + done.stderr)
            raise SetupError(f"pip failed; its words stand above (pip {' '.join(arguments)}).")
        return done

    def install(self, *requirements: str) -> None:
        """Installs at the pinned versions. Packages that come as source are built with what is already there: a
        separate build environment would fetch torch a second time."""
        self.pip("install", "--quiet", "--no-build-isolation", "--constraint", str(CONSTRAINTS), *requirements)

    def _works(self, code: str) -> bool:
        done = subprocess.run([str(self.python), "-c", code], capture_output=True, check=False, cwd=self.folder)
        return done.returncode == 0

    def has_torch(self, requirement: str, gpu: bool) -> bool:
        """Whether the right build is there. Without a GPU it must be one that was built without CUDA."""
        version = requirement.partition("==")[2]
        right = f"torch.__version__.split('+')[0] == {version!r}" if version else "True"
        return self._works(f"import torch; assert {right} and ({gpu} or torch.version.cuda is None)")

    def install_torch(self) -> None:
        """Installs torch in the build that fits the machine; see the module's docstring."""
        wanted = os.environ.get("TORCH") or pinned("torch")
        index = ["--index-url", os.environ["TORCH_INDEX"]] if os.environ.get("TORCH_INDEX") else []
        gpu = has_gpu()
        if os.environ.get("TORCH") is None and self.has_torch(wanted, gpu):
            return
        if gpu or os.environ.get("TORCH"):
            say(f"installing {wanted}" + (" for the GPU of this machine" if gpu else ""))
            self.pip("install", "--quiet", *index, wanted)
        else:
            say(f"installing {wanted}, CPU build, as this machine has no NVIDIA GPU (minutes, the first time)")
            self._install_cpu_torch(wanted, index)
        if not self._works("import torch"):
            raise SetupError(
                f"{wanted} was installed into {self.folder} but cannot be imported; remove that folder and try again."
            )

    def _install_cpu_torch(self, wanted: str, index: Sequence[str]) -> None:
        if self.pip("install", "--quiet", *index, f"{wanted}+cpu", quiet_failure=True).returncode == 0:
            return
        plan = self.pip("install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-", *index, wanted)
        cuda = cuda_packages(plan.stdout)
        if cuda:
            raise SetupError(
                f"This machine has no NVIDIA GPU, and pip's package index has {wanted} only in its CUDA build "
                f"(with {len(cuda)} packages such as {cuda[0]}); name an index that has the CPU build with "
                "TORCH_INDEX=<address> (PyTorch's installation page has it), or accept the CUDA build with "
                f"TORCH={wanted}."
            )
        self.pip("install", "--quiet", *index, wanted)


def main(folder: Path) -> None:
    if sys.version_info < OLDEST:
        have, need = (".".join(map(str, version[:2])) for version in (sys.version_info, OLDEST))
        raise SetupError(
            f"Python {need} or newer is needed, and {sys.executable} is {have}; name one with PYTHON=<path>."
        )
    environment = Environment(folder.absolute())
    environment.create()
    environment.install_torch()
    say("installing the other packages")
    environment.install("setuptools", "hatchling")
    environment.install("--editable", f"{ROOT}[dev]")
    say(f"{folder} is ready")


if __name__ == "__main__":
    try:
        parser = argparse.ArgumentParser(description="Makes the virtual environment that the Makefile works in.")
        parser.add_argument("folder", type=Path, nargs="?", default=Path(".venv"), help="of the environment")
        main(parser.parse_args().folder)
    except SetupError as error:
        sys.exit(f"error: {error}")
