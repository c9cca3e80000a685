"""Models compared: the same seeds for all, numbers worked by hand, and nothing drawn or scored twice."""

import io
import json
import math
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import tgo_trl
from tgo_trl.cli import main
from tgo_trl.commands.evaluate import run
from tgo_trl.commands.evaluate.config import EvaluateConfig
from tgo_trl.commands.evaluate.plots import plot_distributions, plot_grid, plot_win_rates
from tgo_trl.commands.evaluate.prompt_sets import read_prompt_set
from tgo_trl.commands.evaluate.report import EvaluationReport, Measured, find_results
from tgo_trl.commands.evaluate.run import evaluate, evenly_spread
from tgo_trl.commands.evaluate.text import as_latex, as_markdown, score_table, win_table
from tgo_trl.commands.generate.sampling import image_seed
from tgo_trl.measures import Estimate, thumbnails, variety

from . import tiny
from .cases import CASES
from .test_generation import drawn, load, save_adapter
from .test_parquet import files, run_and_kill, run_two_processes
from .test_strength import REWARD

pytestmark = pytest.mark.usefixtures("on_cpu")

ROWS = [("a red cat", "animals"), ("a blue dog", "animals"), ("a green tree", "plants")]
STEPS = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pipeline in `model`, an adapter in `adapter`, `prompts.jsonl` with categories, and rewards in `reward.py`."""
    folder = tmp_path_factory.mktemp("evaluate")
    pipeline = tiny.stable_diffusion()
    pipeline.save_pretrained(folder / "model")
    save_adapter(pipeline, folder / "adapter")
    lines = [json.dumps({"prompt": prompt, "category": category}) for prompt, category in ROWS]
    (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "reward.py").write_text(REWARD)
    return folder


def config(folder, out, *rewards, models=("base", "half", "guided"), **settings):
    model, adapter = folder / "model", folder / "adapter"
    known = {"base": f"base={model}", "half": f"half, of it={model}+{adapter}@0.5", "guided": f"guided={model}",
             "whole": f"whole={model}+{adapter}"}  # fmt: skip
    own = {"guided": {"guidance_scale": 3.0, "num_inference_steps": 3}}
    defaults = {
        "models": [known[name] for name in models],
        "model_settings": {name: value for name, value in own.items() if name in models},
        "prompts": str(folder / "prompts.jsonl"),
        "category_column": "category",
        "rewards": [f"{folder / 'reward.py'}:{name}" for name in rewards or ("red",)],
        "output_dir": str(out),
        "num_images_per_prompt": 2,
        "num_inference_steps": STEPS,
        "guidance_scale": 1.0,
        "rows_per_shard": 4,
        "num_resamples": 500,
        "disable_tqdm": True,
    }
    return EvaluateConfig(**{**defaults, **settings})


@pytest.fixture(scope="module")
def compared(folder, tmp_path_factory):
    """The folder of a whole run with two rewards, and its report."""
    out = tmp_path_factory.mktemp("compared") / "out"
    return out, evaluate(config(folder, out, "red", "green"))


def program(settings):
    """What a process of its own runs."""
    return (
        "import torch; torch.set_num_threads(1)\n"
        "import tgo_trl\n"
        f"tgo_trl.evaluate(tgo_trl.EvaluateConfig(**{vars(settings)!r}))"
    )


def contents(folder):
    return {name: data for name, data in files(folder).items() if not name.endswith(".lock")}


# ---- What is drawn, and what is made of it ----


def test_all_models_have_the_same_seeds_and_draw_what_diffusers_does(folder, compared, tmp_path):
    out, _ = compared
    stock = tiny.stable_diffusion()
    stock.load_lora_weights(folder / "adapter", adapter_name="mine")
    calls = {"base": (0.0, {}), "half-of-it": (0.5, {}), "guided": (0.0, {"guidance_scale": 3.0, "steps": 3})}
    for name, (scale, call) in calls.items():
        rows = load(out / "models" / name / "drawn", tmp_path)
        assert rows["prompt"] == [prompt for prompt, _ in ROWS for _ in range(2)]
        stock.set_adapters("mine", scale)
        for row in rows:
            assert row["seed"] == image_seed(42, row["prompt"], row["sample_index"])
            guidance, steps = call.get("guidance_scale", 1.0), call.get("steps", STEPS)
            image = drawn(stock, row["prompt"], row["seed"], guidance_scale=guidance, num_inference_steps=steps)
            assert np.abs(np.asarray(row["image"], dtype=int) - np.asarray(image)).max() <= 1


def test_numbers_are_those_of_the_images(compared, tmp_path):
    out, report = compared
    labels = {"base": "base", "half, of it": "half-of-it", "guided": "guided"}
    assert report.labels == list(labels)
    scores, varieties = {}, {}
    for label, name in labels.items():
        rows = load(out / "models" / name / "drawn", tmp_path)
        pixels = np.stack([np.asarray(image) for image in rows["image"]]).astype(float)
        scores[label] = pixels.mean((1, 2)).reshape(3, 2, 3)  # prompt, sample, colour
        varieties[label] = variety(thumbnails(rows["image"]), rows["prompt"])
    for colour, reward in enumerate(("red", "green")):
        found = report.overall.rewards[reward]
        for label in labels:
            mine, base = scores[label][..., colour], scores["base"][..., colour]
            assert found.means[label].value == pytest.approx(mine.mean())
            assert found.medians[label].value == pytest.approx(np.median(mine))
            assert mine.mean(1).min() <= found.means[label].interval[0] <= found.means[label].value
            assert found.means[label].value <= found.means[label].interval[1] <= mine.mean(1).max()
            if label != "base":
                assert found.differences[label].value == pytest.approx((mine - base).mean())
                assert found.win_rates[label]["base"].value == (mine > base).mean() + (mine == base).mean() / 2
                assert found.win_rates["base"][label].value == 1 - found.win_rates[label]["base"].value
            animals = report.categories["animals"].rewards[reward].means[label]
            assert animals.value == pytest.approx(mine[:2].mean())
            plants = report.categories["plants"].rewards[reward].means[label]
            assert (plants.value, plants.interval) == (pytest.approx(mine[2].mean()), None)
    for label in labels:
        assert report.overall.varieties[label].value == pytest.approx(varieties[label])
        share = report.overall.relative_varieties[label].value
        assert share == pytest.approx(varieties[label] / varieties["base"])
    assert report.prompts["categories"] == {"animals": 2, "plants": 1}


def test_the_record_says_what_was_compared(folder, compared):
    out, report = compared
    record = json.loads((out / "evaluation.json").read_text())
    assert record == json.loads(json.dumps({**asdict(report), "settings": record["settings"]}))
    assert record["settings"]["models"] == ["base", "half, of it", "guided"]
    half, guided = record["models"]["half, of it"], record["models"]["guided"]
    assert (half["adapter"], half["adapter_scale"], half["call"]["guidance_scale"]) == ("adapter", 0.5, 1.0)
    assert (guided["adapter"], guided["call"]) == (None, {"guidance_scale": 3.0, "num_inference_steps": 3})
    assert half["versions"].keys() == {"diffusers", "torch", "transformers"}
    assert record["rewards"]["red"]["version"].startswith("reward.py:red@sha256:")
    texts = [(out / name).read_text() for name in ("evaluation.json", "evaluation.md", "evaluation.tex")]
    assert not [text for text in texts if str(folder) in text], "a path of this machine"
    pictures = [out / name for name in ("win_rates.png", "score_distributions.png", "grid-1.png")]
    assert [Image.open(path).width for path in pictures] == [2100] * 3
    assert all(path.name in texts[1] for path in pictures)


def test_scores_are_kept_for_each_image_without_it(compared):
    out, _ = compared
    path = out / "models" / "base" / "scores" / "red" / "data" / "train-00000-of-00002.parquet"
    table = pq.read_table(path)
    assert table.column_names == ["prompt", "prompt_index", "sample_index", "seed", "score"]
    assert table["sample_index"].to_pylist() == [0, 1, 0, 1]


# ---- Going on ----


@pytest.mark.usefixtures("undrawn_here")
def test_what_is_there_is_not_made_again(folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    asked = []
    monkeypatch.setattr(run, "check_drawing", lambda config, *_: asked.append(config.guidance_scale))
    evaluate(config(folder, out, models=("base", "half")))
    assert asked == [1.0, 1.0], "each model is asked what it refuses"
    begun = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    assert len(begun) == 2 * (2 + 2)
    (out / "grid-2.png").touch()  # of more prompts than now
    evaluate(config(folder, out, "red", "green", models=("base", "half")))
    assert len(list(out.rglob("*.parquet"))) == 2 * (2 + 2 + 2)
    assert asked == [1.0, 1.0], "no network is made of what has been drawn"
    report = evaluate(config(folder, out, "red", "green"))
    assert asked == [1.0, 1.0, 3.0], "the new one is asked"
    assert len(list(out.rglob("*.parquet"))) == 3 * (2 + 2 + 2)
    assert {path: path.stat().st_mtime_ns for path in begun} == begun
    assert report.overall.num_prompts == 3
    assert not (out / "grid-2.png").exists()


@pytest.mark.slow
def test_a_reward_that_is_gone_is_not_asked_for_what_is_there(folder, compared, tmp_path):
    out, gone = tmp_path / "out", tmp_path / "gone"
    shutil.copytree(compared[0], out)
    lines = [
        "import os",
        "def here(prompts, images):",
        f"    assert not os.path.exists({str(gone)!r})",
        "    return [1.0] * len(images)",
    ]
    (tmp_path / "here.py").write_text("\n".join(lines))
    settings = {"rewards": [f"{tmp_path / 'here.py'}:here"]}
    before = asdict(evaluate(config(folder, out, **settings)))
    gone.touch()
    assert asdict(evaluate(config(folder, out, **settings))) == before
    (out / "models" / "half-of-it" / "scores" / "here" / "data" / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(AssertionError):
        evaluate(config(folder, out, **settings))


def test_a_run_that_lost_files_ends_with_the_same(folder, compared, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(compared[0], out)
    guided = out / "models" / "guided"
    for path in (
        guided / "drawn" / "data" / "train-00001-of-00002.parquet",
        guided / "scores" / "red" / "data" / "train-00000-of-00002.parquet", guided / "variety.json",
        out / "grid-1.png", out / "evaluation.tex",
    ):  # fmt: skip
        path.unlink()
    shutil.rmtree(out / "models" / "base" / "scores" / "green")
    (out / "evaluation.json").write_text('{"settings": {}}')
    (out / ".left").touch()  # as of a file that was being written
    assert evaluate(config(folder, out, "red", "green")) == compared[1]
    (out / ".left").unlink()
    assert contents(out) == contents(compared[0])


def test_other_samples_and_other_rewards_are_refused(folder, compared, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(compared[0], out)
    with pytest.raises(ValueError, match=r"`call.guidance_scale` was 1.0, is 2.0"):
        evaluate(config(folder, out, guidance_scale=2.0))
    other = tmp_path / "other" / "reward.py"
    other.parent.mkdir()
    other.write_text(REWARD.replace("..., 0", "..., 2"))
    with pytest.raises(ValueError, match=r"`reward.version` was 'reward.py:red@sha256:\w+', is 'reward.py:red@"):
        evaluate(config(folder, out, rewards=[f"{other}:red"]))
    path = out / "models" / "base" / "drawn" / ".manifest" / "train-00001.json"
    scores = out / "models" / "base" / "scores" / "red" / ".manifest" / "train-00001.json"
    assert json.loads(scores.read_text())["source"] == json.loads(path.read_text())["sha256"]
    scores.write_text(scores.read_text().replace(json.loads(path.read_text())["sha256"], "0" * 64))
    with pytest.raises(ValueError, match="holds rows of other prompts or images"):
        evaluate(config(folder, out))


def test_a_sample_without_a_score_ends_it_with_what_to_do(folder, compared, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(compared[0], out)
    code = (
        "from tgo_trl.rewards.base import NoScore\n\ndef moody(prompts, images):\n    return [NoScore('it sleeps')]\n"
    )
    (tmp_path / "moody.py").write_text(code)
    with pytest.raises(ValueError, match=r"Row 0, column 'score': it sleeps. .* leave the reward 'moody' out.$"):
        evaluate(config(folder, out, rewards=[f"{tmp_path / 'moody.py'}:moody"], reward_batch_size=1))


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_files(folder, tmp_path):
    settings = {"num_images_per_prompt": 6, "rows_per_shard": 3, "num_inference_steps": 8}
    killed, whole = (config(folder, tmp_path / name, "red", "green", **settings) for name in ("killed", "whole"))
    code = program(killed)
    run_and_kill(code, tmp_path / "killed" / "models" / "half-of-it" / "drawn", num_shards=2)
    run_and_kill(code, tmp_path / "killed" / "models" / "base" / "scores" / "green")
    begun = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").rglob("*.parquet")}
    assert evaluate(killed) == evaluate(whole)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert {path: path.stat().st_mtime_ns for path in begun} == begun


@pytest.mark.slow
def test_two_processes_find_what_one_finds(folder, tmp_path):
    together, alone = (config(folder, tmp_path / name / "out", rows_per_shard=2) for name in ("two", "one"))
    run_two_processes(program(together), tmp_path)
    evaluate(alone)
    assert contents(tmp_path / "two" / "out") == contents(tmp_path / "one" / "out")


@pytest.mark.usefixtures("undrawn_here")
def test_videos(folder, tmp_path):
    [case] = [case for case in CASES if case.name == "wan"]
    case.build().save_pretrained(tmp_path / "wan")
    report = evaluate(
        EvaluateConfig(
            [f"a={tmp_path / 'wan'}", f"b={tmp_path / 'wan'}"], str(folder / "prompts.jsonl"),
            [f"{folder / 'reward.py'}:of_first_frame"], str(tmp_path / "out"),
            model_settings={"b": {"guidance_scale": 2.0}}, num_images_per_prompt=1, num_inference_steps=1,
            guidance_scale=1.0, max_prompts=2, height=case.module.RESOLUTION, width=case.module.RESOLUTION,
            num_frames=case.num_frames, max_sequence_length=16, num_resamples=100, disable_tqdm=True,
        )
    )  # fmt: skip
    assert report.overall.varieties == {}, "of one sample there is none"
    assert report.overall.num_prompts == 2
    assert (tmp_path / "out" / "grid-1.png").is_file()


def test_a_reward_of_videos_at_another_rate_is_refused_before_any_is_drawn(folder, tmp_path):
    [case] = [case for case in CASES if case.name == "wan"]
    case.build().save_pretrained(tmp_path / "wan")
    settings = {"num_frames": case.num_frames, "max_sequence_length": 16, "disable_tqdm": True}
    rewards = {"rewards": ["videoreward"], "reward_kwargs": {"videoreward": {"fps": 24}}}
    models, prompts = [f"{name}={tmp_path / 'wan'}" for name in "ab"], str(folder / "prompts.jsonl")
    with pytest.raises(ValueError, match="has `fps=24`, and the videos are drawn for 16 a second"):
        evaluate(EvaluateConfig(models, prompts, output_dir=str(tmp_path / "out"), **settings, **rewards))
    assert not list((tmp_path / "out").rglob("*.parquet"))


def test_a_prompt_that_is_too_long_for_a_later_model_is_refused_before_any_is_drawn(tmp_path):
    for name in ("flux_kontext", "longcat_image_edit"):
        [case] = [case for case in CASES if case.name == name]
        case.build().save_pretrained(tmp_path / name)
    tiny.picture(0).save(tmp_path / "source.png")
    rows = [{"prompt": prompt, "source_image": "source.png"} for prompt in ("short", "long " * 200)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "reward.py").write_text(REWARD)
    models = [f"first={tmp_path / 'flux_kontext'}", f"second={tmp_path / 'longcat_image_edit'}"]
    settings = {"height": 32, "width": 32, "num_inference_steps": STEPS, "disable_tqdm": True}
    out, rewards = str(tmp_path / "out"), [f"{tmp_path / 'reward.py'}:red"]
    with pytest.raises(ValueError, match=r"The model 'second': The prompt 'long .* tokens, .*takes 512 at most"):
        evaluate(EvaluateConfig(models, str(tmp_path / "prompts.jsonl"), rewards, out, **settings))
    assert not Path(out).exists()


@pytest.mark.usefixtures("undrawn_here")
def test_the_command_reads_a_file_of_settings(folder, compared, tmp_path, capsys):
    settings = vars(config(folder, tmp_path / "out", models=("base",), max_prompts=2, category_column=None))
    given = {name: value for name, value in settings.items() if value not in (None, {}, [])}
    (tmp_path / "evaluate.yaml").write_text(json.dumps(given))
    assert main(["evaluate", "--config", str(tmp_path / "evaluate.yaml"), "--num_images_per_prompt", "1"]) == 0
    printed = capsys.readouterr().out
    assert "2 prompts of prompts.jsonl, 1 sample each" in printed.replace("\n", " ")
    assert "win" not in (tmp_path / "out" / "evaluation.tex").read_text().lower().replace("a win is", "")
    assert not (tmp_path / "out" / "win_rates.png").exists()


# ---- Numbers by hand ----


def measured(scores, varieties=None, labels=("a", "b")):
    given = None if varieties is None else torch.tensor(varieties, dtype=torch.float64)
    return Measured(labels, {"r": torch.tensor(scores, dtype=torch.float64)}, given)


def test_ties_count_half_and_differences_are_paired():
    # two prompts with two samples each: b wins three and ties one
    found = find_results(measured([[[0, 1], [4, 5]], [[2, 1], [5, 7]]], [[1, 3], [2, 4]]), "a", 1000, 0)
    results = found.rewards["r"]
    assert results.means["a"].value == 2.5
    assert results.means["b"].value == 3.75
    assert results.medians["a"].value == 2.5
    assert results.medians["b"].value == 3.5
    assert results.win_rates["b"]["a"].value == 0.875
    assert results.win_rates["a"]["b"].value == 0.125
    assert results.ties["a"]["b"] == results.ties["b"]["a"] == 0.25
    # of prompts 0 and 1, two are drawn: the difference of the means is 1 or 1.5 in the extremes, the win rate 0.75 or 1
    assert results.differences == {"b": Estimate(1.25, (1.0, 1.5))}
    assert results.win_rates["b"]["a"].interval == (0.75, 1.0)
    assert results.win_rates["a"]["b"].interval == (0.0, 0.25)
    assert results.means["a"].interval == (0.5, 4.5)
    assert found.varieties == {"a": Estimate(2, (1, 3)), "b": Estimate(3, (2, 4))}
    assert found.relative_varieties["b"].value == 1.5
    assert found.relative_varieties["b"].interval == (pytest.approx(4 / 3), 2)


def test_the_baseline_may_be_any_and_categories_are_some_prompts():
    whole = measured([[[0], [4], [1]], [[2], [5], [1]]])
    found = find_results(whole.of([0, 1]), "b", 100, 0)
    assert found.num_prompts == 2
    assert found.rewards["r"].differences["a"].value == -1.5
    assert find_results(whole.of([2]), "b", 100, 0).rewards["r"].win_rates["a"]["b"] == Estimate(0.5, None)


def test_a_baseline_without_variety_has_no_shares():
    found = find_results(measured([[[1], [2]], [[3], [4]]], [[0, 0], [1, 2]]), "a", 100, 0)
    assert found.varieties["b"].value == 1.5
    assert found.relative_varieties == {}
    assert find_results(measured([[[1], [2]], [[3], [4]]], [[0, 1], [1, 2]]), "a", 100, 0).relative_varieties == {}
    assert find_results(measured([[[1], [2]], [[3], [4]]], [[0, 1], [1, 2]]), "b", 100, 0).relative_varieties


def test_intervals_depend_on_the_seed_alone():
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(2, 30, 4, generator=generator, dtype=torch.float64)
    first, again, other = (find_results(Measured(("a", "b"), {"r": scores}, None), "a", 200, s) for s in (0, 0, 1))
    assert first == again != other


# ---- Tables and pictures ----


def report_of(labels=("base", "50 % & _x_ | y"), category=True):
    scores = [[[0.1, 0.14], [0.3, 0.34]], [[0.22, 0.14], [0.5, 0.54]]]
    many = torch.tensor(scores, dtype=torch.float64)[[i % 2 for i in range(len(labels))]]
    found = find_results(Measured(labels, {"r": many}, many[..., 0] + 1), labels[0], 200, 0)
    generation = {"model": "m", "adapter": None, "scheduler": "DDIM", "dtype": "float32", "width": 8, "height": 8,
                  "family": {}, "call": {"guidance_scale": 2.0}, "versions": {"torch": "2"}}  # fmt: skip
    reward = {"name": "r", "version": "1", "license": "mit"}
    prompts = {"source": "p.txt", "number": 2, "categories": {"c": 2} if category else {}}
    categories = {"c": found} if category else {}
    models = dict.fromkeys(labels, generation)
    return EvaluationReport(models, labels[0], {"r": reward}, prompts, 2, 42, 200, found, categories), {"r": many}


def test_tables_have_as_many_decimals_as_the_interval_tells():
    report, _ = report_of()
    results = report.overall.rewards["r"]
    # prompts of base: 0.12 and 0.32, of the other: 0.18 and 0.52; a tenth of the narrower interval, 0.2 wide, is 0.02
    assert score_table(report, results) == [
        ["model", "mean", "median", "difference from base"],
        ["base", "0.22 [0.12, 0.32]", "0.22 [0.12, 0.32]", "-"],
        ["50 % & _x_ | y", "0.35 [0.18, 0.52]", "0.36 [0.18, 0.52]", "+0.13 [+0.06, +0.20]"],
    ]
    assert win_table(report, results)[2] == ["50 % & _x_ | y", "87.5 % [75.0, 100.0]", "-"]


def test_markdown_and_latex_hold_any_label():
    report, _ = report_of()
    markdown = as_markdown(report, [("grid-1.png", "A caption.")])
    assert r"| 50 % & _x_ \| y | 0.35 [0.18, 0.52] |" in markdown
    assert "![A caption.](grid-1.png)" in markdown
    assert {line.count("|") - line.count("\\|") for line in markdown.splitlines() if line.startswith("| base")} == {
        5, 4, 9
    }  # fmt: skip
    latex = as_latex(report)
    assert r"50\,\% \& \_x\_ \textbar{} y & \textbf{0.35} {\scriptsize [0.18, 0.52]} \\" in latex
    assert "c & 0.22 {\\scriptsize [0.12, 0.32]} & \\textbf{0.35} {" in latex  # a category
    assert r"base & 0.22 {\scriptsize [0.12, 0.32]} \\" in latex
    assert latex.count(r"\begin{table}") == latex.count(r"\end{table}") == 4
    letters = latex.replace("\\{", "").replace("\\}", "")
    assert letters.count("{") == letters.count("}")


def test_labels_that_latex_would_read_with_the_row_above():
    report, _ = report_of(("[ours]", "* of | us"))
    latex = as_latex(report)
    assert "\n{[}ours] & " in latex
    assert "\n{*} of \\textbar{} us & " in latex


@pytest.mark.parametrize(("value", "told"), [(1e17, "1e+17"), (3e-12, "3e-12"), (0.5, "0.500"), (0.0, "0.000")])
def test_numbers_of_any_size_are_told(value, told):
    scores = torch.full((1, 2, 1), value, dtype=torch.float64)
    found = find_results(Measured(["a"], {"r": scores}, None), "a", 100, 0)
    report = replace(report_of(("a",))[0], overall=found)
    assert score_table(report, found.rewards["r"])[1] == ["a", *[f"{told} [{told}, {told}]"] * 2]


@pytest.mark.parametrize("num_models", [1, 2, 9])
def test_pictures_of_few_and_many_models(tmp_path, num_models):
    report, scores = report_of(tuple(f"model {i}" for i in range(num_models)))
    if num_models > 1:
        plot_win_rates(report, tmp_path / "win_rates.png")
    plot_distributions(report, scores, tmp_path / "scores.png")
    images = [[Image.new("RGB", (8, 8), (40 * i, 0, 0)) for _ in range(2)] for i in range(min(num_models, 6))]
    plot_grid(report.labels[:6], ["a cat", "a dog " * 40], images, tmp_path / "grid.png")
    for path in tmp_path.glob("*.png"):
        assert Image.open(path).getextrema()[0] == (0, 255), path


def test_pictures_say_what_bars_lines_and_axes_are(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("tgo_trl.commands.evaluate.plots.save_figure", lambda figure, *_: drawn.append(figure))
    report, scores = report_of(("base", "tgo"))
    plot_win_rates(report, tmp_path / "win_rates.png")
    plot_distributions(report, scores, tmp_path / "scores.png")
    rates, distributions = drawn
    names = [[text.get_text() for text in figure.legends[0].get_texts()] for figure in drawn]
    assert names[0] == ["wins", "ties", "losses", "win rate (ties count half), 95 % interval"]
    assert names[1] == ["median", "median of base"]
    assert rates.axes[0].get_xlabel() == "% of samples"
    assert distributions.axes[0].get_xlabel() == "score"
    baseline = distributions.axes[0].lines[-1]
    assert baseline.get_linestyle() == ":"
    assert baseline.get_xdata()[0] == report.overall.rewards["r"].medians["base"].value


def test_a_grid_shows_the_colours_of_its_pictures(tmp_path):
    images = [[Image.new("RGB", (16, 16), colour) for colour in row] for row in (["red", "lime"], ["blue", "yellow"])]
    plot_grid(["a", "b"], ["p", "q"], images, tmp_path / "grid.png")
    colours = {colour for count, colour in Image.open(tmp_path / "grid.png").convert("RGB").getcolors(1 << 20)
               if count > 10_000}  # fmt: skip
    assert colours >= {(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)}


def test_pictures_show_any_label_prompt_and_score(tmp_path):
    labels = ("$\\frac$ of", "[b]")
    report, _ = report_of(labels)
    plot_win_rates(report, tmp_path / "win_rates.png")
    plot_grid(labels, ["a $\\frac{1}$", "$5\n$6"], [[Image.new("RGB", (8, 8))] * 2] * 2, tmp_path / "grid.png")
    # of which numpy makes no bins: one number but for rounding, and one that is larger than its neighbours are apart
    for low, high in ((1.0, math.nextafter(1.0, 2)), (1e17, 1e17), (0.0, 0.0)):
        scores = torch.tensor([[[low, low]], [[low, high]]], dtype=torch.float64)
        plot_distributions(report, {"r": scores}, tmp_path / "scores.png")


def test_prompts_of_a_grid_are_spread():
    assert evenly_spread(40, 6) == [0, 6, 13, 20, 26, 33]
    assert evenly_spread(3, 6) == [0, 1, 2]


# ---- Prompt sets ----


PICK_A_PIC = """---
dataset_info:
  features:
  - {name: caption, dtype: string}
  - {name: jpg_0, dtype: binary}
  - {name: label_0, dtype: float64}
  splits:
  - {name: train, num_bytes: 1, num_examples: 1}
  - {name: test_unique, num_bytes: 1, num_examples: 4}
---
"""


def put_sets(hub):
    parti = 'Prompt\tCategory\tChallenge\tNote\n"HELLO" on a wall\tArts\tWriting\t\na dog\tAnimals\tBasic\tx\n'
    hub.create("nateraw/parti-prompts", "datasets").put({"PartiPrompts.tsv": parti.encode()})
    styles = {"anime": ["a", "b"], "concept-art": ["c"], "paintings": ["a", "d"], "photo": ["e"]}
    hub.create("zhwang/HPDv2", "datasets").put(
        {f"benchmark/{name}.json": json.dumps(prompts).encode() for name, prompts in styles.items()}
    )
    columns = {"caption": ["won", "tied", "lost", "won"], "jpg_0": [b"x"] * 4, "label_0": [1.0, 0.5, 0.0, 1.0]}
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    hub.create("liuhuohuo2/pick-a-pic-v2", "datasets").put(
        {"README.md": PICK_A_PIC.encode(), "data/test_unique-00000-of-00001.parquet": file.getvalue()}
    )


def set_of(name, **settings):
    return EvaluateConfig(["a=b"], name, ["hpsv2.1"], **settings)


def read_set(config):
    return {task.prompt: category for task, category in read_prompt_set(config).items()}


def test_the_sets_of_papers_are_read_from_the_hub(hub, tmp_path):
    put_sets(hub)
    assert read_set(set_of("parti")) == {'"HELLO" on a wall': "Arts", "a dog": "Animals"}
    assert read_set(set_of("parti", category_column="Challenge")) == {
        '"HELLO" on a wall': "Writing", "a dog": "Basic",
    }  # fmt: skip
    assert read_set(set_of("hpsv2")) == {
        "a": "anime", "c": "concept-art", "e": "photo", "b": "anime", "d": "paintings",
    }  # fmt: skip
    assert read_set(set_of("hpsv2", max_prompts=2)) == {"a": "anime", "c": "concept-art"}
    assert read_set(set_of("pick-a-pic")) == {"won": None, "lost": None}
    with pytest.raises(ValueError, match=r"no column 'Kind'; it has 'Prompt', .*Set `category_column`"):
        read_prompt_set(set_of("parti", category_column="Kind"))


@pytest.mark.parametrize("name", ["pick-a-pic", "parti", "hpsv2"])
def test_without_the_hub_it_is_said_what_to_do(name, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"of the Hub, which cannot be read.*HF_HUB_OFFLINE.*write the prompts to a"):
        read_prompt_set(set_of(name))


def test_categories_are_read_from_files_and_data_sets(folder, tmp_path):
    (tmp_path / "p.csv").write_text("text,kind\na cat,animals\na tree,7\na cat,plants\n")
    columns = {"prompt_column": "text", "category_column": "kind"}
    expected = {"a cat": "animals", "a tree": "7"}
    assert read_set(set_of(str(tmp_path / "p.csv"), **columns)) == expected
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "kind": ClassLabel(names=["animals", "7"])})
    rows = Dataset.from_dict({"text": ["a cat", "a tree"], "kind": [0, 1]}, features=features)
    rows.save_to_disk(tmp_path / "saved")
    assert read_set(set_of(str(tmp_path / "saved"), **columns)) == expected
    (tmp_path / "p.txt").write_text("a cat\na dog\n")
    with pytest.raises(ValueError, match="prompts without columns, and so no categories"):
        read_prompt_set(set_of(str(tmp_path / "p.txt"), category_column="kind"))
    (tmp_path / "p.jsonl").write_text('{"prompt": "a cat", "kind": null}\n')
    with pytest.raises(ValueError, match="has no category, but None"):
        read_prompt_set(set_of(str(tmp_path / "p.jsonl"), category_column="kind"))
    (tmp_path / "many.csv").write_text("text,kind\n" + "".join(f"p{i},{i}\n" for i in range(101)))
    with pytest.raises(ValueError, match="are of 101 categories, and 100 are the most"):
        read_prompt_set(set_of(str(tmp_path / "many.csv"), **columns))
    (tmp_path / "p.txt").write_text("a cat\n")
    with pytest.raises(ValueError, match="has one prompt, and intervals are over prompts"):
        read_prompt_set(set_of(str(tmp_path / "p.txt")))


# ---- Settings ----


def parsed(entry, **settings):
    [found] = EvaluateConfig([entry], "p.txt", ["hpsv2.1"], **settings).contestants()
    return found.label, found.folder, found.model, found.settings


def test_models_are_written_with_label_adapter_and_scale(tmp_path):
    assert parsed("base=me/model") == ("base", "base", "me/model", {})
    assert parsed("TGO (ours) = me/model+me/lora")[:3] == ("TGO (ours)", "TGO-ours", "me/model")
    assert parsed("a=m+l@0.5")[3] == {"adapter_name_or_path": "l", "adapter_scale": 0.5}
    (tmp_path / "a+b@1").mkdir()
    assert parsed(f"a={tmp_path / 'a+b@1'}") == ("a", "a", str(tmp_path / "a+b@1"), {})
    own = {"a": {"adapter_name_or_path": "l", "adapter_scale": 2.0, "guidance_scale": 3}}
    assert parsed("a=m", model_settings=own)[3] == own["a"]
    assert parsed("a=m", model_settings=json.dumps(own))[3] == own["a"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"models": []}, "`models` has 0 entries"),
        ({"models": ["me/model"]}, "`models` has 'me/model'. Write each as label=model"),
        ({"models": ["=me/model"]}, "Write each as"),
        ({"models": ["a="]}, "Write each as"),
        ({"models": ["a=m+"]}, "Write each as"),
        ({"models": [7]}, "`models` has 7, which is no text"),
        ({"models": ["a=m+l@much"]}, "'much' is no scale"),
        ({"models": ["a b=m", "A-b=n"]}, "would both go to a folder 'a-b'"),
        ({"model_settings": {"b": {}}}, "`model_settings` has 'b', but the labels are 'a'"),
        ({"model_settings": {"a": 3}}, "`model_settings['a']` is a `int`"),
        ({"model_settings": {"a": {"seed": 3}}}, "has a `seed` of its own, which all have to share"),
        ({"model_settings": {"a": {"guidance": 3}}}, "`model_settings` has 'guidance' of 'a'; write some of adapter_"),
        ({"model_settings": {"a": {"guidance_scale": "x"}}}, "The model 'a': `guidance_scale` is 'x'; it must"),
        ({"model_settings": {"a": {"guidance_scale": math.inf}}}, "must be finite"),
        ({"model_settings": {"a": {"height": 8}}}, "The model 'a': `height` is set and `width` is not"),
        ({"model_settings": {"a": {"adapter_scale": 0.5}}}, "The model 'a': `adapter_scale` is 0.5, but there is no"),
        ({"models": ["a=m+l"], "model_settings": {"a": {"adapter_name_or_path": "k"}}}, "both have the `adapter_"),
        ({"baseline": "b"}, "`baseline` is 'b'; it must be one of 'a'"),
        ({"rewards": []}, "`rewards` is empty"),
        ({"rewards": ["x.py:f", "y.py:f"]}, "two that would be called 'f'"),
        ({"rewards": ["x.py:f", "y.py:F"]}, "two that would be called 'f'"),
        ({"rewards": [7]}, "`rewards` has 7, which names no function"),
        ({"rewards": ["x.py:../f"]}, "names no function and no reward model"),
        ({"reward_kwargs": {"x": {}}}, "`reward_kwargs` has 'x'"),
        ({"num_resamples": 10}, "`num_resamples` is 10; write 100 to 1,000,000"),
        ({"num_resamples": "many"}, "`num_resamples` is 'many'; it must be a whole number"),
        ({"grid_prompts": [-1]}, "`grid_prompts` has -1"),
        ({"grid_prompts": []}, "`grid_prompts` has 0 entries"),
        ({"prompts": "parti", "prompt_column": "Prompt"}, "is known. Leave it out; a file or folder of that name"),
        ({"prompts": "hpsv2", "category_column": "style"}, "`category_column` is 'style', but what is in the set"),
    ],
)  # fmt: skip
def test_settings_that_cannot_work_say_what_to_write(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        EvaluateConfig(**{"models": ["a=m"], "prompts": "p.txt", "rewards": ["hpsv2.1"], **settings})
    assert len(str(error.value)) < 1000


def test_what_can_fail_fails_before_anything_is_drawn(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    for settings, message in (
        ({"grid_prompts": [3]}, r"`grid_prompts` has 3, but there are 3 prompts"),
        ({"rewards": ["hps"]}, "no reward named 'hps'"),
        ({"model_settings": {"base": {"adapter_name_or_path": str(folder / "model")}}},
         "The model 'base': .*a folder without a LoRA adapter"),
        ({"model_settings": {"base": {"adapter_name_or_path": "./no/where"}}}, "The model 'base': .*'./no/where'"),
        ({"model_settings": {"base": {"adapter_name_or_path": "adaptr"}}},
         "The model 'base': there is no adapter 'adaptr' here, .* Did you mean 'adapter'"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            evaluate(config(folder, tmp_path / "out", **settings))
        assert not (tmp_path / "out").exists()
    for name, message in (("none", "The model 'other': "), ("adapter", "The model 'other': ")):
        models = [f"base={folder / 'model'}", f"other={folder / name}"]
        with pytest.raises(ValueError, match=message):
            evaluate(EvaluateConfig(models, str(folder / "prompts.jsonl"), ["hpsv2.1"], str(tmp_path / "out")))
        assert not (tmp_path / "out").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"holds 'notes.txt' and no evaluation.json"):
        evaluate(config(folder, tmp_path / "mine"))


def test_the_function_is_public():
    assert tgo_trl.evaluate is evaluate
    assert tgo_trl.EvaluateConfig is EvaluateConfig
