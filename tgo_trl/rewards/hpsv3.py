"""HPSv3: Qwen2-VL read at one token, trained on people's choices between images (arXiv 2508.03789).

Covers inference with the published checkpoint; the file of the prompt is HPSv3's, under the licence beside it.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedTokenizerFast, Qwen2VLModel

from .base import ModelReward, hub_file, load_images, local_version
from .networks import network_from_weights
from .videoreward import CHAT, frame_size, last_states, video_patches

REWARD_TOKEN = "<|Reward|>"
IMAGE_TOKEN = "<|image_pad|>"
NUM_PIXELS = 256 * 28 * 28
"""Of an image as the network sees it, up to sides that are multiples of 28."""

TASK = Path(__file__).with_name("hpsv3_prompt.txt").read_text(encoding="utf-8")


class HPSv3(ModelReward):
    r"""The mean `\mu` of the preference score, of which the head also gives an uncertainty that is not used.

    `(\mu, \sigma)` is an MLP of the network's last state at the token `<|Reward|>`.

    Args:
        model_id: the folder or repository of `HPSv3.safetensors`.
        base: Qwen2-VL's configuration and tokenizer, by Hub id or folder; its weights are in the checkpoint.
        batch_size: images per forward pass.
        kwargs: as for [`ModelReward`].
    """

    name = "hpsv3"
    license = "MIT (code and prompt); Apache-2.0 (weights, by a stored copy of their card, and Qwen2-VL-7B)"

    def __init__(
        self,
        model_id: str = "MizzenAI/HPSv3",
        *,
        base: str = "Qwen/Qwen2-VL-7B-Instruct",
        batch_size: int = 4,
        **kwargs: Any,
    ) -> None:
        super().__init__(model_id, batch_size=batch_size, **kwargs)
        self.base = base

    @property
    def version(self) -> str:
        """Repository and commit, and the base whose configuration and tokenizer are taken, without its path."""
        return f"{super().version}, base {local_version(self.base)}"

    def _load(self) -> None:
        tokenizer_class: Any = PreTrainedTokenizerFast
        self._tokenizer = tokenizer_class(tokenizer_file=str(hub_file(self.base, "tokenizer.json")[0]))
        self._tokenizer.add_special_tokens({"additional_special_tokens": [REWARD_TOKEN]})
        self._reward_id = int(self._tokenizer.convert_tokens_to_ids(REWARD_TOKEN))
        weights = load_file(self._weights_file("HPSv3.safetensors"))
        network, head = qwen_and_head(weights, AutoConfig.from_pretrained(self.base), self.dtype)
        self._network: Qwen2VLModel = network.to(self.device)
        self._head = head.to(self.device)

    def _score_batch(self, prompts: Sequence[str], images: Sequence[Any]) -> Tensor:
        return self._outputs(prompts, images)[:, 0]

    def _outputs(self, prompts: Sequence[str], images: Sequence[Any]) -> Tensor:
        """Float32 `[N, 2]`: mean and uncertainty."""
        inputs = [image_patches(image, self._network.config) for image in load_images(images)]
        vision: Any = self._network.config.vision_config
        merged = vision.spatial_merge_size**2
        rows = [self._token_ids(p, len(patches) // merged) for p, (patches, _) in zip(prompts, inputs, strict=True)]
        # The original embeds the image itself, so that in training the network took plain places for positions.
        ids, states = last_states(
            self._network,
            rows,
            pixel_values=torch.cat([patches for patches, _ in inputs]),
            image_grid_thw=torch.tensor([grid for _, grid in inputs]),
        )
        outputs: Tensor = self._head(states[ids == self._reward_id].float())
        return outputs

    def _token_ids(self, prompt: str, num_image_tokens: int) -> Tensor:
        """Int64 `[L]`."""
        found = [it.content for it in self._tokenizer.added_tokens_decoder.values() if it.content in prompt]
        if found:
            raise ValueError(f"The prompt {prompt!r} has {found[0]!r}, which HPSv3 reads itself. Leave it out.")
        task = TASK.replace("{text_prompt}", prompt)
        text = CHAT.replace("{video}", IMAGE_TOKEN * num_image_tokens).replace("{task}", task)
        return torch.tensor(self._tokenizer(text, add_special_tokens=False)["input_ids"])


def image_patches(image: Image.Image, config: Any) -> tuple[Tensor, tuple[int, int, int]]:
    """What the network sees of an RGB image, resized (bicubic) to about 200,704 pixels: as [`video_patches`]."""
    height, width = frame_size((image.height, image.width), NUM_PIXELS, min_pixels=NUM_PIXELS)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    return video_patches([resized] * config.vision_config.temporal_patch_size, height * width, config)


def qwen_and_head(weights: Mapping[str, Tensor], config: Any, dtype: torch.dtype) -> tuple[Any, nn.Sequential]:
    """The network of `HPSv3.safetensors`, on the CPU, and its head, float32, from `D` to mean and uncertainty.

    Args:
        weights: of a `Qwen2VLForConditionalGeneration` with an `rm_head`, by the names of transformers before or since
            4.52.
        config: of the base; the vocabulary's size is read off the weights.
        dtype: of the network.

    Raises:
        ValueError: if the weights are not of such a network.
    """
    named = {_name(name): tensor for name, tensor in weights.items() if name != "lm_head.weight"}
    head_weights = {name.removeprefix("rm_head."): named.pop(name) for name in list(named) if name[:8] == "rm_head."}
    embeddings = named.get("language_model.embed_tokens.weight")
    shapes = {name: tuple(tensor.shape) for name, tensor in head_weights.items() if name.endswith("weight")}
    if embeddings is None or shapes != {
        "0.weight": (1024, embeddings.shape[1]), "3.weight": (16, 1024), "5.weight": (2, 16)
    }:  # fmt: skip
        raise ValueError(
            f"The checkpoint is not HPSv3's, which has embeddings of tokens and an `rm_head` of linear layers, to "
            f"1024, 16 and 2; its head is {shapes or 'missing'}. Name the `HPSv3.safetensors` of MizzenAI/HPSv3."
        )
    config.text_config.vocab_size = len(embeddings)
    network = network_from_weights(Qwen2VLModel, config, named, dtype)
    head = nn.Sequential(
        nn.Linear(embeddings.shape[1], 1024), nn.ReLU(), nn.Identity(), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 2)
    )  # the third is dropout in training
    head.load_state_dict(head_weights)
    return network, head.float().requires_grad_(False).eval()


def _name(name: str) -> str:
    """What `Qwen2VLModel` calls a weight."""
    name = re.sub(r"^model\.(?=visual\.|language_model\.)", "", name)
    return re.sub(r"^model\.", "language_model.", name)
