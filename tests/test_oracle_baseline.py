"""The world in which `Z(x)` is a sum of eight terms: its arithmetic, what theory says, and the order of the results."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tgo_trl.losses.tgo import tgo_loss

EXAMPLES = Path(__file__).parents[1] / "examples"
BETA, SPREAD = 0.7, 1.5


@pytest.fixture(scope="module")
def example():
    """The script as a module."""
    sys.path.insert(0, str(EXAMPLES))
    import oracle_baseline

    yield oracle_baseline
    sys.path.remove(str(EXAMPLES))
    del sys.modules["oracle_baseline"]


@pytest.fixture
def world(example):
    return example.make_world(num_prompts=5, num_seeds=2, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def results(example, tmp_path_factory):
    """What `--quick` writes."""
    folder = tmp_path_factory.mktemp("quick")
    threads = torch.get_num_threads()
    example.main(example.parse_options(["--quick", "--output_dir", str(folder)]))
    torch.set_num_threads(threads)
    for name in ("oracle_baseline.png", "oracle_baseline_tabular.png", "oracle_baseline_why.png", "tables.md"):
        assert (folder / name).stat().st_size > 500
    return json.loads((folder / "results.json").read_text())


def as_theta(world, log_policy):
    """The tabular parameters `[S, 1, P, Y]` of a policy `[S, P, Y]`."""
    return (log_policy - world.log_reference)[:, None]


def test_the_oracle_is_the_sum_over_outputs(world):
    reward, oracle = world.reward(SPREAD), world.oracle(BETA, SPREAD)
    for seed in range(2):
        for prompt in range(5):
            terms = zip(world.log_reference[seed, prompt].tolist(), reward[seed, prompt].tolist(), strict=True)
            partition = sum(math.exp(log_reference) * math.exp(value / BETA) for log_reference, value in terms)
            assert oracle[seed, prompt].item() == pytest.approx(BETA * math.log(partition), abs=1e-12)
    expected = world.quality + 1.5 * world.level[..., None]
    torch.testing.assert_close(reward, expected)
    torch.testing.assert_close(world.log_reference.exp().sum(-1), torch.ones(2, 5, dtype=torch.float64))


def test_the_optimum_attains_beta_log_z_and_any_other_policy_loses_its_divergence(world):
    oracle, optimum = world.oracle(BETA, SPREAD), world.optimum(BETA)
    torch.testing.assert_close(world.objective(optimum, BETA, SPREAD), oracle)
    other = torch.randn(2, 3, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    divergence = (other.exp() * (other - optimum[:, None])).sum(-1)
    torch.testing.assert_close(world.objective(other, BETA, SPREAD), oracle[:, None] - BETA * divergence)
    # the level shifts every policy's objective alike, so it cannot change what is attained between the two ends
    shift = world.objective(other, BETA, SPREAD) - world.objective(other, BETA)
    torch.testing.assert_close(shift, (SPREAD * world.level)[:, None].expand_as(shift))


def test_the_oracle_labels_by_the_sign_of_the_optimal_log_ratio(example, world):
    log_ratio = world.optimum(BETA) - world.log_reference
    right = world.reward(SPREAD) >= world.oracle(BETA, SPREAD)[..., None]
    assert torch.equal(right, log_ratio >= 0)
    assert 0 < right.double().mean() < 1
    # and the rows get those labels, if the scorer adds no noise
    rows = example.draw_rows(world, 200, torch.Generator().manual_seed(1))
    problem = example.make_problem("tabular", example.METHODS[-1], world, rows, 0.0, SPREAD, 0.0, BETA)
    drawn = torch.zeros_like(log_ratio).scatter_add(-1, rows.outputs, torch.full((2, 5, 200), 1e-3).double())
    torch.testing.assert_close(problem.positive, drawn.where(right, 0))
    torch.testing.assert_close(problem.negative, drawn.where(~right, 0))
    assert problem.flipped == problem.gap == [0, 0]


def test_thresholds_by_hand(example):
    scores = torch.tensor([[0.0, 1.0, 2.0, 3.0], [0.0, 0.0, 4.0, 6.0]], dtype=torch.float64)
    oracle = torch.tensor([1.25, 2.5], dtype=torch.float64)

    def of(kind, num_images=1):
        return example.threshold_rows(example.Method("", kind, num_images), scores, oracle, beta=2.0).tolist()

    assert of("median") == [[1.5] * 4] * 2  # of 0 0 0 1 2 3 4 6
    assert of("mean") == [[2.0] * 4] * 2
    assert of("exact") == [[1.25] * 4, [2.5] * 4]
    assert of("prompt_mean", 2) == [[0.5, 0.5, 2.5, 2.5], [0, 0, 5, 5]]
    first, second = 2 * math.log((1 + math.exp(0.5)) / 2), 2 + 2 * math.log((1 + math.exp(0.5)) / 2)
    assert of("prompt_baseline", 2)[0] == pytest.approx([first, first, second, second])
    assert of("prompt_baseline", 4)[1] == pytest.approx([2 * math.log((2 + math.exp(2) + math.exp(3)) / 4)] * 4)


@pytest.mark.parametrize("kind", ["exact", "prompt_mean", "prompt_baseline"])
def test_rules_that_follow_the_prompt_do_not_see_the_spread(example, world, kind):
    rows = example.draw_rows(world, 8, torch.Generator().manual_seed(1))
    method = example.Method("", kind, 4)
    assert not method.is_global
    near, far = (example.make_problem("tabular", method, world, rows, 0.5, spread, 5.0, BETA) for spread in (0.0, 4.0))
    torch.testing.assert_close(near.positive, far.positive)
    torch.testing.assert_close(near.negative, far.negative)
    assert near.flipped == far.flipped
    assert near.gap == pytest.approx(far.gap)


def test_the_loss_over_outputs_is_the_mean_loss_over_rows(example, world):
    rows = example.draw_rows(world, 6, torch.Generator().manual_seed(1))
    median = example.METHODS[0]
    problem = example.make_problem("shared", median, world, rows, 0.5, SPREAD, 5.0, BETA)
    theta = torch.randn(2, 1, world.features.shape[-1], generator=torch.Generator().manual_seed(2)).double()
    loss = example.mean_loss(world, theta, problem.positive[:, None], problem.negative[:, None], BETA)
    for seed in range(2):
        scores = rows.scores(world, SPREAD, 0.5)[seed]
        threshold = scores.flatten().sort().values[14:16].mean()  # the median of 30
        logits = world.log_reference[seed] + world.features[seed] @ theta[seed, 0]
        log_ratio = logits.log_softmax(-1) - world.log_reference[seed]
        total = 0.0
        for prompt in range(5):
            for output, score in zip(rows.outputs[seed, prompt], scores[prompt], strict=True):
                sign = 1 if score >= threshold else -1
                reward = sign * BETA * log_ratio[prompt, output]
                total += (1 + 5 * abs(score - threshold)) * math.log1p(math.exp(-reward))
        assert loss[seed, 0].item() == pytest.approx(total.item() / 30)


def test_with_unit_logistic_noise_the_oracle_makes_the_optimum_a_stationary_point(example, world):
    """P(s >= tau* | x, y) = sigmoid(R - tau*) = sigmoid(beta log pi*/pi_ref), the model that the loss fits."""
    distance = world.reward(SPREAD) - world.oracle(BETA, SPREAD)[..., None]
    share = world.log_reference.exp() / 5

    def gradient(shift):
        theta = as_theta(world, world.optimum(BETA)).requires_grad_()
        sides = [(share * (sign * (distance + shift)).sigmoid())[:, None] for sign in (1, -1)]
        example.mean_loss(world, theta, *sides, BETA).sum().backward()
        return theta.grad.abs().max().item()

    assert gradient(0.0) < 1e-15
    assert gradient(1.0) > 1e-3


def test_at_the_reference_the_weight_adds_a_gradient_that_no_threshold_changes(example, world):
    """Label times weight is sign + c (s - tau), and E_ref[grad log pi] = 0 takes tau out of the second part."""
    reward, share = world.reward(SPREAD), world.log_reference.exp() / 5

    def gradient(threshold, coef):
        theta = torch.zeros(2, 1, world.features.shape[-1], dtype=torch.float64, requires_grad=True)
        weight = share * (1 + coef * (reward - threshold).abs())
        sides = [(weight * side)[:, None] for side in (reward >= threshold, reward < threshold)]
        example.mean_loss(world, theta, *sides, BETA).sum().backward()
        return theta.grad

    parts = [gradient(threshold, 5.0) - gradient(threshold, 0.0) for threshold in (-3.0, 0.0, 2.0)]
    torch.testing.assert_close(parts[0], parts[1])
    torch.testing.assert_close(parts[0], parts[2])
    assert parts[0].abs().max() > 0.1
    assert (gradient(-3.0, 0.0) - gradient(0.0, 0.0)).abs().max() > 0.1
    # it is the policy gradient of the expected reward, beta c / 2 times
    theta = torch.zeros(2, 1, world.features.shape[-1], dtype=torch.float64, requires_grad=True)
    (example.log_policy(world, theta).exp() * reward[:, None]).sum(-1).mean(-1).sum().backward()
    torch.testing.assert_close(parts[0], -BETA * 5 / 2 * theta.grad)


def test_all_positive_prompts_stay_and_all_negative_prompts_collapse(example, world):
    share, none = (world.log_reference.exp() / 5)[:, None], torch.zeros(2, 1, 5, 8, dtype=torch.float64)
    random = torch.randn(2, 40, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    zero = torch.zeros_like(none)
    all_positive, all_negative = (share, none), (none, share)
    # log(1 + 1/u) is convex in u = pi / pi_ref, and log(1 + u) is concave
    assert (
        example.mean_loss(world, random, *all_positive, 1.0) > example.mean_loss(world, zero, *all_positive, 1.0)
    ).all()
    assert (
        example.mean_loss(world, random, *all_negative, 1.0) < example.mean_loss(world, zero, *all_negative, 1.0)
    ).all()
    one_output = 60 * torch.eye(8, dtype=torch.float64)[world.log_reference.argmin(-1)][:, None]
    assert (
        example.mean_loss(world, one_output, *all_negative, 1.0) < example.mean_loss(world, random, *all_negative, 1.0)
    ).all()


@pytest.mark.parametrize("coef", [0.0, 5.0])
def test_the_bound_of_the_loss_at_the_optimum(world, coef):
    """|L_tau(pi*) - L_tau*(pi*)| <= E[w |tau - tau*|] + c ln 2 E|tau - tau*|, without noise."""
    reward, oracle, share = world.reward(SPREAD), world.oracle(BETA, SPREAD)[..., None], world.log_reference.exp() / 5
    implicit = BETA * (world.optimum(BETA) - world.log_reference)

    def loss(threshold):
        return (share * tgo_loss(implicit, reward >= threshold, 1 + coef * (reward - threshold).abs())).sum((1, 2))

    for threshold in torch.linspace(-4, 4, 17, dtype=torch.float64):
        error = (threshold - oracle).abs()
        bound = (share * (1 + coef * (reward - threshold).abs()) * error).sum((1, 2))
        bound += coef * math.log(2) * (share * error).sum((1, 2))
        assert ((loss(threshold) - loss(oracle)).abs() <= bound).all()


def test_interval_by_hand(example):
    mean, half = example.interval([1.0, 2.0, 3.0])
    assert mean == 2
    assert half == pytest.approx(4.302653 / 3**0.5)  # t of 2 degrees of freedom


def test_runs_repeat_exactly(example):
    options = replace(example.Options().quick(), num_updates={"shared": 3, "tabular": 3}, num_rows=64)
    one, other = ([problem.to_dict() for problem in example.run(options)] for _ in range(2))
    assert one == other


def find(results, **wanted):
    return [cell for cell in results["cells"] if all(cell[name] == value for name, value in wanted.items())]


@pytest.mark.parametrize("policy", ["shared", "tabular"])
@pytest.mark.parametrize("coef", [0.0, 5.0])
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_one_threshold_loses_as_prompts_differ_more(results, policy, coef, noise):
    wanted = {"policy": policy, "coef": coef, "noise": noise}
    cells = find(results, method="median", **wanted)
    assert [cell["spread"] for cell in cells] == [0, 2, 4]
    best = [cell["best"][0] for cell in cells]
    assert best[0] > best[1] + 0.05
    assert best[1] > best[2] + 0.02
    (exact,) = find(results, method="exact", **wanted)
    (prompt_mean,) = find(results, method="prompt mean, 4", **wanted)
    assert min(exact["best"][0], prompt_mean["best"][0]) > best[2] + 0.2
    # hard prompts collapse when training goes on
    assert cells[-1]["last"][0] < 0 < best[2]


@pytest.mark.parametrize("policy", ["shared", "tabular"])
@pytest.mark.parametrize("noise", [0.0, 0.5])
@pytest.mark.parametrize("spread", [2.0, 4.0])
def test_the_weight_makes_up_for_a_part_of_it_though_the_bound_grows(results, policy, noise, spread):
    plain, weighted = find(results, method="median", policy=policy, noise=noise, spread=spread)
    assert (plain["coef"], weighted["coef"]) == (0, 5)
    assert weighted["best"][0] > plain["best"][0] + 0.05
    assert min(weighted["gap"]) > 5 * max(plain["gap"])
    assert plain["flipped"] == weighted["flipped"]


def test_the_bound_orders_spreads_for_one_threshold_and_fixed_weight(results):
    correlations = results["rank_correlation_with_lost"]
    for name in ("one threshold, c = 0", "one threshold, c = 5"):
        assert correlations[name]["gap"] > 0.6
        assert correlations[name]["gap"] > correlations["all"]["gap"]
