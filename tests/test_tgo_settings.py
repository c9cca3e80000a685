"""The settings of TGO beside the paper's: each by hand, their limits, what is refused, and what runs do with them."""

import dataclasses
import math
import re
from pathlib import Path

import pytest
import torch
from torch.nn.functional import logsigmoid

from tgo_trl import TGOConfig
from tgo_trl.labels.weights import weight_balance
from tgo_trl.losses import LossInputs, Predictions, RowErrors, TGOLoss
from tgo_trl.losses.likelihood import log_ratio, relative_log_ratio
from tgo_trl.losses.tgo import mirrored_error, prediction_difference, smoothed_logistic_loss, tgo_loss
from tgo_trl.trainer.course import Course
from tgo_trl.trainer.objective import PAPER, RECIPES

from . import tiny
from .cases import CASES
from .runs import assert_equal, config, logged, make_trainer, streamed, trained_weights

LABELS = torch.tensor([True, False, True, False, False])
WEIGHTS = torch.tensor([1.0, 2.5, 4.0, 1.5, 8.0])


def random_inputs(num_samples=2, seed=0, requires_grad=True):
    """Predictions of five rows of 3 x 4 numbers, and the errors that they have."""
    generator = torch.Generator().manual_seed(seed)
    policy, reference, target = torch.randn(3, num_samples, 5, 3, 4, generator=generator)
    policy = (reference + 0.3 * policy).requires_grad_(requires_grad)
    errors = [((prediction - target) ** 2).mean((2, 3)) for prediction in (policy, reference)]
    return policy, LossInputs(RowErrors(*errors, Predictions(policy, reference, target)), LABELS, WEIGHTS)


def loss(**settings):
    return TGOLoss(**{"temperature": 0.25, "beta": 0.5, **settings})


# ---- The paper's ----


def test_by_default_it_is_the_papers_bit_for_bit():
    policy, inputs = random_inputs()
    rows = loss()(inputs)
    ratio = log_ratio(inputs.errors.policy.mean(0), inputs.errors.reference.mean(0), 0.25)
    expected = -WEIGHTS * logsigmoid((0.5 * ratio).where(LABELS, -(0.5 * ratio)))
    assert torch.equal(rows.loss, expected)
    assert torch.equal(rows.loss, tgo_loss(0.5 * ratio, LABELS, WEIGHTS))
    assert torch.equal(
        *(torch.autograd.grad(value.sum(), policy, retain_graph=True)[0] for value in (rows.loss, expected))
    )
    assert not loss().reads_predictions


# ---- Each term by hand ----


def test_relative_errors_by_hand():
    # (0.5 - 0.2) / (0.1 x 0.5) = 6, (0.01 - 0.012) / (0.1 x 0.01) = -2
    ratio = relative_log_ratio(torch.tensor([0.2, 0.012]), torch.tensor([0.5, 0.01]), 0.1)
    assert ratio.tolist() == pytest.approx([6, -2], rel=1e-5)


def test_relative_errors_are_a_gaussian_of_the_references_variance():
    # With T = 2 / D, the log-ratio of two Gaussians of variance e_ref, at the same target.
    _, inputs = random_inputs(num_samples=1, requires_grad=False)
    predictions, errors = inputs.errors.predictions, inputs.errors
    variance = errors.reference[0].reshape(5, 1, 1)
    policy, reference = (
        torch.distributions.Normal(mean[0], variance.sqrt()).log_prob(predictions.target[0]).sum((1, 2))
        for mean in (predictions.policy, predictions.reference)
    )
    ratio = relative_log_ratio(errors.policy[0], errors.reference[0], 2 / 12)
    assert torch.allclose(ratio, policy - reference, rtol=1e-4)


def test_each_draw_is_relative_to_its_own_error():
    errors = RowErrors(torch.tensor([[0.2], [0.012]]), torch.tensor([[0.5], [0.01]]))
    inputs = LossInputs(errors, torch.tensor([True]), torch.ones(1))
    rows = loss(temperature=0.1, error_scale="relative")(inputs)
    assert rows.output.item() == pytest.approx((6 - 2) / 2, rel=1e-5)


def test_a_mirrored_error_by_hand():
    # u = t - v_ref = (3, 1), d = v - v_ref = (1, -1), s = 2:
    # positive: (3 - 0.5, 1 + 0.5), mean of squares (6.25 + 2.25) / 2; negative: (3.5, 0.5), (12.25 + 0.25) / 2
    row = {"policy": [2.0, 1.0], "reference": [1.0, 2.0], "target": [4.0, 3.0]}
    predictions = Predictions(*(torch.tensor([[row[name], row[name]]]) for name in ("policy", "reference", "target")))
    assert mirrored_error(predictions, torch.tensor([True, False]), 2.0).tolist() == [[4.25, 6.25]]
    assert prediction_difference(predictions).tolist() == [[1.0, 1.0]]


def test_a_mirrored_positive_row_of_strength_one_is_an_ordinary_one():
    _, inputs = random_inputs()
    mirrored, plain = (loss(negatives=kind)(inputs) for kind in ("mirror", "repel"))
    assert torch.allclose(mirrored.loss[LABELS], plain.loss[LABELS], rtol=1e-5)
    assert torch.equal(mirrored.output, plain.output)  # what is evaluated stays the log-ratio


def test_a_negative_row_is_a_positive_one_of_the_mirror_image():
    _, inputs = random_inputs()
    predictions = inputs.errors.predictions
    mirror = dataclasses.replace(predictions, target=2 * predictions.reference - predictions.target)
    errors = mirrored_error(predictions, torch.zeros(5, dtype=torch.bool), 3.0)
    assert torch.allclose(errors, mirrored_error(mirror, torch.ones(5, dtype=torch.bool), 3.0), rtol=1e-5)


@pytest.mark.parametrize("strength", [1.0, 4.0])
def test_mirrored_negatives_become_offline_nft_where_beta_is_small(strength):
    # w (q <(d / s - u)^2> + (1 - q) <(d / s + u)^2>), with q the label (arXiv 2509.16117), times kappa / 2
    policy, inputs = random_inputs()
    predictions, beta, temperature = inputs.errors.predictions, 1e-4, 0.25
    rows = loss(beta=beta, negatives="mirror", mirror_strength=strength)(inputs)
    step, residual = predictions.policy - predictions.reference, predictions.target - predictions.reference
    toward, away = (((step / strength - sign * residual) ** 2).mean((2, 3)).mean(0) for sign in (1, -1))
    nft = WEIGHTS * toward.where(LABELS, away)
    ours, theirs = (torch.autograd.grad(value.sum(), policy, retain_graph=True)[0] for value in (rows.loss, nft))
    assert torch.allclose(ours, beta / temperature / 2 * theirs, rtol=1e-3, atol=1e-9)


def test_the_best_mirrored_step_is_bounded():
    # With s, the minimum for a single negative row lies at d = -s u.
    reference, target = torch.zeros(1, 1, 4), torch.tensor([[[1.0, -2.0, 0.5, 3.0]]])
    policy = torch.zeros(1, 1, 4, requires_grad=True)
    optimizer = torch.optim.SGD([policy], lr=0.5)
    for _ in range(500):
        optimizer.zero_grad()
        predictions = Predictions(policy, reference, target)
        mirrored_error(predictions, torch.tensor([False]), 2.0).sum().backward()
        optimizer.step()
    assert torch.allclose(policy, -2 * target, atol=1e-4)


def test_the_weight_of_negatives_by_hand():
    _, inputs = random_inputs()
    whole, third = loss()(inputs).loss, loss(negative_weight=0.3)(inputs).loss
    assert torch.equal(third[LABELS], whole[LABELS])
    assert torch.allclose(third[~LABELS], 0.3 * whole[~LABELS])


def test_the_balance_of_weights_by_hand():
    assert weight_balance(LABELS, WEIGHTS) == pytest.approx(5 / 12)


def test_negatives_beyond_the_margin_give_no_gradient():
    reference = torch.tensor([[1.0, 1.0, 1.0]])
    policy = torch.tensor([[1.4, 1.6, 3.0]], requires_grad=True)  # r = -0.8, -1.2, -4 with beta / T = 2
    labels = torch.tensor([False, False, True])
    rows = loss(negative_margin=1.0)(LossInputs(RowErrors(policy, reference), labels, torch.ones(3)))
    rows.loss.sum().backward()
    assert policy.grad[0, 0] != 0
    assert policy.grad[0, 1] == 0
    assert policy.grad[0, 2] != 0  # a positive row, however far it has fallen
    assert rows.loss[1].item() == pytest.approx(math.log1p(math.exp(-1.0)))


def test_label_smoothing_by_hand():
    # -0.9 log sigmoid(2) - 0.1 log sigmoid(-2) = 0.9 x 0.126928 + 0.1 x 2.126928
    assert smoothed_logistic_loss(torch.tensor(2.0), 0.1).item() == pytest.approx(0.326928, rel=1e-5)
    assert torch.equal(smoothed_logistic_loss(torch.tensor(2.0)), -logsigmoid(torch.tensor(2.0)))


@pytest.mark.parametrize("scale", ["absolute", "relative"])
def test_trust_region_and_anchor_by_hand(scale):
    _, inputs = random_inputs()
    errors = inputs.errors
    plain = loss(error_scale=scale)(inputs).loss
    unit = 0.25 * (errors.reference if scale == "relative" else torch.ones_like(errors.reference))
    difference = prediction_difference(errors.predictions)
    trusted = loss(error_scale=scale, trust_region=0.1)(inputs).loss
    assert torch.allclose(trusted - plain, 0.1 * 0.5 * (difference / unit).mean(0), rtol=1e-4)
    anchored = loss(error_scale=scale, sft_weight=2.0)(inputs).loss
    expected = (2.0 * 0.5 * WEIGHTS * (errors.policy / unit).mean(0)).where(LABELS, 0)
    assert torch.allclose(anchored - plain, expected, rtol=1e-4)


# ---- Refused ----


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"error_scale": "log"}, "`error_scale` is 'log'; it must be one of 'absolute', 'relative'"),
        ({"negatives": "flip"}, "`negatives` is 'flip'; it must be one of 'repel', 'mirror'"),
        ({"mirror_strength": 2.0}, "`mirror_strength` is 2.0, which only mirrored negatives have"),
        ({"negatives": "mirror", "mirror_strength": 0.0}, "`mirror_strength` is 0.0; it must be greater than 0"),
        ({"negatives": "mirror", "negative_margin": 1.0}, "`negative_margin` is 1.0, which holds back"),
        ({"negatives": "mirror", "label_smoothing": 0.1}, "`label_smoothing` is 0.1, which holds back"),
        ({"negative_margin": -1.0}, "`negative_margin` is -1.0; it must be greater than 0"),
        ({"max_steps": 0}, "`max_steps` is 0; it must be at least 1, or -1 to train for `num_train_epochs`"),
        ({"learning_rate": "1e-4"}, "`learning_rate` is '1e-4'; it must be a number"),
        ({"logging_steps": "10"}, "`logging_steps` is '10'; it must be a number"),
        ({"per_device_train_batch_size": 2.0}, "`per_device_train_batch_size` is 2.0; it must be a whole number"),
        ({"seed": True}, "`seed` is True; it must be a whole number"),
        ({"lora_dropout": 1.0}, "`lora_dropout` is 1.0; it must be from 0 to below 1"),
        ({"lora_alpha": 0}, "`lora_alpha` is 0; it must be greater than 0"),
        ({"learning_rate": -1e-4}, "`learning_rate` is -0.0001; it must be at least 0 and finite"),
        ({"adam_beta1": 1.0}, "`adam_beta1` is 1.0; it must be from 0 to below 1"),
        ({"per_device_train_batch_size": 0}, "`per_device_train_batch_size` is 0; it must be at least 1"),
        ({"gradient_accumulation_steps": 0}, "`gradient_accumulation_steps` is 0; it must be at least 1"),
        ({"seed": 2**32}, "`seed` is 4294967296; it must be from 0 to 4294967295"),
        ({"max_steps": 2.5}, "`max_steps` is 2.5; it must be a whole number"),
        ({"max_steps": True}, "`max_steps` is True; it must be a whole number"),
        ({"max_steps": "9"}, "`max_steps` is '9'; it must be a whole number"),
        ({"max_steps": -1, "num_train_epochs": 0}, "`num_train_epochs` is 0; it must be greater than 0"),
        ({"negative_weight": -0.1}, "`negative_weight` is -0.1; it must be at least 0 and finite"),
        ({"negative_weight": "even"}, "`negative_weight` is 'even'; it must be a number, or 'balanced'"),
        ({"label_smoothing": 0.5}, "`label_smoothing` is 0.5, the share of labels that may be wrong"),
        ({"trust_region": -1.0}, "`trust_region` is -1.0; it must be at least 0"),
        ({"sft_weight": -1.0}, "`sft_weight` is -1.0; it must be at least 0"),
        ({"time_range": [0.5, 0.5]}, r"`time_range` is \[0.5, 0.5\]; it must be two shares"),
        ({"time_range": [0.5]}, r"`time_range` is \[0.5\]; it must be two shares"),
        ({"recipe": "stable"}, "`recipe` is 'stable'; it must be one of 'robust'"),
        ({"loss_type": "sft", "sft_weight": 1.0}, "`sft_weight` is 1.0, which `loss_type='sft'` has no use for"),
        ({"loss_type": "sft", "recipe": "robust"}, "which `loss_type='sft'` has no use for"),
    ],
)
def test_settings_without_meaning_are_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"negatives": "mirror"}, "subtracts predictions from their target, and this pipeline predicts tokens"),
        ({"trust_region": 0.1}, "subtracts predictions from their target, and this pipeline predicts tokens"),
        ({"error_scale": "relative"}, "takes the reference's error for a variance"),
    ],
)
def test_what_tokens_do_not_have_is_refused(tmp_path, settings, message):
    (case,) = (case for case in CASES if case.name == "amused")
    with pytest.raises(ValueError, match=message):
        make_trainer(case.config(tmp_path, **settings), model=case.build(), train_dataset=case.rows(4))


def test_what_tokens_have_trains(tmp_path):
    (case,) = (case for case in CASES if case.name == "amused")
    settings = {
        "negative_weight": "balanced", "negative_margin": 2.0, "label_smoothing": 0.1, "sft_weight": 0.5,
        "time_range": [0.2, 0.9],
    }  # fmt: skip
    trainer = make_trainer(case.config(tmp_path, **settings), model=case.build(), train_dataset=case.rows(8))
    trainer.train()
    assert all(weight.isfinite().all() for weight in trained_weights(trainer).values())


# ---- Runs ----

QUICK = [{"negatives": "mirror", "mirror_strength": 4.0}, {"recipe": "robust"}]
OTHERS = [
    {"error_scale": "relative"}, {"negative_weight": 0.3}, {"negative_margin": 0.5}, {"label_smoothing": 0.1},
    {"trust_region": 1.0}, {"sft_weight": 1.0}, {"time_range": [0.3, 0.6]},
]  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [*QUICK, *(pytest.param(settings, marks=pytest.mark.slow) for settings in OTHERS)],
    ids=lambda settings: next(iter(settings)),
)
def test_each_setting_changes_the_run_and_does_not_depend_on_the_layout(tmp_path, settings):
    def weights(name, **changes):
        trainer = make_trainer(config(tmp_path / name, temperature=0.01, **changes))
        trainer.train()
        return trained_weights(trainer), logged(trainer)

    paper, _ = weights("paper")
    whole, losses = weights("whole", **settings)
    parts, parts_losses = weights("parts", per_device_train_batch_size=2, gradient_accumulation_steps=2, **settings)
    assert any(not torch.equal(whole[name], paper[name]) for name in paper)
    assert parts_losses == pytest.approx(losses, rel=1e-4)
    assert max((whole[name] - parts[name]).abs().max() for name in whole) < 1e-3


def test_training_looks_at_the_times_that_it_is_told(tmp_path):
    trainer = make_trainer(config(tmp_path, time_range=[0.25, 0.5], num_likelihood_samples=4))
    batch = next(iter(trainer.get_train_dataloader()))
    quantile = trainer._errors(trainer.model, batch)[1].quantile
    trainer.args.time_range = None
    whole = trainer._errors(trainer.model, batch)[1].quantile
    assert torch.allclose(quantile, 0.25 + 0.25 * whole)
    assert len(quantile) == 16


@pytest.mark.parametrize("name", ["flux", pytest.param("wan", marks=pytest.mark.slow)])
def test_mirrored_negatives_train_on_every_kind_of_target(tmp_path, name):
    case = next(case for case in CASES if case.name.startswith(name))
    settings = {"negatives": "mirror", "mirror_strength": 4.0, "trust_region": 0.1, "error_scale": "relative"}
    trainer = make_trainer(case.config(tmp_path, **settings), model=case.build(), train_dataset=case.rows(8))
    start = trained_weights(trainer)
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    errors = trainer._errors(trainer.model, batch)[0]
    distance = (errors.predictions.policy - errors.predictions.target).float() ** 2
    assert torch.allclose(distance.flatten(2).mean(2), errors.policy, rtol=1e-5)
    trainer.train()
    end = trained_weights(trainer)
    assert all(weight.isfinite().all() for weight in end.values())
    assert any(not torch.equal(start[name], end[name]) for name in start)


@pytest.mark.parametrize("stream", [False, True])
def test_balanced_negatives_weigh_as_much_as_positives(tmp_path, stream):
    rows = tiny.scored_rows(8)
    rows = rows.remove_columns("score").add_column("score", [0.0, 5.0, 5.5, 6.0, 7.0, 7.5, 8.0, 8.5])
    settings = {"negative_weight": "balanced", "confidence_coef": 1.0}
    dataset = streamed(rows) if stream else rows
    trainer = make_trainer(config(tmp_path, **settings), train_dataset=dataset)
    # the median is 6.5: weights 1 + |s - 6.5| are 7.5, 2.5, 2, 1.5 and 1.5, 2, 2.5, 3
    assert trainer.loss.negative_weight == pytest.approx(9 / 13.5)
    heavy = rows.remove_columns("score").add_column("score", [6.0, 5.9, 5.8, 5.7, 7.0, 7.5, 8.0, 80.0])
    heavy = streamed(heavy) if stream else heavy
    assert make_trainer(config(tmp_path, **settings), train_dataset=heavy).loss.negative_weight == 1


def test_a_recipe_sets_what_the_user_has_not_and_says_so(tmp_path, capsys):
    args = config(tmp_path, recipe="robust", negative_weight=0.7)
    assert (args.error_scale, args.negative_weight, args.beta) == ("relative", 0.7, RECIPES["robust"]["beta"])
    trainer = make_trainer(args)
    table = capsys.readouterr().out
    for name, value in (("recipe", "robust"), ("error scale", "relative"), ("negative weight", "0.7")):
        assert [line for line in table.splitlines() if name in line and value in line], name
    trainer.train()
    trainer.create_model_card()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| error scale | relative |" in card
    assert "| negative weight | 0.7 |" in card


@pytest.mark.parametrize(("name", "value"), PAPER.items())
def test_what_the_user_sets_stays_also_where_it_is_the_usual(tmp_path, name, value):
    args = config(tmp_path, recipe="robust", **{name: value})
    assert getattr(args, name) == value
    assert {it: getattr(args, it) for it in PAPER if it != name} == {
        it: setting for it, setting in RECIPES["robust"].items() if it != name
    }
    assert getattr(config(tmp_path), name) == value


def test_no_clipping_is_taken_as_transformers_takes_it(tmp_path):
    assert config(tmp_path, max_grad_norm=None).max_grad_norm == 0


def test_a_recipe_of_which_nothing_is_left_is_refused(tmp_path):
    """As `dataclasses.replace` would make it, which hands on what the other configuration came to."""
    args = config(tmp_path)
    message = (
        r"`recipe` is 'robust', and beside each setting of it what holds without a recipe is given, "
        r"`error_scale='absolute'`, `negative_weight=1.0`, `beta=1.0`: it would have no effect\. Leave one of the "
        r"two out; `dataclasses.replace`"
    )
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(args, recipe="robust")
    assert dataclasses.replace(config(tmp_path, recipe="robust"), seed=3).beta == 0.3


def test_a_recipe_is_the_same_run_as_its_settings(tmp_path):
    named = make_trainer(config(tmp_path / "named", recipe="robust"))
    plain = make_trainer(config(tmp_path / "plain", **RECIPES["robust"]))
    for trainer in (named, plain):
        trainer.train()
    assert_equal(trained_weights(named), trained_weights(plain))


def test_a_run_with_a_recipe_is_gone_on_with_by_its_settings(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 2}
    make_trainer(config(tmp_path, recipe="robust", **saving)).train()
    make_trainer(config(tmp_path, **RECIPES["robust"], **saving, max_steps=3)).train(resume_from_checkpoint=True)
    changed = make_trainer(config(tmp_path, **{**RECIPES["robust"], "negative_weight": 1.0}, **saving, max_steps=4))
    with pytest.raises(ValueError, match=r"`negative_weight` was balanced, is 1\.0"):
        changed.train(resume_from_checkpoint=True)


def test_a_checkpoint_of_before_these_settings_is_one_of_their_defaults():
    older, now = Course({"beta": 1.0}), {"beta": 1.0, "error_scale": "absolute", "sft_weight": 0.0}
    assert older.differences(Course(now)) == []
    assert older.differences(Course({**now, "sft_weight": 0.5})) == ["`sft_weight` was 0.0, is 0.5"]


# ---- The page ----

PAGE = (Path(__file__).parents[1] / "docs" / "losses.md").read_text()


def test_the_page_names_settings_that_are_there():
    rows = re.findall(r"^\| `(.+?)` \|", PAGE[PAGE.index("## Settings") :], re.MULTILINE)
    names = {name for row in re.findall(r"^\| (`.+?) \|", PAGE, re.MULTILINE) for name in re.findall(r"`(\w+):", row)}
    settings = {field.name for field in dataclasses.fields(TGOConfig)}
    terms = {field.name for field in dataclasses.fields(TGOLoss)} - {"temperature", "beta"}
    assert len(rows) >= 8
    assert names <= settings
    assert terms | {"time_range"} <= names


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_page_says_what_a_recipe_sets(recipe):
    text = PAGE[PAGE.index(f"`recipe: {recipe}`") :]
    for name, value in RECIPES[recipe].items():
        assert f"`{name}: {value}`" in text
