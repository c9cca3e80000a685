"""The one place where training randomness is drawn: a pure function of (seed, epoch, row).

Neither the batch a row falls into, nor the number of processes, nor a resume changes its draw. Policy and reference
get the same object. Everything is drawn on the CPU, so that a GPU run sees the same numbers.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

EVALUATION_EPOCH = -1
"""The epoch under which evaluation draws, so that every evaluation of a row sees the same noise."""


@dataclass(frozen=True)
class Draw:
    """All randomness of one pass over `B` rows.

    Attributes:
        quantile: float32 `[B]`, uniform in [0, 1), on the CPU: what the time decides there waits for no device.
        noise: float32 `[B, ...]`, standard normal, corrupts the clean sample.
        posterior_noise: float32 `[B, ...]`, standard normal, picks the clean sample from the image encoder's posterior.
        keys: `(epoch, row, sample)` of each, which tell the draws of one data set apart.
    """

    quantile: Tensor
    noise: Tensor
    posterior_noise: Tensor
    keys: tuple[tuple[int, int, int], ...] = ()


def draw_rows(
    seed: int, epochs: Sequence[int], rows: Sequence[int], shape: Sequence[int], num_samples: int, device: torch.device
) -> Draw:
    """Draws for each row, `num_samples` of them in turn: sample 0 of all rows, then sample 1 of all rows, ...

    Args:
        seed: the run's seed.
        epochs: the epoch of each row; [`EVALUATION_EPOCH`] for evaluation.
        rows: the index of each row in the data set.
        shape: shape of one clean sample, without the batch dimension.
        num_samples: draws per row, `K`.
        device: where the result goes.

    Returns:
        A [`Draw`] with `B = num_samples * len(rows)`.
    """
    keys = draw_keys(epochs, rows, num_samples)
    quantiles, noises, posterior_noises = [], [], []
    for key in keys:
        generator = torch.Generator().manual_seed(stable_seed(seed, *key))
        quantiles.append(torch.rand((), generator=generator))
        noises.append(torch.randn(*shape, generator=generator))
        posterior_noises.append(torch.randn(*shape, generator=generator))
    noise, posterior_noise = (to_device(torch.stack(parts), device) for parts in (noises, posterior_noises))
    return Draw(torch.stack(quantiles), noise, posterior_noise, keys)


def draw_pairs(
    seed: int, epochs: Sequence[int], rows: Sequence[int], shape: Sequence[int], num_samples: int, device: torch.device
) -> Draw:
    """As [`draw_rows`], with one draw for both rows of a pair: a pure function of (seed, epoch, rows of the pair).

    The same image in two pairs has two draws. A pair that is one row of the data set is that row twice.

    Args:
        seed: the run's seed.
        epochs: the epoch of each row.
        rows: the index of each row in the data set, of pairs in turns, the better one first.
        shape: shape of one clean sample, without the batch dimension.
        num_samples: draws per pair, `K`.
        device: where the result goes.
    """
    pairs = [stable_seed(*pair) for pair in zip(rows[::2], rows[1::2], strict=True)]
    draw = draw_rows(seed, epochs[::2], pairs, shape, num_samples, device)
    quantile, noise, posterior_noise = (
        tensor.repeat_interleave(2, 0) for tensor in (draw.quantile, draw.noise, draw.posterior_noise)
    )
    return Draw(quantile, noise, posterior_noise, tuple(key for key in draw.keys for _ in range(2)))


@dataclass(frozen=True)
class SampleDraw:
    """All randomness of `B` samples that the policy draws in training.

    Attributes:
        noise: float32 `[B, ...]`, standard normal, what a sample begins with.
        generators: on the CPU, one per row, behind `noise`: for schedulers that add noise at each step.
        num_last_steps: of each row, how many of the last steps the gradient goes back through.
    """

    noise: Tensor
    generators: list[torch.Generator]
    num_last_steps: list[int]


def draw_samples(
    seed: int, epochs: Sequence[int], rows: Sequence[int], shape: Sequence[int], last_steps: tuple[int, int],
    device: torch.device,
) -> SampleDraw:  # fmt: skip
    """Draws the beginning of a sample for each row, another one in each epoch.

    Args:
        seed: the run's seed.
        epochs: the epoch of each row.
        rows: the index of each row in the data set.
        shape: shape of one sample, without the batch dimension.
        last_steps: the fewest and the most steps that the gradient goes back through, all numbers alike.
        device: where the noise goes.
    """
    generators = [torch.Generator().manual_seed(stable_seed(seed, *key)) for key in zip(epochs, rows, strict=True)]
    fewest, most = last_steps
    nums = [int(torch.randint(fewest, most + 1, (), generator=generator)) for generator in generators]
    noise = torch.stack([torch.randn(*shape, generator=generator) for generator in generators])
    return SampleDraw(to_device(noise, device), generators, nums)


def repeated(epochs: Sequence[int], num_draws: int | None) -> Sequence[int]:
    """The epochs whose draws rows have if there are `num_draws` in turns, and those of evaluation as they are."""
    if num_draws is None:
        return epochs
    return [epoch if epoch == EVALUATION_EPOCH else epoch % num_draws for epoch in epochs]


def draw_keys(epochs: Sequence[int], rows: Sequence[int], num_samples: int) -> tuple[tuple[int, int, int], ...]:
    """`(epoch, row, sample)` of each draw, in the order of [`draw_rows`]."""
    return tuple((epoch, row, sample) for sample in range(num_samples) for epoch, row in zip(epochs, rows, strict=True))


def shuffled_rows(seed: int, epoch: int, num_rows: int) -> list[int]:
    """The order in which an epoch visits the rows, a permutation of `range(num_rows)`."""
    generator = torch.Generator().manual_seed(stable_seed(seed, epoch))
    return torch.randperm(num_rows, generator=generator).tolist()


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on a device, without waiting for what that is doing: a GPU copies from pinned memory."""
    tensor = tensor.pin_memory() if device.type == "cuda" and tensor.device.type == "cpu" else tensor
    return tensor.to(device, non_blocking=device.type != "mps")


def stable_seed(*key: int) -> int:
    """A 63-bit seed from integers, the same on every machine and in every Python process."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
