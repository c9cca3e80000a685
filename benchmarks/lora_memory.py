"""GPU memory that it takes to train a LoRA on each model at its usual size, computed without a GPU and without weights.

    python -m benchmarks.lora_memory [--family flux]

Builds each published architecture as fake tensors (shapes and dtypes without data), runs one step of training as
`TGOTrainer` runs it, and adds up the storages that live at the same time: frozen weights in bfloat16, LoRA of rank 16
with gradients and AdamW's two moments in float32, the reference's forward without gradient, the policy's forward and
backward with gradient checkpointing (but for aMUSEd), the loss. Batch size 1, prompts as long as the family pads them.
Casts are those of `torch.autocast("cuda", torch.bfloat16)`. Attention is counted as a fused kernel that never holds
the L x L scores, which is what PyTorch chooses on GPUs of compute capability 8.0 and up.

Not counted: the CUDA context (some 0.5 GB), workspaces of cuBLAS and cuDNN, fragmentation: leave 1 to 2 GB, or a tenth.
Text encoders (bfloat16) and image encoders (float32) are counted by their weights alone. They are on the device while
the data set is encoded, with their activations, when the denoiser is not; and beside the denoiser to draw samples.
In 4 bits: NF4 as bitsandbytes has it, half a byte for each weight of a linear layer and a float32 for every 64, the
rest in bfloat16; training then also holds the largest of these weights in bfloat16, for as long as it is multiplied.
1 GB = 10^9 bytes; a card of "24 GB" has 25.8.
"""

import argparse
import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import diffusers
import torch
from diffusers.training_utils import cast_training_params
from peft import LoraConfig
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.checkpoint import checkpoint

from tgo_trl.families import FAMILIES
from tgo_trl.models.meissonic_transformer import MeissonicTransformer2DModel
from tgo_trl.policy.memory import BYTES_OF_4_BITS
from tgo_trl.precision import cast

from .numbers_beside_shapes import NumbersBesideShapes

GB = 10**9
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


# ---- Counting ----


class CudaCasts(TorchFunctionMode):
    """The casts of `torch.autocast("cuda", torch.bfloat16)`, whose dispatch keys CPU tensors do not have.

    Names are those of the lists in PyTorch's `autocast_mode.h` that the networks here use.
    """

    HALF = frozenset(
        {"linear", "conv1d", "conv2d", "conv3d", "conv_transpose2d", "matmul", "__matmul__", "bmm", "baddbmm", "addmm"}
        | {"scaled_dot_product_attention"}
    )
    FLOAT = frozenset(
        {"layer_norm", "group_norm", "rms_norm", "softmax", "log_softmax", "cross_entropy", "mse_loss", "interpolate"}
        | {"exp", "pow", "__pow__", "square", "rsqrt", "reciprocal", "sum", "cumsum", "norm", "softplus"}
    )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        dtype = torch.bfloat16 if name in self.HALF else torch.float32 if name in self.FLOAT else None
        if dtype is not None:
            args, kwargs = tree_map_only(
                Tensor, lambda t: t.to(dtype) if t.dtype in (torch.float32, torch.bfloat16) else t, (args, kwargs)
            )
        return func(*args, **(kwargs or {}))


class PeakMemory(TorchDispatchMode):
    """Adds up the storages of all tensors that are made inside, and of those passed to `count`, while they live.

    `torch.distributed._tools.mem_tracker.MemTracker` cannot: it hooks the gradient of every parameter, frozen ones too.

    Attributes:
        bytes: now.
        peak: the most there have been.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._living: set[int] = set()

    def count(self, tensors: Any) -> None:
        for tensor in tree_leaves(tensors):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self._living:
                storage = tensor.untyped_storage()
                self._living.add(storage._cdata)
                self.bytes += storage.nbytes()
                self.peak = max(self.peak, self.bytes)
                weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())

    def _free(self, key: int, num_bytes: int) -> None:
        self._living.discard(key)
        self.bytes -= num_bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.ops.aten._softmax.default, "attention was not fused"
        result = func(*args, **(kwargs or {}))
        self.count(result)
        return result


def with_adapter(network: nn.Module, targets: Sequence[str] = ATTENTION, checkpointing: bool = True) -> nn.Module:
    """`network` as the trainer prepares it: frozen, in bfloat16, with a LoRA in float32 on its attention."""
    cast(network.requires_grad_(False), torch.bfloat16)
    network.add_adapter(LoraConfig(r=16, lora_alpha=32, target_modules=list(targets)))
    cast_training_params(network, torch.float32)
    if checkpointing:  # what is recomputed is cast as it was the first time
        contexts = {"context_fn": lambda: (nullcontext(), CudaCasts())}
        network.enable_gradient_checkpointing(lambda *args: checkpoint(*args, use_reentrant=False, **contexts))
    return network.train()


def make_fake(network: nn.Module) -> None:
    """Replaces all tensors of a network on the meta device by fake ones that claim to be on the CPU."""
    for module in network.modules():
        for tensors in (module._parameters, module._buffers, vars(module)):
            for name, tensor in tensors.items():
                if isinstance(tensor, Tensor):
                    fake = torch.empty(tensor.shape, dtype=tensor.dtype)
                    is_parameter = isinstance(tensor, nn.Parameter)
                    tensors[name] = nn.Parameter(fake, tensor.requires_grad) if is_parameter else fake


def step(network: nn.Module, call: Callable[[nn.Module], Any], memory: PeakMemory | None = None) -> None:
    """One update's forwards and backward, inside `memory`, while AdamW's moments are there."""
    trained = [p for p in network.parameters() if p.requires_grad]
    moments = [torch.zeros_like(p) for p in trained for _ in range(2)]
    if memory is not None:
        memory.count([*network.parameters(), *network.buffers(), *moments])
    with memory or nullcontext():
        network.disable_adapters()
        with torch.no_grad(), CudaCasts():
            reference = error(call(network))
        network.enable_adapters()
        with CudaCasts():
            loss = -F.logsigmoid(reference - error(call(network)))
        loss.backward()


def error(output: Any) -> Tensor:
    """A scalar: against noise, or against tokens where the output has a channel for each of a codebook."""
    prediction = getattr(output, "sample", output)
    prediction = torch.stack(prediction) if isinstance(prediction, list) else prediction
    if prediction.ndim == 4 and prediction.shape[1] >= 1024:
        return F.cross_entropy(prediction.float(), ids(1, *prediction.shape[2:]))
    return (prediction.float() - of(*prediction.shape, dtype=torch.float32)).square().mean()


# ---- Published architectures. Where a class is called without a value, its default is the published one. ----


ENCODERS = {  # parameters, counted on the meta device from the published configurations
    "CLIP-L": 123_650_304, "CLIP-H": 354_032_640, "CLIP-bigG": 694_659_840, "T5-XXL": 4_762_310_656,
    "UMT5-XXL": 5_680_910_336, "Gemma-2-2B": 2_614_341_888, "Qwen2.5-VL-7B": 8_292_166_656, "Qwen3-4B": 4_022_468_096,
    "Qwen3-8B": 8_190_735_360,
    "Qwen3-VL-4B": 4_437_815_808, "Mistral-Small-3.1": 24_011_361_280, "CLIP-H vision": 630_766_080, "KL": 83_653_863,
    "KL-16": 83_819_683, "KL-32": 84_046_115, "Wan VAE": 126_892_531, "Wan 2.2 VAE": 704_688_668, "DC-AE": 312_250_275,
    "VQ": 146_244_675, "Qwen2.5-VL-7B text": 7_070_619_136, "ByT5": 219_314_944, "Hunyuan VAE": 1_260_634_115,
    "Qwen3-VL-8B": 8_767_123_696, "Qwen-Image 2.1 VAE": 337_740_404, "Gemma-3-12B": 12_202_563_392,
    "LTX-2 connectors": 1_431_475_200, "LTX-2 VAE": 1_222_479_601,
}  # fmt: skip
IMAGE_ENCODERS = (
    "CLIP-H vision", "KL", "KL-16", "KL-32", "Wan VAE", "Wan 2.2 VAE", "DC-AE", "VQ", "Hunyuan VAE",
    "Qwen-Image 2.1 VAE", "LTX-2 VAE",
)  # fmt: skip
"""Those of float32."""


@dataclass(frozen=True)
class Case:
    """A published model at its usual size.

    Attributes:
        model, size: for the table.
        pipeline: the class whose family says which modules get an adapter; all attention projections without one.
        build: the denoiser.
        call: the denoiser on a batch of one.
        encoders: keys of `ENCODERS`.
        num_networks: denoisers on the device, each with an adapter; a row goes through one.
        checkpointing: False for a class whose gradient checkpointing does not work.
    """

    model: str
    pipeline: str
    build: Callable[[], nn.Module]
    call: Callable[[nn.Module], Any]
    encoders: tuple[str, ...]
    size: str = "1024 px"
    num_networks: int = 1
    checkpointing: bool = True


def of(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype)


def ids(*shape: int) -> Tensor:
    return of(*shape, dtype=torch.long)


def sdxl() -> nn.Module:
    return diffusers.UNet2DConditionModel(
        block_out_channels=(320, 640, 1280), transformer_layers_per_block=(1, 2, 10), attention_head_dim=(5, 10, 20),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"), use_linear_projection=True,
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=2048,
        addition_embed_type="text_time", addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
    )  # fmt: skip


def call_sdxl(unet: nn.Module) -> Any:
    added = {"text_embeds": of(1, 1280), "time_ids": of(1, 6)}
    return unet(of(1, 4, 128, 128), ids(1), of(1, 77, 2048), added_cond_kwargs=added)


def sd3(num_layers: int, **kwargs: Any) -> nn.Module:
    shape = {"num_layers": num_layers, "num_attention_heads": num_layers, "caption_projection_dim": 64 * num_layers}
    return diffusers.SD3Transformer2DModel(**{"pos_embed_max_size": 192, **shape, **kwargs})


def call_sd3(network: nn.Module) -> Any:  # 77 tokens of the CLIPs, 256 of T5
    return network(of(1, 16, 128, 128), of(1, 333, 4096), of(1, 2048), of(1))


def call_flux(network: nn.Module, *, tokens: int = 4096) -> Any:
    positions = of(tokens, 3), of(512, 3)
    return network(of(1, tokens, 64), of(1, 512, 4096), of(1, 768), of(1), *positions, guidance=of(1))


def call_flux2(network: nn.Module, *, tokens: int = 4096) -> Any:
    guidance = of(1) if network.config.guidance_embeds else None
    embeds, positions = of(1, 512, network.config.joint_attention_dim), (of(tokens, 4), of(512, 4))
    return network(of(1, tokens, 128), embeds, of(1), *positions, guidance=guidance)


def klein(num_layers: int, num_single_layers: int, num_attention_heads: int, qwen_dim: int) -> nn.Module:
    return diffusers.Flux2Transformer2DModel(
        num_layers=num_layers, num_single_layers=num_single_layers, num_attention_heads=num_attention_heads,
        joint_attention_dim=3 * qwen_dim, guidance_embeds=False,
    )  # fmt: skip


klein_4b = partial(klein, 5, 20, 24, 2560)
klein_9b = partial(klein, 8, 24, 32, 4096)


def call_longcat(network: nn.Module) -> Any:
    return network(of(1, 4096, 64), of(1, 512, 3584), of(1), of(4096, 3), of(512, 3))


def call_chroma(network: nn.Module) -> Any:
    positions = of(4096, 3), of(512, 3)
    return network(of(1, 4096, 64), of(1, 512, 4096), of(1), *positions, attention_mask=of(1, 4608))


def call_krea2(network: nn.Module) -> Any:
    return network(of(1, 4096, 64), of(1, 512, 12, 2560), of(1), of(4608, 3), of(1, 512, dtype=torch.bool))


def call_wan(network: nn.Module) -> Any:
    return network(of(1, 16, 21, 60, 104), of(1, dtype=torch.float32), of(1, 512, 4096))


def call_wan_i2v(network: nn.Module) -> Any:
    embeds = None if network.config.image_dim is None else of(1, 257, 1280)
    return network(of(1, 36, 21, 60, 104), of(1, dtype=torch.float32), of(1, 512, 4096), embeds)


def wan_ti2v() -> nn.Module:
    return diffusers.WanTransformer3DModel(
        num_attention_heads=24, in_channels=48, out_channels=48, ffn_dim=14336, num_layers=30
    )


def call_wan_ti2v(network: nn.Module, *tokens: int) -> Any:  # 704 x 1280 pixels, 121 frames
    return network(of(1, 48, 31, 44, 80), of(1, *tokens, dtype=torch.float32), of(1, 512, 4096))


def call_ltx2(network: nn.Module) -> Any:  # one token of sound, which the video does not see
    config, (frames, height, width) = network.config, (16, 16, 24)
    tokens, time = frames * height * width, of(1, dtype=torch.float32)
    return network(
        hidden_states=of(1, tokens, config.in_channels), audio_hidden_states=of(1, 1, config.audio_in_channels),
        encoder_hidden_states=of(1, 1024, config.caption_channels),
        audio_encoder_hidden_states=of(1, 1, config.caption_channels), encoder_attention_mask=ids(1, 1024),
        timestep=time, sigma=time, num_frames=frames, height=height, width=width, fps=24.0, audio_num_frames=1,
        video_coords=of(1, 3, tokens, 2, dtype=torch.float32), isolate_modalities=True, return_dict=False,
    )[0]  # fmt: skip


def call_hunyuan(network: nn.Module) -> Any:  # 480 x 848 pixels, 121 frames; no image and no quotations
    return network(
        hidden_states=of(1, 65, 31, 30, 53), timestep=of(1),
        encoder_hidden_states=of(1, 1000, 3584), encoder_attention_mask=of(1, 1000).fill_(1),
        encoder_hidden_states_2=of(1, 256, 1472), encoder_attention_mask_2=of(1, 256).zero_(),
        image_embeds=of(1, 729, 1152).zero_(), return_dict=False,
    )[0]  # fmt: skip


def call_qwen21(network: nn.Module, *, num_images: int = 1) -> Any:
    """The sample is the last of the images, each of four tokens for one that the text encoder sees of a source."""
    of_image, of_prompt = 4096, 1024 + (num_images - 1) * 4096 // 4
    return network(
        hidden_states=of(1, num_images * of_image, 64), timestep=of(1, dtype=torch.float32),
        encoder_hidden_states=of(1, of_prompt, 4096), img_shapes=[[(1, 64, 64)] * num_images],
        img_mask=torch.arange(of_prompt + of_image // 4)[None] >= 1024, return_dict=False,
    )[0]  # fmt: skip


def call_lumina(network: nn.Module) -> Any:
    return network(of(1, 16, 128, 128), of(1), of(1, 256, 2304), torch.ones(1, 256, dtype=torch.bool))


ONE_SOURCE = "1024 px, of one source"
SD3_ENCODERS = ("CLIP-L", "CLIP-bigG", "T5-XXL", "KL-16")
WAN = {"pipeline": "WanPipeline", "size": "480 x 832, 81 frames", "call": call_wan, "encoders": ("UMT5-XXL", "Wan VAE")}
WAN_I2V = {**WAN, "pipeline": "WanImageToVideoPipeline", "call": call_wan_i2v}
WAN_TI2V = {"size": "704 x 1280, 121 frames", "encoders": ("UMT5-XXL", "Wan 2.2 VAE"), "build": wan_ti2v}
CASES = {
    "sd15": Case(  # stable-diffusion-v1-5/stable-diffusion-v1-5
        "Stable Diffusion 1.5", "StableDiffusionPipeline",
        lambda: diffusers.UNet2DConditionModel(cross_attention_dim=768),
        lambda net: net(of(1, 4, 64, 64), ids(1), of(1, 77, 768)), ("CLIP-L", "KL"), size="512 px",
    ),
    # stabilityai/stable-diffusion-xl-base-1.0, stable-diffusion-3-medium-diffusers, stable-diffusion-3.5-medium, -large
    "sdxl": Case("SDXL", "StableDiffusionXLPipeline", sdxl, call_sdxl, ("CLIP-L", "CLIP-bigG", "KL")),
    "sd3": Case("SD3 medium", "StableDiffusion3Pipeline", lambda: sd3(24), call_sd3, SD3_ENCODERS),
    "sd35-medium": Case(
        "SD3.5 medium", "StableDiffusion3Pipeline",
        lambda: sd3(24, qk_norm="rms_norm", dual_attention_layers=tuple(range(13)), pos_embed_max_size=384),
        call_sd3, SD3_ENCODERS,
    ),
    "sd35": Case(
        "SD3.5 large", "StableDiffusion3Pipeline", lambda: sd3(38, qk_norm="rms_norm"), call_sd3, SD3_ENCODERS,
    ),
    "flux": Case(  # black-forest-labs/FLUX.1-dev
        "FLUX.1 dev", "FluxPipeline", lambda: diffusers.FluxTransformer2DModel(guidance_embeds=True), call_flux,
        ("CLIP-L", "T5-XXL", "KL-16"),
    ),
    "flux-kontext": Case(  # black-forest-labs/FLUX.1-Kontext-dev: a source's tokens behind those of the sample
        "FLUX.1 Kontext dev", "FluxKontextPipeline", lambda: diffusers.FluxTransformer2DModel(guidance_embeds=True),
        partial(call_flux, tokens=8192), ("CLIP-L", "T5-XXL", "KL-16"),
    ),
    # black-forest-labs/FLUX.2-dev, FLUX.2-klein-base-4B, -9B
    "flux2": Case(
        "FLUX.2 dev", "Flux2Pipeline", diffusers.Flux2Transformer2DModel, call_flux2, ("Mistral-Small-3.1", "KL-32"),
    ),
    "flux2-edit": Case(
        "FLUX.2 dev, edits", "Flux2Pipeline", diffusers.Flux2Transformer2DModel, partial(call_flux2, tokens=8192),
        ("Mistral-Small-3.1", "KL-32"), size=ONE_SOURCE,
    ),
    "flux2-klein-4b": Case(
        "FLUX.2 klein 4B", "Flux2KleinPipeline", klein_4b, call_flux2, ("Qwen3-4B", "KL-32"),
    ),
    "flux2-klein-4b-edit": Case(
        "FLUX.2 klein 4B, edits", "Flux2KleinPipeline", klein_4b, partial(call_flux2, tokens=8192),
        ("Qwen3-4B", "KL-32"), size=ONE_SOURCE,
    ),
    "flux2-klein-9b": Case(
        "FLUX.2 klein 9B", "Flux2KleinPipeline", klein_9b, call_flux2, ("Qwen3-8B", "KL-32"),
    ),
    "flux2-klein-9b-edit": Case(
        "FLUX.2 klein 9B, edits", "Flux2KleinPipeline", klein_9b, partial(call_flux2, tokens=8192),
        ("Qwen3-8B", "KL-32"), size=ONE_SOURCE,
    ),
    "chroma": Case(  # lodestones/Chroma1-HD
        "Chroma", "ChromaPipeline", diffusers.ChromaTransformer2DModel, call_chroma, ("T5-XXL", "KL-16"),
    ),
    "krea2": Case("Krea 2", "Krea2Pipeline", diffusers.Krea2Transformer2DModel, call_krea2, ("Qwen3-VL-4B", "Wan VAE")),
    "longcat-image": Case(  # meituan-longcat/LongCat-Image
        "LongCat-Image", "LongCatImagePipeline",
        lambda: diffusers.LongCatImageTransformer2DModel(num_layers=10, num_single_layers=20), call_longcat,
        ("Qwen2.5-VL-7B", "KL-16"),
    ),
    "longcat-image-edit": Case(  # meituan-longcat/LongCat-Image-Edit: 326 tokens of the picture before the prompt's
        "LongCat-Image-Edit", "LongCatImageEditPipeline",
        lambda: diffusers.LongCatImageTransformer2DModel(num_layers=10, num_single_layers=20),
        lambda net: net(of(1, 8192, 64), of(1, 838, 3584), of(1), of(8192, 3), of(838, 3)), ("Qwen2.5-VL-7B", "KL-16"),
    ),
    "wan-1.3b": Case(  # Wan-AI/Wan2.1-T2V-1.3B-Diffusers
        "Wan 2.1 1.3B", **WAN,
        build=lambda: diffusers.WanTransformer3DModel(num_attention_heads=12, ffn_dim=8960, num_layers=30),
    ),
    "wan-14b": Case("Wan 2.1 14B", build=diffusers.WanTransformer3DModel, **WAN),  # Wan-AI/Wan2.1-T2V-14B-Diffusers
    "wan-a14b": Case("Wan 2.2 A14B", build=diffusers.WanTransformer3DModel, num_networks=2, **WAN),
    "wan-i2v-14b": Case(  # Wan-AI/Wan2.1-I2V-14B-480P-Diffusers
        "Wan 2.1 I2V 14B", **{**WAN_I2V, "encoders": ("UMT5-XXL", "CLIP-H vision", "Wan VAE")},
        build=lambda: diffusers.WanTransformer3DModel(in_channels=36, image_dim=1280, added_kv_proj_dim=5120),
    ),
    "wan-i2v-a14b": Case(  # Wan-AI/Wan2.2-I2V-A14B-Diffusers
        "Wan 2.2 I2V A14B", **WAN_I2V, num_networks=2,
        build=lambda: diffusers.WanTransformer3DModel(in_channels=36),
    ),
    # Wan-AI/Wan2.2-TI2V-5B-Diffusers
    "wan-ti2v-5b": Case("Wan 2.2 TI2V 5B, from prompts", **{**WAN, **WAN_TI2V, "call": call_wan_ti2v}),
    "wan-ti2v-5b-image": Case(
        "Wan 2.2 TI2V 5B, from images",
        **{**WAN_I2V, **WAN_TI2V, "call": lambda net: call_wan_ti2v(net, 31 * 22 * 40)},
    ),
    "hunyuan-video-15": Case(  # hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_t2v
        "HunyuanVideo 1.5", "HunyuanVideo15Pipeline",
        lambda: diffusers.HunyuanVideo15Transformer3DModel(task_type="t2v"), call_hunyuan,
        ("Qwen2.5-VL-7B text", "ByT5", "Hunyuan VAE"), size="480 x 848, 121 frames",
    ),
    "ltx2": Case(  # Lightricks/LTX-2
        "LTX-2", "LTX2Pipeline", diffusers.LTX2VideoTransformer3DModel, call_ltx2,
        ("Gemma-3-12B", "LTX-2 connectors", "LTX-2 VAE"), size="512 x 768, 121 frames",
    ),
    "qwen-image-21": Case(  # Qwen/Qwen-Image-2.1
        "Qwen-Image 2.1", "QwenImage21Pipeline", diffusers.QwenImage21Transformer2DModel, call_qwen21,
        ("Qwen3-VL-8B", "Qwen-Image 2.1 VAE"),
    ),
    "qwen-image-21-edit": Case(
        "Qwen-Image 2.1, edits", "QwenImage21Pipeline", diffusers.QwenImage21Transformer2DModel,
        partial(call_qwen21, num_images=2), ("Qwen3-VL-8B", "Qwen-Image 2.1 VAE"), size=ONE_SOURCE,
    ),
    "qwen-image": Case(  # Qwen/Qwen-Image
        "Qwen-Image", "QwenImagePipeline", diffusers.QwenImageTransformer2DModel,
        lambda net: net(of(1, 4096, 64), of(1, 512, 3584), None, of(1), img_shapes=[[(1, 64, 64)]]),
        ("Qwen2.5-VL-7B", "Wan VAE"),
    ),
    # Qwen/Qwen-Image-Edit, -2511: a source's tokens behind those of the sample, and 1369 or 196 before the prompt's
    "qwen-image-edit": Case(
        "Qwen-Image-Edit", "QwenImageEditPipeline", diffusers.QwenImageTransformer2DModel,
        lambda net: net(of(1, 8192, 64), of(1, 1881, 3584), None, of(1), img_shapes=[[(1, 64, 64)] * 2]),
        ("Qwen2.5-VL-7B", "Wan VAE"),
    ),
    "qwen-image-edit-2511": Case(
        "Qwen-Image-Edit-2511", "QwenImageEditPlusPipeline",
        lambda: diffusers.QwenImageTransformer2DModel(zero_cond_t=True),
        lambda net: net(of(1, 8192, 64), of(1, 708, 3584), None, of(1), img_shapes=[[(1, 64, 64)] * 2]),
        ("Qwen2.5-VL-7B", "Wan VAE"), size=ONE_SOURCE,
    ),
    "z-image": Case(  # Tongyi-MAI/Z-Image
        "Z-Image", "ZImagePipeline", diffusers.ZImageTransformer2DModel,
        lambda net: net([of(16, 1, 128, 128)], of(1), [of(512, 2560)]), ("Qwen3-4B", "KL-16"),
    ),
    "sana": Case(  # Efficient-Large-Model/Sana_1600M_1024px_diffusers
        "Sana 1.6B", "SanaPipeline", diffusers.SanaTransformer2DModel,
        lambda net: net(of(1, 32, 32, 32), of(1, 300, 2304), of(1), encoder_attention_mask=of(1, 300)),
        ("Gemma-2-2B", "DC-AE"),
    ),
    "lumina2": Case(  # Alpha-VLLM/Lumina-Image-2.0
        "Lumina Image 2.0", "Lumina2Pipeline", lambda: diffusers.Lumina2Transformer2DModel(cap_feat_dim=2304),
        call_lumina, ("Gemma-2-2B", "KL-16"),
    ),
    "amused": Case(  # amused/amused-512; gradient checkpointing: huggingface/diffusers#11214
        "aMUSEd-512", "AmusedPipeline", lambda: diffusers.UVit2DModel(downsample=True, upsample=True),
        lambda net: net(ids(1, 32, 32), of(1, 77, 768), of(1, 768), of(1, 5)), ("CLIP-L", "VQ"), size="512 px",
        checkpointing=False,
    ),
    "meissonic": Case(  # MeissonFlow/Meissonic
        "Meissonic", "MeissonicPipeline", lambda: MeissonicTransformer2DModel(downsample=True, upsample=True),
        lambda net: net(ids(1, 64, 64), of(1, 77, 1024), of(1, 1024), of(1), of(1, 5)), ("CLIP-H", "VQ"),
    ),
}  # fmt: skip


# ---- The table ----


def row(case: Case) -> list[str]:
    """The table's cells for one model."""
    with torch.device("meta"):
        targets = FAMILIES[case.pipeline].lora_target_modules if case.pipeline in FAMILIES else ATTENTION
        network = with_adapter(case.build(), targets, case.checkpointing)
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in network.parameters() if not p.requires_grad)
    linear = [m.weight.numel() for m in network.modules() if isinstance(m, nn.Linear) and not m.weight.requires_grad]
    saved = case.num_networks * (2 - BYTES_OF_4_BITS) * sum(linear)
    # A network that waits for its turn: its weights, and its adapter with gradients and moments.
    peak = peak_of(network, case.call) + (case.num_networks - 1) * (2 * frozen + 16 * trained)
    training, quantised = f"{peak / GB:.1f}", f"{(peak - saved + 2 * max(linear)) / GB:.1f}"
    return [
        case.model, case.size, f"{case.num_networks * frozen / GB:.2f}", f"{case.num_networks * trained / 1e6:.1f}",
        f"{2 * case.num_networks * frozen / GB:.1f}", training,
        f"{(2 * case.num_networks * frozen - saved) / GB:.1f}", quantised, f"{encoder_bytes(case) / GB:.1f}",
    ]  # fmt: skip


def peak_of(network: nn.Module, call: Callable[[nn.Module], Any]) -> int:
    """Bytes at most in a step of a network on the meta device, whose tensors become fake ones."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        make_fake(network)
        memory = PeakMemory()
        with NumbersBesideShapes():
            step(network, call, memory)
    return memory.peak


def encoder_bytes(case: Case) -> int:
    """Of text encoders in bfloat16 and image encoders in float32."""
    return sum(ENCODERS[name] * (4 if name in IMAGE_ENCODERS else 2) for name in case.encoders)


HEADER = (
    "model", "size", "parameters, 10^9", "trained, 10^6", "weights, GB", "LoRA training, GB", "4-bit weights, GB",
    "4-bit LoRA training, GB", "encoders, GB",
)  # fmt: skip


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", choices=CASES, help="one model only")
    family = parser.parse_args().family
    print(f"| {' | '.join(HEADER)} |", f"|---|---|{'---:|' * (len(HEADER) - 2)}", sep="\n")
    for case in CASES.values() if family is None else [CASES[family]]:
        print(f"| {' | '.join(row(case))} |", flush=True)


if __name__ == "__main__":
    main()
