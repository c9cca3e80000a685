"""The strength of an adapter: the base is the base, a scale is what diffusers makes of it, and the rule is kept."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image

import tgo_trl
from tgo_trl.cards.sections import with_section, with_sections_of
from tgo_trl.cli import main
from tgo_trl.commands.generate.config import GenerateConfig
from tgo_trl.commands.generate.run import generate
from tgo_trl.commands.generate.sampling import Sampler, image_seed
from tgo_trl.commands.strength.card import find_base
from tgo_trl.commands.strength.config import StrengthConfig
from tgo_trl.commands.strength.drift import EncodedRows, denoising_errors
from tgo_trl.commands.strength.plots import Shown, plot_strength
from tgo_trl.commands.strength.report import (
    ScaleRow,
    StrengthReport,
    Suggestion,
    suggest_scale,
)
from tgo_trl.commands.strength.run import strength
from tgo_trl.measures import interval, resampled_means, thumbnails, variety
from tgo_trl.policy.draws import draw_rows
from tgo_trl.policy.loading import adapter_scales, set_adapter_scale

from . import runs, tiny
from .cases import CASES, KINDS_THAT_TAKE_LONG, PROMPTS
from .test_generation import load, perturb, save_adapter
from .test_parquet import files, run_and_kill, run_two_processes

pytestmark = pytest.mark.usefixtures("on_cpu")

ROWS = ["a red cat", "a blue dog", "a green bird"]
STEPS = 2
REWARD = """
import numpy as np

def red(prompts, images):
    return [float(np.asarray(image)[..., 0].mean()) for image in images]

def of_first_frame(prompts, videos):
    return red(prompts, [frames[0] for frames in videos])

def green(prompts, images):
    return [float(np.asarray(image)[..., 1].mean()) for image in images]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pipeline in `model`, its adapter with a card in `adapter`, `prompts.txt`, and rewards in `reward.py`."""
    folder = tmp_path_factory.mktemp("strength")
    pipeline = tiny.stable_diffusion()
    pipeline.save_pretrained(folder / "model")
    save_adapter(pipeline, folder / "adapter")
    (folder / "prompts.txt").write_text("\n".join(ROWS) + "\n")
    (folder / "reward.py").write_text(REWARD)
    return folder


def config(folder, out, **settings):
    defaults = {
        "adapter_name_or_path": str(folder / "adapter"),
        "model_name_or_path": str(folder / "model"),
        "prompts": str(folder / "prompts.txt"),
        "rewards": [f"{folder / 'reward.py'}:red"],
        "output_dir": str(out),
        "scales": [0.5, 1.0],
        "num_images_per_prompt": 2,
        "num_inference_steps": STEPS,
        "disable_tqdm": True,
        "write_card": False,
    }
    return StrengthConfig(**{**defaults, **settings})


def rows_of(out, scale, tmp_path):
    return load(out / f"scale-{scale}" / "drawn", tmp_path)


@pytest.fixture(scope="module")
def measured(folder, tmp_path_factory):
    """The folder of a whole run, and its report."""
    out = tmp_path_factory.mktemp("measured") / "out"
    return out, strength(config(folder, out, rewards=[f"{folder / 'reward.py'}:{name}" for name in ("red", "green")]))


# ---- What is measured ----


def test_scale_0_is_the_base(folder, measured, tmp_path):
    out, report = measured
    base = report.rows[0]
    assert (base.scale, base.variety, base.drift) == (0, 1, [1, 1, 1, 1])
    plain = generate(
        GenerateConfig(
            str(folder / "model"), str(folder / "prompts.txt"), str(tmp_path / "plain"), num_images_per_prompt=2,
            num_inference_steps=STEPS, disable_tqdm=True,
        )
    )  # fmt: skip
    drawn, expected = rows_of(out, 0, tmp_path), load(plain, tmp_path)
    assert len(drawn) == len(expected) == 6
    for row, other in zip(drawn, expected, strict=True):
        assert row.pop("image").tobytes() == other.pop("image").tobytes()
        assert row == other


def test_a_scale_is_what_diffusers_draws_with_that_weight(folder, measured, tmp_path):
    out, _ = measured
    stock = tiny.stable_diffusion()
    stock.load_lora_weights(folder / "adapter", adapter_name="mine")
    stock.set_adapters("mine", 0.5)
    half, whole = rows_of(out, 0.5, tmp_path), rows_of(out, 1, tmp_path)
    for row, other in zip(half, whole, strict=True):
        assert row["seed"] == image_seed(42, row["prompt"], row["sample_index"])
        generator = torch.Generator().manual_seed(row["seed"])
        image = stock(row["prompt"], generator=generator, num_inference_steps=STEPS, height=16, width=16).images[0]
        assert row["image"].tobytes() == image.tobytes() != other["image"].tobytes()


def test_rewards_and_variety_are_those_of_the_samples(measured, tmp_path):
    out, report = measured
    distances = {}
    for row, scale in zip(report.rows, (0, 0.5, 1), strict=True):
        samples = rows_of(out, scale, tmp_path)
        pixels = np.stack([np.asarray(image) for image in samples["image"]]).astype(float)
        assert row.reward == pytest.approx(pixels[..., 0].mean())
        assert row.other_rewards == {"green": pytest.approx(pixels[..., 1].mean())}
        distances[scale] = variety(thumbnails(samples["image"]), samples["prompt"])
        assert row.variety == pytest.approx(distances[scale] / distances[0])
        means = pixels[..., 0].reshape(3, -1).mean(1)
        assert means.min() <= row.interval[0] < row.reward < row.interval[1] <= means.max()


def test_drift_is_the_ratio_of_errors_on_what_the_base_drew(folder, measured, tmp_path):
    out, report = measured
    drawn = rows_of(out, 0, tmp_path)
    pixels = torch.stack([torch.tensor(np.asarray(image)) for image in drawn["image"]]).permute(0, 3, 1, 2)
    stock = tiny.stable_diffusion()
    stock.load_lora_weights(folder / "adapter", adapter_name="mine")
    errors = {}
    for scale in (0, 0.5):
        stock.set_adapters("mine", scale)
        errors[scale] = errors_by_hand(
            stock, tiny_module("stable_diffusion"), pixels / 127.5 - 1, list(drawn["prompt"])
        )
    expected = [ours / base for ours, base in zip(errors[0.5], errors[0], strict=True)]
    assert report.rows[1].drift == pytest.approx(expected, rel=1e-4)
    assert min(abs(value - 1) for value in expected) > 1e-4


@pytest.mark.usefixtures("undrawn_here")
def test_drift_has_the_share_of_an_adapted_text_encoder(folder, tmp_path):
    pipeline = tiny.stable_diffusion()
    pipeline.unet.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=["to_q"]))
    pipeline.text_encoder.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]))
    for network in (pipeline.unet, pipeline.text_encoder):
        perturb(network)
    StableDiffusionPipeline.save_lora_weights(
        tmp_path / "adapter",
        get_peft_model_state_dict(pipeline.unet), get_peft_model_state_dict(pipeline.text_encoder),
        unet_lora_adapter_metadata=pipeline.unet.peft_config["default"].to_dict(),
        text_encoder_lora_adapter_metadata=pipeline.text_encoder.peft_config["default"].to_dict(),
    )  # fmt: skip
    out = tmp_path / "out"
    strength(config(folder, out, adapter_name_or_path=str(tmp_path / "adapter")))
    found = {scale: json.loads((out / f"scale-{scale}" / "errors.json").read_text())["errors"] for scale in (0, 0.5)}

    drawn, stock = rows_of(out, 0, tmp_path), tiny.stable_diffusion()
    pixels = torch.stack([torch.tensor(np.asarray(image)) for image in drawn["image"]]).permute(0, 3, 1, 2) / 127.5 - 1
    module, prompts = tiny_module("stable_diffusion"), list(drawn["prompt"])
    assert found[0] == pytest.approx(errors_by_hand(stock, module, pixels, prompts), rel=1e-4)
    stock.load_lora_weights(tmp_path / "adapter", adapter_name="mine")
    stock.set_adapters("mine", 0.5)
    whole = errors_by_hand(stock, module, pixels, prompts)
    assert found[0.5] == pytest.approx(whole, rel=1e-4)
    stock.text_encoder.disable_adapters()
    assert errors_by_hand(stock, module, pixels, prompts) != pytest.approx(whole, rel=1e-3)


def tiny_module(name):
    return next(case.module for case in CASES if case.name == name)


def errors_by_hand(pipeline, module, pixels, prompts, seed=42, shape=(4, 8, 8)):
    """Mean error by quartile, by diffusers' own parts: each row has a time in each quartile."""
    rows = list(range(len(prompts)))
    draw = draw_rows(seed, [-1] * len(rows), rows, shape, 4, torch.device("cpu"))
    means = []
    for quartile in range(4):
        mine = slice(quartile * len(rows), (quartile + 1) * len(rows))
        part = replace(
            draw, quantile=(quartile + draw.quantile[mine]) / 4, noise=draw.noise[mine],
            posterior_noise=draw.posterior_noise[mine],
        )  # fmt: skip
        with torch.no_grad():
            means.append(module.denoising_error(pipeline, pixels, prompts, part).double().mean().item())
    return means


@pytest.mark.usefixtures("undrawn_here")
@pytest.mark.parametrize("case", KINDS_THAT_TAKE_LONG)
def test_every_family_is_scaled_and_measured_as_its_card_says(case, tmp_path):
    save_adapter(case.build(), tmp_path / "adapter", case.family(case.build()))
    ours, stock = case.build(), case.build()
    family = case.family(ours)
    family.attach_adapter(ours, str(tmp_path / "adapter"))
    set_adapter_scale(ours, 0.5)
    code = f"{family.loading_code(stock, str(tmp_path / 'adapter'))}\n{family.scaling_code(0.5)}"
    exec(code, {"pipeline": stock})
    assert adapter_scales(ours) == adapter_scales(stock)
    assert {scale for layer in adapter_scales(ours).values() for scale in layer.values()} == {0.5 * 8 / 4}

    image, prompt = case.encode(family, ours)
    rows = EncodedRows([0, 1], *([{k: v[i : i + 1] for k, v in part.items()} for i in range(2)]
                                 for part in (image, prompt)))  # fmt: skip
    side = case.module.RESOLUTION
    found = denoising_errors(Sampler(ours, family, (side, side), 4, {}), rows, 42)
    expected = errors_by_hand(stock, case.module, case.pixels(), PROMPTS, shape=family.latent_shape(image))
    assert found == pytest.approx(expected, rel=1e-4)
    together = denoising_errors(Sampler(ours, family, (side, side), 8, {}), rows, 42)
    assert together == pytest.approx(found, rel=1e-4)  # both rows at once

    set_adapter_scale(ours, 0)
    assert adapter_scales(ours) == {}
    base = denoising_errors(Sampler(ours, family, (side, side), 4, {}), rows, 42)
    assert base == denoising_errors(Sampler(case.build(), family, (side, side), 4, {}), rows, 42) != found


@pytest.mark.usefixtures("undrawn_here")
@pytest.mark.parametrize(("name", "reward", "medium"), [("wan", "of_first_frame", "video"), ("amused", "red", "image")])
def test_videos_and_tokens(folder, tmp_path, name, reward, medium):
    [case] = [case for case in CASES if case.name == name]
    pipeline = case.build()
    save_adapter(case.build(), tmp_path / "adapter", case.family(pipeline))
    frames = {} if case.num_frames is None else {"num_frames": case.num_frames, "max_sequence_length": 16}
    side = case.module.RESOLUTION
    settings = config(
        folder, tmp_path / "out", adapter_name_or_path=str(tmp_path / "adapter"), model_name_or_path=None,
        rewards=[f"{folder / 'reward.py'}:{reward}"], scales=[1.0], max_prompts=2, height=side, width=side,
        num_drift_rows=2, **frames,
    )  # fmt: skip
    report = strength(settings, pipeline)
    assert medium in load(tmp_path / "out" / "scale-1" / "scored", tmp_path).column_names
    assert report.rows[0].drift == [1, 1, 1, 1]
    assert all(value != 1 for value in report.rows[1].drift)
    assert (tmp_path / "out" / "strength.png").is_file()
    scales = {scale for layer in adapter_scales(pipeline).values() for scale in layer.values()}
    assert scales == {8 / 4}, "the pipeline is left at scale 1"


@pytest.mark.usefixtures("undrawn_here")
def test_drift_on_rows_of_ones_own(folder, measured, tmp_path):
    _, report = measured
    tiny.scored_rows(4).to_parquet(tmp_path / "rows.parquet")
    other = strength(
        config(folder, tmp_path / "out", drift_dataset_name=str(tmp_path / "rows.parquet"), num_drift_rows=3)
    )
    assert other.rows[0].drift == [1, 1, 1, 1]
    assert other.rows[1].drift != report.rows[1].drift
    assert other.drift_rows == "rows of rows.parquet"


def test_rows_for_drift_are_read_before_anything_is_drawn(folder, tmp_path):
    tiny.scored_rows(2).to_parquet(tmp_path / "rows.parquet")
    (tmp_path / "broken.jsonl").write_text('{"prompt": "a", "image": "none.png"}')
    for name, column, message in (
        ("rows.parquet", "picture", r"has no column 'picture'; it has .*Set `prompt_column` or `image_column`"),
        ("broken.jsonl", "image", r"Row 0 of .*broken\.jsonl', column 'image': "),
    ):
        settings = config(folder, tmp_path / "out", drift_dataset_name=str(tmp_path / name), image_column=column)
        with pytest.raises(ValueError, match=message):
            strength(settings)
        assert not (tmp_path / "out").exists()


# ---- Going on ----


def test_what_is_drawn_is_not_drawn_again_and_scales_are_added(folder, measured, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(measured[0], out)
    rewards = [f"{folder / 'reward.py'}:{name}" for name in ("red", "green")]
    shutil.rmtree(out / "scale-1" / "scored")
    (out / "scale-1" / "errors.json").unlink()
    (out / "strength.json").write_text(json.dumps({"settings": {}}))
    (out / ".left").touch()  # as of a file that was being written
    (out / "strength.png").unlink()
    begun = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    assert len(begun) == 5
    strength(config(folder, out, rewards=rewards))
    names = ("scale-*/*/data/*", "scale-*/*/*.json", "scale-*/errors.json", "strength.*")

    def contents(folder):
        return {path.relative_to(folder): path.read_bytes() for name in names for path in folder.glob(name)}

    assert contents(out) == contents(measured[0])
    report = strength(config(folder, out, rewards=rewards, scales=[0.5, 1.0, 1.5]))
    assert [row.scale for row in report.rows] == [0, 0.5, 1, 1.5]
    assert report.rows[:3] == measured[1].rows
    assert {path: path.stat().st_mtime_ns for path in begun} == begun


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_files(folder, tmp_path):
    settings = {"num_images_per_prompt": 6, "rows_per_shard": 3, "num_inference_steps": 8}
    killed, whole = (config(folder, tmp_path / name, **settings) for name in ("killed", "whole"))
    code = (
        "import torch; torch.set_num_threads(1)\n"
        "import tgo_trl\n"
        f"tgo_trl.strength(tgo_trl.StrengthConfig(**{vars(killed)!r}))"
    )
    run_and_kill(code, tmp_path / "killed" / "scale-0.5" / "drawn", num_shards=2)
    begun = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").rglob("*.parquet")}
    strength(killed)
    strength(whole)
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    assert {path: path.stat().st_mtime_ns for path in begun} == begun


@pytest.mark.slow
def test_two_processes_find_what_one_finds(folder, tmp_path):
    settings = {"rows_per_shard": 2}
    together, alone = (config(folder, tmp_path / name / "out", **settings) for name in ("two", "one"))
    code = (
        "import torch; torch.set_num_threads(1)\n"
        "import tgo_trl\n"
        f"tgo_trl.strength(tgo_trl.StrengthConfig(**{vars(together)!r}))"
    )
    run_two_processes(code, tmp_path)
    strength(alone)
    assert files(tmp_path / "two" / "out") == files(tmp_path / "one" / "out")


# ---- The rule ----


def row(scale, reward, variety=1.0, drift=1.0):
    return ScaleRow(scale, reward, (reward, reward), {}, variety, [1.0, 1.0, drift, 1.0])


def suggest(rewards, varieties=None, drifts=None, scales=(0.0, 0.5, 1.0), **bounds):
    """The suggestion for rewards of four prompts at each scale."""
    rewards = torch.tensor(rewards, dtype=torch.float64)
    n = len(rewards)
    rows = [
        row(scale, mean, a, b)
        for scale, mean, a, b in zip(
            scales, rewards.mean(1).tolist(), varieties or [1.0] * n, drifts or [1.0] * n, strict=True
        )
    ]
    return suggest_scale(rows, resampled_means(rewards), **{"min_variety": 0.8, "max_drift": 1.2, **bounds})


LOW, MIDDLE, HIGH = [0.0, 1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0], [1.5, 2.5, 3.5, 4.5]


def test_the_highest_reward_is_suggested_where_every_prompt_says_so():
    # The intervals of the means overlap, but prompt by prompt 1 is always half a point better than 0.5.
    found = suggest([LOW, MIDDLE, HIGH])
    assert (found.scale, found.within_bounds) == (1, [0, 0.5, 1])
    assert "the largest scale that was measured" in found.reason
    assert "At 1 the reward is 3, the base's is 1.5" in found.reason


def test_of_ties_the_smallest_is_suggested():
    assert suggest([LOW, HIGH, HIGH]).scale == 0.5
    # 1 is better in one prompt and worse in another: the difference of the means, 0.05, may be chance
    near = [2.6, 1.6, 3.5, 4.5]
    found = suggest([LOW, HIGH, near])
    assert found.scale == 0.5
    assert "1 has 3.05, the highest within the bounds, which is not measurably more" in found.reason


@pytest.mark.parametrize(("fault", "values"), [("varieties", [1, 0.8, 0.79]), ("drifts", [1, 1.2, 1.21])])
def test_bounds_are_kept_to_the_letter(fault, values):
    found = suggest([LOW, MIDDLE, HIGH], **{fault: values})
    assert (found.scale, found.within_bounds) == (0.5, [0, 0.5])
    assert found.reason.endswith("Outside the bounds: 1.")
    assert suggest([LOW, MIDDLE, HIGH], **{fault: values}, min_variety=0.5, max_drift=2).scale == 1


def test_what_is_no_number_is_outside():
    assert suggest([LOW, MIDDLE, HIGH], drifts=[1, 1, float("nan")]).scale == 0.5
    assert suggest([LOW, MIDDLE, HIGH], varieties=[1, 1, float("nan")]).scale == 0.5


def test_where_no_scale_qualifies_it_says_why_and_what_to_do():
    found = suggest([LOW, MIDDLE, HIGH], varieties=[1, 0.7, 0.5], drifts=[1, 3, 9])
    assert (found.scale, found.within_bounds) == (None, [0])
    assert "At 0.5, the smallest, variety is 0.7 times the base's (at least 0.8 is asked for) and drift is 3" in (
        found.reason
    )
    assert "`--scales 0.125 0.25`" in found.reason


def test_where_nothing_beats_the_base_it_says_so():
    found = suggest([MIDDLE, LOW, MIDDLE])
    assert found.scale is None
    assert found.reason.startswith(
        "The adapter should not be used as it is: no scale within the bounds has a reward that is measurably higher "
        "than the base's 2.5. Train longer"
    )
    found = suggest([MIDDLE, LOW, HIGH], drifts=[1, 1, 2])
    assert found.scale is None
    assert "Outside them, 1 has 3: train again" in found.reason


def test_intervals_are_those_of_the_resampled_means():
    # Of the prompts 0 and 1, two are drawn: the mean is 0 or 1 with a quarter each, and the quantiles are these.
    assert interval(resampled_means(torch.tensor([[0.0, 1.0]], dtype=torch.float64))[0]) == (0, 1)
    assert interval(resampled_means(torch.full((1, 5), 0.25, dtype=torch.float64))[0]) == (0.25, 0.25)
    # Of many, it is the normal one: 1.96 standard deviations of the mean on either side.
    values = torch.randn(1, 400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    low, high = interval(resampled_means(values)[0])
    half = 1.96 * values.std().item() / 20
    assert (low, high) == pytest.approx((values.mean().item() - half, values.mean().item() + half), abs=0.01)


# ---- Card and picture ----


CARD = "---\nbase_model: me/base\n---\n\n# Mine\n\nMy own words.\n\n## Scores\n\nA table.\n"


def test_a_section_is_put_before_the_details_and_replaced():
    once = with_section(CARD, "strength", "## Strength\n\nfirst")
    assert once == CARD.replace(
        "## Scores",
        "<!-- tgo-trl: strength -->\n## Strength\n\nfirst\n<!-- tgo-trl: end of strength -->\n\n## Scores",
    )
    assert with_section(once, "strength", "## Strength\n\nsecond") == once.replace("first", "second")
    assert with_section("# A\n", "strength", "s").startswith("# A\n\n<!-- tgo-trl: strength -->\ns\n")
    assert with_section("", "strength", "s") == "<!-- tgo-trl: strength -->\ns\n<!-- tgo-trl: end of strength -->\n"


def test_of_the_card_before_only_what_describes_the_same_weights_is_kept():
    ours = with_section("# A\n", "strength", "## Strength\n\nfirst", "a1")
    assert ours.startswith("# A\n\n<!-- tgo-trl: strength of a1 -->\n## Strength\n\nfirst\n<!--")
    assert with_sections_of(ours, CARD, "a1") == with_section(CARD, "strength", "## Strength\n\nfirst", "a1")
    assert with_sections_of(ours, CARD, "b2") == with_sections_of(ours, CARD, None) == CARD
    assert with_sections_of(with_section("", "strength", "s"), CARD, None) == CARD
    assert with_section(ours, "strength", "second", "b2") == with_section("# A\n", "strength", "second", "b2")


@pytest.mark.usefixtures("undrawn_here")
def test_a_trainers_card_keeps_the_section_until_the_weights_are_trained_on(folder, tmp_path, hub):
    from huggingface_hub import HfApi

    args = runs.config(tmp_path, hub_model_id="me/mine", max_steps=1)
    trainer = runs.make_trainer(args)
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    adapter, card = tmp_path / "out", tmp_path / "out" / "README.md"
    plain = card.read_text()
    settings = {"adapter_name_or_path": str(adapter), "scales": [1.0], "write_card": True}
    strength(config(folder, tmp_path / "measured", **settings))
    written = card.read_text()
    assert "## Strength" in written
    assert "## Strength" not in plain

    trainer.create_model_card()
    assert card.read_text() == written
    trainer.push_to_hub()  # saves the weights again, and makes the card anew
    api = HfApi()
    assert Path(api.hf_hub_download("me/mine", "README.md")).read_text() == card.read_text() == written
    assert "strength.png" in api.list_repo_files("me/mine")

    trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    assert card.read_text() == plain


def test_the_card_is_written_and_written_again(folder, tmp_path, capsys):
    adapter = tmp_path / "adapter"
    shutil.copytree(folder / "adapter", adapter)
    text = f'# Mine\r\n\r\npipeline = P.from_pretrained("{folder / "model"}")\r\n'
    (adapter / "README.md").write_bytes(text.encode())
    arguments = [
        "strength", "--adapter_name_or_path", str(adapter), "--prompts", str(folder / "prompts.txt"), "--rewards",
        f"{folder / 'reward.py'}:red", "--output_dir", str(tmp_path / "out"), "--scales", "1", "--dtype", "float32",
        "--num_images_per_prompt", "2", "--num_inference_steps", "2", "--min_variety", "0", "--max_drift", "10",
    ]  # fmt: skip
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "Strength of adapter on model" in printed
    assert f"Written: {tmp_path / 'out' / 'strength.json'}".replace("\n", "") in printed.replace("\n", "")
    card = (adapter / "README.md").read_bytes().decode()
    assert card.startswith(text.rstrip())
    assert "![Samples, reward, variety and drift over the scale of the adapter](strength.png)" in card
    assert (adapter / "strength.png").read_bytes() == (tmp_path / "out" / "strength.png").read_bytes()
    assert str(tmp_path) not in card[len(text) :]
    assert main([*arguments, "--scales", "0.5", "1"]) == 0
    again = (adapter / "README.md").read_bytes().decode()
    assert again.startswith(text.rstrip())
    assert again.count("## Strength") == 1
    assert "\n| 0.5 |" in again
    assert "\n| 0.5 |" not in card
    record = json.loads((tmp_path / "out" / "strength.json").read_text())
    assert [entry["scale"] for entry in record["rows"]] == [0, 0.5, 1]
    assert (record["model"], record["adapter"]) == ("model", "adapter")
    assert str(tmp_path) not in json.dumps(record)


def test_a_suggestion_comes_with_the_code_that_applies_it(measured, tmp_path):
    from tgo_trl.commands.strength.text import card_section

    _, report = measured
    code = "pipeline.set_adapters(pipeline.get_active_adapters(), 0.5)"
    chosen = replace(report, suggestion=Suggestion(0.5, "Because.", [0, 0.5]), code=code)
    section = card_section(chosen, "strength.png")
    assert f"```python\n{code}\n```" in section
    [line] = [line for line in section.splitlines() if line.startswith("| 0.5 |")]
    assert line.endswith("| suggested |")


def test_the_picture_has_the_samples_in_order_and_marks_the_suggestion(tmp_path):
    colours = {0.0: "red", 0.5: "lime", 1.0: "blue"}
    rows = [row(0.0, 0.1), row(0.5, 0.6, 0.9, 1.1), row(1.0, 0.9, 0.5, 8.0)]
    report = StrengthReport("m", "a", "r", 2, 2, "rows", 0.8, 1.2, rows, Suggestion(0.5, "", [0, 0.5]), "code")
    pictures = {scale: Image.new("RGB", (8, 8), name) for scale, name in colours.items()}
    shown = [Shown(f"prompt {i}", [Image.new("RGB", (8, 8), "magenta")], pictures) for i in range(2)]
    plot_strength(report, shown, tmp_path / "strength.png")
    pixels = np.asarray(Image.open(tmp_path / "strength.png").convert("RGB"))
    places = [np.nonzero((pixels == np.array(colour)).all(-1))[1] for colour in
              ((255, 0, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255))]  # fmt: skip
    assert places.pop(0).max() < places[0].min(), "the sources are not left of the samples"
    assert places[0].max() < places[1].min() < places[1].max() < places[2].min()
    suggested = np.nonzero((pixels == np.array((0x1B, 0x78, 0x37))).all(-1))[1]
    assert places[0].max() < suggested.min() < suggested.max() < places[2].min()


@pytest.mark.usefixtures("undrawn_here")
def test_a_card_on_the_hub_is_copied_and_pushed_with_what_it_says(folder, tmp_path, hub):
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo("me/mine")
    shutil.copytree(folder / "adapter", tmp_path / "adapter")
    (tmp_path / "adapter" / "README.md").write_text(CARD)
    api.upload_folder(repo_id="me/mine", folder_path=tmp_path / "adapter")
    settings = {"adapter_name_or_path": "me/mine", "scales": [1.0], "write_card": True, "push_to_hub": True}
    strength(config(folder, tmp_path / "out", **settings))
    text = Path(api.hf_hub_download("me/mine", "README.md")).read_text()
    assert text == (tmp_path / "out" / "README.md").read_text()
    assert text.replace(text[text.index("<!--") : text.index("## Scores")], "") == CARD
    assert api.list_repo_files("me/mine") == ["README.md", "pytorch_lora_weights.safetensors", "strength.png"]


# ---- The base of an adapter ----


def test_the_base_is_found_in_the_card(folder, tmp_path):
    assert find_base_of(tmp_path, "---\nbase_model: me/base\n---\n# A\n") == "me/base"
    assert find_base_of(tmp_path, "---\nbase_model:\n- me/first\n- me/second\n---\n") == "me/first"
    assert find_base_of(tmp_path, f'x = P.from_pretrained("{folder / "model"}", a=None)') == str(folder / "model")
    with pytest.raises(ValueError, match=r"names the base 'elsewhere', which is not here\. Set `model_name_or_path`"):
        find_base_of(tmp_path, 'x = P.from_pretrained("elsewhere")')
    with pytest.raises(ValueError, match=r"names no base\. Set `model_name_or_path`"):
        find_base_of(tmp_path, "# A\n")
    (tmp_path / "README.md").unlink()
    with pytest.raises(ValueError, match="has no card"):
        find_base(str(tmp_path))


def find_base_of(folder, card):
    (folder / "README.md").write_text(card)
    return find_base(str(folder))


# ---- Errors ----


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scales": [0]}, r"`scales` is \[0\], without any beside 0"),
        ({"scales": []}, "without any beside 0"),
        ({"scales": ["a"]}, "`scales` has 'a', which is no number"),
        ({"scales": [True]}, "`scales` has True, which is no number"),
        ({"scales": [-0.5]}, "`scales` has -0.5; a scale is at least 0"),
        ({"scales": [float("nan")]}, r"`scales\[0\]` is nan"),
        ({"scales": [i / 100 for i in range(1, 99)]}, "`scales` has 98 entries; 50 are the most"),
        ({"num_images_per_prompt": 1}, "`num_images_per_prompt` is 1; variety is the distance between two samples"),
        ({"min_variety": 1.5}, "`min_variety` is 1.5; it is a share"),
        ({"max_drift": 0.9}, "`max_drift` is 0.9; it must be at least 1"),
        ({"max_drift": "high"}, "`max_drift` is 'high'; it must be a number"),
        ({"num_drift_rows": 0}, "`num_drift_rows` is 0"),
        ({"rewards": []}, "`rewards` is empty"),
        ({"rewards": ["a:f", "b:f"]}, "Two columns of scores would be called 'f'"),
        ({"reward_kwargs": {"x": {}}}, "`reward_kwargs` has 'x'"),
        ({"push_to_hub": True}, "`push_to_hub` uploads the card, and `write_card` is false"),
        ({"hub_model_id": "me/mine"}, "nothing is uploaded. Set `push_to_hub` too"),
    ],
)
def test_settings_that_cannot_work(folder, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        config(folder, tmp_path / "out", **settings)


def test_scales_are_put_in_order_with_the_base(folder, tmp_path):
    assert config(folder, tmp_path, scales=[1, 0.5, 1.0]).scales == [0, 0.5, 1]
    assert config(folder, tmp_path, scales=0.5).scales == [0, 0.5]
    assert StrengthConfig("a", "p", ["clip_score"]).scales == [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rewards": ["beauty"]}, "There is no reward named 'beauty'"),
        ({"max_prompts": 1}, "has one prompt, and the interval of the reward is over prompts"),
        ({"adapter_name_or_path": "{folder}/model/unet/none"}, r"has no card \(README.md\) that names its base"),
        ({"adapter_name_or_path": "{folder}"}, r"a folder without a LoRA adapter \(`\*\.safetensors`\)"),
        ({"output_dir": "{folder}/adapter"}, "where the adapter itself is"),
        ({"output_dir": "{folder}/model"}, r"holds 'model_index.json' and no strength.json: it is not of this command"),
    ],
)
def test_what_is_refused_before_a_model_is_loaded(folder, tmp_path, settings, message):
    settings = {
        name: value.format(folder=folder) if isinstance(value, str) else value for name, value in settings.items()
    }
    settings = {"model_name_or_path": "no/such-model" if "adapter_name_or_path" not in settings else None, **settings}
    before = files(folder)
    with pytest.raises(ValueError, match=message):
        strength(config(folder, settings.pop("output_dir", tmp_path / "out"), **settings))
    assert files(folder) == before
    assert not (tmp_path / "out").exists()


def test_an_adapter_of_another_network_and_a_folder_of_another_adapter(folder, measured, tmp_path):
    [case] = [case for case in CASES if case.name == "flux"]
    save_adapter(case.build(), tmp_path / "flux", case.family(case.build()))
    with pytest.raises(ValueError, match="holds no weights for a `StableDiffusionPipeline`"):
        strength(config(folder, tmp_path / "out", adapter_name_or_path=str(tmp_path / "flux")))
    assert not (tmp_path / "out").exists()
    shutil.copytree(measured[0], tmp_path / "out")
    save_adapter(tiny.stable_diffusion(), tmp_path / "other", lora_alpha=4)
    with pytest.raises(ValueError, match=r"made with other settings: `adapter` was 'adapter', is 'other'"):
        strength(config(folder, tmp_path / "out", adapter_name_or_path=str(tmp_path / "other")))


@pytest.mark.usefixtures("undrawn_here")
def test_a_base_without_variety_is_named(folder, tmp_path):
    pipeline = tiny.stable_diffusion()
    with torch.no_grad():
        pipeline.vae.decoder.conv_out.weight.zero_()
    with pytest.raises(ValueError, match="draws the same picture for every seed"):
        strength(config(folder, tmp_path / "out", model_name_or_path=None), pipeline)


def test_it_is_exported():
    assert tgo_trl.strength is strength
    assert tgo_trl.StrengthConfig is StrengthConfig
