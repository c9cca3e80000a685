"""Aligns a pipeline online: rounds of drawing images, scoring them, and training on them.

    accelerate launch examples/iterate.py --model_name_or_path stable-diffusion-v1-5/stable-diffusion-v1-5 \
        --prompts prompts.txt --reward hpsv2.1 --num_rounds 4 --output_dir sd15-online --max_steps 50

Each round draws from the policy of the round before, fits the threshold to the new scores, and trains on with that
policy as the reference, so that every round is a step of its own towards higher scores. One round is what `tgo-trl
generate`, `score` and `train` do. A run that was stopped goes on where it was when it is started again: in the middle
of drawing, of scoring, or, with `--save_strategy steps`, of training.
"""

import copy
from dataclasses import dataclass, field
from pathlib import Path

from tgo_trl import GenerateConfig, ScoreConfig, TGOConfig, generate, score
from tgo_trl.commands.train import TrainArguments
from tgo_trl.commands.train.run import train
from tgo_trl.parser import SettingsParser


@dataclass
class RoundArguments:
    """What is drawn and scored in each round; how it is trained on is in `TGOConfig`."""

    model_name_or_path: str = field(metadata={"help": "Hub id or folder of the pipeline."})
    prompts: str = field(metadata={"help": "File of prompts, one a line, or a data set that has them."})
    reward: str = field(metadata={"help": "Name of a reward model, or `file.py:function`."})
    num_rounds: int = field(default=4, metadata={"help": "Rounds of drawing, scoring and training."})
    num_images_per_prompt: int = field(default=4, metadata={"help": "Images of each prompt in each round."})
    num_inference_steps: int | None = field(default=None, metadata={"help": "Steps of each image."})
    guidance_scale: float | None = field(default=None, metadata={"help": "Guidance of each image."})
    generate_batch_size: int = field(default=4, metadata={"help": "Images drawn at once."})
    score_batch_size: int = field(default=32, metadata={"help": "Images scored at once."})


def run_rounds(rounds: RoundArguments, args: TGOConfig) -> list[Path]:
    """Runs what has not been run yet; returns the folder of each round's adapter."""
    adapters: list[Path] = []
    for index in range(rounds.num_rounds):
        folder = Path(args.output_dir) / f"round-{index}"
        before = adapters[-1] if adapters else None
        drawn = generate(
            GenerateConfig(
                model_name_or_path=rounds.model_name_or_path,
                prompts=rounds.prompts,
                output_dir=str(folder / "drawn"),
                adapter_name_or_path=None if before is None else str(before),
                model_init_kwargs=args.model_init_dict,
                height=args.height or args.resolution,
                width=args.width or args.resolution,
                num_frames=args.num_frames,
                max_sequence_length=args.max_sequence_length,
                num_images_per_prompt=rounds.num_images_per_prompt,
                num_inference_steps=rounds.num_inference_steps,
                guidance_scale=rounds.guidance_scale,
                batch_size=rounds.generate_batch_size,
                seed=args.seed + index,
                disable_tqdm=args.disable_tqdm,
            )
        )
        scored = score(
            ScoreConfig(
                dataset_name=str(drawn),
                output_dir=str(folder / "scored"),
                rewards=[rounds.reward],
                batch_size=rounds.score_batch_size,
                disable_tqdm=args.disable_tqdm,
            )
        )
        adapters.append(train_round(rounds.model_name_or_path, before, scored, args, index))
    return adapters


def train_round(model: str, before: Path | None, scored: Path, args: TGOConfig, index: int) -> Path:
    """Trains one round, from the adapter of the round before; returns the folder of its adapter."""
    folder = scored.parent / "adapter"
    if all((folder / name).is_file() for name in ("tgo_config.json", "README.md")):  # saved last: this round is done
        return folder
    args = copy.copy(args)
    args.output_dir = str(folder)
    args.seed += index
    args.resume_from_checkpoint = None  # a round goes on from its own
    train(TrainArguments(model, str(scored), adapter_name_or_path=None if before is None else str(before)), args)
    return folder


if __name__ == "__main__":
    run_rounds(*SettingsParser((RoundArguments, TGOConfig)).parse_args_and_config())
