"""The command ``psis-d2``: one module of this package is one subcommand.

A subcommand's module holds its help text (the docstring, whose first line is also its line in the
list of commands), ``add_arguments(parser)`` and ``run(args)``, which returns an exit status or
nothing. It is a thin face: the work is a function elsewhere in the package, which a program can
call in the same way. The module is found by its name; ``make_shape_priors.py`` is
``psis-d2 make-shape-priors``. Modules whose name begins with an underscore are shared helpers.

Nothing but the chosen module is imported, so that help and mistakes are answered at once.
"""

import argparse
import ast
import difflib
import importlib
import os
import pkgutil
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from psis_d2 import __version__
from psis_d2.errors import UserError, exit_on_user_error

_ABOUT = "Partially supervised instance segmentation: boxes for all objects, masks for some."


def subcommands() -> dict[str, str]:
    """Names of all subcommands and the modules that they are, sorted."""
    return {
        module.name.replace("_", "-"): f"{__name__}.{module.name}"
        for module in pkgutil.iter_modules(__path__)
        if not module.name.startswith("_")
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; bad input ends it with one sentence and exit status 2.

    Args:
        argv: the words behind ``psis-d2``; None = those that this process was called with.

    Returns:
        The exit status.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if hasattr(sys.stdout, "reconfigure"):  # names that the terminal's encoding lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview(subcommands()))
        return 0
    name, *arguments = words
    if name == "--version":
        print(f"psis-d2 {__version__}")
        return 0
    try:
        with exit_on_user_error():
            return run_command(name, arguments)
    except BrokenPipeError:  # whoever read our output, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's last flush
        return 1


def run_command(name: str, arguments: Sequence[str] = ()) -> int:
    """Run one subcommand.

    Args:
        name: such as ``make-shape-priors``.
        arguments: the words behind it.

    Returns:
        The exit status.

    Raises:
        UserError: there is no such command, it needs a package that is not installed, or it turns
            down its input.
    """
    modules = subcommands()
    if name not in modules:
        raise UserError(_unknown(name, modules))
    try:
        module = importlib.import_module(modules[name])
        parser = argparse.ArgumentParser(
            prog=f"psis-d2 {name}",
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(parser)
        return module.run(parser.parse_args(arguments)) or 0
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package in ("", "psis_d2"):  # a fault of ours
            raise
        raise UserError(
            f"psis-d2 {name} needs {package}, which is not installed; `psis-d2 doctor` says how to "
            "install what is missing."
        ) from error


def overview(modules: dict[str, str]) -> str:
    """The help text: every command with the first line of its module's docstring.

    Args:
        modules: as of :func:`subcommands`. They are read, not imported.
    """
    width = max(map(len, modules))
    lines = [f"  {name:<{width}}  {_first_line(module)}" for name, module in modules.items()]
    return "\n".join(
        [
            "usage: psis-d2 COMMAND ...",
            *("", _ABOUT, ""),
            *lines,
            *("", "psis-d2 COMMAND --help says more about each."),
        ]
    )


def _first_line(module: str) -> str:
    source = Path(find_spec(module).origin).read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


def _unknown(name: str, modules: dict[str, str]) -> str:
    close = difflib.get_close_matches(name, modules, n=1)
    hint = f"did you mean '{close[0]}'?" if close else "psis-d2 --help lists the commands."
    return f"psis-d2 has no command '{name}'; {hint}"
