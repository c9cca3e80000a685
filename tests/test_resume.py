"""A run that was cut short and goes on must end as the one that was not: bit for bit."""

import gc
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from tgo_trl import TGOTrainer
from tgo_trl.trainer import checkpoints

from . import tiny
from .killing import execute
from .marks import some_fast
from .runs import Stop, StopAt, assert_equal, config, logged, make_trainer, metrics, streamed, trained_weights

# Coverage is measured by the tests of course, average and optimizers, which run the same code.
pytestmark = pytest.mark.no_cover


def checkpoint(folder: Path, step: int) -> Path:
    return folder / "out" / f"checkpoint-{step}"


def state_of(folder: Path) -> dict:
    """Optimizer, schedule and random state of a checkpoint."""
    names = ("optimizer.pt", "scheduler.pt", "rng_state.pth")
    return {name: torch.load(folder / name, weights_only=False) for name in names}


# 8 rows in updates of 4: two updates are an epoch. The run stops before it saves the checkpoint of update 4 or 3.
RESUMES = {
    "middle of an epoch": {"max_steps": 6, "save_steps": 3, "stop": 5, "gradient_checkpointing": True},
    "epoch boundary": {"max_steps": 6, "save_steps": 2, "stop": 4},
    "accumulated": {
        "max_steps": 6, "save_steps": 3, "stop": 4, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2,
    },
    "ragged": {"max_steps": 6, "save_steps": 4, "stop": 5, "rows": 11},
    "workers": {"max_steps": 4, "save_steps": 3, "stop": 4, "dataloader_num_workers": 1},
    "sequential": {"max_steps": 4, "save_steps": 3, "stop": 4, "train_sampling_strategy": "sequential"},
    "reference moved by steps": {
        "max_steps": 6, "save_steps": 3, "stop": 4, "sync_ref_model": True, "ref_model_sync_steps": 2,
    },
    "reference moved with the checkpoint": {
        "max_steps": 6, "save_steps": 3, "stop": 4, "sync_ref_model": True, "ref_model_sync_steps": 3,
    },
    "reference moved by epochs, at the boundary": {
        "max_steps": 6, "save_steps": 2, "stop": 3, "sync_ref_model": True, "ref_model_sync_strategy": "epoch",
    },
    "reference moved by epochs, in the middle": {
        "max_steps": 6, "save_steps": 3, "stop": 4, "sync_ref_model": True, "ref_model_sync_strategy": "epoch",
    },
    "full": {"max_steps": 4, "save_steps": 3, "stop": 4, "use_peft": False, "learning_rate": 1e-3},
    "full, reference moved": {
        "max_steps": 4, "save_steps": 3, "stop": 4, "use_peft": False, "learning_rate": 1e-3, "sync_ref_model": True,
        "ref_model_sync_steps": 1,
    },
    "stream": {"max_steps": 6, "save_steps": 3, "stop": 4, "stream": True},
    "stream, reference moved": {
        "max_steps": 6, "save_steps": 3, "stop": 4, "stream": True, "rows": 11, "sync_ref_model": True,
        "ref_model_sync_steps": 2,
    },
    "sft": {"max_steps": 4, "save_steps": 3, "stop": 4, "loss_type": "sft"},
    "pairs": {"max_steps": 6, "save_steps": 3, "stop": 5, "loss_type": "dspo", "pairs": "all", "rows": 11},
    "adapter dropout": {
        "max_steps": 4, "save_steps": 3, "stop": 4, "lora_dropout": 0.5, "disable_dropout": False,
        "gradient_checkpointing": True,
    },
}  # fmt: skip


FAST = {"middle of an epoch", "reference moved by epochs, at the boundary", "stream", "pairs"}


@pytest.mark.parametrize("settings", some_fast(RESUMES, FAST))
def test_resumed_equals_uninterrupted(tmp_path, settings):
    settings = {"save_strategy": "steps", **settings}
    stop, num_rows, stream = settings.pop("stop"), settings.pop("rows", 8), settings.pop("stream", False)
    max_steps, save_steps = settings["max_steps"], settings["save_steps"]

    def trainer(folder, **arguments):
        rows = tiny.scored_rows(num_rows)
        last = {"eval_strategy": "steps", "eval_steps": max_steps}
        arguments = {"train_dataset": streamed(rows) if stream else rows, "eval_dataset": rows, **arguments}
        return make_trainer(config(folder, **last, **settings), **arguments)

    whole = trainer(tmp_path / "whole")
    whole.train()
    cut = trainer(tmp_path / "cut", callbacks=[StopAt(stop)])
    with pytest.raises(Stop):
        cut.train()
    assert len(logged(cut)) == stop - 1
    resumed = trainer(tmp_path / "cut")
    resumed.train(resume_from_checkpoint=True)

    assert resumed._initial_global_step == (stop - 1) // save_steps * save_steps > 0
    assert_equal(trained_weights(resumed), trained_weights(whole))
    assert_equal(
        resumed.reference.state() if resumed.reference else {}, whole.reference.state() if whole.reference else {}
    )
    steps = [
        [entry for entry in run.state.log_history if entry.keys() & {"loss", "eval_loss"}] for run in (whole, resumed)
    ]
    assert len(steps[0]) == max_steps + 1
    assert_equal(metrics(steps[1]), metrics(steps[0]))
    last = max_steps // save_steps * save_steps
    folders = [checkpoint(tmp_path / name, last) for name in ("cut", "whole")]
    assert_equal(*(state_of(folder) for folder in folders))


def test_a_run_resumes_at_its_end_without_training(tmp_path):
    args = config(tmp_path, save_strategy="steps", save_steps=2)
    first = make_trainer(args)
    first.train()
    again = make_trainer(args)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 2
    assert_equal(trained_weights(again), trained_weights(first))


def test_a_finished_run_goes_on_with_more_updates(tmp_path):
    short = config(tmp_path, save_strategy="steps", save_steps=2, lr_scheduler_type="constant")
    make_trainer(short).train()
    settings = {"save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "constant", "max_steps": 5}
    longer = make_trainer(config(tmp_path, **settings))
    longer.train(resume_from_checkpoint=True)
    whole = make_trainer(config(tmp_path / "whole", **settings))
    whole.train()
    assert_equal(trained_weights(longer), trained_weights(whole))


def test_a_second_call_of_train_starts_at_the_first_epoch(tmp_path):
    """Rows and noise of a second `train()` are the first one's, as `Trainer` starts over too."""
    trainer = make_trainer(config(tmp_path, learning_rate=0.0))
    trainer.train()
    first = logged(trainer, "logps/chosen")
    trainer.train()
    assert logged(trainer, "logps/chosen") == first


def test_a_second_call_of_train_trains_what_a_pipeline_has_switched_off(tmp_path):
    weights = []
    for name, looks in (("looked-at", True), ("plain", False)):
        trainer = make_trainer(config(tmp_path / name, max_grad_norm=0.1))
        trainer.train()
        if looks:
            trainer.pipeline.disable_lora()  # to see the base, which freezes the adapter too
        trainer.train()
        assert all(norm > 0 for norm in logged(trainer, "grad_norm"))
        weights.append(trained_weights(trainer))
    assert_equal(*weights)


# ---- Checkpoints that are no checkpoints ----


@pytest.fixture(scope="module")
def saved_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    make_trainer(config(folder, max_steps=4, save_strategy="steps", save_steps=2)).train()
    return folder


@pytest.fixture
def saved(saved_once, tmp_path):
    """A folder with the checkpoints 2 and 4."""
    shutil.copytree(saved_once, tmp_path, dirs_exist_ok=True)
    return tmp_path


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES = {
    "trainer_state.json cut": ("trainer_state.json", truncate),
    "trainer_state.json empty": ("trainer_state.json", empty),
    "trainer_state.json missing": ("trainer_state.json", Path.unlink),
    "tgo_config.json missing": ("tgo_config.json", Path.unlink),
}


@pytest.mark.parametrize(("name", "damage"), DAMAGES.values(), ids=DAMAGES)
def test_an_incomplete_checkpoint_is_passed_over(saved, name, damage):
    damage(checkpoint(saved, 4) / name)
    assert checkpoints.last_checkpoint(saved / "out") == checkpoint(saved, 2)
    trainer = make_trainer(config(saved, max_steps=4))
    trainer.train(resume_from_checkpoint=True)
    assert trainer._initial_global_step == 2


@pytest.mark.parametrize(("name", "damage"), DAMAGES.values(), ids=DAMAGES)
def test_an_incomplete_checkpoint_cannot_be_resumed_by_name(saved, name, damage):
    damage(checkpoint(saved, 4) / name)
    trainer = make_trainer(config(saved, max_steps=6))
    with pytest.raises(ValueError, match="checkpoint-4 is no complete checkpoint"):
        trainer.train(resume_from_checkpoint=str(checkpoint(saved, 4)))


def test_nothing_to_resume_is_said(tmp_path):
    trainer = make_trainer(config(tmp_path))
    with pytest.raises(ValueError, match=r"No complete checkpoint found in `output_dir` \(.*out\)"):
        trainer.train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match="is no complete checkpoint"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "nowhere"))


def test_resume_false_starts_anew(saved):
    trainer = make_trainer(config(saved, max_steps=2))
    trainer.train(resume_from_checkpoint=False)
    assert trainer._initial_global_step == 0


def test_checkpoints_are_ordered_by_number_not_by_name(saved):
    shutil.copytree(checkpoint(saved, 2), checkpoint(saved, 10))
    assert checkpoints.last_checkpoint(saved / "out").name == "checkpoint-10"


def test_what_else_lies_in_the_folder_is_taken_for_nothing(saved):
    """A killed process leaves a `_saving-*` folder; a user may leave anything."""
    for name in ("_saving-abc", "checkpoint-x", "checkpoint-", "checkpoint-7/_saving-abc", "samples/checkpoint-9"):
        shutil.copytree(checkpoint(saved, 2), saved / "out" / name)
    (saved / "out" / "checkpoint-8").write_text("a file")
    assert checkpoints.last_checkpoint(saved / "out") == checkpoint(saved, 4)
    trainer = make_trainer(config(saved, max_steps=5))
    trainer.train(resume_from_checkpoint=True)
    assert trainer._initial_global_step == 4


def test_other_data_or_another_threshold_are_refused(saved):
    path = str(checkpoint(saved, 2))
    rows, other = tiny.scored_rows(8), tiny.scored_rows(8, seed=1)
    others = {
        "`threshold_percentile` was 50.0, is 60.0": ({"threshold_percentile": 60.0}, rows),
        "`confidence_coef` was 5.0, is 1.0": ({"confidence_coef": 1.0}, rows),
        "the rows, their order, images or videos are others": ({}, tiny.scored_rows(10)),
        "order, images or videos are others": ({}, rows.map(lambda row: {"score": row["score"] * 2})),
        "rows, their order": ({}, rows.select([1, 0, 2, 3, 4, 5, 6, 7])),
        "images or videos": ({}, Dataset.from_dict({**rows.to_dict(), "image": list(other["image"])})),
        "the base model's weights are others": ({"seed_of_model": 1}, rows),
        "settings of `scheduler` are others": ({"prediction_type": "v_prediction"}, rows),
    }
    for message, (settings, data) in others.items():
        settings = dict(settings)
        model = tiny.stable_diffusion(settings.pop("prediction_type", "epsilon"), seed=settings.pop("seed_of_model", 0))
        args = config(saved, **settings)
        trainer = make_trainer(args, model=model, train_dataset=data)
        before = trained_weights(trainer)
        with pytest.raises(ValueError, match=re.escape(message)):
            trainer.train(resume_from_checkpoint=path)
        assert_equal(trained_weights(trainer), before)


def test_an_adapter_of_another_rank_is_refused(saved):
    trainer = make_trainer(config(saved, lora_r=2))
    with pytest.raises(ValueError, match="`lora_r` was 4, is 2"):
        trainer.train(resume_from_checkpoint=True)
    trainer = make_trainer(config(saved, lora_r=2, resume_with_changes=True))
    with pytest.raises(ValueError, match="of other names or shapes"):
        trainer.train(resume_from_checkpoint=True)


# ---- Killed while saving ----

KILLED = """
import os, sys
from pathlib import Path
import safetensors.torch, torch, transformers.trainer_callback
from tests import runs

victim, folder = sys.argv[1], Path(sys.argv[2])
torch.set_num_threads(1)

def half_of(save, path_of):
    def save_half(*args, **kwargs):
        save(*args, **kwargs)
        path = Path(path_of(*args))
        if "checkpoint-4" in str(path) and path.name == victim:
            os.truncate(path, path.stat().st_size // 2)
            os._exit(9)
    return save_half

torch.save = half_of(torch.save, lambda value, path: path)
safetensors.torch.save_file = half_of(safetensors.torch.save_file, lambda value, path: path)
state = transformers.trainer_callback.TrainerState
state.save_to_json = half_of(state.save_to_json, lambda self, path: path)
runs.make_trainer(runs.config(folder, max_steps=6, save_strategy="steps", save_steps=2)).train()
"""


@pytest.mark.parametrize(
    "victim",
    [
        pytest.param("pytorch_lora_weights.safetensors", marks=pytest.mark.slow),
        "optimizer.pt",
        pytest.param("trainer_state.json", marks=pytest.mark.slow),
    ],
)
def test_a_run_that_is_killed_while_it_saves_resumes_bit_for_bit(tmp_path, victim):
    status, _, errors = execute(KILLED, victim, tmp_path / "killed")
    assert status == 9, errors[-3000:]
    out = tmp_path / "killed" / "out"
    assert get_last_checkpoint(str(out)).endswith("checkpoint-4"), "it must have begun, or nothing is tested"
    assert checkpoints.last_checkpoint(out).name == "checkpoint-2"

    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2}
    resumed = make_trainer(config(tmp_path / "killed", **settings))
    resumed.train(resume_from_checkpoint=True)
    assert resumed._initial_global_step == 2
    whole = make_trainer(config(tmp_path / "whole", **settings))
    whole.train()
    assert_equal(trained_weights(resumed), trained_weights(whole))
    for step in (4, 6):
        saved, expected = (checkpoint(tmp_path / name, step) for name in ("killed", "whole"))
        weights = "pytorch_lora_weights.safetensors"
        assert_equal(load_file(saved / weights), load_file(expected / weights))
        assert_equal(state_of(saved), state_of(expected))
        assert sorted(path.name for path in saved.iterdir()) == sorted(path.name for path in expected.iterdir())


def test_a_checkpoint_that_is_being_replaced_is_not_complete(tmp_path):
    """The old `trainer_state.json` must not vouch for a folder that is half new."""
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    make_trainer(config(tmp_path, **settings)).train()
    again = make_trainer(config(tmp_path, **settings))

    def killed(*args):
        raise Stop

    again._save_optimizer_and_scheduler = killed
    with pytest.raises(Stop):
        again.train()
    assert checkpoints.last_checkpoint(tmp_path / "out") == checkpoint(tmp_path, 4)
    assert checkpoints.checkpoint_damage(checkpoint(tmp_path, 2)) == "manifest.json, which is written last, is missing"


def test_files_are_replaced_as_a_whole(tmp_path):
    """A save that fails half way leaves the old files alone, and no new ones."""
    (tmp_path / "adapter.txt").write_text("old")

    def fail():
        with checkpoints.replacing(tmp_path, False) as temporary:
            (temporary / "adapter.txt").write_text("new")
            (temporary / "other.txt").write_text("new")
            raise Stop

    with pytest.raises(Stop):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["adapter.txt"]
    assert (tmp_path / "adapter.txt").read_text() == "old"
    with checkpoints.replacing(tmp_path, False) as temporary:
        (temporary / "adapter.txt").write_text("new")
        (temporary / "unet").mkdir()
        (temporary / "unet" / "config.json").write_text("{}")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["adapter.txt", "config.json", "unet"]
    assert (tmp_path / "adapter.txt").read_text() == "new"


# ---- The best checkpoint ----


@pytest.mark.parametrize("use_peft", [True, False])
def test_the_best_weights_are_loaded_at_the_end(tmp_path, use_peft):
    best = iter([0.0, 1.0, 0.5])
    args = config(
        tmp_path,
        max_steps=3,
        use_peft=use_peft,
        save_strategy="steps",
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="quality",
        greater_is_better=True,
    )
    trainer = make_trainer(
        args, eval_dataset=tiny.scored_rows(4, seed=1), compute_metrics=lambda _: {"quality": next(best)}
    )
    seen = []
    trainer.add_callback(Keep(trainer, seen))
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(checkpoint(tmp_path, 2))
    assert_equal(trained_weights(trainer), seen[1])
    assert any(not torch.equal(seen[1][name], weight) for name, weight in seen[2].items())


class Keep(StopAt):
    """Keeps the trained weights after every update."""

    def __init__(self, trainer, seen):
        self.trainer, self.seen = trainer, seen

    def on_step_end(self, args, state, control, **kwargs):
        self.seen.append(trained_weights(self.trainer))


def test_save_total_limit_keeps_the_newest(tmp_path):
    make_trainer(config(tmp_path, max_steps=4, save_strategy="steps", save_steps=1, save_total_limit=2)).train()
    assert sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]


def test_the_checkpoint_of_a_moving_reference_holds_it(tmp_path):
    args = config(tmp_path, save_strategy="steps", save_steps=2, sync_ref_model=True, ref_model_sync_steps=1)
    trainer = make_trainer(args)
    trainer.train()
    saved = load_file(checkpoint(tmp_path, 2) / "reference.safetensors")
    assert_equal(saved, trainer.reference.state())
    # Another reference in the checkpoint is another reference in the resumed run.
    save_file(
        {name: torch.zeros_like(value) for name, value in saved.items()},
        checkpoint(tmp_path, 2) / "reference.safetensors",
    )
    checkpoints.seal_checkpoint(checkpoint(tmp_path, 2))
    resumed = make_trainer(args)
    resumed.train(resume_from_checkpoint=True)
    assert all(value.abs().max() == 0 for value in resumed.reference.state().values())


def test_a_continued_adapter_resumes_against_its_first_state(tmp_path):
    """The frozen copy is the adapter as it came, not as the checkpoint has it."""
    from .test_trainer import with_trained_adapter

    args = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    whole = make_trainer(config(tmp_path / "whole", **args), model=with_trained_adapter(tiny.stable_diffusion()))
    whole.train()
    cut = make_trainer(
        config(tmp_path / "cut", **args), model=with_trained_adapter(tiny.stable_diffusion()), callbacks=[StopAt(3)]
    )
    with pytest.raises(Stop):
        cut.train()
    resumed = make_trainer(config(tmp_path / "cut", **args), model=with_trained_adapter(tiny.stable_diffusion()))
    resumed.train(resume_from_checkpoint=True)
    assert_equal(trained_weights(resumed), trained_weights(whole))
    assert logged(resumed) == logged(whole)


def test_trainer_state_is_plain_json(saved):
    state = json.loads((checkpoint(saved, 4) / "trainer_state.json").read_text())
    assert state["global_step"] == 4


def test_other_settings_than_at_the_start_are_named(tmp_path):
    first = make_trainer(config(tmp_path, max_steps=1, save_strategy="steps", save_steps=1))
    first.train()
    again = make_trainer(config(tmp_path, max_steps=2, temperature=1.0, seed=9))
    with pytest.raises(ValueError, match=r"`seed` was 42, is 9; `temperature` was 0.064, is 1.0\. Go on with those of"):
        again.train(resume_from_checkpoint=True)


def test_an_epoch_that_a_callback_ends_is_over_for_a_run_that_goes_on(tmp_path):
    class EndEpoch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_epoch_stop = True

    def trainer(folder, *callbacks):
        args = {"max_steps": -1, "num_train_epochs": 4, "save_strategy": "steps", "save_steps": 1}
        return make_trainer(config(tmp_path / folder, **args), callbacks=[EndEpoch(), *callbacks])

    whole = trainer("whole")
    whole.train()
    with pytest.raises(Stop):
        trainer("cut", StopAt(2)).train()
    resumed = trainer("cut")
    resumed.train(resume_from_checkpoint=True)
    assert whole.state.global_step == 4
    assert_equal(trained_weights(resumed), trained_weights(whole))


def test_the_objective_is_as_the_trainer_was_made(tmp_path):
    trainer = make_trainer(config(tmp_path))
    trainer.args.beta = 100.0
    with pytest.raises(ValueError, match=r"`args.beta` was 1.0 when the trainer was made, is 100.0, and loss, draws"):
        trainer.train()


def test_what_a_callback_sets_to_no_effect_is_not_recorded(tmp_path):
    class SetBeta(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            args.beta, args.lora_r = 100.0, 64

    trainer = make_trainer(config(tmp_path, save_strategy="steps", save_steps=1), callbacks=[SetBeta()])
    trainer.train()
    recorded = checkpoints.RunRecord.read(checkpoint(tmp_path, 2)).config
    assert (recorded["beta"], recorded["lora_r"]) == (1.0, config(tmp_path).lora_r)


def test_settings_that_are_changed_before_training_are_those_of_the_run(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 1}
    trainer = make_trainer(config(tmp_path, **saving))
    trainer.args.learning_rate = 0.02
    trainer.train()
    again = make_trainer(config(tmp_path, max_steps=3, **saving))
    with pytest.raises(ValueError, match=r"`learning_rate` was 0\.02, is 0\.01"):
        again.train(resume_from_checkpoint=True)


def test_a_data_loader_that_a_callback_makes_leaves_the_run_as_it_is(tmp_path):
    class MakeLoader(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            made[0].get_train_dataloader()

    def trained(folder, *callbacks):
        args = config(tmp_path / folder, max_steps=-1, num_train_epochs=2)
        made[:] = [make_trainer(args, callbacks=list(callbacks))]
        made[0].train()
        return trained_weights(made[0])

    made = []
    assert_equal(trained("loader", MakeLoader()), trained("plain"))


def test_an_adapter_is_trained_at_the_weight_that_it_is_saved_at(tmp_path):
    """Whatever `set_adapters` has said since, before the run or within it."""

    class Halve(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            pipelines[0].set_adapters("default", 0.5)

    pipelines = [tiny.stable_diffusion()]
    halved = make_trainer(config(tmp_path / "halved", max_steps=3), model=pipelines[0], callbacks=[Halve()])
    pipelines[0].set_adapters("default", 0.5)
    halved.train()
    plain = make_trainer(config(tmp_path / "plain", max_steps=3))
    plain.train()
    assert_equal(trained_weights(halved), trained_weights(plain))


def test_an_older_trainer_of_a_pipeline_does_not_save_what_a_newer_one_trained(tmp_path, caplog):
    pipeline = tiny.stable_diffusion()
    first = make_trainer(config(tmp_path / "1"), model=pipeline)
    first.train()
    assert "gone on with" not in caplog.text
    newer = make_trainer(config(tmp_path / "2"), model=pipeline)
    newer.train()
    assert "adapter 'default' was trained by an earlier trainer, and is gone on with. To begin anew" in caplog.text
    for use in (first.save_model, first.train, first.evaluate):
        with pytest.raises(ValueError, match="Another trainer was made of this pipeline since, and `unet` is trained"):
            use()
    del newer
    gc.collect()
    with pytest.raises(ValueError, match="Another trainer was made of this pipeline since"):
        first.save_model()


def test_a_newer_trainer_that_is_gone_and_trained_nothing_leaves_the_older_one_as_it_is(tmp_path):
    pipeline = tiny.stable_diffusion()
    first = make_trainer(config(tmp_path / "1"), model=pipeline)
    first.train()
    newer = make_trainer(config(tmp_path / "2"), model=pipeline)
    with pytest.raises(ValueError, match="Another trainer was made of this pipeline since"):
        first.save_model()
    assert newer.state.global_step == 0
    del newer
    gc.collect()
    first.save_model()


def test_a_best_evaluation_without_a_checkpoint_is_warned_of(tmp_path, caplog):
    evaluating = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 2}
    args = config(
        tmp_path, max_steps=2, load_best_model_at_end=True, metric_for_best_model="falling", greater_is_better=True,
        **evaluating,
    )  # fmt: skip
    values = iter([2.0, 1.0])
    trainer = make_trainer(
        args, eval_dataset=tiny.scored_rows(4, seed=1), compute_metrics=lambda prediction: {"falling": next(values)}
    )
    trainer.train()
    assert "The best evaluation was after update 1, of which no checkpoint was saved" in caplog.text


def test_rows_without_the_trainers_sampler_are_refused(tmp_path):
    """They would have the noise of the first epoch in every one; a loader that is made of the trainer's own may be."""

    class Own(TGOTrainer):
        def get_train_dataloader(self):
            return DataLoader(self.train_dataset, batch_size=4, collate_fn=self.data_collator)

    class Another(TGOTrainer):
        def get_train_dataloader(self):
            super().get_train_dataloader()
            return DataLoader(self.train_dataset, batch_size=4, collate_fn=self.data_collator)

    class Wrapping(TGOTrainer):
        def get_train_dataloader(self):
            self.wrapped = super().get_train_dataloader()
            return self.wrapped

    def trainer(kind):
        return kind(tiny.stable_diffusion(), config(tmp_path, max_steps=2), tiny.scored_rows(8))

    for kind in (Own, Another):
        refused = trainer(kind)
        with pytest.raises(ValueError, match="`get_train_dataloader` or `_get_train_sampler` was overridden"):
            refused.train()
        assert refused.train_dataset[0]["epoch"] == 0  # may still be looked at
    wrapping = trainer(Wrapping)
    wrapping.train()
    assert wrapping.state.global_step == 2
