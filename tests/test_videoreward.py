"""VideoReward: the scores of the public code, on the published layout of files."""

import hashlib
import json
import math
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers
from torch.nn import functional as F
from transformers import Qwen2VLConfig

from tgo_trl.rewards import load_reward
from tgo_trl.rewards.videoreward import TASK, VideoReward, frame_indices, frame_size, qwen_from_original, video_patches

GOLDEN = json.loads((Path(__file__).parent / "golden" / "videoreward.json").read_text())
"""Out of VideoAlign's own code (github.com/KwaiVGI/VideoAlign at 219ab9d, transformers 4.45.2, peft 0.10, torchvision
0.28): the names and shapes of its weights at a small size, and what it makes of the videos and prompts below. It ran
in float32, whose rounding puts its raw rewards up to 1.3e-5 off those of the same network in float64. Another processor
rounds otherwise, by as much again, so that what is compared with them is computed in float64."""

ROUNDING = 2e-5
"""Of the public code's raw rewards, with some room."""

PROMPTS, VIDEOS, FPS = GOLDEN["prompts"], list(GOLDEN["videos"]), GOLDEN["fps"]
CHECKPOINT = "checkpoint-7"
AXES = ("VQ", "MQ", "TA")


def video(name):
    num_frames, width, height = GOLDEN["videos"][name]
    seeds = [zlib.crc32(f"{name} {i}".encode()) for i in range(num_frames)]
    shape = (height, width, 3)
    return [Image.fromarray(np.random.RandomState(s).randint(0, 256, shape, dtype=np.uint8)) for s in seeds]


def draw(name, shape):
    """Drawn by name, the same on every machine and version: rows of matrices of length about 1, norms about 1."""
    noise = torch.from_numpy(np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)).float()
    if noise.ndim == 1:
        return 0.1 * noise + (1 if name.endswith("weight") else 0)
    return noise / noise[0].numel() ** 0.5


def weights(outputs=1):
    shapes = GOLDEN["shapes"] | {"base_model.model.rm_head.weight": [outputs, 32]}
    return {name: draw(name, shape) for name, shape in shapes.items()}


def settings():
    return {
        "data_config": {
            "max_frame_pixels": 200704, "num_frames": None, "fps": 2.0, "eval_dim": list(AXES),
            "prompt_template_type": "detailed_special", "sample_type": "uniform",
        },
        "model_config": {"model_name_or_path": "Qwen/Qwen2-VL-2B-Instruct", "output_dim": 1, "reward_token": "special"},
        "peft_lora_config": {"lora_enable": True, "lora_r": 4, "lora_alpha": 8, "use_rslora": False},
        "inference_config": GOLDEN["inference_config"],
    }  # fmt: skip


def save_tokenizer(path, added):
    """One token per word, space and mark of the task, of the chat and of two of the prompts."""
    chat = "system\nYou are a helpful assistant.\nuser\n\nassistant\n"
    text = chat + TASK.replace("{text_prompt}", "") + PROMPTS[0] + PROMPTS[1]
    for token in GOLDEN["special"] + GOLDEN["reward_tokens"]:
        text = text.replace(token, "")
    words = ["[UNK]", *sorted(set(re.findall(GOLDEN["piece"], text)))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(GOLDEN["piece"]), "isolated")
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in added])
    path.parent.mkdir(parents=True)
    tokenizer.save(str(path))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("videoreward")
    save_tokenizer(path / CHECKPOINT / "tokenizer" / "tokenizer.json", GOLDEN["special"] + GOLDEN["reward_tokens"])
    torch.save(weights(), path / CHECKPOINT / "model.pth")
    (path / "model_config.json").write_text(json.dumps(settings()))
    (path / "base").mkdir()
    (path / "base" / "config.json").write_text(json.dumps(GOLDEN["base_config"]))
    return path


def make(folder, **kwargs):
    return VideoReward(
        str(folder),
        **{"checkpoint": CHECKPOINT, "base": str(folder / "base"), "fps": FPS, "device": "cpu", "dtype": "float64"}
        | kwargs,
    )


@pytest.fixture(scope="module")
def reward(folder):
    made = make(folder)
    made(PROMPTS[:1], [video("short")])
    return made


def test_scores_in_float32_are_those_in_float64(folder, reward):
    videos = [video(name) for name in VIDEOS]
    assert make(folder, dtype="float32")(PROMPTS, videos) == pytest.approx(reward(PROMPTS, videos), abs=1e-4)


def normalized(logits):
    norms = GOLDEN["inference_config"]
    return [[(x - norms[f"{a}_mean"]) / norms[f"{a}_std"] for x, a in zip(row, AXES, strict=True)] for row in logits]


def test_scores_are_those_of_the_public_code(reward):
    with torch.inference_mode():
        raw = reward._raw(PROMPTS, [video(name) for name in VIDEOS])
    torch.testing.assert_close(raw, torch.tensor(GOLDEN["logits"]["1"]), atol=ROUNDING, rtol=0)
    expected = [sum(row) for row in normalized(GOLDEN["logits"]["1"])]
    assert reward(PROMPTS, [video(name) for name in VIDEOS]) == pytest.approx(expected, abs=2e-5)


def test_a_head_for_each_axis_is_read_at_its_own_token(folder):
    network, head = load(weights(outputs=3), torch.float64)
    assert head.shape == (3, 32)
    reward = make(folder)
    reward(PROMPTS[:1], [video("short")])
    reward._network, reward._head = network, head
    with torch.inference_mode():
        raw = reward._raw(PROMPTS, [video(name) for name in VIDEOS])
    torch.testing.assert_close(raw, torch.tensor(GOLDEN["logits"]["3"]), atol=ROUNDING, rtol=0)


def test_some_axes_are_summed(folder):
    rows = normalized(GOLDEN["logits"]["1"])
    videos = [video(name) for name in VIDEOS]
    for axes, columns in (("MQ",), [1]), (("TA", "VQ"), [2, 0]):
        expected = [sum(row[c] for c in columns) for row in rows]
        assert make(folder, axes=axes)(PROMPTS, videos) == pytest.approx(expected, abs=2e-5)


def test_the_network_reads_what_the_public_code_has_it_read(reward):
    for i, name in enumerate(VIDEOS):
        patches, grid = reward._video_inputs(i, video(name))
        assert list(grid) == GOLDEN["grid"][i]
        some = patches[::37, ::41][:, ::3].flatten()[:120]
        torch.testing.assert_close(some, torch.tensor(GOLDEN["pixels"][name]), atol=2e-6, rtol=0)
        ids = reward._token_ids(PROMPTS[i], len(patches) // 4)
        assert len(ids) == GOLDEN["tokens"][i]
        assert zlib.crc32(ids.numpy().astype("<i4").tobytes()) == GOLDEN["ids_crc"][i]


def test_the_task_is_unchanged():
    """Scores hang on each character, trailing spaces included."""
    digest = hashlib.sha256(TASK.encode()).hexdigest()
    assert digest == "fdb6309bac618dd0c8b1b589d3a0970a974f7856eecbb355a190b2dce54af700"


def test_a_score_depends_on_its_own_row_alone(reward):
    videos = [video(name) for name in VIDEOS]
    together = reward(PROMPTS, videos)
    alone = [reward([prompt], [frames])[0] for prompt, frames in zip(PROMPTS, videos, strict=True)]
    assert together == pytest.approx(alone, abs=1e-5)
    assert len({GOLDEN["tokens"][i] for i in range(3)}) == 3  # the rows are padded
    assert reward(PROMPTS[::-1], videos[::-1]) == pytest.approx(alone[::-1], abs=1e-5)


@pytest.mark.parametrize(
    ("num_frames", "fps", "expected"),
    [
        (81, 16, [0, 9, 18, 27, 36, 44, 53, 62, 71, 80]),  # 5.06 s
        (81, 24, [0, 16, 32, 48, 64, 80]),
        (49, 8, [0, 4, 9, 13, 17, 22, 26, 31, 35, 39, 44, 48]),
        (17, 16, [0, 5, 11, 16]),  # at least 4
        (5, 16, [0, 1, 3, 4]),
        (3, 16, [0, 2]),  # an even number
        (2, 16, [0, 1]),
        (7, 2, [0, 1, 2, 4, 5, 6]),
        (41, 7.5, [0, 4, 9, 13, 18, 22, 27, 31, 36, 40]),
    ],
)
def test_frames_are_those_that_the_public_code_chooses(num_frames, fps, expected):
    assert frame_indices(num_frames, fps) == expected


def test_no_more_frames_than_the_public_code_takes():
    indices = frame_indices(2000, 2)
    assert len(indices) == 768
    assert indices[:5] + indices[-1:] == [0, 3, 5, 8, 10, 1999]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 832), (336, 588)), ((720, 1280), (336, 588)), ((64, 64), (336, 336)), ((100, 40), (504, 224)),
        ((60, 1500), (84, 1596)), ((427, 640), (364, 532)), ((448, 448), (448, 448)), ((13, 2000), (28, 3948)),
        ((768, 768), (420, 420)), ((800, 800), (448, 448)), ((1024, 1024), (448, 448)), ((288, 1152), (196, 868)),
    ],
)  # fmt: skip
def test_frames_get_the_size_that_the_public_code_gives_them(size, expected):
    assert frame_size(size, 200704) == expected


@pytest.mark.parametrize("crop", [(0, 0, 640, 427), (0, 0, 200, 427), (0, 0, 90, 60), (0, 0, 448, 336)])
@pytest.mark.parametrize("index", [0, 1])
def test_patches_of_photographs_agree_with_another_resampler(index, crop):
    """Pillow in place of torch, patches cut out one by one."""
    photographs = [Image.fromarray(image).crop(crop) for image in load_sample_images().images]
    frames = [photographs[index], photographs[1 - index]]
    height, width = frame_size((frames[0].height, frames[0].width), 200704)
    arrays = [np.array(frame.resize((width, height), Image.Resampling.BICUBIC)) / 255 for frame in frames]
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    rows = []
    for top in range(0, height, 28):
        for left in range(0, width, 28):
            for y, x in ((top, left), (top, left + 14), (top + 14, left), (top + 14, left + 14)):
                both = np.stack([(array[y : y + 14, x : x + 14] - mean) / std for array in arrays])
                rows.append(both.transpose(3, 0, 1, 2).reshape(-1))
    patches, grid = video_patches(frames, 200704, Qwen2VLConfig(**GOLDEN["base_config"]))
    assert grid == (1, height // 14, width // 14)
    difference = (patches - torch.from_numpy(np.stack(rows))).abs()
    assert difference.mean() < 0.5 / 255 / 0.26
    assert (difference > 1.5 / 255 / 0.26).double().mean() < 0.03  # Pillow makes 8 bits of what it has resized across


def load(state, dtype=torch.float32, **lora):
    return qwen_from_original(
        state, Qwen2VLConfig(**GOLDEN["base_config"]), settings()["peft_lora_config"] | lora, dtype
    )


def test_adapters_act_and_are_scaled():
    """By hand, for one layer: W x + b + 8 / 4 * B A x; with rsLoRA 8 / sqrt(4)."""
    state = weights()
    name = "base_model.model.model.layers.1.self_attn.q_proj."
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    for lora, scale in ({}, 2.0), ({"use_rslora": True}, 4.0):
        layer = load(state, **lora)[0].language_model.layers[1].self_attn.q_proj
        update = x @ state[f"{name}lora_A.default.weight"].T @ state[f"{name}lora_B.default.weight"].T
        plain = F.linear(x, state[f"{name}base_layer.weight"], state[f"{name}base_layer.bias"])
        torch.testing.assert_close(layer(x), plain + scale * update, atol=1e-5, rtol=0)


def test_small_adapters_survive_bfloat16():
    """Added to the weights, which are of order 0.1, changes of 1e-4 would be rounded away."""
    state = weights()
    state = {k: (v * 1e-4 if "lora_B" in k else v) for k, v in state.items()}
    layer = load(state, torch.bfloat16)[0].language_model.layers[0].mlp.up_proj
    assert layer.lora_B["default"].weight.dtype == torch.bfloat16
    update = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_{}.default.weight"
    exact = state[name.format("B")] @ state[name.format("A")]
    torch.testing.assert_close(update.float(), exact, atol=0.02 * float(exact.abs().max()), rtol=0.02)


def test_a_checkpoint_without_adapters_is_read_too():
    merged = {}
    for name, value in weights().items():
        if ".lora_" not in name:
            merged[name.removeprefix("base_model.model.").replace(".base_layer.", ".")] = value
    assert not [name for name, _ in load(merged)[0].named_parameters() if "lora" in name]


def test_weights_are_loaded_at_the_first_call():
    reward = load_reward("videoreward", model_id="nowhere/at-all", fps=16, axes=["VQ", "TA"], device="cpu")
    assert (reward.name, reward.batch_size) == ("videoreward", 4)
    assert reward.version == "nowhere/at-all@main/checkpoint-11352 (VQ+TA), base Qwen/Qwen2-VL-2B-Instruct"
    own = "KlingTeam/VideoReward@main/checkpoint-11352, base Qwen/Qwen2-VL-2B-Instruct"
    assert load_reward("videoreward").version == own
    assert reward([], []) == []


def test_a_local_folder_is_published_by_its_name(tmp_path):
    (tmp_path / "mine").mkdir()
    base = tmp_path / "base"
    base.mkdir()
    (tmp_path / "mine" / "model_config.json").write_text("{}")
    version = VideoReward(str(tmp_path / "mine"), checkpoint="c", base=str(base)).version
    assert re.fullmatch(r"mine@sha256:\w{12}/c, base base@sha256:\w{12}", version)


@pytest.mark.parametrize("kwargs", [{"fps": 0}, {"fps": math.inf}, {"axes": []}, {"axes": ["VA"]}, {"axes": "VQ"}])
def test_impossible_settings_are_refused(kwargs):
    with pytest.raises(ValueError, match=f"`{next(iter(kwargs))}` is"):
        VideoReward(**kwargs)


def test_impossible_rows_are_refused(reward, folder):
    with pytest.raises(ValueError, match=r"load_reward\('videoreward', fps=16\)"):
        make(folder, fps=None)(["a"], [video("short")])
    with pytest.raises(ValueError, match="has 1 frames"):
        reward(["a"], [video("short")[:1]])
    with pytest.raises(ValueError, match=r"Video 1 .* different sizes \(64 x 64, 90 x 60 pixels\)"):
        reward(["a", "b"], [video("short"), [video("short")[0], video("wide")[0]]])
    with pytest.raises(ValueError, match=r"has '<\|MQ_reward\|>'"):
        reward(["a <|MQ_reward|>"], [video("short")])
    with pytest.raises(ValueError, match="402 x 2 pixels are too long"):
        reward(["a"], [[Image.new("RGB", (402, 2))] * 2])


def test_other_files_are_refused(folder, tmp_path):
    reward = make(tmp_path, base=str(folder / "base"))
    other = {key: value for key, value in settings().items() if key != "inference_config"}
    other["data_config"]["eval_dim"] = ["VQ"]
    (tmp_path / "model_config.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match=r"of another reward .* \(eval_dim \['VQ'\], no inference_config\)"):
        reward(["a"], [video("short")])
    (tmp_path / "model_config.json").write_text(json.dumps(settings()))
    save_tokenizer(tmp_path / CHECKPOINT / "tokenizer" / "tokenizer.json", [*GOLDEN["special"], "<|VQ_reward|>"])
    with pytest.raises(ValueError, match=r"has no tokens <\|MQ_reward\|>, <\|TA_reward\|>"):
        reward(["a"], [video("short")])


def test_other_weights_are_refused():
    state = weights()
    with pytest.raises(ValueError, match=r"needs 'rm_head\.weight' with 1 or 3 rows"):
        load(weights(outputs=2))
    with pytest.raises(ValueError, match=r"missing keys: visual\.blocks\.0\.norm1\.bias\)"):
        load({name: value for name, value in state.items() if "visual.blocks.0.norm1.bias" not in name})
    with pytest.raises(ValueError, match="do not fit `lora_r`"):
        load(state, lora_r=2)
    with pytest.raises(ValueError, match="adapters do not fit the network"):
        load({name: value for name, value in state.items() if "layers.0.mlp.up_proj.lora_B" not in name})
