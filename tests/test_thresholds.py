"""Thresholds against NumPy, naive loops and numbers worked by hand."""

import math

import numpy as np
import pytest
import torch

from tgo_trl.labels.thresholds import mean_threshold, percentile_threshold, prompt_baseline, prompt_mean


def test_percentile_by_hand():
    scores = torch.tensor([40.0, 10.0, 30.0, 20.0], dtype=torch.float64)
    # sorted 10, 20, 30, 40; p = 50 falls at position 0.5 * 3 = 1.5, half-way between 20 and 30
    assert percentile_threshold(scores, 50).item() == 25.0
    # p = 10 falls at 0.1 * 3 = 0.3: 10 + 0.3 * 10
    assert percentile_threshold(scores, 10).item() == pytest.approx(13.0, rel=1e-15)
    assert percentile_threshold(scores, 0).item() == 10.0
    assert percentile_threshold(scores, 100).item() == 40.0


def test_percentile_agrees_with_numpy():
    random = np.random.default_rng(0)
    for _ in range(300):
        scores = random.normal(size=random.integers(1, 40)).round(random.integers(0, 6))
        for percentile in (0.0, 25.0, 50.0, 100.0, random.uniform(0, 100)):
            found = percentile_threshold(torch.tensor(scores), percentile)
            assert found.dtype == torch.float64
            assert found.item() == pytest.approx(np.percentile(scores, percentile), rel=1e-13, abs=1e-13)


@pytest.mark.parametrize("percentile", [0, 37.5, 100])
def test_percentile_of_one_score_is_that_score(percentile):
    assert percentile_threshold(torch.tensor([0.1]), percentile).item() == torch.tensor(0.1).item()


@pytest.mark.parametrize("percentile", [-0.5, 100.5, math.nan])
def test_percentile_out_of_range(percentile):
    with pytest.raises(ValueError, match=rf"`percentile` is {percentile}.* in percent: pass a number from 0 to 100"):
        percentile_threshold(torch.tensor([1.0, 2.0]), percentile)


def test_percentile_does_not_reorder_the_scores():
    scores = torch.tensor([3.0, 1.0, 2.0])
    percentile_threshold(scores, 50)
    assert scores.tolist() == [3.0, 1.0, 2.0]


def test_mean_by_hand():
    assert mean_threshold(torch.tensor([1.0, 2.0, 6.0])).item() == 3.0  # (1 + 2 + 6) / 3


def test_prompt_baseline_by_hand():
    # beta = 2. Prompt 0: scores 0 and 2 ln 3, so exp(s / beta) is 1 and 3, of mean 2: tau = 2 ln 2.
    # Prompt 1: scores 2 ln 4, 2 ln 5, 2 ln 6, so 4, 5, 6, of mean 5: tau = 2 ln 5. Rows of the prompts are interleaved.
    scores = torch.tensor([0, 4, 3, 5, 6], dtype=torch.float64).log().mul(2)
    scores[0] = 0.0
    prompts = torch.tensor([0, 1, 0, 1, 1])
    low, high = 2 * math.log(2), 2 * math.log(5)
    assert prompt_baseline(scores, prompts, 2.0).tolist() == pytest.approx([low, high, low, high, high], rel=1e-14)


def test_prompt_baseline_agrees_with_a_naive_loop():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(200, dtype=torch.float64, generator=generator)
    prompts = torch.randint(0, 17, (200,), generator=generator)
    for beta in (0.3, 1.0, 5.0):
        expected = []
        for prompt in prompts.tolist():
            own = [s for s, other in zip(scores.tolist(), prompts.tolist(), strict=True) if other == prompt]
            expected.append(beta * math.log(sum(math.exp(s / beta) for s in own) / len(own)))
        assert prompt_baseline(scores, prompts, beta).tolist() == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("shift", [1e4, -1e4])
def test_prompt_baseline_is_stable(shift):
    # exp(+-10^4) is infinite or zero in float64, yet tau moves with the scores: tau(s + a) = tau(s) + a.
    # exp(s) is 1 and 3 before the shift, of mean 2.
    scores = torch.tensor([0.0, math.log(3)], dtype=torch.float64) + shift
    expected = shift + math.log(2)
    assert prompt_baseline(scores, torch.tensor([0, 0]), 1.0).tolist() == pytest.approx([expected] * 2, rel=1e-14)
    # The same at s / beta = +-10^4 with a small beta.
    scaled = prompt_baseline(scores / 1000, torch.tensor([0, 0]), 0.001)
    assert scaled.tolist() == pytest.approx([expected / 1000] * 2, rel=1e-14)


def test_prompt_baseline_of_equal_scores_is_exactly_that_score():
    # s == tau is positive, so a rounding error would turn all images of the prompt negative.
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(500, dtype=torch.float64, generator=generator).repeat(2)
    for beta in (0.3, 0.7, 1.3):
        assert torch.equal(prompt_baseline(scores, torch.arange(500).repeat(2), beta), scores)


def test_prompt_baseline_lies_between_mean_and_maximum():
    # By Jensen's inequality; it goes to the maximum as beta falls, and to the mean as beta grows.
    scores = torch.tensor([0.0, 1.0, 5.0], dtype=torch.float64)
    cold, warm, hot = (prompt_baseline(scores, torch.zeros(3, dtype=torch.int64), b)[0].item() for b in (1e-3, 1, 1e6))
    assert 2.0 < warm < 5.0
    assert cold == pytest.approx(5.0, abs=1e-2)
    assert hot == pytest.approx(2.0, abs=1e-4)


# ---- The mean of each prompt ----


def test_prompt_mean_by_hand():
    scores, prompts = torch.tensor([1.0, 2.0, 3.0, 6.0, 5.0]), torch.tensor([0, 1, 0, 1, 1])
    # (1 + 3) / 2 and (2 + 6 + 5) / 3
    assert prompt_mean(scores, prompts).tolist() == pytest.approx([2, 13 / 3, 2, 13 / 3, 13 / 3])


def test_prompt_mean_is_the_baseline_of_a_large_beta():
    scores = torch.randn(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    prompts = torch.arange(40) % 7
    torch.testing.assert_close(prompt_mean(scores, prompts), prompt_baseline(scores, prompts, 1e7), rtol=0, atol=1e-6)


def test_prompt_mean_of_equal_scores_is_exactly_that_score():
    scores = torch.rand(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64).repeat(3)
    assert torch.equal(prompt_mean(scores, torch.arange(500).repeat(3)), scores)
