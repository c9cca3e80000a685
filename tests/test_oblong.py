"""Samples that are no squares, from sources of yet another shape: the network is called as the pipeline calls it."""

import pytest
import torch

from tgo_trl.media.images import image_to_tensor
from tgo_trl.media.sizes import crop_geometry

from .cases import CASES, PROMPTS, calls_of
from .test_contract import assert_same_call, first_tensor
from .tiny import picture

SET_BY_SIZES = {
    "prompt",
    "image",
    "height",
    "width",
    "num_frames",
    "max_sequence_length",
    "max_area",
    "output_resolution",
    "_auto_resize",
}


def encode(case, family, pipeline, size):
    """A row's image, wider than high, its prompt, and its sources as they are given to the pipeline."""
    frames = () if case.num_frames is None else (case.num_frames,)
    image = family.encode_images(pipeline, torch.zeros(1, 3, *frames, *size), crop_geometry(size, size).expand(1, -1))
    if case.sources is None:
        return image, family.encode_prompts(pipeline, PROMPTS[:1]), {}
    sources = [picture(90 + i, (50, 37)) for i in range(len(case.sources[0]))]
    pixels = torch.stack([image_to_tensor(source, size) for source in sources])[None]
    image |= family.encode_sources(pipeline, pixels)
    if family.prompts_see_sources:
        return image, family.encode_edits(pipeline, PROMPTS[:1], pixels), {"sources": [sources]}
    return image, family.encode_prompts(pipeline, PROMPTS[:1]), {"sources": [sources]}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_network_is_called_as_the_pipeline_calls_it(case):
    pipeline = case.build()
    family = case.family(pipeline).fitted_to(pipeline)
    size = getattr(case.module, "OBLONG", (case.module.RESOLUTION, 2 * case.module.RESOLUTION))
    with torch.no_grad():
        image, prompt, sources = encode(case, family, pipeline, size)
    conditions, networks = family.conditions(pipeline, image, prompt), family.networks(pipeline)
    arguments = {**case.module.CALL, **case.module.UNGUIDED, **sources}
    arguments = {name: value for name, value in arguments.items() if name not in SET_BY_SIZES}
    is_like_training = getattr(case.module, "is_like_training", lambda call: True)
    for network in networks.values():
        generators = [torch.Generator().manual_seed(0)]
        calls = calls_of(network, family.sample, pipeline, PROMPTS[:1], generators, size, **arguments)
        calls = [(call, output) for call, output in calls if is_like_training(call)]
        assert calls
        for call, output in calls:
            corrupted, time = case.module.read_call(call, family.latent_shape(image))
            ours = calls_of(network, family.predict, networks, corrupted, time, conditions)
            assert_same_call(ours[0][0], call, getattr(case.module, "UNSEEN", ()))
            torch.testing.assert_close(first_tensor(ours[0][1]), first_tensor(output))
