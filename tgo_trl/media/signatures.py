"""What a file is, by its first bytes: names, extensions and column types claim anything."""

import base64
import binascii

HEAD = 512
"""Bytes of a file that are looked at."""

IMAGE, VIDEO, AUDIO, PDF = "image", "video", "audio", "PDF"

_SIGNATURES: tuple[tuple[int, bytes, tuple[str, ...]], ...] = (
    (0, b"\x89PNG\r\n\x1a\n", (IMAGE,)),
    (0, b"\xff\xd8\xff", (IMAGE,)),
    (0, b"GIF8", (IMAGE, VIDEO)),
    (0, b"BM", (IMAGE,)),
    (0, b"II*\0", (IMAGE,)),
    (0, b"MM\0*", (IMAGE,)),
    (0, b"\0\0\0\x0cjP  ", (IMAGE,)),  # JPEG 2000
    (8, b"WEBP", (IMAGE,)),
    (8, b"AVI ", (VIDEO,)),
    (8, b"WAVE", (AUDIO,)),
    (0, b"\x1aE\xdf\xa3", (VIDEO, AUDIO)),  # Matroska and WebM
    (0, b"OggS", (VIDEO, AUDIO)),
    (0, b"0&\xb2u\x8ef\xcf\x11", (VIDEO, AUDIO)),  # ASF, of WMV and WMA
    (0, b"FLV\x01", (VIDEO,)),
    (0, b"\0\0\x01\xba", (VIDEO,)),  # MPEG programme streams
    (0, b"\0\0\x01\xb3", (VIDEO,)),
    (188, b"G", (VIDEO,)),  # MPEG transport streams, which begin with the same byte
    (0, b"DKIF", (VIDEO,)),  # IVF
    (0, b"YUV4MPEG2", (VIDEO,)),
    (0, b"\0\0\0\x01", (VIDEO,)),  # H.264 and H.265 without a container
    (4, b"moov", (VIDEO,)),  # QuickTime without a brand
    (4, b"mdat", (VIDEO,)),
    (4, b"wide", (VIDEO,)),
    (0, b"ID3", (AUDIO,)),
    (0, b"\xff\xfb", (AUDIO,)),  # MP3 without tags
    (0, b"\xff\xf3", (AUDIO,)),
    (0, b"\xff\xf1", (AUDIO,)),  # AAC
    (0, b"fLaC", (AUDIO,)),
    (8, b"AIFF", (AUDIO,)),
    (0, b"%PDF", (PDF,)),
)
_FIRST_BYTES = {b"WEBP": b"RIFF", b"AVI ": b"RIFF", b"WAVE": b"RIFF", b"AIFF": b"FORM", b"G": b"G"}
"""What files of a signature that stands further in begin with."""
_BRANDS = {**dict.fromkeys((b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1"), IMAGE),
           **dict.fromkeys((b"M4A ", b"M4B "), AUDIO)}  # fmt: skip
"""Of the ISO base media format, whose other brands are videos."""


def media(head: bytes) -> tuple[str, ...]:
    """What a file with these first bytes can be: `"image"`, `"video"`, `"audio"`, `"PDF"`; a container may be several.

    Names the common formats only. That a file is none of them is no proof that it cannot be read.
    """
    if head[4:8] == b"ftyp":
        return (_BRANDS.get(head[8:12], VIDEO),)
    for offset, signature, found in _SIGNATURES:
        if head.startswith(signature, offset) and head.startswith(_FIRST_BYTES.get(signature, b"")):
            return found
    return ()


def describe(head: bytes) -> str:
    """What a file with these first bytes seems to be, for messages, without a letter of its content."""
    start = head.lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    if not start:
        return "a file without content"
    known = media(head)
    if known:
        return f"{'an' if known[0][0] in 'ai' else 'a'} {known[0]}"
    if start.startswith((b"<!doctype html", b"<html")):
        return "an HTML page"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, whose file was not fetched"
    if text_encoding(head.decode("latin-1")) is not None:
        return "base64 text or a data: URI, which is to be decoded first"
    return "text" if _is_text(head) else "of no kind that is known here"


def text_encoding(text: str) -> str | None:
    """`"data: URI"` or `"base64"`, if the text is a file's content in that form."""
    if text[:5].lower() == "data:":
        return "data: URI"
    start = text[:64].strip()
    try:
        decoded = base64.b64decode(start[: len(start) // 4 * 4], validate=True)
    except (binascii.Error, ValueError):  # the latter for letters beyond ASCII
        return None
    return "base64" if len(start) >= 40 and media(decoded) else None


def _is_text(head: bytes) -> bool:
    if b"\0" in head:
        return False
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start > len(head) - 4  # cut in the middle of a letter
    return True
