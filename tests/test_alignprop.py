"""A trainer that climbs a reward's gradient: its runs, its settings, and what it refuses before anything is loaded."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from diffusers import StableDiffusionPipeline
from peft import LoraConfig

from tgo_trl import AlignPropConfig, AlignPropTrainer
from tgo_trl.trainer.arguments import run_name_of
from tgo_trl.trainer.nonfinite import NonFiniteError

from . import tiny
from .cases import CASES, RELATIVES, as_parameter
from .devices import cpu_environment
from .runs import Stop, StopAt, assert_close, assert_equal, logged, trained_weights

PROMPTS = Dataset.from_dict({"prompt": ["a cat", "two birds", "a red cube", "the sea"]})


class Brightness:
    """Mean of the pixels."""

    name, version, differentiable = "brightness", "1", True

    def score_pixels(self, prompts, pixels):
        return pixels.mean((1, 2, 3))


def settings(folder, **changes):
    defaults = {
        "output_dir": str(folder / "out"),
        "encoding_cache_dir": str(folder / "cache"),
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "lora_r": 4,
        "resolution": 16,
        "sample_num_steps": 3,
        "sample_guidance_scale": 2.0,
        "learning_rate": 1e-2,
    }
    return AlignPropConfig(**{**defaults, **changes})


def make_trainer(folder, pipeline=None, reward=None, dataset=PROMPTS, callbacks=None, **changes):
    pipeline = pipeline or tiny.stable_diffusion()
    return AlignPropTrainer(pipeline, reward or Brightness(), settings(folder, **changes), dataset, callbacks=callbacks)


def test_a_reward_is_climbed_and_the_adapter_loads_in_stock_diffusers(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=12, sample_prompts=["a cat"], sample_steps=12)
    trainer.train()
    assert len(list((tmp_path / "out" / "samples").iterdir())) == 1
    rewards = logged(trainer, "reward")
    assert sum(rewards[-2:]) > sum(rewards[:2]) + 0.02  # an epoch's two updates
    assert rewards == pytest.approx([-loss for loss in logged(trainer)], abs=1e-4)
    assert all(value > 0 for name in ("reward_std", "variety") for value in logged(trainer, name))
    trainer.save_model()
    trainer.create_model_card()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "with reward backpropagation (AlignProp)." in card
    assert "papers/2310.03739" in card
    assert "2605.04653" not in card
    assert "| reward | `brightness`, 1 |" in card
    assert "| steps with a gradient | the last 1 to 3, drawn for each sample |" in card
    record = json.loads((tmp_path / "out" / "tgo_config.json").read_text())
    assert (record["label_rule"], record["temperature"]) == (None, None)
    assert "beta" not in record["config"]
    stock = tiny.stable_diffusion()
    assert type(stock) is StableDiffusionPipeline
    stock.load_lora_weights(tmp_path / "out")
    call = {"num_inference_steps": 3, "guidance_scale": 2.0, "output_type": "np", "height": 16, "width": 16}
    ours, theirs, base = (
        pipeline("a cat", generator=torch.Generator().manual_seed(0), **call).images
        for pipeline in (trainer.pipeline, stock, tiny.stable_diffusion())
    )
    assert abs(ours - theirs).max() < 1e-5
    assert theirs.mean() > base.mean() + 0.01


def test_without_a_reference_an_adapter_may_begin_anywhere(tmp_path):
    adapter = LoraConfig(r=4, init_lora_weights=False, target_modules=["to_q"])
    args = settings(tmp_path, max_steps=1)
    trainer = AlignPropTrainer(tiny.stable_diffusion(), Brightness(), args, PROMPTS, peft_config=adapter)
    begun = trained_weights(trainer)
    trainer.train()
    assert all(not torch.equal(weight, begun[name]) for name, weight in trained_weights(trainer).items())


@pytest.mark.slow
def test_a_run_that_is_cut_goes_on_bit_for_bit(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 1}
    whole = make_trainer(tmp_path / "whole", **saving)
    whole.train()
    with pytest.raises(Stop):
        make_trainer(tmp_path / "cut", callbacks=[StopAt(3)], **saving).train()
    resumed = make_trainer(tmp_path / "cut", **saving)
    resumed.train(resume_from_checkpoint=True)
    assert_equal(trained_weights(resumed), trained_weights(whole))
    again = make_trainer(tmp_path / "cut", resume_from_checkpoint=True, **{**saving, "max_steps": 5})
    again.train(resume_from_checkpoint=again.args.resume_from_checkpoint)  # which no course compares
    assert again.state.global_step == 5
    with pytest.raises(ValueError, match=r"other settings or data: `learning_rate` was 0\.01, is 0\.5\. Go on"):
        make_trainer(tmp_path / "cut", "not/there", learning_rate=0.5, resume_from_checkpoint="true", **saving)
    other = make_trainer(tmp_path / "cut", sample_num_steps=2, **saving)
    with pytest.raises(ValueError, match=r"other settings or data: .*samples"):
        other.train(resume_from_checkpoint=True)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_results_do_not_depend_on_how_an_update_is_laid_out(tmp_path, eta):
    runs = []
    for name, batch, accumulated, recompute in (("one", 4, 1, True), ("two", 2, 2, False)):
        trainer = make_trainer(
            tmp_path / name, max_steps=2, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulated,
            gradient_checkpointing=recompute, optim="sgd", learning_rate=1.0, sample_eta=eta,
        )  # fmt: skip
        trainer.train()
        assert trainer.policy.recomputes_calls == recompute
        runs.append((trained_weights(trainer), logged(trainer, "reward"), logged(trainer, "variety")))
    assert_close(runs[0][0], runs[1][0], 1e-6)
    assert runs[0][1] == pytest.approx(runs[1][1], abs=1e-6)
    assert runs[0][2] == pytest.approx(runs[1][2], abs=1e-6)


def run_in_processes(folder, **layout):
    """Three updates of four rows, the second and the third of which have padding in two processes; what they gave."""
    rows = Dataset.from_dict({"prompt": [*PROMPTS["prompt"], "a fish", "a ship", "a tree"]})
    trainer = make_trainer(folder, dataset=rows, max_steps=3, optim="sgd", learning_rate=1.0, **layout)
    trainer.train()
    values = {name: logged(trainer, name) for name in ("reward", "reward_std", "variety", "loss")}
    return {"weights": trained_weights(trainer), **values}


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    command = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "tests.test_alignprop"]
    done = subprocess.run(
        [sys.executable, "-m", *command, str(tmp_path)], cwd=Path(__file__).parents[1], env=cpu_environment(),
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    one = run_in_processes(tmp_path / "one", per_device_train_batch_size=4)
    assert_equal(second["weights"], first["weights"])
    assert_close(first.pop("weights"), one.pop("weights"), 1e-5)
    for name, values in one.items():
        assert first[name] == pytest.approx(values, abs=1e-5), name


SAMPLED = [case for case in CASES if case.family(case.build()).has_sampler and "-" not in case.name]


@pytest.mark.parametrize("case", [as_parameter(case, case.name in RELATIVES) for case in SAMPLED])
def test_every_family_with_a_sampler_is_trained(case, tmp_path):
    guided = case.name not in ("flux", "flux2_dev")
    trainer = make_trainer(
        tmp_path, case.build(), max_steps=1, resolution=case.module.RESOLUTION,
        sample_guidance_scale=3.0 if guided else None, sample_num_steps=2, **case.module.SETTINGS,
    )  # fmt: skip
    before = trained_weights(trainer)
    trainer.train()  # layers without a gradient would be named
    after = trained_weights(trainer)
    assert any(not torch.equal(after[name], weight) for name, weight in before.items())


def test_all_weights_can_be_trained_and_averaged(tmp_path):
    trainer = make_trainer(tmp_path, use_peft=False, learning_rate=1e-3, ema_decay=0.9)
    trainer.train()
    trainer.save_model()
    assert (tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors").is_file()
    with pytest.raises(ValueError, match="AlignProp with `use_peft=False` keeps no copy of the network"):
        trainer.sample(["a cat"], [0], from_reference=True)


def test_evaluations_draw_samples_and_choose_the_checkpoint(tmp_path):
    trainer = make_trainer(
        tmp_path, max_steps=3, eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1,
        load_best_model_at_end=True, eval_rewards=["tests.runs:brightness"], eval_prompts=["a red cat", "a blue dog"],
        min_variety=0.01,
    )  # fmt: skip
    trainer.train()
    values = logged(trainer, "eval_samples/brightness")
    assert len(values) == 3
    assert trainer.kept_step == 1 + values.index(max(values))
    assert all(0.01 < value < 2 for value in logged(trainer, "eval_samples/variety"))
    assert trainer.evaluate()["eval_samples/brightness"] == pytest.approx(max(values), abs=1e-6)
    with pytest.raises(ValueError, match="An evaluation draws the samples of `eval_prompts`"):
        trainer.evaluate(PROMPTS)
    trainer.create_model_card()
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"After update {trainer.kept_step}, whose weights these are" in card
    assert "brightness" in card[card.index("## Evaluation") :]


# ---- What is no number ----


class Broken(Brightness):
    """NaN for one prompt."""

    def score_pixels(self, prompts, pixels):
        scores = super().score_pixels(prompts, pixels)
        return scores + torch.tensor([torch.nan if prompt == "two birds" else 0.0 for prompt in prompts])


def test_a_reward_that_is_nan_ends_the_run_or_is_left_out(tmp_path):
    trainer = make_trainer(tmp_path / "error", reward=Broken())
    before = trained_weights(trainer)
    with pytest.raises(NonFiniteError, match=r"of row 1 of the data set is not finite.*Lower `learning_rate`,"):
        trainer.train()
    assert all(weight.isfinite().all() for weight in trained_weights(trainer).values())
    trainer = make_trainer(tmp_path / "skip", reward=Broken(), on_bad_row="skip", max_steps=4)
    trainer.train()  # one of an epoch's two updates, whichever it is
    assert any(not torch.equal(weight, before[name]) for name, weight in trained_weights(trainer).items())
    assert trainer._guard.num_left_out == 2


def test_rows_without_a_prompt_are_errors_or_left_out(tmp_path):
    rows = Dataset.from_dict({"text": ["a cat", "", "the sea", None]})
    with pytest.raises(ValueError, match="Row 1, column 'text': the prompt is empty"):
        make_trainer(tmp_path, dataset=rows, prompt_column="text")
    trainer = make_trainer(tmp_path, dataset=rows, prompt_column="text", on_bad_row="skip")
    assert trainer.train_dataset.texts == {0: "a cat", 2: "the sea"}
    assert trainer.train_dataset[0, 1]["row"] == 2
    assert trainer.train_dataset.example_prompt == "a cat"
    with pytest.raises(ValueError, match=r"has no column 'prompt'; it has 'text'.*`AlignPropConfig`"):
        make_trainer(tmp_path, dataset=rows)
    with pytest.raises(ValueError, match="no row that can be used"):
        make_trainer(tmp_path, dataset=Dataset.from_dict({"prompt": [""]}), on_bad_row="skip")


def test_prompts_are_read_by_name(tmp_path):
    PROMPTS.to_json(tmp_path / "prompts.jsonl")
    trainer = make_trainer(tmp_path, dataset=str(tmp_path / "prompts.jsonl"))
    assert list(trainer.train_dataset.texts.values()) == PROMPTS["prompt"]


# ---- Refused before anything is loaded ----


@pytest.mark.parametrize(("name", "why"), [("AmusedPipeline", "tokens"), ("WanPipeline", "videos")])
def test_pipelines_without_such_a_sampler_are_refused_by_their_index(tmp_path, name, why):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
    with pytest.raises(ValueError, match=f"cannot be trained by the gradient of a reward here: .*{why}"):
        make_trainer(tmp_path, str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"reward": "videoreward"}, ValueError, "`reward`: The reward 'videoreward' gives scores without a gradient"),
        ({"reward": "nothing"}, ValueError, "`reward`: There is no reward named 'nothing'"),
        ({"reward": "tests.runs:brightness"}, ValueError, "'brightness' gives scores without a gradient"),
        ({"train_dataset": None}, ValueError, "`train_dataset` is required"),
        ({"train_dataset": PROMPTS.to_iterable_dataset()}, TypeError, "without `streaming=True`"),
        ({"args": 1e-4}, TypeError, "`args` must be an `AlignPropConfig`, got `float`"),
    ],
)
def test_arguments_that_cannot_work(tmp_path, arguments, error, message):
    defaults = {"reward": Brightness(), "args": settings(tmp_path), "train_dataset": PROMPTS}
    with pytest.raises(error, match=message):
        AlignPropTrainer("no/such-model", **{**defaults, **arguments})


def test_rewards_of_edits_and_sources_are_refused_before_anything_is_loaded(tmp_path):
    class OfEdits(Brightness):
        reads_sources = True

    (tmp_path / "rewards.py").write_text("def nearness(prompts, images, sources):\n    return [0.0] * len(images)\n")
    evaluated = {"eval_strategy": "steps", "eval_steps": 1, "eval_prompts": ["a"]}
    args = settings(tmp_path, eval_rewards=[f"{tmp_path / 'rewards.py'}:nearness"], **evaluated)
    with pytest.raises(ValueError, match=r"`eval_rewards`: The reward .*nearness' compares an image with the one that"):
        AlignPropTrainer("no/such-model", Brightness(), args, PROMPTS)
    with pytest.raises(ValueError, match="`reward`: The reward 'brightness' compares an image with the one that"):
        AlignPropTrainer("no/such-model", OfEdits(), settings(tmp_path), PROMPTS)
    with pytest.raises(ValueError, match="`eval_sources` is "):
        settings(tmp_path, eval_sources=["a.png"], **evaluated)


def test_source_images_that_are_not_read_are_warned_of(tmp_path, caplog):
    rows = PROMPTS.add_column("source_image", ["a.png"] * len(PROMPTS))
    for dataset, is_warned in ((PROMPTS, False), (rows, True)):
        with pytest.raises(OSError, match="model"):
            AlignPropTrainer("no/such-model", Brightness(), settings(tmp_path), dataset)
        told = "`train_dataset` has a column 'source_image', which is not read: `AlignPropTrainer` reads prompts alone"
        assert (told in caplog.text) == is_warned


def test_a_reward_is_tried_before_prompts_are_encoded(tmp_path):
    class Detached(Brightness):
        def score_pixels(self, prompts, pixels):
            return pixels.detach().mean((1, 2, 3))

    class Aside(Detached):
        def score_pixels(self, prompts, pixels):
            return super().score_pixels(prompts, pixels) * torch.ones(1, requires_grad=True)

    with pytest.raises(ValueError, match="'brightness' returned scores without a gradient"):
        make_trainer(tmp_path, reward=Detached())
    with pytest.raises(ValueError, match="'brightness' has a gradient, and none of the pixels"):
        make_trainer(tmp_path, reward=Aside())
    assert not (tmp_path / "cache").exists()


def test_what_no_evaluation_measures_chooses_no_checkpoint(tmp_path):
    choice = {"eval_strategy": "steps", "eval_steps": 1, "eval_prompts": ["a"], "save_strategy": "best"}
    with pytest.raises(ValueError, match=r"`metric_for_best_model` is 'loss', and an evaluation measures 'samples/var"):
        make_trainer(tmp_path, metric_for_best_model="loss", **choice)


def test_samplers_that_cannot_be_had(tmp_path):
    flux = next(case for case in CASES if case.name == "flux")
    with pytest.raises(ValueError, match=r"`sample_guidance_scale` is 2\.0, and this network takes its guidance as an"):
        make_trainer(tmp_path, flux.build(), **flux.module.SETTINGS)
    with pytest.raises(ValueError, match=r"`sample_eta` is 0\.5, and the pipeline's scheduler, a `FlowMatchEuler"):
        make_trainer(tmp_path, flux.build(), sample_guidance_scale=None, sample_eta=0.5, **flux.module.SETTINGS)


# ---- Settings ----


def test_how_far_the_gradient_goes_back(tmp_path):
    def last_steps(**changes):
        return settings(tmp_path, sample_num_steps=50, **changes).last_steps

    assert last_steps() == (1, 50)  # begins at step 0, 1, ... or 49
    assert last_steps(truncated_rand_backprop_minmax=(10, 40)) == (11, 40)  # at 10, ... or 39
    assert last_steps(truncated_backprop_rand=False) == (1, 1)
    assert last_steps(truncated_backprop_rand=False, truncated_backprop_timestep=0) == (50, 50)
    assert last_steps(truncated_backprop_rand=False, truncated_backprop_timestep=45) == (5, 5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta": 3.0}, r"`beta` is 3\.0, which `AlignPropTrainer` has no use for"),
        ({"loss_type": "sft"}, "`loss_type` is 'sft'"),
        ({"recipe": "robust"}, "`recipe` is 'robust'"),
        ({"sync_ref_model": True}, "compared with no reference"),
        ({"max_drift": 1.2}, "`min_variety` works"),
        ({"sample_num_inference_steps": 20}, "have `sample_num_steps`"),
        ({"sample_num_steps": 0}, "`sample_num_steps` is 0; it must be at least 1"),
        ({"sample_num_steps": 2.5}, r"`sample_num_steps` is 2\.5; it must be a whole number"),
        ({"sample_eta": 1.5}, r"`sample_eta` is 1\.5; it must be from 0 to 1"),
        ({"truncated_backprop_timestep": 1}, "is 1, which `truncated_backprop_rand=True` does not use"),
        (
            {"truncated_rand_backprop_minmax": [0, 2], "truncated_backprop_rand": False},
            "which `truncated_backprop_rand=False` does not use. Set `truncated_backprop_timestep`",
        ),
        ({"truncated_backprop_timestep": 3, "truncated_backprop_rand": False}, "it must be from 0 to 2"),
        ({"truncated_backprop_timestep": -1, "truncated_backprop_rand": False}, "it must be from 0 to 2"),
        ({"truncated_rand_backprop_minmax": [0, 4]}, "must be two whole numbers"),
        ({"truncated_rand_backprop_minmax": [2, 2]}, "must be two whole numbers"),
        ({"truncated_rand_backprop_minmax": ["a"]}, "must be two whole numbers"),
        ({"truncated_rand_backprop_minmax": "0"}, "must be two whole numbers"),
        ({"eval_strategy": "steps", "eval_steps": 1}, "set `eval_rewards` or `eval_prompts`"),
    ],
)  # fmt: skip
def test_settings_that_cannot_work(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        settings(tmp_path, **changes)


def test_settings_come_back_from_json(tmp_path):
    args = settings(tmp_path, truncated_rand_backprop_minmax=(0, 2))
    own = json.loads(json.dumps(args.to_dict()))
    names = ("sample_num_steps", "truncated_rand_backprop_minmax", "sample_guidance_scale", "lora_r")
    assert AlignPropConfig(str(tmp_path), use_cpu=True, **{name: own[name] for name in names}).last_steps == (2, 3)
    assert not {"beta", "loss_type", "threshold_type", "sample_num_inference_steps"} & own.keys()
    assert replace(args, max_steps=7).to_dict() == {**own, "max_steps": 7}
    assert args.learning_rate == 1e-2
    assert AlignPropConfig(str(tmp_path), use_cpu=True).learning_rate == 1e-3


def test_a_run_without_settings_is_named_after_the_model(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="`train_dataset` is required"):
        AlignPropTrainer("owner/model", Brightness())
    assert run_name_of("owner/model", "AlignProp") == "model-AlignProp"


if __name__ == "__main__":
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    found = run_in_processes(out / "two", per_device_train_batch_size=2)
    torch.save(found, out / f"{os.environ['RANK']}.pt")
