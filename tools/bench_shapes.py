#!/usr/bin/env python3
"""Train every quick config on PartialShapes with one budget and several seeds; write RESULTS.md.

    python tools/bench_shapes.py                        # all rows, three seeds
    python tools/bench_shapes.py --only agnostic oracle --seeds 0
    python tools/bench_shapes.py --write-expected       # and what the quick configs are checked for
    python tools/bench_shapes.py --only agnostic --measure-again TEST.BOX_SHRINK 0.75 TEST.BOXES gt

A row is a file ``configs/quick/<row>_shapes.yaml``: add one, and it joins the table. A run leaves
its figures in ``benchmarks/results/shapes/`` and is not repeated, so an interrupted bench continues
and the page can be made of runs on several machines (``--fresh`` starts over);
``--measure-again`` evaluates its model with other options and adds what is new. Rows without such a
file keep the lines of the page that is there. Runs go side by side, one thread each. Exits with 1
if a claim of the page does not hold.
"""

import argparse
import datetime
import json
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psis_d2  # noqa: F401
from psis_d2.data.catalog import get_dataset_dicts
from psis_d2.data.splits import resolve_seen_classes
from psis_d2.evaluation import box_fill_results
from psis_d2.evaluation.results_page import CLAIMS, Row, expected_results, hardware, render_page
from psis_d2.evaluation.results_picture import results_picture

from detectron2.data import MetadataCatalog

ROOT = Path(__file__).resolve().parents[1]
QUICK = ROOT / "configs" / "quick"
DATASET = "partial_shapes_val"
OVERLAP = 0.3  # TEST.OVERLAP of the quick configs
RECORDS = ROOT / "benchmarks" / "results" / "shapes"
# What the figures do not say by themselves; the end of the page.
REMARKS = ROOT / "benchmarks" / "shapes_remarks.md"
PAGE, PICTURE = ROOT / "RESULTS.md", ROOT / "docs" / "results.png"


def quick_configs(only: list[str]) -> dict[str, Path]:
    """Row name -> config file, in the table's order (base methods first, oracle last)."""
    found = {p.stem.removesuffix("_shapes"): p for p in sorted(QUICK.glob("*_shapes.yaml"))}
    unknown = [name for name in only if name not in found]
    if unknown:
        sys.exit(f"error: no quick config for {', '.join(unknown)}; there are {', '.join(found)}.")
    names = only or sorted(found, key=lambda name: (name == "oracle", name))
    return {name: found[name] for name in names if not name.startswith("Base")}


def title_of(config: Path) -> str:
    """A row's title: the first comment line of its config."""
    return config.read_text().splitlines()[0].lstrip("# ").rstrip(".")


def commit() -> str:
    """The commit that is checked out, marked if the tree differs from it."""
    short = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    )
    changed = subprocess.run(
        ["git", "status", "--porcelain", "--untracked-files=no"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    return (short.stdout.strip() or "unknown") + (" + changes" if changed.stdout.strip() else "")


def train_net(
    config: Path, folder: Path, threads: int, options: list[str], flags: tuple[str, ...] = ()
) -> dict:
    """Run ``train_net.py`` with its output in a folder; its results, {task: {metric: value}}."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "train_net.py", "--config-file", str(config), *flags, "OUTPUT_DIR"]
    command += [str(folder), "TEST.BOXES", "both", "TEST.EXPECTED_RESULTS", "[]", *options]
    with open(folder / "stdout.txt", "w") as log:
        status = subprocess.run(
            command,
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )
    if status.returncode:
        raise RuntimeError(f"{config.name} failed; the output is {folder}/stdout.txt")
    return json.loads((folder / "results.json").read_text())


def measure_again(
    name: str, config: Path, seed: int, folder: Path, threads: int, options: list[str]
) -> None:
    """Evaluate a run's model with other options; tasks that are new join its record."""
    model = folder / "model_final.pth"
    if not model.exists():
        sys.exit(f"error: {model} is not there; train the row first (--fresh --only {name}).")
    record = record_of(name, seed)
    done = json.loads(record.read_text())
    options = ["MODEL.WEIGHTS", str(model), *options]
    results = train_net(config, folder / "again", threads, options, ("--eval-only",))
    done["results"] = {**results, **done["results"]}
    record.write_text(json.dumps(done, indent=1) + "\n")


def run(name: str, config: Path, seed: int, folder: Path, threads: int) -> dict:
    """Train and evaluate one row with one seed, or read what an earlier call left.

    Returns:
        {"results": {task: {metric: value}}, "minutes": float, "commit": str, "hardware": str,
        "date": str}
    """
    record = record_of(name, seed)
    if record.exists():
        return json.loads(record.read_text())
    shutil.rmtree(folder, ignore_errors=True)
    start = time.time()
    results = train_net(config, folder, threads, ["SEED", str(seed)])
    done = {
        "results": results,
        "minutes": (time.time() - start) / 60,
        "commit": commit(),
        "hardware": hardware(),
        "date": datetime.date.today().isoformat(),
    }
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(done, indent=1) + "\n")
    return done


def record_of(name: str, seed: int) -> Path:
    """Where the figures of a run are kept."""
    return RECORDS / f"{name}-{seed}.json"


def write_expected(config: Path, row: Row) -> None:
    """Put a row's measured results into its config as ``TEST.EXPECTED_RESULTS``."""
    text = config.read_text()
    lines = ["TEST:"]
    lines.append("  EXPECTED_RESULTS:  # [task, metric, mean of RESULTS.md's seeds, tolerance]")
    lines += [f"    - {json.dumps(entry)}" for entry in expected_results(row)]
    block = "\n".join(lines) + "\n"
    text = re.sub(r"^TEST:\n  EXPECTED_RESULTS:.*\n(    - .*\n)*", "", text, flags=re.MULTILINE)
    if "\nTEST:" in text:
        raise SystemExit(f"error: {config} has other TEST keys; put EXPECTED_RESULTS in by hand.")
    config.write_text(text.replace("OUTPUT_DIR:", f"{block}OUTPUT_DIR:", 1))


def main() -> None:
    """Run what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", default=[], metavar="ROW", help="rows, by config name")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs side by side")
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "bench_shapes")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument(
        "--picture", type=Path, help="default: docs/results.png, or beside another --page"
    )
    parser.add_argument(
        "--write-expected", action="store_true", help="update EXPECTED_RESULTS of the quick configs"
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
    args = parser.parse_args()
    configs = quick_configs(args.only)
    if args.fresh:
        for name in configs:
            for record in RECORDS.glob(f"{name}-[0-9]*.json"):
                record.unlink()
    get_dataset_dicts("partial_shapes_train")  # made once, before the runs race for it

    tasks = [] if args.page_only else [(n, seed) for seed in args.seeds for n in configs]
    threads = max(1, (os.cpu_count() or 1) // args.jobs)

    def work(task):
        name, seed = task
        folder = args.output / f"{name}-{seed}"
        done = run(name, configs[name], seed, folder, threads)
        if args.measure_again:
            measure_again(name, configs[name], seed, folder, threads, args.measure_again)
        unseen = done["results"]["gtbox_unseen"]["IoU"]
        print(f"{name} seed {seed}: {done['minutes']:.1f} min, unseen IoU {unseen:.1f}", flush=True)

    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(work, tasks))

    classes = MetadataCatalog.get(DATASET).thing_classes
    seen = resolve_seen_classes("shapes", classes, dataset_name=DATASET)
    filled = box_fill_results(DATASET, seen, OVERLAP)
    rows = [Row("box_fill", "Whole box filled, no model", [filled])]
    for name, config in quick_configs([]).items():
        runs = [json.loads(r.read_text()) for s in args.seeds if (r := record_of(name, s)).exists()]
        columns = ([r[key] for r in runs] for key in ("results", "minutes", "commit", "hardware"))
        rows.append(Row(name, title_of(config), *columns))
        if args.write_expected and name in configs and runs:
            write_expected(config, rows[-1])
    remarks = REMARKS.read_text()
    earlier = args.page.read_text() if args.page.exists() else ""
    drawn = args.picture or (PICTURE if args.page == PAGE else args.page.with_suffix(".png"))
    results_picture(rows).savefig(drawn, dpi=110)
    picture = os.path.relpath(drawn, args.page.parent)
    page = render_page(rows, seeds=args.seeds, picture=picture, remarks=remarks, earlier=earlier)
    args.page.write_text(page)
    print(page)
    print(f"Written to {args.page} and {drawn}")
    if broken := [claim.words for claim in CLAIMS if not claim.holds(rows)]:
        sys.exit(f"error: {len(broken)} claims do not hold, see the page: {'; '.join(broken)}.")


if __name__ == "__main__":
    main()
