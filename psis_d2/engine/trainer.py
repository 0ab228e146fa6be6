"""Detectron2's trainer on psis_d2's data, evaluators and checkpoints."""

import logging
import os
import weakref
from collections import OrderedDict
from importlib.util import find_spec

from psis_d2.config_rules import check_config
from psis_d2.data.loader import build_test_loader, build_train_loader
from psis_d2.data.training_set import seen_ids_for
from psis_d2.engine.best_checkpoint import BestCheckpoint
from psis_d2.engine.checkpoint import Checkpointer
from psis_d2.engine.cut_off_evaluation import EvaluationsOnce
from psis_d2.engine.expectations import verify_expected
from psis_d2.engine.guard import GuardedTraining, SaveBeforeEvaluation
from psis_d2.engine.loop import build_loop
from psis_d2.engine.pictures import ValidationPictures
from psis_d2.engine.schedule import schedule_for
from psis_d2.engine.solver import build_optimizer, keeping_settings
from psis_d2.engine.stages import (
    PARTS,
    frozen_backbone,
    skip_unread_proposals,
    train_only,
)
from psis_d2.engine.wandb_writer import WandbWriter
from psis_d2.errors import UserError
from psis_d2.evaluation import build_evaluator, evaluate
from psis_d2.modeling.kept_features import keep_features

import torch
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase
from detectron2.engine.hooks import EvalHook
from detectron2.utils import comm
from torch.nn.parallel import DistributedDataParallel

logger = logging.getLogger(__name__)


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
        cfg = schedule_for(DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size()))
        model = self.build_model(cfg)
        stage = [train_only(model, cfg.PSIS.TRAIN_ONLY)] if cfg.PSIS.TRAIN_ONLY else []
        if stage:
            skip_unread_proposals(model)
        if cfg.PSIS.KEEP_FEATURES:
            keep_features(frozen_backbone(model), cfg.PSIS.KEEP_FEATURES)
        optimizer = self.build_optimizer(cfg, model)
        self._loader = _LoaderFromIteration(lambda start: build_train_loader(cfg, start_iter=start))
        model = wrap_for_distribution(model)
        self._trainer = build_loop(cfg, model, self._loader, optimizer)
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
        with keeping_settings(self._trainer.optimizer):
            self._trainer.load_state_dict(state_dict["_trainer"])

    def train(self) -> OrderedDict | None:
        """Train, and verify the last evaluation, whose results the main process returns."""
        TrainerBase.train(self, self.start_iter, self.max_iter)
        if not comm.is_main_process() or not hasattr(self, "_last_eval_results"):
            return None
        verify_expected(self.cfg, self._last_eval_results)
        return self._last_eval_results

    def build_hooks(self):
        """Detectron2's, after one that seeds every iteration; more around the evaluation."""
        hooks = [hook for hook in super().build_hooks() if hook is not None]
        at = max(i for i, hook in enumerate(hooks) if isinstance(hook, EvalHook))
        looking = build_evaluation_hooks(self.cfg, self.model)
        if self.cfg.DATASETS.TEST and self.cfg.TEST.EVAL_PERIOD > 0:
            evaluating = [hooks[at], *looking]
            period, folder = self.cfg.TEST.EVAL_PERIOD, self.cfg.OUTPUT_DIR
            looking.append(EvaluationsOnce(period, folder, evaluating))
        hooks[at + 1 : at + 1] = looking
        if comm.is_main_process() and self.cfg.DATASETS.TEST:
            hooks.insert(at, SaveBeforeEvaluation(self.cfg.TEST.EVAL_PERIOD))
        return [SeedEachIteration(self.cfg.SEED), *hooks] if self.cfg.SEED >= 0 else hooks

    def build_writers(self):
        """Detectron2's, and Weights & Biases' if ``SOLVER.WANDB_PROJECT`` is set."""
        writers, project = super().build_writers(), self.cfg.SOLVER.WANDB_PROJECT
        if project:  # first: TensorBoard's clears the pictures
            folder = self.cfg.OUTPUT_DIR
            run = {"project": project, "name": os.path.basename(folder), "folder": folder}
            writers.insert(0, WandbWriter(**run, config={"config": self.cfg.dump()}))
        return writers

    @classmethod
    def build_model(cls, cfg):
        """The model on its device, laid out for that device's convolutions.

        Raises:
            UserError: a value of the config is misspelled, out of range or without effect.
        """
        check_config(cfg)
        return laid_out(super().build_model(cfg), cfg)

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
        """See :func:`psis_d2.evaluation.run.build_evaluator`."""
        return build_evaluator(cfg, dataset_name, boxes, shrunk)

    @classmethod
    def test(cls, cfg, model, evaluators=None, note: str = "") -> OrderedDict:
        """See :func:`psis_d2.evaluation.run.evaluate`; `evaluators` is Detectron2's, unused."""
        return evaluate(cfg, model, cls.build_evaluator, note=note)


def laid_out(model: torch.nn.Module, cfg) -> torch.nn.Module:
    """The model in the memory format of its device's convolutions, see ``SOLVER.CHANNELS_LAST``."""
    # What oneDNN computes in; NCHW weights and maps it would reorder call by call.
    if cfg.SOLVER.CHANNELS_LAST == "always" or cfg.MODEL.DEVICE == "cpu":
        return model.to(memory_format=torch.channels_last)
    return model


def build_evaluation_hooks(cfg, model: torch.nn.Module) -> list[HookBase]:
    """What happens after an evaluation: the best checkpoint is kept, pictures are drawn."""
    hooks = []
    if not cfg.DATASETS.TEST:
        return hooks
    if cfg.TEST.EVAL_PERIOD > 0 and cfg.TEST.BEST_METRIC:
        hooks.append(BestCheckpoint(cfg.TEST.BEST_METRIC))
    if cfg.TEST.PICTURES > 0 and find_spec("cv2") is None:
        logger.warning("No pictures of validation images: run pip install opencv-python-headless.")
    elif cfg.TEST.PICTURES > 0:
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
    known = MetadataCatalog.get(names[0]).get("thing_classes", []) if names else []
    return Checkpointer(
        model,
        cfg.OUTPUT_DIR,
        class_names=cfg.PSIS.CLASSES or known,
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
