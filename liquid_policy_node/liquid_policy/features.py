"""Image features: MobileNetV2 with depth as a fourth channel, and key points from its maps."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from liquid_policy.settings import EncoderSettings

# Sandler et al., MobileNetV2, arXiv:1801.04381, table 2: expansion, channels, repeats, stride.
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2),
           (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
# Last block of each stride in `features`: 4, 8, 16 and 32 pixels per cell.
_TAPS = (3, 6, 13)
# ImageNet statistics, so that published weights see what they were trained on.
_COLOR_MEAN = (0.485, 0.456, 0.406)
_COLOR_SCALE = (0.229, 0.224, 0.225)


def _divisible(channels: float, divisor: int = 8) -> int:
    """Return `channels` rounded to a multiple of `divisor`, never more than 10 % below."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def _normalised(x: Tensor, layer: nn.Module, norm: nn.Module) -> Tensor:
    """
    Return batch norm after a convolution; with fixed statistics, as one convolution.

    Folding costs nothing next to a map, and saves half of the time of fine-tuning, where the
    statistics stay as they are.
    """
    if norm.training:
        return norm(layer(x))
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return functional.conv2d(x, layer.weight * scale[:, None, None, None],
                             norm.bias - norm.running_mean * scale, layer.stride, layer.padding,
                             layer.dilation, layer.groups)


class Convolution(nn.Sequential):
    """Convolution, batch norm, ReLU6; named as torchvision's Conv2dNormActivation."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1):
        super().__init__(
            nn.Conv2d(inputs, outputs, size, stride, (size - 1) // 2, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU6(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output."""
        return self[2](_normalised(x, self[0], self[1]))


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project: torchvision's block, with its layer names."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int):
        super().__init__()
        hidden = inputs * expansion
        layers = [] if expansion == 1 else [Convolution(inputs, hidden, 1)]
        layers += [
            Convolution(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        ]
        self.conv = nn.Sequential(*layers)
        self._residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, `(batch, outputs, height / stride, width / stride)`."""
        y = x
        for layer in self.conv[:-2]:
            y = layer(y)
        y = _normalised(y, self.conv[-2], self.conv[-1])
        return x + y if self._residual else y


def image_tensors(color: Tensor, depth: Tensor, depth_limit: float) -> tuple[Tensor, Tensor]:
    """
    Normalise a batch of images.

    :param color: red, green, blue, uint8 or float of 0 to 255, `(batch, height, width, 3)`.
    :param depth: distance along the optical axis [m], `(batch, height, width)`; 0, NaN and
        infinity mean "not measured".
    :param depth_limit: largest depth that is told apart [m].
    :return: network input `(batch, 4, height, width)`, and depth with 0 where it was not
        measured [m], `(batch, 1, height, width)`.
    """
    scale = [1.0 / (255.0 * scale) for scale in _COLOR_SCALE]
    shift = [-mean / scale for mean, scale in zip(_COLOR_MEAN, _COLOR_SCALE, strict=True)]
    color = color.to(torch.float32)
    normal = torch.addcmul(color.new_tensor(shift), color, color.new_tensor(scale))
    # Not measured is NaN, infinite or not positive; a comparison with NaN is false.
    measured = (depth > 0.0) & (depth < 1e6)
    metres = torch.where(measured, depth, torch.zeros_like(depth)).clamp(0.0, depth_limit)
    # One unit is half a metre around 1 m; an unmeasured pixel is then far below any other.
    stacked = torch.cat((normal, (metres * 2.0 - 2.0).unsqueeze(-1)), dim=-1)
    return stacked.permute(0, 3, 1, 2), metres.unsqueeze(1)


class Encoder(nn.Module):
    """
    Features of an RGB-D image: where things are (key points), and what there is (pooled).

    MobileNetV2's own head averages over the picture and forgets where things were. Here the
    maps of stride 4, 8 and 16 are merged, turned into `points` attention maps (spatial softmax,
    Finn et al., Deep Spatial Autoencoders, arXiv:1509.06113) and read as points in the camera's
    frame: the expectations of column * depth, row * depth and depth under each map, which are a
    point's metric coordinates up to the focal length. A part's position is then linear in them.

    Where the last millimetres count, `near` features tell places a second time, each a linear
    function of the others through a tanh that is steep near one value.
    """

    def __init__(self, settings: EncoderSettings | None = None):
        super().__init__()
        self.settings = settings = settings or EncoderSettings()
        channels = _divisible(32 * settings.width)
        layers: list[nn.Module] = [Convolution(4, channels, 3, 2)]
        outputs = [channels]
        for expansion, base, repeats, stride in _STAGES:
            after = _divisible(base * settings.width)
            for index in range(repeats):
                layers.append(
                    InvertedResidual(channels, after, stride if index == 0 else 1, expansion))
                channels = after
                outputs.append(channels)
        deep = _divisible(1280 * max(1.0, settings.width))
        layers.append(Convolution(channels, deep, 1))
        self.features = nn.Sequential(*layers)
        self.laterals = nn.ModuleList(
            nn.Conv2d(outputs[tap], settings.merged, 1, bias=False) for tap in _TAPS)
        self.merge = nn.Sequential(
            nn.BatchNorm2d(settings.merged),
            nn.ReLU6(inplace=True),
            Convolution(settings.merged, settings.merged, 3, groups=settings.merged),
            nn.Conv2d(settings.merged, settings.points, 1),
        )
        others = settings.size - settings.near
        self.pooled = nn.Linear(deep, others - 3 * settings.points)
        self.near = nn.Linear(others, settings.near) if settings.near else None
        height, width = settings.height // 4, settings.width_pixels // 4
        scale = max(height, width)
        rows = (torch.arange(height) - (height - 1) / 2) * 2 / scale
        columns = (torch.arange(width) - (width - 1) / 2) * 2 / scale
        grid = torch.stack((columns.expand(height, width),
                            rows.unsqueeze(1).expand(height, width)))
        self.register_buffer('grid', grid.reshape(2, -1), persistent=False)

    def maps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """
        Return the key points' logits and the deepest map.

        :param x: normalised images, `(batch, 4, height, width)`.
        :return: `(batch, points, height / 4, width / 4)` and `(batch, deep, height / 32, ...)`.
        """
        taps = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in _TAPS:
                taps.append(x)
        fine, middle, coarse = (lateral(tap) for lateral, tap in zip(self.laterals, taps,
                                                                     strict=True))
        middle = middle + functional.interpolate(coarse, scale_factor=2.0, mode='nearest')
        merged = fine + functional.interpolate(middle, scale_factor=2.0, mode='nearest')
        return self.merge(merged), x

    def cells_of(self, metres: Tensor) -> Tensor:
        """
        Return where each cell of the maps is, in the camera's frame.

        :param metres: depth, 0 where not measured [m], `(batch, 1, height, width)`.
        :return: horizontal and vertical (metres at tan = 1, that is up to the focal length) and
            depth [m], `(batch, 3, cells)`; zeros where nothing was measured. In an image with
            no depth at all (a robot without a depth camera) every cell is 1 m away, so that key
            points still tell directions.
        """
        measured = functional.avg_pool2d((metres > 0).to(metres.dtype), 4)
        depth = functional.avg_pool2d(metres, 4) / measured.clamp_min(1.0 / 16.0)
        depth = torch.where(measured.amax((2, 3), keepdim=True) > 0, depth,
                            torch.ones_like(depth))
        depth = depth.flatten(2)                                   # (batch, 1, cells)
        return torch.cat((self.grid.unsqueeze(0) * depth, depth), dim=1)

    @staticmethod
    def points_of(attention: Tensor, cells: Tensor) -> Tensor:
        """
        Return each map's expected point in the camera's frame.

        :param attention: each map summing to 1, `(batch, points, cells)`.
        :param cells: `(batch, 3, cells)`.
        :return: all horizontal, all vertical, all depths, `(batch, 3 * points)`.
        """
        return torch.matmul(cells, attention.transpose(1, 2)).flatten(1)

    def look(self, color: Tensor, depth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """
        Return features, and where each key point's map looks; as `forward`.

        :return: `(batch, size)`, attention `(batch, points, cells)`, cells `(batch, 3, cells)`.
        """
        x, metres = image_tensors(color, depth, self.settings.depth_limit)
        logits, deep = self.maps(x.contiguous(memory_format=torch.channels_last))
        attention = torch.softmax(logits.flatten(2), dim=-1)
        cells = self.cells_of(metres)
        pooled = self.pooled(deep.mean((2, 3)))
        features = torch.cat((self.points_of(attention, cells), pooled), dim=1)
        if self.near is not None:
            features = torch.cat((features, torch.tanh(self.near(features))), dim=1)
        return features, attention, cells

    def forward(self, color: Tensor, depth: Tensor) -> Tensor:
        """
        Return the features of a batch of images.

        :param color: uint8 (or float of 0 to 255), `(batch, height, width, 3)`.
        :param depth: [m], `(batch, height, width)`; 0, NaN, infinity: not measured.
        :return: `(batch, size)`.
        """
        return self.look(color, depth)[0]


def load_published(encoder: Encoder, weights: Mapping[str, Tensor]) -> list[str]:
    """
    Load torchvision's MobileNetV2 weights, inflating the first layer to four channels.

    The fourth (depth) filter starts as the mean of the three colours', which answers to edges.

    :param encoder: of the width the weights were trained with.
    :param weights: torchvision's state dict; `classifier.*` is ignored.
    :return: names that were loaded.
    :raises ValueError: if a weight is missing or has another shape.
    """
    own = encoder.features.state_dict(prefix='features.')
    loaded = {}
    for name, value in own.items():
        if name not in weights:
            raise ValueError(f'published weights lack {name!r}: expected the state dict of '
                             'torchvision.models.mobilenet_v2')
        came = weights[name]
        if name == 'features.0.0.weight' and came.ndim == 4 and came.shape[1] == 3:
            came = torch.cat((came, came.mean(1, keepdim=True)), dim=1)
        if came.shape != value.shape:
            raise ValueError(f'{name}: expected shape {tuple(value.shape)}, came '
                             f'{tuple(came.shape)}; is the width the same?')
        loaded[name] = came
    encoder.features.load_state_dict({k.removeprefix('features.'): v for k, v in loaded.items()})
    return sorted(loaded)
