"""Which modules get an adapter, as in TRL, and what is said of those that cannot."""

import pytest
from peft import LoraConfig

from tgo_trl import TGOConfig
from tgo_trl.policy.targets import find_targets

from . import tiny
from .runs import config, make_trainer, trained_weights


def adapted(trainer):
    """Last parts of the names of what got an adapter, and how many."""
    names = [name for name in trained_weights(trainer) if "lora_B" in name]
    return {name.partition(".lora_B")[0].rpartition(".")[2] for name in names}, len(names)


@pytest.mark.parametrize(
    ("given", "ends", "number"),
    [
        ("to_q", "to_q", 8),
        (["to_q"], "to_q", 8),
        (("to_q", "to_k"), "to_k to_q", 16),
        ("attn1.to_out.0", "0", 4),
        (r".*attn1\.to_[qkv]", "to_k to_q to_v", 12),
        ([r".*attn1\.to_[qk]"], "to_k to_q", 8),
        (r"down_blocks\.1.*(to_q|conv1)", "conv1 to_q", 3),
        ("conv_in", "conv_in", 1),
    ],
    ids=str,
)
def test_names_and_expressions(tmp_path, given, ends, number):
    trainer = make_trainer(config(tmp_path, lora_target_modules=given))
    assert adapted(trainer) == (set(ends.split()), number)


def test_all_linear_layers(tmp_path):
    ends, number = adapted(make_trainer(config(tmp_path, lora_target_modules="all-linear")))
    assert {"to_q", "time_emb_proj", "linear_1", "proj"} <= ends
    assert adapted(make_trainer(config(tmp_path, lora_target_modules=["all-linear"]))) == (ends, number)
    of_peft = LoraConfig(r=4, target_modules="all-linear")
    assert adapted(make_trainer(config(tmp_path), peft_config=of_peft)) == (ends, number)
    assert of_peft.target_modules == "all-linear"  # the user's own is left as it is


def test_a_configuration_of_pefts_may_name_them_too(tmp_path):
    trainer = make_trainer(config(tmp_path), peft_config=LoraConfig(r=2, target_modules="to_q"))
    assert adapted(trainer) == ({"to_q"}, 8)


WRONG = {
    "letters": ("to_p", "has 'to_p', which fits no module of `unet`.*Did you mean 'to_"),
    "one of several": (["to_q", "to_kk"], "has 'to_kk', which fits no module.*Did you mean 'to_k'"),
    "commas": ("to_q,to_k", "has 'to_q,to_k'.*Did you mean 'to_q' or .*'to_k'"),
    "of a language model": (["q_proj", "v_proj"], "has 'q_proj', which.*linear layers are called .*to_out.0"),
    "an expression among names": (["to_q", r".*to_k"], r"has '\.\*to_k', which fits no module"),
    "a part of a name as an expression": ("attn1.to_", "has 'attn1.to_', which fits no module"),
    "containers": (r".*attn1.*", r"fits `.*attn1` of `unet`, a `Attention`. Adapters are put on linear layers"),
    "a norm": ("norm1", "fits `.*norm1` of `unet`, a `.*Norm`"),
    "no expression": ("to_(q", r"neither the name of modules of `unet` nor a regular expression \(missing \)"),
}


@pytest.mark.parametrize(("given", "message"), WRONG.values(), ids=WRONG)
def test_what_fits_nothing_is_refused_before_anything_is_encoded(tmp_path, given, message):
    pipeline = tiny.stable_diffusion()
    with pytest.raises(ValueError, match=f"(?s)`lora_target_modules` .*{message}"):
        make_trainer(config(tmp_path, lora_target_modules=given), model=pipeline)
    assert not (tmp_path / "cache").exists()
    with pytest.raises(ValueError, match=f"(?s)`peft_config.target_modules` .*{message}"):
        make_trainer(config(tmp_path), model=pipeline, peft_config=LoraConfig(target_modules=given))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "is empty"),
        ("", "it must be a name"),
        ([""], "it must be a name"),
        (["to_q", 3], "it must be a name"),
        (True, "is True; it must be a name"),
        ({"to_q": 1}, "it must be a name"),
        (["all-linear", "to_q"], "'all-linear' and other names"),
    ],
    ids=str,
)
def test_what_is_no_list_of_names_is_refused_by_the_configuration(tmp_path, given, message):
    with pytest.raises(ValueError, match=f"`lora_target_modules` .*{message}"):
        TGOConfig(str(tmp_path), use_cpu=True, lora_target_modules=given)


def test_an_adapter_that_is_there_already_does_not_change_the_names():
    network = tiny.stable_diffusion().unet
    every = find_targets("all-linear", network, "unet", [])
    network.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_out.0"]))
    assert find_targets("all-linear", network, "unet", []) == every
    assert find_targets("to_out.0", network, "unet", []) == ["to_out.0"]
    left_out = find_targets("all-linear", network, "unet", ["mid_block"])
    assert left_out == [name for name in every if not name.startswith("mid_block.")]
