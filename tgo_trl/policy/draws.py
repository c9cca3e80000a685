"""The one place where training randomness is drawn: a pure function of (seed, epoch, row).

Neither the batch a row falls into, nor the number of processes, nor a resume changes its draw, nor who draws it, and
when: the step, or a thread or process ahead of it. Policy and reference get the same object. Everything is drawn on the
CPU, so that a GPU run sees the same numbers.
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
        posterior_noise: float32 `[B, ...]`, standard normal, picks the clean sample from the image encoder's posterior;
            `[B, 0]` where there is none to pick from.
        keys: `(epoch, row, sample)` of each, which tell the draws of one data set apart.
    """

    quantile: Tensor
    noise: Tensor
    posterior_noise: Tensor
    keys: tuple[tuple[int, int, int], ...] = ()

    def on(self, device: torch.device) -> "Draw":
        """The same draw with its noise on a device."""
        return Draw(self.quantile, to_device(self.noise, device), to_device(self.posterior_noise, device), self.keys)

    def pin_memory(self) -> "Draw":
        """The same draw with its noise in pinned memory, as data loaders ask of what is not a tensor."""
        return Draw(self.quantile, self.noise.pin_memory(), self.posterior_noise.pin_memory(), self.keys)

    def for_pairs(self) -> "Draw":
        """Draws of rows, each for two rows that follow each other."""
        quantile, noise, posterior_noise = (
            tensor.repeat_interleave(2, 0) for tensor in (self.quantile, self.noise, self.posterior_noise)
        )
        return Draw(quantile, noise, posterior_noise, tuple(key for key in self.keys for _ in range(2)))


@dataclass(frozen=True)
class DrawPlan:
    """How a run draws: all that its draws depend on beside epoch, row and shape.

    Attributes:
        seed: the run's.
        num_samples: draws per row, `K`.
        in_pairs: whether rows are pairs, in turns, the better one first, of which both have one draw: a pure function
            of (seed, epoch, rows of the pair). The same image in two pairs has two draws.
        num_draws: how many draws epochs take in turns; None if each has its own.
        with_posterior: whether something is picked from the image encoder's posterior.
    """

    seed: int
    num_samples: int = 1
    in_pairs: bool = False
    num_draws: int | None = None
    with_posterior: bool = True

    def draw(self, epochs: Sequence[int], rows: Sequence[int], shape: Sequence[int], is_pinned: bool = False) -> Draw:
        """Draws on the CPU, of pairs one each: [`place`] makes draws of rows on the device of it.

        Args:
            epochs: the epoch of each row.
            rows: the index of each row in the data set.
            shape: shape of one clean sample, without the batch dimension.
            is_pinned: whether to draw into pinned memory, which a GPU copies without a wait.
        """
        epochs = repeated(epochs, self.num_draws)
        if self.in_pairs:
            epochs, rows = epochs[::2], pair_numbers(rows)
        return draw_rows(
            self.seed, epochs, rows, shape, self.num_samples, torch.device("cpu"), self.with_posterior, is_pinned
        )

    def place(self, draw: Draw, device: torch.device) -> Draw:
        """The draw of each row, with its noise on a device, of what [`draw`] returned."""
        placed = draw.on(device)
        return placed.for_pairs() if self.in_pairs else placed


def draw_rows(
    seed: int, epochs: Sequence[int], rows: Sequence[int], shape: Sequence[int], num_samples: int,
    device: torch.device, with_posterior: bool = True, is_pinned: bool = False,
) -> Draw:  # fmt: skip
    """Draws for each row, `num_samples` of them in turn: sample 0 of all rows, then sample 1 of all rows, ...

    Args:
        seed: the run's seed.
        epochs: the epoch of each row; [`EVALUATION_EPOCH`] for evaluation.
        rows: the index of each row in the data set.
        shape: shape of one clean sample, without the batch dimension.
        num_samples: draws per row, `K`.
        device: where the result goes.
        with_posterior: False leaves `posterior_noise` out, which changes nothing else: it is drawn last.
        is_pinned: whether to draw into pinned memory, as is done for a GPU.

    Returns:
        A [`Draw`] with `B = num_samples * len(rows)`.
    """
    keys = draw_keys(epochs, rows, num_samples)
    is_pinned = is_pinned or device.type == "cuda"
    quantile = torch.empty(len(keys))
    noise, posterior_noise = (
        torch.empty(len(keys), *wanted, pin_memory=is_pinned) for wanted in (shape, shape if with_posterior else (0,))
    )
    for index, key in enumerate(keys):  # in place, which takes no memory and no copy more
        generator = torch.Generator().manual_seed(stable_seed(seed, *key))
        torch.rand((), generator=generator, out=quantile[index])
        torch.randn(tuple(shape), generator=generator, out=noise[index])
        if with_posterior:
            torch.randn(tuple(shape), generator=generator, out=posterior_noise[index])
    return Draw(quantile, noise, posterior_noise, keys).on(device)


def pair_numbers(rows: Sequence[int]) -> list[int]:
    """What stands for the index of each pair, of the rows of pairs in turns; a pair may be one row, twice."""
    return [stable_seed(*pair) for pair in zip(rows[::2], rows[1::2], strict=True)]


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
    # a collator of the user's may have made tensors of them
    pairs = [(int(epoch), int(row)) for epoch, row in zip(epochs, rows, strict=True)]
    return tuple((*pair, sample) for sample in range(num_samples) for pair in pairs)


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
    digest = hashlib.blake2b("/".join(str(int(number)) for number in key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
