"""Versions and devices, as a report of a fault needs them: no names of folders, users or machines."""

import importlib.metadata
import platform

PACKAGES = (
    "tgo_trl", "torch", "diffusers", "transformers", "trl", "peft", "accelerate", "datasets", "huggingface_hub",
    "safetensors", "bitsandbytes", "torchao", "av", "deepspeed", "xformers", "flash-attn",
)  # fmt: skip


def env() -> None:
    """Prints them, one in a line, to be pasted into an issue."""
    import torch  # slow to load

    from ...precision import default_dtype

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print("Paste this into your report:\n")
    print(f"- Python: {platform.python_version()} on {platform.system()} {platform.release()}, {platform.machine()}")
    for package in PACKAGES:
        try:
            print(f"- {package}: {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            print(f"- {package}: not installed")
    print(f"- CUDA of PyTorch: {torch.version.cuda or 'none'}, used: {default_dtype(device)}")
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        print(f"- GPU {index}: {gpu.name}, {gpu.total_memory / 2**30:.1f} GiB")
    if not torch.cuda.is_available():
        print("- GPU: none")
