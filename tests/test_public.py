"""No secret of any setting is written into any file."""

import json
from pathlib import Path

import pytest

from tgo_trl import TGOConfig
from tgo_trl.cli import main
from tgo_trl.messages.public import is_secret_name, public_text, public_value, without_secrets

from .tiny import scored_rows, stable_diffusion

SECRET = "s3cr3tOfNobodyElse"
TOKEN = f"hf_{SECRET}"
INIT_KWARGS = {
    "token": TOKEN,
    "proxies": {"https": f"http://user:{SECRET}@proxy:80"},
}
"""What `from_pretrained` takes, of which a folder makes no use."""

SECRET_NAMES = [
    "token", "hub_token", "use_auth_token", "HF_TOKEN", "password", "api_key", "apiKey", "X-Api-Key", "OPENAI_API_KEY",
    "access_key", "secret_access_key", "account_key", "proxies", "http_proxy", "headers", "Authorization", "cookie",
    "credentials", "sas", "passwd", "client_secret", "storage_options",
]  # fmt: skip
PUBLIC_NAMES = [
    "include_num_input_tokens_seen", "average_tokens_across_devices", "prompt", "max_sequence_length", "monkey",
    "num_inference_steps", "variant", "revision", "tokenizer", "keyword", "passes", "author", "prior", "learning_rate",
]  # fmt: skip


@pytest.mark.parametrize("name", SECRET_NAMES)
def test_names_of_secrets(name):
    assert is_secret_name(name)
    assert without_secrets({"a": [{name: "x"}]}) == {"a": [{name: "***"}]}
    assert without_secrets({name: None}) == {name: None}


@pytest.mark.parametrize("name", PUBLIC_NAMES)
def test_names_of_what_is_no_secret(name):
    assert not is_secret_name(name)


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("http://user:pa:ss@host:80/x", "http://***@host:80/x"),
        ("https://token@host/x and s3://k:v@b", "https://***@host/x and s3://***@b"),
        ("https://h/x?a=1&X-Amz-Signature=abc&token=def#g", "https://h/x?a=1&X-Amz-Signature=***&token=***#g"),
        (f"use {TOKEN}, please", "use ***, please"),
        ("Authorization: Bearer abc.def-0123456789", "Authorization: Bearer ***"),
        ("a bearer of bad news", "a bearer of bad news"),
        ("owner/name", "owner/name"),
        ("a photo of me@home at 5:30", "a photo of me@home at 5:30"),
        ("https://huggingface.co/a/b/blob/main/c.safetensors", "https://huggingface.co/a/b/blob/main/c.safetensors"),
    ],
)
def test_secrets_in_text(text, public):
    assert public_text(text) == public


def test_other_values_stay_and_paths_lose_their_folders(tmp_path):
    values = {"a": 1, "b": [True, None, 0.5], "c": ("x", {"d": "owner/name"})}
    assert without_secrets(values) == values
    assert public_value({"path": tmp_path, "n": 1}) == {"path": tmp_path.name, "n": 1}


def test_a_configuration_tells_no_secrets(tmp_path):
    args = TGOConfig(str(tmp_path), use_cpu=True, hub_token=TOKEN, model_init_kwargs=INIT_KWARGS, report_to="none")
    for text in (
        repr(args),
        str(args),
        args.to_json_string(),
        str(args.to_sanitized_dict()),
        json.dumps(args.to_dict()),
    ):
        assert SECRET not in text
    assert args.model_init_dict["token"] == TOKEN  # what is used is left as it is


# ---- Every byte of every file ----


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("secrets")
    stable_diffusion().save_pretrained(path / "model")
    (path / "rows").mkdir()
    scored_rows(8).to_parquet(path / "rows" / "train.parquet")
    (path / "prompts.txt").write_text("a red cat\n")
    (path / "reward.py").write_text(
        "class Reward:\n    def __init__(self, api_key, url):\n        pass\n"
        "    def __call__(self, prompts, images):\n        return [1.0] * len(prompts)\n"
    )
    return path


def assert_no_secret(folder: Path, printed: str) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
    assert SECRET not in printed


@pytest.mark.parametrize("use_peft", ["true", "false"])
def test_training_writes_no_secret(folder, tmp_path, capfd, caplog, use_peft):
    caplog.set_level("INFO")
    out = tmp_path / "out"
    arguments = {
        "model_name_or_path": folder / "model", "dataset_name": folder / "rows", "output_dir": out,
        "model_init_kwargs": json.dumps(INIT_KWARGS), "hub_token": TOKEN, "use_peft": use_peft, "max_steps": 2,
        "save_steps": 1, "report_to": "tensorboard", "use_cpu": "true", "disable_tqdm": "true",
        "encoding_cache_dir": tmp_path / "cache", "logging_steps": 1, "sample_prompts": "a cat",
        "sample_steps": 1, "sample_num_inference_steps": 1, "run_name": f"http://u:{SECRET}@h",
    }  # fmt: skip
    assert main(["train", *(str(part) for name, value in arguments.items() for part in (f"--{name}", value))]) == 0
    assert list(out.rglob("events.out*"))
    printed = capfd.readouterr()
    assert_no_secret(tmp_path, printed.out + printed.err + caplog.text)


def test_generating_and_scoring_write_no_secret(folder, tmp_path, capfd, caplog):
    caplog.set_level("INFO")
    call = {"cross_attention_kwargs": {"api_key": SECRET}}
    arguments = {
        "model_name_or_path": folder / "model", "prompts": folder / "prompts.txt", "output_dir": tmp_path / "drawn",
        "model_init_kwargs": json.dumps(INIT_KWARGS), "hub_token": TOKEN, "call_kwargs": json.dumps(call),
        "num_inference_steps": 1, "num_images_per_prompt": 2, "disable_tqdm": "true",
    }  # fmt: skip
    assert main(["generate", *(str(part) for name, value in arguments.items() for part in (f"--{name}", value))]) == 0
    spec = f"{folder / 'reward.py'}:Reward"
    arguments = {
        "dataset_name": tmp_path / "drawn", "output_dir": tmp_path / "scored", "rewards": spec, "hub_token": TOKEN,
        "reward_kwargs": json.dumps({spec: {"api_key": SECRET, "url": f"http://u:{SECRET}@h"}}), "disable_tqdm": "true",
    }  # fmt: skip
    assert main(["score", *(str(part) for name, value in arguments.items() for part in (f"--{name}", value))]) == 0
    printed = capfd.readouterr()
    assert_no_secret(tmp_path, printed.out + printed.err + caplog.text)


def test_an_error_tells_no_secret(folder, tmp_path, capsys):
    arguments = ["--model_name_or_path", f"https://u:{SECRET}@h/x", "--dataset_name", str(folder / "rows")]
    assert main(["train", *arguments, "--output_dir", str(tmp_path / "out"), "--use_cpu", "--report_to", "none"]) == 1
    assert SECRET not in capsys.readouterr().err
