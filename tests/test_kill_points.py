"""Every command, killed at moments of all kinds: the same command then gives what it would have given undisturbed."""

import io
import os
import random
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load

from tgo_trl.trainer.measured_speed import FOLDER

from . import tiny
from .hub_server import Fault, Hub, serving
from .killing import Death, run
from .runs import assert_equal

REWARDS = """
def length(prompts, images):
    return [float(len(prompt)) for prompt in prompts]

def brightness(prompts, images):
    return [sum(image.convert("L").resize((1, 1)).getdata()) for image in images]
"""
TRAIN = (
    "--lora_r 2 --learning_rate 1e-2 --per_device_train_batch_size 2 --use_cpu true --report_to none --logging_steps 1"
)
SAVING = "--max_steps 4 --save_strategy steps --save_steps 1 --save_total_limit 1"
DATA = "--rows_per_shard 3 --disable_tqdm true --output_dir {out}"
COMMANDS = {
    "encode": f"train --dataset_name {{scored}} --output_dir {{out}} --encoding_cache_dir {{out}}/cache {TRAIN}"
    " --max_steps 1 --save_strategy no",
    "train": f"train --dataset_name {{scored}} --output_dir {{out}} --encoding_cache_dir {{cache}} {TRAIN} {SAVING}",
    "generate": f"generate --prompts {{prompts}} --num_images_per_prompt 2 --num_inference_steps 2 {DATA}",
    "score": "score --dataset_name {unscored} --rewards {rewards}:length {rewards}:brightness"
    f" --ensemble_weights 1 1 {DATA}",
    "evaluate": "evaluate --models a={model} b={model} --prompts {prompts} --rewards {rewards}:length"
    " {rewards}:brightness --num_images_per_prompt 2 --num_inference_steps 1 --num_resamples 100"
    f' --model_settings {{{{"b":{{{{"guidance_scale":2}}}}}}}} {DATA}',
    "rounds": "rounds --prompts {prompts} --rewards {rewards}:brightness --num_rounds 2 --num_images_per_prompt 2"
    " --num_inference_steps 1 --held_out_rewards {rewards}:length --held_out_images_per_prompt 2"
    f' --generate_settings {{{{"rows_per_shard":4}}}} --output_dir {{out}} --encoding_cache_dir {{cache}} {TRAIN}'
    " --max_steps 2 --save_strategy steps --save_steps 1",
    "convert": f"convert --dataset_name {{pairs}} {DATA}",
    "push data": f"convert --dataset_name {{pairs}} {DATA} --push_to_hub true --hub_dataset_id me/rows",
    "push model": f"train --dataset_name {{scored}} --output_dir {{out}} --encoding_cache_dir {{cache}} {TRAIN} "
    f"{SAVING} --push_to_hub true --hub_model_id me/adapter --hub_strategy checkpoint --hub_always_push true",
}
POINTS = {
    "encode": 6,
    "train": 14,
    "generate": 8,
    "score": 10,
    "evaluate": 12,
    "rounds": 8,
    "convert": 6,
    "push data": 6,
    "push model": 6,
}
TIMED = ("trainer_state.json", "training_args.bin", "manifest.json")
"""Files of a checkpoint that hold times, or digests of them; as those in [`FOLDER`] of the encodings do."""


@dataclass
class Workplace:
    """What the commands work on, and what each gives undisturbed."""

    folder: Path
    whole: dict[str, "Result"] = field(default_factory=dict)

    def arguments(self, name: str, out: Path) -> list[str]:
        places = {name: self.folder / name for name in ("scored", "unscored", "pairs", "cache", "model")}
        places |= {"prompts": self.folder / "prompts.txt", "rewards": self.folder / "rewards.py", "out": out}
        words = COMMANDS[name].format(**places).split()
        needs_model = words[0] in ("train", "generate", "rounds")
        return [*words, *(["--model_name_or_path", str(self.folder / "model")] if needs_model else [])]

    def undisturbed(self, name: str) -> "Result":
        if name not in self.whole:
            self.whole[name] = Result(self, name, self.folder / f"whole {name}".replace(" ", "-"))
            assert self.whole[name].run() == 0, self.whole[name].log
        return self.whole[name]


class Result:
    """A command in a folder of its own, with a Hub of its own if it pushes.

    Attributes:
        operations: of files, or requests, that it made.
    """

    def __init__(self, place: Workplace, name: str, folder: Path) -> None:
        self.place, self.name, self.folder = place, name, folder
        self.pushes = name.startswith("push")
        self.operations = 0
        self.uploaded: dict[str, bytes] = {}
        self._hub = Hub()

    def run(self, *deaths: Death) -> int:
        """Runs the command once for each death, and once more; the last exit status."""
        if not self.pushes:
            return self._run_all(deaths)
        with serving() as hub:
            self._hub = hub
            status = self._run_all(deaths)
            self.uploaded = {name: data for repo in hub.repositories.values() for name, data in repo.files.items()}
        return status

    def _run_all(self, deaths: tuple[Death, ...]) -> int:
        for i, death in enumerate(deaths):
            status = self._run(death)
            assert status == -signal.SIGKILL or (i and status == 0), (status, self.log)
        return self._run(Death())

    def _run(self, death: Death) -> int:
        out = self.folder / "out"
        arguments, watched = self.place.arguments(self.name, out), [out / "cache" if self.name == "encode" else out]
        if not self.pushes:
            status, self.operations = run(arguments, self.folder, watched, death)
            return status
        pid: list[int] = []
        requests: list[str] = []
        meet = type(self._hub).meet

        def count(request: str) -> object:
            requests.append(request)
            if len(requests) == death.at:
                os.kill(pid[0], signal.SIGKILL)
                return Fault(request, "drop")
            return meet(self._hub, request)

        self._hub.meet = count  # type: ignore[assignment, method-assign]
        url = self._hub.url
        status, _ = run(arguments, self.folder, watched, None, url, lambda process: pid.append(process.pid or 0))
        self.operations = len(requests)
        return status

    @property
    def log(self) -> str:
        return (self.folder / "log.txt").read_text()[-3000:]

    def files(self) -> dict[str, bytes]:
        """Every file, hidden ones too, by its name in the folder."""
        out = self.folder / "out"
        return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if not path.is_dir()}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    folder = tmp_path_factory.mktemp("kills")
    tiny.stable_diffusion().save_pretrained(folder / "model", safe_serialization=True)
    rows = tiny.scored_rows(8)
    for name, dataset in (("scored", rows), ("unscored", rows.remove_columns("score"))):
        (folder / name).mkdir()
        dataset.to_parquet(folder / name / "train.parquet")
    (folder / "pairs").mkdir()
    labels = [float(i % 2) for i in range(8)]
    columns = {"prompt": rows["prompt"], "label_0": labels, "label_1": [1 - label for label in labels]}
    columns |= {f"image_{k}": [tiny.picture(i + k) for i in range(8)] for k in (0, 1)}
    Dataset.from_dict(columns).to_parquet(folder / "pairs" / "train.parquet")
    (folder / "prompts.txt").write_text("\n".join(tiny.PROMPTS))
    (folder / "rewards.py").write_text(REWARDS)
    return Workplace(folder)


def assert_same(result: Result, whole: Result) -> None:
    """Every file is there and none besides, with the same content, but for times."""
    for files, expected in ((result.files(), whole.files()), (result.uploaded, whole.uploaded)):
        assert files.keys() == expected.keys()
        for name in expected:
            path = Path(name)
            if path.name not in TIMED and path.parent.name != FOLDER and path.suffix != ".png":
                assert_equal(content(name, files[name]), content(name, expected[name]), name)


def content(name: str, data: bytes) -> Any:
    """What a file says: tensors, whose names safetensors writes in any order, or its bytes."""
    if name.endswith(".safetensors"):
        return load(data)
    if name.endswith((".pt", ".pth")):
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=False)
    return data


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "seed"),
    [
        pytest.param(name, seed, id=f"{name}-{seed}", marks=[pytest.mark.slow] if seed == 0 else [])
        for name, points in POINTS.items()
        for seed in range(points)
    ],
)
def test_what_is_killed_goes_on_to_the_same_end(place, tmp_path, name, seed):
    """Every other command is killed again where it goes on; in every third, what is not yet on the disk is lost."""
    whole = place.undisturbed(name)
    draw = random.Random(f"{name} {seed}")
    deaths = [Death(draw.randint(1, whole.operations), is_torn=seed % 3 == 2)]
    if seed % 2:
        deaths.append(Death(draw.randint(1, max(1, whole.operations - deaths[0].at))))
    result = Result(place, name, tmp_path)
    assert result.run(*deaths) == 0, (deaths, result.log)
    assert_same(result, whole)
