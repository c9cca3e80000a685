"""Tokenizers, text encoders and autoencoders that several tiny pipelines share.

The tokenizers spell: a token a letter, so that other prompts have other ids and longer prompts more of them.
"""

import math
from collections.abc import Sequence

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, VQModel
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GemmaTokenizer,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PreTrainedTokenizerBase,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLTextModel,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
LETTERS = [chr(byte) for byte in PRINTABLE] + [chr(256 + i) for i in range(256 - len(PRINTABLE))]
"""The letters that byte-level tokenizers write the 256 bytes with."""

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

DECODER = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,  # with the usual 0.02, so narrow layers would hardly read the tokens before
}
QWEN_ROPE = {"mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 1e6}


def ready(pipeline: DiffusionPipeline) -> DiffusionPipeline:
    """The pipeline as if loaded, with all of it in evaluation, and without a progress bar."""
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.eval()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


# ---- Tokenizers ----


def clip_tokenizer() -> CLIPTokenizer:
    """Byte-level, without merges."""
    tokens = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(letter + "</w>" for letter in LETTERS)]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=77)


def t5_tokenizer() -> T5Tokenizer:
    """ASCII letters, spaces, and an end."""
    scores = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((chr(c), -3.0) for c in range(33, 127))]
    return T5Tokenizer(vocab=scores, extra_ids=0, model_max_length=1024)


def qwen_tokenizer(words: Sequence[str] = (), special: Sequence[str] = ()) -> Qwen2Tokenizer:
    """Byte-level, with a chat template, and one token for each of some words, which may start with their space."""
    tokenizer = Qwen2Tokenizer(vocab={letter: i for i, letter in enumerate(LETTERS)}, merges=[], model_max_length=1024)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", *special]})
    tokenizer.add_tokens(["system", "user", "assistant", *words])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def gemma_tokenizer(words: Sequence[str] = ()) -> GemmaTokenizer:
    """A start, bytes, and one token for each of some words, which may start with their space."""
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = GemmaTokenizer(vocab=vocab, add_bos_token=True, model_max_length=1024)
    tokenizer.add_tokens(list(words))
    return tokenizer


# ---- Text encoders ----


def _clip_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=32,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def clip_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """32 wide, two layers."""
    return CLIPTextModel(_clip_config(tokenizer)).eval()


def clip_encoder_with_projection(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    """32 wide, two layers, with an embedding of the whole prompt of 32."""
    return CLIPTextModelWithProjection(_clip_config(tokenizer)).eval()


def _t5_arguments(tokenizer: PreTrainedTokenizerBase, width: int) -> dict:
    return {
        "vocab_size": len(tokenizer),
        "d_model": width,
        "d_kv": 8,
        "d_ff": 37,
        "num_layers": 2,
        "num_heads": 4,
        "is_encoder_decoder": False,
        "use_cache": False,
    }


def t5_encoder(tokenizer: T5Tokenizer, width: int = 32) -> T5EncoderModel:
    """Two layers."""
    return T5EncoderModel(T5Config(**_t5_arguments(tokenizer, width))).eval()


def umt5_encoder(tokenizer: T5Tokenizer, width: int = 32) -> UMT5EncoderModel:
    """Two layers, each with its own position bias."""
    return UMT5EncoderModel(UMT5Config(**_t5_arguments(tokenizer, width))).eval()


def _vocabulary(tokenizer: PreTrainedTokenizerBase) -> dict:
    return {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def qwen3_lm(tokenizer: Qwen2Tokenizer, num_layers: int) -> Qwen3ForCausalLM:
    """16 wide, with a head of the vocabulary."""
    layers = {**DECODER, "num_hidden_layers": num_layers}
    return Qwen3ForCausalLM(Qwen3Config(**layers, **_vocabulary(tokenizer), head_dim=8)).eval()


def qwen3_encoder(tokenizer: Qwen2Tokenizer) -> Qwen3Model:
    """16 wide, two layers."""
    return Qwen3Model(Qwen3Config(**DECODER, **_vocabulary(tokenizer), head_dim=8)).eval()


def qwen_vl_encoder(tokenizer: Qwen2Tokenizer, **ids: int) -> Qwen2_5_VLForConditionalGeneration:
    """16 wide, two layers of text and two of vision; `ids` are those of the tokens around pictures."""
    config = Qwen2_5_VLConfig(
        text_config={**DECODER, **_vocabulary(tokenizer), "rope_parameters": QWEN_ROPE},
        vision_config={"depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 16},
        **ids,
    )
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def qwen_vl_text(tokenizer: Qwen2Tokenizer, num_layers: int) -> Qwen2_5_VLTextModel:
    """That of text alone, 16 wide."""
    layers = {**DECODER, **_vocabulary(tokenizer), "num_hidden_layers": num_layers}
    return Qwen2_5_VLTextModel(Qwen2_5_VLTextConfig(**layers, rope_parameters=QWEN_ROPE)).eval()


def qwen3_vl_lm(tokenizer: Qwen2Tokenizer, **ids: int) -> Qwen3VLForConditionalGeneration:
    """16 wide, two layers of text and two of vision; `ids` are those of the tokens around pictures."""
    rope = {"mrope_section": [2, 1, 1], "mrope_interleaved": True, "rope_type": "default", "rope_theta": 5e6}
    config = Qwen3VLConfig(
        text_config={**DECODER, **_vocabulary(tokenizer), "head_dim": 8, "rope_parameters": rope},
        vision_config={
            "depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 16,
            "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1],
        },
        **ids,
    )  # fmt: skip
    return Qwen3VLForConditionalGeneration(config).eval()


def mistral3_lm(tokenizer: Qwen2Tokenizer, num_layers: int) -> Mistral3ForConditionalGeneration:
    """16 wide, with a head of the vocabulary, and two layers of vision, which nothing reads."""
    text = {**DECODER, **_vocabulary(tokenizer), "num_hidden_layers": num_layers, "head_dim": 8}
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return Mistral3ForConditionalGeneration(
        Mistral3Config(
            text_config={**text, "model_type": "mistral", "sliding_window": None},
            vision_config={**vision, "model_type": "pixtral", "head_dim": 8, "image_size": 28, "patch_size": 14},
            image_token_index=len(tokenizer) - 1,
        )
    ).eval()


def gemma2_encoder(tokenizer: GemmaTokenizer) -> Gemma2Model:
    """16 wide, two layers."""
    config = Gemma2Config(**DECODER, **_vocabulary(tokenizer), head_dim=8)
    return Gemma2Model(config).eval()


def gemma3_encoder(tokenizer: GemmaTokenizer) -> Gemma3ForConditionalGeneration:
    """16 wide, two layers of text, one of vision."""
    config = Gemma3Config(
        text_config={**DECODER, **_vocabulary(tokenizer), "head_dim": 8},
        vision_config={
            "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": 28, "patch_size": 14,
        },
        mm_tokens_per_image=4,
    )  # fmt: skip
    return Gemma3ForConditionalGeneration(config).eval()


# ---- Autoencoders ----


def sharpen(vae: nn.Module, layer: nn.Module, pixels: torch.Tensor, std: float) -> None:
    """Gives an untrained autoencoder the scales of a trained one, so that what it encodes and decodes tells.

    Args:
        vae: encodes to Gaussians.
        layer: gives their means, then the logarithms of their variances, in its output channels.
        pixels: whose latents then have means around zero, and whose decoded latents have the contrast of pictures.
        std: of the latents' means; the Gaussians' is a tenth.
    """
    with torch.no_grad():
        means = vae.encode(pixels).latent_dist.mode().transpose(0, 1).flatten(1)
        num_channels, center = len(means), means.mean(1)
        factor = std / (means - center[:, None]).std()
        layer.bias[:num_channels] = (layer.bias[:num_channels] - center) * factor
        layer.weight[:num_channels] *= factor
        layer.bias[num_channels:] = 2 * math.log(0.1 * std)
        layer.weight[num_channels:] *= 0.1
        decoded = vae.decode(vae.encode(pixels).latent_dist.mode()).sample.transpose(0, 1).flatten(1)
        center = decoded.mean(1)
        factor = 0.5 / (decoded - center[:, None]).std()
        last = getattr(vae.decoder.conv_out, "conv", vae.decoder.conv_out)
        bias = last.bias  # of patches of pixels, perhaps
        bias.sub_(center.repeat_interleave(len(bias) // len(center))).mul_(factor)
        last.weight.mul_(factor)


def autoencoder(
    latent_channels: int, shift_factor: float, scaling_factor: float, num_levels: int = 2, sample_size: int = 16
) -> AutoencoderKL:
    """Without the convolutions around the latents, as in pipelines of flow matching; each level but one halves."""
    vae = AutoencoderKL(
        block_out_channels=[4] * (num_levels - 1) + [8],
        down_block_types=["DownEncoderBlock2D"] * num_levels,
        up_block_types=["UpDecoderBlock2D"] * num_levels,
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=2,
        sample_size=sample_size,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=shift_factor,
        scaling_factor=scaling_factor,
    )
    pixels = torch.rand(4, 3, sample_size, sample_size) * 2 - 1
    sharpen(vae, vae.encoder.conv_out, pixels, std=1 / scaling_factor)
    return vae


def vq_autoencoder(codebook_size: int, latent_channels: int = 4, sample_size: int = 16) -> VQModel:
    """Halves, and has latents of random pictures for a codebook, so that pictures have many tokens."""
    vqvae = VQModel(
        block_out_channels=[4, 8],
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=latent_channels,
        norm_num_groups=2,
        num_vq_embeddings=codebook_size,
        sample_size=sample_size,
        mid_block_add_attention=False,
        lookup_from_codebook=True,
    )
    with torch.no_grad():
        latents = vqvae.encode(torch.rand(8, 3, sample_size, sample_size)).latents
        latents = latents.permute(0, 2, 3, 1).flatten(0, 2)
        vqvae.quantize.embedding.weight.copy_(latents[torch.randperm(len(latents))[:codebook_size]])
    return vqvae
