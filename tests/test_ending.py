"""What commands say at their end: what was written, where, and a command that can be typed."""

import shlex
from dataclasses import fields

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tgo_trl import ConvertConfig, GenerateConfig, InspectConfig, ScoreConfig, TGOConfig, inspect
from tgo_trl.cli import main
from tgo_trl.commands.ending import ending
from tgo_trl.commands.table import COMMANDS, load
from tgo_trl.commands.train.config import TrainArguments

from .tiny import scored_rows


@pytest.fixture
def drawn(tmp_path):
    """A folder as commands write them, of five rows in two shards, whose name a shell would split."""
    folder = tmp_path / "my rows" / "data"
    folder.mkdir(parents=True)
    for shard, rows in enumerate(([1, 2, 3], [4, 5])):
        pq.write_table(pa.table({"seed": rows}), folder / f"train-0000{shard}-of-00002.parquet")
    return str(folder.parent)


def typed(line):
    """The words after `tgo-trl`, all options of which that command knows."""
    words = shlex.split(line.partition(": tgo-trl ")[2])
    known = {field.name for name in COMMANDS[words[0]].configs for field in fields(load(name))}
    assert {word[2:] for word in words if word.startswith("--")} <= known
    return words


def test_samples_are_scored_next(drawn):
    written, following = ending("generate", [GenerateConfig("sd", "prompts.txt", drawn)])
    assert written == f"Written: {drawn}, 5 rows"
    assert following.startswith("Next, with your own REWARD: ")
    expected = ["score", "--dataset_name", drawn, "--rewards", "REWARD", "--output_dir", f"{drawn}-scored"]
    assert typed(following) == expected


def test_scores_are_looked_at_next_by_their_own_names(drawn):
    config = ScoreConfig("rows", drawn, ["clip"], image_column="picture", score_columns=["clip"], dataset_split="a[:9]")
    written, following = ending("score", [config])
    assert written.endswith("5 rows")
    expected = ["inspect", "--dataset_name", drawn, "--dataset_split", "a", "--score_column", "clip"]
    assert typed(following) == [*expected, "--image_column", "picture"]
    assert typed(ending("score", [ScoreConfig("rows", drawn, ["clip"])])[1]) == ["inspect", "--dataset_name", drawn]
    both = ending("score", [ScoreConfig("rows", drawn, ["clip", "aesthetic"])])[1]
    assert typed(both) == ["inspect", "--dataset_name", drawn, "--score_columns", "clip", "aesthetic"]
    assert typed(ending("convert", [ConvertConfig("rows", drawn)])[1]) == ["inspect", "--dataset_name", drawn]


@pytest.mark.parametrize("full", [False, True])
def test_what_was_trained_is_compared_next(tmp_path, full):
    if full:
        (tmp_path / "model_index.json").write_text("{}")
    written, following = ending("train", [TrainArguments("sd", "rows"), TGOConfig(str(tmp_path))])
    assert f"{tmp_path}, the trained {'pipeline' if full else 'adapter'}" in written
    trained = str(tmp_path) if full else f"sd+{tmp_path}"
    assert typed(following)[:4] == ["evaluate", "--models", "base=sd", f"trained={trained}"]
    under = TGOConfig(str(tmp_path), pipeline_class="WanImageToVideoPipeline")
    last = ending("train", [TrainArguments("sd", "rows"), under])[1]
    assert typed(last) == [*typed(following), "--pipeline_class", "WanImageToVideoPipeline"]


def test_an_inspection_ends_with_its_own_suggestions_to_train_with(tmp_path, capsys):
    scored_rows(8).rename_column("score", "stars").to_parquet(tmp_path / "rows.parquet")
    rows, report = str(tmp_path / "rows.parquet"), str(tmp_path / "report")
    config = InspectConfig(rows, report, score_column="stars", skip_images=True, disable_tqdm=True)
    arguments = ["--dataset_name", rows, "--output_dir", report, "--score_column", "stars", "--skip_images"]
    assert main(["inspect", *arguments, "--disable_tqdm"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    words = typed(last)
    assert words[:5] == ["train", "--model_name_or_path", "MODEL", "--dataset_name", rows]
    assert words[5:-2] == [word for name, value in inspect(config).settings.items() for word in (f"--{name}", value)]
    assert words[5:7] == ["--score_column", "stars"]
    assert words[-2:] == ["--output_dir", "ADAPTER"]


def test_commands_with_a_report_of_their_own_say_no_more():
    assert ending("env", []) == []


def test_what_was_pushed_is_named(drawn, tmp_path, monkeypatch):
    pushed = {"push_to_hub": True}
    lines = ending("convert", [ConvertConfig("rows", drawn, hub_dataset_id="me/rows", **pushed)])
    assert lines[1] == "Pushed to the Hub: me/rows"
    assert ending("score", [ScoreConfig("rows", drawn, ["clip"], **pushed)])[1] == "Pushed to the Hub: my rows"
    monkeypatch.chdir(drawn)
    assert ending("score", [ScoreConfig("rows", ".", ["clip"], **pushed)])[1] == "Pushed to the Hub: my rows"
    args = TGOConfig(str(tmp_path / "fox"), hub_model_id="me/fox", use_cpu=True, **pushed)
    assert ending("train", [TrainArguments("sd", "rows"), args])[1] == "Pushed to the Hub: me/fox"


def test_scores_that_are_all_the_same_lead_to_no_training(tmp_path, capsys):
    rows, report = str(tmp_path / "rows.parquet"), str(tmp_path / "report")
    rows_of_one = scored_rows(4).remove_columns("score").add_column("score", [2.0] * 4)
    rows_of_one.to_parquet(rows)
    assert main(["inspect", "--dataset_name", rows, "--output_dir", report, "--skip_images", "--disable_tqdm"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "Next: score the rows by something that tells them apart, and inspect them again."


def test_videos_are_passed_over_by_the_next_inspection(tmp_path, capsys):
    rows, out = tmp_path / "rows.parquet", tmp_path / "scored"
    (out / "data").mkdir(parents=True)
    table = pa.table({"prompt": ["a", "a"], "video": ["a.mp4", "b.mp4"], "score": [0.0, 1.0]})
    for path in (rows, out / "data" / "train-00000-of-00001.parquet"):
        pq.write_table(table, path)
    for command, config in (
        ("score", ScoreConfig("rows", str(out), ["clip"])),
        ("convert", ConvertConfig("x", str(out))),
    ):
        assert typed(ending(command, [config])[1]) == ["inspect", "--dataset_name", str(out), "--skip_images"]
    arguments = ["inspect", "--dataset_name", str(rows), "--output_dir", str(tmp_path / "report"), "--disable_tqdm"]
    assert main(arguments) == 1
    assert "It holds videos, of which `inspect` looks at prompts and scores alone: set" in capsys.readouterr().err
    assert main([*arguments, "--skip_images"]) == 0
