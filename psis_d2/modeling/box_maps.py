"""The box head's feature maps, shared with a mask head that reads them (``needs.box_features``)."""

from dataclasses import dataclass, replace

from psis_d2.errors import UserError
from psis_d2.modeling.context import RegionContext

from detectron2.layers import cat
from detectron2.modeling import StandardROIHeads
from detectron2.structures import Boxes, Instances
from torch import Tensor


@dataclass(frozen=True)
class BoxMaps:
    """The box branch of ROI heads, with its feature maps in the open.

    The box head has to have ``maps``, from pooled features to feature maps [R, D, S, S], and
    ``pool``, from these to what the box predictor reads, as
    :class:`~psis_d2.modeling.box_heads.PooledConvBoxHead` has.
    """

    roi_heads: StandardROIHeads
    """Whose box branch it is."""

    def check(self) -> None:
        """See to it that the box branch can share its maps.

        Raises:
            UserError: the box head has no maps, or boxes move between the two branches.
        """
        heads = self.roi_heads
        reader = type(heads.mask_head).__name__
        if not hasattr(heads.box_head, "maps"):
            raise UserError(
                f"{reader} reads feature maps of the box head, and "
                f"{type(heads.box_head).__name__} has none before a pooling; set "
                "MODEL.ROI_BOX_HEAD.NAME PooledConvBoxHead."
            )
        if heads.train_on_pred_boxes:
            raise UserError(
                "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES True moves the boxes after the box head, "
                f"whose feature maps of them {reader} reads; set it to False."
            )

    def __call__(self, features: dict[str, Tensor], *groups: list[Boxes]) -> list[Tensor]:
        """Feature maps of groups of boxes.

        All groups pass the box head together: batch norm would give each of them statistics of its
        own, and test with a mixture of them.

        Args:
            features: the backbone's feature maps.
            *groups: one entry an image each, XYXY pixels of the input.

        Returns:
            float [R, D, S, S] of each group.
        """
        heads = self.roi_heads
        pairs = list(zip(*groups, strict=True))
        boxes = [Boxes.cat(list(of_image)) for of_image in pairs]
        pooled = heads.box_pooler([features[name] for name in heads.box_in_features], boxes)
        parts = heads.box_head.maps(pooled).split([len(x) for of_image in pairs for x in of_image])
        return [cat(parts[k :: len(groups)]) for k in range(len(groups))]

    def train(
        self,
        features: dict[str, Tensor],
        sampled: list[Instances],
        context: RegionContext,
        kept: Tensor | None,
        trains_boxes: bool,
    ) -> tuple[dict[str, Tensor], RegionContext]:
        """Train the box branch, and add its maps to the mask head's context.

        Args:
            features: the backbone's feature maps.
            sampled: S proposals, one entry an image.
            context: of R regions.
            kept: int64 [R], which of the samples the regions are; None if they are other boxes.
            trains_boxes: whether the box branch learns.

        Returns:
            The losses of the box branch, and the context with ``box_features``.
        """
        predictor = self.roi_heads.box_predictor
        if not trains_boxes:
            (maps,) = self(features, context.boxes)
            return {}, replace(context, box_features=maps)
        others = [context.boxes] if kept is None else []
        maps = self(features, [x.proposal_boxes for x in sampled], *others)
        losses = predictor.losses(predictor(self.roi_heads.box_head.pool(maps[0])), sampled)
        own = maps[1] if kept is None else maps[0][kept]
        return losses, replace(context, box_features=own)
