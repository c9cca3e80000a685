"""`tgo-trl train`: trains on a scored data set, with every setting of `TGOConfig`."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ...trainer.tgo_config import TGOConfig


@dataclass
class TrainArguments:
    """What is trained, and on what.

    Attributes:
        model_name_or_path: Hub id or folder of the pipeline.
        dataset_name: Hub id, folder or file of the scored data set; see [`~tgo_trl.storage.sources.open_dataset`].
        dataset_config: its configuration.
        dataset_train_split: rows to train on.
        dataset_test_split: rows to evaluate on, if `eval_strategy` asks for it.
        dataset_streaming: read the rows as they are needed; needs `max_steps`.
        adapter_name_or_path: a trained adapter to go on with.
        load_in_4bit: quantise the frozen network to 4 bits (NF4, bitsandbytes).
        load_in_8bit: quantise the frozen network to 8 bits (bitsandbytes).
    """

    model_name_or_path: str = field(metadata={"help": "Hub id or folder of the pipeline."})
    dataset_name: str = field(metadata={"help": "Hub id or folder of the scored data set."})
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


def config_classes() -> tuple[type, ...]:
    """The dataclasses of this command's settings."""
    from ...trainer.tgo_config import TGOConfig

    return TrainArguments, TGOConfig


def run(arguments: TrainArguments, args: "TGOConfig") -> None:
    """Trains, saves, and pushes if `push_to_hub` asks for it.

    Goes on from the newest complete checkpoint in `output_dir`, unless `resume_from_checkpoint` is false.

    Raises:
        UploadError: if something could not be pushed; everything is saved then, and it says what uploads it.
    """
    from ...media.origin import named_origin, remember_origin, source_folder
    from ...storage.sources import open_dataset
    from ...trainer.checkpoints import last_checkpoint
    from ...trainer.publishing import check_pushed
    from ...trainer.tgo_trainer import TGOTrainer

    splits = [arguments.dataset_train_split]
    if args.eval_strategy != "no":
        splits.append(arguments.dataset_test_split)
    name, config, streaming = arguments.dataset_name, arguments.dataset_config, arguments.dataset_streaming
    datasets = [open_dataset(name, config, split, streaming) for split in splits]
    for dataset in datasets:
        remember_origin(dataset, named_origin(name, args.image_dir, args.allow_urls))
    trainer = TGOTrainer(
        _pipeline(arguments, args),
        args,
        train_dataset=datasets[0],
        eval_dataset=datasets[1] if len(datasets) > 1 else None,
        quantization_config=_quantization(arguments) if arguments.adapter_name_or_path is None else None,
    )
    resume: Any = args.resume_from_checkpoint
    resume = {"true": True, "false": False}.get(str(resume).lower(), resume)
    if resume is None:  # the same command goes on where it stopped, as all of them do
        resume = last_checkpoint(args.output_path)
    trainer.train(resume_from_checkpoint=resume if isinstance(resume, bool) or resume is None else str(resume))
    trainer.save_model(_internal_call=True)  # it is pushed below, once and with its card
    dataset_id = name if source_folder(name) is None else None  # the card links to the Hub
    trainer.create_model_card(dataset_name=dataset_id)
    if args.push_to_hub:
        trainer.push_to_hub(dataset_name=dataset_id)
        check_pushed(trainer)


def _pipeline(arguments: TrainArguments, args: "TGOConfig") -> Any:
    """The name of the pipeline, which the trainer loads, or the pipeline itself with an adapter on it."""
    if arguments.adapter_name_or_path is None:
        return arguments.model_name_or_path
    from ...families import find_family
    from ...policy.loading import attach_adapter, load_pipeline
    from ...trainer.arguments import training_dtype

    quantization = _quantization(arguments)
    pipeline = load_pipeline(
        arguments.model_name_or_path, args.model_init_dict, quantization, None, training_dtype(args)
    )
    attach_adapter(pipeline, find_family(type(pipeline))(), arguments.adapter_name_or_path)
    return pipeline


def _quantization(arguments: TrainArguments) -> Any:
    if not arguments.load_in_4bit and not arguments.load_in_8bit:
        return None
    import torch
    from diffusers import BitsAndBytesConfig

    if arguments.load_in_8bit:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
