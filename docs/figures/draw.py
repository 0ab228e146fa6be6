"""Draw the figure of every method.

python docs/figures/draw.py          # all of them, beside this file
python docs/figures/draw.py cpmask   # one
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from sketch import (
    BOX,
    Sketch,
    blurred,
    boundary,
    coarse,
    filled_box,
    mug,
    photo,
    saliency,
)

FOLDER = Path(__file__).parent
HEAT = "viridis"
FIGURES: dict[str, Callable[[], Sketch]] = {}


def figure(draw: Callable[[], Sketch]) -> Callable[[], Sketch]:
    """Register a figure by the name of its function."""
    FIGURES[draw.__name__] = draw
    return draw


def start(s: Sketch, y: float, x: float = 1.0):
    """The picture with its box, and the features of the region."""
    image = s.picture(x, y, photo(), "box of any category", rectangle=BOX)
    region = s.picture(x + 1.9, y, coarse(photo()), "RoI features X")
    s.arrow(image, region)
    return region


@figure
def road() -> Sketch:
    """What all methods share."""
    s = Sketch(12, 2.9)
    y = 2.0
    image = s.picture(0.95, y, photo(), "image", rectangle=BOX)
    data = s.box(2.75, y, "data", "removes masks that\ntraining may not see", w=1.75, h=1.15)
    detector = s.box(4.85, y, "detector", "Faster R-CNN,\nRetinaNet, FCOS", "boxes", w=1.6, h=1.15)
    regions = s.box(6.85, y, "regions", "proposals, annotated\nor jittered boxes", w=1.75, h=1.15)
    head = s.box(8.8, y, "mask head", "one file\na method", "masks", w=1.5, h=1.15)
    mask = s.picture(10.85, y, mug().astype(float), "seen | unseen | all\nmeasured apart")
    for a, b in zip(
        (image, data, detector, regions, head), (data, detector, regions, head, mask), strict=True
    ):
        s.arrow(a, b)
    s.text(2.75, 1.15, "every object: box, class, gt_has_mask", size=8)
    s.legend("boxes", "masks")
    return s


@figure
def baselines() -> Sketch:
    s = Sketch(12, 3.5)
    region = start(s, 2.1)
    trunk = s.box(4.75, 2.1, "trunk", "4 convolutions, 2x up", "masks", w=1.7)
    one = s.box(7.1, 2.75, "one channel", "class-agnostic", "masks", w=1.8)
    many = s.box(7.1, 1.45, "a channel a class", "class-specific", "masks", w=1.8)
    soft = blurred(mug(), 1.5)
    good = s.picture(9.2, 2.75, soft, size=0.95)
    bad = s.picture(
        9.2, 1.45, 0.35 * blurred(np.random.default_rng(1).random((56, 56)), 2.5) + 0.2, size=0.95
    )
    s.arrow(region, trunk)
    s.arrow(trunk, one)
    s.arrow(trunk, many)
    s.arrow(one, good)
    s.arrow(many, bad)
    s.text(9.85, 2.75, "works for all categories,\nworse for the unseen", size=8, align="left")
    s.text(9.85, 1.45, "channels of the unseen\nnever learned anything", size=8, align="left")
    s.text(7.1, 0.72, "the oracle is the upper row with the masks of all", size=8)
    s.legend("masks")
    return s


@figure
def maskx() -> Sketch:
    s = Sketch(12, 4.0)
    region = start(s, 3.0)
    trunk = s.box(4.85, 3.0, "mask trunk", "shared by all classes", "masks", w=1.7)
    product = s.box(7.3, 3.0, "1x1 convolution", "with the class's kernel", "fixed", w=1.9)
    mask = s.picture(11.1, 3.0, blurred(mug(), 1.2), "mask of its class")
    weights = s.box(2.9, 1.1, "box head's weights", "of this class: cls + box", "boxes", w=2.0)
    transfer = s.box(5.6, 1.1, "transfer function", "T, 2 layers, one for all", "masks", w=2.0)
    mlp = s.box(9.4, 1.55, "MLP branch", "no classes", "masks", w=1.5)
    s.arrow(region, trunk)
    s.arrow(trunk, product)
    s.arrow(product, (9.25, 3.0))
    s.axes.text(9.4, 3.0, "+", ha="center", va="center", size=17)
    s.arrow((9.55, 3.0), mask)
    s.arrow(weights, transfer, dashed=True)
    s.text(4.27, 1.33, "no gradient", size=7.5)
    s.arrow(transfer, product, sides=("right", "bottom"))
    s.text(7.75, 1.6, "kernel of\nthis class", size=8)
    s.path([(6.0, 3.0), (6.0, 2.15), (8.55, 2.15)])
    s.arrow((8.5, 2.15), (8.9, 1.98))
    s.arrow(mlp, (9.4, 2.85), sides=("top", "left"))
    s.legend("boxes", "masks")
    return s


@figure
def shapemask() -> Sketch:
    s = Sketch(12, 4.1)
    rng = np.random.default_rng(3)
    image = s.picture(0.95, 3.2, photo(), "crop, wider\nthan the box", rectangle=BOX)
    priors = []
    for k in range(6):
        grow = blurred(np.roll(mug(), rng.integers(-5, 5, 2), axis=(0, 1)), 2 + k)
        priors.append(np.clip(grow / grow.max(), 0, 1))
    for k, prior in enumerate(priors):
        s.picture(0.55 + 0.44 * (k % 3), 1.5 - 0.44 * (k // 3), prior, size=0.4, cmap=HEAT)
    s.text(0.99, 0.7, "shape priors: means of\nclusters of seen masks", size=8)
    weigh = s.box(3.0, 3.2, "weigh", "by the feature of the box", "masks", w=1.9)
    prior = s.picture(5.0, 3.2, blurred(mug(), 4), "detection prior", cmap=HEAT)
    first = s.box(6.7, 3.2, "decoder 1", "features + prior", "masks", w=1.45)
    rough = s.picture(8.3, 3.2, coarse(blurred(mug(), 2)), "coarse mask")
    second = s.box(10.0, 3.2, "decoder 2", "2x or 4x finer", "masks", w=1.45)
    fine = s.picture(11.35, 3.2, blurred(mug(), 0.8), "fine mask", size=1.0)
    embed = s.box(
        8.3,
        1.3,
        "instance embedding",
        "mean feature inside, taken\nfrom every feature",
        "fixed",
        w=2.3,
        h=1.0,
    )
    for a, b in ((image, weigh), (weigh, prior), (prior, first), (first, rough), (second, fine)):
        s.arrow(a, b)
    s.arrow((1.75, 1.35), weigh, sides=("", "bottom"), bend=0.25)
    s.arrow((8.3, 2.4), embed, sides=("", "top"))
    s.arrow(embed, second, sides=("right", "bottom"), bend=0.25)
    s.legend("masks", x=4.6)
    return s


@figure
def shapeprop() -> Sketch:
    s = Sketch(12, 4.5)
    region = start(s, 2.65)
    classify = s.box(4.8, 3.6, "saliency classifier", "at every cell", "boxes", w=1.9)
    heat = s.picture(6.75, 3.6, saliency(), "saliency of its class", cmap=HEAT, size=1.0)
    weigh = s.box(4.8, 1.8, "message weights", "8 neighbors and itself", "masks", w=1.9)
    propagate = s.box(8.6, 2.65, "propagate", "message passing,\n14 steps", "masks", w=1.5, h=1.05)
    shape = s.picture(
        10.2, 2.65, coarse(blurred(mug(), 2)), "shape activation", size=1.0, cmap=HEAT
    )
    head = s.box(10.4, 1.05, "mask trunk", "on X and activation", "masks", w=1.7)
    s.arrow(region, classify)
    s.arrow(region, weigh)
    s.arrow(classify, heat)
    s.arrow(heat, propagate, bend=-0.12)
    s.arrow(weigh, propagate, bend=0.12)
    s.arrow(propagate, shape)
    s.arrow((10.3, 1.82), head, sides=("", "top"))
    s.path([(2.9, 1.8), (2.9, 1.05), (9.3, 1.05)])
    s.arrow((9.2, 1.05), head)
    s.text(6.4, 0.9, "X", size=8)
    mask = s.picture(11.5, 2.05, mug().astype(float), size=0.8)
    s.arrow(head, mask, sides=("right", "bottom"), bend=0.3)
    s.legend("boxes", "masks", y=0.2)
    return s


@figure
def cpmask() -> Sketch:
    s = Sketch(12, 4.0)
    region = start(s, 2.9)
    tower = s.box(4.8, 1.35, "boundary tower", "4 convolutions", "masks", w=1.7)
    edge = s.picture(6.9, 1.3, boundary(), "boundary (loss)", cmap=HEAT, size=1.0)
    fuse = s.box(4.8, 2.9, "gated sum", "X + gate * B", "masks", w=1.5)
    trunk = s.box(6.7, 2.9, "trunk", "4 convolutions", "masks", w=1.4)
    attend = s.box(
        8.75, 2.9, "affinity", "every cell attends\nto all cells", "masks", w=1.6, h=1.05
    )
    query = 0.75 * blurred(mug(), 2.0) * np.linspace(1.2, 0.8, 56)[None] + 0.1
    heat = s.picture(
        8.75, 1.35, coarse(query), "whom a cell of the\nmug attends to (loss)", cmap=HEAT, size=1.0
    )
    mask = s.picture(11.1, 2.9, blurred(mug(), 0.8), "mask", size=1.1)
    s.arrow(region, fuse)
    s.arrow(region, tower, sides=("right", "left"), bend=0.2)
    s.arrow(tower, fuse, sides=("top", "bottom"))
    s.text(4.95, 2.12, "B", size=8)
    s.arrow(tower, edge, dashed=True)
    s.arrow(fuse, trunk)
    s.arrow(trunk, attend)
    s.arrow(attend, heat, sides=("bottom", "top"), dashed=True)
    s.arrow(attend, mask)
    s.legend("masks")
    return s


@figure
def opmask() -> Sketch:
    s = Sketch(12, 4.0)
    image = s.picture(0.95, 2.2, photo(), "box of any category", rectangle=BOX)
    small = s.picture(2.85, 3.1, coarse(photo(), 7), "7 x 7 features", size=0.95)
    region = s.picture(2.85, 1.3, coarse(photo()), "RoI features X", size=0.95)
    head = s.box(4.75, 3.1, "box head", "convolutions, mean,\nclassifier", "boxes", w=1.7, h=1.05)
    cam = s.picture(7.0, 3.1, saliency(), "class activation map", cmap=HEAT, size=1.0)
    trunk = s.box(9.1, 1.3, "mask trunk", "7 convolutions", "masks", w=1.6)
    mask = s.picture(11.1, 1.3, blurred(mug(), 0.8), "mask", size=1.1)
    s.arrow(image, small)
    s.arrow(image, region)
    s.arrow(small, head)
    s.arrow(head, cam)
    s.text(5.92, 3.45, "its class", size=7.5)
    s.arrow(region, (6.85, 1.3))
    s.axes.text(7.0, 1.3, "+", ha="center", va="center", size=17)
    s.arrow((7.0, 2.3), (7.0, 1.45))
    s.arrow((7.15, 1.3), trunk)
    s.arrow(trunk, mask)
    s.text(9.35, 2.75, "the mask loss trains the features,\nnot the classifier's weights", size=8)
    s.legend("boxes", "masks")
    return s


@figure
def contrastmask() -> Sketch:
    s = Sketch(12, 4.6)
    image = s.picture(0.95, 2.3, photo(), "box of any category", rectangle=BOX)
    region = s.picture(2.85, 1.3, coarse(photo()), "RoI features X", size=0.95)
    fine = s.picture(2.85, 3.4, coarse(photo(), 28), "28 x 28 features", size=0.95)
    encoder = s.box(4.85, 3.4, "encoder", "8 convolutions", "both", w=1.6)
    projector = s.box(7.0, 3.4, "projector", "3 layers, training only", "both", w=1.9)
    parts = s.picture(
        9.1,
        3.4,
        saliency(),
        "parts: mask of the seen,\nelse class activation map",
        cmap=HEAT,
        size=0.95,
    )
    loss = s.box(11.0, 3.4, "contrast", "foreground against\nbackground", "both", w=1.5, h=1.05)
    trunk = s.box(7.6, 1.3, "mask trunk", "4 convolutions", "masks", w=1.6)
    mask = s.picture(9.8, 1.3, blurred(mug(), 0.8), "mask", size=1.1)
    s.arrow(image, fine)
    s.arrow(image, region)
    s.arrow(fine, encoder)
    s.arrow(encoder, projector)
    s.arrow(projector, parts)
    s.arrow(parts, loss)
    s.arrow(region, (4.75, 1.3))
    s.axes.text(4.87, 1.3, "+", ha="center", va="center", size=17)
    s.arrow((4.85, 2.85), (4.87, 1.5))
    s.arrow((5.0, 1.3), trunk)
    s.text(5.9, 1.55, "+ class map", size=8)
    s.arrow(trunk, mask)
    s.legend("masks", "both")
    return s


@figure
def teacher_student() -> Sketch:
    s = Sketch(12, 4.5)
    region = start(s, 2.5)
    teacher = s.box(5.0, 3.5, "teacher", "class-agnostic, any head", "masks", w=2.0)
    student = s.box(5.0, 1.4, "student", "class-specific, any head", "both", w=2.0)
    guess = s.picture(7.5, 3.5, blurred(mug(), 2.5), "probability", size=1.0)
    clean = s.box(
        9.5, 3.5, "pseudo mask", "threshold, interaction\nor CRF; cleaned", "fixed", w=1.9, h=1.05
    )
    pseudo = s.picture(11.25, 3.5, (blurred(mug(), 2.5) > 0.5).astype(float), size=1.0)
    mask = s.picture(7.5, 1.4, blurred(mug(), 0.9), "mask, also at test time", size=1.0)
    s.arrow(region, teacher)
    s.arrow(region, student)
    s.arrow(teacher, guess)
    s.arrow(guess, clean, dashed=True)
    s.arrow(clean, pseudo)
    s.arrow(student, mask)
    s.arrow((11.25, 2.95), (8.1, 1.6), dashed=True, bend=-0.2)
    s.text(8.9, 2.5, "unseen: loss against the pseudo mask", size=8)
    s.text(9.9, 1.2, "seen: loss against the true mask", size=8)
    s.legend("masks", "both")
    return s


@figure
def condinst() -> Sketch:
    s = Sketch(12, 4.5)
    image = s.picture(0.95, 2.9, photo(), "image", rectangle=BOX)
    fcos = s.box(
        3.0, 3.7, "FCOS", "box, class and 233 numbers\nat every location", "boxes", w=2.2, h=1.05
    )
    branch = s.box(3.0, 2.0, "mask branch", "8 or 16 maps of the image", "both", w=2.2)
    net = s.box(
        6.0,
        2.9,
        "dynamic filters",
        "three 1x1 layers whose weights\nare these numbers",
        "fixed",
        w=2.4,
        h=1.05,
    )
    mask = s.picture(8.35, 2.9, blurred(mug(), 1.0), "mask over the image")
    s.arrow(image, fcos)
    s.arrow(image, branch)
    s.arrow(fcos, net)
    s.arrow(branch, net)
    s.arrow(net, mask)
    s.text(6.0, 2.2, "+ distance to the location", size=8)
    true = s.picture(11.25, 3.85, mug().astype(float), size=0.8)
    s.arrow(mask, true, dashed=True)
    s.text(9.65, 4.1, "CondInst:\ntrue mask (Dice)", size=8)
    box = s.picture(11.25, 2.75, filled_box(), size=0.8)
    s.arrow(mask, box, dashed=True)
    s.text(10.15, 2.98, "BoxInst: same extents", size=8)
    color = s.picture(11.25, 1.65, photo()[20:40, 24:44], size=0.8)
    s.arrow(mask, color, dashed=True)
    s.text(9.35, 1.75, "and pixels of like\ncolor stay together", size=8)
    s.legend("boxes", "both")
    return s


@figure
def hourglass() -> Sketch:
    s = Sketch(12, 4.1)
    image = s.picture(0.95, 2.5, photo(), "annotated box", rectangle=BOX)
    region = s.picture(2.7, 2.5, coarse(photo(), 28), "32 x 32 features")
    s.arrow(image, region)
    xs = (4.3, 5.3, 6.2, 7.0, 7.8, 8.7, 9.7)
    heights = (1.9, 1.4, 0.95, 0.6, 0.95, 1.4, 1.9)
    places = []
    for x, h in zip(xs, heights, strict=True):
        places.append(s.box(x, 2.5, "", kind="masks", w=0.5, h=h))
    for a, b in zip(places, places[1:], strict=False):
        s.arrow(a, b)
    for a, b in ((places[0], places[6]), (places[1], places[5])):
        s.arrow(a, b, sides=("top", "top"), bend=-0.16)
    s.arrow(region, places[0])
    s.text(
        7.0,
        1.25,
        "residual blocks: down to the context of the whole box and up again,\n"
        "20, 52 or 100 layers; what is on the way down is added on the way up",
        size=8,
    )
    mask = s.picture(11.1, 2.5, blurred(mug(), 0.6), "mask")
    s.arrow(places[-1], mask)
    s.legend("masks")
    return s


def main(names: list[str]) -> None:
    """Draw the named figures, or all."""
    for name in names or FIGURES:
        FIGURES[name]().save(FOLDER / f"{name}.svg")


if __name__ == "__main__":
    main(sys.argv[1:])
