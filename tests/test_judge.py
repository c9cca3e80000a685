"""`tgo-trl judge`: verdicts by hand, in either order, with a server that fails; killed, and resumed."""

import io
import json
import math
import signal
import threading

import datasets
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image
from sklearn.metrics import cohen_kappa_score

from tgo_trl.cli import main
from tgo_trl.commands.judge import asking
from tgo_trl.commands.judge.config import JudgeConfig
from tgo_trl.commands.judge.plots import plot_judgement
from tgo_trl.commands.judge.questions import is_swapped
from tgo_trl.commands.judge.run import judge
from tgo_trl.measures import agreement, cohens_kappa
from tgo_trl.rewards.chat import EndpointError, RequestFailedError
from tgo_trl.storage.fingerprints import fingerprint, task_of

from .chat_server import SECRET, Reply, brighter, connect, serving
from .killing import Death, run

OURS = {("a cat", 0): 90, ("a cat", 1): 90, ("a dog", 0): 90, ("a dog", 1): 50}
BASE = {("a cat", 0): 70, ("a cat", 1): 90, ("a dog", 0): 60, ("a dog", 1): 70}
"""Brightness of images. Ours against the base, by `brighter`: win, tie; win, loss."""


@pytest.fixture(autouse=True)
def connected(monkeypatch, tmp_path_factory):
    connect(monkeypatch)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def png(value, size=8):
    file = io.BytesIO()
    Image.new("L", (size, size), value).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def write(folder, name, images, features=(), **columns):
    """A data set of images by prompt and sample, as `generate` writes them, with more columns."""
    rows = {
        "prompt": [prompt for prompt, _ in images],
        "image": [value if isinstance(value, dict) else png(value) for value in images.values()],
        "sample_index": [sample for _, sample in images],
    }
    kinds = {"prompt": Value("string"), "image": ImageFeature(), "sample_index": Value("int64")}
    kinds |= {column: Value("string") for column in columns} | dict(features)
    rows = {column: values for column, values in {**rows, **columns}.items() if values is not None}
    dataset = Dataset.from_dict(rows, features=Features({column: kinds[column] for column in rows}))
    (folder / name).mkdir(parents=True, exist_ok=True)
    dataset.to_parquet(folder / name / "train.parquet")
    return str(folder / name)


@pytest.fixture
def models(tmp_path):
    return [write(tmp_path, "ours", OURS), write(tmp_path, "base", BASE)]


def config(endpoint, models, out, **settings):
    defaults = {"max_retries": 2, "disable_tqdm": True, "timeout": 5.0}
    return JudgeConfig(getattr(endpoint, "url", endpoint), "seer", models, str(out), **{**defaults, **settings})


def rows_of(out):
    return [json.loads(line) for line in (out / "verdicts.jsonl").read_text().splitlines()]


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---- Verdicts ----


def test_wins_ties_and_losses_are_those_worked_by_hand(models, tmp_path, capsys):
    out = tmp_path / "out"
    with serving() as endpoint:
        report = judge(config(endpoint, models, out, price_per_million_prompt_tokens=5.0))
    (pair,) = report.pairs
    assert (pair.first, pair.second, pair.num_comparisons, pair.num_prompts) == ("ours", "base", 4, 2)
    assert (pair.num_wins, pair.num_ties, pair.num_losses) == (2, 1, 1)
    assert [share.value for share in (pair.wins, pair.ties, pair.losses)] == [0.5, 0.25, 0.25]
    assert pair.win_rate.value == (2 + 0.5) / 4
    # of the cats, ours wins 1.5 of 2, of the dogs 1 of 2; drawn anew, both prompts may be the one or the other
    assert pair.win_rate.interval == (0.5, 0.75)
    assert pair.num_missing == dict.fromkeys(("unreadable", "cut", "refused", "failed"), 0)
    assert (report.prompt_tokens, report.completion_tokens, report.cost) == (400, 40, 400 * 5 / 1e6)
    assert (report.judge, report.order, report.inconsistent) == ("seer", "random", None)
    assert [row["winner"] for row in rows_of(out)] == ["ours", "tie", "ours", "base"]
    assert rows_of(out)[3]["prompt"] == "a dog"

    record = json.loads((out / "judge.json").read_text())
    assert record["is_complete"] is True
    assert record["pairs"][0]["win_rate"]["value"] == 0.625
    assert record["settings"]["datasets"] == ["ours", "base"]
    assert (record["host"], record["hosts"]) == (endpoint.url[7:-3], {endpoint.url[7:-3]: 4})
    assert "| ours | base | 50.0 % [50.0, 50.0] | 25.0 %" in (out / "judge.md").read_text()
    printed = capsys.readouterr()
    assert "With fewer than 20 prompts" in " ".join(printed.out.split())
    assert f"4 questions: prompts and images are sent to {endpoint.url[7:-3]}, to be judged by seer." in printed.err
    assert Image.open(out / "judge.png").width > 1000
    assert SECRET.encode() not in b"".join(files(out).values())


def test_images_are_shown_in_the_order_that_seed_prompt_and_sample_give(models, tmp_path):
    with serving() as endpoint:
        judge(config(endpoint, models, tmp_path / "out", seed=3, max_concurrent=1))
    for asked, (prompt, sample) in zip(endpoint.questions, OURS, strict=True):
        shown = [image.convert("L").getpixel((0, 0)) for image in asked.images]
        expected = [OURS[prompt, sample], BASE[prompt, sample]]
        assert shown == (expected[::-1] if is_swapped(3, prompt, sample) else expected)
        assert (asked.prompt, asked.texts[1:]) == (prompt, ["First image:", "Second image:"])
    shown_first = [row["replies"][0]["shown_first"] for row in rows_of(tmp_path / "out")]
    assert shown_first == ["base" if is_swapped(3, *key) else "ours" for key in OURS]
    half = sum(is_swapped(0, f"prompt {i}", i % 4) for i in range(1000))
    assert abs(half - 500) < 3 * math.sqrt(250)
    assert is_swapped(0, "a", 0) is is_swapped(0, "a", 0)
    assert len({tuple(is_swapped(seed, str(i), 0) for i in range(64)) for seed in range(5)}) == 5


def test_in_both_orders_only_who_wins_twice_wins(models, tmp_path):
    def first_but_for_dogs(asked):
        """Sees nothing in cats, and always takes the first; dogs are judged rightly."""
        return brighter(asked) if asked.is_check or "dog" in asked.prompt else Reply('{"winner": "first"}')

    with serving(first_but_for_dogs) as endpoint:
        report = judge(config(endpoint, models, tmp_path / "out", order="both"))
    assert len(endpoint.questions) == 7  # one pair is of the same image, whose two orders are one question
    (pair,) = report.pairs
    assert (pair.num_wins, pair.num_ties, pair.num_losses, pair.num_inconsistent) == (1, 2, 1, 2)
    assert report.inconsistent.value == 0.5
    assert report.shown_first.value == (4 + 2) / 8  # all of the cats, half of the dogs
    rows = rows_of(tmp_path / "out")
    assert [row["is_inconsistent"] for row in rows] == [True, True, False, False]
    assert [reply["shown_first"] for reply in rows[0]["replies"]] == ["ours", "base"]
    page = (tmp_path / "out" / "judge.md").read_text()
    assert "50.0 % [0.0, 100.0] of the comparisons got different verdicts, and count as ties." in page


def test_a_judge_that_always_takes_the_first_is_seen_in_a_random_order_too(models, tmp_path):
    with serving(lambda asked: Reply('{"winner": "first"}')) as endpoint:
        report = judge(config(endpoint, models, tmp_path / "out"))
    assert report.shown_first.value == 1


def test_three_models_are_compared_with_the_first_or_all(models, tmp_path):
    third = write(tmp_path, "third", dict.fromkeys(OURS, 80))
    with serving() as endpoint:
        report = judge(config(endpoint, [*models, third], tmp_path / "out"))
        assert [(pair.first, pair.second) for pair in report.pairs] == [("ours", "base"), ("ours", "third")]
        assert (report.pairs[1].num_wins, report.pairs[1].num_losses) == (3, 1)
        assert len(endpoint.questions) == 8
        report = judge(config(endpoint, [*models, third], tmp_path / "out", compare="all"))
        assert [(pair.first, pair.second) for pair in report.pairs][2] == ("base", "third")
        # what was there is not asked again, nor are the same two images
        assert len(endpoint.questions) == 11


def test_categories_are_reported_each(tmp_path):
    kinds = {"kind": [0, 0, 1, 1]}
    ours = write(tmp_path, "ours", OURS, {"kind": ClassLabel(names=["feline", "canine"])}, **kinds)
    with serving() as endpoint:
        settings = {"category_column": "kind"}
        report = judge(config(endpoint, [ours, write(tmp_path, "base", BASE)], tmp_path / "out", **settings))
    categories = report.pairs[0].categories
    assert list(categories) == ["feline", "canine"]
    assert [result.win_rate.value for result in categories.values()] == [0.75, 0.5]
    assert categories["feline"].win_rate.interval is None  # of one prompt
    assert "| feline | 50.0 % | 50.0 % | 0.0 % | 75.0 % | 2 | 1 |" in (tmp_path / "out" / "judge.md").read_text()
    assert (tmp_path / "out" / "categories.png").is_file()
    judge(config(endpoint, [ours, str(tmp_path / "base")], tmp_path / "out"))
    assert not (tmp_path / "out" / "categories.png").exists()  # now that none are asked for


def test_a_report_on_other_questions_is_not_left_while_new_ones_are_asked(models, tmp_path):
    out = tmp_path / "out"
    with serving() as endpoint:
        judge(config(endpoint, models, out))
    mute = serving(lambda asked: Reply("white") if asked.is_check else Reply("", status=503))
    with mute as endpoint, pytest.raises((EndpointError, ValueError)):
        judge(config(endpoint, models, out, criteria="Which is greener?", max_retries=0))
    assert {path.name for path in out.iterdir() if path.name[0] not in "._"} == {"judge.json", "answers.jsonl"}
    assert json.loads((out / "judge.json").read_text())["is_complete"] is False


def test_only_so_many_prompts_and_samples_are_judged(models, tmp_path):
    with serving() as endpoint:
        judge(config(endpoint, models, tmp_path / "out", max_prompts=1, max_samples_per_prompt=1))
        assert [asked.prompt for asked in endpoint.questions] == ["a cat"]
        judge(config(endpoint, models, tmp_path / "out", max_prompts=1))
        assert [asked.prompt for asked in endpoint.questions] == ["a cat"] * 2


def test_data_sets_without_indices_have_their_samples_in_order(models, tmp_path):
    no_index = write(tmp_path, "folder", BASE, sample_index=None)
    with serving() as endpoint:
        judge(config(endpoint, [models[0], no_index], tmp_path / "out"))
    assert [row["winner"] for row in rows_of(tmp_path / "out")] == ["ours", "tie", "ours", "folder"]


# ---- Answers that say nothing, and servers that fail ----


def test_what_has_no_verdict_is_counted_and_left_out(models, tmp_path):
    replies = {
        ("a cat", 90): Reply("I would rather not say which is the first and which the second."),
        ("a cat", 70): Reply('{"reason": "so dark", "winner": "fir', finish_reason="length"),
        ("a dog", 50): Reply("not this one", status=400),
    }

    def behave(asked):
        if asked.is_check:
            return Reply("white")
        darker = min(image.convert("L").getpixel((0, 0)) for image in asked.images)
        return replies.get((asked.prompt, darker)) or brighter(asked)

    with serving(behave) as endpoint:
        report = judge(config(endpoint, models, tmp_path / "out"))
        assert report.pairs[0].num_missing == {"unreadable": 1, "cut": 1, "refused": 1, "failed": 0}
        assert (report.pairs[0].num_comparisons, report.pairs[0].num_wins) == (1, 1)
        assert [row["missing"] for row in rows_of(tmp_path / "out")] == ["cut", "unreadable", None, "refused"]
        page = (tmp_path / "out" / "judge.md").read_text()
        assert "1 where the reply has no one verdict, 1 where it ended before one, for want of `max_tokens`, 1" in page
        judge(config(endpoint, models, tmp_path / "out"))
        assert len(endpoint.questions) == 4  # paid for, and not asked again


def test_requests_that_failed_are_told_and_asked_again(models, tmp_path, capsys):
    is_mended = threading.Event()

    def behave(asked):
        if not asked.is_check and "dog" in asked.prompt and not is_mended.is_set():
            return Reply("the dog house is on fire", status=503)
        return brighter(asked)

    out = tmp_path / "out"
    with serving() as endpoint:
        judge(config(endpoint, models, tmp_path / "whole"))
    with serving(behave) as endpoint:
        arguments = ["judge", "--datasets", *models, "--output_dir", str(out), "--model", "seer", "--disable_tqdm",
                     "--max_retries", "1", "--base_url", endpoint.url]  # fmt: skip
        assert main(arguments) == 1
        assert "error: 2 of 4 comparisons got no answer from 127.0.0.1" in capsys.readouterr().err
        assert json.loads((out / "judge.json").read_text())["is_complete"] is False
        assert [row["missing"] for row in rows_of(out)] == [None, None, "failed", "failed"]
        is_mended.set()
        asked_before = len(endpoint.questions)
        assert main(arguments) == 0
        assert len(endpoint.questions) == asked_before + 2
    same = ("verdicts.jsonl", "judge.md", "judge.png")
    assert [files(out)[name] for name in same] == [files(tmp_path / "whole")[name] for name in same]
    texts = [(folder / "answers.jsonl").read_text() for folder in (out, tmp_path / "whole")]
    answers, others = ([{**json.loads(line), "host": ""} for line in text.splitlines()] for text in texts)
    assert answers == others


def many(tmp_path, count):
    keys = [(f"prompt {i}", 0) for i in range(count)]
    return [
        write(tmp_path, "one", {key: i % 200 for i, key in enumerate(keys)}),
        write(tmp_path, "two", {key: 3 * i % 200 for i, key in enumerate(keys)}),
    ]


def test_a_server_that_is_gone_is_not_asked_to_the_end(tmp_path):
    def dying(asked):
        return brighter(asked) if asked.is_check else Reply("gone", status=500)

    with serving(dying) as endpoint:
        with pytest.raises(RequestFailedError, match="500, gone"):
            judge(config(endpoint, many(tmp_path, 60), tmp_path / "out", max_concurrent=2, max_retries=1))
        assert len(endpoint.questions) <= 2 * (asking.MOST_FAILED + 4)
    assert not (tmp_path / "out" / "verdicts.jsonl").exists()


def test_answers_without_any_verdict_are_not_paid_for_to_the_end(tmp_path):
    with serving(lambda asked: Reply("Both are lovely!", finish_reason="length")) as endpoint:
        with pytest.raises(ValueError, match=r"None of the first 20 answers has a verdict.*lovely!.*`max_tokens`"):
            judge(config(endpoint, many(tmp_path, 60), tmp_path / "out", max_concurrent=2))
        assert len(endpoint.questions) <= asking.MOST_UNREADABLE + 4
        with pytest.raises(ValueError, match=r"There is no verdict on 'one' against 'two'.*Both are lovely!"):
            judge(config(endpoint, many(tmp_path, 3), tmp_path / "few"))


def test_a_key_that_expires_ends_the_run_and_what_was_paid_for_is_kept(tmp_path):
    def behave(asked):
        return Reply(f"{SECRET} has expired", status=401) if len(endpoint.questions) > 6 else brighter(asked)

    models, out = many(tmp_path, 30), tmp_path / "out"
    expired = pytest.raises(EndpointError, match=r"401, \*\*\* has expired.*OPENAI_API_KEY")
    with serving(behave) as endpoint, expired:
        judge(config(endpoint, models, out, max_concurrent=1))
    assert len((out / "answers.jsonl").read_text().splitlines()) == 6
    with serving() as endpoint:
        judge(config(endpoint, models, out))
        assert len(endpoint.questions) == 24


def test_before_anything_is_read_the_server_is_asked(tmp_path, capsys):
    arguments = ["judge", "--datasets", "no/such", "no/other", "--output_dir", str(tmp_path / "out"), "--model", "x"]
    assert main([*arguments, "--base_url", "http://127.0.0.1:9/v1"]) == 1
    printed = capsys.readouterr().err
    assert "error: 127.0.0.1:9 does not answer: ConnectError" in printed
    assert len(printed.splitlines()) == 1
    with serving(lambda asked: Reply("no", status=401)) as endpoint:
        assert main([*arguments, "--base_url", endpoint.url]) == 1
    assert "OPENAI_API_KEY" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_finished_folder_reports_again_without_a_server(models, tmp_path):
    with serving() as endpoint:
        judge(config(endpoint, models, tmp_path / "out"))
        before = files(tmp_path / "out")
    report = judge(config(endpoint.url, models, tmp_path / "out"))  # which is gone
    assert report.pairs[0].num_wins == 2
    assert files(tmp_path / "out") == before


def test_answers_of_another_server_are_told(models, tmp_path):
    out = tmp_path / "out"
    with serving() as first:
        judge(config(first, models, out, max_prompts=1))
    with serving() as second:
        report = judge(config(second, models, out))
        assert len(second.questions) == 2
    hosts = [endpoint.url[7:-3] for endpoint in (first, second)]
    assert (report.host, report.hosts) == (hosts[1], dict.fromkeys(sorted(hosts), 2))
    said = f"Of the answers, 2 from {hosts[0]}, which an earlier run asked, are taken to be of the same seer."
    assert said in (out / "judge.md").read_text()


def test_other_questions_are_asked_anew(models, tmp_path):
    with serving() as endpoint:
        for count, settings in ((4, {}), (8, {"criteria": "Which is greener?"}), (8, {}), (12, {"max_image_side": 99})):
            judge(config(endpoint, models, tmp_path / "out", **settings))
            assert len(endpoint.questions) == count
        write(tmp_path, "base", {**BASE, ("a dog", 0): 61})
        judge(config(endpoint, models, tmp_path / "out"))
        assert len(endpoint.questions) == 13
    assert "Which is greener?" in endpoint.questions[4].system


# ---- Killed, interrupted ----


def test_an_interrupt_keeps_what_is_on_its_way(tmp_path, monkeypatch):
    models, out = many(tmp_path, 30), tmp_path / "out"
    add, seen = asking.AnswerLog.add, []

    def interrupted(log, question, answer):
        add(log, question, answer)
        seen.append(question)
        if len(seen) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(asking.AnswerLog, "add", interrupted)
    with serving() as endpoint:
        with pytest.raises(KeyboardInterrupt):
            judge(config(endpoint, models, out, max_concurrent=3))
        assert len((out / "answers.jsonl").read_text().splitlines()) == len(endpoint.questions)
        judge(config(endpoint, models, out))
        assert len(endpoint.questions) == 30


def test_a_torn_line_is_asked_again(models, tmp_path, caplog):
    out = tmp_path / "out"
    with serving() as endpoint:
        judge(config(endpoint, models, out))
        whole = files(out)
        lines = whole["answers.jsonl"].splitlines(keepends=True)
        (out / "answers.jsonl").write_bytes(b"".join(lines[:2]) + b'{"key": 7}\n\xff\n' + lines[2] + lines[3][:50])
        (out / "judge.json").write_text('{"settings": {}}')
        judge(config(endpoint, models, out))
        assert len(endpoint.questions) == 5
    assert "3 lines of " in caplog.text
    assert files(out) == whole


def test_a_run_that_was_killed_after_its_last_answer_ends_as_any_other(models, tmp_path):
    out = tmp_path / "out"
    with serving() as endpoint:
        judge(config(endpoint, models, out))
        whole = files(out)
        lines = whole["answers.jsonl"].splitlines(keepends=True)
        (out / "answers.jsonl").write_bytes(b"".join(reversed(lines)))  # as they came
        (out / "judge.json").write_text('{"settings": {}, "is_complete": false}')
        judge(config(endpoint, models, out))
        assert len(endpoint.questions) == 4
    assert files(out) == whole


def judging(models, out, endpoint):
    return ["judge", "--datasets", *models, "--output_dir", str(out), "--base_url", endpoint.url, "--model", "seer",
            "--disable_tqdm", "--max_concurrent", "2"]  # fmt: skip


def kill(tmp_path, endpoint, deaths):
    """All files of a run that was killed so often, and how many questions were asked."""
    models, place = many(tmp_path, 12), tmp_path / f"killed {deaths[0]}"
    before = len(endpoint.questions)
    for death in (*deaths, Death()):
        status, _ = run(judging(models, place / "out", endpoint), place, [place / "out"], death, endpoint.url)
        assert status == (-signal.SIGKILL if death.at else 0), (place / "log.txt").read_text()[-2000:]
    return files(place / "out"), len(endpoint.questions) - before


def undisturbed(tmp_path, endpoint):
    """All files of a run, and the number of its file operations."""
    place = tmp_path / "whole"
    status, count = run(
        judging(many(tmp_path, 12), place / "out", endpoint), place, [place / "out"], None, endpoint.url
    )
    assert status == 0, (place / "log.txt").read_text()[-2000:]
    return files(place / "out"), count


@pytest.mark.slow
def test_a_killed_run_ends_as_if_it_had_not_been(tmp_path):
    with serving() as endpoint:
        whole, num_operations = undisturbed(tmp_path, endpoint)
        assert num_operations > 12 * 2
        result, num_asked = kill(tmp_path, endpoint, [Death(16), Death(12, is_torn=True)])
    assert result == whole
    assert num_asked < 2 * 12


@pytest.mark.long
def test_a_run_may_be_killed_anywhere(tmp_path):
    with serving() as endpoint:
        whole, num_operations = undisturbed(tmp_path, endpoint)
        for at in range(1, num_operations + 1):
            for is_torn in (False, True):
                result, _ = kill(tmp_path, endpoint, [Death(at, is_torn)])
                assert result == whole, (at, is_torn)


# ---- Data that cannot be compared ----


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (
            {key: value for key, value in BASE.items() if key != ("a dog", 1)},
            "'base' lacks 1 of the 4 images that 'ours' has: the first is of prompt 'a dog', sample 1. Draw the same",
        ),
        ({**BASE, ("a cow", 0): 5}, "'ours' lacks 1 of the 5 images that 'base' has.*'a cow', sample 0"),
        ({**BASE, (" ", 0): 5}, "Row 4 of 'base', column 'prompt': the prompt is empty"),
        ({**BASE, ("a dog", 1): {"bytes": b"no image", "path": None}}, "prompt 'a dog', sample 1.*cannot be read"),
    ],
)
def test_what_cannot_be_compared_is_named(base, message, tmp_path):
    models = [write(tmp_path, "ours", OURS), write(tmp_path, "base", base)]
    with serving() as endpoint, pytest.raises(ValueError, match=message):
        judge(config(endpoint, models, tmp_path / "out"))


def test_a_cell_of_several_images_is_no_image(tmp_path):
    """Which of them would be compared, nobody has said."""
    cells = [[png(value), png(value + 1)] for value in OURS.values()]
    several = write(tmp_path, "several", OURS, {"image": [ImageFeature()]}, image=cells)
    models = [several, write(tmp_path, "base", BASE)]
    with serving() as endpoint:
        with pytest.raises(ValueError, match=r"Row 0 of 'several', column 'image': an image must be .* not `list`"):
            judge(config(endpoint, models, tmp_path / "out"))
        assert not [asked for asked in endpoint.questions if not asked.is_check]


def test_columns_that_are_missing_or_repeat_themselves_are_named(models, tmp_path):
    twice = write(tmp_path, "twice", BASE, {"sample_index": Value("int64")}, sample_index=[0, 1, 0, 0])
    wrong = write(tmp_path, "wrong", BASE, {"sample_index": Value("float64")}, sample_index=[0.5, 1, 0, 1])
    with serving() as endpoint:
        for others, settings, message in (
            ([twice], {}, "'twice' has sample 0 of prompt 'a dog' twice, in rows 2 and 3"),
            ([wrong], {}, "Row 0 of 'wrong', column 'sample_index': a sample's index is a whole number, not 0.5"),
            (models[1:], {"image_column": "picture"}, "data set of 'ours' has no column 'picture'"),
            (models[1:], {"category_column": "kind"}, "no column 'kind'.*or `category_column`"),
        ):
            with pytest.raises(ValueError, match=message):
                judge(config(endpoint, [models[0], *others], tmp_path / "out", **settings))
        kinds = write(tmp_path, "kinds", OURS, kind=["a", "b", "c", "c"])
        with pytest.raises(ValueError, match="Row 1 of 'kinds', column 'kind': the prompt is of 'a' in another row"):
            judge(config(endpoint, [kinds, models[1]], tmp_path / "out", category_column="kind"))
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.txt").write_text("precious")
        with pytest.raises(ValueError, match=r"holds 'thesis.txt' and no judge.json"):
            judge(config(endpoint, models, tmp_path / "mine"))
        assert not endpoint.questions


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"datasets": ["one"]}, "`datasets` has 1; name two or more"),
        ({"datasets": ["a/x", "b/x"], "names": ["x", "x"]}, "Two of `datasets` are called 'x'. Set `names`"),
        ({"names": ["one"]}, "`names` has 1 for 2"),
        ({"names": ["one", "Tie"]}, "cannot be called 'Tie'"),
        ({"order": "reversed"}, "`order` is 'reversed'"),
        ({"compare": "none"}, "`compare` is 'none'"),
        ({"max_prompts": 0}, "`max_prompts` is 0"),
        ({"price_per_million_prompt_tokens": -1.0}, "`price_per_million_prompt_tokens` is -1.0"),
        ({"criteria": "missing.txt"}, "`criteria` is 'missing.txt', and there is no such file"),
        ({"criteria": ""}, "`criteria` is empty"),
    ],
)
def test_settings_that_cannot_work_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        JudgeConfig("http://x/v1", "seer", **{"datasets": ["one", "two"], "output_dir": "out", **settings})


# ---- Agreement ----


def test_agreement_with_people_is_that_worked_by_hand(models, tmp_path):
    # The judge says ours, tie, ours, base. Two people look at the first cat, and none at the last dog.
    (tmp_path / "people.csv").write_text(
        "prompt,sample_index,winner\na cat,0,ours\na cat,0,base\na cat,1,tie\na dog,0,tie\na dog,1,\na cow,0,ours\n"
    )
    with serving() as endpoint:
        report = judge(config(endpoint, models, tmp_path / "out", agreement_with=[str(tmp_path / "people.csv")]))
    (found,) = report.agreements
    assert (found.name, found.num_verdicts, found.num_unmatched, found.share) == ("people.csv", 4, 1, 0.5)
    # judge: 3 ours, 1 tie; people: 1 ours, 2 ties, 1 base: by chance 3/4 1/4 + 1/4 2/4 = 5/16
    assert found.kappa == pytest.approx((1 / 2 - 5 / 16) / (1 - 5 / 16))
    assert found.confusion == [[1, 1, 1], [0, 1, 0], [0, 0, 0]]
    page = (tmp_path / "out" / "judge.md").read_text()
    assert "Of 4 verdicts of people.csv, 50.0 % are the same, Cohen's kappa 0.27; 1 more are on nothing here." in page
    assert "| **first** | 1 | 1 | 1 |" in page


def test_a_second_judge_is_read_from_its_folder_whatever_the_order_of_the_models(models, tmp_path):
    with serving() as endpoint:
        judge(config(endpoint, models, tmp_path / "one"))
        settings = {"names": ["ours", "base"], "agreement_with": [str(tmp_path / "one")]}
        same = judge(config(endpoint, models, tmp_path / "two", **settings)).agreements[0]
        turned = {"agreement_with": str(tmp_path / "one")}
        other = judge(config(endpoint, models[::-1], tmp_path / "three", **turned)).agreements[0]
    assert (same.name, same.share, same.kappa) == ("one", 1.0, 1.0)
    assert (other.share, other.num_verdicts, other.confusion) == (1.0, 4, [[1, 0, 0], [0, 1, 0], [0, 0, 2]])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("prompt,sample_index\na cat,0\n", "`agreement_with` 'people.csv' has no column 'winner'"),
        ("prompt,winner\na cat,ours\n", "no column 'sample_index', and prompts have several"),
        ("prompt,sample_index,winner\na cat,0,theirs\n", "Row 0 .*winner 'theirs'; it must be 'ours', 'base' or 'tie'"),
        ("prompt,sample_index,first,winner\na cat,0,base,base\n", "has no column 'second'"),
        ("prompt,sample_index,first,second,winner\na cat,0,ours,other,tie\n", "Row 0 .*names the model 'other'"),
        ("prompt,sample_index,winner\na cow,0,ours\n", "None of the 1 verdicts in 'people.csv'"),
    ],
)
def test_verdicts_of_others_that_cannot_be_are_named_before_anything_is_asked(table, message, models, tmp_path):
    (tmp_path / "people.csv").write_text(table)
    with serving() as endpoint:
        with pytest.raises(ValueError, match=message):
            judge(config(endpoint, models, tmp_path / "out", agreement_with=[str(tmp_path / "people.csv")]))
        assert not endpoint.questions


def test_kappa_is_that_of_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(3, (200,), generator=generator)
    second = torch.where(
        torch.rand(200, generator=generator) < 0.6, first, torch.randint(3, (200,), generator=generator)
    )
    ours = cohens_kappa(first.tolist(), second.tolist())
    assert ours == pytest.approx(cohen_kappa_score(first.numpy(), second.numpy()), abs=1e-12)
    assert cohens_kappa(["a", "b"], ["a", "b"]) == 1
    assert cohens_kappa(["a", "b"], ["b", "a"]) == -1
    assert cohens_kappa(["a", "a"], ["a", "a"]) is None
    assert agreement(["a", "b", "c", "c"], ["a", "c", "c", "c"]) == 0.75
    with pytest.raises(ValueError, match="2 and 1 verdicts"):
        agreement(["a", "b"], ["a"])


# ---- Pictures ----


def test_a_picture_has_a_bar_for_each_opponent(tmp_path):
    names = ["a model whose name is much longer than any picture has room for", "$x_1", "$\\frac$ | b"]
    third = [write(tmp_path, name, images) for name, images in (("x", OURS), ("y", BASE), ("z", OURS))]
    with serving() as endpoint:
        report = judge(config(endpoint, third, tmp_path / "out", names=names, compare="all"))
    assert plot_judgement(report, tmp_path / "pictures") == ["judge.png"]
    sizes = [Image.open(folder / "judge.png").size for folder in (tmp_path / "out", tmp_path / "pictures")]
    assert sizes[0] == sizes[1]


# ---- Edits ----

EDITS = {("brighten", "dark", 0): 90, ("brighten", "light", 0): 60, ("darken", "dark", 0): 50}
OF_BASE = {("brighten", "dark", 0): 70, ("brighten", "light", 0): 80, ("darken", "dark", 0): 50}
"""Brightness of edits, by prompt, source and sample: ours wins, loses, ties; the same prompt has two sources."""
SOURCES = {"dark": 10, "light": 30}


def write_edits(folder, name, images, sources=SOURCES):
    kinds = {"prompt": Value("string"), "source_image": ImageFeature(), "image": ImageFeature()}
    rows = {
        "prompt": [prompt for prompt, *_ in images],
        "source_image": [png(sources[source]) for _, source, _ in images],
        "image": [png(value) for value in images.values()],
        "sample_index": [sample for *_, sample in images],
    }
    dataset = Dataset.from_dict(rows, features=Features({**kinds, "sample_index": Value("int64")}))
    (folder / name).mkdir(parents=True, exist_ok=True)
    dataset.to_parquet(folder / name / "train.parquet")
    return str(folder / name)


def brighter_edit(asked):
    """As `brighter`, of the two images after the source."""
    if asked.is_check:
        return Reply("white")
    first, second = (image.convert("L").getpixel((0, 0)) for image in asked.images[1:])
    return Reply(json.dumps({"winner": "tie" if first == second else "first" if first > second else "second"}))


@pytest.mark.parametrize("order", ["random", "both"])
def test_edits_are_judged_beside_what_they_were_made_from(tmp_path, order):
    models = [write_edits(tmp_path, "ours", EDITS), write_edits(tmp_path, "base", OF_BASE)]
    out = tmp_path / "out"
    with serving(brighter_edit) as endpoint:
        report = judge(config(endpoint, models, out, order=order, seed=3, max_concurrent=1))
        again = judge(config(endpoint, models, out, order=order, seed=3))
    assert again == report
    (pair,) = report.pairs
    assert (pair.num_wins, pair.num_ties, pair.num_losses) == (1, 1, 1)
    assert (pair.num_comparisons, pair.num_prompts) == (3, 3)  # the same words for two images are two
    digests = {name: fingerprint(png(value)["bytes"]) for name, value in SOURCES.items()}
    expected = []
    for prompt, source, sample in EDITS:
        ours, base = EDITS[prompt, source, sample], OF_BASE[prompt, source, sample]
        swapped = is_swapped(3, task_of(prompt, [digests[source]]), sample)
        orders = [(ours, base), (base, ours)] if order == "both" else [(base, ours) if swapped else (ours, base)]
        orders = orders[:1] if ours == base else orders  # of the same image, the two are one question
        expected += [(prompt, [SOURCES[source], *shown]) for shown in orders]
    asked = [(it.prompt, [image.convert("L").getpixel((0, 0)) for image in it.images]) for it in endpoint.questions]
    assert asked == expected
    question = endpoint.questions[0]
    assert question.texts[1:] == ["Before the edit:", "First image:", "Second image:"]
    kinds = [part["type"] for part in question.parts]
    assert kinds == ["text", "text", "image_url", "text", "image_url", "text", "image_url"]
    assert "You compare two edits of the same image" in question.system
    assert "is all of the edit done" in question.system
    rows = rows_of(out)
    assert [row["winner"] for row in rows] == ["ours", "base", "tie"]
    assert [row["sources"] for row in rows] == [[digests[source]] for _, source, _ in EDITS]


def test_verdicts_on_edits_are_matched_by_what_they_were_made_from(tmp_path):
    models = [write_edits(tmp_path, "ours", EDITS), write_edits(tmp_path, "base", OF_BASE)]
    for name, value in SOURCES.items():
        (tmp_path / f"{name}.png").write_bytes(png(value)["bytes"])
    people = tmp_path / "people.jsonl"
    given = [("brighten", "dark", "ours"), ("brighten", "light", "ours"), ("darken", "dark", "tie")]
    rows = [{"prompt": prompt, "source_image": f"{name}.png", "winner": winner} for prompt, name, winner in given]
    people.write_text("\n".join(map(json.dumps, rows)))
    with serving(brighter_edit) as endpoint:
        report = judge(config(endpoint, models, tmp_path / "out", agreement_with=[str(people)]))
        judged = {"agreement_with": [str(tmp_path / "out")]}
        same = judge(config(endpoint, models, tmp_path / "again", **judged))
        people.write_text(json.dumps({"prompt": "brighten", "winner": "ours"}))
        with pytest.raises(ValueError, match="has no column of what images were made from, and prompts have several"):
            judge(config(endpoint, models, tmp_path / "other", agreement_with=[str(people)]))
    (agreed,) = report.agreements
    assert agreed.confusion == [[1, 0, 0], [0, 1, 0], [1, 0, 0]]  # only the second is another
    assert same.agreements[0].confusion == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]


def test_a_column_of_peoples_verdicts_is_of_sources_only_if_it_is_named_so(models, tmp_path):
    """`sources` holds digests in another judge's folder; in a table, files if it is `source_column`, else anything."""
    edits = [write_edits(tmp_path, "mine", EDITS), write_edits(tmp_path, "theirs", OF_BASE)]
    renamed = [Dataset.from_parquet(f"{it}/train.parquet").rename_column("source_image", "sources") for it in edits]
    for folder, dataset in zip(edits, renamed, strict=True):
        dataset.to_parquet(f"{folder}/train.parquet")
    (tmp_path / "light.png").write_bytes(png(SOURCES["light"])["bytes"])
    people = tmp_path / "people.jsonl"
    people.write_text(json.dumps({"prompt": "brighten", "sources": ["light.png"], "winner": "theirs"}))
    given = {"agreement_with": [str(people)]}
    with serving(brighter_edit) as endpoint:
        report = judge(config(endpoint, edits, tmp_path / "out", source_column="sources", **given))
    assert report.agreements[0].confusion == [[0, 0, 0], [0, 0, 0], [0, 0, 1]]
    people.write_text(json.dumps({"prompt": "a cat", "sample_index": 0, "sources": ["a friend"], "winner": "ours"}))
    with serving() as endpoint:
        report = judge(config(endpoint, models, tmp_path / "plain", **given))
    assert report.agreements[0].confusion == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_edits_of_other_images_are_no_comparison(tmp_path):
    ours = write_edits(tmp_path, "ours", EDITS)
    plain = write(tmp_path, "plain", {("brighten", 0): 90, ("darken", 0): 50})
    other = write_edits(tmp_path, "other", OF_BASE, {"dark": 10, "light": 31})
    for models, settings, message in (
        ([ours, plain], {}, "'ours' has a column 'source_image' of what .* and 'plain' has none"),
        ([ours, other], {}, "'other' lacks 1 of the 3 images .* Draw the same prompts for the same source images"),
        ([plain, ours], {"source_column": "before"}, "has no column 'before'.* Set `source_column`"),
    ):
        with serving() as endpoint, pytest.raises(ValueError, match=message):
            judge(config(endpoint, models, tmp_path / "out", **settings))
