"""One episode of the conveyor: a driver, the safety filter, and what came of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from liquid_sim.conveyor import ConveyorSim
from liquid_sim.drivers import Safety

SECONDS_PER_PART = 14.0   # no part takes longer, at the slowest belt


@dataclass
class Outcome:
    """
    What came of an episode.

    :param seed: of the episode.
    :param seen: parts whose fate was settled.
    :param picked: of these, in the bin.
    :param seconds: simulated time.
    :param interventions: ticks on which the safety filter changed the proposal.
    :param ticks: all ticks.
    :param errors: distance of estimated from true part position [m], one per tick with a part
        in view; empty without an estimate.
    :param details: belt speed [m/s], mass [kg] and fate of each part.
    """

    seed: int
    seen: int = 0
    picked: int = 0
    seconds: float = 0.0
    interventions: int = 0
    ticks: int = 0
    errors: list[float] = field(default_factory=list)
    details: list[dict] = field(default_factory=list)

    @property
    def missed(self) -> int:
        """Return the parts that were not picked."""
        return self.seen - self.picked


def run_episode(sim: ConveyorSim, driver, safety: Safety, seed: int, parts: int,
                on_tick: Callable | None = None) -> Outcome:
    """
    Run until the fate of so many parts is settled.

    :param driver: has `reset(seed)` and `act() -> (proposal, demonstration)`.
    :param seed: arrangement and noise.
    :param parts: how many.
    :param on_tick: called as `on_tick(sim, proposal, demonstration, command)` before each step.
    """
    sim.reset(seed)
    driver.reset(seed)
    safety.reset()
    outcome = Outcome(seed)
    current: dict = {}
    while outcome.seen < parts and sim.time < parts * SECONDS_PER_PART:
        proposal, demonstration = driver.act()
        command = safety.command(sim, proposal)
        if on_tick is not None:
            on_tick(sim, proposal, demonstration, command)
        _note_error(sim, driver, outcome)
        sim.step(command)
        outcome.ticks += 1
        status = sim.status()
        if status['part_mass'] > 0:
            current.setdefault('speeds', []).append(status['belt_speed'])
            current['mass'] = status['part_mass']
        settled = status['picked'] + status['missed']
        if settled > outcome.seen:
            outcome.details.append({
                'picked': status['picked'] > outcome.picked, 'mass': current['mass'],
                'speed': float(np.mean(current['speeds']))})
            outcome.seen, outcome.picked, current = settled, status['picked'], {}
    if outcome.seen < parts:   # the belt never takes this long: the part was not brought away
        outcome.details.extend({'picked': False, **{k: 0.0 for k in ('mass', 'speed')}}
                               for _ in range(parts - outcome.seen))
        outcome.seen = parts
    outcome.seconds = sim.time
    outcome.interventions = safety.interventions
    return outcome


def _note_error(sim, driver, outcome):
    estimate = getattr(driver, 'estimate', None)
    if estimate is None:
        return
    part = sim.part()
    # upstream of this the part is still under the feeder's roof
    if part is not None and part.position[1] > -0.45:
        outcome.errors.append(float(np.linalg.norm(estimate.mean[:3] - part.position)))
