"""Images from every source, mode and orientation, seen by their pixels."""

import base64
import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from tgo_trl.data.rows import BadRows
from tgo_trl.media.images import encoded_bytes, image_size, image_to_tensor, load_image

from .tiny import picture

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
ORIENTATION = 0x0112


def png(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def pixels(image):
    """Rows of RGB tuples."""
    assert image.mode == "RGB"
    return [[image.getpixel((x, y)) for x in range(image.width)] for y in range(image.height)]


def oriented(orientation):
    """A file of a red and a blue pixel side by side, to be turned when shown."""
    image = Image.new("RGB", (2, 1), RED)
    image.putpixel((1, 0), BLUE)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return png(image, exif=exif)


def paletted(first, second):
    image = Image.new("P", (2, 1))
    image.putpalette([*first, *second])
    image.putpixel((1, 0), 1)
    return image


# ---- Sources ----


@pytest.mark.parametrize("kind", ["image", "path", "path object", "bytes", "bytes entry", "path entry", "stored"])
def test_every_kind_of_value_gives_the_same_pixels(tmp_path, kind):
    image = picture(3, (5, 4))
    path, data = tmp_path / "image.png", png(image)
    path.write_bytes(data)
    value = {
        "image": image,
        "path": str(path),
        "path object": path,
        "bytes": data,
        "bytes entry": {"bytes": data},
        "path entry": {"path": str(path)},
        "stored": {"bytes": data, "path": "its-name-when-it-was-stored.png"},
    }[kind]
    assert pixels(load_image(value)) == pixels(image)


# ---- Modes ----


def test_transparency_is_laid_over_white():
    # alpha 51 is one fifth: 0.2 * 200 + 0.8 * 255 = 244, 0.2 * 100 + 204 = 224, 0.2 * 0 + 204 = 204
    assert pixels(load_image(Image.new("RGBA", (1, 1), (200, 100, 0, 51)))) == [[(244, 224, 204)]]
    assert pixels(load_image(Image.new("RGBA", (1, 1), (200, 100, 0, 255)))) == [[(200, 100, 0)]]
    assert pixels(load_image(Image.new("RGBA", (1, 1), (200, 100, 0, 0)))) == [[WHITE]]


def test_transparent_grey_is_laid_over_white():
    # 0.2 * 100 + 0.8 * 255 = 224
    assert pixels(load_image(png(Image.new("LA", (1, 1), (100, 51))))) == [[(224, 224, 224)]]


def test_a_palette_is_looked_up_and_its_transparent_entry_is_white():
    assert pixels(load_image(png(paletted(RED, GREEN)))) == [[RED, GREEN]]
    assert pixels(load_image(png(paletted(RED, GREEN), transparency=0))) == [[WHITE, GREEN]]


def test_a_transparent_colour_is_white():
    assert pixels(load_image(png(Image.new("RGB", (1, 1), RED), transparency=RED))) == [[WHITE]]


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 77, (77, 77, 77)),
        ("1", 1, WHITE),
        ("CMYK", (0, 255, 255, 0), RED),
        ("CMYK", (0, 0, 0, 255), (0, 0, 0)),
    ],
)
def test_other_modes_become_rgb(mode, colour, expected):
    assert pixels(load_image(Image.new(mode, (1, 1), colour))) == [[expected]]


@pytest.mark.parametrize("kind", ["little-endian", "big-endian", "file"])
def test_sixteen_bits_are_scaled_to_eight(kind):
    # 257 steps of 16 bits are one of 8: 25700 = 100 * 257; 128 is just below half a step, 129 just above
    values = np.array([[0, 128, 129, 25700, 65535]], dtype=np.uint16)
    image = Image.fromarray(values.astype(">u2" if kind == "big-endian" else "<u2"))
    assert image.mode == ("I;16B" if kind == "big-endian" else "I;16")
    loaded = load_image(png(image) if kind == "file" else image)
    assert pixels(loaded) == [[(v, v, v) for v in (0, 0, 1, 100, 255)]]


# ---- Orientation ----


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        (1, [[RED, BLUE]]),
        (2, [[BLUE, RED]]),  # mirrored
        (3, [[BLUE, RED]]),  # upside down
        (6, [[RED], [BLUE]]),  # the left side of the file is the top
        (8, [[BLUE], [RED]]),  # the left side of the file is the bottom
    ],
)
@pytest.mark.parametrize("opened", [False, True], ids=["bytes", "image"])
def test_exif_rotation_is_applied(orientation, expected, opened):
    data = oriented(orientation)
    assert pixels(load_image(Image.open(io.BytesIO(data)) if opened else data)) == expected


# ---- Resizing ----


def test_values_run_from_minus_one_to_one():
    image = Image.new("RGB", (1, 1), (0, 51, 255))
    tensor = image_to_tensor(image, (1, 1))
    assert tensor.dtype == torch.float32
    torch.testing.assert_close(tensor, torch.tensor([-1.0, -0.6, 1.0]).reshape(3, 1, 1))


def test_channels_come_first_and_rows_before_columns():
    image = Image.new("RGB", (2, 2))
    image.putpixel((1, 0), RED)  # right, top
    image.putpixel((0, 1), GREEN)  # left, bottom
    red, green, blue = image_to_tensor(image, (2, 2))
    assert red.tolist() == [[-1, 1], [-1, -1]]
    assert green.tolist() == [[-1, -1], [1, -1]]
    assert blue.tolist() == [[-1, -1], [-1, -1]]


@pytest.mark.parametrize("portrait", [False, True])
def test_the_centre_of_the_longer_side_is_cut_out(portrait):
    ramp = np.array([[10, 20, 30, 40], [50, 60, 70, 80]], dtype=np.uint8)
    expected = torch.tensor([[20.0, 30.0], [60.0, 70.0]]) / 127.5 - 1
    grey = Image.fromarray(ramp.T if portrait else ramp).convert("RGB")
    tensor = image_to_tensor(grey, (2, 2))
    torch.testing.assert_close(tensor, (expected.T if portrait else expected).expand(3, 2, 2))


@pytest.mark.parametrize("portrait", [False, True])
def test_the_shorter_side_is_resized(portrait):
    # 96 x 32 to 16: the middle 32 columns, halved. Column c has the grey 2 c; pixel i lies between columns 32 + 2 i and
    # 33 + 2 i, where the ramp is 65 + 4 i, and a symmetric filter keeps a ramp.
    ramp = np.tile(2 * np.arange(96, dtype=np.uint8), (32, 1))
    grey = Image.fromarray(ramp.T if portrait else ramp).convert("RGB")
    expected = ((65 + 4 * torch.arange(16.0)) / 127.5 - 1).expand(16, 16)
    tensor = image_to_tensor(grey, (16, 16))
    torch.testing.assert_close(tensor, (expected.T if portrait else expected).expand(3, 16, 16))


def test_small_images_are_enlarged():
    assert torch.equal(image_to_tensor(Image.new("RGB", (3, 2), RED), (8, 8))[0], torch.ones(8, 8))


# ---- What cannot be read ----

UNREADABLE = {
    "empty": b"",
    "text": b"not an image",
    "truncated": png(picture(0, (64, 64)))[:2000],
    "decoder's own error": b"DDS " + (124).to_bytes(4, "little") + bytes(120),  # NotImplementedError in PIL
    "no such file": "no-such-file.png",
    "no such file entry": {"bytes": None, "path": "no-such-file.png"},
}


@pytest.mark.parametrize("value", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_files_that_cannot_be_read(value):
    with pytest.raises(ValueError, match=r"^the image cannot be read \(\w+: .+"):
        load_image(value)


@pytest.mark.parametrize("read", [load_image, encoded_bytes])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, r"the image is missing \(None\)"),
        (7, "an image must be a PIL image, a path, bytes or a `datasets.Image`, not `int`"),
        (np.zeros((2, 2, 3)), "not `ndarray`"),
        ({"bytes": None, "path": None}, "not `dict`"),
        (Image.new("F", (1, 1)), "the image has mode 'F', whose range of values is unknown; save it as 8 or 16 bits"),
        (Image.new("I", (1, 1)), "mode 'I'"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_that_are_no_image(read, value, message):
    with pytest.raises(ValueError, match=message):
        read(value)


def test_an_image_opened_from_a_truncated_file_is_a_value_error():
    # PIL reads the pixels only when they are asked for: the error comes late, and not from `open`.
    for read in (load_image, encoded_bytes):
        with pytest.raises(ValueError, match="the image cannot be read"):
            read(Image.open(io.BytesIO(UNREADABLE["truncated"])))


# ---- What identifies an image ----


def test_files_are_identified_by_their_bytes(tmp_path):
    data = png(picture(0))
    path = tmp_path / "image.png"
    path.write_bytes(data)
    for value in (data, str(path), path, {"bytes": data, "path": "elsewhere.png"}, {"bytes": None, "path": str(path)}):
        assert encoded_bytes(value) == data
    with pytest.raises(ValueError, match="the image file cannot be read"):
        encoded_bytes(str(tmp_path / "gone.png"))


def test_images_are_identified_by_everything_that_is_trained_on():
    transparent = paletted(RED, GREEN)
    transparent.info["transparency"] = 0
    tall, wide = Image.new("RGB", (1, 4)), Image.new("RGB", (4, 1))
    different = [
        picture(0),
        picture(1),
        tall,
        wide,
        paletted(RED, GREEN),
        paletted(GREEN, BLUE),
        transparent,
        *(Image.open(io.BytesIO(oriented(orientation))) for orientation in (1, 3, 6, 8)),
    ]
    assert len({encoded_bytes(image) for image in different}) == len(different)
    assert encoded_bytes(picture(0).copy()) == encoded_bytes(picture(0))


# ---- What files carry beside their pixels ----


def with_text(num_bytes, where="zTXt"):
    """A PNG with text as programs that draw images store it, before or behind the pixels."""
    info = PngInfo()
    if where == "iTXt":
        info.add_itxt("workflow", "x" * num_bytes, zip=True)
    else:
        info.add_text("workflow", "x" * num_bytes, zip=where == "zTXt")
    return png(picture(1), pnginfo=info)


@pytest.mark.parametrize("where", ["zTXt", "iTXt", "tEXt"])
@pytest.mark.parametrize("num_bytes", [1_200_000, 20_000_000])
def test_text_of_megabytes_is_passed_over(num_bytes, where):
    data = with_text(num_bytes, where)
    assert load_image(data).tobytes() == picture(1).tobytes()
    assert load_image(data).info == {}
    assert image_size(data) == (16, 16)


def test_text_that_would_fill_the_memory_is_refused():
    data = with_text(70_000_000)
    for read in (load_image, image_size):
        with pytest.raises(ValueError, match=r"the image cannot be read .*too large"):
            read(data)


def exif(kind, value, length=None):
    entry = struct.pack("<HHI4s", ORIENTATION, kind, length or 1, value)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 1) + entry + struct.pack("<I", 0)


EXIF = {
    "as it should be": (exif(3, struct.pack("<HH", 6, 0)), True),
    "a long": (exif(4, struct.pack("<I", 6)), True),
    "text": (exif(2, b"6\0\0\0", 2), False),
    "two numbers": (exif(3, struct.pack("<HH", 6, 6), 2), True),
    "none of eight": (exif(3, struct.pack("<HH", 9, 0)), False),
    "zero": (exif(3, struct.pack("<HH", 0, 0)), False),
    "cut off": (exif(3, struct.pack("<HH", 6, 0))[:18], False),
    "no header": (b"Exif\0\0", False),
    "no EXIF": (b"Exif\0\0nonsense", False),
}


@pytest.mark.parametrize("name", EXIF)
def test_both_readers_have_one_rule_for_orientation(name):
    data, is_turned = EXIF[name]
    file = io.BytesIO()
    picture(2, (24, 16)).save(file, "JPEG", exif=data)
    for value in (file.getvalue(), Image.open(io.BytesIO(file.getvalue()))):
        image = load_image(value)
        assert (image.height, image.width) == image_size(value) == ((24, 16) if is_turned else (16, 24))
        assert image_size(image) == (image.height, image.width)  # it is not turned twice
        assert load_image(image) is image


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turns_are_those_of_pillow(orientation):
    file = io.BytesIO()
    picture(2, (24, 16)).save(file, "PNG", exif=exif(3, struct.pack("<HH", orientation, 0)))
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(file.getvalue())))
    assert load_image(file.getvalue()).tobytes() == expected.tobytes()
    assert image_size(file.getvalue()) == (expected.height, expected.width)


def test_an_image_of_the_user_is_left_as_it_is():
    image = Image.open(io.BytesIO(png(picture(0), exif=exif(3, struct.pack("<HH", 6, 0)))))
    load_image(image)
    assert image.getexif()[ORIENTATION] == 6


def test_a_decompression_bomb_is_refused():
    chunk = b"IHDR" + struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    header = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    bomb = b"\x89PNG\r\n\x1a\n" + header + struct.pack(">I", 100) + b"IDAT" + bytes(104)
    for read in (load_image, image_size):
        with pytest.raises(ValueError, match="DecompressionBombError"):
            read(bomb)


def test_formats_that_have_no_signature_or_run_programs_are_not_read():
    for data in (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", b"#define a_width 8\n#define a_height 8\n"):
        for read in (load_image, image_size):
            with pytest.raises(ValueError, match=r"the image cannot be read .*this is text"):
                read(data)


@pytest.mark.parametrize("encode", [lambda text: text, str.encode, lambda text: f"data:image/png;base64,{text}"])
def test_base64_is_named_in_a_short_message(encode):
    text = base64.b64encode(png(picture(3, (300, 300)))).decode()
    for read in (load_image, image_size):
        with pytest.raises(ValueError, match=r"base64 text|data: URI") as refused:
            read(encode(text))
        assert len(str(refused.value)) < 300


def test_messages_are_short_whatever_comes():
    for value in ("x" * 1_000_000, b"x" * 1_000_000, {"bytes": None, "path": "x/" * 500_000}, "a\0" * 500_000):
        for read in (load_image, image_size):
            with pytest.raises(ValueError, match=r"image|path") as refused:
                read(value)
            assert len(str(refused.value)) < 400
    bad = BadRows(skip=True)
    bad.add(0, "image", "y" * 1_000_000)
    assert len(bad.reasons[0]) < 1200
