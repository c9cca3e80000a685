"""Runs that are pushed, by huggingface_hub's own client to a Hub on this machine: each commit holds a usable model."""

import json
import os
import shlex
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml
from huggingface_hub import snapshot_download
from safetensors.torch import load, load_file
from transformers import TrainerCallback

from tgo_trl.cli import main

from . import tiny
from .hub_server import READ_TOKEN, environment
from .runs import assert_equal, config, make_trainer

pytestmark = pytest.mark.usefixtures("undrawn")

WEIGHTS = "pytorch_lora_weights.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


def pushing(folder, **settings):
    arguments = {"sample_prompts": ["a cat"], "sample_num_inference_steps": 1, "sample_steps": 2, "max_steps": 4,
                 "save_strategy": "steps", "save_steps": 2, "hub_model_id": "me/mine", "hub_always_push": True,
                 "push_to_hub": True}  # fmt: skip
    trainer = make_trainer(config(folder, **{**arguments, **settings}))
    trainer.train()
    return trainer


def card_of(commit):
    return commit.files["README.md"].decode()


def front_of(commit):
    return yaml.safe_load(card_of(commit).split("---")[1])


def assert_usable(commit, folder):
    """Card, adapter and settings; nothing that runs code when it is loaded; nothing of a run's scaffolding."""
    assert {"README.md", WEIGHTS, "tgo_config.json"} <= commit.files.keys()
    assert not [name for name in commit.files if name.endswith(PICKLES)]
    assert not [name for name in commit.files if name.startswith(("_", ".", "checkpoint-")) or "_saving-" in name]
    assert front_of(commit)["library_name"] == "diffusers"
    (folder / WEIGHTS).write_bytes(commit.files[WEIGHTS])
    stock = tiny.stable_diffusion()
    stock.load_lora_weights(folder, weight_name=WEIGHTS)
    assert stock.get_list_adapters() == {"unet": ["default_0"]}


# ---- What is pushed, and when ----


def test_every_save_pushes_a_usable_model(tmp_path, hub):
    trainer = pushing(tmp_path)
    first, last = hub.model("me/mine").commits
    assert [first.message, last.message] == ["Training in progress, step 2", "Training in progress, step 4"]
    for commit in (first, last):
        assert_usable(commit, tmp_path)
        assert 'load_lora_weights("me/mine")' in card_of(commit)
    assert "| updates | 2 |" in card_of(first)
    assert "| updates | 4 |" in card_of(last)
    assert_equal(load(last.files[WEIGHTS]), trainer.policy.adapter_state("default"))
    assert load(first.files[WEIGHTS]).keys() == load(last.files[WEIGHTS]).keys()
    assert first.files[WEIGHTS] != last.files[WEIGHTS]
    assert "samples/step-000002.png" in first.files
    assert "score_histogram.png" in first.files
    assert not list((tmp_path / "out").glob("_pushing-*"))


def test_pictures_that_the_card_shows_are_pushed_with_it(tmp_path, hub):
    pushing(tmp_path).push_to_hub()
    for commit in hub.model("me/mine").commits:
        shown = [part.partition(")")[0] for part in card_of(commit).split("](")[1:]]
        shown = [name for name in shown if not name.startswith("http")]
        assert shown
        assert set(shown) <= commit.files.keys()


def test_strategy_end_pushes_nothing_before_the_end(tmp_path, hub):
    trainer = pushing(tmp_path, hub_strategy="end")
    assert hub.model("me/mine").commits == []
    trainer.save_model()
    [commit] = hub.model("me/mine").commits
    assert_usable(commit, tmp_path)
    assert commit.message == "Model save"


def test_strategy_checkpoint_pushes_what_a_resume_needs(tmp_path, hub):
    pushing(tmp_path, hub_strategy="checkpoint", save_total_limit=1)
    commits = hub.model("me/mine").commits
    steps = [commit.message.partition(", step ")[2] for commit in commits]
    assert steps == ["2", "2, checkpoint", "4", "4, checkpoint"]
    for commit in commits[1::2]:
        names = {WEIGHTS, "tgo_config.json", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}
        assert {f"last-checkpoint/{name}" for name in names} <= commit.files.keys()
    # The folder as it comes down from the Hub is one that a run resumes from.
    folder = Path(snapshot_download("me/mine", allow_patterns="last-checkpoint/*")) / "last-checkpoint"
    assert folder.is_relative_to(Path(snapshot_download("me/mine")))
    trainer = make_trainer(config(tmp_path / "elsewhere", max_steps=5))
    trainer.train(resume_from_checkpoint=str(folder))
    assert trainer._initial_global_step == 4


def test_strategy_all_checkpoints_names_each(tmp_path, hub):
    pushing(tmp_path, hub_strategy="all_checkpoints", sample_prompts=None)
    files = hub.model("me/mine").files
    assert {name.partition("/")[0] for name in files if "/" in name} == {"checkpoint-2", "checkpoint-4"}
    assert_equal(load(files["checkpoint-4/" + WEIGHTS]), load(files[WEIGHTS]))  # a file's header has no order
    first, last = (load(files[f"checkpoint-{step}/{WEIGHTS}"]) for step in (2, 4))
    assert any(not last[name].equal(first[name]) for name in last)


def test_full_fine_tuning_pushes_a_pipeline_that_loads(tmp_path, hub):
    pushing(tmp_path, use_peft=False, sample_prompts=None)
    for commit in hub.model("me/mine").commits:
        pipeline = tiny.StableDiffusionPipeline.from_pretrained("me/mine", revision=commit.oid, safety_checker=None)
        assert pipeline.unet.config.in_channels == 4
        assert not [name for name in commit.files if name.endswith(PICKLES)]
        assert 'from_pretrained("me/mine")' in card_of(commit)


def test_push_to_hub_names_the_data_set(tmp_path, hub):
    trainer = make_trainer(config(tmp_path))
    trainer.train()
    assert hub.requests == []
    info = trainer.push_to_hub(dataset_name="me/scored-images", tags=["cats"], license="mit")
    assert info.oid == hub.model("me/out").commits[-1].oid, "the repository is named after the output directory"
    [commit] = hub.model("me/out").commits
    assert_usable(commit, tmp_path)
    front = front_of(commit)
    assert front["datasets"] == ["me/scored-images"] or front["datasets"] == "me/scored-images"
    assert front["license"] == "mit"
    assert "cats" in front["tags"]
    assert "trained on [me/scored-images](https://huggingface.co/datasets/me/scored-images)" in card_of(commit)
    assert 'load_lora_weights("me/out")' in card_of(commit)
    assert commit.message == "End of training"


def test_a_push_need_not_be_waited_for(tmp_path, hub):
    trainer = make_trainer(config(tmp_path))
    slow = hub.fail("/commit/", "slow", seconds=0.3)
    future = trainer.push_to_hub(blocking=False)
    (tmp_path / "out" / WEIGHTS).write_bytes(b"replaced meanwhile")
    assert not future.done()
    assert future.result().oid == hub.model("me/out").commits[-1].oid
    assert slow.met == 1
    assert_usable(hub.model("me/out").commits[-1], tmp_path)


def test_what_a_killed_process_left_is_not_pushed(tmp_path, hub):
    trainer = make_trainer(config(tmp_path))
    for left in ("_saving-abc/unet/half.safetensors", "_pushing-abc/README.md", ".lock", "checkpoint-1/optimizer.pt"):
        (Path(trainer.args.output_dir) / left).parent.mkdir(parents=True, exist_ok=True)
        (Path(trainer.args.output_dir) / left).write_text("half")
    trainer.push_to_hub()
    [commit] = hub.model("me/out").commits
    assert_usable(commit, tmp_path)


@pytest.mark.parametrize("always", [False, True])
def test_a_push_in_progress_is_not_interrupted(tmp_path, hub, always):
    """Without `hub_always_push`, a checkpoint that comes too early is left out; with it, each has its own weights."""
    hold = threading.Event()
    original = hub.meet

    def meet(request):
        if "preupload" in request and threading.current_thread() is not threading.main_thread() and hub.begun:
            hold.wait(20)
        return original(request)

    hub.begun, hub.meet = False, meet
    args = config(tmp_path, push_to_hub=True, hub_model_id="me/mine", max_steps=3, save_strategy="steps",
                  save_steps=1, save_total_limit=1, hub_always_push=always, hub_strategy="checkpoint")  # fmt: skip
    trainer = make_trainer(args)
    hub.begun = True
    finish = trainer._finish_current_push
    trainer._finish_current_push = lambda: (hold.set(), finish())
    trainer.train()
    messages = [commit.message for commit in hub.model("me/mine").commits]
    steps = (1, 2, 3) if always else (1,)
    assert messages == [f"Training in progress, step {n}{end}" for n in steps for end in ("", ", checkpoint")]
    for step, commit in zip(steps, hub.model("me/mine").commits[1::2], strict=True):
        state = json.loads(commit.files["last-checkpoint/trainer_state.json"])
        assert state["global_step"] == step
        assert f"| updates | {step} |" in card_of(commit)
        # the weights of a commit are those of its step
        assert_equal(load(commit.files[WEIGHTS]), load(commit.files[f"last-checkpoint/{WEIGHTS}"]))


# ---- Where to ----


@pytest.mark.parametrize(("private", "expected"), [(None, False), (False, False), (True, True)])
def test_a_new_repository_is_as_private_as_it_was_asked_to_be(tmp_path, hub, private, expected):
    make_trainer(config(tmp_path, push_to_hub=True, hub_model_id="mine", hub_private_repo=private))
    assert hub.model("me/mine").private is expected


def test_a_revision_is_a_branch_that_is_made_and_pushed_to(tmp_path, hub):
    trainer = pushing(tmp_path, hub_revision="trial", sample_prompts=None)
    trainer.push_to_hub(commit_message="the end")
    repository = hub.model("me/mine")
    assert repository.commits == []
    messages = [commit.message for commit in repository.branches["trial"][1:]]
    assert messages[:2] == ["Training in progress, step 2", "Training in progress, step 4"]
    stock = tiny.stable_diffusion()
    stock.load_lora_weights("me/mine", revision="trial", weight_name=WEIGHTS)


def test_stock_diffusers_loads_what_was_pushed(tmp_path, hub):
    trainer = pushing(tmp_path)
    stock = tiny.stable_diffusion()
    stock.load_lora_weights("me/mine")  # finds the file by itself
    loaded = {name: weight for name, weight in stock.unet.state_dict().items() if ".lora_" in name}
    ours = {name: weight for name, weight in trainer.pipeline.unet.state_dict().items() if ".lora_" in name}
    assert len(loaded) == len(ours) == 64
    for name, weight in ours.items():
        assert loaded[name.replace(".default.", ".default_0.")].equal(weight), name


# ---- Before anything that takes long ----


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hub_token": "hf_expired"}, "401, Invalid credentials.*`hf auth login`, or set `hub_token`"),
        ({"hub_token": READ_TOKEN}, "403, .*The token may not write there"),
        ({"hub_model_id": "them/theirs"}, "403, .*set another `hub_model_id`"),
        ({"hub_model_id": "me/a b"}, "HFValidationError: .*set another `hub_model_id`"),
        ({"hub_revision": "refs/pr/9"}, "404, .*Mend that"),
    ],
)
def test_a_repository_that_cannot_be_written_to_is_told_before_a_model_is_loaded(tmp_path, hub, settings, message):
    args = config(tmp_path, push_to_hub=True, **{"hub_model_id": "me/mine", **settings})
    with pytest.raises(OSError, match=f"so nothing was begun: {message}") as error:
        make_trainer(args, model="no/such-model")
    assert "\n" not in str(error.value)
    assert "hf_" not in str(error.value)


def test_a_token_that_only_reads_is_noticed_where_the_repository_exists(tmp_path, hub):
    hub.create("me/mine")
    with pytest.raises(OSError, match=r"403, .*may not write there"):
        make_trainer(config(tmp_path, push_to_hub=True, hub_model_id="me/mine", hub_token=READ_TOKEN))
    assert hub.model("me/mine").commits == []


def test_without_a_token_it_is_said_how_to_log_in(tmp_path, hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(OSError, match="`hf auth login`"):
        make_trainer(config(tmp_path, push_to_hub=True, hub_model_id="me/mine"), model="no/such-model")


# ---- The commands ----


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pipeline in `model`, scored rows in `rows`."""
    path = tmp_path_factory.mktemp("pushed")
    tiny.stable_diffusion().save_pretrained(path / "model")
    (path / "rows").mkdir()
    tiny.scored_rows(8).to_parquet(path / "rows" / "train.parquet")
    return path


def train_arguments(folder, out, *more):
    settings = {
        "model_name_or_path": folder / "model", "dataset_name": folder / "rows", "output_dir": out / "out",
        "encoding_cache_dir": out / "cache", "max_steps": 2, "per_device_train_batch_size": 4, "use_cpu": True,
        "report_to": "none", "disable_tqdm": True, "save_strategy": "steps", "save_steps": 1, "lora_r": 4,
        "push_to_hub": True, "hub_model_id": "me/mine", "hub_always_push": True,
    }  # fmt: skip
    return ["train", *(str(part) for name, value in settings.items() for part in (f"--{name}", value)), *more]


def in_a_process(hub, home, *command):
    """A command in a process of its own, which knows the Hub by `HF_ENDPOINT`."""
    done = subprocess.run(
        list(map(str, command)), env={**os.environ, **environment(hub, home)}, capture_output=True, text=True,
        timeout=240, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done


def test_an_adapter_that_could_not_be_pushed_is_safe_and_the_named_command_pushes_it(
    folder, tmp_path, hub, naps, capsys
):
    hub.fail("/commit/", status=503, times=1000)
    assert main(train_arguments(folder, tmp_path)) == 1
    *_, error = capsys.readouterr().err.splitlines()
    assert error.startswith("tgo-trl train: error: The upload to the model me/mine failed: 503, out of order.")
    assert f"The files are safe in {str(tmp_path / 'out')!r}; this uploads them: hf upload me/mine" in error
    assert hub.model("me/mine").commits == []
    hub.faults.clear()
    saved = load_file(tmp_path / "out" / WEIGHTS)
    command = shlex.split(error.partition("this uploads them: ")[2])
    assert in_a_process(hub, tmp_path, Path(sys.executable).parent / command[0], *command[1:]).returncode == 0
    [commit] = hub.model("me/mine").commits
    assert_usable(commit, tmp_path)
    assert_equal(load(commit.files[WEIGHTS]), saved)


@pytest.mark.parametrize("num_updates", [2, 3])
def test_the_same_command_pushes_without_training_further(folder, tmp_path, hub, naps, num_updates):
    arguments = train_arguments(folder, tmp_path, "--max_steps", str(num_updates), "--hub_strategy", "end")
    fault = hub.fail("/commit/", times=1000)
    assert main(arguments) == 1
    saved = load_file(tmp_path / "out" / WEIGHTS)
    fault.times = 0
    assert main(arguments) == 0
    [commit] = hub.model("me/mine").commits
    assert f"| updates | {num_updates} |" in card_of(commit)
    assert_equal(load(hub.model("me/mine").files[WEIGHTS]), saved)


def test_a_checkpoint_that_is_missing_on_the_hub_is_no_success(folder, tmp_path, hub, naps, capsys, caplog):
    fault = hub.fail("/objects/batch", status=403, times=4)  # each of two models, and of two checkpoints
    assert main(train_arguments(folder, tmp_path, "--hub_strategy", "checkpoint")) == 1
    assert fault.met == 4
    *_, error = capsys.readouterr().err.splitlines()
    assert "error: 1 of what was to be pushed is not on the Hub." in error, "the model was pushed at the end"
    assert f"hf upload me/mine {tmp_path / 'out' / 'checkpoint-2'} last-checkpoint" in error
    told = [record.getMessage() for record in caplog.records if record.name == "tgo_trl.hub.uploads"]
    assert len([text for text in told if "403, " in text and "this uploads them" in text]) == 4, "each at once"
    assert_usable(hub.model("me/mine").commits[-1], tmp_path)


def test_a_trainer_sums_up_what_failed_while_it_trained(tmp_path, hub, naps, caplog):
    hub.fail("/commit/", status=403, times=3)
    trainer = pushing(tmp_path, hub_strategy="all_checkpoints", sample_prompts=None)
    summary = [record.getMessage() for record in caplog.records if "is not on the Hub" in record.getMessage()]
    assert len(summary) == 1
    assert "2 of what was to be pushed is not on the Hub" in summary[0], "the next model made up for the first one"
    assert "checkpoint-2 checkpoint-2" in summary[0]
    trainer.push_to_hub()
    assert list(trainer.uploads.failures) == ["checkpoint-2"], "the rest is there now"


def test_a_failure_is_told_while_the_run_goes_on(tmp_path, hub, naps, caplog):
    hub.fail("/commit/", status=401, message="Invalid credentials in Authorization header")
    told = []

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            trainer.uploads.finish()  # the background has had its time
            told.append(any("Invalid credentials" in record.getMessage() for record in caplog.records))

    trainer = make_trainer(
        config(tmp_path, push_to_hub=True, hub_model_id="me/mine", max_steps=3, save_strategy="steps", save_steps=1),
        callbacks=[Look()],
    )
    trainer.train()
    assert told == [False, True, True]


@pytest.mark.parametrize("kind", ["hang", pytest.param("drop", marks=pytest.mark.slow)])
def test_a_push_that_hangs_ends_the_run_no_later_than_its_patience(tmp_path, hub, naps, monkeypatch, kind):
    monkeypatch.setattr("tgo_trl.hub.uploads.LEAST_TIME", 1.0)
    trainer = make_trainer(config(tmp_path, push_to_hub=True, hub_model_id="me/mine"))
    hub.fail("/commit/|/preupload/", kind, times=1000)
    with pytest.raises(OSError, match="safe in") as error:
        trainer.push_to_hub()
    if kind == "hang":
        assert "did not end within 1" in str(error.value)
    hub.faults.clear()
    trainer.push_to_hub()
    [commit] = hub.model("me/mine").commits
    assert_usable(commit, tmp_path)


def test_an_adapter_is_trained_on_a_data_set_of_the_hub(folder, tmp_path, hub):
    rows = (folder / "rows" / "train.parquet").read_bytes()
    hub.create("me/rows", "datasets").put({"data/train-00000-of-00001.parquet": rows})
    assert main(train_arguments(folder, tmp_path, "--dataset_name", "me/rows")) == 0
    commit = hub.model("me/mine").commits[-1]
    assert "trained on [me/rows](https://huggingface.co/datasets/me/rows)" in card_of(commit)
    assert_usable(commit, tmp_path)


@pytest.mark.slow
def test_several_processes_push_once(folder, tmp_path, hub):
    several = ("--accelerate_config", "multi_gpu", "--num_processes", "2")
    arguments = train_arguments(folder, tmp_path, "--hub_strategy", "end", *several)
    done = in_a_process(hub, tmp_path, sys.executable, "-m", "tgo_trl.cli", *arguments)
    assert done.returncode == 0, done.stderr
    [commit] = hub.model("me/mine").commits
    assert hub.asked("POST /api/repos/create") == 1
    assert_usable(commit, tmp_path)
    assert_equal(load(commit.files[WEIGHTS]), load_file(tmp_path / "out" / WEIGHTS))
