"""The two worlds of digits: scores, targets and measures by hand, and the frontier of methods at a small size."""

import dataclasses
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig
from PIL import Image

FOLDER = Path(__file__).parents[1] / "examples" / "digits"


@pytest.fixture(scope="module", autouse=True)
def modules():
    """The modules of the worlds, where the benchmarks find them."""
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))
    benchmarks = [f"benchmarks.{name}" for name in ("digit_runs", "frontier", "paper_table", "ablations")]
    for name in (*(path.stem for path in FOLDER.glob("*.py")), *benchmarks):
        sys.modules.pop(name, None)


# --- measures --------------------------------------------------------------------------------------------------------


def test_frechet_distance_of_gaussians():
    from measures import frechet_of_features

    # in one dimension it is (m - m')^2 + (s - s')^2: means 1 and 4, standard deviations 1 and 2
    one, other = torch.tensor([[0.0], [2.0]]), torch.tensor([[2.0], [6.0]])
    assert frechet_of_features(one, other) == pytest.approx(9 + 1)
    # independent dimensions add up
    square = torch.tensor([[0.0, 0.0], [0.0, 2.0], [2.0, 0.0], [2.0, 2.0]])
    larger = square * torch.tensor([3.0, 1.0]) + torch.tensor([0.0, 5.0])
    assert frechet_of_features(square, larger) == pytest.approx(((1 - 3) ** 2 + (1 - 3) ** 2) + 25)
    assert frechet_of_features(square, square) == pytest.approx(0, abs=1e-7)


def test_a_weight_of_a_scan_is_how_often_it_is_there():
    from measures import frechet_of_features

    generator = torch.Generator().manual_seed(0)
    features, target = torch.randn(50, 3, generator=generator), torch.randn(4, 3, generator=generator)
    repeated = target[[0, 1, 1, 2, 3, 3, 3]]
    weighted = frechet_of_features(features, target, torch.tensor([1.0, 2.0, 1.0, 3.0]) / 7)
    assert weighted == pytest.approx(frechet_of_features(features, repeated))


def test_an_interval_of_one_value_is_no_interval():
    from measures import interval

    assert interval([0.5]) == (0.5, math.inf)


def test_an_adapter_that_does_nothing_has_no_drift():
    from measures import drift
    from worlds import WORLDS, load_base

    pipeline = load_base(WORLDS["strokes"])
    pipeline.unet.add_adapter(LoraConfig(target_modules=["to_q", "to_v"]))
    scans, weights = WORLDS["strokes"].target()
    assert drift(pipeline, scans.last(20), weights[-20:]) == [1, 1, 1, 1]
    for name, parameter in pipeline.unet.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
    changed = drift(pipeline, scans.last(20), weights[-20:])
    assert all(ratio != 1 for ratio in changed)
    assert changed == drift(pipeline, scans.last(20), weights[-20:]), "the same draws each time"


# --- strokes ---------------------------------------------------------------------------------------------------------


def test_stroke_weight_is_ink_in_units_of_real_scans():
    from digits import load_scans, prompts_of
    from strokes import stroke_weight

    scans = load_scans("generator")
    ink = np.array([np.asarray(image).mean() / 255 for image in scans.images])
    of_digit = np.array(scans.digits) == 4
    scores = stroke_weight()([prompts_of(digit)[1] for digit in scans.digits], scans.images)
    expected = (ink[of_digit] - ink[of_digit].mean()) / ink[of_digit].std(ddof=1)
    assert np.array(scores)[of_digit] == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
def test_preference_models_like_heavy_strokes_and_have_not_seen_the_scans():
    from digits import load_scans, prompts_of
    from strokes import choices, stroke_weight, training_preferences, unseen_preferences

    scans = load_scans("held_out")
    prompts = [prompts_of(digit)[0] for digit in scans.digits]
    truth = stroke_weight()(prompts, scans.images)
    for model in (training_preferences(), unseen_preferences()):
        assert 0.9 < np.corrcoef(truth, model(prompts, scans.images))[0, 1] < 0.999

    _, better, worse = choices("training_scorer", seed=0)
    own = load_scans("training_scorer")
    weight = np.array(stroke_weight()([prompts_of(digit)[0] for digit in own.digits], own.images))
    assert all(own.digits[a] == own.digits[b] for a, b in zip(better, worse, strict=True))
    is_clear = np.abs(weight[better] - weight[worse]) > 2
    assert (weight[better] > weight[worse])[is_clear].mean() > 0.97  # sigmoid(2 x 2) = 0.982 and more
    assert 0.6 < (weight[better] > weight[worse])[~is_clear].mean() < 0.9


def test_the_target_is_tilted_within_each_digit():
    from digits import prompts_of
    from strokes import stroke_weight
    from worlds import TARGET_BETA, heavy_scans

    scans, weights = heavy_scans()
    digits = np.array(scans.digits)
    assert all(weights[digits == digit].mean() == pytest.approx(1) for digit in range(10))
    first, second = np.flatnonzero(digits == 7)[:2]
    one, other = stroke_weight()([prompts_of(7)[0]] * 2, [scans.images[first], scans.images[second]])
    assert weights[first] / weights[second] == pytest.approx(math.exp((one - other) / TARGET_BETA))


# --- the frontier ----------------------------------------------------------------------------------------------------


def test_the_best_of_n_is_chosen_row_by_row():
    from dataclasses import replace

    from worlds import WORLDS

    from benchmarks.digit_runs import best_of

    values = {5: [10, 200], 10_005: [30, 100], 20_005: [20, 255]}  # grey of both rows, by seed

    def draw_all(seed):
        return [Image.new("L", (16, 16), grey) for grey in values[seed]]

    def brightness(prompts, images):
        return [image.getpixel((0, 0)) for image in images]

    world = replace(WORLDS["strokes"], training=lambda: brightness)
    chosen = best_of(3, draw_all, world, ["a one", "a two"], seed=5)
    assert [brightness(None, images) for images in chosen] == [[10, 200], [30, 200], [30, 255]]


def test_what_is_chosen_is_the_best_within_the_bounds_of_drift_and_variety():
    from benchmarks.digit_runs import choose

    def result(rate, drift, scores, variety=1.0, distance=1.0):
        measured = {"frechet": distance, "variety": variety}
        cells = [{"sampler": "ddim", "measured": measured | {"training scorer": score}} for score in scores]
        return {"run": {"learning_rate": rate}, "drift": [1.0, drift], "cells": cells}

    base = result(0, 1.0, [0.1], variety=0.5)
    gentle, good, wild = result(1e-4, 1.0, [0.5, 0.6]), result(1e-3, 1.2, [0.8, 0.6]), result(1e-2, 1.3, [0.9, 0.9])
    uniform = result(3e-3, 1.0, [0.9, 0.9], variety=0.87 * 0.5 - 0.01)
    assert choose([gentle, good, wild, uniform], base) == good
    near = result(2e-2, 1.4, [0, 0], distance=0.9)
    assert choose([wild, uniform, near], base) == near


def test_rows_are_means_over_seeds():
    from benchmarks.digit_runs import summarise, table
    from benchmarks.frontier import METHODS, FrontierOptions, trained_runs

    def result(seed, score):
        run = {"world": "asked", "method": "base", "value": 0.0, "learning_rate": 0.0, "seed": seed}
        values = {"training scorer": 0.7, "unseen net": score, "unseen neighbours": 0.6, "legible": score}
        measured = values | {"variety": 0.8, "frechet": 1.5}
        return {"run": run, "cells": [{"sampler": "ddim", "guidance": 2.0, "value": 0.0, "measured": measured}]}

    (row,) = summarise([result(0, 0.5), result(1, 0.7)])
    mean, half = row["measured"]["unseen net"]
    assert (mean, half) == (pytest.approx(0.6), pytest.approx(math.tan(0.475 * math.pi) * 0.1))
    assert "| base, guidance 2 |  | 70.0 ± 0.0 | 60.0 ± 127.1 | 60.0 ± 0.0 | 80.0 ± 0.0 | 1.50 ± 0.00 |  |" in table(
        [row], "asked", "ddim", METHODS
    )
    rates = {(world, method): 1e-3 for world in ("asked", "strokes") for method in ("SFT", "TGO, the paper's")}
    rates |= {(world, method): 2e-3 for world in ("asked", "strokes") for method in ("TGO, robust", "TGO, mirrored")}
    runs = trained_runs(rates, FrontierOptions(num_seeds=2))
    assert len({run.name for run in runs}) == len(runs) == 2 * (11 + 12)
    (longer,) = [run for run in runs if (run.world, run.method, run.value, run.seed) == ("strokes", "SFT", 8, 1)]
    assert (longer.learning_rate, longer.times, longer.settings) == (1e-3, 8, {"loss_type": "sft"})
    (robust,) = [run for run in runs if run.name == "strokes-TGO_robust-0.3-0.002-1-1000"]
    assert (robust.settings, robust.guidances) == ({"recipe": "robust", "beta": 0.3}, (1, 2, 4))


@pytest.mark.long
def test_the_frontier_at_a_small_size_and_again(tmp_path, capsys):
    from benchmarks import frontier
    from benchmarks.digit_runs import parse_options

    arguments = ["--quick", "--worlds", "strokes", "--num_workers", "1", "--output_dir", str(tmp_path)]
    options = parse_options("", frontier.FrontierOptions(), [*arguments, "--methods", "TGO, robust"])
    rows = frontier.main(options)
    assert (tmp_path / "results.json").read_text() == json.dumps(rows, indent=1).replace("Infinity", "null") + "\n"
    base = next(row for row in rows if (row["method"], row["sampler"], row["guidance"]) == ("base", "ddim", 1))
    assert base["seeds"] == 1
    assert base["measured"]["legible"][0] > 0.5  # of three denoising steps
    assert (tmp_path / "frontier.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match="are of other options"):
        frontier.main(dataclasses.replace(options, num_images=30))
    said = capsys.readouterr().out
    assert "### strokes, ancestral" in said
    assert "TGO, robust: beta 0.3, guidance 4" in said
    assert "base, best of 2" in said
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}
    assert frontier.main(options) == rows
    assert made == {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}


@pytest.mark.slow
def test_losses_are_compared_at_a_small_size(tmp_path, capsys):
    from benchmarks import paper_table
    from benchmarks.digit_runs import parse_options

    chosen = ["CSFT", "Diffusion-DPO"]
    arguments = ["--quick", "--worlds", "asked", "--num_workers", "1", "--output_dir", str(tmp_path)]
    options = parse_options("", paper_table.TableOptions(), [*arguments, "--methods", *chosen])
    rows = paper_table.main(options)
    assert {row["method"] for row in rows} == {"base", "best of n", "real scans", *chosen}
    said = capsys.readouterr().out
    assert "| CSFT | 0.0" in said
    assert "| Diffusion-DPO: beta " in said
    # two rates of CSFT, two rates at two strengths of the other, and each once more
    assert len(list((tmp_path / "adapters").iterdir())) == 2 + 4 + 2


def test_every_loss_is_in_the_table():
    from benchmarks.paper_table import METHODS
    from tgo_trl.losses import LOSSES
    from tgo_trl.trainer.objective import RECIPES

    compared = {method.settings.get("loss_type", "tgo") for method in METHODS.values()}
    assert compared == set(LOSSES)
    assert all(method.settings.get("recipe") in (None, *RECIPES) for method in METHODS.values())


# --- ablations -------------------------------------------------------------------------------------------------------


def test_a_scorer_that_is_climbed_gives_the_scores_that_it_gives_of_images():
    from digits import load_scans, prompts_of, to_pixels
    from strokes import training_preferences

    scans = load_scans("held_out").last(6)
    prompts = [prompts_of(digit)[0] for digit in scans.digits]
    pixels = ((to_pixels(scans.images) + 1) / 2).requires_grad_()
    scores = training_preferences().score_pixels(prompts, pixels)
    assert scores.tolist() == pytest.approx(training_preferences()(prompts, scans.images), abs=1e-5)
    (slope,) = torch.autograd.grad(scores.sum(), pixels)
    step = 1e-2 * slope / slope.norm()
    with torch.no_grad():
        change = training_preferences().score_pixels(prompts, pixels + step) - scores
    assert float(change.sum()) == pytest.approx(1e-2 * float(slope.norm()), rel=0.05)


def test_a_default_is_one_run_for_all_ablations():
    from benchmarks.ablations import LOSSES, METHODS, NUMBERS, TIMES, AblationOptions, runs_of
    from benchmarks.digit_runs import SMALL

    runs = runs_of(AblationOptions(num_seeds=2))
    # thresholds, confidences and normalisations but for the defaults, and these once; temperatures at two sizes; bases
    assert len({run.name for run in runs}) == len(runs) == 2 * (2 * (6 + 3 + 2 + 1) + 2 * len(TIMES) + 2)
    assert {run.settings["recipe"] for run in runs if run.method == "TGO, robust"} == {"robust"}
    (rows,) = [run for run in runs if (run.method, run.seed) == ("TGO, robust, threshold 90 %", 1)]
    assert rows.settings == {"recipe": "robust", "threshold_percentile": 90.0}
    assert all(METHODS[loss].settings == settings for loss, settings in LOSSES.items())
    # the paper's temperature at its 16,384 numbers, at 64 and at 16
    temperatures = {
        world: sorted({run.value for run in runs if run.method == f"temperature, {world}"}) for world in NUMBERS
    }
    assert temperatures["strokes"] == pytest.approx([0.256 * 4**k for k in range(-2, 6)])
    assert temperatures[SMALL] == pytest.approx([4 * value for value in temperatures["strokes"]])
    assert TIMES[-1] / TIMES[0] >= 1e4


def test_a_difference_is_of_the_same_seeds():
    from benchmarks.digit_runs import difference

    def result(seed, score):
        scores = {"ddim": score, "ancestral": 7.0}
        cells = [{"sampler": name, "measured": {"unseen net": value}} for name, value in scores.items()]
        return {"run": {"seed": seed}, "cells": cells}

    changed, usual = [result(0, 1.0), result(1, 3.0)], [result(1, 2.5), result(0, 0.3)]
    mean, half = difference(changed, usual, "ddim", "unseen net")
    assert (mean, half) == (pytest.approx(0.6), pytest.approx(math.tan(0.475 * math.pi) * 0.1))


@pytest.mark.long
def test_ablations_at_a_small_size(tmp_path, capsys, monkeypatch):
    from benchmarks import ablations
    from benchmarks.digit_runs import SMALL, parse_options

    monkeypatch.setattr(ablations, "SETTINGS", {"threshold": {"median": {}, "mean": {"threshold_type": "mean"}}})
    monkeypatch.setattr(ablations, "LOSSES", {"TGO, robust": {"recipe": "robust"}})
    names = ["TGO, robust", "TGO, robust, threshold mean", f"temperature, {SMALL}"]
    chosen = {name: ablations.METHODS[name] for name in names}
    chosen[names[-1]] = dataclasses.replace(chosen[names[-1]], values=(1.0, 4.0))
    monkeypatch.setattr(ablations, "METHODS", chosen)
    options = parse_options(
        "", ablations.AblationOptions(), ["--quick", "--num_workers", "1", "--output_dir", str(tmp_path)]
    )
    rows = ablations.main(options)
    assert {row["method"] for row in rows} == {"base", *names}
    said = capsys.readouterr().out
    assert "### threshold, ddim" in said
    assert "| TGO, robust | mean | " in said
    assert "| 16 | 4 (x 3.90625) | " in said
    (changed,) = [row for row in rows if "difference" in row and row["sampler"] == "ddim"]
    (usual,) = [row for row in rows if (row["method"], row["sampler"]) == ("TGO, robust", "ddim")]
    assert changed["difference"][0] == pytest.approx(
        changed["measured"]["unseen net"][0] - usual["measured"]["unseen net"][0]
    )
    for sampler in ("ddim", "ancestral"):
        assert (tmp_path / f"ablations_{sampler}.png").stat().st_size > 10_000


# ---- Rounds ----


def test_the_chart_of_rounds_has_a_panel_for_each_scorer(monkeypatch, tmp_path):
    from demo import Result
    from matplotlib.figure import Figure
    from rounds import draw_chart

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    shares = {"training scorer": 0.5, "unseen scorer": 0.25}
    results = [Result("x", {name: [share + i / 10] * 2 for name, share in shares.items()}) for i in range(4)]
    draw_chart(results, tmp_path / "rounds.png")  # the base, one offline round, and two online ones
    for axes, (scorer, share) in zip(drawn[0].axes, shares.items(), strict=True):
        assert axes.get_title() == f"judged by the {scorer}"
        online, offline = axes.containers[0].lines[0], axes.lines[-1]
        assert online.get_xydata().tolist() == [[0, share], [1, share + 0.2], [2, share + 0.3]]
        assert offline.get_ydata()[0] == share + 0.1
    names = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert sorted(names) == ["one offline round with the whole budget", "online"]


def test_methods_are_told_apart_by_their_marks(monkeypatch, tmp_path):
    from matplotlib.figure import Figure

    from benchmarks.digit_runs import MARKERS, UNTRAINED, Method, plot

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    methods = {f"method {i}": Method({}, "beta", (1,), "red") for i in range(len(MARKERS))}  # more than there are marks
    measured = {"unseen net": (0.5, 0.1), "variety": (0.9, 0.1), "frechet": (1.0, 0.1)}
    rows = [
        {"world": "asked", "method": name, "sampler": "ddim", "guidance": 1.0, "measured": measured} for name in methods
    ]
    plot(rows, ["asked"], methods, tmp_path / "frontier.png")
    marks = [container.lines[0].get_marker() for container in drawn[0].axes[0].containers]
    start = len(UNTRAINED)
    assert marks == [*MARKERS[start:], *MARKERS[:start]]
    assert len(set(MARKERS)) == len(MARKERS)
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == list(methods)
