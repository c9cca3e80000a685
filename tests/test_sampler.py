"""The order of rows, and batches of them."""

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler, DataLoader, Dataset

from tgo_trl.data.collator import RowCollator
from tgo_trl.data.sampler import RowSampler, padding_like


class Rows(Dataset):
    """Rows as the trainer takes them, with their position as their content."""

    def __getitem__(self, index):
        epoch, position = index
        return {
            "row": 100 + position,
            "epoch": epoch,
            "valid": position >= 0,
            "score": torch.tensor(float(position)),
            "image": {"mean": torch.full((2, 3), float(position))},
            "prompt_text": f"prompt {position}",
        }


def test_without_a_seed_rows_come_in_order():
    assert list(RowSampler(3, None)) == [(0, 0), (0, 1), (0, 2)]


def test_every_epoch_is_a_permutation_of_its_own():
    sampler = RowSampler(50, seed=1)
    orders = []
    for epoch in range(3):
        sampler.epoch = epoch
        epochs, positions = zip(*sampler, strict=True)
        assert set(epochs) == {epoch}
        assert sorted(positions) == list(range(50))
        orders.append(positions)
    assert len({*orders, tuple(range(50))}) == 4


def test_an_epoch_is_the_same_whoever_draws_it_and_when():
    sampler = RowSampler(50, seed=1, epoch=2)
    first = list(sampler)
    torch.manual_seed(99)
    assert list(sampler) == first
    assert list(RowSampler(50, seed=1, epoch=2)) == first
    assert list(RowSampler(50, seed=2, epoch=2)) != first


def test_the_epoch_stays_what_it_was_when_the_iteration_began():
    sampler = RowSampler(3, None, epoch=4)
    rows = iter(sampler)
    first = next(rows)
    sampler.epoch = 5
    assert [first, *rows] == [(4, 0), (4, 1), (4, 2)]


@pytest.mark.parametrize(
    ("num_rows", "block", "length"), [(5, 1, 5), (5, 4, 8), (8, 4, 8), (1, 6, 6), (9, 8, 16), (0, 4, 0)]
)
def test_rows_are_padded_at_the_end(num_rows, block, length):
    for seed in (None, 3):
        sampler = RowSampler(num_rows, seed, block)
        positions = [position for _, position in sampler]
        assert len(sampler) == len(positions) == length
        assert sorted(positions[:num_rows]) == list(range(num_rows))
        assert len({*positions[num_rows:]}) <= 1
        assert all(position < 0 and padding_like(position) in positions for position in positions[num_rows:])


def test_a_loader_gets_whole_batches_with_their_epoch():
    batches = BatchSampler(RowSampler(5, None, block=4, epoch=7), batch_size=4, drop_last=False)
    loader = DataLoader(Rows(), batch_sampler=batches, collate_fn=RowCollator())
    assert len(loader) == 2
    first, second = loader
    assert first["row"] == [100, 101, 102, 103]
    assert second["row"] == [104, 95, 95, 95]  # padding looks like the first row of its block
    assert first["epoch"] == second["epoch"] == [7] * 4
    assert second["valid"].tolist() == [True, False, False, False]


@pytest.mark.parametrize("num_rows", [5, 8, 11, 16])
def test_processes_get_as_many_rows_each_and_every_row_once(num_rows):
    # How accelerate hands batches out: round by round, batch i of a round to process i.
    num_processes, batch_size = 2, 4
    sampler = RowSampler(num_rows, seed=0, block=num_processes * batch_size)
    batches = BatchSampler(sampler, batch_size, drop_last=False)
    shards = [list(BatchSamplerShard(batches, num_processes, process)) for process in range(num_processes)]
    assert {len(batch) for shard in shards for batch in shard} == {batch_size}
    assert len(shards[0]) == len(shards[1])
    seen = [position for shard in shards for batch in shard for _, position in batch if position >= 0]
    assert sorted(seen) == list(range(num_rows))


def test_the_collator_stacks_tensors_and_leaves_host_fields_alone():
    rows = [Rows()[3, 1], Rows()[3, 0]]
    batch = RowCollator()(rows)
    assert batch["row"] == [101, 100]
    assert batch["epoch"] == [3, 3]
    assert batch["prompt_text"] == ["prompt 1", "prompt 0"]
    assert torch.equal(batch["score"], torch.tensor([1.0, 0.0]))
    assert torch.equal(batch["image"]["mean"], torch.tensor([1.0, 0.0])[:, None, None].expand(2, 2, 3))
    assert torch.equal(batch["valid"], torch.tensor([True, True]))


# ---- The share of positive rows ----


def test_a_ratio_takes_all_of_one_side_and_others_of_the_other_in_each_epoch():
    # 8 positive rows at 0.8 are joined by 2 of the 32 negative ones
    labels = [i % 5 == 0 for i in range(40)]
    sampler = RowSampler(40, seed=1, is_positive=labels, positive_ratio=0.8)
    assert len(sampler) == 10
    orders = []
    for epoch in range(12):
        sampler.epoch = epoch
        orders.append([position for _, position in sampler])
        assert sorted(position for position in orders[-1] if labels[position]) == list(range(0, 40, 5))
        assert sum(not labels[position] for position in orders[-1]) == 2
        assert orders[-1] == [p for p in (p for _, p in RowSampler(40, 1, epoch=epoch)) if p in orders[-1]]
    negatives = [position for order in orders for position in order if not labels[position]]
    assert len(set(negatives)) > 12  # not always the same


def test_a_ratio_leaves_out_positive_rows_where_there_are_too_many():
    # 32 of 40 are positive; at 0.5 the 8 negative ones are joined by 8
    sampler = RowSampler(40, seed=1, is_positive=[i % 5 != 0 for i in range(40)], positive_ratio=0.5)
    assert len(sampler) == 16


def test_a_ratio_holds_in_each_group():
    # wide: 2 positive and 8 negative rows, tall: 2 and 2; of 4 and 10 the ratio 0.5 takes all and 4 / 10
    groups = ["wide"] * 10 + ["tall"] * 4
    labels = [True] * 2 + [False] * 8 + [True] * 2 + [False] * 2
    for epoch in range(3):
        sampler = RowSampler(14, 3, 4, epoch, groups, is_positive=labels, positive_ratio=0.5)
        taken = [position for _, position in sampler if position >= 0]
        kinds = [(groups[position], labels[position]) for position in taken]
        # 8 x 0.4 = 3.2, 2 x 0.4 = 0.8: three, and one for what was cut off most
        assert [kinds.count((name, side)) for name in ("wide", "tall") for side in (True, False)] == [2, 3, 2, 1]
        assert len(sampler) == 8 + 4


def test_a_ratio_holds_over_many_small_groups():
    # 9 groups of 3 positive rows and one negative: 27 at 0.9 are joined by 3, of a third of a row each
    groups, labels = [name for name in "abcdefghi" for _ in range(4)], [True, True, True, False] * 9
    sampler = RowSampler(36, 0, groups=groups, is_positive=labels, positive_ratio=0.9)
    taken = [labels[position] for _, position in sampler]
    assert (taken.count(True), taken.count(False)) == (27, 3)


# ---- Groups ----

GROUPS = ["wide", "tall", "wide", "square", "wide", "tall", "wide", "wide"]  # 5 wide, 2 tall, 1 square


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_a_block_holds_rows_of_one_group_and_every_row_comes_once(seed):
    sampler = RowSampler(8, seed, block=2, groups=GROUPS)
    positions = [position for _, position in sampler]
    assert len(sampler) == len(positions) == 6 + 2 + 2
    for first, second in zip(positions[::2], positions[1::2], strict=True):
        shown = second if second >= 0 else padding_like(second)
        assert GROUPS[first] == GROUPS[shown]
        assert second >= 0 or shown == first
    assert sorted(position for position in positions if position >= 0) == list(range(8))


def test_blocks_come_when_they_are_full_and_the_rest_at_the_end():
    # in order: wide 0, 2 | wide 4, 6 | tall 1, 5 | then square 3 and wide 7, in the order they were begun
    positions = [position for _, position in RowSampler(8, None, block=2, groups=GROUPS)]
    assert positions == [0, 2, 1, 5, 4, 6, 3, padding_like(3), 7, padding_like(7)]


def test_groups_keep_the_epochs_order():
    plain = [position for _, position in RowSampler(8, 5, epoch=2)]
    grouped = [position for _, position in RowSampler(8, 5, block=2, epoch=2, groups=GROUPS) if position >= 0]
    for name in set(GROUPS):
        assert [p for p in grouped if GROUPS[p] == name] == [p for p in plain if GROUPS[p] == name]


def test_rows_that_belong_together_stay_together_also_after_a_run_that_stopped_between_them():
    sampler = RowSampler(8, 0, rows_per_item=2)
    order = [position for _, position in sampler]
    assert sorted(order) == list(range(8))
    assert order != list(range(8))
    assert all(worse == better + 1 and better % 2 == 0 for better, worse in zip(order[::2], order[1::2], strict=True))
    sampler.done = {0: sampler.first(0, 3)}  # of batches of one row or of three
    assert [position for _, position in sampler] == order[4:]
    assert sampler.num_left(0) == 4
