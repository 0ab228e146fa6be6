"""Every config key that psis_d2 adds to Detectron2's, each with one line of reason.

A key is declared with its default and what it may be, which is checked before a run starts:
``node.NAME = default, check``; :mod:`psis_d2.config_checks` has the checks. The keys of single
methods, detectors and backbones are in :mod:`psis_d2.config_methods`.

"paper" and "released code" name the two sources where they differ; the released code's choice is
the default, because the published numbers come from it.
"""

import copy
import functools
from collections.abc import Mapping

from psis_d2.config_checks import (
    Key,
    Keys,
    Rows,
    flag,
    json_file,
    list_of,
    needs,
    number,
    one_of,
    one_of_or_json,
    text,
    whole,
)
from psis_d2.config_methods import add_method_keys

from detectron2.config import CfgNode as CN

# Keys that had another name, and their names now.
RENAMED_KEYS = {
    "PSIS.CONDINST.PSEUDO_MASKS": "PSIS.TEACHER_STUDENT.POSTPROCESS",
    "PSIS.CONDINST.PSEUDO_START": "PSIS.TEACHER_STUDENT.WARM_START",
    "PSIS.OPMASK.CAM_NORMALISED": "PSIS.OPMASK.CAM_NORMALIZED",
    "PSIS.TEACHER_STUDENT.CRF_COLOUR_SIGMA": "PSIS.TEACHER_STUDENT.CRF_COLOR_SIGMA",
}


def add_psis_config(cfg: CN) -> None:
    """Add psis_d2's keys to a Detectron2 config, in place.

    Args:
        cfg: the node returned by :func:`detectron2.config.get_cfg`.
    """
    for key, known in psis_keys().items():
        *path, name = key.split(".")
        node = cfg
        for part in path:
            if part not in node:
                node[part] = CN()
            node = node[part]
        node[name] = copy.deepcopy(known.default)
    for old, new in RENAMED_KEYS.items():
        cfg.register_renamed_key(old, new)


@functools.cache
def psis_keys() -> Mapping[str, Key]:
    """The keys that :func:`add_psis_config` adds, by full name."""
    keys: dict[str, Key] = {}
    _add_data_config(keys)
    _add_run_config(keys)
    _add_grabcut_config(keys)
    _add_region_config(keys)
    add_method_keys(keys)
    _add_training_config(keys)
    _add_solver_and_test_config(keys)
    return keys


def _add_run_config(keys: dict[str, Key]) -> None:
    """What training may see, and where it starts: read by the data loader and the trainer."""
    node = Keys(keys, "PSIS", of_model=False)

    # ---- supervision: which instances may show their mask to training --------------------------
    # The split: voc | nonvoc | shapes | shapes-swapped | all | auto | random-K-SEED | a text file
    # with one class name a line. "auto": the categories that have a mask in the training json;
    # "mapped": the classes that PSIS.CATEGORY_MAP leads to; "maskx-20-1": 20 to 60 categories,
    # trial 1 to 5 of Hu et al., Fig. 3; "voc+20-0": voc and 20 others, drawn by seed 0;
    # "not:SPLIT": all others.
    node.SEEN_CLASSES = "voc", text()
    # Categories whose objects training may see at all, spelled alike; the others lose their boxes,
    # too: the base categories of few-shot training.
    node.TRAIN_CLASSES = "all", text()
    # Upper bound: unseen categories keep their masks in training; the tables stay split.
    node.ORACLE = False, flag()
    # A text file of image ids or file names; only these images keep masks. "" = all of them.
    node.MASK_IMAGES = "", text(empty=True)
    # Share of images that keep masks; with one seed a smaller share is part of a larger one.
    node.MASK_IMAGE_FRACTION = 1.0, number(0.0, 1.0)
    # Another draw of the same share.
    node.MASK_IMAGE_SEED = 0, whole()
    # Share of images to train on at all, drawn in the same way (ShapeMask, Fig. 8).
    node.TRAIN_IMAGE_FRACTION = 1.0, number(0.0, 1.0)
    # Another draw of the same share.
    node.TRAIN_IMAGE_SEED = 0, whole()
    # Train on images with a mask alone: the second stage of stage-wise training, as in the released
    # code of Hu et al.; images of a data set that has boxes alone are of no use there.
    node.MASKED_IMAGES_ONLY = False, flag()

    # What an object whose mask training may not see is trained on: "none" = its box alone |
    # "grabcut" = the GrabCut mask of its box (Hu et al., CVPR 2018, sec. 4.3) | a json of masks, as
    # autolabel and prompt-sam write it. Such masks teach, but count as annotations nowhere.
    node.MISSING_MASKS = "none", one_of_or_json("none", "grabcut")
    of_file = needs(("PSIS.MISSING_MASKS", json_file()))
    of_any = needs(("PSIS.MISSING_MASKS", "grabcut"), ("PSIS.MISSING_MASKS", json_file()))
    # Factor of the losses on such a mask, that of an annotated one being 1; 0 = do without it ...
    node.MISSING_MASK_WEIGHT = 1.0, number(0.0), of_any
    # ... times its score to this power, to trust sure masks more; 0.0 = all alike.
    node.MISSING_MASK_SCORE_POWER = 0.0, number(0.0), of_file
    # Masks of a lower score are left out.
    node.MISSING_MASK_MIN_SCORE = 0.0, number(0.0, 1.0), of_file
    # Where masks that take long to make are kept; "" = psis_d2_cache in DETECTRON2_DATASETS.
    node.CACHE_DIR = "", text(empty=True)

    # Data sets by their files, [name, json, folder of images] of each: --train-json and --val-json
    # write them here, so that the config.yaml of a run can be used again, anywhere.
    node.DATA_FILES = [], Rows((text(), text(), text()), '["mine", "mine.json", "images"]')

    # ---- several data sets with different categories -------------------------------------------
    # A YAML or JSON file that names, for every category of the further data sets, the model's class
    # (null: leave it out). The model's classes are those of the first training data set.
    # "" = all data sets must have the same categories.
    node.CATEGORY_MAP = "", text(empty=True)

    # mask_head: the second stage of stage-wise training (Hu et al., CVPR 2018, sec. 3.2), the mask
    # head alone on the detector that MODEL.WEIGHTS holds | mask_branch: with it the FPN, whose maps
    # then fit the mask head better than they fit the detector. "" = everything, end to end.
    node.TRAIN_ONLY = "", one_of("mask_head", "mask_branch", "")
    # Folder in which such a training keeps the frozen backbone's feature maps, a file an image, and
    # finds them again: they are most of an iteration's time on a CPU. "" = compute them each time.
    frozen = needs(("PSIS.TRAIN_ONLY", "mask_head"), ("PSIS.TRAIN_ONLY", "mask_branch"))
    node.KEEP_FEATURES = "", text(empty=True), frozen

    # ---- checkpoints ---------------------------------------------------------------------------
    # Start from a checkpoint of other classes: layers of another shape keep their random weights.
    node.SKIP_MISMATCHED_WEIGHTS = False, flag()
    # Train on when a checkpoint cannot be written, on a full disk for example; not the final one.
    node.SAVE_MAY_FAIL = False, flag()
    # Seconds that processes wait for one that hangs (as PyTorch); an evaluation has to fit.
    node.PROCESS_TIMEOUT = 1800.0, number(0.0, above=True)


def _add_region_config(keys: dict[str, Key]) -> None:
    """What RoI mask heads have in common."""
    node = Keys(keys, "PSIS")
    # ---- what the mask head is trained on ------------------------------------------------------
    # proposals (Mask R-CNN) | gt (CPMask's and DeepMAC's released code) | jittered_gt (ShapeMask).
    # The most valuable switch for unseen categories in the literature (DeepMAC, ICCV 2021).
    node.MASK_TRAIN_BOXES = "proposals", one_of("proposals", "gt", "jittered_gt")
    # Noise of jittered_gt: sd of the center and log-size shifts, in units of the box (ShapeMask).
    node.BOX_JITTER_STD = 0.1, number(0.0), needs(("PSIS.MASK_TRAIN_BOXES", "jittered_gt"))
    # Before that the sides of its boxes are multiplied by random factors between this and 1; 1.0 =
    # they are not (ShapeMask, Tab. 3, last row: 0.75, as TEST.BOX_SHRINK).
    node.BOX_TRAIN_SHRINK = (
        1.0,
        number(0.0, 1.0, above=True),
        needs(("PSIS.MASK_TRAIN_BOXES", "jittered_gt")),
    )
    # At most so many annotated boxes an image, drawn anew each time; 0 = all (ShapeMask: 8).
    on_annotated = needs(("PSIS.MASK_TRAIN_BOXES", "gt"), ("PSIS.MASK_TRAIN_BOXES", "jittered_gt"))
    node.MASK_BOXES_PER_IMAGE = 0, whole(0), on_annotated

    # Add to the mask loss that of the cells along contours, with this weight; ShapeMask has no
    # place for it, and CPMask a boundary module of its own, PSIS.CPMASK.
    node.BOUNDARY_WEIGHT = 0.0, number(0.0)

    # ---- objects without a mask, in any RoI mask head ------------------------------------------
    # Learn from their boxes, by BoxInst's losses (Tian et al., CVPR 2021); CondInst has keys of its
    # own for that, PSIS.CONDINST.SUPERVISION.
    node.BOX_LOSSES = False, flag()
    on_boxes = needs(("PSIS.BOX_LOSSES", True))
    # Weights of the loss on the mask's extents and of that on pairs of like color (BoxInst: 1).
    node.PROJECTION_WEIGHT = 1.0, number(0.0), on_boxes
    node.PAIRWISE_WEIGHT = 1.0, number(0.0), on_boxes
    # Distance of the eight neighbors that a cell is paired with, in cells of the region's mask.
    node.PAIRWISE_DILATION = 2, whole(1), on_boxes
    # Pairs whose colors are at least so similar belong together (BoxInst).
    node.COLOR_THRESHOLD = 0.3, number(0.0, 1.0), on_boxes
    # Iterations in which their loss grows to its full weight (BoxInst's released code).
    node.PAIRWISE_WARMUP = 10000, whole(0), on_boxes
    # Learn from annotated points, point_coords and point_labels in the json (PointSup, Cheng et
    # al., CVPR 2022); they are annotations of their own, which the split of masks leaves alone.
    node.POINTS = False, flag()
    # Weight of their loss (PointSup: 1).
    node.POINT_WEIGHT = 1.0, number(0.0), needs(("PSIS.POINTS", True))

    # ---- regularizers of any RoI mask head, training only --------------------------------------
    # Drop channels of the RoI features: the control that a method's gain has to beat.
    node.ROI_CHANNEL_DROPOUT = 0.0, number(0.0, 1.0)
    # Share of RoIs that lose all RoI features, so that a head with a shape prior learns to use it.
    node.ROI_FEATURE_DROP = 0.0, number(0.0, 1.0)

    # ---- the fused FCN+MLP head, for FCNMaskHead and MaskXMaskHead -----------------------------
    # Add a class-agnostic MLP's logits ("Learning to Segment Every Thing", CVPR 2018, sec. 3.4).
    node.MLP_BRANCH = False, flag()
    # Channels that its fully connected layer reads; 0 = the whole map, as in the released code,
    # which for 256 channels of 28 x 28 is a layer of 157 million weights.
    node.MLP_BRANCH_DIM = 0, whole(0), needs(("PSIS.MLP_BRANCH", True))

    # FCNMaskHead doubles the side of the RoI features so often: 1 (Mask R-CNN, masks of 28 x 28) |
    # 2 (56 x 56, the "higher-resolution" head of Zhao et al., Tab. 3).
    node.FCN_UPSAMPLINGS = 1, whole(1)


def _add_solver_and_test_config(keys: dict[str, Key]) -> None:
    node = Keys(keys, "SOLVER", of_model=False)
    # SGD (Detectron2's, and that of all published schedules) or AdamW (faster in short runs).
    node.OPTIMIZER = "SGD", one_of("SGD", "AdamW")

    node = Keys(keys, "TEST", of_model=False)
    # Boxes that masks are measured in: detected | gt (from the annotations) | both.
    node.BOXES = "detected", one_of("detected", "gt", "both")
    # Where their masks come from: model | grabcut (needs no mask head: MODEL.MASK_ON False) | a
    # json of masks as for PSIS.MISSING_MASKS, in given boxes alone (needs no mask head either).
    node.MASKS = "model", one_of_or_json("model", "grabcut")
    # Measure again in boxes whose sides are multiplied by random factors between this and 1; 1.0 =
    # do not (ShapeMask, Tab. 3: 0.75).
    node.BOX_SHRINK = 1.0, number(0.0, 1.0, above=True)
    # Another draw of the factors.
    node.BOX_SHRINK_SEED = 0, whole()
    # Measure masks again on overlapped objects alone, whose boxes another object's mask fills to at
    # least this share; 0.0 = do not (Zhao et al., Tab. 2: 0.3).
    node.OVERLAP = 0.0, number(0.0, 1.0)
    # Measure masks again by Boundary IoU (Cheng et al., CVPR 2021), which needs faster-coco-eval.
    node.BOUNDARY_AP = False, flag()
    # Further groups of categories in every table, [name, spelled as PSIS.SEEN_CLASSES] of each: a
    # fixed set while the seen one grows (CPMask, Fig. 6).
    node.GROUPS = [], Rows((text(), text()), '[["novel", "not:random-60-0"]]')


def _add_data_config(keys: dict[str, Key]) -> None:
    """How data is read and checked."""
    node = Keys(keys, "DATALOADER", of_model=False)
    # Look for every image file before the first iteration; a late miss costs the run.
    node.CHECK_FILES = True, flag()
    node = Keys(keys, "PSIS", of_model=False)
    # Annotations with iscrowd 1: "ignore" = regions, as COCO means them | "instances" = objects,
    # as CVAT exports painted masks.
    node.CROWDS = "ignore", one_of("ignore", "instances")
    # Names of the model's classes, which categories are matched with; [] = those of the first data
    # set.
    node.CLASSES = [], list_of(text())
    # Values that become black and white in images of 16 bits or floats, such as [0, 4095] for 12
    # bits; [] = the whole range of 16 bits, 0 to 1 for floats.
    node.PIXEL_RANGE = [], list_of(number())


def _add_grabcut_config(keys: dict[str, Key]) -> None:
    """GrabCut (Rother et al., SIGGRAPH 2004); the papers name no settings."""
    node = Keys(keys, "PSIS.GRABCUT", of_model=False)
    used = needs(("PSIS.MISSING_MASKS", "grabcut"), ("TEST.MASKS", "grabcut"))
    # Turns of color models and cut.
    node.ITERATIONS = 5, whole(1), used
    # Background for sure is a band around the box, this many box sides wide: the whole image, the
    # original's choice, costs several times the time.
    node.CONTEXT = 0.5, number(0.0), used
    # Longest side of box and band in pixels, larger ones are shrunk, to save time; 0 = never.
    node.MAX_SIDE = 256, whole(0), used
    # Images (in training: making the cache) or boxes (testing) at a time; 0 = one a core.
    node.THREADS = 0, whole(0), used


def _add_training_config(keys: dict[str, Key]) -> None:
    """What makes long runs fit a machine and be watched."""
    node = Keys(keys, "SOLVER", of_model=False)
    # Length of the run in passes over the training images, instead of MAX_ITER; STEPS keep their
    # places. 0 = MAX_ITER counts.
    node.EPOCHS = 0.0, number(0.0)
    # Another IMS_PER_BATCH on the command line than the file's scales the learning rate with it
    # (AdamW: with its root), and the iterations inversely. What the command line sets stays.
    node.SCALE_TO_BATCH = True, flag()
    # Pass a process's share of a batch through the model in so many parts, to save memory; steps,
    # learning rate and iterations stay what they are.
    node.ACCUMULATE = 1, whole(1)
    # Where convolutions are laid out channels last: "cpu", as oneDNN computes; "always", on GPUs,
    # too, whose tensor cores read half precision so. No GPU has measured it yet.
    node.CHANNELS_LAST = "cpu", one_of("cpu", "always")
    # Send losses, tables and pictures to this project of Weights & Biases; "" = do not.
    node.WANDB_PROJECT = "", text(empty=True)
    node = Keys(keys, "SOLVER.AMP", of_model=False)
    # Of SOLVER.AMP: float16, with loss scaling, on GPUs alone | bfloat16, on CPUs, too.
    node.DTYPE = "float16", one_of("float16", "bfloat16")
    node = Keys(keys, "TEST", of_model=False)
    # With TEST.EVAL_PERIOD: what model_best.pth is the best of, such as segm_unseen/AP; auto = AP
    # of masks on unseen categories, or the nearest that is measured; "" = no such file.
    node.BEST_METRIC = "auto", text(empty=True)
    # So many validation images are drawn after every evaluation, for TensorBoard and W&B.
    node.PICTURES = 4, whole(0)
