"""Images of every depth: what their pixels become, and what is refused."""

from psis_d2.data.images import _warn_of_dark_images, read_image, read_pixels
from psis_d2.errors import UserError

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def save(tmp_path):
    """Write an array as a gray image; returns its path."""

    def write(values, suffix=".png"):
        path = tmp_path / f"image{suffix}"
        Image.fromarray(np.asarray(values)).save(path)
        return str(path)

    return write


@pytest.mark.parametrize("image_format", ["BGR", "RGB"])
def test_16_bits_are_scaled_by_the_range_of_the_format(save, image_format):
    path = save(np.array([[0, 257 * 10], [257 * 100, 65535]], np.uint16))
    pixels = read_pixels(path, image_format)
    assert pixels.shape == (2, 2, 3) and pixels.dtype == np.uint8
    assert pixels[..., 0].tolist() == [[0, 10], [100, 255]]
    assert (pixels == pixels[..., :1]).all()
    assert read_pixels(path, "L")[..., 0].tolist() == [[0, 10], [100, 255]]


def test_a_stated_range_scales_and_cuts(save):
    path = save(np.array([[0, 95, 100, 4095, 5000]], np.uint16))
    assert read_pixels(path, "L", (95, 4095))[..., 0].tolist() == [[0, 0, 0, 255, 255]]
    assert read_pixels(path, "L", (0, 5100))[..., 0].tolist() == [[0, 5, 5, 205, 250]]


def test_dark_images_are_warned_of_once(save, caplog):
    _warn_of_dark_images.cache_clear()
    path = save(np.array([[0, 4095]], np.uint16))
    assert read_pixels(path, "L")[..., 0].tolist() == [[0, 16]]
    read_pixels(path, "L")
    (message,) = [m for m in caplog.messages if "PSIS.PIXEL_RANGE" in m]
    assert "less than an eighth of the range from 0 to 65535" in message
    caplog.clear()
    _warn_of_dark_images.cache_clear()
    read_pixels(path, "L", (0, 4095))
    read_pixels(save(np.array([[0, 60000]], np.uint16)), "L")
    assert caplog.messages == []


def test_floats_from_0_to_1(save):
    path = save(np.array([[0, 0.2, 0.6, 1]], np.float32), ".tif")
    assert read_pixels(path, "BGR")[0, :, 1].tolist() == [0, 51, 153, 255]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([[0, 200.0]], np.float32), r"floats \(Pillow's mode F\) from 0 to 200; say"),
        (np.array([[-0.5, 1]], np.float32), "from -0.5 to 1; say .* PSIS.PIXEL_RANGE"),
        (np.array([[0, np.nan]], np.float32), r"mode F\) has values that are not finite"),
        (np.array([[0, 70000]], np.int32), r"mode I\) from 0 to 70000; say"),
    ],
)
def test_values_that_say_nothing_of_their_range_are_refused(save, values, message):
    path = save(values, ".tif")
    with pytest.raises(UserError, match=message) as caught:
        read_pixels(path, "BGR")
    assert path in str(caught.value)


@pytest.mark.parametrize("values", [[5, 5], [7, 5], [4095], [0, 1, 2]])
def test_what_is_no_range_is_refused(save, values):
    path = save(np.array([[0, 1]], np.uint16))
    with pytest.raises(UserError, match=r"PSIS.PIXEL_RANGE is \[.*; give two values"):
        read_pixels(path, "L", values)


def test_8_bits_stay_as_they_are_and_the_range_is_not_for_them(save):
    values = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert (read_pixels(save(values), "RGB", (0, 4095)) == values).all()


def test_16_bits_are_turned_as_their_exif_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    path = str(tmp_path / "turned.png")
    Image.fromarray(np.array([[0, 65535, 0]], np.uint16)).save(path, exif=exif)
    record = {"file_name": path, "height": 3, "width": 1}
    assert read_image(record, "L")[..., 0].tolist() == [[0], [255], [0]]
    with pytest.raises(UserError, match="1 x 3 pixels .*rotation.* say 3 x 1"):
        read_image({**record, "height": 1, "width": 3}, "L")
