"""Trains on a scored data set, as `tgo-trl train` does."""

import copy
from contextlib import suppress
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from diffusers import BitsAndBytesConfig
from diffusers.utils import is_bitsandbytes_available

from ...families import find_family
from ...media.origin import named_origin, remember_origin, source_folder
from ...policy.loading import attach_adapter, load_pipeline
from ...policy.pipeline_class import chosen_class
from ...storage.sources import open_dataset
from ...trainer.arguments import training_dtype
from ...trainer.checkpoints import newest_checkpoint
from ...trainer.measured_speed import Subject, remember_speed, speed_key
from ...trainer.preparation import shard_writer
from ...trainer.resuming import resume_setting
from ...trainer.tgo_config import TGOConfig
from ...trainer.tgo_trainer import TGOTrainer
from .config import TrainArguments


def train(arguments: TrainArguments, args: TGOConfig, ref_model: str | None = None) -> None:
    """Trains, saves, and pushes if `push_to_hub` asks for it.

    Goes on from the newest complete checkpoint in `output_dir`, unless `resume_from_checkpoint` is false.

    Args:
        arguments: what is trained, and on what.
        args: how.
        ref_model: Hub id or folder of the reference; the policy as it is before training if None.

    Raises:
        UploadError: if something could not be pushed; everything is saved then, and it says what uploads it.
    """
    take_recorded_class(arguments, args)
    resume = resume_choice(args)
    if resume:  # of which settings are compared before the pipeline is loaded
        args.resume_from_checkpoint = str(resume)
    datasets, given = open_datasets(arguments, args), copy.copy(args)  # of which `speed` sets some
    trainer = TGOTrainer(
        named_pipeline(arguments, args),
        args,
        train_dataset=datasets[0],
        eval_dataset=datasets[1] if len(datasets) > 1 else None,
        ref_model=ref_model,
        quantization_config=quantization_of(arguments) if arguments.adapter_name_or_path is None else None,
    )
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model(_internal_call=True)  # it is pushed below, once and with its card
    name = arguments.dataset_name
    dataset_id = name if source_folder(name) is None else None  # the card links to the Hub
    trainer.create_model_card(dataset_name=dataset_id)
    if not resume and args.process_index == 0 and trainer.speed is not None:
        subject = subject_of(arguments, ref_model)
        key = speed_key(given, subject, trainer.size, type(trainer.family), trainer.num_sources)
        with suppress(OSError):  # a plan then knows no minutes, which is no fault of the run
            remember_speed(shard_writer(args).folder, key, trainer.speed)
    if args.push_to_hub:
        trainer.push_to_hub(dataset_name=dataset_id)
        trainer.check_pushed()


def open_datasets(arguments: TrainArguments, args: TGOConfig) -> list[Dataset | IterableDataset]:
    """The training set, and that of evaluations if there are any."""
    splits = [arguments.dataset_train_split]
    if args.eval_strategy != "no":
        splits.append(arguments.dataset_test_split)
    name, config, streaming = arguments.dataset_name, arguments.dataset_config, arguments.dataset_streaming
    datasets = [open_dataset(name, config, split, streaming) for split in splits]
    for dataset in datasets:
        remember_origin(dataset, named_origin(name, args.image_dir, args.allow_urls))
    return datasets


def take_recorded_class(arguments: TrainArguments, args: TGOConfig) -> None:
    """Sets `pipeline_class`, where it is not set, to what the adapter was trained under that training goes on with."""
    args.pipeline_class = chosen_class(args.pipeline_class, arguments.adapter_name_or_path)


def resume_choice(args: TGOConfig) -> str | bool:
    """What training goes on from: a folder that is set, True for the newest checkpoint, False to begin anew.

    Where nothing is set, the same command goes on where it stopped. No weights are read: which of the checkpoints are
    whole is found when training begins, once.
    """
    chosen = resume_setting(args)
    return newest_checkpoint(args.output_path) is not None if chosen is None else chosen


def named_pipeline(arguments: TrainArguments, args: TGOConfig, weights: bool = True) -> Any:
    """The name of the pipeline, which the trainer loads, or the pipeline itself with an adapter on it.

    Args:
        arguments: what is trained, and on what.
        args: how.
        weights: False for a pipeline of shapes alone.
    """
    if arguments.adapter_name_or_path is None:
        return arguments.model_name_or_path

    quantization = quantization_of(arguments)
    dtype = training_dtype(args)
    pipeline = load_pipeline(arguments.model_name_or_path, args.model_init_dict, quantization, None, dtype, weights)
    attach_adapter(pipeline, find_family(type(pipeline))(), arguments.adapter_name_or_path)
    return pipeline


def subject_of(arguments: TrainArguments, ref_model: str | None = None) -> Subject:
    """What is trained, for its speed; arguments as of [`train`]."""
    adapter, is_streamed = arguments.adapter_name_or_path, arguments.dataset_streaming
    return Subject(arguments.model_name_or_path, bits_of(arguments), adapter, ref_model, is_streamed)


def bits_of(arguments: TrainArguments) -> int:
    """Of each weight of the frozen network, if it is quantised; 0 if not."""
    return 4 if arguments.load_in_4bit else 8 if arguments.load_in_8bit else 0


def quantization_of(arguments: TrainArguments) -> Any:
    """What the trained networks are quantised with, if they are; raises a ValueError if that is not installed."""
    if not arguments.load_in_4bit and not arguments.load_in_8bit:
        return None
    if not is_bitsandbytes_available():
        name = "load_in_4bit" if arguments.load_in_4bit else "load_in_8bit"
        raise ValueError(
            f"`{name}` is set, and bitsandbytes is not installed. Run `pip install bitsandbytes`, or leave it out."
        )
    if arguments.load_in_8bit:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
