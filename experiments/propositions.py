"""The two propositions of Child (2020), on models small enough to be computed exactly.

python experiments/propositions.py                                                    tables, about a minute
python experiments/propositions.py --json results/propositions.json --figures docs    and the files of docs/
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from paper.markdown import markdown
from torch import Tensor, nn
from torch.nn import functional as F

from vdvae.errors import CommandLine, exit_on_interrupt, exit_on_user_error
from vdvae.evaluation.figures import check_matplotlib
from vdvae.runtime.device import now
from vdvae.runtime.results import prepare_result, write_result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NATS_PER_BIT = math.log(2)
HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
DECODERS = ("z_i", "z")
"""What a decoder sees for x_i: z_i alone, as in the proof, or all latents."""


# --- Discrete variables. A joint value of D variables with L levels is a number below L**D, the first variable its
# --- highest digit. Tables hold log-probabilities, the levels of a variable in the last dimension.


def digits(variables: int, levels: int) -> Tensor:
    """The variables of every joint value, [L**D, D]."""
    return torch.stack(torch.unravel_index(torch.arange(levels**variables), (levels,) * variables), -1)


def joint(table: Tensor) -> Tensor:
    """Log-probabilities of all joint values of independent variables: [..., D, L] to [..., L**D]."""
    result = table[..., 0, :]
    for i in range(1, table.shape[-2]):
        result = (result.unsqueeze(-1) + table[..., i, :].unsqueeze(-2)).flatten(-2)
    return result


def chain(layers: Sequence[Tensor]) -> Tensor:
    """Log-probabilities of all joint values of a hierarchy of layers, the first at the top: [..., L**D].

    The table of a layer with n variables is [..., A, n, L]: a row for each of the A joint values of the layers above,
    given which the layer's variables are independent. With one variable in each layer it is an autoregressive model.
    """
    result = joint(layers[0]).squeeze(-2)
    for table in layers[1:]:
        result = (result.unsqueeze(-1) + joint(table)).flatten(-2)
    return result


class DiscreteVAE(NamedTuple):
    """A hierarchical VAE whose latents z and observed x are discrete, given by tables; X and Z are numbers of values.

    The posterior of a layer is q(layer | layers above, x), as in a VDVAE; the x_i are independent given all of z.
    """

    prior: Sequence[Tensor]
    """A table [..., A, n, L] for each layer, see `chain`."""
    posterior: Sequence[Tensor]
    """A table [..., X, A, n, L] for each layer."""
    likelihood: Tensor
    """A table [..., Z, D, L]."""

    def log_joint(self) -> Tensor:
        """log p(x, z) in nats, [..., X, Z]."""
        return joint(self.likelihood).mT + chain(self.prior).unsqueeze(-2)

    def elbo(self) -> Tensor:
        """The ELBO of every x in nats, [..., X], summed over all z: 0 log 0 = 0, and -inf where p(x, z) = 0 < q."""
        log_q = chain(self.posterior)
        q = log_q.exp()
        return torch.where(q > 0, q * (self.log_joint() - log_q), 0).sum(-1)

    def log_evidence(self) -> Tensor:
        """log p(x) of every x in nats, [..., X]."""
        return self.log_joint().logsumexp(-1)


def identity_vae(autoregressive: Sequence[Tensor], decoder_noise: float = 0, posterior_noise: float = 0) -> DiscreteVAE:
    """The proof's construction, a layer per variable: z_i = x_i in posterior and decoder, but for the noise."""
    levels, variables = autoregressive[0].shape[-1], len(autoregressive)
    same = F.one_hot(digits(variables, levels), levels).double()

    def copy(noise: float) -> Tensor:
        return (same * (1 - noise) + (1 - same) * noise / (levels - 1)).log()

    posterior = [copy(posterior_noise)[:, None, [i]].expand(-1, levels**i, -1, -1) for i in range(variables)]
    return DiscreteVAE(autoregressive, posterior, copy(decoder_noise))


class Construction(NamedTuple):
    """Proposition 1 as in its proof: a random autoregressive model, and VAEs with a layer for each of its variables."""

    variables: int
    levels: int
    values: int
    """How many values x has; all are tried."""
    largest_difference: float
    """Between the ELBO of the identity posterior and the autoregressive log-likelihood, over all x; nats."""
    total_probability: float
    """exp(ELBO), summed over x."""
    values_below_with_noisy_posterior: int
    """How many x have an ELBO below the log-likelihood once z_i differs from x_i with probability `noise`."""
    noise: float
    noisy_expected_gap: float
    """Log-likelihood less ELBO, expected under the autoregressive model, with noise in the decoder as well; nats."""
    noisy_smallest_gap_to_evidence: float
    """That VAE's own log p(x) less its ELBO, over all x; nats."""


def construction(variables: int = 5, levels: int = 3, noise: float = 0.1, seed: int = 0) -> Construction:
    """Builds the VAEs of an autoregressive model with random tables, and compares by enumeration, in fp64."""
    generator = torch.Generator().manual_seed(seed)
    autoregressive = [
        torch.randn(levels**i, 1, levels, generator=generator, dtype=torch.float64).log_softmax(-1)
        for i in range(variables)
    ]
    log_likelihood = chain(autoregressive)
    elbo = identity_vae(autoregressive).elbo()
    below = identity_vae(autoregressive, posterior_noise=noise).elbo() < log_likelihood
    noisy = identity_vae(autoregressive, noise, noise)
    return Construction(
        variables=variables,
        levels=levels,
        values=elbo.numel(),
        largest_difference=(elbo - log_likelihood).abs().max().item(),
        total_probability=elbo.exp().sum().item(),
        values_below_with_noisy_posterior=int(below.sum()),
        noise=noise,
        noisy_expected_gap=(log_likelihood.exp() * (log_likelihood - noisy.elbo())).sum().item(),
        noisy_smallest_gap_to_evidence=(noisy.log_evidence() - noisy.elbo()).min().item(),
    )


def layer_sizes(variables: int, layers: int) -> list[int]:
    """How many variables each layer has: as even as can be, the larger ones at the top."""
    return [variables // layers + (i < variables % layers) for i in range(layers)]


def ascend(parameters: Iterable[Tensor], objective: Callable[[], Tensor], steps: int, lr: float) -> None:
    """Maximises by Adam, with a learning rate that falls to zero along a cosine."""
    optimizer = torch.optim.Adam(parameters, lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        (-objective()).backward()
        optimizer.step()
        schedule.step()


class LearnedGap(NamedTuple):
    """How far the expected ELBO of learned VAEs stays below minus the entropy, which it cannot exceed."""

    decoder: str
    """One of `DECODERS`."""
    layers: int
    gaps: list[list[float]]
    """Bits; a list over targets, of all starts from the best to the worst."""


class Learned(NamedTuple):
    """Proposition 1, learned: what encoder, prior and decoder find by gradient ascent on the exact ELBO."""

    variables: int
    """Binary, in x as in z."""
    steps: int
    entropy: list[float]
    """Entropy of each target, bits."""
    identity: list[list[float]]
    """The gap of the best VAE whose z is x, a list over numbers of layers; one layer has the multi-information."""
    autoregressive: list[list[float]]
    """The gap of learned autoregressive models, as in `LearnedGap`."""
    vaes: list[LearnedGap]


def identity_gaps(target: Tensor, sizes: Sequence[int]) -> Tensor:
    """How much entropy a layer's variables lose by independence given those above, bits: [T, 2, ..., 2] to [T].

    It is sum_i H(x_i | layers above) - H(x).
    """

    def entropy(variables: Sequence[int]) -> Tensor:
        others = [i + 1 for i in range(sum(sizes)) if i not in variables]
        p = target.sum(others) if others else target
        return -p.xlogy(p).reshape(len(p), -1).sum(1) / NATS_PER_BIT

    gap, above = -entropy(range(sum(sizes))), 0
    for size in sizes:
        conditional = [entropy([*range(above), i]) - entropy(range(above)) for i in range(above, above + size)]
        gap += torch.stack(conditional).sum(0)
        above += size
    return gap.clamp(min=0)  # below 0 by rounding alone


def learn(variables: int = 4, targets: int = 3, starts: int = 8, steps: int = 2000, seed: int = 0) -> Learned:
    """Fits VAEs of 1 to D layers, D binary latents in all, to random distributions of D binary variables.

    All conditionals are tables of logits, drawn at random for every start, so that only layers and decoder limit
    what a VAE can be.
    """
    randn = partial(torch.randn, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    values = 2**variables
    log_target = (1.5 * randn(targets, 1, values)).log_softmax(-1)
    target = log_target.exp()

    def logits(*shape: int) -> Tensor:
        return randn(targets, starts, *shape, 2).requires_grad_()

    def hierarchy(sizes: Sequence[int], *rows: int) -> list[Tensor]:
        return [logits(*rows, 2 ** sum(sizes[:i]), size) for i, size in enumerate(sizes)]

    def gaps(parameters: Sequence[Tensor], bound_of: Callable[[list[Tensor]], Tensor]) -> list[list[float]]:
        """Those of a bound on log p(x), a function of tables, whose logits are learned."""

        def bound() -> Tensor:
            return bound_of([table.log_softmax(-1) for table in parameters])

        ascend(parameters, lambda: (target * bound()).sum(), steps, lr=0.1)
        with torch.no_grad():
            left = (target * (log_target - bound())).sum(-1) / NATS_PER_BIT
        return left.clamp(min=0).sort(-1).values.tolist()  # below 0 by rounding alone

    def vae_gaps(sizes: Sequence[int], decoder: str) -> list[list[float]]:
        def elbo(tables: list[Tensor]) -> Tensor:
            likelihood = tables[-1]
            if decoder == "z_i":  # from [D, z_i, x_i] to [Z, D, x_i]
                likelihood = likelihood[..., torch.arange(variables), digits(variables, 2), :]
            return DiscreteVAE(tables[: len(sizes)], tables[len(sizes) : -1], likelihood).elbo()

        prior, posterior = hierarchy(sizes), hierarchy(sizes, values)
        rows = (variables, 2) if decoder == "z_i" else (values, variables)
        return gaps([*prior, *posterior, logits(*rows)], elbo)

    every_size = [layer_sizes(variables, layers) for layers in range(1, variables + 1)]
    cube = target.reshape(targets, *[2] * variables)
    return Learned(
        variables=variables,
        steps=steps,
        entropy=(-(target * log_target).sum((-1, -2)) / NATS_PER_BIT).tolist(),
        identity=[identity_gaps(cube, sizes).tolist() for sizes in every_size],
        autoregressive=gaps(hierarchy(every_size[-1]), chain),
        vaes=[
            LearnedGap(decoder, len(sizes), vae_gaps(sizes, decoder)) for decoder in DECODERS for sizes in every_size
        ],
    )


# --- Continuous variables.


def log_normal(z: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """The log-density of a Gaussian in nats, elementwise."""
    return -0.5 * ((z - mean) * (-log_std).exp()) ** 2 - log_std - HALF_LOG_2PI


def network(inputs: int, outputs: int, width: int = 32) -> nn.Sequential:
    """A small smooth MLP."""
    hidden = [nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()]
    return nn.Sequential(*hidden, nn.Linear(width, outputs))


def target_moments(above: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log standard deviation of the target's next variable given those above: [..., i] to two [...].

    z_1 ~ N(0, 1), z_i ~ N(2 sin(1.5 z_{i-1}), exp(sin z_1)); E sin z_1 = 0, so the entropy of N variables is that of N
    standard Gaussians exactly.
    """
    if above.shape[-1] == 0:
        return above.new_zeros(above.shape[:-1]), above.new_zeros(above.shape[:-1])
    return 2 * (1.5 * above[..., -1]).sin(), 0.5 * above[..., 0].sin()


def extend(above: Tensor, variables: int) -> Tensor:
    """Draws further variables of the target given those above: [..., i] to [..., i + variables]."""
    for _ in range(variables):
        mean, log_std = target_moments(above)
        above = torch.cat([above, (mean + log_std.exp() * torch.randn_like(mean)).unsqueeze(-1)], -1)
    return above


def target_log_density(z: Tensor) -> Tensor:
    """In nats: [..., N] to [...]."""
    return sum((log_normal(z[..., i], *target_moments(z[..., :i])) for i in range(z.shape[-1])), z.new_zeros(()))


class GaussianPrior(nn.Module):
    """Layers of latents, diagonal Gaussians given all layers above, as the prior of a VDVAE."""

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = sizes
        # a constant 1 comes with the layers above, so that the first layer has an input too
        self.networks = nn.ModuleList(network(1 + sum(sizes[:i]), 2 * size) for i, size in enumerate(sizes))

    def forward(self, z: Tensor) -> Tensor:
        """The log-density in nats: [B, N] to [B]."""
        total, start = z.new_zeros(len(z)), 0
        for size, moments in zip(self.sizes, self.networks, strict=True):
            mean, log_std = moments(F.pad(z[:, :start], (1, 0), value=1.0)).chunk(2, -1)
            total = total + log_normal(z[:, start : start + size], mean, log_std).sum(-1)
            start += size
        return total


class Loss(NamedTuple):
    """What independence within layers costs at least, nats."""

    multi_information: float
    """Multi-information of the variables of a layer given those above, summed over layers: what conditionals of any
    shape still lose.
    """
    smallest_kl: float
    """With Gaussian conditionals."""


def smallest_loss(sizes: Sequence[int], outer: int = 5000, inner: int = 1000, seed: int = 0) -> Loss:
    """Estimates the KL of the best priors with these layers, without fitting any, to about 0.01 nats.

    The best conditional of z_i given the layers above is the target's, sum_j p(z_i | z_<i of j) / J over draws j of
    the layer; the best Gaussian has its variance. `outer` values of the layers above, `inner` draws given each.
    """
    torch.manual_seed(seed)
    above, any_shape, gaussian = torch.zeros(outer, 0), 0.0, 0.0
    for size in sizes:
        start = above.shape[-1]
        z = extend(above.unsqueeze(1).expand(-1, inner, -1), size)
        for i in range(start + 1, start + size):  # given those above, the layer's first variable is Gaussian: no loss
            mean, log_std = target_moments(z[..., :i])
            log_p = log_normal(z[:, :1, i], mean, log_std)  # of the first draw's z_i, given the z_<i of each
            any_shape += (log_p[:, 0] - log_p[:, 1:].logsumexp(1) + math.log(inner - 1)).mean().item()
            gaussian += (z[..., i].var(1).log().mean() / 2 - log_std.mean()).item()
        above = z[:, 0]
    return Loss(any_shape, gaussian)


class Fit(NamedTuple):
    """One prior of Proposition 2."""

    variables: int
    layers: int
    kl: float
    """KL(target || prior) on fresh samples, nats."""
    standard_error: float
    multi_information: float
    """The `multi_information` of its `Loss`."""
    smallest_kl: float
    """The `smallest_kl` of its `Loss`."""


def fit_layers(
    variables: int, layers: int, steps: int = 2500, batch: int = 512, samples: int = 100_000, seed: int = 0
) -> Fit:
    """Fits a prior by maximum likelihood to the target, with fresh samples in every step."""
    torch.manual_seed(seed)
    sizes = layer_sizes(variables, layers)
    model = GaussianPrior(sizes)
    ascend(model.parameters(), lambda: model(extend(torch.zeros(batch, 0), variables)).mean(), steps, lr=0.01)
    with torch.no_grad():
        z = extend(torch.zeros(samples, 0), variables)
        differences = target_log_density(z) - model(z)
    kl, standard_error = differences.mean().item(), differences.std().item() / math.sqrt(samples)
    return Fit(variables, layers, kl, standard_error, *smallest_loss(sizes))


class Bimodal(NamedTuple):
    """A mixture of two Gaussians in one dimension, fitted by a Gaussian, and by the second of two Gaussian layers."""

    one_layer_kl: float
    """KL(target || model) in nats, on a grid."""
    two_layers_kl: float
    densities: Tensor
    """[4, 601]: the grid, and there the target, the Gaussian, and the second layer."""


def bimodal(steps: int = 3000, seed: int = 0) -> Bimodal:
    """Fits z_2 of z_1 ~ N(0, 1), z_2 ~ N(m(z_1), s(z_1)^2) by maximum likelihood, z_1 integrated on a grid.

    With a single node in the place of the grid, z_2 is one Gaussian.
    """
    torch.manual_seed(seed)

    def log_target(z: Tensor) -> Tensor:
        log_half = torch.tensor(0.5).log()
        return (log_normal(z.unsqueeze(-1), torch.tensor([-2.0, 2.0]), log_half) + log_half).logsumexp(-1)

    def log_model(moments: nn.Module, nodes: Tensor, z: Tensor) -> Tensor:
        mean, log_std = moments(nodes.unsqueeze(-1)).unbind(-1)
        return (log_normal(z.unsqueeze(-1), mean, log_std) + (-0.5 * nodes**2).log_softmax(0)).logsumexp(-1)

    def fit(nodes: Tensor, finer_nodes: Tensor) -> tuple[float, Tensor]:
        """KL and log-density, by nodes between those of the fit, which are few enough for a model to exploit."""
        moments = network(1, 2)
        z = torch.linspace(-6, 6, 241)
        weight = log_target(z).softmax(0)
        ascend(moments.parameters(), lambda: (weight * log_model(moments, nodes, z)).sum(), steps, lr=0.01)
        with torch.no_grad():
            log_p = log_model(moments, finer_nodes, grid)
        return (log_target(grid).softmax(0) * (log_target(grid) - log_p)).sum().item(), log_p

    grid = torch.linspace(-6, 6, 601)
    one_layer_kl, one_layer = fit(torch.zeros(1), torch.zeros(1))
    two_layers_kl, two_layers = fit(torch.linspace(-5, 5, 101), torch.linspace(-6, 6, 2001))
    densities = torch.stack([grid, log_target(grid).exp(), one_layer.exp(), two_layers.exp()])
    return Bimodal(one_layer_kl, two_layers_kl, densities)


# --- What is printed, written and drawn.


def tables(exact: Construction, learned: Learned, fits: Sequence[Fit], two: Bimodal) -> str:
    """All figures, as Markdown."""
    construction = {
        "values of x": f"{exact.values}",
        "largest difference of ELBO and autoregressive log-likelihood, nats": f"{exact.largest_difference:.2g}",
        "sum of exp(ELBO)": f"{exact.total_probability:.12f}",
        f"values with a lower ELBO, posterior noise {exact.noise}": f"{exact.values_below_with_noisy_posterior}",
        "expected loss with the same noise in the decoder too, nats": f"{exact.noisy_expected_gap:.3f}",
    }
    computed = {"entropy of the target": learned.entropy}
    computed |= {f"z = x, N = {layers}, computed": gaps for layers, gaps in enumerate(learned.identity, 1)}
    found = {"autoregressive": learned.autoregressive}
    found |= {f"decoder sees {vae.decoder}, N = {vae.layers}": vae.gaps for vae in learned.vaes}
    millibits = [[name, *(f"{1000 * bits:.2f}" for bits in row)] for name, row in computed.items()]
    for name, row in found.items():
        millibits.append([name, *(f"{1000 * starts[0]:.2f} - {1000 * starts[-1]:.2f}" for starts in row)])
    layers = []
    for fit in fits:
        least = f"{fit.smallest_kl:.2f}", f"{fit.multi_information:.2f}"
        layers.append([str(fit.variables), str(fit.layers), f"{fit.kl:.4f} ± {fit.standard_error:.4f}", *least])
    modes = {"one Gaussian layer": f"{two.one_layer_kl:.4f}", "the second of two": f"{two.two_layers_kl:.4f}"}
    targets = [f"target {i + 1}" for i in range(len(learned.entropy))]
    head = ["Proposition 2: variables", "layers", "KL, nats", "least with Gaussians", "least with any conditionals"]
    return "\n\n".join(
        [
            markdown(["Proposition 1, the construction", ""], construction.items()),
            markdown(["Proposition 1, learned: gap, millibits, best - worst", *targets], millibits),
            markdown(head, layers),
            markdown(["two modes in one dimension", "KL, nats"], modes.items()),
        ]
    )


def draw_learned(learned: Learned) -> Figure:
    """The learned gaps against the number of layers, a panel for each decoder."""
    figure, panels = two_panels(4.2, sharey=True)
    depths = range(1, learned.variables + 1)
    for panel, decoder in zip(panels, DECODERS, strict=True):
        vaes = [vae for vae in learned.vaes if vae.decoder == decoder]
        for target in range(len(learned.entropy)):
            best, worst = ([vae.gaps[target][i] for vae in vaes] for i in (0, -1))
            beside, color = [depth + 0.1 * (target - 1) for depth in depths], f"C{target}"
            panel.vlines(beside, best, worst, color=color, alpha=0.4, linewidth=3)
            panel.plot(beside, best, "o-", color=color, label=f"target {target + 1}, the best start (bar: all)")
        panel.set(title=rf"decoder $p(x_i \mid {decoder})$", yscale="log", xticks=depths, ylim=(1e-7, 3))
        panel.set_xlabel(f"layers N, of {learned.variables} binary latents in all")
        panel.grid(alpha=0.3)
    for target, gaps in enumerate(zip(*learned.identity[:-1], strict=True)):  # the last is 0, which has no logarithm
        label = "best with z = x, computed" if target == 0 else None
        panels[0].plot(depths[:-1], gaps, "x--", color=f"C{target}", alpha=0.6, label=label)
    panels[0].set_ylabel("gap of the ELBO to minus the entropy [bits]")
    figure.legend(*panels[0].get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=2)
    return figure


def draw_densities(fits: Sequence[Fit], two: Bimodal) -> Figure:
    """KL against the number of layers, and the bimodal density with its two fits."""
    figure, (left, right) = two_panels(3.8)
    ticks = range(1, 1 + max(fit.variables for fit in fits))
    for variables in ticks:
        chosen, color = [fit for fit in fits if fit.variables == variables], f"C{variables - 1}"
        layers = [fit.layers for fit in chosen]
        left.plot(layers, [fit.kl for fit in chosen], "o-", color=color, label=f"N = {variables}")
        left.plot(layers, [fit.multi_information for fit in chosen], "x:", color=color)
    left.plot([], [], "x:", color="gray", label="least with any conditionals")
    left.set(xlabel="layers k of the prior", ylabel="KL(target || prior) [nats]", xticks=ticks)
    left.set_title("N variables in k Gaussian layers")
    left.grid(alpha=0.3)
    left.legend(fontsize=8)
    z, target, one_layer, two_layers = two.densities.numpy()
    right.fill_between(z, target, color="lightgray", label="target")
    right.plot(z, one_layer, label=f"one Gaussian layer, KL {two.one_layer_kl:.2f} nats")
    right.plot(z, two_layers, label=f"second of two layers, KL {two.two_layers_kl:.3f} nats")
    right.set(xlabel="z", ylabel="density", ylim=(0, 0.6), title="Two modes in one dimension")
    right.legend(fontsize=8, loc="upper center")
    return figure


def two_panels(height: float, **options: Any) -> tuple[Figure, Any]:
    """A figure 9 inches wide, and its two panels side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, height), dpi=120, layout="constrained")
    return figure, figure.subplots(1, 2, **options)


@exit_on_interrupt()
def main() -> None:
    """Measures, prints, and writes what was asked for."""
    parser = CommandLine(description="The propositions of Child (2020) on models small enough to be computed exactly.")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    parser.add_argument("--figures", type=Path, help="a folder for proposition1.png and proposition2.png")
    with exit_on_user_error():
        args = parser.parse_args()
        prepare_result(args.json)
        if args.figures:
            check_matplotlib()
            args.figures.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    device = torch.device("cpu")
    start = now(device)
    exact, learned, two = construction(), learn(), bimodal()
    fits = [fit_layers(variables, layers) for variables in range(1, 5) for layers in range(1, variables + 1)]
    seconds = now(device) - start
    print(tables(exact, learned, fits, two))
    if args.json:
        figures = {
            "seconds": seconds,
            "construction": exact._asdict(),
            "learned": {**learned._asdict(), "vaes": [vae._asdict() for vae in learned.vaes]},
            "layers": [fit._asdict() for fit in fits],
            "bimodal": {"one_layer_kl": two.one_layer_kl, "two_layers_kl": two.two_layers_kl},
        }
        write_result(args.json, device, {"kind": "propositions", "threads": torch.get_num_threads()}, figures)
    if args.figures:
        draw_learned(learned).savefig(args.figures / "proposition1.png")
        draw_densities(fits, two).savefig(args.figures / "proposition2.png")


if __name__ == "__main__":
    main()
