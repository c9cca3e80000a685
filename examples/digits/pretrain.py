"""Pre-trains the base model of the demo: a small, real StableDiffusionPipeline that draws digits, often the wrong one.

Every part learns from the `generator` split of `digits.py` alone, offline and on a CPU, in about twenty minutes:

    python examples/digits/pretrain.py --output_dir examples/digits/base

1. The VAE learns to reconstruct the scans; its latents are 4 channels of 4x4.
2. The UNet and the text encoder learn to predict the noise, by the plain denoising loss, from captions of which 30 %
   name a wrong digit. So the base draws clean digits but obeys at most 70 % of prompts: alignment has to undo that.

A second base learned from right captions alone, with the first one's VAE (`--vae examples/digits/base`):

    python examples/digits/pretrain.py --output_dir examples/digits/obedient_base \
        --wrong_caption_rate 0 --vae examples/digits/base

`--latent_size 2` makes latents of 4 channels of 2x2, a quarter of the numbers.

Nothing here uses `tgo_trl`.
"""

import argparse
import copy
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from digits import DIGIT_NAMES, RESOLUTION, TEMPLATES, jitter, load_scans, prompts_of, to_pixels
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

WRONG_CAPTION_RATE = 0.3
EMPTY_CAPTION_RATE = 0.1
JITTER_STRENGTH = 0.3
NUM_JITTERED_COPIES = 24
KL_WEIGHT = 1e-4
EMA_DECAY = 0.998
MAX_TOKENS = 32
LATENT_SIZE = 4
PEAK_LEARNING_RATE = 5e-3
VAE_BATCH_SIZE = 64
DENOISER_BATCH_SIZE = 128

CAPTIONS = [prompt for digit in range(len(DIGIT_NAMES)) for prompt in prompts_of(digit)] + [""]
"""Caption `digit * len(TEMPLATES) + template`, and the empty caption last."""


# --- parts -----------------------------------------------------------------------------------------------------------


def byte_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer that spells: its tokens are the 256 bytes, alone or at the end of a word."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=MAX_TOKENS)


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def new_vae(latent_size: int) -> AutoencoderKL:
    """From pixels [N, 3, 16, 16] to latents [N, 4, latent_size, latent_size]."""
    num_blocks = 1 + int(math.log2(RESOLUTION // latent_size))  # each but the last halves the size
    return AutoencoderKL(
        sample_size=RESOLUTION,
        latent_channels=4,
        block_out_channels=(16,) + (32,) * (num_blocks - 1),
        down_block_types=("DownEncoderBlock2D",) * num_blocks,
        up_block_types=("UpDecoderBlock2D",) * num_blocks,
        norm_num_groups=8,
    )


def new_unet(latent_size: int) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=latent_size,
        in_channels=4,
        out_channels=4,
        block_out_channels=(48, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=4,
        cross_attention_dim=64,
    )


def new_scheduler() -> DDIMScheduler:
    """The schedule of Stable Diffusion 1: 1,000 steps, scaled-linear betas, noise prediction."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing",  # sampling starts where training ends: at pure noise
    )


# --- training --------------------------------------------------------------------------------------------------------


def train_vae(vae: AutoencoderKL, pixels: Tensor, num_steps: int, generator: torch.Generator) -> None:
    """Fits `vae` to jittered `pixels` [N, 3, H, W] by squared error and a small KL term; standardises its latents."""
    optimizer = torch.optim.AdamW(vae.parameters(), fused=True)
    for step in (progress := tqdm(range(num_steps), desc="VAE")):
        set_learning_rate(optimizer, step, num_steps)
        batch = jitter(pixels[random_rows(len(pixels), VAE_BATCH_SIZE, generator)], generator, JITTER_STRENGTH)
        posterior = vae.encode(batch).latent_dist
        error = F.mse_loss(vae.decode(posterior.sample(generator)).sample, batch)
        loss = error + KL_WEIGHT * posterior.kl().mean() / posterior.mean[0].numel()
        take_step(optimizer, vae.parameters(), loss)
        progress.set_postfix(mse=f"{error.item():.5f}", refresh=False)
    vae.eval().requires_grad_(False)
    standardise_latents(vae, pixels)


@torch.no_grad()
def standardise_latents(vae: AutoencoderKL, pixels: Tensor) -> None:
    """Gives every latent channel mean 0 and standard deviation 1 over `pixels` [N, 3, H, W]; decoding undoes it.

    A Stable Diffusion pipeline can scale latents but not centre them, and a denoiser that starts from pure noise has to
    guess whatever mean they have. So (mean - centre) / spread goes into the 1x1 convolution that ends the encoder, and
    its inverse into the one that starts the decoder.
    """
    latents = torch.cat([vae.encode(batch).latent_dist.mean for batch in pixels.split(256)])
    centre, spread = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    encoder, decoder = vae.quant_conv, vae.post_quant_conv
    mean, log_variance = encoder.bias.chunk(2)
    encoder.bias.copy_(torch.cat([(mean - centre) / spread, log_variance - 2 * spread.log()]))
    encoder.weight[: len(spread)] /= spread[:, None, None, None]
    decoder.bias += decoder.weight[:, :, 0, 0] @ centre
    decoder.weight *= spread[:, None, None]
    standardised = (latents - centre[:, None, None]) / spread[:, None, None]
    vae.register_to_config(scaling_factor=float(1 / standardised.std()))


@torch.no_grad()
def latents_of(vae: AutoencoderKL, pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Scaled latents [N, 4, H, W] of jittered `pixels` [N, 3, H, W]."""
    latents = [
        vae.encode(jitter(batch, generator, JITTER_STRENGTH)).latent_dist.sample(generator)
        for batch in pixels.split(256)
    ]
    return torch.cat(latents) * vae.config.scaling_factor


def draw_captions(digits: Tensor, wrong_rate: float, generator: torch.Generator) -> Tensor:
    """Rows of CAPTIONS [N] for scans of `digits` [N]: a share names one of the nine others, 10 % name none."""
    wrong = torch.rand(len(digits), generator=generator) < wrong_rate
    offset = torch.randint(1, len(DIGIT_NAMES), digits.shape, generator=generator)
    named = torch.where(wrong, (digits + offset) % len(DIGIT_NAMES), digits)
    template = torch.randint(len(TEMPLATES), digits.shape, generator=generator)
    empty = torch.rand(len(digits), generator=generator) < EMPTY_CAPTION_RATE
    return torch.where(empty, len(CAPTIONS) - 1, named * len(TEMPLATES) + template)


def train_denoiser(
    denoiser: nn.ModuleDict,
    tokens: Tensor,
    scheduler: DDIMScheduler,
    latents: Tensor,
    digits: Tensor,
    num_steps: int,
    wrong_rate: float,
    generator: torch.Generator,
) -> nn.ModuleDict:
    """The moving average of `denoiser` = {unet, text_encoder}, trained to predict the noise in `latents` [N, 4, H, W].

    Args:
        tokens: one row per caption in CAPTIONS, [41, MAX_TOKENS].
        digits: what the scan behind each row of `latents` shows, [N].
        wrong_rate: the share of captions that name another digit.
    """
    average = copy.deepcopy(denoiser).requires_grad_(False)
    optimizer = torch.optim.AdamW(denoiser.parameters(), fused=True)
    for step in (progress := tqdm(range(num_steps), desc="UNet and text encoder")):
        set_learning_rate(optimizer, step, num_steps)
        rows = random_rows(len(latents), DENOISER_BATCH_SIZE, generator)
        noise = torch.randn(latents[rows].shape, generator=generator)
        time_ = draw_times(scheduler.config.num_train_timesteps, DENOISER_BATCH_SIZE, generator)
        noisy = scheduler.add_noise(latents[rows], noise, time_)
        # There are only 41 captions, so each is encoded once per step however large the batch.
        text = denoiser["text_encoder"](tokens).last_hidden_state[draw_captions(digits[rows], wrong_rate, generator)]
        loss = F.mse_loss(denoiser["unet"](noisy, time_, text).sample, noise)
        take_step(optimizer, denoiser.parameters(), loss)
        move_average(average, denoiser, min(EMA_DECAY, (1 + step) / (10 + step)))
        progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    return average.eval()


def draw_times(num_times: int, batch_size: int, generator: torch.Generator) -> Tensor:
    """Times [N] in [0, num_times), time t with a probability proportional to t + 1/2: the largest of two uniform draws.

    Most of training goes where it is decided which digit appears, at much noise, and little to the last finish.
    """
    return torch.rand(2, batch_size, generator=generator).amax(0).mul(num_times).long().clamp(max=num_times - 1)


def random_rows(num_rows: int, batch_size: int, generator: torch.Generator) -> Tensor:
    return torch.randint(num_rows, (batch_size,), generator=generator)


def set_learning_rate(optimizer: torch.optim.Optimizer, step: int, num_steps: int, num_warmup: int = 100) -> None:
    """A linear warm-up to the peak, then half a cosine down to zero."""
    cosine = 0.5 * (1 + torch.cos(torch.tensor(step / num_steps * torch.pi)).item())
    optimizer.param_groups[0]["lr"] = PEAK_LEARNING_RATE * min(1.0, (step + 1) / num_warmup) * cosine


def take_step(optimizer: torch.optim.Optimizer, parameters: Iterator[nn.Parameter], loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()


@torch.no_grad()
def move_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * model, for every parameter."""
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)


# --- the whole -------------------------------------------------------------------------------------------------------


def pretrain(
    vae_steps: int,
    denoiser_steps: int,
    seed: int,
    wrong_rate: float = WRONG_CAPTION_RATE,
    vae_of: Path | None = None,
    latent_size: int = LATENT_SIZE,
) -> StableDiffusionPipeline:
    """The trained base pipeline. The same arguments give the same weights on the same machine.

    Args:
        vae_steps: updates of the VAE.
        denoiser_steps: updates of UNet and text encoder.
        seed: of weights and draws.
        wrong_rate: the share of captions that name another digit than the scan shows.
        vae_of: a pipeline whose VAE is taken as it is.
        latent_size: height and width of the latents, a power of two.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    scans = load_scans("generator")
    pixels, digits = to_pixels(scans.images), torch.tensor(scans.digits)
    tokenizer, scheduler = byte_tokenizer(), new_scheduler()
    if vae_of is None:
        vae = new_vae(latent_size)
        train_vae(vae, pixels, vae_steps, generator)
    else:
        vae = AutoencoderKL.from_pretrained(vae_of, subfolder="vae").eval().requires_grad_(False)

    latents = torch.cat([latents_of(vae, pixels, generator) for _ in range(NUM_JITTERED_COPIES)])
    tokens = tokenizer(CAPTIONS, padding="max_length", max_length=MAX_TOKENS, return_tensors="pt").input_ids
    denoiser = nn.ModuleDict({"unet": new_unet(latents.shape[-1]), "text_encoder": new_text_encoder(tokenizer)})
    digits = digits.repeat(NUM_JITTERED_COPIES)
    average = train_denoiser(denoiser, tokens, scheduler, latents, digits, denoiser_steps, wrong_rate, generator)
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=average["text_encoder"],
        tokenizer=tokenizer,
        unet=average["unet"],
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path(__file__).parent / "base")
    parser.add_argument("--vae_steps", type=int, default=2000)
    parser.add_argument("--denoiser_steps", type=int, default=4500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--wrong_caption_rate", type=float, default=WRONG_CAPTION_RATE)
    parser.add_argument("--latent_size", type=int, choices=(2, 4, 8), default=LATENT_SIZE)
    parser.add_argument("--vae", type=Path, help="a pipeline whose VAE is taken as it is, its latents' size included")
    args = parser.parse_args()
    start = time.monotonic()
    pipeline = pretrain(
        args.vae_steps, args.denoiser_steps, args.seed, args.wrong_caption_rate, args.vae, args.latent_size
    )
    pipeline.save_pretrained(args.output_dir)
    print(f"Saved to {args.output_dir} after {(time.monotonic() - start) / 60:.1f} minutes.")


if __name__ == "__main__":
    main()
