"""From prompts to an aligned adapter, and a comparison with its base, as the quick start says; all killed and rerun."""

import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from .devices import cpu_environment
from .runs import assert_equal
from .test_generation import save_adapter

ROOT = Path(__file__).parents[1]
SMALLER = {
    "generate": ["--num_images_per_prompt", "4", "--num_inference_steps", "8", "--rows_per_shard", "16"],
    "score": ["--rows_per_shard", "16", "--batch_size", "16"],
    "inspect": [],
    "train": ["--max_steps", "12", "--save_strategy", "steps", "--save_steps", "2", "--sample_steps", "100"],
    "evaluate": ["--num_images_per_prompt", "2", "--num_inference_steps", "4", "--rows_per_shard", "16"],
}
"""What makes the quick start's commands quick; the later of two equal options counts."""


def commands() -> dict[str, list[str]]:
    """The quick start's commands, by name."""
    text = (ROOT / "docs" / "quick_start.md").read_text().replace("\\\n", " ")
    found = [shlex.split(line) for line in re.findall(r"^tgo-trl .*$", text, re.MULTILINE)]
    return {words[1]: words[1:] for words in found if "examples/digits" in " ".join(words) or words[1] == "inspect"}


def start(arguments: list[str], home: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "tgo_trl.cli", *arguments],
        cwd=ROOT, env=cpu_environment(HF_HOME=str(home)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def run(arguments: list[str], home: Path) -> str:
    process = start(arguments, home)
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == 0, printed
    return printed


def kill_in_the_middle(arguments: list[str], home: Path, pattern: str, folder: Path) -> None:
    """Ends a command with SIGKILL as soon as a file that matches is there."""
    process = start(arguments, home)
    deadline = time.monotonic() + 300
    while not list(folder.glob(pattern)):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()


def files(folder: Path, *patterns: str) -> dict[str, bytes]:
    found = [path for pattern in patterns for path in folder.glob(pattern) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(found)}


def test_the_readme_begins_with_the_same_commands():
    block = re.compile(r"^```bash\ntgo-trl generate .*?^```$", re.MULTILINE | re.DOTALL)
    texts = [(ROOT / name).read_text() for name in ("README.md", "docs/quick_start.md")]
    blocks = [block.findall(text) for text in texts]
    assert len(blocks[0]) == 1
    assert blocks[0] == blocks[1]


def test_the_quick_start_has_the_commands():
    assert list(commands()) == ["generate", "score", "inspect", "train", "rounds", "evaluate"]


@pytest.mark.slow
def test_from_prompts_to_an_adapter_whatever_is_killed(tmp_path):
    results = []
    for kills in (False, True):
        out = tmp_path / ("killed" if kills else "whole")
        home = tmp_path / "home"

        def arguments(name: str, out: Path = out) -> list[str]:
            words = [word.replace("outputs/online", "").replace("outputs/", f"{out}/") for word in commands()[name]]
            return [*words, *SMALLER[name]]

        drawn, scored, adapter = out / "drawn", out / "scored", out / "adapter"
        if kills:
            kill_in_the_middle(arguments("generate"), home, "data/*-00001-of-*.parquet", drawn)
            assert not (drawn / "README.md").exists()
        run(arguments("generate"), home)
        if kills:
            kill_in_the_middle(arguments("score"), home, "data/*-00001-of-*.parquet", scored)
            assert not (scored / "README.md").exists()
        run(arguments("score"), home)
        report = run(arguments("inspect"), home)
        assert "160" in report  # 40 prompts of 4 images
        cache = ["--encoding_cache_dir", str(out / "encodings")]
        if kills:
            kill_in_the_middle([*arguments("train"), *cache], home, "checkpoint-4/trainer_state.json", adapter)
            assert not (adapter / "pytorch_lora_weights.safetensors").exists()
        run([*arguments("train"), *cache, *(["--resume_from_checkpoint", "true"] if kills else [])], home)
        data = {**files(drawn, "data/*.parquet", "*.json", "README.md"), **files(scored, "data/*.parquet", "*.json")}
        results.append((data, load_file(adapter / "pytorch_lora_weights.safetensors")))
    (whole, whole_weights), (killed, killed_weights) = results
    assert whole.keys() == killed.keys()
    assert sum(name.endswith(".parquet") for name in whole) == 10
    different = [name for name in whole if whole[name] != killed[name]]
    assert not different
    assert_equal(killed_weights, whole_weights)


@pytest.mark.long
def test_a_comparison_whatever_is_killed(tmp_path):
    save_adapter(StableDiffusionPipeline.from_pretrained(ROOT / "examples" / "digits" / "base"), tmp_path / "adapter")
    results = []
    for kills in (False, True):
        out = tmp_path / ("killed" if kills else "whole")
        words = [word.replace("outputs/adapter", str(tmp_path / "adapter")) for word in commands()["evaluate"]]
        words = [*words, *SMALLER["evaluate"], "--output_dir", str(out)]
        for begun in ("tgo/drawn/data/*-00001-of-*.parquet", "base/scores/*/data/*-00001-of-*.parquet"):
            if kills:
                kill_in_the_middle(words, tmp_path / "home", f"models/{begun}", out)
                assert not (out / "evaluation.md").exists()
        printed = run(words, tmp_path / "home")
        assert "evaluation.md" in printed
        results.append(files(out, "**/*"))
    assert results[0] == results[1]
    assert sum(name.endswith(".parquet") for name in results[0]) == 20  # 2 models, 80 images in 5 shards, and scores
