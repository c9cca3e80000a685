"""The example scripts from end to end, as a user runs them, with tiny models and without a network."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

from .cases import CASES

EXAMPLES = Path(__file__).parents[1] / "examples"
IMAGES = "Rapidata/text-2-image-Rich-Human-Feedback (17.9 GB)"
PUBLISHED = {
    "flux": ("flux", f"black-forest-labs/FLUX.1-dev (33.7 GB in bfloat16) and {IMAGES}"),
    "meissonic": ("meissonic", f"MeissonFlow/Meissonic (6.0 GB in float32) and {IMAGES}"),
    "sd15": ("stable_diffusion", f"stable-diffusion-v1-5/stable-diffusion-v1-5 (5.5 GB in float32) and {IMAGES}"),
    "sd3": ("stable_diffusion_3", f"stabilityai/stable-diffusion-3.5-medium (16.3 GB in 16 bits) and {IMAGES}"),
    "sdxl": ("stable_diffusion_xl", f"stabilityai/stable-diffusion-xl-base-1.0 (13.9 GB in float32) and {IMAGES}"),
    "wan": ("wan", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers (28.9 GB in float32) and the data set of --dataset_name"),
}
"""Of each script, the case of its tiny pipeline, and what it says that it would download."""


def run(folder: Path, script: str, *arguments: str) -> str:
    """What a script printed, run in a folder."""
    home = folder / "home"  # what a script writes to caches is found here
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(home)}
    command = [sys.executable, str(EXAMPLES / f"{script}.py"), *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def settings_of(folder: Path) -> dict:
    """The settings of a run, from its record."""
    return json.loads((folder / "tgo_config.json").read_text())["config"]


def test_all_scripts_are_tried():
    scripts = {path.stem for path in EXAMPLES.glob("*.py") if "TINY = {" in path.read_text()}
    assert scripts == {*PUBLISHED}


@pytest.mark.parametrize(
    "script", [name if name == "sd15" else pytest.param(name, marks=pytest.mark.slow) for name in PUBLISHED]
)
def test_script(script, tmp_path):
    name, downloads = PUBLISHED[script]
    printed = run(tmp_path, script, "--tiny", "--lora_r", "3")
    assert printed.startswith(f"Without --tiny, this downloads {downloads}.\n")

    out = tmp_path / "outputs" / f"{script}-tiny"
    settings = settings_of(out)
    assert (settings["lora_r"], settings["max_steps"]) == (3, 2)  # the command line's, and those of `--tiny`
    assert (settings["beta"], settings["confidence_coef"], settings["temperature"]) == (1.0, 5.0, "auto")
    assert list((out / "samples").glob("*.png"))
    assert not (tmp_path / "home").exists()

    weights = load_file(out / "pytorch_lora_weights.safetensors")
    assert {tensor.shape[0] for key, tensor in weights.items() if "lora_A" in key or "lora.down" in key} == {3}
    assert all(tensor.abs().max() > 0 for tensor in weights.values())
    case = next(case for case in CASES if case.name == name)
    pipeline = case.build()
    exec(case.family(pipeline).loading_code(pipeline, str(out)), {"pipeline": pipeline})
    assert_loaded(pipeline, weights)


def assert_loaded(pipeline: DiffusionPipeline, weights: dict) -> None:
    """The pipeline has every weight of an adapter."""
    network = pipeline.transformer if "transformer" in pipeline.components else pipeline.unet
    loaded = {name: weight for name, weight in network.named_parameters() if "lora_" in name}
    assert len(loaded) == len(weights) > 0
    total = sum(weight.double().abs().sum() for weight in weights.values())
    assert sum(weight.detach().double().abs().sum() for weight in loaded.values()) == pytest.approx(float(total))


def test_configuration_file(tmp_path):
    """It overrides the script's settings, those of `--tiny` included; the command line overrides it."""
    (tmp_path / "settings.yaml").write_text("max_steps: 1\nbeta: 2.5\nlora_r: 3\nsample_prompts: [a cat]\n")
    run(tmp_path, "sd15", "--tiny", "--config", "settings.yaml", "--lora_r", "5", "--output_dir", "mine")
    settings = settings_of(tmp_path / "mine")
    assert [settings[name] for name in ("max_steps", "beta", "lora_r", "sample_prompts")] == [1, 2.5, 5, ["a cat"]]
    assert [settings[name] for name in ("resolution", "confidence_coef")] == [16, 5.0]


@pytest.mark.parametrize("script", PUBLISHED)
def test_help(script, monkeypatch, capsys):
    """It shows the script's own defaults."""
    with pytest.raises(SystemExit, match=r"^0$"):
        run_here(monkeypatch, script, "--help")
    printed = " ".join(capsys.readouterr().out.split())
    assert "--tiny" in printed
    assert "Log every X update steps, or ratio if below 1. (default: 2)" in printed
    assert f"(default: {PUBLISHED[script][1].partition(' ')[0]})" in printed


def test_video_script_asks_for_data(monkeypatch):
    with pytest.raises(ValueError, match="`--dataset_name` is missing"):
        run_here(monkeypatch, "wan", "--use_cpu", "--bf16", "false")


def run_here(monkeypatch, script: str, *arguments: str) -> None:
    """Runs a script in this process, which has imported what it needs."""
    path = str(EXAMPLES / f"{script}.py")
    monkeypatch.setattr(sys, "argv", [path, *arguments])
    monkeypatch.setenv("COLUMNS", "400")
    runpy.run_path(path, run_name="__main__")
