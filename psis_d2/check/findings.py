"""What can be wrong with a data set, in one table."""

from __future__ import annotations

from dataclasses import dataclass, field

ERROR, WARNING, NOTE = "error", "warning", "note"

KINDS = {
    # kind: (severity, what it is, what to do about it)
    "duplicate image id": (ERROR, "images with an id that another image has", "renumber them"),
    "duplicate annotation id": (
        ERROR,
        "annotations with an id that another annotation has",
        "renumber them",
    ),
    "no id": (
        ERROR,
        "images, annotations or categories whose id is neither a number nor a text",
        "number them",
    ),
    "bad flag": (
        ERROR,
        "flags (iscrowd, ignore, box_only) that are not 0, 1, true or false",
        "write 0 or 1",
    ),
    "duplicate category id": (
        ERROR,
        "categories with an id that another category has",
        "renumber them",
    ),
    "no file name": (ERROR, "images without a file_name", "write the name of the file"),
    "duplicate file name": (
        WARNING,
        "images whose file another entry names, too",
        "keep one entry for each file",
    ),
    "unknown image": (
        ERROR,
        "annotations of an image that is not listed",
        "add the image, or remove them",
    ),
    "unknown category": (
        ERROR,
        "annotations of a category that is not listed",
        "add the category, or remove them",
    ),
    "no size": (ERROR, "images without usable width and height", "write their size in pixels"),
    "bad box": (
        ERROR,
        "boxes that are not four finite numbers x, y, width, height",
        "correct or remove them",
    ),
    "flat box": (WARNING, "boxes of zero width or height: left out", "draw them again"),
    "box outside": (
        WARNING,
        "boxes that reach out of their image by more than a pixel",
        "see whether they are in pixels and as x, y, width, height",
    ),
    "tiny object": (
        NOTE,
        "objects narrower than 4 pixels, of which little can be learned",
        "nothing",
    ),
    "bad mask": (
        WARNING,
        "masks that cannot be used: the box stays",
        "export them again as polygons of three points or more, or as RLE",
    ),
    "mask outside box": (
        WARNING,
        "masks that lie outside of their box for the most part",
        "see whether both are in pixels of this image",
    ),
    "bad points": (
        ERROR,
        "points that are not a list of [x, y] with as many labels of 0 or 1",
        "correct or remove point_coords and point_labels",
    ),
    "points outside box": (
        WARNING,
        "objects with points outside of their box, of which nothing is learned there",
        "see whether they are in pixels of this image",
    ),
    "crowd": (
        NOTE,
        "crowd regions (iscrowd): neither trained on nor measured",
        "if they are single objects, write iscrowd 0",
    ),
    "no objects": (NOTE, "images without an object: left out of training", "nothing"),
    "missing file": (ERROR, "images whose file is missing", "check the folder and the names"),
    "unreadable file": (ERROR, "images whose file cannot be read", "restore or remove them"),
    "other size": (
        ERROR,
        "images that are of another size than the json says",
        "correct width and height",
    ),
    "rotated": (
        ERROR,
        "images whose EXIF rotation swaps width and height against the json",
        "annotate the image as it is shown, or remove the rotation from the file",
    ),
    "unusual pixels": (
        WARNING,
        "images that are not 8-bit gray or color",
        "convert them to 8 bits a channel",
    ),
    "no mask at all": (
        WARNING,
        "categories of which no object has a mask: unseen",
        "nothing if that is meant",
    ),
    "no object at all": (NOTE, "categories without an object", "nothing"),
    "category unknown to training": (
        ERROR,
        "categories of the validation data that training does not know",
        "give both files the same categories",
    ),
}

EXAMPLES = 5


@dataclass
class Finding:
    """One kind of fault and where it was found."""

    kind: str
    count: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def severity(self) -> str:
        """ "error": training stops; "warning": something is dropped or odd; "note"."""
        return KINDS[self.kind][0]

    @property
    def what(self) -> str:
        """What it is, in words."""
        return KINDS[self.kind][1]

    @property
    def remedy(self) -> str:
        """What to do about it."""
        return KINDS[self.kind][2]


class Findings:
    """Faults by kind, in the order of the table, with a few examples each."""

    def __init__(self):
        self._of_kind: dict[str, Finding] = {}

    def add(self, kind: str, example: str) -> None:
        """Count a fault; the first examples are kept."""
        finding = self._of_kind.setdefault(kind, Finding(kind))
        finding.count += 1
        if len(finding.examples) < EXAMPLES:
            finding.examples.append(example)

    def __iter__(self):
        severities = (ERROR, WARNING, NOTE)
        found = (self._of_kind[kind] for kind in KINDS if kind in self._of_kind)
        return iter(sorted(found, key=lambda x: severities.index(x.severity)))

    def count(self, kind: str) -> int:
        """How many faults of a kind were found."""
        return self._of_kind[kind].count if kind in self._of_kind else 0

    @property
    def worst(self) -> str | None:
        """The worst severity, None if nothing was found."""
        return next((x.severity for x in self), None)
