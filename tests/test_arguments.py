"""What the trainer takes, and what it refuses, with the words in which it does."""

import inspect
import logging
import os
from pathlib import Path

import datasets
import pytest
import torch
from peft import LoraConfig
from torch.utils.data import default_collate
from transformers import TrainerCallback, TrainingArguments
from trl import DPOTrainer, KTOTrainer, TrlParser

from tgo_trl import TGOConfig, TGOTrainer
from tgo_trl.data.collator import RowCollator
from tgo_trl.families import StableDiffusionFamily
from tgo_trl.policy import launch
from tgo_trl.policy.launch import check_shardable, check_strategy
from tgo_trl.trainer import tgo_trainer
from tgo_trl.trainer.arguments import check_arguments, default_args
from tgo_trl.trainer.feasibility import check_run

from . import tiny
from .cases import CASES
from .runs import assert_equal, config, first_log, logged, make_trainer, streamed, trained_weights
from .test_trainer import with_trained_adapter

# ---- Defaults and order ----


def test_arguments_can_be_passed_in_order(tmp_path):
    args, rows, held_out = config(tmp_path), tiny.scored_rows(8), tiny.scored_rows(4, seed=1)
    trainer = TGOTrainer(tiny.stable_diffusion(), args, rows, held_out)
    assert trainer.args is args
    assert len(trainer.train_dataset) == 8
    assert len(trainer.eval_dataset) == 4


@pytest.mark.parametrize("name", ["output_dir", "encoding_cache_dir"])
def test_a_folder_that_cannot_be_is_told_before_a_model_is_loaded(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=f"`{name}` is '.*', and '{tmp_path}/file' is a file. Name a folder"):
        TGOTrainer("no/such-model", config(tmp_path, **{name: str(tmp_path / "file" / "run")}), tiny.scored_rows(8))


def test_trls_order_of_arguments_is_explained(tmp_path):
    """In TRL the second argument is the reference model."""
    with pytest.raises(TypeError, match=r"`train_dataset` must be .* got `TGOConfig`. The order of arguments is `TGO"):
        TGOTrainer(tiny.stable_diffusion(), None, config(tmp_path), tiny.scored_rows(8))
    with pytest.raises(TypeError, match=r"`args` must be a `TGOConfig`, got `StableDiffusionPipeline`.*by keyword"):
        TGOTrainer(tiny.stable_diffusion(), tiny.stable_diffusion(), config(tmp_path))


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", "stable-diffusion-v1-5-TGO"),
        ("/models/mine/", "mine-TGO"),
        ("mine", "mine-TGO"),
    ],
)
def test_default_settings_are_named_after_the_model(monkeypatch, model, name):
    assert default_args(model).output_dir == name
    pipeline = tiny.stable_diffusion()
    pipeline.register_to_config(_name_or_path=model)
    assert default_args(pipeline).output_dir == name


def test_no_settings_at_all(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tgo_trl.trainer.preparation.HF_HOME", str(tmp_path / "home"))
    trainer = TGOTrainer(tiny.stable_diffusion(), train_dataset=tiny.scored_rows(8))
    assert trainer.args.output_dir == "StableDiffusionPipeline-TGO"
    assert list((tmp_path / "home" / "tgo_trl" / "encodings").glob("*.safetensors"))


def test_a_folder_is_loaded_in_float32(tmp_path):
    tiny.stable_diffusion().to(torch.float16).save_pretrained(tmp_path / "base")
    trainer = make_trainer(config(tmp_path), model=str(tmp_path / "base"))
    assert {weight.dtype for weight in trainer.policy.parameters()} == {torch.float32}
    trainer.train()
    assert logged(trainer, "rewards/margins")[0] == 0


def test_model_init_kwargs_are_used_or_said_to_be_ignored(tmp_path, caplog):
    tiny.stable_diffusion().save_pretrained(tmp_path / "base")
    args = config(
        tmp_path, model_init_kwargs={"safety_checker": None, "tokenizer": tiny.clip_tokenizer(), "variant": None}
    )
    trainer = make_trainer(args, model=str(tmp_path / "base"))
    assert trainer.pipeline.config["_name_or_path"] == str(tmp_path / "base")
    with caplog.at_level(logging.WARNING, "tgo_trl"):
        make_trainer(config(tmp_path, model_init_kwargs={"variant": "fp16"}))
    assert "`model_init_kwargs` will be ignored" in caplog.text


def test_code_from_the_hub_is_never_run(tmp_path):
    args = config(tmp_path, model_init_kwargs={"trust_remote_code": True})
    with pytest.raises(ValueError, match="would run code from the Hub"):
        make_trainer(args, model="them/their-model")


# ---- Every keyword of TRL ----


@pytest.mark.parametrize("theirs", [DPOTrainer, KTOTrainer])
def test_every_keyword_of_trl_is_accepted(theirs):
    names, known = inspect.signature(theirs.__init__).parameters, inspect.signature(TGOTrainer.__init__).parameters
    assert len(names) > 10
    assert names.keys() <= known.keys()
    assert {"optimizer_cls_and_kwargs", "preprocess_logits_for_metrics"} <= known.keys()


def test_every_keyword_is_used(tmp_path):
    seen = {"collated": 0, "epochs": 0}

    class Epochs(TrainerCallback):
        def on_epoch_begin(self, args, state, control, **kwargs):
            seen["epochs"] += 1

    class Counting(RowCollator):
        def __call__(self, rows):
            seen["collated"] += 1
            return super().__call__(rows)

    tokenizer = tiny.clip_tokenizer()
    pipeline = tiny.stable_diffusion()
    trainer = TGOTrainer(
        model=pipeline,
        ref_model=tiny.stable_diffusion(seed=1),
        args=config(tmp_path, max_steps=2),
        data_collator=Counting(),
        train_dataset=tiny.scored_rows(8),
        eval_dataset={"a": tiny.scored_rows(4, seed=1)},
        processing_class=tokenizer,
        compute_metrics=lambda prediction: {"rows": len(prediction.predictions)},
        callbacks=[Epochs()],
        optimizers=(None, None),
        optimizer_cls_and_kwargs=(torch.optim.SGD, {"lr": 0.5, "momentum": 0.5}),
        preprocess_logits_for_metrics=lambda log_ratio, score: log_ratio[:, None].repeat(1, 2),
        quantization_config=None,
        peft_config=LoraConfig(r=2, target_modules=["to_q"]),
        family=StableDiffusionFamily(),
    )
    assert pipeline.tokenizer is tokenizer
    assert trainer.evaluate()["eval_a_rows"] == 4
    trainer.train()
    assert seen == {"collated": 3, "epochs": 1}
    assert isinstance(trainer.optimizer.optimizer, torch.optim.SGD)
    assert all("to_q.lora" in name for name in trained_weights(trainer))
    assert first_log(trainer)["rewards/margins"] != 0


def test_a_collator_that_makes_tensors_of_row_numbers_trains_the_same(tmp_path):
    stacked, usual = (make_trainer(config(tmp_path), data_collator=it) for it in (default_collate, None))
    for trainer in (stacked, usual):
        trainer.train()
    assert logged(stacked) == logged(usual)
    assert_equal(trained_weights(stacked), trained_weights(usual))


# ---- Optimizers ----


def test_an_optimizer_of_ones_own_trains_the_adapter_that_it_holds(tmp_path):
    pipeline = with_trained_adapter(tiny.stable_diffusion())
    trained = [weight for name, weight in pipeline.unet.named_parameters() if "lora_" in name]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=0.5, total_iters=100)
    trainer = make_trainer(config(tmp_path), model=pipeline, optimizers=(optimizer, scheduler))
    before = trained_weights(trainer)
    trainer.train()
    assert trainer.optimizer.optimizer is optimizer
    assert logged(trainer, "learning_rate") == [0.05, 0.05]
    after = trained_weights(trainer)
    assert all(not torch.equal(after[name], weight) for name, weight in before.items() if "to_q" in name)


def test_a_foreign_optimizer_is_refused(tmp_path):
    pipeline = tiny.stable_diffusion()
    optimizer = torch.optim.SGD(pipeline.unet.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"none of the trained parameters.*`optimizer_cls_and_kwargs="):
        make_trainer(config(tmp_path), model=pipeline, optimizers=(optimizer, None))


def test_an_optimizer_that_leaves_weights_out_is_warned_of(tmp_path, caplog):
    pipeline = with_trained_adapter(tiny.stable_diffusion())
    trained = [weight for name, weight in pipeline.unet.named_parameters() if "lora_" in name]
    held = len(trained) - 2
    make_trainer(config(tmp_path), model=pipeline, optimizers=(torch.optim.SGD(trained, lr=0.1), None))
    assert "stay as they are" not in caplog.text
    make_trainer(config(tmp_path), model=pipeline, optimizers=(torch.optim.SGD(trained[2:], lr=0.1), None))
    assert f"holds {held} of {len(trained)} trained weights: the others stay as they are, such as `" in caplog.text
    assert "down_blocks" in caplog.text


def test_an_optimizer_of_the_whole_network_fits_full_fine_tuning(tmp_path):
    pipeline = tiny.stable_diffusion()
    optimizer = torch.optim.SGD(pipeline.unet.parameters(), lr=1e-3)
    trainer = make_trainer(config(tmp_path, use_peft=False), model=pipeline, optimizers=(optimizer, None))
    before = trained_weights(trainer)
    trainer.train()
    after = trained_weights(trainer)
    assert any(not torch.equal(after[name], weight) for name, weight in before.items())


# ---- A family of one's own ----


def unknown_pipeline():
    """A pipeline class that is no subclass of those in the table of families."""
    known = tiny.StableDiffusionPipeline
    bases = tuple(base for base in known.__bases__ if base.__name__ != "object")
    body = {name: value for name, value in vars(known).items() if name not in ("__dict__", "__weakref__")}
    return type("UnknownPipeline", bases, body)


def test_a_family_of_ones_own_serves_an_unknown_pipeline(tmp_path):
    class Mine(StableDiffusionFamily):
        lora_target_modules = ("to_v",)

    pipeline = tiny.stable_diffusion()
    pipeline.__class__ = unknown_pipeline()
    with pytest.raises(ValueError, match="No model family is known for `UnknownPipeline`"):
        make_trainer(config(tmp_path), model=pipeline)
    trainer = make_trainer(config(tmp_path), model=pipeline, family=Mine())
    assert all("to_v.lora" in name for name in trained_weights(trainer))
    trainer.train()
    assert logged(trainer)


def test_model_and_reference_may_be_paths_of_folders(tmp_path):
    folder = tmp_path / "pipeline"
    tiny.stable_diffusion().save_pretrained(folder)
    of_paths, of_text = (make_trainer(config(tmp_path), model=name, ref_model=name) for name in (folder, str(folder)))
    for trainer in (of_paths, of_text):
        trainer.train()
    assert logged(of_paths) == logged(of_text)
    assert default_args(os.fspath(folder)).output_dir.endswith("pipeline-TGO")


# ---- Refused ----

REFUSED = {
    "no data": ({"train_dataset": False}, ValueError, "^`train_dataset` is required$"),
    "a list": ({"train_dataset": [1, 2]}, TypeError, "`train_dataset` must be a `Dataset` or .*, got `list`"),
    "a dictionary of data": (
        {"train_dataset": datasets.DatasetDict({"train": tiny.scored_rows(2)})}, TypeError,
        r"`train_dataset` must be .*, got `DatasetDict`. Take one of its splits: `dataset\['train'\]`",
    ),
    "evaluation on a list": ({"eval_dataset": [1]}, TypeError, "`eval_dataset` must be .*, got `list`"),
    "evaluation on a dictionary of lists": (
        {"eval_dataset": {"a": tiny.scored_rows(2), "b": [1]}}, TypeError,
        r"`eval_dataset\['b'\]` must be .*, got `list`",
    ),
    "a network": ({"model": torch.nn.Linear(1, 1)}, TypeError, "`model` must be a diffusers pipeline.*got `Linear`"),
    "a number": ({"model": 5}, TypeError, "`model` must be a diffusers pipeline.*got `int`"),
    "one callback": (
        {"callbacks": TrainerCallback()}, TypeError, "`callbacks` must be a list, got `TrainerCallback`. Write",
    ),
    "no optimizers": ({"optimizers": None}, TypeError, "`optimizers` is None; it must be an optimizer that was made"),
    "an optimizer's class": (
        {"optimizers": (torch.optim.SGD, None)}, TypeError, "`optimizers` is .*SGD.*For a class, pass `optimizer_cls_",
    ),
    "layers that are all left out": (
        {"peft_config": LoraConfig(target_modules=["to_q"], exclude_modules=["to_q"])}, ValueError,
        r"leaves no layer of `unet` an adapter: .* and `exclude_modules=.*'to_q'.*` leave all of these out",
    ),
    "layers of no number": (
        {"peft_config": LoraConfig(target_modules=["to_q"], layers_to_transform=[77], layers_pattern="attentions")},
        ValueError, r"leaves no layer of `unet` an adapter: .*`layers_to_transform=\[77\]`",
    ),
    "dropout of everything": (
        {"peft_config": LoraConfig(lora_dropout=1.0)}, ValueError, "`peft_config.lora_dropout` is 1.0; it must be",
    ),
    "an adapter times nothing": (
        {"peft_config": LoraConfig(lora_alpha=0)}, ValueError, "`peft_config.lora_alpha` is 0, by which the adapter",
    ),
    "no LoRA": ({"peft_config": {"r": 4}}, TypeError, "`peft_config` must be a `peft.LoraConfig`, got `dict`"),
    "no tokenizer": ({"processing_class": "clip"}, TypeError, "`processing_class` is a `str`"),
    "quantised too late": ({"quantization_config": object()}, ValueError, "your model is already instantiated"),
    "a reference of the wrong type": ({"ref_model": 5}, TypeError, "`ref_model`"),
    "the wrong resolution": ({"resolution": 20}, ValueError, "`resolution` is 20, .* of 8. Set `resolution=16`"),
    "a tiny resolution": ({"resolution": 3}, ValueError, "Set `resolution=8`"),
    "sft with a reference": (
        {"loss_type": "sft", "ref_model": tiny.stable_diffusion()}, ValueError, "`loss_type='sft'` uses no reference",
    ),
    "moving a model towards an adapter": (
        {"sync_ref_model": True, "ref_model": tiny.stable_diffusion()}, ValueError,
        "a `ref_model` has no adapter to mix",
    ),
    "full fine-tuning of an adapter": (
        {"use_peft": False, "peft_config": LoraConfig()}, ValueError,
        "`use_peft=False` trains all weights, but `peft_config`",
    ),
    "dispatched batches": (
        {"accelerator_config": {"dispatch_batches": True}}, ValueError, "`dispatch_batches=True`",
    ),
    "fsdp on the CPU": ({"fsdp": True}, ValueError, "the CPU, where accelerate would replicate all weights"),
    "a column that is not there": ({"score_column": "rating"}, ValueError, "or set `score_column`"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(tmp_path, changes, error, message):
    names = inspect.signature(TGOTrainer.__init__).parameters
    arguments = {name: value for name, value in changes.items() if name in names}
    settings = {name: value for name, value in changes.items() if name not in names}
    arguments = {"model": tiny.stable_diffusion(), "train_dataset": tiny.scored_rows(8), **arguments}
    if arguments["train_dataset"] is False:
        del arguments["train_dataset"]
    with pytest.raises(error, match=message):
        TGOTrainer(args=config(tmp_path, **settings), **arguments)
    assert not (tmp_path / "cache").exists(), "refused before anything was encoded"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"ref_model": 3}, TypeError, "`ref_model` must be a diffusers pipeline, .* got `int`"),
        ({"processing_class": 3}, TypeError, "`processing_class` is a `int`"),
        ({"peft_config": {}}, TypeError, "`peft_config` must be a `peft.LoraConfig`, got `dict`"),
        ({"family": "sd"}, TypeError, "`family` must be an object of a `Family`, got 'sd'. Leave it out"),
        ({"family": StableDiffusionFamily}, TypeError, r"`family` .* Write `StableDiffusionFamily\(\)`"),
        ({"data_collator": 3}, TypeError, "`data_collator` must be a function, got `int`"),
        ({"compute_metrics": 3}, TypeError, "`compute_metrics` must be a function, got `int`"),
        ({"preprocess_logits_for_metrics": 3}, TypeError, "`preprocess_logits_for_metrics` must be a function"),
        ({"ref_model": "/no/such/folder"}, OSError, "`ref_model` is '/no/such/folder', which cannot be loaded: "),
        ({"ref_model": "/no/such.gguf"}, OSError, "`ref_model` is '/no/such.gguf', and there is no such file"),
    ],
)
def test_refused_before_the_pipeline_is_loaded(tmp_path, monkeypatch, changes, error, message):
    tiny.stable_diffusion().save_pretrained(tmp_path / "pipeline")
    monkeypatch.setattr(tgo_trainer.TGOTrainer, "_load_pipeline", None)
    with pytest.raises(error, match=message):
        make_trainer(config(tmp_path), model=str(tmp_path / "pipeline"), **changes)


def test_a_model_of_no_kind_is_refused_without_settings_too():
    with pytest.raises(TypeError, match=r"`model` must be a diffusers pipeline, .* got `int`"):
        TGOTrainer(5)


def test_settings_of_another_trainer_are_refused(tmp_path):
    with pytest.raises(TypeError, match="`args` must be a `TGOConfig`, got `TrainingArguments`"):
        TGOTrainer(tiny.stable_diffusion(), TrainingArguments(str(tmp_path), use_cpu=True), tiny.scored_rows(8))


@pytest.mark.parametrize("part", [lambda pipeline: pipeline, lambda pipeline: pipeline.unet])
def test_a_model_cannot_be_its_own_reference(tmp_path, part):
    pipeline = tiny.stable_diffusion()
    with pytest.raises(ValueError, match="`model` and `ref_model` cannot be the same object"):
        make_trainer(config(tmp_path), model=pipeline, ref_model=part(pipeline))


def test_a_stream_needs_max_steps(tmp_path):
    with pytest.raises(ValueError, match="Set `max_steps`"):
        make_trainer(config(tmp_path, max_steps=-1), train_dataset=streamed(tiny.scored_rows(8)))
    make_trainer(config(tmp_path, max_steps=-1), eval_dataset=streamed(tiny.scored_rows(8)))


def test_a_stream_has_no_epochs_to_move_the_reference_by(tmp_path):
    """`Trainer` takes a stream for one long epoch, so the reference would never move."""
    args = config(tmp_path, sync_ref_model=True, ref_model_sync_strategy="epoch")
    with pytest.raises(ValueError, match="`ref_model_sync_strategy='epoch'`"):
        make_trainer(args, train_dataset=streamed(tiny.scored_rows(8)))


def test_sft_has_no_reference_to_move(tmp_path):
    with pytest.raises(ValueError, match="`sync_ref_model=True` has nothing to synchronise"):
        config(tmp_path, loss_type="sft", sync_ref_model=True)
    with pytest.raises(ValueError, match="There is no reference to synchronise"):
        make_trainer(config(tmp_path, loss_type="sft")).sync_reference(1.0)


def test_a_reference_model_can_move_in_full_fine_tuning(tmp_path):
    args = config(tmp_path, use_peft=False, sync_ref_model=True, ref_model_sync_steps=1, ref_model_mixup_alpha=1.0)
    trainer = make_trainer(args, ref_model=tiny.stable_diffusion(seed=1))
    trainer.train()
    assert_equal(dict(trainer.reference.state()), dict(trainer.policy.state_dict()))


def test_several_gpus_without_a_launcher_are_refused(tmp_path):
    args = config(tmp_path)
    args._n_gpu = 2
    with pytest.raises(ValueError, match=r"does not support `nn.DataParallel`.*`accelerate launch`"):
        check_arguments(args, tiny.stable_diffusion(), None, tiny.scored_rows(2), None)


def test_launched_processes_that_would_each_train_alone_are_refused(tmp_path, monkeypatch):
    """As `torchrun` starts them where there are no GPUs: accelerate takes each for the only one, unless told."""
    args = config(tmp_path)
    assert args.world_size == 1  # accelerate looks at the environment once in a process
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"one of 2 launched processes.*would train alone.*set `use_cpu=True`"):
        check_arguments(args, tiny.stable_diffusion(), None, tiny.scored_rows(2), None)


@pytest.mark.parametrize("wrap", ["two adapters", "adapter beside"])
def test_adapters_that_cannot_be_trained_are_refused(tmp_path, wrap):
    pipeline = with_trained_adapter(tiny.stable_diffusion())
    if wrap == "two adapters":
        pipeline.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]), adapter_name="other")
        message = "adapters 'mine', 'other', and only one can be trained"
    else:
        pipeline.text_encoder.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]))
        message = "`text_encoder` has an adapter"
    with pytest.raises(ValueError, match=message):
        make_trainer(config(tmp_path), model=pipeline)


def test_an_adapter_and_a_second_configuration_are_refused(tmp_path):
    with pytest.raises(ValueError, match="already has the adapter 'mine'"):
        make_trainer(config(tmp_path), model=with_trained_adapter(tiny.stable_diffusion()), peft_config=LoraConfig())
    with pytest.raises(
        ValueError, match="`use_peft=False` trains all weights, but the pipeline has the adapter 'mine'"
    ):
        make_trainer(config(tmp_path, use_peft=False), model=with_trained_adapter(tiny.stable_diffusion()))


# ---- Surroundings ----


@pytest.mark.parametrize("ci", ["true", None])
def test_a_run_does_not_ask_whether_it_is_in_ci(tmp_path, monkeypatch, ci):
    """TRL's base trainer reports home only outside of CI, and fails there with a diffusers model."""
    monkeypatch.delenv("CI", raising=False)
    if ci is not None:
        monkeypatch.setenv("CI", ci)
    trainer = make_trainer(config(tmp_path, save_strategy="steps", save_steps=2), eval_dataset=tiny.scored_rows(4))
    trainer.train()
    trainer.evaluate()
    trainer.save_model()
    assert len(logged(trainer)) == 2


def test_a_correct_run_is_silent(tmp_path, caplog, recwarn):
    with caplog.at_level(logging.WARNING):
        trainer = make_trainer(
            config(tmp_path, save_strategy="steps", save_steps=2, lora_r=16, lora_alpha=32),
            model=with_trained_adapter(tiny.stable_diffusion()),
        )
        trainer.train()
        trainer.save_model()
    assert [record.getMessage() for record in caplog.records if record.name.startswith("tgo_trl")] == []
    assert [str(warning.message) for warning in recwarn if "peft_config" in str(warning.message)] == []


def test_the_seed_is_set_before_the_adapter_is_made(tmp_path):
    runs = []
    for state in (1, 2):
        torch.manual_seed(state)
        runs.append(trained_weights(make_trainer(config(tmp_path), model=tiny.stable_diffusion())))
    assert_equal(runs[1], runs[0])
    other = trained_weights(make_trainer(config(tmp_path, seed=7)))
    assert any(not torch.equal(other[name], weight) for name, weight in runs[0].items())


def test_two_trainers_on_one_pipeline_continue_its_adapter(tmp_path):
    pipeline = tiny.stable_diffusion()
    first = make_trainer(config(tmp_path / "1"), model=pipeline)
    first.train()
    learned = trained_weights(first)
    second = make_trainer(config(tmp_path / "2"), model=pipeline)
    assert_equal(trained_weights(second), learned)
    second.train()
    assert first_log(second)["rewards/margins"] == 0
    assert Path(second.args.output_dir).name == "out"


def test_a_config_survives_the_command_line(tmp_path):
    parser = TrlParser(TGOConfig)
    (args,) = parser.parse_args_and_config(
        ["--output_dir", str(tmp_path), "--use_cpu", "true", "--loss_type", "sft", "--sample_prompts", "a cat", "a dog"]
    )
    assert isinstance(args, TGOConfig)
    assert args.loss_type == "sft"
    assert args.sample_prompts == ["a cat", "a dog"]
    assert os.path.samefile(args.output_dir, tmp_path)


# ---- A pipeline that is used again ----


def test_a_refused_data_set_leaves_the_pipeline_without_an_adapter(tmp_path):
    pipeline, peft_config = tiny.stable_diffusion(), LoraConfig(r=2, target_modules=["to_q"])
    with pytest.raises(ValueError, match="All 8 scores equal"):
        make_trainer(
            config(tmp_path),
            model=pipeline,
            train_dataset=tiny.scored_rows(8).map(lambda row: {"score": 1.0}),
            peft_config=peft_config,
        )
    assert not getattr(pipeline.unet, "peft_config", {})
    trainer = make_trainer(config(tmp_path), model=pipeline, peft_config=peft_config)
    assert list(trainer.pipeline.unet.peft_config) == ["default"]


def test_a_second_trainer_replaces_the_reference_of_the_first(tmp_path):
    pipeline = tiny.stable_diffusion()
    first = make_trainer(config(tmp_path, sync_ref_model=True, max_steps=2), model=pipeline)
    first.train()
    after_first = trained_weights(first)
    second = make_trainer(config(tmp_path / "second", max_steps=1, logging_steps=1), model=pipeline)
    assert sorted(pipeline.unet.peft_config) == ["default", "ref"]
    assert_equal(trained_weights(second), after_first)
    second.train()
    assert first_log(second)["rewards/margins"] == 0  # the reference is the policy as the first run left it


def test_an_adapter_of_the_references_name_is_refused(tmp_path):
    pipeline = tiny.stable_diffusion()
    pipeline.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]), adapter_name="ref")
    with pytest.raises(ValueError, match="another `adapter_name`"):
        make_trainer(config(tmp_path), model=pipeline)


def test_a_string_of_sample_prompts_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"it must be a list: \['a cat'\]"):
        config(tmp_path, sample_prompts="a cat")


def test_prompt_baselines_of_a_streaming_evaluation_set_are_refused(tmp_path):
    args = config(tmp_path, threshold_type="prompt_baseline")
    with pytest.raises(ValueError, match="all images of a prompt at once"):
        make_trainer(args, eval_dataset=streamed(tiny.scored_rows(8)))


def test_a_stream_with_several_workers_is_refused_at_once(tmp_path):
    args = config(tmp_path, dataloader_num_workers=2)
    with pytest.raises(ValueError, match="`dataloader_num_workers=2` cannot do"):
        make_trainer(args, train_dataset=streamed(tiny.scored_rows(8)))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("label_smoothing_factor", 0.1),
        ("neftune_noise_alpha", 5.0),
        ("include_num_input_tokens_seen", "all"),
        ("dataloader_drop_last", True),
        ("ignore_data_skip", True),
        ("auto_find_batch_size", True),
        ("bf16_full_eval", True),
        ("use_liger_kernel", True),
        ("enable_jit_checkpoint", True),
        ("accelerator_config", {"split_batches": True}),
        ("accelerator_config", {"gradient_accumulation_kwargs": {"num_steps": 2}}),
    ],
)
def test_settings_that_cannot_act_are_refused(tmp_path, name, value):
    shown = name
    if name == "accelerator_config":
        shown = "split_batches" if "split_batches" in value else "num_steps"
    with pytest.raises(ValueError, match=f"`{shown}=.*` is not supported"):
        make_trainer(config(tmp_path, **{name: value}))


FSDP2 = {"VERSION": "2", "AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", "STATE_DICT_TYPE": "FULL_STATE_DICT"}


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({"VERSION": "1"}, {}, "`fsdp_version` .* is 1: FSDP1 flattens weights"),
        ({"CPU_RAM_EFFICIENT_LOADING": "true"}, {}, "`fsdp_cpu_ram_efficient_loading` .* is on: it loses buffers"),
        ({"ACTIVATION_CHECKPOINTING": "true"}, {}, "`fsdp_activation_checkpointing` .* is on: its wrappers rename"),
        ({"RESHARD_AFTER_FORWARD": "false"}, {}, "`fsdp_reshard_after_forward` .* is off: whole weights would be left"),
        ({"TRANSFORMER_CLS_TO_WRAP": "Block"}, {}, "`fsdp_transformer_layer_cls_to_wrap` .* is set: .* Leave it out"),
        ({"IGNORED_MODULES": "vae"}, {}, "`fsdp_ignored_modules` .* is set, which was not tried"),
        ({"OFFLOAD_PARAMS": "true"}, {}, "`fsdp_offload_params` .* is on, which was not tried"),
        ({"AUTO_WRAP_POLICY": "SIZE_BASED_WRAP"}, {}, "`fsdp_auto_wrap_policy` .* is 'SIZE_BASED_WRAP'"),
        (
            {"STATE_DICT_TYPE": "SHARDED_STATE_DICT"}, {"save_only_model": True},
            "`fsdp_state_dict_type` .* is 'SHARDED_STATE_DICT', and `save_only_model` is on",
        ),
        ({}, {"optim": "adafactor"}, "`optim` is .*adafactor.*: it was not tried on shards"),
        ({}, {"push_to_hub": True}, "`hub_strategy` is .*every_save.*: only the main process pushes"),
        ({}, {}, "the run is on the CPU, where accelerate would replicate all weights without a word"),
    ],
)  # fmt: skip
def test_what_cannot_be_sharded_is_refused_by_name(tmp_path, monkeypatch, changes, settings, message):
    """As of `accelerate launch`, before a model is loaded: there is none of this name."""
    args = config(tmp_path, **settings)
    for name, value in {**FSDP2, **changes}.items():
        monkeypatch.setenv(f"FSDP_{name}", value)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match=message):
        TGOTrainer("no/such-model", args, tiny.scored_rows(8))


def test_what_is_quantised_is_not_sharded(tmp_path, monkeypatch):
    args = config(tmp_path)
    check_shardable(args, "int8")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="The model is quantised, and FSDP cannot shard quantised weights"):
        check_shardable(args, "int8")
    pipeline = tiny.stable_diffusion()
    check_shardable(args, None, {"unet": pipeline.unet})
    pipeline.unet.hf_quantizer = "int8"
    with pytest.raises(ValueError, match="`unet` is quantised"):
        check_shardable(args, None, {"unet": pipeline.unet})
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ValueError, match="`unet` is quantised, and DeepSpeed was not tried on them"):
        check_shardable(args, None, {"unet": pipeline.unet})


def test_an_optimizer_of_whole_weights_is_refused_where_they_are_sharded(tmp_path, monkeypatch):
    pipeline, args = tiny.stable_diffusion(), config(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="`optimizers` were passed, and FSDP is asked for"):
        check_run(args, (torch.optim.SGD(pipeline.unet.parameters()), None), None)


def test_a_single_process_shards_nothing(tmp_path, monkeypatch):
    args = config(tmp_path)
    for name, value in FSDP2.items():
        monkeypatch.setenv(f"FSDP_{name}", value)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setattr(launch, "REPLICATING_DEVICES", set())
    with pytest.raises(ValueError, match="there is a single one"):
        check_strategy(args)


def test_lora_settings_beside_an_adapter_are_ignored_with_a_warning(tmp_path, caplog):
    make_trainer(config(tmp_path, lora_r=5, lora_alpha=32), model=with_trained_adapter(tiny.stable_diffusion()))
    assert "settings of its own: `lora_r` will be ignored" in caplog.text


def test_whole_numbers_are_asked_for(tmp_path):
    with pytest.raises(ValueError, match=r"`num_likelihood_samples` is 1\.5; it must be a whole number"):
        config(tmp_path, num_likelihood_samples=1.5)


def test_a_percentile_that_is_not_used_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`threshold_type='mean'` does not use"):
        config(tmp_path, threshold_type="mean", threshold_percentile=90)


def test_sft_on_an_evaluation_set_without_positive_rows_is_refused(tmp_path):
    low = tiny.scored_rows(4).map(lambda row: {"score": row["score"] - 100})
    with pytest.raises(ValueError, match="positive rows only, and the evaluation data set has none"):
        make_trainer(config(tmp_path, loss_type="sft"), eval_dataset=low)


@pytest.mark.parametrize("model", ["stable_diffusion", "wan"])
@pytest.mark.parametrize("missing", ["prompt", "media", "score"])
def test_a_missing_column_is_found_before_a_model_is_loaded(tmp_path, model, missing):
    """Of a folder that names its pipeline, and has no weights to load."""
    (case,) = (case for case in CASES if case.name == model)
    case.build().save_pretrained(tmp_path / "base")
    for weights in (tmp_path / "base").rglob("*.safetensors"):
        weights.unlink()
    rows = case.rows(4)
    media = "image" if "image" in rows.column_names else "video"
    column = media if missing == "media" else missing
    with pytest.raises(ValueError, match=f"The training data set has no column '{column}'.*`{column}_column`"):
        make_trainer(case.config(tmp_path), model=str(tmp_path / "base"), train_dataset=rows.remove_columns(column))
    held_out = {"held-out": rows.remove_columns(column)}
    with pytest.raises(ValueError, match=f"The held-out data set has no column '{column}'"):
        make_trainer(case.config(tmp_path), model=str(tmp_path / "base"), train_dataset=rows, eval_dataset=held_out)
