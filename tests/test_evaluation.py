"""Evaluation: means over rows, on the same draws every time, labelled by the training set's threshold."""

import math

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from tgo_trl import TGOTrainer
from tgo_trl.trainer.feasibility import METRICS, OF_A_REFERENCE

from . import tiny
from .runs import assert_equal, config, make_trainer, metrics, streamed, trained_weights
from .test_trainer import TEMPERATURE, PlainTraining


def held_out(num_rows=6, seed=1):
    return tiny.scored_rows(num_rows, seed)


def perturbed(trainer, size=0.05):
    """The trainer with an adapter that is not zero, as after some training."""
    with torch.no_grad():
        for name, weight in trainer.policy.named_parameters():
            if "lora_B" in name:
                weight.copy_(size * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel())))
    return trainer


def one(metric_list):
    return metrics([metric_list])[0]


def test_every_data_set_of_a_dictionary_has_its_own_metrics(tmp_path):
    parts = {"near": held_out(5, 1), "far": held_out(3, 2)}
    trainer = perturbed(make_trainer(config(tmp_path), eval_dataset=parts))
    together = trainer.evaluate()
    losses = {}
    for name, part in parts.items():
        alone = perturbed(make_trainer(config(tmp_path), eval_dataset=part)).evaluate()
        losses[name] = alone["eval_loss"]
        for key, value in one(alone).items():
            assert together[key.replace("eval_", f"eval_{name}_", 1)] == value, key
    assert losses["near"] != losses["far"]
    assert "eval_loss" not in together


def test_an_evaluation_set_that_is_not_there_is_refused_by_name(tmp_path):
    trainer = make_trainer(config(tmp_path), eval_dataset={"near": held_out(2, 1), "far": held_out(2, 2)})
    with pytest.raises(
        ValueError, match=r"`eval_dataset` is 'nearr'; it must be one of 'near', 'far'\. Did you mean 'near'"
    ):
        trainer.evaluate("nearr")
    assert "eval_near_loss" in trainer.evaluate("near", metric_key_prefix="eval_near")
    with pytest.raises(ValueError, match="`eval_dataset` is 'near', and the trainer's own evaluation set has no names"):
        make_trainer(config(tmp_path), eval_dataset=held_out(2)).evaluate("near")


def test_the_loss_is_the_mean_over_rows(tmp_path):
    """Six rows in batches of 4 and 2: a mean of the batches' means would weigh the last two rows double."""
    data = held_out()
    trainer = make_trainer(config(tmp_path), eval_dataset=data)
    # The training scores are 0 to 7, their median 3.5; here they are 0 to 5.
    weights = [1 + 5 * abs(score - 3.5) for score in data["score"]]
    means = (sum(weights[:4]) / 4 + sum(weights[4:]) / 2) / 2
    assert abs(means - sum(weights) / 6) > 0.1
    evaluation = trainer.evaluate()
    assert evaluation["eval_loss"] == pytest.approx(math.log(2) * sum(weights) / 6, rel=1e-6)
    assert evaluation["eval_rewards/margins"] == 0


@pytest.mark.parametrize("batch_size", [1, 4, 8])
def test_the_batch_size_changes_nothing(tmp_path, batch_size):
    expected = perturbed(make_trainer(config(tmp_path), eval_dataset=held_out())).evaluate()
    args = config(tmp_path, per_device_eval_batch_size=batch_size)
    actual = perturbed(make_trainer(args, eval_dataset=held_out())).evaluate()
    for name, value in one(expected).items():
        assert actual[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


def test_evaluation_equals_plain_pytorch(tmp_path):
    """Rows, labels and weights come from the training rule, noise from the epoch before the first."""
    data = held_out()
    plain = PlainTraining(data)
    scores = torch.tensor(data["score"])
    plain.is_positive, plain.weight = scores >= 3.5, 1 + 5 * (scores - 3.5).abs()
    trainer = perturbed(make_trainer(config(tmp_path), eval_dataset=data))
    evaluation = trainer.evaluate()
    rows = list(range(6))
    with torch.no_grad():
        unet = trainer.pipeline.unet.eval()
        reward = plain.rewards(unet, plain.pipeline.unet, rows, epoch=-1)
        loss = plain.loss(unet, plain.pipeline.unet, rows, epoch=-1).item()
        likelihood = -plain.errors(unet, *plain.inputs(rows, -1)) / TEMPERATURE
    assert reward.abs().min() > 1e-4
    positive = plain.is_positive
    assert positive.tolist() != (scores >= 2.5).tolist(), "the median of its own scores would label other rows"
    assert evaluation["eval_loss"] == pytest.approx(loss, rel=1e-4)
    assert evaluation["eval_rewards/chosen"] == pytest.approx(reward[positive].mean().item(), rel=1e-3, abs=1e-4)
    assert evaluation["eval_rewards/rejected"] == pytest.approx(reward[~positive].mean().item(), rel=1e-3, abs=1e-4)
    assert evaluation["eval_logps/chosen"] == pytest.approx(likelihood[positive].mean().item(), rel=1e-4)


def test_drift_is_the_ratio_of_all_draws_of_positive_rows(tmp_path):
    """Eight rows in batches of 3, with five draws each, against plain PyTorch draw by draw."""
    data = held_out(8)
    plain = PlainTraining(data, num_samples=5)
    args = config(tmp_path, per_device_eval_batch_size=3, num_likelihood_samples=5)
    trainer = perturbed(make_trainer(args, eval_dataset=data), 1.0)
    evaluation = trainer.evaluate()
    inputs = plain.inputs(list(range(8)), epoch=-1)
    plain.num_samples = 1  # so that draws are not averaged
    with torch.no_grad():
        mine, theirs = (plain.errors(unet, *inputs) for unet in (trainer.pipeline.unet.eval(), plain.pipeline.unet))
    positive = plain.is_positive.repeat(5)
    for i in range(4):
        mask = positive & (inputs[2] // 250 == i)
        assert mask.sum() > 1
        expected = mine[mask].sum() / theirs[mask].sum()
        assert abs(expected - 1) > 1e-2
        assert expected != pytest.approx((mine[mask] / theirs[mask]).mean().item(), rel=1e-4)
        assert evaluation[f"eval_drift/quartile_{i + 1}"] == pytest.approx(expected.item(), rel=1e-4)


def test_two_evaluations_are_identical(tmp_path):
    trainer = perturbed(make_trainer(config(tmp_path), eval_dataset=held_out()))
    torch.manual_seed(1)
    first = trainer.evaluate()
    torch.manual_seed(2)
    assert one(trainer.evaluate()) == one(first)


def test_evaluation_in_training_sees_the_draws_of_evaluation_before_it(tmp_path):
    settings = {"max_steps": 3, "learning_rate": 0.0, "eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True}
    trainer = make_trainer(config(tmp_path, **settings), eval_dataset=held_out())
    before = trainer.evaluate()
    trainer.train()
    during = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(during) == 4
    assert all(entry["eval_logps/chosen"] == before["eval_logps/chosen"] for entry in during)


def test_evaluation_does_not_touch_training(tmp_path):
    runs = []
    for settings in ({}, {"eval_strategy": "steps", "eval_steps": 1}):
        trainer = make_trainer(config(tmp_path, max_steps=4, **settings), eval_dataset=held_out())
        trainer.train()
        losses = [entry for entry in trainer.state.log_history if "loss" in entry]
        runs.append((metrics(losses), trained_weights(trainer)))
    assert_equal(runs[1], runs[0])


@pytest.mark.parametrize("kind", [dict, list])
def test_a_new_data_set_is_prepared_as_the_trainers_own(tmp_path, kind):
    new = {"a": held_out(5, 3), "b": held_out(3, 4)} if kind is dict else held_out(5, 3)
    own = perturbed(make_trainer(config(tmp_path), eval_dataset=new)).evaluate()
    other = perturbed(make_trainer(config(tmp_path), eval_dataset=held_out())).evaluate(new)
    assert one(other) == one(own)


def test_a_new_data_set_can_have_a_prefix_of_its_own(tmp_path):
    trainer = make_trainer(config(tmp_path))
    names = one(trainer.evaluate(held_out(), metric_key_prefix="test"))
    assert "test_loss" in names
    assert all(name.startswith("test_") for name in names)
    names = one(trainer.evaluate({"a": held_out()}, metric_key_prefix="test"))
    assert all(name.startswith("test_a_") for name in names)


def test_a_data_set_of_the_dictionary_can_be_evaluated_by_name(tmp_path):
    trainer = make_trainer(config(tmp_path), eval_dataset={"a": held_out(5), "b": held_out(3)})
    everything = trainer.evaluate()
    assert trainer.evaluate("b")["eval_loss"] == everything["eval_b_loss"]


def test_a_new_data_set_with_missing_columns_is_refused(tmp_path):
    trainer = make_trainer(config(tmp_path))
    with pytest.raises(ValueError, match="has no column 'score'"):
        trainer.evaluate(held_out().remove_columns("score"))


def test_nothing_to_evaluate_is_said(tmp_path):
    with pytest.raises(ValueError, match="eval_dataset"):
        make_trainer(config(tmp_path)).evaluate()


def test_a_stream_is_evaluated_as_its_rows_are(tmp_path):
    results = []
    for data in (held_out(), streamed(held_out())):
        seen = []
        trainer = perturbed(make_trainer(config(tmp_path), eval_dataset=data, compute_metrics=keeper(seen)))
        results.append((one(trainer.evaluate()), one(trainer.evaluate()), seen))
    mapped, stream = results
    assert stream[0] == stream[1]
    for name, value in mapped[0].items():
        assert stream[0][name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    assert [scores.tolist() for _, scores in stream[2]] == [scores.tolist() for _, scores in mapped[2]]
    np.testing.assert_allclose(stream[2][0][0], mapped[2][0][0], rtol=1e-3, atol=1e-5)


def keeper(seen):
    def keep(prediction):
        seen.append((prediction.predictions, prediction.label_ids))
        return {"spread": float(prediction.predictions.std())}

    return keep


def test_compute_metrics_gets_the_log_ratio_and_the_score_of_each_row(tmp_path):
    data, seen = held_out(), []
    plain = PlainTraining(data)
    args = config(tmp_path, beta=0.5)
    trainer = perturbed(make_trainer(args, eval_dataset=data, compute_metrics=keeper(seen)))
    evaluation = trainer.evaluate()
    [(log_ratios, scores)] = seen
    assert scores.tolist() == data["score"]
    with torch.no_grad():
        expected = plain.rewards(trainer.pipeline.unet, plain.pipeline.unet, list(range(6)), epoch=-1)
    # The log-ratio, not the reward, which is half of it.
    torch.testing.assert_close(torch.from_numpy(log_ratios), expected, rtol=1e-3, atol=1e-4)
    assert evaluation["eval_spread"] == pytest.approx(expected.std(correction=0).item(), rel=1e-3)


def test_preprocess_logits_for_metrics_comes_before_compute_metrics(tmp_path):
    seen = []
    trainer = perturbed(
        make_trainer(
            config(tmp_path),
            eval_dataset=held_out(),
            compute_metrics=keeper(seen),
            preprocess_logits_for_metrics=lambda log_ratio, score: log_ratio * 0 + score,
        )
    )
    trainer.evaluate()
    assert seen[0][0].tolist() == seen[0][1].tolist() == held_out()["score"]


@pytest.mark.parametrize(
    ("low", "high", "present", "absent"), [(4, 8, "chosen", "rejected"), (0, 4, "rejected", "chosen")]
)
def test_a_one_sided_data_set_logs_no_nan(tmp_path, low, high, present, absent):
    data = tiny.scored_rows(8).filter(lambda row: low <= row["score"] < high)
    evaluation = perturbed(make_trainer(config(tmp_path), eval_dataset=data)).evaluate()
    assert all(math.isfinite(value) for value in evaluation.values())
    assert f"eval_rewards/{present}" in evaluation
    assert not any(absent in name or "margins" in name for name in evaluation)
    of_positives = {"eval_rewards/displaced", "eval_weights/balance"}
    assert of_positives & evaluation.keys() == (of_positives if present == "chosen" else set())
    assert any(name.startswith("eval_drift/") for name in evaluation) == (present == "chosen")
    assert evaluation["eval_prediction_difference"] > 0


def test_sft_evaluates_the_positive_rows(tmp_path):
    data = held_out()
    plain = PlainTraining(data)
    positive = [row for row in range(6) if data[row]["score"] >= 3.5]
    expected = plain.errors(plain.pipeline.unet, *plain.inputs(positive, -1)).mean().item()
    for dataset in (data, streamed(data)):
        trainer = make_trainer(config(tmp_path, loss_type="sft"), eval_dataset=dataset)
        evaluation = trainer.evaluate()
        assert evaluation["eval_loss"] == pytest.approx(expected, rel=1e-4)
        assert not any(name.startswith(OF_A_REFERENCE) for name in (key[5:] for key in evaluation))


def test_predict_takes_a_raw_data_set(tmp_path):
    data = held_out()
    plain = PlainTraining(data)
    trainer = perturbed(make_trainer(config(tmp_path)))
    for dataset in (data, streamed(data)):
        output = trainer.predict(dataset)
        with torch.no_grad():
            expected = plain.rewards(trainer.pipeline.unet, plain.pipeline.unet, list(range(6)), epoch=-1)
        torch.testing.assert_close(torch.from_numpy(output.predictions), expected, rtol=1e-3, atol=1e-4)
        assert output.label_ids.tolist() == data["score"]
        assert output.metrics["test_loss"] == pytest.approx(trainer.evaluate(data)["eval_loss"], rel=1e-5)


def test_training_goes_on_after_an_evaluation_of_new_data(tmp_path):
    """What `evaluate` brings to the device and takes away again must not be missed by the run."""

    class Evaluate(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            trainers[0].evaluate(held_out(3, state.global_step))

    runs = []
    for callbacks in ([], [Evaluate()]):
        trainer = make_trainer(config(tmp_path, max_steps=3), callbacks=callbacks)
        trainers = [trainer]
        trainer.train()
        runs.append(trained_weights(trainer))
    assert_equal(runs[1], runs[0])


def test_evaluation_leaves_the_mode_of_every_module_alone(tmp_path):
    trainer = perturbed(make_trainer(config(tmp_path), eval_dataset=held_out()))
    trainer.evaluate()
    assert not any(module.training for module in trainer.pipeline.unet.modules())
    trainer.train()
    assert all(name.endswith(("lora_A.default.weight", "lora_B.default.weight")) for name in trained_weights(trainer))


def test_predictions_of_batches_that_are_not_concatenated(tmp_path):
    whole = make_trainer(config(tmp_path)).predict(held_out(6))
    trainer = make_trainer(config(tmp_path, eval_do_concat_batches=False))
    parts = trainer.predict(held_out(6))
    assert [len(part) for part in parts.predictions] == [4, 2]
    assert np.concatenate(parts.predictions) == pytest.approx(whole.predictions)
    assert np.concatenate(parts.label_ids) == pytest.approx(whole.label_ids)


def test_an_evaluation_reports_the_metrics_that_can_be_the_best(tmp_path):
    args = config(tmp_path, num_likelihood_samples=5)
    evaluation = perturbed(make_trainer(args, eval_dataset=held_out(8))).evaluate()
    names = {name.removeprefix("eval_") for name in evaluation}
    assert names - {"epoch", "model_preparation_time"} == set(METRICS)


def test_a_data_loader_of_ones_own_evaluates_on_the_same_draws(tmp_path):
    """Rows that are asked for by their position alone are those of an evaluation, not of the first epoch."""

    class Own(TGOTrainer):
        def get_eval_dataloader(self, eval_dataset=None):
            return DataLoader(self.eval_dataset, batch_size=3, collate_fn=self.data_collator)

    def trainer(kind):
        args = config(tmp_path)
        return perturbed(kind(tiny.stable_diffusion(), args, tiny.scored_rows(8), eval_dataset=held_out()))

    expected, found = one(trainer(TGOTrainer).evaluate()), one(trainer(Own).evaluate())
    assert found["eval_rewards/margins"] != 0
    for name in ("eval_loss", "eval_rewards/margins", "eval_rewards/accuracies"):
        assert found[name] == pytest.approx(expected[name], rel=1e-4), name
