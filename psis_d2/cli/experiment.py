"""Run a table row or figure of the papers, on its data or on a trial.

    psis-d2 experiment list                          # all; --paper maskx, or: list maskx/1a
    psis-d2 experiment maskx/2/maskx-R50/voc         # what that row needs, in order
    psis-d2 experiment shapeprop/1 --dry-run         # the commands of a whole table
    psis-d2 experiment maskx/1a/randn --smoke        # its likeness on a few PartialShapes
    psis-d2 experiment --smoke                       # one row of each kind
    psis-d2 experiment page --output docs/experiments.md

What is done already is not done again, and a training that was stopped goes on. A figure with a
curve is drawn when its last run is done, beside its CSV.
"""

import argparse

from psis_d2.errors import UserError
from psis_d2.experiments import all_experiments, find_experiments, papers
from psis_d2.files import written_at_once


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which experiments, and what is done with them."""
    parser.add_argument(
        "ids", nargs="*", metavar="ID", help="of experiments, rows or tables; or: list, page"
    )
    parser.add_argument("--paper", metavar="NAME", help="with list: those of one paper")
    parser.add_argument("--dry-run", action="store_true", help="print the commands alone")
    parser.add_argument(
        "--smoke", action="store_true", help="a trial of minutes on a few PartialShapes"
    )
    parser.add_argument("--num-gpus", type=int, metavar="N", help="of every training")
    parser.add_argument("--output", default="docs/experiments.md", metavar="FILE", help="of page")


def run(args: argparse.Namespace) -> None:
    """List, print, or run."""
    from psis_d2.experiments.commands import command_lines
    from psis_d2.experiments.page import render_page
    from psis_d2.experiments.plot import draw_plots
    from psis_d2.experiments.run import run_lines

    first, *others = args.ids or [""]
    if first == "list":
        _list(others, args.paper)
        return
    if first == "page":
        with written_at_once(args.output) as file:
            file.write(render_page(papers()))
        print(f"Written to {args.output}")
        return
    if first:
        chosen = [x for name in args.ids for x in find_experiments(name)]
    elif args.smoke:
        chosen = [x for x in all_experiments() if x.smoke]
    else:
        raise UserError("No experiment is named; psis-d2 experiment list names all.")
    # Of a whole table what can be run, of one experiment the reason why not.
    runnable = [x for x in chosen if x.steps and (x.quick or not args.smoke)] or chosen[:1]
    lines = command_lines(runnable, smoke=args.smoke, num_gpus=0 if args.smoke else args.num_gpus)
    if args.dry_run:
        print("\n".join(map(str, lines)))
        return
    run_lines(lines, smoke=args.smoke)
    draw_plots(runnable, smoke=args.smoke)


def _list(names: list[str], paper: str | None) -> None:
    known = [x.id for x in papers()]
    if paper is not None and paper not in known:
        raise UserError(f"There is no paper '{paper}'; choose one of {', '.join(known)}.")
    names = [*names, *([paper] if paper else [])]
    chosen = [x for name in names for x in find_experiments(name)] if names else all_experiments()
    width = max(len(x.id) for x in chosen)
    for x in chosen:
        print(f"{x.id:<{width}}  {x.row}" + (f" (not here: {x.needs})" if x.needs else ""))
