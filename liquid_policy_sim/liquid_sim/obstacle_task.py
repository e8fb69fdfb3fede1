"""
A robot in the plane drives round a disc to its goal: the first task of the BarrierNet paper.

State (x, y, heading, speed), input (turning rate, acceleration), one disc between start and goal,
demonstrations by an expert that drives close past it. A small network learns from them in one of
three arms: with the barrier as its last layer, without (a filter may be set behind it), or without
anything. Many episodes run at once; between two decisions the robot moves on exact arcs.

Source: Xiao, Hasani, Li and Rus, BarrierNet, arXiv:2111.11277, section on the 2-D robot.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from liquid_policy.barrier_layer import BarrierLayer, HighOrderBarrier

_SUBSTEPS = 10      # between two decisions
_NEAR_GOAL = 2.0    # m
_ORDER = 2          # the disc's barrier: position, speed, input


@dataclass(frozen=True)
class ObstacleSettings:
    """The world, the same for every arm."""

    center: tuple[float, float] = field(default=(40.0, 15.0), metadata={
        'description': 'of the disc', 'unit': 'm'})
    radius: float = field(default=6.0, metadata={'description': 'of the disc', 'unit': 'm'})
    margin: float = field(default=0.1, metadata={
        'description': 'kept free by barriers, for the time between decisions', 'unit': 'm'})
    period: float = field(default=0.1, metadata={'description': 'of decisions', 'unit': 's'})
    longest: float = field(default=40.0, metadata={'description': 'episode', 'unit': 's'})
    speed: float = field(default=4.0, metadata={'description': 'of the expert', 'unit': 'm/s'})
    turning: float = field(default=2.0, metadata={'description': 'largest', 'unit': 'rad/s'})
    acceleration: float = field(default=4.0, metadata={'description': 'largest',
                                                       'unit': 'm/s2'})
    gains: tuple[float, float] = field(default=(1.0, 1.0), metadata={
        'description': 'class-K gains of the expert and of a filter', 'unit': '1/s'})

    def __post_init__(self) -> None:
        for name in ('radius', 'period', 'longest', 'speed', 'turning', 'acceleration'):
            if not getattr(self, name) > 0.0:
                raise ValueError(f'{name}: expected above 0, came {getattr(self, name)}')
        if self.margin < 0.0:
            raise ValueError(f'margin: expected 0 or more, came {self.margin}')




def barrier_layer(settings: ObstacleSettings) -> BarrierLayer:
    """Return the layer that keeps the robot out of the disc; its gains begin as the expert's."""
    center = torch.tensor(settings.center)
    radius = settings.radius + settings.margin

    def barrier(x: Tensor) -> Tensor:
        return (x[:, :2] - center).square().sum(1, keepdim=True) - radius ** 2

    def drift(x: Tensor) -> Tensor:
        still = torch.zeros_like(x[:, 0])
        return torch.stack((x[:, 3] * x[:, 2].cos(), x[:, 3] * x[:, 2].sin(), still, still), 1)

    def actuation(x: Tensor) -> Tensor:
        g = torch.zeros(4, 2)
        g[2, 0] = g[3, 1] = 1.0
        return g.expand(len(x), 4, 2)

    bounds = torch.tensor([settings.turning, settings.acceleration])
    return BarrierLayer(HighOrderBarrier(barrier, drift, actuation, _ORDER, (settings.gains,)),
                        -bounds, bounds)


def starts(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return states `(count, 4)` and goals `(count, 2)`: left of the disc, right of it."""
    generator = torch.Generator().manual_seed(seed)

    def between(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    state = torch.stack((between(5, 20), between(8, 22), between(-0.3, 0.3), between(1, 4)), 1)
    return state, torch.stack((torch.full((count,), 65.0), between(5, 25)), 1)


def observe(state: Tensor, goal: Tensor) -> Tensor:
    """Return what a network sees, about unit size: state and the goal's y; the disc it learns."""
    middle = torch.tensor([35.0, 15.0, 0.0, 3.0, 15.0])
    size = torch.tensor([20.0, 6.0, 0.5, 1.0, 6.0])
    return (torch.cat((state, goal[:, 1:]), 1) - middle) / size


def steer(state: Tensor, goal: Tensor, settings: ObstacleSettings) -> Tensor:
    """Return the expert's wish: to the goal, along the disc's tangent where it is in the way."""
    clear = settings.radius + settings.margin + 0.3
    to_center = torch.tensor(settings.center) - state[:, :2]
    to_goal = goal - state[:, :2]
    distance, far = to_center.norm(dim=1).clamp_min(1e-6), to_goal.norm(dim=1).clamp_min(1e-6)
    bearing = torch.atan2(to_center[:, 1], to_center[:, 0])
    aim = torch.atan2(to_goal[:, 1], to_goal[:, 0])
    aside = torch.remainder(aim - bearing + torch.pi, 2 * torch.pi) - torch.pi
    opening = torch.asin((clear / distance).clamp_max(1.0))
    blocked = (aside.abs() < opening) & (far > distance)
    side = torch.where(aside >= 0.0, 1.0, -1.0)
    aim = torch.where(blocked, bearing + side * opening, aim)
    turn = torch.remainder(aim - state[:, 2] + torch.pi, 2 * torch.pi) - torch.pi
    return torch.stack(((2.0 * turn).clamp(-settings.turning, settings.turning),
                        (settings.speed - state[:, 3]).clamp(-settings.acceleration,
                                                             settings.acceleration)), 1)


def advance(state: Tensor, action: Tensor, period: float) -> tuple[Tensor, Tensor]:
    """
    Hold an input for a period.

    :return: the next state, and positions on the way, `(substeps, batch, 2)`. Heading and speed
        are exact; the position is by the midpoint rule, 1e-5 m off in a period of 0.1 s.
    """
    path = []
    step = period / _SUBSTEPS
    for _ in range(_SUBSTEPS):
        middle = state[:, 2:] + 0.5 * step * action
        place = state[:, :2] + step * middle[:, 1:] * torch.stack(
            (middle[:, 0].cos(), middle[:, 0].sin()), 1)
        state = torch.cat((place, state[:, 2:] + step * action), 1)
        path.append(place)
    return state, torch.stack(path)


@dataclass(frozen=True, eq=False)
class Episodes:
    """
    What became of episodes, `(batch,)` each.

    :param success: reached the goal in time and never touched the disc.
    :param touched: was inside the disc at any simulated instant.
    :param nearest: smallest distance to the disc, negative inside [m].
    :param interventions: share of decisions that were changed.
    :param seconds: until the goal, or the longest time.
    :param path: positions at decisions, NaN after the end, `(steps, batch, 2)`.
    :param observations: of every decision that counted, `(n, 5)`; likewise `states` and `actions`.
    """

    success: np.ndarray
    touched: np.ndarray
    nearest: np.ndarray
    interventions: np.ndarray
    seconds: np.ndarray
    path: np.ndarray
    observations: Tensor
    states: Tensor
    actions: Tensor


@torch.no_grad()
def roll_out(controller: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]], count: int,
             seed: int, settings: ObstacleSettings) -> Episodes:
    """
    Drive episodes.

    :param controller: observation, state and goal in; input and whether it was changed out.
    :param seed: of starts and goals.
    """
    state, goal = starts(count, seed)
    center = torch.tensor(settings.center)
    bounds = torch.tensor([settings.turning, settings.acceleration])
    nearest = (state[:, :2] - center).norm(dim=1) - settings.radius
    running = torch.ones(count, dtype=torch.bool)
    reached, decisions, changes = ~running, torch.zeros(count), torch.zeros(count)
    path, seen = [], []
    for _ in range(round(settings.longest / settings.period)):
        observation = observe(state, goal)
        wanted, changed = controller(observation, state, goal)
        action = wanted.clamp(-bounds, bounds)
        seen.append((observation[running], state[running], action[running]))
        path.append(torch.where(running[:, None], state[:, :2], torch.nan))
        decisions += running
        changes += running & changed
        moved, way = advance(state, action, settings.period)
        close = (way - center).norm(dim=2).amin(0) - settings.radius
        nearest = torch.where(running, torch.minimum(nearest, close), nearest)
        state = torch.where(running[:, None], moved, state)
        there = running & ((state[:, :2] - goal).norm(dim=1) < _NEAR_GOAL)
        reached |= there
        running &= ~there
        if not bool(running.any()):
            break
    touched = nearest < 0.0
    observations, states, actions = (torch.cat(part) for part in zip(*seen, strict=True))
    return Episodes((reached & ~touched).numpy(), touched.numpy(), nearest.numpy(),
                    (changes / decisions).numpy(), (decisions * settings.period).numpy(),
                    torch.stack(path).numpy(), observations, states, actions)


def demonstrate(count: int, seed: int, settings: ObstacleSettings) -> Episodes:
    """Drive episodes as the expert: `steer`, kept safe by a barrier with the expert's gains."""
    layer = barrier_layer(settings)

    def expert(_observation: Tensor, state: Tensor, goal: Tensor) -> tuple[Tensor, Tensor]:
        found = layer(steer(state, goal, settings), state)
        return found.action, found.changed

    return roll_out(expert, count, seed, settings)


class Driver(nn.Module):
    """
    Two hidden layers, and the barrier as the last one if wanted.

    :param layer: the barrier; with it the network also answers with its gains for each state.
    """

    def __init__(self, layer: BarrierLayer | None = None, hidden: int = 64):
        super().__init__()
        self.layer = layer
        self.trunk = nn.Sequential(nn.Linear(5, hidden), nn.ReLU(), nn.Linear(hidden, hidden),
                                   nn.ReLU())
        self.action = nn.Linear(hidden, 2)
        self.gains = nn.Linear(hidden, _ORDER)
        with torch.no_grad():
            self.gains.weight.mul_(0.1)
            if layer is not None:
                self.gains.bias.copy_(layer.barrier.raw[0])

    def forward(self, observation: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs `(batch, 2)`, and whether the barrier changed them, bool `(batch,)`."""
        hidden = self.trunk(observation)
        action = self.action(hidden)
        if self.layer is None:
            return action, torch.zeros(len(action), dtype=torch.bool)
        found = self.layer(action, state, self.gains(hidden)[:, None])
        return found.action, found.changed


def train_driver(driver: Driver, demonstrations: Episodes, steps: int, seed: int,
                 batch: int = 128, rate: float = 3e-3) -> list[float]:
    """
    Learn to do as demonstrated and return the loss of every step.

    :param steps: of Adam, its rate falling to 0 along half a cosine.
    :param seed: of the batches.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(driver.parameters(), rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses = []
    for _ in range(steps):
        rows = torch.randint(len(demonstrations.actions), (batch,), generator=generator)
        action, _ = driver(demonstrations.observations[rows], demonstrations.states[rows])
        loss = (action - demonstrations.actions[rows]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    return losses


def drive(driver: Driver, count: int, seed: int, settings: ObstacleSettings,
          filtered: bool = False) -> Episodes:
    """
    Drive episodes as a network wants.

    :param filtered: set a barrier with the expert's gains behind it.
    :param settings: the world; a driver's own layer is told of its disc.
    """
    barrier = barrier_layer(settings)
    if driver.layer is not None:
        # The network stays as it was learned; where the disc is, the layer is told.
        told = Driver(barrier, driver.action.in_features)
        told.load_state_dict(driver.state_dict())
        driver = told

    def control(observation: Tensor, state: Tensor, _goal: Tensor) -> tuple[Tensor, Tensor]:
        action, changed = driver(observation, state)
        if filtered:
            found = barrier(action, state)
            return found.action, found.changed
        return action, changed

    return roll_out(control, count, seed, settings)
