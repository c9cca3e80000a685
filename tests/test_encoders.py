"""The frozen encoders: their dtype, their place, their fingerprint, and what they give."""

import inspect
import json
from pathlib import Path

import pytest
import torch

from tgo_trl.families import FluxFamily, StableDiffusionFamily
from tgo_trl.policy.encoders import FrozenEncoders

from .cases import CASES
from .tiny import PROMPTS, clip_tokenizer, stable_diffusion
from .tiny.flux import build as build_flux

CPU = torch.device("cpu")
GOLDEN = Path(__file__).parent / "golden" / "encodings.json"
GEOMETRY = torch.tensor([[16, 16, 0, 0]])


def encoders(pipeline=None, dtype=torch.float32, family=None, device=CPU):
    return FrozenEncoders(family or StableDiffusionFamily(), pipeline or stable_diffusion(), device, dtype)


def dtypes(module):
    return {parameter.dtype for parameter in module.parameters()}


def devices(module):
    return {parameter.device.type for parameter in module.parameters()}


def add_to_one_weight(module):
    with torch.no_grad():
        next(module.parameters()).view(-1)[0] += 1e-3


# ---- dtype ----


@pytest.mark.parametrize("loaded_as", [torch.float32, torch.bfloat16, torch.float16])
def test_prompts_are_encoded_in_the_given_dtype_and_images_always_in_float32(loaded_as):
    pipeline = stable_diffusion().to(loaded_as)
    frozen = encoders(pipeline, torch.bfloat16)
    assert dtypes(pipeline.vae) == {torch.float32}
    assert dtypes(pipeline.text_encoder) == {torch.bfloat16}
    assert dtypes(pipeline.unet) == {loaded_as}  # none of its business
    image = frozen.images(torch.zeros(1, 3, 16, 16), GEOMETRY)
    assert {tensor.dtype for tensor in image.values()} == {torch.float32}
    assert frozen.prompts(["a red cat"])["embeds"].dtype == torch.bfloat16


def test_encoders_are_frozen_and_in_evaluation_mode():
    pipeline = stable_diffusion()
    pipeline.vae.train()
    pipeline.text_encoder.train()
    frozen = encoders(pipeline)
    for module in (pipeline.vae, pipeline.text_encoder):
        assert not any(layer.training for layer in module.modules())
        assert not any(parameter.requires_grad for parameter in module.parameters())
    assert all(parameter.requires_grad for parameter in pipeline.unet.parameters())
    pixels = torch.zeros(1, 3, 16, 16, requires_grad=True)
    assert not any(tensor.requires_grad for tensor in frozen.images(pixels, GEOMETRY).values())
    assert not frozen.prompts(["a red cat"])["embeds"].requires_grad


# ---- Content ----


def test_images_and_prompts_are_what_the_pipeline_makes_of_them():
    pipeline = stable_diffusion()
    frozen = encoders(pipeline)
    pixels = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        posterior = pipeline.vae.encode(pixels).latent_dist
        embeds, _ = pipeline.encode_prompt(list(PROMPTS), "cpu", 1, False)
    image = frozen.images(pixels, GEOMETRY)
    assert image.keys() == {"mean", "std"}
    assert torch.equal(image["mean"], posterior.mean)
    assert torch.equal(image["std"], posterior.std)
    assert torch.equal(frozen.prompts(PROMPTS)["embeds"], embeds)


def test_a_replaced_tokenizer_is_the_one_that_is_used():
    pipeline, other = stable_diffusion(), clip_tokenizer()
    other.pad_token = "!"
    before = encoders(pipeline).prompts(["a red cat"])["embeds"]
    pipeline.register_modules(tokenizer=other)
    assert not torch.equal(encoders(pipeline).prompts(["a red cat"])["embeds"], before)


# ---- Place ----


def test_releasing_and_summoning_changes_nothing_on_the_cpu():
    frozen = encoders()
    pixels = torch.zeros(1, 3, 16, 16)
    before = frozen.images(pixels, GEOMETRY), frozen.prompts(["a red cat"])
    for move in (frozen.release, frozen.summon, frozen.release):
        move()
        after = frozen.images(pixels, GEOMETRY), frozen.prompts(["a red cat"])
        assert torch.equal(after[0]["mean"], before[0]["mean"])
        assert torch.equal(after[1]["embeds"], before[1]["embeds"])


def test_only_what_is_needed_is_moved_and_never_the_trained_network():
    # The meta device stands for a GPU: it tells where things are put, without computing.
    pipeline = stable_diffusion()
    frozen = encoders(pipeline, device=torch.device("meta"))
    assert devices(pipeline.vae) == devices(pipeline.text_encoder) == {"cpu"}  # moved when first used
    frozen.images(torch.zeros(1, 3, 16, 16), GEOMETRY)
    assert (devices(pipeline.vae), devices(pipeline.text_encoder)) == ({"meta"}, {"cpu"})
    frozen.summon()
    assert devices(pipeline.text_encoder) == {"meta"}
    assert devices(pipeline.unet) == {"cpu"}


# ---- Recipes ----


def recipes(frozen):
    return frozen.image_recipe, frozen.prompt_recipe


def test_recipes_are_the_same_for_the_same_encoders():
    used = stable_diffusion()
    encoders(used).prompts(["a red cat"])
    assert recipes(encoders()) == recipes(encoders()) == recipes(encoders(used))
    assert len(set(recipes(encoders()))) == 2


@pytest.mark.parametrize(
    ("change", "images_change", "prompts_change"),
    [
        (lambda pipeline: add_to_one_weight(pipeline.vae), True, False),
        (lambda pipeline: pipeline.vae.register_to_config(force_upcast=False), True, False),
        (lambda pipeline: add_to_one_weight(pipeline.text_encoder), False, True),
        (lambda pipeline: setattr(pipeline.tokenizer, "pad_token", "!"), False, True),
        (lambda pipeline: pipeline.tokenizer.add_tokens(["<new>"]), False, True),
        (lambda pipeline: add_to_one_weight(pipeline.unet), False, False),
    ],
    ids=["vae weight", "vae configuration", "text encoder weight", "padding", "vocabulary", "trained weight"],
)
def test_recipes_change_with_what_they_are_made_of(change, images_change, prompts_change):
    pipeline = stable_diffusion()
    change(pipeline)
    images, prompts = recipes(encoders(pipeline))
    before_images, before_prompts = recipes(encoders())
    assert (images != before_images, prompts != before_prompts) == (images_change, prompts_change)


def test_recipes_change_with_dtype_family_and_versions(monkeypatch):
    class OtherFamily(StableDiffusionFamily):
        pass

    before = recipes(encoders())
    images, prompts = recipes(encoders(dtype=torch.bfloat16))
    assert (images == before[0], prompts == before[1]) == (True, False)  # images are in float32 all the same
    for other in recipes(encoders(family=OtherFamily())):
        assert other not in before
    monkeypatch.setattr("diffusers.__version__", "0.0.0")
    for other in recipes(encoders()):
        assert other not in before


def test_prompts_of_another_length_are_encoded_anew_and_a_setting_of_training_changes_nothing():
    def flux(**settings):
        return recipes(encoders(build_flux(), family=FluxFamily(**settings)))

    assert flux(timestep_density="mode", train_guidance_scale=1.0) == flux()
    assert flux(max_sequence_length=16)[1] != flux()[1]


def test_our_code_may_change_and_its_version_says_when_what_is_encoded_does(monkeypatch):
    before = recipes(encoders())
    source = inspect.getsource
    monkeypatch.setattr("inspect.getsource", lambda cls: source(cls) + "# formatted")
    monkeypatch.setattr("tgo_trl.__version__", "0.0.0")
    monkeypatch.setattr(StableDiffusionFamily, "__module__", "tgo_trl.families.elsewhere")
    assert recipes(encoders()) == before
    monkeypatch.setattr(StableDiffusionFamily, "encoding_version", StableDiffusionFamily.encoding_version + 1)
    for other in recipes(encoders()):
        assert other not in before


def test_a_change_in_the_code_of_somebody_elses_family_is_a_change(monkeypatch):
    class OtherFamily(StableDiffusionFamily):
        pass

    before = recipes(encoders(family=OtherFamily()))
    source = inspect.getsource
    monkeypatch.setattr("inspect.getsource", lambda cls: source(cls) + ("# new" if cls is OtherFamily else ""))
    for other in recipes(encoders(family=OtherFamily())):
        assert other not in before


def test_versions_and_sources_of_all_bases_count(monkeypatch):
    class Mixin:
        def encode_prompts(self, pipeline, prompts):
            return super().encode_prompts(pipeline, prompts)

    class OtherFamily(Mixin, StableDiffusionFamily):
        pass

    before = recipes(encoders(family=OtherFamily()))
    monkeypatch.setattr(StableDiffusionFamily, "encoding_version", 2, raising=False)
    assert recipes(encoders(family=OtherFamily())) != before
    monkeypatch.delattr(StableDiffusionFamily, "encoding_version")
    assert recipes(encoders(family=OtherFamily())) == before
    source = inspect.getsource
    monkeypatch.setattr("inspect.getsource", lambda cls: source(cls) + ("# new" if cls is Mixin else ""))
    assert recipes(encoders(family=OtherFamily())) != before


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_is_encoded_has_a_version(case):
    # Of whoever changes what a family encodes, this asks to raise its `encoding_version`, and then to record anew:
    # `python -m tests.test_encoders`.
    pipeline = case.build()
    recorded = json.loads(GOLDEN.read_text())[case.name]
    assert recorded["version"] == case.family(pipeline).encoding_version
    assert_close(summary(case, pipeline), recorded["tensors"])


def assert_close(tensors, recorded):
    assert tensors.keys() == recorded.keys()
    for name, values in tensors.items():
        assert values["shape"] == recorded[name]["shape"]
        assert values["dtype"] == recorded[name]["dtype"]
        for statistic in ("mean", "spread", "weighted"):
            assert values[statistic] == pytest.approx(recorded[name][statistic], rel=1e-3, abs=1e-4), (name, statistic)


def summary(case, pipeline):
    """Shape, dtype and three numbers of every tensor of two images and two prompts."""
    frozen = encoders(pipeline, family=case.family(pipeline))
    images = frozen.images(case.pixels(), case.geometry())
    prompts = ["a red cube", "two birds"]
    if case.sources is None:
        tensors = {**images, **frozen.prompts(prompts)}
    else:
        pixels, sees = case.source_pixels(), frozen.family.prompts_see_sources
        edits = frozen.edits(prompts, pixels) if sees else frozen.prompts(prompts)
        tensors = {**images, **frozen.sources(pixels), **edits}
    summaries = {}
    for name, tensor in sorted(tensors.items()):
        numbers = tensor.double().flatten()
        places = torch.linspace(-1, 1, len(numbers), dtype=torch.float64)
        summaries[name] = {
            "shape": list(tensor.shape),
            "dtype": str(tensor.dtype),
            "mean": numbers.mean().item(),
            "spread": numbers.std(correction=0).item(),
            "weighted": (numbers * places).mean().item(),
        }
    return summaries


def test_latents_of_any_dtype_are_decoded_in_float32():
    pipeline = stable_diffusion()
    frozen = encoders(pipeline, torch.bfloat16)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.no_grad():
        with frozen.decoding():
            decoded = pipeline.vae.decode(latents, return_dict=False)[0]
        assert decoded.dtype == torch.float32
        assert torch.equal(decoded, pipeline.vae.decode(latents.float(), return_dict=False)[0])
        with pytest.raises(RuntimeError, match="type"):  # as it was
            pipeline.vae.decode(latents)
    assert "decode" not in vars(pipeline.vae)


if __name__ == "__main__":
    built = {case.name: (case, case.build()) for case in CASES}
    recorded = {
        name: {"version": case.family(pipeline).encoding_version, "tensors": summary(case, pipeline)}
        for name, (case, pipeline) in built.items()
    }
    GOLDEN.write_text(json.dumps(recorded, indent=1) + "\n")
