"""Weights that are cast once per update, and the step in bf16 and fp16, against autocast of the plain model."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.conftest import live_model
from tests.fast.test_forwards import CPU, noise, random_images
from vdvae import VDVAE, fast
from vdvae.config import Config, TrainConfig
from vdvae.fast.low_precision import LowPrecisionWeights, convolutions
from vdvae.runtime.flat import flat_like
from vdvae.runtime.precision import AUTOCAST_TYPES
from vdvae.training.update import Update


def with_settings(train: TrainConfig, **settings: Any) -> TrainConfig:
    return replace(train, **settings)


def gradients_of(model: VDVAE) -> list[Tensor]:
    return [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_step_is_that_of_autocast(config: Config, precision: str) -> None:
    """Rates and distortion, and gradients as near to those of fp32 as those of the plain model under autocast are."""
    found: dict[str, tuple[Any, Tensor]] = {}
    ways: dict[str, dict[str, Any]] = {
        "fp32": {"fast": False, "precision": "fp32"},
        "plain": {"fast": False, "precision": precision},
        "ours": {"precision": precision},
        "eager": {"precision": precision, "replay": False},
    }
    for name, settings in ways.items():
        train = with_settings(config.train.resolved(), batch_size=6, micro_batch=2, skip_threshold=1e9, **settings)
        update = Update(live_model(config), train, CPU)
        update(random_images(config), 0)
        gradient = torch.cat([weight.grad.flatten() for weight in update.model.parameters() if weight.grad is not None])
        found[name] = update.report(), gradient / update.loss_scale.value
    reference, exact = found["fp32"]
    error = {name: (gradient - exact).norm() / exact.norm() for name, (_, gradient) in found.items()}
    assert error["ours"] < 1.5 * error["plain"]
    assert torch.equal(found["ours"][1], found["eager"][1])
    for name in ("plain", "ours"):
        assert found[name][0].distortion == pytest.approx(reference.distortion, rel=2e-2)
        assert found[name][0].rate == pytest.approx(reference.rate, rel=2e-2)


def test_weights_are_cast_once_per_update_and_no_kernel_adds_a_gradient_of_its_own(tiny: Config) -> None:
    """However many micro-batches there are; the master weights are fp32, and no other than before."""

    class Operations(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.counts: Counter[str] = Counter()
            self.weights: list[torch.Size] = []

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = function._schema.name
            self.counts[name] += 1
            if name in ("aten::_to_copy", "aten::add_", "aten::add.Tensor") and isinstance(args[0], nn.Parameter):
                self.weights.append(args[0].shape)
            return function(*args, **(kwargs or {}))

    settings = replace(tiny.train, precision="bf16", micro_batch=2, replay=False)
    update = Update(VDVAE(tiny.model), settings, CPU)
    names, addresses = zip(*[(n, p.data_ptr()) for n, p in update.model.named_parameters()], strict=True)
    with Operations() as seen:
        update(random_images(tiny, tiny.train.batch_size), 0)
    assert seen.weights == []
    assert seen.counts["aten::_foreach_copy_"] == 1 + 4  # the cast, and gradients of four micro-batches
    assert [(n, p.data_ptr()) for n, p in update.model.named_parameters()] == list(zip(names, addresses, strict=True))
    assert {p.dtype for p in update.model.parameters()} == {torch.float32}


def test_gradients_are_added_up(tiny: Config) -> None:
    """Two passes add twice what one adds, to the bit, and a weight that takes no part adds nothing."""
    model = fast.prepare(live_model(tiny))
    weights = list({**convolutions(model), **dict(model.named_parameters())}.values())
    flat, views = flat_like(weights)
    for weight, view in zip(weights, views, strict=True):
        weight.grad = view
    low = LowPrecisionWeights(model, torch.bfloat16, flat)
    low.cast()
    sums = []
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            low(random_images(tiny), noise()).nats_per_dim.sum().backward()
        low.add_gradients()
        sums.append(flat.clone())
    assert sums[0].any()
    torch.testing.assert_close(sums[1], 2 * sums[0], rtol=1e-6, atol=0)
    flat.zero_()
    with torch.autocast("cpu", torch.bfloat16):  # with layers from the prior, which have no posterior
        low(random_images(tiny), noise(), 1).nats_per_dim.sum().backward()
    low.add_gradients()
    unused = model.get_parameter("decoder.dec_blocks.2.enc.c1.weight").grad
    assert unused is not None and not unused.any()
    assert model.get_parameter("decoder.dec_blocks.0.enc.c1.weight").grad.any()  # type: ignore[union-attr]


def test_the_last_layer_keeps_its_weights(tiny: Config) -> None:
    model = VDVAE(tiny.model)
    found = convolutions(model)
    assert not any("out_net" in name for name in found)
    left = {name for name, _ in model.named_parameters()} - set(found)
    assert left == {name for name in left if name.startswith(("decoder.out_net", "decoder.bias", "decoder.gain"))}


def test_a_model_with_hooks_is_called_with_its_own_weights(tiny: Config) -> None:
    """And the step has the gradient of the plain model under autocast."""
    settings = replace(tiny.train, precision="bf16", skip_threshold=1e9)
    gradients = []
    for hooks in (False, True):
        update = Update(live_model(tiny), settings, CPU)
        seen: list[torch.dtype] = []
        if hooks:
            weight = update.model.get_parameter("decoder.dec_blocks.1.prior.c1.weight")
            weight.register_hook(lambda gradient, seen=seen: seen.append(gradient.dtype))
        update(random_images(tiny, tiny.train.batch_size), 0)
        assert seen == ([torch.float32] if hooks else [])
        gradients.append(torch.cat([gradient.flatten() for gradient in gradients_of(update.model)]))
    assert (gradients[1] - gradients[0]).norm() < 2e-2 * gradients[0].norm()


def test_states_in_bf16(tiny: Config) -> None:
    """Blocks return them so, and the loss is near that with states in fp32."""
    losses = []
    for settings in ({}, {"bf16_states": True}):
        update = Update(live_model(tiny), with_settings(tiny.train, precision="bf16", **settings), CPU)
        types: set[torch.dtype] = set()
        with torch.autocast("cpu", AUTOCAST_TYPES["bf16"]):
            hooks = [
                block.register_forward_hook(lambda _m, _i, out, types=types: types.add(out[0].dtype))
                for block in update.model.decoder.dec_blocks
            ]
            update.model(random_images(tiny), noise())
        for hook in hooks:
            hook.remove()
        assert types == {torch.bfloat16 if settings else torch.float32}
        update(random_images(tiny, tiny.train.batch_size), 0)
        losses.append(update.report().bits_per_dim)
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=5e-3)


def test_a_checkpoint_fits_whatever_the_layout_of_its_weights(tiny: Config) -> None:
    """In bf16 weights lie channels last, in fp32 on a CPU they do not: a run may go on in the other."""
    images = random_images(tiny, tiny.train.batch_size)
    for one, other in (("fp32", "bf16"), ("bf16", "fp32")):
        first = Update(live_model(tiny), with_settings(tiny.train, precision=one), CPU)
        first(images, 0)
        second = Update(VDVAE(tiny.model), with_settings(tiny.train, precision=other), CPU)
        second.load_state_dict(copy.deepcopy(first.state_dict()))
        for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True):
            assert torch.equal(a, b)
            moments = second.optimizer.state[b]
            assert torch.equal(first.optimizer.state[a]["exp_avg"], moments["exp_avg"])
            assert moments["exp_avg"].stride() == b.stride()
        second(images, 1)
