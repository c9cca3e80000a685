"""What a run would take, told without weights: the same as is found with them."""

import logging
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from datasets import Dataset, Features, Image, List, concatenate_datasets
from diffusers import StableDiffusionPipeline
from torch import nn
from torch.nn import functional

from tgo_trl import TGOConfig, TGOTrainer
from tgo_trl.cli import main
from tgo_trl.commands.plan.run import plan
from tgo_trl.commands.plan.text import plan_lines
from tgo_trl.commands.train.config import TrainArguments
from tgo_trl.commands.train.run import subject_of, train
from tgo_trl.families import Flux2KleinEditFamily, Flux2KleinFamily, FluxFamily
from tgo_trl.policy.draws import Draw
from tgo_trl.policy.encoders import FrozenEncoders
from tgo_trl.policy.loading import load_pipeline
from tgo_trl.policy.memory import AttentionMasks, fixed_bytes, footprint, quantization_saves
from tgo_trl.policy.policy import build_policy
from tgo_trl.policy.shapes_and_numbers import as_numbers
from tgo_trl.policy.skeleton import encoded_shapes
from tgo_trl.storage import manifest
from tgo_trl.trainer.loading import load_for_training
from tgo_trl.trainer.measured_speed import Speed, Subject, UpdateClock, speed_key
from tgo_trl.trainer.plan import plan_run

from .cases import CASES, KINDS_THAT_TAKE_LONG, PROMPTS
from .runs import config
from .tiny import scored_rows, stable_diffusion


def shapes(tensors):
    return {name: (tuple(it.shape), it.dtype) for name, it in tensors.items()}


def encode(case, family, pipeline, has_weights):
    if has_weights:
        return case.encode(family, pipeline, 1)
    num_sources = len(case.sources[0]) if case.sources else 0
    row = (case.pixels(1)[0], case.geometry(1)[0], PROMPTS[0], num_sources)
    image, prompt, sources = encoded_shapes(family, pipeline, *row)
    return image | sources, prompt


def account_of(case, pipeline, args, has_weights):
    """Shapes of the networks and of what is encoded, and the memory of a step in bfloat16."""
    family, dtype, device = case.family(pipeline), torch.bfloat16, torch.device("cpu" if has_weights else "meta")
    parts = {name: shapes(it.state_dict()) for name, it in pipeline.components.items() if isinstance(it, nn.Module)}
    FrozenEncoders(family, pipeline, torch.device("cpu"), dtype)
    image, prompt = encode(case, family, pipeline, has_weights)
    policy, _ = build_policy(pipeline, family, args, None, dtype)
    assert {it.device for it in policy.parameters()} == {device}
    lengths = {"lengths": tuple(prompt["mask"].sum(1).tolist())} if family.reads_lengths else {}
    noise = torch.zeros(1, *family.latent_shape(image))
    numbers = (
        {name: as_numbers(it) for name, it in image.items()},
        {name: as_numbers(it) for name, it in prompt.items()},
    )
    denoiser = load_for_training(pipeline, args, dtype, has_sources=case.sources is not None).denoiser
    corrupted = denoiser.corrupt(numbers[0], numbers[1] | lengths, Draw(torch.full((1,), 0.5), noise, noise))
    with torch.autocast("cpu", dtype, enabled=has_weights):
        found = footprint(policy, corrupted, fixed_bytes(policy.networks.values(), 1))
    return parts, shapes(image), shapes(prompt), found


@pytest.mark.parametrize("case", KINDS_THAT_TAKE_LONG)
def test_what_has_no_weights_takes_as_much_as_what_has(case, tmp_path):
    whole = case.build()
    if case.family(whole).prompts_see_sources:
        pytest.skip("prompts that are encoded beside images have no shape without weights")
    whole.save_pretrained(tmp_path)
    lacking = dict.fromkeys(name for name in ("text_encoder_3", "tokenizer_3") if whole.components.get(name, 0) is None)
    whole, skeleton = (load_pipeline(str(tmp_path), lacking, None, None, weights=it) for it in (True, False))
    args = case.config(tmp_path, gradient_checkpointing=False)
    assert account_of(case, skeleton, args, False) == account_of(case, whole, args, True)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A pipeline's folder, and a data set of 10 rows."""
    folder = tmp_path_factory.mktemp("plan")
    stable_diffusion().save_pretrained(folder / "base")
    scored_rows(10).to_parquet(folder / "rows.parquet")
    return folder


def settings_of(base, **settings):
    chosen = {"resolution": 16, "max_steps": -1, "num_train_epochs": 2, "save_strategy": "steps", "save_steps": 2}
    arguments = TrainArguments(str(base / "base"), str(base / "rows.parquet"))
    return arguments, config(base, **{**chosen, **settings})


def test_a_run_takes_what_its_plan_says(base, monkeypatch, capsys):
    arguments, args = settings_of(
        base, positive_ratio=0.4, gradient_accumulation_steps=2, per_device_train_batch_size=2
    )
    before = plan(arguments, args)
    assert not (base / "cache").exists()
    assert not (base / "out").exists()
    assert before.encodings.missing is None  # nobody knows the encoders yet

    monkeypatch.chdir(base)
    trainer = TGOTrainer(arguments.model_name_or_path, args, scored_rows(10))
    trainer.train()
    after = plan(arguments, args)
    # 5 positive rows for 8 negative ones, of which there are 5: 3 of the former
    assert (before.updates, before.updates_per_epoch) == (trainer.state.max_steps, 2) == (4, 2)
    assert before.checkpoints == len(list((base / "out").glob("checkpoint-*"))) == 2
    weights = (base / "out" / "checkpoint-2" / "pytorch_lora_weights.safetensors").stat().st_size
    assert before.checkpoint_bytes == 3 * sum(it.nbytes for it in trainer.policy.trained_weights())
    assert before.checkpoint_bytes / 3 == pytest.approx(weights, rel=0.5)  # whose header is large beside tiny weights
    assert after.encodings.missing == (0, 0)
    on_disk = sum(path.stat().st_size for path in (base / "cache").glob("*.safetensors"))
    assert f"Encodings of the training data set: {on_disk:,} bytes in {base / 'cache'}" in capsys.readouterr().out
    assert before.encodings.image_bytes + before.encodings.prompt_bytes == pytest.approx(on_disk, rel=0.1)
    assert before.memory.fixed == fixed_bytes(trainer.policy.networks.values(), 1)

    assert dict(plan_lines(after, args))["goes on"] == "after update 4, if it began with the same data"

    # other rows and another size have other encodings
    other = settings_of(base, resolution=32, output_dir=str(base / "other"))
    assert plan(*other).encodings.missing == (10, 0)


@pytest.fixture(scope="module")
def begun(base):
    """A folder with a run of two updates of four rows, in a command's words."""
    words = [
        "--model_name_or_path", str(base / "base"), "--dataset_name", str(base / "rows.parquet"), "--use_cpu", "true",
        "--output_dir", str(base / "begun"), "--resolution", "16", "--max_steps", "2", "--report_to", "none",
        "--encoding_cache_dir", str(base / "none"), "--save_strategy", "steps", "--save_steps", "1", "--lora_r", "2",
        "--per_device_train_batch_size", "4", "--disable_tqdm", "true",
    ]  # fmt: skip
    assert main(["train", *words]) == 0
    return words


REFUSED = "not with these settings, started as this plan was: "


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["--max_steps", "4"], "after update 2, if it began with the same data"),
        (["--per_device_train_batch_size", "2"], f"{REFUSED}.*checkpoint-2 .*rows_per_update` was 4, is 2.* begins an"),
        (
            ["--learning_rate", "0.5", "--bf16", "true"],
            f"{REFUSED}.*`bf16` was False, is True; `learning_rate` was 0.0001, is 0.5",
        ),
        (["--learning_rate", "0.5", "--resume_from_checkpoint", "true"], REFUSED),
        (["--learning_rate", "0.5", "--resume_with_changes"], "after update 2, with other .*: `learning_rate` was"),
        (["--learning_rate", "0.5", "--resume_from_checkpoint", "false"], None),
        (["--resume_from_checkpoint", "{}/checkpoint-1"], "after update 1, if"),
    ],
)
def test_a_plan_into_the_folder_of_another_run_says_what_train_would_refuse(begun, settings, expected, printed, capsys):
    settings = [it.format(begun[begun.index("--output_dir") + 1]) for it in settings]
    assert main(["plan", *begun, *settings]) == 0, capsys.readouterr().err
    found = printed.get("goes on")
    assert (found is None) == (expected is None)
    if expected is not None:
        assert re.match(expected, found), found
    if expected is not None and expected.startswith(REFUSED):
        assert main(["train", *begun, *settings, "--max_steps", "3"]) == 1
        assert "is of a run with other settings or data" in capsys.readouterr().err


@pytest.fixture
def printed(monkeypatch):
    """The lines of the last plan, by name."""
    lines = {}

    def note(found, title):
        lines.clear()
        lines.update(found)

    monkeypatch.setattr("tgo_trl.commands.plan.run.print_summary", note)
    return lines


def test_a_plan_reads_a_checkpoint_once_and_training_too(begun, tmp_path, printed, monkeypatch, capsys):
    shutil.copytree(begun[begun.index("--output_dir") + 1], tmp_path / "out")
    read, digest = [], manifest.file_digest
    monkeypatch.setattr(manifest, "file_digest", lambda path: (read.append(path), digest(path))[1])
    words = [*begun, "--output_dir", str(tmp_path / "out"), "--max_steps", "3", "--save_strategy", "no"]
    weights = tmp_path / "out" / "checkpoint-2" / "pytorch_lora_weights.safetensors"
    for command in ("plan", "train"):
        read.clear()
        assert main([command, *words]) == 0, capsys.readouterr().err
        assert read.count(weights) == 1
    weights.write_bytes(bytes(weights.stat().st_size))  # as long as it was, so that only its digest tells
    assert main(["plan", *words]) == 0, capsys.readouterr().err
    assert printed["goes on"].startswith("after update 1, if")
    (tmp_path / "out" / "checkpoint-1" / weights.name).write_bytes(bytes(weights.stat().st_size))
    for command in ("plan", "train"):
        assert main([command, *words]) == 1
        assert "Set `resume_from_checkpoint` to false to begin anew" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["qwen_image21", pytest.param("hunyuan_video15", marks=pytest.mark.slow)])
def test_a_step_of_networks_that_read_their_inputs_is_told(name, tmp_path):
    (case,) = (it for it in CASES if it.name == name)
    case.build().save_pretrained(tmp_path / "base")
    args = case.config(tmp_path, gradient_checkpointing=False)
    memory = plan_run(str(tmp_path / "base"), Subject("base"), args, case.rows(4), None).memory
    assert memory.why_unknown is None
    assert memory.peak > memory.fixed > 0


def test_masks_of_attention_are_kept_in_the_dtype_of_what_attends():
    """Of five tokens in bfloat16, 2 bytes a pair; the same for two rows is there once."""
    query = torch.randn(2, 1, 5, 8, dtype=torch.bfloat16, requires_grad=True)
    pairs, tokens = torch.ones(1, 1, 5, 5, dtype=torch.bool), torch.ones(1, 1, 1, 5, dtype=torch.bool)
    for mask, expected in ((None, 0), (pairs, 50), (pairs.expand(2, -1, -1, -1), 50), (tokens.expand(2, 1, 5, 5), 10)):
        with AttentionMasks() as masks:
            functional.scaled_dot_product_attention(query, query, query, attn_mask=mask)
        assert masks.bytes == expected
    with torch.autograd.graph.saved_tensors_hooks(lambda it: kept.append(it) or it, lambda it: it):
        kept = []
        functional.scaled_dot_product_attention(query, query, query, attn_mask=pairs)
    assert 50 in [it.nbytes for it in kept if it.shape[-2:] == (5, 5)]


def test_what_a_quantised_base_saves():
    network = nn.ModuleList([nn.Linear(64, 32, dtype=torch.bfloat16), nn.Linear(64, 32), nn.Conv2d(3, 4, 1)])
    network.requires_grad_(False)
    network[1].requires_grad_(True)
    assert quantization_saves([network], 4) == 64 * 32 * 2 - (64 * 32 // 2 + 64 * 32 // 64 * 4)
    assert quantization_saves([network], 8) == 64 * 32


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"score_column": "scroe"}, "has no column 'scroe'"),
        ({"resolution": 15}, "multiple of"),
        ({"loss_type": "sft", "threshold_type": "value", "threshold_value": 1e9}, "positive"),
        ({"lora_target_modules": ["to_x"]}, "to_x"),
    ],
)
def test_what_training_refuses_is_refused_alike(base, settings, words):
    arguments, args = settings_of(base, output_dir=str(base / "refused"), **settings)
    with pytest.raises(ValueError, match=words) as planned:
        plan(arguments, args)
    with pytest.raises(ValueError, match=words) as trained:
        TGOTrainer(arguments.model_name_or_path, args, scored_rows(10))
    assert str(planned.value) == str(trained.value)


@pytest.mark.parametrize(
    ("settings", "prompts", "words"),
    [
        ({"threshold_type": "prompt_mean"}, "aabb", "needs all images of a prompt at once"),
        ({"loss_type": "qrpo", "quantile_scope": "prompt"}, "aabb", "each prompt's own scores"),
    ],
)
def test_what_training_refuses_of_a_streamed_evaluation_is_refused_alike(base, settings, prompts, words):
    arguments, args = settings_of(base, max_steps=2, eval_strategy="steps", **settings)
    rows = scored_rows(4).remove_columns("prompt").add_column("prompt", [*prompts])
    data = (rows, rows.to_iterable_dataset())
    with pytest.raises(ValueError, match=words) as planned:
        plan_run(arguments.model_name_or_path, subject_of(arguments), args, *data)
    with pytest.raises(ValueError, match=words) as trained:
        TGOTrainer(arguments.model_name_or_path, args, *data)
    assert str(planned.value) == str(trained.value)


def test_quantiles_of_single_images_are_refused_of_evaluations_alike(base):
    arguments, args = settings_of(base, max_steps=2, eval_strategy="steps", loss_type="qrpo", quantile_scope="prompt")
    data = [scored_rows(4).remove_columns("prompt").add_column("prompt", [*prompts]) for prompts in ("aabb", "aacb")]
    words = "1 of 1 prompts outside the training set have a single image"
    with pytest.raises(ValueError, match=words) as planned:
        plan_run(arguments.model_name_or_path, subject_of(arguments), args, *data)
    with pytest.raises(ValueError, match=words) as trained:
        TGOTrainer(arguments.model_name_or_path, args, *data)
    assert str(planned.value) == str(trained.value)


def test_a_prompt_that_sees_sources_counts_with_each_of_them(tmp_path):
    """Two texts and two sources in six rows: (a, 0) (b, 0) (a, 1) (b, 0) (a, 0) (b, 1)."""
    (case,) = (it for it in CASES if it.name == "qwen_image_edit")
    case.build().save_pretrained(tmp_path / "base")
    sources = [[case.sources[i][0]] for i in (0, 0, 1, 0, 0, 1)]
    column = Dataset.from_dict({"source_image": sources}, features=Features({"source_image": List(Image())}))
    rows = scored_rows(6).remove_columns("prompt").add_column("prompt", [*"ababab"])
    rows = concatenate_datasets([rows, column], axis=1)
    args = case.config(tmp_path, gradient_checkpointing=False)
    encodings = plan_run(str(tmp_path / "base"), Subject("base"), args, rows, None).encodings
    assert (encodings.num_images, encodings.num_prompts) == (6, 4)


def test_a_pair_that_is_left_out_is_no_row_that_is(base):
    arguments, args = settings_of(base, loss_type="diffusion_dpo")
    rows = scored_rows(4).remove_columns(["prompt", "score"])
    rows = rows.add_column("prompt", [*"aaab"]).add_column("score", [1.0, 1.0, 2.0, 3.0])
    plan = plan_run(arguments.model_name_or_path, subject_of(arguments), args, rows, None)
    names = [name for name, _ in plan_lines(plan, args)]
    assert {"left out", "rows left out"} < {*names}
    assert len({*names}) == len(names)


def test_a_dtype_in_words_is_one(base, monkeypatch):
    """diffusers would warn of a string, and take float32 for it."""
    asked, load = {}, StableDiffusionPipeline.from_pretrained.__func__

    def record(pipeline_class, *args, **kwargs):
        asked.update(kwargs)
        return load(pipeline_class, *args, **kwargs)

    monkeypatch.setattr(StableDiffusionPipeline, "from_pretrained", classmethod(record))
    load_pipeline(str(base / "base"), {"dtype": "bfloat16"}, None, None, weights=False)
    assert asked["dtype"] is torch.bfloat16


def test_the_command_says_what_is_next(base, capsys, caplog):
    words = [
        "--model_name_or_path", str(base / "base"), "--dataset_name", str(base / "rows.parquet"), "--use_cpu", "true",
        "--output_dir", str(base / "new"), "--resolution", "16", "--max_steps", "7", "--report_to", "none",
        "--encoding_cache_dir", str(base / "none"),
    ]  # fmt: skip
    with caplog.at_level(logging.WARNING):
        assert main(["plan", *words]) == 0
    printed = capsys.readouterr().out
    assert "7 of 8 rows each" in printed
    assert printed.splitlines()[-1] == f"Next: tgo-trl train {' '.join(words)}"
    assert main(["plan", *words, "--score_column", "scroe"]) == 1
    assert "scroe" in capsys.readouterr().err
    assert not Path(base / "new").exists()
    assert TGOConfig(str(base / "new")).output_dir  # making settings writes nothing either


def test_a_speed_is_that_of_a_run_with_the_same_settings(base, tmp_path):
    folders = {"output_dir": str(tmp_path / "out"), "encoding_cache_dir": str(tmp_path / "cache")}
    arguments, args = settings_of(base, save_strategy="no", max_steps=3, **folders)
    text = dict(plan_lines(plan(arguments, args), args))["time"]
    assert text.startswith("not known before updates were made on this machine: train with `--max_steps 20 ")
    train(arguments, args)
    longer = replace(args, max_steps=30)
    speed = plan(arguments, longer).speed
    assert speed.updates == 2  # without the first
    minutes = 30 * speed.seconds / 2 / 60
    assert dict(plan_lines(plan(arguments, longer), longer))["time"].startswith(
        f"about {minutes:,.1f} minutes, at the "
    )
    assert plan(arguments, replace(args, per_device_train_batch_size=2)).speed is None


def test_another_subject_has_a_speed_of_its_own(base):
    arguments, args = settings_of(base)
    subjects = [
        subject_of(replace(arguments, **changes), ref_model)
        for changes, ref_model in (
            ({}, None), ({}, "another"), ({"dataset_streaming": True}, None), ({"adapter_name_or_path": "a"}, None),
            ({"load_in_4bit": True}, None), ({"model_name_or_path": "another"}, None),
        )
    ]  # fmt: skip
    assert len({speed_key(args, subject, (16, 16), FluxFamily, 0) for subject in subjects}) == len(subjects)
    rows = [(Flux2KleinFamily, 0), (Flux2KleinEditFamily, 1), (Flux2KleinEditFamily, 2)]  # which data sets decide
    assert len({speed_key(args, subjects[0], (16, 16), *of_rows) for of_rows in rows}) == len(rows)


def test_time_between_updates_is_none_of_theirs(monkeypatch):
    """Updates end at 10, 13 and 19; from 14 to 18, and within that from 15 to 16, something else goes on."""
    times = iter([10.0, 14.0, 18.0, 19.0])
    monkeypatch.setattr("tgo_trl.trainer.measured_speed._now", lambda: next(times))
    clock = UpdateClock()
    assert clock.read(5) is None
    clock.tick(5)
    clock.tick(6)
    with clock.aside(), clock.aside():
        pass
    clock.tick(7)
    assert clock.read(7) == Speed(2, 19 - 10 - 4)


def test_what_is_no_update_takes_no_time_of_updates(base, tmp_path, monkeypatch):
    """A minute in each of four grids, two evaluations, and three things that follow the last update, shows nowhere."""
    clock = {"now": 0.0}
    monkeypatch.setattr("tgo_trl.trainer.measured_speed._now", lambda: clock["now"])
    _, args = settings_of(
        base, output_dir=str(tmp_path), max_steps=4, eval_strategy="steps", eval_steps=2, sample_prompts=["a"],
        sample_steps=1, sample_num_inference_steps=1, save_strategy="steps", save_steps=2, load_best_model_at_end=True,
    )  # fmt: skip
    trainer = TGOTrainer(str(base / "base"), args, scored_rows(8), scored_rows(4))
    reporters = trainer.callback_handler
    monkeypatch.setattr(reporters, "on_train_end", slowly(reporters.on_train_end, clock, 60.0))
    for name in ("sample", "evaluation_loop", "training_step", "_load_best_model", "_finish_current_push"):
        monkeypatch.setattr(
            trainer, name, slowly(getattr(trainer, name), clock, 1.0 if name == "training_step" else 60.0)
        )
    trainer.train()
    assert trainer.kept_step is not None
    assert trainer.speed == Speed(3, 3.0 * args.gradient_accumulation_steps)


def slowly(call, clock, seconds):
    def called(*args, **kwargs):
        clock["now"] += seconds
        return call(*args, **kwargs)

    return called


@pytest.mark.parametrize("name", ["load_in_4bit", "load_in_8bit"])
def test_a_quantisation_that_is_not_installed_is_named(base, monkeypatch, name):
    monkeypatch.setattr("tgo_trl.commands.train.run.is_bitsandbytes_available", lambda: False)
    arguments, args = settings_of(base)
    with pytest.raises(ValueError, match=rf"`{name}` is set, .* Run `pip install bitsandbytes`"):
        plan(replace(arguments, **{name: True}), args)
