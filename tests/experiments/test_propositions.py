"""The propositions of Child (2020): what must hold exactly, and what small fits must find."""

from __future__ import annotations

import itertools
import json
import math
import sys
from functools import partial
from pathlib import Path

import propositions
import pytest
import torch
from propositions import (
    Bimodal,
    Construction,
    DiscreteVAE,
    Fit,
    Learned,
    LearnedGap,
    bimodal,
    chain,
    construction,
    extend,
    fit_layers,
    identity_gaps,
    identity_vae,
    layer_sizes,
    learn,
    log_normal,
    smallest_loss,
    target_log_density,
    target_moments,
)
from torch import Tensor

from tests.conftest import ROOT, says


def random_tables(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).log_softmax(-1) for shape in shapes]


def test_elbo_is_the_sum_over_all_latents() -> None:
    """Against loops, for two variables in the first layer and one in the second, and x of two; below log p(x)."""
    *prior, likelihood = random_tables((1, 2, 2), (4, 1, 2), (8, 2, 2))
    posterior = random_tables((4, 1, 2, 2), (4, 4, 1, 2))
    vae = DiscreteVAE(prior, posterior, likelihood)
    for x, (x_1, x_2) in enumerate(itertools.product(range(2), repeat=2)):
        elbo = evidence = 0.0
        for z, (a, b, c) in enumerate(itertools.product(range(2), repeat=3)):
            above = 2 * a + b
            log_p = prior[0][0, 0, a] + prior[0][0, 1, b] + prior[1][above, 0, c]
            log_p = log_p + likelihood[z, 0, x_1] + likelihood[z, 1, x_2]
            log_q = posterior[0][x, 0, 0, a] + posterior[0][x, 0, 1, b] + posterior[1][x, above, 0, c]
            elbo += (log_q.exp() * (log_p - log_q)).item()
            evidence += log_p.exp().item()
        assert vae.elbo()[x].item() == pytest.approx(elbo, abs=1e-12)
        assert vae.log_evidence()[x].item() == pytest.approx(math.log(evidence), abs=1e-12)
        assert elbo < math.log(evidence)


@pytest.mark.parametrize(("variables", "levels"), [(1, 4), (4, 3), (6, 2)])
def test_the_construction_is_the_autoregressive_model(variables: int, levels: int) -> None:
    """For every x, and the likelihood is the product of conditionals."""
    autoregressive = random_tables(*((levels**i, 1, levels) for i in range(variables)))
    elbo = identity_vae(autoregressive).elbo()
    assert elbo.shape == (levels**variables,)
    assert elbo.exp().sum().item() == pytest.approx(1, abs=1e-12)
    for number, x in enumerate(itertools.product(range(levels), repeat=variables)):
        log_p, above = 0.0, 0
        for table, level in zip(autoregressive, x, strict=True):
            log_p += table[above, 0, level].item()
            above = levels * above + level
        assert elbo[number].item() == pytest.approx(log_p, abs=1e-6)


def test_another_posterior_is_below() -> None:
    result = construction(variables=4)
    assert result.largest_difference < 1e-6
    assert result.values_below_with_noisy_posterior == result.values == 81
    assert result.noisy_smallest_gap_to_evidence > 0.01
    assert result.noisy_expected_gap > 0.01


def test_posterior_of_bayes_is_tight() -> None:
    """So the noise costs what the posterior lacks: with p(z | x) of the noisy decoder the ELBO is log p(x)."""
    autoregressive = random_tables((1, 1, 3), (3, 1, 3))
    noisy = identity_vae(autoregressive, 0.1, 0.1)
    log_posterior = noisy.log_joint().log_softmax(-1).reshape(9, 3, 3)  # [X, z_1, z_2]
    top = log_posterior.logsumexp(-1)
    bayes = [top[:, None, None], (log_posterior - top.unsqueeze(-1)).unsqueeze(-2)]
    torch.testing.assert_close(chain(bayes), log_posterior.flatten(1))
    torch.testing.assert_close(noisy._replace(posterior=bayes).elbo(), noisy.log_evidence())


def test_layer_sizes() -> None:
    assert [layer_sizes(4, layers) for layers in range(1, 5)] == [[4], [2, 2], [2, 1, 1], [1, 1, 1, 1]]


def test_identity_gaps() -> None:
    """x_1 = x_2, a fair coin, and x_3 another: one bit is lost where x_1 and x_2 share a layer."""
    target = torch.zeros(1, 2, 2, 2, dtype=torch.float64)
    target[:, 0, 0] = target[:, 1, 1] = 0.25
    for sizes, bits in (([3], 1), ([2, 1], 1), ([1, 2], 0), ([1, 1, 1], 0)):
        assert identity_gaps(target, sizes).item() == pytest.approx(bits, abs=1e-12)


@pytest.mark.long
def test_learned() -> None:
    """With the decoder of the proof: independent variables in one layer, all of the target with a layer for each."""
    learned = learn(variables=3, targets=2, starts=6, steps=800)
    own = {vae.layers: vae.gaps for vae in learned.vaes if vae.decoder == "z_i"}
    for target, multi_information in enumerate(learned.identity[0]):
        assert multi_information > 0.1
        assert min(own[1][target]) == pytest.approx(multi_information, abs=1e-3)
        assert min(own[1][target]) > multi_information - 1e-9
        assert min(own[3][target]) < 0.02 * multi_information
        assert max(learned.autoregressive[target]) < 1e-6
    for vae in learned.vaes:
        assert vae.gaps == [sorted(gaps) for gaps in vae.gaps]
        assert [len(gaps) for gaps in vae.gaps] == [6, 6]


def test_entropy_of_the_target() -> None:
    """That of as many standard Gaussians."""
    torch.manual_seed(0)
    log_p = target_log_density(extend(torch.zeros(50_000, 0), 3))
    error = log_p.std().item() / math.sqrt(len(log_p))
    assert abs(log_p.mean().item() + 1.5 * math.log(2 * math.pi * math.e)) < 4 * error < 0.1


def test_smallest_loss() -> None:
    """Against the multi-information of two variables on a grid; none without layers of several variables."""
    z = torch.linspace(-12, 12, 2401)
    weight = (-0.5 * z**2).softmax(0)
    mean, log_std = target_moments(z.unsqueeze(-1))
    marginal = weight @ log_normal(z, mean.unsqueeze(-1), log_std.unsqueeze(-1)).exp()
    entropy = -marginal.xlogy(marginal).sum() * 0.01
    multi_information = entropy.item() - 0.5 * math.log(2 * math.pi * math.e)
    loss = smallest_loss([2])
    assert loss.multi_information == pytest.approx(multi_information, abs=0.02)
    assert loss.smallest_kl > loss.multi_information
    assert smallest_loss([1, 1, 1], outer=10, inner=10) == (0, 0)


def test_as_many_layers_as_variables() -> None:
    """The KL is small, and with one layer less it is what independence costs."""
    loss = smallest_loss([2])
    shallow, deep = (fit_layers(2, layers, steps=500, samples=20_000) for layers in (1, 2))
    assert deep.kl < 0.02
    assert deep.kl < 0.05 * loss.multi_information
    assert shallow.kl > loss.multi_information - 0.02
    assert shallow.kl == pytest.approx(loss.smallest_kl, abs=0.04)


@pytest.mark.long
def test_two_modes_need_two_layers() -> None:
    """A Gaussian is as far away as its variance says, 4.25.

    Fitted as long as for the document: 20 seeds end between 0.011 and 0.030 nats. After 1,000 steps they
    still end between 0.02 and 0.15, each machine's rounding choosing another.
    """
    result = bimodal()
    z, target, _, two_layers = result.densities.double()
    entropy = -target.xlogy(target).sum() * 0.02
    assert result.one_layer_kl == pytest.approx(0.5 * math.log(2 * math.pi * math.e * 4.25) - entropy.item(), abs=1e-3)
    assert 0 < result.two_layers_kl < 0.1 * result.one_layer_kl
    assert torch.trapezoid(two_layers, z).item() == pytest.approx(1, abs=0.01)


def test_the_document_has_the_figures_of_the_results() -> None:
    told = json.loads((ROOT / "results/propositions.json").read_text())
    vaes = [LearnedGap(**vae) for vae in told["learned"].pop("vaes")]
    learned, exact = Learned(**told["learned"], vaes=vaes), Construction(**told["construction"])
    fits, two = [Fit(**row) for row in told["layers"]], Bimodal(**told["bimodal"], densities=torch.empty(0))
    tables = propositions.tables(exact, learned, fits, two)
    document = (ROOT / "docs/propositions.md").read_text()
    for table in tables.split("\n\n"):
        assert table in document


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Prints the tables, writes the results and draws the figures."""
    pytest.importorskip("matplotlib")
    quick = {
        "learn": partial(learn, steps=2),
        "bimodal": partial(bimodal, steps=2),
        "fit_layers": partial(fit_layers, steps=2, samples=100),
        "smallest_loss": partial(smallest_loss, outer=10, inner=10),
    }
    for name, function in quick.items():
        monkeypatch.setattr(propositions, name, function)
    monkeypatch.setattr("sys.argv", ["propositions.py", "--json", f"{tmp_path}/a.json", "--figures", f"{tmp_path}/b"])
    propositions.main()
    told = json.loads((tmp_path / "a.json").read_text())
    assert [(row["variables"], row["layers"]) for row in told["layers"]][-1] == (4, 4)
    assert told["threads"] == 1
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["proposition1.png", "proposition2.png"]
    assert capsys.readouterr().out.count("| --- |") >= 4


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, before anything is measured."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr("sys.argv", ["propositions.py", "--figures", "docs"])
    with pytest.raises(SystemExit) as exit_info:
        propositions.main()
    assert exit_info.value.code == 2
    says(capsys.readouterr().err, "error: figures matplotlib pip install .[figures]")
