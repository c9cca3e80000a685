"""`tgo-trl completion`: what the shells offer, and that no Python runs for it."""

import shutil
import subprocess

import pytest

from tgo_trl.cli import main
from tgo_trl.commands.completion.run import CHOICES, FOLDERS, PATHS, program
from tgo_trl.commands.table import COMMANDS, settings_parser
from tgo_trl.rewards import REWARDS

ANSWER = """
answer() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _shtab_tgo_trl; echo "${COMPREPLY[*]}"; }
"""
EXPECTED = {
    ("",): list(COMMANDS),
    ("tr",): ["train"],
    ("train", "--loss_type", "d"): ["diffusion_dpo", "diffusion_kto", "dspo"],
    ("train", "--learning_rate", "1e-4", "--mirror"): ["--mirror_strength"],
    ("train", "--config", "run"): ["run.yaml"],
    ("train", "--output_dir", "o"): ["outputs"],
    ("train", "--help"): ["--help", "--help-all"],
    ("train", "--bf16", ""): ["false", "true"],
    ("score", "--rewards", "hpsv3", "hps"): ["hpsv2.1", "hpsv3"],
    ("score", "--rewards", "rew"): ["reward.py"],
    ("evaluate", "--prompts", "pa"): ["parti"],
    ("evaluate", "--prompts", "pr"): ["prompts.txt"],
    ("convert", "--layout", "rich"): ["richhf"],
    ("judge", "--criteria", "pr"): ["prompts.txt"],
    ("generate", "--shell", ""): [],
}
"""What is offered behind words of a command line, in a folder of the files below."""


@pytest.fixture
def folder(tmp_path):
    for name in ("run.yaml", "reward.py", "prompts.txt", "other.txt"):
        (tmp_path / name).touch()
    (tmp_path / "outputs").mkdir()
    return tmp_path


def script_of(capsys, shell):
    assert main(["completion", "--shell", shell]) == 0
    return capsys.readouterr().out


def run(shell, script, folder):
    """The lines that a script prints in a shell that finds no program besides those of the shell."""
    done = subprocess.run(
        [shutil.which(shell), script], capture_output=True, text=True, check=True, cwd=folder, env={"PATH": "/nowhere"}
    )
    return done.stdout.splitlines()


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_and_runs_no_program(capsys, folder):
    asked = [f"answer tgo-trl {' '.join(word or repr('') for word in words)}" for words in EXPECTED]
    (folder / "script").write_text("\n".join([script_of(capsys, "bash"), ANSWER, *asked]))
    answers = run("bash", "script", folder)
    assert [sorted(line.split()) for line in answers] == [sorted(words) for words in EXPECTED.values()]


@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
def test_fish_completes(capsys, folder):
    (folder / "script").write_text(f'{script_of(capsys, "fish")}\ncomplete -C "tgo-trl train --loss_type d"')
    assert [line.split("\t")[0] for line in run("fish", "script", folder)] == ["diffusion_dpo", "diffusion_kto", "dspo"]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_zsh_takes_the_script(capsys, folder):
    (folder / "script").write_text(script_of(capsys, "zsh"))
    subprocess.run([shutil.which("zsh"), "-n", "script"], check=True, cwd=folder)


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_scripts_have_every_command_and_setting(capsys, shell):
    script = script_of(capsys, shell)
    settings = {action.dest for name in COMMANDS for action in settings_parser(name)._actions} - {"help"}
    assert [name for name in {*COMMANDS, *settings, *REWARDS} if name not in script] == []


def test_settings_are_offered_in_one_spelling():
    (commands,) = (action.choices for action in program()._actions if isinstance(action.choices, dict))
    options = [option for action in commands["train"]._actions for option in action.option_strings]
    assert len(options) == len(set(options))
    assert "--output_dir" in options
    assert "--output-dir" not in options


def test_what_is_said_of_settings_is_said_of_settings_that_there_are():
    known = {name: {action.dest for action in settings_parser(name)._actions} for name in COMMANDS}
    for name in (*FOLDERS, *PATHS, *CHOICES):
        command, dot, setting = name.rpartition(".")
        assert setting in (known[command] if dot else set().union(*known.values())), name


def test_another_shell_is_refused(capsys):
    assert main(["completion", "--shell", "fsh"]) == 1
    assert "Did you mean 'fish'?" in capsys.readouterr().err
