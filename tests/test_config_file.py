"""`--print_config`: a file that `--config` reads as the same settings."""

import dataclasses
import shlex
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tgo_trl
from tgo_trl import cli
from tgo_trl.cli import main
from tgo_trl.settings import read_settings, yaml_text

COMMANDS = {
    "demo": ("--quick", "--seed 7"),
    "generate": ("--model_name_or_path m --prompts p.txt --output_dir o", "--guidance_scale 1e-3 --negative_prompt no"),
    "score": ("--dataset_name d --output_dir o --rewards clip_score a.py:f", "--ensemble_weights 1 2 --batch_size 8"),
    "inspect": ("--dataset_name 010", "--threshold_values 1 -2.5 --score_columns a 1e5 --skip_images"),
    "train": (
        "--model_name_or_path m --dataset_name d --output_dir o --use_cpu",
        "--learning_rate 1e-5 --lr_scheduler_type cosine --temperature 1e-3 --recipe robust --bf16 no --use_peft false "
        '--sample_prompts no 1e3 null \'a: b # c\' --model_init_kwargs \'{"variant": "no", "x": [1, 2.5, null]}\' '
        "--eval_strategy steps --eval_steps 5 --no_average_tokens_across_devices",
    ),
    "evaluate": ("--models a=m b=n --prompts parti --rewards hpsv3 --output_dir o", "--grid_prompts 1 2"),
}
"""Of each command, what it cannot do without, and other settings."""


@pytest.fixture
def settings_of(monkeypatch):
    """The objects of settings that a command line leads to, by calling the command's function in vain."""

    def find(arguments):
        taken = []
        monkeypatch.setattr(cli, "load", lambda name: lambda *settings: taken.extend(settings))
        monkeypatch.setattr(cli, "_say_what_is_next", lambda *rest: None)
        assert main(arguments) == 0
        return taken

    return find


def plain(objects):
    """Their fields, but for what differs from run to run."""
    return [{**dataclasses.asdict(it), "logging_dir": None, "_hash": None} for it in objects]


@pytest.mark.parametrize("extent", [[], ["all"]])
@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_printed_is_read_back_as_the_same_settings(command, extent, settings_of, capsys, tmp_path):
    arguments = [command, *shlex.split(" ".join(COMMANDS[command]))]
    assert main([*arguments, "--print_config", *extent]) == 0
    path = tmp_path / "run.yaml"
    path.write_text(capsys.readouterr().out)
    assert plain(settings_of([command, "--config", str(path)])) == plain(settings_of(arguments))


def test_only_what_is_not_as_by_default_is_there_and_sums_up_file_and_command_line(capsys, tmp_path):
    (tmp_path / "run.yaml").write_text(
        "model_name_or_path: m\ndataset_name: d\nbeta: 2\nseed: 42\nnum_processes: 2\nenv: {PAGE: no}\n"
    )
    arguments = ["train", "--config", str(tmp_path / "run.yaml"), "--output_dir", "o", "--beta", "3", "--use_cpu"]
    assert main([*arguments, "--print_config"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.endswith(f"for `tgo-trl train --config FILE` of tgo_trl {tgo_trl.__version__}.")
    assert lines == [
        "num_processes: 2", "model_name_or_path: m", "dataset_name: d", "output_dir: o", "use_cpu: true", "beta: 3.0",
        "env:", "  PAGE: 'no'",
    ]  # fmt: skip


def test_secrets_are_left_out_with_a_word(capsys, tmp_path):
    (tmp_path / "run.yaml").write_text(
        "hub_token: abcd\nenv: {HF_TOKEN: efgh}\nreward_kwargs: {vlm: {api_key: ijkl}}\n"
    )
    arguments = ["score", "--config", str(tmp_path / "run.yaml"), "--dataset_name", "https://u:mnop@h/d.csv"]
    assert main([*arguments, "--output_dir", "o", "--rewards", "vlm", "--print_config"]) == 0
    printed = capsys.readouterr().out
    assert not [secret for secret in ("abcd", "efgh", "ijkl", "mnop") if secret in printed]
    for name in ("hub_token", "env: HF_TOKEN", "reward_kwargs", "dataset_name"):
        assert f"# `{name}` is left out, as there is a secret in it." in printed
    assert set(read_settings(write(tmp_path, printed))) == {"output_dir", "rewards"}


def test_nothing_runs_and_nothing_that_would_be_refused_is_printed(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--print_config"]) == 0
    assert capsys.readouterr().out.endswith("\n{}\n")
    assert main(["demo", "--seed", "-1", "--print_config"]) == 1
    assert main(["demo", "--print_config", "al"]) == 1
    assert "Write `--print_config`, or `--print_config all`." in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def write(folder: Path, text: str) -> Path:
    (folder / "printed.yaml").write_text(text)
    return folder / "printed.yaml"


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ["no", "NO", "y", "010", "0o17", "0x1f", "1e-6", "1_000", "12:30:45", "2026-01-01", "null", "~", "", "<<", "=",
     "- a", ".inf", ".nan", "a: b", "a #b", "\x85", "\u2028", "\t", "'", '"', "*a", "&a", "!a", "%a", "@a", "|", ">"]
)  # fmt: skip
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
)


@settings(max_examples=60)
@given(st.dictionaries(texts, values, max_size=4))
def test_any_values_are_read_back(entries):
    with TemporaryDirectory() as folder:
        path = write(Path(folder), yaml_text(entries))
        assert {name: setting.value for name, setting in read_settings(path).items()} == entries
