"""CLIP score, PickScore, HPSv2 and the aesthetic score against formulas and preprocessing written again here.

No weights are downloaded: the networks are small, with the published layouts, and image sizes are the real ones.
"""

import io
import logging
import math
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_sample_images
from torch import nn
from torch.nn import functional as F
from transformers import (
    BertConfig,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
)

from tgo_trl.media.images import load_image
from tgo_trl.rewards.aesthetic import Aesthetic, linear_head, openai_pixels
from tgo_trl.rewards.base import hub_file, load_pt_file, local_version
from tgo_trl.rewards.clip_score import ClipScore
from tgo_trl.rewards.hpsv2 import HPSv2, hps_pixels, padded_square
from tgo_trl.rewards.networks import normalize, resized_square
from tgo_trl.rewards.open_clip import clip_from_open_clip
from tgo_trl.rewards.pickscore import PickScore

from .tiny.parts import LETTERS, clip_tokenizer

pytestmark = pytest.mark.usefixtures("on_cpu")

MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])
CHINA, FLOWER = (Image.fromarray(image) for image in load_sample_images().images)  # 640 x 427
PHOTOS = {
    "landscape": CHINA,
    "portrait": FLOWER.transpose(Image.Transpose.ROTATE_90),
    "square": CHINA.crop((100, 0, 527, 427)),
    "panorama": FLOWER.crop((0, 200, 640, 290)),
    "odd": CHINA.crop((10, 0, 497, 333)),
    "fits the longer side": FLOWER.crop((100, 100, 324, 237)),
    "fits the shorter side": FLOWER.crop((100, 100, 401, 324)),
    "smaller": CHINA.crop((200, 200, 291, 257)),
}
PROMPTS = ["a temple", "a red flower, big", "x", "roofs"]


def shuffle_weights(module, seed=0):
    """Random weights large enough that prompts and images matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim:
                parameter.add_(0.15 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def tower(**kwargs):
    return {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, **kwargs}


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A CLIP as on the Hub: weights, tokenizer, image settings."""
    folder = tmp_path_factory.mktemp("clip")
    config = CLIPConfig(
        text_config=tower(vocab_size=514, bos_token_id=0, eos_token_id=1, projection_dim=12),
        vision_config=tower(image_size=224, patch_size=56, projection_dim=12),
        projection_dim=12,
        logit_scale_init_value=math.log(100),
    )
    shuffle_weights(CLIPModel(config)).save_pretrained(folder)
    clip_tokenizer().save_pretrained(folder)
    CLIPImageProcessorPil().save_pretrained(folder)
    return str(folder)


def cosines(prompts, images, folder):
    """Each row alone, with the two towers apart, without padding."""
    text = CLIPTextModelWithProjection.from_pretrained(folder)
    vision = CLIPVisionModelWithProjection.from_pretrained(folder)
    letters = {letter: 2 + i for i, letter in enumerate(LETTERS)}
    rows = []
    for prompt, image in zip(prompts, images, strict=True):
        ids = [0]
        for word in prompt.replace(",", " ,").split():
            ids += [letters[letter] for letter in word[:-1]] + [letters[word[-1]] + len(LETTERS)]
        with torch.no_grad():
            t = text(input_ids=torch.tensor([[*ids[:76], 1]])).text_embeds[0].double().numpy()
            v = vision(pixel_values=clip_reference(image, math.floor)[None].float()).image_embeds[0].double().numpy()
        rows.append(t @ v / np.sqrt((t @ t) * (v @ v)))
    return rows


def clip_reference(image, rounding):
    """Shorter side to 224, the middle of the longer one."""
    scale = 224 / min(image.size)
    width, height = (224 if side == min(image.size) else int(224 * side / min(image.size)) for side in image.size)
    resized = image.resize((width, height), Image.BICUBIC) if scale != 1 else image
    left, top = rounding((width - 224) / 2), rounding((height - 224) / 2)
    pixels = np.asarray(resized, dtype=np.float64)[top : top + 224, left : left + 224] / 255
    return torch.from_numpy(((pixels - MEAN) / STD).transpose(2, 0, 1))


# ---- Preprocessing ----


@pytest.mark.parametrize("name", PHOTOS)
def test_clip_preprocessing(clip_folder, name):
    """transformers rounds the corner of the crop down, OpenAI's code to the nearest even."""
    reward = ClipScore(clip_folder)
    reward._load_preprocessing()
    pixels = reward._pixels([PHOTOS[name]])
    assert pixels.shape == (1, 3, 224, 224)
    assert pixels.dtype == torch.float32
    torch.testing.assert_close(pixels[0].double(), clip_reference(PHOTOS[name], math.floor), rtol=0, atol=2e-6)
    torch.testing.assert_close(
        openai_pixels(PHOTOS[name], 224).double(), clip_reference(PHOTOS[name], round), rtol=0, atol=2e-6
    )


def smoothed(channel, width, height):
    """Pillow's bicubic, which widens its kernel when it makes smaller."""
    return np.asarray(Image.fromarray(channel.astype(np.float32)).resize((width, height), Image.BICUBIC))


def interpolated(channel, width, height):
    """Cubic convolution with a = -0.75 at the pixel centres, edges repeated; no smoothing."""

    def matrix(size, new_size):
        rows = np.zeros((new_size, size))
        for i in range(new_size):
            position = (i + 0.5) * size / new_size - 0.5
            start = math.floor(position)
            for j in range(start - 1, start + 3):
                x, a = abs(position - j), -0.75
                weight = (a + 2) * x**3 - (a + 3) * x**2 + 1 if x <= 1 else a * (x**3 - 5 * x**2 + 8 * x - 4)
                rows[i, min(max(j, 0), size - 1)] += weight
        return rows

    return matrix(channel.shape[0], height) @ channel @ matrix(channel.shape[1], width).T


@pytest.mark.parametrize("name", PHOTOS)
@pytest.mark.parametrize(("antialias", "resize"), [(True, smoothed), (False, interpolated)])
def test_hps_preprocessing(name, antialias, resize):
    """Longer side to 224, black around it, then CLIP's normalisation: black is not 0."""
    image = PHOTOS[name]
    scale = 224 / max(image.size)  # before it is multiplied, as in the package: it decides where .5 is rounded to
    width, height = (round(side * scale) for side in image.size)
    canvas = np.zeros((3, 224, 224))
    for channel, values in enumerate(np.asarray(image, dtype=np.float64).transpose(2, 0, 1)):
        top, left = (224 - height) // 2, (224 - width) // 2
        canvas[channel, top : top + height, left : left + width] = resize(values / 255, width, height)
    expected = (canvas - MEAN[:, None, None]) / STD[:, None, None]
    torch.testing.assert_close(
        hps_pixels(image, 224, antialias).double(), torch.from_numpy(expected), rtol=0, atol=2e-4
    )


def test_a_thread_of_an_image_keeps_a_pixel():
    assert hps_pixels(Image.new("RGB", (2000, 1)), 224).shape == (3, 224, 224)


def test_images_of_any_mode_are_read_as_in_training(clip_folder):
    transparent = CHINA.convert("RGBA")
    transparent.putalpha(128)
    turned, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # to be shown a quarter turned
    CHINA.save(turned, "PNG", exif=exif)
    images = [transparent, CHINA.convert("L"), CHINA.quantize(16), turned.getvalue()]
    reward = ClipScore(clip_folder)
    prompts = ["a temple"] * len(images)
    assert reward(prompts, images) == reward(prompts, [load_image(image) for image in images])
    assert reward(prompts[:2], [turned.getvalue(), CHINA.rotate(270, expand=True)])[0] == pytest.approx(
        reward(prompts[:1], [CHINA.rotate(270, expand=True)])[0], abs=1e-6
    )


# ---- CLIP score ----


def test_clip_score_is_the_cosine(clip_folder):
    images = [PHOTOS["landscape"], PHOTOS["portrait"], PHOTOS["odd"], PHOTOS["panorama"]]
    expected = cosines(PROMPTS, images, clip_folder)
    reward = ClipScore(clip_folder, batch_size=3)
    assert reward.license == f"see {Path(clip_folder).name}"  # no path of this machine
    scores = reward(PROMPTS, images)
    assert scores == pytest.approx(expected, abs=1e-5)
    assert np.ptp(scores) > 0.02  # prompts and images do matter to this network


def test_a_score_does_not_depend_on_the_other_rows(clip_folder):
    images = [PHOTOS["landscape"], PHOTOS["portrait"], PHOTOS["odd"], PHOTOS["panorama"]]
    alone = [ClipScore(clip_folder)([p], [i])[0] for p, i in zip(PROMPTS, images, strict=True)]
    for batch_size in (1, 2, 4):
        assert ClipScore(clip_folder, batch_size=batch_size)(PROMPTS, images) == pytest.approx(alone, abs=1e-6)
    reversed_scores = ClipScore(clip_folder, batch_size=3)(PROMPTS[::-1], images[::-1])
    assert reversed_scores[::-1] == pytest.approx(alone, abs=1e-6)


def test_prompts_are_cut_after_77_tokens(clip_folder, caplog):
    """A token a letter here: 75 letters between start and end."""
    reward = ClipScore(clip_folder)
    prompts = ["a" * 74 + " b", "a" * 74 + " b c", "a" * 74 + " b" + " d" * 300, "a" * 74 + " e"]
    with caplog.at_level(logging.WARNING):
        scores = reward(prompts, [CHINA] * 4)
        reward(prompts[1:], [CHINA] * 3)
    assert scores[1:3] == pytest.approx([scores[0]] * 2, abs=1e-6)
    assert abs(scores[3] - scores[0]) > 1e-5
    warnings = [record.getMessage() for record in caplog.records if "77 tokens" in record.getMessage()]
    assert len(warnings) == 1
    assert "clip_score reads the first 77 tokens" in warnings[0]


def test_bfloat16_is_close_and_the_cosine_is_not_rounded_to_it(clip_folder):
    exact = ClipScore(clip_folder)(PROMPTS, [CHINA] * 4)
    scores = ClipScore(clip_folder, dtype="bfloat16")(PROMPTS, [CHINA] * 4)
    assert scores == pytest.approx(exact, abs=0.02)
    assert scores != exact
    assert torch.tensor(scores).bfloat16().tolist() != scores


def test_what_is_no_clip_is_refused(tmp_path, clip_folder):
    BertConfig().save_pretrained(tmp_path / "bert")
    clip_tokenizer().save_pretrained(tmp_path / "bert")
    CLIPImageProcessorPil().save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="is a 'bert' model; clip_score needs a CLIP model"):
        ClipScore(str(tmp_path / "bert"))(["a"], [CHINA])
    model = CLIPModel.from_pretrained(clip_folder)
    model.save_pretrained(tmp_path / "half")
    weights = load_file(tmp_path / "half" / "model.safetensors")
    del weights["text_projection.weight"]
    save_file(weights, tmp_path / "half" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks weights of a `CLIPModel`, such as 'text_projection.weight'"):
        ClipScore(str(tmp_path / "half"), processor=clip_folder)(["a"], [CHINA])


def test_the_version_names_the_commit(clip_folder, tmp_path, monkeypatch):
    """Loaded by id from a cache of the Hub, laid out as huggingface_hub does it."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--owner--clip"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots").mkdir()
    (repository / "snapshots" / commit).symlink_to(clip_folder, target_is_directory=True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    reward = ClipScore("owner/clip")
    assert reward.version == "owner/clip@main"
    assert reward(["a"], [CHINA]) == ClipScore(clip_folder)(["a"], [CHINA])
    assert reward.version == f"owner/clip@{commit}"
    assert reward.license == "see owner/clip"
    assert hub_file("owner/clip", "config.json")[1] == commit


# ---- PickScore ----


def test_pickscore_is_the_cosine_times_the_scale(clip_folder, tmp_path):
    CLIPModel.from_pretrained(clip_folder).save_pretrained(tmp_path)  # the weights come without a processor
    images = [PHOTOS["landscape"], PHOTOS["portrait"], PHOTOS["odd"], PHOTOS["panorama"]]
    reward = PickScore(str(tmp_path), processor=clip_folder)
    expected = 100 * np.array(cosines(PROMPTS, images, clip_folder))
    assert reward(PROMPTS, images) == pytest.approx(expected, abs=1e-3)


def test_bfloat16_does_not_round_the_scale(clip_folder):
    """log 100 = 4.6052 is 4.59375 in bfloat16, whose exponential is 98.9."""
    pickscore = PickScore(clip_folder, processor=clip_folder, dtype=torch.bfloat16)(PROMPTS, [CHINA] * 4)
    cosine = ClipScore(clip_folder, dtype=torch.bfloat16)(PROMPTS, [CHINA] * 4)
    assert pickscore == pytest.approx([100 * value for value in cosine], rel=1e-5)


# ---- OpenCLIP's layout ----


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential()
        for name, layer in (
            ("c_fc", nn.Linear(width, 2 * width)),
            ("gelu", nn.GELU()),
            ("c_proj", nn.Linear(2 * width, width)),
        ):
            self.mlp.add_module(name, layer)

    def forward(self, x, mask=None):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, attn_mask=mask, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Blocks(nn.Module):
    def __init__(self, width, heads, depth):
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads) for _ in range(depth))

    def forward(self, x, mask=None):
        for block in self.resblocks:
            x = block(x, mask)
        return x


class Visual(nn.Module):
    def __init__(self, width, patch, grid, heads, depth, embed):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros(grid * grid + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Blocks(width, heads, depth)
        self.proj = nn.Parameter(torch.zeros(width, embed))

    def forward(self, pixels):
        x = self.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x))[:, 0]) @ self.proj


class OpenClip(nn.Module):
    """OpenCLIP's ViT CLIP at toy size, with its names: what the end token attends to is the text's embedding."""

    def __init__(self, vocabulary=516, width=24, embed=20):
        super().__init__()
        self.visual = Visual(32, 56, 4, 4, 2, embed)
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.positional_embedding = nn.Parameter(torch.zeros(77, width))
        self.transformer = Blocks(width, 3, 3)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.zeros(width, embed))
        self.logit_scale = nn.Parameter(torch.tensor(4.6))

    def encode_text(self, ids):
        length = ids.shape[1]
        mask = torch.full((length, length), -math.inf).triu(1)
        x = self.token_embedding(ids) + self.positional_embedding[:length]
        x = self.ln_final(self.transformer(x, mask))
        return x[torch.arange(len(x)), ids.argmax(-1)] @ self.text_projection


@pytest.fixture(scope="module")
def open_clip():
    return shuffle_weights(OpenClip(), seed=1)


@pytest.fixture(scope="module")
def hps_folder(tmp_path_factory, open_clip):
    """A checkpoint as on the Hub, and a tokenizer whose last two tokens are start and end, as CLIP's."""
    folder = tmp_path_factory.mktemp("hps")
    torch.save({"state_dict": open_clip.state_dict()}, folder / "HPS_v2.1_compressed.pt")
    words = [*LETTERS, *(letter + "</w>" for letter in LETTERS), "ab</w>", "cd</w>", "<|startoftext|>", "<|endoftext|>"]
    merges = [("a", "b</w>"), ("c", "d</w>")]
    tokenizer = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=merges, model_max_length=77)
    tokenizer.save_pretrained(folder)
    return str(folder)


def hps_reward(folder, **kwargs):
    return HPSv2(folder, processor=folder, num_vision_heads=4, num_text_heads=3, **kwargs)


def test_open_clip_weights_give_the_same_embeddings(open_clip):
    weights = {**open_clip.state_dict(), "attn_mask": torch.zeros(77, 77)}  # a buffer of older checkpoints
    model = clip_from_open_clip(weights, num_vision_heads=4, num_text_heads=3)
    generator = torch.Generator().manual_seed(2)
    pixels = torch.randn(3, 3, 224, 224, generator=generator)
    ids = torch.randint(0, 500, (3, 77), generator=generator)
    for row, end in enumerate((5, 30, 76)):
        ids[row, 0], ids[row, end], ids[row, end + 1 :] = 514, 515, 0  # OpenCLIP pads with 0
    with torch.no_grad():
        outputs = model(input_ids=ids, pixel_values=pixels)
        for mine, its in (
            (outputs.image_embeds, open_clip.visual(pixels)),
            (outputs.text_embeds, open_clip.encode_text(ids)),
        ):
            torch.testing.assert_close(mine, F.normalize(its, dim=-1), rtol=0, atol=1e-5)
    assert model.logit_scale.item() == pytest.approx(4.6)
    assert not model.training


def test_half_precision_weights_are_read_in_float32(open_clip):
    weights = {name: tensor.half() for name, tensor in open_clip.state_dict().items()}
    model = clip_from_open_clip(weights, num_vision_heads=4, num_text_heads=3)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("visual.proj"), r"there is no 'visual\.proj'"),
        (lambda w: w.pop("ln_final.weight"), r"missing keys: text_model\.final_layer_norm\.weight"),
        (lambda w: w.update(other=torch.zeros(1)), "unexpected keys: other"),
        (lambda w: w.update({"ln_final.bias": torch.zeros(3)}), r"mismatched keys: text_model\.final_layer_norm\.bias"),
        (lambda w: w.pop("visual.transformer.resblocks.0.mlp.c_fc.weight"), "c_fc"),
    ],
)
def test_other_weights_are_refused(open_clip, change, message):
    weights = dict(open_clip.state_dict())
    change(weights)
    with pytest.raises(ValueError, match=message):
        clip_from_open_clip(weights, num_vision_heads=4, num_text_heads=3)


# ---- HPSv2 ----


def test_hps_is_the_cosine_without_scale(open_clip, hps_folder):
    prompts, images = ["cd", "ab x", "ab cd ab"], [PHOTOS["portrait"], PHOTOS["landscape"], PHOTOS["smaller"]]
    ids = {"ab": [512], "cd": [513], "x": [LETTERS.index("x") + len(LETTERS)]}
    expected = []
    for prompt, image in zip(prompts, images, strict=True):
        row = torch.tensor([[514, *(i for word in prompt.split() for i in ids[word]), 515]])
        with torch.no_grad():
            text, vision = open_clip.encode_text(row), open_clip.visual(hps_pixels(image, 224)[None])
        expected.append(F.cosine_similarity(text, vision).item())
    reward = hps_reward(hps_folder, batch_size=2)
    assert reward(prompts, images) == pytest.approx(expected, abs=1e-5)
    assert reward.version == f"{local_version(hps_folder, 'HPS_v2.1_compressed.pt')}/HPS_v2.1_compressed.pt"
    without = hps_reward(hps_folder, antialias=False)(prompts, images)
    assert max(abs(a - b) for a, b in zip(without, expected, strict=True)) > 1e-4


def test_hps_reads_typographic_prompts_as_the_package_does(hps_folder):
    """Where ftfy and `html.unescape` act on prompts that people write."""
    reward = hps_reward(hps_folder)
    pairs = [
        ("a man\u2019s “hat”", 'a man\'s "hat"'),
        ("cat &amp; dog", "cat & dog"),
        ("&amp;lt;3", "<3"),
        ("\u2018x\u201b", "'x'"),
    ]
    for written, read in pairs:
        assert reward._clean(written) == read
    assert reward._clean("&rsquo;") == "'"
    scores = reward([p for pair in pairs for p in pair], [CHINA] * 8)
    assert scores[::2] == pytest.approx(scores[1::2], abs=1e-6)


def test_hps_checkpoints_that_are_none(tmp_path, hps_folder, open_clip):
    with pytest.raises(ValueError, match=r"has no file 'HPS_v2.1_compressed.pt'"):
        HPSv2(str(tmp_path), processor=hps_folder)(["a"], [CHINA])
    torch.save(open_clip.state_dict(), tmp_path / "HPS_v2.1_compressed.pt")
    with pytest.raises(ValueError, match="has no 'state_dict'"):
        HPSv2(str(tmp_path), processor=hps_folder)(["a"], [CHINA])


class Runs:
    """A pickle that would run code when it is read."""

    def __reduce__(self):
        return (open, ("ran.txt", "w"))


def test_a_pickle_that_runs_code_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Runs()}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"'weights.pt' cannot be read as a file of weights"):
        load_pt_file(tmp_path / "weights.pt")
    assert not (tmp_path / "ran.txt").exists()


# ---- Aesthetic score ----


@pytest.fixture(scope="module")
def head_folder(tmp_path_factory):
    """A head as published, with numbers as left by the dropout between its layers."""
    folder = tmp_path_factory.mktemp("head")
    layers = nn.Sequential(nn.Linear(12, 8), nn.Dropout(0.2), nn.Linear(8, 4), nn.Dropout(0.2), nn.Linear(4, 1))
    shuffle_weights(layers, seed=3)
    torch.save(
        {f"layers.{name}": tensor for name, tensor in layers.state_dict().items()}, folder / "aesthetic-model.pth"
    )
    return str(folder)


def test_the_aesthetic_score_by_hand(clip_folder, head_folder):
    vision = CLIPVisionModelWithProjection.from_pretrained(clip_folder)
    weights = torch.load(f"{head_folder}/aesthetic-model.pth", weights_only=True)
    images = [PHOTOS["landscape"], PHOTOS["portrait"], PHOTOS["odd"]]
    expected = []
    for image in images:
        with torch.no_grad():
            x = vision(pixel_values=clip_reference(image, round)[None].float()).image_embeds[0].double().numpy()
        x = x / np.sqrt(x @ x)
        for n in (0, 2, 4):
            x = weights[f"layers.{n}.weight"].double().numpy() @ x + weights[f"layers.{n}.bias"].double().numpy()
        expected.append(x[0])
    reward = Aesthetic(head_folder, backbone=clip_folder, batch_size=2)
    assert reward(["any", "prompt", ""], images) == pytest.approx(expected, abs=1e-5)
    head = local_version(head_folder, "aesthetic-model.pth")
    assert reward.version == f"{head}/aesthetic-model.pth, backbone {local_version(clip_folder)}"
    rounded = Aesthetic(head_folder, backbone=clip_folder, dtype="bfloat16")
    assert rounded([""] * 3, images) == pytest.approx(expected, abs=0.02)
    assert rounded._head[0].weight.dtype == torch.float32


def test_a_head_of_another_backbone_is_refused(clip_folder, tmp_path):
    layers = nn.Sequential(nn.Linear(13, 1))
    torch.save({f"layers.{name}": t for name, t in layers.state_dict().items()}, tmp_path / "aesthetic-model.pth")
    with pytest.raises(ValueError, match=r"reads 13 numbers, but .* embeds images in 12"):
        Aesthetic(str(tmp_path), backbone=clip_folder)(["a"], [CHINA])


@pytest.mark.parametrize(
    "shapes",
    [
        {},
        {"layers.0.weight": (1, 4)},
        {"layers.0.weight": (2, 4), "layers.0.bias": (2,)},
        {"layers.0.weight": (2, 4), "layers.0.bias": (2,), "layers.1.weight": (1, 3), "layers.1.bias": (1,)},
        {"layers.0.weight": (1, 4), "layers.0.bias": (1,), "norm.weight": (4,)},
        {"head.weight": (1, 4), "head.bias": (1,)},
    ],
)
def test_other_heads_are_refused(shapes):
    with pytest.raises(ValueError, match="not a stack of linear layers with one output"):
        linear_head({name: torch.zeros(shape) for name, shape in shapes.items()})


# ---- With gradient ----


def as_pixels(*images):
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255 for image in images])


@pytest.mark.parametrize("name", PHOTOS)
def test_tensors_are_brought_to_size_as_images_are(clip_folder, hps_folder, name):
    """Up to Pillow's rounding to 8 bits after each of its two passes: less than 2 of 255, and 0.4 on average."""
    image, pixels = PHOTOS[name], as_pixels(PHOTOS[name])
    clip = ClipScore(clip_folder)
    clip._load_preprocessing()
    pairs = [
        (clip._inputs(pixels)[0], clip._pixels([image])[0]),
        (normalize(resized_square(pixels, 224, round))[0], openai_pixels(image, 224)),
    ]
    for ours, theirs in pairs:
        shades = (ours - theirs).abs() * torch.tensor(STD).view(3, 1, 1) * 255
        assert shades.max() < 2
        assert shades.mean() < 0.4
    assert torch.equal(padded_square(pixels, 224)[0], hps_pixels(image, 224))


@pytest.mark.parametrize("name", ["clip_score", "pickscore", "hpsv2.1", "aesthetic"])
def test_scores_of_tensors_are_those_of_images_and_have_a_gradient(clip_folder, hps_folder, head_folder, name):
    reward = {
        "clip_score": lambda: ClipScore(clip_folder),
        "pickscore": lambda: PickScore(clip_folder, processor=clip_folder),
        "hpsv2.1": lambda: hps_reward(hps_folder),
        "aesthetic": lambda: Aesthetic(head_folder, backbone=clip_folder),
    }[name]()
    assert (reward.name, reward.differentiable) == (name, True)
    images = [PHOTOS["landscape"], CHINA.crop((0, 0, 640, 427)).transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    pixels = as_pixels(*images).requires_grad_()
    scores = reward.score_pixels(PROMPTS[:2], pixels)
    assert scores.dtype == torch.float32
    spread = np.ptp(reward(PROMPTS, [PHOTOS["landscape"], PHOTOS["portrait"], PHOTOS["odd"], FLOWER]))
    assert scores.tolist() == pytest.approx(reward(PROMPTS[:2], images), abs=0.02 * spread)
    (slope,) = torch.autograd.grad(scores[0], pixels)
    assert slope[1].abs().max() == 0  # the other row's
    way = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0)) * slope.abs().max() + slope
    way = 0.02 * way / way.abs().max()
    with torch.no_grad():
        ahead, behind = (reward.score_pixels(PROMPTS[:2], pixels + sign * way)[0] for sign in (1, -1))
    assert (ahead - behind).item() / 2 == pytest.approx((slope * way).sum().item(), rel=0.05)


def test_image_settings_without_a_gradient_are_refused(clip_folder, tmp_path):
    CLIPImageProcessorPil(do_center_crop=False).save_pretrained(tmp_path)
    clip_tokenizer().save_pretrained(tmp_path)
    reward = ClipScore(clip_folder, processor=str(tmp_path))
    with pytest.raises(ValueError, match="are not CLIP's"):
        reward.score_pixels(["a"], as_pixels(CHINA))
