"""Where the programs run that tests start; for what runs in the tests' own process, see `on_cpu` in `conftest.py`."""

import os


def cpu_environment(**variables: str) -> dict[str, str]:
    """Environment of a program that runs on the CPU, of one thread: several of them cannot share one GPU."""
    return {
        **os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", **variables
    }  # fmt: skip
