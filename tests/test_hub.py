"""Uploads, caught where huggingface_hub would send them: every one must hold a model that can be used."""

import shutil
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from huggingface_hub import CommitInfo, HfApi, RepoUrl
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file

from . import tiny
from .runs import assert_equal, config, make_trainer

WEIGHTS = "pytorch_lora_weights.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


@dataclass
class Push:
    """One upload, as it would arrive."""

    folder: Path
    path_in_repo: str | None
    message: str
    repo: str

    @property
    def files(self):
        return {path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file()}

    @property
    def card(self):
        return (self.folder / "README.md").read_text()


@dataclass
class Hub:
    """Keeps what is uploaded in a folder."""

    root: Path
    created: list = field(default_factory=list)
    pushes: list = field(default_factory=list)

    def create_repo(self, repo_id, **kwargs):
        self.created.append(repo_id)
        name = repo_id if "/" in repo_id else f"me/{repo_id}"
        return RepoUrl(f"https://huggingface.co/{name}")

    def upload_folder(self, *, repo_id, folder_path, commit_message, path_in_repo=None, ignore_patterns=None,
                      allow_patterns=None, run_as_future=False, token=None, revision=None):  # fmt: skip
        push = Push(self.root / f"push-{len(self.pushes)}", path_in_repo, commit_message, repo_id)
        source = Path(folder_path)
        names = [path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()]
        for name in filter_repo_objects(names, ignore_patterns=ignore_patterns, allow_patterns=allow_patterns):
            target = push.folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / name, target)
        self.pushes.append(push)
        info = CommitInfo(f"https://huggingface.co/{repo_id}/commit/0", commit_message, "", "0")
        if not run_as_future:
            return info
        future = Future()
        future.set_result(info)
        return future


@pytest.fixture
def hub(tmp_path, monkeypatch):
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr(HfApi, "create_repo", lambda self, *args, **kwargs: hub.create_repo(*args, **kwargs))
    monkeypatch.setattr(HfApi, "upload_folder", lambda self, **kwargs: hub.upload_folder(**kwargs))
    # Bound to huggingface_hub's own `HfApi` when it was imported.
    monkeypatch.setattr("tgo_trl.publishing.upload_folder", hub.upload_folder)
    return hub


def pushing(folder, **settings):
    arguments = {"sample_prompts": ["a cat"], "sample_num_inference_steps": 1, "sample_steps": 2, "max_steps": 4,
                 "save_strategy": "steps", "save_steps": 2, "hub_model_id": "me/mine"}  # fmt: skip
    trainer = make_trainer(config(folder, push_to_hub=True, **{**arguments, **settings}))
    trainer.train()
    return trainer


def assert_usable(push):
    """Card, adapter and settings; nothing that runs code when it is loaded; nothing of a run's scaffolding."""
    assert {"README.md", WEIGHTS, "tgo_config.json"} <= push.files
    assert not [name for name in push.files if name.endswith(PICKLES)]
    assert not [name for name in push.files if name.startswith(("_", "checkpoint-")) or "_saving-" in name]
    front = yaml.safe_load(push.card.split("---")[1])
    assert front["library_name"] == "diffusers"
    stock = tiny.stable_diffusion()
    stock.load_lora_weights(push.folder)
    assert stock.get_list_adapters() == {"unet": ["default_0"]}


def test_every_save_pushes_a_usable_model(tmp_path, hub):
    trainer = pushing(tmp_path)
    assert hub.created == ["me/mine"]
    assert [push.message for push in hub.pushes] == ["Training in progress, step 2", "Training in progress, step 4"]
    for push in hub.pushes:
        assert push.path_in_repo is None
        assert push.repo == "me/mine"
        assert_usable(push)
        assert 'load_lora_weights("me/mine")' in push.card
    first, last = hub.pushes
    assert "| updates | 2 |" in first.card
    assert "| updates | 4 |" in last.card
    assert_equal(load_file(last.folder / WEIGHTS), trainer.policy.adapter_state("default"))
    assert load_file(first.folder / WEIGHTS).keys() == load_file(last.folder / WEIGHTS).keys()
    assert "samples/step-000002.png" in first.files
    assert "score_histogram.png" in first.files


def test_pictures_that_the_card_shows_are_pushed_with_it(tmp_path, hub):
    pushing(tmp_path).push_to_hub()
    assert len(hub.pushes) == 3
    for push in hub.pushes:
        shown = [part.partition(")")[0] for part in push.card.split("](")[1:]]
        shown = [name for name in shown if not name.startswith("http")]
        assert shown
        assert set(shown) <= push.files


def test_strategy_end_pushes_nothing_before_the_end(tmp_path, hub):
    trainer = pushing(tmp_path, hub_strategy="end")
    assert hub.pushes == []
    trainer.save_model()
    [push] = hub.pushes
    assert_usable(push)
    assert push.message == "Model save"


def test_strategy_checkpoint_pushes_what_a_resume_needs(tmp_path, hub):
    pushing(tmp_path, hub_strategy="checkpoint")
    assert [push.path_in_repo for push in hub.pushes] == [None, "last-checkpoint"] * 2
    for model, checkpoint in (hub.pushes[:2], hub.pushes[2:]):
        assert_usable(model)
        names = {WEIGHTS, "tgo_config.json", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}
        assert checkpoint.files == names
    # The folder as it came down from the Hub is one that a run resumes from.
    trainer = make_trainer(config(tmp_path / "elsewhere", max_steps=5))
    trainer.train(resume_from_checkpoint=str(hub.pushes[-1].folder))
    assert trainer._initial_global_step == 4


def test_strategy_all_checkpoints_names_each(tmp_path, hub):
    pushing(tmp_path, hub_strategy="all_checkpoints")
    assert [push.path_in_repo for push in hub.pushes] == [None, "checkpoint-2", None, "checkpoint-4"]


def test_full_fine_tuning_pushes_a_pipeline_that_loads(tmp_path, hub):
    pushing(tmp_path, use_peft=False, sample_prompts=None)
    for push in hub.pushes:
        pipeline = tiny.StableDiffusionPipeline.from_pretrained(push.folder, safety_checker=None)
        assert pipeline.unet.config.in_channels == 4
        assert not [name for name in push.files if name.endswith(PICKLES)]
        assert 'from_pretrained("me/mine")' in push.card


def test_push_to_hub_names_the_data_set(tmp_path, hub):
    trainer = make_trainer(config(tmp_path))
    trainer.train()
    assert hub.pushes == []
    trainer.push_to_hub(dataset_name="me/scored-images", tags=["cats"], license="mit")
    assert hub.created == ["out"], "the repository is named after the output directory"
    [push] = hub.pushes
    assert_usable(push)
    assert push.repo == "me/out"
    front = yaml.safe_load(push.card.split("---")[1])
    assert front["datasets"] == ["me/scored-images"] or front["datasets"] == "me/scored-images"
    assert front["license"] == "mit"
    assert "cats" in front["tags"]
    assert "trained on [me/scored-images](https://huggingface.co/datasets/me/scored-images)" in push.card
    assert 'load_lora_weights("me/out")' in push.card
    assert push.message == "End of training"


def test_what_a_killed_process_left_is_not_pushed(tmp_path, hub):
    trainer = make_trainer(config(tmp_path))
    left = Path(trainer.args.output_dir) / "_saving-abc" / "unet"
    left.mkdir(parents=True)
    (left / "half.safetensors").write_text("half")
    trainer.push_to_hub()
    assert_usable(hub.pushes[0])


def test_a_push_in_progress_is_not_interrupted(tmp_path, hub, monkeypatch):
    """Without `hub_always_push`, a checkpoint that comes too early is left out."""
    pending = Future()
    upload = hub.upload_folder

    def slow(**kwargs):
        upload(**kwargs)
        return pending

    monkeypatch.setattr("tgo_trl.publishing.upload_folder", slow)
    trainer = make_trainer(config(tmp_path, push_to_hub=True, max_steps=3, save_strategy="steps", save_steps=1))
    monkeypatch.setattr(trainer, "_finish_current_push", lambda: None)
    trainer.train()
    assert [push.message for push in hub.pushes] == ["Training in progress, step 1"]
    always = make_trainer(
        config(tmp_path, push_to_hub=True, max_steps=3, save_strategy="steps", save_steps=1, hub_always_push=True)
    )
    monkeypatch.setattr(always, "_finish_current_push", lambda: None)
    hub.pushes.clear()
    always.train()
    assert len(hub.pushes) == 3
    assert len(always.push_in_progress.jobs) == 3
