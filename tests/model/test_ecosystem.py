"""What people do to a model besides training it: it is ordinary PyTorch for derivatives, hooks, wrappers and files."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, prune, vector_to_parameters

from tests.conftest import random_model
from vdvae import VDVAE, Mixture, ModelConfig, load_pretrained

COLOUR = ModelConfig(
    enc_blocks="8d2,4x1,4d4,1x1",
    dec_blocks="1x1,4m1,4x2,8m4,8x1",
    image_size=8,
    width=8,
    custom_width_str="4:12",
    zdim=2,
    num_mixtures=2,
)
GREY = ModelConfig("8d8,1x1", "1x1,8m1", 8, 8, image_channels=1, zdim=2, num_mixtures=2, unpool="conv")


@pytest.fixture(params=[COLOUR, GREY], ids=["colour", "grey"])
def model(request: pytest.FixtureRequest) -> VDVAE:
    """In fp64, for finite differences."""
    return random_model(request.param, std=0.3).double()


def images_for(model: VDVAE, count: int = 2) -> Tensor:
    shape = (count, *model.image_shape)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def seeded(seed: int = 2) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def latents_for(model: VDVAE) -> Tensor:
    """All of one image, flat, [N], in fp64."""
    return torch.randn(sum(map(math.prod, model.latent_shapes)), generator=seeded(), dtype=torch.float64)


def brightness(model: VDVAE) -> Callable[[Tensor], Tensor]:
    """A smooth number of the decoded image, by flat latents."""

    def of(flat: Tensor) -> Tensor:
        return (model.decode(model.unflatten(flat[None]), output="mean") / 255).square().sum()

    return of


def loss_by_weight(model: VDVAE, name: str) -> Callable[[Tensor], Tensor]:
    """The loss as a function of one weight, with fixed noise."""
    images = images_for(model)

    def of(weight: Tensor) -> Tensor:
        terms: Any = torch.func.functional_call(model, {name: weight}, (images, seeded()))
        return terms.nats_per_dim.mean()

    return of


def test_second_derivatives_of_decode(model: VDVAE) -> None:
    """A product of the Hessian with a vector, against differences of the gradient."""
    function, z = brightness(model), latents_for(model)
    v = torch.randn(z.shape, generator=seeded(3), dtype=torch.float64)
    _, product = torch.autograd.functional.hvp(function, z, v)
    h = 1e-5
    ahead, behind = (torch.func.grad(function)(z + sign * h * v) for sign in (1, -1))
    torch.testing.assert_close(product, (ahead - behind) / (2 * h), rtol=1e-5, atol=1e-7)
    assert product.abs().max() > 1e-3


@pytest.mark.parametrize("name", ["encoder.in_conv.weight", "decoder.dec_blocks.1.prior.c4.weight", "decoder.gain"])
def test_second_derivatives_of_the_loss(model: VDVAE, name: str) -> None:
    function, weight = loss_by_weight(model, name), model.get_parameter(name).detach()
    assert torch.autograd.gradcheck(function, weight.clone().requires_grad_(), fast_mode=True)
    assert torch.autograd.gradgradcheck(function, weight.clone().requires_grad_(), fast_mode=True, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")  # which torch.func uses itself
def test_functional_transforms(model: VDVAE) -> None:
    """`torch.func`: gradients of weights, per image, Jacobians both ways, by latents."""
    images = images_for(model)
    weights: dict[str, Tensor] = dict(model.named_parameters())

    def loss(weights: dict[str, Tensor], image: Tensor) -> Tensor:
        terms: Any = torch.func.functional_call(model, weights, (image[None],))
        return terms.nats_per_dim.sum()

    torch.manual_seed(0)
    gradients = torch.func.grad(loss)(weights, images[0])
    torch.manual_seed(0)
    loss(weights, images[0]).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(gradients[name], parameter.grad)
    per_image = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0), randomness="different")(weights, images)
    assert all(len(per_image[name]) == len(images) and per_image[name].isfinite().all() for name in weights)

    function, z = brightness(model), latents_for(model)
    backward, forward = torch.func.jacrev(function)(z), torch.func.jacfwd(function)(z)
    torch.testing.assert_close(backward, forward)
    rows = torch.stack([z, 2 * z])
    torch.testing.assert_close(torch.func.vmap(function)(rows), torch.stack([function(row) for row in rows]))


def test_hooks_fire_on_every_module_with_weights(model: VDVAE) -> None:
    """But for the list of first states, which is not called; and what a hook returns is what is used."""
    fired: set[str] = set()
    with_weights = {
        name
        for name, module in model.named_modules()
        if list(module.parameters(recurse=False)) and not isinstance(module, nn.ParameterList)
    }
    for name in with_weights:
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: fired.add(name))
    before = model(images_for(model), seeded()).nats_per_dim
    assert fired == with_weights
    assert {"decoder", "decoder.dec_blocks.0.prior.c4", "decoder.dec_blocks.1.enc.c1"} <= fired
    for name in ("decoder.dec_blocks.1.prior.c4", "decoder.dec_blocks.1.enc.c1", "encoder.enc_blocks.0.c2"):
        handle = model.get_submodule(name).register_forward_hook(lambda _module, _inputs, output: output * 1.5)
        assert not torch.equal(model(images_for(model), seeded()).nats_per_dim, before), name
        handle.remove()


class Wrapped(nn.Module):
    """Around any module."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.calls = 0

    def forward(self, *arguments: Any) -> Any:
        self.calls += 1
        return self.inner(*arguments)


class Attention(nn.Module):
    """A foreign block for the encoder, with a residual connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, 1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.flatten(2).transpose(1, 2)  # [B, r*r, C]
        seen, _ = self.attention(pixels, pixels, pixels)
        return x + seen.transpose(1, 2).reshape(x.shape)


class LoRA(nn.Module):
    """A low-rank addition to a convolution."""

    def __init__(self, base: nn.Conv2d, rank: int = 1) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Conv2d(base.in_channels, rank, 1, bias=False)
        self.up = nn.Conv2d(rank, base.out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x) + self.up(self.down(x))
        return y


def test_wrapped_and_foreign_blocks_are_used() -> None:
    model = random_model(COLOUR)
    expected = model(images_for(model), seeded()).nats_per_dim
    wrapped = [Wrapped(model.encoder.enc_blocks[1]), Wrapped(model.decoder.dec_blocks[1])]
    model.encoder.enc_blocks[1], model.decoder.dec_blocks[1] = wrapped
    assert torch.equal(model(images_for(model), seeded()).nats_per_dim, expected)
    assert [block.calls for block in wrapped] == [1, 1]
    attention = Attention(12)
    model.encoder.enc_blocks[1] = attention
    loss = model(images_for(model), seeded()).nats_per_dim
    assert not torch.allclose(loss, expected)
    loss.sum().backward()
    gradient = attention.attention.in_proj_weight.grad
    assert gradient is not None and gradient.abs().sum() > 0


@pytest.mark.parametrize("name", ["c1", "c2", "c4"])
@pytest.mark.parametrize("block", ["decoder.dec_blocks.1.prior", "decoder.dec_blocks.3.enc", "encoder.enc_blocks.0"])
def test_a_lora_wrapper_around_any_convolution(block: str, name: str) -> None:
    model = random_model(COLOUR).requires_grad_(False)
    before = model(images_for(model), seeded()).nats_per_dim
    bottleneck = model.get_submodule(block)
    base = getattr(bottleneck, name)
    lora = LoRA(base).to(base.weight)
    setattr(bottleneck, name, lora)
    after = model(images_for(model), seeded()).nats_per_dim
    assert not torch.equal(after, before)
    after.sum().backward()
    assert lora.up.weight.grad is not None and lora.up.weight.grad.abs().sum() > 0


def test_pruning_changes_what_is_computed() -> None:
    model = random_model(COLOUR)
    before = model(images_for(model), seeded()).nats_per_dim
    prune.random_unstructured(model.get_submodule("decoder.dec_blocks.1.prior.c4"), "weight", amount=0.9)
    assert not torch.allclose(model(images_for(model), seeded()).nats_per_dim, before)


class Coin:
    """Another likelihood: every bit of a sub-pixel by a fair coin."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits

    def log_prob(self, images: Tensor) -> Tensor:
        return self.logits.sum((1, 2, 3)) * 0 - 8 * images[0].numel() * torch.log(torch.tensor(2.0))

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        return torch.randint(0, 256, self.logits.shape, generator=generator).to(torch.uint8)

    def mean(self) -> Tensor:
        return torch.full_like(self.logits, 127.5)


class Coins(nn.Module):
    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(width, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out_conv(x)
        return y

    def distribution(self, parameters: Tensor) -> Coin:
        return Coin(parameters)


def test_another_likelihood_in_the_place_of_the_mixture() -> None:
    model = random_model(COLOUR)
    model.decoder.out_net = Coins(8, 3)  # type: ignore[assignment]
    terms = model(images_for(model), seeded())
    torch.testing.assert_close(terms.distortion, torch.full((2,), 8 * 0.6931472))
    assert model.sample(3).shape == (3, 3, 8, 8)
    assert torch.equal(model.decode(num_images=1, output="mean"), torch.full((1, 3, 8, 8), 127.5))


def test_weights_are_contiguous_and_go_through_safetensors(tmp_path: Path) -> None:
    """As they are initialised, and as they come from a file."""
    for model in (random_model(COLOUR), loaded(random_model(COLOUR), tmp_path)):
        assert all(tensor.is_contiguous() for tensor in model.state_dict().values())
        safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors")
        other = VDVAE(COLOUR)
        other.load_state_dict(safetensors.torch.load_file(tmp_path / "model.safetensors"))
        images = images_for(model)
        assert torch.equal(model(images, seeded()).nats_per_dim, other(images, seeded()).nats_per_dim)


def loaded(model: VDVAE, folder: Path) -> VDVAE:
    """The model by way of a file of weights, some of them channels last and some in memory with others."""
    weights = {
        name: tensor.to(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor
        for name, tensor in model.state_dict().items()
    }
    weights["decoder.gain"] = torch.stack([model.decoder.gain.data, model.decoder.bias.data])[0]
    torch.save(weights, folder / "some-iter-1-model-ema.th")
    return load_pretrained(folder / "some-iter-1-model-ema.th", hps=COLOUR)


def test_parameters_as_a_vector() -> None:
    model = random_model(COLOUR)
    images = images_for(model)
    expected = model(images, seeded()).nats_per_dim
    vector = parameters_to_vector(model.parameters()).detach()
    vector_to_parameters(vector.clone(), model.parameters())
    assert torch.equal(model(images, seeded()).nats_per_dim, expected)
    other = VDVAE(COLOUR)
    vector_to_parameters(vector, other.parameters())
    assert torch.equal(other(images, seeded()).nats_per_dim, expected)


def test_lbfgs_lowers_the_loss() -> None:
    model = random_model(COLOUR, std=0.1)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = model(images_for(model), seeded()).nats_per_dim.mean()
        value.backward()
        return value

    before = loss().item()
    optimizer.step(loss)
    assert loss().item() < before


@pytest.mark.filterwarnings("ignore")  # what torch says of its own compiler
@pytest.mark.parametrize("config", [COLOUR, GREY], ids=["colour", "grey"])
def test_compiled_with_gradients(config: ModelConfig) -> None:
    """The whole model by `torch.compile`, traced in one piece and run without a C++ compiler; batches of two sizes."""
    model = random_model(config)
    compiled: Any = torch.compile(copy.deepcopy(model), backend="aot_eager", fullgraph=True)
    for count in (2, 3, 4):
        losses = []
        for one in (model, compiled):
            torch.manual_seed(0)
            losses.append(one(images_for(model, count)).nats_per_dim.mean())
            losses[-1].backward()
        torch.testing.assert_close(*losses)
    for a, b in zip(model.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)


def test_the_mixture_is_what_a_pass_returns() -> None:
    model = random_model(COLOUR)
    assert isinstance(model.mixture(num_images=1), Mixture)
