"""What would only fail at the first evaluation, the first step or the end is refused when the trainer is made."""

import importlib.util
import logging

import pytest
import torch

from tgo_trl.trainer.feasibility import DRIFT, ERROR_DIFFERENCE, check_best_metric_of, check_run

from . import tiny
from .runs import config, make_trainer, streamed
from .tiny import amused

EVALUATING = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
BEST = {**EVALUATING, "load_best_model_at_end": True}


def low(num_rows=4):
    """Rows below any threshold of the training set."""
    return tiny.scored_rows(num_rows, seed=1).map(lambda row: {"score": row["score"] - 100})


def high(num_rows=4):
    return tiny.scored_rows(num_rows, seed=1).map(lambda row: {"score": row["score"] + 100})


def count(prediction):
    return {"n": len(prediction.predictions)}


REFUSED = {
    "inputs for metrics": ({"include_for_metrics": ["inputs"]}, "`include_for_metrics` is .'inputs'.*Leave it out"),
    "losses for metrics": ({"include_for_metrics": ["loss"]}, "`include_for_metrics` is .'loss'"),
    "batches of metrics": ({**EVALUATING, "batch_eval_metrics": True}, "which this function does not take"),
    "nothing to evaluate": ({**EVALUATING, "eval_dataset": None}, "`eval_strategy` is 'steps', and there is no"),
    "no set of evaluation sets": ({**EVALUATING, "eval_dataset": {}}, "`eval_dataset` is an empty dictionary"),
    "the best of several sets": (
        {**BEST, "eval_dataset": {"a": tiny.scored_rows(4), "b": tiny.scored_rows(4)}},
        "`metric_for_best_model` is 'loss', and .* sets 'a', 'b', whose names come first.*'a_loss'",
    ),
    "a metric that does not exist": (
        {**BEST, "metric_for_best_model": "reward/margin", "compute_metrics": None}, "Set it to 'rewards/margins'",
    ),
    "a metric of a set that does not exist": (
        {**BEST, "metric_for_best_model": "eval_c_loss", "eval_dataset": {"a": tiny.scored_rows(4)}}, "'a_loss'",
    ),
    "rewards of sft": (
        {**BEST, "loss_type": "sft", "metric_for_best_model": "rewards/margins", "compute_metrics": None},
        "`metric_for_best_model` is 'rewards/margins'",
    ),
    "drift of sft": (
        {**BEST, "loss_type": "sft", "metric_for_best_model": "drift/quartile_4", "compute_metrics": None},
        "`metric_for_best_model` is 'drift/quartile_4', and an evaluation has no such metric",
    ),
    "weights of sft": (
        {**BEST, "loss_type": "sft", "metric_for_best_model": "weights/balance", "compute_metrics": None},
        "`metric_for_best_model` is 'weights/balance', and an evaluation has no such metric",
    ),
    "drift without positives": (
        {**BEST, "metric_for_best_model": "drift/quartile_4", "eval_dataset": low()}, "has no positive row",
    ),
    "differences of tokens": (
        {**BEST, "metric_for_best_model": "a_prediction_difference", "model": amused.build,
         "eval_dataset": {"a": tiny.scored_rows(4, seed=1)}},
        "'a_prediction_difference', and this pipeline predicts tokens",
    ),
    "the best only": (
        {**EVALUATING, "save_strategy": "best", "metric_for_best_model": "accuracy", "compute_metrics": None},
        "'accuracy', and an evaluation has no such metric",
    ),
    "a plateau of nothing": (
        {
            **EVALUATING, "lr_scheduler_type": "reduce_lr_on_plateau", "metric_for_best_model": "f1",
            "compute_metrics": None,
        },
        "`metric_for_best_model` is 'f1'",
    ),
    "margins without positives": (
        {**BEST, "metric_for_best_model": "rewards/margins", "eval_dataset": low()}, "has no positive row",
    ),
    "margins without negatives": (
        {**BEST, "metric_for_best_model": "eval_rewards/margins", "eval_dataset": high()}, "has no negative row",
    ),
    "chosen rows of one of two sets": (
        {**BEST, "metric_for_best_model": "b_rewards/chosen", "eval_dataset": {"a": high(), "b": low()}},
        "the evaluation data set 'b' has no positive row",
    ),
    "a schedule's argument as text": (
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": "1e-6"}},
        "`lr_scheduler_type` is 'cosine_with_min_lr', which cannot be made with .*'1e-6'",
    ),
    "a schedule's argument of another name": (
        {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"cycles": 2}}, "cannot be made with .*'cycles': 2",
    ),
    "a schedule without its argument": ({"lr_scheduler_type": "cosine_with_min_lr"}, "cannot be made with"),
    "an optimizer that is not installed": ({"optim": "adamw_bnb_8bit"}, "`optim` is 'adamw_bnb_8bit', which cannot be"),
    "an optimizer's argument": ({"optim_args": "momentum"}, "`optim_args='momentum'` .write 'name=value,name=value'"),
    "an optimizer of one's own with another argument": (
        {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"rate": 1})}, "`optimizer_cls_and_kwargs` does not fit SGD",
    ),
    "an optimizer without arguments": (
        {"optimizer_cls_and_kwargs": torch.optim.SGD}, "must be a class and a dictionary",
    ),
    "a reporter nobody knows": ({"report_to": ["tensorbord"]}, "none of .*Did you mean 'tensorboard'"),
    "a reporter that is not installed": (
        {"report_to": ["comet_ml"]}, "'comet_ml', which is not installed.*pip install",
    ),
    "an optimizer's argument that is not read": (
        {"optim_args": "momentum=0.9,lr=1"}, "`optim_args` has 'momentum=0.9', which changes nothing of what transform",
    ),
    "an evaluation of nothing before training": (
        {"eval_on_start": True, "eval_dataset": None}, "`eval_on_start` is True, and there is no `eval_dataset`",
    ),
    "the best by no metric": (
        {**EVALUATING, "save_strategy": "best"}, "`save_strategy` is 'best', and `metric_for_best_model` does not say",
    ),
    "no sample prompts": ({"sample_prompts": []}, r"`sample_prompts` is \[\]; it must be a list of prompts"),
    "an empty sample prompt": (
        {"sample_prompts": ["a cat", " "]}, "`sample_prompts` is .*it must be a list of prompts",
    ),
    "arguments of a schedule that are no JSON": (
        {"lr_scheduler_kwargs": "min_lr=1"}, "`lr_scheduler_kwargs` is no JSON",
    ),
}  # fmt: skip
ARGUMENTS = ("eval_dataset", "compute_metrics", "optimizer_cls_and_kwargs", "model")


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_work_is_refused_when_the_trainer_is_made(tmp_path, changes, message):
    arguments = {"eval_dataset": tiny.scored_rows(4, seed=1), "compute_metrics": count}
    arguments |= {name: value for name, value in changes.items() if name in ARGUMENTS}
    settings = {name: value for name, value in changes.items() if name not in ARGUMENTS}
    if "model" in arguments:
        arguments["model"] = arguments["model"]()
    with pytest.raises(ValueError, match=f"(?s){message}"):
        make_trainer(config(tmp_path, **settings), **arguments)
    if "row" not in message:  # which rows are positive is known when they are read
        assert not (tmp_path / "cache").exists()


WORKS = {
    "the best of several sets": {
        **BEST, "metric_for_best_model": "b_loss", "eval_dataset": {"a": low(), "b": tiny.scored_rows(4, seed=1)},
    },
    "margins of one of them": {
        **BEST, "metric_for_best_model": "a_rewards/margins", "greater_is_better": True,
        "eval_dataset": {"a": tiny.scored_rows(8, seed=1), "b": low()},
    },
    "the least displaced": {
        **BEST, "metric_for_best_model": "rewards/displaced", "greater_is_better": False,
        "eval_dataset": tiny.scored_rows(8, seed=1),
    },
    "the least difference": {**BEST, "metric_for_best_model": "prediction_difference", "greater_is_better": False},
    "an own metric": {**BEST, "metric_for_best_model": "n"},
    "a plateau": {**EVALUATING, "lr_scheduler_type": "reduce_lr_on_plateau"},
    "a schedule with arguments": {
        "lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-6}, "warmup_steps": 1,
    },
    "a schedule's arguments as JSON": {
        "lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": '{"min_lr": 1e-6}',
    },
    "another optimizer": {"optim": "sgd", "optim_args": "momentum=0.5"},
    "the best by a schedule-free margin": {**EVALUATING, "save_strategy": "best", "metric_for_best_model": "loss"},
}  # fmt: skip


@pytest.mark.parametrize("changes", WORKS.values(), ids=WORKS)
def test_what_can_work_does(tmp_path, changes):
    arguments = {"eval_dataset": tiny.scored_rows(4, seed=1), "compute_metrics": count}
    arguments |= {name: value for name, value in changes.items() if name in ARGUMENTS}
    settings = {name: value for name, value in changes.items() if name not in ARGUMENTS}
    trainer = make_trainer(config(tmp_path, max_steps=1, **settings), **arguments)
    trainer.train()
    assert trainer.state.global_step == 1


def test_a_metric_that_a_stream_or_a_function_does_not_give_is_named_at_the_first_evaluation(tmp_path):
    args = config(tmp_path, **BEST, metric_for_best_model="accuracy")
    trainer = make_trainer(args, eval_dataset=tiny.scored_rows(4, seed=1), compute_metrics=count)
    with pytest.raises(ValueError, match="'eval_accuracy', which is not found in the evaluation metrics"):
        trainer.train()
    args = config(tmp_path, **BEST, metric_for_best_model="rewards/margins")
    trainer = make_trainer(args, eval_dataset=streamed(low()))
    with pytest.raises(ValueError, match="'eval_rewards/margins', which is not found"):
        trainer.train()


def test_a_warm_up_that_never_ends_is_warned_of(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        make_trainer(config(tmp_path, warmup_steps=5, max_steps=2))
    assert "The warm-up takes 5 updates, and the run ends after 2" in caplog.text


@pytest.mark.parametrize("metric", ["drift/quartile_4", "rewards/displaced", "prediction_difference"])
def test_the_worst_for_the_best_is_warned_of(tmp_path, caplog, metric):
    for name, sets in (
        (metric, tiny.scored_rows(8, seed=1)),
        (f"eval_b_{metric}", {"a": low(), "b": tiny.scored_rows(8, seed=1)}),
    ):
        for greater in (None, False):
            caplog.clear()
            args = config(tmp_path, **BEST, metric_for_best_model=name, greater_is_better=greater)
            with caplog.at_level(logging.WARNING):
                make_trainer(args, eval_dataset=sets)
            assert ("the worst would be taken for the best" in caplog.text) == (greater is None)


@pytest.mark.parametrize(
    ("optim", "options"),
    [
        ("schedule_free_adamw", "r=0.0"),
        ("schedule_free_adamw", "weight_lr_power=2.0,r=0"),
        ("schedule_free_adamw", "r=0.5"),
        ("adamw_torch_fused", "fused=true"),
    ],
)
def test_an_option_of_an_optimizer_may_state_its_default(tmp_path, optim, options):
    args = config(tmp_path, optim=optim, optim_args=options, lr_scheduler_type="constant")
    check_run(args, (None, None), None)


@pytest.mark.parametrize("option", ["r=one", "lr=1", "foo=0.0", "fused=False"])
def test_an_option_that_says_otherwise_and_is_not_read_is_refused(tmp_path, option):
    args = config(tmp_path, optim="adamw_torch_fused", optim_args=option)
    with pytest.raises(ValueError, match=f"`optim_args` has '{option}', which changes nothing"):
        check_run(args, (None, None), None)


@pytest.mark.parametrize(
    ("optim", "package"),
    [
        ("lomo", "lomo-optim"),
        ("adalomo", "lomo-optim"),
        ("galore_adamw", "galore-torch"),
        ("apollo_adamw", "apollo-torch"),
    ],
)
def test_an_optimizer_of_the_whole_model_has_to_be_installed(tmp_path, monkeypatch, optim, package):
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda it: None if it == package.replace("-", "_") else found(it))
    args = config(tmp_path, optim=optim, optim_target_modules=["attn"])
    with pytest.raises(ValueError, match=f"`optim` is '{optim}', which cannot be had here: .*pip install {package}`"):
        check_run(args, (None, None), None)
    monkeypatch.setattr("importlib.util.find_spec", lambda it: it)
    check_run(args, (None, None), None)


def test_a_quartile_of_the_time_without_a_row_is_known_before(tmp_path):
    """What is refused is what an evaluation does not report, with draws of the same numbers."""
    data = tiny.scored_rows(6, seed=1)
    for settings in ({}, {"num_likelihood_samples": 2}, {"time_range": [0.0, 0.5]}, {"loss_type": "diffusion_dpo"}):
        rows = tiny.paired_rows(3) if "loss_type" in settings else None
        trainer = make_trainer(config(tmp_path, **settings), train_dataset=rows, eval_dataset=rows or data)
        reported = {name.removeprefix("eval_") for name in trainer.evaluate()}
        for metric in [*DRIFT, *ERROR_DIFFERENCE]:
            args = config(tmp_path, **BEST, **settings, metric_for_best_model=metric, greater_is_better=False)
            told = (args, trainer.eval_dataset)
            if metric in reported:
                check_best_metric_of(*told)
                continue
            with pytest.raises(ValueError, match=f"'{metric}', and no .*row of .* is drawn in that quartile"):
                check_best_metric_of(*told)
    args = config(tmp_path, **BEST, metric_for_best_model="drift/quartile_4", time_range=[0.0, 0.5])
    with pytest.raises(ValueError, match=r"they are in [12]"):
        make_trainer(args, eval_dataset=data)
