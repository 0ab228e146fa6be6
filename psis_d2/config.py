"""Every config key that psis_d2 adds to Detectron2's, each with one line of reason.

"paper" and "released code" name the two sources where they differ; the released code's choice is
the default, because the published numbers come from it.
"""

from detectron2.config import CfgNode as CN


def add_psis_config(cfg: CN) -> None:
    """Add psis_d2's keys to a Detectron2 config, in place.

    Args:
        cfg: the node returned by :func:`detectron2.config.get_cfg`.
    """
    cfg.PSIS = CN()

    # ---- supervision: which instances may show their mask to training --------------------------
    # The split: voc | nonvoc | shapes | shapes-swapped | all | auto | random-K-SEED | a text file
    # with one class name a line. "auto": the categories that have a mask in the training json.
    cfg.PSIS.SEEN_CLASSES = "voc"
    # Upper bound: unseen categories keep their masks in training; the tables stay split.
    cfg.PSIS.ORACLE = False
    # A text file of image ids or file names; only these images keep masks. "" = all of them.
    cfg.PSIS.MASK_IMAGES = ""
    # Share of images that keep masks; with one seed a smaller share is part of a larger one.
    cfg.PSIS.MASK_IMAGE_FRACTION = 1.0
    # Another draw of the same share.
    cfg.PSIS.MASK_IMAGE_SEED = 0

    # ---- what the mask head is trained on ------------------------------------------------------
    # proposals (Mask R-CNN) | gt (CPMask's and DeepMAC's released code) | jittered_gt (ShapeMask).
    # The most valuable switch for unseen categories in the literature (DeepMAC, ICCV 2021).
    cfg.PSIS.MASK_TRAIN_BOXES = "proposals"
    # Noise of jittered_gt: sd of the centre and log-size shifts, in units of the box (ShapeMask).
    cfg.PSIS.BOX_JITTER_STD = 0.1

    # mask_head: the second stage of stage-wise training (Hu et al., CVPR 2018, sec. 3.2), the mask
    # head alone on the detector that MODEL.WEIGHTS holds. "" = everything, end to end.
    cfg.PSIS.TRAIN_ONLY = ""

    # ---- regularisers of any RoI mask head, training only --------------------------------------
    # Drop channels of the RoI features: the control that a method's gain has to beat.
    cfg.PSIS.ROI_CHANNEL_DROPOUT = 0.0
    # Share of RoIs that lose all RoI features, so that a head with a shape prior learns to use it.
    cfg.PSIS.ROI_FEATURE_DROP = 0.0

    # ---- the fused FCN+MLP head, for FCNMaskHead and MaskXMaskHead -----------------------------
    # Add a class-agnostic MLP's logits ("Learning to Segment Every Thing", CVPR 2018, sec. 3.4).
    cfg.PSIS.MLP_BRANCH = False
    # Channels that its fully connected layer reads; 0 = the whole map, as in the released code,
    # which for 256 channels of 28 x 28 is a layer of 157 million weights.
    cfg.PSIS.MLP_BRANCH_DIM = 0

    # ---- checkpoints ---------------------------------------------------------------------------
    # Start from a checkpoint of other classes: layers of another shape keep their random weights.
    cfg.PSIS.SKIP_MISMATCHED_WEIGHTS = False

    _add_maskx_config(cfg)
    _add_hourglass_config(cfg)
    _add_shapeprop_config(cfg)

    # SGD (Detectron2's, and that of all published schedules) or AdamW (faster in short runs).
    cfg.SOLVER.OPTIMIZER = "SGD"

    # Boxes that masks are measured in: detected | gt (from the annotations) | both.
    cfg.TEST.BOXES = "detected"


def _add_maskx_config(cfg: CN) -> None:
    """MaskX R-CNN (Hu et al., "Learning to Segment Every Thing", CVPR 2018)."""
    node = cfg.PSIS.MASKX = CN()
    # What a class's mask kernel is predicted from: cls | box | cls+box, the box head's weights,
    # randn, the paper's control, or a text file of word vectors such as GloVe's (paper Tab. 1a).
    node.INPUT = "cls+box"
    # Layers of the transfer function: 1 | 2 | 3 (paper Tab. 1b).
    node.LAYERS = 2
    # Between them: ReLU | LeakyReLU, of slope 0.1 (paper Tab. 1b; slope from the released code).
    node.ACTIVATION = "LeakyReLU"
    # Keep the mask loss from the detection weights: seen and unseen stay alike (paper Tab. 1d).
    node.STOP_GRADIENT = True


def _add_hourglass_config(cfg: CN) -> None:
    """Deep-MARC's mask head (Birodkar et al., ICCV 2021); defaults: released Hourglass-52, 64."""
    node = cfg.PSIS.HOURGLASS = CN()
    # Channels of every scale, the finest first: one more than it halves the resolution.
    node.CHANNELS = [128, 128, 192, 192, 192, 256]
    # Residual blocks of every scale. [4, 4, 4, 4, 4, 8] = Hourglass-100; Hourglass-20 has three
    # scales, [1, 2, 2] with channels [128, 128, 192].
    node.BLOCKS = [2, 2, 2, 2, 2, 4]


def _add_shapeprop_config(cfg: CN) -> None:
    """ShapeProp (Zhou et al., "Learning Saliency Propagation", CVPR 2020)."""
    node = cfg.PSIS.SHAPEPROP = CN()
    # Convolutions of each of the two towers, activating and propagating (released code: 4).
    node.TOWER_CONVS = 4
    # Their width (released code: 256).
    node.TOWER_DIM = 256
    # Channels that carry messages: 24 in the released code, "e.g. 16" in the paper (sec. 3.1).
    node.LATENT_DIM = 24
    # One set of propagation weights for all channels (ablation, paper Tab. 4).
    node.CHANNEL_AGNOSTIC = False
    # Propagation steps; 0 = max(H, W) of the RoI, as paper and released code have it.
    node.STEPS = 0
    # Eq. 4's weights: "sigmoid_sum" in the released code; the paper only says they sum to 1, which
    # "softmax" does exactly.
    node.WEIGHT_NORM = "sigmoid_sum"
    # "softmax_ce": a classifier on the averaged saliency, background included (released code);
    # "signed_mean": the paper's Eq. 3, unbounded below, so give it a small ACTIVATING_WEIGHT.
    node.ACTIVATING_LOSS = "softmax_ce"
    # How the shape activation meets the RoI features: "embed" = ReLU, divide by its maximum, a few
    # convolutions, concatenate (released code); "concat" = concatenate its probability (paper).
    node.FUSION = "embed"
    # Convolutions of FUSION "embed" (released code: 4) ...
    node.EMBED_CONVS = 4
    # ... and their width (released code: 256, as wide as the RoI features).
    node.EMBED_DIM = 256
    # Weight of the saliency classifier's loss (released code: 1).
    node.ACTIVATING_WEIGHT = 1.0
    # Weight of the shape activation's loss (released code: 1).
    node.PROPAGATING_WEIGHT = 1.0
