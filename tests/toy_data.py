"""Nine small images with a dog and a cat each, some wide and some high, for the data's tests."""

# dog 0 (id 1), cat 1 (id 3), bird 2 (id 7); wide and high images.
SIZES = {i: (24, 32) if i % 3 else (32, 24) for i in range(1, 10)}
WIDE = {i for i in SIZES if i % 3}


def polygon(left, top, side=8):
    right, bottom = left + side, top + side
    return [[left, top, right, top, right, bottom, left, bottom]]


def annotations(unseen=None):
    """A dog and a cat in each image, a bird in image 1; ``unseen`` replaces the masks of cats."""
    result = []
    for image_id in SIZES:
        for category, place in ((1, image_id), (3, image_id + 4)):
            result.append(
                {
                    "id": len(result) + 1,
                    "image_id": image_id,
                    "category_id": category,
                    "bbox": [place, 5, 8, 8],
                    "iscrowd": 0,
                    "segmentation": polygon(place, 5),
                }
            )
            if category == 3 and unseen is not None:
                result[-1]["segmentation"] = unseen(image_id)
    bird = {"id": 1000, "image_id": 1, "category_id": 7, "bbox": [2, 2, 6, 6], "iscrowd": 0}
    return [*result, bird]
