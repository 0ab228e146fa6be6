"""The check as one HTML page that needs no other file."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence

from psis_d2.check.dataset import DatasetCheck, decode_mask
from psis_d2.errors import UserError
from psis_d2.inference.media import read_picture
from psis_d2.visualization import UNSEEN_MARK, draw_instances, instance_colors

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

_SAMPLE_SIDE = 640
_MOST_BARS = 40

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1f24; margin: 0; background: #f5f6f8; }
main { max-width: 1080px; margin: 0 auto; padding: 24px 20px 60px; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 20px; margin: 36px 0 10px; }
h3 { font-size: 16px; margin: 22px 0 8px; } .muted { color: #66707c; }
.cards { display: flex; flex-wrap: wrap; gap: 12px; margin: 16px 0; }
.card { background: #fff; border-radius: 8px; padding: 12px 18px; box-shadow: 0 1px 3px #0002; }
.card b { display: block; font-size: 22px; }
table { border-collapse: collapse; width: 100%; background: #fff; border-radius: 8px; }
th, td { text-align: left; padding: 6px 12px; border-bottom: 1px solid #e7eaee;
  vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
.tag { padding: 1px 8px; border-radius: 9px; font-size: 13px; white-space: nowrap; }
.error { background: #fde2e1; color: #96140c; } .warning { background: #fff0cf; color: #7a4b00; }
.note { background: #e5ecf5; color: #33506f; } .seen { background: #dcf5e3; color: #12632b; }
.unseen { background: #ffe6d9; color: #93390b; }
details { margin-top: 2px; } code { font-size: 13px; }
.pictures { display: grid; gap: 14px; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); }
figure { margin: 0; background: #fff; border-radius: 8px; overflow: hidden; }
figure img { width: 100%; display: block; } figcaption { padding: 6px 10px; font-size: 13px; }
.plots img { max-width: 100%; }
"""


def html_page(checks: Sequence[tuple[str, DatasetCheck]]) -> str:
    """One self-contained page.

    Args:
        checks: title and check of each data set, such as ("training", ...).

    Returns:
        HTML with style, plots and pictures inside.
    """
    body = "".join(_section(title, check) for title, check in checks)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Data check</title><style>{_STYLE}</style></head><body><main>"
        f"<h1>Data check</h1><p class='muted'>What training will use, what it will drop, and why."
        f"</p>{body}</main></body></html>\n"
    )


def _section(title: str, check: DatasetCheck) -> str:
    seen = sum(counts.masks > 0 for counts in check.categories.values())
    cards = [
        (check.images, "images"),
        (check.objects, "objects with a box"),
        (check.masks, "of them with a mask"),
        (f"{seen} / {len(check.categories)}", "categories seen with masks"),
    ]
    if check.points:
        cards.insert(3, (check.points, "of them with points"))
    shown = "".join(f"<div class='card'><b>{n}</b>{text}</div>" for n, text in cards)
    return (
        f"<h2>{html.escape(title)}</h2><p class='muted'><code>{html.escape(check.json_file)}</code>"
        f"</p><div class='cards'>{shown}</div><h3>What was found</h3>{_findings(check)}"
        f"<h3>Samples</h3><p class='muted'>Names with {UNSEEN_MARK} are categories without a mask."
        f"</p>{_samples(check)}<h3>Sizes</h3>{_plots(check)}"
        f"<h3>Categories</h3>{_categories(check)}"
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are HTML; those under a head that begins with # are numbers, on the right."""
    kinds = [" class='n'" if head.startswith("#") else "" for head in heads]
    cells = [[h.removeprefix("#") for h in heads], *rows]
    lines = [
        "".join(f"<{tag}{kind}>{x}</{tag}>" for kind, x in zip(kinds, row, strict=True))
        for tag, row in zip(["th"] + ["td"] * len(rows), cells, strict=True)
    ]
    return f"<table><tr>{'</tr><tr>'.join(lines)}</tr></table>"


def _tag(kind: str) -> str:
    return f"<span class='tag {kind}'>{kind}</span>"


def _findings(check: DatasetCheck) -> str:
    rows = []
    for found in check.findings:
        examples = "<br>".join(f"<code>{html.escape(x)}</code>" for x in found.examples)
        what = (
            f"{html.escape(found.what)}<details><summary class='muted'>for example</summary>"
            f"{examples}</details>"
        )
        rows.append([_tag(found.severity), str(found.count), what, html.escape(found.remedy)])
    if not rows:
        return "<p>Nothing is wrong.</p>"
    return _table(["", "#how many", "what", "what to do"], rows)


def _categories(check: DatasetCheck) -> str:
    rows = [
        [html.escape(x.name), _tag("seen" if x.masks else "unseen")]
        + [str(n) for n in (x.objects, x.masks, x.crowds)]
        for x in check.categories.values()
    ]
    return _table(["category", "", "#objects", "#with mask", "#crowds"], rows)


def _plots(check: DatasetCheck) -> str:
    figure = Figure(figsize=(10.4, 3.2), layout="constrained")
    sizes, shares, masks = figure.subplots(1, 3, width_ratios=[1, 1, 1.4])
    if check.box_sides:
        sizes.hist(
            np.clip(check.box_sides, 1, 2000), bins=np.geomspace(1, 2000, 30), color="#3a7bd5"
        )
    sizes.set_xscale("log")
    sizes.set(title="box size", xlabel="square root of the area, pixels", ylabel="objects")
    shares.hist(check.mask_shares, bins=np.linspace(0, 1, 21), color="#2ca869")
    shares.set(title="mask size", xlabel="share of the box that is filled", ylabel="masks")
    counts = sorted(check.categories.values(), key=lambda x: -x.objects)[:_MOST_BARS]
    places = np.arange(len(counts))
    masks.bar(places, [x.objects for x in counts], color="#f2a65a", label="box only")
    masks.bar(places, [x.masks for x in counts], color="#2ca869", label="with mask")
    masks.set_xticks(places, [x.name for x in counts], rotation=90, fontsize=7)
    masks.set(title="objects of each category")
    masks.legend(fontsize=8)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110)
    return f"<div class='plots'>{_image(data.getvalue(), 'png', 'Sizes and counts')}</div>"


def _image(data: bytes, kind: str, alt: str) -> str:
    text = base64.b64encode(data).decode("ascii")
    return f'<img alt="{html.escape(alt)}" src="data:image/{kind};base64,{text}">'


def _samples(check: DatasetCheck) -> str:
    figures = []
    for sample in check.samples:
        try:
            image = read_picture(sample["file"])[:, :, ::-1]
        except UserError:  # it is among the findings
            continue
        picture = io.BytesIO()
        Image.fromarray(_draw(image, sample, check)).save(picture, format="JPEG", quality=85)
        name = sample["record"]["file_name"]
        shown = _image(picture.getvalue(), "jpeg", name)
        figures.append(f"<figure>{shown}<figcaption>{html.escape(name)}</figcaption></figure>")
    return f"<div class='pictures'>{''.join(figures)}</div>"


def _draw(image: np.ndarray, sample: dict, check: DatasetCheck) -> np.ndarray:
    height, width = image.shape[:2]
    places = {key: place for place, key in enumerate(check.categories)}
    seen = {places[key] for key, counts in check.categories.items() if counts.masks}
    boxes, masks, labels, kinds = [], [], [], []
    for annotation in sample["annotations"]:
        x, y, w, h = annotation["bbox"]
        boxes.append([x, y, x + w, y + h])
        place = places[annotation["category_id"]]
        kinds.append(place)
        name = check.categories[annotation["category_id"]].name
        labels.append(name + ("" if place in seen else UNSEEN_MARK))
        mask, record = annotation["segmentation"], sample["record"]
        # of another size than the image, it is among the findings
        fits = mask is not None and [record["height"], record["width"]] == [height, width]
        masks.append(decode_mask(mask, height, width).astype(bool) if fits else None)
    scale = min(1.0, _SAMPLE_SIDE / max(height, width))
    colors = instance_colors(kinds, seen)
    return draw_instances(image, np.array(boxes), masks, labels, colors, scale)
