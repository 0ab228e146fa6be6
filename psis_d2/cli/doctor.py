"""Say what is installed and built here, and how to fix what is wrong.

    psis-d2 doctor

Exits with 0 when nothing keeps psis_d2 from working, with 1 otherwise.
"""

import argparse

from psis_d2 import doctor


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """There are none."""


def run(args: argparse.Namespace) -> int:
    """Print the report. Returns the exit status."""
    return doctor.main()
