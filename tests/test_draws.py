"""Draws are a pure function of (seed, epoch, row, sample), and random enough."""

import hashlib
import math

import pytest
import torch

from tgo_trl.policy.draws import EVALUATION_EPOCH, DrawPlan, draw_rows, shuffled_rows, stable_seed

CPU = torch.device("cpu")
SHAPE = (2, 3, 3)


def draw(epochs, rows, seed=0, shape=SHAPE, num_samples=1):
    return draw_rows(seed, epochs, rows, shape, num_samples, CPU)


def numbers(drawn, index):
    """All numbers of one entry, as one vector."""
    parts = (drawn.quantile[index], drawn.noise[index], drawn.posterior_noise[index])
    return torch.cat([part.flatten() for part in parts])


def test_shapes_and_dtypes():
    drawn = draw([0, 0, 0], [5, 6, 7], num_samples=2)
    assert drawn.quantile.shape == (6,)
    assert drawn.noise.shape == drawn.posterior_noise.shape == (6, *SHAPE)
    assert {drawn.quantile.dtype, drawn.noise.dtype, drawn.posterior_noise.dtype} == {torch.float32}


def test_a_row_draws_the_same_in_any_batch():
    alone = numbers(draw([3], [7]), 0)
    assert torch.equal(alone, numbers(draw([3, 3, 3], [1, 7, 2]), 1))
    assert torch.equal(alone, numbers(draw([9, 3], [0, 7]), 1))  # beside a row of another epoch
    assert torch.equal(alone, numbers(draw([3, 3], [7, 8], num_samples=4), 0))


def test_numbers_that_a_collator_made_tensors_of_draw_the_same():
    drawn = draw([3, 3], [7, 8])
    stacked = draw(torch.tensor([3, 3]), torch.tensor([7, 8]))
    assert stacked.keys == drawn.keys == ((3, 7, 0), (3, 8, 0))
    assert all(torch.equal(numbers(drawn, i), numbers(stacked, i)) for i in range(2))
    pairs = DrawPlan(0, in_pairs=True, num_draws=2)
    drawn, stacked = (pairs.draw(make([3, 3]), make([7, 8]), SHAPE) for make in (list, torch.tensor))
    assert stacked.keys == drawn.keys == ((1, stable_seed(7, 8), 0),)
    assert torch.equal(numbers(drawn, 0), numbers(stacked, 0))
    assert stable_seed(torch.tensor(7)) == stable_seed(7)


def test_draws_do_not_touch_or_depend_on_global_randomness():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = numbers(draw([0], [0]), 0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(numbers(draw([0], [0]), 0), first)


def test_samples_take_turns():
    # Sample 0 of all rows comes first, then sample 1 of all rows: entry k * B + i is sample k of row i.
    rows, num_samples = [4, 9, 2], 3
    together = draw([1] * 3, rows, num_samples=num_samples)
    for i, row in enumerate(rows):
        alone = draw([1], [row], num_samples=num_samples)
        for k in range(num_samples):
            assert torch.equal(numbers(together, k * len(rows) + i), numbers(alone, k))


def test_every_key_draws_something_else():
    drawn = [draw([epoch], [row], seed) for seed in (0, 1) for epoch in (EVALUATION_EPOCH, 0, 1) for row in (0, 1, 10)]
    entries = [numbers(one, 0) for one in drawn]
    entries += [numbers(draw([0], [0], num_samples=3), k) for k in (1, 2)]
    for i, entry in enumerate(entries):
        for other in entries[:i]:
            assert not torch.isclose(entry, other).any()


def test_noise_and_posterior_noise_differ():
    drawn = draw([0], [0])
    assert not torch.isclose(drawn.noise, drawn.posterior_noise).any()


def test_epochs_and_rows_must_match():
    with pytest.raises(ValueError, match="zip"):
        draw([0], [0, 1])


def test_draws_have_the_right_distribution():
    # Bounds are five standard errors: such a test fails by chance once in two million times, and the seed is fixed.
    num_rows, size = 2000, math.prod(SHAPE)
    drawn = draw([0] * num_rows, range(num_rows))
    quantile = drawn.quantile.double()
    assert quantile.min() >= 0
    assert quantile.max() < 1
    # A uniform number has mean 1/2, variance 1/12; the share in each quarter is binomial with variance 3/16.
    assert quantile.mean().item() == pytest.approx(1 / 2, abs=5 * math.sqrt(1 / 12 / num_rows))
    for quarter in range(4):
        share = ((quantile * 4).long() == quarter).double().mean().item()
        assert share == pytest.approx(1 / 4, abs=5 * math.sqrt(3 / 16 / num_rows))
    # A standard normal number has mean 0, variance 1, and its square has variance 2.
    count = num_rows * size
    for noise in (drawn.noise.double(), drawn.posterior_noise.double()):
        assert noise.mean().item() == pytest.approx(0, abs=5 / math.sqrt(count))
        assert noise.square().mean().item() == pytest.approx(1, abs=5 * math.sqrt(2 / count))
        # Neighbouring rows have consecutive keys: products of independent numbers have mean 0, variance 1.
        assert (noise[1:] * noise[:-1]).mean().item() == pytest.approx(0, abs=5 / math.sqrt(count - size))
    assert (drawn.noise * drawn.posterior_noise).mean().item() == pytest.approx(0, abs=5 / math.sqrt(count))


def test_draws_go_to_the_device():
    drawn = draw_rows(0, [0], [0], SHAPE, 1, torch.device("meta"))
    assert {drawn.noise.device.type, drawn.posterior_noise.device.type} == {"meta"}
    assert drawn.quantile.device.type == "cpu"  # which the time is made of


# ---- Orders ----


@pytest.mark.parametrize("num_rows", [1, 2, 101])
def test_shuffled_rows_is_a_permutation(num_rows):
    assert sorted(shuffled_rows(0, 0, num_rows)) == list(range(num_rows))


def test_shuffled_rows_differs_by_seed_and_epoch():
    orders = [shuffled_rows(seed, epoch, 101) for seed in (0, 1) for epoch in (0, 1, 2)]
    assert len({tuple(order) for order in orders}) == len(orders)
    assert list(range(101)) not in orders
    assert shuffled_rows(1, 2, 101) == orders[-1]


# ---- Seeds ----


@pytest.mark.parametrize("key", [(0,), (42, -1, 7, 0), (2**40, 3)])
def test_stable_seed_is_the_top_63_bits_of_blake2b(key):
    text = "/".join(str(part) for part in key)
    digest = hashlib.blake2b(text.encode("ascii"), digest_size=8).hexdigest()
    assert stable_seed(*key) == int(digest, 16) // 2
    assert 0 <= stable_seed(*key) < 2**63


def test_stable_seed_tells_keys_apart():
    keys = [(1, 23), (12, 3), (1, 2, 3), (123,), (1, 2), (2, 1), (-1, 2), (1, -2)]
    assert len({stable_seed(*key) for key in keys}) == len(keys)
    assert len({stable_seed(0, epoch, row) for epoch in range(10) for row in range(1000)}) == 10_000
