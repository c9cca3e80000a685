"""The benchmark for GPUs, on the CPU: what it counts, keeps and says; that it measures at all, of tiny networks."""

import dataclasses
import json
from pathlib import Path

import diffusers
import pytest
import torch

from benchmarks import gpu_models, gpu_speed
from benchmarks.gpu_cases import Case, is_out_of_memory, measure, plan
from benchmarks.gpu_models import MODELS, build_family, build_network, build_pipeline, encode_one
from benchmarks.gpu_steps import count_flops
from benchmarks.gpu_tables import (
    BARS,
    NOT_MEASURED,
    Results,
    bar_table,
    peer_table,
    read_page_results,
    settings_table,
    step_table,
    write_page,
    write_section,
)
from benchmarks.lora_memory import CASES as PUBLISHED
from benchmarks.peer_steps import ORDERS, build_parts

DOCS = Path(__file__).resolve().parents[1] / "docs"


@pytest.fixture
def small(monkeypatch):
    """The name of a "published" model that a CPU can hold: the whole way of the scale `real`."""
    network = dataclasses.replace(
        PUBLISHED["sd15"],
        build=lambda: diffusers.UNet2DConditionModel(
            block_out_channels=(32, 32),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=48,
            attention_head_dim=2,
        ),
    )
    monkeypatch.setitem(PUBLISHED, "small", network)
    model = dataclasses.replace(
        MODELS["sd15-512"], published="small", latents=(4, 6, 10), prompt={"embeds": (7, 48)}, num_rows=4
    )
    monkeypatch.setitem(gpu_models.MODELS, "small", model)
    return "small"


def result(case: Case, seconds: float, **values) -> dict:
    """As a run would have written it: 4 windows, of which the bare loop's are 5 % shorter, and spread over 10 %."""
    found = {
        "case": dataclasses.asdict(case),
        "title": case.title,
        "hardware": {"name": "NVIDIA H100", "memory_gb": 85.0, "matmul_tflops": 700.0},
        "versions": {"python": "3.11", "torch": "2.13"},
        "outcome": "measured",
        "samples_per_second": case.batch_size / seconds,
    }
    if case.is_peer:
        return {**found, "peer": {"seconds": seconds, "windows": [seconds], "peak_gb": 9.0}}
    trainer = {"seconds": seconds, "windows": [seconds] * 4, "peak_gb": 3.21, "utilisation": 0.2}
    bare = {"seconds": seconds / 1.05, "windows": [], "peak_gb": 3.0, "spread": 0.1}
    return {**found, "trainer": trainer, "bare": bare, "ratio": 1.05, "data_share": 0.002, **values}


# ---- What is counted ----


def test_flops_of_a_forward_by_hand():
    # FLUX.1, tiny: 16 tokens of the image and 16 of the prompt, 16 wide, 2 + 2 blocks; 2 m k n of each product.
    tokens, width = 16, 16
    embedders = tokens * 16 * width + tokens * 32 * width  # of latents and of T5
    embedders += 2 * (256 * width + width**2) + (32 * width + width**2)  # of time, guidance and CLIP
    attention = 2 * (2 * tokens) ** 2 * width
    double = 2 * width * 6 * width + 8 * tokens * width**2 + 2 * tokens * 2 * width * 4 * width + attention
    single = width * 3 * width + 2 * tokens * (4 * width + 3 * width + 5 * width) * width + attention
    last = width * 2 * width + tokens * width * 16
    forward = 2 * (embedders + 2 * double + 2 * single + last)
    model = MODELS["flux-512"]
    with_reference, without = (count_flops(model, "tiny", False, it) for it in (True, False))
    assert with_reference - without == forward == 1_116_672
    # The adapter's forward, and a backward of about as much as a forward, as frozen weights have no gradient.
    assert 2 * forward < without < 4 * forward


@pytest.mark.slow
def test_flops_of_flux_are_the_published_ones():
    # https://huggingface.co/blog/flux-fast counts 59.5 TFLOP of a forward at 1024 pixels, without attention.
    model = MODELS["flux-1024"]
    forward = (count_flops(model, "real", False, True) - count_flops(model, "real", False, False)) / 1e12
    attention = (19 + 38) * 4 * (4096 + 512) ** 2 * 3072 / 1e12
    assert forward - attention == pytest.approx(59.5, abs=0.1)


@pytest.mark.parametrize("name", MODELS)
def test_encodings_have_the_published_shapes(name):
    model = MODELS[name]
    pipeline = build_pipeline(model, "real")
    family = build_family(model, "real", pipeline)
    image, prompt = encode_one(model, family, pipeline)
    assert image["mean"].shape == (1, *model.latents)
    assert {key: value.shape for key, value in prompt.items() if key != "lengths"} == {
        key: (1, *shape) for key, shape in model.prompt.items()
    }
    assert prompt.get("lengths", (512,)) == (512,)
    assert image["mean"].std() == pytest.approx(1, abs=0.02)
    with torch.device("meta"):
        config = PUBLISHED[model.published].build().config
    width = next(
        value
        for key in ("joint_attention_dim", "cross_attention_dim", "text_dim", "cap_feat_dim")
        if (value := config.get(key))
    )
    # Wan's transformer embeds T5's 4096 itself
    assert prompt["embeds"].shape[-1] == width
    assert family.clean(pipeline, image, torch.zeros_like(image["mean"])).shape == image["mean"].shape


def test_networks_are_made_in_their_dtype(small):
    network = build_network(MODELS[small], torch.device("cpu"), torch.bfloat16)
    assert {weight.dtype for weight in network.parameters()} == {torch.bfloat16}
    assert network.conv_in.weight.float().std() > 0.01
    assert torch.nn.Linear(2, 2).weight.dtype == torch.float32  # afterwards as ever


# ---- What is measured ----


@pytest.mark.parametrize(
    ("trained", "settings"),
    [
        ("lora", {}),
        pytest.param("full", {}, marks=pytest.mark.slow),
        pytest.param("lora", {"precompute_ref_log_probs": True, "num_ref_draws": 1}, marks=pytest.mark.slow),
    ],
)
def test_a_case_is_measured(small, trained, settings):
    found = measure(Case(small, trained, 2, checkpointing=True, settings=settings), num_windows=2, seconds=0)
    assert found["outcome"] == "measured"
    assert found["steps_per_window"] == 2
    for loop in ("trainer", "bare"):
        assert len(found[loop]["windows"]) == 2
        assert min(found[loop]["windows"]) > 0
    ratios = [a / b for a, b in zip(found["trainer"]["windows"], found["bare"]["windows"], strict=True)]
    assert found["ratio"] == pytest.approx(sum(ratios) / 2)
    assert 0 <= found["data_share"] < 1
    forwards = count_flops(MODELS[small], "real", trained == "full", with_reference=not settings)
    assert found["step_tflop"] == 2 * forwards / 1e12
    assert json.loads(json.dumps(found)) == found
    assert Case(**found["case"]).name == Case(small, trained, 2, checkpointing=True, settings=settings).name


@pytest.mark.parametrize("order", ORDERS)
def test_a_peers_step_trains_what_it_says(order):
    parts = build_parts(order, "tiny", 4, torch.device("cpu"))
    before = [weight.detach().clone() for weight in parts.trained]
    masters = getattr(parts.optimizer, "master", parts.trained)
    first = [weight.detach().clone() for weight in masters]
    step, is_full = ORDERS[order]
    logged = step(parts)
    assert all(value == value for value in logged)
    num_lora = sum("lora_" in name for name, _ in parts.unet.named_parameters())
    assert len(parts.trained) == (len(list(parts.unet.parameters())) if is_full else num_lora)
    assert any(not torch.equal(one, two) for one, two in zip(first, masters, strict=True))
    if is_full:  # the reference's weights were copied in, and back
        assert all(torch.allclose(one, two, atol=1e-5) for one, two in zip(before, parts.trained, strict=True))


def test_a_case_that_does_not_fit_is_a_result(small, monkeypatch):
    huge = dataclasses.replace(MODELS[small], latents=(4, 2**24, 2**24))  # 4.5 petabytes
    monkeypatch.setitem(gpu_models.MODELS, small, huge)
    found = measure(Case(small, "lora", 1), num_windows=1, seconds=0)
    assert found["outcome"] == "out of memory"
    assert "trainer" not in found
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))


# ---- What is planned and kept ----


def test_what_is_planned():
    assert [(it.trained, it.batch_size) for it in plan(["wan-33"], checkpointing=[True])] == [
        ("lora", 1), ("lora", 2), ("full", 1),
    ]  # fmt: skip
    assert [it.batch_size for it in plan(["flux-512"], batch_sizes=[3])] == [3, 3]  # no room for all weights
    assert [it for it in plan(["flux-512"]) if it.bits == 4] == [Case("flux-512", "lora", 1, True, bits=4)]
    peers = plan([], with_peers=True)
    assert len(peers) == 2 * len(ORDERS)
    assert all(it.checkpointing and it.is_peer for it in peers)
    names = [it.name for it in plan(list(MODELS), with_peers=True)]
    assert len(set(names)) == len(names)


def test_a_setting_of_another_value_is_another_case():
    one, two = (Case("sd15-512", "lora", 1, settings={"loss_type": it}) for it in ("tgo", "sft"))
    assert len({one.name, two.name, Case("sd15-512", "lora", 1).name}) == 3


def test_results_that_are_there_are_not_measured_again(tmp_path, capsys):
    case = Case("sd15-512", "lora", 2, scale="tiny")
    path = tmp_path / "tiny" / f"{case.name}.json"
    path.parent.mkdir()
    path.write_text(json.dumps(result(case, 0.25)))
    arguments = ["--scale", "tiny", "--only", "sd15", "--trained", "lora", "--batch_sizes", "2"]
    gpu_speed.main([*arguments, "--checkpointing", "off", "--output_dir", str(tmp_path)])
    said = capsys.readouterr().out
    assert "SD 1.5, 512, LoRA, batch 2: 0.250 s a step, 8 samples/s, 1.050 of the bare loop" in said
    assert "(kept)" in said
    assert [it.name for it in path.parent.iterdir()] == [path.name]  # no log: no process was started


@pytest.mark.slow
def test_the_command_measures_and_goes_on_after_a_failure(tmp_path, capsys):
    arguments = [
        "--scale",
        "tiny",
        "--windows",
        "1",
        "--seconds",
        "0",
        "--output_dir",
        str(tmp_path),
        "--batch_sizes",
        "2",
    ]
    one = [*arguments, "--only", "flux-512", "--checkpointing", "on"]
    with pytest.raises(SystemExit, match=r"failed: FLUX.1, 512, LoRA, batch 2, checkpointing, beta=-1"):
        gpu_speed.main([*one, "--set", "beta=-1"])
    gpu_speed.main(one)
    (path,) = (tmp_path / "tiny").glob("*.json")
    assert json.loads(path.read_text())["outcome"] == "measured"
    assert "beta" in next((tmp_path / "tiny").glob("*beta*.log")).read_text()
    assert "FLUX.1, 512, LoRA, batch 2, checkpointing: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "sd9"], "nothing begins with 'sd9'"),
        (["--set", "haste=9"], "TGOConfig has no such setting"),
        (["--set", "beta"], "write name=value"),
        (["--set", "use_peft=false"], "`use_peft` is what a case sets itself"),
        (["--set", "gradient_accumulation_steps=4"], "`gradient_accumulation_steps` is what a case sets itself"),
    ],
)
def test_options_that_cannot_be_meant(arguments, message, capsys):
    with pytest.raises(SystemExit):
        gpu_speed.parse(["--scale", "tiny", *arguments])
    assert message in capsys.readouterr().err


def test_values_of_settings():
    given = ["compile_repeated_blocks=true", "beta=0.5", "recipe=robust", 'lora_target_modules=["to_q"]']
    assert gpu_speed.settings_of(given) == {
        "compile_repeated_blocks": True, "beta": 0.5, "recipe": "robust", "lora_target_modules": ["to_q"],
    }  # fmt: skip


# ---- What is said ----


def row_of(table: str, *cells: str) -> list[str]:
    """The cells behind those that a row of a Markdown table begins with."""
    start = "| " + " | ".join(cells) + " |"
    (line,) = (line for line in table.splitlines() if line.startswith(start))
    return [cell.strip() for cell in line.removeprefix(start).split("|")[:-1]]


def test_tables_of_given_results():
    plain, again = (Case("sd15-512", "lora", 8, it) for it in (False, True))
    fast = Case("sd15-512", "lora", 8, settings={"compile_repeated_blocks": True})
    peer = Case("sd15-512", "dpo-lora", 8, True)
    full = {**result(Case("sdxl-1024", "lora", 8), 1), "outcome": "out of memory"}
    found = [result(plain, 0.2), result(again, 0.4), result(fast, 0.1), result(peer, 1.0), full]
    results = Results(found)
    steps = step_table(results)
    assert row_of(steps, "SD 1.5, 512", "LoRA", "8") == [
        "0.200 / 0.400", "40 / 20", "1.050 / 1.050", "10.0% / 10.0%", "3.2 / 3.2", "20% / 20%", "0.2% / 0.2%",
    ]  # fmt: skip
    assert row_of(steps, "SD 1.5, 512", "LoRA", "1") == [NOT_MEASURED] + [""] * 6
    assert row_of(steps, "SDXL, 1024", "LoRA", "8")[0] == "out of memory / not measured"
    assert row_of(peer_table(results), "diffusers' Diffusion-DPO script, LoRA", "8") == ["1.000", "8", "9.0", "2.50"]
    settings = row_of(settings_table(results), "SD 1.5, 512", "LoRA", "8", "no", "`compile_repeated_blocks=True`")
    assert (settings[0], settings[-1]) == ("0.100", "2.00")
    assert results.place.startswith("NVIDIA H100, 85 GB, 700 to 700 TFLOP/s in bfloat16; python 3.11")


def test_bars_of_given_results():
    cases = {
        Case("sd15-512", "lora", 8): {"seconds": 0.1},  # 80 images a second
        Case("sd15-512", "dpo-lora", 8, True): {"seconds": 0.5},  # 16
        Case("sd15-512", "kto-lora", 8, True): {"seconds": 0.25},  # 32: 2.5 times
        Case("sdxl-1024", "lora", 1): {"seconds": 0.28},
        Case("sdxl-1024", "lora", 1, settings={"compile_repeated_blocks": True}): {"seconds": 0.25, "data_share": 0.02},
        Case("flux-512", "lora", 1, True, bits=4): {"seconds": 0.5},
    }
    results = Results(result(case, **values) for case, values in cases.items())
    table = bar_table(results)
    ours = "SD 1.5, 512, LoRA, batch 8"
    peers = "SD 1.5 over the faster of the peers' LoRA scripts, batch"
    assert row_of(table, f"{peers} 8: at least 3.00") == ["2.50", ours, "missed by 0.50"]
    assert row_of(table, f"{peers} 32: at least 3.00") == ["", "", NOT_MEASURED]
    assert row_of(table, "SDXL, 1024: seconds of a step at batch 1: at most 0.30") == [
        "0.25", "SDXL, 1024, LoRA, batch 1, compile_repeated_blocks=True", "met",
    ]  # fmt: skip
    utilisation = "SDXL, 1024: utilisation at batch 1, without checkpointing: at least 0.33"
    assert row_of(table, utilisation)[-1] == "missed by 0.13"
    assert (
        row_of(table, "share of a step that waits for data, the worst case: at most 0.0100")[-1] == "missed by 0.0100"
    )
    assert row_of(table, "trainer over bare loop, the worst case: at most 1.030")[-1] == "missed by 0.020"
    assert row_of(table, "FLUX.1, 512, LoRA on 4 bits: peak GB: at most 24.0")[0::2] == ["3.2", "met"]
    assert len(table.splitlines()) == 2 + len(BARS)


def test_bars_end_the_command_with_an_error(tmp_path, capsys):
    with pytest.raises(SystemExit, match=r"trainer over bare loop, the worst case: at most 1.030: not measured"):
        gpu_speed.main(["--no_measuring", "--check", "--output_dir", str(tmp_path)])


def test_results_of_two_cards_are_refused():
    one, two = result(Case("sd15-512", "lora", 1), 0.1), result(Case("sd15-512", "lora", 4), 0.1)
    two["hardware"]["name"] = "NVIDIA H200"
    with pytest.raises(ValueError, match="several cards"):
        Results([one, two])


def test_a_page_is_written_from_results_and_holds_to_them(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Speed\n\n<!-- tgo-trl: gpu -->\nold\n<!-- tgo-trl: end of gpu -->\n\n## Next\n")
    write_page(page, Results([result(Case("sd15-512", "lora", 8), 0.2)]))
    text = page.read_text()
    assert text.startswith("# Speed\n")
    assert text.endswith("\n## Next\n")
    assert row_of(text, "SD 1.5, 512", "LoRA", "8")[0] == "0.200 / not measured"
    assert write_section(text, read_page_results(page)) == text


def test_the_documentation_says_what_was_measured():
    text = (DOCS / "performance.md").read_text()
    assert write_section(text, read_page_results(DOCS / "performance.md")) == text
