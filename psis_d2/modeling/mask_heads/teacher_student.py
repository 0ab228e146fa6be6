"""Teacher and student mask heads (Zhao et al., "Rethinking Mask Heads").

Two heads on the same RoI features (paper sec. 4). The *teacher* is class-agnostic and learns from
the regions whose object has a mask, with the losses that it has by itself. The *student* is
class-specific and learns from all foreground regions: from their masks where there are some (true
ones, or foreign ones, each with its weight), from the teacher's post-processed predictions where
there are none (Eq. 4 to 6). Both heads may be any of the registry. At test time there is the
student alone.

Pseudo masks carry no gradient, to the teacher or to the student; features learn from both heads.
The paper does not say which mode the teacher predicts in. Here it is that of a test: without
dropout, and with the running statistics of batch norms, which mask-annotated regions alone make.
"""

import contextlib
import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from psis_d2.errors import UserError, check_choice
from psis_d2.modeling.context import RegionContext
from psis_d2.modeling.losses import select_class, zero_loss
from psis_d2.modeling.mask_heads.base import RegionMaskHead, prepare_mask_head
from psis_d2.modeling.pseudo_masks import PREDICT_WITH, TRUSTS, PseudoMasks, trust_in

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from detectron2.structures import Boxes
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

STUDENT_CHANNELS = ("own_class", "all")


def resize_map(maps: Tensor, side: int) -> Tensor:
    """Soft masks in cells of another size.

    Smaller: a cell is the mean of the cells that it covers; larger: bilinear between their centers.

    Args:
        maps: float [R, 1, M, M].
        side: of the result.

    Returns:
        float [R, 1, side, side].
    """
    if maps.shape[-1] >= side:
        return F.adaptive_avg_pool2d(maps, side)
    return F.interpolate(maps, size=(side, side), mode="bilinear", align_corners=False)


@ROI_MASK_HEAD_REGISTRY.register()
class TeacherStudentMaskHead(RegionMaskHead):
    """A class-specific student beside a class-agnostic teacher.

    The student's loss is the binary cross-entropy, averaged over the cells of a region and then
    over all foreground regions, those with a pseudo mask counting as much as the others (times
    `pseudo_weight`). With `channels` "all" the cross-entropies of a cell's channels are summed, so
    that the region's own class weighs the same in both. What further losses the student's kind of
    head has are not used.

    The teacher decides what features and masks cover.

    Args:
        teacher: class-agnostic; its losses get the suffix ``_teacher``.
        student: with a mask for each class, or one that is its class's own.
        num_classes: number of foreground classes K.
        pseudo_masks: the post-processing.
        pixel_std: what the channels of the model's input were divided by; the CRF's colors are
            what they were before.
        channels: "own_class": only the channel of the region's class learns; "all": all do, the
            target of the other classes' is empty (Eq. 3).
        trust: how much the cells of pseudo masks count, see
            :func:`~psis_d2.modeling.pseudo_masks.trust_in`.
        momentum: of the teacher that makes pseudo masks, a running mean of the teacher's weights
            (Tarvainen and Valpola, NeurIPS 2017); 0: it is the teacher itself.
        warm_loss: learn from true masks only, too, until the running mean of the teacher's own mask
            loss is below this; 0: do not wait.
        warm_start: iterations in which the student learns from true masks only; regions without are
            then left out of the average.
        teacher_weight, student_weight: factors of all losses of the two.
        pseudo_weight: factor of the loss of a region with a pseudo mask.
        student_only: forget the teacher; such a model can only be tested.
        predict_with: whose masks are predicted, "student" or, to compare the two, "teacher".
    """

    trains_on = "foreground"

    @configurable
    def __init__(
        self,
        *,
        teacher: RegionMaskHead,
        student: RegionMaskHead,
        num_classes: int,
        pseudo_masks: PseudoMasks,
        pixel_std: Sequence[float] = (1.0, 1.0, 1.0),
        channels: str = "own_class",
        trust: str = "equal",
        momentum: float = 0.0,
        warm_loss: float = 0.0,
        warm_start: int = 0,
        teacher_weight: float = 1.0,
        student_weight: float = 1.0,
        pseudo_weight: float = 1.0,
        student_only: bool = False,
        predict_with: str = "student",
    ):
        super().__init__(loss_weight=student_weight, weak=() if student_only else teacher.weak)
        self.regularize = nn.Identity()  # both heads have their own
        self.teacher = None if student_only else teacher
        self.student = student
        self.num_classes = num_classes
        self.pseudo_masks = pseudo_masks
        self.pixel_std = tuple(pixel_std)
        self.channels = channels
        check_choice("PSIS.TEACHER_STUDENT.TRUST", trust, TRUSTS)
        self.trust = trust
        self.momentum = momentum
        self.slow_teacher = None
        if momentum > 0 and self.teacher is not None:
            self.slow_teacher = copy.deepcopy(self.teacher).requires_grad_(False)
        self.warm_loss = warm_loss
        if warm_loss > 0:
            self.register_buffer("taught", torch.tensor(math.inf))
        self.warm_start = warm_start
        self.teacher_weight = teacher_weight
        self.pseudo_weight = pseudo_weight
        self.predict_with = predict_with
        if student_only and predict_with == "teacher":
            raise UserError(
                "PSIS.TEACHER_STUDENT.PREDICT_WITH is teacher, but with STUDENT_ONLY True there is "
                "none; set it to student."
            )

        # The student keeps the teacher's frames also when the teacher is gone.
        self._frames = teacher.frames
        if student_only:
            self.needs = replace(
                student.needs,
                wide_frames=teacher.needs.wide_frames,
                canonical_frame=teacher.needs.canonical_frame,
            )
        else:
            self.needs = teacher.needs | student.needs
            if pseudo_masks.uses_colors:
                self.needs = replace(self.needs, images=True)

    @classmethod
    def from_config(cls, cfg, input_shape):
        node = cfg.PSIS.TEACHER_STUDENT
        check_choice(
            "PSIS.TEACHER_STUDENT.STUDENT_CHANNELS", node.STUDENT_CHANNELS, STUDENT_CHANNELS
        )
        check_choice("PSIS.TEACHER_STUDENT.PREDICT_WITH", node.PREDICT_WITH, PREDICT_WITH)
        # A teacher that only says what the student sees has no need of weights.
        with torch.device("meta") if node.STUDENT_ONLY else contextlib.nullcontext():
            teacher = _build_head(_config_of(cfg, "TEACHER"), input_shape)
        return {
            "teacher": teacher,
            "student": _build_head(_config_of(cfg, "STUDENT"), input_shape),
            "num_classes": cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "pseudo_masks": PseudoMasks.from_config(cfg),
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "channels": node.STUDENT_CHANNELS,
            "trust": node.TRUST,
            "momentum": node.MOMENTUM,
            "warm_loss": node.WARM_LOSS,
            "warm_start": node.WARM_START,
            "teacher_weight": node.TEACHER_WEIGHT,
            "student_weight": node.STUDENT_WEIGHT,
            "pseudo_weight": node.PSEUDO_WEIGHT,
            "student_only": node.STUDENT_ONLY,
            "predict_with": node.PREDICT_WITH,
        }

    @classmethod
    def prepare(cls, cfg):
        """What teacher and student need."""
        for role in ("TEACHER", "STUDENT"):
            prepare_mask_head(_config_of(cfg, role))

    def frames(self, boxes: Boxes, image_size: tuple[int, int]) -> Boxes:
        """The teacher's, see :class:`RegionMaskHead`."""
        return self._frames(boxes, image_size)

    def predict(self, context: RegionContext) -> Tensor:
        """Mask logits of the student, or of the teacher, see ``predict_with``."""
        return self._predicting.predict(context)

    def heat_maps(self, context: RegionContext) -> dict[str, Tensor]:
        """Those of the head that predicts, see :class:`RegionMaskHead`."""
        return self._predicting.heat_maps(context)

    @property
    def _predicting(self) -> RegionMaskHead:
        return self.teacher if self.predict_with == "teacher" else self.student

    def losses(self, context: RegionContext) -> dict[str, Tensor]:
        """``loss_mask``, the student's, and the teacher's, ``loss_mask_teacher`` among them.

        Logs ``pseudo_masks/foreground``, the share of foreground in the batch's pseudo masks: near
        0 or 1, the student learns to mark nothing or to fill boxes.
        """
        if self.teacher is None:
            raise UserError(
                "PSIS.TEACHER_STUDENT.STUDENT_ONLY True builds a model without a teacher, which "
                "cannot be trained; set it to False."
            )
        annotated = context.annotated
        losses = {
            f"{name}_teacher": self.teacher_weight * loss
            for name, loss in self.teacher.losses(annotated).items()
        }
        if self.slow_teacher is not None:
            self._follow()
        warming_up = self._warming_up(losses["loss_mask_teacher"], len(annotated) > 0)
        losses["loss_mask"] = self.student_loss(annotated if warming_up else context)
        return losses

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the slow teacher a step towards the teacher; its norms' statistics are copied."""
        pairs = zip(self.slow_teacher.parameters(), self.teacher.parameters(), strict=True)
        for slow, fast in pairs:
            slow.lerp_(fast.to(slow), 1 - self.momentum)
        for slow, fast in zip(self.slow_teacher.buffers(), self.teacher.buffers(), strict=True):
            slow.copy_(fast)

    def _warming_up(self, loss: Tensor, counts: bool) -> bool:
        """Whether the student is to see true masks alone.

        Args:
            loss: the teacher's weighted mask loss.
            counts: whether it is of any mask.
        """
        if self.warm_loss > 0:
            if counts:
                now = loss.detach().float() / (self.teacher_weight or 1.0)
                first = self.taught.isinf()
                self.taught.copy_(torch.where(first, now, 0.98 * self.taught + 0.02 * now))
            if self.taught.item() >= self.warm_loss:
                return True
        return self.warm_start > 0 and get_event_storage().iter < self.warm_start

    def weak_losses(self, context: RegionContext) -> dict[str, Tensor]:
        """The teacher's, with the suffix ``_teacher``: the student has its pseudo masks."""
        if not self.weak:
            return {}
        return {
            f"{name}_teacher": self.teacher_weight * loss
            for name, loss in self.teacher.weak_losses(context).items()
        }

    def student_loss(self, context: RegionContext) -> Tensor:
        """The weighted loss of the student on R >= 0 regions, connected to all its parameters."""
        loss = zero_loss(self.student)
        if len(context) == 0:
            return loss + self.student.take_part(context)
        every = self.channels == "all"
        logits = (self.student.predict_all if every else self.student.predict)(context)
        if self.channels == "all" and logits.shape[1] != self.num_classes:
            raise UserError(
                f"PSIS.TEACHER_STUDENT.STUDENT_CHANNELS all needs a mask of every class, and "
                f"{type(self.student).__name__} predicts {logits.shape[1]} a region; set it to "
                "own_class, or PSIS.TEACHER_STUDENT.STUDENT to another head."
            )
        targets, trust = self._targets_and_trust(context, logits)
        own = select_class(logits, context.classes).float()
        if self.channels == "all":
            # The cross-entropy with target t is softplus(x) - x t, and t is 0 but for one channel.
            cells = F.softplus(logits.float()).sum(dim=1) - own * targets
        else:
            cells = F.binary_cross_entropy_with_logits(own, targets, reduction="none")
        if trust is not None:
            cells = cells * trust
        of_masks = context.mask_weights
        weights = torch.where(
            context.has_mask, 1.0 if of_masks is None else of_masks, self.pseudo_weight
        )
        return loss + self.loss_weight * (cells.mean(dim=(1, 2)) * weights).mean()

    @torch.no_grad()
    def targets(self, context: RegionContext, logits: Tensor) -> Tensor:
        """What the student is to predict in the channel of each region's class (Eq. 4).

        Args:
            context: R > 0 regions.
            logits: float [R, K, M, M], what it does predict.

        Returns:
            float32 [R, M, M] of 0 and 1.
        """
        return self._targets_and_trust(context, logits)[0]

    @torch.no_grad()
    def _targets_and_trust(
        self, context: RegionContext, logits: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """See :meth:`targets`; and the factors of the cells' losses, None if all are 1."""
        side = logits.shape[-1]
        trust = None
        targets = torch.zeros(len(context), side, side, device=logits.device)
        targets[context.annotated_rows] = context.annotated.mask_targets(side)
        unseen = context.maskless
        if len(unseen):
            classes, rows = unseen.classes, context.maskless_rows
            teacher = self.teacher if self.slow_teacher is None else self.slow_teacher
            with _as_in_tests(teacher):
                taught = select_class(teacher.predict(unseen), classes)
            own = select_class(logits[rows], classes)
            pseudo, probability = self.pseudo_targets(unseen, taught, own)
            targets[rows] = pseudo
            if self.trust != "equal":
                trust = torch.ones_like(targets)
                trust[rows] = trust_in(self.trust, probability, pseudo)
            get_event_storage().put_scalar("pseudo_masks/foreground", pseudo.mean().item())
        return targets, trust

    @torch.no_grad()
    def pseudo_targets(
        self, context: RegionContext, teacher: Tensor, student: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Targets of regions without a mask, see :class:`PseudoMasks`.

        Args:
            context: R of these regions.
            teacher: float [R, N, N], logits. For another side than M see :func:`resize_map`: the
                probabilities are brought to the student's cells before anything else.
            student: float [R, M, M], logits of the annotated class.

        Returns:
            float32 [R, M, M] of 0 and 1, and float32 [R, M, M], the probabilities that they were
            cut from.
        """
        make, side = self.pseudo_masks, student.shape[-1]
        probability = resize_map(teacher.float().sigmoid()[:, None], side)[:, 0]
        if make.uses_colors:
            std = probability.new_tensor(self.pixel_std).view(-1, 1, 1)
            probability = make.sharpen(probability, context.image_crops(side) * std)
        cleaning = ()
        if make.cleaning:
            cleaning = (context.object_cells(side), context.annotated_cells(side))
        own = student.float().sigmoid()
        return make(probability, own, *cleaning).float(), make.combined(probability, own)


@contextlib.contextmanager
def _as_in_tests(module: nn.Module) -> Iterator[None]:
    """While it lasts, the module and its parts are in eval mode."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def _config_of(cfg, role: str):
    """The config of the head that ``PSIS.TEACHER_STUDENT.<role>`` names, teacher or student."""
    key = f"PSIS.TEACHER_STUDENT.{role}"
    names = [
        name
        for name, kind in ROI_MASK_HEAD_REGISTRY
        if issubclass(kind, RegionMaskHead) and kind is not TeacherStudentMaskHead
    ]
    name, options = (cfg.PSIS.TEACHER_STUDENT[x] for x in (role, f"{role}_OPTS"))
    check_choice(key, name, names)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.ROI_MASK_HEAD.NAME = name
    cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK = role == "TEACHER"
    try:
        cfg.merge_from_list(list(options))
    except (KeyError, ValueError, AssertionError) as error:  # as yacs turns options down
        reason = str(error.args[0] if error.args else error).rstrip(".")
        raise UserError(
            f"{key}_OPTS is {list(options)}, which cannot be used ({reason}); give keys of the "
            "config and their values by turns."
        ) from error
    return cfg


def _build_head(cfg, input_shape: ShapeSpec) -> RegionMaskHead:
    return ROI_MASK_HEAD_REGISTRY.get(cfg.MODEL.ROI_MASK_HEAD.NAME)(cfg, input_shape)
