"""What lies in a folder of PartialShapes."""

import json
from pathlib import Path

from psis_d2.data.datasets.partial_shapes import json_path


def read_files(folder: Path) -> dict[str, bytes]:
    """Relative path -> bytes of every file."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def read_json(folder: Path, split: str) -> dict:
    """The json of a split."""
    with open(json_path(str(folder), split)) as file:
        return json.load(file)
