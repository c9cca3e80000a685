"""What `speed="auto"` chooses, from facts alone, and the model of memory that it goes by."""

from dataclasses import replace

import pytest

from tgo_trl import AlignPropConfig, TGOConfig
from tgo_trl.policy.denoising import Denoiser
from tgo_trl.policy.memory import Footprint, fixed_bytes, footprint
from tgo_trl.trainer.speed_choice import SpeedFacts, apply_choice, choose_speed, common_facts

from . import tiny
from .cases import CASES
from .runs import config, make_trainer, streamed

BY_NAME = {case.name: case for case in CASES}

# Of the networks at their published sizes: 2 bytes a weight and 16 a number of a LoRA of rank 16 on attention; numbers
# that blocks hand on for a row, counted, in all and of the largest; and bytes kept for each of them.
SD15 = Footprint(1_719_000_000 + 51_000_000, 50 * 23_511_040, 2 * 23_511_040, 50 * 1_310_720)
SDXL = Footprint(5_135_000_000 + 372_000_000, 50 * 152_043_520, 2 * 152_043_520, 50 * 5_242_880)
FLUX = Footprint(23_803_000_000 + 418_000_000, 33 * 268_959_744, 2 * 268_959_744, 33 * 4_718_592)

MEASURED = {  # GB at most, by rows: without and with recomputation of all blocks, on one H200
    "SD 1.5, 512": (SD15, {1: (3.0, 2.1), 4: (6.5, 2.9), 8: (11.2, 4.0), 16: (20.5, 6.2), 32: (39, 10.6)}),
    "SDXL, 1024": (SDXL, {1: (13.3, 6.2), 4: (36.6, 8.4), 8: (67.7, 11.3)}),
    "FLUX.1, 512": (FLUX, {1: (33, 25), 2: (41.8, 25.8), 4: (59.3, 27.5)}),
}


@pytest.mark.parametrize(("model", "measured"), MEASURED.values(), ids=MEASURED)
def test_the_model_of_memory_has_been_fitted_and_is_near_what_was_measured(model, measured):
    for rows, (without, recomputed) in measured.items():
        assert model.peak(rows, None) / 1e9 == pytest.approx(without, rel=0.03)
        # never much below what is needed, and for SDXL up to 36 % above it
        assert 0.97 * recomputed < model.peak(rows, 1) / 1e9 < 1.37 * recomputed
        assert model.peak(rows, None) > model.peak(rows, 4) > model.peak(rows, 2) > model.peak(rows, 1)


def test_every_nth_block_saves_its_share():
    model = Footprint(fixed=1000, kept=100, outputs=5, largest=10)  # recomputed: 5 + 3.5 * 10 = 40
    assert [model.peak(2, every) for every in (None, 3, 2, 1)] == [1200, 1160, 1140, 1080]


GPU = SpeedFacts("cuda", 80_000_000_000, SDXL, 1, 10_000, None)  # counted on are 72 GB

CHOICES = {
    "SDXL, 1 row": (GPU, None, True),
    "SDXL, 4 rows": (replace(GPU, rows=4), None, False),  # 35.9 GB
    "SDXL, 8 rows": (replace(GPU, rows=8), None, False),  # 66.3
    "SDXL, 9 rows": (replace(GPU, rows=9), 4, False),  # 73.9, or 59.6
    "SDXL, 12 rows": (replace(GPU, rows=12), 3, False),  # 96.7, a quarter of 76.6 less 77.6, a third less 71.2
    "SDXL, 13 rows": (replace(GPU, rows=13), 2, False),  # 104.3, a third of 82.9 less 76.7, half less 62.9
    "SDXL, 32 rows": (replace(GPU, rows=32), 1, False),
    "SDXL, more than fits": (replace(GPU, rows=100), 1, False),
    "SDXL, 24 GB": (replace(GPU, memory=24_000_000_000), None, True),
    "SDXL, 12 GB": (replace(GPU, memory=12_000_000_000), 2, True),  # 10.8: 13.1, a third 11.0, a half 9.9
    "FLUX.1, 4 rows": (replace(GPU, footprint=FLUX, rows=4), None, False),
    "FLUX.1, 1 row": (replace(GPU, footprint=FLUX), None, True),
    "FLUX.1, 32 GB": (replace(GPU, footprint=FLUX, memory=32_000_000_000), 1, True),  # 28.8: 33.1, half 29.2, all 25.3
    "SD 1.5, 2 rows": (replace(GPU, footprint=SD15, rows=2), None, False),
    "a short run": (replace(GPU, batches=100), None, False),
    "a run of unknown length": (replace(GPU, batches=None), None, True),
    "nothing to compile": (replace(GPU, uncompiled="it has none"), None, False),
    "an unknown network": (replace(GPU, footprint=None), 1, True),
    "a CPU": (SpeedFacts("cpu", None, None, 1, None, None), 1, False),
}


@pytest.mark.parametrize(("facts", "every", "compiles"), CHOICES.values(), ids=CHOICES)
def test_choices(facts, every, compiles):
    choice = choose_speed(facts)
    assert (choice.every if choice.recomputes else None, choice.compiles) == (every, compiles)


def test_processes_choose_alike_by_the_least_memory_and_the_most_that_is_taken():
    more = replace(SDXL, fixed=SDXL.fixed + 1)
    facts = [replace(GPU, footprint=more), replace(GPU, memory=24_000_000_000)]
    common = replace(GPU, memory=24_000_000_000, footprint=more)
    assert common_facts(facts) == common_facts(facts[::-1]) == common
    assert common_facts([GPU]) == GPU
    assert common_facts([GPU, replace(GPU, footprint=None)]).footprint is None
    assert common_facts([replace(GPU, memory=None), GPU]).memory is None


def test_reasons_have_their_numbers():
    assert choose_speed(GPU).why_recomputes == "about 13.1 GB of 80.0 GB are needed"
    assert "take fewer rows in a batch" in choose_speed(replace(GPU, rows=100)).why_recomputes
    assert choose_speed(replace(GPU, rows=4)).why_compiles.startswith("there are 4 rows in a batch")
    assert "nothing was measured on this CPU" in choose_speed(replace(GPU, device="cpu", memory=None)).why_compiles


def test_what_is_set_stays_and_what_is_chosen_is_written_down(tmp_path):
    several = choose_speed(replace(GPU, rows=9))
    one = choose_speed(GPU)
    args = config(tmp_path, speed="auto", gradient_checkpointing=None)
    assert (args.gradient_checkpointing, args.compile_repeated_blocks) == (None, None)
    lines = apply_choice(args, several)
    assert lines[1].startswith(
        "  gradient_checkpointing=True, gradient_checkpointing_kwargs={'every_n_layers': 4}: about"
    )
    assert lines[2].startswith("  compile_repeated_blocks=False: there are 9 rows")
    assert lines[3] == "  attention_backend: left at PyTorch's own"
    # A run of the settings that were saved makes the same choice, whatever it would choose.
    saved = {name: value for name, value in args.to_dict().items() if name in TGOConfig.__dataclass_fields__}
    keys = ("output_dir", "use_cpu", "speed", "compile_repeated_blocks", "gradient_checkpointing")
    again = TGOConfig(**{name: saved[name] for name in (*keys, "gradient_checkpointing_kwargs")})
    lines = apply_choice(again, one)
    assert again.gradient_checkpointing_kwargs == {"every_n_layers": 4}
    assert (again.gradient_checkpointing, again.compile_repeated_blocks) == (True, False)
    assert [line.endswith("as you set it") for line in lines] == [False, True, True, False]


@pytest.mark.parametrize("value", [True, False])
def test_each_setting_is_chosen_for_itself(tmp_path, value):
    args = config(tmp_path, speed="auto", gradient_checkpointing=value)
    apply_choice(args, choose_speed(GPU))
    assert (args.gradient_checkpointing, args.compile_repeated_blocks) == (value, True)
    args = config(tmp_path, speed="auto", gradient_checkpointing=None, compile_repeated_blocks=value)
    apply_choice(args, choose_speed(GPU))
    assert (args.gradient_checkpointing, args.compile_repeated_blocks) == (False, value)
    options = {"every_n_layers": 3}
    args = config(tmp_path, speed="auto", gradient_checkpointing=None, gradient_checkpointing_kwargs=options)
    apply_choice(args, choose_speed(GPU))
    assert (args.gradient_checkpointing, args.gradient_checkpointing_kwargs) == (True, options)


def test_without_it_settings_are_as_before(tmp_path):
    args = config(tmp_path, gradient_checkpointing=None)
    assert (args.gradient_checkpointing, args.compile_repeated_blocks, args.speed) == (True, False, None)
    with pytest.raises(ValueError, match="`speed` is 'fast'; it must be one of 'auto'"):
        config(tmp_path, speed="fast")
    with pytest.raises(ValueError, match="`speed` is 'auto', which `AlignPropTrainer` has no use for"):
        AlignPropConfig(str(tmp_path), use_cpu=True, speed="auto")


def test_on_the_cpu_defaults_stay_and_it_is_said(tmp_path, capsys):
    trainer = make_trainer(config(tmp_path, speed="auto", gradient_checkpointing=None))
    assert (trainer.args.gradient_checkpointing, trainer.args.compile_repeated_blocks) == (True, False)
    assert "gradient_checkpointing=True: nothing was measured on this CPU" in capsys.readouterr().out
    trainer.train()
    assert trainer.policy.networks["unet"].is_gradient_checkpointing


def test_facts_of_a_run_are_those_of_its_rows_and_networks(tmp_path):
    settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3, "num_likelihood_samples": 2}
    trainer = make_trainer(config(tmp_path, **settings))  # two updates
    assert trainer._speed_facts(trainer.train_dataset, 10**9).footprint is None  # which is of no use to what is set
    trainer.args.gradient_checkpointing = None
    facts = trainer._speed_facts(trainer.train_dataset, 10**9)
    assert facts == SpeedFacts("cpu", 10**9, trainer._footprint(trainer.train_dataset), 4, 6, None)
    assert facts.footprint.kept > facts.footprint.outputs > facts.footprint.largest / 25 > 0
    assert trainer._speed_facts(trainer.train_dataset, None).footprint is None
    args = config(tmp_path, max_steps=-1, num_train_epochs=3, loss_type="diffusion_dpo", beta=1.0)
    pairs = make_trainer(args, train_dataset=tiny.paired_rows(6))
    pairs.args.gradient_checkpointing = None
    facts = pairs._speed_facts(pairs.train_dataset, 10**9)  # 36 images, 4 a batch
    assert (facts.rows, facts.batches, facts.footprint.kept > 0) == (4, 9, True)
    stream = make_trainer(config(tmp_path), train_dataset=streamed(tiny.scored_rows(8)))
    stream.args.gradient_checkpointing = None
    assert stream._speed_facts(stream.train_dataset, 10**9).footprint is None


@pytest.mark.parametrize(
    ("name", "settings", "why"),
    [
        ("stable_diffusion", {"aspect_ratio_buckets": True, "resolution": 32}, "of several shapes"),
        ("wan-two_stage", {}, "of several shapes"),
        ("stable_diffusion_3", {}, "`SD3Transformer2DModel` does not say which of its blocks are repeated"),
    ],
)
def test_blocks_are_not_compiled_where_that_was_not_measured(tmp_path, name, settings, why):
    case = BY_NAME[name]
    trainer = make_trainer(case.config(tmp_path, **settings), model=case.build(), train_dataset=case.rows(4))
    trainer.args.gradient_checkpointing = None
    facts = trainer._speed_facts(trainer.train_dataset, 10**12)
    assert why in facts.uncompiled
    assert why in choose_speed(facts).why_compiles


def test_blocks_are_counted_without_being_changed(tmp_path):
    setup = BY_NAME["stable_diffusion"].setup(tmp_path)
    network = setup.policy.networks["unet"]
    denoiser = Denoiser(setup.family, setup.pipeline, setup.family.process(setup.pipeline))
    corrupted = denoiser.corrupt(setup.image, setup.prompt, setup.draw())
    sizes = []
    for block in network.modules():
        if type(block).__name__ in ("ResnetBlock2D", "BasicTransformerBlock"):
            is_recomputed = block is not network.mid_block.resnets[0]
            if is_recomputed:
                block.register_forward_hook(lambda module, _, output: sizes.append(output[0].numel()))
    found = footprint(setup.policy, corrupted, 7)
    # In float32, twice what was measured in bfloat16.
    assert found.kept == 2 * 50 * sum(sizes)
    assert found.outputs == 4 * sum(sizes)
    assert found.largest == 2 * 50 * max(sizes)
    trained = sum(weight.numel() for weight in network.parameters() if weight.requires_grad)
    everything = sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))
    assert fixed_bytes([network], 1) == everything + 12 * trained == fixed_bytes([network], 2) - 4 * trained
    assert found.fixed == 7
    assert not network.is_gradient_checkpointing


def test_a_network_that_recomputes_in_its_own_way_is_not_counted(tmp_path):
    setup = BY_NAME["amused"].setup(tmp_path)
    assert footprint(setup.policy, None, 7) is None
