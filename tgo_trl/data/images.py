"""From whatever an image column holds to a tensor the image encoder takes."""

import io
import os
from typing import Any

import numpy as np
import torch
from datasets import Image as ImageFeature
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from ..families.base import Size


def load_image(value: Any) -> Image.Image:
    """The image as RGB, upright.

    EXIF rotation is applied, transparency is laid over white, 16-bit greyscale is scaled to 8 bits.

    Args:
        value: a PIL image, a path, encoded bytes, or a dictionary with `"bytes"` and `"path"` as `datasets` stores.

    Raises:
        ValueError: if the value is none of these, or cannot be read as an image, or has a mode without a known range.
    """
    source = _source(value)
    try:
        image = source if isinstance(source, Image.Image) else ImageFeature().decode_example(source)
        image = ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception as error:  # decoders raise anything over a broken file: OSError, SyntaxError, RuntimeError, ...
        raise ValueError(f"the image cannot be read ({type(error).__name__}: {error})") from error
    return _to_rgb(image)


def image_to_tensor(image: Image.Image, size: Size) -> Tensor:
    """Resizes until both sides are large enough (Lanczos), crops to the centre, scales to [-1, 1].

    Args:
        image: an RGB image.
        size: height and width, in pixels.

    Returns:
        float32 `[3, height, width]`.
    """
    height, width = size
    fitted = ImageOps.fit(image, (width, height), method=Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(fitted, dtype=np.float32))
    return pixels.permute(2, 0, 1).contiguous() / 127.5 - 1


def image_size(value: Any) -> Size:
    """Height and width of the upright image, from the file's header alone.

    Raises:
        ValueError: as [`load_image`] does, but not for every file that is broken behind its header.
    """
    source = _source(value)
    try:
        if isinstance(source, Image.Image):
            return _upright_size(source)
        with Image.open(source["path"] if source["bytes"] is None else io.BytesIO(source["bytes"])) as image:
            return _upright_size(image)
    except Exception as error:
        raise ValueError(f"the image cannot be read ({type(error).__name__}: {error})") from error


def _upright_size(image: Image.Image) -> Size:
    is_turned = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)  # by a quarter
    if is_turned and image.format == "TIFF":  # which Pillow turns when it loads it, and measures so before or after
        image.load()
        is_turned = False
    return (image.width, image.height) if is_turned else (image.height, image.width)


def encoded_bytes(value: Any) -> bytes:
    """The bytes that identify an image value: the file's own where there is a file, else its size and RGB pixels.

    Raises:
        ValueError: if the value cannot be an image, or its file cannot be read.
    """
    source = _source(value)
    if isinstance(source, Image.Image):  # as it is trained on: palette, transparency and rotation count too
        image = load_image(source)
        return f"{image.size}".encode() + image.tobytes()
    if source["bytes"] is not None:
        return bytes(source["bytes"])
    try:
        with open(source["path"], "rb") as file:
            return file.read()
    except OSError as error:
        raise ValueError(f"the image file cannot be read ({error})") from error


def _source(value: Any) -> Image.Image | dict[str, Any]:
    if isinstance(value, Image.Image):
        return value
    source: dict[str, Any] = {"bytes": None, "path": None}
    if isinstance(value, bytes):
        source["bytes"] = value
    elif isinstance(value, (str, os.PathLike)):
        source["path"] = os.fspath(value)
    elif isinstance(value, dict):
        source = {name: value.get(name) for name in source}
    if source["bytes"] is None and source["path"] is None:
        raise ValueError(_not_an_image(value))
    return source


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
    return image.convert("RGB")


def _not_an_image(value: Any) -> str:
    if value is None:
        return "the image is missing (None)"
    return f"an image must be a PIL image, a path, bytes or a `datasets.Image`, not `{type(value).__name__}`"
