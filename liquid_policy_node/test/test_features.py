"""The encoder: torchvision's names, key points that are right, images that are wrong."""

import pytest

torch = pytest.importorskip('torch')

from liquid_policy.features import Encoder, image_tensors, load_published  # noqa: E402
from liquid_policy.settings import EncoderSettings  # noqa: E402


@pytest.fixture(scope='module')
def encoder():
    torch.manual_seed(0)
    return Encoder().eval()


def _images(batch=2):
    generator = torch.Generator().manual_seed(1)
    color = torch.randint(0, 256, (batch, 96, 96, 3), dtype=torch.uint8, generator=generator)
    return color, torch.rand(batch, 96, 96, generator=generator) + 0.5


def test_layers_have_the_published_names_and_shapes():
    # torchvision.models.mobilenet_v2().features: 52 convolutions; spot checks of all kinds.
    names = dict(Encoder(EncoderSettings(width=1.0)).features.state_dict(prefix='features.'))
    shapes = {
        'features.0.0.weight': (32, 4, 3, 3), 'features.0.1.running_var': (32,),
        'features.1.conv.0.0.weight': (32, 1, 3, 3), 'features.1.conv.1.weight': (16, 32, 1, 1),
        'features.2.conv.1.0.weight': (96, 1, 3, 3), 'features.2.conv.3.bias': (24,),
        'features.17.conv.2.weight': (320, 960, 1, 1), 'features.18.0.weight': (1280, 320, 1, 1),
    }
    assert {name: tuple(names[name].shape) for name in shapes} == shapes
    assert sum(len(value.shape) == 4 for value in names.values()) == 52


def test_published_three_channel_weights_are_inflated():
    encoder = Encoder()
    published = {name: torch.randn_like(value) if value.is_floating_point() else value
                 for name, value in encoder.features.state_dict(prefix='features.').items()}
    published['features.0.0.weight'] = published['features.0.0.weight'][:, :3]
    published['classifier.1.weight'] = torch.zeros(1000, 1280)
    loaded = load_published(encoder, published)
    first = encoder.features[0][0].weight
    assert torch.equal(first[:, :3], published['features.0.0.weight'])
    assert torch.allclose(first[:, 3], first[:, :3].mean(1))
    assert len(loaded) == len(published) - 1


def test_published_weights_of_another_width_are_refused():
    other = Encoder(EncoderSettings(width=1.0)).features.state_dict(prefix='features.')
    with pytest.raises(ValueError, match='is the width the same'):
        load_published(Encoder(), other)
    with pytest.raises(ValueError, match='lack'):
        load_published(Encoder(), {})


def test_batch_equals_its_images_run_singly(encoder):
    color, depth = _images(3)
    with torch.inference_mode():
        both = encoder(color, depth)
        singly = torch.cat([encoder(color[i:i + 1], depth[i:i + 1]) for i in range(3)])
    assert both.shape == (3, 128)
    assert torch.allclose(both, singly, atol=1e-5)      # another order of float32 sums


@pytest.mark.parametrize('bad', [float('nan'), float('inf'), -float('inf'), -1.0])
def test_unmeasured_depth_equals_zero(encoder, bad):
    color, depth = _images(1)
    depth[0, 10:40, 20:50] = 0.0
    with torch.inference_mode():
        right = encoder(color, depth)
        depth[0, 10:40, 20:50] = bad
        assert torch.equal(encoder(color, depth), right)


def test_image_without_any_depth_gives_finite_features(encoder):
    color, _ = _images(1)
    with torch.inference_mode():
        assert torch.isfinite(encoder(color, torch.zeros(1, 96, 96))).all()


def test_depth_is_cut_at_its_limit():
    color = torch.zeros(1, 96, 96, 3, dtype=torch.uint8)
    _, metres = image_tensors(color, torch.full((1, 96, 96), 7.0), 3.0)
    assert metres.max() == 3.0


def test_key_point_is_the_back_projected_cell():
    # A map that looks at one cell gives that cell's point: column and row of the cell's middle
    # relative to the image's, where half the width is 1, times the depth there.
    encoder = Encoder()
    logits = torch.zeros(1, 28, 24, 24)
    logits[0, 0, 6, 18] = 1e4
    depth = torch.full((1, 1, 96, 96), 2.0)
    depth[..., 24:28, 72:76] = 0.8
    points = encoder.points_of(logits.flatten(2).softmax(-1), encoder.cells_of(depth))[0]
    column, row = ((18 + 0.5) * 4 - 48) / 48, ((6 + 0.5) * 4 - 48) / 48
    assert torch.allclose(points[[0, 28, 56]],
                          torch.tensor([column * 0.8, row * 0.8, 0.8]), atol=1e-5)


def test_key_point_ignores_holes_in_the_depth():
    encoder = Encoder()
    logits = torch.zeros(1, 28, 24, 24)
    logits[0, 0, 6, 18] = 1e4
    depth = torch.full((1, 1, 96, 96), 0.8)
    depth[..., 25, 73] = 0.0
    points = encoder.points_of(logits.flatten(2).softmax(-1), encoder.cells_of(depth))
    assert points[0, 56] == pytest.approx(0.8, abs=1e-5)


def test_key_points_tell_directions_without_a_depth_camera():
    encoder = Encoder()
    cells = encoder.cells_of(torch.zeros(1, 1, 96, 96))[0]
    assert torch.equal(cells[2], torch.ones(576))
    assert torch.equal(cells[:2], encoder.grid)
