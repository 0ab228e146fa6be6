"""List, download and check trained models.

    psis-d2 zoo list                 # models: name, size, data, license
    psis-d2 zoo configs              # configs by name
    psis-d2 zoo get NAME ...         # download into the cache
    psis-d2 zoo path NAME            # download if need be, print the file's path
    psis-d2 zoo check [NAME ...]     # hashes of what is here; all models by default
    psis-d2 zoo page --output MODEL_ZOO.md

PSIS_D2_ZOO names further lists (files or URLs, separated by commas), PSIS_D2_CACHE the folder of
downloads; PSIS_D2_OFFLINE=1 forbids the network.
"""

import argparse

from psis_d2.errors import UserError
from psis_d2.files import written_at_once
from psis_d2.model_zoo import config_names, find_model, local_path, models
from psis_d2.model_zoo.catalog import BUILTIN, Model, read_zoo
from psis_d2.model_zoo.download import state_of
from psis_d2.model_zoo.page import render_page


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is to be done, with which models."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("list", help="models: name, size, data, license")
    actions.add_parser("configs", help="configs by name")
    actions.add_parser("get", help="download").add_argument("names", nargs="+", metavar="NAME")
    actions.add_parser("path", help="print a file's path").add_argument("name", metavar="NAME")
    check = actions.add_parser("check", help="compare files that are here with their hashes")
    check.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    page = actions.add_parser("page", help="write the list of psis_d2 itself as Markdown")
    page.add_argument("--output", default="MODEL_ZOO.md", metavar="FILE")


def run(args: argparse.Namespace) -> int:
    """Do one of it. The status is 1 if a file is not what it should be."""
    if args.action == "list":
        found = models()
        for model in found.values():
            print(_line(model))
        if not found:
            print("There are no trained models yet; PSIS_D2_ZOO names further lists.")
    elif args.action == "configs":
        print("\n".join(config_names()))
    elif args.action == "get":
        for name in args.names:
            print(f"{name}: {local_path(name)}")
    elif args.action == "path":
        print(local_path(args.name))
    elif args.action == "check":
        return _check(args.names)
    else:
        try:
            with written_at_once(args.output) as file:
                file.write(render_page(read_zoo(str(BUILTIN))))
        except OSError as error:
            raise UserError(f"Cannot write {args.output} ({error.strerror or error}).") from error
    return 0


def _check(names: list[str]) -> int:
    chosen = [find_model(name) for name in names] if names else models().values()
    wrong = 0
    for model in chosen:
        state, path = state_of(model)
        print(f"{model.name}: {state}" + (f"  {path}" if path else ""))
        wrong += state == "wrong" or (state == "not here" and bool(names))
    return 1 if wrong else 0


def _line(model: Model) -> str:
    about = ", ".join(filter(None, (model.data, model.split, model.license)))
    return f"{model.name:<32} {model.size / 1e6:8.1f} MB  {about}"
