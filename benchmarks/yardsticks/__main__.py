"""Train every config of a yardstick with one budget and several seeds; write RESULTS.md.

    python -m benchmarks.yardsticks                        # PartialShapes 2: all rows, three seeds
    python -m benchmarks.yardsticks --only baseline oracle --seeds 0
    python -m benchmarks.yardsticks --yardstick photographs --data VOC_FOLDER
    python -m benchmarks.yardsticks --yardstick partial_shapes --write-expected
    python -m benchmarks.yardsticks --page-only            # all tables of the runs that are there

A row is a config, for PartialShapes 2 and photographs configs/masks/<row>.yaml, for PartialShapes
configs/quick/<row>_shapes.yaml: add one, and it joins the table. A run leaves its figures in the
yardstick's CSV and is not repeated, so an interrupted bench continues and the page can be made of
runs on several machines (--fresh starts over); --measure-again evaluates its model with other
options and adds what is new. Runs go side by side, one thread each. Exits with 1 if a claim of the
page does not hold.
"""

import argparse
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from psis_d2.data import get_dataset_dicts
from psis_d2.errors import exit_on_user_error

from ..measure import ROOT
from .bench import FILLED, Bench, configs_of, rows_of, write_expected, write_page
from .page import render_table
from .partial_shapes import PARTIAL_SHAPES
from .partial_shapes_2 import PARTIAL_SHAPES_2
from .partial_shapes_2_val import PARTIAL_SHAPES_2_VAL
from .photographs import PHOTOGRAPHS
from .runs import forget_runs

YARDSTICKS = {
    yardstick.name: yardstick
    for yardstick in (PARTIAL_SHAPES_2, PHOTOGRAPHS, PARTIAL_SHAPES_2_VAL, PARTIAL_SHAPES)
}
"""In the order of RESULTS.md."""


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.yardsticks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--yardstick", choices=YARDSTICKS, default="partial_shapes_2")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", default=[], metavar="ROW", help="rows, by config name")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs side by side")
    parser.add_argument("--threads", type=int, help="of a run; default: the cores over --jobs")
    parser.add_argument("--output", type=Path, help="of the runs; default: output/<yardstick>")
    parser.add_argument("--data", type=Path, help="folder of the data files, for photographs")
    parser.add_argument("--page", type=Path, help="default: RESULTS.md")
    parser.add_argument(
        "--write-expected", action="store_true", help="update EXPECTED_RESULTS of the configs"
    )
    parser.add_argument(
        "--page-only",
        action="store_true",
        help="train nothing: the page of the runs that are there",
    )
    parser.add_argument(
        "--measure-again",
        nargs="+",
        default=[],
        metavar="OPTION",
        help="config keys and values: evaluate the models once more, with these",
    )
    parser.add_argument("--fresh", action="store_true", help="forget the rows' earlier runs")
    return parser.parse_args()


def run_all(args: argparse.Namespace) -> None:
    """Run what is missing."""
    yardstick = YARDSTICKS[args.yardstick]
    configs = configs_of(yardstick, args.only)
    if args.fresh:
        forget_runs(yardstick.runs_file, [*configs, *([] if args.only else [FILLED])])
    output = (args.output or ROOT / "output" / args.yardstick).resolve()
    threads = args.threads or max(1, (os.cpu_count() or 1) // args.jobs)
    bench = Bench(yardstick, output, threads, args.data and args.data.resolve())
    bench.register_data()
    get_dataset_dicts(yardstick.train_set)  # made once, before the runs race for it
    bench.fill_boxes()
    bench.train_detector()

    def work(task: tuple[str, int]) -> None:
        done = bench.run(*task)
        if args.measure_again:
            done = bench.measure_again(*task, args.measure_again)
        unseen = done.results["gtbox_unseen"]["IoU"]
        words = f"{done.minutes:.1f} min, unseen IoU {unseen:.1f}"
        print(f"{done.config} seed {done.seed}: {words}", flush=True)

    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(work, [(name, seed) for seed in args.seeds for name in configs]))


def main() -> None:
    """Run what is missing, then write the page."""
    args = parse_arguments()
    yardstick = YARDSTICKS[args.yardstick]
    configs = configs_of(yardstick, args.only)
    if not args.page_only:
        run_all(args)
    rows = rows_of(yardstick)
    for row in rows:
        if args.write_expected and row.name in configs and row.runs:
            write_expected(configs[row.name], row)
    page = args.page or ROOT / "RESULTS.md"
    write_page(list(YARDSTICKS.values()), page)
    print(render_table(rows, yardstick.columns))
    print(f"All tables are in {page}")
    if broken := [claim.words for claim in yardstick.claims if not claim.holds(rows)]:
        sys.exit(f"error: {len(broken)} claims do not hold, see the page: {'; '.join(broken)}.")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
