"""Settings of any values: they make a configuration that can be written down, or a message that names one of them."""

import dataclasses
import json
import math
import types
import typing

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import TrainingArguments

from tgo_trl import AlignPropConfig, TGOConfig
from tgo_trl.commands.convert.config import ConvertConfig
from tgo_trl.commands.evaluate.config import EvaluateConfig
from tgo_trl.commands.generate.config import GenerateConfig
from tgo_trl.commands.judge.config import JudgeConfig
from tgo_trl.commands.score.config import ScoreConfig
from tgo_trl.commands.strength.config import StrengthConfig
from tgo_trl.labels.checks import MAX_FLOAT32
from tgo_trl.trainer.alignprop_config import TAKEN
from tgo_trl.trainer.checkpoints import public_config

INHERITED = {field.name for field in dataclasses.fields(TrainingArguments)}
OWN = {field.name: field for field in dataclasses.fields(TGOConfig) if field.name not in INHERITED}
NUMBERS = {
    "learning_rate": float, "weight_decay": float, "adam_beta1": float, "adam_beta2": float, "adam_epsilon": float,
    "max_grad_norm": float, "num_train_epochs": float, "max_steps": int, "warmup_steps": float, "logging_steps": float,
    "per_device_train_batch_size": int, "gradient_accumulation_steps": int, "seed": int,
}  # fmt: skip
"""Of `TrainingArguments`."""

floats = st.sampled_from(
    [0.0, 1.0, 0.5, -1.0, 2.0, 50.0, 1e-6, 3.4e38, 1e39, -1e39, 1e-320, math.nan, math.inf, -math.inf]
)
integers = st.sampled_from([0, 1, 2, -1, 16, 1000, 2**31, 2**63, 10**400])
texts = st.sampled_from(["", "auto", "a", "1e-3", "nan", "unet", "[]", '{"a": 1}', "\ud800", "😀" * 200])
BY_TYPE = {float: floats | integers, int: integers, bool: st.booleans(), str: texts, type(None): st.none(),
           list: st.lists(texts, max_size=2), dict: st.dictionaries(texts, floats | texts, max_size=2)}  # fmt: skip
anything = st.one_of(*BY_TYPE.values())


def types_of(hint):
    """The types that a field takes: of `list[str] | None`, `list` and `NoneType`."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [kind for part in typing.get_args(hint) for kind in types_of(part)]
    return [typing.get_origin(hint) or hint]


def values_of(settings_class, names):
    """Values of some settings, most of them of a type that the setting has."""
    hints = typing.get_type_hints(settings_class)
    fields = {field.name: field for field in dataclasses.fields(settings_class)}
    strategies = {}
    for name in names:
        choices = fields[name].metadata.get("choices")
        fitting = st.one_of(*(BY_TYPE[kind] for kind in types_of(hints[name])))
        strategies[name] = st.sampled_from(choices) | fitting if choices else fitting
    return st.lists(st.sampled_from(sorted(strategies)), max_size=6, unique=True).flatmap(
        lambda chosen: st.fixed_dictionaries({name: strategies[name] for name in chosen})
    )


def refusal(settings_class, *required, **values):
    """The object, or why it cannot be made."""
    try:
        return settings_class(*required, **values), None
    except (ValueError, TypeError) as error:
        return None, str(error)


def assert_names(reason, values):
    assert any(name in reason for name in values), reason
    assert len(reason) < 1000


def numbers_in(value):
    if isinstance(value, float):
        yield value
    elif isinstance(value, dict):
        for entry in value.values():
            yield from numbers_in(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from numbers_in(entry)


@settings(max_examples=400)
@given(values_of(TGOConfig, [*OWN, *NUMBERS]))
@example({"beta": 10**400})
@example({"sample_guidance_scale": math.nan})
@example({"threshold_type": "value", "threshold_value": 1e39})
def test_training_settings_are_whole_or_refused(tmp_path_factory, values):
    values = {"use_cpu": True, **values}
    config, reason = refusal(TGOConfig, str(tmp_path_factory.getbasetemp()), **values)
    if config is None:
        assert_names(reason, values)
        return
    saved = public_config(config.to_dict())
    assert json.loads(json.dumps(saved, allow_nan=False)) == saved
    assert all(abs(number) <= MAX_FLOAT32 for number in numbers_in(saved))
    own = {name: value for name, value in config.to_dict().items() if name in OWN}
    again = TGOConfig(str(tmp_path_factory.getbasetemp()), use_cpu=True, **own)
    assert {name: value for name, value in again.to_dict().items() if name in OWN} == own


@given(st.sampled_from(sorted(OWN)), anything)
def test_a_setting_of_any_type_is_taken_or_named(tmp_path_factory, name, value):
    config, reason = refusal(TGOConfig, str(tmp_path_factory.getbasetemp()), use_cpu=True, **{name: value})
    if config is None:
        assert name in reason
        assert len(reason) < 1000


CLIMBED = {field.name for field in dataclasses.fields(AlignPropConfig)} - INHERITED


@given(st.sampled_from(sorted(CLIMBED)), anything)
@example("truncated_rand_backprop_minmax", [True, 2])
@example("truncated_rand_backprop_minmax", [0, 10**400])
def test_so_is_one_of_alignprop(tmp_path_factory, name, value):
    config, reason = refusal(AlignPropConfig, str(tmp_path_factory.getbasetemp()), use_cpu=True, **{name: value})
    if config is None:
        assert name in reason
        assert len(reason) < 1000
    else:
        assert 1 <= config.last_steps[0] <= config.last_steps[1] <= config.sample_num_steps
        assert name in config.to_dict() or name not in TAKEN


COMMANDS = {
    GenerateConfig: ["model", "prompts.txt", "out"],
    ScoreConfig: ["rows", "out", ["clip_score"]],
    ConvertConfig: ["rows", "out"],
    StrengthConfig: ["adapter", "prompts.txt", ["clip_score"]],
    EvaluateConfig: [["a=b"], "prompts.txt", ["clip_score"]],
    JudgeConfig: ["http://localhost/v1", "seer", ["one", "two"], "out"],
}


@pytest.mark.parametrize("settings_class", COMMANDS)
@settings(max_examples=150)
@given(data=st.data())
def test_a_commands_settings_are_whole_or_refused(settings_class, data):
    required = COMMANDS[settings_class]
    names = [field.name for field in dataclasses.fields(settings_class) if not field.name.startswith("hub_")]
    positional = [field.name for field in dataclasses.fields(settings_class) if not field.kw_only][: len(required)]
    values = data.draw(values_of(settings_class, sorted({*names} - {*positional, "push_to_hub"})))
    config, reason = refusal(settings_class, *required, **values)
    if config is None:
        assert_names(reason, values)
    else:
        numbers = numbers_in(json.loads(json.dumps(dataclasses.asdict(config), allow_nan=True)))
        assert all(map(math.isfinite, numbers))
