"""Which of DeepSpeed's configurations are taken, and what is refused of them, without DeepSpeed itself."""

import copy
import importlib.metadata

import pytest
import torch
from accelerate.utils import DeepSpeedPlugin

from benchmarks import memory_table
from tgo_trl import TGOTrainer
from tgo_trl.policy.deepspeed_config import check_deepspeed
from tgo_trl.policy.deepspeed_numbers import settle, width_of
from tgo_trl.policy.launch import check_strategy
from tgo_trl.trainer.feasibility import check_run

from . import tiny
from .runs import config
from .sharded_runs import DOCUMENTED

ZERO2 = {
    "zero_optimization": {"stage": 2}, "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto",
}  # fmt: skip
ZERO3 = {"zero_optimization": {"stage": 3}}


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({"zero_optimization": {"stage": 1}}, {}, "`zero_optimization.stage` is 1: gradients would be whole"),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}, {},
            "`zero_optimization.offload_optimizer.device` is 'cpu': a step reads the weights on the device",
        ),
        (
            {"zero_optimization": {"stage": 2, "round_robin_gradients": True}}, {},
            "`zero_optimization.round_robin_gradients` is True: it was not tried. Set it to false, or leave it out.",
        ),
        ({"zero_optimization": {"stage": 2, "overlap_comm": "auto"}}, {}, "overlap_comm` is 'auto': nobody puts a"),
        ({"activation_checkpointing": {"number_checkpoints": 2}}, {}, "is 2: blocks are recomputed by diffusers"),
        ({"fp16": {"fp16_master_weights_and_grads": True, "enabled": True}}, {}, "master.*: it was not tried. Leave"),
        ({"fp16": {"enabled": True}}, {}, "`fp16.enabled` is True: gradients .* were not scaled"),
        ({"optimizer": {"type": "Adam"}}, {}, "`optimizer.type` is 'Adam': `optim` is 'adamw_torch.*Leave `optim"),
        ({"optimizer": {"type": "AdamW"}}, {"optim": "sgd"}, "`optimizer.type` is 'AdamW': `optim` is 'sgd'"),
        (
            {"optimizer": {"type": "AdamW", "params": {"lr": 1.0, "betas": [0.9, 0.999]}}}, {},
            "here:\n- `optimizer.params.lr` is 1.0: `learning_rate` is 0.01. Leave it out, or set it to 'auto'.$",
        ),
        ({"optimizer": {"type": "AdamW", "params": {"foreach": True}}}, {}, "`optimizer.params.foreach` is True: the"),
        (
            {"scheduler": {"type": "WarmupDecayLR", "params": {"total_num_steps": "auto"}}}, {},
            "here:\n- `scheduler.type` is 'WarmupDecayLR': .* out, and set `lr_scheduler_type='linear'` .* for one.$",
        ),
        ({"gradient_clipping": 0.3}, {}, "`gradient_clipping` is 0.3: `max_grad_norm` is 1.0. Set it to 'auto'"),
        ({"bf16": {"enabled": True}}, {}, "`bf16.enabled` is True: `bf16` is False"),
        ({"train_micro_batch_size_per_gpu": 3}, {}, "is 3: `per_device_train_batch_size` is 4"),
        ({}, {"optim": "adafactor"}, "DeepSpeed is asked for, and `optim` is .*adafactor.*: it was not tried"),
        ({}, {}, "DeepSpeed is asked for, and the run is on the CPU, where accelerate would replicate"),
        (ZERO3, {}, "DeepSpeed is asked for, and the run is on the CPU, where accelerate would replicate"),
        (
            {"zero_optimization": {"stage": 3, "stage3_max_live_parameters": "auto"}}, {},
            "`zero_optimization.stage3_max_live_parameters` is 'auto': nobody puts a value for that. Set one",
        ),
        (
            {"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 2}}, {},
            "`zero_optimization.zero_hpz_partition_size` is 2: it was not tried",
        ),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}}, {},
            "`zero_optimization.offload_param.device` is 'cpu': a step reads the weights on the device",
        ),
        ({"scheduler": None, "optimizer": None}, {}, "DeepSpeed is asked for, and the run is on the CPU"),
        ({"zero_optimization": {}}, {}, "`zero_optimization.stage` is None: gradients would be whole"),
        ({"zero_optimization": None}, {}, "`zero_optimization.stage` is None: gradients .* Set it to 2 or 3"),
        (
            {"optimizer": {"type": "AdamW", "params": {"torch_adam": False, "adam_w_mode": True}}}, {},
            "here:\n- `optimizer.params.torch_adam` is False: the optimizer is that of the settings. Leave it out.$",
        ),
        (
            {"checkpoint": {"use_node_local_storage": True}}, {},
            "storage` is True: `save_on_each_node` asks for that, and it was not tried. Leave it out.$",
        ),
        (ZERO3, {"speed": "auto"}, "`speed` is 'auto': what DeepSpeed keeps in memory is not known here"),
        (ZERO3, {"push_to_hub": True}, "`hub_strategy` is .*every_save.*: only the main process pushes"),
    ],
)  # fmt: skip
def test_what_deepspeed_cannot_do_is_refused_by_name(tmp_path, monkeypatch, changes, settings, message):
    """Before a model is loaded: there is none of this name."""
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.19.8")
    args = config(tmp_path, **settings)
    args.deepspeed, args.deepspeed_plugin = "zero2.json", DeepSpeedPlugin(hf_ds_config={**ZERO2, **changes})
    with pytest.raises(ValueError, match=message):
        TGOTrainer("no/such-model", args, tiny.scored_rows(8))


def test_all_that_deepspeed_cannot_do_is_named_at_once(tmp_path):
    """A file as accelerate's documentation has it for a language model, on two points of which the settings differ."""
    changes = {
        "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": "auto"}},
        "gradient_clipping": 0.3,
        "zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}, "offload_optimizer": {"device": "cpu"}},
    }
    args = config(tmp_path)
    args.deepspeed, args.deepspeed_plugin = "zero3.json", DeepSpeedPlugin(hf_ds_config={**DOCUMENTED[3], **changes})
    with pytest.raises(ValueError, match="asks for what cannot be done here") as error:
        check_strategy(args)
    named = [line.split("`")[1] for line in str(error.value).splitlines()[1:]]
    offloads = [f"zero_optimization.offload_{it}.device" for it in ("param", "optimizer")]
    assert named == [*offloads, "gradient_clipping", "scheduler.type"]


@pytest.mark.parametrize("stage", DOCUMENTED)
def test_files_of_the_documentation_of_transformers_are_taken(tmp_path, monkeypatch, stage):
    """Up to the point where there is no GPU; the optimizer is to be made by one of the two."""
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.19.8")
    args = config(tmp_path)
    plugin = DeepSpeedPlugin(hf_ds_config=copy.deepcopy(DOCUMENTED[stage]))
    args.deepspeed, args.deepspeed_plugin = "zero.json", plugin
    check_deepspeed(args)
    plugin.hf_ds_config.config |= {
        "amp": {"enabled": False}, "dump_state": False, "activation_checkpointing": {"partition_activations": False},
        "zero_optimization": {**plugin.hf_ds_config.config["zero_optimization"], "offload_optimizer": None},
    }  # fmt: skip
    check_deepspeed(args)  # what is off is as if it were left out
    with pytest.raises(ValueError, match="`optimizer_cls_and_kwargs` was passed, and DeepSpeed's configuration has an"):
        check_run(args, (None, None), (torch.optim.AdamW, {"lr": 1e-4}))


def test_what_is_left_to_the_weights_is_what_transformers_makes_of_a_width():
    """Transformer blocks of the UNet are 16 wide, with layers of 64 and 128 within; those of time have 32."""
    network = tiny.stable_diffusion().unet
    assert width_of(network) == max(network.config.block_out_channels) == 16
    configuration = copy.deepcopy(DOCUMENTED[3]) | {"scheduler": {"type": "WarmupLR"}}
    settle(configuration, [network], 1000)
    assert not configuration.keys() & {"optimizer", "scheduler"}
    changed = {
        "reduce_bucket_size": 256, "stage3_prefetch_bucket_size": 230, "stage3_param_persistence_threshold": 160,
        "stage3_gather_16bit_weights_on_model_save": False,
    }  # fmt: skip
    assert configuration["zero_optimization"] == DOCUMENTED[3]["zero_optimization"] | changed
    given = {"zero_optimization": {"stage": 3, "stage3_prefetch_bucket_size": 7}}
    settle(given, [network], 1000)
    assert given["zero_optimization"] == {"stage": 3, "stage3_prefetch_bucket_size": 7, "reduce_bucket_size": 1000}


@pytest.mark.parametrize(("name", "width"), [("sd15", 1280), ("flux", 3072), ("chroma", 3072)])
def test_the_width_of_published_models_is_that_of_their_blocks(name, width):
    """Chroma has layers of 5120 in no block."""
    with torch.device("meta"):
        assert width_of(memory_table.CASES[name].build()) == width


def test_encoders_are_not_sharded_when_they_are_loaded(tmp_path, monkeypatch):
    args = config(tmp_path)
    args.deepspeed, args.deepspeed_plugin = "zero3.json", DeepSpeedPlugin(hf_ds_config={**ZERO2, **ZERO3})
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO3_INIT", "true")
    with pytest.raises(ValueError, match="`zero3_init_flag` of accelerate's configuration is on: text encoders"):
        check_strategy(args)


@pytest.mark.parametrize(("version", "found"), [("0.16.4", "0.16.4 is installed"), (None, "there is none")])
def test_a_deepspeed_that_was_not_tried_is_refused(tmp_path, monkeypatch, version, found):
    def installed(name):
        if version is None:
            raise importlib.metadata.PackageNotFoundError
        return version

    args = config(tmp_path)
    args.deepspeed, args.deepspeed_plugin = "zero2.json", DeepSpeedPlugin(hf_ds_config=ZERO2)
    monkeypatch.setattr(importlib.metadata, "version", installed)
    with pytest.raises(ValueError, match=f"and {found}. Install `tgo_trl"):
        check_strategy(args)
