"""``python -m psis_d2`` is ``psis-d2``."""

import sys

from psis_d2.cli import main

if __name__ == "__main__":  # a process that this one starts imports it under another name
    sys.exit(main())
