"""Boxes, arrows and small pictures: what the figures of the methods are drawn with."""

from dataclasses import dataclass

import matplotlib
import numpy as np

matplotlib.use("svg")
from matplotlib import pyplot as plt  # noqa: E402  (after the choice of the backend)
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle  # noqa: E402

# The same file whenever the same figure is drawn.
matplotlib.rcParams.update({"svg.hashsalt": "psis_d2", "font.family": "DejaVu Sans"})

# Fill and edge of a box by what it learns from.
KINDS = {
    "plain": ("#f2f3f7", "#7a8194"),
    "boxes": ("#e3eefc", "#3f74b8"),
    "masks": ("#fdeadb", "#c2682a"),
    "both": ("#efe6f8", "#7d54a8"),
    "fixed": ("#ffffff", "#9aa0ae"),
}
LEGEND = {
    "boxes": "learns from the boxes of all categories",
    "masks": "learns from the masks of the seen",
    "both": "learns from both",
}
INK = "#20242e"


@dataclass(frozen=True)
class Place:
    """A rectangle in the figure, by its center; `at` gives points on its edge."""

    x: float
    y: float
    w: float
    h: float

    def at(self, side: str) -> tuple[float, float]:
        """The middle of "left", "right", "top" or "bottom"."""
        dx, dy = {"left": (-1, 0), "right": (1, 0), "top": (0, 1), "bottom": (0, -1)}[side]
        return self.x + dx * self.w / 2, self.y + dy * self.h / 2


class Sketch:
    """One figure; units are about an inch of the drawing."""

    def __init__(self, width: float, height: float):
        self.figure = plt.figure(figsize=(width, height))
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, width), ylim=(0, height))
        self.axes.axis("off")

    def box(self, x, y, text, note="", kind="plain", w=1.9, h=0.85) -> Place:
        """A step: its name, what it is made of below, and what it learns from as its color."""
        fill, edge = KINDS[kind]
        self.axes.add_patch(
            FancyBboxPatch(
                (x - w / 2 + 0.08, y - h / 2 + 0.08),
                w - 0.16,
                h - 0.16,
                boxstyle="round,pad=0.08",
                facecolor=fill,
                edgecolor=edge,
                linewidth=1.3,
            )
        )
        lift = 0.14 if note else 0
        self.text(x, y + lift + 0.07 * note.count("\n"), text, size=10, weight="bold")
        if note:
            self.text(x, y - 0.17 + 0.02 * note.count("\n"), note, size=8)
        return Place(x, y, w, h)

    def picture(self, x, y, values, caption="", size=1.15, cmap="gray", rectangle=None) -> Place:
        """A small picture, float [S, S] in [0, 1] or RGB; `rectangle` is XYXY in shares of it."""
        extent = (x - size / 2, x + size / 2, y - size / 2, y + size / 2)
        self.axes.imshow(values, extent=extent, cmap=cmap, vmin=0, vmax=1, aspect="auto", zorder=2)
        self.axes.set(xlim=(0, self.figure.get_figwidth()), ylim=(0, self.figure.get_figheight()))
        frame = Rectangle(extent[::2], size, size, fill=False, edgecolor=INK, linewidth=0.8)
        self.axes.add_patch(frame).set_zorder(3)
        if rectangle is not None:
            left, top, right, bottom = rectangle
            corner = extent[0] + left * size, extent[3] - bottom * size
            sides = (right - left) * size, (bottom - top) * size
            mark = Rectangle(corner, *sides, fill=False, edgecolor="#3f74b8", linewidth=2)
            self.axes.add_patch(mark).set_zorder(4)
        if caption:
            self.text(x, y - size / 2 - 0.17 - 0.07 * caption.count("\n"), caption, size=8)
        return Place(x, y, size, size)

    def text(self, x, y, text, size=9, weight="normal", color=INK, align="center") -> None:
        """Words in the figure."""
        self.axes.text(
            x, y, text, ha=align, va="center", size=size, weight=weight, color=color, zorder=5
        )

    def arrow(
        self, start, end, text="", *, sides=("right", "left"), dashed=False, bend=0.0, shift=0.15
    ) -> None:
        """From one place to another; dashed: what is compared by a loss, or no gradient."""
        a = start.at(sides[0]) if isinstance(start, Place) else start
        b = end.at(sides[1]) if isinstance(end, Place) else end
        self.axes.add_patch(
            FancyArrowPatch(
                a,
                b,
                arrowstyle="-|>",
                mutation_scale=11,
                linewidth=1.2,
                color=INK,
                linestyle=(0, (4, 3)) if dashed else "-",
                connectionstyle=f"arc3,rad={bend}",
                shrinkA=2,
                shrinkB=2,
                zorder=1,
            )
        )
        if text:
            self.text((a[0] + b[0]) / 2, (a[1] + b[1]) / 2 + shift, text, size=8)

    def path(self, points: list[tuple[float, float]]) -> None:
        """A line with corners, for an arrow that goes around something."""
        self.axes.plot(*zip(*points, strict=True), color=INK, linewidth=1.2, zorder=1)

    def legend(self, *kinds: str, y: float = 0.22, x: float = 0.3) -> None:
        """What the colors mean, in a line."""
        for kind in kinds:
            fill, edge = KINDS[kind]
            self.axes.add_patch(
                Rectangle((x, y - 0.08), 0.24, 0.16, facecolor=fill, edgecolor=edge)
            )
            self.text(x + 0.34, y, LEGEND[kind], size=8, align="left")
            x += 0.75 + 0.073 * len(LEGEND[kind])

    def save(self, path) -> None:
        """Write the svg."""
        self.figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
        plt.close(self.figure)


# ---------------------------------------------------------------------------------- small pictures

SIDE = 56
_Y, _X = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
BOX = (0.2, 0.16, 0.93, 0.84)
"""Of the mug, XYXY in shares of the picture."""


def mug() -> np.ndarray:
    """The object of all figures, bool [S, S]: a mug, whose handle has a hole."""
    body = (np.abs(_X + 0.12) < 0.46) & (np.abs(_Y) < 0.66)
    radius = np.hypot((_X - 0.42) * 1.0, _Y * 0.95)
    handle = (radius < 0.42) & (radius > 0.24) & (_X > 0.3)
    return body | handle


def blurred(values: np.ndarray, cells: float) -> np.ndarray:
    """Smoothed by a Gaussian of so many cells."""
    reach = np.arange(-int(3 * cells), int(3 * cells) + 1)
    kernel = np.exp(-(reach**2) / (2 * cells**2))
    kernel /= kernel.sum()
    for axis in (0, 1):
        values = np.apply_along_axis(np.convolve, axis, values.astype(float), kernel, mode="same")
    return values


def photo(seed: int = 0) -> np.ndarray:
    """The mug on a table, RGB [S, S, 3]."""
    noise = blurred(np.random.default_rng(seed).random((SIDE, SIDE)), 1.0)[..., None]
    image = np.where(_Y[..., None] > 0.3, (0.63, 0.5, 0.38), (0.76, 0.82, 0.86))
    shade = 1 - 0.25 * np.clip(_X + 0.2, -1, 1)[..., None]
    image = np.where(mug()[..., None], np.array((0.72, 0.25, 0.22)) * shade, image)
    return np.clip(image + 0.25 * (noise - 0.5), 0, 1)


def coarse(values: np.ndarray, cells: int = 14) -> np.ndarray:
    """Means over a grid of cells x cells, as a RoI's features see it."""
    step = SIDE // cells
    return values.reshape(cells, step, cells, step, *values.shape[2:]).mean(axis=(1, 3))


def saliency() -> np.ndarray:
    """A class activation: strong on two parts of the mug, nothing elsewhere."""
    spots = np.exp(-((_X + 0.25) ** 2 + (_Y + 0.3) ** 2) / 0.05)
    spots += 0.8 * np.exp(-((_X - 0.5) ** 2 + (_Y - 0.1) ** 2) / 0.03)
    return coarse(np.clip(spots, 0, 1))


def boundary() -> np.ndarray:
    """The mug's outline."""
    soft = blurred(mug(), 1.2)
    return np.clip(1 - 2.6 * np.abs(soft - 0.5), 0, 1)


def filled_box() -> np.ndarray:
    """The box as a mask."""
    left, top, right, bottom = (2 * v - 1 for v in BOX)
    return ((left < _X) & (right > _X) & (top < _Y) & (bottom > _Y)).astype(float)
