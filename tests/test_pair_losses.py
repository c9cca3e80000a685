"""Losses of pairs: by hand, by the released code's arithmetic, how pairs are found, and runs from end to end."""

import io
import json
import math
import re
from pathlib import Path

import pytest
import torch
from datasets import Dataset, concatenate_datasets
from datasets import Image as ImageFeature
from diffusers import StableDiffusionPipeline

from tgo_trl.cli import main
from tgo_trl.data.pairs import find_pairs, without_unreadable
from tgo_trl.data.rows import BadRowError
from tgo_trl.losses import DiffusionDPOLoss, DSPOLoss, LossInputs, Predictions, RowErrors, build_loss
from tgo_trl.noise import MaskedTokenProcess
from tgo_trl.policy.draws import DrawPlan
from tgo_trl.trainer.course import Course
from tgo_trl.trainer.metrics import MetricSums, add_reward_metrics
from tgo_trl.trainer.summary import pair_rows

from . import tiny
from .cases import CASES
from .runs import assert_close, assert_equal, config, logged, make_trainer, trained_weights

LOSSES = {
    "dpo": {"loss_type": "diffusion_dpo"},
    "dspo": {"loss_type": "dspo"},
    "dspo sdxl": {"loss_type": "dspo", "dspo_form": "sdxl"},
}


def inputs_of(policy, reference, predictions=None):
    """What a loss is given of errors `[K, 2 P]`, better rows first."""
    policy, reference = torch.tensor(policy), torch.tensor(reference)
    is_positive = torch.tensor([True, False]).repeat(policy.shape[1] // 2)
    return LossInputs(RowErrors(policy, reference, predictions), is_positive, torch.ones(policy.shape[1]))


def inputs_at(policy, reference, target):
    """Likewise, of predictions `[K, 2 P, ...]`."""
    errors = ((one - target).square().flatten(2).mean(2) for one in (policy, reference))
    is_positive = torch.tensor([True, False]).repeat(policy.shape[1] // 2)
    predictions = Predictions(policy, reference, target)
    return LossInputs(RowErrors(*errors, predictions), is_positive, torch.ones(policy.shape[1]))


# ---- By hand ----


def test_diffusion_dpo_by_hand():
    # g = e_ref - e = 0.25, -0.5 | 0, 0; beta / 2 = 1: u = 0.75 | 0; -log sigmoid(0.75) = 0.386871
    loss = build_loss("diffusion_dpo", {"beta": 2.0, "temperature": 2.0})
    rows = loss(inputs_of([[0.25, 1.0, 0.5, 0.5]], [[0.5, 0.5, 0.5, 0.5]]))
    assert rows.loss.tolist() == pytest.approx([0.386871, 0.386871, math.log(2), math.log(2)], rel=1e-5)
    assert rows.reward.tolist() == pytest.approx([0.25, -0.5, 0, 0])
    assert rows.output.tolist() == pytest.approx([0.125, -0.25, 0, 0])
    # a tenth of the pairs the wrong way round: -0.9 log sigmoid(0.75) - 0.1 log sigmoid(-0.75)
    smoothed = DiffusionDPOLoss(temperature=2.0, beta=2.0, label_smoothing=0.1)
    assert smoothed(inputs_of([[0.25, 1.0]], [[0.5, 0.5]])).loss[0].item() == pytest.approx(0.461871, rel=1e-5)


def test_draws_are_averaged_inside_the_sigmoid():
    loss = DiffusionDPOLoss(temperature=2.0, beta=2.0)
    twice = loss(inputs_of([[0.5, 1.0], [0.0, 1.0]], [[0.5, 0.5], [0.5, 0.5]]))
    assert twice.loss[0].item() == pytest.approx(0.386871, rel=1e-5)  # g = 0 and 0.5, whose mean is 0.25


def test_the_form_for_sd15_by_hand():
    # two numbers a row: v = (1, 0), v_ref = (0, 0), t = (2, 0) of the better; of the worse, v = v_ref
    policy = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    reference = torch.zeros(1, 2, 2)
    target = torch.tensor([[[2.0, 0.0], [1.0, 1.0]]])
    # e_ref - e = (4 - 1) / 2 = 1.5 and 0; u = beta / 2 x 1.5 = 0.375, 1 - sigmoid = 0.407333
    # v - t - beta 0.407333 d = (-1 - 0.2036665, 0); squared, and over two numbers: 0.724406
    rows = DSPOLoss(temperature=2.0, beta=0.5)(inputs_at(policy, reference, target))
    assert rows.loss.tolist() == pytest.approx([0.724406, 0.724406], rel=1e-5)
    assert rows.reward.tolist() == pytest.approx([0.375, 0])


def test_the_form_for_sdxl_by_hand():
    # <d^2> = 0.5 is far, 0.02 is not; with v_ref = 0 of both, u = 0.375 and beta / 2 (4 - 3.24) / 2 = 0.095
    policy = torch.tensor([[[1.0, 0.0], [0.0, 0.0], [0.2, 0.0], [0.0, 0.0]]])
    target = torch.tensor([[[2.0, 0.0], [1.0, 1.0], [2.0, 0.0], [1.0, 1.0]]])
    loss = DSPOLoss(temperature=2.0, beta=0.5, dspo_form="sdxl")
    rows = loss(inputs_at(policy, torch.zeros(1, 4, 2), target))
    # 0.407333^2 x 0.5 = 0.0829602; (1 - sigmoid(0.095))^2 = 0.476268^2 = 0.226831
    assert rows.loss.tolist() == pytest.approx([0.0829602, 0.0829602, 0.226831, 0.226831], rel=1e-4)


def released(policy, reference, target, beta, form):
    """The loss of each pair as released code computes it, of a device batch of one pair: better halves first."""
    losses = []
    for i in range(0, len(policy), 2):
        model, base, noise = (torch.stack([one[i], one[i + 1]]) for one in (policy, reference, target))
        model_w, model_l = (model - noise).pow(2).mean(dim=[1, 2, 3]).chunk(2)
        base_w, base_l = (base - noise).pow(2).mean(dim=[1, 2, 3]).chunk(2)
        inside = -0.5 * beta * ((model_w - model_l) - (base_w - base_l))
        toward, _ = (model - base).chunk(2)
        if form == "dpo":
            losses.append(-torch.nn.functional.logsigmoid(inside).mean())
        elif form == "sd15":
            error, _ = (model - noise).chunk(2)
            share = (1 - inside.sigmoid())[:, None, None, None]
            losses.append((error - beta * share * toward).pow(2).mean())
        elif toward.pow(2).mean() >= 0.1:
            losses.append(((1 - inside.sigmoid())[:, None, None, None] * toward).pow(2).mean())
        else:
            losses.append((1 - inside.sigmoid()).pow(2).mean())
    return torch.stack(losses)


@pytest.mark.parametrize("form", ["dpo", "sd15", "sdxl"])
@pytest.mark.parametrize("step", [0.01, 0.2, 1.0])
def test_losses_and_gradients_are_those_of_released_code(form, step):
    generator = torch.Generator().manual_seed(0)
    reference, target, move = (torch.randn(8, 4, 3, 3, generator=generator) for _ in range(3))
    beta = {"dpo": 50.0, "sd15": 0.7, "sdxl": 50.0}[form]
    loss = DiffusionDPOLoss(temperature=2.0, beta=beta) if form == "dpo" else DSPOLoss(2.0, beta, form)
    gradients, values = [], []
    for compute in (
        lambda policy: released(policy, reference, target, beta, form).mean(),
        lambda policy: loss(inputs_at(policy[None], reference[None], target[None])).loss.mean(),
    ):
        policy = (reference + step * move).requires_grad_()
        value = compute(policy)
        value.backward()
        values.append(value.item())
        gradients.append(policy.grad)
    assert values[1] == pytest.approx(values[0], rel=1e-5)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-7)


def test_at_its_beta_the_form_for_sd15_is_the_error_of_the_better_image():
    generator = torch.Generator().manual_seed(0)
    policy, reference, target = (torch.randn(1, 4, 4, 3, 3, generator=generator) for _ in range(3))
    rows = DSPOLoss(2.0, 0.001)(inputs_at(policy, reference, target))
    error = (policy - target).square().flatten(2).mean(2)[0, ::2]
    assert rows.loss[::2].tolist() == pytest.approx(error.tolist(), rel=2e-3)


def test_pairs_are_counted_as_pairs():
    # r = -1, -3 | 2, 5: the first is the right way round; sigmoid(2) = 0.880797, sigmoid(-3) = 0.0474259
    sums = MetricSums()
    rows = torch.tensor([True, False, True, False]), torch.ones(4, dtype=torch.bool)
    add_reward_metrics(sums, torch.tensor([-1.0, -3.0, 2.0, 5.0]), *rows, are_pairs=True)

    class Alone:
        def reduce(self, values, _):
            return values

    means = sums.pop_means(Alone())
    assert means["rewards/accuracies"] == 0.5
    assert means["saturation/chosen"] == means["saturation/rejected"] == pytest.approx((0.880797 + 0.0474259) / 2)
    assert (means["rewards/chosen"], means["rewards/margins"], means["rewards/displaced"]) == (0.5, -0.5, 0.5)


# ---- Which pairs there are ----

PROMPTS = ["a", "b", "a", "a", "c", "b", "a"]
SCORES = [1.0, 5.0, 3.0, 1.5, 2.0, 5.0, 3.0]


def found(selection, margin=0.0, keys="ABCDEFG", sizes="sssssss"):
    pairs = find_pairs(selection, margin, PROMPTS, SCORES, keys, sizes)
    return pairs.positions, pairs.num_prompts, pairs.left_out


ALONE = "images without another of their prompt and size"
TIES, NEAR, SAME = (
    "pairs with equal scores", "pairs with scores no further apart than `pair_margin`", "pairs of the same file twice",
)  # fmt: skip


def test_best_and_worst_by_hand():
    # a has 1, 3, 1.5 and 3 again, of which the first counts; b has 5 twice; c is alone
    assert found("best_worst") == ([(2, 0)], 1, {ALONE: 1, TIES: 1})
    assert found("best_worst", margin=2.0) == ([], 0, {ALONE: 1, TIES: 1, NEAR: 1})
    assert found("best_worst", keys="ABACDEF") == ([], 0, {ALONE: 1, TIES: 1, SAME: 1})
    # of two sizes: a's 1 and 3, and its 1.5 and 3
    assert found("best_worst", sizes="swstwwt") == ([(2, 0), (6, 3)], 1, {ALONE: 1, TIES: 1})


def test_all_pairs_by_hand():
    # of a: 0-2, 0-3, 0-6, 2-3, 2-6 (equal), 3-6, the better one first
    assert found("all") == ([(2, 0), (3, 0), (6, 0), (2, 3), (6, 3)], 1, {ALONE: 1, TIES: 2})
    assert found("all", margin=1.5) == ([(2, 0), (6, 0)], 1, {ALONE: 1, TIES: 2, NEAR: 3})


def test_columns_by_hand():
    pairs = find_pairs("columns", 0.0, ["a", "a", "b", "b"], [1.0, 0.0] * 2, "ABCD", ["wide", "wide", "wide", "tall"])
    assert (pairs.positions, pairs.num_prompts) == ([(0, 1)], 1)
    assert pairs.left_out == {"pairs of images of two sizes": 1}
    assert pairs.describe() == "1 (a row each)"
    assert without_unreadable(pairs, {0}, ["a"] * 4).left_out == {
        "pairs of images of two sizes": 1, "pairs with an image that cannot be read": 1,
    }  # fmt: skip
    assert without_unreadable(pairs, {0, 1}, ["a"] * 4) == pairs


def test_the_table_before_training():
    pairs = find_pairs("all", 1.5, PROMPTS, SCORES, "ABCDEFG", "sssssss")
    assert pair_rows(pairs, 3.0, 2.0, {"dspo form": "sdxl"}) == [
        ("pairs", "2 (all of each prompt, scores more than 1.5 apart)"),
        ("prompts", "1"),
        ("left out", f"{ALONE}: 1, {TIES}: 2, {NEAR}: 3"),
        ("effective scale beta / T", "1.5 (beta 3, T 2)"),
        ("dspo form", "sdxl"),
    ]
    names = [name for name, _ in pair_rows(find_pairs("all", 0.0, ["a"] * 2, [0.0, 1.0], "AB", "ss"), 1.0, 1.0, {})]
    assert names == ["pairs", "prompts", "effective scale beta / T"]


def test_a_pair_has_one_draw_and_other_pairs_of_its_images_have_others():
    def noise(*rows):
        plan = DrawPlan(3, num_samples=2, in_pairs=True)
        draw = plan.place(plan.draw([5] * len(rows), rows, (2, 2)), torch.device("cpu"))
        return draw.noise.reshape(2, len(rows), 4), draw.quantile.reshape(2, len(rows))

    noises, quantiles = noise(7, 4, 7, 2, 9, 9)
    assert torch.equal(noises[:, ::2], noises[:, 1::2])
    assert torch.equal(quantiles[:, ::2], quantiles[:, 1::2])
    assert len({*quantiles[:, ::2].flatten().tolist()}) == 6
    assert torch.equal(noise(7, 2)[0], noises[:, 2:4])  # wherever it comes


# ---- Runs ----


def train(folder, rows, **settings):
    trainer = make_trainer(config(folder, max_steps=3, **settings), train_dataset=rows)
    start = trained_weights(trainer)
    trainer.train()
    return trainer, start


@pytest.mark.parametrize("loss", LOSSES)
def test_a_run_from_end_to_end(tmp_path, loss, capsys):
    rows = tiny.paired_rows(6)
    trainer, start = train(tmp_path, rows, **LOSSES[loss])
    end = trained_weights(trainer)
    assert any((end[name] - start[name]).abs().max() > 0 for name in start)
    assert all(weight.isfinite().all() for weight in end.values())
    expected = {"dpo": (2500, 5000, math.log(2)), "dspo": (0.0005, 0.001, None), "dspo sdxl": (2500, 5000, 0.25)}[loss]
    assert trainer.args.beta == expected[1]
    if expected[2] is not None:  # policy and reference are one
        assert logged(trainer)[0] == pytest.approx(expected[2], rel=1e-4)
    printed = " ".join(capsys.readouterr().out.split())
    assert "pairs │ 6 (a row each)" in printed
    assert f"effective scale beta / T │ {expected[0]} (beta {expected[1]}, T 2)" in printed
    assert "threshold" not in printed

    trainer.save_model()
    trainer.create_model_card()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "## Pairs" in card
    assert "| pairs | 6 (a row each) |" in card
    assert "Scores" not in card
    assert "confidence" not in card
    assert ("https://huggingface.co/papers/2311.12908), the trainer from" in card) == (loss == "dpo")
    assert ("https://openreview.net/forum?id=DomBynQsqt), the trainer from" in card) == (loss != "dpo")
    assert (f"`{trainer.args.dspo_form}`" in card) == (loss != "dpo")
    assert not (tmp_path / "out" / "score_histogram.png").exists()
    evaluated = [trainer.evaluate(tiny.paired_rows(3, seed=1)) for _ in range(2)]
    assert evaluated[0]["eval_loss"] == evaluated[1]["eval_loss"] > 0
    predicted = trainer.predict(tiny.paired_rows(3, seed=1))
    assert predicted.label_ids.tolist() == [1, 0] * 3
    pipeline = tiny.stable_diffusion()
    pipeline.load_lora_weights(str(tmp_path / "out"))
    assert isinstance(pipeline, StableDiffusionPipeline)


@pytest.mark.parametrize("loss", LOSSES)
def test_all_weights(tmp_path, loss):
    trainer, start = train(tmp_path, tiny.paired_rows(4), use_peft=False, learning_rate=1e-4, **LOSSES[loss])
    end = trained_weights(trainer)
    assert any((end[name] - start[name]).abs().max() > 0 for name in start)
    assert all(weight.isfinite().all() for weight in end.values())


@pytest.mark.parametrize("loss", LOSSES)
def test_the_layout_of_batches_makes_no_difference(tmp_path, loss):
    settings = {**LOSSES[loss], "optim": "sgd", "learning_rate": 1e-2, "beta": 20.0}
    whole, _ = train(tmp_path / "whole", tiny.paired_rows(5), per_device_train_batch_size=4, **settings)
    layout = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    parts, _ = train(tmp_path / "parts", tiny.paired_rows(5), **layout, **settings)
    assert logged(parts) == pytest.approx(logged(whole), rel=1e-4)
    assert_close(trained_weights(parts), trained_weights(whole), 1e-5)


def test_columns_and_scores_that_say_the_same_train_the_same(tmp_path):
    pairs = tiny.paired_rows(4)
    images = [image for row in pairs for image in (row["rejected"], row["chosen"])]
    scored = {"prompt": [p for p in pairs["prompt"] for _ in range(2)], "image": images, "score": [0.0, 1.0] * 4}
    batches = []
    for name, rows in (("columns", pairs), ("scores", Dataset.from_dict(scored))):
        trainer = make_trainer(config(tmp_path / name, loss_type="diffusion_dpo"), train_dataset=rows)
        assert trainer.pairs.selection == {"columns": "columns", "scores": "best_worst"}[name]
        batches.append(next(iter(trainer.get_train_dataloader())))
    for name in ("is_positive", "score", "weight", "valid", "image", "prompt"):
        assert_equal(batches[0][name], batches[1][name])
    assert batches[0]["row"] == [row // 2 for row in batches[1]["row"]]
    assert batches[0]["is_positive"].tolist() == [True, False, True, False]


def test_the_images_of_a_pair_have_the_same_noise(tmp_path):
    trainer = make_trainer(config(tmp_path, loss_type="dspo"), train_dataset=tiny.paired_rows(4))
    batch = next(iter(trainer.get_train_dataloader()))
    errors, draw = trainer._errors(trainer.model, batch)
    target = errors.predictions.target  # of an epsilon network the noise itself
    assert torch.equal(target[:, ::2], target[:, 1::2])
    assert not torch.equal(target[:, 0], target[:, 2])
    assert torch.equal(draw.quantile[::2], draw.quantile[1::2])


def test_buckets_keep_pairs_together(tmp_path):
    sizes = [(16, 16), (32, 8), (16, 16), (32, 8), (16, 16)]
    columns = {"prompt": list("abcde"), "chosen": [], "rejected": []}
    for i, size in enumerate(sizes):
        columns["chosen"].append(tiny.picture(2 * i, size))
        columns["rejected"].append(tiny.picture(2 * i + 1, size if i else (32, 8)))
    settings = {"loss_type": "diffusion_dpo", "aspect_ratio_buckets": True, "max_aspect_ratio": 4.0}
    trainer = make_trainer(config(tmp_path, **settings), train_dataset=Dataset.from_dict(columns))
    assert trainer.pairs.left_out == {"pairs of images of two sizes": 1}
    for batch in trainer.get_train_dataloader():
        assert batch["row"][::2] == batch["row"][1::2]
        assert batch["valid"][::2].tolist() == batch["valid"][1::2].tolist()
    trainer.train()


def test_videos_are_pairs_too(tmp_path):
    (case,) = (case for case in CASES if case.name == "wan")
    rows = Dataset.from_dict(
        {"prompt": ["a", "b"], "chosen": [tiny.clip(0), tiny.clip(1)], "rejected": [tiny.clip(2), tiny.clip(3)]}
    )
    args = case.config(tmp_path, loss_type="diffusion_dpo", per_device_train_batch_size=2, max_steps=1)
    trainer = make_trainer(args, model=case.build(), train_dataset=rows)
    trainer.train()
    assert logged(trainer) == [pytest.approx(math.log(2), rel=1e-3)]


# ---- What cannot be trained on ----


def stored(*columns):
    """Rows whose images are bytes."""

    def png(seed):
        buffer = io.BytesIO()
        tiny.picture(seed).save(buffer, "PNG")
        return {"bytes": buffer.getvalue() if isinstance(seed, int) else seed, "path": None}

    names = ("chosen", "rejected")
    rows = {name: [png(it) if isinstance(it, int) else {"bytes": it, "path": None} for it in column]
            for name, column in zip(names, columns, strict=True)}  # fmt: skip
    dataset = Dataset.from_dict({"prompt": [f"{i} birds" for i in range(len(columns[0]))], **rows})
    return dataset.cast_column("chosen", ImageFeature()).cast_column("rejected", ImageFeature())


def prepared(folder, rows, **settings):
    return make_trainer(config(folder, loss_type="diffusion_dpo", **settings), train_dataset=rows)


def cut_short():
    """A picture that has a size, and cannot be decoded."""
    buffer = io.BytesIO()
    tiny.picture(99).save(buffer, "PNG")
    return buffer.getvalue()[:400]


def test_the_same_file_twice_is_no_pair(tmp_path, caplog):
    rows = stored([0, 1, 2], [3, 1, 4])
    with pytest.raises(BadRowError, match=r"^Row 1, column 'rejected': the file is that of 'chosen', and neither"):
        prepared(tmp_path, rows)
    trainer = prepared(tmp_path, rows, on_bad_row="skip")
    assert [row["row"] for row in trainer.train_dataset] == [0, 0, 2, 2]
    assert "Skipped 1 of 3 rows of the training data set. Row 1, column 'rejected'" in caplog.text


@pytest.mark.parametrize(("chosen", "rejected", "column"), [(b"no picture", 3, "chosen"), (3, None, "rejected")])
def test_an_image_that_is_none_drops_its_pair(tmp_path, caplog, chosen, rejected, column):
    rejected = b"" if rejected is None else rejected
    rows = stored([0, chosen, 2], [4, rejected, 5])
    with pytest.raises(BadRowError, match=f"^Row 1, column '{column}'"):
        prepared(tmp_path, rows)
    trainer = prepared(tmp_path, rows, on_bad_row="skip")
    assert [row["row"] for row in trainer.train_dataset] == [0, 0, 2, 2]
    assert "Skipped 1 of 3 rows" in caplog.text


def test_an_image_that_cannot_be_decoded_drops_its_pair(tmp_path, caplog):
    rows = stored([0, 1, 2], [3, cut_short(), 4])
    with pytest.raises(BadRowError, match=r"^Row 1, column 'rejected'"):
        prepared(tmp_path, rows)
    for _ in range(2):  # also where nothing is encoded again
        caplog.clear()
        trainer = prepared(tmp_path, rows, on_bad_row="skip")
        assert [row["row"] for row in trainer.train_dataset] == [0, 0, 2, 2]
        assert trainer.pairs.left_out == {"pairs with an image that cannot be read": 1}
        assert "there were left out: pairs with an image that cannot be read: 1." in caplog.text
        assert "Skipped 1 of 3 rows" in caplog.text
    with pytest.raises(ValueError, match=r"Left out were pairs with an image that cannot be read: 1\.$"):
        prepared(tmp_path, stored([0], [cut_short()]), on_bad_row="skip")


def test_only_images_of_pairs_are_encoded(tmp_path, monkeypatch):
    scores = [0.0, 1.0, 2.0, 3.0]
    images = [tiny.picture(i) for i in range(4)]
    rows = Dataset.from_dict({"prompt": ["a"] * 4, "image": images, "score": scores})
    trainer = prepared(tmp_path, rows)
    assert [row["row"] for row in trainer.train_dataset] == [3, 0]
    assert trainer.train_dataset.scanned.rows == [0, 3]


def test_missing_columns_say_what_there_is_to_do(tmp_path):
    with pytest.raises(
        ValueError, match=r"no column 'image'; .*`loss_type='diffusion_dpo'` takes rows of a prompt, a c"
    ):
        prepared(tmp_path, tiny.paired_rows(2).remove_columns("rejected"))
    with pytest.raises(ValueError, match=r"no column 'better'; it has .* Rename the column, or set `chosen_column`"):
        prepared(tmp_path, tiny.paired_rows(2), chosen_column="better")
    with pytest.raises(ValueError, match="no column 'chosen'"):
        prepared(tmp_path, tiny.scored_rows(4), pairs="columns")
    with pytest.raises(
        ValueError, match=r"no column 'image'; .* are pairs: train on them with `loss_type='diffusion_dpo'"
    ):
        make_trainer(config(tmp_path), train_dataset=tiny.paired_rows(2))
    renamed = tiny.paired_rows(2).rename_columns({"chosen": "better", "rejected": "worse"})
    names = {"chosen_column": "better", "rejected_column": "worse"}
    assert len(prepared(tmp_path, renamed, **names).train_dataset) == 4


def test_what_has_no_meaning_for_pairs_of_columns_is_refused(tmp_path):
    for setting, value in (("pair_margin", 1.0), ("score_column", "votes"), ("image_column", "picture")):
        with pytest.raises(
            ValueError, match=f"`{setting}` is .*, which has no meaning for the `train_dataset`: its col"
        ):
            prepared(tmp_path, tiny.paired_rows(2), **{setting: value})
    for named in ({"chosen_column": "better"}, {"rejected_column": "worse"}):
        with pytest.raises(ValueError, match=r"_column` is '.*', which `pairs='all'` does not read: it makes pairs of"):
            prepared(tmp_path, tiny.scored_rows(8), pairs="all", **named)
    both = concatenate_datasets([tiny.paired_rows(4).remove_columns("prompt"), tiny.scored_rows(4)], axis=1)
    both = both.remove_columns(["prompt", "score"]).add_column("prompt", ["a"] * 4).add_column("score", [0.0, 1.0] * 2)
    assert prepared(tmp_path, both, pairs="all", pair_margin=0.5).pairs.describe().startswith("4 (all of each prompt")


def test_streams_are_refused_in_one_way(tmp_path):
    streamed = tiny.paired_rows(2).to_iterable_dataset()
    message = "takes pairs, which are found among all rows of a data set, and the {} is a stream. Load it without"
    with pytest.raises(ValueError, match=message.format("`train_dataset`")):
        prepared(tmp_path, streamed)
    trainer = prepared(tmp_path, tiny.paired_rows(2))
    with pytest.raises(ValueError, match=message.format("evaluation data set")):
        trainer.evaluate(streamed)


def test_odd_batches_and_data_without_pairs_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match="`per_device_train_batch_size` is 3, but `loss_type='diffusion_dpo'` takes pai"
    ):
        prepared(tmp_path, tiny.paired_rows(2), per_device_train_batch_size=3)
    with pytest.raises(ValueError, match=f"no prompt of the training .* has two .*Left out were {ALONE}: 4"):
        prepared(tmp_path, tiny.scored_rows(4))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"confidence_coef": 1.0}, r"`confidence_coef` is 1\.0, which `loss_type='diffusion_dpo'` has no use"),
        ({"threshold_type": "mean"}, "`threshold_type` is 'mean', which `loss_type='diffusion_dpo'` has no use for"),
        ({"threshold_percentile": 30.0}, "`threshold_percentile` is 30"),
        ({"score_normalization": "zscore"}, "`score_normalization` is 'zscore'"),
        ({"negative_weight": 0.5}, "`negative_weight` is 0.5, which `loss_type='diffusion_dpo'` has no use for"),
        (
            {"recipe": "robust"},
            "`recipe` is 'robust', which `loss_type='diffusion_dpo'` has no use for. Set `loss_type='t",
        ),
        ({"dspo_form": "sdxl"}, "`dspo_form` is 'sdxl', which `loss_type='diffusion_dpo'` has no use for"),
        ({"loss_type": "dspo", "dspo_form": "flux"}, "`dspo_form` is 'flux'; it must be one of 'sd15', 'sdxl'"),
        ({"loss_type": "dspo", "label_smoothing": 0.1}, "`label_smoothing` is 0.1, which `loss_type='dspo'`"),
        ({"pairs": "some"}, "`pairs` is 'some'; it must be one of 'auto', 'columns', 'best_worst', 'all'"),
        ({"pair_margin": -1.0}, r"`pair_margin` is -1\.0; it must be at least 0 and finite"),
        (
            {"loss_type": "tgo", "pairs": "all"},
            "`pairs` is 'all', which `loss_type='tgo'` .* out, or set `loss_type` to .* or 'dspo'",
        ),
        ({"loss_type": "sft", "chosen_column": "a"}, "`chosen_column` is 'a', which `loss_type='sft'` has no use for"),
    ],
)
def test_settings_that_mean_nothing_are_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **{"loss_type": "diffusion_dpo", **settings})


def test_beta_and_temperature_are_those_that_were_published_where_they_are_not_set(tmp_path):
    assert config(tmp_path, loss_type="diffusion_dpo").beta == 5000
    assert config(tmp_path, loss_type="dspo").beta == 0.001
    assert config(tmp_path, loss_type="dspo", dspo_form="sdxl").beta == 5000
    assert config(tmp_path, loss_type="dspo", beta=3.0).beta == 3
    trainer = prepared(tmp_path, tiny.paired_rows(2), temperature=0.5)
    assert trainer.temperature == 0.5


def test_tokens_have_no_predictions_to_compare(tmp_path):
    (case,) = (case for case in CASES if case.name == "amused")
    args = case.config(tmp_path, loss_type="dspo", per_device_train_batch_size=2)
    with pytest.raises(ValueError, match="`loss_type='dspo'` subtracts predictions from their target, and this"):
        make_trainer(args, model=case.build(), train_dataset=tiny.paired_rows(2))
    with pytest.raises(NotImplementedError):
        MaskedTokenProcess(7).target(*[torch.zeros(1, 4)] * 3)


# ---- Data sets as they lie about ----


def written(folder, layout):
    """A data set of three pairs on disk, and its name."""
    for i in range(6):
        tiny.picture(i).save(folder / f"{i}.png")
    rows = [{"prompt": f"{i} birds", "chosen": f"{2 * i}.png", "rejected": f"{2 * i + 1}.png"} for i in range(3)]
    if layout == "parquet":
        tiny.paired_rows(3).to_parquet(folder / "train.parquet")
        for path in folder.glob("*.png"):
            path.unlink()
        return folder
    if layout == "images":  # as `datasets` reads a folder of them
        rows = [
            {"prompt": row["prompt"], **{f"{it}_file_name": row[it] for it in ("chosen", "rejected")}} for row in rows
        ]
    path = folder / ("metadata.jsonl" if layout == "images" else "rows.jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder if layout == "images" else path


@pytest.mark.parametrize("layout", ["parquet", "images", "jsonl"])
def test_the_program_trains_on_pairs(tmp_path, layout, capsys):
    (tmp_path / "rows").mkdir()
    name = written(tmp_path / "rows", layout)
    tiny.stable_diffusion().save_pretrained(tmp_path / "model")
    settings = {
        "model_name_or_path": tmp_path / "model", "dataset_name": name, "output_dir": tmp_path / "out", "max_steps": 1,
        "encoding_cache_dir": tmp_path / "cache", "use_cpu": "true", "loss_type": "diffusion_dpo", "report_to": "none",
        "per_device_train_batch_size": 4, "disable_tqdm": "true", "save_strategy": "no", "lora_r": 2,
    }  # fmt: skip
    assert main(["train", *(text for item in settings.items() for text in (f"--{item[0]}", str(item[1])))]) == 0
    assert "3 (a row each)" in capsys.readouterr().out
    assert "## Pairs" in (tmp_path / "out" / "README.md").read_text()
    assert main(["inspect", "--dataset_name", str(name), "--output_dir", str(tmp_path / "report")]) != 0
    assert "It holds pairs, and `inspect` reports on scores" in capsys.readouterr().err


def test_the_code_of_the_docs_trains(tmp_path, monkeypatch):
    text = (Path(__file__).parents[1] / "docs" / "losses.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    picture_bytes = stored(range(4), range(4, 8)).cast_column("chosen", ImageFeature(decode=False))
    images = [row["chosen"]["bytes"] for row in picture_bytes]
    rows = Dataset.from_dict({
        "caption": list("abcd"), "jpg_0": images, "jpg_1": images[::-1], "label_0": [1.0, 0.0, 0.5, 1.0],
        "label_1": [0.0, 1.0, 0.5, 0.0], "has_label": [True, True, True, False], "user_id": [1] * 4,
    })  # fmt: skip
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: rows.to_iterable_dataset())
    monkeypatch.setattr("tgo_trl.TGOConfig", lambda _, **settings: config(tmp_path, **settings))
    monkeypatch.setattr("tgo_trl.TGOTrainer", lambda _, args, rows: make_trainer(args, train_dataset=rows))
    scope = {}
    exec(code, scope)
    assert scope["rows"]["prompt"][:] == ["a", "b"]
    assert [row["chosen"] for row in scope["rows"]] == [images[0], images[::-1][1]]
    assert scope["trainer"].state.global_step == 2


def test_a_run_that_goes_on_compares_the_same_pairs(tmp_path):
    rows = tiny.scored_rows(12)
    settings = {"loss_type": "dspo", "save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    make_trainer(config(tmp_path, **settings), train_dataset=rows).train()
    for change, message in (
        ({"pairs": "all"}, "the rows, their order, images or videos are others"),
        ({"pair_margin": 8.0}, "the rows, their order, images or videos are others"),
        ({"dspo_form": "sdxl"}, "`dspo_form` was sd15, is sdxl"),
    ):
        trainer = make_trainer(config(tmp_path, **{**settings, **change, "max_steps": 2}), train_dataset=rows)
        with pytest.raises(ValueError, match=message):
            trainer.train(resume_from_checkpoint=True)
    assert Course({"loss_type": "tgo"}).differences(Course({"loss_type": "tgo", "dspo_form": "sd15"})) == []


def test_a_loss_that_is_not_finite_names_its_row_once_and_leaves_out_the_pair(tmp_path, caplog):
    trainer = make_trainer(
        config(tmp_path, loss_type="diffusion_dpo", on_bad_row="skip", max_steps=2), train_dataset=tiny.paired_rows(4)
    )
    compute = trainer._errors

    def broken(model, inputs):
        errors, draw = compute(model, inputs)
        mask = torch.tensor([row == 2 and i % 2 == 0 for i, row in enumerate(inputs["row"])])
        return RowErrors(errors.policy.where(~mask, torch.nan), errors.reference), draw

    trainer._errors = broken
    trainer.train()
    assert "the loss of row 2 of the data set is not finite" in caplog.text
    assert all(weight.isfinite().all() for weight in trained_weights(trainer).values())
