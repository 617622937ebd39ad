"""Run the command line by ``python -m vxpress``."""

from __future__ import annotations

import sys

from vxpress._cli import main

if __name__ == "__main__":
    sys.exit(main())
