"""Repeated blocks are compiled once for policy and reference, and nothing else is changed by it."""

import logging

import pytest
import torch
from diffusers import ConfigMixin, ModelMixin
from peft import get_peft_model_state_dict
from torch import nn
from torch._dynamo.utils import counters
from transformers import TrainerCallback

from tgo_trl import AlignPropConfig, TGOConfig
from tgo_trl.policy.compilation import RepeatedBlocks, check_compilable
from tgo_trl.policy.index import find_index, network_classes

from . import tiny
from .cases import CASES, perturb
from .runs import assert_close, assert_equal, config, logged, make_trainer, num_graphs, trained_weights
from .test_alignprop import make_trainer as alignprop_trainer

BY_NAME = {case.name: case for case in CASES}
EAGER = {"compile_repeated_blocks": True, "torch_compile_backend": "eager"}
"""Blocks are traced, and the graph is called as it is: bit for bit what the blocks give."""


@pytest.fixture(autouse=True)
def _anew(monkeypatch):
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "disabled", True)  # a record of each tensor, for pytest


def own(caplog):
    """The messages of the package."""
    return [it.message for it in caplog.records if it.name.startswith("tgo_trl")]


class Graphs(TrainerCallback):
    """How many graphs there are when an update begins, when it is made, and when the run ends."""

    def __init__(self):
        self.at = []

    def on_step_begin(self, args, state, control, **kwargs):
        self.at.append(num_graphs()[0])

    def on_step_end(self, args, state, control, **kwargs):
        self.at.append(num_graphs()[0])

    def on_train_end(self, args, state, control, **kwargs):
        self.at.append(num_graphs()[0])


def run(folder, resumes=False, **settings):
    """A trainer of the tiny Stable Diffusion that has trained, and how many graphs there were."""
    graphs = Graphs()
    trainer = make_trainer(config(folder, **settings), callbacks=[graphs], eval_dataset=tiny.scored_rows(4, seed=1))
    trainer.train(resume_from_checkpoint=resumes)
    return trainer, graphs.at


@pytest.mark.slow  # where no coverage is taken, whose tracer breaks graphs
def test_policy_and_reference_are_compiled_once_bit_for_bit(tmp_path, capsys):
    settings = {
        "max_steps": 3, "save_strategy": "steps", "save_steps": 2, "sync_ref_model": True, "ref_model_sync_steps": 2,
        "gradient_checkpointing": True, "eval_strategy": "steps", "eval_steps": 2, "sample_prompts": ["a red cat"],
        "sample_steps": 2, "sample_num_inference_steps": 1,
    }  # fmt: skip
    trainer, at = run(tmp_path / "compiled", **settings, **EAGER)
    # Of the reference; of the policy in the first block, whose input has no gradient, and in all others. The evaluation
    # adds those without gradient and without training of both. Samples, and a reference that moved, add none.
    assert at == [0, 3, 3, 3, 5, 5, 5]
    assert "takes longer for it: 4 BasicTransformerBlock." in capsys.readouterr().out
    plain, at = run(tmp_path / "plain", **settings)
    assert at == [5] * 7
    assert_equal(trained_weights(trainer), trained_weights(plain))
    assert_equal((logged(trainer), logged(trainer, "eval_loss")), (logged(plain), logged(plain, "eval_loss")))
    # Names are those of the plain network, and the pipeline is left as it came.
    assert trainer.model.state_dict().keys() == plain.model.state_dict().keys()
    assert not any(module._compiled_call_impl for module in trainer.model.modules())
    # ... so that stock diffusers reads what was saved, and a run goes on from it, compiled or not
    trainer.save_model()
    other = tiny.stable_diffusion()
    other.load_lora_weights(tmp_path / "compiled" / "out")
    read = get_peft_model_state_dict(other.unet, adapter_name=other.get_active_adapters()[0])
    saved = trainer.policy.adapter_state(trainer.policy.adapter_name)
    assert_equal({f"unet.{name}": weight for name, weight in read.items()}, saved)
    again, at = run(tmp_path / "compiled", resumes=True, **settings | {"max_steps": 4})
    assert at[:2] == [5, 5]
    assert_equal(logged(again)[:2], logged(trainer)[:2])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("flux", {"bf16": True, "gradient_checkpointing_kwargs": {"every_n_layers": 2}}),
        ("wan-two_stage", {}),
        ("qwen_image", {}),
        ("stable_diffusion", {"aspect_ratio_buckets": True, "resolution": 32}),
        ("stable_diffusion", {"precompute_ref_log_probs": True}),
        ("stable_diffusion", {"use_peft": False}),
    ],
)
def test_runs_of_all_kinds_are_equal_bit_for_bit(tmp_path, name, settings):
    case, found = BY_NAME[name], []
    for i, more in enumerate(({}, EAGER)):
        args = case.config(tmp_path / str(i), max_steps=4, per_device_train_batch_size=2, **settings, **more)
        trainer = make_trainer(args, model=case.build(), train_dataset=case.rows(8))
        trainer.train()
        found.append((logged(trainer), trained_weights(trainer)))
        assert (num_graphs()[0] > 0) == (more is EAGER)
    assert_equal(found[1], found[0])


@pytest.mark.slow
def test_samples_with_gradient_are_compiled_too(tmp_path):
    runs = []
    for name, settings in (("plain", {}), ("compiled", EAGER)):
        trainer = alignprop_trainer(tmp_path / name, max_steps=3, **settings)
        trainer.train()
        runs.append((logged(trainer, "reward"), trained_weights(trainer)))
        assert (num_graphs()[0] > 0) == (settings is EAGER)
    assert_equal(runs[1], runs[0])


@pytest.mark.parametrize(
    "name",
    [pytest.param("flux", marks=pytest.mark.slow), pytest.param("stable_diffusion", marks=pytest.mark.long)],
)
def test_kernels_that_are_generated_give_the_losses_within_a_tolerance(tmp_path, name):
    case, found = BY_NAME[name], []
    for settings in ({}, {"compile_repeated_blocks": True}):
        args = case.config(tmp_path, max_steps=3, optim="sgd", learning_rate=0.1, **settings)
        graphs = Graphs()
        trainer = make_trainer(args, model=case.build(), train_dataset=case.rows(8), callbacks=[graphs])
        trainer.train()
        found.append((logged(trainer), trained_weights(trainer)))
    (losses, weights), (compiled_losses, compiled_weights) = found
    assert graphs.at[0] == 0 < graphs.at[1] == graphs.at[-1]
    assert compiled_losses == pytest.approx(losses, rel=1e-4)
    assert_close(compiled_weights, weights, 1e-4)


def test_every_size_of_rows_has_the_same_graphs_where_there_are_several(tmp_path):
    setup = BY_NAME["stable_diffusion"].setup(tmp_path)
    perturb(setup.policy)
    unet = setup.policy.networks["unet"]
    text = next(iter(setup.prompt.values()))
    # dynamo takes sides that are equal at first for always equal, which costs another graph if a square comes first
    samples = [torch.randn(2, 4, height, width) for height, width in ((20, 12), (28, 12), (8, 16), (12, 12))]

    def outputs(samples):
        return [unet(sample, torch.tensor([3, 500]), text, return_dict=False)[0] for sample in samples]

    with torch.no_grad():
        expected = outputs(samples)
        blocks = RepeatedBlocks([unet], "eager", None, dynamic=True)
        with blocks.compiled():
            some = outputs(samples[:1])
            first = num_graphs()[0]
            assert_equal(some + outputs(samples[1:]), expected)
            assert num_graphs()[0] == first
            with blocks.eager():
                unet(torch.randn(1, 4, 20, 20), 3, text[:1], return_dict=False)
            assert num_graphs()[0] == first


class Broken(nn.Module):
    """A block that cannot be compiled whole."""

    def __init__(self, width=2):
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, states):
        states = self.linear(states)
        torch._dynamo.graph_break()
        return states.relu()


class Whole(Broken):
    """A block that can."""

    def forward(self, states):
        return self.linear(states)


class Network(ModelMixin, ConfigMixin):
    """A network of one kind of blocks."""

    def __init__(self, blocks):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self._repeated_blocks = [type(blocks[0]).__name__]


@pytest.mark.slow  # where no coverage is taken, whose tracer breaks graphs
def test_a_graph_that_breaks_is_warned_of_once(caplog):
    network = Network([Broken()])
    type(network)._repeated_blocks = ["Broken"]
    blocks = RepeatedBlocks([network], "eager", None, dynamic=False)
    with blocks.compiled():
        network.blocks[0](torch.zeros(1, 2))
        blocks.warn_of_eager_code()
        network.blocks[0](torch.zeros(1, 2))
        blocks.warn_of_eager_code()
    (message,) = own(caplog)
    assert "part of the blocks is not compiled" in message
    assert message.endswith("Call to `torch._dynamo.graph_break()`")


@pytest.mark.slow  # where no coverage is taken, whose tracer breaks graphs
def test_more_graphs_than_dynamo_takes_are_made_and_too_many_are_warned_of(caplog, monkeypatch):
    network = Network([Whole(width) for width in range(1, 13)])
    type(network)._repeated_blocks = ["Whole"]
    blocks = RepeatedBlocks([network], "eager", None, dynamic=False)

    def call():
        with blocks.compiled():
            for block in network.blocks:
                block(torch.zeros(1, block.linear.in_features))
        blocks.warn_of_eager_code()

    limit = torch._dynamo.config.recompile_limit
    call()
    assert num_graphs()[0] == 12 > limit == torch._dynamo.config.recompile_limit
    assert not own(caplog)
    torch._dynamo.reset()
    monkeypatch.setattr("tgo_trl.policy.compilation.MOST_GRAPHS", 10)
    call()
    assert num_graphs()[0] == 12 + 10
    assert [message.endswith("Dynamo recompile limit exceeded") for message in own(caplog)] == [True]


# ---- What is refused ----

COMBINATIONS = {
    "the whole network too": ({"torch_compile": True}, "`compile_repeated_blocks` and `torch_compile` are both True"),
    "an unknown backend": ({"torch_compile_backend": "induktor"}, "`torch_compile_backend` is 'induktor'; it must be"),
    "CUDA graphs": (
        {"torch_compile_mode": "reduce-overhead"}, "`torch_compile_mode` is 'reduce-overhead'; it must be one of"
    ),
    "an unknown mode": ({"torch_compile_mode": "fast"}, "`torch_compile_mode` is 'fast'; it must be one of 'default'"),
    "a mode of another backend": (
        {"torch_compile_mode": "max-autotune-no-cudagraphs", "torch_compile_backend": "eager"},
        "which is of the backend 'inductor'",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("settings", "message"), COMBINATIONS.values(), ids=COMBINATIONS)
def test_settings_that_do_not_fit_are_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message) as raised:
        config(tmp_path, compile_repeated_blocks=True, **settings)
    assert len(str(raised.value)) < 1000


def test_backend_and_mode_compile_nothing_but_the_blocks(tmp_path):
    args = config(tmp_path, compile_repeated_blocks=True, torch_compile_mode="max-autotune-no-cudagraphs")
    assert (args.torch_compile, args.torch_compile_backend) == (False, None)
    again = TGOConfig(**{name: it for name, it in vars(args).items() if name in args.__dataclass_fields__})
    assert (again.torch_compile, again.torch_compile_mode) == (False, "max-autotune-no-cudagraphs")
    assert AlignPropConfig(str(tmp_path), use_cpu=True, **EAGER).torch_compile is False
    trainer = make_trainer(config(tmp_path, **EAGER))
    assert trainer.accelerator.state.dynamo_plugin.backend == "NO"
    assert trainer.args.torch_compile_backend == "eager"


def test_networks_without_repeated_blocks_are_refused_before_their_weights_are_read(tmp_path, monkeypatch):
    pipeline = BY_NAME["stable_diffusion_3"].build()
    args = config(tmp_path, **EAGER)
    with pytest.raises(ValueError, match="`SD3Transformer2DModel` does not say which of its blocks are repeated"):
        make_trainer(args, model=pipeline)
    pipeline.save_pretrained(tmp_path / "sd3")
    for file in (tmp_path / "sd3").rglob("*.safetensors"):
        file.unlink()
    with pytest.raises(ValueError, match=r"`SD3Transformer2DModel` .* Leave `compile_repeated_blocks` out, or set"):
        make_trainer(args, model=str(tmp_path / "sd3"))


def test_a_network_without_the_blocks_that_its_class_names_is_refused():
    unet = tiny.stable_diffusion().unet
    for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
        block.attentions = nn.ModuleList()
    with pytest.raises(ValueError, match="this `UNet2DConditionModel` has no BasicTransformerBlock"):
        RepeatedBlocks([unet], "eager", None, False)


def test_blocks_keep_a_forward_that_was_put_on_them():
    """As accelerate's hooks put one on each module."""
    unet = tiny.stable_diffusion().unet
    hooked, plain = [it for it in unet.modules() if type(it).__name__ == "BasicTransformerBlock"][:2]
    calls = []
    own = hooked.forward

    def forward(*args, **kwargs):
        calls.append(torch.compiler.is_compiling())
        return own(*args, **kwargs)

    hooked.forward = forward
    blocks = RepeatedBlocks([unet], "eager", None, False)
    hidden, prompt = torch.ones(1, 4, hooked.norm1.normalized_shape[0]), torch.ones(1, 3, hooked.attn2.to_k.in_features)
    with blocks.compiled():
        hooked(hidden, encoder_hidden_states=prompt)
        plain(torch.ones(1, 4, plain.norm1.normalized_shape[0]), encoder_hidden_states=prompt)
    assert vars(hooked)["forward"] is forward
    assert "forward" not in vars(plain)
    number = len(calls)
    hooked(hidden, encoder_hidden_states=prompt)
    assert len(calls) == number + 1


@pytest.mark.parametrize(("name", "number"), [("stable_diffusion", 1), ("flux", 1), ("wan-two_stage", 2)])
def test_the_networks_of_a_folder_are_known_before_it_is_loaded(tmp_path, name, number):
    pipeline = BY_NAME[name].build()
    pipeline.save_config(tmp_path)
    index = find_index(str(tmp_path), None)
    classes = network_classes(str(tmp_path), None, None, index)
    assert classes == network_classes(pipeline, None, None, None)
    assert len(classes) == number
    check_compilable(str(tmp_path), None, None, index)


def test_a_network_that_accelerate_compiles_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    with pytest.raises(ValueError, match="accelerate compiles the whole network"):
        check_compilable(tiny.stable_diffusion(), None, None, None)
