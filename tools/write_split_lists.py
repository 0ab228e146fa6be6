"""Write the random splits of "Learning to Segment Every Thing" (Hu et al., CVPR 2018, Fig. 3).

    python tools/write_split_lists.py

The released code draws them anew each time: NumPy's legacy generator with seed 3, five trials, in
each of them 20, 30, 40, 50 and 60 of COCO's 80 categories in the order of their ids. This draws the
same ones without NumPy, whose generators may change, and writes one list of names a split, which
``PSIS.SEEN_CLASSES maskx-20-1`` (20 seen categories, trial 1) reads.
"""

import random
from pathlib import Path

from psis_d2.data.splits import SPLIT_LISTS
from psis_d2.files import written_at_once

from detectron2.data import MetadataCatalog

SEED = 3
TRIALS = range(1, 6)
SIZES = (20, 30, 40, 50, 60)
_WORDS = 624


def mersenne_twister(seed: int) -> random.Random:
    """MT19937 seeded by one 32-bit word, as Matsumoto and Nishimura's ``init_genrand`` does."""
    state = [seed]
    for i in range(1, _WORDS):
        state.append((1812433253 * (state[-1] ^ (state[-1] >> 30)) + i) & 0xFFFFFFFF)
    generator = random.Random()
    generator.setstate((3, (*state, _WORDS), None))
    return generator


def draw_below(generator: random.Random, bound: int) -> int:
    """A number from 0 to `bound`, drawn again as long as its bits make a larger one."""
    mask = (1 << bound.bit_length()) - 1
    while (value := generator.getrandbits(32) & mask) > bound:
        pass
    return value


def draw(generator: random.Random, count: int, total: int) -> list[int]:
    """`count` of `total` numbers: the first ones of a Fisher-Yates shuffle from the end."""
    order = list(range(total))
    for i in range(total - 1, 0, -1):
        j = draw_below(generator, i)
        order[i], order[j] = order[j], order[i]
    return sorted(order[:count])


def all_splits() -> dict[str, list[int]]:
    """Seen categories (contiguous ids of COCO) of the 25 splits, by name."""
    generator = mersenne_twister(SEED)
    return {
        f"maskx-{size}-{trial}": draw(generator, size, 80) for trial in TRIALS for size in SIZES
    }


def main() -> None:
    """Write the files."""
    names = MetadataCatalog.get("coco_2017_train").thing_classes
    for split, ids in all_splits().items():
        size, trial = split.split("-")[1:]
        lines = [
            f"# Trial {trial} with {size} seen categories of Hu et al., CVPR 2018, Fig. 3, as the",
            f"# released code draws it (seed {SEED}); written by tools/write_split_lists.py.",
            *(names[i] for i in ids),
        ]
        with written_at_once(str(Path(SPLIT_LISTS) / f"{split}.txt")) as file:
            file.writelines(f"{line}\n" for line in lines)


if __name__ == "__main__":
    main()
