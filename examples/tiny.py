"""What `--tiny` puts in place of published models and data sets: random ones, made here, of a few kilobytes.

Needs a checkout: the builders are those of the tests.
"""

import importlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import datasets

from tgo_trl.settings import read_settings

sys.path.insert(0, str(Path(__file__).parents[1]))

MODELS = {
    "black-forest-labs/FLUX.1-dev": ("flux", "33.7 GB in bfloat16"),
    "MeissonFlow/Meissonic": ("meissonic", "6.0 GB in float32"),
    "stable-diffusion-v1-5/stable-diffusion-v1-5": ("stable_diffusion", "5.5 GB in float32"),
    "stabilityai/stable-diffusion-3.5-medium": ("stable_diffusion_3", "16.3 GB in 16 bits"),
    "stabilityai/stable-diffusion-xl-base-1.0": ("stable_diffusion_xl", "13.9 GB in float32"),
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": ("wan", "28.9 GB in float32"),
}
"""Of the recipes' models, the module of `tests.tiny` that builds such a pipeline, and the size of the files."""
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

    module = importlib.import_module(f"tests.tiny.{kind}")
    folder = _write_stand_ins(module, recipe.get("score_column", "score"))
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
    }
    return [text for name, value in settings.items() for text in (f"--{name}", str(value))]


def _write_stand_ins(module: ModuleType, score_column: str) -> Path:
    """The folder of a pipeline, in `model`, and of rows for it, in `rows`, as Hub repositories would have them."""
    tiny = importlib.import_module("tests.tiny")
    folder = Path(_FOLDER.name)
    module.build().save_pretrained(folder / "model")
    num_frames = getattr(module, "NUM_FRAMES", None)
    rows = tiny.scored_rows(8) if num_frames is None else tiny.scored_videos(8, num_frames)
    (folder / "rows").mkdir()
    rows.rename_columns({"score": score_column}).to_parquet(folder / "rows" / "train.parquet")
    datasets.config.HF_DATASETS_CACHE = folder / "cache"  # so that nothing stays behind in the user's
    return folder
