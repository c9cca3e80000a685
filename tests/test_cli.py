"""The program `tgo-trl`: its arguments, its configuration files, its errors, and that help loads nothing heavy."""

import json
import os
import platform
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import yaml

import tgo_trl
from tgo_trl import RoundsConfig, TGOConfig, cli
from tgo_trl.cli import main
from tgo_trl.commands.table import COMMANDS
from tgo_trl.commands.train.config import USUAL, TrainArguments

from .tiny import scored_rows, stable_diffusion

TRAIN = {
    "max_steps": 2,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "use_cpu": True,
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
    "logging_steps": 1,
    "lora_r": 4,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pipeline in `model`, scored rows in `rows`."""
    path = tmp_path_factory.mktemp("cli")
    stable_diffusion().save_pretrained(path / "model")
    (path / "rows").mkdir()
    scored_rows(8).to_parquet(path / "rows" / "train.parquet")
    return path


@pytest.fixture
def train(folder, tmp_path):
    """Arguments of a short training run, and the path of its configuration file."""
    config = tmp_path / "train.yaml"
    settings = {
        "model_name_or_path": str(folder / "model"),
        "dataset_name": str(folder / "rows"),
        "output_dir": str(tmp_path / "out"),
        "encoding_cache_dir": str(tmp_path / "cache"),
        **TRAIN,
    }
    config.write_text(yaml.safe_dump(settings))
    return ["train", "--config", str(config)], config


def error_of(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 1
    printed = capsys.readouterr().err
    lines = [line for line in printed.splitlines() if "error:" in line]
    assert len(lines) == 1
    assert "Traceback" not in printed
    return lines[0]


# ---- Help ----


@pytest.mark.parametrize("command", [None, *(name for name in COMMANDS if name not in ("plan", "train", "rounds"))])
def test_help_loads_nothing_heavy(command):
    arguments = ["--help"] if command is None else [command, "--help"]
    code = f"""
import sys
from tgo_trl.cli import main
try:
    main({arguments})
except SystemExit as end:
    assert end.code == 0
heavy = ("torch", "transformers", "diffusers", "datasets", "peft", "accelerate", "matplotlib")
print("LOADED", [name for name in heavy if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    shown, _, loaded = done.stdout.rpartition("LOADED ")
    assert loaded == "[]\n"
    assert "usage: tgo-trl" in shown
    for name in COMMANDS if command is None else ("--config", "--accelerate_config", "--debug"):
        assert name in shown


def shown_by(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    assert end.value.code == 0
    return capsys.readouterr().out


def test_training_shows_what_most_set_and_every_setting_if_it_is_asked_to(capsys):
    settings = {field.name for kind in (TGOConfig, TrainArguments) for field in fields(kind) if field.init}
    names = re.compile(r"^  (?:-h, )?--(\w+)", re.MULTILINE)
    short = shown_by(capsys, "train", "--help")
    assert len(short.splitlines()) <= 90
    listed = names.findall(short)
    assert listed[:2] == ["model_name_or_path", "dataset_name"]
    running = {"config", "accelerate_config", "num_processes", "print_config"}
    assert listed[2:-1] == [name for name in USUAL if name in settings | running]
    assert listed[-1] == "help"
    whole = set(names.findall(shown_by(capsys, "train", "--help-all")))
    assert whole >= settings | running
    assert f"shows the other {len((settings | running) - set(listed))} settings" in short


def test_the_program_says_where_to_begin(capsys):
    shown = " ".join(shown_by(capsys, "--help").split())
    assert shown.endswith(
        "`tgo-trl <command> --help` shows the settings of one. To see what it does, begin with `tgo-trl demo`."
    )


def test_a_commands_own_settings_come_before_those_that_it_shares(capsys):
    listed = re.findall(r"^  --(\w+)", shown_by(capsys, "generate", "--help"), re.MULTILINE)
    assert listed[:4] == ["model_name_or_path", "prompts", "output_dir", "adapter_name_or_path"]
    sampling, publishing = listed.index("num_inference_steps"), listed.index("rows_per_shard")
    assert listed.index("adapter_scale") < sampling < publishing < listed.index("config")
    assert len(set(listed)) == len(listed)


def test_help_is_help_whatever_else_is_there(capsys, tmp_path):
    (tmp_path / "train.yaml").write_text("model_name_or_path: somewhere\ndataset_name: somewhere\n")
    whole = shown_by(capsys, "train", "--help-all")
    assert shown_by(capsys, "train", "--help-all", "--num_processes", "1") == whole
    short = shown_by(capsys, "train", "-h")
    assert shown_by(capsys, "train", "--config", str(tmp_path / "train.yaml"), "--help") == short


def test_the_usual_settings_are_settings():
    kinds = (TGOConfig, TrainArguments, RoundsConfig)
    known = {field.name for kind in kinds for field in fields(kind)} | {
        "config",
        "accelerate_config",
        "num_processes",
        "print_config",
    }
    assert set(USUAL) <= known
    assert len(set(USUAL)) == len(USUAL)


def test_defaults_are_told_once(capsys):
    shown = " ".join(shown_by(capsys, "export", "--help").split())
    assert "--scale How strongly the adapter acts. (default: 1.0)" in shown
    assert "Defaults to what the adapter's card names. --model_init_kwargs" in shown
    assert shown.startswith("usage: tgo-trl export [--config FILE] [settings]")
    assert "-adapter-name" not in shown


def test_the_environment_is_told_without_names_of_folders(capsys):
    assert main(["env"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"- torch: {torch.__version__}" in lines
    assert f"- Python: {platform.python_version()} on {platform.system()} " in "\n".join(lines)
    assert "- GPU: none" in lines or torch.cuda.is_available()
    assert not any(str(Path.home()) in line for line in lines)


def test_the_package_runs_as_the_program():
    done = subprocess.run([sys.executable, "-m", "tgo_trl", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"tgo_trl {tgo_trl.__version__}\n"


def test_the_version_is_the_packages(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"tgo_trl {tgo_trl.__version__}\n"


def test_an_unknown_command_ends_with_2_and_the_known_ones(capsys):
    with pytest.raises(SystemExit) as end:
        main(["polish"])
    assert end.value.code == 2
    assert "invalid choice: 'polish'" in capsys.readouterr().err


@pytest.mark.parametrize(("typed", "meant"), [("trian", "train"), ("Evaluate", "evaluate"), ("scores", "score")])
def test_a_misspelt_command_is_answered_with_the_nearest(typed, meant, capsys):
    with pytest.raises(SystemExit) as end:
        main([typed, "--output_dir", "x"])
    assert end.value.code == 2
    assert f"there is no command {typed!r}. Did you mean {meant!r}?" in capsys.readouterr().err


# ---- Training ----


def test_a_file_sets_what_the_command_line_overrides(train, tmp_path):
    arguments, _ = train
    assert main([*arguments, "--lora_r", "2", "--max_steps", "1"]) == 0
    record = json.loads((tmp_path / "out" / "tgo_config.json").read_text())["config"]
    assert (record["lora_r"], record["max_steps"], record["learning_rate"]) == (2, 1, 1e-2)
    assert (tmp_path / "out" / "pytorch_lora_weights.safetensors").is_file()


def test_environment_variables_of_a_file_are_set(train, monkeypatch):
    arguments, config = train
    monkeypatch.setenv("TGO_TRL_TEST", "before")
    config.write_text(config.read_text() + "env:\n  TGO_TRL_TEST: 7\n")
    assert main([*arguments, "--max_steps", "1"]) == 0
    assert os.environ["TGO_TRL_TEST"] == "7"


def test_training_goes_on_with_an_adapter(train, tmp_path):
    arguments, _ = train
    assert main([*arguments, "--max_steps", "1"]) == 0
    first = tmp_path / "out"
    again = [*arguments, "--adapter_name_or_path", str(first), "--output_dir", str(tmp_path / "second")]
    assert main([*again, "--max_steps", "1"]) == 0
    assert (tmp_path / "second" / "pytorch_lora_weights.safetensors").is_file()


def test_a_saved_run_is_resumed(train, tmp_path):
    arguments, _ = train
    saving = [*arguments, "--save_strategy", "steps", "--save_steps", "1"]
    assert main([*saving, "--max_steps", "1"]) == 0
    assert main([*saving, "--max_steps", "2"]) == 0  # the same command goes on
    state = json.loads((tmp_path / "out" / "checkpoint-2" / "trainer_state.json").read_text())
    assert [entry["step"] for entry in state["log_history"] if "loss" in entry] == [1, 2]


# ---- Errors ----


def test_a_setting_that_does_not_exist_is_named(train, capsys):
    arguments, config = train
    config.write_text(config.read_text() + "lora_rank: 4\n")
    assert "has `lora_rank`, which `tgo-trl train` does not know" in error_of(capsys, *arguments)


def test_a_users_error_is_one_line_and_debug_shows_where_it_comes_from(train, capsys):
    arguments, _ = train
    line = error_of(capsys, *arguments, "--resolution", "20")
    assert line.startswith("tgo-trl train: error: `resolution` is 20, but this pipeline needs a multiple of 8.")
    with pytest.raises(ValueError, match="`resolution` is 20"):
        main([*arguments, "--resolution", "20", "--debug"])


def test_an_error_of_our_own_is_not_hidden(train, monkeypatch):
    def fail(*_):
        raise AssertionError("a bug")

    monkeypatch.setattr(cli, "run_command", fail)
    with pytest.raises(AssertionError, match="a bug"):
        main(train[0])


def test_an_interrupted_command_says_so(train, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run_command", interrupt)
    assert main(train[0]) == 130
    assert "goes on where it stopped" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [("- a\n- b\n", "must hold names and values"), ("a: [", "this is no YAML"), ("env: 3\n", "must hold names of")],
)
def test_a_file_that_holds_no_settings_is_refused(tmp_path, capsys, text, message):
    (tmp_path / "bad.yaml").write_text(text)
    assert message in error_of(capsys, "train", "--config", tmp_path / "bad.yaml")


def test_a_missing_file_value_or_split_is_named(train, tmp_path, capsys):
    arguments, _ = train
    assert "missing.yaml" in error_of(capsys, "train", "--config", tmp_path / "missing.yaml")
    assert "`--config` needs the path" in error_of(capsys, "train", "--config")
    assert "`--num_processes` needs a value" in error_of(capsys, *arguments, "--num_processes")
    assert "test" in error_of(capsys, *arguments, "--eval_strategy", "epoch")
    assert "both set" in error_of(capsys, *arguments, "--load_in_4bit", "--load_in_8bit")


def test_an_unfinished_data_set_is_refused(train, folder, tmp_path, capsys):
    arguments, _ = train
    unfinished = tmp_path / "unfinished"
    (unfinished / "data").mkdir(parents=True)
    scored_rows(4).to_parquet(unfinished / "data" / "train-00000-of-00002.parquet")
    (unfinished / "scoring.json").write_text("{}")
    assert "is not finished: it has no README.md" in error_of(capsys, *arguments, "--dataset_name", unfinished)


def test_a_file_of_rows_is_a_data_set_and_no_link_is_made_of_it(train, folder, tmp_path):
    arguments, _ = train
    file = folder / "rows" / "train.parquet"
    assert main([*arguments, "--dataset_name", str(file), "--max_steps", "1"]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "huggingface.co/datasets" not in card
    assert str(folder) not in card.split("## Training procedure")[0].replace(str(folder / "model"), "")


def test_a_run_starts_over_when_it_is_told_to(train, tmp_path):
    arguments, _ = train
    saving = [*arguments, "--save_strategy", "steps", "--save_steps", "1", "--max_steps", "1"]
    assert main(saving) == 0
    assert main([*saving, "--resume_from_checkpoint", "false", "--lora_r", "2"]) == 0
    assert json.loads((tmp_path / "out" / "tgo_config.json").read_text())["config"]["lora_r"] == 2


def test_options_with_an_equals_sign_are_options_and_abbreviations_are_none(train, tmp_path, capsys):
    _, config = train
    assert main(["train", f"--config={config}", "--max_steps=1", "--lora_r=2"]) == 0
    assert json.loads((tmp_path / "out" / "tgo_config.json").read_text())["config"]["lora_r"] == 2
    assert "`--accelerate_config quantum`" in error_of(
        capsys, "train", f"--config={config}", "--accelerate_config=quantum"
    )
    assert "--num_proc" in error_of(capsys, "train", f"--config={config}", "--num_proc", "7")


# ---- Several processes ----


def test_a_launched_process_that_fails_is_not_repeated_with_its_secrets(train, monkeypatch, capsys):
    def fail(_):
        raise subprocess.CalledProcessError(1, ["python", "--hub_token", "hf_secret"])

    monkeypatch.setattr("accelerate.commands.launch.launch_command", fail)
    for name in (cli.LAUNCHED, "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    several = ("--accelerate_config", "multi_gpu", "--num_processes", "2")
    assert main([*train[0], *several, "--hub_token", "hf_secret", "--debug"]) == 1
    assert "hf_secret" not in capsys.readouterr().err
    os.environ.pop(cli.LAUNCHED)


def test_an_unknown_accelerate_config_is_refused_with_the_known_ones(train, capsys):
    line = error_of(capsys, *train[0], "--accelerate_config", "quantum")
    assert "`--accelerate_config quantum` is no file, and none of fsdp2, multi_gpu, single_gpu, zero2, zero3" in line


FEW_GPUS = [
    (
        0,
        ("fsdp2",),
        "`--accelerate_config fsdp2` takes several GPUs, and there are no GPUs here. Leave it out, for one process.",
    ),
    (1, ("fsdp2", "--num_processes", "2"), "starts 2 processes, one for a GPU, and there is 1 GPU here. Leave it out"),
    (2, ("fsdp2", "--num_processes", "4"), "and there are 2 GPUs here. Set `--num_processes 2`, or less."),
    (2, ("multi_gpu",), "`--accelerate_config multi_gpu` starts 8 processes, one for a GPU, and there are 2 GPUs"),
    (
        0,
        ("multi_gpu", "--num_processes", "2"),
        "there are no GPUs here. Leave it out, for one process; on the CPU, `--accelerate_config multi_gpu --use_cpu`.",
    ),
    (0, ("multi_gpu", "--use_cpu", "false"), "starts 8 processes, one for a GPU, and there are no GPUs here."),
    (
        4,
        ("single_gpu", "--num_processes", "4"),
        "`--num_processes 4` starts 4 processes, and `--accelerate_config single_gpu` a single one.",
    ),
]


@pytest.mark.parametrize(("num_gpus", "options", "message"), FEW_GPUS)
def test_more_processes_than_gpus_are_refused(train, monkeypatch, capsys, num_gpus, options, message):
    arguments, config = train
    config.write_text(config.read_text().replace("use_cpu: true\n", ""))
    monkeypatch.setattr("torch.accelerator.device_count", lambda: num_gpus)
    assert message in error_of(capsys, *arguments, "--accelerate_config", *options)


@pytest.mark.parametrize("command", ["train", "score"])
def test_processes_that_nothing_would_start_are_refused(train, monkeypatch, capsys, command):
    """Without a configuration accelerate starts several processes for several GPUs alone, and else one."""
    monkeypatch.setattr("accelerate.commands.config.default_config_file", "/nowhere.yaml")
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 1)
    use_cpu = " --use_cpu" if command == "train" else ""
    assert (
        "`--num_processes 2` starts 2 processes, one for a GPU, and there is 1 GPU here. Leave it out, for one "
        f"process; on the CPU, `--accelerate_config multi_gpu{use_cpu}`."
    ) in error_of(capsys, command, *train[0][1:], "--num_processes", "2")


@pytest.mark.parametrize("given", [("--use_cpu",), ("--use_cpu", "true"), ("--use_cpu=1",), ()])
def test_processes_on_the_cpu_are_launched_where_the_cpu_is_asked_for(train, monkeypatch, given):
    launched = []
    monkeypatch.setattr("accelerate.commands.launch.launch_command", launched.append)
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 0)
    monkeypatch.delenv(cli.LAUNCHED, raising=False)
    arguments, config = train
    if given:  # else it is on in the file
        config.write_text(config.read_text().replace("use_cpu: true\n", ""))
    assert main([*arguments, *given, "--accelerate_config", "multi_gpu", "--num_processes", "2"]) == 0
    assert [options.num_processes for options in launched] == [2]
    os.environ.pop(cli.LAUNCHED)


def test_sharding_with_a_deepspeed_that_is_not_there_is_refused(train, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    line = error_of(capsys, *train[0], "--accelerate_config", "zero2")
    assert "`--accelerate_config zero2` needs DeepSpeed, which is not installed. Install `tgo_trl[deepspeed]`" in line


def test_sharding_starts_a_process_for_each_gpu(train, monkeypatch):
    launched = []
    monkeypatch.setattr("accelerate.commands.launch.launch_command", launched.append)
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 4)
    monkeypatch.delenv(cli.LAUNCHED, raising=False)
    assert main([*train[0], "--accelerate_config", "fsdp2"]) == 0
    (options,) = launched
    assert options.num_processes == 4
    assert Path(options.config_file).parent == Path(cli.__file__).parent / "accelerate_configs"
    os.environ.pop(cli.LAUNCHED)


@pytest.mark.parametrize("in_file", [False, True])
def test_the_launcher_gets_its_options_and_the_command_the_rest(train, monkeypatch, in_file):
    launched = []
    monkeypatch.setattr("accelerate.commands.launch.launch_command", launched.append)
    monkeypatch.delenv(cli.LAUNCHED, raising=False)
    arguments, config = train
    if in_file:
        config.write_text(config.read_text() + "accelerate_config: multi_gpu\nnum_processes: 2\n")
        assert main([*arguments, "--lora_r", "2"]) == 0
    else:
        assert main([*arguments, "--accelerate_config", "multi_gpu", "--lora_r", "2", "--num_processes", "2"]) == 0
    (options,) = launched
    assert options.config_file.endswith("multi_gpu.yaml")
    assert (options.num_processes, options.module, options.training_script) == (2, True, "tgo_trl.cli")
    assert options.training_script_args == [*arguments, "--lora_r", "2"]
    assert os.environ.pop(cli.LAUNCHED) == "1"


def test_a_launched_process_launches_no_other(train, monkeypatch, tmp_path):
    arguments, config = train
    config.write_text(config.read_text() + "accelerate_config: multi_gpu\n")
    monkeypatch.setenv(cli.LAUNCHED, "1")
    assert main([*arguments, "--max_steps", "1"]) == 0
    assert (tmp_path / "out" / "tgo_config.json").is_file()
