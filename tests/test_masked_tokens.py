"""aMUSEd and Meissonic: tokens and what goes with them, sampling, checkpointing and adapters."""

import copy
import json

import pytest
import torch
from diffusers import AmusedInpaintPipeline, AmusedPipeline

from tgo_trl.families import find_family, find_published_family
from tgo_trl.families.amused import AmusedFamily
from tgo_trl.families.meissonic import MeissonicFamily
from tgo_trl.models import MeissonicPipeline
from tgo_trl.noise import MaskedTokenProcess
from tgo_trl.policy.policy import build_policy

from .cases import PROMPTS, perturb
from .runs import config
from .tiny import amused, meissonic

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

BOTH = pytest.mark.parametrize(
    ("family", "tiny"), [(AmusedFamily(), amused), (MeissonicFamily(), meissonic)], ids=["amused", "meissonic"]
)


def pixels(height, width, num_rows=2):
    return torch.rand(num_rows, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


def encode(family, pipeline, images, geometry=(16, 16, 0, 0)):
    with torch.no_grad():
        return family.encode_images(pipeline, images, torch.tensor([geometry]).expand(len(images), -1))


# ---- Tokens ----


@BOTH
def test_images_become_a_grid_of_tokens_that_decodes_to_them(family, tiny):
    pipeline, images = tiny.build(), pixels(12, 20)
    image = encode(family, pipeline, images)
    tokens = family.clean(pipeline, image, torch.empty(0))
    assert (tokens.dtype, tokens.shape) == (torch.int64, (2, 60))  # 6 rows of 10 tokens
    assert family.latent_shape(image) == (60,)
    assert len(tokens.unique()) > 5
    with torch.no_grad():
        shape = (2, 6, 10, pipeline.vqvae.config.latent_channels)
        decoded = pipeline.vqvae.decode(tokens.reshape(2, 6, 10), force_not_quantize=True, shape=shape).sample
        reconstruction = pipeline.vqvae(images / 2 + 0.5).sample
    torch.testing.assert_close(decoded, reconstruction)


@BOTH
def test_the_network_is_told_width_height_top_left_and_a_good_score(family, tiny):
    geometry = (480, 640, 3, 5)  # height, width, top, left
    micro_conds = encode(family, tiny.build(), pixels(16, 16), geometry)["micro_conds"]
    assert micro_conds.dtype == torch.float32
    assert micro_conds.tolist() == [[640, 480, 3, 5, 6.0]] * 2


@BOTH
def test_a_grid_that_is_not_square_is_predicted_as_one(family, tiny):
    pipeline = tiny.build()
    image = encode(family, pipeline, pixels(12, 20))
    with torch.no_grad():
        conditions = {**image, **family.encode_prompts(pipeline, PROMPTS)}
        tokens, networks = family.clean(pipeline, image, torch.empty(0)), family.networks(pipeline)
        logits = family.predict(networks, tokens, torch.tensor([0.3, 0.7]), conditions)
        told = {"timestep": torch.tensor([300.0, 700.0])} if tiny is meissonic else {}
        name = "pooled_projections" if tiny is meissonic else "pooled_text_emb"
        told |= {"micro_conds": image["micro_conds"], name: conditions["pooled"]}
        grid = pipeline.transformer(image["tokens"], encoder_hidden_states=conditions["embeds"], **told)
    assert logits.shape == (2, 60, 31)
    torch.testing.assert_close(logits[1, 23], grid[1, :, 2, 3])  # row 2 of 10 tokens, column 3


@BOTH
def test_sizes_and_the_mask_are_the_networks(family, tiny):
    pipeline = tiny.build()
    family.check(pipeline)
    assert family.default_size(pipeline) == (16, 16)
    assert family.size_multiple(pipeline) == 4  # two tokens of 2 pixels
    assert family.size_multiple(tiny.build(downsample=False, upsample=False)) == 2
    process = family.process(pipeline)
    assert isinstance(process, MaskedTokenProcess)
    assert process.mask_token_id == 31 == pipeline.scheduler.config.mask_token_id


@BOTH
def test_prompts_are_encoded_as_each_alone(family, tiny):
    pipeline = tiny.build()
    with torch.no_grad():
        together = family.encode_prompts(pipeline, [*PROMPTS, "long " * 100])
        alone = family.encode_prompts(pipeline, PROMPTS[1:])
    assert together["embeds"].shape == (3, 77, 32)
    assert together["pooled"].shape == (3, 32)
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name][1], tensor[0])


# ---- Sampling ----


@BOTH
def test_samples_are_drawn_one_per_prompt_each_from_its_own_generator(family, tiny):
    pipeline = tiny.build()

    def sample(prompts, seeds):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        images = family.sample(pipeline, prompts, generators, (12, 20), num_inference_steps=2, guidance_scale=2.0)
        return [(image.size, image.tobytes()) for image in images]

    first, second = sample(PROMPTS, [1, 2])
    assert first[0] == (20, 12)
    assert first != second
    assert sample(PROMPTS[::-1], [2, 1]) == [second, first]
    assert sample(PROMPTS[:1], [1]) == [first]
    assert sample(PROMPTS, [1, 3])[0] == first


# ---- Loading ----


def test_each_prompt_has_its_own_of_a_list_of_negative_prompts():
    """Of aMUSEd, which is called for one prompt after the other."""
    pipeline, family = amused.build(), AmusedFamily()

    def drawn(negative):
        generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
        call = {"negative_prompt": negative, "num_inference_steps": 2, "guidance_scale": 9.0}
        return [image.tobytes() for image in family.sample(pipeline, PROMPTS, generators, (16, 16), **call)]

    first, second = drawn("a"), drawn("a dog on a hill")
    assert drawn(["a", "a dog on a hill"]) == [first[0], second[1]]
    assert first[1] != second[1]


def test_relatives_without_masked_training_rows_are_unknown():
    assert find_family(AmusedPipeline) is AmusedFamily
    with pytest.raises(ValueError, match="No model family is known for `AmusedInpaintPipeline`"):
        find_family(AmusedInpaintPipeline)


def test_a_published_meissonic_is_loaded_by_its_family(tmp_path):
    pipeline = meissonic.build()
    pipeline.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps({**index, "_class_name": "Pipeline"}))
    family = find_published_family("Pipeline")
    assert family is MeissonicFamily
    loaded = family.load(str(tmp_path), torch_dtype=torch.float32)
    assert type(loaded) is MeissonicPipeline
    for name, weight in pipeline.transformer.state_dict().items():
        assert torch.equal(loaded.transformer.state_dict()[name], weight)


# ---- What aMUSEd lacks ----


def amused_policy(tmp_path, pipeline):
    policy, _ = build_policy(pipeline, AmusedFamily(), config(tmp_path), None, torch.float32)
    perturb(policy)
    return policy


def amused_prediction(network):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(31, (2, 8, 8), generator=generator)
    embeds, pooled = torch.randn(2, 77, 32, generator=generator), torch.randn(2, 32, generator=generator)
    micro_conds = torch.tensor([[16.0, 16.0, 0.0, 0.0, 6.0]]).expand(2, -1)
    return network(tokens, encoder_hidden_states=embeds, pooled_text_emb=pooled, micro_conds=micro_conds)


def test_checkpointing_twice_computes_each_block_twice_and_not_more_often(tmp_path):
    pipeline, family = amused.build(), AmusedFamily()
    network = amused_policy(tmp_path, pipeline).networks["transformer"]
    for _ in range(2):
        family.enable_gradient_checkpointing(network)
    blocks = [*network.transformer_layers]
    for part in (network.down_block, network.up_block):
        blocks += [*part.res_blocks, *part.attention_blocks]
    calls = dict.fromkeys(range(len(blocks)), 0)
    for i, block in enumerate(blocks):
        norm = next(module for module in block.modules() if "Norm" in type(module).__name__)
        norm.register_forward_pre_hook(lambda *_, i=i: calls.update({i: calls[i] + 1}))
    with torch.no_grad():
        amused_prediction(network)
    assert set(calls.values()) == {1}
    amused_prediction(network).square().sum().backward()
    # Forward, and again in the backward pass, which does not go as far back as the first block, without an adapter.
    assert list(calls.values()) == [3] * 2 + [2] + [3] * (len(blocks) - 3)


def test_a_copy_of_a_checkpointed_network_has_blocks_of_its_own():
    network = amused.build().transformer
    AmusedFamily().enable_gradient_checkpointing(network)
    expected = amused_prediction(network).detach()
    twin = copy.deepcopy(network)
    perturb(network)
    torch.testing.assert_close(amused_prediction(twin).detach(), expected)
    assert (amused_prediction(network) - expected).abs().max() > 0.1


def test_an_adapter_is_loaded_into_the_network(tmp_path):
    family, pipeline = AmusedFamily(), amused.build()
    family.save_adapter(pipeline, amused_policy(tmp_path, pipeline).adapter_name, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["pytorch_lora_weights.safetensors"]
    assert family.loading_code(pipeline, "me/amused") == (
        'pipeline.transformer.load_lora_adapter("me/amused", prefix=None, '
        'weight_name="pytorch_lora_weights.safetensors")'
    )
