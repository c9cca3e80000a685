"""docs/scaling.md and clusters.md: their tables are what the benchmarks compute, and their scripts run."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import memory_table, million_images
from benchmarks.gpu_models import MODELS
from benchmarks.gpu_steps import count_flops
from benchmarks.lora_memory import CASES, with_adapter
from tgo_trl.cards.sections import with_section
from tgo_trl.families import FAMILIES

from .devices import cpu_environment
from .tiny import scored_rows, stable_diffusion

ROOT = Path(__file__).resolve().parents[1]
PAGE, CLUSTERS = ((ROOT / "docs" / name).read_text("utf-8") for name in ("scaling.md", "clusters.md"))


def script(beginning: str) -> str:
    """The block of code that begins so."""
    (found,) = (
        it for it in re.findall(r"^```bash\n(.*?)^```", CLUSTERS, re.DOTALL | re.MULTILINE) if it.startswith(beginning)
    )
    return found


# ---- Memory ----


def test_memory_of_stable_diffusion_by_hand():
    sizes = memory_table.sizes_of(CASES["sd15"])
    # 16 blocks: q, k, v, o on the image, and q, o on the image and k, v on the prompt, 16 (in + out) each.
    widths = [320] * 5 + [640] * 5 + [1280] * 6
    adapter = sum(16 * (6 * 2 * width + 2 * (768 + width)) for width in widths)
    assert (sizes.parameters, sizes.adapter) == (859_520_964, adapter)
    assert sizes.lora == 2 * 859_520_964 + 16 * adapter
    assert sizes.full == 20 * 859_520_964
    assert sizes.encoder_bytes == 2 * 123_650_304 + 4 * 83_653_863
    assert sizes.lora_on_4_bits == sizes.lora - 1.4375 * sizes.linear  # from 2 bytes to 9 / 16
    assert 0.3 < sizes.linear / sizes.parameters < 0.4  # convolutions stay as they are


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flux", "qwen-image", "sana"])
def test_adapters_have_as_many_numbers_as_pefts(name):
    case = CASES[name]
    with torch.device("meta"):
        network = with_adapter(case.build(), FAMILIES[case.pipeline].lora_target_modules)
    trained = sum(weight.numel() for weight in network.parameters() if weight.requires_grad)
    assert memory_table.sizes_of(case).adapter == trained


def test_the_page_has_the_computed_memory():
    assert with_section(PAGE, memory_table.SECTION, memory_table.table()) == PAGE


# ---- A million images ----


def test_cost_by_hand():
    job = million_images.Job(
        forward_tflop=2.0, sampling_steps=10, passes=2, sampling_tflops=100, encoding_ms=36, prompt_ms=72,
        training_rate=10, image_mb=0.5, latent_mb=0.25, prompt_mb=1.0, scoring_rate=20, images=1e6,
        images_per_prompt=5, gpus=4,
    )  # fmt: skip
    found = million_images.cost(job)
    assert found.generating == pytest.approx(1e6 * 0.4 / 3600)  # 40 TFLOP an image
    assert found.scoring == pytest.approx(1e6 / 20 / 3600)
    assert found.encoding == pytest.approx(10 + 4)  # hours: a million times 36 ms, 200,000 times 72 ms
    assert found.training == pytest.approx(1e5 / 3600)
    assert (found.images_gb, found.encodings_gb) == (500, 250 + 200)
    assert found.days == pytest.approx(found.gpu_hours / 4 / 24)
    half = million_images.cost(replace(job, images=5e5))
    assert half.gpu_hours == pytest.approx(found.gpu_hours / 2)


def test_sizes_of_what_is_cached():
    sizes = million_images.encoded_mb("sd15-512")
    assert sizes["latent_mb"] == pytest.approx(2 * 4 * 4 * 64 * 64 / 1e6)
    assert sizes["prompt_mb"] == pytest.approx(2 * 77 * 768 / 1e6)
    assert million_images.encoded_mb("z-image-1024")["latent_mb"] == pytest.approx(4 * 16 * 128 * 128 / 1e6)


@pytest.mark.slow
@pytest.mark.parametrize("name", million_images.JOBS)
def test_forwards_are_counted(name):
    with_reference, without = (count_flops(MODELS[name], "real", False, it) for it in (True, False))
    assert million_images.JOBS[name].forward_tflop == pytest.approx((with_reference - without) / 1e12, rel=1e-3)


def test_every_input_says_where_it_is_from():
    names = {name for key in million_images.SOURCES for name in key.split(", ")}
    assert names | {"images", "gpus"} == set(million_images.Job.__dataclass_fields__)


def test_the_page_has_the_computed_cost():
    assert with_section(CLUSTERS, million_images.SECTION, million_images.section()) == CLUSTERS


# ---- Scripts ----


def test_the_job_takes_options_that_there_are():
    command = Path(sys.executable).with_name("hf")
    shown = subprocess.run(
        [command, "jobs", "run", "--help"], capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"}
    )
    job = script("hf jobs run").split("pytorch/pytorch")[0]
    options = re.findall(r"(--[a-z-]+)", job)
    assert len(options) == 8
    assert [it for it in options if not re.search(rf"{it}\b", shown.stdout)] == []
    flavor = re.search(r"--flavor (\S+)", job)[1]
    assert re.search(rf"[\[|\s]{flavor}[\]|]", shown.stdout)


def test_the_slurm_script_is_bash(tmp_path):
    done = subprocess.run(["bash", "-n"], input=script("#!/bin/bash"), text=True, capture_output=True)
    assert (done.returncode, done.stderr) == (0, "")


STAND_INS = {
    "scontrol": """#!/bin/bash
echo "$@" >> scontrol.log
if [ "$1" = show ]; then echo localhost; fi
""",
    # two tasks of one machine; the first one that is told passes SIGTERM on, as Slurm tells all
    "srun": """#!/bin/bash
[ "$1" = --wait=600 ] && shift
for task in 0 1; do SLURM_PROCID=$task SLURM_LOCALID=$task "$@" & tasks[$task]=$!; done
trap 'kill -TERM ${tasks[@]}' TERM
echo $$ > srun.pid
status=0
for task in 0 1; do
    wait ${tasks[$task]}; code=$?
    while kill -0 ${tasks[$task]} 2> /dev/null; do wait ${tasks[$task]}; code=$?; done
    [ $code -gt $status ] && status=$code
done
exit $status
""",
    "tgo-trl": """#!/bin/bash
exec {python} -m tgo_trl.cli "$@"
""",
}
SETTINGS = """
model_name_or_path: {folder}/model
dataset_name: {folder}/rows
output_dir: {folder}/out
encoding_cache_dir: {folder}/encodings
resolution: 16
use_cpu: true
max_steps: {max_steps}
per_device_train_batch_size: 2
save_strategy: "no"
logging_steps: 1
report_to: none
"""


@pytest.mark.slow
def test_the_slurm_script_trains_saves_at_sigterm_and_goes_on(tmp_path):
    stable_diffusion().save_pretrained(tmp_path / "model")
    scored_rows(8).to_parquet(tmp_path / "rows" / "train.parquet")
    for name, text in STAND_INS.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text.replace("{python}", sys.executable))
        path.chmod(0o755)
    port = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_NTASKS": "2", "SLURM_JOB_NODELIST": "localhost"}
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    environment = cpu_environment(PYTHONPATH=str(ROOT), PATH=path, HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", **port)

    def start(max_steps: int) -> subprocess.Popen:
        (tmp_path / "train.yaml").write_text(SETTINGS.format(folder=tmp_path, max_steps=max_steps))
        command = ["bash", "-c", script("#!/bin/bash")]
        return subprocess.Popen(
            command, cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    first, said = start(100_000), []
    for line in first.stdout:
        said.append(line)
        if "  loss " in line:  # training has begun
            os.kill(int((tmp_path / "srun.pid").read_text()), 15)
            break
    rest, _ = first.communicate(timeout=300)
    assert first.returncode == 143, "".join(said) + rest
    saved = int(re.search(r"SIGTERM at update (\d+) of 100000: checkpoint-\1 is the last one, no update lost", rest)[1])
    checkpoint = tmp_path / "out" / f"checkpoint-{saved}"
    assert {it.name for it in checkpoint.glob("rng_state_*")} == {"rng_state_0.pth", "rng_state_1.pth"}  # of one run
    assert f"requeue {os.getpid()}" in (tmp_path / "scontrol.log").read_text()

    (tmp_path / "scontrol.log").unlink()
    again = start(100_000)
    for line in again.stdout:
        if f"{saved + 1}/100000" in line or "  loss " in line:
            os.kill(int((tmp_path / "srun.pid").read_text()), 15)
            break
    rest, _ = again.communicate(timeout=300)
    assert again.returncode == 143, rest
    later = int(re.search(r"SIGTERM at update (\d+) of 100000", rest)[1])
    assert later > saved
