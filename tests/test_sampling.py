"""Samples and sample grids: what is drawn, from which model, and that training does not notice."""

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import TrainerCallback

from tgo_trl import SampleGridCallback
from tgo_trl.policy.draws import stable_seed
from tgo_trl.policy.sampling import check_asked, cpu_generators
from tgo_trl.trainer import sample_grids
from tgo_trl.trainer.sample_grids import last_grid

from . import tiny
from .marks import some_fast
from .runs import assert_equal, config, logged, make_trainer, trained_weights
from .test_trainer import with_trained_adapter
from .tiny.data import picture

pytestmark = pytest.mark.usefixtures("undrawn")

PROMPTS = ["a red cat", "a blue dog"]
GRIDS = {"sample_prompts": PROMPTS, "sample_steps": 2, "sample_num_inference_steps": 2}


def arrays(images):
    return np.stack([np.asarray(image) for image in images])


@pytest.fixture
def drawn(monkeypatch):
    """The rows of images of every grid, before they become a picture."""
    grids = []
    plot = sample_grids.plot_grid

    def keep(rows, row_names, column_names, path):
        grids.append((path.name, arrays(rows[0]), arrays(rows[1]), list(row_names), list(column_names)))
        plot(rows, row_names, column_names, path)

    monkeypatch.setattr(sample_grids, "plot_grid", keep)
    return grids


def test_grids_are_drawn_at_their_steps_and_at_the_end(tmp_path, drawn):
    trainer = make_trainer(config(tmp_path, max_steps=5, learning_rate=5e-2, **GRIDS))
    trainer.train()
    names = ["step-000002.png", "step-000004.png", "step-000005.png"]
    assert sorted(path.name for path in (tmp_path / "out" / "samples").iterdir()) == names
    assert [name for name, *_ in drawn] == names
    assert last_grid(tmp_path / "out").name == names[-1]
    for _, reference, policy, rows, columns in drawn:
        assert reference.shape == policy.shape == (2, 16, 16, 3)
        assert rows[0] == "reference"
        assert columns == PROMPTS
    assert [rows[1] for *_, rows, _ in drawn] == ["step 2", "step 4", "step 5"]
    references, policies = [grid[1] for grid in drawn], [grid[2] for grid in drawn]
    assert all(np.array_equal(reference, references[0]) for reference in references)
    assert not np.array_equal(policies[0], policies[1])
    assert not np.array_equal(policies[0], references[0])
    assert not np.array_equal(references[0][0], references[0][1]), "each column has a seed of its own"


def test_a_grid_at_the_last_step_is_drawn_once(tmp_path, drawn):
    make_trainer(config(tmp_path, max_steps=4, **GRIDS)).train()
    assert [name for name, *_ in drawn] == ["step-000002.png", "step-000004.png"]


def test_the_reference_row_is_stock_diffusers_before_training(tmp_path, drawn):
    args = config(tmp_path, max_steps=2, learning_rate=5e-2, sample_guidance_scale=3.0, seed=9, **GRIDS)
    make_trainer(args).train()
    generators = [torch.Generator().manual_seed(stable_seed(9, i)) for i in range(2)]
    size = {"height": 16, "width": 16}
    expected = tiny.stable_diffusion()(PROMPTS, generator=generators, num_inference_steps=2, guidance_scale=3.0, **size)
    assert np.array_equal(drawn[0][1], arrays(expected.images))


SETTINGS = {
    "adapter": {},
    "trained adapter": {"adapter": True},
    "moving reference": {"sync_ref_model": True, "ref_model_sync_steps": 3},
    "full": {"use_peft": False},
    "sft": {"loss_type": "sft"},
    "stream": {"stream": True},
    "bfloat16": {"bf16": True},
}


@pytest.mark.parametrize("settings", some_fast(SETTINGS, {"adapter"}))
def test_training_is_the_same_with_and_without_grids(tmp_path, settings):
    settings = dict(settings)
    adapter, stream = settings.pop("adapter", False), settings.pop("stream", False)
    runs = []
    for grids in ({}, {**GRIDS, "sample_steps": 1}):
        pipeline = tiny.stable_diffusion()
        pipeline = with_trained_adapter(pipeline) if adapter else pipeline
        rows = tiny.scored_rows(8)
        trainer = make_trainer(
            config(tmp_path / str(len(runs)), max_steps=4, **settings, **grids),
            model=pipeline,
            train_dataset=rows.to_iterable_dataset() if stream else rows,
        )
        trainer.train()
        runs.append((trained_weights(trainer), logged(trainer)))
    assert (tmp_path / "1" / "out" / "samples" / "step-000004.png").is_file()
    assert not (tmp_path / "0" / "out" / "samples").exists()
    assert_equal(runs[1], runs[0])


def test_a_moving_reference_moves_its_row(tmp_path, drawn):
    args = config(tmp_path, max_steps=4, learning_rate=5e-2, sync_ref_model=True, ref_model_mixup_alpha=1.0,
                  ref_model_sync_steps=4, **GRIDS)  # fmt: skip
    make_trainer(args).train()
    before, after = drawn
    assert not np.array_equal(before[1], before[2])
    assert np.array_equal(after[1], after[2]), "the reference has become the policy"


@pytest.mark.parametrize("settings", [{}, {"use_peft": False}, {"loss_type": "sft"}, {"adapter": True}])
@pytest.mark.parametrize("from_reference", [False, True])
def test_sampling_leaves_modes_and_gradients_alone(tmp_path, settings, from_reference):
    settings = dict(settings)
    pipeline = tiny.stable_diffusion()
    pipeline = with_trained_adapter(pipeline) if settings.pop("adapter", False) else pipeline
    pipeline.set_progress_bar_config(desc="mine")
    trainer = make_trainer(config(tmp_path, **settings), model=pipeline)
    trainer.model.train()
    for weight in trainer.model.parameters():
        if weight.requires_grad:
            weight.grad = torch.ones_like(weight)
    before = describe(trainer)
    state = torch.random.get_rng_state()
    sample = trainer.sample(PROMPTS, [1, 2], from_reference=from_reference, num_inference_steps=1)
    assert arrays(sample).shape == (2, 16, 16, 3)
    assert describe(trainer) == before
    assert torch.equal(torch.random.get_rng_state(), state)
    assert pipeline._progress_bar_config.get("desc") == "mine"
    assert not pipeline._progress_bar_config.get("disable")
    assert torch.is_grad_enabled()


def describe(trainer):
    """Modes, what needs gradient, and whether there is one."""
    unet = trainer.pipeline.unet
    return (
        [module.training for module in trainer.model.modules()],
        [(name, weight.requires_grad, weight.grad is not None) for name, weight in unet.named_parameters()],
        [(name, type(part), getattr(part, "training", None)) for name, part in trainer.pipeline.components.items()],
        unet.active_adapters() if getattr(unet, "peft_config", None) else None,
        trainer.pipeline.unet is trainer.policy.networks["unet"],
    )


def test_an_error_while_sampling_leaves_modes_alone(tmp_path):
    trainer = make_trainer(config(tmp_path, use_peft=False))
    trainer.model.train()
    before = describe(trainer)
    with pytest.raises(ValueError, match="batch size"):
        trainer.sample(PROMPTS, [1, 2], from_reference=True, negative_prompt=["dull"])
    assert describe(trainer) == before


def test_a_sample_depends_on_its_own_seed_alone(tmp_path):
    trainer = make_trainer(config(tmp_path))
    together = arrays(trainer.sample(PROMPTS, [1, 2], num_inference_steps=2))
    alone = arrays(trainer.sample(PROMPTS[1:], [2], num_inference_steps=2))
    assert np.abs(together[1].astype(int) - alone[0]).max() <= 1
    assert [generator.initial_seed() for generator in cpu_generators([5, 6])] == [5, 6]


@pytest.mark.parametrize("use_peft", [True, False])
def test_policy_and_reference_are_told_apart(tmp_path, use_peft):
    trainer = make_trainer(config(tmp_path, max_steps=3, learning_rate=3e-2, use_peft=use_peft))
    options = {"num_inference_steps": 2}
    untrained = arrays(trainer.sample(PROMPTS, [1, 2], **options))
    trainer.train()
    assert not np.array_equal(arrays(trainer.sample(PROMPTS, [1, 2], **options)), untrained)
    assert np.array_equal(arrays(trainer.sample(PROMPTS, [1, 2], from_reference=True, **options)), untrained)


@pytest.mark.parametrize("kind", ["fresh", *(pytest.param(it, marks=pytest.mark.slow) for it in ("trained", "full"))])
def test_supervised_grids_show_the_policy_as_it_was(tmp_path, drawn, kind):
    pipeline = tiny.stable_diffusion()
    pipeline = with_trained_adapter(pipeline) if kind == "trained" else pipeline
    settings = {"loss_type": "sft", "use_peft": kind != "full", "max_steps": 4, "learning_rate": 3e-2, **GRIDS}
    args = config(tmp_path, **settings, save_strategy="steps", save_steps=2)
    trainer = make_trainer(args, model=pipeline)
    seeds = [stable_seed(args.seed, i) for i in range(2)]
    untrained = arrays(trainer.sample(PROMPTS, seeds, num_inference_steps=2))
    trainer.train()
    assert [name for name, *_ in drawn] == ["step-000002.png", "step-000004.png"]
    for _, reference, policy, *_ in drawn:
        assert np.array_equal(reference, untrained)
        assert not np.array_equal(policy, untrained)
    again = tiny.stable_diffusion()
    again = with_trained_adapter(again) if kind == "trained" else again
    make_trainer(args, model=again).train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert np.array_equal(drawn[-1][1], untrained)
    assert np.array_equal(drawn[-1][2], drawn[1][2])


@pytest.mark.parametrize(
    ("asked", "error", "words"),
    [
        (("a red cat", [0]), TypeError, r"`prompts` is 'a red cat'; it must be a list. .* write \['a red cat'\]"),
        ((PROMPTS, 1), TypeError, r"`seeds` is 1; it must be a list. .* write \[1\]"),
        ((["a", None], [1, 2]), TypeError, "`prompts` has None; each of them must be text"),
        ((PROMPTS, [1]), ValueError, "There are 1 `seeds` and 2 `prompts`"),
        ((PROMPTS, range(3)), ValueError, "There are 3 `seeds` and 2 `prompts`"),
        ((PROMPTS, [1, 2], [[picture(0)]]), ValueError, "There are 1 `sources` and 2 `prompts`"),
        ((PROMPTS, [1, 2], None, -1), ValueError, "`batch_size` is -1; it must be at least 1"),
    ],
)
def test_what_is_no_list_of_prompts_with_a_seed_each_is_refused(asked, error, words):
    with pytest.raises(error, match=words):
        check_asked(*asked)


@pytest.mark.parametrize("seeds", [range(1, 3), np.array([1, 2]), (1, 2)], ids=["range", "array", "tuple"])
def test_seeds_are_any_sequence(seeds):
    check_asked(PROMPTS, seeds)
    assert [generator.initial_seed() for generator in cpu_generators(seeds)] == [1, 2]


def test_a_prompt_alone_is_not_sampled_letter_by_letter(tmp_path):
    trainer = make_trainer(config(tmp_path))
    with pytest.raises(TypeError, match="`prompts` is 'a red cat'; it must be a list"):
        trainer.sample("a red cat", [0])
    with pytest.raises(ValueError, match="There are 1 `seeds` and 2 `prompts`"):
        trainer.sample(PROMPTS, [0])


def test_there_is_no_reference_to_draw_from_without_a_copy(tmp_path):
    trainer = make_trainer(config(tmp_path, loss_type="sft", use_peft=False))
    with pytest.raises(ValueError, match=r"keeps no copy of the network.*Draw before training"):
        trainer.sample(PROMPTS, [1, 2], from_reference=True)


def test_tensorboard_gets_every_grid(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    make_trainer(config(tmp_path, max_steps=3, report_to="tensorboard", **GRIDS)).train()
    events = EventAccumulator(str(tmp_path / "events"), size_guidance={"images": 0})
    events.Reload()
    assert "samples" in events.Tags()["images"]
    images = events.Images("samples")
    assert [image.step for image in images] == [2, 3]
    with Image.open(tmp_path / "out" / "samples" / "step-000003.png") as grid:
        assert (images[1].width, images[1].height) == grid.size
    assert "train/rewards/margins" in events.Tags()["scalars"]


def test_the_callback_can_be_added_by_hand(tmp_path, drawn):
    trainer = make_trainer(config(tmp_path, max_steps=3))
    trainer.add_callback(SampleGridCallback(trainer, ["a fish"], every_steps=3, seed=5, num_inference_steps=1))
    trainer.train()
    [(name, _, policy, _, columns)] = drawn
    assert name == "step-000003.png"
    assert columns == ["a fish"]
    again = trainer.sample(["a fish"], [stable_seed(5, 0)], num_inference_steps=1)
    assert np.array_equal(policy, arrays(again))


def test_grids_are_drawn_again_by_a_second_run(tmp_path, drawn):
    trainer = make_trainer(config(tmp_path, max_steps=2, **GRIDS))
    trainer.train()
    trainer.train()
    assert [name for name, *_ in drawn] == ["step-000002.png"] * 2


def test_sampling_in_the_middle_of_an_accumulated_update_changes_nothing(tmp_path):
    class Sample(TrainerCallback):
        def on_substep_end(self, args, state, control, **kwargs):
            trainer.sample(PROMPTS, [1, 2], from_reference=True, num_inference_steps=1)

    runs = []
    for callbacks in ([], [Sample()]):
        args = config(tmp_path, max_steps=3, per_device_train_batch_size=2, gradient_accumulation_steps=2)
        trainer = make_trainer(args, callbacks=callbacks)
        trainer.train()
        runs.append(trained_weights(trainer))
    assert_equal(runs[1], runs[0])
