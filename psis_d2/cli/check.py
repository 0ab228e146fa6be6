"""Say what training will use of a data set, what it will drop, and why.

    psis-d2 check --train-json train.json --train-images images/ --html check.html
    psis-d2 check --train-json train.json --train-images images/ \\
        --val-json val.json --val-images images/ --json check.json

Exits with 0 if training can start, with 1 if something would stop it (with --strict: if anything
would be dropped).
"""

import argparse
import json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``psis-d2 check``."""
    for split in ("train", "val"):
        parser.add_argument(f"--{split}-json", metavar="FILE", required=split == "train")
        parser.add_argument(f"--{split}-images", metavar="FOLDER", required=split == "train")
    parser.add_argument("--html", metavar="FILE", help="write a page with pictures and plots")
    parser.add_argument("--json", metavar="FILE", help="write all counts")
    parser.add_argument("--no-decode", action="store_true", help="read the images' headers alone")
    parser.add_argument("--samples", type=int, default=8, help="pictures on the page")
    parser.add_argument("--strict", action="store_true", help="warnings count as errors")


def run(args: argparse.Namespace) -> int:
    """Check, print, write."""
    from psis_d2.check import check_dataset, check_validation, html_page
    from psis_d2.errors import UserError
    from psis_d2.files import written_at_once

    if bool(args.val_json) != bool(args.val_images):
        raise UserError("--val-json and --val-images belong together; give both.")
    options = {"decode": not args.no_decode, "samples": args.samples}
    checks = [("training", check_dataset(args.train_json, args.train_images, **options))]
    if args.val_json:
        checks.append(("validation", check_dataset(args.val_json, args.val_images, **options)))
        check_validation(checks[0][1], checks[1][1])
    for title, check in checks:
        print(table(title, check))
    if args.html:
        with written_at_once(args.html) as file:
            file.write(html_page(checks))
        print(f"page: {args.html}")
    if args.json:
        with written_at_once(args.json) as file:
            json.dump({title: check.as_dict() for title, check in checks}, file, indent=1)
    bad = ("error", "warning") if args.strict else ("error",)
    return int(any(check.findings.worst in bad for _, check in checks))


def table(title: str, check) -> str:
    """A check as text for a terminal."""
    from tabulate import tabulate

    rows = [
        [x.name, x.objects, x.masks, x.crowds, "seen" if x.masks else "unseen"]
        for x in check.categories.values()
    ]
    points = f", {check.points} with points" if check.points else ""
    counts = f"{check.images} images, {check.objects} objects, {check.masks} with a mask"
    lines = [
        f"{title}: {counts}{points}",
        tabulate(rows, ["category", "objects", "with mask", "crowds", ""]),
    ]
    for finding in check.findings:
        lines.append(f"{finding.severity}: {finding.count} {finding.what}")
        lines.append(f"    what to do: {finding.remedy}")
        lines += [f"    {example}" for example in finding.examples]
    return "\n".join(lines) + "\n"
