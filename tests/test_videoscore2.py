"""VideoScore2: what is asked, and how the tokens of an answer become a score."""

import base64
import hashlib
import io
import math

import pytest
from PIL import Image

from tgo_trl.rewards import NoScore, load_reward
from tgo_trl.rewards.chat import EndpointError
from tgo_trl.rewards.videoscore2 import TASK, sampled_frames

from .chat_server import Reply, connect, serving

LABELS = ("visual quality", "text-to-video alignment", "physical/common-sense consistency")


@pytest.fixture(autouse=True)
def connected(monkeypatch):
    connect(monkeypatch)


def video(num_frames):
    return [Image.new("RGB", (8, 8), (10 * i,) * 3) for i in range(num_frames)]


def answer(*digits, layout="{label}: ", probabilities=({},) * 3):
    """An answer token by token; the digit's own probability is what the others leave."""
    tokens = [("<think>", {}), (f"{LABELS[0]}: ", {}), ("1", {"1": 0.0}), ("</think>\n", {})]
    for number, (digit, label, others) in enumerate(zip(digits, LABELS, probabilities, strict=True), start=1):
        tokens += [(layout.format(label=label, number=number), {})]
        likeliest = {digit: 1 - sum(others.values()), **others}
        tokens += [(digit, {text: math.log(p) for text, p in likeliest.items()}), (";\n", {})]
    return Reply("".join(text for text, _ in tokens), tokens=tokens)


def rate(reply, frames=8, **settings):
    with serving(lambda asked: Reply("white", tokens=[("white", {})]) if asked.is_check else reply) as endpoint:
        reward = load_reward("videoscore2", base_url=endpoint.url, model="seer", max_retries=0, **{"fps": 2} | settings)
        (score,) = reward(["a fox runs"], [video(frames)])
    return score, endpoint.questions[0]


@pytest.mark.parametrize("layout", ["{label}: ", "({number}) {label} - clarity, and so on: ", "**{label}** <"])
def test_a_score_is_the_digit_times_its_share(layout):
    """0.6 : 0.2 and 0.5 : 0.3 to the power 1 / 0.7, as at that temperature; what is no digit counts for nothing."""
    probabilities = ({"3": 0.2, "good": 0.2}, {}, {"1": 0.3, " ": 0.2})
    score, asked = rate(answer("4", "5", "2", layout=layout, probabilities=probabilities))
    quality = 4 * 0.6 ** (1 / 0.7) / (0.6 ** (1 / 0.7) + 0.2 ** (1 / 0.7))
    physics = 2 * 0.5 ** (1 / 0.7) / (0.5 ** (1 / 0.7) + 0.3 ** (1 / 0.7))
    assert score == pytest.approx((quality + 5 + physics) / 3)
    chosen, _ = rate(answer("4", "5", "2", layout=layout, probabilities=probabilities), axes=["physics"])
    assert chosen == pytest.approx(physics)
    assert (asked.body["logprobs"], asked.body["top_logprobs"], asked.body["max_tokens"]) == (True, 20, 1024)


def test_a_video_is_sent_as_one_at_two_frames_per_second():
    _, asked = rate(answer("4", "5", "2"), frames=16, fps=4)
    assert [message["role"] for message in asked.body["messages"]] == ["user"]
    assert [part["type"] for part in asked.parts] == ["video_url", "text"]
    head, _, data = asked.parts[0]["video_url"]["url"].partition("base64,")
    assert head == "data:video/jpeg;"
    frames = [Image.open(io.BytesIO(base64.b64decode(frame))) for frame in data.split(",")]
    assert {frame.format for frame in frames} == {"JPEG"}
    shades = [frame.getpixel((0, 0))[0] for frame in frames]
    assert shades == pytest.approx([10 * round(i * 15 / 7) for i in range(8)], abs=2)
    assert asked.body["media_io_kwargs"] == {"video": {"num_frames": -1, "fps": 2}}
    assert "Video prompt: a fox runs\n" in asked.texts[0]


@pytest.mark.parametrize(
    ("num_frames", "fps", "indices"),
    [
        (2, 30, [0, 1]),
        (3, 30, [0, 2]),
        (30, 30, [0, 10, 19, 29]),  # a second: 4 at least
        (15, 3, [0, 2, 3, 5, 6, 8, 9, 11, 12, 14]),  # five seconds
        (11, 4, [0, 3, 7, 10]),  # 5.5, down to an even number
    ],
)
def test_frames_are_sampled_as_by_the_published_code(num_frames, fps, indices):
    assert sampled_frames(num_frames, fps) == indices


def test_a_long_video_is_cut_to_768_frames():
    indices = sampled_frames(100_000, 10)
    assert (len(indices), indices[0], indices[-1]) == (768, 0, 99_999)


def spelt(*texts):
    """An answer in such tokens, each digit among them certain."""
    tokens = [(text, {text: 0.0} if text.isdigit() else {}) for text in texts]
    return Reply("".join(texts), tokens=tokens)


@pytest.mark.parametrize("range_", [("(", "1", "-", "5", ")"), ("(", "1", " to ", "5", ")")], ids="".join)
def test_a_range_that_is_repeated_is_no_digit(range_):
    score, _ = rate(spelt(*(text for label in LABELS for text in (f"{label} ", *range_, ": ", "4", "\n"))))
    assert isinstance(score, NoScore)


def test_a_digit_of_another_scale_is_none():
    assert isinstance(rate(spelt(*(text for it in LABELS for text in (f"{it}: ", "4", "/", "10", "\n"))))[0], NoScore)
    score, _ = rate(spelt(*(text for label in LABELS for text in (f"{label}: ", "4", "/", "5", "\n"))))
    assert score == 4


@pytest.mark.parametrize(
    "reply",
    [
        Reply("no numbers", tokens=[("no numbers", {})]),
        Reply("<think>visual quality: 3", tokens=[("<think>visual quality: ", {}), ("3", {"3": 0.0})]),
        answer("4", "5", "6"),
        Reply("without tokens"),
    ],
)
def test_an_answer_without_a_digit_for_each_axis_is_no_score(reply):
    score, _ = rate(reply)
    assert isinstance(score, NoScore)
    assert "no digit from 1 to 5 for each axis" in score.reason


def test_a_server_without_probabilities_is_refused_at_once():
    refused = pytest.raises(EndpointError, match="sends no probabilities of tokens")
    with serving(lambda asked: Reply("white")) as endpoint, refused:
        load_reward("videoscore2", base_url=endpoint.url, model="seer", fps=8)(["a"], [video(4)])
    assert len(endpoint.requests) == 1


def test_what_cannot_be_scored_is_named():
    with serving(lambda asked: answer("1", "1", "1")) as endpoint:
        for settings, frames, message in (
            ({}, video(4), "how fast they are shown"),
            ({"fps": 8}, Image.new("RGB", (8, 8)), "judges videos"),
            ({"fps": 8}, video(1), "has 1 frames"),
        ):
            with pytest.raises(ValueError, match=message):
                load_reward("videoscore2", base_url=endpoint.url, model="seer", **settings)(["a"], [frames])
    for settings, message in (({"fps": 0}, "`fps` is 0"), ({"axes": "quality"}, "`axes` is")):
        with pytest.raises(ValueError, match=message):
            load_reward("videoscore2", base_url="http://x/v1", model="seer", **settings)


def test_the_prompt_is_that_of_the_published_code():
    """Scores hang on each character, leading and trailing spaces included."""
    digest = hashlib.sha256(TASK.encode()).hexdigest()
    assert digest == "5d7eaf4888b7d1d4556425aaa1b6e103cc4fa470a8a201e011a6abab3cda351c"
