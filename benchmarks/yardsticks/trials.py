"""Trials by which a yardstick's settings were chosen: a line each in a CSV, a table on the page."""

import csv
from pathlib import Path

MARK = "<!-- trials -->"
"""Where the table goes in a yardstick's remarks."""


def with_trials(remarks: str, path: Path) -> str:
    """Remarks with the table of a CSV of trials in place of the mark; as they are without one.

    The row that the yardstick has settled on is the one whose ``chosen`` is yes.
    """
    if MARK not in remarks:
        return remarks
    lines = ["| row | images | a batch | iterations | what learns | rate | norm | dtype |"]
    lines[0] += " seen IoU | unseen IoU | commit |"
    lines.append("|---|---:|---:|---:|---|---:|---|---|---:|---:|---|")
    with open(path, encoding="utf-8", newline="") as file:
        for trial in csv.DictReader(file):
            cells = [f"`{trial['row']}`", trial["images"], trial["batch"], trial["iterations"]]
            cells += [trial["learns"], trial["rate"], trial["norm"] or "-", trial["dtype"]]
            cells += [f"{float(trial[f'{side}/IoU']):.1f}" for side in ("seen", "unseen")]
            cells.append(trial["commit"])
            if trial["chosen"] == "yes":
                cells = [f"**{cell}**" for cell in cells]
            lines.append("| " + " | ".join(cells) + " |")
    return remarks.replace(MARK, "\n".join(lines))
