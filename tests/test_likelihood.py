"""The objective, equation by equation, against numbers worked by hand."""

import math

import pytest
import torch
from torch import nn

from tgo_trl.losses.likelihood import implicit_reward, log_likelihood, log_ratio, toward_label
from tgo_trl.losses.tgo import tgo_loss


def test_likelihood_and_ratio_and_reward_by_hand():
    policy, reference = torch.tensor([0.5, 1.0]), torch.tensor([0.75, 0.5])
    # -e / T with T = 1/8:  -0.5 * 8 = -4,  -1 * 8 = -8
    assert log_likelihood(policy, 0.125).tolist() == [-4.0, -8.0]
    # (e_ref - e_theta) / T:  0.25 * 8 = 2,  -0.5 * 8 = -4
    ratio = log_ratio(policy, reference, 0.125)
    assert ratio.tolist() == [2.0, -4.0]
    # beta = 1/2:  1,  -2
    assert implicit_reward(ratio, 0.5).tolist() == [1.0, -2.0]


def test_ratio_is_the_difference_of_the_likelihoods():
    policy, reference = torch.rand(2, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = log_likelihood(policy, 0.001) - log_likelihood(reference, 0.001)
    torch.testing.assert_close(log_ratio(policy, reference, 0.001), expected)


def test_ratio_subtracts_before_it_divides():
    # 1 + 2^-23 is the float32 number after 1, so the difference is exact, and over T it is 2^-23 * 1000. Dividing first
    # would round the quotients to multiples of 2^-14, the distance of float32 numbers near 1000, and be 2 % off.
    policy, reference = torch.tensor([1.0]), torch.tensor([1.0 + 2**-23])
    assert log_ratio(policy, reference, 0.001).item() == pytest.approx(2**-23 * 1000, rel=1e-6)


def test_loss_by_hand():
    reward = torch.tensor([1.0, 1.0, -2.0, -2.0], dtype=torch.float64)
    is_positive = torch.tensor([True, False, True, False])
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    # -log sigmoid(x) = log(1 + e^-x), at x = +r for positive rows and x = -r for negative rows:
    expected = [
        1 * math.log(1 + math.exp(-1)),
        2 * math.log(1 + math.exp(1)),
        3 * math.log(1 + math.exp(2)),
        4 * math.log(1 + math.exp(-2)),
    ]
    assert tgo_loss(reward, is_positive, weight).tolist() == pytest.approx(expected, rel=1e-14)


def test_loss_from_errors_by_hand():
    # A positive row that the policy denoises better: e_ref - e_theta = 0.75 - 0.5 = 0.25, over T = 1/8 is 2, times
    # beta = 1/2 is r = 1; s - tau = 0.3 at c = 5 weighs 1 + 5 * 0.3 = 2.5.
    ratio = log_ratio(torch.tensor([0.5]), torch.tensor([0.75]), 0.125)
    loss = tgo_loss(implicit_reward(ratio, 0.5), torch.tensor([True]), torch.tensor([2.5]))
    assert loss.item() == pytest.approx(2.5 * math.log(1 + math.exp(-1)), rel=1e-6)


def test_loss_at_zero_reward_is_ln2_times_the_weight():
    weight = torch.tensor([1.0, 1.75, 6.0])
    for label in (True, False):
        loss = tgo_loss(torch.zeros(3), torch.full((3,), label), weight)
        torch.testing.assert_close(loss, math.log(2) * weight)


def test_loss_agrees_with_another_formula():
    generator = torch.Generator().manual_seed(0)
    reward = 20 * torch.randn(1000, dtype=torch.float64, generator=generator)
    is_positive = torch.rand(1000, generator=generator) < 0.5
    weight = 1 + torch.rand(1000, dtype=torch.float64, generator=generator)
    signed = [r if positive else -r for r, positive in zip(reward.tolist(), is_positive.tolist(), strict=True)]
    expected = [w * math.log1p(math.exp(-x)) for x, w in zip(signed, weight.tolist(), strict=True)]
    assert tgo_loss(reward, is_positive, weight).tolist() == pytest.approx(expected, rel=1e-12)


def test_loss_without_weights_is_the_log_loss_form_of_kto():
    # Diffusion-KTO with utility U = log sigmoid, no KL offset, beta_kto = beta / T, and c = 0:
    # L = -log sigmoid( l * beta_kto * (e_ref - e_theta) ),  l = +1 or -1
    beta, temperature = 0.7, 0.001
    generator = torch.Generator().manual_seed(0)
    policy, reference = 0.01 * torch.rand(2, 200, dtype=torch.float64, generator=generator)
    is_positive = torch.rand(200, generator=generator) < 0.5
    sign = is_positive.double() * 2 - 1
    kto = -torch.log(1 / (1 + torch.exp(-sign * (beta / temperature) * (reference - policy))))
    reward = implicit_reward(log_ratio(policy, reference, temperature), beta)
    torch.testing.assert_close(tgo_loss(reward, is_positive, torch.ones(200, dtype=torch.float64)), kto)


def test_loss_is_per_row():
    generator = torch.Generator().manual_seed(0)
    reward, weight = torch.randn(2, 16, generator=generator)
    is_positive = torch.rand(16, generator=generator) < 0.5
    order = torch.randperm(16, generator=generator)
    shuffled = tgo_loss(reward[order], is_positive[order], weight[order])
    assert torch.equal(shuffled, tgo_loss(reward, is_positive, weight)[order])


def test_gradcheck_from_error_to_loss():
    generator = torch.Generator().manual_seed(0)
    policy, reference = torch.rand(2, 8, dtype=torch.float64, generator=generator)
    policy.requires_grad_()
    is_positive = torch.tensor([True, False] * 4)
    weight = 1 + torch.rand(8, dtype=torch.float64, generator=generator)

    def loss(policy_error):
        return tgo_loss(implicit_reward(log_ratio(policy_error, reference, 0.3), 1.7), is_positive, weight)

    assert torch.autograd.gradcheck(loss, (policy,))


def test_gradient_by_hand():
    # d/de of w log(1 + e^-r), r = beta (e_ref - e) / T = 1, is  w * sigmoid(-r) * beta / T:  a positive row's error
    # is pushed down. For a negative row it is  -w * sigmoid(r) * beta / T:  its error is pushed up.
    beta, temperature, weight = 0.5, 0.125, 2.5
    error = torch.tensor([0.5, 0.5], dtype=torch.float64, requires_grad=True)
    reward = implicit_reward(log_ratio(error, torch.full((2,), 0.75, dtype=torch.float64), temperature), beta)
    tgo_loss(reward, torch.tensor([True, False]), torch.tensor([weight, weight])).sum().backward()
    sigmoid_minus_1, sigmoid_1 = 1 / (1 + math.e), 1 / (1 + 1 / math.e)
    expected = [weight * sigmoid_minus_1 * beta / temperature, -weight * sigmoid_1 * beta / temperature]
    assert error.grad.tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("reward", "label", "value", "gradient"),
    [
        # -log sigmoid(x) is 0 with slope 0 at x = +10^4, and 10^4 with slope -1 at x = -10^4; x = +-r; weight 3.
        (1e4, True, 0.0, 0.0),
        (-1e4, True, 3e4, -3.0),
        (1e4, False, 3e4, 3.0),
        (-1e4, False, 0.0, 0.0),
    ],
)
def test_finite_with_the_right_gradient_far_out(reward, label, value, gradient):
    reward = torch.tensor([reward], dtype=torch.float32, requires_grad=True)
    loss = tgo_loss(reward, torch.tensor([label]), torch.tensor([3.0]))
    loss.sum().backward()
    assert loss.dtype == torch.float32
    assert (loss.item(), reward.grad.item()) == (value, gradient)


@pytest.mark.parametrize("label", [True, False])
def test_raising_the_reward_helps_positives_and_hurts_negatives(label):
    reward = torch.linspace(-30, 30, 61, dtype=torch.float64)
    steps = tgo_loss(reward, torch.full((61,), label), torch.ones(61, dtype=torch.float64)).diff()
    assert (steps < 0).all() if label else (steps > 0).all()


def test_gradient_flows_through_the_policy_pass_only():
    # One network, called once with and once without gradient, as the trainer calls it with its adapter on and off.
    # e = (scale * 2 - 1)^2 = 1 at scale = 1, so r = 0 and the loss is ln 2. A positive row's gradient is then
    # -sigmoid(0) * dr/dscale = 1/2 * (beta / T) * de/dscale = 1/2 * 4 * (2 * (2 - 1) * 2) = 8.
    # If the reference pass held gradient too, both would cancel to 0.
    network = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    nn.init.constant_(network.weight, 1.0)

    def errors():
        return (network(torch.tensor([[2.0]], dtype=torch.float64)) - 1).square().mean(1)

    with torch.no_grad():
        reference = errors()
    loss = tgo_loss(implicit_reward(log_ratio(errors(), reference, 0.25), 1.0), torch.tensor([True]), torch.ones(1))
    loss.sum().backward()
    assert loss.item() == pytest.approx(math.log(2))
    assert network.weight.grad.item() == pytest.approx(8.0)


def test_toward_label_broadcasts():
    value = torch.tensor([[1.0, 2.0], [3.0, -4.0]])
    assert toward_label(value, torch.tensor([True, False])).tolist() == [[1.0, -2.0], [3.0, 4.0]]
