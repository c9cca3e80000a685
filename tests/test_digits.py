"""The demo's own arithmetic, and the demo from end to end at a small size."""

import json
import math
import statistics
import sys
from pathlib import Path

import pytest
import torch

from tgo_trl.trainer.evaluations import read_evaluations

FOLDER = Path(__file__).parents[1] / "examples" / "digits"


@pytest.fixture(scope="module")
def digits():
    """The demo's modules, as `python examples/digits/demo.py` finds them."""
    sys.path.insert(0, str(FOLDER))
    import demo
    import digits

    yield demo, digits
    sys.path.remove(str(FOLDER))
    for name in [path.stem for path in FOLDER.glob("*.py")]:
        sys.modules.pop(name, None)


def test_every_prompt_names_the_digit_that_it_was_made_from(digits):
    _, world = digits
    assert [world.digit_of(prompt) for digit in range(10) for prompt in world.prompts_of(digit)] == [
        digit for digit in range(10) for _ in world.TEMPLATES
    ]
    with pytest.raises(ValueError, match="names 2 digits"):
        world.digit_of("a one and a two")


def test_balanced_prompts_ask_for_every_digit_as_often(digits):
    _, world = digits
    asked = [world.digit_of(prompt) for prompt in world.balanced_prompts(200, seed=3)]
    assert [asked.count(digit) for digit in range(10)] == [20] * 10
    assert world.balanced_prompts(200, seed=3) != world.balanced_prompts(200, seed=4)


@pytest.mark.slow
def test_scorers_read_scans_that_they_have_not_seen(digits):
    _, world = digits
    scans = world.load_scans("held_out")
    prompts = [world.prompts_of(digit)[0] for digit in scans.digits]
    for scorer in (world.training_scorer(), world.unseen_scorer(), world.neighbours_scorer()):
        assert scorer.accuracy(prompts, scans.images) > 0.95
        scores = scorer(prompts, scans.images)
        assert 0 <= min(scores) <= max(scores) <= 1
        asked_wrongly = scorer([world.prompts_of((digit + 1) % 10)[0] for digit in scans.digits], scans.images)
        assert statistics.mean(scores) > 0.8 > 0.1 > statistics.mean(asked_wrongly)


def test_the_scorers_share_no_scan(digits):
    _, world = digits
    rows = world._rows_of_splits()
    for one, other in (("training_scorer", "unseen_scorer"), ("generator", "held_out"), ("unseen_scorer", "held_out")):
        assert not set(rows[one]) & set(rows[other])


def test_confidence_interval_by_hand(digits):
    demo, _ = digits
    # two values: standard deviation |a - b| / sqrt(2), standard error |a - b| / 2, and t with one degree of freedom is
    # the Cauchy distribution, whose 97.5 % quantile is tan(0.475 pi)
    mean, half = demo.Result("model", {"scorer": [0.5, 0.7]}).interval("scorer")
    assert mean == pytest.approx(0.6)
    assert half == pytest.approx(math.tan(0.475 * math.pi) * 0.1)


@pytest.mark.slow
def test_demo_from_end_to_end_at_a_small_size(digits, tmp_path, capsys):
    demo, _ = digits
    demo.main(
        demo.Options(
            output_dir=tmp_path,
            num_images=400,
            num_updates=20,
            num_seeds=2,
            images_per_seed=100,
            num_inference_steps=10,
        )
    )
    results = json.loads((tmp_path / "results.json").read_text())  # too short a run to say who is best
    assert [result["name"] for result in results] == [
        "base", "base, guidance 2", "base, guidance 4",
        "SFT on the positives", "TGO, paper's settings", "TGO, recipe robust",
    ]  # fmt: skip
    assert all(len(result["varieties"]) == len(result["distances"]) == 2 for result in results)
    assert all(len(values) == 2 for result in results for values in result["accuracies"].values())
    assert statistics.mean(results[0]["accuracies"]["unseen scorer"]) > 0.5  # by chance it would be 0.1
    for name in ("before_after.png", "results.png", "tgo/score_histogram.png", "tgo/README.md", "scored/state.json"):
        assert (tmp_path / name).stat().st_size > 0
    assert "largest pixel difference 0 of 255" in capsys.readouterr().out


def test_the_log_of_a_metric_leaves_out_what_is_not_of_it(digits):
    import good_and_bad

    history = [{"loss": 1.0, "step": 1}, {"drift/quartile_4": 2.0, "step": 2}, {"drift/quartile_4": 3.0, "step": 4}]
    assert good_and_bad.log_of(history, "drift/quartile_4") == ([2, 4], [2.0, 3.0])
    assert good_and_bad.log_of(history, "loss") == ([1], [1.0])


@pytest.mark.slow
def test_good_and_bad_runs_are_drawn_at_a_small_size(digits, tmp_path, capsys):
    demo, _ = digits
    import good_and_bad
    from PIL import Image

    path = good_and_bad.main(demo.Options(tmp_path, num_images=80, num_updates=4, batch_size=8, num_inference_steps=2))
    assert Image.open(path).size == (1100, 660)
    for name, settings in (("paper", ("absolute", 3.0, 1.0)), ("tgo", ("relative", 0.3, "balanced"))):
        saved = json.loads((tmp_path / name / "tgo_config.json").read_text())["config"]
        assert (saved["error_scale"], saved["beta"], saved["negative_weight"]) == settings
    assert str(path) in capsys.readouterr().out


@pytest.mark.slow
def test_two_scores_are_trained_on_at_a_small_size(digits, tmp_path):
    demo, _ = digits
    import two_scores

    sizes = {"num_images": 80, "num_updates": 2, "batch_size": 8, "images_per_seed": 40, "num_inference_steps": 2}
    lines = two_scores.main(demo.Options(tmp_path, **sizes))
    assert [line.split("|")[1].strip() for line in lines] == ["base", *two_scores.RUNS]
    saved = json.loads((tmp_path / "tgo" / "tgo_config.json").read_text())["label_rule"]  # of the last run
    assert (saved["combination"], list(saved["columns"])) == ("vote", ["ink", "score"])


@pytest.mark.slow
def test_bounds_end_a_run_that_goes_wrong_and_keep_a_checkpoint_inside_of_them(digits, tmp_path, capsys):
    demo, _ = digits
    import bounds
    from PIL import Image

    options = demo.Options(tmp_path, num_images=1000, num_updates=120)
    path = bounds.main(options)
    said = capsys.readouterr().out
    assert "The run was ended after update 30: the largest drift is 1.8" in said
    assert "Kept is checkpoint-20" in said
    states = [
        json.loads(
            (max(folder.glob("checkpoint-*"), key=lambda it: int(it.name[11:])) / "trainer_state.json").read_text()
        )
        for folder in (tmp_path / "paper", tmp_path / "robust")
    ]
    paper, robust = states
    assert (paper["global_step"], paper["best_global_step"]) == (30, 20)
    assert robust["global_step"] == 120
    for state in states:
        kept = next(it for it in read_evaluations(state["log_history"]) if it.step == state["best_global_step"])
        assert max(kept.drifts.values()) <= 1.2
        assert kept.variety >= 0.75
    assert robust["best_metric"] > 0.75 > 0.65 > paper["best_metric"], "a run that is not ended gets further"
    assert Image.open(path).size[0] > 1000


@pytest.mark.slow
def test_digits_are_drawn_by_the_gradient_of_a_net_at_a_small_size(digits, tmp_path, capsys):
    import alignprop

    options = alignprop.Options(
        tmp_path, num_updates=2, batch_size=4, num_steps=2, samples_per_prompt=2, num_evaluations=1
    )
    alignprop.main(options)
    assert "right digits (judge)" in capsys.readouterr().out
    assert (tmp_path / "pytorch_lora_weights.safetensors").is_file()
    pixels = torch.full((1, 3, 16, 16), 0.5, requires_grad=True)
    score = alignprop.AskedDigit().score_pixels(["the digit two"], pixels)
    assert torch.autograd.grad(score.sum(), pixels)[0].abs().max() > 0
