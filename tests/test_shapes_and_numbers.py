"""Shapes beside numbers: what inputs say by themselves is read, and what weights come into has a shape alone."""

import pytest
import torch
from torch import nn

from tgo_trl.policy.shapes_and_numbers import META, ShapesBesideNumbers, as_numbers

MASK = torch.tensor([True, False, True, True])


def of(*shape, **kwargs):
    return torch.empty(*shape, device=META, **kwargs)


def test_what_has_no_weights_in_it_is_computed():
    with ShapesBesideNumbers():
        assert MASK.sum().item() == 3
        assert torch.zeros(2, 2).eq(0).all()
        assert (~MASK).nonzero().tolist() == [[1]]


def test_what_has_weights_in_it_has_the_shape_and_dtype_that_it_has_with_them():
    shapes, network, inputs = nn.Linear(3, 5, device=META), nn.Linear(3, 5), torch.ones(2, 3)
    with ShapesBesideNumbers():
        found = [
            shapes(inputs), shapes(inputs) + torch.ones(2, 1), torch.cat([inputs, shapes.weight]),
            shapes(inputs).to("cpu"), shapes(inputs).to(torch.bfloat16) * inputs[:, :1],
        ]  # fmt: skip
    expected = [
        network(inputs), network(inputs) + torch.ones(2, 1), torch.cat([inputs, network.weight]), network(inputs),
        network(inputs).to(torch.bfloat16) * inputs[:, :1],
    ]  # fmt: skip
    for one, other in zip(found, expected, strict=True):
        assert one.is_meta
        assert (one.shape, one.dtype) == (other.shape, other.dtype)


def test_masks_choose_as_many_as_they_do():
    with ShapesBesideNumbers():
        values = of(4, 7)
        assert values[MASK].shape == (3, 7)
        assert values[~MASK].shape == (1, 7)
        assert of(2, 4, 7)[:, MASK].shape == (2, 3, 7)
        assert values.repeat_interleave(torch.tensor([1, 4, 0, 2]), dim=0).shape == (7, 7)
        values[MASK] = torch.ones(3, 7)
        assert values.shape == (4, 7)


@pytest.mark.parametrize(
    "read",
    [
        lambda values: values.item(),
        bool,
        lambda values: torch.ones(1)[values > 0],
        lambda values: values.cpu().item(),
        lambda values: torch.ones(1).copy_(values).item(),
    ],
    ids=["item", "bool", "mask", "moved", "copied"],
)
def test_what_has_weights_in_it_is_not_read(read):
    with pytest.raises((RuntimeError, NotImplementedError)), ShapesBesideNumbers():
        read(of(1))


def test_numbers_that_a_shape_was_written_into_are_a_shape():
    numbers, others = torch.zeros(4, 2), torch.zeros(4, 2)
    with ShapesBesideNumbers():
        view = numbers[1:]
        numbers[0] = of(2)
        assert numbers.sum().is_meta
        assert view.sum().is_meta
        assert (numbers + others).shape == (4, 2)
        assert torch.nn.functional.pad(numbers, (0, 1)).shape == (4, 3)
        assert others.sum().item() == 0
        with pytest.raises((RuntimeError, NotImplementedError)):
            bool(view.sum() == 0)


def test_a_shape_has_ones_in_its_place():
    assert torch.equal(as_numbers(of(2, dtype=torch.bfloat16)), torch.ones(2, dtype=torch.bfloat16))
    assert as_numbers(MASK) is MASK
