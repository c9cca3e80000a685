"""The page on extending, followed to the letter in a copy of the package."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tgo_trl

from .devices import cpu_environment

ROOT = Path(tgo_trl.__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))


def blocks(section):
    """The code of a section: its first line, a comment that says where it goes, and the rest."""
    found = re.findall(r"```python\n# (.+?)\n(.*?)```", SECTIONS[section], re.DOTALL)
    assert found, section
    return found


def follow(folder, section):
    """A copy of the package in which the page has been followed: new files, and rows in tables. Nothing else."""
    shutil.copytree(ROOT / "tgo_trl", folder / "tgo_trl", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "model_card_template.md", folder)
    for place, code in blocks(section):
        kind = re.fullmatch(r"(in|above) (\w+) of (tgo_trl/\S+\.py)", place)
        if kind is None:
            path = folder / place
            path.parent.mkdir(exist_ok=True)
            path.write_text(code)
            continue
        position, table, name = kind.groups()
        path = folder / name
        text = path.read_text()
        head = re.search(rf"^{table}\b.*?\{{\n", text, re.MULTILINE)
        assert head, f"{table} is no table of {name}"
        if position == "above":
            text = f"{text[: head.start()]}{code}\n\n{text[head.start() :]}"
        else:
            text = f"{text[: head.end()]}{code}{text[head.end() :]}"
            own = re.search(r"(\w+),  # from (\.\w+)$", code, re.MULTILINE)
            if own:  # above the table, where the others are
                text = text.replace("\nfrom .", f"\nfrom {own[2]} import {own[1]}\nfrom .", 1)
        path.write_text(text)
    return folder


def run(folder, code, *arguments):
    environment = cpu_environment() | {"PYTHONPATH": f"{folder}:{ROOT}", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", f"import tgo_trl; assert tgo_trl.__file__.startswith({str(folder)!r})\n{code}"]
    done = subprocess.run(
        [*command, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


TRAIN = """
from pathlib import Path
from tests.runs import config, logged, make_trainer
trainer = make_trainer(config(Path("."), loss_type="hinge", save_strategy="no"))
trainer.train()
trainer.create_model_card()
print(f"{logged(trainer)[0]:.4f}", trainer.train_labels.weights.mean().item())
"""


@pytest.mark.slow
def test_a_loss_is_a_file_and_a_row(tmp_path):
    first, mean_weight = run(follow(tmp_path, "A loss"), TRAIN).splitlines()[-1].split()
    # at the start the reward is 0, so that the hinge of each row is its weight: 1 + 5 |s - 3.5|, of 0, 1, ... 7
    assert float(mean_weight) == 11
    assert 0 < float(first) < 19
    assert "with a hinge loss on scored images." in (tmp_path / "out" / "README.md").read_text()


PIXELS = """
import torch
from pathlib import Path
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from tests.runs import config, logged, make_trainer
unet = UNet2DModel(
    sample_size=8, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=2, attention_head_dim=4,
    down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
)
trainer = make_trainer(config(Path("."), use_peft=False), model=DDPMPipeline(unet, DDPMScheduler()))
trainer.train()
print(type(trainer.family).__name__, len(logged(trainer)), trainer.size)
"""


@pytest.mark.slow
def test_a_family_is_a_file_and_a_row(tmp_path):
    assert run(follow(tmp_path, "A family"), PIXELS).splitlines()[-1] == "PixelFamily 2 (8, 8)"


CONTRAST = """
from PIL import Image
from tgo_trl.rewards import load_reward
half = Image.new("L", (2, 1))
half.putpixel((0, 0), 255)
print(load_reward("contrast")(["", ""], [half, Image.new("L", (2, 1), 7)]))
"""


@pytest.mark.slow
def test_a_reward_is_a_file_and_a_row(tmp_path):
    assert run(follow(tmp_path, "A reward"), CONTRAST) == "[0.5, 0.0]\n"


COMMAND = """
import sys
from tgo_trl.cli import main
raise SystemExit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_command_is_a_folder_and_a_row(tmp_path):
    follow(tmp_path, "A command")
    (tmp_path / "prompts.txt").write_text("a cat\ntwo birds\na\n")
    arguments = ["lengths", "--prompts", "prompts.txt", "--output_dir", "out", "--rows_per_shard", "2"]
    assert "--rows_per_shard" in run(tmp_path, COMMAND, "lengths", "--help")
    run(tmp_path, COMMAND, *arguments)
    shards = sorted((tmp_path / "out" / "data").iterdir())
    assert [path.name for path in shards] == ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]
    whole = [path.read_bytes() for path in shards]
    shards[1].unlink()  # as if it had been killed
    run(tmp_path, COMMAND, *arguments)
    assert [path.read_bytes() for path in shards] == whole
    from datasets import load_dataset

    rows = load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert list(rows) == [
        {"prompt": "a cat", "length": 5},
        {"prompt": "two birds", "length": 9},
        {"prompt": "a", "length": 1},
    ]
    assert (tmp_path / "out" / "README.md").read_text().endswith("\n---\n\nThe lengths of 3 prompts.\n")


STRATEGY = """
from pathlib import Path
from tests.runs import config, make_trainer
from tgo_trl.policy.distributed import Counting
counts = []
settings = {"sync_ref_model": True, "ref_model_sync_steps": 100, "save_strategy": "steps", "save_steps": 2}
trainer = make_trainer(config(Path("."), **settings))
for act in (
    trainer.train, trainer.save_model, lambda: trainer.sync_reference(1.0),
    lambda: trainer.sample(["a cat"], [0], num_inference_steps=1),
    lambda: trainer._load_from_checkpoint(str(Path("out") / "checkpoint-2")),
):
    before = Counting.count
    act()
    counts.append(Counting.count - before)
print(counts)
"""


@pytest.mark.slow
def test_a_strategy_is_asked_wherever_weights_are_saved_or_loaded(tmp_path):
    counts = run(follow(tmp_path, "A way of spreading weights"), STRATEGY).splitlines()[-1]
    assert counts == "[1, 1, 0, 0, 1]"


def test_every_section_is_followed():
    assert list(SECTIONS) == ["A loss", "A family", "A reward", "A command", "A way of spreading weights"]


@pytest.mark.parametrize("link", re.findall(r"\]\((\.\./[^)#]+|\w[\w/]+\.md)\)", PAGE))
def test_links_lead_somewhere(link):
    assert (ROOT / "docs" / link).resolve().is_file()


# ---- What CONTRIBUTING names ----

GUIDE = (ROOT / "CONTRIBUTING.md").read_text()
WALKS = GUIDE[GUIDE.index("## How the code is laid out") : GUIDE.index("### Words")]
SOURCE = "\n".join(path.read_text() for path in (ROOT / "tgo_trl").rglob("*.py"))


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`([\w/*]+(?:\.py|/))`", WALKS))))
def test_files_and_rooms_of_the_guide_are_there(name):
    places = (ROOT, ROOT / "tgo_trl", *(path for path in (ROOT / "tgo_trl").rglob("*") if path.is_dir()))
    assert any(next(place.glob(name.rstrip("/")), None) for place in places)


NAMES = sorted(set(re.findall(r"`([A-Z]\w+|[a-z]+_\w+|\w+\.\w+)`", WALKS)) - {"encoding_version"})


@pytest.mark.parametrize("name", NAMES)
def test_names_of_the_guide_are_defined(name):
    last = name.rpartition(".")[2]
    assert last == "py" or re.search(rf"(def|class) {last}\b", SOURCE), name


@pytest.mark.parametrize("walk", ["A row's way to a gradient", "A score's way to the report"])
def test_the_walks_have_ten_stations(walk):
    text = WALKS[WALKS.index(walk) :].partition("\n### ")[0]
    assert re.findall(r"^(\d+)\. ", text, re.MULTILINE) == [str(i) for i in range(1, 11)]


def test_the_page_of_the_code_lists_the_rooms():
    page = (ROOT / "docs" / "development.md").read_text()
    listed = re.findall(r"^\| `(\w+)/` \|", page[page.index("## The rooms") :], re.MULTILINE)
    rooms = {path.parent.name for path in (ROOT / "tgo_trl").glob("*/__init__.py")}
    assert sorted(listed) == sorted(rooms - {"processes"})  # an older path of one
