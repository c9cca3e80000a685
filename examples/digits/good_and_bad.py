"""What the log shows of a run that goes wrong, beside one that does not, in the digits world.

    python examples/digits/good_and_bad.py --output_dir outputs/good_and_bad

The paper's settings, and `recipe="robust"`, on the same rows and the same draws: rewards, what tells them apart, and
the digits that both draw in the end. Takes five minutes on two cores.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from demo import Options, make_scored_dataset, show_digits, train
from digits import prompts_of
from matplotlib.figure import Figure
from PIL import Image

RUNS = {"paper's settings": "paper", 'recipe="robust"': "tgo"}
COLORS = {"paper's settings": "#c44e52", 'recipe="robust"': "#4c72b0"}
PANELS = {
    "rewards/margins": "rises in both",
    "rewards/displaced": "positives less likely than before",
    "drift/quartile_4": "error near the noise, over the base's",
    "prediction_difference": "distance to the base",
}
"""The metrics that are shown, and what they are."""


def log_of(history: Sequence[Mapping[str, float]], metric: str) -> tuple[list[float], list[float]]:
    """Updates and values of a metric."""
    entries = [entry for entry in history if metric in entry]
    return [entry["step"] for entry in entries], [entry[metric] for entry in entries]


def plot(
    histories: Mapping[str, Sequence[Mapping[str, float]]],
    prompts: list[str],
    samples: Mapping[str, list[Image.Image]],
    path: Path,
) -> None:
    """A panel for each metric, and a row of digits for each model, of which wrong ones have a red frame."""
    figure = Figure(figsize=(10, 6), layout="constrained")
    panels = figure.add_gridspec(len(samples) + 3, len(PANELS), height_ratios=[1] * len(samples) + [1.2] * 3)
    for i, (metric, meaning) in enumerate(PANELS.items()):
        axes = figure.add_subplot(panels[len(samples) :, i])
        for name, history in histories.items():
            axes.plot(*log_of(history, metric), color=COLORS[name], label=name)
        if metric.startswith("drift"):
            axes.set_yscale("log")
            axes.axhline(1, color="#bbbbbb", linewidth=0.8)
        axes.set_title(f"{metric}\n{meaning}", fontsize=9)
        axes.set_xlabel("update", fontsize=9)
        axes.tick_params(labelsize=8)
        if i == 0:
            handles = axes.get_legend_handles_labels()
    for i, (name, images) in enumerate(samples.items()):
        show_digits(figure.add_subplot(panels[i, :]), name, prompts, images)
    figure.legend(*handles, loc="outside lower center", ncols=len(histories), fontsize=9, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main(options: Options) -> Path:
    """Trains both, and writes the picture."""
    torch.set_num_threads(1)  # on networks this small, threads cost more than they give
    dataset = make_scored_dataset(options)
    prompts, seeds = [prompts_of(digit)[0] for digit in range(10) for _ in range(2)], list(range(20))
    kwargs = {"num_inference_steps": options.num_inference_steps, "guidance_scale": 1.0}
    histories, samples = {}, {}
    for name, run in RUNS.items():
        logging = {"logging_steps": max(1, options.num_updates // 20), "logging_first_step": True}
        trainer = train(run, dataset, options, sample_prompts=None, **logging)
        if not samples:
            samples["base"] = trainer.sample(prompts, seeds, from_reference=True, **kwargs)
        samples[name] = trainer.sample(prompts, seeds, **kwargs)
        histories[name] = trainer.state.log_history
    path = options.output_dir / "good_and_bad.png"
    plot(histories, prompts, samples, path)
    print(f"metrics and digits of both runs: {path}")
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for option, default in vars(Options(output_dir=Path("outputs/good_and_bad"))).items():
        if option not in ("num_seeds", "images_per_seed"):
            parser.add_argument(f"--{option}", type=type(default), default=default)
    main(Options(**vars(parser.parse_args())))
