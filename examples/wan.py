"""Aligns Wan 2.1 with scored videos, by a LoRA as the paper does.

    accelerate launch examples/wan.py --dataset_name username/scored-videos --output_dir wan-tgo
    python examples/wan.py --tiny

The data are rows of a prompt, a video and a score: files, paths, bytes or lists of frames (`pip install tgo_trl[video]`
decodes files), at least `num_frames` long at `fps`. The paper drew its videos with the model that it trained, for 80 %
of 15,218 prompts of VidProM, and scored them with VideoReward. `--config settings.yaml` takes the names of the command
line, which overrides it.
"""

from dataclasses import dataclass, field

from datasets import load_dataset
from trl import ScriptArguments

from tgo_trl import TGOConfig, TGOTrainer
from tgo_trl.parser import SettingsParser

MODEL = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
MODEL_SIZE = "28.9 GB in float32"  # of its files, in GB: transformer 5.68, text encoder 22.72, VAE 0.51

DEFAULTS = {
    "output_dir": "wan-tgo",
    "model_init_kwargs": {"torch_dtype": "bfloat16"},  # of frozen weights; the adapter's are float32
    # the paper's
    "beta": 1.0,
    "temperature": "auto",
    "confidence_coef": 5.0,
    "threshold_type": "percentile",
    "threshold_percentile": 50.0,
    # what the model was trained on: five seconds
    "num_frames": 81,
    "fps": 16.0,
    "height": 480,
    "width": 832,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 64,  # 1 x 64 rows an update on one GPU; divide by the number of GPUs
    "learning_rate": 1e-4,
    "lora_r": 16,
    "lora_alpha": 32,
    "bf16": True,  # gradient checkpointing is on by default
    "encode_batch_size": 1,
    "logging_steps": 2,
    "sample_prompts": ["a red fox runs through the snow", "waves break at a lighthouse at dusk"],
    "sample_steps": 50,
}

TINY = {
    "output_dir": "outputs/wan-tiny",
    "encoding_cache_dir": "outputs/wan-tiny/encodings",
    "max_steps": 2,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "num_frames": 5,
    "height": 32,
    "width": 32,
    "max_sequence_length": 16,
    "bf16": False,
    "use_cpu": True,
    "logging_steps": 1,
    "sample_num_inference_steps": 2,
}


@dataclass
class WanArguments(ScriptArguments):
    dataset_name: str | None = field(default=None, metadata={"help": "Hub id or folder of the scored videos."})
    model_name_or_path: str = field(default=MODEL, metadata={"help": "Hub id or folder of the pipeline."})
    tiny: bool = field(default=False, metadata={"help": "Try it with a tiny random model on the CPU; not in --config."})


def main(script_args: WanArguments, training_args: TGOConfig) -> None:
    if script_args.dataset_name is None:
        raise ValueError("`--dataset_name` is missing: set a Hub id or folder with columns prompt, video and score.")
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
    parser = SettingsParser((WanArguments, TGOConfig))
    parser.set_defaults(**DEFAULTS)
    if parser.parse_known_args()[0].tiny:
        from tiny import stand_ins

        print(f"Without --tiny, this downloads {MODEL} ({MODEL_SIZE}) and the data set of --dataset_name.")
        parser.set_defaults(**TINY, **stand_ins("wan"))
    main(*parser.parse_args_and_config())
