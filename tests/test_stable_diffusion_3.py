"""Stable Diffusion 3 beyond what every family does: optional encoders, dual attention, lengths."""

import pytest
import torch

from tgo_trl.families import StableDiffusion3Family
from tgo_trl.policy.policy import build_policy

from .runs import config
from .tiny.stable_diffusion_3 import build, build_medium, build_without_t5

FAMILY = StableDiffusion3Family(max_sequence_length=24)


def test_prompts_have_the_tokens_of_clip_and_of_t5():
    with torch.no_grad():
        encoded = FAMILY.encode_prompts(build(), ["a red cat"])
    assert encoded["embeds"].shape == (1, 77 + 24, 80)
    assert encoded["pooled"].shape == (1, 32 + 32)
    assert (encoded["embeds"][:, :77, 64:] == 0).all()  # CLIP's two encoders are narrower than T5


def test_zeros_stand_for_a_missing_t5():
    pipeline = build_without_t5()
    FAMILY.check(pipeline)
    with torch.no_grad():
        encoded, whole = (FAMILY.encode_prompts(either, ["a red cat"])["embeds"] for either in (pipeline, build()))
    torch.testing.assert_close(encoded[:, :77], whole[:, :77])
    assert (encoded[:, 77:] == 0).all()
    assert whole[:, 77:].abs().max() > 0.1


def test_t5_without_its_tokenizer_is_refused():
    pipeline = build()
    pipeline.register_modules(tokenizer_3=None)
    with pytest.raises(ValueError, match="has a `text_encoder_3` and no `tokenizer_3`"):
        FAMILY.check(pipeline)


def test_both_attentions_of_a_layer_get_an_adapter(tmp_path):
    policy, _ = build_policy(build_medium(), FAMILY, config(tmp_path), None, torch.float32)
    trained = {name for name, weight in policy.named_parameters() if weight.requires_grad}
    for name in ("to_q", "to_k", "to_v", "to_out.0"):
        for attention in ("attn", "attn2"):
            assert f"networks.transformer.transformer_blocks.0.{attention}.{name}.lora_A.default.weight" in trained


def test_sizes_are_the_pipelines():
    pipeline = build()  # latents of 8 in patches of 2, and an autoencoder that halves
    assert FAMILY.default_size(pipeline) == (16, 16)
    assert FAMILY.size_multiple(pipeline) == 4


def test_latents_are_shifted_and_scaled():
    pipeline = build()
    pipeline.vae.register_to_config(shift_factor=0.5, scaling_factor=2.0)
    image = {"mean": torch.full((1, 4, 1, 1), 3.0), "std": torch.full((1, 4, 1, 1), 0.25)}
    # (3 + 0.25 * (-2) - 0.5) * 2 = 4
    torch.testing.assert_close(
        FAMILY.clean(pipeline, image, torch.full((1, 4, 1, 1), -2.0)), torch.full((1, 4, 1, 1), 4.0)
    )
