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
from psis_d2.engine.best_checkpoint import BestCheckpoint
from psis_d2.engine.checkpoint import Checkpointer
from psis_d2.engine.given_boxes import BoxShrink, GivenBoxModel, ShrunkBoxModel
from psis_d2.engine.grabcut import GrabCutModel
from psis_d2.engine.loop import build_loop
from psis_d2.engine.pictures import ValidationPictures
from psis_d2.engine.schedule import schedule_for
from psis_d2.engine.solver import build_optimizer
from psis_d2.engine.stages import PARTS, train_only
from psis_d2.engine.wandb_writer import WandbWriter
from psis_d2.errors import UserError, check_choice
from psis_d2.evaluation import GivenBoxEvaluator, PartialCOCOEvaluator
from psis_d2.evaluation.base import write_json

import torch
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase
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

    def __iter__(self):
        yield from self.build(self.start_iter)


class Trainer(DefaultTrainer):
    """Train and evaluate a psis_d2 config.

    A run with ``SEED >= 0`` that is resumed gives the losses of an uninterrupted one. On the CPU
    it works with any number of (gloo) processes.
    """

    def __init__(self, cfg):
        # Not DefaultTrainer.__init__: Detectron2 v0.6 wraps the model for GPUs only.
        TrainerBase.__init__(self)
        cfg = schedule_for(DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size()))
        model = self.build_model(cfg)
        stage = [train_only(model, cfg.PSIS.TRAIN_ONLY)] if cfg.PSIS.TRAIN_ONLY else []
        optimizer = self.build_optimizer(cfg, model)
        self._loader = _LoaderFromIteration(lambda start: build_train_loader(cfg, start_iter=start))
        model = wrap_for_distribution(model)
        self._trainer = build_loop(cfg, model, self._loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = build_checkpointer(
            cfg, model, may_lack=PARTS.get(cfg.PSIS.TRAIN_ONLY, ""), trainer=weakref.proxy(self)
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
        """Detectron2's hooks, after one that seeds every iteration; more behind the evaluation."""
        hooks = super().build_hooks()
        after = 1 + max(i for i, hook in enumerate(hooks) if isinstance(hook, EvalHook))
        hooks[after:after] = build_evaluation_hooks(self.cfg, self.model)
        return [SeedEachIteration(self.cfg.SEED), *hooks] if self.cfg.SEED >= 0 else hooks

    def build_writers(self):
        """Detectron2's, and Weights & Biases' if ``SOLVER.WANDB_PROJECT`` is set."""
        writers, project = super().build_writers(), self.cfg.SOLVER.WANDB_PROJECT
        if project:  # first: TensorBoard's clears the pictures
            folder = self.cfg.OUTPUT_DIR
            run = {"project": project, "name": os.path.basename(folder), "folder": folder}
            writers.insert(0, WandbWriter(**run, config={"config": self.cfg.dump()}))
        return writers

    def run_step(self):
        """One iteration; bad input leaves as an exit, which Detectron2 does not log as a crash."""
        try:
            super().run_step()
        except UserError as error:
            raise SystemExit(str(error)) from None

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


def build_evaluation_hooks(cfg, model: torch.nn.Module) -> list[HookBase]:
    """What happens after an evaluation: the best checkpoint is kept, pictures are drawn."""
    hooks = []
    if not cfg.DATASETS.TEST:
        return hooks
    if cfg.TEST.EVAL_PERIOD > 0 and cfg.TEST.BEST_METRIC:
        hooks.append(BestCheckpoint(cfg.TEST.BEST_METRIC))
    if cfg.TEST.PICTURES > 0:
        name = cfg.DATASETS.TEST[0]
        hooks.append(
            ValidationPictures(
                period=cfg.TEST.EVAL_PERIOD,
                model=model,
                loader=lambda: build_test_loader(cfg, name),
                # the model's classes are those of the first data set
                metadata=MetadataCatalog.get((*cfg.DATASETS.TRAIN, name)[0]),
                image_format=cfg.INPUT.FORMAT,
                count=cfg.TEST.PICTURES,
            )
        )
    return hooks


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


def build_checkpointer(cfg, model, may_lack: str = "", **checkpointables) -> Checkpointer:
    """The checkpointer of a config: it knows the categories of the config's data.

    ``may_lack`` and ``checkpointables`` are those of :class:`Checkpointer`.
    """
    names = cfg.DATASETS.TRAIN or cfg.DATASETS.TEST
    return Checkpointer(
        model,
        cfg.OUTPUT_DIR,
        class_names=MetadataCatalog.get(names[0]).get("thing_classes", []) if names else [],
        seen_ids=seen_ids_for(cfg) if names else [],
        skip_mismatched=cfg.PSIS.SKIP_MISMATCHED_WEIGHTS,
        may_lack=may_lack,
        **checkpointables,
    )
