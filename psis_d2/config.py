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
    # with one class name a line. "auto": the categories that have a mask in the training json;
    # "mapped": the classes that PSIS.CATEGORY_MAP leads to.
    cfg.PSIS.SEEN_CLASSES = "voc"
    # Upper bound: unseen categories keep their masks in training; the tables stay split.
    cfg.PSIS.ORACLE = False
    # A text file of image ids or file names; only these images keep masks. "" = all of them.
    cfg.PSIS.MASK_IMAGES = ""
    # Share of images that keep masks; with one seed a smaller share is part of a larger one.
    cfg.PSIS.MASK_IMAGE_FRACTION = 1.0
    # Another draw of the same share.
    cfg.PSIS.MASK_IMAGE_SEED = 0

    # What an object whose mask training may not see is trained on: "none" = its box alone |
    # "grabcut" = the GrabCut mask of its box (Hu et al., CVPR 2018, sec. 4.3).
    cfg.PSIS.MISSING_MASKS = "none"
    _add_grabcut_config(cfg)
    # Where masks that take long to make are kept; "" = psis_d2_cache in DETECTRON2_DATASETS.
    cfg.PSIS.CACHE_DIR = ""

    # ---- several data sets with different categories -------------------------------------------
    # A YAML or JSON file that names, for every category of the further data sets, the model's class
    # (null: leave it out). The model's classes are those of the first training data set.
    # "" = all data sets must have the same categories.
    cfg.PSIS.CATEGORY_MAP = ""

    # ---- what the mask head is trained on ------------------------------------------------------
    # proposals (Mask R-CNN) | gt (CPMask's and DeepMAC's released code) | jittered_gt (ShapeMask).
    # The most valuable switch for unseen categories in the literature (DeepMAC, ICCV 2021).
    cfg.PSIS.MASK_TRAIN_BOXES = "proposals"
    # Noise of jittered_gt: sd of the centre and log-size shifts, in units of the box (ShapeMask).
    cfg.PSIS.BOX_JITTER_STD = 0.1

    # ---- regularisers of any RoI mask head, training only --------------------------------------
    # Drop channels of the RoI features: the control that a method's gain has to beat.
    cfg.PSIS.ROI_CHANNEL_DROPOUT = 0.0
    # Share of RoIs that lose all RoI features, so that a head with a shape prior learns to use it.
    cfg.PSIS.ROI_FEATURE_DROP = 0.0

    # ---- checkpoints ---------------------------------------------------------------------------
    # Start from a checkpoint of other classes: layers of another shape keep their random weights.
    cfg.PSIS.SKIP_MISMATCHED_WEIGHTS = False

    _add_shapeprop_config(cfg)

    # SGD (Detectron2's, and that of all published schedules) or AdamW (faster in short runs).
    cfg.SOLVER.OPTIMIZER = "SGD"

    # Boxes that masks are measured in: detected | gt (from the annotations) | both.
    cfg.TEST.BOXES = "detected"
    # Where their masks come from: model | grabcut (needs no mask head: MODEL.MASK_ON False).
    cfg.TEST.MASKS = "model"


def _add_grabcut_config(cfg: CN) -> None:
    """GrabCut (Rother et al., SIGGRAPH 2004); the papers name no settings."""
    node = cfg.PSIS.GRABCUT = CN()
    # Turns of colour models and cut.
    node.ITERATIONS = 5
    # Background for sure is a band around the box, this many box sides wide: the whole image, the
    # original's choice, costs several times the time.
    node.CONTEXT = 0.5
    # Longest side of box and band in pixels, larger ones are shrunk, to save time; 0 = never.
    node.MAX_SIDE = 256
    # Images (in training: making the cache) or boxes (testing) at a time; 0 = one a core.
    node.THREADS = 0


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
