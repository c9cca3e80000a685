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
    from ...storage.processes import process_state

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not process_state().is_main_process:
        return
    print("Paste this into your report:\n")
    print(f"- Python: {platform.python_version()} on {platform.system()} {platform.release()}, {platform.machine()}")
    for package in PACKAGES:
        try:
            print(f"- {package}: {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            print(f"- {package}: not installed")
    print(f"- CUDA that PyTorch was built for: {torch.version.cuda or 'none'}")
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        print(f"- GPU {index}: {gpu.name}, {gpu.total_memory / 2**30:.1f} GiB")
    if not torch.cuda.is_available():
        accelerator = torch.accelerator.current_accelerator()
        print(f"- GPU: {'none' if accelerator is None else accelerator.type}")
    print(f"- dtype that commands draw and score in: {default_dtype(device)}")
