"""Aligns an image or video generator with scores: one script for all models, whose settings are in `recipes/`.

    accelerate launch examples/train.py --config recipes/sd15.yaml
    accelerate launch examples/train.py --config recipes/sd15.yaml \\
        --dataset_name username/scored-images --score_column score
    python examples/train.py --config recipes/sd15.yaml --tiny

The command line overrides the recipe. `tgo-trl train --config recipes/sd15.yaml` does the same without a script, goes
on by itself where it was stopped, and opens no file outside the data set's folder; this one is there to be read, and to
be changed into your own.

The data are rows of a prompt, an image (or a video) and a score, of which higher is better. They may come from the
model itself, as in the paper (`tgo-trl generate`, then `tgo-trl score`), from other models, or from people's ratings.
The recipes of Diffusion-DPO and DSPO take rows of a prompt, a chosen and a rejected image as well (`docs/losses.md`).
"""

import sys
from dataclasses import dataclass, field

from tgo_trl.messages.foreign import leave_out_notes

leave_out_notes()  # of other libraries, which some make when they are loaded
# ruff: noqa: E402

import torch
from datasets import load_dataset
from diffusers import BitsAndBytesConfig
from trl import ScriptArguments

from tgo_trl import TGOConfig, TGOTrainer
from tgo_trl.parser import SettingsParser


@dataclass(kw_only=True)
class TrainArguments(ScriptArguments):
    """What is trained, and on what. How, is in `TGOConfig`."""

    model_name_or_path: str = field(metadata={"help": "Hub id or folder of the pipeline."})
    load_in_4bit: bool = field(default=False, metadata={"help": "Quantize the frozen network to 4 bits (NF4)."})


def main(script_args: TrainArguments, training_args: TGOConfig) -> None:
    if script_args.dataset_name is None:
        raise ValueError(
            "`--dataset_name` is missing: set a Hub id or folder with columns prompt, image or video, and score, or, "
            "of a `loss_type` that takes pairs, prompt, chosen and rejected."
        )
    dataset = load_dataset(
        script_args.dataset_name, name=script_args.dataset_config, streaming=script_args.dataset_streaming
    )

    quantization_config = None
    if script_args.load_in_4bit:  # of the frozen network; the adapter stays in float32, and is saved as ever
        quantization_config = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )

    # Making the trainer loads the pipeline, turns scores into labels and weights, and encodes images and prompts, once,
    # to a cache on disk.
    #
    # Labels. One threshold tau is found in the scores of all rows: with `threshold_type: percentile`, the 50th is the
    # median, so that half of the rows are positive (score >= tau), and half are negative. Training makes the positive
    # ones more likely than under the reference, which is the network with its adapter off, and the others less likely.
    #
    # Weights. A row far from tau says more than one beside it, whose label is a matter of noise. It counts
    # w = 1 + c |score - tau|, where c is `confidence_coef`; 0 makes all rows equal. c acts in score units: with ratings
    # from 1 to 5, c = 5 gives weights up to 16 or so, with scores between 0.2 and 0.3 hardly any difference. In other
    # units, set c to match, or `score_normalization: zscore`.
    #
    # The loss. Policy and reference see the same noise, and their denoising errors e stand for log-likelihoods:
    #
    #     log p = -e / T        r = beta (e_reference - e_policy) / T        loss = -w log sigmoid(r, or -r if negative)
    #
    # r is the row's implicit reward. `temperature` (T) is the scale of the errors: `auto` is the paper's 0.001 for
    # Stable Diffusion 1.5 at 512 pixels, less for larger latents, and 1 for masked tokens. `beta` is the price of
    # leaving the reference: where it is large, a small step away makes |r| large, the sigmoid is spent, and the policy
    # stays near; where it is small, it goes further for the scores, and loses variety. Only beta / T counts.
    #
    # As it stands, nothing holds the policy near to what the base can draw. `recipe: robust` does, in two ways: errors
    # are taken relative to the reference's own (`error_scale`), so that near the noise, where they are small, no larger
    # a step is allowed than elsewhere; and negative rows get no more weight than positive ones (`negative_weight`).
    trainer = TGOTrainer(
        script_args.model_name_or_path,
        training_args,
        train_dataset=dataset[script_args.dataset_train_split],
        eval_dataset=dataset[script_args.dataset_test_split] if training_args.eval_strategy != "no" else None,
        quantization_config=quantization_config,
    )

    # A table comes first, of threshold, share of positive rows, weights, and beta / T. Look at it, and at
    # `score_histogram.png` beside the adapter: a few weights of 30 and more are rows that outweigh all others.
    #
    # Then the log, every `logging_steps` updates:
    #   loss                   begins at ln 2 x the mean weight, and falls.
    #   rewards/margins        mean r of positive rows less that of negative ones: begins at exactly 0, and rises.
    #   rewards/accuracies     share of rows whose r has the sign of their label. May stay near 0.5 in a good run: r of
    #                          good and bad rows falls together, that of bad ones further.
    #   saturation/*           mean of the sigmoid. Stays at 0.5: nothing learns, so raise `learning_rate`, or lower
    #                          `temperature`. Near 1: nothing is left to learn from, so raise `temperature`.
    #   error_difference/*     by how much the policy's errors moved as asked, by quarter of the timesteps. Positive in
    #                          one of them only: the others are noise; raise `num_likelihood_samples`, or the batch.
    # And what shows a run that goes wrong, while its loss falls and its margin rises:
    #   drift/*                error of the policy over that of the reference, on positive rows, by quarter of the
    #                          timesteps: 1 at the start. Far above, mostly in the last: it no longer denoises them.
    #   rewards/displaced      share of positive rows with r < 0. Near 1, the policy has left all of them behind.
    #   prediction_difference  mean square of policy's less reference's prediction. Grows without end: nothing holds it.
    #   weights/balance        weight of negative rows over that of positive ones. Above 1, the negatives win at the
    #                          start. Bound the scores, or lower `confidence_coef`; then lower `learning_rate`.
    # The grids in `samples/` show the reference above the policy, at the same seeds: the last word is yours.
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)

    # What is saved is a LoRA as diffusers saves it. To sample with it, diffusers is all that is needed:
    #
    #     pipeline = DiffusionPipeline.from_pretrained("stable-diffusion-v1-5/stable-diffusion-v1-5").to("cuda")
    #     pipeline.load_lora_weights("sd15-tgo")  # `output_dir`, or its repository on the Hub
    #     pipeline("a red fox in the snow").images[0]
    #
    # The model card in `output_dir` has these lines for the model that was trained.
    trainer.save_model()
    trainer.accelerator.print(f"Saved to {training_args.output_dir}.")
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name=script_args.dataset_name)
    trainer.end()


if __name__ == "__main__":
    parser = SettingsParser((TrainArguments, TGOConfig))
    parser.add_argument("--tiny", action="store_true", help="Try a recipe with a tiny random model on the CPU.")
    arguments = sys.argv[1:]
    if "--tiny" in arguments:
        from tiny import tiny_arguments

        arguments = [*tiny_arguments(arguments), *arguments]  # the later of two counts
    main(*parser.parse_args_and_config(arguments)[:2])
