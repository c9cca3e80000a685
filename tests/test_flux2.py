"""FLUX.2 [dev] beside [klein]: the guidance that it is told, and the system message before its prompts."""

import pytest
import torch

from tgo_trl.families import Flux2DevFamily, Flux2KleinFamily

from .cases import calls_of
from .runs import config, make_trainer
from .tiny import flux2, scored_rows
from .tiny.flux2_dev import LENGTH, build


def guidance_of(family, pipeline):
    """What one call of the network is told of two rows."""
    latents = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    conditions = {"embeds": torch.zeros(2, LENGTH, 48)}
    networks = {"transformer": pipeline.transformer}
    ((call, _),) = calls_of(
        pipeline.transformer, family.predict, networks, latents, torch.tensor([500.0, 100.0]), conditions
    )
    return call["guidance"]


def test_dev_is_told_its_guidance_and_klein_is_not():
    pipeline = build()
    assert torch.equal(guidance_of(Flux2DevFamily(), pipeline), torch.tensor([4.0, 4.0]))  # of the pipeline's call
    told = Flux2DevFamily(train_guidance_scale=2.5)
    assert torch.equal(guidance_of(told, pipeline), torch.tensor([2.5, 2.5]))
    assert told.guidance_options(told.guidance(pipeline, None)) == {"guidance_scale": 2.5}
    assert guidance_of(Flux2KleinFamily(), flux2.build()) is None


def test_a_guidance_beside_the_one_that_dev_is_told_is_refused():
    with pytest.raises(ValueError, match=r"`sample_guidance_scale` is 3.0, and this network takes its guidance as an"):
        Flux2DevFamily().guidance(build(), 3.0)
    with pytest.raises(ValueError, match=r"`train_guidance_scale` is 3.0, but this network takes no guidance"):
        Flux2DevFamily(train_guidance_scale=3.0).check(build(guidance_embeds=False))


def test_prompts_need_room_behind_the_system_message(tmp_path):
    """It takes 31 tokens here, 29 of the message and 2 around an empty prompt."""
    pipeline = build()
    Flux2DevFamily(max_sequence_length=32).check(pipeline)
    with pytest.raises(
        ValueError, match=r"`max_sequence_length` is 31, and what the pipeline puts .* takes 31 tokens alone: prompts"
    ):
        Flux2DevFamily(max_sequence_length=31).check(pipeline)
    embeds = [
        Flux2DevFamily(max_sequence_length=length).encode_prompts(pipeline, ["a red cat", "by the sea"])["embeds"]
        for length in (30, 32)
    ]
    torch.testing.assert_close(*embeds[0])  # why it is refused
    assert (embeds[1][0] - embeds[1][1]).abs().max() > 1
    args = config(tmp_path, resolution=16, max_sequence_length=16)
    with pytest.raises(ValueError, match="prompts would be cut away"):
        make_trainer(args, model=pipeline, train_dataset=scored_rows(4))


def test_prompts_of_klein_need_room_in_their_template():
    """`<|im_start|>user\\n<|im_end|>\\n<|im_start|>assistant\\n` are 3, 2 and 3 tokens."""
    pipeline = flux2.build()
    Flux2KleinFamily(max_sequence_length=9).check(pipeline)
    with pytest.raises(ValueError, match=r"is 8, and what the pipeline puts .* takes 8 tokens alone: prompts would"):
        Flux2KleinFamily(max_sequence_length=8).check(pipeline)


@pytest.mark.parametrize(
    ("module", "is_known"),
    [
        ("transformer_blocks.0.attn.to_out.0", True),
        ("single_transformer_blocks.0.attn.to_qkv_mlp_proj", True),
        ("transformer_blocks.0.ff_context.linear_in", True),
        ("x_embedder", True),
        ("double_stream_modulation_img.linear", False),
        ("time_guidance_embed.timestep_embedder.linear_1", False),
    ],
)
def test_comfyui_knows_blocks_and_what_leads_into_them(module, is_known):
    """As `flux_to_diffusers` in ComfyUI's comfy/utils.py maps them."""
    assert dict(build().transformer.named_modules())[module] is not None
    assert Flux2DevFamily().comfyui_module(module) == (module if is_known else None)
