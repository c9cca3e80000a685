"""Networks that stock diffusers would not have: unwrapped, or refused before anything is encoded or written."""

import copy
import logging

import pytest
import torch
from accelerate import Accelerator
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from diffusers import FasterCacheConfig, FirstBlockCacheConfig
from diffusers.hooks import apply_layerwise_casting
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0, CustomDiffusionAttnProcessor2_0
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.utils import parametrizations, prune

from tgo_trl.families import StableDiffusionFamily
from tgo_trl.policy import alterations
from tgo_trl.policy.alterations import check_networks, check_saved_names, plain_network, unwrapped

from . import tiny
from .cases import CASES
from .runs import assert_equal, config, make_trainer, trained_weights
from .test_trainer import with_trained_adapter
from .tiny import flux, wan

BLOCK = "down_blocks.1.attentions.0.transformer_blocks.0"


def drawn(pipeline):
    generator = torch.Generator().manual_seed(0)
    output = pipeline("a red cat", height=16, width=16, num_inference_steps=2, generator=generator, output_type="np")
    return output.images


def attention(pipeline):
    return pipeline.unet.get_submodule(f"{BLOCK}.attn1")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_network_as_it_is_loaded_is_what_it_seems(case, caplog):
    pipeline = case.build()
    family = case.family(pipeline)
    check_networks(pipeline, family, trains_adapter=True)
    assert [record for record in caplog.records if record.name.startswith("tgo_trl")] == []
    for network in family.networks(pipeline).values():
        shapes = {name: weight.shape for name, weight in network.state_dict().items()}
        assert {name: weight.shape for name, weight in plain_network(network).state_dict().items()} == shapes


def test_a_plain_network_is_built_once_for_each_configuration():
    one, moved, wide = (
        tiny.stable_diffusion().unet,
        tiny.stable_diffusion(seed=1).unet,
        tiny.stable_diffusion(width=4).unet,
    )
    moved.register_to_config(_name_or_path="elsewhere")
    plain = plain_network(one)
    assert plain_network(moved) is plain
    assert plain_network(wide).conv_in.weight.shape == (4, 4, 3, 3) != plain.conv_in.weight.shape
    for size in range(alterations.NUM_PLAIN + 1):
        one.register_to_config(sample_size=size)
        assert plain_network(one).config.sample_size == size
    assert len(alterations._PLAIN) == alterations.NUM_PLAIN
    one.register_to_config(sample_size=8)
    again = plain_network(one)
    assert again is not plain
    assert {name: weight.shape for name, weight in again.state_dict().items()} == {
        name: weight.shape for name, weight in one.state_dict().items()
    }


# ---- Wrappers ----


@pytest.mark.parametrize(
    "wrap",
    [
        lambda network: torch.compile(network, backend="eager"),
        nn.DataParallel,
        lambda network: nn.DataParallel(torch.compile(network, backend="eager")),
    ],
    ids=["compiled", "data parallel", "both"],
)
def test_a_wrapped_network_is_unwrapped_with_a_word(tmp_path, caplog, wrap):
    plain, pipeline = tiny.stable_diffusion(), tiny.stable_diffusion()
    network = pipeline.unet
    pipeline.unet = wrap(network)
    trainer = make_trainer(config(tmp_path), model=pipeline)
    assert "`pipeline.unet` is wrapped as" in caplog.text
    assert pipeline.unet is network
    trainer.train()
    trainer.save_model()
    plain.load_lora_weights(tmp_path / "out")
    assert_equal(drawn(plain), drawn(pipeline))


@pytest.mark.slow
def test_a_network_that_is_compiled_in_place_or_after_the_trainer_is_made_is_saved_under_its_names(tmp_path):
    pipeline = tiny.stable_diffusion()
    pipeline.unet.compile(backend="eager")
    trainer = make_trainer(config(tmp_path, max_steps=1), model=pipeline)
    pipeline.unet = torch.compile(pipeline.unet, backend="eager")
    trainer.train()
    pipeline.unet = torch.compile(pipeline.unet, backend="eager")
    trainer.save_model()
    stock = tiny.stable_diffusion()
    stock.load_lora_weights(tmp_path / "out")
    assert_equal(drawn(stock), drawn(pipeline))


def test_a_compiled_reference_is_unwrapped(tmp_path):
    reference = torch.compile(tiny.stable_diffusion(seed=1).unet, backend="eager")
    trainer = make_trainer(config(tmp_path), ref_model=reference)
    assert trainer.reference.model.networks["unet"] is unwrapped(reference)


# ---- Refused ----


class ToMeBlock(nn.Module):
    """As tomesd makes one: a class that derives from the block's."""


def merge_tokens(pipeline):
    block = pipeline.unet.get_submodule(BLOCK)
    block.__class__ = type("ToMeBlock", (type(block),), {})


def skip_blocks(pipeline):
    block = pipeline.unet.get_submodule(BLOCK)
    forward = block.forward
    block.forward = lambda *args, **kwargs: forward(*args, **kwargs)


def fuse(pipeline, unload):
    pipeline.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]), adapter_name="mine")
    pipeline.fuse_lora(components=["unet"])
    if unload:
        pipeline.unload_lora_weights()


class Logging(AttnProcessor2_0):
    """Somebody's own processor."""


ALTERED = {
    "fused projections": (lambda p: p.fuse_qkv_projections(), "has fused projections"),
    "FreeU": (lambda p: p.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4), r"FreeU switched on.*disable_freeu\(\)"),
    "an own processor": (
        lambda p: attention(p).set_processor(Logging()), "attention processor `Logging` instead of `AttnProcessor2_0`",
    ),
    "custom diffusion": (
        lambda p: attention(p).set_processor(CustomDiffusionAttnProcessor2_0(False, False, 8, 8)),
        "attention processor `CustomDiffusionAttnProcessor2_0`",
    ),
    "token merging": (merge_tokens, "is a `ToMeBlock`, where its configuration has a `BasicTransformerBlock`"),
    "another forward": (skip_blocks, "has another `forward` than its class"),
    "prepared": (lambda p: Accelerator(cpu=True, mixed_precision="bf16").prepare_model(p.unet), "another `forward`"),
    "layerwise casting": (
        lambda p: p.unet.enable_layerwise_casting(torch.bfloat16, torch.float32), "has the hooks 'layerwise_casting'",
    ),
    "weight norm": (
        lambda p: parametrizations.weight_norm(attention(p).to_q), "to_q.parametrizations.weight.original0",
    ),
    "old weight norm": (lambda p: nn.utils.weight_norm(attention(p).to_q), "to_q.weight_g"),
    "pruned": (lambda p: prune.random_unstructured(attention(p).to_q, "weight", 0.5), "to_q.weight_orig"),
    "a layer more": (lambda p: attention(p).add_module("extra", nn.Linear(2, 2)), r"attn1\.extra\.bias, "),
    "a layer less": (lambda p: delattr(attention(p), "to_v"), r"attn1\.to_v\.weight"),
    "another width": (lambda p: setattr(p.unet, "conv_in", nn.Conv2d(9, 4, 3, padding=1)), r"conv_in\.weight"),
    "another activation": (lambda p: setattr(p.unet, "conv_act", nn.GELU()), "is a `GELU`, where .* a `SiLU`"),
    "a compiled block": (
        lambda p: setattr(p.unet, "mid_block", torch.compile(p.unet.mid_block, backend="eager")),
        r"mid_block` is wrapped as `OptimizedModule`.*Put `\._orig_mod` of it in its place",
    ),
    "peft": (
        lambda p: setattr(p, "unet", get_peft_model(p.unet, LoraConfig(target_modules=["to_q"]))), "is a `PeftModel`",
    ),
    "peft that was put in and forgotten": (
        lambda p: get_peft_model(p.unet, LoraConfig(target_modules=["to_q"])), "`get_peft_model` put them into it",
    ),
    "a compiled peft": (
        lambda p: setattr(
            p, "unet", torch.compile(get_peft_model(p.unet, LoraConfig(target_modules=["to_q"])), backend="eager")
        ),
        "is a `PeftModel`",
    ),
    "a fused adapter": (lambda p: fuse(p, unload=False), r"has a fused adapter. Call `pipeline.unfuse_lora\(\)`"),
    "an adapter fused for good": (lambda p: fuse(p, unload=True), "adapters 'mine' are fused into the pipeline's"),
}  # fmt: skip


@pytest.mark.parametrize(("alter", "message"), ALTERED.values(), ids=ALTERED)
def test_an_altered_network_is_refused_before_anything_is_encoded(tmp_path, alter, message):
    pipeline = tiny.stable_diffusion()
    alter(pipeline)
    with pytest.raises(ValueError, match=message):
        make_trainer(config(tmp_path), model=pipeline)
    assert not (tmp_path / "cache").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("cache", [FirstBlockCacheConfig(threshold=0.1), FasterCacheConfig()], ids=["block", "faster"])
def test_a_cache_is_refused(cache):
    pipeline = wan.build()
    pipeline.transformer.enable_cache(cache)
    with pytest.raises(ValueError, match=r"which change what it computes while it trains\. (Call `disable_cache|Load)"):
        check_networks(pipeline, tiny_family(pipeline), trains_adapter=True)
    pipeline.transformer.disable_cache()
    check_networks(pipeline, tiny_family(pipeline), trains_adapter=True)


def tiny_family(pipeline):
    return next(case for case in CASES if case.name == "wan").family(pipeline)


def test_fused_projections_of_newer_attention_are_refused_and_undone():
    pipeline = flux.build()
    family = next(case for case in CASES if case.name == "flux").family(pipeline)
    pipeline.transformer.fuse_qkv_projections()
    with pytest.raises(ValueError, match="has fused projections"):
        check_networks(pipeline, family, trains_adapter=True)


def test_what_a_pipeline_is_altered_to_after_the_trainer_is_made_stops_the_training(tmp_path):
    trainer = make_trainer(config(tmp_path))
    trainer.pipeline.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    with pytest.raises(ValueError, match="FreeU switched on"):
        trainer.train()
    trainer.pipeline.disable_freeu()
    trainer.train()


@pytest.mark.parametrize("name", ["vae", "text_encoder"])
def test_layerwise_casting_of_encoders_is_refused(tmp_path, name):
    pipeline = tiny.stable_diffusion()
    apply_layerwise_casting(getattr(pipeline, name), torch.bfloat16, torch.float32)
    with pytest.raises(ValueError, match=f"`pipeline.{name}` has layerwise casting .*Load the pipeline without it"):
        make_trainer(config(tmp_path), model=pipeline)
    assert not (tmp_path / "cache").exists()


# ---- Left alone ----

SAME = {
    "slices": lambda p: p.enable_attention_slicing(1),
    "the eager processor": lambda p: p.unet.set_attn_processor(AttnProcessor()),
    "a backend": lambda p: p.unet.set_attention_backend("native"),
    "hooks that were removed": lambda p: (
        add_hook_to_module(attention(p), ModelHook()), remove_hook_from_module(attention(p)),
    ),
    "channels last": lambda p: p.unet.to(memory_format=torch.channels_last),
    "an adapter": with_trained_adapter,
    "fuse and unfuse": lambda p: (with_trained_adapter(p), p.fuse_lora(components=["unet"]), p.unfuse_lora(["unet"])),
}  # fmt: skip


@pytest.mark.parametrize("alter", SAME.values(), ids=SAME)
def test_what_computes_the_same_is_left_alone(alter, caplog):
    pipeline = tiny.stable_diffusion()
    alter(pipeline)
    check_networks(pipeline, StableDiffusionFamily(), trains_adapter=True)
    assert [record for record in caplog.records if record.name.startswith("tgo_trl")] == []


def test_a_forward_hook_is_warned_of(caplog):
    pipeline = tiny.stable_diffusion()
    attention(pipeline).register_forward_hook(lambda *_: None)
    with caplog.at_level(logging.WARNING):
        check_networks(pipeline, StableDiffusionFamily(), trains_adapter=True)
    assert f"`pipeline.unet` has forward hooks (on {BLOCK}.attn1)" in caplog.text


def test_fused_weights_may_be_trained_as_a_whole():
    pipeline = tiny.stable_diffusion()
    fuse(pipeline, unload=True)
    check_networks(pipeline, StableDiffusionFamily(), trains_adapter=False)


# ---- What is saved ----


@pytest.mark.parametrize("use_peft", [True, False])
def test_names_that_the_plain_network_lacks_are_not_written(tmp_path, use_peft):
    trainer = make_trainer(config(tmp_path, use_peft=use_peft))
    network = trainer.pipeline.unet
    network.mid_block = torch.compile(network.mid_block, backend="eager")
    with pytest.raises(ValueError, match=r"`unet` would be saved with weights that a plain.*mid_block\._orig_mod"):
        trainer.save_model()
    assert not list((tmp_path / "out").rglob("*.safetensors"))


def test_the_names_of_an_adapter_are_those_of_the_plain_network(tmp_path):
    trainer = make_trainer(config(tmp_path))
    network = copy.deepcopy(trainer.pipeline.unet)
    check_saved_names(network, "unet", "default")
    check_saved_names(tiny.stable_diffusion().unet, "unet", None)
    assert trained_weights(trainer)
