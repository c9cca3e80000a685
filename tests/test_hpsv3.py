"""HPSv3: its formula, on the published layout of files."""

import hashlib
import re

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers import Qwen2VLConfig, Qwen2VLModel

from tgo_trl.rewards import load_reward
from tgo_trl.rewards.base import local_version
from tgo_trl.rewards.hpsv3 import TASK, HPSv3

from .test_videoreward import GOLDEN, save_tokenizer

PROMPTS = ["a red image", "a generated image of an animal, in the style of a text prompt"]
IMAGES = [
    Image.fromarray(np.random.RandomState(i).randint(0, 256, (*size, 3), dtype=np.uint8))
    for i, size in enumerate([(500, 520), (60, 90)])
]
SPECIAL = GOLDEN["special"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder, the network and the head."""
    path = tmp_path_factory.mktemp("hpsv3")
    save_tokenizer(path / "base" / "tokenizer.json", SPECIAL)
    config = Qwen2VLConfig(**GOLDEN["base_config"] | {"vocab_size": 300})
    config.save_pretrained(path / "base")
    torch.manual_seed(0)
    network = Qwen2VLModel(config).float().eval()
    head = {"0": (1024, 32), "3": (16, 1024), "5": (2, 16)}
    head = {f"rm_head.{i}.{part}": torch.randn(shape if part == "weight" else shape[:1]) * 0.3
            for i, shape in head.items() for part in ("weight", "bias")}  # fmt: skip
    named = {re.sub("^language_model", "model", name): value for name, value in network.state_dict().items()}
    save_file(named | head | {"lm_head.weight": torch.zeros(300, 32)}, path / "HPSv3.safetensors")
    return path, network, head


def make(path, **kwargs):
    return HPSv3(str(path), **{"base": str(path / "base"), "device": "cpu", "dtype": "float32"} | kwargs)


def patches_of(image, width, height):
    """Cut out one by one."""
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    array = (np.array(image.resize((width, height), Image.Resampling.BICUBIC)) / 255 - mean) / std
    rows = []
    for top in range(0, height, 28):
        for left in range(0, width, 28):
            for y, x in ((top, left), (top, left + 14), (top + 14, left), (top + 14, left + 14)):
                rows.append(np.stack([array[y : y + 14, x : x + 14]] * 2).transpose(3, 0, 1, 2).reshape(-1))
    return torch.from_numpy(np.stack(rows)).float()


@torch.inference_mode()
def test_scores_are_those_of_the_formula(made):
    """The image put among the embeddings, the language model with plain positions, the head as matrices."""
    path, network, head = made
    reward = make(path)
    scores = reward(PROMPTS, IMAGES)
    # 500 * 520 > 200704: 439.3 x 456.8, down to 28; 60 * 90 < 200704: 365.8 x 548.7, up to 28
    for prompt, image, (height, width), score in zip(PROMPTS, IMAGES, [(420, 448), (392, 560)], scores, strict=True):
        patches = patches_of(image, width, height)
        seen = network.visual(patches, grid_thw=torch.tensor([[1, height // 14, width // 14]])).pooler_output
        text = (
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
            + "<|image_pad|>" * (len(patches) // 4)
            + f"<|vision_end|>{TASK.replace('{text_prompt}', prompt)}<|im_end|>\n<|im_start|>assistant\n"
        )
        ids = torch.tensor([reward._tokenizer(text)["input_ids"]])
        embeds = network.get_input_embeddings()(ids)
        embeds[ids == GOLDEN["base_config"]["image_token_id"]] = seen
        positions = torch.arange(ids.shape[1]).expand(3, 1, -1)
        states = network.language_model(inputs_embeds=embeds, position_ids=positions).last_hidden_state[0]
        (state,) = states[ids[0] == reward._reward_id]
        for i in ("0", "3", "5"):
            state = head[f"rm_head.{i}.weight"] @ state + head[f"rm_head.{i}.bias"]
            state = state if i == "5" else F.relu(state)
        assert score == pytest.approx(float(state[0]), abs=1e-4)
    assert abs(scores[0] - scores[1]) > 1e-3


def test_a_score_depends_on_its_own_row_alone(made):
    reward = make(made[0])
    alone = [reward([prompt], [image])[0] for prompt, image in zip(PROMPTS, IMAGES, strict=True)]
    assert reward(PROMPTS[::-1], IMAGES[::-1]) == pytest.approx(alone[::-1], abs=1e-4)


def test_newer_names_of_weights_are_read_too(made, tmp_path):
    path, network, head = made
    named = {"model." + name: value for name, value in network.state_dict().items()}
    save_file(named | head, tmp_path / "HPSv3.safetensors")
    newer = make(tmp_path, base=str(path / "base"))
    assert newer(PROMPTS[:1], IMAGES[:1]) == make(path)(PROMPTS[:1], IMAGES[:1])


def test_other_weights_and_prompts_are_refused(made, tmp_path):
    path, network, _ = made
    save_file(network.state_dict(), tmp_path / "HPSv3.safetensors")
    with pytest.raises(ValueError, match=r"is not HPSv3's.* its head is missing"):
        make(tmp_path, base=str(path / "base"))(["a"], IMAGES[:1])
    with pytest.raises(ValueError, match=r"has '<\|Reward\|>'"):
        make(path)(["a <|Reward|>"], IMAGES[:1])


def test_the_task_is_unchanged():
    """Scores hang on each character, trailing spaces included."""
    digest = hashlib.sha256(TASK.encode()).hexdigest()
    assert digest == "f6ee57479d4e9eee76b49c00dc962e1e696a5a2b3cc32cebd9b1fa76fe27502c"


def test_weights_are_loaded_at_the_first_call():
    assert load_reward("hpsv3", device="cpu").version == "MizzenAI/HPSv3@main, base Qwen/Qwen2-VL-7B-Instruct"


def test_the_version_names_the_base_without_its_path(made):
    assert make(made[0]).version == f"{local_version(str(made[0]))}, base {local_version(str(made[0] / 'base'))}"
