"""Compares online rounds with one offline round in the digits world, on as many images and updates.

    python examples/digits/rounds.py --output_dir outputs/rounds

Offline: all images are drawn from the base, and trained on once. Online: `--num_rounds` rounds with a share of images
and updates each, every one drawn from the policy of the round before. Both are judged on fresh seeds by a scorer that
gave no score; see `demo.py`.
"""

import argparse
import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from demo import SCORERS, WORLD, Options, Result, evaluate, print_results
from digits import DIGIT_NAMES, prompts_of
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from tgo_trl import RoundsConfig, TGOConfig
from tgo_trl import rounds as run_rounds

ONLINE, OFFLINE = "#4c72b0", "#dd8452"


@dataclass
class Budget:
    """What both ways may spend."""

    output_dir: Path = Path("outputs/rounds")
    images_per_prompt: int = 24
    num_updates: int = 120
    num_rounds: int = 4
    batch_size: int = 64
    learning_rate: float = 1e-3
    beta: float = 3.0
    num_seeds: int = 6
    images_per_seed: int = 500
    num_inference_steps: int = 20


def run(budget: Budget, num_rounds: int) -> list[Path]:
    """The adapter of each round, of `num_rounds` that share the budget."""
    budget.output_dir.mkdir(parents=True, exist_ok=True)
    prompts = budget.output_dir / "prompts.txt"
    prompts.write_text("\n".join(prompt for digit in range(len(DIGIT_NAMES)) for prompt in prompts_of(digit)) + "\n")
    rounds = RoundsConfig(
        model_name_or_path=str(WORLD.base),
        prompts=str(prompts),
        rewards=[f"{Path(__file__).parent / 'reward.py'}:asked_digit"],
        num_rounds=num_rounds,
        num_images_per_prompt=budget.images_per_prompt // num_rounds,
        num_inference_steps=budget.num_inference_steps,
        guidance_scale=1.0,
        generate_batch_size=64,
        score_batch_size=256,
    )
    args = TGOConfig(
        str(budget.output_dir / f"{num_rounds}-rounds"),
        beta=budget.beta,
        max_steps=budget.num_updates // num_rounds,
        per_device_train_batch_size=budget.batch_size,
        learning_rate=budget.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=budget.num_updates // num_rounds // 10,
        logging_steps=20,
        save_strategy="no",
        gradient_checkpointing=False,
        report_to="none",
        encode_batch_size=64,
        encoding_cache_dir=str(budget.output_dir / "encodings"),
        use_cpu=True,
    )
    run_rounds(rounds, args)
    return [Path(str(args.output_dir)) / f"round-{number}" / "adapter" for number in range(1, num_rounds + 1)]


def draw_chart(results: list[Result], path: Path) -> None:
    """The share of right digits after each round, with its confidence interval: a panel for each scorer.

    Args:
        results: of the base, of one offline round, and of each online round.
        path: of the PNG.
    """
    base, offline, *online = results
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    panels = figure.subplots(1, len(SCORERS), sharey=True)
    for axes, scorer in zip(panels, SCORERS, strict=True):
        means, halves = zip(*(result.interval(scorer) for result in (base, *online)), strict=True)
        axes.errorbar(range(len(means)), means, halves, color=ONLINE, marker="o", capsize=3, label="online")
        mean, half = offline.interval(scorer)
        axes.axhline(mean, color=OFFLINE, linestyle="--", label="one offline round with the whole budget")
        axes.axhspan(mean - half, mean + half, color=OFFLINE, alpha=0.15, linewidth=0)
        axes.set_title(f"judged by the {scorer}", fontsize=10)
        axes.set(xlabel="round (0: base)", xticks=range(len(means)))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    panels[0].set_ylabel("images with the asked digit")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=120)


def main(budget: Budget) -> None:
    """Runs both, judges every round, and writes table and chart."""
    torch.set_num_threads(1)
    options = Options(
        num_seeds=budget.num_seeds, images_per_seed=budget.images_per_seed,
        num_inference_steps=budget.num_inference_steps,
    )  # fmt: skip
    (offline,), online = run(budget, 1), run(budget, budget.num_rounds)
    results = [evaluate("base", None, options), evaluate("one offline round", offline, options)]
    results += [evaluate(f"online, round {i + 1}", adapter, options) for i, adapter in enumerate(online)]
    print_results(results)
    draw_chart(results, budget.output_dir / "rounds.png")
    (budget.output_dir / "results.json").write_text(json.dumps([asdict(result) for result in results], indent=2))
    _, whole, first, *_, last = (statistics.mean(result.accuracies["unseen scorer"]) for result in results)
    print(f"last round minus first, unseen scorer:                            {100 * (last - first):+.1f} points")
    print(f"last round minus one round with the whole budget, unseen scorer:  {100 * (last - whole):+.1f} points")
    print(f"chart: {budget.output_dir / 'rounds.png'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for option, default in vars(Budget()).items():
        parser.add_argument(f"--{option}", type=type(default), default=default)
    main(Budget(**vars(parser.parse_args())))
