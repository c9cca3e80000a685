"""Videos from every source, at every rate, seen by the index that each frame's grey level tells."""

import io
import re
import struct
import sys
import wave
from fractions import Fraction
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest
import torch
from datasets import Array4D, Dataset, Features, Video
from PIL import Image

from tgo_trl.media.images import image_to_tensor
from tgo_trl.media.videos import load_video, video_bytes, video_size, video_to_tensor

from .tiny import clip, picture

av = pytest.importorskip("av", reason="video files are written and read with PyAV, the extra `video`")

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
CODECS = {"matroska": ("ffv1", "bgr0"), "avi": ("mpeg4", "yuv420p"), "mov": ("qtrle", "argb")}
LAYOUTS = {"RGB": "rgb24", "RGBA": "rgba"}


def grey(index, size=(16, 16)):
    """The frame of this index, below 30."""
    return Image.new("RGB", size, (8 * index + 8,) * 3)


def indices(frames):
    """Of the frames of `grey`, which encoders leave no more than 3 levels off."""
    levels = [np.asarray(frame, dtype=np.float64).mean() for frame in frames]
    assert all(abs(level % 8 - 4) > 1 for level in levels)
    return [round(level / 8) - 1 for level in levels]


def encode(frames, rate=24, format="mp4", times=None, last_duration=None):
    """A video file of RGB or RGBA images, written by PyAV.

    Args:
        frames: the images.
        rate: frames per second, unless there are times.
        format: of the file.
        times: of the frames, milliseconds.
        last_duration: of the last frame, milliseconds; only with times.
    """
    buffer = io.BytesIO()
    codec, layout = CODECS.get(format, ("libx264", "yuv420p"))
    with av.open(buffer, "w", format=format) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = layout
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        packets = []
        for index, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.asarray(image), format=LAYOUTS[image.mode])
            if times is not None:
                frame.pts, frame.time_base = times[index], Fraction(1, 1000)
            packets += stream.encode(frame)
        packets += stream.encode()
        if last_duration is not None:
            packets[-1].duration = last_duration
        for packet in packets:
            container.mux(packet)
    return buffer.getvalue()


def film(num_frames, **options):
    return encode([grey(index) for index in range(num_frames)], **options)


def sound():
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(1600))
    return buffer.getvalue()


def music_with_a_cover():
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp3") as container:
        audio, cover = container.add_stream("libmp3lame", rate=44100), container.add_stream("mjpeg")
        cover.width, cover.height, cover.pix_fmt = 16, 16, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 4608), np.int16), format="s16", layout="stereo")
        silence.rate = 44100
        for packet in [*cover.encode(av.VideoFrame.from_image(grey(0))), *cover.encode()]:
            container.mux(packet)
        for packet in [*audio.encode(silence), *audio.encode()]:
            container.mux(packet)
    return buffer.getvalue()


def no_frames():
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="avi") as container:
        stream = container.add_stream("mpeg4", rate=24)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        container.start_encoding()
    return buffer.getvalue()


def broken_behind_its_first_half(file):
    """The MP4 file with the second half of its pictures blotted out, but not its index."""
    begin, end = file.index(b"mdat"), file.index(b"moov")
    middle = (begin + end) // 2
    return file[:middle] + b"\xff" * (end - 8 - middle) + file[end - 8 :]


def turned(file, matrix):
    """The MP4 file with another display matrix: a, b, c, d of its first two rows, 16.16 fixed point."""
    a, b, c, d = (number << 16 for number in matrix)
    start = file.index(b"tkhd") + 44
    return file[:start] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + file[start + 36 :]


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def pixels(frames):
    """uint8 [F, H, W, 3]."""
    assert all(frame.mode == "RGB" for frame in frames)
    return np.stack([np.asarray(frame) for frame in frames])


class Decoder:
    """What is used of a `torchcodec.decoders.VideoDecoder`: uint8 frames [C, H, W], and times in seconds."""

    def __init__(self, frames, rate, begin=0.0):
        self.data = torch.from_numpy(pixels(frames)).permute(0, 3, 1, 2)
        self.starts = [begin + index / rate for index in range(len(frames))]
        self.metadata = SimpleNamespace(
            average_fps=rate, num_frames=len(frames), begin_stream_seconds=begin,
            end_stream_seconds=begin + len(frames) / rate,
        )  # fmt: skip
        self.reads = []

    def get_frame_at(self, index):
        return SimpleNamespace(data=self.data[index], pts_seconds=self.starts[index])

    def get_frames_played_at(self, seconds):
        if not all(self.starts[0] <= second < self.metadata.end_stream_seconds for second in seconds):
            raise RuntimeError("out of bounds")
        self.reads += [sum(start <= second for start in self.starts) - 1 for second in seconds]
        return SimpleNamespace(data=self.data[self.reads[-len(seconds) :]])


# ---- Sources ----


def test_every_kind_of_file_gives_the_same_frames(tmp_path):
    data = film(6)
    path = tmp_path / "film.mp4"
    path.write_bytes(data)
    with fsspec.open("memory://films/film.mp4", "wb") as file:
        file.write(data)
    stored = {"bytes": data, "path": "its-name-when-it-was-stored.mp4"}
    expected = pixels(load_video(data, 6, 24))
    for value in (path, str(path), {"bytes": data}, {"path": str(path)}, stored, "memory://films/film.mp4"):
        assert indices(load_video(value, 6, 24)) == [0, 1, 2, 3, 4, 5]
        assert np.array_equal(pixels(load_video(value, 6, 24)), expected)
        assert video_bytes(value) == data
        assert video_size(value) == (16, 16)


def frames_as(kind, images):
    array = pixels(images)
    floats = array.astype(np.float64) / 255
    return {
        "images": lambda: images,
        "tuple": lambda: tuple(images),
        "files": lambda: [png(image) for image in images],
        "stored": lambda: [{"bytes": png(image), "path": None} for image in images],
        "array": lambda: array,
        "channels first": lambda: array.transpose(0, 3, 1, 2),
        "floats": lambda: floats,
        "half floats": lambda: floats.astype(np.float16),
        "tensor": lambda: torch.from_numpy(array),
        "float tensor": lambda: torch.from_numpy(floats).permute(0, 3, 1, 2).requires_grad_(),
        "numbers": lambda: array.tolist(),
        "float numbers": lambda: floats.tolist(),
        "arrays": lambda: list(array),
        "tensors": lambda: list(torch.from_numpy(array).permute(0, 3, 1, 2)),
        "mixed": lambda: [images[0], *array[1:]],
    }[kind]()


KINDS = ("tuple", "array", "channels first", "floats", "half floats", "tensor", "float tensor", "numbers",
         "float numbers", "arrays", "tensors", "mixed")  # fmt: skip


@pytest.mark.parametrize("kind", ["images", "files", "stored", *KINDS])
def test_every_kind_of_frames_gives_the_same_pixels(kind):
    images = clip(3, 4, (7, 5))
    value = frames_as(kind, images)
    assert np.array_equal(pixels(load_video(value, 4, 16)), pixels(images))
    assert np.array_equal(pixels(load_video(value, 2, 16)), pixels(images[:2]))
    assert video_size(value) == (5, 7)


def test_bfloat16_is_read():
    # 0.5 is exact in bfloat16: 127.5 rounds to the even 128
    (frame,) = load_video(torch.full((1, 3, 2, 4), 0.5, dtype=torch.bfloat16), 1, 16)
    assert frame.getpixel((0, 0)) == (128, 128, 128)


def test_array_columns_are_read():
    images = clip(4, 3, (4, 5))
    dataset = Dataset.from_dict(
        {"video": [pixels(images)]}, features=Features({"video": Array4D((3, 5, 4, 3), "uint8")})
    )
    assert np.array_equal(pixels(load_video(dataset[0]["video"], 3, 16)), pixels(images))


def test_video_columns_are_read_without_torchcodec(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.TORCHCODEC_AVAILABLE", False)
    path = tmp_path / "film.mp4"
    path.write_bytes(film(6))
    dataset = Dataset.from_dict({"video": [str(path)]}).cast_column("video", Video(decode=True))
    value = dataset.cast_column("video", Video(decode=False))[0]["video"]
    assert value == {"bytes": None, "path": str(path)}
    assert indices(load_video(value, 3, 12)) == [0, 2, 4]


def test_a_decoder_is_read_at_the_rate_asked_for():
    # 16 fps are 1.5 frames of 24 fps each
    decoder = Decoder([grey(index) for index in range(24)], rate=24, begin=1.4)
    assert indices(load_video(decoder, 7, 16)) == decoder.reads == [0, 1, 3, 4, 6, 7, 9]
    assert len(load_video(decoder, 16, 16)) == 16
    with pytest.raises(ValueError, match=r"the video has 16 frames \(1 s at 16 fps\), and `num_frames` asks for 17 "):
        load_video(decoder, 17, 16)
    assert video_size(Decoder(clip(0, 2, (7, 5)), rate=8)) == (5, 7)


def test_a_decoder_with_its_channels_last_is_read():
    decoder = Decoder(clip(5, 2, (7, 5)), rate=8)
    decoder.data = decoder.data.permute(0, 2, 3, 1)
    assert np.array_equal(pixels(load_video(decoder, 2, 8)), pixels(clip(5, 2, (7, 5))))


def test_a_decoder_that_fails_gives_its_reason():
    decoder = Decoder(clip(0, 4), rate=8)
    decoder.starts = [9.0]
    with pytest.raises(ValueError, match=r"the video cannot be read \(RuntimeError: out of bounds\)"):
        load_video(decoder, 2, 8)
    decoder.metadata.num_frames = None
    with pytest.raises(ValueError, match=r"the video cannot be read \(TypeError: "):
        video_bytes(decoder)


def test_memory_errors_are_left_alone(monkeypatch):
    def full(*args):
        raise MemoryError

    monkeypatch.setattr("tgo_trl.media.origin.Origin.open", full)
    with pytest.raises(MemoryError):
        load_video("film.mp4", 1, 24)


def test_without_pyav_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=re.escape('`pip install "tgo_trl[video]"`')):
        load_video(b"anything", 1, 24)
    assert len(load_video(clip(0, 2), 2, 24)) == 2
    assert video_bytes(b"anything") == b"anything"


# ---- Rates ----


@pytest.mark.parametrize("format", ["mp4", "matroska", "avi", "mpegts", "h264"])  # the last has no timestamps
@pytest.mark.parametrize(
    ("rate", "fps", "expected"),
    [
        (24, 24, [0, 1, 2, 3, 4, 5, 6, 7]),
        (16, 16, [0, 1, 2, 3, 4, 5, 6, 7]),  # 62.5 ms, which Matroska rounds up
        (24, 12, [0, 2, 4, 6, 8, 10, 12, 14]),
        (24, 16, [0, 1, 3, 4, 6, 7, 9, 10]),  # floor(1.5 k)
        (30, 16, [0, 1, 3, 5, 7, 9, 11, 13]),  # floor(1.875 k)
        (25, 16, [0, 1, 3, 4, 6, 7, 9, 10]),  # floor(1.5625 k)
        (16, 24, [0, 0, 1, 2, 2, 3, 4, 4]),  # floor(2 k / 3)
        (8, 24, [0, 0, 0, 1, 1, 1, 2, 2]),
        (Fraction(30000, 1001), 30000 / 1001, [0, 1, 2, 3, 4, 5, 6, 7]),
        (Fraction(24000, 1001), 23.976, [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_files_are_sampled_at_the_rate_asked_for(format, rate, fps, expected):
    assert indices(load_video(film(16, rate=rate, format=format), 8, fps)) == expected


def test_the_last_frame_lasts_until_the_end():
    # 8 frames of 1/8 s: at 16 fps, 16; one of them is shown at 15/16 s
    assert indices(load_video(film(8, rate=8), 16, 16)) == [k // 2 for k in range(16)]
    with pytest.raises(ValueError, match=r"the video has 16 frames \(1 s at 16 fps\), and `num_frames` asks for 17 "):
        load_video(film(8, rate=8), 17, 16)


def test_a_last_frame_of_no_duration_counts():
    file = film(8, times=[125 * index for index in range(8)], last_duration=1)
    assert indices(load_video(file, 8, 8)) == [0, 1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("format", ["mp4", "matroska"])
@pytest.mark.parametrize("start", [0, 700])
def test_rates_may_vary(format, start):
    # every 50 ms, from the first frame on: 0, 50 | 100, ..., 350 | 400 | 450, 500
    file = film(5, format=format, times=[start + time for time in (0, 100, 400, 450, 600)])
    assert indices(load_video(file, 11, 20)) == [0, 0, 1, 1, 1, 1, 1, 1, 2, 3, 3]
    assert indices(load_video(file, 6, 10)) == [0, 1, 1, 1, 2, 3]


def test_an_animation_is_a_video():
    # Pillow's GIF: 100 ms, 300 ms, 100 ms, so every 100 ms
    buffer = io.BytesIO()
    frames = [grey(index).quantize(2) for index in range(3)]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=[100, 300, 100])
    assert indices(load_video(buffer.getvalue(), 5, 10)) == [0, 1, 1, 1, 2]


def test_lists_are_at_the_rate_asked_for():
    frames = [grey(index) for index in range(8)]
    for fps in (1, 16, 24.5):
        assert indices(load_video(frames, 5, fps)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("kind", ["list", "array", "file", "decoder"])
def test_short_videos_are_refused(kind):
    # 20 / 16 = 1.25, 81 / 16 = 5.0625
    frames = [grey(index) for index in range(20)]
    value = {
        "list": frames,
        "array": pixels(frames),
        "file": encode(frames, rate=16),
        "decoder": Decoder(frames, rate=16),
    }[kind]
    assert len(load_video(value, 20, 16)) == 20
    message = "the video has 20 frames (1.25 s at 16 fps), and `num_frames` asks for 81 (5.06 s)"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        load_video(value, 81, 16)


def test_files_are_read_no_further_than_needed():
    whole = encode(clip(0, 24))
    broken = broken_behind_its_first_half(whole)
    assert np.array_equal(pixels(load_video(broken, 6, 24)), pixels(load_video(whole, 6, 24)))
    assert video_size(broken) == (16, 16)
    with pytest.raises(ValueError, match="the video cannot be read"):
        load_video(broken, 24, 24)


def test_lists_are_read_no_further_than_needed():
    assert indices(load_video([grey(0), grey(1), None], 2, 24)) == [0, 1]
    assert video_size([grey(0), None]) == (16, 16)


# ---- Pixels ----


def test_a_lossless_file_gives_the_pixels_that_were_written():
    frames = clip(6, 3)
    assert np.array_equal(pixels(load_video(encode(frames, format="matroska"), 3, 24)), pixels(frames))


def test_transparency_is_laid_over_white():
    # as in images: alpha 51 is one fifth
    frames = [Image.new("RGBA", (16, 16), colour) for colour in ((200, 100, 0, 51), (200, 100, 0, 255))]
    shown = load_video(encode(frames, format="mov"), 2, 24)
    assert [frame.getpixel((3, 3)) for frame in shown] == [(244, 224, 204), (200, 100, 0)]


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ((1, 0, 0, 1), [[RED, GREEN], [BLUE, WHITE]]),
        ((0, 1, -1, 0), [[BLUE, RED], [WHITE, GREEN]]),  # a quarter, clockwise
        ((-1, 0, 0, -1), [[WHITE, BLUE], [GREEN, RED]]),
        ((0, -1, 1, 0), [[GREEN, WHITE], [RED, BLUE]]),  # a quarter, anticlockwise
        ((-1, 0, 0, 1), [[GREEN, RED], [WHITE, BLUE]]),  # mirrored
        ((1, 0, 0, -1), [[BLUE, WHITE], [RED, GREEN]]),
        ((0, 1, 1, 0), [[RED, BLUE], [GREEN, WHITE]]),
        ((0, -1, -1, 0), [[WHITE, GREEN], [BLUE, RED]]),
    ],
)
def test_frames_are_turned_upright(matrix, expected):
    image = Image.new("RGB", (64, 32))  # of four quarters
    for row, colours in enumerate([[RED, GREEN], [BLUE, WHITE]]):
        for column, colour in enumerate(colours):
            image.paste(colour, (32 * column, 16 * row, 32 * column + 32, 16 * row + 16))
    file = turned(encode([image] * 2), matrix)
    height, width = (64, 32) if matrix[0] == 0 else (32, 64)
    assert video_size(file) == (height, width)
    for frame in load_video(file, 2, 24):
        assert (frame.height, frame.width) == (height, width)
        quarters = np.asarray(frame.resize((2, 2), Image.Resampling.BOX), dtype=int)
        assert np.abs(quarters - np.array(expected)).max() < 40  # of 255: encoded with loss


def test_video_to_tensor_stacks_frames_behind_channels():
    frames = [Image.new("RGB", (8, 4), (0, 255, 51)), Image.new("RGB", (8, 4), (255, 0, 204))]
    tensor = video_to_tensor(frames, 2, 3)
    assert tensor.shape == (3, 2, 2, 3)
    assert tensor.dtype == torch.float32
    expected = torch.tensor([[-1, 1], [1, -1], [-0.6, 0.6]])  # 51 / 127.5 - 1, 204 / 127.5 - 1
    torch.testing.assert_close(tensor, expected[:, :, None, None].expand(3, 2, 2, 3))


def test_video_to_tensor_resizes_as_images_are():
    frames = clip(7, 3, (20, 12))
    tensor = video_to_tensor(frames, 8, 10)
    for index, frame in enumerate(frames):
        assert torch.equal(tensor[:, index], image_to_tensor(frame, (8, 10)))


def test_video_to_tensor_crops_to_the_centre():
    image = Image.new("RGB", (8, 2), BLUE)
    image.paste(RED, (3, 0, 5, 2))
    tensor = video_to_tensor([image], 2, 2)
    assert torch.equal(tensor, torch.tensor([1.0, -1, -1])[:, None, None, None].expand(3, 1, 2, 2))


# ---- Identity ----


@pytest.mark.parametrize("kind", KINDS)
def test_equal_pixels_are_the_same_video(kind):
    images = clip(8, 3, (7, 5))
    assert video_bytes(frames_as(kind, images)) == video_bytes(images)


def test_every_frame_counts():
    images = clip(9, 3)
    others = [
        images[:2],
        images[::-1],
        [*images[:2], picture(1)],
        pixels(images).reshape(3, 32, 8, 3),
        Decoder(images, rate=8),
        Decoder(images, rate=9),
        [png(image) for image in images],
        [png(image) for image in images[:2]],
    ]
    assert len({video_bytes(value) for value in (images, *others)}) == 1 + len(others)
    assert video_bytes(Decoder(images, rate=8)) == video_bytes(others[4])


# ---- What cannot be read ----


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, r"the video is missing \(None\)"),
        (7, "a video must be a list or an array of frames, a path, bytes, .*, not `int`"),
        (grey(0), "a video must be .*, not `Image`"),
        ({"bytes": None, "path": None}, "a video must be .*, not `dict`"),
        ({"frames": []}, "a video must be .*, not `dict`"),
        ("missing.mp4", r"the video file cannot be read \(FileNotFoundError: "),
        ("nosuchscheme://film.mp4", r"the video file cannot be read \(ValueError: Protocol not known"),
        ([], "the video has no frames"),
        (np.zeros((0, 4, 5, 3), np.uint8), "the video has no frames"),
        (np.zeros((4, 5, 3), np.uint8), r"an array of frames must be \[F, H, W, 3\] or .*, not \[4, 5, 3\]"),
        (torch.zeros(1, 2, 4, 5, 3), r"an array of frames must be .*, not \[1, 2, 4, 5, 3\]"),
        (np.zeros((2, 4, 5, 1), np.uint8), r"frame 0: an array of pixels must be .*, not \[4, 5, 1\]"),
        (np.zeros((2, 4, 0, 3), np.uint8), r"frame 0: an array of pixels must be .*, not \[4, 0, 3\]"),
        (np.zeros((2, 3, 4, 3), np.uint8), r"frame 0: .* of shape \[3, 4, 3\] may be \[H, W, 3\] or \[3, H, W\]"),
        (np.full((2, 4, 5, 3), 300), "frame 0: pixels must be uint8, .*, not int64 from 300 to 300"),
        (np.zeros((2, 4, 5, 3), bool), "frame 0: pixels must be uint8, .*, not bool from False to False"),
        (torch.zeros(2, 3, 4, 5, dtype=torch.int32), "frame 0: pixels must be uint8, .*, not int32 from 0 to 0"),
        ([np.full((4, 5, 3), 300).tolist()], "frame 0: pixels must be uint8, .*, not int64 from 300 to 300"),
        ([np.full((4, 5, 3), -1).tolist()], "frame 0: pixels must be uint8, .*, not int64 from -1 to -1"),
        ([[[[0, 0, 0]], [[0, 0]]]], "frame 0: .*inhomogeneous"),
        ([[]], r"frame 0: an array of pixels must be .*, not \[0\]"),
        (np.stack([np.zeros((4, 5, 3)), np.full((4, 5, 3), 2.0)]), r"frame 1: .* in \[0, 1\], not from 2 to 2; "),
        (-torch.ones(2, 4, 5, 3), "frame 0: floating-point pixels must be in .*, not from -1 to -1; rescale them"),
        (np.full((2, 4, 5, 3), np.nan), "frame 0: floating-point pixels must be in .*, not from nan to nan"),
        ([grey(0), None], r"frame 1: the image is missing \(None\)"),
        ([0.5, 0.5], "frame 0: an image must be a PIL image"),
    ],
)  # fmt: skip
def test_other_values_are_refused(value, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        load_video(value, 2, 16)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (lambda: b"no video at all", r"the video cannot be read \(InvalidDataError: "),
        (lambda: b"", r"the video cannot be read \(InvalidDataError: "),
        (lambda: film(8)[:-200], r"the video cannot be read \("),
        (sound, "the file holds no video$"),
        (music_with_a_cover, "the file holds no video$"),
        (no_frames, "the video has no frames$"),
    ],
)
def test_other_files_are_refused(file, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        load_video(file(), 1, 16)
    with pytest.raises(ValueError, match=f"^{message}"):
        video_size(file())


@pytest.mark.parametrize("value", [None, 7, {"bytes": None, "path": None}, "missing.mp4", [None], np.zeros((4, 5, 3))])
def test_what_cannot_be_a_video_has_no_identity(value):
    with pytest.raises(ValueError, match=r"video|frame"):
        video_bytes(value)


def test_frames_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match=r"the video has frames of different sizes \(16 x 16, 7 x 5 pixels\)"):
        load_video([*clip(0, 2), picture(0, (7, 5))], 3, 16)
