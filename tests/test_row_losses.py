"""Losses of single rows beside TGO: each by hand and by another formula, what is refused, and runs with them."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn.functional import logsigmoid

from tgo_trl.losses import (
    LOSSES,
    CSFTLoss,
    DiffusionKTOLoss,
    LossInputs,
    NFTLoss,
    Predictions,
    QRPOLoss,
    RowErrors,
    TGOLoss,
)
from tgo_trl.losses.diffusion_kto import UTILITIES, utility_loss
from tgo_trl.losses.qrpo import scaled_log_partition
from tgo_trl.trainer.course import Course
from tgo_trl.trainer.objective import RECIPES

from . import tiny
from .cases import CASES
from .runs import assert_close, config, logged, make_trainer, streamed, trained_weights

LABELS = torch.tensor([True, False, True, False, False])
SCORES = torch.tensor([0.4, -0.2, 2.5, -0.9, -3.0])  # relative ones
OF_ROWS = ("csft", "diffusion_kto", "nft", "qrpo")


def by_hand(**given):
    """Two rows whose log-ratio at `T = 0.5` is 0.4 and -0.2: the mean errors over two draws differ by 0.2 and -0.1."""
    errors = RowErrors(torch.tensor([[0.2, 0.5], [0.4, 0.3]]), torch.tensor([[0.6, 0.3], [0.4, 0.3]]))
    return LossInputs(errors, torch.tensor([True, False]), torch.tensor([7.0, 9.0]), **given)


def random_inputs(seed=0, **given):
    """Predictions of five rows of 3 x 4 numbers, two draws of each, and the errors that they have."""
    generator = torch.Generator().manual_seed(seed)
    policy, reference, target = torch.randn(3, 2, 5, 3, 4, generator=generator)
    policy = (reference + 0.3 * policy).requires_grad_()
    errors = [((prediction - target) ** 2).mean((2, 3)) for prediction in (policy, reference)]
    predictions = Predictions(policy, reference, target)
    return policy, LossInputs(RowErrors(*errors, predictions), LABELS, torch.ones(5), **given)


def gradient(losses, policy):
    return torch.autograd.grad(losses.sum(), policy, retain_graph=True)[0]


# ---- CSFT ----


def test_a_blank_mark_of_good_rows_is_no_mark():
    assert CSFTLoss(temperature=1.0, positive_prefix=" ").negative_prompt == "Weird image."


def test_csft_is_the_error_of_all_rows_and_marks_their_prompts():
    loss = CSFTLoss(temperature=0.5)
    inputs = by_hand()
    rows = loss(dataclasses.replace(inputs, errors=RowErrors(inputs.errors.policy, None)))
    assert rows.loss.tolist() == pytest.approx([0.3, 0.4])
    assert rows.output.tolist() == pytest.approx([-0.6, -0.8])
    assert rows.reward is None
    assert (loss.rows, loss.needs_reference, loss.has_statistic) == ("scored", False, False)
    # as HPS v1: negative rows alone, and samples away from them
    assert [loss.prompt("a cat", label) for label in (True, False)] == ["a cat", "Weird image. a cat"]
    assert loss.negative_prompt == "Weird image."
    # as the baseline of Diffusion-KTO: all rows, and samples towards the good ones
    loss = CSFTLoss(temperature=0.5, positive_prefix="good image, ", negative_prefix="bad image, ")
    assert [loss.prompt("a cat", label) for label in (True, False)] == ["good image, a cat", "bad image, a cat"]
    assert loss.negative_prompt is None


# ---- Diffusion-KTO ----


def test_diffusion_kto_by_hand():
    # r = 3 (0.4, -0.2) = 1.2, -0.6, and z = 3 x 0.1: v = 0.9 of both. 1 - sigmoid(0.9) = 0.2890505
    loss = DiffusionKTOLoss(temperature=0.5, beta=3.0, desirable_weight=2.0, undesirable_weight=0.5)
    rows = loss(by_hand(statistic=torch.tensor(0.1)))
    assert rows.loss.tolist() == pytest.approx([2 * 0.2890505, 0.5 * 0.2890505], rel=1e-5)
    assert rows.output.tolist() == pytest.approx([0.4, -0.2], rel=1e-5)
    assert rows.reward.tolist() == pytest.approx([1.2, -0.6], rel=1e-5)
    assert loss.row_statistic(by_hand().errors).tolist() == pytest.approx([0.4, -0.2], rel=1e-5)


def test_the_reference_point_is_never_below_zero_and_zero_without_an_update():
    loss = DiffusionKTOLoss(temperature=0.5, beta=3.0)
    # 1 - sigmoid(1.2), 1 - sigmoid(0.6)
    for statistic in (torch.tensor(-5.0), None):
        assert loss(by_hand(statistic=statistic)).loss.tolist() == pytest.approx([0.2314752, 0.3543437], rel=1e-5)


@pytest.mark.parametrize("utility", UTILITIES)
def test_utilities_are_those_of_the_released_code(utility):
    # L = w (1 - h), where h is the utility of +-beta (g - max(0, mean g)), g = e_ref - e, beta = beta / T
    policy, inputs = random_inputs()
    kto_beta, errors = 2.0 / 0.25, inputs.errors
    g = (errors.reference - errors.policy).mean(0)
    scaled = torch.where(LABELS, 1, -1) * kto_beta * (g - g.mean().clamp(min=0).detach())
    h = {
        "sigmoid": torch.sigmoid(scaled),
        "loss_averse": logsigmoid(scaled),
        "risk_seeking": -logsigmoid(-scaled),  # its `risk_seeking_3`
    }[utility]
    loss = DiffusionKTOLoss(temperature=0.25, beta=2.0, utility=utility)
    statistic = loss.row_statistic(errors).mean().detach()
    rows = loss(dataclasses.replace(inputs, statistic=statistic))
    constant = 1 if utility == "sigmoid" else 0
    assert torch.allclose(rows.loss, constant - h, rtol=1e-4, atol=1e-6)
    assert torch.allclose(gradient(rows.loss, policy), gradient(-h, policy), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("utility", UTILITIES)
def test_utilities_rise_and_are_finite_far_out(utility):
    gain = torch.tensor([-1e4, -2.0, 0.0, 2.0, 1e4], dtype=torch.float64, requires_grad=True)
    losses = utility_loss(gain, utility)
    losses.sum().backward()
    assert losses.isfinite().all()
    assert gain.grad.isfinite().all()
    assert (losses.diff() < 0).all() or utility != "sigmoid"
    assert (gain.grad <= 0).all()
    # flat where it is said to be
    flat = {"sigmoid": (0, -1), "loss_averse": (-1,), "risk_seeking": (0,)}[utility]
    assert all(gain.grad[i] == 0 for i in flat)
    assert torch.autograd.gradcheck(lambda value: utility_loss(value, utility), gain[1:4].detach().requires_grad_())


def test_tgo_without_confidence_is_loss_averse_kto_without_a_reference_point():
    # c = 0 is a weight of 1; KTO's own beta multiplies e_ref - e
    policy, inputs = random_inputs()
    beta, temperature = 0.3, 0.05
    g = (inputs.errors.reference - inputs.errors.policy).mean(0)
    kto = -logsigmoid(torch.where(LABELS, 1, -1) * (beta / temperature) * g)
    tgo = TGOLoss(temperature=temperature, beta=beta)(inputs).loss
    ours = DiffusionKTOLoss(temperature=temperature, beta=beta, utility="loss_averse")(inputs).loss
    for losses in (tgo, ours):
        assert torch.allclose(losses, kto, rtol=1e-4)
        assert torch.allclose(gradient(losses, policy), gradient(kto, policy), rtol=1e-3, atol=1e-6)
    assert torch.equal(tgo, ours)
    assert torch.equal(gradient(tgo, policy), gradient(ours, policy))


# ---- NFT ----


def test_nft_by_hand():
    # u = t - v_ref = (3, 1), d = v - v_ref = (1, -1), s = 2: <(u - d / 2)^2> = 4.25, <(u + d / 2)^2> = 6.25
    # A / k = 0.25, -4: q = 0.625, 0; 2 (0.625 x 4.25 + 0.375 x 6.25) = 10, 2 x 6.25
    row = {"policy": [2.0, 1.0], "reference": [1.0, 2.0], "target": [4.0, 3.0]}
    predictions = Predictions(*(torch.tensor([[row[name], row[name]]]) for name in ("policy", "reference", "target")))
    errors = RowErrors(torch.tensor([[4.0, 4.0]]), torch.tensor([[5.0, 5.0]]), predictions)
    inputs = LossInputs(errors, torch.tensor([True, False]), torch.ones(2), relative_score=torch.tensor([0.5, -8.0]))
    rows = NFTLoss(temperature=0.5, mirror_strength=2.0, advantage_clip=2.0)(inputs)
    assert rows.loss.tolist() == pytest.approx([10.0, 12.5])
    assert rows.output.tolist() == rows.reward.tolist() == [2.0, 2.0]  # (5 - 4) / 0.5


@pytest.mark.parametrize("strength", [1.0, 10.0])
def test_nft_is_that_of_the_released_code(strength):
    # Two implicit policies with beta = 1 / s, weighed by r of the clipped advantage, over beta; without the weighting
    # by the error, whose scale it leaves out, and the constant factor `adv_clip_max`.
    policy, inputs = random_inputs(relative_score=SCORES)
    beta, old, target = 1 / strength, inputs.errors.predictions.reference, inputs.errors.predictions.target
    r = ((SCORES.clamp(-5, 5) / 5) / 2 + 0.5)[None]
    positive = beta * policy + (1 - beta) * old
    negative = (1 + beta) * old - beta * policy
    toward, away = (((prediction - target) ** 2).mean((2, 3)) for prediction in (positive, negative))
    expected = (r * toward / beta + (1 - r) * away / beta).mean(0)
    rows = NFTLoss(temperature=0.25, mirror_strength=strength, advantage_clip=5.0)(inputs)
    assert torch.allclose(rows.loss, expected, rtol=1e-4)
    assert torch.allclose(gradient(rows.loss, policy), gradient(expected, policy), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("strength", [1.0, 4.0])
def test_nft_of_labels_is_the_limit_of_mirrored_negatives(strength):
    # log sigmoid has the slope 1/2 at 0, and r_s = kappa (e_ref - <(u -+ d / s)^2>)
    policy, inputs = random_inputs(relative_score=SCORES)
    beta, temperature = 1e-4, 0.25
    settings = {"temperature": temperature, "mirror_strength": strength}
    mirrored = TGOLoss(beta=beta, negatives="mirror", **settings)(inputs).loss
    nft = NFTLoss(**settings, advantage_clip=1e-9)(inputs).loss  # every row counts in full
    expected = beta / temperature / 2 / strength * gradient(nft, policy)
    assert torch.allclose(gradient(mirrored, policy), expected, rtol=1e-3, atol=1e-9)


def test_the_best_step_of_nft_is_what_the_optimality_says():
    # s (2 q - 1) u, with A / k = -0.5: q = 0.25
    reference, target = torch.zeros(1, 1, 4), torch.tensor([[[1.0, -2.0, 0.5, 3.0]]])
    policy = torch.zeros(1, 1, 4, requires_grad=True)
    optimizer = torch.optim.SGD([policy], lr=0.5)
    for _ in range(200):
        optimizer.zero_grad()
        errors = RowErrors(torch.zeros(1, 1), torch.zeros(1, 1), Predictions(policy, reference, target))
        inputs = LossInputs(errors, torch.tensor([False]), torch.ones(1), relative_score=torch.tensor([-0.5]))
        NFTLoss(temperature=1.0, mirror_strength=2.0)(inputs).loss.sum().backward()
        optimizer.step()
    assert torch.allclose(policy, 2.0 * (2 * 0.25 - 1) * target, atol=1e-4)


# ---- QRPO ----


def test_qrpo_by_hand():
    # beta log Z = log(e - 1) = 0.541325 at beta = 1; r = 0.4, -0.2: (0.9 - 0.541325 - 0.4)^2, (0.1 - 0.541325 + 0.2)^2
    rows = QRPOLoss(temperature=0.5, beta=1.0)(by_hand(relative_score=torch.tensor([0.9, 0.1])))
    assert rows.loss.tolist() == pytest.approx([0.0413248**2, 0.2413248**2], rel=1e-4)
    assert rows.reward.tolist() == pytest.approx([0.4, -0.2], rel=1e-5)


@pytest.mark.parametrize("beta", [0.05, 0.3, 1.0, 20.0])
def test_the_partition_function_is_that_of_uniform_quantiles(beta):
    quantiles = (np.arange(200_000) + 0.5) / 200_000
    assert scaled_log_partition(beta) == pytest.approx(beta * math.log(np.exp(quantiles / beta).mean()), rel=1e-5)


@pytest.mark.parametrize("beta", [1e-4, 0.003, 0.03])
def test_small_betas_are_those_of_the_released_code(beta):
    # `log_Z = log(beta) + 1 / beta`
    assert scaled_log_partition(beta) == pytest.approx(beta * (math.log(beta) + 1 / beta), rel=1e-6)


def test_the_best_policy_of_qrpo_is_the_closed_form():
    # log pi = log pi_ref + q / beta - log Z, which sums to one over quantiles
    quantiles = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    log_ratio = (quantiles - scaled_log_partition(0.2)) / 0.2
    assert log_ratio.exp().mean().item() == pytest.approx(1.0, rel=1e-4)
    errors = RowErrors(-log_ratio[None], torch.zeros(1, 1000, dtype=torch.float64))
    inputs = LossInputs(errors, quantiles > 0.5, torch.ones(1000), relative_score=quantiles)
    assert QRPOLoss(temperature=1.0, beta=0.2)(inputs).loss.max() < 1e-20


# ---- Refused ----


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"utility": "linear"}, "`utility` is 'linear'; it must be one of 'sigmoid', 'loss_averse', 'risk_seeking'"),
        ({"utility": "loss_averse"}, "`utility` is 'loss_averse', which `loss_type='tgo'` has no use for"),
        ({"loss_type": "diffusion_kto", "negative_weight": 0.5}, "`negative_weight` is 0.5, which `loss_type='diffus"),
        ({"loss_type": "diffusion_kto", "confidence_coef": 1.0}, "`confidence_coef` is 1.0, which `loss_type='diff"),
        ({"loss_type": "diffusion_kto", "desirable_weight": 0.0}, "`desirable_weight` is 0.0; it must be greater"),
        ({"loss_type": "qrpo", "quantile_scope": "image"}, "`quantile_scope` is 'image'; it must be one of 'auto'"),
        ({"loss_type": "nft", "quantile_scope": "prompt"}, "`quantile_scope` is 'prompt', which `loss_type='nft'` has"),
        ({"loss_type": "nft", "advantage_clip": -1.0}, "`advantage_clip` is -1.0; it must be greater than 0"),
        ({"loss_type": "qrpo", "mirror_strength": 2.0}, "`mirror_strength` is 2.0, which `loss_type='qrpo'` has no"),
        ({"loss_type": "csft", "negative_prefix": ""}, "`positive_prefix` is '' and `negative_prefix` ''"),
        ({"loss_type": "csft", "negative_prefix": "  "}, "so that prompts do not tell good rows from bad ones"),
        ({"positive_prefix": "good "}, "`positive_prefix` is 'good ', which `loss_type='tgo'` has no use for"),
        ({"loss_type": "csft", "sync_ref_model": True}, "`loss_type='csft'` has no reference"),
        ({"loss_type": "csft", "max_drift": 1.2}, "`loss_type='csft'` has no reference to drift from"),
        ({"positive_ratio": 1.0}, "`positive_ratio` is 1.0, a share of rows; it must be between 0 and 1"),
        ({"positive_ratio": 0.8, "loss_type": "sft"}, "`loss_type='sft'` does not take positive and negative rows"),
        ({"positive_ratio": 0.8, "negative_weight": "balanced"}, "`negative_weight` is 'balanced', of all rows"),
        ({"positive_ratio": 0.8, "train_sampling_strategy": "sequential"}, "takes all of them in order"),
        ({"recipe": "diffusion_kto_code"}, "which `loss_type='tgo'` has no use for. Set `loss_type='diffusion_kto'`"),
        (
            {"loss_type": "nft", "recipe": "robust"},
            "`recipe` is 'robust', which `loss_type='nft'` has no use for. Set `lo",
        ),
        ({"loss_type": "nft", "beta": 0.1}, "`beta` is 0.1, which `loss_type='nft'` has no use for. Leave it out."),
        ({"loss_type": "csft", "beta": 0.1}, "`beta` is 0.1, which `loss_type='csft'` has no use for"),
        (
            {"loss_type": "qrpo", "score_normalization": "zscore"},
            "`score_normalization` is 'zscore', which `loss_type='qr",
        ),
        (
            {"loss_type": "diffusion_kto", "recipe": "diffusion_kto_code", "train_sampling_strategy": "sequential"},
            r"`positive_ratio` is 0\.8 \(of `recipe='diffusion_kto_code'`\), which leaves out other rows",
        ),
        (
            {"positive_ratio": 0.8, "recipe": "robust"},
            r"is 'balanced' \(of `recipe='robust'`\), of all rows: both even",
        ),
    ],
)
def test_settings_without_meaning_are_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **settings)


@pytest.mark.parametrize("loss_type", ["diffusion_kto", "diffusion_dpo"])
def test_confidence_that_is_off_is_taken_by_losses_without_it(tmp_path, loss_type):
    assert config(tmp_path, loss_type=loss_type, confidence_coef=0.0).confidence_coef == 0


def test_a_beta_of_the_threshold_is_one_also_where_the_loss_has_none(tmp_path, capsys):
    of_threshold = {"threshold_type": "prompt_baseline", "beta": 0.1, "score_normalization": "zscore"}
    trainer = make_trainer(config(tmp_path, loss_type="nft", **of_threshold))
    assert {"beta": 0.1, "score normalisation": "zscore"}.items() <= trainer.hyperparameters().items()
    assert "beta" not in make_trainer(config(tmp_path, loss_type="nft")).hyperparameters()
    assert "effective scale" not in capsys.readouterr().out  # which neither loss has
    assert dataclasses.replace(config(tmp_path, loss_type="nft"), seed=1).beta == 1  # what is filled in is taken back


def test_a_ratio_that_leaves_one_side_is_refused_before_images_are_encoded(tmp_path, monkeypatch):
    # of 7 positive rows there is at most 0.37 of a negative one
    monkeypatch.setattr("tgo_trl.trainer.preparation.encode_images", None)
    args = config(tmp_path, positive_ratio=0.95, threshold_percentile=10.0)
    with pytest.raises(
        ValueError, match=r"`positive_ratio` is 0\.95, which .* one side only from the 7 positive and 1"
    ):
        make_trainer(args)


def test_a_stream_has_no_ratio(tmp_path):
    with pytest.raises(ValueError, match="which leaves out other rows in each epoch, and a streaming `train_dataset`"):
        make_trainer(config(tmp_path, positive_ratio=0.8), train_dataset=streamed(tiny.scored_rows(8)))


def test_quantiles_of_prompts_are_refused_of_a_stream_that_is_evaluated(tmp_path):
    trainer = make_trainer(config(tmp_path, loss_type="qrpo"))
    with pytest.raises(ValueError, match=r"\(`quantile_scope='auto'`\), which the streaming evaluation data set does"):
        trainer.evaluate(streamed(tiny.scored_rows(4)))


@pytest.mark.parametrize("loss_type", OF_ROWS)
def test_the_best_metric_is_one_that_the_loss_has(tmp_path, loss_type):
    settings = {"eval_strategy": "steps", "save_strategy": "steps", "load_best_model_at_end": True, "eval_steps": 1,
                "save_steps": 1, "metric_for_best_model": "weights/balance"}  # fmt: skip
    with pytest.raises(ValueError, match="`metric_for_best_model` is 'weights/balance', and an evaluation has no such"):
        make_trainer(config(tmp_path, loss_type=loss_type, **settings), eval_dataset=tiny.scored_rows(4))


@pytest.mark.parametrize("recipe", ["diffusion_kto_paper", "diffusion_kto_code"])
def test_published_settings_are_taken_where_the_user_sets_none(tmp_path, recipe):
    args = config(tmp_path, loss_type="diffusion_kto", recipe=recipe)
    assert (args.beta, args.positive_ratio) == (RECIPES[recipe]["beta"], 0.8)
    args = config(tmp_path, loss_type="diffusion_kto", recipe=recipe, beta=2.0, positive_ratio=0.5)
    assert (args.beta, args.positive_ratio) == (2.0, 0.5)


def test_a_checkpoint_of_before_these_settings_is_one_of_their_defaults():
    older, now = Course({"beta": 1.0}), {"beta": 1.0, "utility": "sigmoid", "quantile_scope": "auto"}
    now |= {"negative_prefix": "Weird image. ", "positive_ratio": None, "advantage_clip": 1.0}
    assert older.differences(Course(now)) == []
    assert older.differences(Course({**now, "positive_ratio": 0.8})) == ["`positive_ratio` was None, is 0.8"]


# ---- Runs ----


def trained(folder, loss_type, **settings):
    trainer = make_trainer(config(folder, **{"loss_type": loss_type, "temperature": 0.01, **settings}))
    start = trained_weights(trainer)
    trainer.train()
    return trainer, start


@pytest.mark.parametrize("use_peft", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("loss_type", OF_ROWS)
def test_it_trains_in_any_layout_evaluates_and_says_so(tmp_path, loss_type, use_peft):
    settings = {"use_peft": use_peft, "optim": "sgd", "learning_rate": 0.1, "per_device_train_batch_size": 4}
    settings |= {"quantile_scope": "dataset"} if loss_type == "qrpo" else {}
    whole, start = trained(tmp_path / "whole", loss_type, **settings)
    accumulated = {**settings, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    parts, _ = trained(tmp_path / "parts", loss_type, **accumulated)
    end = trained_weights(whole)
    assert any(not torch.equal(start[name], end[name]) for name in start)
    assert logged(parts) == pytest.approx(logged(whole), rel=1e-4)
    assert_close(trained_weights(parts), end, 1e-5)
    held_out = tiny.scored_rows(8, seed=1)
    evaluated = whole.evaluate(held_out)
    assert math.isfinite(evaluated["eval_loss"])
    assert evaluated["eval_loss"] == pytest.approx(whole.evaluate(streamed(held_out))["eval_loss"], rel=1e-4)
    assert ("eval_rewards/margins" in evaluated) == LOSSES[loss_type].needs_reference
    assert "eval_weights/balance" not in evaluated
    whole.create_model_card()
    card = (tmp_path / "whole" / "out" / "README.md").read_text()
    assert f"with {LOSSES[loss_type].method.format(media='image')}." in card
    title, number = LOSSES[loss_type].paper
    assert f"The loss is from [{title}](https://huggingface.co/papers/{number}), the trainer and its" in card
    assert "confidence coefficient" not in card


@pytest.mark.parametrize("loss_type", ["nft", "qrpo"])
def test_the_loss_is_given_the_scores_that_it_reads(tmp_path, loss_type):
    rows = tiny.scored_rows(8)
    scores = np.array(rows["score"])
    expected = {
        "nft": (scores - 3.5) / scores.std(),
        "qrpo": np.array(
            [0.25 if scores[i] < scores[(i + 4) % 8] else 0.75 for i in range(8)]
        ),  # of the two of a prompt
    }[loss_type]
    trainer = make_trainer(config(tmp_path, loss_type=loss_type))
    assert [row["relative_score"] for row in trainer.train_dataset] == pytest.approx(expected.tolist())
    stream = make_trainer(config(tmp_path, loss_type=loss_type), train_dataset=streamed(rows)).train_dataset
    assert [row["relative_score"] for row in itertools.islice(stream, 8)] == pytest.approx(expected.tolist())
    assert ("quantile scope", "prompt") in trainer.hyperparameters().items() or loss_type == "nft"


def test_quantiles_are_of_all_rows_where_the_user_says_so(tmp_path):
    trainer = make_trainer(config(tmp_path, loss_type="qrpo", quantile_scope="dataset"))
    expected = [(score + 0.5) / 8 for score in tiny.scored_rows(8)["score"]]
    assert [row["relative_score"] for row in trainer.train_dataset] == pytest.approx(expected)
    assert trainer.hyperparameters()["quantile scope"] == "dataset"


def test_an_epoch_has_the_share_of_positive_rows_that_is_set(tmp_path, capsys):
    # 4 of 8 rows are positive: with one negative row they are four fifths
    args = config(tmp_path, loss_type="diffusion_kto", recipe="diffusion_kto_code", max_steps=-1, num_train_epochs=3,
                  save_strategy="steps", save_steps=3)  # fmt: skip
    trainer = make_trainer(args)
    assert [line for line in capsys.readouterr().out.splitlines() if "positive ratio" in line and "0.8" in line]
    seen = []
    get = trainer.train_dataset.__class__.__getitem__
    trainer.train_dataset.__class__ = type(
        "Watched",
        (trainer.train_dataset.__class__,),
        {"__getitem__": lambda self, index: seen.append(index) or get(self, index)},
    )
    trainer.train()
    labels = trainer.train_labels.is_positive
    assert [epoch for epoch, _ in seen] == [0] * 5 + [1] * 5 + [2] * 5
    for epoch in range(3):
        assert sum(bool(labels[position]) for of, position in seen if of == epoch) == 4
    assert trainer.state.global_step == 6  # of four rows and of one
    weights = trained_weights(trainer)
    (tmp_path / "out" / "checkpoint-6").rename(tmp_path / "last")  # in the middle of the second epoch
    resumed = make_trainer(args)
    resumed.train(resume_from_checkpoint=True)
    assert_close(trained_weights(resumed), weights, 0)


@pytest.mark.parametrize("loss_type", ["csft", "diffusion_kto", "qrpo"])
def test_what_reads_errors_alone_trains_on_tokens(tmp_path, loss_type):
    (case,) = (case for case in CASES if case.name == "amused")
    args = case.config(tmp_path, loss_type=loss_type)
    trainer = make_trainer(args, model=case.build(), train_dataset=case.rows(8))
    start = trained_weights(trainer)
    trainer.train()
    end = trained_weights(trainer)
    assert all(weight.isfinite().all() for weight in end.values())
    assert any(not torch.equal(start[name], end[name]) for name in start)


def test_tokens_have_no_mirror_image(tmp_path):
    (case,) = (case for case in CASES if case.name == "amused")
    with pytest.raises(ValueError, match="`loss_type='nft'` subtracts predictions from their target, and this"):
        make_trainer(case.config(tmp_path, loss_type="nft"), model=case.build(), train_dataset=case.rows(4))


# ---- Samples ----


@pytest.mark.parametrize(
    ("prefixes", "prompt", "negative"),
    [
        ({}, "a red cat", {"negative_prompt": ["Weird image."]}),
        ({"positive_prefix": "good image, ", "negative_prefix": "bad image, "}, "good image, a red cat", {}),
    ],
)
def test_samples_are_drawn_as_good_images(tmp_path, prefixes, prompt, negative):
    trainer = make_trainer(config(tmp_path, loss_type="csft", **prefixes, sample_prompts=["a red cat"]))
    call = {"num_inference_steps": 2, "guidance_scale": 5.0}
    (sample,) = trainer.sample(["a red cat"], [3], **call)
    (drawn,) = trainer.family.sample(
        trainer.pipeline, [prompt], [torch.Generator().manual_seed(3)], (16, 16), **call, **negative
    )
    assert np.array_equal(np.asarray(sample), np.asarray(drawn))
    (plain,) = trainer.family.sample(
        trainer.pipeline, ["a red cat"], [torch.Generator().manual_seed(3)], (16, 16), **call
    )
    assert not np.array_equal(np.asarray(sample), np.asarray(plain))
    (other,) = trainer.sample(["a red cat"], [3], **call, negative_prompt="grey")  # the user's own comes first
    assert not np.array_equal(np.asarray(sample), np.asarray(other))
    trainer.create_model_card()
    card = (tmp_path / "out" / "README.md").read_text()
    assert ("| positive prefix | 'good image, ' |" in card) == bool(prefixes)
    shown = '    negative_prompt="Weird image.",\n' if negative else ""
    assert f'image = pipeline(\n    prompt="{prompt}",\n{shown}    height=16,\n' in card
