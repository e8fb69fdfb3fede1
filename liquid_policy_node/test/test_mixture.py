"""The mixture head: exact densities, coherent samples, two modes learned without collapse."""

import math

import pytest

torch = pytest.importorskip('torch')

from liquid_policy.mixture import EstimateHead, Mixture, MixtureHead  # noqa: E402
from liquid_policy.settings import MixtureSettings  # noqa: E402


def _mixture(batch=4, components=3, horizon=2, actions=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, components, horizon, actions)
    return Mixture(torch.log_softmax(torch.randn(batch, components, generator=generator), 1),
                   torch.randn(shape, generator=generator),
                   0.3 + torch.rand(shape, generator=generator))


def test_density_equals_torch_distributions():
    mixture = _mixture()
    chunk = torch.randn(4, 2, 2, generator=torch.Generator().manual_seed(5))
    known = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=mixture.log_weights),
        torch.distributions.Independent(
            torch.distributions.Normal(mixture.means, mixture.scales), 2))
    assert torch.allclose(mixture.log_density(chunk), known.log_prob(chunk), atol=1e-5)


def test_density_of_one_standard_gaussian_is_known():
    mixture = Mixture(torch.zeros(1, 1), torch.zeros(1, 1, 4, 3), torch.ones(1, 1, 4, 3))
    assert mixture.log_density(torch.zeros(1, 4, 3)).item() == pytest.approx(
        -6.0 * math.log(2.0 * math.pi), abs=1e-5)


def test_masked_steps_do_not_count():
    mixture = _mixture()
    chunk = torch.randn(4, 2, 2)
    mask = torch.tensor([[True, False]] * 4)
    first = Mixture(mixture.log_weights, mixture.means[:, :, :1], mixture.scales[:, :, :1])
    changed = chunk.clone()
    changed[:, 1] = 1e3
    assert torch.allclose(mixture.log_density(changed, mask), first.log_density(chunk[:, :1]),
                          atol=1e-5)


def test_head_gradient_equals_finite_differences():
    torch.manual_seed(0)
    head = MixtureHead(3, 2, MixtureSettings(components=2, horizon=2, hidden=4)).double()
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    chunk = torch.randn(2, 2, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: head.loss(head(x), chunk), (x,), atol=1e-6)


def test_scale_never_falls_below_its_floor():
    torch.manual_seed(0)
    settings = MixtureSettings(components=2, horizon=2, hidden=16, least_scale=0.05)
    head = MixtureHead(1, 1, settings)
    optimizer = torch.optim.Adam(head.parameters(), 1e-2)
    for _ in range(300):    # the same answer always: the likelihood asks for scale 0
        loss = head.loss(head(torch.ones(8, 1)), torch.zeros(8, 2, 1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    mixture = head(torch.ones(1, 1))
    assert mixture.scales.min() >= 0.05
    # Density of a Gaussian of scale 0.05 at its mean bounds what can be gained.
    assert float(loss) >= math.log(0.05) + 0.5 * math.log(2 * math.pi) - 1e-4


def test_two_modes_are_learned_without_collapse():
    # Go round the left or the right: a whole chunk of +1 or of -1, never the mean.
    torch.manual_seed(0)
    head = MixtureHead(2, 2, MixtureSettings(components=5, horizon=8, hidden=32))
    optimizer = torch.optim.Adam(head.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(1)
    for _ in range(400):
        x = torch.randn(64, 2, generator=generator)
        side = torch.randint(0, 2, (64, 1, 1), generator=generator) * 2.0 - 1.0
        chunk = side.expand(64, 8, 2) + 0.1 * torch.randn(64, 8, 2, generator=generator)
        mixture = head(x)
        loss = head.loss(mixture, chunk) + 0.01 * head.balance(mixture)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # Known entropy: log 2 for the side over 16 numbers, and a Gaussian of scale 0.1 each.
    best = math.log(2) / 16 + math.log(0.1) + 0.5 * math.log(2 * math.pi * math.e)
    assert head.loss(mixture, chunk).item() == pytest.approx(best, abs=0.15)
    assert mixture.effective_components() >= 1.9
    sample = mixture.sample(torch.Generator().manual_seed(2))
    means = sample.mean((1, 2))
    assert (means.abs() - 1.0).abs().max() < 0.25       # each sample is one plan ...
    right = float((means > 0).float().mean())
    assert 0.25 < right < 0.75                          # ... and both plans come up


def test_estimate_loss_leaves_out_what_is_unknown():
    mean, scale = torch.zeros(2, 2, requires_grad=True), torch.ones(2, 2)
    targets = torch.tensor([[1.0, float('nan')], [float('nan'), float('nan')]])
    loss = EstimateHead.loss(mean, scale, targets)
    assert loss.item() == pytest.approx(0.5 + 0.5 * math.log(2 * math.pi))
    loss.backward()
    assert torch.equal(mean.grad, torch.tensor([[-1.0, 0.0], [0.0, 0.0]]))
    nothing = EstimateHead.loss(mean, scale, torch.full((2, 2), float('nan')))
    assert nothing.item() == 0.0


def test_balance_is_zero_when_all_components_are_in_use():
    head = MixtureHead(1, 1, MixtureSettings(components=4))
    even = Mixture(torch.full((6, 4), 0.25).log(), torch.zeros(0), torch.zeros(0))
    one = Mixture(torch.log_softmax(torch.tensor([[50.0, 0.0, 0.0, 0.0]]), 1), torch.zeros(0),
                  torch.zeros(0))
    assert head.balance(even).item() == pytest.approx(0.0, abs=1e-6)
    assert head.balance(one).item() == pytest.approx(math.log(4), abs=1e-4)
