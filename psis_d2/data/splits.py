"""Which categories are *seen* (their masks train the model) and which are only boxes.

One string, ``PSIS.SEEN_CLASSES``, names the split of any data set. This file turns it into sorted
contiguous category ids. The names are the category names of the data set's json.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from collections.abc import Collection, Sequence

from psis_d2.errors import UserError

# The 20 categories of COCO that PASCAL VOC has too, in COCO's order and spelling. Note "couch" in
# and "bench" out: a circulating list has the two exchanged.
VOC_NAMES = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "boat"),
    *("bird", "cat", "dog", "horse", "sheep", "cow"),
    *("bottle", "chair", "couch", "potted plant", "dining table", "tv"),
)

# The other 60 categories of COCO, in COCO's order.
NONVOC_NAMES = (
    *("truck", "traffic light", "fire hydrant", "stop sign", "parking meter", "bench"),
    *("elephant", "bear", "zebra", "giraffe"),
    *("backpack", "umbrella", "handbag", "tie", "suitcase"),
    *("frisbee", "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove"),
    *("skateboard", "surfboard", "tennis racket"),
    *("wine glass", "cup", "fork", "knife", "spoon", "bowl"),
    *("banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza"),
    *("donut", "cake"),
    *("bed", "toilet", "laptop", "mouse", "remote", "keyboard", "cell phone"),
    *("microwave", "oven", "toaster", "sink", "refrigerator"),
    *("book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush"),
)

# The synthetic PartialShapes: ten categories on each side, equally hard.
SHAPES_SEEN_NAMES = (
    *("disk", "ellipse", "square", "bar", "triangle"),
    *("star", "cross", "ring", "crescent", "ell"),
)
SHAPES_UNSEEN_NAMES = (
    *("hexagon", "capsule", "halfdisk", "blob", "trapeze"),
    *("tee", "horseshoe", "hourglass", "dumbbell", "wave"),
)

NAMED_SPLITS = {
    "voc": VOC_NAMES,
    "nonvoc": NONVOC_NAMES,
    "shapes": SHAPES_SEEN_NAMES,
    "shapes-swapped": SHAPES_UNSEEN_NAMES,
}
"""Names of the seen categories of each split that ``PSIS.SEEN_CLASSES`` knows by name."""

SPLIT_LISTS = os.path.join(os.path.dirname(__file__), "split_lists")
"""Folder of published splits, ``NAME.txt`` each: a text file of names, as users write them."""

_RANDOM = re.compile(r"random-(\d+)-(\d+)")
_GROWING = re.compile(rf"({'|'.join(NAMED_SPLITS)})\+(\d+)-(\d+)")
_LISTED = re.compile(r"maskx-\d+-\d+")
_OTHERS = "not:"
_SPELLINGS = (
    *NAMED_SPLITS,
    *("all", "auto", "mapped", "random-K-SEED", "maskx-K-TRIAL", "voc+K-SEED", "not:SPLIT"),
)


def resolve_seen_classes(
    spec: str,
    class_names: Sequence[str],
    *,
    masked_classes: Collection[int] | None = None,
    dataset_name: str = "",
    key: str = "PSIS.SEEN_CLASSES",
) -> list[int]:
    """Turn a value of ``PSIS.SEEN_CLASSES`` into category ids.

    Args:
        spec: one of

            * ``voc``, ``nonvoc``, ``shapes``, ``shapes-swapped``, ``all``, ``auto``;
            * ``random-K-SEED``: K categories, the same ones for a seed on every machine; a smaller
              K with the same seed is a subset;
            * ``maskx-K-TRIAL``: of the random splits of Hu et al. (CVPR 2018, Fig. 3), that with
              20, 30, 40, 50 or 60 of COCO's categories in trial 1 to 5;
            * ``voc+K-SEED``, or another of the named ones: these and K of the others, drawn as for
              ``random-K-SEED`` (Zhao et al., Fig. 8);
            * ``not:SPLIT``: all but those of another spelling;
            * the path of a text file with one category name a line, where blank lines and lines
              that start with ``#`` are skipped.
        class_names: all category names of the data set; the position is the contiguous id.
        masked_classes: contiguous ids of the categories that have at least one usable mask. Only
            ``auto`` reads it.
        dataset_name: only for error messages.
        key: what the value was given as, for error messages.

    Returns:
        Sorted contiguous ids of the seen categories.

    Raises:
        UserError: the spelling is unknown, a name is not a category of the data set, or K is not
            between 1 and the number of categories.
    """
    spec = str(spec)
    if spec == "all":
        return list(range(len(class_names)))
    if spec == "auto":
        if masked_classes is None:
            raise UserError(
                f"{key} 'auto' needs the training annotations to look at; give the "
                "training json, or name the split."
            )
        return sorted(masked_classes)
    if spec in NAMED_SPLITS:
        origin = f"{key} '{spec}'"
        return _ids_of(NAMED_SPLITS[spec], class_names, origin, dataset_name)
    if spec.startswith(_OTHERS):
        left_out = resolve_seen_classes(
            spec.removeprefix(_OTHERS),
            class_names,
            masked_classes=masked_classes,
            dataset_name=dataset_name,
            key=key,
        )
        return sorted(set(range(len(class_names))) - set(left_out))
    if match := _RANDOM.fullmatch(spec):
        return _random_ids(match, range(len(class_names)), class_names, dataset_name, key)
    if match := _GROWING.fullmatch(spec):
        first = resolve_seen_classes(match[1], class_names, dataset_name=dataset_name, key=key)
        others = [i for i in range(len(class_names)) if i not in first]
        return sorted(first + _random_ids(match, others, class_names, dataset_name, key))
    if _LISTED.fullmatch(spec) and not os.path.isfile(spec):
        path = os.path.join(SPLIT_LISTS, f"{spec}.txt")
        if not os.path.isfile(path):
            raise UserError(
                f"{key} '{spec}' is none of the 25 splits maskx-K-TRIAL; K is 20, 30, 40, 50 or "
                "60, and TRIAL is 1 to 5."
            )
        return _ids_of(_read_names(path, key), class_names, f"{key} '{spec}'", dataset_name)
    return _ids_of(_read_names(spec, key), class_names, f"the class list {spec}", dataset_name)


def _random_ids(
    match: re.Match,
    candidates: Sequence[int],
    class_names: Sequence[str],
    dataset_name: str,
    key: str,
) -> list[int]:
    """Sorted ids of some of the candidates; the spelling's last two groups are K and the seed."""
    count, seed = map(int, match.groups()[-2:])
    if not 1 <= count <= len(candidates):
        others = " others" if len(candidates) < len(class_names) else ""
        raise UserError(
            f"{key} '{match[0]}' asks for {count} categories, but {_describe(dataset_name)} has "
            f"{len(candidates)}{others}; choose from 1 to {len(candidates)}."
        )
    # Ranking by a hash of the name instead of a pseudo random permutation: it depends neither on
    # the version of a library nor on the order of the categories in the json.
    ranked = sorted(
        candidates, key=lambda i: hashlib.sha256(f"{seed}:{class_names[i]}".encode()).digest()
    )
    return sorted(ranked[:count])


def _read_names(path: str, key: str) -> list[str]:
    if not os.path.isfile(path):
        near = difflib.get_close_matches(path, _SPELLINGS, n=1)
        hint = f" (did you mean '{near[0]}'?)" if near else ""
        raise UserError(
            f"{key} '{path}' is neither one of {', '.join(_SPELLINGS)} nor an existing "
            f"file with one category name a line{hint}."
        )
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = [line.strip() for line in file]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read the class list {path} as text: {error}.") from error
    names = [line for line in lines if line and not line.startswith("#")]
    if not names:
        raise UserError(f"The class list {path} names no category; write one name a line.")
    return names


def _ids_of(
    names: Sequence[str], class_names: Sequence[str], origin: str, dataset_name: str
) -> list[int]:
    ids = {name: i for i, name in enumerate(class_names)}
    unknown = [name for name in dict.fromkeys(names) if name not in ids]
    if unknown:
        raise UserError(
            f"{origin[0].upper()}{origin[1:]} names {_shorten(unknown, class_names)}, which "
            f"{_describe(dataset_name)} does not have; its {len(class_names)} categories are "
            f"{_shorten(class_names)}."
        )
    return sorted({ids[name] for name in names})


def _describe(dataset_name: str) -> str:
    return f"data set '{dataset_name}'" if dataset_name else "the data set"


def _shorten(names: Sequence[str], candidates: Sequence[str] = (), limit: int = 8) -> str:
    """The first names in quotes, each with its nearest candidate if there is one."""
    shown = []
    for name in names[:limit]:
        near = difflib.get_close_matches(name, candidates, n=1)
        shown.append(f"'{name}'" + (f" (did you mean '{near[0]}'?)" if near else ""))
    if len(names) > limit:
        shown.append(f"and {len(names) - limit} more")
    return ", ".join(shown)
