"""From pictures of digits to verdicts and ratings on them, with the programs that a user runs; killed, and resumed."""

import json
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from .devices import cpu_environment
from .test_four_commands import ROOT, files

DRAW = (
    "generate --model_name_or_path examples/digits/base --prompts examples/digits/prompts.txt --num_images_per_prompt 2"
    " --num_inference_steps 8 --batch_size 40 --disable_tqdm"
)


def start(arguments, home):
    # offline, huggingface_hub's client asks no server at all
    environment = cpu_environment(HF_HOME=str(home), HF_HUB_OFFLINE="0", NO_PROXY="127.0.0.1")
    return subprocess.Popen(
        [sys.executable, "-m", "tgo_trl.cli", *arguments],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def run(arguments, home):
    process = start(arguments, home)
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == 0, printed
    return printed


@contextmanager
def served():
    """The address of the server that is a classifier."""
    command = [sys.executable, "examples/digits/judge_server.py", "--port", "0"]
    process = subprocess.Popen(command, cwd=ROOT, env=cpu_environment(), stdout=subprocess.PIPE, text=True)
    try:
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


@pytest.mark.long
def test_digits_are_judged_and_rated_whatever_is_killed(tmp_path):
    home = tmp_path / "home"
    for name, guidance in (("guided", 4), ("base", 1)):
        words = f"{DRAW} --guidance_scale {guidance} --output_dir {tmp_path / name}"
        run(words.split(), home)
    with served() as url:
        words = (
            f"judge --datasets {tmp_path / 'guided'} {tmp_path / 'base'} --base_url {url} --order both --disable_tqdm"
        )

        def arguments(model, out, more=""):
            return f"{words} --model {model} --output_dir {tmp_path / out} {more}".split()

        run(arguments("unseen", "whole"), home)
        process = start(arguments("unseen", "killed", "--max_concurrent 1"), home)
        answers, deadline = tmp_path / "killed" / "answers.jsonl", time.monotonic() + 120
        while not answers.is_file() or answers.read_bytes().count(b"\n") < 20:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        num_answers = answers.read_bytes().count(b"\n")
        printed = run(arguments("unseen", "killed"), home)
        assert f"questions ({num_answers} are answered already)" in printed
        assert files(tmp_path / "killed", "*.*") == files(tmp_path / "whole", "*.*")

        run(arguments("neighbours", "second", f"--agreement_with {tmp_path / 'whole'}"), home)
        kwargs = json.dumps({"vlm": {"base_url": url, "model": "unseen", "low": 1, "high": 10}})
        words = f"score --dataset_name {tmp_path / 'guided'} --output_dir {tmp_path / 'rated'} --rewards vlm"
        run([*words.split(), "--reward_kwargs", kwargs], home)

    report = json.loads((tmp_path / "killed" / "judge.json").read_text())
    (pair,) = report["pairs"]
    assert pair["num_comparisons"] == 80
    assert pair["num_wins"] > 3 * pair["num_losses"]  # guidance removes wrong digits
    assert (report["inconsistent"]["value"], report["shown_first"]["value"]) == (0, 0.5)
    assert json.loads((tmp_path / "second" / "judge.json").read_text())["agreements"][0]["kappa"] > 0.6
    (rating,) = json.loads((tmp_path / "rated" / "scoring.json").read_text())["settings"]["rewards"]
    assert rating["version"].startswith("unseen, rubric@sha256:")
