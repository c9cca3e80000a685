"""Data sets that are pushed to a Hub on this machine: what arrives, what stays, and what the card says of both."""

import io
import json

import datasets
import pyarrow.parquet as pq
import pytest
import yaml
from datasets import Dataset, Features, Value, load_dataset
from huggingface_hub import DatasetCard
from safetensors.torch import load_file

from tgo_trl.cli import main
from tgo_trl.commands.convert.config import ConvertConfig
from tgo_trl.commands.convert.run import convert
from tgo_trl.commands.generate.config import GenerateConfig
from tgo_trl.commands.generate.run import generate
from tgo_trl.commands.score.config import ScoreConfig
from tgo_trl.commands.score.run import score
from tgo_trl.hub.dataset_upload import merge_cards
from tgo_trl.hub.repositories import UploadError

from . import tiny
from .hub_server import READ_TOKEN

REWARD = """
def length(prompts, images):
    return [float(len(prompt)) for prompt in prompts]
"""
PUSHED = {"push_to_hub": True, "hub_dataset_id": "me/rows", "disable_tqdm": True}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def scored(folder, **settings):
    """Eight rows in shards of three, scored and pushed."""
    source = folder / "source"
    if not source.is_dir():
        source.mkdir(parents=True)
        tiny.scored_rows(8).remove_columns("score").to_parquet(source / "train.parquet")
        (folder / "rewards.py").write_text(REWARD)
    arguments = {"rows_per_shard": 3, **PUSHED, **settings}
    return score(ScoreConfig(str(source), str(folder / "scored"), [f"{folder / 'rewards.py'}:length"], **arguments))


def parquet(**columns):
    buffer = io.BytesIO()
    pq.write_table(Dataset.from_dict(columns).data.table, buffer)
    return buffer.getvalue()


def shard_names(repository):
    return sorted(name for name in repository.files if name.endswith(".parquet"))


def front(repository):
    return yaml.safe_load(repository.files["README.md"].decode().split("---\n")[1])


# ---- What arrives ----


def test_only_the_data_set_is_uploaded(tmp_path, hub):
    (tmp_path / "scored" / "data").mkdir(parents=True)
    for name in ("notes.txt", "data/.train-00000-of-00001.parquet.0123abcd", "token.json"):
        (tmp_path / "scored" / name).write_text("private")
    hub.tokens["hf_secret"] = "write"
    folder = scored(tmp_path, hub_private_repo=True, hub_token="hf_secret")
    repository = hub.dataset("me/rows")
    assert repository.private
    [commit] = repository.commits
    shards = {f"data/train-0000{i}-of-00003.parquet" for i in range(3)}
    assert commit.files.keys() == {"README.md", "scoring.json", *shards}
    assert all(commit.files[name] == (folder / name).read_bytes() for name in shards)
    assert 'load_dataset("me/rows", split="train")' in commit.files["README.md"].decode()
    for data in [*commit.files.values(), *(path.read_bytes() for path in folder.rglob("*") if path.is_file())]:
        assert b"hf_secret" not in data


def test_a_pushed_data_set_loads_from_the_hub(tmp_path, hub):
    scored(tmp_path)
    rows = load_dataset("me/rows", split="train")
    assert rows["score"] == [float(len(prompt)) for prompt in rows["prompt"]]
    assert rows.num_rows == 8
    streamed = load_dataset("me/rows", split="train", streaming=True)
    assert [row["score"] for row in streamed] == rows["score"][:]


def test_the_repository_is_named_after_the_folder(tmp_path, hub):
    scored(tmp_path, hub_dataset_id=None)
    assert len(hub.dataset("me/scored").commits) == 1


def test_every_command_pushes_what_it_wrote(tmp_path, hub):
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    arguments = {"num_images_per_prompt": 2, "num_inference_steps": 1, **PUSHED, "hub_dataset_id": "me/drawn"}
    config = GenerateConfig("owner/model", str(tmp_path / "prompts.txt"), str(tmp_path / "drawn"), **arguments)
    generate(config, tiny.stable_diffusion())
    assert load_dataset("me/drawn", split="train")["prompt"] == ["a cat", "a cat", "a dog", "a dog"]
    (tmp_path / "rewards.py").write_text(REWARD)
    rewards = [f"{tmp_path / 'rewards.py'}:length"]
    arguments = {**PUSHED, "hub_dataset_id": "me/scored"}
    score(ScoreConfig("me/drawn", str(tmp_path / "scored"), rewards, **arguments))  # from the Hub to the Hub
    assert load_dataset("me/scored", split="train")["score"] == [5.0] * 4
    rated = Dataset.from_dict({
        "prompt": ["a", "b"], "image": [tiny.scored_rows(1)["image"][0]] * 2, "rating": [1.0, 2.0],
    })  # fmt: skip
    rated.to_parquet(tmp_path / "rated.parquet")
    arguments = {**PUSHED, "hub_dataset_id": "me/converted"}
    convert(ConvertConfig(str(tmp_path / "rated.parquet"), str(tmp_path / "converted"), layout="ratings", **arguments))
    assert sorted(load_dataset("me/converted", split="train")["score"]) == [1.0, 2.0]
    assert [len(repository.commits) for repository in hub.repositories.values()] == [1, 1, 1]


def test_an_adapter_is_trained_on_a_pushed_data_set(tmp_path, hub):
    scored(tmp_path)
    tiny.stable_diffusion().save_pretrained(tmp_path / "model")
    settings = {
        "model_name_or_path": tmp_path / "model", "dataset_name": "me/rows", "output_dir": tmp_path / "out",
        "encoding_cache_dir": tmp_path / "encoded", "max_steps": 1, "use_cpu": True, "report_to": "none",
        "save_strategy": "no", "lora_r": 2, "disable_tqdm": True,
    }  # fmt: skip
    assert main(["train", *(str(part) for name, value in settings.items() for part in (f"--{name}", value))]) == 0
    assert len(load_file(tmp_path / "out" / "pytorch_lora_weights.safetensors")) == 64
    assert "https://huggingface.co/datasets/me/rows" in (tmp_path / "out" / "README.md").read_text()


# ---- What stays ----

KEPT = (
    "data/test-00000-of-00001.parquet", "data/train_small-00000-of-00001.parquet", "data/other.parquet",
    "data/train.extra-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet", "data/train.parquet",
    "data/train-notes.parquet", "data/nested/train-00000-of-00001.parquet",
    "extra/train-00000-of-00002.parquet", "train-00000-of-00001.parquet", "data/train-00000-of-00002.jsonl", "notes.md",
)  # fmt: skip
STALE = (
    "data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/train-00007.parquet",
    "data/train-123456-of-123457.parquet",
)  # fmt: skip


def test_only_stale_shards_of_the_same_split_are_deleted_and_in_the_same_commit(tmp_path, hub):
    there = {name: parquet(prompt=["old"]) for name in (*KEPT, *STALE)}
    hub.create("me/rows", "datasets").put(there)
    scored(tmp_path)
    theirs, ours = hub.dataset("me/rows").commits
    assert set(ours.deleted) == set(STALE)
    assert {name: ours.files[name] for name in KEPT} == {name: theirs.files[name] for name in KEPT}
    assert [name for name in ours.files if name.startswith("data/train-0000")] == [
        "data/train-00000-of-00002.jsonl", *(f"data/train-0000{i}-of-00003.parquet" for i in range(3)),
    ]  # fmt: skip


def test_a_push_in_other_shards_replaces_the_earlier_one(tmp_path, hub):
    scored(tmp_path / "one", rows_per_shard=3)
    scored(tmp_path / "two", rows_per_shard=8)
    assert shard_names(hub.dataset("me/rows")) == ["data/train-00000-of-00001.parquet"]
    assert load_dataset("me/rows", split="train").num_rows == 8
    scored(tmp_path / "one", rows_per_shard=3)  # the same again
    assert load_dataset("me/rows", split="train", revision=hub.dataset("me/rows").commits[-1].oid).num_rows == 8


def test_other_splits_that_datasets_pushed_are_kept_and_load(tmp_path, hub):
    folder = scored(tmp_path, push_to_hub=False, hub_dataset_id=None)
    local = load_dataset("parquet", data_files=str(folder / "data" / "*"))
    local["train"].select(range(2)).push_to_hub("me/rows", split="test")
    local["train"].select(range(3)).push_to_hub("me/rows", config_name="small", split="train")
    scored(tmp_path)
    repository = hub.dataset("me/rows")
    infos = {info["config_name"]: info for info in front(repository)["dataset_info"]}
    sizes = {split["name"]: split["num_examples"] for split in infos["default"]["splits"]}
    assert sizes == {"test": 2, "train": 8}
    assert infos["small"]["splits"][0]["num_examples"] == 3
    assert [load_dataset("me/rows", split=split).num_rows for split in ("train", "test")] == [8, 2]
    assert load_dataset("me/rows", "small", split="train").num_rows == 3
    assert {"tgo_trl", "reward"} <= set(front(repository)["tags"])


def test_our_own_splits_lie_side_by_side(tmp_path, hub):
    scored(tmp_path / "a")
    (tmp_path / "b" / "source").mkdir(parents=True)
    tiny.scored_rows(5, seed=1).remove_columns("score").to_parquet(tmp_path / "b" / "source" / "test.parquet")
    (tmp_path / "b" / "rewards.py").write_text(REWARD)
    scored(tmp_path / "b", dataset_split="test")
    assert {load_dataset("me/rows", split=split).num_rows for split in ("train", "test")} == {8, 5}
    card = front(hub.dataset("me/rows"))
    assert {split["name"]: split["num_examples"] for split in card["dataset_info"]["splits"]} == {"test": 5, "train": 8}
    assert "configs" not in card
    assert hub.dataset("me/rows").files["README.md"].decode().endswith("also holds other splits: train.\n")
    scored(tmp_path / "a")
    assert {load_dataset("me/rows", split=split).num_rows for split in ("train", "test")} == {8, 5}


def test_shards_that_no_card_describes_are_not_misdescribed(tmp_path, hub):
    hub.create("me/rows", "datasets").put({"data/test-00000-of-00001.parquet": parquet(prompt=["a"], other=[1])})
    scored(tmp_path)
    assert "dataset_info" not in front(hub.dataset("me/rows"))
    assert load_dataset("me/rows", data_files={"test": "data/test-*"}, split="test")["other"] == [1]


def test_a_split_with_other_columns_is_refused(tmp_path, hub):
    Dataset.from_dict({"prompt": ["a"], "rating": [1]}).push_to_hub("me/rows", split="test")
    before = len(hub.dataset("me/rows").commits)
    with pytest.raises(UploadError, match=r"the split 'test' with other columns \(different: image, rating, score\)"):
        scored(tmp_path)
    assert len(hub.dataset("me/rows").commits) == before
    assert (tmp_path / "scored" / "README.md").is_file()


# ---- The card ----


def card(text="8 images. Made with tgo_trl.", tags=("tgo_trl",), **fields):
    front = yaml.safe_dump({"tags": list(tags), **fields})
    return DatasetCard(f"---\n{front}---\n{text}\n")


def info(*splits, **columns):
    features = Features({name: Value(dtype) for name, dtype in (columns or {"prompt": "string"}).items()})
    sizes = [{"name": name, "num_bytes": 10, "num_examples": number} for name, number in splits]
    return {"features": features._to_yaml_list(), "splits": sizes, "download_size": 5, "dataset_size": 10}


def merged(ours, theirs, kept=()):
    once = merge_cards(ours, theirs, list(kept))
    assert str(merge_cards(ours, once, list(kept))) == str(once)
    return once.data.to_dict(), once.text


def test_a_card_that_others_wrote_keeps_its_text_and_fields():
    ours = card(license="mit", dataset_info=info(("train", 8)))
    theirs = card("My own words.", ["cats"], language=["de"], license="cc0-1.0", pretty_name="Cats")
    fields, text = merged(ours, theirs)
    assert text == "My own words.\n"
    assert fields["tags"] == ["cats", "tgo_trl"]
    assert (fields["language"], fields["pretty_name"], fields["license"]) == (["de"], "Cats", "mit")


def test_what_our_earlier_card_claimed_is_not_claimed_for_other_rows():
    ours = card(dataset_info=info(("train", 8)))
    fields, text = merged(
        ours, card("Before, by tgo_trl.", license="mit", language=["de"], dataset_info=info(("train", 3)))
    )
    assert "license" not in fields
    assert fields["language"] == ["de"]
    assert text == "8 images. Made with tgo_trl.\n"
    assert fields["dataset_info"]["splits"] == [{"name": "train", "num_bytes": 10, "num_examples": 8}]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ("data/*.csv", {"train": ["data/train-*"]}),
        ([{"split": "test", "path": "t/*"}], {"test": ["t/*"], "train": ["data/train-*"]}),
        ([{"split": "test", "path": ["t/*", "u/*"]}], {"test": ["t/*", "u/*"], "train": ["data/train-*"]}),
        ([{"split": "train", "path": "old/*"}], {"train": ["data/train-*"]}),
    ],
)
def test_files_that_a_card_lists_are_still_listed(files, expected):
    theirs = card(configs=[{"config_name": "default", "data_files": files}, {"config_name": "b", "data_files": "b/*"}])
    fields, _ = merged(card(dataset_info=info(("train", 8))), theirs)
    configs = {config["config_name"]: config["data_files"] for config in fields["configs"]}
    assert {entry["split"]: entry["path"] for entry in configs["default"]} == expected
    assert configs["b"] == "b/*"


def test_a_size_is_that_of_all_splits():
    theirs = card(dataset_info=info(("test", 5000)))
    fields, text = merged(card(dataset_info=info(("train", 8))), theirs)
    assert fields["size_categories"] == "1K<n<10K"
    assert fields["dataset_info"]["dataset_size"] == 20
    assert "download_size" not in fields["dataset_info"]
    assert "other splits: test" in text


# ---- Faults ----


def test_nothing_is_scored_for_a_repository_that_cannot_be_written_to(tmp_path, hub, capsys):
    hub.create("me/rows", "datasets")
    with pytest.raises(UploadError, match=r"403, .*set another `hub_dataset_id`"):
        scored(tmp_path, hub_token=READ_TOKEN)
    assert not (tmp_path / "scored").exists()
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\n")
    arguments = ["--model_name_or_path", "no/model", "--prompts", prompts, "--output_dir", tmp_path / "out"]
    assert main(["generate", *map(str, arguments), "--push_to_hub", "--hub_dataset_id", "them/rows"]) == 1
    assert "error: Nothing can be uploaded to the data set them/rows" in capsys.readouterr().err


REQUESTS = {"tree": r"GET /api/datasets/.*/tree/", "card": r"GET /datasets/.*/README.md"}


@pytest.mark.parametrize("kind", ["status", "drop", "cut", "reset", "slow"])
@pytest.mark.parametrize("request_name", REQUESTS)
def test_a_fault_while_looking_costs_no_split(tmp_path, hub, naps, request_name, kind):
    local = Dataset.from_dict({"prompt": ["a"], "score": [1.0]})
    local.push_to_hub("me/rows", split="test")
    local.to_parquet(tmp_path / "rated.parquet")
    fault = hub.fail(REQUESTS[request_name], kind, times=2)
    push(tmp_path, local)
    assert fault.met == (1 if kind == "slow" else 2)
    assert {split["name"] for split in front(hub.dataset("me/rows"))["dataset_info"]["splits"]} == {"test", "train"}


def push(folder, rows):
    """Rows as a finished data set, pushed."""
    from tgo_trl.hub.dataset_upload import publish
    from tgo_trl.hub.repositories import open_repository
    from tgo_trl.storage.parquet import ParquetFolder
    from tgo_trl.storage.processes import process_state

    shards = ParquetFolder(folder / "written", "scoring.json", num_shards=1)
    if 0 not in shards.begin({"a": 1}, process_state()):
        shards.write(0, list(rows), rows.features)
    text = card(dataset_info=info(("train", rows.num_rows), prompt="string", score="float64"))
    (folder / "written" / "README.md").write_text(str(text))
    return publish(folder / "written", open_repository("me/rows", "dataset", None, None, None, "hub_dataset_id"))


@pytest.mark.parametrize("request_name", ["create", "file", "commit", "tree"])
def test_an_interrupted_upload_is_repeated(tmp_path, hub, naps, request_name):
    rows = Dataset.from_dict({"prompt": ["a"], "score": [1.0]})
    patterns = {"create": "/repos/create", "file": "PUT /lfs/", "commit": "/commit/", "tree": "/tree/"}
    fault = hub.fail(patterns[request_name], times=1000)
    with pytest.raises(UploadError) as error:
        push(tmp_path, rows)
    assert fault.met == 6
    if request_name != "create":
        assert "is safe in" in str(error.value)
        assert "the same command uploads it" in str(error.value)
        assert hub.dataset("me/rows").commits == []
    hub.faults.clear()
    sent = hub.asked("PUT /lfs/")
    assert push(tmp_path, rows) == "me/rows"
    assert len(hub.dataset("me/rows").commits) == 1
    if request_name == "commit":
        assert hub.asked("PUT /lfs/") == sent, "what had arrived was not sent again"


def test_a_commit_whose_answer_was_lost_is_not_made_again(tmp_path, hub, naps):
    rows = Dataset.from_dict({"prompt": ["a"], "score": [1.0]})
    hub.create("me/rows", "datasets").put({"data/train-00000-of-00009.parquet": b"stale"})
    hub.fail("/commit/", "lost")
    push(tmp_path, rows)
    assert [commit.message for commit in hub.dataset("me/rows").commits] == ["put there", "Upload data set"]
    assert shard_names(hub.dataset("me/rows")) == ["data/train-00000-of-00001.parquet"]


def test_a_split_that_is_pushed_meanwhile_is_kept(tmp_path, hub, naps):
    rows = Dataset.from_dict({"prompt": ["a"], "score": [1.0]})
    rows.push_to_hub("me/rows", split="test")
    original = hub.meet

    def meet(request):
        if "/commit/" in request and len(hub.dataset("me/rows").commits) == 1:
            theirs = card(dataset_info=info(("test", 1), ("validation", 2), prompt="string", score="float64"))
            hub.dataset("me/rows").put({"README.md": str(theirs).encode()})
        return original(request)

    hub.meet = meet
    push(tmp_path, rows)
    assert {split["name"] for split in front(hub.dataset("me/rows"))["dataset_info"]["splits"]} == {
        "test", "train", "validation",
    }  # fmt: skip


def test_records_say_what_was_scored(tmp_path, hub):
    scored(tmp_path)
    assert json.loads(hub.dataset("me/rows").files["scoring.json"])["settings"]["rewards"][0]["column"] == "score"
