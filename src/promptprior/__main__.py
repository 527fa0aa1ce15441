"""`python -m promptprior`: the command line, for launchers that start modules (torchrun, accelerate)."""

import sys

from promptprior.cli import main

sys.exit(main())
