"""Every head by known answers: densities, schedules, modes found and modes averaged."""

import math

import pytest

torch = pytest.importorskip('torch')

from liquid_policy.head_settings import (  # noqa: E402
    HEADS,
    DeterministicSettings,
    DiffusionSettings,
    FlowSettings,
    HeadSettings,
    ImleSettings,
    MixtureSettings,
    SettingsError,
    head_settings,
    head_values,
)
from liquid_policy.heads.build import build_head  # noqa: E402
from liquid_policy.heads.diffusion import DiffusionHead, scheduler  # noqa: E402
from liquid_policy.heads.mixture import Mixture  # noqa: E402

SMALL = {'horizon': 4, 'hidden': 16}
KINDS = [MixtureSettings(components=3, rank=2, layers=2, **SMALL),
         DeterministicSettings(**SMALL),
         ImleSettings(samples=3, width=16, depth=1, **SMALL),
         FlowSettings(samples=2, steps=2, width=16, depth=1, **SMALL),
         DiffusionSettings(steps=4, noise_levels=20, channels=(8, 16), **SMALL),
         DiffusionSettings(steps=5, noise_levels=20, network='mlp', width=16, depth=1,
                           schedule='ddim', **SMALL)]


def _train(head, draw, steps, rate=3e-3):
    """Teach a head; `draw` gives inputs and chunks of a generator."""
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(head.parameters(), rate)
    for step in range(steps):
        for group in optimizer.param_groups:
            group['lr'] = rate * 0.5 * (1.0 + math.cos(math.pi * step / steps))
        x, chunk = draw(generator)
        loss = head.loss(head(x), chunk, None, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return head.eval()


def _two_plans(generator, rows=128, rare=0.5):
    """Round the left or the right: a chunk of +1, or with the share `rare` one of -1."""
    side = torch.where(torch.rand((rows, 1, 1), generator=generator) < rare, -1.0, 1.0)
    chunk = side.expand(rows, 4, 2) + 0.05 * torch.randn((rows, 4, 2), generator=generator)
    return torch.zeros(rows, 1), chunk


def test_low_rank_density_equals_a_dense_gaussian():
    generator = torch.Generator().manual_seed(0)
    shape = (3, 2, 3, 2)
    mixture = Mixture(torch.log_softmax(torch.randn(3, 2, generator=generator), 1).double(),
                      torch.randn(shape, generator=generator).double(),
                      (0.3 + torch.rand(shape, generator=generator)).double(),
                      torch.randn((*shape, 2), generator=generator).double())
    chunk = torch.randn(3, 3, 2, generator=generator).double()
    factors, scales = mixture.factors.flatten(2, 3), mixture.scales.flatten(2)
    covariance = torch.diag_embed(scales.square()) + factors @ factors.transpose(2, 3)

    def known(keep):
        each = torch.distributions.MultivariateNormal(
            mixture.means.flatten(2)[..., keep], covariance[..., keep, :][..., keep])
        return torch.logsumexp(
            mixture.log_weights + each.log_prob(chunk.flatten(1)[:, None, keep]), 1)

    assert torch.allclose(mixture.log_density(chunk), known(torch.arange(6)), atol=1e-10)
    # Leaving out steps is the marginal over the others.
    mask = torch.tensor([[True, True, False]] * 3)
    assert torch.allclose(mixture.log_density(chunk, mask), known(torch.arange(4)), atol=1e-10)
    assert torch.allclose(mixture.deviations.flatten(2).square(),
                          covariance.diagonal(dim1=2, dim2=3))


def test_low_rank_samples_have_the_covariance():
    factors = torch.tensor([[1.0], [-2.0]]).reshape(1, 1, 1, 2, 1)
    mixture = Mixture(torch.zeros(1, 1), torch.zeros(1, 1, 1, 2), torch.full((1, 1, 1, 2), 0.5),
                      factors)
    many = Mixture(*(value.expand(20000, *value.shape[1:]) for value in (
        mixture.log_weights, mixture.means, mixture.scales, mixture.factors)))
    samples = many.sample(torch.Generator().manual_seed(0)).flatten(1)
    known = torch.tensor([[1.25, -2.0], [-2.0, 4.25]])
    # The error of a variance from n samples is about sqrt(2 / n) of it, 1 %.
    assert torch.allclose(samples.T.cov(), known, atol=0.15)


@pytest.mark.parametrize('schedule, steps', [('ddpm', 100), ('ddpm', 50), ('ddim', 10)])
def test_diffusion_equals_diffusers_step_by_step(schedule, steps):
    settings = DiffusionSettings(schedule=schedule, steps=steps, network='mlp', width=16,
                                 depth=1, clip=2.0, **SMALL)
    torch.manual_seed(0)
    head = DiffusionHead(3, 2, settings)
    # An untrained network predicts next to nothing; this one moves and hits the clipping.
    head.network.forward = lambda x, time, condition: torch.sin(3.0 * x + 0.1 * time.unsqueeze(2))
    noise = head.draw_noise(5, torch.Generator().manual_seed(1))[:, 0]
    condition = torch.zeros(5, settings.hidden)
    known = scheduler(settings)
    x = noise[:, 0]
    for index, time in enumerate(known.timesteps):
        error = head.network.forward(x, torch.full((5, 1), float(time)), condition)
        if schedule == 'ddim':
            x = known.step(error, time, x, eta=0.0).prev_sample
            continue
        # The scheduler draws its own noise; its seed is the same only for one draw, so take
        # the mean (variance type 'fixed_small' adds the noise to it) and add ours.
        mean, spread = _posterior(known, error, time, x)
        x = mean + (spread * noise[:, index + 1] if index + 1 < steps else 0.0)
    assert torch.allclose(head.chunks(condition, noise), x, atol=2e-4)


def _posterior(known, error, time, x):
    """Mean and spread of one step of diffusers: two draws of known noise tell both."""
    from diffusers.schedulers import scheduling_ddpm
    draws = []
    for value in (0.0, 1.0):
        original = scheduling_ddpm.randn_tensor
        scheduling_ddpm.randn_tensor = lambda shape, value=value, **_: torch.full(shape, value)
        try:
            draws.append(known.step(error, time, x).prev_sample)
        finally:
            scheduling_ddpm.randn_tensor = original
    return draws[0], draws[1] - draws[0]


def test_diffusion_noises_as_diffusers_does():
    settings = DiffusionSettings(network='mlp', width=16, depth=1, **SMALL)
    head, known = DiffusionHead(3, 2, settings), scheduler(settings)
    chunk, noise = torch.randn(4, 4, 2), torch.randn(4, 4, 2)
    level = torch.tensor([0, 10, 50, 99])
    ours = head.signal[level, None, None] * chunk + head.spread[level, None, None] * noise
    assert torch.allclose(ours, known.add_noise(chunk, noise, level), atol=1e-6)


def test_flow_learns_a_known_gaussian():
    torch.manual_seed(0)
    head = build_head(1, 1, FlowSettings(horizon=2, hidden=16, width=64, depth=2, steps=20))
    center, spread = torch.tensor([[1.5], [-0.5]]), torch.tensor([[0.3], [0.8]])

    def draw(generator):
        return torch.zeros(256, 1), center + spread * torch.randn((256, 2, 1),
                                                                  generator=generator)

    _train(head, draw, 500)
    with torch.no_grad():
        samples = head.sample(head(torch.zeros(4000, 1)), torch.Generator().manual_seed(2))
    assert torch.allclose(samples.mean(0), center, atol=0.12)
    assert torch.allclose(samples.std(0), spread, atol=0.12)


@pytest.mark.parametrize('settings', [
    FlowSettings(steps=20, samples=1, width=64, depth=2, **SMALL),
    DiffusionSettings(steps=10, schedule='ddim', network='mlp', width=64, depth=2, **SMALL),
], ids=lambda settings: settings.kind)
def test_samplers_learn_both_plans(settings):
    torch.manual_seed(0)
    head = _train(build_head(1, 2, settings), _two_plans, 400)
    with torch.no_grad():
        samples = head.sample(head(torch.zeros(1000, 1)), torch.Generator().manual_seed(2))
    means = samples.mean((1, 2))
    assert ((means.abs() - 1.0).abs() < 0.3).float().mean() > 0.9       # one plan each ...
    assert 0.35 < float((means > 0).float().mean()) < 0.65              # ... and both come up


def test_imle_leaves_no_mode_out_where_least_squares_averages():
    torch.manual_seed(0)
    imle = build_head(1, 2, ImleSettings(width=64, depth=2, samples=64, **SMALL))
    plain = build_head(1, 2, DeterministicSettings(**SMALL))

    def draw(generator):
        return _two_plans(generator, rare=0.2)

    _train(imle, draw, 400)
    _train(plain, draw, 200)
    x = torch.zeros(1, 1)
    with torch.no_grad():
        noise = imle.draw_noise(1, torch.Generator().manual_seed(2))
        answers = imle.distribution(imle(x), noise).means[0].mean((1, 2))
        average = plain.sample(plain(x)).mean()
    for mode in (1.0, -1.0):        # the rare one too has samples at it
        assert (answers - mode).abs().min() < 0.15
    # 0.8 * 1 + 0.2 * -1: a plan that nobody ever showed.
    assert float(average) == pytest.approx(0.6, abs=0.1)


def test_imle_leaves_out_candidates_that_are_near_enough():
    head = build_head(1, 1, ImleSettings(horizon=1, hidden=4, width=8, depth=1, candidates=4,
                                         epsilon=1e6))
    loss = head.loss(head(torch.zeros(3, 1)), torch.zeros(3, 1, 1), None,
                     torch.Generator().manual_seed(0))
    assert loss.item() == 0.0
    loss.backward()     # and teaches nothing, without turning into NaN
    assert all(torch.isfinite(p.grad).all() for p in head.parameters() if p.grad is not None)


@pytest.mark.parametrize('settings', KINDS, ids=lambda settings: settings.name)
def test_every_head_keeps_the_protocol(settings):
    torch.manual_seed(0)
    head = build_head(3, 2, settings).eval()
    generator = torch.Generator().manual_seed(1)
    x, chunk = torch.randn(5, 3), torch.randn(5, 4, 2)
    mask = torch.ones(5, 4, dtype=torch.bool)
    mask[0, 2:] = False
    answer = head(x)

    def loss(chunk):
        return head.loss(answer, chunk, mask, torch.Generator().manual_seed(2))

    changed = chunk.clone()
    changed[0, 2:] = 7.0
    if isinstance(settings, FlowSettings | DiffusionSettings):
        # These see the whole noisy chunk; what does not count is only no goal.
        assert loss(changed).isfinite()
    else:
        assert loss(chunk).item() == pytest.approx(loss(changed).item(), abs=1e-6)
    mixture = head.distribution(answer, head.draw_noise(5, generator))
    assert mixture.means.shape[0] == 5 and mixture.means.shape[2:] == (4, 2)
    assert torch.allclose(mixture.weights.sum(1), torch.ones(5), atol=1e-6)
    assert (mixture.deviations > 0).all()
    assert head.sample(answer, generator).shape == (5, 4, 2)
    # One batch equals its rows run singly.
    noise = head.draw_noise(5, generator)
    together = head.distribution(head(x), noise).means
    for row in range(5):
        alone = head.distribution(head(x[row:row + 1]),
                                  None if noise is None else noise[row:row + 1]).means
        assert torch.allclose(alone[0], together[row], atol=1e-5)
    assert head_settings(settings.to_dict()) == settings


def test_sampling_heads_ask_for_the_noise_they_need():
    head = build_head(3, 2, KINDS[3])
    with pytest.raises(ValueError, match=r'noise: expected .* \(1, 2, 4, 2\), came None'):
        head.distribution(head(torch.zeros(1, 3)))


def test_settings_of_before_are_a_mixture():
    old = {'mixture': {'components': 5, 'horizon': 16, 'dt': 0.02, 'hidden': 96,
                       'least_scale': 0.05}}
    assert head_settings(head_values(old)) == MixtureSettings()
    assert set(HEADS) == {'mixture', 'deterministic', 'imle', 'flow', 'diffusion'}


@pytest.mark.parametrize('make, text', [
    (lambda: head_settings({'kind': 'gan'}), "head.kind: expected one of mixture.*'gan'"),
    (lambda: head_settings({'kind': 'flow', 'speed': 1}), "flow: unknown setting 'speed'"),
    (lambda: head_settings(3), 'head: expected a mapping'),
    (lambda: FlowSettings(steps=0), 'flow.steps'),
    (lambda: ImleSettings(candidates=0), 'imle.candidates'),
    (lambda: MixtureSettings(rank=-1), 'mixture.rank'),
    (lambda: DiffusionSettings(steps=200), 'diffusion.steps: expected 1 to 100'),
    (lambda: DiffusionSettings(schedule='pndm'), 'diffusion.schedule'),
    (lambda: DiffusionSettings(horizon=6), 'a multiple of 4'),
    (lambda: DiffusionSettings(channels=(20,)), 'multiples of 8'),
])
def test_bad_settings_are_refused(make, text):
    assert issubclass(SettingsError, ValueError) and HeadSettings().horizon == 16
    with pytest.raises(SettingsError, match=text):
        make()
