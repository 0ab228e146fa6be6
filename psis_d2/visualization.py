"""Pictures of predictions: which category was seen with masks is told by color and a mark.

Images are enlarged before anything is drawn, so that labels stay legible on small ones. All images
here are RGB uint8 ``[H, W, 3]``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from psis_d2.errors import UserError
from psis_d2.files import written_at_once
from psis_d2.optional import require

import numpy as np
from detectron2.structures import Instances
from detectron2.utils.visualizer import Visualizer
from PIL import Image

cv2 = require("cv2")

# Cool colors for seen categories and warm ones for unseen categories.
SEEN_COLORS = ((46, 204, 113), (52, 152, 255), (0, 206, 201), (116, 125, 255), (152, 224, 60))
UNSEEN_COLORS = ((255, 107, 53), (255, 64, 129), (255, 193, 30), (232, 65, 65), (255, 140, 205))

UNSEEN_MARK = "*"
"""Stands behind the name of a category that had no masks in training."""

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_FONT_SCALE = 0.42
_DARK = (24, 26, 30)
_LIGHT = (235, 235, 235)
_MUTED = (150, 154, 160)
_TRUTH_COLOR = (255, 40, 40)
_GAP = 8
_CAPTION_HEIGHT = 22
_MAX_TILE_SIDE = 512


def instance_colors(
    category_ids: Sequence[int], seen_ids: Collection[int]
) -> list[tuple[int, int, int]]:
    """A color for each instance of an image, of the warm family for unseen categories.

    The category chooses the color, so that prediction and ground truth look alike; where it is
    taken by an earlier instance, the next free one of the family is used.
    """
    colors: list[tuple[int, int, int]] = []
    for category in category_ids:
        family = SEEN_COLORS if category in seen_ids else UNSEEN_COLORS
        start = category % len(family)
        turns = family[start:] + family[:start]
        colors.append(next((color for color in turns if color not in colors), turns[0]))
    return colors


def _enlarge(image: np.ndarray, scale: float) -> np.ndarray:
    height, width = image.shape[:2]
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    method = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    return cv2.resize(np.ascontiguousarray(image), size, interpolation=method)


def _enlarge_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Mask at another ``(width, height)``, uint8 0/1, without the stairs of nearest neighbors."""
    soft = cv2.resize(np.asarray(mask, dtype=np.float32), size, interpolation=cv2.INTER_LINEAR)
    return (soft >= 0.5).astype(np.uint8)


def draw_instances(
    image: np.ndarray,
    boxes: np.ndarray,
    masks: Sequence[np.ndarray | None],
    labels: Sequence[str],
    colors: Sequence[tuple[int, int, int]],
    scale: float = 1.0,
) -> np.ndarray:
    """Draw instances onto an enlarged copy of an image; later masks lie on top.

    Args:
        image: RGB uint8 ``[H, W, 3]``.
        boxes: ``[n, 4]`` x0, y0, x1, y1 in pixels of ``image``.
        masks: n masks ``[H, W]``; None draws the box only.
        labels: n texts; an empty one is not drawn.
        colors: n RGB colors, for example of :func:`instance_colors`.
        scale: factor of enlargement.

    Returns:
        RGB uint8 ``[round(H * scale), round(W * scale), 3]``.
    """
    canvas = _enlarge(image, scale)
    size = canvas.shape[1::-1]
    colors = [tuple(v / 255 for v in color) for color in colors]
    visualizer = Visualizer(canvas)
    for mask, color in zip(masks, colors, strict=True):
        if mask is not None:
            # overlay_instances would fill a mask's holes
            mask = _enlarge_mask(mask, size)
            visualizer.draw_binary_mask(mask, color, edge_color=color, area_threshold=0)
    drawn = visualizer.overlay_instances(
        boxes=np.asarray(boxes, dtype=np.float64).reshape(-1, 4) * scale,
        labels=list(labels) if any(labels) else None,
        assigned_colors=colors,
    )
    return drawn.get_image()


def _to_numpy(tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def _label(class_names: Sequence[str], category: int, seen_ids: Collection[int]) -> str:
    return class_names[category] + ("" if category in seen_ids else UNSEEN_MARK)


def draw_prediction(
    image: np.ndarray,
    prediction: Instances,
    class_names: Sequence[str],
    seen_ids: Collection[int],
    scale: float = 1.0,
    min_score: float = 0.5,
) -> np.ndarray:
    """Draw what a model found in an image; names of unseen categories end in ``UNSEEN_MARK``.

    Args:
        image: RGB uint8 ``[H, W, 3]``.
        prediction: at the image's resolution, with ``pred_boxes``, ``scores``, ``pred_classes``
            and, if there are masks, ``pred_masks`` ``[n, H, W]``.
        class_names: names by contiguous id.
        seen_ids: contiguous ids of the seen categories.
        scale: factor of enlargement.
        min_score: predictions below it are left out.

    Returns:
        RGB uint8 ``[round(H * scale), round(W * scale), 3]``.
    """
    found = prediction[prediction.scores >= min_score]
    found = found[found.scores.argsort(stable=True)]  # the surest lies on top
    categories = found.pred_classes.tolist()
    masks = list(_to_numpy(found.pred_masks)) if found.has("pred_masks") else [None] * len(found)
    labels = [
        f"{_label(class_names, category, seen_ids)} {100 * score:.0f}"
        for category, score in zip(categories, found.scores.tolist(), strict=True)
    ]
    colors = instance_colors(categories, seen_ids)
    boxes = _to_numpy(found.pred_boxes.tensor)
    return draw_instances(image, boxes, masks, labels, colors, scale)


def _truth_box(item: dict) -> list[float]:
    if item.get("bbox") is not None:
        x, y, width, height = item["bbox"]
    else:
        x, y, width, height = cv2.boundingRect(np.asarray(item["mask"], dtype=np.uint8))
    return [x, y, x + width, y + height]


def _draw_truth(
    sample: dict, class_names: Sequence[str], seen_ids: Collection[int], scale: float
) -> np.ndarray:
    truth = sample["truth"]
    categories = [int(item["category_id"]) for item in truth]
    labels = [_label(class_names, category, seen_ids) for category in categories]
    boxes = np.array([_truth_box(item) for item in truth], dtype=np.float64)
    masks = [item.get("mask") for item in truth]
    colors = instance_colors(categories, seen_ids)
    return draw_instances(sample["image"], boxes, masks, labels, colors, scale)


def _put_text(
    canvas: np.ndarray, text: str, x: int, baseline: int, color: tuple[int, int, int]
) -> int:
    """Write a text and return where it ends."""
    cv2.putText(canvas, text, (x, baseline), _FONT, _FONT_SCALE, color, 1, cv2.LINE_AA)
    return x + cv2.getTextSize(text, _FONT, _FONT_SCALE, 1)[0][0]


def _put_legend(canvas: np.ndarray, left: int, baseline: int, min_score: float) -> None:
    """One line that explains colors and marks; a part that does not fit goes to the next line."""
    parts = [
        (SEEN_COLORS, "seen: masks in training"),
        (UNSEEN_COLORS, f"unseen {UNSEEN_MARK}: boxes only in training"),
        ((), f"number: score in percent, {100 * min_score:.0f} and more shown"),
    ]
    swatch, x = 10, left
    for colors, text in parts:
        width = len(colors) * (swatch + 2) + cv2.getTextSize(text, _FONT, _FONT_SCALE, 1)[0][0]
        if x > left and x + width > canvas.shape[1] - _GAP:
            x, baseline = left, baseline + _CAPTION_HEIGHT
        for color in colors:
            cv2.rectangle(canvas, (x, baseline - swatch), (x + swatch - 1, baseline - 1), color, -1)
            x += swatch + 2
        x = _put_text(canvas, text, x + 4 * bool(colors), baseline, _LIGHT) + 24


def prediction_grid(
    samples: Sequence[dict],
    class_names: Sequence[str],
    seen_ids: Collection[int],
    columns: int = 4,
    scale: float = 3,
    min_score: float = 0.5,
) -> np.ndarray:
    """A grid of images with predicted masks, unseen categories marked, and a legend.

    Args:
        samples: dicts with ``image`` (RGB uint8 ``[H, W, 3]``), ``prediction`` (``Instances`` at
            the image's resolution with ``pred_boxes``, ``scores``, ``pred_classes`` and, if there
            are masks, ``pred_masks`` ``[n, H, W]``) and, optionally, ``truth``: dicts with
            ``category_id`` (contiguous), ``mask`` (bool ``[H, W]`` or None) and ``bbox`` (x, y,
            width, height), drawn below the prediction.
        class_names: names by contiguous id.
        seen_ids: contiguous ids of the seen categories.
        columns: samples in a row.
        scale: factor of enlargement; less for images that would come out wider or higher than
            512 pixels.
        min_score: predictions below it are left out.

    Returns:
        RGB uint8 image.

    Raises:
        ValueError: there are no samples.
    """
    if not samples:
        raise ValueError("prediction_grid needs at least one sample")
    columns = min(columns, len(samples))
    seen_ids = {int(i) for i in seen_ids}
    cells = []
    for sample in samples:
        factor = min(scale, _MAX_TILE_SIDE / max(sample["image"].shape[:2]))
        predicted = draw_prediction(
            sample["image"], sample["prediction"], class_names, seen_ids, factor, min_score
        )
        tiles = [("prediction", predicted)]
        if sample.get("truth") is not None:
            tiles.append(("ground truth", _draw_truth(sample, class_names, seen_ids, factor)))
        cells.append(tiles)
    return _lay_out(cells, columns, min_score)


def _lay_out(
    cells: list[list[tuple[str, np.ndarray]]], columns: int, min_score: float
) -> np.ndarray:
    tile_width = max(tile.shape[1] for cell in cells for _, tile in cell)
    tile_height = max(tile.shape[0] for cell in cells for _, tile in cell)
    depth = max(len(cell) for cell in cells)
    rows = -(-len(cells) // columns)
    step_x, step_y = tile_width + _GAP, tile_height + _CAPTION_HEIGHT
    row_height = depth * step_y + _GAP
    legend_height = _CAPTION_HEIGHT * (1 if columns * step_x > 760 else 3) + _GAP
    canvas = np.empty((rows * row_height + legend_height, columns * step_x + _GAP, 3), np.uint8)
    canvas[:] = _DARK
    for index, cell in enumerate(cells):
        row, column = divmod(index, columns)
        x = _GAP + column * step_x
        for level, (caption, tile) in enumerate(cell):
            y = row * row_height + level * step_y + _CAPTION_HEIGHT
            _put_text(canvas, caption, x, y - 6, _MUTED)
            canvas[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
    _put_legend(canvas, _GAP, rows * row_height + _CAPTION_HEIGHT - 4, min_score)
    return canvas


def priors_grid(
    priors: np.ndarray, class_names: Sequence[str] | None = None, columns: int = 20, scale: int = 2
) -> np.ndarray:
    """Shape priors side by side, bright where an object is.

    Args:
        priors: float in [0, 1], ``[K, P, P]``, or ``[classes, K, P, P]`` with ``class_names``.
        class_names: class-specific priors are drawn under the name of their category.
        columns: priors in a row.
        scale: factor of enlargement.

    Returns:
        RGB uint8 image.
    """
    groups = priors[None] if class_names is None else priors
    side = priors.shape[-1] * scale
    step, rows = side + 2, -(-groups.shape[1] // columns)
    title = 0 if class_names is None else _CAPTION_HEIGHT
    width = min(columns, groups.shape[1]) * step + 2
    canvas = np.full((len(groups) * (rows * step + title) + 2, width, 3), _DARK, np.uint8)
    for index, group in enumerate(groups):
        top = index * (rows * step + title) + title + 2
        if class_names is not None:
            _put_text(canvas, class_names[index], 2, top - 6, _LIGHT)
        for number, prior in enumerate(group):
            row, column = divmod(number, columns)
            tile = np.rint(255 * prior).astype(np.uint8).repeat(scale, axis=0)
            y, x = top + row * step, 2 + column * step
            canvas[y : y + side, x : x + side] = tile.repeat(scale, axis=1)[..., None]
    return canvas


def _window(box: np.ndarray, shape: tuple[int, ...], margin: float = 0.15) -> tuple[slice, slice]:
    """Rows and columns of a box with a margin, in whole pixels inside the image."""
    x0, y0, x1, y1 = (float(v) for v in box)
    dx, dy = margin * (x1 - x0), margin * (y1 - y0)
    left, top = (max(0, int(np.floor(v))) for v in (x0 - dx, y0 - dy))
    right, bottom = (max(low + 1, int(np.ceil(v))) for low, v in ((left, x1 + dx), (top, y1 + dy)))
    return slice(top, min(bottom, shape[0])), slice(left, min(right, shape[1]))


def draw_heat_map(
    image: np.ndarray, box: np.ndarray, values: np.ndarray, scale: float = 1.0
) -> np.ndarray:
    """Lay a small map over its box: yellow where it is highest, blue where it is lowest.

    Args:
        image: RGB uint8 ``[H, W, 3]``; gray outside the box.
        box: x0, y0, x1, y1 in pixels of ``image``.
        values: float ``[S, S]``, stretched over the box; its own range makes the colors.
        scale: factor of enlargement.

    Returns:
        RGB uint8 ``[round(H * scale), round(W * scale), 3]``.
    """
    canvas = _enlarge(image, scale)
    gray = cv2.cvtColor(canvas, cv2.COLOR_RGB2GRAY)
    canvas = np.repeat(gray[:, :, None] // 2, 3, axis=2)
    x0, y0, x1, y1 = (float(v) * scale for v in box)
    side = np.array([x1 - x0, y1 - y0]).clip(min=1)
    cells = np.array(values.shape[::-1])
    # Centers of the canvas' pixels, in cells.
    columns = (np.arange(canvas.shape[1]) + 0.5 - x0) / side[0] * cells[0] - 0.5
    rows = (np.arange(canvas.shape[0]) + 0.5 - y0) / side[1] * cells[1] - 0.5
    at = np.meshgrid(columns.astype(np.float32), rows.astype(np.float32))
    values = np.asarray(values, dtype=np.float32)
    stretched = cv2.remap(values, *at, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    low, high = float(values.min()), float(values.max())
    shades = (255 * (stretched - low) / max(high - low, 1e-12)).clip(0, 255).astype(np.uint8)
    colors = cv2.applyColorMap(shades, cv2.COLORMAP_PARULA)[:, :, ::-1]
    inside = (at[0] >= -0.5) & (at[0] < cells[0] - 0.5) & (at[1] >= -0.5) & (at[1] < cells[1] - 0.5)
    weight = 0.8 * inside[:, :, None]
    return (canvas * (1 - weight) + colors * weight).astype(np.uint8)


def _dash_outline(canvas: np.ndarray, mask: np.ndarray) -> None:
    """Draw the contour of a mask of the canvas' size as a dashed line."""
    outlines, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    for outline in outlines:
        for start in range(0, len(outline), 10):
            cv2.polylines(canvas, [outline[start : start + 6]], False, _TRUTH_COLOR, 1)


def heat_map_grid(samples: Sequence[dict], columns: int = 2, side: int = 160) -> np.ndarray:
    """Predicted masks, each beside the heat-maps that its head made of it.

    Args:
        samples: dicts with ``image`` (RGB uint8 ``[H, W, 3]``), ``box`` (x0, y0, x1, y1),
            ``mask`` (bool ``[H, W]``), ``label``, ``color`` (RGB), ``maps`` (name -> float
            ``[S, S]`` over the box) and, optionally, ``truth`` (bool ``[H, W]``), drawn dashed.
        columns: samples in a row.
        side: larger side of a tile in pixels.

    Returns:
        RGB uint8 image.

    Raises:
        ValueError: there are no samples.
    """
    if not samples:
        raise ValueError("heat_map_grid needs at least one sample")
    columns = min(columns, len(samples))
    tiles = max(len(sample["maps"]) for sample in samples) + 1
    step_x, step_y = tiles * (side + _GAP) + _GAP, side + _CAPTION_HEIGHT + _GAP
    rows = -(-len(samples) // columns)
    canvas = np.empty((rows * step_y + _GAP, columns * step_x + _GAP, 3), np.uint8)
    canvas[:] = _DARK
    for index, sample in enumerate(samples):
        row, column = divmod(index, columns)
        x, y = _GAP + column * step_x, row * step_y + _CAPTION_HEIGHT
        for caption, tile in _heat_map_tiles(sample, side):
            _put_text(canvas, caption, x, y - 6, _MUTED)
            canvas[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
            x += side + _GAP
    return canvas


def _heat_map_tiles(sample: dict, side: int) -> list[tuple[str, np.ndarray]]:
    window = _window(sample["box"], sample["image"].shape)
    image = sample["image"][window]
    scale = side / max(image.shape[:2])
    offset = np.array([window[1].start, window[0].start] * 2, dtype=np.float64)
    box = np.asarray(sample["box"], dtype=np.float64) - offset
    outline = draw_instances(image, [box], [sample["mask"][window]], [""], [sample["color"]], scale)
    tiles = [(sample["label"], outline)]
    for name, values in sample["maps"].items():
        caption = f"{name} {values.min():.2g} to {values.max():.2g}"
        tiles.append((caption, draw_heat_map(image, box, values, scale)))
    if sample.get("truth") is not None:
        truth = _enlarge_mask(sample["truth"][window], outline.shape[1::-1])
        for _, tile in tiles:
            _dash_outline(tile, truth)
    return tiles


def save_png(path: str, image: np.ndarray) -> None:
    """Write an RGB uint8 image as PNG in one step: the path never shows a half-written file.

    Folders on the way are made.

    Raises:
        UserError: the path cannot be written.
    """
    try:
        with written_at_once(path, binary=True) as file:
            Image.fromarray(image).save(file, format="PNG")
    except OSError as error:
        raise UserError(
            f"Cannot write the picture {path} ({error.strerror or error}); choose a path that is "
            "writable."
        ) from error
