"""The paper's settings from prompts to tables: their commands, what they cost, and tiny runs from end to end."""

import dataclasses
import importlib
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset

from tgo_trl import cli

from .devices import cpu_environment

ROOT = Path(__file__).parents[1]
SETTINGS = {
    "sd15": ["generate", "score", "inspect", "train SFT", "train TGO"],
    "flux": ["generate", "score", "inspect", "train SFT", "train TGO"],
    "meissonic": ["generate", "score", "inspect", "train SFT", "train TGO"],
    "pickapic": [
        "convert", "inspect", "train SFT", "train CSFT", "train Diffusion-DPO", "train Diffusion-KTO", "train DSPO",
        "train TGO",
    ],
    "wan": ["prompts", "generate", "score", "inspect", "train SFT-LoRA", "train KTO-LoRA", "train TGO"],
}  # fmt: skip
"""Of each setting, its steps before the comparison."""
pytestmark = pytest.mark.usefixtures("on_cpu")


@pytest.fixture(autouse=True)
def examples(monkeypatch):
    """Scripts find each other beside them, and are run from the checkout."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.chdir(ROOT)


@pytest.fixture
def paper(examples):
    return importlib.import_module("paper")


@pytest.fixture
def costs(examples):
    return importlib.import_module("paper_costs")


# ---- Commands ----


def test_all_settings_are_tried(paper):
    assert {path.stem for path in (ROOT / "recipes" / "paper").iterdir()} == {*SETTINGS} == {*paper.SETTINGS}


def taken_by(words: list[str], monkeypatch) -> dict:
    """The settings that a command of `tgo-trl` takes from a command line."""
    module, function = cli.COMMANDS[words[1]].function.split(":")
    taken = []
    monkeypatch.setattr(f"tgo_trl.{module}.{function}", lambda *settings: taken.extend(settings))
    on_cpu = ["--use_cpu", "true"] if words[1] == "train" else []
    assert cli.main([*words[1:], *on_cpu]) == 0
    return {item.name: getattr(settings, item.name) for settings in taken for item in dataclasses.fields(settings)}


def printed_commands(paper, setting: str, capsys, *options: str) -> list[list[str]]:
    """What `--print` prints, as a shell would read it."""
    assert paper.main(["--setting", setting, "--print", "--output_dir", "out", *options]) == 0
    return [shlex.split(text.replace("\\\n", " ")) for text in capsys.readouterr().out.split("\n\n")]


@pytest.mark.parametrize("setting", SETTINGS)
def test_printed_commands_are_commands(paper, setting, capsys, monkeypatch):
    """Each is parsed as `tgo-trl` does, with the recipe's settings, and goes on where the one before it ends."""
    commands = printed_commands(paper, setting, capsys)
    recipe = paper.read_recipe(setting)
    assert [step.name for step in paper.find_steps(recipe, Path("out"), [])][: len(SETTINGS[setting])] == SETTINGS[
        setting
    ]
    assert len(commands) == len(SETTINGS[setting]) + len(recipe["evaluate"]["prompts"])
    folders = set()
    for words in commands:
        if words[0] == "python":
            assert words[1:] == ["examples/paper.py", "--setting", "wan", "--output_dir", "out", "--write_prompts"]
            continue
        settings = taken_by(words, monkeypatch)
        if words[1] == "train":
            assert settings["dataset_name"] == "out/scored"
            assert settings["model_name_or_path"] == recipe["model"]
            label = next(name for name in recipe["methods"] if settings["output_dir"] == f"out/models/{name.lower()}")
            for name, value in {**recipe["train"], **recipe["methods"][label]}.items():
                assert settings[name] == value, name
        elif words[1] == "evaluate":
            labels = [entry.partition("=")[0] for entry in settings["models"]]
            assert labels == ["base", *recipe["methods"]]
            assert settings["rewards"] == recipe["evaluate"]["rewards"]
        else:
            for name, value in recipe[words[1]].items():
                assert settings[name] == value, name
        assert settings["output_dir"] not in folders
        folders.add(settings["output_dir"])


def test_the_papers_numbers_are_in_the_commands(paper, capsys, monkeypatch):
    """Batch 128, 78 updates, 1e-5, beta 1, T 0.001, c 5, the median; and 0.5 wins."""
    for setting in ("sd15", "pickapic"):
        words = next(it for it in printed_commands(paper, setting, capsys) if "out/models/tgo" in it)
        args = taken_by(words, monkeypatch)
        rows = args["per_device_train_batch_size"] * args["gradient_accumulation_steps"]
        found = [args[name] for name in ("beta", "temperature", "confidence_coef", "loss_type", "learning_rate")]
        assert (rows, found) == (128, [1.0, 0.001, 5.0, "tgo", 1e-5])
        if setting == "sd15":
            assert (args["max_steps"], args["threshold_type"], args["threshold_percentile"]) == (78, "percentile", 50.0)
        else:
            assert (args["max_steps"], args["threshold_type"], args["threshold_value"]) == (7250, "value", 0.5)
            assert args["max_steps"] == 928_068 // 128


def test_fewer_methods_and_prompts(paper, capsys, monkeypatch):
    options = ["--methods", "TGO", "--max_prompts", "100", "--max_eval_prompts", "7", "--model_name_or_path", "mine"]
    generate, _, _, train, *evaluate = printed_commands(paper, "sd15", capsys, *options)
    assert taken_by(generate, monkeypatch)["max_prompts"] == 100
    assert taken_by(train, monkeypatch)["model_name_or_path"] == "mine"
    for words in evaluate:
        settings = taken_by(words, monkeypatch)
        assert settings["models"] == ["base=mine", "TGO=out/models/tgo"]  # all weights are a pipeline of their own
        assert settings["max_prompts"] == 7
    assert "model_settings" not in " ".join(map(" ".join, printed_commands(paper, "pickapic", capsys, *options[:2])))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--methods", "DPO"], "`--methods` has DPO"),
        (["--max_prompts", "5"], "draws nothing to train on"),
        (["--tiny", "--model_name_or_path", "mine"], "a model of its own"),
    ],
)
def test_options_without_a_meaning_are_refused(paper, options, message, capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        paper.main(["--setting", "pickapic", *options])
    assert message in capsys.readouterr().err


def test_the_prompts_of_a_split(paper, tmp_path):
    """The first ones are trained on, those after them are not; repeated ones count once."""
    (tmp_path / "all.txt").write_text("a\nb\na\nc\nd\n")
    recipe = {"prompts": {"source": str(tmp_path / "all.txt"), "column": "prompt", "train": 2, "test": 1}}
    paper.write_prompts(recipe, tmp_path)
    written = [(tmp_path / "prompts" / f"{name}.jsonl").read_text() for name in ("train", "test")]
    assert written == ['{"prompt": "a"}\n{"prompt": "b"}\n', '{"prompt": "c"}\n']
    recipe["prompts"]["test"] = 3
    with pytest.raises(ValueError, match="has 4 prompts, of which 5 are needed"):
        paper.write_prompts(recipe, tmp_path)


def test_the_split_of_the_vidprom_prompts(paper):
    """15,218 prompts, 8 : 2."""
    prompts = paper.read_recipe("wan")["prompts"]
    assert (prompts["train"], prompts["test"]) == (round(0.8 * 15_218), 15_218 - round(0.8 * 15_218))


def test_counts_beside_the_published(paper, tmp_path):
    """Of six images, two won, one of them tied too; one lost and tied, two only tied, one only lost."""
    assert sum(paper.read_recipe("pickapic")["expected"].values()) == 928_068 + 237_530
    assert 928_068 - 237_530 == 690_538
    recipe = {"inspect": {"threshold_value": 0.5}, "expected": {"rows": 4, "positive": 2}}
    columns = {"wins": [1, 3, 0, 0, 0, 0], "ties": [0, 1, 1, 1, 2, 0], "comparisons": [1, 5, 2, 1, 2, 4]}
    (tmp_path / "scored").mkdir()
    Dataset.from_dict(columns).to_parquet(tmp_path / "scored" / "train.parquet")
    assert paper.compare_counts(recipe, tmp_path) == [
        "Published: 4 rows, 2 of them positive.",
        "Where a tie is no win: 6 rows, 2 of them positive.",
        "Where likewise, and images that only tied are no rows: 4 rows, 2 of them positive: as published.",
        "Where a tie is half a win: 6 rows, 5 of them positive.",
    ]
    assert paper.compare_counts({}, tmp_path) == []


def test_what_is_done_is_not_done_again(paper, tmp_path):
    """But a step that failed, has other settings, or whose files are gone, and those after it."""

    def step(name: str, *more: str):
        return paper.Step(name, ["tgo-trl", name, *more, "--output_dir", str(tmp_path / name)])

    def run(*steps, failing: str = "") -> str:
        ran = []

        def execute(words: list[str]) -> int:
            ran.append(words[1])
            (tmp_path / words[1]).mkdir(exist_ok=True)
            return 3 if words[1] == failing else 0

        try:
            paper.run_steps(steps, tmp_path, execute)
        except SystemExit as stopped:
            ran.append(str(stopped.code))
        return "".join(ran)

    one, two, three = step("a"), step("b"), step("c")
    assert run(one, two, three, failing="b") == "ab3"
    assert run(one, two, three) == "bc"
    assert run(one, two, three) == ""
    assert run(one, step("b", "--seed", "1"), three) == "bc"
    (tmp_path / "a").rmdir()
    assert run(one, step("b", "--seed", "1"), three) == "abc"


def test_a_step_has_a_process_of_its_own(paper, monkeypatch):
    for name, value in cpu_environment().items():
        monkeypatch.setenv(name, value)
    assert paper.in_a_process(["tgo-trl", "nothing"]) == 2  # the status of argparse


# ---- Costs ----


def test_costs_by_hand(paper, costs):
    """Of Stable Diffusion 1.5: 10,000 images, two methods and the base on 424 + 1,632 + 3,200 prompts."""
    recipe = paper.read_recipe("sd15")
    disk = {item.what: item.amount for item in costs.disk(recipe)}
    assert disk["drawn samples"] == pytest.approx(10_000 * 512 * 512 * 1.7 / 1e9)  # 4.46
    assert disk["encoded samples"] == pytest.approx(1.31)
    assert disk["samples to compare"] == pytest.approx(3 * 5256 * 512 * 512 * 1.7 / 1e9)  # 7.03
    hours = {item.what: item.amount for item in costs.hours(recipe)}
    assert hours["drawing"] == pytest.approx(1.139, abs=1e-3)  # 10,000 x 50 x 2 x 4.1 ms = 4,100 s
    assert hours["training TGO"] == pytest.approx(78 * 128 * 5 * 0.0041 / 3600)  # 205 s: all weights, with reference
    assert hours["training SFT"] == pytest.approx(78 * 128 * 4 * 0.0041 / 3600)
    assert hours["scoring to compare"] == pytest.approx(15_768 * 5 * 0.03 / 3600)
    assert costs.totals(recipe)[1] == pytest.approx(10.6 + 13.8 + 3.4)


def test_costs_of_fewer_prompts_and_of_pairs(paper, costs):
    recipe = paper.read_recipe("wan", max_prompts=1000, max_eval_prompts=100)
    assert (costs.num_rows(recipe), costs.num_compared(recipe)) == (1000, 400)  # four models
    hours = {item.what: item.amount for item in costs.hours(recipe)}
    assert hours["drawing to compare"] == pytest.approx(400 * 50 * 2 * 0.7 / 3600)
    assert hours["training KTO-LoRA"] == pytest.approx(190 * 64 * 6 * 0.7 / 3600)
    disk = {item.what: item.amount for item in costs.disk(paper.read_recipe("pickapic"))}
    assert disk["converted images"] == pytest.approx(928_068 * 322e9 / (2 * 959_040) / 1e9, rel=2e-3)
    assert "drawn samples" not in disk


def test_the_documented_costs_are_the_computed_ones(paper, costs, capsys):
    text = (ROOT / "docs" / "paper.md").read_text()
    for setting in SETTINGS:
        disk, memory, hours = costs.totals(paper.read_recipe(setting))
        row = next(line for line in text.splitlines() if line.startswith(f"| `{setting}` |"))
        assert row.endswith(f" | {disk:,.0f} GB | {memory:,.0f} GB | {hours:,.0f} |")
        assert f"| base, {', '.join(paper.read_recipe(setting)['methods'])} |" in row
    assert paper.main(["--setting", "sd15", "--estimate"]) == 0
    printed = capsys.readouterr().out
    assert "| drawing | 10,000 x 50 steps x 2 x 0.0041 s | 1.1 |" in printed
    assert f"| **together** | | **{costs.totals(paper.read_recipe('sd15'))[2]:.1f}** |" in printed


# ---- Tables, and runs ----


def test_tables(paper, tmp_path):
    recipe = {
        "model": "m_1", "methods": {"TGO": {}}, "score": {"rewards": ["f.py:a"]}, "published_model": "another",
        "evaluate": {"prompts": ["parti"], "rewards": ["f.py:a", "b_2"]}, "published": {"parti": {"a": {"TGO": 0.5}}},
    }  # fmt: skip
    models = {"base": {"value": 0.25}, "TGO": {"value": 0.75}}
    results = {"means": models, "medians": models, "win_rates": {"TGO": {"base": {"value": 0.875}}}}
    report = {"overall": {"rewards": {"b_2": results, "a": results}}, "prompts": {"number": 1632}}
    (tmp_path / "evaluation" / "parti").mkdir(parents=True)
    (tmp_path / "evaluation" / "parti" / "evaluation.json").write_text(json.dumps(report))
    markdown, latex = (path.read_text() for path in paper.write_tables(recipe, tmp_path))
    assert (
        "## Mean (parti, 1,632 prompts)\n\n| model | a (trained on) | b_2 |\n|---|---|---|\n"
        "| base | 0.2500 | 0.2500 |\n| TGO | 0.7500 | 0.7500 |\n| TGO, published of another | 0.5 | - |\n"
    ) in markdown
    assert "## Wins against base (parti, 1,632 prompts)" in markdown
    assert "| TGO | 87.5 % | 87.5 % |" in markdown
    assert "evaluation/parti/evaluation.md" in markdown
    assert latex.count(r"\begin{tabular}{lrr}") == 3
    assert r"TGO & 87.5 \% & 87.5 \% \\" in latex
    assert r"model & a (trained on) & b\_2 \\" in latex


def run_tiny(paper, setting: str, folder: Path, *options: str) -> list[str]:
    """Runs a setting in this process, which has loaded the libraries; returns the commands that were run."""
    ran = []

    def execute(words: list[str], **_: str) -> int:
        ran.append(words[1])
        return cli.main(words[1:]) if words[0] == "tgo-trl" else paper.main(words[2:])

    assert paper.main(["--setting", setting, "--tiny", "--output_dir", str(folder), *options], execute) == 0
    return ran


def test_from_prompts_to_a_table(paper, tmp_path):
    """And nothing of it twice."""
    ran = run_tiny(paper, "sd15", tmp_path, "--methods", "TGO")
    assert ran == ["generate", "score", "inspect", "train", "evaluate"]
    assert_table(paper, "sd15", tmp_path, ["TGO"])
    assert run_tiny(paper, "sd15", tmp_path, "--methods", "TGO") == []


@pytest.mark.parametrize(
    "setting", [pytest.param(it, marks=getattr(pytest.mark, "slow" if it == "pickapic" else "long")) for it in SETTINGS]
)
def test_each_setting_from_end_to_end(paper, setting, tmp_path, capsys):
    ran = run_tiny(paper, setting, tmp_path)
    assert len(ran) == len(SETTINGS[setting]) + 1  # of the sets of prompts, one
    methods = list(paper.read_recipe(setting)["methods"])
    assert_table(paper, setting, tmp_path, methods)
    printed = capsys.readouterr().out
    if setting == "pickapic":  # of each prompt, one image of three won; the two that tied with each other did not
        assert "Where a tie is no win: 18 rows, 6 of them positive.\n" in printed
    for label in methods:
        record = json.loads((tmp_path / "models" / label.lower() / "tgo_config.json").read_text())["config"]
        assert record["max_steps"] == 2
    assert run_tiny(paper, setting, tmp_path) == []


@pytest.mark.long
def test_the_program_in_processes_of_its_own(tmp_path):
    """As a user runs it, from another folder."""
    command = [sys.executable, str(ROOT / "examples" / "paper.py"), "--setting", "meissonic", "--tiny"]
    environment = cpu_environment(PYTHONPATH=str(ROOT))
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("Without --tiny, this downloads MeissonFlow/Meissonic (6.0 GB in float32)")
    assert (tmp_path / "outputs" / "paper" / "meissonic-tiny" / "table.tex").is_file()


def assert_table(paper, setting: str, folder: Path, methods: list[str]) -> None:
    """The means in the table are those that `evaluate` found."""
    name = "test" if setting == "wan" else "prompts"
    report = json.loads((folder / "evaluation" / name / "evaluation.json").read_text())
    means = report["overall"]["rewards"]["brightness"]["means"]
    first = (folder / "table.md").read_text().split("\n\n")[2].splitlines()
    assert first[0].startswith("| model | brightness")
    assert [line.split(" | ")[:2] for line in first[2:]] == [
        [f"| {label}", f"{means[label]['value']:.4f}"] for label in ["base", *methods]
    ]
