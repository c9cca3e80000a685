"""OCR accuracy: the formula, by hand, and the engine on rendered text."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import pytest
from PIL import Image, ImageDraw, ImageFont

from tgo_trl.rewards import NoScore, load_reward
from tgo_trl.rewards.ocr import edit_distance, quoted_text, text_accuracy


@pytest.mark.parametrize(
    ("found", "wanted", "score"),
    [
        ("Hello World", "hello world", 1.0),
        ("Helo World", "Hello World", 0.9),  # one of ten letters is missing
        ("HELLOWORLD and more", "Hello World", 1.0),  # a part of what is read
        ("Hxllo Wyrld!", "Hello World", 0.7),
        ("", "Hello World", 0.0),
        ("nothing of the kind is to be read here", "abc", 0.0),  # not below 0
        ("l\no", "Lo", 1.0),
        ("Cafe\u0301", "caf\u00e9", 1.0),
        ("caf\u00e9", "Cafe\u0301 2", 0.8),
    ],
)
def test_a_score_is_the_share_of_letters_that_are_right(found, wanted, score):
    assert text_accuracy(found, wanted) == pytest.approx(score)


@pytest.mark.parametrize(
    ("first", "second", "distance"),
    [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "", 3), ("flaw", "lawn", 2), ("abc", "abc", 0), ("ab", "ba", 2)],
)
def test_the_edit_distance_is_levenshteins(first, second, distance):
    assert edit_distance(first, second) == edit_distance(second, first) == distance


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ('A sign that says "Hello World" at night', "Hello World"),
        ("A sign that says \u201cHello\u201d", "Hello"),
        ('"first" and "second"', "first"),
        ("it's a 'sign'", None),
        ('a single " is none', None),
        ('an empty " " text', None),
        ("no text", None),
    ],
)
def test_the_text_is_what_stands_in_double_quotes(prompt, text):
    assert quoted_text(prompt) == text


def test_without_the_engine_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    with pytest.raises(ImportError, match=re.escape('`pip install "tgo_trl[ocr]"`')):
        load_reward("ocr")


def test_rendered_text_is_read():
    pytest.importorskip("rapidocr")
    font = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    image = Image.new("RGB", (160, 160), "white")
    ImageDraw.Draw(image).text((12, 60), "Red Box", "red", ImageFont.truetype(str(font), 32))
    reward = load_reward("ocr")
    read, missing = reward(['a sign "Red Fox"', "a sign"], [image, image])
    assert read == pytest.approx(5 / 6)
    assert isinstance(missing, NoScore)
    assert "no text in double quotes" in missing.reason
    assert reward.version.startswith("rapidocr@3.")
    seen = []
    reward._engine = lambda pixels: seen.append(pixels.shape) or SimpleNamespace(txts=None)
    long, wide, longest = (Image.new("RGB", size) for size in ((20, 401), (4000, 10), (20, 400)))
    refused = reward(['"Red Fox"'] * 3, [long, wide, longest])
    assert [it.reason for it in refused[:2]] == [
        f"its image has {size} pixels, and one that is more than 20 times as long as wide is not read"
        for size in ("20 x 401", "4000 x 10")
    ]
    assert refused[2] == 0
    assert seen == [(400, 20, 3)]
    reward._engine = lambda pixels: SimpleNamespace(txts=None)  # as where it finds no text
    assert reward(['"Red Fox"'], [image]) == [0]
    assert reward([], []) == []
    with pytest.raises(ValueError, match="Image 0 of a batch of 1"):
        reward(['"Red Fox"'], [[image]])
