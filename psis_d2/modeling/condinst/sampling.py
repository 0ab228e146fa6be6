"""Which locations train the masks."""

import torch
from torch import Tensor


def best_of_each(objects: Tensor, quality: Tensor, per_image: int) -> Tensor:
    """The best locations of an image, the same number for each object.

    Args:
        objects: int64 [R], the object that a location has to predict, -1 for none.
        quality: float [R].
        per_image: as many at the most, or one an object if there are more objects; 0 = all.

    Returns:
        int64 rows of `objects`, in order.
    """
    rows = (objects >= 0).nonzero()[:, 0]
    if per_image == 0 or len(rows) == 0:
        return rows
    # By object, the best first within an object.
    rows = rows[quality[rows].argsort(descending=True, stable=True)]
    rows = rows[objects[rows].argsort(stable=True)]
    own = objects[rows]
    places = torch.arange(len(rows), device=rows.device)
    rank = places - torch.searchsorted(own, own)  # the first place of an object is its best row's
    number = (rank == 0).sum()  # of objects, which a GPU need not tell the host
    return rows[rank < (per_image // number).clamp(min=1)].sort().values


def sample_locations(
    objects: Tensor, quality: Tensor, per_image: int, total: int
) -> tuple[Tensor, Tensor]:
    """Locations of a batch, :func:`best_of_each` image's, and of these no more than `total`.

    Args:
        objects: int64 [B, R], -1 for none.
        quality: float [B, R].
        per_image: see :func:`best_of_each`.
        total: more are left out at random; 0 = none is.

    Returns:
        int64 [n] images, in order, and int64 [n] rows of R.
    """
    rows = [best_of_each(*x, per_image) for x in zip(objects, quality, strict=True)]
    images = torch.cat([torch.full_like(x, index) for index, x in enumerate(rows)])
    rows = torch.cat(rows)
    if 0 < total < len(rows):
        keep = torch.randperm(len(rows))[:total].sort().values.to(rows.device)
        images, rows = images[keep], rows[keep]
    return images, rows
