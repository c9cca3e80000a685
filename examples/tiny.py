"""What `--tiny` puts in place of published models and data sets: random ones, made here, of a few kilobytes.

Needs a checkout: the builders are those of the tests.
"""

import importlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import datasets
import numpy as np
from diffusers import DiffusionPipeline

from tgo_trl.settings import read_settings

sys.path.insert(0, str(Path(__file__).parents[1]))

MODELS = {
    "black-forest-labs/FLUX.1-dev": ("flux", "33.7 GB in bfloat16"),
    "black-forest-labs/FLUX.1-Kontext-dev": ("flux_kontext", "33.7 GB in bfloat16"),
    "black-forest-labs/FLUX.2-klein-base-4B": ("flux2", "16.0 GB in bfloat16"),
    "MeissonFlow/Meissonic": ("meissonic", "6.0 GB in float32"),
    "Qwen/Qwen-Image": ("qwen_image", "57.7 GB in bfloat16"),
    "stable-diffusion-v1-5/stable-diffusion-v1-5": ("stable_diffusion", "5.5 GB in float32"),
    "stabilityai/stable-diffusion-3.5-medium": ("stable_diffusion_3", "16.3 GB in 16 bits"),
    "stabilityai/stable-diffusion-xl-base-1.0": ("stable_diffusion_xl", "13.9 GB in float32"),
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": ("wan", "28.9 GB in float32"),
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": ("wan_image_to_video", "34.2 GB, float32 but for the text encoder"),
}
"""Of the recipes' models, the module of `tests.tiny` that builds such a pipeline, and the size of the files."""
EDITS = {"flux2": "flux2_edit"}
"""Of modules whose pipelines make samples from prompts alone or from images, the one for recipes with sources."""
SAVED_AS = {"Wan-AI/Wan2.2-TI2V-5B-Diffusers": ("wan", "build_ti2v")}
"""Of models whose repository names another class than the recipe's `pipeline_class`: what builds the former."""
DATASETS = {"Rapidata/text-2-image-Rich-Human-Feedback": "17.9 GB"}  # `download_size` in its card

_FOLDER = tempfile.TemporaryDirectory(prefix="tgo_trl-tiny-")  # removed when the program ends


def tiny_arguments(arguments: Sequence[str]) -> list[str]:
    """What makes two quick updates of a recipe, on a random pipeline and eight scored rows, which are written here.

    Args:
        arguments: of the command line, with the recipe after `--config`; they go after those that are returned.
    """
    if "--config" not in arguments[:-1]:
        raise ValueError("`--tiny` makes a recipe small. Name one: `--config recipes/sd15.yaml --tiny`.")
    path = Path(arguments[arguments.index("--config") + 1])
    recipe = {name: setting.value for name, setting in read_settings(path).items()}
    model, dataset = recipe.get("model_name_or_path"), recipe.get("dataset_name")
    if model not in MODELS:
        raise ValueError(f"`--tiny` has nothing for the model {model!r} of {path}, only for {', '.join(MODELS)}.")
    kind, size = MODELS[model]
    data = f"{dataset} ({DATASETS.get(dataset, 'of unknown size')})" if dataset else "the data set of --dataset_name"
    print(f"Without --tiny, this downloads {model} ({size}) and {data}.")

    module = importlib.import_module(f"tests.tiny.{EDITS.get(kind, kind) if 'source_column' in recipe else kind}")
    saved, build = SAVED_AS.get(model, (module.__name__.rpartition(".")[2], "build"))
    pipeline = getattr(importlib.import_module(f"tests.tiny.{saved}"), build)()
    folder = _write_stand_ins(pipeline, module, recipe.get("score_column", "score"))
    sampled = {"sample_prompts": "a red cat", "sample_sources": folder / "source.png"} if _is_edited(module) else {}
    output_dir = f"outputs/{path.stem}-tiny"
    settings = {
        "model_name_or_path": folder / "model",
        "dataset_name": folder / "rows",
        "output_dir": output_dir,
        "encoding_cache_dir": f"{output_dir}/encodings",
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "bf16": False,
        "use_cpu": True,
        "logging_steps": 1,
        "sample_num_inference_steps": 2,
        **dict.fromkeys(("height", "width") if "height" in recipe else ("resolution",), module.RESOLUTION),
        **module.SETTINGS,  # a few tokens, and of videos a few frames
        **sampled,
    }
    return [text for name, value in settings.items() for text in (f"--{name}", str(value))]


def _write_stand_ins(pipeline: DiffusionPipeline, module: ModuleType, score_column: str) -> Path:
    """The folder of a pipeline, in `model`, and of a module's rows, in `rows`, as Hub repositories would have them.

    Rows of edits have a `source_image`, a picture or the first frame of their video, and that of the first row is also
    in `source.png`.
    """
    tiny = importlib.import_module("tests.tiny")
    folder = Path(_FOLDER.name)
    pipeline.save_pretrained(folder / "model")
    num_frames = getattr(module, "NUM_FRAMES", None)
    rows = tiny.scored_rows(8) if num_frames is None else tiny.scored_videos(8, num_frames)
    if _is_edited(module):
        sources = [module.SOURCES[i % 2] if num_frames is None else rows[i]["video"][:1] for i in range(len(rows))]
        rows = tiny.with_sources(rows, sources)
        sources[0][0].save(folder / "source.png")
    (folder / "rows").mkdir()
    rows.rename_columns({"score": score_column}).to_parquet(folder / "rows" / "train.parquet")
    datasets.config.HF_DATASETS_CACHE = folder / "cache"  # so that nothing stays behind in the user's
    return folder


def _is_edited(module: ModuleType) -> bool:
    """Whether its pipeline makes samples from images."""
    return hasattr(module, "SOURCES")


# ---- For `paper.py` ----


def shrink_paper(recipe: dict[str, Any], folder: Path, write: bool = True) -> dict[str, Any]:
    """A recipe of `recipes/paper/` with two quick updates of each method, on what is written to a folder, once.

    Args:
        recipe: by command, as it is published.
        folder: of the stand-ins, which stay, so that the commands can be run by hand.
        write: whether they are written if they are not there.
    """
    kind, size = MODELS[recipe["model"]]
    module = importlib.import_module(f"tests.tiny.{kind}")
    if write and not (folder / "model" / "model_index.json").exists():
        print(
            f"Without --tiny, this downloads {recipe['model']} ({size}), rewards and prompts; --estimate has the rest."
        )
        _write_prompts_and_pairs(folder)
        module.build().save_pretrained(folder / "model")
    rewards = [f"{Path(__file__).resolve()}:{name}" for name in ("brightness", "contrast")]
    size_of = {"height": module.RESOLUTION, "width": module.RESOLUTION}
    sampling = {"num_inference_steps": 2, **size_of, "batch_size": 4, "disable_tqdm": True, **module.SETTINGS}
    small = {
        **recipe,
        "model": str(folder / "model"),
        "train": {
            **recipe["train"], "max_steps": 2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2,
            "bf16": False, "use_cpu": True, "logging_steps": 1, "disable_tqdm": True, "report_to": "none",
            **(size_of if "height" in recipe["train"] else {"resolution": module.RESOLUTION}), **module.SETTINGS,
        },
        "methods": {
            label: {**own, **({"warmup_steps": 1} if "warmup_steps" in own else {})}
            for label, own in recipe["methods"].items()
        },
        "evaluate": {
            **recipe["evaluate"], "rewards": rewards, "reward_kwargs": {}, "num_resamples": 100, **sampling,
            "prompts": ["test"] if "prompts" in recipe else [str(folder / "prompts.txt")],
        },
    }  # fmt: skip
    small.pop("published", None)
    if "convert" in recipe:
        small["convert"] = {**recipe["convert"], "dataset_name": str(folder / "pairs.parquet")}
    else:
        small["score"] = {**recipe["score"], "rewards": rewards[:1], "reward_kwargs": {}}
        small["generate"] = {**recipe["generate"], **sampling, "num_images_per_prompt": 2}
    if "prompts" in recipe:
        source = {"source": str(folder / "prompts.txt"), "train": 4, "test": 2}
        small["prompts"] = {**recipe["prompts"], **source}
    elif "generate" in recipe:
        small["generate"] |= {"prompts": str(folder / "prompts.txt"), "max_prompts": 4}
    return small


def _write_prompts_and_pairs(folder: Path) -> None:
    """Six prompts, and pairs of images as Pick-a-Pic v2 has them: of three images, one wins twice, one ties."""
    data = importlib.import_module("tests.tiny.data")
    prompts = [*data.PROMPTS, "a white horse", "a black cow"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prompts.txt").write_text("\n".join(prompts) + "\n", "utf-8")
    outcomes = ((0, 1, 1.0), (0, 2, 1.0), (1, 2, 0.5))
    rows = [(i, *outcome) for i in range(len(prompts)) for outcome in outcomes]
    images = {(i, j): data.picture(10 * i + j) for i in range(len(prompts)) for j in range(3)}
    columns: dict[str, list[Any]] = {
        "caption": [prompts[i] for i, *_ in rows],
        "label_0": [score for *_, score in rows],
        "label_1": [1 - score for *_, score in rows],
        "has_label": [True] * len(rows),
    }
    for side in (0, 1):
        columns[f"jpg_{side}"] = [images[row[0], row[1 + side]] for row in rows]
        columns[f"image_{side}_uid"] = [f"{row[0]}-{row[1 + side]}" for row in rows]
    datasets.Dataset.from_dict(columns).to_parquet(folder / "pairs.parquet")


def brightness(prompts: Sequence[str], samples: Sequence[Any]) -> list[float]:
    """A reward: the mean of the numbers of each image, or video, from 0 to 1."""
    return [float(np.mean([np.asarray(frame) for frame in _frames(sample)]) / 255) for sample in samples]


def contrast(prompts: Sequence[str], samples: Sequence[Any]) -> list[float]:
    """Another: their standard deviation."""
    return [float(np.std([np.asarray(frame) for frame in _frames(sample)]) / 255) for sample in samples]


def _frames(sample: Any) -> list[Any]:
    return sample if isinstance(sample, list) else [sample]
