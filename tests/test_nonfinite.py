"""NaN and infinity: no weight sees them, and the run that meets them says where."""

import functools
import math
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from tgo_trl.trainer import checkpoints
from tgo_trl.trainer.nonfinite import NonFiniteError, UpdateGuard, check_finite_tensors

from . import tiny
from .runs import assert_equal, config, logged, make_trainer, trained_weights

WEIGHTS = "pytorch_lora_weights.safetensors"


def poisoned(folder, poison, value=math.nan, **settings):
    """A trainer whose rows' errors become `value`, by update (from 1) and row."""

    trainer = make_trainer(config(folder, **settings))
    original = trainer.denoiser.noise_process.error

    def error(prediction, clean, noise, time):
        errors = original(prediction, clean, noise, time)
        rows = poison.get(trainer.state.global_step + 1, ())
        return errors * torch.tensor([value if row in rows else 1.0 for row in current["rows"]])

    current = {}
    compute = trainer.compute_loss

    def compute_loss(model, inputs, *args, **kwargs):
        current["rows"] = inputs["row"]
        return compute(model, inputs, *args, **kwargs)

    trainer.compute_loss = compute_loss
    object.__setattr__(trainer.denoiser.noise_process, "error", error)
    return trainer


@functools.cache
def order_of(**settings):
    """The rows of each update, in a run that ends well."""
    with TemporaryDirectory() as folder:
        return _order_in(Path(folder), **settings)


def _order_in(folder, **settings):
    trainer, seen = make_trainer(config(folder, **settings)), {}
    compute = trainer.compute_loss

    def compute_loss(model, inputs, *args, **kwargs):
        seen.setdefault(trainer.state.global_step + 1, []).extend(inputs["row"])
        return compute(model, inputs, *args, **kwargs)

    trainer.compute_loss = compute_loss
    trainer.train()
    return seen


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adamw_torch", "sgd"])
def test_a_bad_row_ends_the_run_before_the_weights_are_touched(tmp_path, value, optim):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 1, "optim": optim,
                "lr_scheduler_type": "constant"}  # fmt: skip
    rows = order_of(max_steps=4)
    bad = rows[3][1]
    trainer = poisoned(tmp_path, {3: [bad]}, value, **settings)
    with pytest.raises(NonFiniteError, match=rf"Update 3: the loss of row {bad} of the data set is not finite"):
        trainer.train()
    assert [path.name for path in checkpoints.checkpoints(tmp_path / "out")] == ["checkpoint-2"]
    saved = load_file(tmp_path / "out" / "checkpoint-2" / WEIGHTS)
    assert_equal(trainer.policy.adapter_state("default"), saved)


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "sgd"])
def test_it_is_acted_on_one_update_later_without_a_save(tmp_path, optim):
    rows = order_of(max_steps=4)
    trainer = poisoned(tmp_path, {1: rows[1][:2]}, max_steps=4, optim=optim)
    with pytest.raises(
        NonFiniteError, match=rf"Update 1: the loss of rows {', '.join(map(str, sorted(rows[1][:2])))} "
    ):
        trainer.train()
    assert trainer.state.global_step == 1


def test_the_last_update_is_looked_at_too(tmp_path):
    rows = order_of(max_steps=2)
    trainer = poisoned(tmp_path, {2: rows[2][:1]}, max_steps=2)
    with pytest.raises(NonFiniteError, match="Update 2"):
        trainer.train()


def test_accumulated_rows_are_named(tmp_path):
    settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 2}
    rows = order_of(**settings)
    bad = sorted([rows[2][0], rows[2][3]])
    trainer = poisoned(tmp_path, {2: bad}, **settings)
    with pytest.raises(NonFiniteError, match=rf"Update 2: the loss of rows {bad[0]}, {bad[1]} of the data set"):
        trainer.train()


def test_a_gradient_alone_ends_the_run(tmp_path):
    trainer = make_trainer(config(tmp_path, max_steps=3))

    def spoil(grad):
        return grad * (math.nan if trainer.state.global_step == 1 else 1)

    next(weight for weight in trainer.policy.parameters() if weight.requires_grad).register_hook(spoil)
    with pytest.raises(NonFiniteError, match=r"Update 2: the gradient norm is not finite \(rows \d, \d, \d, \d of"):
        trainer.train()
    assert all(value.isfinite().all() for value in trained_weights(trainer).values())


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adamw_torch"])
def test_skipping_leaves_the_update_out_as_if_it_had_not_been(tmp_path, optim, caplog):
    """The weights are those of a run whose bad update had a learning rate of zero and no moments."""
    settings = {"max_steps": 4, "optim": optim, "lr_scheduler_type": "constant", "on_bad_row": "skip"}
    rows = order_of(max_steps=4)
    trainer = poisoned(tmp_path / "skip", {2: rows[2][:1]}, **settings)
    trainer.train()
    assert trainer._guard.num_left_out == 1
    assert (
        f"Update 2: the loss of row {rows[2][0]} of the data set is not finite. The update is left out." in caplog.text
    )
    assert "1 of 4 updates had a loss or a gradient that is not finite and were left out." in caplog.text
    assert all(math.isfinite(loss) for loss in logged(trainer))

    without = make_trainer(config(tmp_path / "without", **settings))
    step = torch.optim.AdamW.step

    def all_but_the_second(optimizer, *args):
        return None if without.state.global_step == 1 else step(optimizer, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", all_but_the_second)
        without.train()
    assert_equal(trained_weights(trainer), trained_weights(without))


def test_a_run_that_leaves_most_out_is_no_run(tmp_path):
    rows = order_of(max_steps=4)
    poison = {update: rows[update][:1] for update in (2, 3, 4)}
    trainer = poisoned(tmp_path, poison, max_steps=4, on_bad_row="skip")
    with pytest.raises(NonFiniteError, match="3 of 4 updates had a loss or a gradient that is not finite"):
        trainer.train()
    poison = {update: [0, 1, 2, 3, 4, 5, 6, 7] for update in range(1, 40)}
    trainer = poisoned(tmp_path / "long", poison, max_steps=40, on_bad_row="skip")
    with pytest.raises(NonFiniteError, match="10 updates in a row had to be left out, up to update 10"):
        trainer.train()


def test_a_learning_rate_that_blows_up_saves_nothing_that_is_not_finite(tmp_path):
    settings = {"learning_rate": 1e30, "max_grad_norm": 0.0, "max_steps": 5, "save_strategy": "steps", "save_steps": 1,
                "save_total_limit": 1, "lr_scheduler_type": "constant"}  # fmt: skip
    trainer = make_trainer(config(tmp_path, **settings))
    with pytest.raises(NonFiniteError, match="Update 2"):
        trainer.train()
    for path in (tmp_path / "out").rglob("*.safetensors"):
        assert all(value.isfinite().all() for value in load_file(path).values())
    assert [path.name for path in checkpoints.checkpoints(tmp_path / "out")] == ["checkpoint-1"]


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    trainer = make_trainer(config(tmp_path))
    weight = next(weight for weight in trainer.policy.parameters() if weight.requires_grad)
    weight.data[0, 0] = math.inf
    with pytest.raises(
        NonFiniteError, match=r"not saved in .*out', has NaN or infinity in 1 of \d+ tensors, 'networks"
    ):
        trainer.save_model()
    assert not (tmp_path / "out" / WEIGHTS).exists()


def test_weights_that_are_not_finite_are_not_gone_on_from(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    make_trainer(config(tmp_path, **settings)).train()
    folder = tmp_path / "out" / "checkpoint-2"
    weights = load_file(folder / WEIGHTS)
    weights[next(iter(weights))][0] = math.nan
    save_file(weights, folder / WEIGHTS)
    checkpoints.seal_checkpoint(folder)
    trainer = make_trainer(config(tmp_path, **{**settings, "max_steps": 4}))
    before = trained_weights(trainer)
    with pytest.raises(NonFiniteError, match=r"What was saved in .*checkpoint-2' has NaN or infinity in 1 of"):
        trainer.train(resume_from_checkpoint=True)
    assert_equal(trained_weights(trainer), before)


def test_an_adapter_that_is_not_finite_is_not_gone_on_from(tmp_path):
    from .test_trainer import with_trained_adapter

    pipeline = with_trained_adapter(tiny.stable_diffusion())
    next(value for name, value in pipeline.unet.named_parameters() if "lora_B" in name).data.fill_(math.nan)
    with pytest.raises(NonFiniteError, match="The pipeline's adapter has NaN or infinity in 1 of"):
        make_trainer(config(tmp_path), model=pipeline)


@pytest.mark.parametrize("skip", [False, True])
def test_an_evaluation_names_its_bad_rows(tmp_path, skip, caplog):
    held_out = tiny.scored_rows(4, seed=1)
    seen = []
    settings = {"on_bad_row": "skip" if skip else "error"}
    trainer = make_trainer(
        config(tmp_path, **settings),
        eval_dataset=held_out,
        compute_metrics=lambda evaluated: seen.append(evaluated.label_ids) or {},
    )
    whole = trainer.evaluate()
    original = trainer.denoiser.noise_process.error
    object.__setattr__(
        trainer.denoiser.noise_process, "error", lambda *args: original(*args) * torch.tensor([1.0, math.nan, 1.0, 1.0])
    )
    if not skip:
        with pytest.raises(NonFiniteError, match="The loss of row 1 of the evaluated data set is not finite"):
            trainer.evaluate()
        return
    metrics = trainer.evaluate()
    assert "The loss of row 1 of the evaluated data set is not finite. They are left out" in caplog.text
    assert math.isfinite(metrics["eval_loss"])
    assert metrics["eval_loss"] != whole["eval_loss"]
    assert len(seen[-1]) == 3


# ---- The guard alone ----


def test_padding_is_no_bad_row():
    guard = UpdateGuard(Accelerator(cpu=True), skip=False)
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([parameter], fused=True)
    guard.add([3, 3], torch.tensor([1.0, math.nan]), torch.tensor([True, False]))
    guard.before_step(1, torch.tensor(1.0), optimizer)
    guard.settle()
    assert optimizer.found_inf == 0


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("loss", [math.inf, 1.0])
def test_a_scaled_update_with_an_infinite_loss_and_a_finite_gradient_is_left_out(fused, loss):
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    guard = UpdateGuard(accelerator, skip=True)
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([parameter], lr=0.1, weight_decay=0.0, fused=fused)
    scaler.scale(parameter.sum()).backward()
    guard.add([3], torch.tensor([loss]), torch.tensor([True]))
    scaler.unscale_(optimizer)
    guard.before_step(1, torch.tensor(2**0.5), optimizer)
    scaler.step(optimizer)
    guard.settle()
    assert guard.num_left_out == (loss == math.inf)
    assert parameter.tolist() == pytest.approx([1.0 if loss == math.inf else 0.9] * 2)
    assert bool(optimizer.state) == (loss != math.inf)


def test_tensors_are_checked_by_name():
    check_finite_tensors([], "Nothing")
    check_finite_tensors([("a", torch.ones(3)), ("b", torch.zeros(2, dtype=torch.float16))], "All")
    tensors = [("a", torch.ones(3)), ("b", torch.tensor([1.0, math.nan])), ("c", torch.tensor(math.inf))]
    with pytest.raises(NonFiniteError, match="The file has NaN or infinity in 2 of 3 tensors, 'b' among them"):
        check_finite_tensors(tensors, "The file")


# ---- Settings and scores ----


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 1e-44}, "`temperature` is 1e-44, by which errors and `beta`"),
        ({"temperature": 1e-30, "beta": 1e10}, "the quotient is infinite in float32"),
        ({"learning_rate": 1e39}, r"`learning_rate` is 1e\+39; it must be finite in float32"),
        ({"learning_rate": math.nan}, "`learning_rate` is nan"),
        ({"weight_decay": -math.inf}, "`weight_decay` is -inf"),
        ({"max_grad_norm": math.nan}, "`max_grad_norm` is nan"),
        ({"adam_epsilon": math.inf}, "`adam_epsilon` is inf"),
        ({"lr_scheduler_kwargs": {"min_lr": math.nan}}, r"`lr_scheduler_kwargs\['min_lr'\]` is nan"),
        ({"threshold_type": "value", "threshold_value": math.nan}, "`threshold_value` is nan"),
        ({"threshold_type": "value", "threshold_value": 1e39}, r"`threshold_value` is 1e\+39"),
        ({"sample_guidance_scale": math.inf}, "`sample_guidance_scale` is inf"),
    ],
)
def test_settings_are_finite_in_float32(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **settings)


@pytest.mark.parametrize("score", [1e39, -1e39, math.inf, math.nan])
def test_a_score_that_float32_cannot_hold_is_a_bad_row(tmp_path, score):
    rows = tiny.scored_rows(8)
    scores = [score, *rows["score"][1:]]
    rows = rows.remove_columns("score").add_column("score", scores)
    with pytest.raises(ValueError, match=r"Row 0, column 'score': the score is .*, not a finite number"):
        make_trainer(config(tmp_path), train_dataset=rows)
    trainer = make_trainer(config(tmp_path, on_bad_row="skip"), train_dataset=rows)
    assert trainer.label_rule.num_rows == 7


def test_a_weight_that_float32_cannot_hold_is_refused(tmp_path):
    rows = tiny.scored_rows(8)
    rows = rows.remove_columns("score").add_column("score", [1e38, *rows["score"][1:]])
    with pytest.raises(
        ValueError, match=r"The weight of row 0 is not finite in float32: the score 1e\+38 lies too far"
    ):
        make_trainer(config(tmp_path), train_dataset=rows)
