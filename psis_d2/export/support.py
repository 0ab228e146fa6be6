"""Which models can be exported: the table that refusals, documentation and tests read."""

from __future__ import annotations

from dataclasses import dataclass

from detectron2.config import CfgNode

FORMATS = {"torchscript": "TorchScript", "onnx": "ONNX"}
"""Formats by the names that the command line has for them."""

_GRABCUT = (
    "its masks are GrabCut's, which cuts them from pixels at test time and is no part of the model"
)


@dataclass(frozen=True)
class Support:
    """One kind of model, by a config of it."""

    config: str
    """In ``configs/``. Others of the same kind (deeper backbones, variants of losses) are its
    graph with other numbers."""
    quick: str
    """The same kind of minutes, in ``configs/quick/``."""
    masks: str
    """What makes the masks: the mask head's name, ``CondInst``, ``GrabCut``, or "" for none."""
    detector: str
    """Name of the proposal generator."""
    torchscript: str = ""
    """Why it cannot be a TorchScript file; "" = it can, and is equal to the model."""
    onnx: str = ""
    """Why it cannot be an ONNX file; "" = it can."""

    def reason(self, file_format: str) -> str:
        """Why there is no file of a format, "" if there is."""
        return {"torchscript": self.torchscript, "onnx": self.onnx}[file_format]


def _row(config: str, quick: str, masks: str, detector: str, why_not: str = "") -> Support:
    return Support(config, f"{quick}_shapes", masks, detector, why_not, why_not)


SUPPORTED = (
    _row("maskrcnn_agnostic_R50", "agnostic", "FCNMaskHead", "PartialRPN"),
    _row("maskrcnn_agnostic_mlp_R50", "agnostic_mlp", "FCNMaskHead", "PartialRPN"),
    _row("shapeprop_R50", "shapeprop", "ShapePropMaskHead", "PartialRPN"),
    _row("shapeprop_retinamask_R50", "shapeprop_retinamask", "ShapePropMaskHead", "RetinaNet"),
    _row("cpmask_R50", "cpmask", "CPMaskHead", "FCOS"),
    _row("cpmask_faster_R50", "cpmask_faster_gt", "CPMaskHead", "PartialRPN"),
    _row("cpmask_baseline_R50", "fcos_agnostic", "FCNMaskHead", "FCOS"),
    _row("maskx_R50", "maskx", "MaskXMaskHead", "PartialRPN"),
    _row("opmask_R50", "opmask", "OPMaskHead", "PartialRPN"),
    _row("contrastmask_R50", "contrastmask", "ContrastMaskHead", "PartialRPN"),
    _row("hourglass_R50", "hourglass", "HourglassMaskHead", "PartialRPN"),
    _row("retinamask_R50", "retinamask", "FCNMaskHead", "RetinaNet"),
    _row("shapemask_R50", "shapemask", "ShapeMaskHead", "RetinaNet"),
    _row("shapemask_paper_R101", "shapemask_fixed", "ShapeMaskHead", "RetinaNet"),
    _row("shapemask_R101_NASFPN", "shapemask", "ShapeMaskHead", "RetinaNet"),
    _row("condinst_R50", "condinst", "CondInst", "FCOS"),
    _row("boxinst_R50", "boxinst", "CondInst", "FCOS"),
    _row("boxinst_teacher_student_R50", "boxinst_teacher_student", "CondInst", "FCOS"),
    _row("teacher_student_R50", "teacher_student", "TeacherStudentMaskHead", "PartialRPN"),
    _row("opmask_teacher_student_R50", "teacher_student", "TeacherStudentMaskHead", "PartialRPN"),
    _row("fasterrcnn_grabcut_R50", "grabcut_test", "GrabCut", "PartialRPN", _GRABCUT),
)


def support_of(cfg: CfgNode) -> Support | None:
    """The first row of :data:`SUPPORTED` that is of a config's kind; None if there is none.

    A kind without a row, such as a mask head of one's own, may be exported all the same: each
    export is compared with its model before the file is written.
    """
    model = cfg.MODEL
    masks = model.ROI_MASK_HEAD.NAME if model.MASK_ON else ""
    if model.META_ARCHITECTURE == "CondInst":
        masks = "CondInst"
    elif cfg.TEST.MASKS == "grabcut":
        masks = "GrabCut"
    kind = masks, model.PROPOSAL_GENERATOR.NAME
    return next((row for row in SUPPORTED if (row.masks, row.detector) == kind), None)


def support_table() -> str:
    """:data:`SUPPORTED` as a table in Markdown."""
    lines = [f"| config | {' | '.join(FORMATS.values())} |", "|---|---|---|"]
    for row in SUPPORTED:
        cells = [f"no: {why}" if (why := row.reason(name)) else "yes" for name in FORMATS]
        lines.append(f"| `{row.config}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
