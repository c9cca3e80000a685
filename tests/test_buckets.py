"""Training on images of several aspect ratios: nothing is lost, and layout and resume change nothing."""

from contextlib import suppress

import numpy as np
import pytest
import torch
from datasets import Dataset

from tgo_trl.media.images import image_to_tensor

from .runs import Stop, StopAt, assert_close, assert_equal, config, logged, make_trainer, streamed, trained_weights
from .tiny import PROMPTS, picture, stable_diffusion

SIZES = [(8, 32), (16, 16), (32, 8)]  # height, width
ROWS = 11


def rows(num_rows=ROWS, seed=0):
    """Wide, square and tall pictures, in turn of 2, 1 and 1."""
    shapes = [(64, 16), (20, 20), (70, 18), (15, 60)]  # width, height
    scores = np.random.default_rng(seed).permutation(num_rows).astype(float)
    return Dataset.from_dict(
        {
            "prompt": [PROMPTS[i % 4] for i in range(num_rows)],
            "image": [picture(i, shapes[i % 4]) for i in range(num_rows)],
            "score": scores.tolist(),
        }
    )


def bucketed(folder, **settings):
    defaults = {"aspect_ratio_buckets": True, "max_aspect_ratio": 4.0, "optim": "sgd", "learning_rate": 0.1}
    return config(folder, **{**defaults, "num_train_epochs": 2, "max_steps": -1, **settings})


def trainer_of(args, dataset=None, **arguments):
    return make_trainer(args, train_dataset=rows() if dataset is None else dataset, **arguments)


def test_each_image_is_brought_to_its_bucket(tmp_path):
    trainer = trainer_of(bucketed(tmp_path))
    assert set(SIZES) < set(trainer.sizes)
    expected = [SIZES[0], SIZES[1], SIZES[0], SIZES[2]]
    assert trainer.train_dataset.sizes == [expected[i % 4] for i in range(ROWS)]
    pipeline = trainer.pipeline
    for i in (0, 1, 3):
        size = expected[i % 4]
        pixels = image_to_tensor(rows()[i]["image"], size)
        assert pixels.shape == (3, *size)
        with torch.no_grad():
            mean = pipeline.vae.encode(pixels[None]).latent_dist.mean[0]
        torch.testing.assert_close(trainer.train_dataset[i]["image"]["mean"], mean)


def test_a_batch_has_one_shape_and_every_row_is_seen(tmp_path):
    trainer = trainer_of(bucketed(tmp_path, gradient_accumulation_steps=2, per_device_train_batch_size=2))
    seen = []
    for batch in trainer.get_train_dataloader():
        assert batch["image"]["mean"].dim() == 4  # they stack
        seen += [row for row, valid in zip(batch["row"], batch["valid"].tolist(), strict=True) if valid]
    assert sorted(seen) == list(range(ROWS))


def test_the_temperature_is_that_of_the_nominal_size(tmp_path):
    assert trainer_of(bucketed(tmp_path)).temperature == 0.001 * 16384 / (4 * 8 * 8)


@pytest.mark.slow
def test_the_layout_of_an_update_changes_nothing(tmp_path):
    runs = []
    for batch_size, accumulation in ((4, 1), (2, 2), (1, 4)):
        args = bucketed(
            tmp_path / str(batch_size),
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            encoding_cache_dir=str(tmp_path / "cache"),
        )
        trainer = trainer_of(args)
        trainer.train()
        runs.append((trained_weights(trainer), logged(trainer)))
    # 5 or 6 wide, 3 square, 2 tall rows in updates of 4: 2 + 1 + 1 updates an epoch
    assert [len(losses) for _, losses in runs] == [8, 8, 8]
    for weights, losses in runs[1:]:
        assert losses == pytest.approx(runs[0][1], rel=1e-4)
        assert_close(weights, runs[0][0], 1e-5)


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    whole = trainer_of(bucketed(tmp_path / "whole"))
    whole.train()
    args = bucketed(tmp_path, save_strategy="steps", save_steps=3)
    with suppress(Stop):
        trainer_of(args, callbacks=[StopAt(5)]).train()
    resumed = trainer_of(args)
    resumed.train(resume_from_checkpoint=True)
    assert_equal(trained_weights(resumed), trained_weights(whole))


def test_a_stream_gathers_rows_of_one_size(tmp_path):
    args = bucketed(tmp_path, max_steps=4, num_train_epochs=1)
    trainer = trainer_of(args, streamed(rows()))
    batches = iter(trainer.get_train_dataloader())
    # Wide 0, 2, 4, 6; then, with rows 1 and 2 of the second epoch, square 1, 5, 9, 1 and wide 8, 10, 0, 2.
    first = [(batch["row"], batch["epoch"]) for batch, _ in zip(batches, range(3), strict=False)]
    assert first[0] == ([0, 2, 4, 6], [0, 0, 0, 0])
    assert first[1] == ([1, 5, 9, 1], [0, 0, 0, 1])
    assert first[2] == ([8, 10, 0, 2], [0, 0, 1, 1])
    trainer.train()
    assert len(logged(trainer)) == 4


@pytest.mark.parametrize("as_stream", [False, True])
def test_evaluation_visits_every_row_once(tmp_path, as_stream):
    held_out = streamed(rows(seed=1)) if as_stream else rows(seed=1)
    scores = []

    def keep(evaluated):
        scores.extend(evaluated.label_ids.tolist())
        return {}

    trainer = trainer_of(bucketed(tmp_path, max_steps=1), eval_dataset=held_out, compute_metrics=keep)
    trainer.evaluate()
    assert sorted(scores) == list(range(ROWS))


def test_an_image_whose_size_cannot_be_read_is_named(tmp_path):
    broken = rows(4).cast_column("image", rows(4).features["image"].__class__(decode=False))
    images = [example["image"] for example in broken]
    images[2] = {"bytes": b"not an image", "path": None}
    dataset = Dataset.from_dict(
        {**rows(4).remove_columns("image").to_dict(), "image": images}, features=rows(4).features
    )
    with pytest.raises(ValueError, match=r"Row 2, column 'image': the image cannot be read"):
        trainer_of(bucketed(tmp_path), dataset)
    skipping = trainer_of(bucketed(tmp_path, on_bad_row="skip"), dataset)
    assert [skipping.train_dataset[i]["row"] for i in range(3)] == [0, 1, 3]


def test_buckets_train_the_whole_network_too(tmp_path):
    trainer = make_trainer(bucketed(tmp_path, use_peft=False), model=stable_diffusion(), train_dataset=rows())
    trainer.train()
    assert all(np.isfinite(logged(trainer)))
