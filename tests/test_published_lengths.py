"""Prompts at the lengths that pipelines have of their own, where the tiny ones are built with shorter ones."""

import pytest
import torch
from diffusers import DiffusionPipeline

from .cases import CASES, PROMPTS

HUNYUAN = {
    "tokenizer_max_length": 1000, "tokenizer_2_max_length": 256, "prompt_template_encode_start_idx": 108,
    "vision_num_semantic_tokens": 729,
}  # fmt: skip
LENGTHS = {
    "hunyuan_video15": HUNYUAN,
    "hunyuan_video15_image_to_video": HUNYUAN,
    "longcat_image": {"tokenizer_max_length": 512},
}
"""Of the classes of diffusers, by the tiny pipeline that is built with others."""


@pytest.mark.slow
@pytest.mark.parametrize("name", LENGTHS)
def test_the_error_is_that_of_a_second_formula_at_the_published_lengths(tmp_path, name):
    (case,) = (it for it in CASES if it.name == name)
    case.build().save_pretrained(tmp_path / "base")
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "base")
    assert {it: getattr(pipeline, it) for it in LENGTHS[name]} == LENGTHS[name]
    setup = case.setup(tmp_path, pipeline=pipeline)
    assert setup.prompt["embeds"].shape[:2] == (2, LENGTHS[name]["tokenizer_max_length"])
    draw = setup.draw()
    with torch.no_grad():
        expected = case.module.denoising_error(pipeline, case.pixels(), PROMPTS, draw)
    torch.testing.assert_close(setup.errors(draw).policy[0].detach(), expected, rtol=1e-5, atol=1e-5)
