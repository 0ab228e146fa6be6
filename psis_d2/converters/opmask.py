"""OPMask (dbtmpl/OPMask, on Detectron2; names read in its code)."""

import re

from psis_d2.converters.rules import Rule, Source


def _counted(where: str):
    """Layers that are counted from 1 in their names, and from 0 in ours."""

    def name(match: re.Match) -> str:
        return f"{where}.{int(match[1]) - 1}.{match[2]}"

    return name


OPMASK = Source(
    rules=(
        Rule(r"(proposal_generator\.anchor_generator\.|pixel_(mean|std)).*", None),
        Rule(r"(backbone|proposal_generator\.rpn_head)\..*", r"\g<0>"),
        Rule(r"roi_heads\.box_head\.conv(\d+)\.(.*)", _counted("roi_heads.box_head.convs")),
        Rule(r"roi_heads\.box_head\.(cls_score|bbox_pred)\.(.*)", r"roi_heads.box_predictor.\1.\2"),
        Rule(r"roi_heads\.mask_head\.mask_down(\d+)\.(.*)", _counted("roi_heads.mask_head.trunk")),
        Rule(r"roi_heads\.mask_head\.mask_up1\.(.*)", r"roi_heads.mask_head.predictor.0.\1"),
        Rule(r"roi_heads\.mask_head\.predictor\.(.*)", r"roi_heads.mask_head.predictor.2.\1"),
    )
)
