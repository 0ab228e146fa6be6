"""The command ``psis-d2``: one module of this package is one subcommand.

A subcommand's module holds its help text (the docstring), ``add_arguments(parser)`` and
``run(args)``. It is a thin face: the work is a function elsewhere in the package, which a program
can call in the same way. The module is found by its name; ``make_shape_priors.py`` is
``psis-d2 make-shape-priors``. Modules whose name begins with an underscore are shared helpers.
"""

import argparse
import importlib
import pkgutil

from psis_d2 import __version__
from psis_d2.errors import exit_on_user_error


def subcommands() -> dict[str, str]:
    """Names of all subcommands and the modules that they are."""
    return {
        module.name.replace("_", "-"): f"{__name__}.{module.name}"
        for module in pkgutil.iter_modules(__path__)
        if not module.name.startswith("_")
    }


def main(argv: list[str] | None = None) -> None:
    """Run a command line; bad input ends it with one sentence and exit status 2."""
    modules = subcommands()
    parser = argparse.ArgumentParser(
        prog="psis-d2",
        description="Partially supervised instance segmentation: boxes for all, masks for some.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="psis-d2 COMMAND --help says more about each.",
    )
    parser.add_argument("--version", action="version", version=f"psis_d2 {__version__}")
    parser.add_argument("command", choices=list(modules), metavar="COMMAND", help=_listing(modules))
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    chosen = parser.parse_args(argv)
    module = importlib.import_module(modules[chosen.command])
    command = argparse.ArgumentParser(
        prog=f"psis-d2 {chosen.command}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(command)
    with exit_on_user_error():
        module.run(command.parse_args(chosen.arguments))


def _listing(modules: dict[str, str]) -> str:
    return ", ".join(modules)
