"""What a million scored images cost, from prompts to one pass of training: GPU hours and disk, with the arithmetic.

    python -m benchmarks.million_images                                   # the tables of docs/clusters.md
    python -m benchmarks.million_images --model flux-512 --images 200000 --images_per_prompt 8 --training_rate 7
    python -m benchmarks.million_images --write docs/clusters.md

Every input of [`Job`] is an option. Numbers of networks are counted; speeds are somebody's measurement, named in
[`SOURCES`], or an assumption, called so there. Nothing here was run at this size.
"""

import argparse
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

from tgo_trl.cards.sections import with_section
from tgo_trl.messages.markdown import markdown_table

from .gpu_models import MODELS

SECTION = "million"
HOUR = 3600


@dataclass(frozen=True)
class Job:
    """What is made, scored, encoded and trained on, and how fast.

    Attributes:
        images: in all.
        images_per_prompt: of one prompt.
        forward_tflop: of the denoiser, one image.
        sampling_steps: of an image.
        passes: of the denoiser in each of these, 2 with classifier-free guidance.
        sampling_tflops: what a GPU does of the denoiser's work while it draws, in TFLOP per second.
        scoring_rate: images per second of the reward model on a GPU.
        encoding_ms: of an image through the autoencoder.
        prompt_ms: of a prompt through the text encoders.
        training_rate: rows per second of training a LoRA on a GPU.
        image_mb: of a PNG file.
        latent_mb: of an encoded image: mean and standard deviation in float32, or the mean alone.
        prompt_mb: of an encoded prompt, with its padding.
        gpus: that share the work.
    """

    forward_tflop: float
    sampling_steps: float
    passes: float
    sampling_tflops: float
    encoding_ms: float
    prompt_ms: float
    training_rate: float
    image_mb: float
    latent_mb: float
    prompt_mb: float
    scoring_rate: float = 50.0
    images: float = 1e6
    images_per_prompt: float = 4.0
    gpus: float = 8.0


@dataclass(frozen=True)
class Cost:
    """GPU hours and gigabytes (10^9 bytes) of a [`Job`]."""

    generating: float
    scoring: float
    encoding: float
    training: float
    images_gb: float
    encodings_gb: float
    days: float

    @property
    def gpu_hours(self) -> float:
        """All of them."""
        return self.generating + self.scoring + self.encoding + self.training


def cost(job: Job) -> Cost:
    """What a job takes; days are those of all GPUs at work, if they share it without loss."""
    prompts = job.images / job.images_per_prompt
    seconds_an_image = job.forward_tflop * job.sampling_steps * job.passes / job.sampling_tflops
    hours = (
        job.images * seconds_an_image / HOUR,
        job.images / job.scoring_rate / HOUR,
        (job.images * job.encoding_ms + prompts * job.prompt_ms) / 1000 / HOUR,
        job.images / job.training_rate / HOUR,
    )
    encodings = job.images * job.latent_mb + prompts * job.prompt_mb
    return Cost(*hours, job.images * job.image_mb / 1000, encodings / 1000, sum(hours) / job.gpus / 24)


# ---- Inputs ----


def encoded_mb(name: str) -> dict[str, float]:
    """Megabytes of an encoded image and an encoded prompt, of the shapes that are cached."""
    model = MODELS[name]
    moments = 1 if name.startswith("z-image") else 2
    prompt = sum(math.prod(shape) * (8 if key == "mask" else 2) for key, shape in model.prompt.items())
    return {"latent_mb": moments * 4 * math.prod(model.latents) / 1e6, "prompt_mb": prompt / 1e6}


JOBS = {
    "sd15-512": Job(0.803, 50, 2, 95, 9.5, 1.0, 75, 0.45, **encoded_mb("sd15-512")),
    "sdxl-1024": Job(6.761, 50, 2, 95, 38, 2.0, 10.8, 1.6, **encoded_mb("sdxl-1024")),
    "flux-512": Job(21.50, 28, 1, 151, 9.5, 10.0, 5.0, 0.45, **encoded_mb("flux-512")),
    "flux-1024": Job(74.38, 28, 1, 151, 38, 10.0, 1.39, 1.6, **encoded_mb("flux-1024")),
}
SOURCES = {
    "forward_tflop": "counted: `count_flops` of `benchmarks/gpu_steps.py`, attention included",
    "sampling_steps": "the pipelines' defaults",
    "passes": "classifier-free guidance for SD 1.5 and SDXL; FLUX.1 dev is told its guidance",
    "sampling_tflops": "diffusers' own benchmarks: a forward of SDXL in 0.071 s, of FLUX.1 at 1024 in 0.493 s, eager; "
    "for SD 1.5 *assumed* as SDXL, for FLUX.1 at 512 as at 1024",
    "scoring_rate": "*assumed*; a CLIP-sized reward on decoded images can be faster, a vision-language model is slower",
    "encoding_ms": "an earlier measurement on one H200: 9.5 ms for SD 1.5's autoencoder in float32 and CLIP together; "
    "*assumed* to grow with the pixels, and to be the same for FLUX.1",
    "prompt_ms": "*assumed*",
    "training_rate": "an earlier measurement of this trainer on one H200, LoRA of rank 16, without checkpointing: "
    "SD 1.5 in batches of 32, SDXL of 8, FLUX.1 at 512 of 4; FLUX.1 at 1024 *assumed* to do as many FLOP per second",
    "image_mb": "*assumed*: PNG, as `generate` writes it, of photographs",
    "latent_mb, prompt_mb": "counted: shapes and dtypes of what is cached",
    "images_per_prompt": "*assumed*",
}
"""Where each input is from."""


# ---- Tables ----


def tables(jobs: Mapping[str, Job] = JOBS) -> str:
    """GPU hours and gigabytes of each job, and its inputs with their sources."""
    costs = {name: cost(job) for name, job in jobs.items()}
    head = (
        "model", "generate", "score", "encode", "train, one pass", "GPU hours", "days, all GPUs", "images, GB",
        "encodings, GB",
    )  # fmt: skip
    rows = []
    for name, it in costs.items():
        hours = (it.generating, it.scoring, it.encoding, it.training, it.gpu_hours)
        title = MODELS[name].title
        disk = (f"{value:,.0f}" for value in (it.images_gb, it.encodings_gb))
        rows.append([title, *(f"{value:,.0f}" for value in hours), f"{it.days:.1f}", *disk])
    return "\n\n".join([markdown_table(head, rows), _inputs(jobs)])


def _inputs(jobs: Mapping[str, Job]) -> str:
    names = [it.name for it in fields(Job)]
    values = {name: [format(getattr(job, name), ".4g") for job in jobs.values()] for name in names}
    sources = {name: source for key, source in SOURCES.items() for name in key.split(", ")}
    rows = ([f"`{name}`", *values[name], sources.get(name, "yours to say")] for name in names)
    return markdown_table(("input", *(MODELS[name].title for name in jobs), "from"), rows)


def example(name: str) -> str:
    """The arithmetic of one job, line by line."""
    job, found = JOBS[name], cost(JOBS[name])
    return "\n".join(_lines(job, found))


def _lines(job: Job, found: Cost) -> Iterator[str]:
    image = job.forward_tflop * job.sampling_steps * job.passes / job.sampling_tflops
    prompts = job.images / job.images_per_prompt
    yield (
        f"one image     {job.forward_tflop:g} TFLOP x {job.sampling_steps:g} steps x {job.passes:g} passes "
        f"/ {job.sampling_tflops:g} TFLOP/s = {image:.2f} s"
    )
    yield f"generating    {job.images:,.0f} images x {image:.2f} s / 3600 = {found.generating:,.0f} GPU hours"
    yield f"scoring       {job.images:,.0f} / {job.scoring_rate:g} a second / 3600 = {found.scoring:,.1f} GPU hours"
    yield (
        f"encoding      ({job.images:,.0f} x {job.encoding_ms:g} ms + {prompts:,.0f} prompts x {job.prompt_ms:g} ms) "
        f"/ 3,600,000 = {found.encoding:,.1f} GPU hours"
    )
    yield f"training      {job.images:,.0f} / {job.training_rate:g} a second / 3600 = {found.training:,.0f} GPU hours"
    yield (
        f"encodings     {job.images:,.0f} x {job.latent_mb:.3f} MB + {prompts:,.0f} x {job.prompt_mb:.3f} MB "
        f"= {found.encodings_gb:,.0f} GB"
    )


def section() -> str:
    """All of it, as docs/clusters.md has it."""
    return f"{tables()}\n\nSDXL's, for one:\n\n```\n{example('sdxl-1024')}\n```"


def main() -> None:
    """Prints the tables, or puts them into a page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=list(JOBS), help="only this one")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the tables into this page")
    for it in fields(Job):
        parser.add_argument(f"--{it.name}", type=float, help=SOURCES.get(it.name, "see the docstring"))
    options = parser.parse_args()
    if options.write is not None:
        options.write.write_text(with_section(options.write.read_text("utf-8"), SECTION, section()), "utf-8")
        return
    given = {it.name: value for it in fields(Job) if (value := getattr(options, it.name)) is not None}
    names = [options.model] if options.model else list(JOBS)
    print(tables({name: replace(JOBS[name], **given) for name in names}))


if __name__ == "__main__":
    main()
