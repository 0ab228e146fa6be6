"""Weights & Biases, for those who have it installed."""

import importlib

from psis_d2.errors import UserError

from detectron2.utils.events import EventWriter, get_event_storage


class WandbWriter(EventWriter):
    """Sends scalars and pictures of a run to Weights & Biases.

    Register it before TensorBoard's writer, which clears the pictures.

    Args:
        project: name of the project.
        name: name of the run, "" for one that the service makes up.
        folder: where its files are kept.
        config: what is shown as the run's config.
        window: scalars are medians over so many iterations.

    Raises:
        UserError: the package is not installed.
    """

    def __init__(
        self, *, project: str, name: str, folder: str, config: dict | None = None, window: int = 20
    ):
        try:
            self._wandb = importlib.import_module("wandb")
        except ImportError as error:
            raise UserError(
                f"SOLVER.WANDB_PROJECT is '{project}', but the package wandb is not installed; run "
                "`pip install wandb`, or set SOLVER.WANDB_PROJECT to ''."
            ) from error
        self._run = self._wandb.init(
            project=project, name=name or None, dir=folder, config=config, resume="allow"
        )
        self._window = window
        self._last = -1

    def write(self):
        """Send what is new since the last call."""
        storage = get_event_storage()
        by_iteration: dict[int, dict] = {}
        for key, (value, iteration) in storage.latest_with_smoothing_hint(self._window).items():
            if iteration > self._last:
                by_iteration.setdefault(iteration, {})[key] = value
        for key, picture, iteration in storage._vis_data:  # Detectron2 has no public way to them
            image = self._wandb.Image(picture.transpose(1, 2, 0))
            by_iteration.setdefault(iteration, {})[key] = image
        for iteration in sorted(by_iteration):
            self._run.log(by_iteration[iteration], step=iteration)
        self._last = max([self._last, *by_iteration])

    def close(self):
        """End the run."""
        self._run.finish()
