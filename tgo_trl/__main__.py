"""`python -m tgo_trl` is `tgo-trl`."""

import sys

from .cli import main

sys.exit(main())
