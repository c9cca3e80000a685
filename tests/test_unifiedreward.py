"""UnifiedReward 2: what is asked of images and videos, and how three numbers become a score."""

import hashlib

import pytest
from PIL import Image

from tgo_trl.rewards import NoScore, load_reward
from tgo_trl.rewards.unifiedreward import TASK, VIDEO_TASK

from .chat_server import Reply, connect, serving


@pytest.fixture(autouse=True)
def connected(monkeypatch):
    connect(monkeypatch)


def grey(value=100):
    return Image.new("RGB", (8, 8), (value,) * 3)


def rate(reply, image, **settings):
    with serving(lambda asked: Reply("white" if asked.is_check else reply)) as endpoint:
        reward = load_reward("unifiedreward2", base_url=endpoint.url, model="seer", max_retries=0, **settings)
        (score,) = reward(["a fox [red]"], [image])
    return score, endpoint.questions[0]


IMAGE_REPLY = "Alignment Score (1-5): 2.5\nCoherence Score (1-5): 3\nStyle Score (1-5): 4.25\n"
VIDEO_REPLY = IMAGE_REPLY.replace("Coherence", "Physics")


def test_the_score_of_an_image_is_the_mean_of_its_axes():
    score, asked = rate(IMAGE_REPLY, grey())
    assert score == pytest.approx((2.5 + 3 + 4.25) / 3)
    assert [part["type"] for part in asked.parts] == ["image_url", "text"]
    assert [message["role"] for message in asked.body["messages"]] == ["user"], (
        "it was trained without a system message"
    )
    assert "response_format" not in asked.body
    assert asked.texts[0].endswith("Text Caption: [a fox [red]]")
    assert rate(IMAGE_REPLY, grey(), axes=["style", "alignment"])[0] == pytest.approx((2.5 + 4.25) / 2)


def test_a_video_is_asked_about_by_its_frames_and_physics():
    score, asked = rate(VIDEO_REPLY, [grey(i) for i in range(20)], num_frames=8)
    assert score == pytest.approx((2.5 + 3 + 4.25) / 3)
    shades = [image.getpixel((0, 0))[0] for image in asked.images]
    assert shades == [0, 2, 5, 7, 10, 12, 15, 17]  # 20 i / 8, rounded down
    assert "Physics Score (1-5): Y" in asked.texts[0]
    assert "image" not in asked.texts[0]
    assert "Coherence" not in asked.texts[0]
    with pytest.raises(ValueError, match=r"`axes` is .*; it must be a list of some of alignment, physics"):
        rate(VIDEO_REPLY, [grey()], axes=["coherence"])


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("**Alignment Score**: 2/5\n**Coherence Score**: 3/5\n**Style Score**: 4/5", 3.0),
        ("<think>Style Score: 1</think>Alignment score: 3; coherence score: 3; style score: 3", 3.0),
        ("4", None),
        ("Alignment Score (1-5): 4\nCoherence Score (1-5): 3", None),
        (IMAGE_REPLY.replace("4.25", "6"), None),
        (IMAGE_REPLY + "Style Score (1-5): 1", None),
        ("Alignment Score (1-5): X\nCoherence Score (1-5): Y\nStyle Score (1-5): Z", None),
        ("", None),
    ],
)
def test_a_reply_has_a_number_for_each_axis_or_no_score(reply, score):
    found, _ = rate(reply, grey())
    if score is None:
        assert isinstance(found, NoScore)
        assert "no number from 1 to 5 for each axis" in found.reason
    else:
        assert found == pytest.approx(score)


def test_settings_that_cannot_work_are_named():
    for settings, message in (({"axes": ["beauty"]}, "`axes` is"), ({"num_frames": 0}, "`num_frames` is 0")):
        with pytest.raises(ValueError, match=message):
            load_reward("unifiedreward2", base_url="http://x/v1", model="seer", **settings)


def test_the_prompt_is_that_of_the_published_code():
    digest = hashlib.sha256(TASK.encode()).hexdigest()
    assert digest == "75d52d3ae771f89b682db3b74cdaca1c7bde373a39162bc1c9dabd63cdc9b851"
    assert len(VIDEO_TASK.splitlines()) == len(TASK.splitlines())
