"""ImageReward: a BLIP that reads prompt and image together, trained on rankings by people (arXiv 2304.05977)."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AddedToken, BertTokenizer, BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

from .aesthetic import linear_head, openai_pixels
from .base import PromptReward, load_images, load_pt_file
from .networks import network_from_weights, normalize, resized_square

MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Of the network's outputs on the authors' data; scores come out with mean 0 and standard deviation 1 there."""

HEAD_WIDTH = 64
"""Of an attention head in every vision transformer of BLIP; the weights do not show it."""

_VISION = "blip.visual_encoder."
_TEXT = "blip.text_encoder."
_HEAD = "mlp."
_VISION_NAMES = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj.": "embeddings.patch_embedding.",
    "norm.": "post_layernorm.",
    "blocks.": "encoder.layers.",
}
_BLOCK_NAMES = {
    ".norm1.": ".layer_norm1.",
    ".norm2.": ".layer_norm2.",
    ".attn.": ".self_attn.",
    ".proj.": ".projection.",
}


class ImageReward(PromptReward):
    r"""`(MLP(h) - \mu) / \sigma` of the state `h` at the first token of a prompt that attends to the image.

    The image's shorter side is resized to 224 pixels (bicubic) and the centre is cropped; prompts are cut after 35
    tokens, with a warning at the first.

    Args:
        model_id: the folder or repository of `ImageReward.pt` and `med_config.json`.
        tokenizer: BERT's, by Hub id or folder.
        kwargs: as for [`ModelReward`].
    """

    name = "imagereward"
    differentiable = True
    license = "Apache-2.0"
    _max_tokens = 35

    def __init__(
        self,
        model_id: str = "zai-org/ImageReward",
        *,
        tokenizer: str = "google-bert/bert-base-uncased",
        **kwargs: Any,
    ) -> None:
        super().__init__(model_id, **kwargs)
        self.tokenizer = tokenizer

    def _load(self) -> None:
        weights = load_pt_file(self._weights_file("ImageReward.pt"))
        config = json.loads(self._weights_file("med_config.json").read_text())
        self._tokenizer = BertTokenizer.from_pretrained(self.tokenizer)
        self._tokenizer.add_tokens([AddedToken(token, special=True) for token in ("[DEC]", "[ENC]")])
        if len(self._tokenizer) != config["vocab_size"]:
            raise ValueError(
                f"The tokenizer {self.tokenizer!r} has {len(self._tokenizer)} tokens with BLIP's two, but the network "
                f"has {config['vocab_size']}. Name the tokenizer 'google-bert/bert-base-uncased'."
            )
        vision, text = blip_from_original(weights, config)
        self._vision: BlipVisionModel = vision.to(device=self.device, dtype=self.dtype)
        self._text: BlipTextModel = text.to(device=self.device, dtype=self.dtype)
        self._head = linear_head(_below(weights, _HEAD)).requires_grad_(False).to(self.device)

    def _score_batch(self, prompts: Sequence[str], images: Sequence[Any]) -> Tensor:
        size: Any = self._vision.config.image_size
        return self._score_inputs(prompts, torch.stack([openai_pixels(image, size) for image in load_images(images)]))

    def _score_pixels(self, prompts: Sequence[str], pixels: Tensor) -> Tensor:
        size: Any = self._vision.config.image_size
        return self._score_inputs(prompts, normalize(resized_square(pixels, size, round)))

    def _score_inputs(self, prompts: Sequence[str], inputs: Tensor) -> Tensor:
        seen = self._vision(pixel_values=inputs.to(self.device, self.dtype)).last_hidden_state
        read = self._text(**self._tokens(prompts), encoder_hidden_states=seen).last_hidden_state
        outputs: Tensor = self._head(read[:, 0].float())
        return (outputs[:, 0] - MEAN) / STD

    def _name_cut(self, prompt: str) -> str:
        return f"of this one and maybe of others: {prompt!r}"


def blip_from_original(weights: Mapping[str, Tensor], med_config: Mapping[str, Any]) -> tuple[Any, Any]:
    """The image encoder and the text encoder with cross attention, float32, of ImageReward's own state dictionary.

    BLIP's projections to the space of its contrastive loss are in the file, and are left out.

    Args:
        weights: of `ImageReward.pt`.
        med_config: the content of `med_config.json`, which configures the text encoder. Its `encoder_width` is not
            right, in the original too, and is read off the weights.

    Raises:
        ValueError: if the weights are not of these networks.
    """
    vision = {_vision_name(name): tensor for name, tensor in _below(weights, _VISION).items()}
    text = {name: tensor for name, tensor in _below(weights, _TEXT).items() if not name.endswith("position_ids")}
    if "embeddings.patch_embedding.weight" not in vision or "embeddings.position_embedding" not in vision:
        raise ValueError(
            "The file has no weights named 'blip.visual_encoder...'. Name ImageReward's own, as on zai-org/ImageReward."
        )
    vision_config = _vision_config(vision)
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    others = ("max_position_embeddings", "hidden_act", "layer_norm_eps", "pad_token_id")
    text_config = BlipTextConfig(
        **{key: med_config[key] for key in (*sizes, *others)},
        encoder_hidden_size=vision_config.hidden_size,
        is_decoder=True,  # which only gives it cross attention; the call is bidirectional
    )
    return (
        network_from_weights(BlipVisionModel, vision_config, vision),
        network_from_weights(BlipTextModel, text_config, text, add_pooling_layer=False),
    )


def _vision_config(weights: Mapping[str, Tensor]) -> BlipVisionConfig:
    patches = weights["embeddings.patch_embedding.weight"]
    num_patches = weights["embeddings.position_embedding"].shape[1] - 1
    blocks = [name for name in weights if name.endswith(".mlp.fc1.weight")]
    return BlipVisionConfig(
        hidden_size=patches.shape[0],
        intermediate_size=weights[blocks[0]].shape[0] if blocks else patches.shape[0],
        num_hidden_layers=len(blocks),
        num_attention_heads=patches.shape[0] // HEAD_WIDTH,
        image_size=patches.shape[-1] * math.isqrt(num_patches),
        patch_size=patches.shape[-1],
        hidden_act="gelu",
        layer_norm_eps=1e-6,  # transformers' default for BLIP is 1e-5
    )


def _vision_name(name: str) -> str:
    for start, replacement in _VISION_NAMES.items():
        if name.startswith(start):
            name = replacement + name.removeprefix(start)
            break
    if name.startswith("encoder.layers."):
        for part, replacement in _BLOCK_NAMES.items():
            name = name.replace(part, replacement)
    return name


def _below(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
