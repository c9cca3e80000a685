"""EditScore and UnifiedReward-Edit: what is asked, and how two replies become a score."""

import hashlib
import json

import pytest
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from tgo_trl.commands.score.run import score_dataset
from tgo_trl.rewards import NoScore, checked_scores, load_reward
from tgo_trl.rewards.editscore import EditScore, UnifiedRewardEdit, read_pair

from .chat_server import Reply, connect, serving

BEFORE, AFTER = Image.new("RGB", (8, 8), (10, 10, 10)), Image.new("RGB", (8, 8), (90, 90, 90))


@pytest.fixture(autouse=True)
def connected(monkeypatch):
    connect(monkeypatch)


def answering(following, quality):
    """A server with one reply to the question with two images, and another to that with one."""

    def behave(asked):
        return Reply("white" if asked.is_check else following if len(asked.images) == 2 else quality)

    return behave


def rate(behave, name="editscore"):
    with serving(behave) as endpoint:
        reward = load_reward(name, base_url=endpoint.url, model="seer", max_retries=0)
        (score,) = reward(["make it brighter"], [AFTER], [[BEFORE]])
    return score, endpoint


@pytest.mark.parametrize("name", ["editscore", "unifiedreward_edit"])
def test_a_score_is_the_root_of_the_worse_numbers(name):
    unquoted = '{\n"reasoning": "a "halo"",\n"score": [12.5, 25],\n}'  # as models write it, which is no JSON
    score, endpoint = rate(answering('{"reasoning": "done", "score": [20, 15]}', unquoted), name)
    assert score == pytest.approx((6.0 * 5.0) ** 0.5)  # 15 and 12.5 of 25
    both, edited = endpoint.questions
    assert [[image.getpixel((0, 0))[0] for image in asked.images] for asked in (both, edited)] == [[10, 90], [90]]
    assert [part["type"] for part in both.parts] == ["image_url", "image_url", "text"]
    assert [message["role"] for message in both.body["messages"]] == ["user"], "its models know no system message"
    assert "response_format" not in both.body
    assert both.texts[0].rstrip().endswith("make it brighter")
    assert "make it brighter" not in edited.texts[0]


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ('{"reasoning": "x", "score": [0, 25]}', (0, 25)),
        ('```json\n{"score": [3.5, "4"]}\n```', (3.5, 4)),
        ("[7, 8]", (7, 8)),
        ('"score" : [7, 8],\n}', (7, 8)),
        # where the original puts a number of its own
        ("I'm sorry, but I can't assist with that request.", None),
        ('{"score": [26, 3]}', None),
        ('{"score": [-1, 3]}', None),
        ('{"score": [20]}', None),
        ('{"score": 20}', None),
        ('{"score": [true, 3]}', None),
        ('{"score": [1, 2]} or {"score": [3, 4]}', None),
        ('{"reasoning": "it goes on', None),
        ("", None),
    ],
)
def test_two_numbers_are_read_or_none(text, pair):
    assert read_pair(text) == pair


def test_a_reply_that_cannot_be_read_is_no_score():
    good = '{"score": [20, 15]}'
    for behave in (answering(good, "a fine picture"), answering("well done", good)):
        score, _ = rate(behave)
        assert isinstance(score, NoScore)
        assert "no two numbers from 0 to 25 to each question" in score.reason


def test_rows_with_a_source_are_scored():
    features = Features({"prompt": Value("string"), "image": ImageFeature(), "source_image": ImageFeature()})
    columns = {"prompt": ["brighter", "darker"], "image": [AFTER, BEFORE], "source_image": [BEFORE, AFTER]}
    rows = Dataset.from_dict(columns, features=features)

    def behave(asked):
        if asked.is_check:
            return Reply("white")
        is_brighter = asked.images[-1].getpixel((0, 0))[0] > 50
        return Reply('{"score": [25, 25]}' if is_brighter else "dark")

    with serving(behave) as endpoint:
        reward = load_reward("editscore", base_url=endpoint.url, model="seer", max_retries=0)
        scored = score_dataset(rows, reward, on_bad_row="skip")
    assert scored["score"] == [10]
    assert scored["prompt"] == ["brighter"]


def test_a_row_has_one_source():
    with serving(answering("", "")) as endpoint:
        reward = load_reward("editscore", base_url=endpoint.url, model="seer")
        with pytest.raises(ValueError, match="A row has 2 source images"):
            reward(["a"], [AFTER], [[BEFORE, BEFORE]])
        with pytest.raises(ValueError, match="'editscore' rates edits, and there are no `sources`"):
            reward(["a"], [AFTER])
        with pytest.raises(ValueError, match="compares an image with the one that it was made from"):
            checked_scores(reward, ["a"], [AFTER])


def test_prompts_are_those_of_the_published_code():
    """Digests of what the published code of both asks, with our placeholder."""
    digests = [hashlib.sha256(it.encode()).hexdigest() for it in (*EditScore.prompts, *UnifiedRewardEdit.prompts)]
    assert digests == [
        "55d6e52e54e29e82e50a7120e7ce305f44129b3f60080e40f6268a45adc4670f",
        "8249deba103d112dddd4c2e7fe1d5a1c40fe3143dc640a422a19aced0d260c78",
        "401b9a17aec0a3c317af607ac470c8b4f2470fabc0930fde474bf26971d6ab49",
        "ddb40baa511dbf2fd619474e5a0fcd043c6325f976bfc8fd1f8b9fbf4c521113",
    ]
    assert json.dumps(EditScore.prompts[0]).count("{instruction}") == 1
