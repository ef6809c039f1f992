"""`python -m lamina`: the command `lamina`."""

import sys

from ._cli import main

sys.exit(main())
