"""Rows as CSV: every plot has the numbers that it shows."""

import csv
import math
from collections.abc import Sequence

from psis_d2.errors import UserError
from psis_d2.files import written_at_once


def write_csv(path: str, rows: Sequence[dict]) -> None:
    """Write rows with the same keys, which become the head; what is not measured (nan) is empty.

    Raises:
        UserError: the path cannot be written.
    """
    try:
        with written_at_once(path) as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    except OSError as error:
        raise UserError(f"Cannot write {path} ({error.strerror or error}).") from error


def _cell(value):
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.10g}"
    return value
