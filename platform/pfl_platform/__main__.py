"""`python -m pfl_platform`: the command line, for launchers that start modules."""

import sys

from pfl_platform.cli import main

sys.exit(main())
