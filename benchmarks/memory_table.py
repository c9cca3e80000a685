"""What weights, gradients, moments and reference take on a GPU, for each model and way of training, computed.

    python -m benchmarks.memory_table            # prints the table of docs/scaling.md
    python -m benchmarks.memory_table --write docs/scaling.md

Of P numbers of the denoiser and A of an adapter of rank 16 on the family's modules, in bytes: an adapter, 2 P + 16 A
(frozen weights in bfloat16; weights, gradients and two moments of the adapter in float32); the same on a base of 4
bits, of which linear layers keep half a byte a number and a float32 for every 64; all weights, 20 P (weights,
gradients, two moments and the reference, all float32). Sharded, each is divided by the number of GPUs. Activations come
on top (`lora_memory` has them of an adapter on one GPU), and where weights are sharded what is gathered of a block or
two. Encoders (text encoders in bfloat16, image encoders in float32) are whole on every GPU, and only while they encode.
1 GB = 10^9 bytes.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from tgo_trl.cards.sections import with_section
from tgo_trl.families import FAMILIES
from tgo_trl.messages.markdown import markdown_table
from tgo_trl.policy.memory import BYTES_OF_4_BITS

from .lora_memory import ATTENTION, CASES, GB, Case, encoder_bytes

SECTION = "memory"
RANK = 16
NUM_GPUS = 8
ADAPTER_BYTES = 4 + 4 + 8
"""Of each number of an adapter: weight, gradient, two moments."""
FULL_BYTES = 4 + 4 + 8 + 4
"""Of each number, with all weights trained: weight, gradient, two moments, reference."""


@dataclass(frozen=True)
class Sizes:
    """Numbers of a model, over all of its denoisers.

    Attributes:
        parameters: P.
        linear: those of P that are weights of linear layers, which 4 bits are for.
        adapter: A.
        encoder_bytes: of text and image encoders.
    """

    parameters: int
    linear: int
    adapter: int
    encoder_bytes: int

    @property
    def lora(self) -> int:
        """Bytes of an adapter's training on whole weights in bfloat16."""
        return 2 * self.parameters + ADAPTER_BYTES * self.adapter

    @property
    def lora_on_4_bits(self) -> float:
        """The same on quantised linear layers."""
        return self.lora - (2 - BYTES_OF_4_BITS) * self.linear

    @property
    def full(self) -> int:
        """Bytes of training all weights, with the reference."""
        return FULL_BYTES * self.parameters


def sizes_of(case: Case) -> Sizes:
    """Of a published model, counted without a weight being made."""
    with torch.device("meta"):
        network = case.build()
    targets = FAMILIES[case.pipeline].lora_target_modules if case.pipeline in FAMILIES else ATTENTION
    linear = {name: it for name, it in network.named_modules() if isinstance(it, nn.Linear)}
    adapted = [it for name, it in linear.items() if any(f".{name}".endswith(f".{target}") for target in targets)]
    return Sizes(
        case.num_networks * sum(weight.numel() for weight in network.parameters()),
        case.num_networks * sum(it.weight.numel() for it in linear.values()),
        case.num_networks * sum(RANK * (it.in_features + it.out_features) for it in adapted),
        encoder_bytes(case),
    )


def table() -> str:
    """A row for each model, in GB for each GPU."""
    head = (
        "model", "parameters, 10^9", "LoRA, whole", "LoRA on 4 bits, whole", f"LoRA, sharded over {NUM_GPUS}",
        "all weights, whole", f"all weights, sharded over {NUM_GPUS}", "encoders, to encode only",
    )  # fmt: skip
    rows = []
    for case in CASES.values():
        sizes = sizes_of(case)
        values = (
            sizes.lora, sizes.lora_on_4_bits, sizes.lora / NUM_GPUS, sizes.full, sizes.full / NUM_GPUS,
            sizes.encoder_bytes,
        )  # fmt: skip
        rows.append([case.model, f"{sizes.parameters / 1e9:.2f}", *(f"{value / GB:.1f}" for value in values)])
    return markdown_table(head, rows)


def main() -> None:
    """Prints the table, or puts it into a page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table into this page")
    page = parser.parse_args().write
    if page is None:
        print(table())
    else:
        page.write_text(with_section(page.read_text("utf-8"), SECTION, table()), "utf-8")


if __name__ == "__main__":
    main()
