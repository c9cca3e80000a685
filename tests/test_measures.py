"""Variety, wins and intervals by hand."""

import numpy as np
import pytest
import torch
from PIL import Image

from tgo_trl.measures import (
    Estimate,
    Moments,
    group_varieties,
    interval,
    ratio,
    resampled_means,
    resampled_medians,
    thumbnails,
    variety,
    wins,
)


def test_variety_is_the_mean_distance_within_a_group():
    # group a: distances 5, 5 and 10 by Pythagoras, on average 20 / 3; group b: 1; c is alone
    features = torch.tensor([[0.0, 0.0], [3.0, 4.0], [7.0, 0.0], [6.0, 8.0], [8.0, 0.0]])
    assert variety(features, ["a", "a", "b", "a", "b"]) == pytest.approx((20 / 3 + 1) / 2)
    assert variety(features, ["a", "a", "b", "b", "c"]) == pytest.approx((5 + 65**0.5) / 2)


def test_varieties_of_groups_come_in_the_order_of_their_first_samples():
    features = torch.tensor([[0.0], [1.0], [5.0], [4.0], [9.0]])
    assert group_varieties(features, ["b", "a", "a", "b", "c"]) == {"b": 4, "a": 4}


def test_copies_have_no_variety():
    assert variety(torch.ones(4, 7), [0, 0, 1, 1]) == 0


def test_one_sample_of_each_prompt_is_refused():
    with pytest.raises(ValueError, match="every prompt has one sample"):
        variety(torch.ones(2, 3), ["a", "b"])
    with pytest.raises(ValueError, match="2 samples and 1 groups"):
        variety(torch.ones(2, 3), ["a"])


def test_thumbnails_differ_by_the_root_mean_square_of_their_pixels():
    dark, light = Image.new("L", (64, 48), 51), Image.new("RGB", (16, 16), (102, 102, 102))
    rows = thumbnails([dark, light])
    assert rows.shape == (2, 3 * 32 * 32)
    assert torch.dist(rows[0], rows[1]).item() == pytest.approx(51 / 255, rel=1e-5)


def test_of_a_video_four_frames_are_compared():
    still, moving = (
        [Image.new("RGB", (8, 8))] * 7,
        [Image.new("RGB", (8, 8), (i, i, i)) for i in (0, 9, 51, 9, 102, 9, 153)],
    )
    rows = thumbnails([still, moving])  # frames 0, 2, 4 and 6: 0, 0.2, 0.4 and 0.6
    assert rows.shape == (2, 4 * 3 * 32 * 32)
    assert torch.dist(rows[0], rows[1]).item() == pytest.approx(((0.04 + 0.16 + 0.36) / 4) ** 0.5, rel=1e-5)


def test_wins_count_one_ties_half():
    ours, theirs = torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([[0.0, 2.0], [4.0, -1.0]])
    assert wins(ours, theirs).tolist() == [[1, 0.5], [0, 1]]
    assert (wins(ours, theirs) + wins(theirs, ours) == 1).all()
    assert wins(ours, theirs).dtype == torch.float64


def test_medians_are_over_all_samples_of_the_drawn_prompts():
    # Of two prompts, two are drawn: both first (median 1), both second (5), or one of each (3), half of the time.
    values = torch.tensor([[[0.0, 2.0], [4.0, 6.0]]], dtype=torch.float64)
    found = resampled_medians(values, 1000)
    assert found.shape == (1, 1000)
    counts = {value: int((found == value).sum()) for value in (1, 3, 5)}
    assert sum(counts.values()) == 1000
    assert abs(counts[3] - 500) < 50
    assert interval(found[0]) == (1, 5)


@pytest.mark.parametrize("num_samples", [1, 2, 3])
def test_medians_are_numpys_of_the_prompts_that_means_are_of(num_samples):
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(5, (2, 7, num_samples), generator=generator).double()  # with ties
    found = resampled_medians(values, 130, seed=3)
    # the draws, by the means of rows that tell prompts apart: 1 for each time that one is drawn
    times = resampled_means(torch.eye(7, dtype=torch.float64), 130, seed=3) * 7
    for draw in range(130):
        drawn = values.repeat_interleave(times[:, draw].round().long(), dim=1)
        assert found[:, draw].tolist() == np.median(drawn.flatten(1), axis=1).tolist()


def test_all_rows_have_the_same_prompts_in_a_draw():
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(1, 9, generator=generator, dtype=torch.float64)
    both = torch.cat([values, values + 1])
    means = resampled_means(both, 250)
    torch.testing.assert_close(means[1] - means[0], torch.ones(250, dtype=torch.float64))
    assert means.shape == (2, 250)
    medians = resampled_medians(both[..., None].expand(2, 9, 1), 250)
    torch.testing.assert_close(medians[1] - medians[0], torch.ones(250, dtype=torch.float64))
    assert torch.equal(resampled_means(both, 250), means)
    assert not torch.equal(resampled_means(both, 250, seed=1), means)
    one = torch.tensor([[3.0]], dtype=torch.float64)
    assert interval(resampled_means(one, 100)[0]) == interval(resampled_medians(one[..., None], 100)[0]) == (3, 3)


def test_moments_are_those_of_all_rows():
    rows = torch.randn(11, 3, generator=torch.Generator().manual_seed(0)) + 100
    moments = Moments()
    assert moments.pop() is None
    moments.add(rows[:4], torch.ones(4, dtype=torch.bool))
    moments.add(torch.cat([rows[4:], torch.full((2, 3), torch.nan)]), torch.tensor([True] * 7 + [False] * 2))
    spread = moments.pop()
    assert spread.mean.tolist() == pytest.approx(rows.double().mean(0).tolist())
    assert spread.variance == pytest.approx(rows.double().var(0).sum().item())
    apart = torch.stack([(rows[i] - rows[j]).double() for i in range(11) for j in range(i)])
    assert spread.distance == pytest.approx(apart.square().mean().sqrt().item())
    assert moments.pop() is None
    moments.add(rows[:1, :1], torch.tensor([True]))
    assert moments.pop(lambda sums, how: 2 * sums).deviation == 0  # the same row in two processes
    moments.add(rows[:1], torch.tensor([False]))
    assert moments.pop() is None


def test_the_interval_of_a_ratio_weighs_prompts_by_what_they_have():
    # one prompt with 3 of 3, one with 0 of 1: both the first, 1; both the second, 0; one of each, 3/4
    values = torch.tensor([[3.0, 0.0], [3.0, 1.0]], dtype=torch.float64)
    assert ratio(*values) == Estimate(0.75, (0, 1))
    same = torch.full((2, 9), 2.0, dtype=torch.float64)
    assert ratio(same[0] / 2, same[1]) == Estimate(0.5, (0.5, 0.5))
    assert ratio(*values[:, :1]) == Estimate(1, None)


def test_estimates_are_written_with_their_interval():
    assert Estimate(0.5, (0.25, 1)).percent() == "50.0 % [25.0, 100.0]"
    assert Estimate(0.5, None).percent() == "50.0 %"
    assert Estimate(2, (1, 3)).text(lambda value: f"{value:+g}", " s") == "+2 s [+1, +3]"
