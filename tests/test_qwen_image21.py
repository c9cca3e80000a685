"""Qwen-Image 2.1: places that depend on what is before them, transparency, and Turbo's own steps."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tgo_trl.families import QwenImage21Family
from tgo_trl.media.images import load_image

from .cases import calls_of
from .test_alignprop import make_trainer
from .tiny.qwen_image21 import CALL, RESOLUTION, build

SHORT, LONG = "a cat", "a dog on a hill"  # 5 and 15 letters, each a token, and 8 tokens of the template around them
FAMILY = QwenImage21Family(max_sequence_length=32)
SIZE = (RESOLUTION, RESOLUTION)
LEVELS = [1.0, 0.9, 0.5]


@pytest.fixture(scope="module")
def pipeline():
    return build()


def drawn(pipeline, prompts, **kwargs):
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
    return FAMILY.sample(pipeline, prompts, generators, SIZE, **{"num_inference_steps": 2, **kwargs})


# ---- Prompts ----


@torch.no_grad()
def test_prompts_are_encoded_as_each_alone(pipeline):
    both = FAMILY.encode_prompts(pipeline, [SHORT, LONG])
    assert both["embeds"].shape == (2, 32, 16)
    assert both["mask"].tolist() == [[1] * 13 + [0] * 19, [1] * 23 + [0] * 9]
    for row, prompt in enumerate((SHORT, LONG)):
        embeds, mask, _ = pipeline.encode_prompt(prompt)
        assert mask is None
        assert torch.equal(both["embeds"][row], F.pad(embeds[0], (0, 0, 0, 32 - embeds.shape[1])))


def test_longer_prompts_are_refused_as_nothing_would_cut_them(pipeline):
    short = QwenImage21Family(max_sequence_length=22)
    for refuse in (short.encode_prompts, short.check_prompts):
        with pytest.raises(ValueError, match="'a dog on a hill' has 23 tokens, and `max_sequence_length` is 22: this"):
            refuse(pipeline, [SHORT, LONG])
    QwenImage21Family(max_sequence_length=23).check_prompts(pipeline, [SHORT, LONG])


@torch.no_grad()
def test_a_row_is_predicted_as_if_it_were_alone_where_padding_would_move_its_image(pipeline):
    transformer, latents = pipeline.transformer, torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    conditions, time = FAMILY.encode_prompts(pipeline, [SHORT, LONG]), torch.tensor([250.0, 500.0])
    ours = FAMILY.predict({"transformer": transformer}, latents, time, conditions)
    for row in range(2):
        alone = {name: tensor[[row]] for name, tensor in conditions.items()}
        assert torch.equal(
            FAMILY.predict({"transformer": transformer}, latents[[row]], time[[row]], alone)[0], ours[row]
        )
    padded = transformer(
        latents.flatten(2).mT, conditions["embeds"][:, :23], time / 1000, [[(1, 4, 4)]] * 2,
        torch.tensor([[False] * 23 + [True] * 4] * 2), conditions["mask"][:, :23], return_dict=False,
    )[0][:, -16:].mT.reshape(2, 4, 4, 4)  # fmt: skip
    torch.testing.assert_close(padded[1], ours[1])
    assert (padded[0] - ours[0]).abs().max() > 1e-3


def test_samples_are_those_of_the_pipeline_called_for_each_prompt(pipeline):
    ours = drawn(pipeline, [SHORT, LONG], guidance_scale=2.0)
    for row, prompt in enumerate((SHORT, LONG)):
        theirs = pipeline(prompt, generator=torch.Generator().manual_seed(row), **CALL).images[0]
        assert theirs.mode == "RGBA"
        assert ours[row].mode == "RGB"
        assert np.abs(np.asarray(load_image(theirs), int) - np.asarray(ours[row], int)).max() <= 1


@torch.no_grad()
@pytest.mark.parametrize("use_kv_cache", [True, False])
def test_predictions_are_those_of_each_step_with_what_the_pipeline_keeps_of_the_prompt(pipeline, use_kv_cache):
    conditions = FAMILY.encode_prompts(pipeline, [SHORT])
    call = {**CALL, "true_cfg_scale": 1.0, "negative_prompt": None, "num_inference_steps": 3, "output_type": "latent"}
    calls = calls_of(pipeline.transformer, pipeline, SHORT, **{**call, "use_kv_cache": use_kv_cache})
    kept = [arguments.get("kv_cache_mode") for arguments, _ in calls]
    assert kept == (["extract", "cached", "cached"] if use_kv_cache else [None] * 3)
    for arguments, output in calls:
        latents, time = arguments["hidden_states"].mT.reshape(1, 4, 4, 4), arguments["timestep"] * 1000
        ours = FAMILY.predict({"transformer": pipeline.transformer}, latents, time, conditions)
        torch.testing.assert_close(ours, output[0][:, -16:].mT.reshape(1, 4, 4, 4))


# ---- Transparency ----


@torch.no_grad()
def test_pictures_are_opaque(pipeline):
    pixels = torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    opaque = torch.cat([pixels, torch.ones(2, 1, *SIZE)], 1)
    encoded = FAMILY.encode_images(pipeline, pixels, torch.zeros(2, 4))
    assert torch.equal(encoded["mean"], pipeline.vae.encode(opaque.unsqueeze(2)).latent_dist.mean.squeeze(2))


def test_samples_with_a_gradient_lie_over_white(pipeline, monkeypatch):
    # of a color from -1 to 1 and an opacity likewise: half of 0.2 is 0.6 in [0, 1], none is white, all is the color
    colors, opacities = torch.tensor([-0.6, -0.6, -0.6]), torch.tensor([0.0, -1.0, 1.0])
    pixels = torch.stack([colors, colors, colors, opacities])[None, :, None, None]
    monkeypatch.setattr(pipeline.vae, "decode", lambda *_, **__: (pixels,))
    found = FAMILY.decode(pipeline, torch.zeros(1, 4, 4, 4)).squeeze() / 2 + 0.5
    torch.testing.assert_close(found, torch.tensor([0.6, 1.0, 0.2]).expand(3, 3))


def test_samples_of_every_kind_lie_over_white(pipeline):
    image, array, tensor = (drawn(pipeline, [SHORT], output_type=kind)[0] for kind in ("pil", "np", "pt"))
    assert array.shape == (RESOLUTION, RESOLUTION, 3)
    np.testing.assert_allclose(array, tensor.permute(1, 2, 0).numpy(), atol=1e-6)
    assert np.abs(array * 255 - np.asarray(image)).max() <= 1.51  # color, opacity, and what is over white are rounded
    assert drawn(pipeline, [SHORT], output_type="latent")[0].shape == (16, 4)  # as the network has them


# ---- Turbo ----


def test_turbo_is_known_by_its_steps_and_by_its_name(pipeline):
    assert FAMILY.step_distilled_from(pipeline) is None
    assert FAMILY.step_distilled_from(build(sample_sigmas=LEVELS)) == "`Qwen/Qwen-Image-2.1`"
    named = SimpleNamespace(config={"_name_or_path": "Qwen/Qwen-Image-2.1-Turbo"})
    assert FAMILY.step_distilled_from(named) == "`Qwen/Qwen-Image-2.1`"


def test_other_numbers_of_steps_than_turbo_has_are_refused_or_warned_of(tmp_path, caplog):
    turbo = build(sample_sigmas=LEVELS)
    settings = {"resolution": RESOLUTION, "max_sequence_length": 32}
    with pytest.raises(ValueError, match=r"draws in 3 steps of its own \(`sample_sigmas`\), and not in 2. Set"):
        make_trainer(tmp_path, turbo, sample_num_steps=2, **settings)
    drawn(turbo, [SHORT], num_inference_steps=3)
    assert "steps of its own" not in caplog.text
    drawn(turbo, [SHORT], num_inference_steps=2)
    assert "draws in 3 steps of its own (`sample_sigmas`), and not in the 2 asked for" in caplog.text


def test_sizes_are_multiples_of_two_latents(pipeline):
    assert FAMILY.size_multiple(pipeline) == 32
