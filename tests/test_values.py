"""What is said of values that were misspelt: the same everywhere, and only where something is near."""

import logging

import pytest
from datasets import Dataset, DatasetDict

from tgo_trl import TGOConfig
from tgo_trl.cli import main
from tgo_trl.data.columns import check_columns
from tgo_trl.messages.foreign import NOTES, Leaving
from tgo_trl.messages.values import did_you_mean, nearest, shown_bytes
from tgo_trl.rewards import load_reward
from tgo_trl.storage.sources import open_dataset


def test_the_nearest_name_is_named_and_nothing_that_is_far():
    assert did_you_mean("scroe", ["score", "prompt"]) == " Did you mean 'score'?"
    assert did_you_mean("Prompt", ["prompt"], "`") == " Did you mean `prompt`?"
    assert did_you_mean("zzz", ["score", "prompt"]) == did_you_mean(3, ["score"]) == did_you_mean("x", []) == ""
    assert nearest("to_kk", ["to_k", "to_q", "proj"], 2)[0] == "to_k"


@pytest.mark.parametrize(
    ("number", "text"), [(99, "99 bytes"), (99_999, "99,999 bytes"), (250_000, "0.2 MB"), (3.4e9, "3.4 GB")]
)
def test_sizes_are_read_in_the_unit_that_fits(number, text):
    assert shown_bytes(number) == text


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    """A folder of files by split, and one that `save_to_disk` wrote."""
    folder, saved = tmp_path_factory.mktemp("files"), tmp_path_factory.mktemp("saved")
    rows = Dataset.from_dict({"prompt": ["a"]})
    for split in ("train", "test"):
        rows.to_parquet(folder / f"{split}.parquet")
    DatasetDict(train=rows, test=rows).save_to_disk(saved)
    return folder, saved


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", [0, 1])
def test_a_split_that_is_not_there_is_told_from_those_that_are(splits, kind, streaming):
    with pytest.raises(ValueError, match=r"no split 'trian'; it has 'train', 'test'\. Did you mean 'train'\?"):
        open_dataset(str(splits[kind]), None, "trian", streaming)


@pytest.mark.parametrize(
    ("logger", "note", "other"),
    [
        (
            "transformers.utils.import_utils",
            "`CLIPImageProcessor` requires torchvision (not installed); falling back to `CLIPImageProcessorPil` for",
            "`CLIPImageProcessor` requires torchvision and cannot be used",
        ),
        (
            "diffusers.loaders.lora_base",
            "No LoRA keys associated to CLIPTextModel found with the prefix='text_encoder'. This is safe",
            "No LoRA keys associated to UNet2DConditionModel found with the prefix='unet'. This is safe",
        ),
        (
            "diffusers.loaders.peft",
            "Loading default_0 was unsuccessful with the following error: \nsize mismatch",
            "Loading default_0 was slow",
        ),
        ("torchao", "Failed to load /venv/torchao/_C_mxfp8.so: Could not load", "Failed to load the quantised weights"),
    ],
)
def test_notes_that_say_nothing_are_left_out_and_no_others(logger, note, other):
    filters = [Leaving(pattern) for name, pattern in NOTES.items() if name == logger]
    shown = [all(it.filter(logging.makeLogRecord({"msg": text})) for it in filters) for text in (note, other)]
    assert shown == [False, True]


def test_values_are_told_from_those_that_may_be(tmp_path, capsys):
    with pytest.raises(ValueError, match=r"'diffusion_dop'; it must be .*Did you mean 'diffusion_dpo'\?"):
        TGOConfig(str(tmp_path), loss_type="diffusion_dop")
    with pytest.raises(ValueError, match=r"'percentil'; .*Did you mean 'percentile'\?"):
        TGOConfig(str(tmp_path), threshold_type="percentil")
    with pytest.raises(ValueError, match=r"named 'pickscor'\. Did you mean 'pickscore'\?"):
        load_reward("pickscor")
    with pytest.raises(ValueError, match=r"no column 'scroe'; it has 'prompt', 'score'\. Did you mean 'score'\? Mend"):
        check_columns("It", ["prompt", "score"], ["scroe"], "Mend it.")
    words = ["--model_name_or_path", "m", "--dataset_name", "d", "--output_dir", str(tmp_path)]
    assert main(["train", *words, "--lr_scheduler_type", "cosin"]) == 1
    assert "Did you mean 'cosine'? See --help." in capsys.readouterr().err
