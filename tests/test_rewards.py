"""Rewards: found by name or file, checked, and summed."""

import hashlib
import math
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import tgo_trl.rewards as rewards
from tgo_trl.precision import as_dtype, default_dtype
from tgo_trl.rewards import REWARDS, Ensemble, Member, checked_scores, load_reward
from tgo_trl.rewards.base import (
    DIFFERENTIABLE,
    ModelReward,
    UserReward,
    checked_pixel_scores,
    is_differentiable,
    load_images,
    reads_sources,
)

IMAGES = [Image.new("RGB", (8, 8), color) for color in ("black", "gray", "white")]
PROMPTS = ["a", "bb", "ccc"]

USER_CODE = """
from dataclasses import dataclass

CONSTANT = 3

def length(prompts, images):
    return [len(prompt) for prompt in prompts]

@dataclass
class Scaled:
    factor: float = 1.0
    license = "CC0"

    def __call__(self, prompts, images):
        return [self.factor * image.width for image in images]
"""


@pytest.fixture
def user_file(tmp_path):
    path = tmp_path / "my_reward.py"
    path.write_text(USER_CODE)
    return path


class Brightness(ModelReward):
    """Mean of the pixels over 255, in batches that it notes."""

    name = "brightness"
    license = "none"

    def _load(self):
        self.loads = getattr(self, "loads", 0) + 1
        self.batches = []

    def _score_batch(self, prompts, images):
        self.batches.append(len(prompts))
        return torch.tensor([np.asarray(image).mean() / 255 for image in load_images(images)])


# ---- Names ----


def test_the_table_of_names_is_there_without_the_libraries():
    code = (
        "import sys, tgo_trl.rewards as r; print(sorted(r.REWARDS)); "
        "print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert out == [str(sorted(REWARDS)), "[]"]
    assert {"aesthetic", "editscore", "vlm"} < {*REWARDS}


@pytest.mark.parametrize("name", ["aesthetic", "clip_score", "hpsv2.1", "pickscore"])
def test_a_reward_by_name_has_name_version_license_and_loads_nothing(name):
    reward = load_reward(name, batch_size=3, device="cpu", dtype="bfloat16")
    assert reward.name == name
    assert "@main" in reward.version
    assert reward.license
    assert (reward.batch_size, reward.device, reward.dtype) == (3, torch.device("cpu"), torch.bfloat16)
    assert reward([], []) == []


ASKED = {"editscore", "unifiedreward2", "unifiedreward_edit", "videoscore2", "vlm"}  # of an endpoint


@pytest.mark.parametrize("name", sorted(ASKED))
def test_a_reward_of_an_endpoint_says_what_it_is(name):
    reward = load_reward(name, base_url="http://localhost/v1", model="someone/seer")
    assert not is_differentiable(reward)
    assert reward.name == name
    assert reward.version.startswith("someone/seer, prompt@sha256:")
    assert "someone/seer" in reward.license


@pytest.mark.parametrize("name", sorted({*REWARDS} - ASKED - {"ocr"}))
def test_a_reward_says_whether_it_has_a_gradient(name):
    reward = load_reward(name, device="cpu")
    assert is_differentiable(reward) == (name in DIFFERENTIABLE)
    if name not in DIFFERENTIABLE:
        with pytest.raises(ValueError, match=f"{name!r} gives scores without a gradient.*aesthetic, clip_score, "):
            reward.score_pixels(["a"], torch.zeros(1, 3, 8, 8))


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(
        ValueError, match=r"no reward named 'hpsv4'.*aesthetic, clip_score, .*hpsv2\.1.*file\.py:function"
    ):
        load_reward("hpsv4")
    assert list(REWARDS) == sorted(REWARDS)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = rewards.nothing


# ---- Functions of the user's ----


def test_a_function_of_a_file(user_file):
    reward = load_reward(f"{user_file}:length")
    assert reward(PROMPTS, IMAGES) == [1, 2, 3]
    assert reward.name == "length"
    assert reward.license == "not stated"
    file, _, digest = reward.version.partition("@sha256:")
    assert file == "my_reward.py:length"  # no path of this machine
    assert len(digest) == 12
    user_file.write_text(USER_CODE + "\n# changed\n")
    assert load_reward(f"{user_file}:length").version != reward.version


def test_a_class_of_a_file_takes_settings(user_file):
    reward = load_reward(f"{user_file}:Scaled", factor=0.5)
    assert reward(PROMPTS, IMAGES) == [4.0, 4.0, 4.0]
    assert reward.license == "CC0"


def test_a_function_of_a_module():
    reward = load_reward("math:fsum")
    assert reward.name == "fsum"
    assert reward.version.startswith("math:fsum")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{file}:nothing", r"has no function 'nothing'. It has length, Scaled\."),
        ("{file}:lenght", r"has no function 'lenght'. .* Did you mean 'length'\?"),
        ("{file}:CONSTANT", r"has no function 'CONSTANT'"),
        ("{file}x.py:length", r"cannot be imported \(FileNotFoundError: there is no file"),
        ("no_such_module:f", r"ModuleNotFoundError.*path/to/file.py:function"),
        ("{file}", r"no reward named .*my_reward.py"),
    ],
)
def test_user_functions_that_are_not_there(user_file, spec, message):
    with pytest.raises(ValueError, match=message):
        load_reward(spec.format(file=user_file))


def test_user_code_that_fails_says_how(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("1 / 0\n")
    with pytest.raises(ValueError, match=r"cannot be imported \(ZeroDivisionError"):
        load_reward(f"{path}:f")


def test_a_plain_function_takes_no_settings(user_file):
    with pytest.raises(ValueError, match=r"takes no settings \(device\)"):
        load_reward(f"{user_file}:length", device="cpu")


def test_settings_that_a_class_does_not_take(user_file):
    with pytest.raises(
        ValueError, match=r"'pickscore' cannot be made with bachsize \(.*takes model_id, processor, rev"
    ):
        load_reward("pickscore", bachsize=3)
    with pytest.raises(ValueError, match=r"Scaled' cannot be made with facter \(.*'facter'.*\)\. It takes factor\. "):
        load_reward(f"{user_file}:Scaled", facter=0.5)
    user_file.write_text("class Keyed:\n    def __init__(self, key):\n        pass\n")
    with pytest.raises(
        ValueError, match=r"Keyed' cannot be made with no settings \(.*'key'\)\. It takes key\. On a command "
    ):
        load_reward(f"{user_file}:Keyed")


def test_a_reward_that_cannot_be_fetched_is_named(monkeypatch):
    reward = load_reward("hpsv2.1", device="cpu")

    def load():
        raise OSError("We couldn't connect.\nCheck it.")

    monkeypatch.setattr(reward, "_load", load)
    told = r"The reward 'hpsv2\.1' cannot be loaded \(We couldn't connect\. Check it\)\. Load it once where the Hub"
    with pytest.raises(OSError, match=told):
        reward(["a"], IMAGES[:1])


# ---- Checked scores ----


def returns(value):
    return UserReward(lambda prompts, images: value, "mine", "1")


@pytest.mark.parametrize(
    "value",
    [[1, 2.5, -3], (1, 2.5, -3), np.array([1, 2.5, -3]), torch.tensor([1, 2.5, -3]), torch.tensor([[1], [2.5], [-3]])],
)
def test_scores_become_floats(value):
    scores = checked_scores(returns(value), PROMPTS, IMAGES)
    assert scores == [1.0, 2.5, -3.0]
    assert all(type(score) is float for score in scores)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1.0, 2.0], "'mine' returned 2 scores for 3 rows"),
        ([1.0, math.nan, 2.0], r"'mine', row 1 \(prompt 'bb'\): the score is nan, not a finite number"),
        ([1.0, 2.0, -math.inf], r"row 2 \(prompt 'ccc'\): the score is -inf"),
        ([1.0, None, 2.0], r"row 1 .*the score is missing \(None\)"),
        ([1.0, "2", 2.0], "row 1 .*the score is the text '2', not a number"),
        (torch.zeros(3, 2), "row 0 .*the score is no single number"),
        (1.0, "returned a `float`, not a list"),
        (None, "returned a `NoneType`, not a list"),
        ("abc", "returned a `str`, not a list"),
        ({"a": 1, "b": 2, "c": 3}, "returned a `dict`, not a list"),
        (torch.tensor(1.0), "returned one number, not a list"),
    ],
)
def test_what_is_not_one_finite_score_per_row_is_reported(value, message):
    with pytest.raises(ValueError, match=message):
        checked_scores(returns(value), PROMPTS, IMAGES)


def test_a_reward_is_not_called_without_rows():
    assert checked_scores(lambda prompts, images: 1 / 0, [], []) == []


def test_a_long_prompt_is_shortened_in_messages():
    with pytest.raises(ValueError, match=r"prompt 'x{57}\.\.\.'"):
        checked_scores(lambda prompts, images: [math.nan], ["x" * 200], IMAGES[:1])


@pytest.mark.parametrize("call", [Brightness("none"), lambda *rows: checked_scores(returns([1.0]), *rows)])
def test_prompts_and_images_must_go_together(call):
    with pytest.raises(ValueError, match="2 prompts but 3 images"):
        call(PROMPTS[:2], IMAGES)
    with pytest.raises(ValueError, match="`prompts` is a string"):
        call("abc", IMAGES)
    with pytest.raises(ValueError, match=r"prompt of row 1 is missing \(None\)"):
        call(["a", None, "c"], IMAGES)


# ---- Reward models ----


def test_batches_and_loading_once():
    reward = Brightness("none", batch_size=2)
    assert reward(PROMPTS, IMAGES) == pytest.approx([0, 128 / 255, 1])
    reward(PROMPTS, IMAGES)
    assert reward.batches == [2, 1, 2, 1]
    assert reward.loads == 1


def test_an_unreadable_image_is_named():
    with pytest.raises(ValueError, match=r"Image 1 of a batch of 3: the image is missing \(None\)"):
        Brightness("none")(PROMPTS, [IMAGES[0], None, IMAGES[1]])


def test_settings_are_checked():
    with pytest.raises(ValueError, match="`batch_size` is 0"):
        Brightness("none", batch_size=0)
    with pytest.raises(ValueError, match=r"`dtype` is 'fp16'.*'float16'"):
        Brightness("none", dtype="fp16")
    with pytest.raises(ValueError, match="`dtype` is 'int64'"):
        as_dtype("int64")
    assert as_dtype(torch.float16) is torch.float16
    assert default_dtype(torch.device("cpu")) is torch.float32


def test_versions_before_loading(tmp_path):
    assert Brightness("owner/name").version == "owner/name@main"
    assert Brightness("owner/name", revision="v2").version == "owner/name@v2"


def test_a_local_folder_is_named_with_what_is_in_it(tmp_path):
    weights, note = tmp_path / "mine" / "weights.pt", tmp_path / "mine" / "README.md"
    weights.parent.mkdir()
    weights.write_bytes(b"one")
    file = hashlib.sha256(b"one").hexdigest()
    expected = hashlib.sha256(f"weights.pt:{file};".encode()).hexdigest()[:12]
    reward = Brightness(str(weights.parent))
    assert reward.version == f"mine@sha256:{expected}"
    note.write_text("of no weight")
    assert reward.version == f"mine@sha256:{expected}"
    weights.write_bytes(b"two")
    assert reward.version != f"mine@sha256:{expected}", "trained again, in the same place"
    moved = tmp_path / "elsewhere" / "mine"
    moved.mkdir(parents=True)
    (moved / "weights.pt").write_bytes(b"one")
    assert Brightness(str(moved)).version == f"mine@sha256:{expected}"


# ---- Ensemble ----

LENGTHS = UserReward(lambda prompts, images: [len(p) for p in prompts], "length", "1")


def test_the_sum_by_hand():
    """Lengths 1, 2, 3: mean 2, deviation sqrt(2/3). Brightness unnormalised, times -2."""
    ensemble = Ensemble({"length": Member(LENGTHS), "bright": Member(Brightness("none"), -2.0, "none")})
    fitted = ensemble.fit(ensemble.score(PROMPTS, IMAGES))
    z = math.sqrt(1.5)
    expected = [-z, -2 * 128 / 255, z - 2]
    assert fitted(PROMPTS, IMAGES) == pytest.approx(expected)
    assert fitted.combine(ensemble.score(PROMPTS, IMAGES)) == pytest.approx(expected)
    assert fitted(PROMPTS[1:2], IMAGES[1:2]) == pytest.approx(expected[1:2])  # not fitted to the batch


def test_robust_and_given_numbers():
    """Median of 0, 1, 2, 3, 100 is 2, its quartiles 1 and 3."""
    members = {"a": Member(normalization="robust"), "b": Member(weight=0.5, center=10, scale=4)}
    scores = {"a": [0, 1, 2, 3, 100], "b": [10, 14, 18, 10, 6]}
    fitted = Ensemble(members).fit(scores)
    assert (fitted.members["a"].center, fitted.members["a"].scale) == (2, 2)
    assert (fitted.members["b"].center, fitted.members["b"].scale) == (10, 4)
    assert fitted.combine(scores) == [-1, 0, 1, 0.5, 48.5]
    assert fitted.version == "1 * (a - 2) / 2 + 0.5 * (b - 10) / 4"


def test_the_card_of_an_ensemble():
    ensemble = Ensemble({"x": Member(LENGTHS, 2.0, "none"), "y": Member(Brightness("o/n"), center=1, scale=2)})
    assert ensemble.version == "2 * x [1] + 1 * (y [o/n@main] - 1) / 2"
    assert ensemble.license == "x: not stated; y: none"
    assert ensemble.name == "ensemble"


class Level:
    """Mean of one channel, with gradient."""

    differentiable = True

    def __init__(self, channel):
        self.channel = channel

    def __call__(self, prompts, images):
        return [float(np.asarray(image)[..., self.channel].mean() / 255) for image in images]

    def score_pixels(self, prompts, pixels):
        return pixels[:, self.channel].mean((1, 2))


def test_an_ensemble_has_a_gradient_if_all_members_do():
    """2 (s_0 - 0.5) / 0.25 - s_2: slopes of 8 and -1, over the 4 pixels."""
    members = {"red": Member(Level(0), 2.0, center=0.5, scale=0.25), "blue": Member(Level(2), -1.0, "none")}
    pixels = torch.rand(2, 3, 2, 2).requires_grad_()
    scores = Ensemble(members).score_pixels(["", ""], pixels)
    assert is_differentiable(Ensemble(members))
    assert torch.allclose(scores, 8 * (pixels[:, 0].mean((1, 2)) - 0.5) - pixels[:, 2].mean((1, 2)))
    (slope,) = torch.autograd.grad(scores.sum(), pixels)
    assert slope.mean((0, 2, 3)).tolist() == [2, 0, -0.25]
    mixed = Ensemble({**members, "length": Member(LENGTHS, 1.0, "none")})
    assert not is_differentiable(mixed)
    with pytest.raises(ValueError, match="'length' gives scores without a gradient"):
        mixed.score_pixels(["", ""], pixels)


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda pixels: pixels.mean((1, 2, 3)).tolist(), "returned a `list`"),
        (lambda pixels: pixels.mean(), r"of shape \[\]; .* shape \[2\]"),
        (lambda pixels: pixels.mean((1, 2, 3)) > 0.5, r"returned torch\.bool"),
        (lambda pixels: pixels.detach().mean((1, 2, 3)), "without a gradient of the pixels"),
    ],
)
def test_scores_of_pixels_are_checked(score, message):
    reward = SimpleNamespace(name="mine", differentiable=True, score_pixels=lambda prompts, pixels: score(pixels))
    with pytest.raises(ValueError, match=rf"'mine' {message}" if message.startswith("returned") else message):
        checked_pixel_scores(reward, ["", ""], torch.rand(2, 3, 4, 4).requires_grad_())


def test_an_object_of_a_file_can_have_a_gradient(tmp_path):
    (tmp_path / "mine.py").write_text(
        "class Mean:\n    differentiable = True\n    def score_pixels(self, prompts, pixels):\n"
        "        return pixels.mean((1, 2, 3))\n    def __call__(self, prompts, images):\n        return [0.0]\n"
    )
    reward = load_reward(f"{tmp_path}/mine.py:Mean")
    assert is_differentiable(reward)
    assert reward.score_pixels(["a"], torch.ones(1, 3, 2, 2)).tolist() == [1.0]


def test_an_ensemble_that_is_not_fitted_says_so():
    ensemble = Ensemble({"a": Member(LENGTHS)})
    for call in (lambda: ensemble(PROMPTS, IMAGES), lambda: ensemble.combine({"a": [1.0]})):
        with pytest.raises(ValueError, match=r"centre and scale of 'a'.*ensemble.fit"):
            call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Ensemble({}), "at least one member"),
        (lambda: Member(normalization="minmax"), "'minmax'; it must be one of 'none', 'zscore', 'robust'"),
        (lambda: Member(center=1.0), "both `center` and `scale`"),
        (lambda: Member(center=1.0, scale=0.0), "`scale` is 0.0"),
        (lambda: Ensemble({"a": Member()}).fit({"b": [1, 2]}), "no scores of 'a', only of 'b'"),
        (lambda: Ensemble({"a": Member()}).fit({"a": []}), "no scores of 'a' to fit"),
        (lambda: Ensemble({"a": Member()}).fit({"a": [2, 2]}), r"2 scores of 'a' have no spread.*\(zscore\): all"),
        (lambda: Ensemble({"a": Member(normalization="robust")}).fit({"a": [1, 1, 1, 1, 2]}), "half or more are equal"),
        (lambda: Ensemble({"a": Member()}).fit({"a": [1, math.nan]}), "Scores of 'a' are NaN"),
        (lambda: Ensemble({"a": Member()}).score(PROMPTS, IMAGES), "without a reward cannot score: a"),
        (
            lambda: Ensemble({"a": Member(normalization="none"), "b": Member(normalization="none")}).combine(
                {"a": [1], "b": [1, 2]}
            ),
            "different numbers of scores",
        ),
    ],
)
def test_what_an_ensemble_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ---- Rewards of edits ----

SOURCES = [[IMAGES[2]], [IMAGES[0], IMAGES[1]], [IMAGES[1]]]


def brightness(images):
    return [float(np.asarray(image).mean()) for image in images]


def difference(prompts, images, sources):
    return [one - other for one, other in zip(brightness(images), brightness([it[0] for it in sources]), strict=True)]


class EditModel(ModelReward):
    name, license, reads_sources = "edit", "none", True

    def _load(self):
        pass

    def _score_batch(self, prompts, images):
        raise AssertionError("an edit has a source")

    def _score_edits(self, prompts, images, sources):
        return torch.tensor(difference(prompts, images, sources))


def test_a_reward_of_edits_gets_the_sources():
    by_hand = [0 - 255, 128 - 0, 255 - 128]
    model = EditModel("somewhere", batch_size=2)
    wrapped = UserReward(difference, "difference", "1")
    for reward in (
        difference,
        wrapped,
        model,
        Ensemble({"only": Member(reward=model, weight=1.0, normalization="none")}),
    ):
        assert reads_sources(reward)
        assert checked_scores(reward, PROMPTS, IMAGES, SOURCES) == by_hand
        with pytest.raises(ValueError, match="compares an image with the one that it was made from"):
            checked_scores(reward, PROMPTS, IMAGES)


def test_a_reward_may_ask_for_the_rate_of_videos():
    videos = [[IMAGES[0]] * 8, [IMAGES[1]] * 12]

    def seconds(prompts, videos, fps):
        return [len(video) / fps for video in videos]

    class Timed:
        name, reads_fps = "timed", True

        def __call__(self, prompts, videos, **given):
            return seconds(prompts, videos, **given)

    of_one = Ensemble({"only": Member(reward=seconds, weight=2.0, normalization="none")})
    for reward, factor in ((seconds, 1), (UserReward(seconds, "seconds", "1"), 1), (Timed(), 1), (of_one, 2)):
        assert checked_scores(reward, ["a", "b"], videos, fps=16) == [0.5 * factor, 0.75 * factor]
        with pytest.raises(ValueError, match="asks for `fps`, the frames per second of videos, which are not known"):
            checked_scores(reward, ["a", "b"], videos)

    def usual(prompts, videos, fps=4):
        return seconds(prompts, videos, fps)

    assert checked_scores(usual, ["a", "b"], videos, fps=16) == [2.0, 3.0], "a default is the function's own"


def test_a_rate_of_ones_own_is_compared():
    class Timed:
        fps = 24.0

        def __call__(self, prompts, videos):
            raise AssertionError("it is refused before")

    with pytest.raises(ValueError, match=r"'timed' has `fps=24`, and the videos are shown at 16 a second"):
        checked_scores(UserReward(Timed(), "timed", "1"), ["a"], [[IMAGES[0]]], fps=16)


def test_other_rewards_do_not_see_the_sources():
    def plain(prompts, images):
        return brightness(images)

    assert not reads_sources(plain)
    assert not reads_sources(UserReward(plain, "plain", "1"))

    def of_another_kind(prompts, images, sources=("web",)):
        return brightness(images)

    assert checked_scores(of_another_kind, PROMPTS, IMAGES) == [0, 128, 255]
    assert checked_scores(plain, PROMPTS, IMAGES, SOURCES) == [0, 128, 255]
