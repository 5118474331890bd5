"""`python -m audiogen_hf` is the command `audiogen-hf`."""

import sys

from .cli import main

sys.exit(main())
