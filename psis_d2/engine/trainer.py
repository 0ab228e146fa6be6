"""Detectron2's trainer on psis_d2's data, evaluators and checkpoints."""

import logging
import weakref
from collections import OrderedDict

from psis_d2.config_rules import check_config
from psis_d2.data.loader import build_test_loader, build_train_loader
from psis_d2.data.training_set import seen_ids_for
from psis_d2.engine.checkpoint import Checkpointer
from psis_d2.engine.expectations import verify_expected
from psis_d2.engine.solver import build_optimizer, keeping_settings
from psis_d2.engine.stages import PARTS, train_only
from psis_d2.errors import UserError
from psis_d2.evaluation import build_evaluator, evaluate

import torch
from detectron2.data import MetadataCatalog
from detectron2.engine import (
    AMPTrainer,
    DefaultTrainer,
    HookBase,
    SimpleTrainer,
    TrainerBase,
)
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
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        stage = [train_only(model, cfg.PSIS.TRAIN_ONLY)] if cfg.PSIS.TRAIN_ONLY else []
        optimizer = self.build_optimizer(cfg, model)
        self._loader = _LoaderFromIteration(lambda start: build_train_loader(cfg, start_iter=start))
        model = wrap_for_distribution(model)
        mixed_precision = cfg.SOLVER.AMP.ENABLED and next(model.parameters()).is_cuda
        if cfg.SOLVER.AMP.ENABLED and not mixed_precision:
            logger.warning("SOLVER.AMP.ENABLED has no effect on the CPU.")
        trainer_type = AMPTrainer if mixed_precision else SimpleTrainer
        self._trainer = trainer_type(model, self._loader, optimizer)
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
        """Detectron2's hooks, after one that seeds every iteration."""
        hooks = super().build_hooks()
        return [SeedEachIteration(self.cfg.SEED), *hooks] if self.cfg.SEED >= 0 else hooks

    def run_step(self):
        """One iteration; bad input leaves as an exit, which Detectron2 does not log as a crash."""
        try:
            super().run_step()
        except UserError as error:
            raise SystemExit(str(error)) from None

    @classmethod
    def build_model(cls, cfg):
        """The model on its device, laid out for that device's convolutions.

        Raises:
            UserError: a value of the config is misspelled, out of range or without effect.
        """
        check_config(cfg)
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
        """See :func:`psis_d2.evaluation.run.build_evaluator`."""
        return build_evaluator(cfg, dataset_name, boxes, shrunk)

    @classmethod
    def test(cls, cfg, model, evaluators=None) -> OrderedDict:
        """See :func:`psis_d2.evaluation.run.evaluate`; `evaluators` is Detectron2's, unused."""
        return evaluate(cfg, model, cls.build_evaluator)


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
        cfg=cfg,
        skip_mismatched=cfg.PSIS.SKIP_MISMATCHED_WEIGHTS,
        may_lack=may_lack,
        **checkpointables,
    )
