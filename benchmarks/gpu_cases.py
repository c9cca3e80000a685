"""What is measured: a case is a model, what is trained of it, a batch size, and settings; and how one is measured."""

import gc
import platform
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from importlib.metadata import version
from typing import Any

import torch
from diffusers import BitsAndBytesConfig, TorchAoConfig
from transformers import PrinterCallback

from tgo_trl import TGOConfig, TGOTrainer

from .gpu_models import MODELS, build_family, build_network, build_pipeline, build_rows
from .gpu_steps import MATMUL_SIDE, RANK, WARM_UP, InTurns, Windows, count_flops, now
from .peer_steps import ORDERS, TITLES, build_parts

TRAINED = {"lora": "LoRA", "full": "all weights"}
OWN_SETTINGS = (
    "output_dir", "encoding_cache_dir", "use_cpu", "per_device_train_batch_size", "max_steps", "gradient_checkpointing",
    "use_peft", "resolution", "report_to", "save_strategy", "disable_tqdm", "lora_r", "gradient_accumulation_steps",
    "num_likelihood_samples", "bf16", "fp16", "loss_type", "pairs", "torch_compile",
)  # fmt: skip
"""What a case sets itself, or what the bare loop, FLOPs and rows of a step would have to follow."""
ENDLESS = 100_000
"""Updates: a run ends when its windows are over."""


@dataclass(frozen=True)
class Case:
    """What is timed in a process of its own.

    Attributes:
        model: key of `gpu_models.MODELS`.
        trained: "lora", "full", or a key of `peer_steps.ORDERS`.
        batch_size: rows of a step; of pairs, images.
        checkpointing: whether activations are computed again in the backward.
        bits: of the frozen weights: 16, or a key of [`QUANTISATIONS`].
        settings: further ones of `TGOConfig`.
        scale: "real" or "tiny".
    """

    model: str
    trained: str
    batch_size: int
    checkpointing: bool = False
    bits: int = 16
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)
    scale: str = "real"

    @property
    def is_peer(self) -> bool:
        """Whether it is another script's order of operations."""
        return self.trained in ORDERS

    @property
    def name(self) -> str:
        """Of its files."""
        parts = [self.model, self.trained, f"b{self.batch_size}", "checkpointing" if self.checkpointing else "plain"]
        parts += [f"{self.bits}bit"] * (self.bits != 16)
        if self.settings:
            digest = blake2b(repr(sorted(self.settings.items())).encode(), digest_size=4).hexdigest()
            parts.append("-".join([*sorted(self.settings), digest]))
        return "_".join(parts)

    @property
    def title(self) -> str:
        """For a line of text."""
        what = TITLES[self.trained] if self.is_peer else f"{TRAINED[self.trained]} on {self.bits} bits"
        what = what.removesuffix(" on 16 bits")
        settings = "".join(f", {name}={value}" for name, value in self.settings.items())
        checkpointing = ", checkpointing" if self.checkpointing else ""
        return f"{MODELS[self.model].title}, {what}, batch {self.batch_size}{checkpointing}{settings}"


PEER_BATCHES = (8, 32)
QUANTISED = Case("flux-512", "lora", 1, checkpointing=True, bits=4)


def plan(
    models: Sequence[str], trained: Sequence[str] = tuple(TRAINED), batch_sizes: Sequence[int] = (),
    checkpointing: Sequence[bool] = (False, True), settings: Mapping[str, Any] | None = None, scale: str = "real",
    with_peers: bool = False, bits: int | None = None,
) -> list[Case]:  # fmt: skip
    """The cases of some models, in the order in which they are measured.

    Args:
        models: keys of `MODELS`.
        trained: "lora", "full".
        batch_sizes: instead of each model's own.
        checkpointing: off, on.
        settings: of `TGOConfig`, for all of them.
        scale: "real" or "tiny".
        with_peers: also other scripts' orders of operations.
        bits: of the frozen weights of all; by default 16, with one case of 4.
    """
    more = {"settings": dict(settings or {}), "scale": scale, "bits": bits or 16}
    cases = []
    for name in models:
        own = {"lora": MODELS[name].batch_sizes, "full": MODELS[name].full_batch_sizes}
        for what in trained:
            sizes = (batch_sizes or own[what]) if own[what] else ()
            cases += [Case(name, what, size, again, **more) for size in sizes for again in checkpointing]
        if name == QUANTISED.model and bits is None and not batch_sizes and not settings and "lora" in trained:
            cases.append(Case(**{**asdict(QUANTISED), "scale": scale}))
    if with_peers:
        sizes = batch_sizes or PEER_BATCHES
        cases += [Case("sd15-512", order, size, True, scale=scale) for size in sizes for order in ORDERS]
    return cases


# ---- Measuring ----


def measure(case: Case, num_windows: int, seconds: float) -> dict[str, Any]:
    """Everything about a case, as JSON has it; that it does not fit in memory is a result too.

    Args:
        case: what is measured, on the GPU, or on the CPU if there is none.
        num_windows: that are timed of each loop.
        seconds: that a window takes at least, about.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = {"case": asdict(case), "title": case.title, "hardware": hardware(device), "versions": versions()}
    try:
        steps = (time_peer if case.is_peer else time_trainer)(case, num_windows, seconds, device)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return {**found, "outcome": "out of memory", "message": str(error).splitlines()[0][:300] if str(error) else ""}
    found |= {"outcome": "measured", **steps}
    peak = found["hardware"]["matmul_tflops"]
    if peak is not None and "step_tflop" in steps:
        for loop in ("trainer", "bare"):
            found[loop]["utilisation"] = steps["step_tflop"] / steps[loop]["seconds"] / peak
    return found


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator, of the GPU or the CPU, had nothing left to give."""
    texts = ("can't allocate memory", "out of memory", "ALLOC_FAILED", "unable to find an engine")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in texts)


def time_trainer(case: Case, num_windows: int, seconds: float, device: torch.device) -> dict[str, Any]:
    """Windows of the trainer and of the bare loop in turns, and the FLOPs of a step."""
    model = MODELS[case.model]
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(case, folder, device)
        turns = InTurns(trainer, case.batch_size, num_windows, seconds)
        trainer.add_callback(turns)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    weights = list(trainer.policy.parameters())
    flops = case.batch_size * count_flops(model, case.scale, case.trained == "full", turns.has_reference)
    return {
        **turns.summary(),
        "step_tflop": flops / 1e12,
        "trained_parameters": sum(weight.numel() for weight in weights if weight.requires_grad),
    }


def build_trainer(case: Case, folder: str, device: torch.device) -> TGOTrainer:
    """The trainer of a case, whose rows are encoded, in a folder."""
    model, on_gpu = MODELS[case.model], device.type == "cuda"
    pipeline = build_pipeline(model, case.scale)
    family = build_family(model, case.scale, pipeline)
    settings = {
        "output_dir": f"{folder}/run",
        "encoding_cache_dir": f"{folder}/encodings",
        "use_cpu": not on_gpu,
        "bf16": True,
        "resolution": model.tiny.RESOLUTION,  # of the pictures; what is encoded of them is as large as published
        "per_device_train_batch_size": case.batch_size,
        "max_steps": ENDLESS,
        "gradient_checkpointing": case.checkpointing,
        "use_peft": case.trained == "lora",
        "lora_r": RANK,
        "learning_rate": 1e-6,
        "lr_scheduler_type": "constant",
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        **case.settings,
    }
    rows = build_rows(model, max(model.num_rows, 4 * case.batch_size) if case.scale == "real" else 2 * case.batch_size)
    network = None
    if case.scale == "real":
        dtype = torch.bfloat16 if case.trained == "lora" else torch.float32  # as the trainer will have it
        network = build_network(model, device, dtype)
        pipeline.register_modules(**{family.network_names[0]: network})
    args = TGOConfig(**settings)
    if case.bits == 16:
        return TGOTrainer(pipeline, args, rows, family=family)
    pipeline.save_pretrained(f"{folder}/base")  # weights are quantised as they are loaded
    del pipeline, network
    gc.collect()
    if on_gpu:
        torch.cuda.empty_cache()
    return TGOTrainer(f"{folder}/base", args, rows, quantization_config=QUANTISATIONS[case.bits](), family=family)


def nf4() -> Any:
    """bitsandbytes' 4 bits, as the documentation of the families has them."""
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)


def int8() -> Any:
    """torchao's 8 bits of weights alone."""
    from torchao.quantization import Int8WeightOnlyConfig  # slow to import, and needed here alone

    return TorchAoConfig(Int8WeightOnlyConfig())


QUANTISATIONS = {4: nf4, 8: int8}


def time_peer(case: Case, num_windows: int, seconds: float, device: torch.device) -> dict[str, Any]:
    """Windows of another script's order of operations."""
    parts, step = build_parts(case.trained, case.scale, case.batch_size, device), ORDERS[case.trained][0]
    for _ in range(WARM_UP):
        since = now(device)
        step(parts)
    num_steps = max(2, round(seconds / (now(device) - since)))
    windows = Windows()
    for _ in range(num_windows):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        since = now(device)
        for _ in range(num_steps):
            step(parts)
        windows.seconds.append((now(device) - since) / num_steps)
        if device.type == "cuda":
            windows.peak_bytes = max(windows.peak_bytes, torch.cuda.max_memory_allocated(device))
    per_second = case.batch_size / windows.median
    return {"peer": windows.summary(), "samples_per_second": per_second, "steps_per_window": num_steps}


# ---- Hardware ----


def hardware(device: torch.device) -> dict[str, Any]:
    """The card and what it can do, in a product of matrices as large as its peak is reached with."""
    if device.type != "cuda":
        return {"name": f"CPU ({platform.machine()})", "memory_gb": None, "matmul_tflops": None}
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "memory_gb": properties.total_memory / 1e9,
        "matmul_tflops": matmul_rate(device, MATMUL_SIDE) / 1e12,
    }


def matmul_rate(device: torch.device, side: int, repeats: int = 20) -> float:
    """FLOP per second of a product of square bfloat16 matrices of random numbers, the best of three times."""
    one, two = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = 0.0
    for _ in range(4):  # the first is for warmth
        since = now(device)
        for _ in range(repeats):
            one @ two
        best = max(best, repeats * 2 * side**3 / (now(device) - since))
    del one, two
    gc.collect()
    return best


def versions() -> dict[str, str]:
    """Of Python and the libraries that decide about speed."""
    names = ("torch", "diffusers", "transformers", "accelerate", "peft", "tgo_trl")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
