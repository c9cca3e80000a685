"""Chroma: which tokens of a prompt its network is told to look at, also where blocks are recomputed."""

from types import SimpleNamespace

import pytest
import torch

from tgo_trl.families import ChromaFamily

from .cases import calls_of
from .tiny.chroma import build


def test_the_mask_has_the_first_of_the_padding():
    pipeline = build()
    encoded = ChromaFamily(max_sequence_length=12).encode_prompts(pipeline, ["cat", "a cat on it"])
    # a start, 3 letters and an end; and 11 letters with a start, which are cut to 11 and an end
    assert encoded["mask"].tolist() == [[1] * 6 + [0] * 6, [1] * 12]
    assert encoded["embeds"].shape == (2, 12, 32)


def test_flash_is_known_by_its_name():
    pipeline = SimpleNamespace(config={"_name_or_path": "lodestones/Chroma1-Flash"})
    assert ChromaFamily().step_distilled_from(pipeline) == "`lodestones/Chroma1-HD`"


@pytest.mark.parametrize("every", [1, 2])
def test_blocks_are_recomputed_with_the_mask_of_each_call(every):
    pipeline, family = build(), ChromaFamily(max_sequence_length=12)
    networks, time = family.networks(pipeline), torch.tensor([500.0])
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    prompts = [family.encode_prompts(pipeline, [prompt]) for prompt in ("cat", "a cat on it")]
    expected = [family.predict(networks, latents, time, prompt) for prompt in prompts]
    pipeline.transformer.train()
    family.enable_gradient_checkpointing(pipeline.transformer, every)
    for prompt, prediction in zip(prompts, expected, strict=True):
        found = family.predict(networks, latents, time, prompt)
        torch.testing.assert_close(found, prediction)
    (arguments, _), *_ = calls_of(pipeline.transformer, family.predict, networks, latents, time, prompts[0])
    assert arguments["attention_mask"].tolist() == [[1] * 6 + [0] * 6 + [1] * 16]
