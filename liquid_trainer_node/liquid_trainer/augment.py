"""Random changes that a camera makes and a label survives: light, colour, noise, holes."""

from __future__ import annotations

import torch
from torch import Tensor


def augment_images(color: Tensor, depth: Tensor,
                   generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """
    Return the images as another camera on another day might have seen them.

    Nothing moves: a part's position stays where the label says.

    :param color: uint8 `(batch, height, width, 3)`.
    :param depth: [m], 0 where not measured, `(batch, height, width)`.
    :param generator: of the random numbers.
    :return: colours as float of 0 to 255, and depths [m].
    """
    batch, height, width, _ = color.shape

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.empty(shape).uniform_(low, high, generator=generator)

    contrast = uniform(0.7, 1.3, batch, 1, 1, 1) * uniform(0.85, 1.15, batch, 1, 1, 3)
    brightness = uniform(-25.0, 25.0, batch, 1, 1, 1) + uniform(-8.0, 8.0, batch, 1, 1, 3)
    # One noise image, rolled differently for each row, costs a tenth of a fresh one per row.
    noise = torch.randn(2 * height, width, 4, generator=generator)
    starts = torch.randint(0, height, (batch,), generator=generator).tolist()
    noises = torch.stack([noise[start:start + height] for start in starts])
    color = (color.float() - 127.5) * contrast + (127.5 + brightness)
    color = (color + noises[..., :3] * uniform(0.0, 6.0, batch, 1, 1, 1)).clamp_(0.0, 255.0)
    depth = depth * (1.0 + noises[..., 3] * uniform(0.0, 0.004, batch, 1, 1)
                     + uniform(-0.002, 0.002, batch, 1, 1))
    share = uniform(0.0, 0.03, batch, 1, 1)
    holes = torch.rand(batch, height, width, generator=generator) < share
    depth = depth.masked_fill(holes, 0.0)
    for row in torch.nonzero(torch.rand(batch, generator=generator) < 0.25).flatten().tolist():
        size = torch.randint(4, max(5, min(height, width) // 5), (2,), generator=generator)
        top = int(torch.randint(0, height - int(size[0]), (1,), generator=generator))
        left = int(torch.randint(0, width - int(size[1]), (1,), generator=generator))
        patch = (row, slice(top, top + int(size[0])), slice(left, left + int(size[1])))
        color[patch] = uniform(0.0, 255.0, 3)
        depth[patch] = 0.0
    return color, depth
