"""From answers to actions: how often to plan, from what, and how one plan passes into the next."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from liquid_policy.checkpoint import Checkpoint
from liquid_policy.runtime import ModeKeeper, PolicyRuntime, chunk_time


@dataclass(frozen=True)
class ExecutionSettings:
    """How plans are made and followed."""

    replan: int = field(default=1, metadata={
        'description': 'steps followed of one plan before the next is made'})
    context: int = field(default=0, metadata={
        'description': 'observations that a plan is made from; 0: all since the episode began'})
    blend: int = field(default=0, metadata={
        'description': 'steps over which a new plan takes over from the last; 0: at once'})
    threshold: float = field(default=1.0, metadata={
        'description': "leave the last plan's mode when its weight falls below this share of the "
                       "heaviest one's; 1: always take the heaviest"})

    def __post_init__(self):
        for name, least in (('replan', 1), ('context', 0), ('blend', 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f'{name}: expected a whole number of at least {least}, came '
                                 f'{value!r}')
        if not 0.0 <= self.threshold <= 1.0:
            raise ValueError(f'threshold: expected 0 to 1, came {self.threshold}')


class Executor:
    """
    Ask a policy for plans and hand out their actions, one per step.

    With a context the recurrent state is made anew from the newest observations for every plan,
    as in training on windows of that length; without, it is carried on.

    :param runtime: the exported policy.
    :param keeper: chooses among an answer's components.
    :param settings: how.
    :raises ValueError: if more steps of a plan are to be followed than it has.
    """

    def __init__(self, runtime: PolicyRuntime, keeper: ModeKeeper,
                 settings: ExecutionSettings | None = None):
        self._runtime, self._keeper = runtime, keeper
        self.settings = settings or ExecutionSettings()
        if self.settings.replan > runtime.horizon:
            raise ValueError(f'replan: expected at most the {runtime.horizon} steps of a plan, '
                             f'came {self.settings.replan}')
        self.reset()

    @classmethod
    def of(cls, checkpoint: Checkpoint, settings: ExecutionSettings | None = None,
           seed: int = 0) -> Executor:
        """Return an executor for a checkpoint; its clock must be that of the chunks."""
        settings = settings or ExecutionSettings()
        period = 1.0 / checkpoint.interface.rate
        if not np.isclose(chunk_time(checkpoint), period):
            raise ValueError(f'chunks: expected steps of {period:g} s, the control period, came '
                             f'{chunk_time(checkpoint):g} s')
        return cls(PolicyRuntime(checkpoint, seed=seed),
                   ModeKeeper.of(checkpoint, settings.threshold), settings)

    def reset(self, seed: int | None = None) -> None:
        """
        Forget everything seen and planned.

        :param seed: of the noise that sampling heads are given; None: go on with it.
        """
        if seed is not None:
            self._runtime.seed(seed)
        self._state = self._runtime.initial_state()
        self._recent: deque[tuple[np.ndarray, np.ndarray, float]] = deque(
            maxlen=self.settings.context or 1)
        self._plan: np.ndarray | None = None
        self._used, self._since = 0, 0.0
        self._keeper.reset()

    def act(self, features: np.ndarray, vector: np.ndarray, elapsed: float) -> np.ndarray:
        """
        Return the action for now, `(actions,)`.

        :param features: of the newest image; empty without images.
        :param vector: observation, `(vector_size,)`.
        :param elapsed: time since the last call [s].
        :raises ValueError: if the input is bad; see `PolicyRuntime.step`.
        """
        self._recent.append((features, vector, elapsed))
        self._since += elapsed
        if self._plan is None or self._used >= self.settings.replan:
            self._plan = self._next_plan()
            self._used = 0
        elif not self.settings.context:
            self._state = self._runtime.observe(features, vector, elapsed, self._state)
        action = self._plan[self._used]
        self._used += 1
        return action

    def coast(self) -> np.ndarray:
        """
        Return the action for now when no observation came, `(actions,)`.

        The plan goes on, and its last action is repeated when it ends. The time without
        observations belongs to the `elapsed` of the next call of `act`.

        :raises ValueError: if there was no observation yet, and so no plan.
        """
        if self._plan is None:
            raise ValueError('expected a first observation before one is missing')
        action = self._plan[min(self._used, len(self._plan) - 1)]
        self._used += 1
        return action

    def _next_plan(self) -> np.ndarray:
        if self.settings.context:
            self._state = self._runtime.initial_state()
            for observed in list(self._recent)[:-1]:
                self._state = self._runtime.observe(*observed, self._state)
        self._state, answer = self._runtime.step(*self._recent[-1], self._state)
        _, plan = self._keeper.choose(answer, self._since)
        self._since = 0.0
        return self._blended(plan)

    def _blended(self, plan: np.ndarray) -> np.ndarray:
        """Return the plan, its first steps mixed with what the last one had left for them."""
        if self._plan is None or not self.settings.blend:
            return plan
        rest = self._plan[self._used:]
        count = min(self.settings.blend, len(rest))
        if not count:
            return plan
        share = (np.arange(1, count + 1, dtype=plan.dtype) / (self.settings.blend + 1))[:, None]
        mixed = plan.copy()
        mixed[:count] = share * plan[:count] + (1.0 - share) * rest[:count]
        return mixed
