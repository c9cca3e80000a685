"""LongCat-Image: prompts as they are, and guidance that makes nothing longer."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tgo_trl.families import LongCatImageFamily
from tgo_trl.policy.loading import attach_adapter

from .cases import calls_of
from .test_generation import save_adapter
from .tiny.longcat_image import CALL, RESOLUTION, build

SHORT, LONG = "a cat", "a dog on a hill"
FAMILY = LongCatImageFamily()


@pytest.fixture(scope="module")
def pipeline():
    return build()


@torch.no_grad()
def test_the_network_is_told_places_that_go_on_behind_the_prompt(pipeline):
    prompt, latents = {"embeds": torch.randn(1, 3, 16)}, torch.randn(1, 16, 4, 6)
    networks, time = FAMILY.networks(pipeline), torch.tensor([250.0])
    ((call, _),) = calls_of(pipeline.transformer, FAMILY.predict, networks, latents, time, prompt)
    assert call["txt_ids"].tolist() == [[0, 0, 0], [0, 1, 1], [0, 2, 2]]
    assert call["img_ids"].tolist() == [[1, 3, 3], [1, 3, 4], [1, 3, 5], [1, 4, 3], [1, 4, 4], [1, 4, 5]]
    assert call["timestep"].tolist() == [0.25]


def test_guidance_makes_no_token_longer_than_it_is_with_the_prompt():
    # f_0 + 2 (1 - f_0), in tokens of two by two latents of one channel: 2 where f_0 is 0, and 0.5 where it is 1.5
    with_prompt, without = torch.ones(1, 1, 2, 4), torch.tensor([0.0, 0.0, 1.5, 1.5]).expand(1, 1, 2, 4)
    guided = FAMILY.guided(with_prompt, without, 2.0)
    torch.testing.assert_close(guided[0, 0], torch.tensor([1.0, 1.0, 0.5, 0.5]).expand(2, 4))


def test_samples_of_several_prompts_are_those_of_each_without_another_prompt_written(pipeline, monkeypatch):
    monkeypatch.setattr(pipeline, "rewire_prompt", lambda *_: pytest.fail("another prompt was written"))
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    size = (RESOLUTION, RESOLUTION)
    ours = FAMILY.sample(pipeline, [SHORT, LONG], generators, size, num_inference_steps=2, guidance_scale=2.0)
    for row, prompt in enumerate((SHORT, LONG)):
        theirs = pipeline(prompt, generator=torch.Generator().manual_seed(row), **CALL).images[0]
        assert np.abs(np.asarray(theirs, int) - np.asarray(ours[row], int)).max() <= 1


def test_an_adapter_of_a_larger_network_is_refused(tmp_path):
    """Its network reads adapters itself, and passes over what fits nothing."""
    save_adapter(build(), tmp_path / "adapter", FAMILY)
    path = tmp_path / "adapter" / "pytorch_lora_weights.safetensors"
    state = load_file(path)
    renamed = {
        key.replace("single_transformer_blocks.0", "single_transformer_blocks.7"): value for key, value in state.items()
    }
    missing = sum(key not in state for key in renamed)
    assert 0 < missing < len(state)
    save_file(renamed, path)
    with pytest.raises(
        ValueError, match=f"{missing} of {len(state)} weights fit nothing in this `LongCatImagePipeline`"
    ):
        attach_adapter(build(), FAMILY, str(path.parent))
