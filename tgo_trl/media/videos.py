"""From whatever a video column holds to a tensor the video encoder takes.

Pixels are taken as they are stored: non-square ones are not stretched, and colours outside sRGB are not mapped into it.
"""

import importlib
import io
import math
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import islice
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..messages.values import why
from .images import encoded_bytes, image_to_tensor, load_image
from .origin import OWN, DataFile, reading
from .signatures import HEAD, VIDEO, describe, media
from .types import Size

T = TypeVar("T")

LATE = Fraction(1, 1000)
"""Seconds by which times are sampled late: Matroska and WebM round the times of the first and of each frame to
milliseconds, so that a frame may seem to come up to so much after its time."""
FORMATS = (
    "mov", "matroska", "avi", "mpegts", "mpeg", "mpegvideo", "ogg", "flv", "asf", "gif", "apng", "h264", "hevc", "m4v",
    "av1", "obu", "ivf", "yuv4mpegpipe", "mxf", "dv", "nut", "rm", "wtv", "mp3", "wav", "flac", "aac",
)  # fmt: skip
"""Formats that are read, as FFmpeg names them. Others draw what is no video (`tty`: any text) or open further files
(`hls`, `concat`)."""


def load_video(value: Any, num_frames: int, fps: float) -> list[Image.Image]:
    """The first `num_frames` frames at `fps`, RGB and upright.

    A file has its own clock: frame k is the one shown k / fps seconds after its first, so that frames are left out or
    repeated where its rate differs. It is read only as far as is needed. Lists and arrays are taken to be at `fps`.

    Args:
        value: a list of frames, each anything that [`~tgo_trl.media.images.load_image`] takes or an array; an array or
            tensor `[F, H, W, 3]` or `[F, 3, H, W]`, uint8 or floating point in [0, 1], or the same in nested lists; a
            path, encoded bytes, or a dictionary with `"bytes"` and `"path"` as `datasets` stores; a
            `torchcodec.decoders.VideoDecoder`.
        num_frames: at least 1.
        fps: frames per second.

    Raises:
        ValueError: if the value is none of these, cannot be read, is too short, or has frames of several sizes.
        ImportError: if a file is to be decoded, and PyAV is not installed.
    """
    if _is_decoder(value):
        frames = _played_frames(value, num_frames, fps)
    elif _is_sequence(value):
        frames = list(islice(_each_frame(value, load_image), num_frames))
    else:
        frames = _file_frames(value, num_frames, fps)
    _check_length(len(frames), num_frames, fps)
    sizes = dict.fromkeys(frame.size for frame in frames)
    if len(sizes) > 1:
        shown = ", ".join(f"{width} x {height}" for width, height in sizes)
        raise ValueError(f"the video has frames of different sizes ({shown} pixels)")
    return frames


def video_to_tensor(frames: Iterable[Image.Image], height: int, width: int) -> Tensor:
    """Each frame as [`~tgo_trl.media.images.image_to_tensor`] has it: resized, cropped to the centre, in [-1, 1].

    Args:
        frames: RGB images.
        height: in pixels.
        width: in pixels.

    Returns:
        float32 `[3, F, height, width]`.
    """
    return torch.stack([image_to_tensor(frame, (height, width)) for frame in frames], dim=1)


def video_size(value: Any) -> Size:
    """Height and width of the first frame, upright, from the beginning of the file.

    Raises:
        ValueError, ImportError: as [`load_video`] does, but not for a video that is broken behind its beginning.
    """
    frame = load_video(value, num_frames=1, fps=1)[0]
    return frame.height, frame.width


def frame_size(value: Any) -> Size:
    """Height and width of the frames as they are stored, not turned upright, without decoding one of a file.

    Raises:
        ValueError, ImportError: as [`load_video`] does.
    """
    if _is_decoder(value) or _is_sequence(value):
        return video_size(value)
    with _open_file(value) as file, _container(file) as (_, stream), reading("the video"):
        return stream.height, stream.width


def video_bytes(value: Any) -> bytes:
    """The bytes that identify a video value: the file's own where there is a file, else sizes and pixels of all frames.

    Raises:
        ValueError: if the value cannot be a video, or its file cannot be read.
    """
    if _is_decoder(value):
        parts = _decoder_bytes(value)
    elif _is_sequence(value):
        parts = _each_frame(value, encoded_bytes)
    else:
        with _open_file(value) as file, reading("the video file"):
            return file.read()
    return b"".join(f"{len(part)}:".encode() + part for part in parts)


def _check_length(available: int, num_frames: int, fps: float) -> None:
    if available == 0:
        raise ValueError("the video has no frames")
    if available < num_frames:
        has, asked = (f"{round(count / fps, 2):g} s" for count in (available, num_frames))
        raise ValueError(
            f"the video has {available} frames ({has} at {fps:g} fps), and `num_frames` asks for {num_frames} ({asked})"
        )


# ---- Lists and arrays ----


def _is_sequence(value: Any) -> bool:
    return isinstance(value, (list, tuple, np.ndarray, Tensor))


def _each_frame(value: Any, read: Callable[[Any], T]) -> Iterator[T]:
    """What `read` makes of each frame, arrays being given to it as images."""
    if isinstance(value, (np.ndarray, Tensor)) and value.ndim != 4:
        raise ValueError(f"an array of frames must be [F, H, W, 3] or [F, 3, H, W], not {list(value.shape)}")
    for index, frame in enumerate(value):
        try:
            yield read(_image_from_array(frame) if _is_sequence(frame) else frame)
        except ValueError as error:
            raise ValueError(f"frame {index}: {error}") from error


def _image_from_array(frame: Any) -> Image.Image:
    pixels = _numpy(frame)
    if pixels.ndim != 3 or pixels.size == 0 or 3 not in (pixels.shape[0], pixels.shape[2]):
        raise ValueError(f"an array of pixels must be [H, W, 3] or [3, H, W], not {list(pixels.shape)}")
    if pixels.shape[0] == pixels.shape[2]:
        raise ValueError(f"an array of pixels of shape {list(pixels.shape)} may be [H, W, 3] or [3, H, W]")
    if pixels.shape[0] == 3:
        pixels = pixels.transpose(1, 2, 0)
    return Image.fromarray(np.ascontiguousarray(_to_uint8(pixels)))


def _numpy(frame: Any) -> np.ndarray[Any, Any]:
    if isinstance(frame, Tensor):
        frame = frame.detach().cpu()
        return np.asarray(frame.float() if frame.is_floating_point() else frame)  # NumPy has no bfloat16
    if isinstance(frame, np.ndarray):
        return frame
    pixels = np.array(frame)  # raises a ValueError if rows differ in length
    fits = pixels.dtype.kind == "i" and pixels.size > 0 and pixels.min() >= 0 and pixels.max() <= 255
    return pixels.astype(np.uint8) if fits else pixels  # nested lists know no uint8


def _to_uint8(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if pixels.dtype == np.uint8:
        return pixels
    low, high = pixels.min(), pixels.max()
    if not np.issubdtype(pixels.dtype, np.floating):
        raise ValueError(
            f"pixels must be uint8, or floating point in [0, 1], not {pixels.dtype} from {low} to {high}; convert them"
        )
    if not (low >= 0 and high <= 1):
        raise ValueError(f"floating-point pixels must be in [0, 1], not from {low:g} to {high:g}; rescale them")
    scaled: np.ndarray[Any, Any] = np.rint(pixels.astype(np.float32) * 255)
    return scaled.astype(np.uint8)


# ---- Decoders of torchcodec ----


def _is_decoder(value: Any) -> bool:
    return hasattr(value, "get_frames_played_at")


def _played_frames(decoder: Any, num_frames: int, fps: float) -> list[Image.Image]:
    with reading("the video"):
        begin, end = decoder.metadata.begin_stream_seconds, decoder.metadata.end_stream_seconds
        times = [begin + k / fps + float(LATE) for k in range(num_frames)]
        available = sum(time < end for time in times)
    _check_length(available, num_frames, fps)
    with reading("the video"):
        played = decoder.get_frames_played_at(times).data
    return list(_each_frame(played, load_image))


def _decoder_bytes(decoder: Any) -> Iterator[bytes]:
    with reading("the video"):
        for index in range(decoder.metadata.num_frames):
            frame = decoder.get_frame_at(index)
            yield f"{frame.pts_seconds}".encode() + encoded_bytes(_image_from_array(frame.data))


# ---- Files ----


@contextmanager
def _open_file(value: Any) -> Iterator[BinaryIO]:
    """The file of a path (local, or a URL as streamed data sets have), of bytes, or of a dictionary of them."""
    if isinstance(value, dict) and value.get("bytes") is not None:
        value = value["bytes"]
    source = value if isinstance(value, (bytes, DataFile)) else OWN.locate(value)
    if not isinstance(source, (bytes, DataFile)):
        raise ValueError(_not_a_video(value))
    with reading("the video file"):
        file = io.BytesIO(source) if isinstance(source, bytes) else source.open()
    with file:
        yield file


def _file_frames(value: Any, num_frames: int, fps: float) -> list[Image.Image]:
    frames: list[Image.Image] = []
    with _open_file(value) as file:
        for frame, until in _shown_until(_timed_frames(file)):
            times = min(num_frames, math.ceil((until - LATE) * Fraction(fps)))  # due until then: k / fps + LATE < until
            if times > len(frames):
                frames += [_to_image(frame)] * (times - len(frames))
            if len(frames) == num_frames:
                break
    return frames


def _timed_frames(file: BinaryIO) -> Iterator[tuple[Any, Fraction, Fraction]]:
    """The decoded frames of a file in order, each with the times it is first and last shown, seconds from the start."""
    with _container(file) as (container, stream), reading("the video"):
        yield from _with_times(container.decode(stream), stream)


@contextmanager
def _container(file: BinaryIO) -> Iterator[tuple[Any, Any]]:
    """The opened file, and its stream of pictures."""
    av = _import_av()
    with reading("the video file"):
        head = file.read(HEAD)
        file.seek(0)
    try:
        container = av.open(file, mode="r", options={"format_whitelist": ",".join(FORMATS)})
    except av.FFmpegError as error:
        reason = why(error) if VIDEO in media(head) else f"{type(error).__name__}: this is {describe(head)}"
        raise ValueError(f"the video cannot be read ({reason})") from error
    with container:
        cover = av.stream.Disposition.attached_pic  # of a piece of music
        streams = [stream for stream in container.streams.video if cover not in stream.disposition]
        if not streams:
            raise ValueError("the file holds no video")
        yield container, streams[0]


def _with_times(frames: Iterator[Any], stream: Any) -> Iterator[tuple[Any, Fraction, Fraction]]:
    start, end = None, Fraction(0)
    for frame in frames:
        time = end  # raw streams have no timestamps
        if frame.pts is not None:
            stamp = frame.pts * stream.time_base
            start = stamp - end if start is None else start
            time = stamp - start
        length = frame.duration * stream.time_base or (1 / stream.average_rate if stream.average_rate else 0)
        end = time + max(length, 2 * LATE)  # some files give their last frame no time at all
        yield frame, time, end


def _shown_until(frames: Iterator[tuple[Any, Fraction, Fraction]]) -> Iterator[tuple[Any, Fraction]]:
    """Each frame with the time of the next, or, for the last, the end of the video."""
    shown = None
    for frame, time, end in frames:
        if shown is not None:
            yield shown, time
        shown, until = frame, end
    if shown is not None:
        yield shown, until


def _to_image(frame: Any) -> Image.Image:
    with reading("the video"):
        has_alpha = any(component.is_alpha for component in frame.format.components)
        image = load_image(Image.fromarray(frame.to_ndarray(format="rgba" if has_alpha else "rgb24")))
        matrix = frame.side_data.get("DISPLAYMATRIX")
        return image if matrix is None else _upright(image, bytes(matrix))


def _upright(image: Image.Image, matrix: bytes) -> Image.Image:
    """Turns and mirrors by multiples of a quarter, where a display matrix sends (x, y) to (a x + c y, b x + d y)."""
    a, b, _, c, d = struct.unpack("=9i", matrix)[:5]
    if abs(b) > abs(a):
        image, a, d = image.transpose(Image.Transpose.TRANSPOSE), c, b
    if a < 0:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if d < 0:
        image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    return image


def _import_av() -> Any:
    try:
        return importlib.import_module("av")
    except ImportError as error:
        raise ImportError(
            "Video files are decoded with PyAV, which cannot be imported. Install it with "
            '`pip install "tgo_trl[video]"`, or give videos as lists of frames.'
        ) from error


def _not_a_video(value: Any) -> str:
    if value is None:
        return "the video is missing (None)"
    return (
        "a video must be a list or an array of frames, a path, bytes, a `datasets.Video` or a `VideoDecoder`, not "
        f"`{type(value).__name__}`"
    )
