"""Images of any mode and orientation, and files with any damage."""

import io
import warnings

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from tgo_trl.media.images import image_size, load_image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP")
MODES = (
    "1",
    "L",
    "LA",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBX",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
    "I",
    "F",
    "I;16",
    "La",
    "RGBa",
)
ORIENTATION = 0x0112


def picture(mode, size, seed=0):
    """A picture whose pixels differ."""
    width, height = size
    channels = len(Image.new(mode, (1, 1)).tobytes())
    data = bytes((seed + 37 * k) % 256 for k in range(width * height * channels))
    if mode == "1":
        return Image.frombytes("L", size, bytes((seed + 37 * k) % 256 for k in range(width * height))).convert("1")
    return Image.frombytes(mode, size, data)


def encoded(image, form, orientation=None):
    """A file of the picture."""
    file = io.BytesIO()
    options = {}
    if orientation is not None:
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        options["exif"] = exif
    image.save(file, form, **options)
    return file.getvalue()


def check(value, is_broken_behind_header=True):
    """An image that both readers agree on, or a ValueError; the image."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            size = image_size(value)
        except ValueError:
            with pytest.raises(ValueError, match=r"."):
                load_image(value)
            return None
        try:
            image = load_image(value)
        except ValueError:
            assert is_broken_behind_header
            return None
    assert image.mode == "RGB"
    assert (image.height, image.width) == size
    return image


sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))


@given(mode=st.sampled_from(MODES), size=sizes, orientation=st.integers(0, 9))
def test_any_mode_is_an_image_or_refused(mode, size, orientation):
    image = picture(mode, size)
    if orientation:
        image.getexif()[ORIENTATION] = orientation
    found = check(image)
    assert (found is None) <= (mode in ("I", "F", "La", "RGBa", "LAB", "HSV", "PA"))


@given(
    form=st.sampled_from(["PNG", "JPEG", "WEBP", "TIFF"]),
    size=sizes,
    orientation=st.integers(0, 10),
    seed=st.integers(0, 9),
)
@example(form="TIFF", size=(3, 2), orientation=6, seed=0)
@example(form="JPEG", size=(3, 2), orientation=9, seed=0)
def test_any_orientation_is_made_upright(form, size, orientation, seed):
    image = picture("RGB", size, seed)
    found = check(encoded(image, form, orientation), is_broken_behind_header=False)
    turned = 5 <= orientation <= 8
    assert found.size == (size[::-1] if turned else size)
    if form in ("PNG", "TIFF") and orientation == 6:
        assert found.getpixel((0, 0)) == image.getpixel((0, size[1] - 1))


@settings(max_examples=300)
@given(
    form=st.sampled_from(FORMATS), mode=st.sampled_from(["L", "P", "RGB"]), orientation=st.none() | st.integers(1, 8),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=4),
    kept=st.floats(0, 1) | st.just(1.0), in_header=st.booleans(),
)  # fmt: skip
def test_a_damaged_file_is_an_image_or_refused(form, mode, orientation, flips, kept, in_header):
    mode = "RGB" if form in ("JPEG", "WEBP") else mode
    data = bytearray(encoded(picture(mode, (7, 5)), form, orientation if form not in ("GIF", "BMP") else None))
    for share, mask in flips:
        data[int(share * (min(len(data), 64) if in_header else len(data)))] ^= mask
    check(bytes(data[: int(kept * len(data))]))


@given(
    data=st.binary(max_size=80),
    form=st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe1", b"GIF89a", b"RIFF\0\0\0\0WEBP"]),
)
def test_any_bytes_are_an_image_or_refused(data, form):
    check(form + data)


odd = st.one_of(st.none(), st.text(max_size=8), st.binary(max_size=8), st.integers(-9, 9))


@given(st.one_of(odd, st.lists(odd, max_size=2), st.dictionaries(st.sampled_from(["bytes", "path", "other"]), odd)))
def test_any_value_is_an_image_or_refused(value):
    assert check(value) is None
