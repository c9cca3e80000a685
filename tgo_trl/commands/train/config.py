"""`tgo-trl train`: what is trained, and on what; the rest are settings of [`~tgo_trl.TGOConfig`]."""

from dataclasses import dataclass, field

USUAL = (
    "output_dir", "dataset_config", "dataset_train_split", "dataset_test_split", "dataset_streaming",
    "adapter_name_or_path", "load_in_4bit", "recipe", "loss_type", "beta", "threshold_type", "confidence_coef",
    "score_column", "score_columns", "prompt_column", "image_column", "resolution", "learning_rate",
    "lr_scheduler_type", "max_steps", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps",
    "gradient_checkpointing", "lora_r", "lora_alpha", "use_peft", "bf16", "seed", "logging_steps", "save_steps",
    "report_to", "eval_strategy", "eval_rewards", "max_drift", "min_variety", "sample_prompts", "sample_steps",
    "sync_ref_model", "push_to_hub", "hub_model_id", "prompts", "rewards", "num_rounds", "num_images_per_prompt",
    "config", "accelerate_config", "num_processes", "print_config",
)  # fmt: skip
"""Settings of training, and of rounds of it, that most runs set or read."""


@dataclass
class TrainArguments:
    """What is trained, and on what.

    Attributes:
        model_name_or_path: Hub id or folder of the pipeline.
        dataset_name: Hub id, folder or file of the data set, scored or of pairs; see
            [`~tgo_trl.storage.sources.open_dataset`].
        dataset_config: its configuration.
        dataset_train_split: rows to train on.
        dataset_test_split: rows to evaluate on, if `eval_strategy` asks for it.
        dataset_streaming: read the rows as they are needed; needs `max_steps`.
        adapter_name_or_path: a trained adapter to go on with.
        load_in_4bit: quantise the frozen network to 4 bits (NF4, bitsandbytes).
        load_in_8bit: quantise the frozen network to 8 bits (bitsandbytes).
    """

    model_name_or_path: str = field(metadata={"help": "Hub id or folder of the pipeline."})
    dataset_name: str = field(metadata={"help": "Hub id or folder of the data set, scored or of pairs."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the data set."})
    dataset_train_split: str = field(default="train", metadata={"help": "Split to train on."})
    dataset_test_split: str = field(default="test", metadata={"help": "Split to evaluate on, with `eval_strategy`."})
    dataset_streaming: bool = field(default=False, metadata={"help": "Read rows as they are needed."})
    adapter_name_or_path: str | None = field(default=None, metadata={"help": "A trained adapter to go on with."})
    load_in_4bit: bool = field(default=False, metadata={"help": "Quantise the frozen network to 4 bits (NF4)."})
    load_in_8bit: bool = field(default=False, metadata={"help": "Quantise the frozen network to 8 bits."})

    def __post_init__(self) -> None:
        if self.load_in_4bit and self.load_in_8bit:
            raise ValueError("`load_in_4bit` and `load_in_8bit` are both set. Choose one.")
