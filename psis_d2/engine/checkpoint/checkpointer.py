"""Detectron2's checkpointer: whole files or none, no code, and only into the run they belong to."""

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence

from psis_d2.data.category_names import differing_names
from psis_d2.engine.checkpoint.entry import KEY, check_entry, make_entry, seal, seen_names
from psis_d2.engine.checkpoint.reading import DamagedCheckpoint, local_file, read_file
from psis_d2.engine.checkpoint.weights import read_checkpoint
from psis_d2.errors import UserError
from psis_d2.files import remove_unfinished, written_at_once

import torch
from detectron2.checkpoint import DetectionCheckpointer

logger = logging.getLogger(__name__)

_LAST = "last_checkpoint"  # the file that names the newest checkpoint
# Of all names in the smaller of file and model, at least this share must be in both.
_LEAST_SHARE = 0.05
# In every model whatever its file: constants of the config, and a counter that only BatchNorm's
# cumulative average reads (frozen norms have none).
_NEEDLESS = ("pixel_mean", "pixel_std", "num_batches_tracked")


class Checkpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, with classes, split, config and digests in every file it writes.

    After :meth:`load`, ``entry`` is what the file says of itself, see
    :func:`~psis_d2.engine.checkpoint.entry.make_entry`.

    Args:
        model: the model, wrapped for distributed training or not.
        save_dir: folder of the checkpoints.
        class_names: names of the model's categories, by contiguous id; empty if unknown.
        seen_ids: contiguous ids of the seen categories; None if unknown.
        cfg: the run's config, which goes into the files as text.
        skip_mismatched: load what fits and leave the rest as it is, instead of refusing.
        may_lack: name of the one module whose weights a file may lack, "" for any: the others are
            frozen, and random weights would stay random.
        complete: a file may lack no weights at all, as the model is not trained any more.
        allow_random: load a file that has (nearly) none of the model's weights all the same.
        trust: run code that a file of weights holds.
        may_fail: a checkpoint that cannot be written is a warning, unless it is the final one.
        **checkpointables: further objects with a state, as in Detectron2.
    """

    def __init__(
        self,
        model,
        save_dir: str = "",
        *,
        class_names: Sequence[str] = (),
        seen_ids: Sequence[int] | None = None,
        cfg=None,
        skip_mismatched: bool = False,
        may_lack: str = "",
        complete: bool = False,
        allow_random: bool = False,
        trust: bool = False,
        may_fail: bool = False,
        **checkpointables,
    ):
        super().__init__(model, save_dir, **checkpointables)
        self.class_names = list(class_names)
        self.seen_ids = None if seen_ids is None else list(seen_ids)
        self.config = cfg.dump() if cfg is not None else ""
        self.split = str(cfg.PSIS.SEEN_CLASSES) if cfg is not None else ""
        self.skip_mismatched = skip_mismatched
        self.may_lack = may_lack
        self.complete = complete
        self.allow_random = allow_random
        self.trust = trust
        self.may_fail = may_fail
        self.entry: dict = {}
        self.saved_iteration: int | None = None  # of the last checkpoint that was written
        self._resuming = False

    # ------------------------------------------------------------------------------ saving

    def save(self, name: str, **kwargs) -> None:
        """Write ``<save_dir>/<name>.pth``, complete or not at all.

        The file gets its name when it is on the disk, so that neither an interrupted run nor a
        power cut costs the last good checkpoint.

        Raises:
            UserError: it cannot be written, because the disk is full for example.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        iteration = kwargs.get("iteration")
        kwargs[KEY] = make_entry(self.class_names, self.seen_ids, self.config, self.split)
        if "://" in self.save_dir:  # object stores keep whole files only
            return super().save(name, **kwargs)
        data = {"model": self.model.state_dict(), **kwargs}
        for key, thing in self.checkpointables.items():
            data[key] = thing.state_dict()
        seal(data)
        final = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", final)
        try:
            with written_at_once(final, binary=True) as file:
                torch.save(data, file)
            self.tag_last_checkpoint(f"{name}.pth")
        except (OSError, RuntimeError) as error:
            # torch has an OSError of the file as the cause of a RuntimeError; other ones, of a
            # worker that was killed meanwhile, are not the disk's
            found = error
            while not isinstance(found, OSError) and found is not None:
                found = found.__cause__ or found.__context__
            if found is None and "Writer" not in str(error):
                raise
            reason = getattr(found, "strerror", None) or str(found or error).splitlines()[0]
            sentence = (
                f"The checkpoint {final} cannot be written ({reason}); make room and go on with "
                f"--resume from {self.get_checkpoint_file() or 'the beginning'}"
            )
            if not self.may_fail or name.endswith("_final"):
                raise UserError(
                    f"{sentence}, or let PSIS.SAVE_MAY_FAIL True train on without it."
                ) from error
            logger.warning("%s; training goes on without it.", sentence)
        else:
            self.saved_iteration = iteration

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Write down which file is the newest, see Detectron2; at once, as the files."""
        if "://" in self.save_dir:
            return super().tag_last_checkpoint(last_filename_basename)
        with written_at_once(os.path.join(self.save_dir, _LAST)) as file:
            file.write(last_filename_basename)

    # ---------------------------------------------------------------------------- resuming

    def has_checkpoint(self) -> bool:
        """Whether there is anything to resume from, damaged or not."""
        return super().has_checkpoint() or bool(self._others(""))

    def get_checkpoint_file(self) -> str:
        """Path of the newest checkpoint, "" if there is none."""
        return next(self._candidates(), "")

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict:
        """Load the newest checkpoint that is whole if there is one, else the file at `path`.

        Raises:
            UserError: none of the checkpoints is whole, or one belongs to another run; see
                :meth:`load`.
        """
        if not (resume and self.has_checkpoint()):
            return self.load(path, checkpointables=[])
        damaged = 0
        for candidate in self._candidates():
            try:
                self._resuming = True
                return self.load(candidate)
            except DamagedCheckpoint as error:
                damaged += 1
                logger.warning("%s Trying the one before it.", error)
            finally:
                self._resuming = False
        raise UserError(
            f"None of the {damaged} checkpoints in {self.save_dir} is whole; start without "
            "--resume."
        )

    def _candidates(self) -> Iterator[str]:
        """The file that ``last_checkpoint`` names, then the others, the latest iteration first."""
        if "://" in self.save_dir:
            yield super().get_checkpoint_file()
            return
        last = os.path.join(self.save_dir, _LAST)
        tagged = ""
        with contextlib.suppress(OSError), open(last, encoding="utf-8", errors="replace") as file:
            tagged = file.read().strip()
            path = os.path.join(self.save_dir, tagged)
            if tagged and tagged == os.path.basename(tagged) and os.path.isfile(path):
                yield path
            else:
                logger.warning("%s names no file; the newest checkpoint is taken.", last)
                tagged = ""
        others = []
        for path in self._others(tagged):
            try:
                others.append((read_file(path, lazy=True).get("iteration", -1), path))
            except UserError as error:
                logger.warning("%s It is passed over.", error)
        yield from (path for _, path in sorted(others, reverse=True))

    def _others(self, tagged: str) -> list[str]:
        if not self.save_dir or not os.path.isdir(self.save_dir):
            return []
        names = sorted(os.listdir(self.save_dir))
        return [
            os.path.join(self.save_dir, name)
            for name in names
            if name.startswith("model_") and name.endswith(".pth") and name != tagged
        ]

    # ----------------------------------------------------------------------------- loading

    def load(self, path: str, *args, **kwargs) -> dict:
        """Load a file, see Detectron2's checkpointer.

        Raises:
            DamagedCheckpoint: the file is not what was written.
            UserError: it cannot be downloaded or read, is made for other categories, another split
                or another model, or the training cannot go on from it.
        """
        self.entry = {}
        self._path = path
        if path:
            path = local_file(path)
            if not os.path.isfile(path):
                read_file(path)  # which says what is wrong
        try:
            checkpoint = super().load(path, *args, **kwargs)
        except (KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
            # an optimizer of another kind, a state that is none
            raise UserError(
                f"The checkpoint {self._path} does not fit this model and its optimizer "
                f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}); "
                "give the config that it was trained with."
            ) from error
        checkpoint.pop(KEY, None)
        return checkpoint

    def _load_file(self, filename: str) -> dict:
        checkpoint = read_checkpoint(filename, self.trust)
        for key in self.checkpointables if self._resuming else ():
            if not isinstance(checkpoint.get(key), dict):
                raise DamagedCheckpoint(
                    f"The checkpoint {filename} has no state of the training ({key}) to resume "
                    "from; give it as MODEL.WEIGHTS, without --resume."
                )
        return checkpoint

    def _load_model(self, checkpoint):
        self.entry = check_entry(checkpoint.get(KEY), self._path)
        self._check_classes(self.entry.get("class_names", []))
        self._check_split()
        incompatible = super()._load_model(checkpoint)
        if incompatible.incorrect_shapes and not self.skip_mismatched:
            name, there, here = incompatible.incorrect_shapes[0]
            raise UserError(
                f"The checkpoint {self._path} is for another model or number of classes: {name} is "
                f"{tuple(there)} there and {tuple(here)} here; give the checkpoint that belongs to "
                "this config, or set PSIS.SKIP_MISMATCHED_WEIGHTS True to start from what fits."
            )
        mismatched = [name for name, *_ in incompatible.incorrect_shapes]
        lacking = [
            name
            for name in self._without_aliases(incompatible.missing_keys)
            if not name.endswith(_NEEDLESS)
        ]
        if not self.allow_random:
            self._check_any_fits(set(lacking) - set(mismatched), incompatible.unexpected_keys)
            if self.complete:
                self._check_complete(
                    lacking,
                    "which would stay random; give the one that belongs to this config as "
                    "MODEL.WEIGHTS, or add --allow-random",
                )
        if self.may_lack:
            lacking = [name for name in lacking if not name.startswith(f"{self.may_lack}.")]
            self._check_complete(
                lacking,
                "which PSIS.TRAIN_ONLY freezes; give a trained detector of this config as "
                "MODEL.WEIGHTS",
            )
        return incompatible

    def _without_aliases(self, missing: Sequence[str]) -> list[str]:
        """Missing names, without those of a tensor that the file has under another name."""
        state = self.model.state_dict(keep_vars=True)
        there = {id(tensor) for name, tensor in state.items() if name not in set(missing)}
        return [name for name in missing if id(state[name]) not in there]

    def _check_any_fits(self, lacking: set[str], unexpected: Sequence[str]) -> None:
        names = {name for name in self.model.state_dict() if not name.endswith(_NEEDLESS)}
        fitting = len(names - lacking)
        smaller = min(len(names), fitting + len(unexpected))
        if names and fitting < max(1, _LEAST_SHARE * smaller):
            raise UserError(
                f"The checkpoint {self._path} has weights for {fitting} of the {len(names)} names "
                "in this model, which would stay random; give one of this kind of model, or add "
                "--allow-random."
            )

    def _check_complete(self, lacking: list[str], consequence: str) -> None:
        if lacking:
            more = f" and {len(lacking) - 1} more" * (len(lacking) > 1)
            raise UserError(
                f"The checkpoint {self._path} has no weights for {lacking[0]}{more}, {consequence}."
            )

    def _check_split(self) -> None:
        """Masks that a checkpoint has learned from are no unseen ones any more."""
        note = self.split_note()
        if not note or self.complete:  # an evaluation says it in its tables
            return
        if self._resuming:
            raise UserError(
                f"The checkpoint {self._path} cannot be resumed under another split: {note}; set "
                "PSIS.SEEN_CLASSES as it was, or start without --resume in another OUTPUT_DIR."
            )
        logger.warning("The weights of %s know masks of another split: %s.", self._path, note)

    def split_note(self) -> str:
        """How the split of this run differs from that of the loaded checkpoint, "" if not at all.

        For headings of tables: an evaluation under another split than the training's may list
        categories as unseen whose masks were trained on.
        """
        theirs = seen_names(self.entry)
        if theirs is None or self.seen_ids is None or not self.class_names:
            return ""
        ours = [self.class_names[i] for i in self.seen_ids]
        if set(ours) == set(theirs):
            return ""
        return f"trained on masks of {_some(theirs)}; seen here: {_some(ours)}"

    def _check_classes(self, theirs: list[str]) -> None:
        ours = self.class_names
        if not theirs or not ours or theirs == ours or self.skip_mismatched:
            return
        if len(theirs) != len(ours):
            difference = f"it has {len(theirs)} classes, the data set {len(ours)}"
        else:
            difference = f"its classes differ from the data set's ({differing_names(theirs, ours)})"
        raise UserError(
            f"The checkpoint {self._path} is for other categories: {difference}; give the "
            "checkpoint that belongs to this data set, or set PSIS.SKIP_MISMATCHED_WEIGHTS True "
            "to start from what fits."
        )


def remove_leftovers(folder: str) -> None:
    """Remove unfinished files of runs that were killed, in a folder and below.

    Those of earlier versions, ``*.pth.partial``, go as well; nobody else may write in the folder.
    """
    if "://" in folder or not os.path.isdir(folder):
        return
    removed = remove_unfinished(folder)
    for name in os.listdir(folder):
        if name.endswith(".pth.partial"):
            os.remove(os.path.join(folder, name))
            removed.append(name)
    if removed:
        logger.info("Removed %d unfinished files of a run that was killed.", len(removed))


def _some(names: Sequence[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" * (len(names) > limit)
    return f"{', '.join(names[:limit]) or 'no category'}{more}"
