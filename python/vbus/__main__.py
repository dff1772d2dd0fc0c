"""`python -m vbus` is `vbus`."""

import sys

from .cli import main

sys.exit(main())
