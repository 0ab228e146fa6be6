"""``TEST.EXPECTED_RESULTS``: kept where they fit the run, and compared with what it measured."""

import argparse
import logging
from collections.abc import Mapping

from psis_d2.config import add_psis_config
from psis_d2.config_files import merge_file

from detectron2.config import CfgNode, get_cfg
from detectron2.evaluation import verify_results

logger = logging.getLogger(__name__)


def settle_expectations(cfg: CfgNode, args: argparse.Namespace) -> list[str]:
    """Take out of a frozen config what is expected of other data, or of boxes not measured.

    A config file's results are those of its data sets. Results from the command line stay.

    Args:
        cfg: the config, changed in place.
        args: the command line: ``config_file`` and ``opts``.

    Returns:
        What to tell about it, one sentence each.
    """
    rows, told = list(cfg.TEST.EXPECTED_RESULTS), []
    if rows and "TEST.EXPECTED_RESULTS" not in (args.opts or []) and args.config_file:
        of_file = get_cfg()
        add_psis_config(of_file)
        merge_file(of_file, args.config_file)
        if _datasets(of_file) != _datasets(cfg):
            rows = []
            told.append(
                f"TEST.EXPECTED_RESULTS are those of other data, that of {args.config_file}: they "
                "are not verified."
            )
    other_kind = {"detected": True, "gt": False}.get(cfg.TEST.BOXES)  # of given boxes or not
    if left_out := [row for row in rows if ("gtbox" in row[0]) is other_kind]:
        rows = [row for row in rows if row not in left_out]
        tasks = ", ".join(row[0] for row in left_out)
        told.append(
            f"TEST.BOXES {cfg.TEST.BOXES} does not measure {tasks}: these TEST.EXPECTED_RESULTS "
            "are not verified."
        )
    if told:
        cfg.defrost()
        cfg.TEST.EXPECTED_RESULTS = rows
        cfg.freeze()
    return told


def verify_expected(cfg: CfgNode, results: Mapping) -> None:
    """Compare results with ``TEST.EXPECTED_RESULTS``; leave with status 1 if they are not met.

    What a run did not measure is named in one warning.

    Args:
        cfg: the config.
        results: {task: {metric: value}}.
    """
    rows = list(cfg.TEST.EXPECTED_RESULTS)
    measured = [row for row in rows if row[1] in (results.get(row[0]) or {})]
    if missing := [f"{row[0]} {row[1]}" for row in rows if row not in measured]:
        logger.warning(
            "TEST.EXPECTED_RESULTS has %s, which this run did not measure (its tasks: %s): not "
            "verified.",
            ", ".join(missing),
            ", ".join(results) or "none",
        )
    if measured:
        cfg = cfg.clone()
        cfg.defrost()
        cfg.TEST.EXPECTED_RESULTS = measured
        verify_results(cfg, results)


def _datasets(cfg: CfgNode) -> tuple:
    return tuple(cfg.DATASETS.TRAIN), tuple(cfg.DATASETS.TEST)
