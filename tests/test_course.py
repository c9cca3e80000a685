"""A run that goes on is the same run, at the right row; or it says what is not, and records what was changed."""

import json
import os
import shutil
from itertools import chain

import pytest
import torch
from safetensors.torch import load_file
from transformers import get_scheduler

from tgo_trl import TGOTrainer
from tgo_trl.cli import main
from tgo_trl.data.sampler import RowSampler
from tgo_trl.policy.draws import shuffled_rows
from tgo_trl.trainer import checkpoints
from tgo_trl.trainer.course import Course, describe_optimizer, weights_digest
from tgo_trl.trainer.progress import Progress

from . import tiny
from .runs import assert_equal, config, make_trainer, streamed, trained_weights

STEPS = {"save_strategy": "steps", "save_steps": 2}
WEIGHTS = "pytorch_lora_weights.safetensors"


class Watched(TGOTrainer):
    """Notes update, epoch and row of all that it trains on."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        if not hasattr(self, "used"):
            self.used = []
        rows = zip(inputs["epoch"], inputs["row"], inputs["valid"].tolist(), strict=True)
        self.used += [(int(epoch), int(row)) for epoch, row, valid in rows if valid]
        return super().compute_loss(model, inputs, *args, **kwargs)


def watched(folder, rows, **settings):
    trainer = Watched(tiny.stable_diffusion(), config(folder, **{**STEPS, **settings}), rows)
    trainer.used = []
    return trainer


# ---- The right row ----

LAYOUTS = {
    "the same": {},
    "twice the batches": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("num_rows", [16, 11])
def test_another_layout_of_the_update_goes_on_with_the_next_row(tmp_path, layout, num_rows):
    rows = tiny.scored_rows(num_rows)
    first = watched(tmp_path, rows, max_steps=2)
    first.train()
    second = watched(tmp_path, rows, max_steps=6, lr_scheduler_type="linear", **layout)
    second.train(resume_from_checkpoint=True)
    order = [(epoch, row) for epoch in range(3) for row in shuffled_rows(42, epoch, num_rows)]
    updates = []  # an epoch's last one is smaller
    for epoch in range(3):
        rest = [entry for entry in order if entry[0] == epoch]
        updates += [rest[i : i + 4] for i in range(0, num_rows, 4)]
    assert first.used == [*chain(*updates[:2])]
    assert second.used == [*chain(*updates[2:6])]
    assert second.state.global_step == 6


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("batch", [pytest.param(1, marks=pytest.mark.slow), 3, 8])
def test_other_updates_go_on_with_the_next_row_where_they_are_accepted(tmp_path, stream, batch):
    rows = tiny.scored_rows(16)
    rows = streamed(rows) if stream else rows
    watched(tmp_path, rows, max_steps=2).train()
    settings = {"per_device_train_batch_size": batch, "max_steps": 5, "lr_scheduler_type": "linear"}
    with pytest.raises(ValueError, match=rf"`rows_per_update` was 4, is {batch}"):
        watched(tmp_path, rows, **settings).train(resume_from_checkpoint=True)
    trainer = watched(tmp_path, rows, resume_with_changes=True, **settings)
    trainer.train(resume_from_checkpoint=True)
    epochs = range(3)
    order = [[(epoch, row) for row in (range(16) if stream else shuffled_rows(42, epoch, 16))] for epoch in epochs]
    expected = []
    for rest in (order[0][8:], *order[1:]):
        expected += [rest[i : i + batch] for i in range(0, len(rest), batch)]
    if stream:  # whose passes follow each other without a seam
        rest = [*chain(*order)][8:]
        expected = [rest[i : i + batch] for i in range(0, len(rest), batch)]
    assert trainer.used == [*chain(*expected[:3])]
    assert trainer.state.epoch == pytest.approx(trainer.epoch)


def test_other_updates_cannot_be_counted_in_epochs(tmp_path):
    settings = {"max_steps": -1, "num_train_epochs": 3}
    watched(tmp_path, tiny.scored_rows(16), save_steps=3, **settings).train()
    changed = {**settings, "per_device_train_batch_size": 8, "resume_with_changes": True}
    with pytest.raises(ValueError, match=r"says no longer how many updates are left\. Set `max_steps`"):
        watched(tmp_path, tiny.scored_rows(16), **changed).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("groups", [None, [0, 1, 0, 0, 1, 0, 1, 0, 0, 1, 0]])
@pytest.mark.parametrize("block", [1, 2, 4])
def test_a_sampler_without_what_is_done_yields_what_was_left(groups, block):
    whole = RowSampler(11, seed=3, block=block, epoch=1, groups=groups)
    yielded = list(whole)
    for count in range(0, len(yielded) + 1, block):
        rest = RowSampler(11, seed=3, block=block, epoch=1, groups=groups)
        rest.done = {1: whole.first(1, count)}
        assert list(rest) == yielded[count:]
        assert rest.num_left(1) == len(yielded) - count
        assert len(rest) == len(whole)
        rest.epoch = 2
        assert len(list(rest)) == rest.num_left(2) == len(whole)


def test_progress_counts_the_rows_of_all_processes():
    batches = [{"epoch": [0, 0], "row": [4, 5]}, {"epoch": [0, 0], "row": [6, 7]}]
    progress = Progress(0, 8, 4).after(batches, 2, is_stream=False)
    assert progress == Progress(0, 16, 4)
    later = [{"epoch": [1, 1], "row": [1, 2]}]
    assert progress.after(later, 2, is_stream=False) == Progress(1, 4, 4)
    assert progress.after(later, 2, is_stream=True) == Progress(0, 20, 4)


# ---- The same run ----


def test_a_course_names_what_differs():
    before = Course({"learning_rate": 1.0, "optim": "sgd", "gone": 3}, {"the rows": "a", "the base": "b"})
    now = Course({"learning_rate": 2.0, "optim": "sgd", "new": True}, {"the rows": "a", "the base": "c"})
    assert before.differences(before) == []
    assert before.differences(now) == [
        "`gone` was 3, is None", "`learning_rate` was 1.0, is 2.0", "`new` was None, is True", "the base are others",
    ]  # fmt: skip
    assert before.keeps_optimizer(now)
    assert not before.keeps_optimizer(Course({"optim": "adamw_torch"}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": 1e-1}, "`learning_rate` was 0.01, is 0.1"),
        ({"lr_scheduler_type": "cosine"}, "`lr_scheduler_type` was linear, is cosine"),
        ({"warmup_steps": 3}, "`warmup_steps` was 0, is 3"),
        ({"optim": "sgd"}, "`optim` was .*, is sgd"),
        ({"adam_beta2": 0.9}, "`adam_beta2` was 0.999, is 0.9"),
        ({"weight_decay": 0.1}, "`weight_decay` was 0.0, is 0.1"),
        ({"max_grad_norm": 0.5}, "`max_grad_norm` was 1.0, is 0.5"),
        ({"lora_alpha": 64}, "`lora_alpha` was 8, is 64"),
        ({"lora_dropout": 0.1}, "`lora_dropout` was 0.0, is 0.1"),
        ({"lora_target_modules": ["to_q"]}, "`lora_target_modules` was"),
        ({"per_device_train_batch_size": 2}, "`rows_per_update` was 4, is 2"),
        ({"beta": 2.0}, "`beta` was 1.0, is 2.0"),
        ({"num_likelihood_samples": 2}, "`num_likelihood_samples` was 1, is 2"),
        ({"sync_ref_model": True}, "`sync_ref_model` was False, is True"),
        ({"bf16": True}, "`bf16` was False, is True"),
        ({"bf16": True, "bf16_autocast": False}, "`bf16_autocast` was True, is False"),
        ({"data_seed": 1}, "`data_seed` was None, is 1"),
        ({"resolution": 24}, r"`size` was \[16, 16\], is \[24, 24\]"),
        ({"loss_type": "sft"}, "`loss_type` was tgo, is sft"),
    ],
)
def test_other_settings_are_refused_by_name(begun, settings, message):
    trainer = make_trainer(config(begun, **{**STEPS, "max_steps": 4, **settings}))
    before = trained_weights(trainer)
    with pytest.raises(ValueError, match=f"checkpoint-2 in .* is of a run with other settings or data: .*{message}"):
        trainer.train(resume_from_checkpoint=True)
    assert_equal(trained_weights(trainer), before)


@pytest.mark.parametrize("named", [True, "True", "out/checkpoint-2"])
def test_settings_of_another_run_are_refused_before_the_pipeline_is_loaded(begun, named, monkeypatch):
    monkeypatch.chdir(begun)

    def begin(**settings):
        args = config(begun, **{**STEPS, "resume_from_checkpoint": named, **settings})
        return TGOTrainer("not/there", args, tiny.scored_rows(8))  # which is looked for when all else is right

    with pytest.raises(ValueError, match="checkpoint-2 in .*out' is of a run with other settings or data: `beta` was "
                       r"1\.0, is 2\.0; `learning_rate` was 0\.01, is 0\.5\. Go on with those"):  # fmt: skip
        begin(learning_rate=0.5, beta=2.0)
    for settings in (
        {"lora_alpha": 64, "resolution": 24, "logging_steps": 2, "max_steps": 4},  # told by the pipeline, or free
        {"learning_rate": 0.5, "resume_with_changes": True},
        {"learning_rate": 0.5, "resume_from_checkpoint": "out/checkpoint-9"},  # refused when training begins
        {"learning_rate": 0.5, "resume_from_checkpoint": "false"},
    ):
        with pytest.raises(OSError, match="not/there"):
            begin(**settings)


def test_a_run_with_what_only_the_pipeline_tells_goes_on(tmp_path):
    """Sizes and a temperature that are found, weights that are balanced: none of them is another setting."""
    settings = {**STEPS, "recipe": "robust", "resume_from_checkpoint": True, "lr_scheduler_type": "constant"}
    make_trainer(config(tmp_path, **{**settings, "resume_from_checkpoint": None})).train()
    trainer = make_trainer(config(tmp_path, **{**settings, "max_steps": 3}))
    trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint)
    assert (trainer.state.global_step, trainer.changes) == (3, [])


@pytest.mark.parametrize(
    "settings",
    [
        {"logging_steps": 2, "save_steps": 1, "save_total_limit": 2, "dataloader_num_workers": 1},
        {"encode_batch_size": 3, "gradient_checkpointing": True, "run_name": "again", "on_bad_row": "skip"},
    ],
)
def test_what_changes_nothing_may_change(begun, settings, caplog):
    trainer = make_trainer(config(begun, **{**STEPS, **settings}))
    trainer.train(resume_from_checkpoint=True)
    assert trainer.changes == []


@pytest.fixture(scope="module")
def begun_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("begun")
    make_trainer(config(folder, **STEPS)).train()
    return folder


@pytest.fixture
def begun(begun_once, tmp_path):
    """A folder with a finished run of two updates."""
    shutil.copytree(begun_once / "out", tmp_path / "out")
    return tmp_path


def test_an_optimizer_of_ones_own_is_part_of_the_course(begun):
    arguments = {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9})}
    trainer = make_trainer(config(begun, max_steps=4), **arguments)
    with pytest.raises(ValueError, match=r"`optimizer` was None, is SGD\(lr=0.1, momentum=0.9\)"):
        trainer.train(resume_from_checkpoint=True)
    assert describe_optimizer((None, None), None) is None
    parameter = torch.nn.Parameter(torch.ones(1))
    assert describe_optimizer((torch.optim.SGD([parameter]), None), None) == "SGD"


def test_the_same_pipeline_object_after_training_is_no_base(begun):
    """Its adapter is trained already: the reference would be that adapter, not the base."""
    pipeline = tiny.stable_diffusion()
    make_trainer(config(begun / "other", **STEPS), model=pipeline).train()
    again = make_trainer(config(begun / "other", **{**STEPS, "max_steps": 4}), model=pipeline)
    with pytest.raises(ValueError, match="the weights of the adapter that it began with are others"):
        again.train(resume_from_checkpoint=True)


def test_a_digest_of_weights_does_not_see_adapters_and_sees_all_else():
    digest = weights_digest({"unet": tiny.stable_diffusion().unet})
    from .test_trainer import with_trained_adapter

    assert weights_digest({"unet": with_trained_adapter(tiny.stable_diffusion()).unet}) == digest
    assert weights_digest({"unet": tiny.stable_diffusion(seed=1).unet}) != digest
    one = tiny.stable_diffusion().unet
    one.conv_out.bias.data[0] += 1e-3
    assert weights_digest({"unet": one}) != digest
    assert weights_digest({"unet": tiny.stable_diffusion().unet.to(torch.bfloat16)}) != digest
    assert weights_digest({"other": tiny.stable_diffusion().unet}) != digest


def test_another_length_is_told_where_the_schedule_follows_it(begun, caplog):
    trainer = make_trainer(config(begun, **STEPS, max_steps=3))
    trainer.train(resume_from_checkpoint=True)
    assert "The run that goes on had another length: `max_steps` was 2, is 3." in caplog.text
    assert trainer.changes == ["from update 3 on: `max_steps` was 2, is 3"]


# ---- Accepted changes ----


def rates(trainer):
    return [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]


def test_an_accepted_learning_rate_acts_and_the_card_says_so(tmp_path):
    settings = {**STEPS, "lr_scheduler_type": "cosine", "warmup_steps": 1}
    make_trainer(config(tmp_path, **settings, max_steps=4), callbacks=[]).train()
    shutil.rmtree(tmp_path / "out" / "checkpoint-4")
    trainer = make_trainer(
        config(tmp_path, **{**settings, "max_steps": 4, "learning_rate": 5e-2, "resume_with_changes": True})
    )
    trainer.train(resume_from_checkpoint=True)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    schedule = get_scheduler("cosine", optimizer, 1, 4)
    factors = [schedule.lr_lambdas[0](step) for step in range(4)]
    assert rates(trainer) == pytest.approx([0.01 * factors[0], 0.01 * factors[1], 0.05 * factors[2], 0.05 * factors[3]])
    assert trainer.changes == ["from update 3 on: `learning_rate` was 0.01, is 0.05"]
    trainer.create_model_card()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| changed on the way | from update 3 on: `learning_rate` was 0.01, is 0.05 |" in card
    record = json.loads((tmp_path / "out" / "checkpoint-4" / "tgo_config.json").read_text())
    assert record["changes"] == trainer.changes
    assert record["updates"] == 4
    again = make_trainer(config(tmp_path, **{**settings, "max_steps": 5, "learning_rate": 5e-2}))
    again.train(resume_from_checkpoint=True)  # what was changed then is no change now
    assert again.changes[0] == trainer.changes[0]


def test_the_moments_of_an_optimizer_stay_and_its_settings_change(begun):
    args = config(begun, **STEPS, max_steps=3, adam_beta1=0.5, resume_with_changes=True)
    trainer = make_trainer(args)
    seen = []

    def note(optimizer):
        group = optimizer.param_groups[0]
        seen.append((group["betas"], float(optimizer.state[group["params"][0]]["step"])))

    step = torch.optim.AdamW.step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", lambda self, *args: (note(self), step(self, *args))[1])
        trainer.train(resume_from_checkpoint=True)
    assert seen == [((0.5, 0.999), 2.0)]


def test_another_optimizer_begins_anew(begun, caplog):
    trainer = make_trainer(config(begun, **STEPS, max_steps=4, optim="sgd", resume_with_changes=True))
    trainer.train(resume_from_checkpoint=True)
    assert "The optimizer is another one than before; its moments begin anew." in caplog.text
    assert trainer.state.global_step == 4
    assert "`optim` was" in trainer.changes[0] + trainer.changes[1]


# ---- The end ----


def test_a_finished_run_has_nothing_to_do(tmp_path, capsys):
    rows = tiny.scored_rows(8)
    first = watched(tmp_path, rows, max_steps=3)
    first.train()
    first.save_model()
    before = load_file(tmp_path / "out" / WEIGHTS)
    again = watched(tmp_path, rows, max_steps=3)
    again.train(resume_from_checkpoint=True)
    again.save_model()
    assert again.used == []
    assert [entry for entry in again.state.log_history if "train_loss" in entry] == []
    assert "Nothing to do: the run has made all its 3 updates." in capsys.readouterr().out
    assert_equal(load_file(tmp_path / "out" / WEIGHTS), before)  # whose header has no order


def test_other_settings_for_a_finished_run_are_refused_even_if_accepted(tmp_path):
    make_trainer(config(tmp_path, **STEPS, max_steps=3)).train()
    args = config(tmp_path, **STEPS, max_steps=3, learning_rate=0.5, resume_with_changes=True)
    with pytest.raises(ValueError, match=r"made all its 3 updates, so that other settings \(`learning_rate` was 0.01"):
        make_trainer(args).train(resume_from_checkpoint=True)


def test_a_checkpoint_without_an_optimizer_is_not_gone_on_from(tmp_path):
    settings = {**STEPS, "save_only_model": True}
    make_trainer(config(tmp_path, **settings)).train()
    trainer = make_trainer(config(tmp_path, **settings, max_steps=4, lr_scheduler_type="linear"))
    with pytest.raises(ValueError, match=r"holds no state of the optimizer \(`save_only_model=True`\)"):
        trainer.train(resume_from_checkpoint=True)
    done = make_trainer(config(tmp_path, **settings))
    done.train(resume_from_checkpoint=True)  # a finished run needs none
    assert done.state.global_step == 2


def test_a_new_run_among_old_checkpoints_warns(begun, caplog):
    make_trainer(config(begun, **STEPS)).train()
    assert "holds checkpoints of an earlier run, and the new run begins at its start" in caplog.text


def test_the_same_command_twice(tmp_path, capsys):
    """As a user types it: the second time changes nothing, another learning rate is refused in one line."""
    base, rows, out = tmp_path / "base", tmp_path / "rows", tmp_path / "out"
    tiny.stable_diffusion().save_pretrained(base)
    rows.mkdir()
    tiny.scored_rows().to_parquet(rows / "train.parquet")
    command = ["train", "--model_name_or_path", str(base), "--dataset_name", str(rows), "--output_dir", str(out),
               "--use_cpu", "--report_to", "none", "--resolution", "16", "--disable_tqdm", "True", "--max_steps", "3",
               "--per_device_train_batch_size", "4", "--encoding_cache_dir", str(tmp_path / "cache")]  # fmt: skip

    def written():
        files = {path.name: path.read_bytes() for path in out.iterdir() if path.suffix in (".md", ".json", ".png")}
        return files, load_file(out / WEIGHTS)  # whose header has no order

    assert main(command) == 0
    before = written()
    assert main(command) == 0
    assert_equal(written(), before)
    assert "| updates | 3 |" in before[0]["README.md"].decode()
    base.rename(tmp_path / "gone")  # which nothing is read of
    capsys.readouterr()
    assert main([*command, "--learning_rate", "0.5"]) == 1
    assert "`learning_rate` was 0.0001, is 0.5. Go on" in capsys.readouterr().err
    assert_equal(written(), before)


# ---- Damage ----

FILES = ["optimizer.pt", "scheduler.pt", "rng_state.pth", WEIGHTS, "trainer_state.json", "tgo_config.json"]


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2 | 3] ^= 0x40
    path.write_bytes(bytes(data))


def halve(path):
    os.truncate(path, path.stat().st_size // 2)


def test_damage_falls_back_to_the_older_checkpoint_and_names_the_file(tmp_path, caplog):
    make_trainer(config(tmp_path, **STEPS, max_steps=4)).train()
    newest = tmp_path / "out" / "checkpoint-4"
    for name in FILES:
        for damage in (flip, halve, lambda path: path.unlink()):
            original = (newest / name).read_bytes()
            damage(newest / name)
            caplog.clear()
            assert checkpoints.last_checkpoint(tmp_path / "out").name == "checkpoint-2"
            assert "checkpoint-4 is not whole" in caplog.text
            assert name in caplog.text
            (newest / name).write_bytes(original)
    assert checkpoints.last_checkpoint(tmp_path / "out") == newest


def test_a_damaged_checkpoint_gives_the_weights_of_the_whole_one(tmp_path):
    settings = {**STEPS, "max_steps": 4}
    whole = make_trainer(config(tmp_path, **settings))
    whole.train()
    flip(tmp_path / "out" / "checkpoint-4" / WEIGHTS)
    again = make_trainer(config(tmp_path, **settings))
    again.train(resume_from_checkpoint=True)
    assert again._initial_global_step == 2
    assert_equal(trained_weights(again), trained_weights(whole))
    assert checkpoints.checkpoint_damage(tmp_path / "out" / "checkpoint-4") is None


@pytest.mark.parametrize("damage", [flip, halve])
def test_a_damaged_shard_of_the_cache_is_made_again(tmp_path, damage, caplog):
    whole = make_trainer(config(tmp_path))
    whole.train()
    shards = {path: path.read_bytes() for path in (tmp_path / "cache").glob("*.safetensors")}
    for path in shards:
        damage(path)
    again = make_trainer(config(tmp_path))
    again.train()
    assert {path: path.read_bytes() for path in shards} == shards
    assert caplog.text.count("they are encoded anew") == len(shards)
    assert_equal(trained_weights(again), trained_weights(whole))


def test_the_best_checkpoint_is_looked_at_before_it_is_loaded(tmp_path):
    args = config(tmp_path, **STEPS, load_best_model_at_end=True, eval_strategy="steps", eval_steps=2)
    trainer = make_trainer(args, eval_dataset=tiny.scored_rows(4, seed=1))
    seal = checkpoints.seal_checkpoint

    def seal_and_damage(folder):
        seal(folder)
        flip(folder / WEIGHTS)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "seal_checkpoint", seal_and_damage)
        with pytest.raises(
            ValueError, match=r"The best checkpoint, .*checkpoint-2, cannot be loaded: pytorch_lora_weights"
        ):
            trainer.train()


def test_an_old_checkpoint_goes_only_when_the_new_one_is_whole(tmp_path):
    """With a single one kept, a process that dies between saving and sealing still leaves one to go on from."""
    trainer = make_trainer(config(tmp_path, **STEPS, max_steps=4, save_total_limit=1))
    seal = checkpoints.seal_checkpoint

    def die(folder):
        if folder.name == "checkpoint-4":
            raise KeyboardInterrupt
        seal(folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "seal_checkpoint", die)
        with pytest.raises(
            KeyboardInterrupt, match="Interrupted at update 4 of 4: checkpoint-2 is the last one, 2 updates lost"
        ):
            trainer.train()
    assert checkpoints.last_checkpoint(tmp_path / "out").name == "checkpoint-2"
    assert trainer.args.save_total_limit == 1


def test_a_run_goes_on_as_its_settings_say(begun):
    """Without an argument of `train`, which comes first."""

    def trained(named, argument=None):
        trainer = make_trainer(config(begun, max_steps=3, resume_from_checkpoint=named))
        trainer.train(resume_from_checkpoint=argument)
        return trainer

    for named in (True, "true", str(begun / "out" / "checkpoint-2")):
        trainer = trained(named)
        assert trainer._gone_on_from == begun / "out" / "checkpoint-2"
        assert trainer.state.global_step == 3
    for named, argument in ((True, False), ("false", None), (None, None)):
        assert trained(named, argument)._gone_on_from is None
