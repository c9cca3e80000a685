"""Aligns Stable Diffusion 3.5 medium with scored images.

    accelerate launch examples/sd3.py --output_dir sd3-tgo
    accelerate launch examples/sd3.py --output_dir sd3-tgo --dataset_name username/scored-images --score_column score
    python examples/sd3.py --tiny

The data are rows of a prompt, an image and a score. The weights are yours once you have accepted their licence on the
Hub and logged in (`hf auth login`). The paper has no run of Stable Diffusion 3: these are its settings for FLUX.1.
`--config settings.yaml` takes the names of the command line, which overrides it.
"""

from dataclasses import dataclass, field

from datasets import load_dataset
from trl import ScriptArguments

from tgo_trl import TGOConfig, TGOTrainer
from tgo_trl.parser import SettingsParser

MODEL = "stabilityai/stable-diffusion-3.5-medium"
MODEL_SIZE = "16.3 GB in 16 bits"  # of its files, in GB: transformer 4.94, text encoders 0.25, 1.39, 9.52, VAE 0.17
DATASET = "Rapidata/text-2-image-Rich-Human-Feedback"  # 13,024 images; the scores are mean ratings from 1 to 5
DATASET_SIZE = "17.9 GB"  # `download_size` in its card

DEFAULTS = {
    "output_dir": "sd3-tgo",
    "model_init_kwargs": {"torch_dtype": "bfloat16"},  # of frozen weights; the adapter's are float32
    "score_column": "alignment_score",  # there are also coherence_score and style_score
    # the paper's, for FLUX.1
    "beta": 1.0,
    "temperature": "auto",
    "confidence_coef": 5.0,
    "threshold_type": "percentile",
    "threshold_percentile": 50.0,
    "max_steps": 78,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 64,  # 2 x 64 = 128 rows an update on one GPU; divide by the number of GPUs
    "resolution": 1024,
    "learning_rate": 1e-4,
    "lora_r": 16,
    "lora_alpha": 32,
    "bf16": True,  # gradient checkpointing is on by default
    "logging_steps": 2,
    "sample_prompts": ["a red fox in the snow", "a lighthouse at dusk", "a blue book between two cups"],
    "sample_steps": 26,
}

TINY = {
    "output_dir": "outputs/sd3-tiny",
    "encoding_cache_dir": "outputs/sd3-tiny/encodings",
    "max_steps": 2,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "resolution": 16,
    "max_sequence_length": 16,
    "bf16": False,
    "use_cpu": True,
    "logging_steps": 1,
    "sample_num_inference_steps": 2,
}


@dataclass
class SD3Arguments(ScriptArguments):
    dataset_name: str = field(default=DATASET, metadata={"help": "Hub id or folder of the scored images."})
    model_name_or_path: str = field(default=MODEL, metadata={"help": "Hub id or folder of the pipeline."})
    tiny: bool = field(default=False, metadata={"help": "Try it with a tiny random model on the CPU; not in --config."})


def main(script_args: SD3Arguments, training_args: TGOConfig) -> None:
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
    parser = SettingsParser((SD3Arguments, TGOConfig))
    parser.set_defaults(**DEFAULTS)
    if parser.parse_known_args()[0].tiny:
        from tiny import stand_ins

        print(f"Without --tiny, this downloads {MODEL} ({MODEL_SIZE}) and {DATASET} ({DATASET_SIZE}).")
        parser.set_defaults(**TINY, **stand_ins("stable_diffusion_3", score_column=DEFAULTS["score_column"]))
    main(*parser.parse_args_and_config())
