"""A prepared model, and the step with everything in `vdvae.fast`, against the plain ones."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from tests.conftest import TINY, live_model
from vdvae import VDVAE, fast
from vdvae.config import Config, load_config
from vdvae.fast.forwards import FastBlock, FastDecoder, FastTopDownBlock
from vdvae.model.vdvae import Block, Conv, TopDownBlock
from vdvae.runtime.processes import World
from vdvae.training.update import Update

CPU = World(0, 1, torch.device("cpu"))


def random_images(config: Config, count: int = 6) -> Tensor:
    shape = (count, config.model.image_channels, config.model.image_size, config.model.image_size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def noise() -> torch.Generator:
    return torch.Generator().manual_seed(4)


def test_terms_and_gradients(config: Config) -> None:
    """With all layers from the posterior, and with the upper two."""
    plain = live_model(config)
    prepared = fast.prepare(copy.deepcopy(plain))
    for layers in (None, 2):
        results = []
        for model in (plain, prepared):
            terms = model(random_images(config), noise(), layers)
            model.zero_grad()
            terms.nats_per_dim.mean().backward()
            results.append(terms)
        torch.testing.assert_close(results[1], results[0], rtol=2e-5, atol=2e-6)
        for (name, expected), parameter in zip(plain.named_parameters(), prepared.parameters(), strict=True):
            if expected.grad is None:
                assert parameter.grad is None, name
                continue
            assert parameter.grad is not None, name
            atol = 2e-4 * expected.grad.abs().max().item()
            torch.testing.assert_close(parameter.grad, expected.grad, rtol=2e-3, atol=atol, msg=name)


def test_samples(config: Config) -> None:
    """The same but for pixels that rounding takes to a neighbouring level."""
    plain = live_model(config)
    prepared = fast.prepare(copy.deepcopy(plain))
    for temperature in (1.0, 0.7):
        expected, found = (model.sample(4, temperature, generator=noise()) for model in (plain, prepared))
        assert (found == expected).float().mean() > 0.99


def test_latents(config: Config) -> None:
    plain = live_model(config)
    prepared = fast.prepare(copy.deepcopy(plain))
    both = (model.encode(random_images(config), generator=noise()) for model in (plain, prepared))
    for expected, found in zip(*both, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert found.z.shape == found.kl.shape == expected.kl.shape


def test_updates(config: Config) -> None:
    """Ten of them, every other one with a gradient at the threshold: the same decisions, weights and EMA."""
    settings = replace(config.train.resolved(), batch_size=6, max_steps=100, skip_threshold=1e5, ema_decay=0.9)
    prepared, plain = live_model(config), live_model(config)
    update, expected = Update(prepared, settings, CPU), Update(plain, replace(settings, fast=False), CPU)
    for step in range(10):
        for threshold in (update.threshold, expected.threshold):
            threshold.value.fill_(0.0 if step % 2 else 1e5)
        before = plain.decoder.gain.clone()
        update(random_images(config), step)
        expected(random_images(config), step)
        assert (
            update.report().skipped == expected.report().skipped == torch.equal(before, plain.decoder.gain) == step % 2
        )
    for model, other in ((prepared, plain), (update.ema.model, expected.ema.model)):
        for (name, a), b in zip(model.named_parameters(), other.named_parameters(), strict=True):
            torch.testing.assert_close(a, b[1], rtol=0, atol=0.05 * settings.lr, msg=name)


def test_hooks_are_called_in_every_step(tiny: Config) -> None:
    """Those that come after the first step too, of modules, of weights and of all modules."""
    update = Update(VDVAE(tiny.model), tiny.train, CPU)
    calls: list[str] = []

    def step() -> list[str]:
        calls.clear()
        update(random_images(tiny, tiny.train.batch_size), 0)
        return calls

    block, gain = update.model.decoder.dec_blocks[0], update.model.decoder.gain
    z_proj = update.model.get_submodule("decoder.dec_blocks.0.z_proj")
    assert step() == []
    hooks = {
        "forward": lambda: block.register_forward_hook(lambda *_: calls.append("forward")),
        "backward": lambda: z_proj.register_full_backward_hook(lambda *_: calls.append("backward")),
        "weight": lambda: gain.register_hook(lambda _: calls.append("weight")),
        "added": lambda: gain.register_post_accumulate_grad_hook(lambda _: calls.append("added")),
        "all": lambda: register_module_forward_hook(lambda *_: calls.append("all")),
    }
    for name, register in hooks.items():
        handle = register()
        assert set(step()) == set(step()) == {name}
        handle.remove()
        assert step() == []


def test_a_plain_step_has_nothing_fast_in_it(tiny: Config) -> None:
    """Whatever the other settings say."""
    settings = replace(tiny.train, fast=False, recompute_from=1, compile=True, replay=True)
    update = Update(VDVAE(tiny.model), settings, CPU)
    for model in (update.model, update.ema.model):
        assert {type(module).__module__ for module in model.modules() if "vdvae" in type(module).__module__} == {
            "vdvae.model.vdvae",
            "vdvae.model.likelihood",
        }
        assert not any("forward" in vars(module) for module in model.modules())
    assert update.accumulate == update._accumulate


def test_a_prepared_model_keeps_names_weights_and_what_it_is(tiny: Config) -> None:
    plain = live_model(tiny)
    prepared = fast.prepare(copy.deepcopy(plain))
    assert isinstance(prepared, VDVAE)
    assert list(prepared.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), prepared.parameters(), strict=True))
    assert fast.prepare(prepared) is prepared
    assert type(fast.prepare(copy.deepcopy(prepared)).decoder) is FastDecoder


class Foreign(nn.Module):
    """Around a module, with another result."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x) * 1.5
        return y


class OwnBlock(Block):
    """A person's idea."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).tanh()


class OwnConv(Conv):
    """Another."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 1.5


def _times(forward: Callable[[nn.Module, Tensor], Tensor], module: nn.Module, x: Tensor) -> Tensor:
    return forward(module, x) * 1.5


PLACES = [
    "encoder.enc_blocks.1",
    "encoder.enc_blocks.1.c4",
    "decoder.dec_blocks.1.prior",
    "decoder.dec_blocks.1.prior.c4",
    "decoder.dec_blocks.1.enc",
    "decoder.dec_blocks.1.enc.c1",
    "decoder.dec_blocks.1.enc.c3",
    "decoder.dec_blocks.1.z_proj",
    "decoder.dec_blocks.1.resnet",
    "decoder.out_net.out_conv",
]
"""Modules that somebody may change."""


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", ["wrapper", "hook", "subclass", "forward"])
def test_what_is_not_the_models_own_is_not_gone_past(tiny: Config, place: str, kind: str) -> None:
    """Whether it comes before the model is prepared, or when a record of it exists already."""
    plain = live_model(tiny)
    before = plain(random_images(tiny), noise()).nats_per_dim
    late = fast.prepare(copy.deepcopy(plain))
    recorded = fast.recorded_if_prepared(lambda images, generator: late(images, generator).nats_per_dim, late)
    for _ in range(2):
        torch.testing.assert_close(recorded(random_images(tiny), noise()), before, rtol=2e-5, atol=2e-6)
    for model in (plain, late):
        change(model, place, kind)
    expected = plain(random_images(tiny), noise()).nats_per_dim
    assert not torch.allclose(expected, before, rtol=1e-6)
    early = fast.prepare(copy.deepcopy(plain))
    founds = [model(random_images(tiny), noise()).nats_per_dim for model in (early, late)]
    founds += [recorded(random_images(tiny), noise()) for _ in range(2)]
    for found in founds:
        torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", ["wrapper", "hook", "subclass", "forward"])
def test_compiled_blocks_go_past_nothing_either(
    tiny: Config, place: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What they hand on reaches no foreign module; here with the functions that are compiled as they are."""
    monkeypatch.setattr("vdvae.fast.compiling._compiled", lambda function, autotune=False: function)
    plain = live_model(tiny)
    compiled = fast.prepare(copy.deepcopy(plain))
    fast.compile_blocks(compiled)
    for model in (plain, compiled):
        change(model, place, kind)
    expected, found = (model(random_images(tiny), noise()) for model in (plain, compiled))
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-6)


def test_a_compiled_model_can_be_copied(tiny: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vdvae.fast.compiling._compiled", lambda function, autotune=False: function)
    model = fast.prepare(live_model(tiny))
    fast.compile_blocks(model)
    for copied in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        found, expected = (one(random_images(tiny), noise()).nats_per_dim for one in (copied, model))
        assert torch.equal(found, expected)


def test_training_and_evaluation_are_told_apart(tiny: Config) -> None:
    model = fast.prepare(live_model(tiny))
    model.encoder.in_conv = nn.Sequential(model.encoder.in_conv, nn.Dropout(1.0))  # type: ignore[assignment]
    rate = fast.recorded_if_prepared(lambda images, generator: model(images, generator).rate, model)
    for trains in (True, True, False, False, True):
        model.train(trains)
        expected = model(random_images(tiny), noise()).rate
        assert torch.equal(rate(random_images(tiny), noise()), expected)


def change(model: nn.Module, place: str, kind: str) -> None:
    """The module there has 1.5 times what it would return, or its tanh."""
    module = model.get_submodule(place)
    parent, _, name = place.rpartition(".")
    if kind == "wrapper":
        setattr(model.get_submodule(parent), name, Foreign(module))
    elif kind == "hook":
        module.register_forward_hook(lambda _module, _inputs, output: output * 1.5)
    elif kind == "forward":
        module.forward = partial(_times, type(module).forward, module)
    elif isinstance(module, Block):
        module.__class__ = OwnBlock
    elif isinstance(module, Conv):
        module.__class__ = OwnConv


def test_a_subclass_of_the_model_is_left_as_it_is(tiny: Config) -> None:
    class Own(VDVAE):
        pass

    model = fast.prepare(Own(tiny.model))
    assert type(model) is Own
    kinds = {type(module) for module in model.modules()}
    assert Block in kinds and TopDownBlock in kinds and not kinds & {FastBlock, FastTopDownBlock}

    def function(x: Tensor) -> Tensor:
        return x

    assert fast.recorded_if_prepared(function, model) is function


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("resolution", [1, 8, 32])
def test_checkpointing_changes_no_gradient(group: int, resolution: int) -> None:
    """To the bit, in a prepared model and in a plain one."""
    overrides = [
        "model.image_channels=3",
        "data.dataset=cifar10",
        "model.image_size=32",
        f"model.stochastic_group={group}",
    ]
    blocks = ["model.enc_blocks=32d4,8x2,8d8,1x1", "model.dec_blocks=1x1,8m1,8x2,32m8,32x1"]
    config = load_config(str(TINY), [*overrides, *blocks])
    for prepares in (False, True):
        gradients = []
        for checkpoints in (False, True):
            model = live_model(config)
            if prepares:
                fast.prepare(model)
            if checkpoints:
                fast.checkpoint_blocks(model, resolution)
            model(random_images(config), noise()).nats_per_dim.mean().backward()
            gradients.append([parameter.grad for parameter in model.parameters()])
        for a, b in zip(*gradients, strict=True):
            assert a is not None and b is not None
            assert torch.equal(a, b)


def test_second_derivatives_of_a_prepared_model(tiny: Config) -> None:
    """A gradient penalty, as the plain model has it."""
    plain = live_model(tiny)
    prepared = fast.prepare(copy.deepcopy(plain))
    penalties = []
    for model in (plain, prepared):
        parameters = list(model.parameters())
        loss = model(random_images(tiny), noise()).nats_per_dim.mean()
        gradients = torch.autograd.grad(loss, parameters, create_graph=True)
        penalty = torch.stack([gradient.square().sum() for gradient in gradients]).sum()
        penalties.append(torch.autograd.grad(penalty, parameters))
    for expected, found in zip(*penalties, strict=True):
        torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-4 * expected.abs().max().item())


@pytest.mark.parametrize(
    "place", ["decoder.dec_blocks.1.prior.c4", "decoder.dec_blocks.1.enc", "encoder.enc_blocks.1.c4"]
)
def test_patched_forwards_and_backward_hooks_are_not_gone_past(tiny: Config, place: str) -> None:
    model = live_model(tiny)
    module = model.get_submodule(place)
    original, called = module.forward, []
    module.forward = lambda *inputs: original(*inputs) * 1.5
    module.register_full_backward_hook(lambda *_: called.append(1))
    expected = model(random_images(tiny), noise()).nats_per_dim
    found = fast.prepare(model)(random_images(tiny), noise()).nats_per_dim
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-6)
    found.sum().backward()
    assert called
