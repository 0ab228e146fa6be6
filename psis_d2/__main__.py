"""``python -m psis_d2`` is ``psis-d2``."""

from psis_d2.cli import main

if __name__ == "__main__":
    main()
