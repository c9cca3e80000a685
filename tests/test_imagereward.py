"""ImageReward: the scores of the public code, on the published layout of files."""

import json
import logging
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.nn import functional as F

from tgo_trl.rewards import load_reward
from tgo_trl.rewards.aesthetic import openai_pixels
from tgo_trl.rewards.imagereward import MEAN, STD, ImageReward, blip_from_original

GOLDEN = json.loads((Path(__file__).parent / "golden" / "imagereward.json").read_text())
"""Out of ImageReward's own code (github.com/THUDM/ImageReward at c1392c6, transformers 4.45.2, torchvision 0.28): the
names and shapes of its weights at a small size, and what it makes of the pictures and prompts below."""

NAMES = list(GOLDEN["sizes"])


def picture(name):
    width, height = GOLDEN["sizes"][name]
    noise = np.random.RandomState(zlib.crc32(name.encode())).randint(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def draw(name, shape):
    """Drawn by name, the same on every machine and version: rows of matrices of length about 1, norms about 1.

    What comes before the first normalisation is small, to tell its epsilon.
    """
    noise = torch.from_numpy(np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)).float()
    if any(part in name for part in ("pos_embed", "patch_embed", "cls_token")):
        noise *= 0.01
    if noise.ndim == 1:
        return 0.1 * noise + (1 if name.endswith("weight") else 0)
    return noise / noise[0].numel() ** 0.5


def weights():
    shapes = GOLDEN["shapes"]
    buffer = "blip.text_encoder.embeddings.position_ids"
    return {name: draw(name, shape) for name, shape in shapes.items() if name != buffer} | {
        buffer: torch.arange(shapes[buffer][1])[None]
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("imagereward")
    torch.save(weights(), path / "ImageReward.pt")
    (path / "med_config.json").write_text(json.dumps(GOLDEN["med_config"]))
    (path / "bert").mkdir()
    (path / "bert" / "vocab.txt").write_text("\n".join(GOLDEN["words"]) + "\n")
    return path


@pytest.fixture(scope="module")
def reward(folder):
    return ImageReward(str(folder), tokenizer=str(folder / "bert"), device="cpu")


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_those_of_the_public_code(reward, name):
    scores = reward(GOLDEN["prompts"], [picture(name)] * len(GOLDEN["prompts"]))
    assert scores == pytest.approx(GOLDEN["scores"][name], abs=1e-5)
    assert max(scores) - min(scores) > 0.1  # prompts matter


def test_prompts_are_cut_and_padded_as_in_the_public_code(reward):
    tokens = reward._tokens(GOLDEN["prompts"])
    assert tokens["input_ids"].tolist() == GOLDEN["input_ids"]
    assert tokens["attention_mask"].sum(1).tolist() == [5, 13, 2, 35]


def test_a_cut_prompt_is_told_once(folder, caplog):
    reward = ImageReward(str(folder), tokenizer=str(folder / "bert"), device="cpu")
    with caplog.at_level(logging.WARNING, "tgo_trl.rewards.imagereward"):
        for _ in range(2):
            reward(GOLDEN["prompts"], [picture("square")] * 4)
    told = [it.getMessage()[:44] for it in caplog.records if it.name.startswith("tgo_trl")]
    assert told == ["imagereward reads the first 35 tokens of a p"]


@pytest.mark.parametrize("name", NAMES)
def test_pixels_are_those_of_the_public_code(name):
    pixels = openai_pixels(picture(name), 224)[:, 3::55, 7::55]
    torch.testing.assert_close(pixels.flatten(), torch.tensor(GOLDEN["pixels"][name]), atol=2e-6, rtol=0)


@pytest.mark.parametrize("crop", [(0, 0, 640, 427), (0, 0, 200, 427), (100, 50, 190, 110), (0, 0, 427, 427)])
@pytest.mark.parametrize("index", [0, 1])
def test_pixels_of_photographs_agree_with_another_resampler(index, crop):
    photograph = Image.fromarray(load_sample_images().images[index]).crop(crop)
    width, height = photograph.size
    scale = 224 / min(width, height)
    size = [224 if side == min(width, height) else int(side * scale + 1e-9) for side in (height, width)]
    image = torch.from_numpy(np.array(photograph)).permute(2, 0, 1)[None].double()
    for shape in ((height, size[1]), tuple(size)):  # Pillow makes 8 bits of what it has resized across, then goes down
        image = F.interpolate(image, shape, mode="bicubic", antialias=True).round().clamp(0, 255)
    top, left = (round((side - 224) / 2) for side in size)
    mean, std = (
        torch.tensor(values).view(3, 1, 1)
        for values in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    )
    expected = (image[0, :, top : top + 224, left : left + 224] / 255 - mean) / std
    difference = (openai_pixels(photograph, 224) - expected).abs()
    assert difference.max() < 1.01 / 255 / 0.26  # one step of 8 bits, where the last rounding goes the other way
    assert (difference > 0.01).double().mean() < 0.01


def test_a_score_depends_on_its_own_row_alone(reward):
    prompts, images = GOLDEN["prompts"], [picture(name) for name in NAMES]
    together = reward(prompts, images)
    alone = [reward([prompt], [image])[0] for prompt, image in zip(prompts, images, strict=True)]
    assert together == pytest.approx(alone, abs=1e-5)
    reward.batch_size = 3
    assert reward(prompts[::-1], images[::-1]) == pytest.approx(alone[::-1], abs=1e-5)
    reward.batch_size = 16


def test_tensors_are_scored_as_images_and_with_a_gradient(reward):
    image = load_sample_images().images[0][:224, 100:324]
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float().div(255).requires_grad_()
    scores = reward.score_pixels(GOLDEN["prompts"][:1], pixels)
    assert scores.tolist() == pytest.approx(reward(GOLDEN["prompts"][:1], [Image.fromarray(image)]), abs=1e-5)
    (slope,) = torch.autograd.grad(scores.sum(), pixels)
    with torch.no_grad():
        ahead = reward.score_pixels(GOLDEN["prompts"][:1], pixels + 0.01 * slope / slope.abs().max())
    assert (ahead - scores).item() == pytest.approx(0.01 * (slope.square().sum() / slope.abs().max()).item(), rel=0.1)


def test_the_head_has_no_activations(reward):
    """By hand: with the last layer's bias alone, the score is (bias - mean) / std."""
    constant = {name: torch.zeros_like(value) for name, value in reward._head.state_dict().items()}
    before = {name: value.clone() for name, value in reward._head.state_dict().items()}
    reward._head.load_state_dict(constant | {"4.bias": torch.tensor([MEAN + 2 * STD])})
    assert reward(["a"], [picture("small")]) == pytest.approx([2.0], abs=1e-6)
    reward._head.load_state_dict(before)
    x = torch.randn(5, 48)
    mixed = reward._head(2 * x) - 2 * reward._head(x)
    torch.testing.assert_close(mixed, -reward._head(torch.zeros(5, 48)), atol=1e-5, rtol=0)


def test_weights_are_loaded_at_the_first_call(folder):
    reward = load_reward("imagereward", model_id=str(folder / "nowhere"), device="cpu", batch_size=3)
    assert (reward.name, reward.license, reward.batch_size) == ("imagereward", "Apache-2.0", 3)
    assert load_reward("imagereward").version == "zai-org/ImageReward@main"
    assert reward([], []) == []


def test_a_bfloat16_network_scores_nearly_the_same(folder, reward):
    rough = ImageReward(str(folder), tokenizer=str(folder / "bert"), device="cpu", dtype="bfloat16")
    images = [picture(name) for name in NAMES]
    assert rough(GOLDEN["prompts"], images) == pytest.approx(reward(GOLDEN["prompts"], images), abs=0.05)


def test_other_files_are_refused(folder, tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(GOLDEN["words"][:-1]) + "\n")
    with pytest.raises(ValueError, match="has 19 tokens with BLIP's two, but the network has 20"):
        ImageReward(str(folder), tokenizer=str(tmp_path), device="cpu")(["a"], [picture("small")])
    with pytest.raises(ValueError, match=r"no file 'ImageReward\.pt'"):
        ImageReward(str(tmp_path), device="cpu")(["a"], [picture("small")])
    with pytest.raises(ValueError, match=r"no weights named 'blip\.visual_encoder"):
        blip_from_original({"model.weight": torch.zeros(1)}, GOLDEN["med_config"])
    lacking = {name: value for name, value in weights().items() if "blocks.1.attn.qkv.bias" not in name}
    with pytest.raises(ValueError, match=r"missing keys: encoder\.layers\.1\.self_attn\.qkv\.bias\)"):
        blip_from_original(lacking, GOLDEN["med_config"])
    with pytest.raises(ValueError, match="mismatched keys"):
        blip_from_original(weights(), GOLDEN["med_config"] | {"intermediate_size": 96})
