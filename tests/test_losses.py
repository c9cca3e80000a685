"""The seam of losses: those to come, written down in a few lines each, train without a change anywhere else."""

from dataclasses import dataclass, fields
from typing import ClassVar

import pytest
import torch

from tgo_trl import losses
from tgo_trl.losses import LOSSES, Loss, LossInputs, Predictions, RowErrors, RowLosses, SFTLoss, TGOLoss, build_loss
from tgo_trl.losses.likelihood import log_likelihood, log_ratio, toward_label
from tgo_trl.losses.tgo import tgo_loss

from . import tiny
from .runs import assert_close, config, logged, make_trainer, trained_weights

# ---- On paper: equations of `docs/extending.md`, with betas that act at the size of a tiny model's errors ----


def mean(values):
    """Over all but the first two dimensions, `[K, B, ...]` to `[K, B]`, then over the draws."""
    return values.flatten(2).mean(2).mean(0)


@dataclass(frozen=True)
class MirroredTGO(Loss):
    """Negative rows are drawn to where the reference would be if it moved away: to `2 ref - target`."""

    method: ClassVar[str] = "mirrored negatives on {media}s"
    reads_predictions: ClassVar[bool] = True
    beta: float

    def __call__(self, inputs):
        predictions = inputs.errors.predictions
        mirror = 2 * predictions.reference - predictions.target
        target = predictions.target.where(inputs.is_positive[None, :, None, None, None], mirror)
        error, base = mean((predictions.policy - target) ** 2), mean((predictions.reference - target) ** 2)
        ratio = log_ratio(error, base, self.temperature)
        ones = torch.ones_like(inputs.is_positive)
        return RowLosses(tgo_loss(self.beta * ratio, ones, inputs.weight), ratio, self.beta * ratio)


@dataclass(frozen=True)
class ConditionalSFT(Loss):
    """All rows, of which the prompt says how good they are."""

    method: ClassVar[str] = "conditional fine-tuning on {media}s"
    needs_reference: ClassVar[bool] = False

    @classmethod
    def prompt(cls, prompt, is_positive):
        return prompt if is_positive else f"Weird image. {prompt}"

    def __call__(self, inputs):
        error = inputs.errors.policy.mean(0)
        return RowLosses(error, log_likelihood(error, self.temperature))


@dataclass(frozen=True)
class KTO(Loss):
    """`1 - sigmoid(+-(r - z))`, where `z = max(0, mean r)` over the whole update."""

    method: ClassVar[str] = "KTO on {media}s"
    has_statistic: ClassVar[bool] = True
    beta: float

    def row_statistic(self, errors):
        return log_ratio(errors.policy.mean(0), errors.reference.mean(0), self.temperature)

    def __call__(self, inputs):
        ratio = self.row_statistic(inputs.errors)
        point = 0.0 if inputs.statistic is None else inputs.statistic.clamp(min=0)
        reward = self.beta * (ratio - point)
        return RowLosses(1 - toward_label(reward, inputs.is_positive).sigmoid(), ratio, self.beta * ratio)


COMING = {"mirrored": MirroredTGO, "csft": ConditionalSFT, "kto": KTO}


@pytest.fixture(params=COMING)
def loss_type(request, monkeypatch):
    """One row in the table is all that it takes."""
    monkeypatch.setitem(LOSSES, request.param, COMING[request.param])
    return request.param


def paired_rows():
    """Twelve rows of three prompts."""
    rows = tiny.scored_rows(12)
    return rows.remove_columns("prompt").add_column("prompt", [f"{i % 3} birds" for i in range(12)])


def train(folder, loss_type, **settings):
    settings = {"max_steps": 3, "temperature": 0.01, "logging_steps": 1, **settings}
    trainer = make_trainer(config(folder, loss_type=loss_type, **settings), train_dataset=paired_rows())
    start = trained_weights(trainer)
    trainer.train()
    return trainer, start


def test_a_loss_to_come_trains_without_a_change_anywhere_else(tmp_path, loss_type):
    trainer, start = train(tmp_path, loss_type)
    end = trained_weights(trainer)
    assert any((end[name] - start[name]).abs().max() > 0 for name in start)
    assert all(weight.isfinite().all() for weight in end.values())
    trainer.create_model_card()
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"with {COMING[loss_type].method.format(media='image')}" in card
    assert (trainer.reference is not None) == COMING[loss_type].needs_reference
    assert trainer.evaluate(paired_rows())["eval_loss"] > 0


def test_losses_of_pairs_and_of_whole_updates_do_not_depend_on_the_layout(tmp_path, loss_type):
    whole, _ = train(tmp_path / "whole", loss_type, per_device_train_batch_size=4)
    parts, _ = train(tmp_path / "parts", loss_type, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    assert logged(parts) == pytest.approx(logged(whole), rel=1e-5)
    assert_close(trained_weights(parts), trained_weights(whole), 1e-3)  # Adam makes steps of 1e-2 of whatever gradient


# ---- What the trainer brings ----


class Recorded(Exception):  # noqa: N818
    """Ends a run in its first loss."""


def first_inputs(trainer):
    """What the loss of a trainer is given first."""
    given = []

    class Recorder(type(trainer.loss)):
        def __call__(self, inputs):
            given.append(inputs)
            raise Recorded

    values = {field.name: getattr(trainer.loss, field.name) for field in fields(trainer.loss)}
    trainer.loss = Recorder(**values)
    with pytest.raises(Recorded):
        trainer.train()
    return given[0]


def test_the_statistic_is_the_mean_over_the_whole_update(tmp_path, monkeypatch):
    @dataclass(frozen=True)
    class Counting(KTO):
        """Of which every row counts its policy's error."""

        def row_statistic(self, errors):
            return errors.policy.mean(0)

    monkeypatch.setitem(LOSSES, "kto", Counting)

    def statistic(name, rows, accumulated):
        settings = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": accumulated}
        trainer = make_trainer(config(tmp_path / name, loss_type="kto", **settings))
        return first_inputs(trainer)

    whole = statistic("whole", 8, 1)
    assert whole.statistic.item() == pytest.approx(whole.errors.policy.mean().item(), rel=1e-6)
    assert statistic("parts", 2, 4).statistic.item() == pytest.approx(whole.statistic.item(), rel=1e-6)


def test_a_row_that_is_left_out_is_left_out_of_the_statistic(tmp_path, monkeypatch):
    @dataclass(frozen=True)
    class Broken(KTO):
        """Of which the first row's number is NaN."""

        def row_statistic(self, errors):
            values = errors.policy.mean(0)
            return torch.cat([values.new_full((1,), torch.nan), values[1:]])

    monkeypatch.setitem(LOSSES, "kto", Broken)
    settings = {"loss_type": "kto", "per_device_train_batch_size": 8, "on_bad_row": "skip"}
    inputs = first_inputs(make_trainer(config(tmp_path, **settings)))
    assert inputs.statistic.item() == pytest.approx(inputs.errors.policy[0, 1:].mean().item(), rel=1e-6)


def test_an_evaluation_has_no_statistic_and_is_a_function_of_the_weights(tmp_path, monkeypatch):
    monkeypatch.setitem(LOSSES, "kto", KTO)
    trainer = make_trainer(config(tmp_path, loss_type="kto", learning_rate=0.0, temperature=0.01))
    before = trainer.evaluate(tiny.scored_rows(4))["eval_loss"]
    trainer.train()
    assert trainer.evaluate(tiny.scored_rows(4))["eval_loss"] == before


def test_prompts_say_what_the_loss_makes_of_them_and_are_encoded_so(tmp_path, monkeypatch):
    monkeypatch.setitem(LOSSES, "csft", ConditionalSFT)
    trainer = make_trainer(config(tmp_path, loss_type="csft"))
    plain = make_trainer(config(tmp_path))
    embeds = {}
    for row, other in zip(trainer.train_dataset, plain.train_dataset, strict=True):
        is_same = torch.allclose(row["prompt"]["embeds"], other["prompt"]["embeds"], atol=1e-5)
        assert is_same == bool(row["is_positive"])
        embeds.setdefault(bool(row["is_positive"]), []).append(row)
    assert len(embeds) == 2
    streamed = make_trainer(config(tmp_path, loss_type="csft"), train_dataset=tiny.scored_rows(8).to_iterable_dataset())
    for row in (row for _, row in zip(range(8), streamed.train_dataset, strict=False)):
        assert row["prompt_text"].startswith("Weird image. ") != bool(row["is_positive"])


# ---- Those that are there ----


def test_the_table_builds_losses_of_the_settings_that_they_have():
    settings = {"beta": 2.0, "temperature": 0.5, "learning_rate": 1e-5, "dspo_form": "sdxl"}
    assert build_loss("tgo", settings) == TGOLoss(temperature=0.5, beta=2.0)
    assert build_loss("sft", settings) == SFTLoss(temperature=0.5)
    assert set(losses.__all__) >= {type(build_loss(name, settings)).__name__ for name in LOSSES}


def test_tgo_by_hand():
    # e_ref - e_theta = 0.2 and -0.1 of the means over two draws; r = 3 (0.2, -0.1) / 0.5 = 1.2, -0.6
    errors = RowErrors(torch.tensor([[0.2, 0.5], [0.4, 0.3]]), torch.tensor([[0.6, 0.3], [0.4, 0.3]]))
    inputs = LossInputs(errors, torch.tensor([True, False]), torch.tensor([1.0, 2.0]))
    rows = TGOLoss(temperature=0.5, beta=3.0)(inputs)
    assert rows.output.tolist() == pytest.approx([0.4, -0.2], rel=1e-5)
    assert rows.reward.tolist() == pytest.approx([1.2, -0.6], rel=1e-5)
    # -log sigmoid(1.2) = 0.263282, -2 log sigmoid(0.6) = 2 x 0.437488
    assert rows.loss.tolist() == pytest.approx([0.263282, 0.874976], rel=1e-5)


def test_sft_by_hand():
    inputs = LossInputs(RowErrors(torch.tensor([[0.2], [0.4]]), None), torch.tensor([True]), torch.ones(1))
    rows = SFTLoss(temperature=0.5)(inputs)
    assert (rows.loss.item(), rows.output.item()) == pytest.approx((0.3, -0.6))
    assert rows.reward is None
    assert not SFTLoss(temperature=0.5).reads_predictions
    assert not SFTLoss(temperature=0.5).reads_relative_errors


def test_what_a_loss_without_a_statistic_is_asked_for_is_a_mistake():
    with pytest.raises(NotImplementedError):
        SFTLoss(temperature=1.0).row_statistic(RowErrors(torch.ones(1, 1), None))


def test_predictions_hold_what_the_errors_are_of(tmp_path, monkeypatch):
    monkeypatch.setitem(LOSSES, "mirrored", MirroredTGO)
    errors = first_inputs(make_trainer(config(tmp_path, loss_type="mirrored", num_likelihood_samples=2))).errors
    assert isinstance(errors.predictions, Predictions)
    distance = (errors.predictions.policy - errors.predictions.target) ** 2
    assert torch.allclose(distance.flatten(2).mean(2), errors.policy, rtol=1e-6)
    assert not errors.predictions.reference.requires_grad
