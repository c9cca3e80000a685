"""Noise that is drawn ahead of the step: to the same bits, by another thread or process, and before it is needed."""

import pickle
import threading
from concurrent.futures import Future
from itertools import pairwise

import pytest
import torch
from torch.utils.data._utils.pin_memory import pin_memory

from tgo_trl.data.collator import DrawingCollator, RowCollator, draw_of
from tgo_trl.families import StableDiffusionFamily
from tgo_trl.policy import draws
from tgo_trl.policy.draws import EVALUATION_EPOCH, DrawPlan, draw_rows, stable_seed

from . import tiny
from .cases import CASES
from .marks import some_slow
from .runs import assert_equal, config, logged, make_trainer, metrics, streamed, trained_weights

CPU = torch.device("cpu")
SHAPE = (2, 3, 3)


def assert_same_draw(one, other):
    assert one.keys == other.keys
    for name in ("quantile", "noise", "posterior_noise"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


# ---- The plan ----


def test_a_plan_draws_what_rows_and_pairs_draw():
    epochs, rows = [1, 1, 5, 5], [4, 9, 2, 2]
    plan = DrawPlan(seed=3, num_samples=2)
    assert_same_draw(plan.place(plan.draw(epochs, rows, SHAPE), CPU), draw_rows(3, epochs, rows, SHAPE, 2, CPU))
    plan = DrawPlan(seed=3, num_samples=2, in_pairs=True)
    of_pairs = draw_rows(3, [1, 5], [stable_seed(4, 9), stable_seed(2, 2)], SHAPE, 2, CPU)
    assert_same_draw(plan.draw(epochs, rows, SHAPE), of_pairs)
    placed = plan.place(of_pairs, CPU)  # [K * B, ...]: both rows of the first pair, of the second, and once more
    assert torch.equal(placed.noise, of_pairs.noise[[0, 0, 1, 1, 2, 2, 3, 3]])
    assert torch.equal(placed.posterior_noise, of_pairs.posterior_noise[[0, 0, 1, 1, 2, 2, 3, 3]])
    assert torch.equal(placed.quantile, of_pairs.quantile[[0, 0, 1, 1, 2, 2, 3, 3]])


def test_a_plan_takes_draws_in_turns_and_leaves_those_of_evaluation():
    drawn = DrawPlan(seed=3, num_draws=2).draw([0, 3, EVALUATION_EPOCH], [7, 7, 7], SHAPE)
    assert_same_draw(drawn, draw_rows(3, [0, 1, EVALUATION_EPOCH], [7, 7, 7], SHAPE, 1, CPU))


@pytest.mark.parametrize("in_pairs", [False, True])
def test_without_a_posterior_all_else_is_as_with_it(in_pairs):
    whole, without = (
        plan.place(plan.draw([1, 1], [4, 9], SHAPE), CPU)
        for plan in (DrawPlan(3, 2, in_pairs, with_posterior=it) for it in (True, False))
    )
    assert torch.equal(without.noise, whole.noise)
    assert torch.equal(without.quantile, whole.quantile)
    assert without.posterior_noise.shape == (4, 0)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@torch.no_grad()
def test_noise_for_the_posterior_is_drawn_where_it_acts(monkeypatch, case):
    pipeline = case.build()
    family = case.family(pipeline)
    image = family.encode_images(pipeline, case.pixels(), case.geometry())
    shape = family.latent_shape(image)
    noise = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    acts = not torch.equal(family.clean(pipeline, image, noise), family.clean(pipeline, image, -noise))
    assert acts == family.reads_posterior_noise
    drawn = []
    randn = torch.randn
    monkeypatch.setattr("torch.randn", lambda *args, **kwargs: drawn.append(args) or randn(*args, **kwargs))
    DrawPlan(0, with_posterior=family.reads_posterior_noise).draw([0], [0], shape)
    assert len(drawn) == 1 + acts


# ---- The collator ----


def rows_of(*numbers, **fields):
    image = {"mean": torch.zeros(SHAPE), "std": torch.ones(SHAPE)}
    return [{"row": number, "epoch": 2, "image": image, **fields} for number in numbers]


def collator(**options):
    return DrawingCollator(DrawPlan(3), StableDiffusionFamily().latent_shape, **options)


def test_a_batch_is_as_of_any_rows_with_its_draw():
    rows = rows_of(5, 8)
    batch, plain = collator()(rows), RowCollator()(rows)
    assert isinstance(batch["draw"], Future)
    assert_same_draw(draw_of(batch), draw_rows(3, [2, 2], [5, 8], SHAPE, 1, CPU))
    assert draw_of(plain) is None
    del batch["draw"]
    assert_equal(batch, plain)


def test_a_worker_draws_by_itself_and_its_loader_pins_that(monkeypatch):
    monkeypatch.setattr("tgo_trl.data.collator.get_worker_info", lambda: object())
    batch = collator()(rows_of(5, 8))
    assert_same_draw(batch["draw"], draw_rows(3, [2, 2], [5, 8], SHAPE, 1, CPU))
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    assert_same_draw(pin_memory(batch)["draw"], batch["draw"])
    assert any(tensor is batch["draw"].noise for tensor in pinned)
    assert not any(tensor is batch["draw"].quantile for tensor in pinned)


def test_a_collator_travels_without_its_thread():
    used = collator()
    draw_of(used(rows_of(5)))
    copied = pickle.loads(pickle.dumps(used))
    assert_same_draw(draw_of(copied(rows_of(5))), draw_of(used(rows_of(5))))


def test_what_fails_in_the_thread_fails_in_the_step():
    batch = DrawingCollator(DrawPlan(3, in_pairs=True), StableDiffusionFamily().latent_shape)(rows_of(5, 8, 9))
    with pytest.raises(ValueError, match="zip"):  # half a pair
        draw_of(batch)


def test_rows_of_a_stream_are_drawn_for_once_their_shape_is_known():
    collate = collator()
    rows = [{"row": 5, "epoch": 0, "pixels": torch.zeros(3, 24, 24)}]
    assert "draw" not in collate(rows)
    collate.known_shapes[3, 24, 24] = SHAPE
    assert_same_draw(draw_of(collate(rows)), draw_rows(3, [0], [5], SHAPE, 1, CPU))


# ---- Runs ----

RUNS = {
    "stable_diffusion": {"gradient_accumulation_steps": 2, "num_likelihood_samples": 2, "num_ref_draws": 2},
    "amused": {"dataloader_num_workers": 1},
    "wan-two_stage": {},
}
"""The settings of a run by the case: networks of which the time decides, masked tokens, a process that reads rows."""


@pytest.mark.parametrize("name", some_slow({name: name for name in RUNS}, {"amused"}))
def test_runs_are_the_same_bits_whoever_draws(tmp_path, name):
    case = next(case for case in CASES if case.name == name)
    results = []
    for data_collator in (None, RowCollator()):  # which draws nothing: the step does
        args = case.config(tmp_path, max_steps=2, per_device_train_batch_size=2, **RUNS[name])
        trainer = make_trainer(
            args, model=case.build(), train_dataset=case.rows(6), eval_dataset=case.rows(2, seed=1),
            data_collator=data_collator,
        )  # fmt: skip
        trainer.train()
        results.append((metrics(trainer.state.log_history), trained_weights(trainer), metrics([trainer.evaluate()])))
    assert_equal(results[0], results[1])


@pytest.mark.parametrize("kind", ["pairs", "stream"])
def test_pairs_and_streams_are_the_same_bits_whoever_draws(tmp_path, kind):
    results = []
    for data_collator in (None, RowCollator()):
        settings = {"loss_type": "diffusion_dpo", "pairs": "all", "beta": 20.0} if kind == "pairs" else {}
        rows = tiny.scored_rows(11) if kind == "pairs" else streamed(tiny.scored_rows(11))
        trainer = make_trainer(
            config(tmp_path, max_steps=3, **settings), train_dataset=rows, data_collator=data_collator
        )
        trainer.train()
        results.append((logged(trainer), trained_weights(trainer)))
    assert_equal(results[0], results[1])


class Events(list):
    """What a run does, in its order: batches that are collated and trained on, and, apart from it, who draws."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.drawers = []
        collate, draw = DrawingCollator.__call__, draws.draw_rows

        def drawing(*args, **kwargs):
            self.drawers.append(threading.current_thread().name)
            return draw(*args, **kwargs)

        def collating(collator, rows):
            self.append(("collated", tuple((row["epoch"], row["row"]) for row in rows)))
            return collate(collator, rows)

        monkeypatch.setattr(draws, "draw_rows", drawing)
        monkeypatch.setattr(DrawingCollator, "__call__", collating)

    def watch(self, trainer):
        compute = trainer.compute_loss

        def computing(model, inputs, *args, **kwargs):
            self.append(("trained on", tuple(zip(inputs["epoch"], inputs["row"], strict=True))))
            return compute(model, inputs, *args, **kwargs)

        trainer.compute_loss = computing
        return trainer


@pytest.mark.parametrize("accumulated", [1, 2])
def test_draws_are_made_ahead(tmp_path, monkeypatch, accumulated):
    events = Events(monkeypatch)
    args = config(tmp_path, max_steps=2, per_device_train_batch_size=1, gradient_accumulation_steps=accumulated)
    trainer = events.watch(make_trainer(args, train_dataset=tiny.scored_rows(8)))
    trainer.train()
    trained = [rows for kind, rows in events if kind == "trained on"]
    assert len(trained) == 2 * accumulated
    for rows, following in pairwise(trained):
        assert events.index(("collated", following)) < events.index(("trained on", rows))
    assert set(events.drawers) == {"draws_0"}  # none in the step
    assert len(trained) <= len(events.drawers) <= len(trained) + 1  # one more is collated than is trained on


def test_a_worker_draws_in_place_of_the_step(tmp_path, monkeypatch):
    events = Events(monkeypatch)
    make_trainer(config(tmp_path, dataloader_num_workers=1)).train()
    assert events.drawers == []  # in this process


def test_evaluations_and_streams_draw_ahead_too(tmp_path, monkeypatch):
    events = Events(monkeypatch)
    trainer = make_trainer(config(tmp_path), eval_dataset=tiny.scored_rows(6, seed=1))
    trainer.evaluate()
    assert events.drawers == ["draws_0"] * 2
    events.drawers.clear()
    trainer = make_trainer(config(tmp_path, max_steps=5), train_dataset=streamed(tiny.scored_rows(8)))
    trainer.train()
    assert events.drawers.count("MainThread") == 2  # the second batch is collated before the first is encoded
    assert events.drawers.count("draws_0") >= 3


def test_a_collator_of_the_users_own_leaves_drawing_to_the_step(tmp_path, monkeypatch):
    events = Events(monkeypatch)
    make_trainer(config(tmp_path), data_collator=RowCollator()).train()
    assert events.drawers == ["MainThread"] * 2


def test_a_collator_of_another_run_is_refused(tmp_path):
    first = make_trainer(config(tmp_path / "a", num_likelihood_samples=3))
    with pytest.raises(ValueError, match="`data_collator` draws for another run"):
        make_trainer(config(tmp_path / "b"), data_collator=first.data_collator)
    make_trainer(config(tmp_path / "c", num_likelihood_samples=3), data_collator=first.data_collator)
