"""Which rows come, in any layout, however often a run is interrupted."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from tgo_trl.data.sampler import RowSampler, padding_like
from tgo_trl.trainer.progress import Progress


@st.composite
def samplers(draw):
    """The arguments of a sampler."""
    num_rows = draw(st.integers(1, 40))
    return {
        "num_rows": num_rows,
        "seed": draw(st.none() | st.integers(0, 2**63 - 1)),
        "block": draw(st.integers(1, 12)),
        "epoch": draw(st.integers(0, 5)),
        "groups": draw(st.none() | st.lists(st.sampled_from("abc"), min_size=num_rows, max_size=num_rows)),
    }


def real(indices):
    """Positions that are no padding."""
    return [position for _, position in indices if position >= 0]


@given(samplers())
def test_every_row_comes_once_an_epoch(arguments):
    sampler = RowSampler(**arguments)
    indices = list(sampler)
    assert sorted(real(indices)) == list(range(arguments["num_rows"]))
    assert len(indices) == len(sampler) == sampler.num_left(arguments["epoch"])
    groups, block = arguments["groups"], arguments["block"]
    for start in range(0, len(indices), block):
        positions = [position for _, position in indices[start : start + block]]
        assert len(positions) == block
        like = [position if position >= 0 else padding_like(position) for position in positions]
        assert groups is None or len({groups[position] for position in like}) == 1
        assert all(position in positions for position in like)


@given(samplers(), st.lists(st.booleans(), min_size=40, max_size=40), st.floats(0.1, 0.9), st.integers(0, 30))
def test_a_ratio_leaves_out_rows_of_one_side_alone_and_is_gone_on_with(arguments, labels, ratio, count):
    labels = labels[: arguments["num_rows"]]
    arguments = {**arguments, "seed": arguments["seed"] or 0, "is_positive": labels, "positive_ratio": ratio}
    sampler, epoch, block = RowSampler(**arguments), arguments["epoch"], arguments["block"]
    taken = real(sampler)
    assert len(set(taken)) == len(taken)
    assert len(list(sampler)) == len(sampler) == sampler.num_left(epoch)
    num_positive, groups = sum(labels), arguments["groups"]
    if 0 < num_positive < len(labels):
        side = num_positive / len(labels) <= ratio  # all rows of this side come
        assert {i for i in range(len(labels)) if labels[i] == side} <= set(taken)
        share = sum(labels[i] for i in taken) / len(taken)
        num_groups = 1 if groups is None else len(set(groups))
        assert abs(share - ratio) * len(taken) <= 0.5 * num_groups + 1e-9  # of rounding, in each group
    done = sampler.first(epoch, count // block * block)
    rest = sampler.in_blocks(3)
    rest.done = {epoch: done}
    assert sorted([*done, *real(rest)]) == sorted(taken)
    assert len(list(rest)) == rest.num_left(epoch)
    sampler.epoch = epoch + 1
    assert len(list(sampler)) == len(sampler)  # of any epoch


@given(samplers(), st.lists(st.integers(0, 40), min_size=1, max_size=3), st.lists(st.integers(1, 12), max_size=2))
def test_what_is_left_is_what_was_not_done(arguments, counts, blocks):
    """Interrupted several times, each time with updates of another size, as a checkpoint remembers it."""
    epoch = arguments["epoch"]
    done = frozenset()
    whole = list(RowSampler(**arguments))
    updates = min(counts[0], len(whole) // arguments["block"])
    first = RowSampler(**arguments).first(epoch, updates * arguments["block"])
    assert first == frozenset(real(whole[: updates * arguments["block"]]))
    done |= first
    for block in [arguments["block"], *blocks]:
        sampler = RowSampler(**{**arguments, "block": block})
        sampler.done = {epoch: done}
        rest = list(sampler)
        assert len(rest) == sampler.num_left(epoch)
        assert Counter(real(rest)) == Counter(set(range(arguments["num_rows"])) - done)
        if block == arguments["block"]:
            assert rest == whole[updates * block :]
        sampler.epoch = epoch + 1
        assert sorted(real(sampler)) == list(range(arguments["num_rows"]))


@given(st.lists(st.tuples(st.integers(1, 6), st.booleans()), min_size=1, max_size=12), st.integers(1, 3))
def test_progress_counts_the_rows_of_its_epoch(updates, num_processes):
    progress, epoch, rows = Progress(), 0, 0
    for size, is_next in updates:
        epoch, rows = (epoch + 1, 0) if is_next else (epoch, rows)
        rows += num_processes * size
        progress = progress.after([{"epoch": [epoch] * size, "row": range(size)}], num_processes, is_stream=False)
        assert (progress.epoch, progress.rows) == (epoch, rows)
