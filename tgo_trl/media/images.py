"""From whatever an image column holds to a tensor the image encoder takes."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from .origin import OWN, DataFile, reading
from .signatures import HEAD, IMAGE, describe, media
from .types import Size

FORMATS = (
    "AVIF", "BMP", "DIB", "GIF", "HEIF", "ICO", "JPEG", "JPEG2000", "JXL", "MPO", "PNG", "PPM", "QOI", "TIFF", "WEBP",
)  # fmt: skip
"""Formats that are read, where Pillow or a plugin of it can. Others have no signature, or run programs (EPS)."""

# Programs that draw images store their settings as text, megabytes of it. Pillow reads 1 MiB of one compressed text and
# 64 MiB of all texts of a file; here one text may have all of that.
PngImagePlugin.MAX_TEXT_CHUNK = max(PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY)

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image upright, by its EXIF orientation."""


def load_image(value: Any) -> Image.Image:
    """The image as RGB, upright; one that is both already comes back as it is.

    EXIF rotation is applied, transparency is laid over white, 16-bit greyscale is scaled to 8 bits.

    Args:
        value: a PIL image, a path, encoded bytes, or a dictionary with `"bytes"` and `"path"` as `datasets` stores.

    Raises:
        ValueError: if the value is none of these, or cannot be read as an image, or has a mode without a known range.
    """
    with _opened(value) as image:
        with reading("the image"):
            image.load()
            turn = _TURNS.get(_orientation(image))
            upright = image if turn is None else image.transpose(turn)
        rgb = _to_rgb(upright)
    if rgb is not value:
        rgb.info = {}  # the orientation is not to be applied again
    return rgb


def image_to_tensor(image: Image.Image, size: Size) -> Tensor:
    """Resizes until both sides are large enough (Lanczos), crops to the centre, scales to [-1, 1].

    Args:
        image: an RGB image.
        size: height and width, in pixels.

    Returns:
        float32 `[3, height, width]`.
    """
    pixels = torch.from_numpy(np.array(fit_image(image, size), dtype=np.float32))
    return pixels.permute(2, 0, 1).contiguous() / 127.5 - 1


def fit_image(image: Image.Image, size: Size) -> Image.Image:
    """The image as [`image_to_tensor`] takes it: resized, and cropped to height and width."""
    height, width = size
    return ImageOps.fit(image, (width, height), method=Image.Resampling.LANCZOS)


def image_size(value: Any) -> Size:
    """Height and width of the upright image, from the file's header alone.

    Raises:
        ValueError: as [`load_image`] does, but not for every file that is broken behind its header.
    """
    with _opened(value) as image:
        if image.format == "TIFF" and _orientation(image) >= 5:  # which Pillow turns itself
            with reading("the image"):
                image.load()
        is_turned = _orientation(image) >= 5  # by a quarter
        return (image.width, image.height) if is_turned else (image.height, image.width)


def encoded_bytes(value: Any) -> bytes:
    """The bytes that identify an image value: the file's own where there is a file, else its size and RGB pixels.

    A file that the value names must be an image, as far as its header tells.

    Raises:
        ValueError: if the value cannot be an image, or its file cannot be read.
    """
    source = _source(value)
    if isinstance(source, bytes):
        return source
    if isinstance(source, Image.Image):  # as it is trained on: palette, transparency and rotation count too
        image = load_image(source)
        return f"{image.size}".encode() + image.tobytes()
    with reading("the image file"):
        file = source.open()
    with file:
        _header(file)
        file.seek(0)
        with reading("the image file"):
            return file.read()


@contextmanager
def _opened(value: Any) -> Iterator[Image.Image]:
    """The image, of which a file's pixels are not read yet."""
    source = _source(value)
    if isinstance(source, Image.Image):
        yield source
        return
    with reading("the image"):
        file = io.BytesIO(source) if isinstance(source, bytes) else source.open()
    with file, _header(file) as image:
        yield image


def _header(file: BinaryIO) -> Image.Image:
    with reading("the image"):
        head = file.read(HEAD)
        file.seek(0)
        Image.init()  # so that the table has the formats of plugins
        try:
            return Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])
        except UnidentifiedImageError as error:
            if IMAGE in media(head):
                raise
            raise UnidentifiedImageError(f"this is {describe(head)}") from error


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where it is broken or is not stated, as viewers have it."""
    try:
        stated = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # over broken EXIF, Pillow raises anything
        return 1
    return stated if isinstance(stated, int) and stated in _TURNS else 1


def _source(value: Any) -> Image.Image | bytes | DataFile:
    if isinstance(value, (Image.Image, bytes, DataFile)):
        return value
    if isinstance(value, dict) and value.get("bytes") is not None:
        if not isinstance(value["bytes"], (bytes, bytearray, memoryview)):
            raise ValueError(f"the image's `bytes` are a `{type(value['bytes']).__name__}`")
        return bytes(value["bytes"])
    located = None if isinstance(value, (list, tuple)) else OWN.locate(value)
    if isinstance(located, DataFile):
        return located
    raise ValueError(_not_an_image(value))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F"):
        raise ValueError(
            f"the image has mode {image.mode!r}, whose range of values is unknown; save it as 8 or 16 bits"
        )
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image, dtype=np.float32) / 257).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _not_an_image(value: Any) -> str:
    if value is None:
        return "the image is missing (None)"
    return f"an image must be a PIL image, a path, bytes or a `datasets.Image`, not `{type(value).__name__}`"
