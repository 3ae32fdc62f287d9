"""`python -m raynn` is the command `raynn`."""

from __future__ import annotations

import sys

from raynn.cli import main

if __name__ == "__main__":
    sys.exit(main())
