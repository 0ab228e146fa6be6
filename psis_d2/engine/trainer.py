"""Detectron2's trainer on psis_d2's data, evaluators and checkpoints."""

import itertools
import logging
import os
import weakref
from collections import OrderedDict

from psis_d2.data.build import (
    build_test_loader,
    build_train_loader,
    get_dataset_dicts,
    get_model_class_ids,
    seen_ids_for,
)
from psis_d2.data.grabcut import GrabCut
from psis_d2.data.grabcut_cache import cached_grabcut_masks
from psis_d2.data.supervision import restrict_masks
from psis_d2.engine.checkpoint import Checkpointer
from psis_d2.engine.given_boxes import BoxShrink, GivenBoxModel, ShrunkBoxModel
from psis_d2.engine.grabcut import GrabCutModel
from psis_d2.engine.guard import GuardedTraining, SaveBeforeEvaluation
from psis_d2.engine.non_finite import checked
from psis_d2.engine.solver import build_optimizer
from psis_d2.engine.stages import PARTS, train_only
from psis_d2.errors import UserError, check_choice
from psis_d2.evaluation import GivenBoxEvaluator, PartialCOCOEvaluator
from psis_d2.evaluation.base import write_json

import torch
from detectron2.data import MetadataCatalog
from detectron2.engine import (
    AMPTrainer,
    DefaultTrainer,
    HookBase,
    SimpleTrainer,
    TrainerBase,
)
from detectron2.engine.hooks import EvalHook
from detectron2.evaluation import inference_on_dataset
from detectron2.utils import comm
from torch.nn.parallel import DistributedDataParallel

logger = logging.getLogger(__name__)

TEST_MASKS = ("model", "grabcut")
TEST_BOXES = {"detected": ("detected",), "gt": ("gt",), "both": ("detected", "gt")}


class SeedEachIteration(HookBase):
    """Makes what an iteration draws a function of its number, so that a resumed run draws the same.

    Args:
        seed: the run's seed, >= 0.
    """

    def __init__(self, seed: int):
        self.seed = seed

    def before_step(self):
        draw = self.trainer.iter * comm.get_world_size() + comm.get_rank()
        torch.manual_seed((self.seed << 32) + draw)


class _LoaderFromIteration:
    """An iterable that builds its loader when it is first asked, after a resume set the start."""

    def __init__(self, build):
        self.build = build
        self.start_iter = 0
        self.batch: list[dict] = []  # the last one, for those who have to say what was in it

    def __iter__(self):
        for batch in self.build(self.start_iter):
            self.batch = batch
            yield batch


class Trainer(GuardedTraining, DefaultTrainer):
    """Train and evaluate a psis_d2 config.

    A run with ``SEED >= 0`` that is resumed gives the losses of an uninterrupted one. On the CPU
    it works with any number of (gloo) processes.

    Args:
        cfg: the config.
        trust_checkpoint: run code that a file of weights holds.
        allow_random: train from weights of which (nearly) none fit.
    """

    def __init__(self, cfg, *, trust_checkpoint: bool = False, allow_random: bool = False):
        # Not DefaultTrainer.__init__: Detectron2 v0.6 wraps the model for GPUs only.
        TrainerBase.__init__(self)
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        stage = [train_only(model, cfg.PSIS.TRAIN_ONLY)] if cfg.PSIS.TRAIN_ONLY else []
        optimizer = self.build_optimizer(cfg, model)
        self._loader = _LoaderFromIteration(lambda start: build_train_loader(cfg, start_iter=start))
        model = wrap_for_distribution(model)
        mixed_precision = cfg.SOLVER.AMP.ENABLED and next(model.parameters()).is_cuda
        if cfg.SOLVER.AMP.ENABLED and not mixed_precision:
            logger.warning("SOLVER.AMP.ENABLED has no effect on the CPU.")
        trainer_type = checked(AMPTrainer if mixed_precision else SimpleTrainer)
        self._trainer = trainer_type(model, self._loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = build_checkpointer(
            cfg,
            model,
            training=True,
            may_lack=PARTS.get(cfg.PSIS.TRAIN_ONLY, ""),
            trust=trust_checkpoint,
            allow_random=allow_random,
            trainer=weakref.proxy(self),
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        for hook in stage:  # PreciseBN, if wanted, looks now for statistics that are learned
            hook.before_step()
        self.register_hooks([*self.build_hooks(), *stage])

    def resume_or_load(self, resume: bool = True) -> None:
        """See Detectron2; the data continues where the checkpoint left it."""
        if resume and not self.checkpointer.has_checkpoint():
            logger.warning("No checkpoint in %s to resume from: a new run.", self.cfg.OUTPUT_DIR)
            resume = False
        if self.cfg.PSIS.TRAIN_ONLY and not resume and not self.cfg.MODEL.WEIGHTS:
            raise UserError(
                f"PSIS.TRAIN_ONLY {self.cfg.PSIS.TRAIN_ONLY} keeps the detector as it is loaded; "
                "give a trained one as MODEL.WEIGHTS."
            )
        super().resume_or_load(resume)
        self._loader.start_iter = self.start_iter

    def state_dict(self) -> dict:
        """What a checkpoint holds beside the model. Detectron2 v0.6 leaves the optimizer out."""
        return {**TrainerBase.state_dict(self), "_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        """The counterpart of :meth:`state_dict`."""
        TrainerBase.load_state_dict(self, state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])

    def build_hooks(self):
        """Detectron2's, after one that seeds every iteration; one that saves before evaluation."""
        hooks = [hook for hook in super().build_hooks() if hook is not None]
        if comm.is_main_process() and self.cfg.DATASETS.TEST:
            first = next(i for i, hook in enumerate(hooks) if isinstance(hook, EvalHook))
            hooks.insert(first, SaveBeforeEvaluation(self.cfg.TEST.EVAL_PERIOD))
        return [SeedEachIteration(self.cfg.SEED), *hooks] if self.cfg.SEED >= 0 else hooks

    @classmethod
    def build_model(cls, cfg):
        """The model on its device, laid out for that device's convolutions."""
        model = super().build_model(cfg)
        # What oneDNN computes in; NCHW weights and maps it would reorder call by call.
        on_cpu = cfg.MODEL.DEVICE == "cpu"
        return model.to(memory_format=torch.channels_last) if on_cpu else model

    @classmethod
    def build_train_loader(cls, cfg):
        """The training loader from its first iteration."""
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        """The test loader, without annotations."""
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_optimizer(cls, cfg, model):
        """See :func:`psis_d2.engine.solver.build_optimizer`."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_evaluator(cls, cfg, dataset_name, boxes: str = "detected", shrunk: bool = False):
        """The evaluator of one data set, for detected or given boxes."""
        folder = os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name.replace("/", "_"))
        kind = GivenBoxEvaluator if boxes == "gt" else PartialCOCOEvaluator
        seen_ids, class_ids = seen_ids_for(cfg), get_model_class_ids(cfg, dataset_name)
        if class_ids is not None:
            seen_ids = [own for own, class_id in enumerate(class_ids) if class_id in seen_ids]
        return kind(
            dataset_name=dataset_name,
            seen_ids=seen_ids,
            output_dir=os.path.join(folder, "shrunk_boxes") if shrunk else folder,
            max_dets=cfg.TEST.DETECTIONS_PER_IMAGE,
            class_ids=class_ids,
            overlap=cfg.TEST.OVERLAP,
        )

    @classmethod
    def test(cls, cfg, model, evaluators=None) -> OrderedDict:
        """Evaluate on ``DATASETS.TEST``: boxes as ``TEST.BOXES`` says, masks as ``TEST.MASKS``.

        With ``TEST.BOX_SHRINK`` below 1 everything is measured once more, in shrunk boxes; the
        names of these tasks begin with ``shrunk_``.

        Returns:
            {task: {metric: value}}; with several data sets {data set: {task: {...}}}. The same is
            written to ``OUTPUT_DIR/results.json``.
        """
        check_choice("TEST.BOXES", cfg.TEST.BOXES, TEST_BOXES)
        check_choice("TEST.MASKS", cfg.TEST.MASKS, TEST_MASKS)
        shrinks = [None]
        if cfg.TEST.BOX_SHRINK != 1.0:
            shrinks.append(BoxShrink(cfg.TEST.BOX_SHRINK, cfg.TEST.BOX_SHRINK_SEED))
        results = OrderedDict()
        for name in cfg.DATASETS.TEST:
            of_dataset = results[name] = OrderedDict()
            for boxes, shrink in itertools.product(TEST_BOXES[cfg.TEST.BOXES], shrinks):
                loader = build_test_loader(cfg, name, with_boxes=boxes == "gt")
                tested = model
                if boxes == "gt":
                    tested = GivenBoxModel(model, shrink)
                elif shrink:
                    tested = ShrunkBoxModel(model, shrink)
                if cfg.TEST.MASKS == "grabcut":
                    annotated = boxes == "gt" and not shrink
                    tested = build_grabcut_model(cfg, tested, name, annotated)
                evaluator = cls.build_evaluator(cfg, name, boxes, shrunk=shrink is not None)
                tasks = inference_on_dataset(tested, loader, evaluator) or {}
                prefix = "shrunk_" if shrink else ""
                of_dataset.update({f"{prefix}{task}": x for task, x in tasks.items()})
        if len(results) == 1:
            results = next(iter(results.values()))
        if comm.is_main_process() and results:
            write_json(f"{cfg.OUTPUT_DIR}/results.json", results, indent=1)
        return results


def build_grabcut_model(
    cfg, model: torch.nn.Module, name: str, annotated_boxes: bool
) -> GrabCutModel:
    """The model with GrabCut's masks; those of annotated boxes come from the cache.

    Args:
        cfg: the config.
        model: its model, wrapped for given boxes if they are.
        name: the data set that is evaluated.
        annotated_boxes: whether the model's boxes are the annotations' as they are.
    """
    masks = None
    if annotated_boxes:
        dicts = get_dataset_dicts(name)
        restrict_masks(dicts, seen_ids=())  # GrabCut cuts what has no mask: everything
        masks = cached_grabcut_masks(cfg, dicts, name)
    return GrabCutModel(model, GrabCut.from_config(cfg), masks, cfg.PSIS.GRABCUT.THREADS)


def wrap_for_distribution(model: torch.nn.Module) -> torch.nn.Module:
    """The model, in DistributedDataParallel if there are several processes (GPU or CPU)."""
    if comm.get_world_size() == 1:
        return model
    on_gpu = next(model.parameters()).is_cuda
    devices = [comm.get_local_rank()] if on_gpu else None
    return DistributedDataParallel(model, device_ids=devices, broadcast_buffers=False)


def build_checkpointer(
    cfg,
    model,
    *,
    training: bool = False,
    may_lack: str = "",
    trust: bool = False,
    allow_random: bool = False,
    **checkpointables,
) -> Checkpointer:
    """The checkpointer of a config: it knows the categories of the config's data.

    Args:
        cfg: the config.
        model: its model.
        training: whether the model will be trained; otherwise a file must have all its weights.
        may_lack, trust, allow_random, checkpointables: see :class:`Checkpointer`.
    """
    names = cfg.DATASETS.TRAIN or cfg.DATASETS.TEST
    return Checkpointer(
        model,
        cfg.OUTPUT_DIR,
        class_names=MetadataCatalog.get(names[0]).get("thing_classes", []) if names else [],
        seen_ids=seen_ids_for(cfg) if names else [],
        cfg=cfg,
        skip_mismatched=cfg.PSIS.SKIP_MISMATCHED_WEIGHTS,
        may_lack=may_lack,
        complete=not training,
        trust=trust,
        allow_random=allow_random,
        may_fail=cfg.PSIS.SAVE_MAY_FAIL,
        **checkpointables,
    )
