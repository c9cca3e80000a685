"""Settings: defaults, checks, and the command line."""

import dataclasses
import json
import math
import os
from fractions import Fraction

import numpy as np
import pytest
import torch
from transformers import HfArgumentParser, TrainingArguments
from trl import TrlParser

from tgo_trl import TGOConfig
from tgo_trl.parser import SettingsParser
from tgo_trl.precision import default_dtype, has_bfloat16, with_dtypes


@pytest.fixture
def config(tmp_path):
    """Makes a configuration with some settings."""
    return lambda **kwargs: TGOConfig(str(tmp_path), **kwargs)


# ---- Defaults ----


def test_defaults_of_the_paper(config):
    args = config()
    assert (args.beta, args.confidence_coef, args.threshold_type, args.threshold_percentile) == (1, 5, "percentile", 50)
    assert (args.loss_type, args.score_normalization, args.num_likelihood_samples) == ("tgo", "none", 1)
    assert (args.temperature, args.sync_ref_model) == ("auto", False)


def test_lora_learns_at_ten_times_the_rate_of_all_weights(config):
    assert [config(use_peft=it).learning_rate for it in (True, False)] == [1e-4, 1e-5]
    assert [config(use_peft=it, learning_rate=3e-4).learning_rate for it in (True, False)] == [3e-4, 3e-4]


def test_every_setting_has_help_and_is_documented():
    inherited = {field.name for field in dataclasses.fields(TrainingArguments)}
    own = [field for field in dataclasses.fields(TGOConfig) if field.name not in inherited]
    for field in own:
        assert field.metadata["help"]
        assert field.name in TGOConfig.__doc__


def test_bfloat16_is_on_where_the_gpu_has_it(config):
    assert config().bf16 is has_bfloat16()  # so False without a GPU


def test_a_gpu_that_emulates_bfloat16_does_not_have_it(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert not has_bfloat16()
    assert default_dtype(torch.device("cuda")) is torch.float32
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: True)
    assert default_dtype(torch.device("cuda")) is torch.bfloat16


def test_bfloat16_is_off_on_a_cpu_and_beside_fp16(config, monkeypatch):
    monkeypatch.setattr("tgo_trl.trainer.tgo_config.has_bfloat16", lambda: True)
    assert config(use_cpu=True).bf16 is False
    args = config(fp16=True)
    assert (args.fp16, args.bf16) == (True, False)


def test_bfloat16_is_the_users_choice(config):
    assert config(bf16=False).bf16 is False
    assert config(bf16=True, use_cpu=True).bf16 is True


@pytest.mark.parametrize(
    ("launched", "settings", "precision", "says"),
    [
        ("bf16", {"use_cpu": True}, "no", "is 'bf16', and this run is in float32: `bf16` and `fp16` are off"),
        ("bf16", {"bf16": False}, "no", "is 'bf16', and this run is in float32: `bf16` and `fp16` are off"),
        ("bf16", {"fp16": True}, "fp16", "is 'bf16', and this run is in fp16: the settings decide"),
        ("fp16", {"bf16": True, "use_cpu": True}, "bf16", "is 'fp16', and this run is in bf16: the settings decide"),
        ("fp8", {"bf16": False}, "no", "is 'fp8', and this run is in float32"),
        ("bf16", {"bf16": True, "use_cpu": True}, "bf16", None),
        ("no", {"bf16": True, "use_cpu": True}, "bf16", None),
    ],
)
def test_the_settings_decide_the_precision_of_a_launched_run(
    config, monkeypatch, caplog, launched, settings, precision, says
):
    """`accelerate launch` leaves its configuration's in the environment, where transformers would take it from."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    assert config(**settings).mixed_precision == precision
    assert os.environ["ACCELERATE_MIXED_PRECISION"] == launched
    assert [says in record.getMessage() for record in caplog.records] == [True] * (says is not None)


@pytest.mark.parametrize(("launched", "remedy"), [("fp16", "Set `fp16=True`"), ("fp8", "Set it to 'no' there")])
def test_a_launched_precision_that_would_not_be_that_of_open_settings_is_refused(config, monkeypatch, launched, remedy):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    with pytest.raises(ValueError, match=f"configuration is '{launched}', and the settings decide.*{remedy}"):
        config(use_cpu=True)


@pytest.mark.parametrize(("given", "is_on"), [(True, True), ("true", True), ("False", False), ("false", False)])
def test_fsdp_is_a_switch_as_a_word_too(config, given, is_on):
    args = config(fsdp=given)
    assert args.fsdp is is_on
    assert bool(args.fsdp_plugin_args) is is_on


CHECKPOINTING_NAMES = [
    name
    for name in ("gradient_checkpointing", "activation_checkpointing")  # the older and the newer name
    if name in {field.name for field in dataclasses.fields(TrainingArguments)}
]


def test_gradient_checkpointing_is_on(config):
    args = config()
    assert [getattr(args, name) for name in CHECKPOINTING_NAMES] == [True] * len(CHECKPOINTING_NAMES)


@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize("name", CHECKPOINTING_NAMES)
def test_gradient_checkpointing_is_the_users_choice_under_either_name(name, wanted, config):
    args = config(**{name: wanted})
    assert [getattr(args, each) for each in CHECKPOINTING_NAMES] == [wanted] * len(CHECKPOINTING_NAMES)


def test_settings_survive_json(config):
    args = config(temperature=0.01, sample_prompts=["a cat"], threshold_type="value", threshold_value=0.5)
    values = json.loads(json.dumps(args.to_dict()))
    assert (values["temperature"], values["sample_prompts"], values["threshold_value"]) == (0.01, ["a cat"], 0.5)


def test_settings_are_made_again_of_what_is_written_of_them(config):
    by_part = {"unet": torch.bfloat16, "default": torch.float32}
    for kwargs, written in (
        ({"torch_dtype": torch.float16}, {"torch_dtype": "float16"}),
        ({"dtype": torch.bfloat16, "variant": "fp16"}, {"dtype": "bfloat16", "variant": "fp16"}),
        ({"torch_dtype": by_part}, {"torch_dtype": {"unet": "bfloat16", "default": "float32"}}),
        ({"dtype": dict(by_part)}, {"dtype": {"unet": "bfloat16", "default": "float32"}}),
    ):
        args = config(model_init_kwargs=dict(kwargs))
        values = args.to_dict()
        assert args.model_init_kwargs == kwargs  # transformers would write its names into it
        assert (values["model_init_kwargs"], values["hub_token"]) == (written, None)
        again = TGOConfig(**values)
        assert again.to_dict() == values
        assert with_dtypes(again.model_init_dict) == kwargs
    assert config(hub_token="hf_secret").to_dict()["hub_token"] == "***"


@pytest.mark.parametrize("wrong", ["float17", "nn", "int8", "auto", 7, {"unet": "float17"}])
@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_a_dtype_that_is_none_is_refused(name, wrong, config):
    with pytest.raises(ValueError, match=rf"`model_init_kwargs\['{name}'\].*; it must be 'float32', 'bfloat16'"):
        config(model_init_kwargs={name: wrong})


def test_numbers_of_numpy_become_those_of_python(config):
    args = config(
        learning_rate=np.float32(0.5), beta=np.float64(2), seed=np.int64(3), lora_r=np.int32(4), max_steps=np.int64(5),
        adam_beta1=np.float32(0.25), weight_decay=Fraction(1, 4), use_peft=np.bool_(True), save_steps=np.int64(2),
        warmup_steps=np.float32(0.5), time_range=[np.float32(0.25), np.float64(1)], temperature=np.float32(0.125),
        negative_weight=np.float32(2), lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr": np.float32(0.125)},
    )  # fmt: skip
    expected = {
        "learning_rate": 0.5, "beta": 2.0, "seed": 3, "lora_r": 4, "max_steps": 5, "adam_beta1": 0.25,
        "weight_decay": 0.25, "use_peft": True, "save_steps": 2, "warmup_steps": 0.5, "time_range": [0.25, 1.0],
        "temperature": 0.125, "negative_weight": 2.0, "lr_scheduler_kwargs": {"min_lr": 0.125},
    }  # fmt: skip
    for name, value in expected.items():
        assert (getattr(args, name), type(getattr(args, name))) == (value, type(value))
    assert all(type(it) is float for it in (*args.time_range, args.lr_scheduler_kwargs["min_lr"]))
    assert json.loads(args.to_json_string())["seed"] == 3
    assert config(learning_rate=np.float32(0.1)).learning_rate == float(np.float32(0.1))


@pytest.mark.parametrize("settings", [{"dataloader_persistent_workers": True}, {"dataloader_prefetch_factor": 2}])
def test_workers_have_to_be_there(settings, config):
    (name,) = settings
    with pytest.raises(ValueError, match=f"{name}.*dataloader_num_workers"):
        config(**settings)
    assert getattr(config(dataloader_num_workers=1, **settings), name) == settings[name]
    with pytest.raises(ValueError, match="`dataloader_prefetch_factor` is 0; it must be at least 1"):
        config(dataloader_num_workers=1, dataloader_prefetch_factor=0)


def test_paths_and_keyword_arguments(config, tmp_path):
    args = config(model_init_kwargs='{"variant": "fp16"}')
    assert args.output_path == tmp_path
    assert args.model_init_dict == {"variant": "fp16"}
    assert config().model_init_dict is None


# ---- Checks ----


@pytest.mark.parametrize(
    ("name", "given", "choices"),
    [
        ("on_bad_row", "ignore", "'error', 'skip'"),
        ("threshold_type", "median", "'percentile', 'mean', 'value', 'prompt_mean', 'prompt_baseline'"),
        ("score_normalization", "minmax", "'none', 'zscore', 'robust'"),
        ("loss_type", "dpo", "'tgo', 'sft'"),
        ("ref_model_sync_strategy", "step", "'steps', 'epoch'"),
        ("train_sampling_strategy", "group_by_length", "'random', 'sequential'"),
    ],
)
def test_choices(name, given, choices, config):
    with pytest.raises(ValueError, match=f"`{name}` is '{given}'; it must be one of {choices}"):
        config(**{name: given})


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temperature", [0.0, -0.1, math.inf, math.nan, "0", "-1"]),
        ("beta", [0.0, -1.0, math.inf, math.nan]),
        ("num_likelihood_samples", [0, -1]),
        ("ref_model_sync_steps", [0]),
        ("lora_r", [0]),
        ("encode_batch_size", [0]),
        ("sample_steps", [0]),
        ("sample_num_inference_steps", [0]),
        ("resolution", [0, -8]),
    ],
)
def test_numbers_above_zero(name, values, config):
    for value in values:
        with pytest.raises(ValueError, match=rf"`{name}` is {float(value):g}(\.0)?; it must be greater than 0"):
            config(**{name: value})


@pytest.mark.parametrize("value", [-0.1, math.inf, math.nan])
def test_confidence_coef_is_at_least_zero(value, config):
    with pytest.raises(ValueError, match=f"`confidence_coef` is {value}; it must be at least 0"):
        config(confidence_coef=value)
    assert config(confidence_coef=0.0).confidence_coef == 0.0


@pytest.mark.parametrize("value", [-1.0, 100.5, math.nan])
def test_percentile_is_in_percent(value, config):
    with pytest.raises(ValueError, match=f"`threshold_percentile` is {value}; it must be from 0 to 100"):
        config(threshold_percentile=value)
    assert [config(threshold_percentile=edge).threshold_percentile for edge in (0.0, 100.0)] == [0.0, 100.0]


@pytest.mark.parametrize("value", [0.0, -0.1, 1.1, math.nan])
def test_mixup_is_a_share(value, config):
    with pytest.raises(ValueError, match=f"`ref_model_mixup_alpha` is {value}; it must be above 0, up to 1"):
        config(ref_model_mixup_alpha=value)
    assert config(ref_model_mixup_alpha=1.0).ref_model_mixup_alpha == 1.0


@pytest.mark.parametrize(
    "kwargs",
    [
        {"threshold_type": "value"},
        {"threshold_value": 0.5},
        {"threshold_value": 0.0},
        {"threshold_type": "mean", "threshold_value": 0.5},
    ],
)
def test_threshold_value_and_type_go_together(kwargs, config):
    with pytest.raises(ValueError, match="Set both `threshold_type='value'` and `threshold_value`"):
        config(**kwargs)


def test_threshold_value_may_be_zero(config):
    assert config(threshold_type="value", threshold_value=0.0).threshold_value == 0.0


def test_sft_has_no_reference_to_synchronise(config):
    with pytest.raises(ValueError, match="`sync_ref_model=True` has nothing to synchronise"):
        config(loss_type="sft", sync_ref_model=True)
    assert config(loss_type="sft").loss_type == "sft"


# ---- Temperature ----


@pytest.mark.parametrize(
    ("given", "kept"), [("auto", "auto"), (None, "auto"), (0.1, 0.1), ("0.1", 0.1), ("1e-3", 0.001), (1, 1.0)]
)
def test_temperature_is_a_number_or_auto(given, kept, config):
    args = config(temperature=given)
    assert args.temperature == kept
    assert type(args.temperature) is type(kept)


@pytest.mark.parametrize("given", ["soon", "", "Auto"])
def test_temperature_that_is_neither(given, config):
    with pytest.raises(ValueError, match=f"`temperature` is '{given}'; it must be a number or 'auto'"):
        config(temperature=given)


# ---- Command line ----


@pytest.fixture(params=[HfArgumentParser, TrlParser])
def parse(request, tmp_path):
    """Parses arguments with either library's parser."""

    def parse_arguments(*arguments):
        parser = request.param(TGOConfig)
        (args,) = parser.parse_args_into_dataclasses(["--output_dir", str(tmp_path), *arguments])
        return args

    return parse_arguments


def test_command_line_without_settings_gives_the_defaults(parse, config):
    assert parse().to_dict() == config().to_dict()


@pytest.mark.parametrize(("text", "value"), [("0.1", 0.1), ("1e-3", 0.001), ("auto", "auto")])
def test_temperature_on_the_command_line(text, value, parse):
    args = parse("--temperature", text)
    assert args.temperature == value
    assert type(args.temperature) is type(value)


def test_bad_temperature_on_the_command_line(parse):
    with pytest.raises(ValueError, match="`temperature` is 'soon'; it must be a number or 'auto'"):
        parse("--temperature", "soon")


def test_settings_of_every_kind_on_the_command_line(parse):
    args = parse(
        *("--threshold_type", "value", "--threshold_value", "0.5", "--loss_type", "tgo", "--lora_r", "4"),
        *("--sample_prompts", "a red cat", "a blue dog", "--lora_target_modules", "to_q", "to_k"),
        *("--model_init_kwargs", '{"variant": "fp16"}', "--use_peft", "false", "--sync_ref_model"),
        *("--bf16", "false", "--gradient_checkpointing", "false", "--resolution", "512"),
    )
    assert (args.threshold_type, args.threshold_value, args.lora_r, args.resolution) == ("value", 0.5, 4, 512)
    assert (args.sample_prompts, args.lora_target_modules) == (["a red cat", "a blue dog"], ["to_q", "to_k"])
    assert (args.model_init_kwargs, args.use_peft, args.sync_ref_model) == ({"variant": "fp16"}, False, True)
    assert (args.bf16, args.gradient_checkpointing) == (False, False)


def test_unknown_choices_stop_the_command_line(parse, capsys):
    with pytest.raises(SystemExit):
        parse("--threshold_type", "median")
    assert "invalid choice: 'median'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "is_on"), [(("--fsdp",), True), (("--fsdp", "true"), True), (("--fsdp", "false"), False), ((), None)]
)
def test_fsdp_on_the_command_line(parse, arguments, is_on):
    assert parse(*arguments).fsdp is is_on


@pytest.mark.parametrize(("text", "is_on"), [("true", True), ("false", False), ("True", True), ("null", None)])
def test_fsdp_in_a_file_of_settings(text, is_on, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(f"output_dir: {tmp_path}\nfsdp: {text}\nfsdp_config: {{version: 2}}\n")
    (args,) = SettingsParser((TGOConfig,)).parse_args_and_config(["--config", str(path)])
    assert args.fsdp is is_on


@pytest.mark.parametrize(("text", "value"), [("0.1", 0.1), ("auto", "auto"), ("null", "auto")])
def test_temperature_in_a_yaml_file(text, value, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(f"output_dir: {tmp_path}\ntemperature: {text}\n")
    (args,) = TrlParser(TGOConfig).parse_args_and_config(["--config", str(path)])
    assert args.temperature == value
