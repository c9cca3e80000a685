"""What prompts and scores tell is refused before a pipeline is loaded; what they do not tell for sure is not."""

import pytest
from datasets import Dataset

from tgo_trl.data.rows import BadRowError
from tgo_trl.trainer.base_trainer import BaseTrainer

from . import tiny
from .runs import config, make_trainer


class LoadedError(AssertionError):
    """The pipeline was asked for."""


@pytest.fixture
def _unloaded(monkeypatch):
    def load(*_, **__):
        raise LoadedError

    monkeypatch.setattr(BaseTrainer, "_load_pipeline", load)


def rows(scores, prompts=None, **columns):
    images = [tiny.picture(i) for i in range(len(scores))]
    prompts = prompts or [f"prompt {i}" for i in range(len(scores))]
    return Dataset.from_dict({"prompt": prompts, "image": images, "score": scores, **columns})


@pytest.mark.usefixtures("_unloaded")
@pytest.mark.parametrize(
    ("scores", "settings", "error", "message"),
    [
        ([2.0] * 4, {}, ValueError, "All 4 scores equal 2, so no threshold can tell"),
        ([2.0] * 4, {"on_bad_row": "skip"}, ValueError, "All 4 scores equal 2"),
        ([1.0, None, 2.0, 3.0], {}, BadRowError, r"Row 1, column 'score': the score is missing \(None\)"),
        ([1.0, 2.0, float("nan"), 3.0], {}, BadRowError, "Row 2, column 'score': the score is nan"),
        (["1", "2", "3", "4"], {}, BadRowError, "Row 0, column 'score': the score is the text '1', not a number"),
        ([0.0, 0.0, 0.0, 1.0], {}, ValueError, "The threshold 0 makes all 4 rows positive"),
        ([1.0, 2.0, 3.0, 4.0], {"threshold_type": "prompt_mean"}, ValueError, "4 of 4 prompts have a single image"),
        (
            [1.0, 2.0, 3.0, 4.0],
            {"loss_type": "diffusion_dpo"},
            ValueError,
            "no prompt of the training data set has two",
        ),
        ([1.0, 2.0, 3.0, 4.0], {"positive_ratio": 0.999}, ValueError, "takes rows of one side only"),
    ],
)
def test_what_scores_tell_is_told_before_anything_is_loaded(tmp_path, scores, settings, error, message):
    with pytest.raises(error, match=message):
        make_trainer(config(tmp_path, **settings), train_dataset=rows(scores))


@pytest.mark.usefixtures("_unloaded")
def test_bad_rows_of_evaluation_sets_are_told_as_early(tmp_path):
    good = rows([1.0, 2.0, 3.0, 4.0])
    with pytest.raises(BadRowError, match="Row 1, column 'score': the score is missing"):
        make_trainer(
            config(tmp_path, eval_strategy="epoch"), train_dataset=good, eval_dataset={"held_out": rows([1.0, None])}
        )


@pytest.mark.usefixtures("_unloaded")
@pytest.mark.parametrize(
    ("train_dataset", "settings"),
    [
        (rows([0.0, 0.0, 0.0, 1.0]), {"on_bad_row": "skip"}),  # rows may be left out for their images
        (rows([1.0, None, 2.0]), {"on_bad_row": "skip"}),
        (rows([1.0, 2.0, 2.0], ["a", "a", "b"]), {"loss_type": "diffusion_dpo"}),
        (tiny.paired_rows(2), {"loss_type": "diffusion_dpo"}),
        (rows([2.0] * 4).to_iterable_dataset(), {"max_steps": 1}),  # which are read once, later
        (rows([2.0] * 4).with_transform(lambda batch: batch), {}),
    ],
    ids=["few", "missing", "pairs", "columns", "stream", "transform"],
)
def test_what_they_do_not_tell_for_sure_is_left_for_later(tmp_path, train_dataset, settings):
    with pytest.raises(LoadedError):
        make_trainer(config(tmp_path, **settings), train_dataset=train_dataset)


def test_a_lopsided_split_is_warned_of_once(tmp_path, caplog):
    make_trainer(config(tmp_path, threshold_type="value", threshold_value=0.5), train_dataset=tiny.scored_rows(32))
    assert caplog.text.count("makes 31 of 32 rows positive (96.9 %)") == 1
