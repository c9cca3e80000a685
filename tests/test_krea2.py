"""Krea 2: where the padding of prompts lies, and what Turbo differs in."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from tgo_trl.data.encoded import encode_prompts
from tgo_trl.families import Krea2Family
from tgo_trl.policy.encoders import FrozenEncoders
from tgo_trl.storage.shards import ShardWriter

from .cases import calls_of
from .tiny.krea2 import build

SHORT, LONG = "a cat", "a dog on a hill"  # 5 and 15 letters, each a token, and 5 tokens of the template behind them
FAMILY = Krea2Family(max_sequence_length=24)


@torch.no_grad()
def test_padding_comes_last_and_the_network_gets_it_where_the_pipeline_has_it():
    pipeline, prompts = build(), [SHORT, LONG]
    encoded = FAMILY.encode_prompts(pipeline, prompts)
    embeds, mask = pipeline.encode_prompt(prompts, max_sequence_length=24)
    assert mask.tolist() == [[1] * 5 + [0] * 14 + [1] * 5, [1] * 15 + [0] * 4 + [1] * 5]
    assert encoded["mask"].tolist() == [[1] * 10 + [0] * 14, [1] * 20 + [0] * 4]
    assert encoded["order"][0].tolist() == [*range(5), *range(10, 24), *range(5, 10)]
    assert encoded["embeds"].shape == (2, 24, 2 * 16)
    for row, length in enumerate((5, 15)):
        tokens = torch.cat([embeds[row, :length], embeds[row, -5:]]).flatten(1)
        assert torch.equal(encoded["embeds"][row, : length + 5], tokens)

    networks, time = FAMILY.networks(pipeline), torch.tensor([250.0, 500.0])
    ((call, _),) = calls_of(pipeline.transformer, FAMILY.predict, networks, torch.randn(2, 4, 8, 8), time, encoded)
    assert torch.equal(call["encoder_hidden_states"], embeds)
    assert torch.equal(call["encoder_attention_mask"], mask)
    assert call["timestep"].tolist() == [0.25, 0.5]


def test_no_padding_is_kept_on_disk(tmp_path):
    frozen = FrozenEncoders(FAMILY, build(), torch.device("cpu"), torch.bfloat16)
    writer = ShardWriter(tmp_path, 0, 1, lambda: None, progress=False)
    encode_prompts({0: SHORT, 1: LONG}, frozen, writer, 2, "training")
    (path,) = tmp_path.glob("*.safetensors")
    assert load_file(path)["embeds/values"].shape == (10 + 20, 2 * 16)


def test_guidance_is_told_as_the_pipeline_has_it():
    pipeline = build()
    # f_c + s (f_c - f_0) is f_0 + (1 + s) (f_c - f_0)
    assert FAMILY.guidance(pipeline, None) == 5.5
    assert FAMILY.guidance(pipeline, 0.0) == 1.0
    assert FAMILY.guidance_options(5.5) == {"guidance_scale": 4.5}


def test_turbo_has_one_shift_for_all_sizes():
    raw, turbo = build(), build(is_distilled=True)
    assert [FAMILY.shift(raw, num_tokens, 28) for num_tokens in (256, 6400)] == pytest.approx([0.5, 1.15])
    assert [FAMILY.shift(turbo, num_tokens, 8) for num_tokens in (256, 6400)] == [1.15, 1.15]


def test_turbo_is_known_by_what_it_says_and_by_its_name():
    assert FAMILY.step_distilled_from(build(is_distilled=True)) == "`krea/Krea-2-Raw`"
    for name, base in (("krea/Krea-2-Turbo", "`krea/Krea-2-Raw`"), ("krea/Krea-2-Raw", None)):
        assert FAMILY.step_distilled_from(SimpleNamespace(config={"_name_or_path": name})) == base


def test_what_cannot_be_trained_is_refused():
    pipeline = build()
    FAMILY.check(pipeline)
    with pytest.raises(
        ValueError, match="`max_sequence_length` is 5, of which the template behind each prompt takes 5"
    ):
        Krea2Family(max_sequence_length=5).check(pipeline)
    pipeline.register_to_config(patch_size=1)
    with pytest.raises(ValueError, match="has `patch_size=1`, and `Krea2Family` packs two by two latents"):
        FAMILY.check(pipeline)
