"""`python -m pfl_platform.testing METHOD [--backbones A,B] [--set key=value]`"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from pfl_platform.errors import UserError
from pfl_platform.testing.bench import Bench, two_backbones
from pfl_platform.testing.checks import run_checks


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m pfl_platform.testing", description="Checks a method's contract.")
    parser.add_argument("method", help="a method as `pfl-platform list plugins` shows it")
    parser.add_argument("--backbones", help="two backbones, A,B; default: the two smallest text backbones installed")
    parser.add_argument("--set", action="append", default=[], metavar="key=value", help="a setting, as for `run`")
    options = parser.parse_args()
    try:
        names = tuple(options.backbones.split(",")) if options.backbones else two_backbones()
        if len(names) != 2:
            raise UserError("--backbones takes two names, A,B.")
        with tempfile.TemporaryDirectory() as folder:
            return 0 if run_checks(Bench(options.method, Path(folder), (names[0], names[1]), options.set)) else 1
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
