import functools
import gc
import re
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.nn import functional as F

from benchmarks.lora_memory import CASES, CudaCasts, PeakMemory, make_fake, row, step, with_adapter
from benchmarks.numbers_beside_shapes import NumbersBesideShapes
from tgo_trl.families.hunyuan_video15 import HunyuanVideo15Family
from tgo_trl.families.ltx2 import LTX2Family
from tgo_trl.families.qwen_image21 import QwenImage21Family
from tgo_trl.families.qwen_image21_edit import QwenImage21EditFamily


def unet(checkpointing: bool) -> nn.Module:
    network = UNet2DConditionModel(
        block_out_channels=(64, 128, 256),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=64,
    )
    return with_adapter(network, checkpointing=checkpointing)


def call(network: nn.Module) -> torch.Tensor:
    latents, prompt = (torch.zeros(shape, dtype=torch.bfloat16) for shape in ((1, 4, 32, 32), (1, 16, 64)))
    return network(latents, torch.zeros(1, dtype=torch.long), prompt).sample


@functools.cache
def computed_peak(checkpointing: bool) -> int:
    with torch.device("meta"):
        network = unet(checkpointing)
    with FakeTensorMode(allow_non_fake_inputs=True):
        make_fake(network)
        memory = PeakMemory()
        step(network, call, memory)
    return memory.peak


def allocated_peak(checkpointing: bool) -> int:
    """Of the CPU's allocator, as the profiler saw it, in a step on real tensors."""
    network = unet(checkpointing)
    before = sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))
    gc.collect()  # or what other tests left would be let go of in between
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step(network, call)
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = before
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


@pytest.mark.parametrize("checkpointing", [pytest.param(True, marks=pytest.mark.slow), False])
def test_computed_peak_is_what_a_real_step_allocates(checkpointing):
    # The kernels' workspaces, and small scalars that Python keeps, are not computed.
    assert computed_peak(checkpointing) == pytest.approx(allocated_peak(checkpointing), rel=0.01)


def test_checkpointing_lowers_the_peak():
    assert computed_peak(True) < 0.7 * computed_peak(False)


def test_peak_counts_storages_while_they_live():
    memory = PeakMemory()
    given = torch.ones(1000)
    memory.count([given, given[:10]])  # a view takes nothing
    assert memory.bytes == 4000
    with memory:
        twice = given * 2  # 8,000
        double = twice.double()  # 16,000
        del twice  # 12,000
        double.add_(1)
        del double
        last = given.reshape(10, 100) + 1  # 8,000
    assert (memory.bytes, memory.peak) == (8000, 16000)
    del last, given
    assert memory.bytes == 0


def test_attention_with_all_scores_is_refused():
    query = torch.ones(1, 1, 4, 8)
    with pytest.raises(AssertionError, match="not fused"), PeakMemory():
        (query @ query.mT).softmax(-1)


def test_casts_are_those_of_autocast_on_a_gpu():
    half, single = torch.ones(2, 4, dtype=torch.bfloat16), torch.ones(2, 4)
    with CudaCasts():
        assert F.linear(single, torch.ones(3, 4)).dtype == torch.bfloat16
        assert (single @ single.mT).dtype == torch.bfloat16
        assert F.layer_norm(half, (4,)).dtype == torch.float32
        assert half.softmax(-1).dtype == torch.float32
        assert F.silu(half).dtype == torch.bfloat16
        assert (half + single).dtype == torch.float32
    assert F.layer_norm(half, (4,)).dtype == torch.bfloat16


# As the published safetensors files have them.
@pytest.mark.parametrize(
    ("name", "num_parameters"),
    [("sd15", 859_520_964), ("sdxl", 2_567_463_684), ("flux", 11_901_408_320), ("wan-1.3b", 1_418_996_800)],
)
def test_architectures_have_the_published_number_of_parameters(name, num_parameters):
    with torch.device("meta"):
        assert sum(p.numel() for p in CASES[name].build().parameters()) == num_parameters


@pytest.mark.slow
def test_row_of_stable_diffusion():
    model, size, parameters, trained, weights, training, _, quantized, encoders = row(CASES["sd15"])
    assert (model, size, parameters, weights) == ("Stable Diffusion 1.5", "512 px", "0.86", "1.7")
    # 16 blocks: q, k, v, o on the image, and q, o on the image and k, v on the prompt, 16 * (in + out) each.
    widths = [320] * 5 + [640] * 5 + [1280] * 6
    assert trained == f"{sum(16 * (6 * 2 * width + 2 * (768 + width)) for width in widths) / 1e6:.1f}"
    assert 1.7 < float(training) < 2.5
    assert float(quantized) < float(training)
    assert encoders == "0.6"  # 0.124 billion times 2 bytes, 0.084 billion times 4


class Recorder(nn.Module):
    """In place of a network of a case: keeps what it is called with, and returns a sample of the shape of its input."""

    def __init__(self, case):
        super().__init__()
        with torch.device("meta"):
            self.config = case.build().config
        self.weight = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))

    def forward(self, **arguments):
        self.arguments = arguments
        return (arguments["hidden_states"],)


def described(arguments: dict) -> dict:
    """Shape and dtype of each tensor, and the other arguments themselves."""
    return {name: (it.shape, it.dtype) if isinstance(it, torch.Tensor) else it for name, it in arguments.items()}


def prompt(length: int, features: int) -> dict:
    return {"embeds": torch.zeros(1, length, features), "mask": torch.ones(1, length, dtype=torch.long)}


GLYPHS = {"glyphs": torch.zeros(1, 256, 1472), "glyph_mask": torch.zeros(1, 256, dtype=torch.long)}


# Of 121 frames, the autoencoders make 1 + 120 / 8 (LTX-2) and 1 + 120 / 4; of 32 and 16 pixels a side, one.
@pytest.mark.parametrize(
    ("name", "family", "latents", "conditions"),
    [
        ("ltx2", LTX2Family(), (128, 16, 16, 24), prompt(1024, 3840)),
        (
            "hunyuan-video-15",
            HunyuanVideo15Family(),
            (32, 31, 30, 53),
            {**prompt(1000, 3584), **GLYPHS, "image_embeds": torch.zeros(1, 729, 1152)},
        ),
        ("qwen-image-21", QwenImage21Family(), (64, 64, 64), prompt(1024, 4096)),
        (
            "qwen-image-21-edit",
            QwenImage21EditFamily(),
            (64, 64, 64),
            {**prompt(2048, 4096), "slots": torch.arange(2048)[None] >= 1024, "source": torch.zeros(1, 64, 1, 64, 64)},
        ),
    ],
)
def test_calls_are_those_of_training(name, family, latents, conditions):
    network = Recorder(CASES[name])
    CASES[name].call(network)
    counted = described(network.arguments)
    family.predict({"transformer": network}, torch.zeros(1, *latents), torch.zeros(1), conditions)
    assert counted == described(network.arguments)
    clip = getattr(family, "clip", None)
    assert (
        CASES[name]
        .size.removesuffix(", of one source")
        .endswith("1024 px" if clip is None else f", {clip.num_frames} frames")
    )


@pytest.mark.parametrize(
    ("name", "family"),
    [
        pytest.param("flux2-klein-4b", "FLUX.2 [klein]", marks=pytest.mark.slow),
        pytest.param("hunyuan-video-15", "HunyuanVideo 1.5", marks=pytest.mark.long),
        pytest.param("ltx2", "LTX-2, LTX-2.3", marks=pytest.mark.long),
        pytest.param("qwen-image-21", "Qwen-Image 2.1", marks=pytest.mark.long),
    ],
)
def test_the_page_has_the_computed_memory(name, family):
    page = (Path(__file__).parents[1] / "docs" / "families.md").read_text()
    (cells,) = [line.split(" | ") for line in page.splitlines() if line.startswith(f"| {family} |")]
    *_, training, _, quantized, _ = row(CASES[name])
    assert cells[5].startswith(f"{training} GB")
    assert re.match(rf"{quantized}\b", cells[6])


# ---- Numbers beside shapes ----


def test_what_has_no_fake_tensor_is_computed():
    with FakeTensorMode(allow_non_fake_inputs=True):
        weights = torch.ones(3, 4)
        with NumbersBesideShapes():
            mask = torch.tensor([True, False, True])
            assert int(mask.sum()) == 2
            assert isinstance(chosen := weights[mask], FakeTensor)
            assert chosen.shape == (2, 4)
            weights[~mask] = 0
            mixed = mask[:, None] * weights
            assert isinstance(mixed, FakeTensor)
            with pytest.raises(DataDependentOutputException):
                float(mixed.sum())


def test_many_numbers_are_a_shape():
    with FakeTensorMode(allow_non_fake_inputs=True), NumbersBesideShapes():
        side = torch.arange(20_000)
        assert int(side.max()) == 19_999
        pairs = side[:, None] == side
        assert isinstance(pairs, FakeTensor)
        assert pairs.shape == (20_000, 20_000)
