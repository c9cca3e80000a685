"""The five commands of a first run, one after the other, on a small pipeline of handwritten digits.

Each is printed as it would be typed, and does what it does when it is. Model, prompts and reward are copied to the
output folder first, so that the commands are short and can be changed and typed again.
"""

import importlib.util
import shlex
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from ...storage.files import replace_file, sweep, write_json
from ...storage.processes import process_state
from ...storage.records import read_record
from ...trainer.tgo_config import TGOConfig
from ..evaluate.config import EvaluateConfig
from ..evaluate.run import evaluate
from ..generate.config import GenerateConfig
from ..generate.run import generate
from ..inspect.config import InspectConfig
from ..inspect.run import inspect
from ..score.config import ScoreConfig
from ..score.run import score
from ..sharded_run import check_own_folder, locks_output_dir
from ..train.config import TrainArguments
from ..train.run import train
from .config import DemoConfig

RECORD_NAME = "demo.json"
FILES = ("base", "prompts.txt", "digits.py", "reward.py")
"""Of the digits world, what the commands need; `pyproject.toml` has the same."""
SHARE = "shows_asked_digit"
"""The reward whose mean is the share of right digits."""

Settings = dict[str, Any]


def demo(config: DemoConfig) -> dict[str, float]:
    """Draws, scores, reports, trains and compares; goes on where it was stopped.

    Args:
        config: where to, and how long.

    Returns:
        Of the images of `base` and of `adapter`, the share that shows the digit asked for, by a scorer that training
        does not see. In `config.output_dir` are `digits` (what is worked on), `drawn`, `scored`, `report`, `adapter`
        and `evaluation`, each as its command writes it, and `demo.json`, the shares.

    Raises:
        ImportError: without scikit-learn, before anything is written.
        FileNotFoundError: without the files of the digits world, likewise.
        ValueError: if the folder holds something else, or a demo with other settings.
    """
    _check_installation()
    return _demo(config)


@locks_output_dir
def _demo(config: DemoConfig) -> dict[str, float]:
    folder = Path(config.output_dir)
    _check_folder(config, folder)
    write_json(folder / RECORD_NAME, {"settings": _settings(config)})
    _copy(digits_folder(), folder / "digits")
    commands = demo_commands(config)
    for number, (name, settings) in enumerate(commands.items(), 1):
        print(f"\n[{number}/{len(commands)}] {PURPOSES[name]}\n\n{as_typed(name, settings)}\n", flush=True)
        RUNS[name](settings)
    means = read_means(folder / "evaluation")
    write_json(folder / RECORD_NAME, {"settings": _settings(config), "share_of_asked_digits": means})
    _print_ending(config, folder, means)
    return means


def digits_folder() -> Path:
    """Where the digits world is: beside this module if the package is from a wheel, in a source tree `examples`.

    Raises:
        FileNotFoundError: if it is in neither.
    """
    package = Path(__file__).parents[2]
    for folder in (Path(__file__).parent / "digits", package.parent / "examples" / "digits"):
        if all((folder / name).exists() for name in FILES):
            return folder
    raise FileNotFoundError("The demo's files are missing from this installation. Reinstall tgo_trl from a wheel.")


def demo_commands(config: DemoConfig) -> dict[str, Settings]:
    """The settings of each command, in order: those of the quick start, or less of them with `quick`."""
    folder = Path(config.output_dir)
    digits = folder / "digits"
    base, prompts, rewards = str(digits / "base"), str(digits / "prompts.txt"), digits / "reward.py"
    drawing = {"num_inference_steps": 8 if config.quick else 20, "guidance_scale": 1, "batch_size": 40}
    return {
        "generate": {
            "model_name_or_path": base,
            "prompts": prompts,
            "num_images_per_prompt": 4 if config.quick else 24,
            **drawing,
            "seed": config.seed,
            "output_dir": str(folder / "drawn"),
        },
        "score": {
            "dataset_name": str(folder / "drawn"),
            "rewards": [f"{rewards}:asked_digit"],
            "output_dir": str(folder / "scored"),
        },
        "inspect": {"dataset_name": str(folder / "scored"), "output_dir": str(folder / "report")},
        "train": {
            "model_name_or_path": base,
            "dataset_name": str(folder / "scored"),
            "output_dir": str(folder / "adapter"),
            "recipe": "robust",
            "max_steps": 10 if config.quick else 200,
            "per_device_train_batch_size": 16 if config.quick else 64,
            "learning_rate": 1e-3,
            "lr_scheduler_type": "cosine",
            "seed": config.seed,
        },
        "evaluate": {
            "models": [f"base={base}", f"adapter={base}+{folder / 'adapter'}"],
            "prompts": prompts,
            "rewards": [f"{rewards}:{SHARE}"],
            "num_images_per_prompt": 1 if config.quick else 8,
            **drawing,
            "seed": config.seed + 1,  # other images than those that were trained on
            "output_dir": str(folder / "evaluation"),
        },
    }


def as_typed(name: str, settings: Mapping[str, Any]) -> str:
    """A command as it is typed into a shell, a setting a line."""
    lines = [f"tgo-trl {name}"]
    for setting, value in settings.items():
        words = value if isinstance(value, list) else [str(value)]
        lines.append(shlex.join([f"--{setting}", *words]))
    return " \\\n    ".join(lines)


def read_means(folder: Path) -> dict[str, float]:
    """The mean of the reward by the label of the model, the base first, as `tgo-trl evaluate` wrote them."""
    record = read_record(folder, "evaluation.json")
    assert record is not None
    means = record["overall"]["rewards"][SHARE]["means"]
    return {label: float(means[label]["value"]) for label in ("base", "adapter")}


# ---- Parts ----


def _train(settings: Settings) -> None:
    what = {name: settings[name] for name in ("model_name_or_path", "dataset_name")}
    train(TrainArguments(**what), TGOConfig(**{name: settings[name] for name in settings if name not in what}))


PURPOSES = {
    "generate": "Draw digits for prompts, by a model whose captions were wrong three times in ten",
    "score": "Score each by how probably it shows the digit asked for",
    "inspect": "Report on the scores before training on them",
    "train": "Train an adapter",
    "evaluate": "Compare it with its base, on other images and by a scorer that training has not seen",
}
RUNS: dict[str, Callable[[Settings], object]] = {
    "generate": lambda settings: generate(GenerateConfig(**settings)),
    "score": lambda settings: score(ScoreConfig(**settings)),
    "inspect": lambda settings: inspect(InspectConfig(**settings)),
    "train": _train,
    "evaluate": lambda settings: evaluate(EvaluateConfig(**settings)),
}


def _check_installation() -> None:
    if importlib.util.find_spec("sklearn") is None:
        raise ImportError('The demo scores digits with scikit-learn, which is missing: pip install "tgo_trl[demo]"')
    if process_state().num_processes > 1:
        raise ValueError("The demo runs in one process. Leave out `--num_processes` and `--accelerate_config`.")
    digits_folder()


def _check_folder(config: DemoConfig, folder: Path) -> None:
    check_own_folder(folder, RECORD_NAME)
    record = read_record(folder, RECORD_NAME)
    if record is not None and record["settings"] != _settings(config):
        before = ", ".join(f"`{name}` {value}" for name, value in sorted(record["settings"].items()))
        raise ValueError(
            f"The folder {str(folder)!r} holds a demo with other settings: {before}. Set another `output_dir`."
        )


def _settings(config: DemoConfig) -> Settings:
    return {name: value for name, value in asdict(config).items() if name != "output_dir"}


def _copy(source: Path, folder: Path) -> None:
    """Copies what is not there yet: a file that is there is whole, and may have been changed by its owner."""
    found = [path for name in FILES for path in ((source / name), *sorted((source / name).rglob("*")))]
    for path in found:
        copy = folder / path.relative_to(source)
        if path.is_dir():
            copy.mkdir(parents=True, exist_ok=True)
            sweep(copy)
        elif not copy.exists():
            replace_file(copy, partial(shutil.copyfile, path))


def _print_ending(config: DemoConfig, folder: Path, means: Mapping[str, float]) -> None:
    shares = ", ".join(f"{label} {100 * mean:.1f} %" for label, mean in means.items())
    print(f"\nShare of images that show the digit asked for: {shares}.")
    if config.quick:
        print("With --quick this only shows that everything runs: leave it out, and set another --output_dir.")
    print(f"Written: {folder / 'adapter'}, which diffusers loads with `pipeline.load_lora_weights`")
    print(f"Written: {folder / RECORD_NAME}, {folder / 'report'}, {folder / 'evaluation'}")
    print(f"Look at: {folder / 'evaluation' / 'grid-1.png'}, the same prompts and seeds before and after")
    print(
        "Next: the same commands with a model, prompts and a reward of your own (--rewards hpsv2.1, or a function in a "
        f"file like {folder / 'digits' / 'reward.py'})."
    )
