"""What every core offers: a state, one step of it, and a whole sequence of steps."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def check_elapsed(elapsed: Tensor, batch: int, name: str = 'elapsed') -> None:
    """
    Refuse elapsed times that would broadcast wrongly or make no sense.

    :param elapsed: time since the last step [s], `(batch, 1)`.
    :raises ValueError: if the shape is not `(batch, 1)`, or a value is negative or not finite.
    """
    if tuple(elapsed.shape) != (batch, 1):
        raise ValueError(f'{name}: expected shape ({batch}, 1), came {tuple(elapsed.shape)}')
    if not bool(torch.isfinite(elapsed).all()) or bool((elapsed < 0).any()):
        raise ValueError(f'{name}: expected finite times of at least 0 s, came values from '
                         f'{float(elapsed.min())} to {float(elapsed.max())}')


class Core(nn.Module):
    """
    What every core offers; the state is one tensor `(batch, state_size)`.

    A step's output is the state's first `units` numbers. Subclasses give `project`, the part of
    the work that does not depend on the state (one matrix product for a whole sequence), and
    `advance`, the rest; `fast` where a sequence can be had for less than its steps.

    :param inputs: numbers per step.
    :param units: numbers that the heads see.
    :param unit_time: elapsed times are divided by this before `advance` [s].
    :param state_size: numbers carried; `units` when left out.
    """

    def __init__(self, inputs: int, units: int, unit_time: float, state_size: int | None = None):
        super().__init__()
        self.inputs, self.units, self.unit_time = inputs, units, unit_time
        self.state_size = state_size or units

    def initial_state(self, batch: int = 1) -> Tensor:
        """Return the state before anything was seen, `(batch, state_size)`."""
        parameter = next(self.parameters())
        return parameter.new_zeros(batch, self.state_size)

    def project(self, x: Tensor) -> Tensor:
        """Return what the input contributes, `(..., inputs)` to `(..., any)`."""
        raise NotImplementedError

    def advance(self, projected: Tensor, elapsed: Tensor, state: Tensor) -> Tensor:
        """Return the next state; `elapsed` is in units of `unit_time`, `(batch, 1)`."""
        raise NotImplementedError

    def fast(self, projected: Tensor, elapsed: Tensor, state: Tensor,
             mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return what `_loop` returns, in less time where the core knows how."""
        return self._loop(projected, elapsed, state, mask)

    def step(self, x: Tensor, elapsed: Tensor, state: Tensor) -> Tensor:
        """
        Return the state after one more observation.

        :param x: input, `(batch, inputs)`.
        :param elapsed: time since the last step [s], `(batch, 1)`.
        :param state: `(batch, state_size)`.
        :return: next state, `(batch, state_size)`.
        :raises ValueError: if a shape or an elapsed time is wrong.
        """
        if not torch.compiler.is_exporting() and not torch.jit.is_tracing():
            check_elapsed(elapsed, x.shape[0])
            self._check(x, state)
        return self.advance(self.project(x), elapsed / self.unit_time, state)

    def sequence(self, xs: Tensor, elapsed: Tensor, state: Tensor,
                 mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """
        Return every step's output and the last state.

        :param xs: inputs, `(batch, time, inputs)`.
        :param elapsed: time since the step before [s], `(batch, time, 1)`.
        :param state: `(batch, state_size)`.
        :param mask: true where a step took place, `(batch, time)`; elsewhere the state rests.
        :return: `(batch, time, units)` and `(batch, state_size)`.
        :raises ValueError: if a shape or an elapsed time is wrong.
        """
        self._check_sequence(xs, elapsed, state, mask)
        return self.fast(self.project(xs), elapsed / self.unit_time, state, mask)

    def sequential(self, xs: Tensor, elapsed: Tensor, state: Tensor,
                   mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """
        Return the same as `sequence`, one `advance` after the other.

        The definition that `sequence` is measured against.
        """
        self._check_sequence(xs, elapsed, state, mask)
        return self._loop(self.project(xs), elapsed / self.unit_time, state, mask)

    def _loop(self, projected: Tensor, elapsed: Tensor, state: Tensor, mask: Tensor | None):
        outputs = []
        for index, (part, time) in enumerate(zip(projected.unbind(1), elapsed.unbind(1),
                                                 strict=True)):
            after = self.advance(part, time, state)
            state = after if mask is None else torch.where(mask[:, index, None], after, state)
            outputs.append(state)
        return torch.stack(outputs, 1)[..., :self.units], state

    def _check(self, x: Tensor, state: Tensor) -> None:
        if x.shape[-1] != self.inputs:
            raise ValueError(f'input: expected {self.inputs} numbers, came {x.shape[-1]}')
        if tuple(state.shape) != (x.shape[0], self.state_size):
            raise ValueError(f'state: expected shape ({x.shape[0]}, {self.state_size}), came '
                             f'{tuple(state.shape)}')

    def _check_sequence(self, xs: Tensor, elapsed: Tensor, state: Tensor,
                        mask: Tensor | None) -> None:
        if xs.ndim != 3 or not xs.shape[1] or tuple(elapsed.shape) != (*xs.shape[:2], 1):
            raise ValueError(f'elapsed: expected shape {(*xs.shape[:2], 1)} for at least one '
                             f'step of input {tuple(xs.shape)}, came {tuple(elapsed.shape)}')
        check_elapsed(elapsed.reshape(-1, 1), xs.shape[0] * xs.shape[1])
        self._check(xs[:, 0], state)
        if mask is not None and (tuple(mask.shape) != tuple(xs.shape[:2])
                                 or mask.dtype != torch.bool):
            raise ValueError(f'mask: expected truth values of shape {tuple(xs.shape[:2])}, came '
                             f'{mask.dtype} of shape {tuple(mask.shape)}')
