"""Tell early when box supervision goes wrong."""

import logging

from detectron2.utils.events import get_event_storage

logger = logging.getLogger(__name__)

# Share of the newest value in the running mean of the fill ratio.
_MOMENTUM = 0.05


class BoxMaskMonitor:
    """Logs how box losses fare and warns when masks have become their boxes.

    The projection loss alone is content with a mask that fills its box; what keeps masks from that
    are pairs of like color. Scalars are ``masks/positive_pairs``, the share of pairs in the boxes
    that are of like color, and ``masks/box_fill``, the mean share of its box that a mask covers.

    Args:
        limit: warn when the running mean of the fill ratio is above.
        start: first iteration that counts.
        period: number of iterations in which there is one warning at most.
    """

    def __init__(self, limit: float, start: int, period: int = 1000):
        self.limit = limit
        self.start = start
        self.period = period
        self.mean = None
        self.quiet_until = 0

    def update(self, positive_pairs: float, box_fill: float) -> None:
        """Log one iteration's ratios, both in [0, 1]; within Detectron2's event storage."""
        storage = get_event_storage()
        storage.put_scalar("masks/positive_pairs", positive_pairs)
        storage.put_scalar("masks/box_fill", box_fill)
        if storage.iter < self.start:
            return
        self.mean = box_fill if self.mean is None else self.mean
        self.mean += _MOMENTUM * (box_fill - self.mean)
        if self.mean > self.limit and storage.iter >= self.quiet_until:
            self.quiet_until = storage.iter + self.period
            logger.warning(
                "Masks fill %.0f %% of their boxes (running mean, iteration %d), so they are "
                "collapsing to boxes; %.0f %% of the pairs are of like color: lower "
                "PSIS.CONDINST.COLOR_THRESHOLD if these are few, or the learning rate.",
                *(100 * self.mean, storage.iter, 100 * positive_pairs),
            )
