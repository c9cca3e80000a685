"""A Wan 2.1, and a Wan 2.2 of two stages, of clips of 5 frames of 32 pixels, with latents of 16 x 2 x 4 x 4.

And a Wan 2.2 of the other kind, whose latents are of 48 x 2 x 2 x 2.
"""

import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)

from .parts import ready, sharpen, t5_tokenizer, umt5_encoder

RESOLUTION = 32
NUM_FRAMES = 5
CALL = {
    "height": RESOLUTION,
    "width": RESOLUTION,
    "num_frames": NUM_FRAMES,
    "num_inference_steps": 2,
    "guidance_scale": 3.0,
    "max_sequence_length": 16,
}


def build(seed: int = 0, **network_kwargs) -> WanPipeline:
    """Wan 2.1."""
    torch.manual_seed(seed)
    return _pipeline(transformer=_transformer(network_kwargs))


def build_two_stage(seed: int = 0, boundary_ratio: float = 0.875, **network_kwargs) -> WanPipeline:
    """Wan 2.2: `transformer` above the boundary, which is a share of the 1000 times, and `transformer_2` below it."""
    torch.manual_seed(seed)
    transformers = {name: _transformer(network_kwargs) for name in ("transformer", "transformer_2")}
    return _pipeline(**transformers, boundary_ratio=boundary_ratio)


def build_ti2v(seed: int = 0, **network_kwargs) -> WanPipeline:
    """Wan 2.2 TI2V-5B, which is told the time of each token; its autoencoder takes 2 x 2 pixels as one."""
    torch.manual_seed(seed)
    vae_kwargs = {"in_channels": 12, "out_channels": 12, "patch_size": 2, "is_residual": True}
    vae_kwargs |= {"z_dim": 48, "latents_mean": [0.1] * 48, "latents_std": [1.5] * 48, "scale_factor_spatial": 16}
    transformer = _transformer({"in_channels": 48, "out_channels": 48, **network_kwargs})
    return _pipeline(vae_kwargs, transformer=transformer, expand_timesteps=True)


def _transformer(network_kwargs: dict) -> WanTransformer3DModel:
    return WanTransformer3DModel(
        **{
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "text_dim": 32,
            "freq_dim": 32,
            "ffn_dim": 32,
            "num_layers": 2,
            "rope_max_seq_len": 32,
            **network_kwargs,
        }
    )


def _pipeline(vae_kwargs: dict | None = None, **parts) -> WanPipeline:
    tokenizer = t5_tokenizer()
    vae = AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, **(vae_kwargs or {}))
    sharpen(vae, vae.quant_conv, torch.rand(1, 3, NUM_FRAMES, RESOLUTION, RESOLUTION) * 2 - 1, std=2.0)
    return ready(
        WanPipeline(
            tokenizer=tokenizer,
            text_encoder=umt5_encoder(tokenizer),
            vae=vae,
            scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
            **parts,
        )
    )


VARIANTS = {"two_stage": build_two_stage, "ti2v": build_ti2v}
UNGUIDED = {"guidance_scale": 1.0}
SETTINGS = {"num_frames": NUM_FRAMES, "max_sequence_length": 16}


def sample_and_time(sample, time, rows):
    """What a network of text to video takes beside the prompt."""
    return {"hidden_states": sample, "timestep": time[None]}


def denoising_error(pipeline, pixels, prompts, draw, max_sequence_length=16, inputs=sample_and_time):
    """As a trainer of Wan computes it: the velocity's error on the schedule that `flow_shift` makes.

    `inputs(sample, time, rows)` are the network's but for the prompt: of text to video, the corrupted sample and its
    time. A draw of fewer latent frames is of the last.
    """
    drawn = slice(-draw.noise.shape[2], None)
    embeds, _ = pipeline.encode_prompt(
        prompts, do_classifier_free_guidance=False, max_sequence_length=max_sequence_length
    )
    posterior, config = pipeline.vae.encode(pixels).latent_dist, pipeline.vae.config
    mean, std = (torch.tensor(values)[:, None, None, None] for values in (config.latents_mean, config.latents_std))
    latents = (posterior.mean[:, :, drawn] + posterior.std[:, :, drawn] * draw.posterior_noise - mean) / std
    schedule = FlowMatchEulerDiscreteScheduler(shift=pipeline.scheduler.config.flow_shift)
    indices = ((1 - draw.quantile) * schedule.config.num_train_timesteps).long()
    errors = []
    for row, index in enumerate(indices):
        sigma, timestep, noise = schedule.sigmas[index], schedule.timesteps[index], draw.noise[row]
        is_late = pipeline.transformer_2 is not None and timestep < 1000 * pipeline.config.boundary_ratio
        sample = ((1.0 - sigma) * latents[row] + sigma * noise)[None]
        prediction = (pipeline.transformer_2 if is_late else pipeline.transformer)(
            **inputs(sample, timestep, [row]),
            encoder_hidden_states=embeds[row][None],
            return_dict=False,
        )[0][0][:, drawn]
        errors.append(((prediction - (noise - latents[row])) ** 2).mean())
    return torch.stack(errors)


def read_call(arguments, latent_shape):
    """Corrupted sample and time of a call of the network, which may be told the time of each token."""
    timestep = arguments["timestep"]
    return arguments["hidden_states"], timestep.reshape(len(timestep), -1)[:, 0]
