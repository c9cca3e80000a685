"""Errors of the reference that are computed before training: the run is the same, and nobody asks the reference."""

import json
from contextlib import suppress

import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file

from tgo_trl import TGOConfig, TGOTrainer
from tgo_trl.data.reference_errors import ERRORS
from tgo_trl.families import StableDiffusionFamily
from tgo_trl.noise import DiffusionProcess
from tgo_trl.policy.draws import EVALUATION_EPOCH, draw_rows, repeated
from tgo_trl.policy.policy import Policy
from tgo_trl.policy.reference import AdapterReference, ModelReference, PastReference
from tgo_trl.trainer.reference_recipe import reference_digest

from . import tiny
from .runs import Stop, StopAt, assert_close, assert_equal, config, logged, make_trainer, metrics, trained_weights

DIFFERENCE = "prediction_difference"
RUNS = {
    "adapter": {},
    "all weights": {"use_peft": False, "learning_rate": 1e-3},
    "several samples": {"num_likelihood_samples": 2, "time_range": [0.2, 0.9]},
    "relative": {"recipe": "robust"},
    "pairs": {"loss_type": "diffusion_dpo", "pairs": "all", "beta": 20.0, "max_steps": 3},
    "diffusion_kto": {"loss_type": "diffusion_kto", "temperature": 0.01},
    "buckets": {"aspect_ratio_buckets": True},
    "bfloat16": {"bf16": True},
    "all weights, bfloat16": {"use_peft": False, "learning_rate": 1e-3, "bf16": True},
}
SLOW = {"bfloat16", "pairs", "several samples", "relative", "diffusion_kto", "buckets"}


def trainer_of(folder, rows=None, cached=True, **settings):
    """On eight rows in two updates an epoch, with two draws of each row."""
    settings = {"num_ref_draws": 2, "max_steps": 5, "precompute_ref_log_probs": cached, **settings}
    rows = tiny.scored_rows(8) if rows is None else rows
    return make_trainer(config(folder, **settings), train_dataset=rows, eval_dataset=tiny.scored_rows(5, seed=1))


def counted_calls(trainer):
    """The batch sizes of all calls of the network from now on."""
    calls = []
    trainer.pipeline.unet.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    return calls


@pytest.mark.parametrize("name", [pytest.param(it, marks=[pytest.mark.slow] * (it in SLOW)) for it in RUNS])
def test_a_run_is_bit_for_bit_the_one_that_asks_the_reference(tmp_path, name):
    runs = []
    for cached in (False, True):
        trainer = trainer_of(tmp_path, cached=cached, **RUNS[name])
        trainer.train()
        assert ("reference_error" in trainer.train_dataset[0]) == cached
        log = metrics(trainer.state.log_history)
        runs.append((log, trained_weights(trainer)))
    without = [{key: value for key, value in it.items() if DIFFERENCE not in key} for it in runs[0][0]]
    assert_equal(runs[1][0], without)
    assert_equal(runs[1][1], runs[0][1])


@pytest.mark.parametrize("use_peft", [True, False])
def test_training_and_evaluation_ask_the_policy_alone(tmp_path, use_peft):
    counts = {}
    for cached in (False, True):
        trainer = trainer_of(tmp_path, cached=cached, max_steps=2, use_peft=use_peft)
        if not use_peft:
            assert isinstance(trainer.reference, PastReference if cached else ModelReference)
        calls = counted_calls(trainer)
        if isinstance(trainer.reference, ModelReference):  # its calls are counted as well
            next(trainer.reference.model.children()).unet.register_forward_pre_hook(
                lambda _, args, calls=calls: calls.append(len(args[0]))
            )
        trainer.train()
        evaluation = trainer.evaluate()
        counts[cached] = calls
        assert "eval_rewards/chosen" in evaluation
    # two updates of four rows, and five rows of evaluation in batches of four
    assert counts[True] == [4, 4, 4, 1]
    assert sorted(counts[False]) == sorted(counts[True] * 2)


def test_no_second_network_is_kept(tmp_path):
    trainer = trainer_of(tmp_path, use_peft=False)
    assert trainer.sampled_reference is None
    trainer.train()
    with pytest.raises(ValueError, match="The reference is no longer in memory"):
        trainer.evaluate(tiny.scored_rows(3, seed=2))
    other = tiny.stable_diffusion()
    with torch.no_grad():
        other.unet.conv_out.bias += 0.1
    trainer = make_trainer(config(tmp_path, precompute_ref_log_probs=True), ref_model=other)
    assert isinstance(trainer.reference, PastReference)
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) > 0


def test_an_adapter_switched_off_still_answers_for_other_data(tmp_path):
    trainer = trainer_of(tmp_path, max_steps=2)
    assert isinstance(trainer.reference, AdapterReference)
    plain = trainer_of(tmp_path, cached=False, max_steps=2)
    held_out = tiny.scored_rows(3, seed=2)
    for it in (trainer, plain):
        it.train()
    assert_equal(*(metrics([it.evaluate(held_out)]) for it in (trainer, plain)))
    mine, theirs = (metrics([it.evaluate()])[0] for it in (trainer, plain))
    assert {*theirs} - {*mine} == {"eval_prediction_difference"}
    for name, value in mine.items():
        assert theirs[name] == pytest.approx(value, rel=1e-5, abs=1e-6)


# ---- Draws ----


def test_epochs_take_the_draws_in_turns():
    assert repeated([0, 1, 2, 3, 7, EVALUATION_EPOCH], 3) == [0, 1, 2, 0, 1, EVALUATION_EPOCH]
    assert repeated([0, 5], None) == [0, 5]


def test_a_draw_comes_back_after_as_many_epochs(tmp_path):
    """A network that stands still: two rows, one update an epoch."""
    args = {"max_steps": 4, "learning_rate": 0.0, "train_sampling_strategy": "sequential"}
    trainer = make_trainer(config(tmp_path, num_ref_draws=2, **args), train_dataset=tiny.scored_rows(2))
    trainer.train()
    repeating = logged(trainer, "logps/chosen")
    assert repeating[:2] == repeating[2:]
    assert repeating[0] != repeating[1]
    trainer = make_trainer(config(tmp_path, **args), train_dataset=tiny.scored_rows(2))
    trainer.train()
    fresh = logged(trainer, "logps/chosen")
    assert fresh[:2] == repeating[:2]
    assert len({*fresh}) == 4


def test_the_cache_holds_the_error_of_each_draw(tmp_path):
    """Worked out row by row, with the pipeline's own network and scheduler."""
    trainer = trainer_of(tmp_path, max_steps=1)
    dataset = trainer.train_dataset
    assert dataset.reference_errors.shape == (2, 8, 1)
    pipe = trainer.pipeline
    for epoch, position in ((0, 3), (1, 3), (2, 5)):
        row = dataset[(epoch, position)]
        draw = draw_rows(42, [epoch % 2], [row["row"]], row["image"]["mean"].shape, 1, torch.device("cpu"))
        latent = row["image"]["mean"] + row["image"]["std"] * draw.posterior_noise[0]
        latent = latent * pipe.vae.config.scaling_factor
        time = (draw.quantile * 1000).long()
        noisy = pipe.scheduler.add_noise(latent[None], draw.noise, time)
        with torch.no_grad(), trainer.reference.acting(trainer.policy):
            prediction = pipe.unet(noisy, time, row["prompt"]["embeds"][None]).sample
        expected = (prediction - draw.noise).square().mean().item()
        assert row["reference_error"].item() == pytest.approx(expected, rel=1e-4)


# ---- What is kept ----


def cache_files(folder):
    return {path.name for path in (folder / "cache").glob("*.safetensors")}


def test_it_says_what_it_takes_and_reads_back_what_is_there(tmp_path, capsys):
    trainer_of(tmp_path)
    said = capsys.readouterr().out
    assert "Reference errors of 8 training rows, 2 draws each: 64 bytes in " in said
    assert "4 forward passes of 4 rows." in said
    assert "Reference errors of 5 evaluation rows, 1 draws each: 20 bytes in " in said
    files = cache_files(tmp_path)
    trainer_of(tmp_path)
    assert capsys.readouterr().out.count("all of them are there already") == 2
    assert cache_files(tmp_path) == files


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        *(
            pytest.param(it, marks=pytest.mark.slow)
            for it in ({"time_range": [0.1, 1.0]}, {"precompute_ref_batch_size": 2}, {"num_likelihood_samples": 2})
        ),
    ],
    ids=lambda it: next(iter(it)),
)
def test_other_settings_have_other_errors(tmp_path, changes, capsys):
    trainer_of(tmp_path)
    capsys.readouterr()
    trainer_of(tmp_path, **changes)
    assert "there already" not in capsys.readouterr().out


def test_other_weights_have_other_errors(tmp_path, capsys):
    trainer = trainer_of(tmp_path)
    capsys.readouterr()
    other = tiny.stable_diffusion()
    with torch.no_grad():
        other.unet.conv_out.bias[0] += 1e-6
    args = config(tmp_path, num_ref_draws=2, precompute_ref_log_probs=True)
    changed = make_trainer(args, model=other)
    assert "there already" not in capsys.readouterr().out
    assert not torch.equal(changed.train_dataset.reference_errors, trainer.train_dataset.reference_errors)


class DoubledError(DiffusionProcess):
    """A noise process of the user's own."""

    def error(self, prediction, clean, noise, time):
        return 2 * super().error(prediction, clean, noise, time)


def test_another_noise_process_has_other_errors(tmp_path, monkeypatch, capsys):
    trainer = trainer_of(tmp_path)
    usual = StableDiffusionFamily.process

    def process(family, pipeline):
        found = usual(family, pipeline)
        found.__class__ = DoubledError
        return found

    monkeypatch.setattr(StableDiffusionFamily, "process", process)
    capsys.readouterr()
    other = trainer_of(tmp_path)
    assert "there already" not in capsys.readouterr().out
    assert torch.equal(other.train_dataset.reference_errors, 2 * trainer.train_dataset.reference_errors)


def test_adapters_of_a_reference_model_and_their_scales_have_errors_of_their_own(tmp_path, capsys):
    base = tiny.stable_diffusion()
    base.unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q"], init_lora_weights=False))
    base.save_lora_weights(tmp_path / "lora", get_peft_model_state_dict(base.unet))
    policy = Policy(StableDiffusionFamily(), {"unet": base.unet}, None)
    digests = []
    for scale in (None, 1.0, 2.0):
        reference = tiny.stable_diffusion()
        if scale is not None:
            reference.load_lora_weights(tmp_path / "lora")
            for layer in reference.unet.modules():
                if isinstance(layer, LoraLayer):
                    layer.scaling["default_0"] = scale
        digests.append(reference_digest(ModelReference({"unet": reference.unet}, policy), policy))
    assert len({*digests}) == 3


def test_a_run_that_is_stopped_computing_goes_on_there(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tgo_trl.data.reference_errors.ROWS_PER_SHARD", 4)
    whole = trainer_of(tmp_path / "whole").train_dataset.reference_errors

    calls, compute = [], TGOTrainer._reference_errors

    def interrupted(self, *args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return compute(self, *args)

    monkeypatch.setattr(TGOTrainer, "_reference_errors", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer_of(tmp_path)
    capsys.readouterr()
    trainer = trainer_of(tmp_path)
    assert ", 2 forward passes of 4 rows" in capsys.readouterr().out
    assert_equal(trainer.train_dataset.reference_errors, whole)


@pytest.mark.parametrize("use_peft", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_resumed_run_compares_with_the_reference_that_it_began_with(tmp_path, use_peft):
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "use_peft": use_peft}
    whole = trainer_of(tmp_path / "whole", **settings)
    whole.train()
    first = trainer_of(tmp_path, **settings)
    first.add_callback(StopAt(3))
    with suppress(Stop):
        first.train()
    rest = trainer_of(tmp_path, **settings)
    rest.train(resume_from_checkpoint=True)
    assert_equal(trained_weights(rest), trained_weights(whole))
    record = json.loads((tmp_path / "out" / "checkpoint-4" / "tgo_config.json").read_text())
    assert record["course"]["settings"]["num_ref_draws"] == 2
    with pytest.raises(ValueError, match="`num_ref_draws` was 2, is 3"):
        trainer_of(tmp_path, **{**settings, "max_steps": 6, "num_ref_draws": 3}).train(resume_from_checkpoint=True)


@pytest.mark.slow
def test_rows_of_a_ragged_epoch_differ_by_rounding_at_most(tmp_path):
    """The last batch of an epoch has three rows, and the errors were computed four rows at a time."""
    runs = []
    for cached in (False, True):
        trainer = trainer_of(tmp_path, tiny.scored_rows(7), cached, optim="sgd", learning_rate=0.1)
        trainer.train()
        runs.append(trained_weights(trainer))
    assert_close(runs[1], runs[0], 1e-6)


# ---- What is refused ----


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"loss_type": "sft"}, "has no reference"),
        ({"trust_region": 0.1}, r"`trust_region=0\.1` reads the reference's predictions"),
        ({"negatives": "mirror"}, "`negatives='mirror'` reads the reference's predictions"),
        ({"loss_type": "nft"}, "`loss_type='nft'` reads the reference's predictions"),
        ({"loss_type": "dspo"}, "`loss_type='dspo'` reads the reference's predictions"),
        ({"sync_ref_model": True}, "moves the reference"),
        ({"disable_dropout": False}, "may have other errors at every step"),
        ({"loss_type": "diffusion_dpo", "precompute_ref_batch_size": 3}, "would part pairs"),
    ],
)
def test_what_errors_alone_do_not_tell_is_refused(tmp_path, settings, reason):
    with pytest.raises(ValueError, match=f"`precompute_ref_log_probs` is True, and .*{reason}"):
        TGOConfig(str(tmp_path), precompute_ref_log_probs=True, use_cpu=True, **settings)


def test_settings_of_it_mean_nothing_alone(tmp_path):
    with pytest.raises(ValueError, match="`precompute_ref_batch_size` is 4, and nothing is precomputed"):
        config(tmp_path, precompute_ref_batch_size=4)
    with pytest.raises(ValueError, match="`num_ref_draws` is 4, draws that are repeated"):
        config(tmp_path, num_ref_draws=4, loss_type="sft")
    assert config(tmp_path).num_ref_draws is None
    assert config(tmp_path, precompute_ref_log_probs=True).num_ref_draws == 4


def test_streams_and_metrics_of_predictions_are_refused(tmp_path):
    args = config(tmp_path, precompute_ref_log_probs=True)
    stream = tiny.scored_rows(8).to_iterable_dataset()
    with pytest.raises(ValueError, match="`train_dataset` is a stream"):
        make_trainer(args, train_dataset=stream)
    with pytest.raises(ValueError, match="`eval_dataset` is a stream"):
        make_trainer(args, eval_dataset=stream)
    saving = {"save_strategy": "steps", "eval_strategy": "steps", "eval_steps": 1, "save_steps": 1}
    settings = {**saving, "load_best_model_at_end": True, "metric_for_best_model": DIFFERENCE}
    args = config(tmp_path, precompute_ref_log_probs=True, greater_is_better=False, **settings)
    with pytest.raises(ValueError, match="an evaluation has no such metric"):
        make_trainer(args, eval_dataset=tiny.scored_rows(4))


def test_a_reference_with_dropout_of_its_own_is_refused(tmp_path):
    pipeline = tiny.stable_diffusion()
    pipeline.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"], lora_dropout=0.5), adapter_name="mine")
    args = config(tmp_path, precompute_ref_log_probs=True)
    with pytest.raises(ValueError, match=r"the reference has dropout \(`.*lora_dropout\.ref`\)"):
        make_trainer(args, model=pipeline)
    # a new adapter is off in the reference, and its dropout with it
    make_trainer(config(tmp_path, precompute_ref_log_probs=True, lora_dropout=0.5))


def test_a_shard_holds_nothing_but_errors(tmp_path):

    trainer_of(tmp_path)
    held = [load_file(path) for path in (tmp_path / "cache").glob("*.safetensors")]
    errors = [it[ERRORS] for it in held if set(it) == {ERRORS}]
    assert sorted(tuple(it.shape) for it in errors) == [(5, 1), (8, 1), (8, 1)]
    assert all(it.dtype == torch.float32 for it in errors)
