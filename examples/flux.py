"""Aligns FLUX.1 [dev] with scored images, in the paper's setting of scalar feedback.

    accelerate launch examples/flux.py --output_dir flux-tgo
    accelerate launch examples/flux.py --output_dir flux-tgo --load_in_4bit  # pip install bitsandbytes
    accelerate launch examples/flux.py --output_dir flux-tgo --dataset_name username/scored-images --score_column score
    python examples/flux.py --tiny

The data are rows of a prompt, an image and a score. The weights are yours once you have accepted their licence on the
Hub and logged in (`hf auth login`). The paper drew its images with the model that it trained, and scored them with a
reward model; those of the default data set are of several models, and rated by people. `--config settings.yaml` takes
the names of the command line, which overrides it.
"""

from dataclasses import dataclass, field

import torch
from datasets import load_dataset
from diffusers import BitsAndBytesConfig
from trl import ScriptArguments

from tgo_trl import TGOConfig, TGOTrainer
from tgo_trl.parser import SettingsParser

MODEL = "black-forest-labs/FLUX.1-dev"
MODEL_SIZE = "33.7 GB in bfloat16"  # of its files, in GB: transformer 23.80, text encoders 0.25 and 9.52, VAE 0.17
DATASET = "Rapidata/text-2-image-Rich-Human-Feedback"  # 13,024 images; the scores are mean ratings from 1 to 5
DATASET_SIZE = "17.9 GB"  # `download_size` in its card

DEFAULTS = {
    "output_dir": "flux-tgo",
    "model_init_kwargs": {"torch_dtype": "bfloat16"},  # of frozen weights; the adapter's are float32
    "score_column": "alignment_score",  # there are also coherence_score and style_score
    # the paper's
    "beta": 1.0,
    "temperature": "auto",
    "confidence_coef": 5.0,
    "threshold_type": "percentile",
    "threshold_percentile": 50.0,
    "max_steps": 78,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 128,  # 1 x 128 rows an update on one GPU; divide by the number of GPUs
    "resolution": 1024,
    # FLUX.1 [dev] takes the guidance as an input: what it is told in training, and when samples are drawn
    "train_guidance_scale": 3.5,
    "sample_guidance_scale": 3.5,
    "learning_rate": 1e-4,  # the paper's is 1e-5; an adapter needs more
    "lora_r": 16,
    "lora_alpha": 32,
    "bf16": True,  # gradient checkpointing is on by default
    "logging_steps": 2,
    "sample_prompts": ["a red fox in the snow", "a lighthouse at dusk", "a blue book between two cups"],
    "sample_steps": 26,
}

TINY = {
    "output_dir": "outputs/flux-tiny",
    "encoding_cache_dir": "outputs/flux-tiny/encodings",
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
class FluxArguments(ScriptArguments):
    dataset_name: str = field(default=DATASET, metadata={"help": "Hub id or folder of the scored images."})
    model_name_or_path: str = field(default=MODEL, metadata={"help": "Hub id or folder of the pipeline."})
    load_in_4bit: bool = field(default=False, metadata={"help": "Quantize the frozen transformer to 4 bits (NF4)."})
    tiny: bool = field(default=False, metadata={"help": "Try it with a tiny random model on the CPU; not in --config."})


def main(script_args: FluxArguments, training_args: TGOConfig) -> None:
    dataset = load_dataset(
        script_args.dataset_name, name=script_args.dataset_config, streaming=script_args.dataset_streaming
    )
    quantization_config = None
    if script_args.load_in_4bit:
        quantization_config = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
    trainer = TGOTrainer(
        script_args.model_name_or_path,
        training_args,
        train_dataset=dataset[script_args.dataset_train_split],
        eval_dataset=dataset[script_args.dataset_test_split] if training_args.eval_strategy != "no" else None,
        quantization_config=quantization_config,
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model()
    trainer.accelerator.print(f"Saved to {training_args.output_dir}.")
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name=script_args.dataset_name)
    trainer.end()


if __name__ == "__main__":
    parser = SettingsParser((FluxArguments, TGOConfig))
    parser.set_defaults(**DEFAULTS)
    if parser.parse_known_args()[0].tiny:
        from tiny import stand_ins

        print(f"Without --tiny, this downloads {MODEL} ({MODEL_SIZE}) and {DATASET} ({DATASET_SIZE}).")
        parser.set_defaults(**TINY, **stand_ins("flux", score_column=DEFAULTS["score_column"]))
    main(*parser.parse_args_and_config())
