"""Log entries as lines: what is there, in order, and what is left to trackers."""

from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from tgo_trl.trainer.log_lines import LinePrinter, LineProgress, in_lines, log_line

from .runs import config, make_trainer

REWARDS = {"rewards/accuracies": 0.515625, "rewards/chosen": 0.5, "rewards/margins": 0.00123456}
OTHERS = {"drift/quartile_1": 1.0, "drift/quartile_4": 1.0204, "saturation/chosen": 0.5, "prediction_difference": 0.1}
TRAINING = {"loss": 0.69314, "grad_norm": 1.5, "learning_rate": 1e-5, **REWARDS, **OTHERS, "epoch": 0.25}


def test_a_line_of_training_has_what_tells_how_it_goes_in_order():
    line = log_line(TRAINING, 5, 400)
    assert line == "step   5/400  loss 0.6931  margin +0.0012  accuracy 0.52  lr 1.00e-05  drift 1.020"
    falling = log_line({**TRAINING, "rewards/margins": -0.2}, 150, 400)
    assert len(falling) == len(line)
    assert falling.startswith("step 150/400  loss 0.6931  margin -0.2000  accuracy")


def test_an_evaluation_says_of_which_data_set_it_is():
    samples = {"samples/clip": 0.25, "samples/variety": 0.9}
    for prefix in ("eval_", "eval_held_out_"):
        found = {
            f"{prefix}{name}": value for name, value in {**REWARDS, "loss": 0.7, "runtime": 3.0, **samples}.items()
        }
        expected = "loss 0.7000  margin +0.0012  accuracy 0.52  samples/clip 0.25  samples/variety 0.9"
        assert log_line({**found, "epoch": 1.0}, 20, 40) == f"step 20/40  {prefix[:-1]}  {expected}"
    assert log_line({"eval_samples/clip": 0.5, "epoch": 1.0}, 1, 2) == "step 1/2  eval  samples/clip 0.5"


def test_other_entries_and_metrics_of_the_users_are_said_whole():
    assert log_line({"threshold": 3.5, "positive_share": 0.5, "epoch": 0}, 0, 8) == (
        "step 0/8  threshold 3.5  positive_share 0.5"
    )
    end = {"train_runtime": 61.4, "train_samples_per_second": 9.0, "total_flos": 0.0, "train_loss": 0.5, "epoch": 1.0}
    assert log_line(end, 8, 8) == "step 8/8  mean loss 0.5000  seconds 61"
    assert log_line({"mine": 1, "text": "a"}, 1, 8) == "step 1/8  mine 1  text a"
    assert log_line({"epoch": 1.0}, 1, 8) == ""
    assert len(log_line({"text": "a" * 999}, 1, 8)) == 200
    assert log_line({"loss": float("nan")}, 1, 8) == "step 1/8  loss nan"


def test_only_what_transformers_brings_is_replaced():
    class Own(ProgressCallback):
        pass

    own = Own()
    assert in_lines(own) is own
    assert type(in_lines(ProgressCallback())) is LineProgress
    assert type(in_lines(PrinterCallback())) is LinePrinter


def test_a_run_prints_lines_and_keeps_all_numbers(tmp_path, capsys):
    given = []

    class Tracker(TrainerCallback):
        def on_log(self, args, state, control, logs, **kwargs):
            given.append(set(logs))

    settings = {"max_steps": 2, "logging_steps": 1, "save_strategy": "no"}
    for is_silent in (False, True):
        run = tmp_path / str(is_silent)
        trainer = make_trainer(config(run, disable_tqdm=is_silent, **settings), callbacks=[Tracker()])
        trainer.train()
        out, err = capsys.readouterr()
        lines = [line for line in (out + err).splitlines() if line.startswith("step ")]
        assert [line.split("  ")[0] for line in lines] == ["step 0/2", "step 1/2", "step 2/2", "step 2/2"]
        assert "step 1/2  loss " in out + err
        assert "'loss'" not in out + err
        logged = [entry for entry in trainer.state.log_history if "loss" in entry]
        assert {"grad_norm", "saturation/chosen", "logps/rejected"} <= set(logged[0])
        assert {"grad_norm", "saturation/chosen", "logps/rejected"} <= given[1]
    trainer.state.is_world_process_zero = False
    trainer.log({"loss": 1.0})
    assert capsys.readouterr().out == ""
