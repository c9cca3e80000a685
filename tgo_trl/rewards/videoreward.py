"""VideoReward: Qwen2-VL read at three tokens, trained on people's choices between generated videos (arXiv 2501.13918).

Covers inference with the published checkpoint; the file of the prompt is VideoAlign's, under the licence beside it.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, inject_adapter_in_model
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, PreTrainedTokenizerFast, Qwen2VLConfig, Qwen2VLModel

from ..media.types import Size
from .base import ModelReward, load_images, load_pt_file, local_version
from .networks import network_from_weights, normalize

AXES = ("VQ", "MQ", "TA")
REWARD_TOKENS = tuple(f"<|{axis}_reward|>" for axis in AXES)
VIDEO_TOKEN = "<|video_pad|>"

TASK = Path(__file__).with_name("videoreward_prompt.txt").read_text(encoding="utf-8")
CHAT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n<|vision_start|>{video}<|vision_end|>{task}<|im_end|>\n"
    "<|im_start|>assistant\n"
)
"""What Qwen2-VL's chat template makes of one user's message of a video and a text."""

MIN_FRAMES, MAX_FRAMES = 4, 768
MIN_PIXELS = 128 * 28 * 28
"""Of a frame of a video."""

MAX_ASPECT_RATIO = 200


class VideoReward(ModelReward):
    r"""`\sum_a (r_a - \mu_a) / \sigma_a` over the axes `a`: visual quality, motion quality and text alignment.

    `r_a` is linear in the network's last state at the token of that axis. Two frames per second are seen, at least 4,
    each resized (bicubic) to 100,352 to 200,704 pixels with sides that are multiples of 28.

    Args:
        model_id: the folder or repository of `model_config.json` and of the folder `checkpoint`.
        checkpoint: where `model.pth` and `tokenizer/tokenizer.json` are.
        base: Qwen2-VL's configuration, by Hub id or folder; its weights are in the checkpoint.
        fps: frames per second of the videos that it is called with.
        axes: those that are summed, of `"VQ"`, `"MQ"` and `"TA"`.
        batch_size: videos per forward pass.
        kwargs: as for [`ModelReward`].

    Raises:
        ValueError: if `fps` or `axes` cannot be.
    """

    name = "videoreward"
    license = "Apache-2.0 (weights, and Qwen2-VL-2B); MIT (prompt)"

    def __init__(
        self,
        model_id: str = "KlingTeam/VideoReward",
        *,
        checkpoint: str = "checkpoint-11352",
        base: str = "Qwen/Qwen2-VL-2B-Instruct",
        fps: float | None = None,
        axes: Sequence[str] = AXES,
        batch_size: int = 4,
        **kwargs: Any,
    ) -> None:
        super().__init__(model_id, batch_size=batch_size, **kwargs)
        if fps is not None and not 0 < fps < math.inf:
            raise ValueError(f"`fps` is {fps}; it must be above 0.")
        if not axes or not set(axes) <= set(AXES) or isinstance(axes, str):
            raise ValueError(f"`axes` is {axes!r}; it must be a list of some of {', '.join(AXES)}.")
        self.checkpoint = checkpoint
        self.base = base
        self.fps = fps
        self.axes = tuple(axes)

    @property
    def version(self) -> str:
        """Repository, commit, checkpoint, the axes if not all are summed, and the base, without its path."""
        own = self._version_of(self.checkpoint, "model_config.json")
        chosen = "" if set(self.axes) == set(AXES) else f" ({'+'.join(self.axes)})"
        return f"{own}/{self.checkpoint}{chosen}, base {local_version(self.base)}"

    def __call__(
        self, prompts: Sequence[str], images: Sequence[Sequence[Any]], sources: Sequence[Sequence[Any]] | None = None
    ) -> list[float]:
        """The score of each video.

        Args:
            prompts: `N` prompts.
            images: `N` videos, each a list of frames of one size, `fps` per second.
            sources: not read.

        Raises:
            ValueError: if `fps` is not known, there are not as many prompts as videos, a video has fewer than 2
                frames or frames of several sizes, or a prompt has one of the tokens that the network is read at.
        """
        if self.fps is None:
            raise ValueError(
                "The videos are lists of frames, which do not tell how fast they are shown. Give the reward their "
                "frames per second: `load_reward('videoreward', fps=16)`."
            )
        return super().__call__(prompts, images)

    def _load(self) -> None:
        settings = json.loads(self._weights_file("model_config.json").read_text())
        _check_settings(settings)
        self._max_pixels = int(settings["data_config"]["max_frame_pixels"])
        self._sampled_fps = float(settings["data_config"]["fps"])
        norms = settings["inference_config"]
        self._mean, self._std = (
            torch.tensor([norms[f"{axis}_{part}"] for axis in AXES], device=self.device) for part in ("mean", "std")
        )
        tokenizer_class: Any = PreTrainedTokenizerFast
        self._tokenizer = tokenizer_class(
            tokenizer_file=str(self._weights_file(f"{self.checkpoint}/tokenizer/tokenizer.json"))
        )
        vocabulary = self._tokenizer.get_vocab()
        missing = [token for token in (*REWARD_TOKENS, VIDEO_TOKEN) if token not in vocabulary]
        if missing:
            raise ValueError(
                f"The tokenizer of {self.version!r} has no tokens {', '.join(missing)}. Name VideoReward's."
            )
        self._reward_ids = torch.tensor([vocabulary[token] for token in REWARD_TOKENS], device=self.device)
        weights = load_pt_file(self._weights_file(f"{self.checkpoint}/model.pth"))
        network, head = qwen_from_original(
            weights, AutoConfig.from_pretrained(self.base), settings["peft_lora_config"], self.dtype
        )
        self._network: Qwen2VLModel = network.to(self.device)
        self._head = head.to(self.device)

    def _score_batch(self, prompts: Sequence[str], images: Sequence[Any]) -> Tensor:
        rewards = (self._raw(prompts, images) - self._mean) / self._std
        return rewards[:, [AXES.index(axis) for axis in self.axes]].sum(-1)

    def _raw(self, prompts: Sequence[str], videos: Sequence[Sequence[Any]]) -> Tensor:
        """Float32 `[N, 3]`, the reward on each axis before it is normalised."""
        inputs = [self._video_inputs(i, video) for i, video in enumerate(videos)]
        vision: Any = self._network.config.vision_config
        merged = vision.spatial_merge_size**2
        rows = [self._token_ids(p, len(patches) // merged) for p, (patches, _) in zip(prompts, inputs, strict=True)]
        ids, states = last_states(
            self._network,
            rows,
            pixel_values_videos=torch.cat([patches for patches, _ in inputs]),
            video_grid_thw=torch.tensor([grid for _, grid in inputs]),
        )
        at_tokens = states[torch.isin(ids, self._reward_ids)].view(len(rows), len(AXES), -1)
        logits = F.linear(at_tokens.float(), self._head)
        return logits[..., 0] if logits.shape[-1] == 1 else logits.diagonal(dim1=1, dim2=2)

    def _video_inputs(self, i: int, video: Sequence[Any]) -> tuple[Tensor, tuple[int, int, int]]:
        assert self.fps is not None
        frames = load_images([video[k] for k in frame_indices(len(video), self.fps, self._sampled_fps)])
        sizes = dict.fromkeys(frame.size for frame in frames)
        if len(sizes) > 1:
            shown = ", ".join(f"{width} x {height}" for width, height in sizes)
            raise ValueError(
                f"Video {i} of a batch has frames of different sizes ({shown} pixels). Resize them to one."
            )
        return video_patches(frames, self._max_pixels, self._network.config)

    def _token_ids(self, prompt: str, num_video_tokens: int) -> Tensor:
        """Int64 `[L]`."""
        found = [token for token in (*REWARD_TOKENS, VIDEO_TOKEN) if token in prompt]
        if found:
            raise ValueError(f"The prompt {prompt!r} has {found[0]!r}, which VideoReward reads itself. Leave it out.")
        task = TASK.replace("{text_prompt}", prompt)
        text = CHAT.replace("{video}", VIDEO_TOKEN * num_video_tokens).replace("{task}", task)
        return torch.tensor(self._tokenizer(text, add_special_tokens=False)["input_ids"])


def last_states(network: Qwen2VLModel, rows: Sequence[Tensor], **seen: Tensor) -> tuple[Tensor, Tensor]:
    """Token ids, padded, int64 `[N, L]`, and the network's last states at them, `[N, L, D]`.

    Args:
        network: trained with the place in the sequence for all three coordinates of Qwen2-VL's positions.
        rows: the token ids of each row.
        seen: patches of all rows and the grid of each, by the network's names for them.
    """
    device = network.device
    ids = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True).to(device)
    of_media: dict[str, Any] = {
        name: tensor.to(device, network.dtype) if tensor.is_floating_point() else tensor.to(device)
        for name, tensor in seen.items()
    }
    states: Tensor = network(
        input_ids=ids,
        attention_mask=None,  # padding is to the right, where causal attention never looks
        position_ids=torch.arange(ids.shape[1], device=device).expand(3, *ids.shape),
        use_cache=False,
        **of_media,
    ).last_hidden_state
    return ids, states


def frame_indices(num_frames: int, fps: float, sampled_fps: float = 2.0) -> list[int]:
    """The frames that VideoReward sees: evenly spread from the first to the last, an even number of them.

    Raises:
        ValueError: if there are fewer than 2 frames.
    """
    if num_frames < 2:
        raise ValueError(f"The video has {num_frames} frames; VideoReward judges motion and needs at least 2.")
    most = min(MAX_FRAMES, num_frames) // 2 * 2
    wanted = min(max(num_frames / fps * sampled_fps, MIN_FRAMES), most)
    indices: list[int] = torch.linspace(0, num_frames - 1, 2 * round(wanted / 2)).round().long().tolist()
    return indices


def frame_size(size: Size, max_pixels: int, multiple: int = 28, min_pixels: int = MIN_PIXELS) -> Size:
    """Height and width that frames are resized to: multiples of `multiple`, with about the same ratio.

    Args:
        size: height and width.
        max_pixels: of a frame.
        multiple: what the network makes one token of.
        min_pixels: of a frame; smaller ones are enlarged.

    Raises:
        ValueError: if one side is more than 200 times the other.
    """
    if max(size) > MAX_ASPECT_RATIO * min(size):
        raise ValueError(f"Frames of {size[1]} x {size[0]} pixels are too long for Qwen2-VL: at most 200 to 1.")
    height, width = (max(multiple, round(side / multiple) * multiple) for side in size)
    area = size[0] * size[1]
    if height * width > max_pixels:
        scale = math.sqrt(area / max_pixels)  # divided by, as the original does: where 16 * 28 is met, rounding decides
        height, width = (math.floor(side / scale / multiple) * multiple for side in size)
    elif height * width < min_pixels:
        scale = math.sqrt(min_pixels / area)
        height, width = (math.ceil(side * scale / multiple) * multiple for side in size)
    return height, width


def video_patches(
    frames: Sequence[Image.Image], max_pixels: int, config: Qwen2VLConfig
) -> tuple[Tensor, tuple[int, int, int]]:
    """What Qwen2-VL sees of a video: patches over two frames, those that are merged to one token next to each other.

    Args:
        frames: an even number of RGB images of one size.
        max_pixels: as for [`frame_size`].
        config: of the network.

    Returns:
        float32 `[T * H * W, 3 * 2 * 14 * 14]`, normalised by CLIP's mean and standard deviation, and the numbers of
        patches `(T, H, W)` along time, height and width.
    """
    vision: Any = config.vision_config
    patch, merge, span = vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size
    size = frame_size((frames[0].height, frames[0].width), max_pixels, patch * merge)
    pixels = torch.from_numpy(np.stack([np.array(frame) for frame in frames])).permute(0, 3, 1, 2).float()
    if size != pixels.shape[2:]:
        pixels = F.interpolate(pixels, size, mode="bicubic", align_corners=False, antialias=True)
        pixels = pixels.clamp(0, 255).round()  # as the original does, which resizes 8 bits
    pixels = normalize(pixels / 255)
    grid = (len(frames) // span, size[0] // patch, size[1] // patch)
    blocks = pixels.view(
        grid[0], span, 3, grid[1] // merge, merge, patch, grid[2] // merge, merge, patch
    )  # T, t, C, H, h, y, W, w, x
    return blocks.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(math.prod(grid), -1), grid


def qwen_from_original(
    weights: Mapping[str, Tensor], config: Any, lora_config: Mapping[str, Any], dtype: torch.dtype
) -> tuple[Any, Tensor]:
    """The network of VideoReward's `model.pth`, on the CPU, and its reward head.

    The adapters are kept beside the weights that they change: those are bfloat16, in which most of the small changes
    that the adapters make would be lost.

    Args:
        weights: the state dictionary of a Qwen2-VL of transformers 4.45 with a linear layer `rm_head`, within peft.
        config: of the base; the vocabulary's size is read off the weights.
        lora_config: `peft_lora_config` of `model_config.json`.
        dtype: of the network.

    Returns:
        The network, and the head, float32 `[1, D]` (one for all axes) or `[3, D]`.

    Raises:
        ValueError: if the weights are not of such a network.
    """
    named = {name.removeprefix("base_model.model."): tensor for name, tensor in weights.items()}
    head = named.pop("rm_head.weight", None)
    embeddings = named.get("model.embed_tokens.weight")
    if head is None or embeddings is None or len(head) not in (1, len(AXES)):
        raise ValueError(
            "The checkpoint is not VideoReward's: it needs 'rm_head.weight' with 1 or 3 rows and "
            "'model.embed_tokens.weight'. Name the full `model.pth`, as on KlingTeam/VideoReward."
        )
    output_embeddings = named.pop("lm_head.weight", None)
    if config.tie_word_embeddings and output_embeddings is not None:
        # One tensor under two names, of which the original reads this one last, should they ever differ.
        named["model.embed_tokens.weight"] = output_embeddings
    named = {"language_" + name if name.startswith("model.") else name: tensor for name, tensor in named.items()}
    adapters = {name: tensor for name, tensor in named.items() if ".lora_" in name}
    config.text_config.vocab_size = len(embeddings)
    network = network_from_weights(
        Qwen2VLModel,
        config,
        {name.replace(".base_layer.", "."): tensor for name, tensor in named.items() if name not in adapters},
        dtype,
    )
    if adapters:
        _add_adapters(network, adapters, lora_config)
    return network.requires_grad_(False).eval(), head.float()


def _add_adapters(network: Any, adapters: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    modules = {name.partition(".lora_")[0] for name in adapters}
    settings = LoraConfig(
        r=config["lora_r"],
        lora_alpha=config["lora_alpha"],
        use_rslora=config["use_rslora"],
        target_modules=sorted(modules),
    )
    inject_adapter_in_model(settings, network)
    try:
        missing, left = network.load_state_dict(adapters, strict=False)
    except RuntimeError as error:
        raise ValueError(f"The adapters do not fit `lora_r` of model_config.json ({error}).") from error
    left += [name for name in missing if ".lora_" in name]
    if left:
        raise ValueError(f"The checkpoint's adapters do not fit the network: {', '.join(left[:5])}.")


def _check_settings(settings: Mapping[str, Any]) -> None:
    expected = {
        "eval_dim": list(AXES),
        "prompt_template_type": "detailed_special",
        "sample_type": "uniform",
        "num_frames": None,
    }
    data = settings.get("data_config", {})
    others = [f"{key} {data.get(key)!r}" for key, value in expected.items() if data.get(key) != value]
    others += [f"no {key}" for key in ("data_config", "inference_config", "peft_lora_config") if key not in settings]
    if others:
        raise ValueError(
            f"`model_config.json` is of another reward than the published VideoReward ({', '.join(others)}). Only that "
            "one's prompt and choice of frames are known here."
        )
