"""An LTX-2 of clips of 9 frames of 32 pixels, with latents of 8 x 2 x 4 x 4 in 32 tokens.

And an LTX-2.3, which gates its attention, modulates the prompt by the time and projects it for each modality.
"""

import torch
from diffusers import (
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    FlowMatchEulerDiscreteScheduler,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
)
from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder

from .parts import gemma3_encoder, gemma_tokenizer, ready, sharpen

RESOLUTION = 32
NUM_FRAMES = 9
CALL = {
    "height": RESOLUTION,
    "width": RESOLUTION,
    "num_frames": NUM_FRAMES,
    "num_inference_steps": 2,
    "guidance_scale": 3.0,
    "max_sequence_length": 16,
}
UNGUIDED = {"guidance_scale": 1.0, "audio_guidance_scale": 1.0, "stg_scale": 0.0, "audio_stg_scale": 0.0}
SETTINGS = {"num_frames": NUM_FRAMES, "max_sequence_length": 16}
LAYERS, WIDTH = 2, 16


def build(seed: int = 0, **network_kwargs) -> LTX2Pipeline:
    """LTX-2."""
    torch.manual_seed(seed)
    return _pipeline(network_kwargs, {})


def build_later(seed: int = 0, **network_kwargs) -> LTX2Pipeline:
    """LTX-2.3."""
    torch.manual_seed(seed)
    gated = {"gated_attn": True, "audio_gated_attn": True, "cross_attn_mod": True, "audio_cross_attn_mod": True}
    network = {**gated, "perturbed_attn": True, "use_prompt_embeddings": False, "rope_type": "split"}
    own = {"per_modality_projections": True, "video_hidden_dim": 32, "audio_hidden_dim": 16, "rope_type": "split"}
    heads = {"video_connector_num_attention_heads": 4, "video_gated_attn": True, "audio_gated_attn": True}
    return _pipeline({**network, **network_kwargs}, {**own, **heads})


VARIANTS = {"later": build_later}


def _pipeline(network_kwargs: dict, connector_kwargs: dict) -> LTX2Pipeline:
    tokenizer = gemma_tokenizer()
    return ready(
        LTX2Pipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(
                use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, base_image_seq_len=1024, shift_terminal=0.1
            ),
            vae=_autoencoder(),
            audio_vae=AutoencoderKLLTX2Audio(
                base_channels=8, ch_mult=(1,), num_res_blocks=1, resolution=32, latent_channels=2, mel_bins=16
            ),
            text_encoder=gemma3_encoder(tokenizer),
            tokenizer=tokenizer,
            connectors=LTX2TextConnectors(
                **{
                    "caption_channels": WIDTH,
                    "text_proj_in_factor": LAYERS + 1,
                    "video_connector_num_attention_heads": 2,
                    "video_connector_attention_head_dim": 8,
                    "video_connector_num_layers": 1,
                    "video_connector_num_learnable_registers": 8,
                    "audio_connector_num_attention_heads": 2,
                    "audio_connector_attention_head_dim": 8,
                    "audio_connector_num_layers": 1,
                    "audio_connector_num_learnable_registers": 8,
                    "connector_rope_base_seq_len": 32,
                    "rope_double_precision": False,
                    **connector_kwargs,
                }
            ),
            transformer=_transformer(network_kwargs),
            vocoder=LTX2Vocoder(
                in_channels=32,
                hidden_channels=8,
                upsample_kernel_sizes=[4],
                upsample_factors=[2],
                resnet_kernel_sizes=[3],
                resnet_dilations=[[1]],
            ),
        )
    )


def _transformer(network_kwargs: dict) -> LTX2VideoTransformer3DModel:
    return LTX2VideoTransformer3DModel(
        **{
            "in_channels": 8,
            "out_channels": 8,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "cross_attention_dim": 32,
            "vae_scale_factors": (8, 8, 8),
            "base_height": 32,
            "base_width": 32,
            "audio_in_channels": 8,
            "audio_out_channels": 8,
            "audio_num_attention_heads": 2,
            "audio_attention_head_dim": 8,
            "audio_cross_attention_dim": 16,
            "num_layers": 2,
            "caption_channels": WIDTH,
            "rope_double_precision": False,
            **network_kwargs,
        }
    )


def _autoencoder() -> AutoencoderKLLTX2Video:
    """Of 8 x 8 pixels, and of a first frame and then 8 of them; with statistics that are not those of a normal."""
    vae = AutoencoderKLLTX2Video(
        latent_channels=8,
        block_out_channels=(8, 8, 8),
        down_block_types=("LTX2VideoDownBlock3D",) * 3,
        decoder_block_out_channels=(8, 8, 8),
        layers_per_block=(1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, True),
        decoder_spatio_temporal_scaling=(True, True, True),
        decoder_inject_noise=(False, False, False, False),
        downsample_type=("temporal", "temporal", "spatiotemporal"),
        upsample_type=("temporal", "temporal", "spatiotemporal"),
        upsample_residual=(True, True, True),
        upsample_factor=(1, 1, 1),
        patch_size=4,
        spatial_compression_ratio=8,
        temporal_compression_ratio=8,
    )
    pixels = torch.rand(2, 3, NUM_FRAMES, RESOLUTION, RESOLUTION) * 2 - 1
    sharpen(vae, vae.encoder.conv_out.conv, pixels, std=2.0)
    with torch.no_grad():
        vae.latents_mean.normal_()
        vae.latents_std.uniform_(1.5, 2.5)
    return vae


def denoising_error(pipeline, pixels, prompts, draw):
    """As ltx-trainer computes it for videos without sound, on the grid of the pipeline's scheduler without its shift.

    The network sees sound of noise here, which changes nothing where modalities are isolated.
    """
    hidden, mask, _, _ = pipeline.encode_prompt(
        list(prompts), do_classifier_free_guidance=False, max_sequence_length=16
    )
    embeds, audio_embeds, mask = pipeline.connectors(hidden, mask)
    vae = pipeline.vae
    latents = pipeline._normalize_latents(vae.encode(pixels).latent_dist.mode(), vae.latents_mean, vae.latents_std)
    schedule = FlowMatchEulerDiscreteScheduler()
    indices = ((1 - draw.quantile) * schedule.config.num_train_timesteps).long()
    errors = []
    for row, index in enumerate(indices):
        sigma, timestep, noise = schedule.sigmas[index], schedule.timesteps[index], draw.noise[row]
        sample = ((1.0 - sigma) * latents[row] + sigma * noise)[None]
        prediction = pipeline.transformer(
            hidden_states=pipeline._pack_latents(sample),
            audio_hidden_states=torch.randn(1, 5, 8),
            encoder_hidden_states=embeds[row][None],
            audio_encoder_hidden_states=audio_embeds[row][None],
            timestep=timestep[None],
            sigma=timestep[None],
            encoder_attention_mask=mask[row][None],
            audio_encoder_attention_mask=mask[row][None],
            num_frames=sample.shape[2],
            height=sample.shape[3],
            width=sample.shape[4],
            fps=24.0,
            audio_num_frames=5,
            isolate_modalities=True,
            return_dict=False,
        )[0]
        prediction = pipeline._unpack_latents(prediction, *sample.shape[2:])[0]
        errors.append(((prediction - (noise - latents[row])) ** 2).mean())
    return torch.stack(errors)


def is_like_training(arguments):
    """Of the calls of the pipeline those whose video does not see the sound."""
    return arguments["isolate_modalities"]


UNSEEN = {
    "audio_hidden_states", "audio_encoder_hidden_states", "audio_encoder_attention_mask", "audio_num_frames",
    "audio_coords", "use_cross_timestep",  # of the sound, which the video does not see
}  # fmt: skip
"""Arguments of the network that change nothing of what training reads."""


def read_call(arguments, latent_shape):
    """Corrupted sample and time of a call of the network."""
    packed = arguments["hidden_states"]
    return packed.transpose(1, 2).reshape(len(packed), *latent_shape), arguments["timestep"]
