"""What a setting of `recipes/paper/` takes, computed from its settings and the numbers under `estimate` in it."""

from collections.abc import Iterator
from typing import Any, NamedTuple

PNG_BYTES = 1.7
"""Of a pixel: 1.3 and 1.8 of the two photographs that come with scikit-learn."""
PASSES = {"sft": 3, "csft": 3, "tgo": 4, "diffusion_dpo": 4, "dspo": 4, "diffusion_kto": 6}
"""Of the network for a row of a loss: forward, once more for gradient checkpointing, backward, which takes about as
long for an adapter, and the reference's forward; of Diffusion-KTO, policy and reference once more for the mean."""
PASSES_OF_ALL_WEIGHTS = 1
"""More, for the gradients of all weights."""
PROMPTS = {"pick-a-pic": 424, "parti": 1632, "hpsv2": 3200}
HOUR = 3600


class Item(NamedTuple):
    """A line of a table.

    Attributes:
        what: it is.
        arithmetic: how it is computed.
        amount: gigabytes (10^9 bytes) or hours.
    """

    what: str
    arithmetic: str
    amount: float


def num_rows(recipe: dict[str, Any]) -> int:
    """Rows that are trained on."""
    if "generate" not in recipe:
        return int(recipe["estimate"]["rows"])
    generate = recipe["generate"]
    prompts = recipe["prompts"]["train"] if "prompts" in recipe else generate["max_prompts"]
    return int(prompts * generate["num_images_per_prompt"])


def num_compared(recipe: dict[str, Any]) -> int:
    """Samples that are drawn to compare models, the base among them."""
    evaluate = recipe["evaluate"]
    known = {**PROMPTS, **({"test": recipe["prompts"]["test"]} if "prompts" in recipe else {})}
    unknown = set(evaluate["prompts"]) - {*known}
    if unknown:
        raise ValueError(
            f"How many prompts {', '.join(sorted(unknown))} has is not known; of {', '.join(known)} it is."
        )
    sizes = [known[name] for name in evaluate["prompts"]]
    most = evaluate.get("max_prompts") or max(sizes)
    return sum(min(size, most) for size in sizes) * evaluate["num_images_per_prompt"] * (len(recipe["methods"]) + 1)


def sample_mb(settings: dict[str, Any]) -> float:
    """Megabytes of a sample: PNG files, of a video one for each frame."""
    return settings["height"] * settings["width"] * settings.get("num_frames", 1) * PNG_BYTES / 1e6


def disk(recipe: dict[str, Any]) -> Iterator[Item]:
    """Gigabytes of what is downloaded and written."""
    known, rows, compared = recipe["estimate"], num_rows(recipe), num_compared(recipe)
    for what, gigabytes in known["gigabytes"].items():
        yield Item(what, "", gigabytes)
    if "generate" in recipe:
        each = sample_mb(recipe["generate"])
        copies = ("drawn samples", "the same, scored")
    else:
        each = known["sample_mb"]
        copies = ("converted images",)
    for what in (*copies, "the same, as `datasets` keeps them for training"):
        yield Item(what, f"{rows:,} x {each:.3g} MB", rows * each / 1e3)
    yield Item("encoded samples", f"{rows:,} x {known['latents_mb']:g} MB", rows * known["latents_mb"] / 1e3)
    prompts = known.get("prompts", rows)
    yield Item("encoded prompts", f"{prompts:,} x {known['prompt_mb']:g} MB", prompts * known["prompt_mb"] / 1e3)
    methods = len(recipe["methods"])
    yield Item("trained models", f"{methods} x {known['trained_gb']:g} GB", methods * known["trained_gb"])
    yield Item(
        "their newest checkpoints", f"{methods} x {known['checkpoint_gb']:g} GB", methods * known["checkpoint_gb"]
    )
    each = sample_mb(recipe["evaluate"])
    yield Item("samples to compare", f"{compared:,} x {each:.3g} MB", compared * each / 1e3)


def memory(recipe: dict[str, Any]) -> Iterator[Item]:
    """Gigabytes on the GPU while it trains, which takes the most."""
    for what, gigabytes in recipe["estimate"]["memory_gb"].items():
        yield Item(what, "", gigabytes)


def hours(recipe: dict[str, Any]) -> Iterator[Item]:
    """Hours of one GPU."""
    known, rows, compared = recipe["estimate"], num_rows(recipe), num_compared(recipe)
    pass_s, score_s = known["pass_s"], known["score_s"]

    def drawing(what: str, settings: dict[str, Any], count: int) -> Item:
        steps = settings["num_inference_steps"]
        is_distilled = "train_guidance_scale" in recipe["train"]  # the guidance is an input of the network
        passes = 1 if is_distilled else 2  # with the prompt and without
        arithmetic = f"{count:,} x {steps} steps x {passes} x {pass_s:g} s"
        return Item(what, arithmetic, count * steps * passes * pass_s / HOUR)

    if "generate" in recipe:
        yield drawing("drawing", recipe["generate"], rows)
        count = len(recipe["score"]["rewards"])
        yield Item("scoring", f"{rows:,} x {count} x {score_s:g} s", rows * count * score_s / HOUR)
    yield Item("encoding", f"{rows:,} x {known['encode_s']:g} s", rows * known["encode_s"] / HOUR)
    for label, own in recipe["methods"].items():
        settings = {**recipe["train"], **own}
        in_update = settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"]
        trained, passes = settings["max_steps"] * in_update, PASSES[settings.get("loss_type", "tgo")]
        passes += 0 if settings.get("use_peft", True) else PASSES_OF_ALL_WEIGHTS
        arithmetic = f"{settings['max_steps']:,} x {in_update} rows x {passes} x {pass_s:g} s"
        yield Item(f"training {label}", arithmetic, trained * passes * pass_s / HOUR)
    yield drawing("drawing to compare", recipe["evaluate"], compared)
    count = len(recipe["evaluate"]["rewards"])
    yield Item("scoring to compare", f"{compared:,} x {count} x {score_s:g} s", compared * count * score_s / HOUR)


def totals(recipe: dict[str, Any]) -> tuple[float, float, float]:
    """Gigabytes on disk, gigabytes on the GPU, and GPU hours."""
    disk_gb, memory_gb, gpu_hours = (sum(item.amount for item in part(recipe)) for part in (disk, memory, hours))
    return disk_gb, memory_gb, gpu_hours


def print_costs(recipe: dict[str, Any]) -> None:
    """Prints three tables in Markdown, each with its sum."""
    print(f"# {recipe['model']}: what it takes on one GPU, computed")
    for title, unit, part in (("Disk", "GB", disk), ("GPU memory", "GB", memory), ("GPU time", "hours", hours)):
        items = list(part(recipe))
        print(f"\n## {title}\n\n| what | arithmetic | {unit} |\n|---|---|---|")
        for item in items:
            print(f"| {item.what} | {item.arithmetic} | {item.amount:,.1f} |")
        print(f"| **together** | | **{sum(item.amount for item in items):,.1f}** |")
    print(
        f"\nA PNG file has {PNG_BYTES:g} bytes a pixel, assumed; a pass is one of the network over one sample. Where "
        "its time and the other numbers are from stands in the recipe, under `estimate`. None of this was run at full "
        "size."
    )
