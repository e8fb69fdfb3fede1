"""
What a manoeuvre can do between its samples, at most: bounds that are proven, not estimated.

**Links.** A robot's point is a sum of vectors, one per link of its chain: from a joint's origin to
the next one's, or to the point. Link k's vector has a fixed length l_k and turns with the link.
Its derivative by joint angles q_i, q_j, ... is a nesting of cross products with unit axes, so that
|d^m r_k / dq_i dq_j ...| <= l_k, and it is 0 unless all of these joints lie before the link. With

    A_k = sum of |dq_i/dt|  and  A'_k = sum of |d2q_i/dt2|   over the joints before link k,

the chain rule gives, where accelerations are constant,

    |dp/dt|   <= sum l_k A_k
    |d2p/dt2| <= sum l_k (A_k^2 + A'_k)
    |d3p/dt3| <= sum l_k (A_k^3 + 3 A_k A'_k).

A sliding joint counts for its own link as one that turns it by 1/l per metre, l the link's
greatest length: R(t) (c + x(t) e) has derivatives of at most A l + |x'|, A^2 l + A' l + 2 A |x'| +
|x"|, ..., no greater than those above with A + |x'| / l and A' + |x"| / l. A driving base, whose
forward speed turns with it, is such a joint of link 0.

**Pieces.** On a piece of duration T a function f with |f"| <= c leaves its chord by no more than
c T^2 x (1 - x) / 2 at the share x of the piece (the error of linear interpolation). The samples of
a manoeuvre include every instant at which a joint comes to rest, so that accelerations are
constant on each piece, and speeds nowhere greater than at its beginning. For a position, f = p,
that gives the sagitta c T^2 / 8 (`liquid_policy.barrier_shapes` uses it). For a velocity, f = v,
of sizes a and b at the ends, with e = c T^2 / 8 and c bounding d3p/dt3,

    |v(x)| <= (1 - x) a + x b + 4 e x (1 - x)
           <= max(a, b)                                where |b - a| >= 4 e,
           <= max(a, b) + (4 e - |b - a|)^2 / (16 e)   elsewhere.

Source: Davis, Interpolation and Approximation (1963), theorem 3.1.1, for the remainder; bounds of
this kind for manipulators: Schwarzer, Saha and Latombe, Exact collision checking of robot paths,
WAFR 2002.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from liquid_policy.barrier_kinematics import Attached, Chain
from liquid_policy.limits import LimitsError

BASE_LENGTH = 0.25   # [m]; a base's forward speed counts as turning about this length


class Links:
    """Lengths and rates of a robot's links: the numbers l_k and the sums A_k of above."""

    def __init__(
        self, chain: Chain, points: tuple[Attached, ...], size: int,
        base: Mapping[int, int] | None = None,
    ) -> None:
        """
        Measure the links.

        :param chain: the robot's joints.
        :param points: whose motion is to be bounded.
        :param size: number A of action entries.
        :param base: place among the base's velocities (0 and 1 forward and left, 5 turning) by
            action entry, where the motion is to be seen from the world; None: from the base.
        :raises LimitsError: for a sliding joint without end.
        """
        joints = chain.joints
        self.lengths = np.zeros((len(points), len(joints) + 1))   # link 0 is the root link
        for row, point in enumerate(points):
            path = chain.path(point.joint)
            for place, follower in zip(path, [*path[1:], None], strict=False):
                vector = point.offset if follower is None else joints[follower].placement[:3, 3]
                self.lengths[row, place + 1] = np.linalg.norm(vector) + joints[place].extension
            first = joints[path[0]].placement[:3, 3] if path else point.offset
            self.lengths[row, 0] = np.linalg.norm(first)
        self.rates = np.zeros((size, len(joints) + 1))
        for place in range(len(joints)):
            for before in chain.path(place):
                if not joints[before].prismatic:
                    self.rates[joints[before].entry, place + 1] = 1.0
            if joints[place].prismatic:
                self.rates[joints[place].entry, place + 1] = 1.0 / self._sliding_length(
                    place, joints[place].extension)
        if base:
            self.lengths[:, 0] += BASE_LENGTH
            for entry, column in base.items():
                if column >= 3:
                    self.rates[entry] = 1.0
                else:
                    self.rates[entry, 0] = 1.0 / BASE_LENGTH

    def _sliding_length(self, place: int, extension: float) -> float:
        """Greatest length of a sliding joint's link, the least over the points behind it."""
        if not np.isfinite(extension):
            raise LimitsError(
                'a sliding joint without position limits: how far it moves a point cannot be '
                'bounded; give it limits')
        behind = self.lengths[:, place + 1]
        return float(behind[behind > 0.0].min()) if (behind > 0.0).any() else 1.0

    def travel(self, way: np.ndarray) -> np.ndarray:
        """
        How far each point can move.

        :param way: how far each entry moves, `(A,)` or `(N, A)`, 0 or more.
        :return: `(P,)` or `(N, P)` [m].
        """
        return way @ self.rates @ self.lengths.T


def sagitta(
    rate: np.ndarray, change: np.ndarray, duration: np.ndarray, lengths: np.ndarray,
) -> np.ndarray:
    """
    How far points leave the chords of their way, at most.

    :param rate: A_k at the beginning of each piece, `(N, K)`.
    :param change: A'_k on each piece, `(N, K)`.
    :param duration: of the pieces, `(N,)` [s].
    :param lengths: l_k of each point, `(P, K)`.
    :return: `(N, P)` [m].
    """
    return (0.125 * duration * duration)[:, None] * ((rate * rate + change) @ lengths.T)


def fastest_between(
    speed: np.ndarray, rate: np.ndarray, change: np.ndarray, duration: np.ndarray,
    lengths: np.ndarray,
) -> np.ndarray:
    """
    An upper bound of a point's speed anywhere on each piece of a manoeuvre.

    :param speed: at the samples, `(S,)` [m/s].
    :param rate: A_k at the beginning of each piece, `(S - 1, K)`.
    :param change: A'_k on each piece, `(S - 1, K)`.
    :param duration: of the pieces, `(S - 1,)` [s].
    :param lengths: l_k of the point, `(K,)`.
    :return: `(S - 1,)` [m/s].
    """
    bulge = 0.125 * duration * duration * ((rate * (rate * rate + 3.0 * change)) @ lengths)
    before, after = speed[:-1], speed[1:]
    missing = 4.0 * bulge - np.abs(after - before)
    bound = np.maximum(before, after)
    np.maximum(missing, 0.0, out=missing)
    return bound + missing * missing / np.maximum(16.0 * bulge, 1e-300)
