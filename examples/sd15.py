"""Aligns Stable Diffusion 1.5 with scored images, in the paper's setting of scalar feedback.

    accelerate launch examples/sd15.py --output_dir sd15-tgo
    accelerate launch examples/sd15.py --output_dir sd15-tgo --dataset_name username/scored-images --score_column score
    python examples/sd15.py --tiny

The data are rows of a prompt, an image and a score. The paper drew its images with the model that it trained, one for
each of 10,000 prompts, and scored them with a reward model; those of the default data set are of several models, and
rated by people. `--config settings.yaml` takes the names of the command line, which overrides it.
"""

from dataclasses import dataclass, field

from datasets import load_dataset
from trl import ScriptArguments

from tgo_trl import TGOConfig, TGOTrainer
from tgo_trl.parser import SettingsParser

MODEL = "stable-diffusion-v1-5/stable-diffusion-v1-5"
MODEL_SIZE = "5.5 GB in float32"  # of its files, in GB: UNet 3.44, safety checker 1.22, text encoder 0.49, VAE 0.33
DATASET = "Rapidata/text-2-image-Rich-Human-Feedback"  # 13,024 images; the scores are mean ratings from 1 to 5
DATASET_SIZE = "17.9 GB"  # `download_size` in its card

DEFAULTS = {
    "output_dir": "sd15-tgo",
    "score_column": "alignment_score",  # there are also coherence_score and style_score
    # the paper's
    "beta": 1.0,
    "temperature": "auto",  # 0.001 at 512 pixels
    "confidence_coef": 5.0,
    "threshold_type": "percentile",
    "threshold_percentile": 50.0,
    "max_steps": 78,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 16,  # 8 x 16 = 128 rows an update on one GPU; divide by the number of GPUs
    "resolution": 512,
    # an adapter needs more than the paper's 1e-5: for all weights, `--use_peft false --learning_rate 1e-5`
    "learning_rate": 1e-4,
    "lora_r": 16,
    "lora_alpha": 32,
    "bf16": True,  # gradient checkpointing is on by default
    "logging_steps": 2,
    "sample_prompts": ["a red fox in the snow", "a lighthouse at dusk", "a blue book between two cups"],
    "sample_steps": 26,
}

TINY = {
    "output_dir": "outputs/sd15-tiny",
    "encoding_cache_dir": "outputs/sd15-tiny/encodings",
    "max_steps": 2,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "resolution": 16,
    "bf16": False,
    "use_cpu": True,
    "logging_steps": 1,
    "sample_num_inference_steps": 2,
}


@dataclass
class SD15Arguments(ScriptArguments):
    dataset_name: str = field(default=DATASET, metadata={"help": "Hub id or folder of the scored images."})
    model_name_or_path: str = field(default=MODEL, metadata={"help": "Hub id or folder of the pipeline."})
    tiny: bool = field(default=False, metadata={"help": "Try it with a tiny random model on the CPU; not in --config."})


def main(script_args: SD15Arguments, training_args: TGOConfig) -> None:
    dataset = load_dataset(
        script_args.dataset_name, name=script_args.dataset_config, streaming=script_args.dataset_streaming
    )
    trainer = TGOTrainer(
        script_args.model_name_or_path,
        training_args,
        train_dataset=dataset[script_args.dataset_train_split],
        eval_dataset=dataset[script_args.dataset_test_split] if training_args.eval_strategy != "no" else None,
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model()
    trainer.accelerator.print(f"Saved to {training_args.output_dir}.")
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name=script_args.dataset_name)
    trainer.end()


if __name__ == "__main__":
    parser = SettingsParser((SD15Arguments, TGOConfig))
    parser.set_defaults(**DEFAULTS)
    if parser.parse_known_args()[0].tiny:
        from tiny import stand_ins

        print(f"Without --tiny, this downloads {MODEL} ({MODEL_SIZE}) and {DATASET} ({DATASET_SIZE}).")
        parser.set_defaults(**TINY, **stand_ins("stable_diffusion", score_column=DEFAULTS["score_column"]))
    main(*parser.parse_args_and_config())
