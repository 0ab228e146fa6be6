"""Pictures of predictions while a model trains."""

import itertools
from collections.abc import Callable, Iterable

import numpy as np
import torch
from detectron2.data import Metadata
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn


class ValidationPictures(HookBase):
    """Draws the predictions on a few validation images after each evaluation.

    The pictures go to the event storage, from where TensorBoard and W&B take them.

    Args:
        period: iterations from one evaluation to the next, 0 = only after the last iteration.
        model: takes and gives what a Detectron2 model does.
        loader: called for the validation images; batches of one.
        metadata: names and colors of the classes.
        image_format: of the images, ``BGR`` or ``RGB``.
        count: how many images, the first of the loader.
        min_score: of the predictions that are drawn.
    """

    def __init__(
        self,
        *,
        period: int,
        model: nn.Module,
        loader: Callable[[], Iterable[list[dict]]],
        metadata: Metadata,
        image_format: str,
        count: int,
        min_score: float = 0.5,
    ):
        self.period = period
        self.model = model.module if hasattr(model, "module") else model
        self.loader = loader
        self.metadata = metadata
        self.image_format = image_format
        self.count = count
        self.min_score = min_score
        self._batches: list[list[dict]] | None = None

    def after_step(self):
        done = self.trainer.iter + 1
        if self.period > 0 and done % self.period == 0 and done != self.trainer.max_iter:
            self._draw()

    def after_train(self):
        if self.trainer.iter + 1 >= self.trainer.max_iter:
            self._draw()

    def _draw(self) -> None:
        if not comm.is_main_process():
            return
        if self._batches is None:
            self._batches = list(itertools.islice(self.loader(), self.count))
        training, state = self.model.training, np.random.get_state()
        self.model.eval()
        np.random.seed(0)  # of the colors: the same in every evaluation
        try:
            for number, batch in enumerate(self._batches):
                picture = self.picture(batch)
                self.trainer.storage.put_image(f"validation/{number}", picture)
        finally:
            self.model.train(training)
            np.random.set_state(state)  # training draws what it would have without pictures

    def picture(self, batch: list[dict]) -> np.ndarray:
        """uint8 [3, H, W]: the image of a batch of one, its predictions over it."""
        (item,) = batch
        # in the frame of the picture that is drawn on, not of the original file
        height, width = item["image"].shape[-2:]
        with torch.no_grad():
            (found,) = self.model([{**item, "height": height, "width": width}])
        found = found["instances"].to("cpu")
        found = found[found.scores >= self.min_score]
        rgb = convert_image_to_rgb(item["image"].permute(1, 2, 0), self.image_format)
        from detectron2.utils.visualizer import Visualizer  # which needs OpenCV

        drawn = Visualizer(rgb, self.metadata).draw_instance_predictions(found)
        return np.ascontiguousarray(drawn.get_image().transpose(2, 0, 1))
