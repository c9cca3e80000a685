"""Variety by hand."""

import pytest
import torch
from PIL import Image

from tgo_trl.measures import Moments, thumbnails, variety


def test_variety_is_the_mean_distance_within_a_group():
    # group a: distances 5, 5 and 10 by Pythagoras, on average 20 / 3; group b: 1; c is alone
    features = torch.tensor([[0.0, 0.0], [3.0, 4.0], [7.0, 0.0], [6.0, 8.0], [8.0, 0.0]])
    assert variety(features, ["a", "a", "b", "a", "b"]) == pytest.approx((20 / 3 + 1) / 2)
    assert variety(features, ["a", "a", "b", "b", "c"]) == pytest.approx((5 + 65**0.5) / 2)


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
