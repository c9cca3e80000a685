"""Prompts on disk are without padding, and rows, errors and gradients are the same bits as with it."""

import pytest
import torch
from safetensors.torch import load_file

from tgo_trl.data.encoded import encode_prompts
from tgo_trl.policy.encoders import FrozenEncoders
from tgo_trl.storage import shards
from tgo_trl.storage.shards import ShardWriter

from .cases import CASES, PROMPTS, perturb
from .runs import assert_equal, logged, make_trainer, trained_weights

IGNORED = ("hunyuan_video15", "hunyuan_video15_image_to_video", "krea2", "lumina2", "sana")
"""Whose text encoders say something where there is no prompt."""


def case_of(name):
    return next(case for case in CASES if case.name == name)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_row_is_what_was_encoded(tmp_path, case):
    pipeline = case.build()
    frozen = FrozenEncoders(case.family(pipeline), pipeline, torch.device("cpu"), torch.bfloat16)
    if frozen.family.prompts_see_sources:
        pytest.skip("there are no prompts without sources, with which tests/test_qwen_image_edit.py has them")
    writer = ShardWriter(tmp_path, 0, 1, lambda: None, progress=False)
    read = encode_prompts(dict(enumerate(PROMPTS)), frozen, writer, 2, "training")
    expected = frozen.prompts(PROMPTS)
    if case.name.split("-")[0] in IGNORED:
        seen = expected["mask"].bool()
        assert expected["embeds"][~seen].any()
        expected["embeds"] = expected["embeds"] * seen[..., None]
    for index in range(2):
        assert_equal(read[index], {name: tensor[index] for name, tensor in expected.items()})
    (path,) = tmp_path.glob("*.safetensors")
    stored = load_file(path)
    ends = [1 + max(it.any(1).nonzero().flatten().tolist()) for it in expected["embeds"]]
    if min(ends) == expected["embeds"].shape[1]:
        assert stored["embeds"].shape == expected["embeds"].shape
    else:
        assert stored["embeds/lengths"].tolist() == ends
        assert len(stored["embeds/values"]) == sum(ends)
    if case.name in (*IGNORED, "qwen_image", "qwen_image21"):  # others fill what they have, have no mask, or no end
        assert ends == expected["mask"].sum(1).tolist()
        assert min(ends) < expected["embeds"].shape[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", IGNORED)
def test_networks_see_nothing_of_padding(tmp_path, name, dtype):
    setup = case_of(name).setup(tmp_path, dtype)
    perturb(setup.policy)
    prompt = setup.prompt
    results = []
    for embeds in (prompt["embeds"], prompt["embeds"] * prompt["mask"][..., None], prompt["embeds"] * 1.5):
        setup.prompt["embeds"] = embeds
        setup.policy.zero_grad()
        errors = setup.errors()
        errors.policy.sum().backward()
        gradients = {key: weight.grad for key, weight in setup.policy.named_parameters() if weight.grad is not None}
        results.append((errors.policy.detach(), errors.reference, gradients))
    assert_equal(results[1], results[0])
    assert not torch.equal(results[2][0], results[0][0])


@pytest.mark.parametrize("name", ["sana", pytest.param("qwen_image", marks=pytest.mark.slow)])
def test_a_run_is_the_same_bits_with_prompts_that_were_stored_with_padding(tmp_path, monkeypatch, name):
    case = case_of(name)
    results = []
    for kind in ("without", "with"):
        if kind == "with":
            monkeypatch.setattr(shards, "without_padding", dict)
            monkeypatch.setattr(type(case.family(case.build())), "ignores_padding", False)
        args = case.config(tmp_path / kind, gradient_checkpointing=False)
        trainer = make_trainer(args, model=case.build(), train_dataset=case.rows(8))
        trainer.train()
        results.append((logged(trainer), trained_weights(trainer)))
    assert_equal(results[1], results[0])
