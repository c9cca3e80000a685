"""How long it takes to draw the noise of a row, with and without noise for the posterior, on one core.

    OMP_NUM_THREADS=1 python -m benchmarks.draws

The table of docs/performance.md, "Noise is drawn ahead".
"""

import math
import time

import torch

from tgo_trl.messages.markdown import markdown_table
from tgo_trl.policy.draws import draw_rows

LATENTS = {
    "Stable Diffusion 1.5, 512": (4, 64, 64),
    "SDXL, 1024": (4, 128, 128),
    "FLUX.1, 1024": (16, 128, 128),
    "Wan, 480 x 832, 33 frames": (16, 9, 60, 104),
    "Wan, 480 x 832, 81 frames": (16, 21, 60, 104),
}
TRIES = 12


def milliseconds(shape: tuple[int, ...], with_posterior: bool) -> float:
    """The shortest of some tries, of one row."""
    times = []
    for row in range(TRIES):
        start = time.perf_counter()
        draw_rows(42, [0], [row], shape, 1, torch.device("cpu"), with_posterior)
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def main() -> str:
    """Prints the table."""
    rows = [
        (name, f"{math.prod(shape):,}", *(f"{milliseconds(shape, it):.2g} ms" for it in (True, False)))
        for name, shape in LATENTS.items()
    ]
    table = markdown_table(("latents", "numbers", "noise, and noise for the posterior", "noise alone"), rows)
    print(table)
    return table


if __name__ == "__main__":
    main()
