"""
Bounds of the forces along a manoeuvre, at every instant and not only at its samples.

The force of joint i is, over the links l it carries,

    tau_i = sum  m_l J_il . (a_l - g)  +  z_i . d(I_l w_l)/dt

with J_il = dc_l/dq_i, centre of mass c_l, a_l its acceleration, rotating inertia I_l and angular
velocity w_l. Of link l's angle theta, theta' = A and theta" = A' (`liquid_policy.barrier_bounds`),
let E = exp(theta); its derivatives at theta = 0 are 1, A, A^2 + A', A^3 + 3 A A', A^4 + 6 A^2 A' +
3 A'^2. As shown there, with the chain's length R_l up to c_l, its length rho_il from joint i on
and the greatest moment of inertia lambda_l, the m-th derivative in time

    of J_il is at most rho_il E^(m),  of c_l  R_l E^(m),  of z_i and of each of the two rotations
    in I_l  E^(m),  of w_l = sum z_j q_j'  E^(m+1)

(links before l turn no faster than l is reckoned to). Products are then bounded by the same
derivative of the product of these majorants (Leibniz): (E E")" and g E" for the first term, the
third derivative of E^3 E' = (E^4)' / 4 for the second. Where accelerations are constant

    |tau_i"| <= sum  m_l rho_il [R_l (4 A^4 + 14 A^2 A' + 4 A'^2) + g (A^2 + A')]
                     + lambda_l (64 A^4 + 96 A^2 A' + 12 A'^2),

and on a piece of duration T tau stays within T^2 / 8 of that from its chord, whose ends inverse
dynamics gives for the piece's own accelerations. Forces between robot and floor are those of three
sliding and three turning joints before the first.

Slow motions need none of that. Let Theta_l be what the joints before link l turn in all. Along the
way J_il changes by no more than rho_il Theta_l, and the inertias M_ij, sums of m_l J_il . J_jl and
z_i . I_l z_j, by 2 m_l rho_il rho_jl Theta_l and 4 lambda_l Theta_l. What speeds alone need is
bounded by the same majorants, A^2 of E" and 3 A^2 of (E^2 E')'. So no instant of a manoeuvre needs
forces that differ from those of standing still at its beginning by more than

    sum |M_ij| |q_j"|  +  sum  m_l rho_il [R_l (A^2 + 2 A' Theta_l) + g Theta_l]
                                + lambda_l (3 A^2 + 4 A' Theta_l)

with the inertias M at the beginning.

Source: Featherstone, Rigid Body Dynamics Algorithms (2008), for the dynamics; the bounds are
derived here.
"""

from __future__ import annotations

import numpy as np

from liquid_policy.barrier_bounds import Links
from liquid_policy.barrier_kinematics import Attached, Chain
from liquid_policy.barrier_manoeuvre import Manoeuvre, Plan
from liquid_policy.limits import LimitsError
from liquid_policy.robot_model import RobotModel

GRAVITY = 9.81   # [m/s2]


class ForceBounds:
    """The constants of the bounds above for one robot, the worst of its payloads."""

    def __init__(self, model: RobotModel, size: int) -> None:
        """
        Measure masses and lengths.

        :param model: the robot with its payloads.
        :param size: number A of action entries.
        :raises LimitsError: for a sliding joint without end.
        """
        chain = model.chain
        self.model = model
        self._bend = np.zeros((0, model.nv))
        self._away = np.zeros((0, model.nv))
        for masses in model.bodies():
            points = tuple(Attached(body.joint, body.center) for body in masses)
            links = Links(chain, points, size, model.base)
            self.rates = carried_rates(links, chain, model)
            reach = links.lengths.copy()
            if not model.base:
                reach[:, 0] = 0.0            # the root link stands still
            whole = reach.sum(axis=1)
            count = len(chain.joints) + 1
            bend, away = np.zeros((5 * count, model.nv)), np.zeros((3 * count, model.nv))
            for row, body in enumerate(masses):
                path = chain.path(body.joint)
                arm, turning = np.zeros(model.nv), np.zeros(model.nv)
                if model.floating:
                    arm[:3], arm[3:6], turning[3:6] = 1.0, links.lengths[row].sum(), 1.0
                for place in path:
                    dof = model.dof_of(place)
                    if chain.joints[place].prismatic:
                        arm[dof] = 1.0
                    else:
                        beyond = [item + 1 for item in path[path.index(place):]]
                        arm[dof], turning[dof] = links.lengths[row, beyond].sum(), 1.0
                far, heavy = body.mass * arm * whole[row], body.mass * arm * GRAVITY
                gyro, link = body.inertia * turning, body.joint + 1
                if not np.isfinite(far).all():
                    raise LimitsError('a sliding joint without position limits: its forces '
                                      'cannot be bounded; give it limits')
                parts = (4.0 * far + 64.0 * gyro, 14.0 * far + 96.0 * gyro,
                         4.0 * far + 12.0 * gyro, heavy, heavy)
                for place, part in enumerate(parts):
                    bend[place * count + link] += part
                for place, part in enumerate(
                        (far + 3.0 * gyro, 2.0 * far + 4.0 * gyro, heavy)):
                    away[place * count + link] += part
            self._bend = np.maximum(self._bend, bend) if len(self._bend) else bend
            self._away = np.maximum(self._away, away) if len(self._away) else away

    def bend(self, rate: np.ndarray, change: np.ndarray, duration: np.ndarray) -> np.ndarray:
        """
        How far forces leave their chords.

        :param rate: A_k at the beginning of each piece, `(N, K)`.
        :param change: A'_k on each piece, `(N, K)`.
        :param duration: of the pieces, `(N,)` [s].
        :return: `(N, nv)` [N m or N].
        """
        square = rate * rate
        features = np.concatenate(
            [square * square, square * change, change * change, square, change], axis=1)
        return (0.125 * duration * duration)[:, None] * (features @ self._bend)

    def around(self, plan: Plan, inertia: np.ndarray) -> np.ndarray:
        """
        How far forces at any instant are from those of standing still at the beginning.

        :param plan: of a command: speeds are greatest while it is held and slow down most when
            braking begins.
        :param inertia: sizes of the inertias M at the beginning, `(L, nv, nv)`.
        :return: `(L, nv)` [N m or N].
        """
        slowing = plan.deceleration * (plan.speed > 0.0)
        features = np.array([plan.speed, slowing, plan.way]) @ self.rates
        features[0] *= features[0]
        features[1] *= features[2]
        return inertia @ self.model.velocity(slowing) + features.ravel() @ self._away

    def along(self, start: np.ndarray, manoeuvre: Manoeuvre) -> tuple[np.ndarray, np.ndarray]:
        """
        Forces at both ends of every piece and at rest, and how far they leave the chords.

        :param start: posture in which the manoeuvre begins, `(A,)`.
        :param manoeuvre: of a command.
        :return: forces, those at rest last, `(L, 2 S - 1, nv)`, and bounds `(S - 1, nv)`
            [N m or N].
        """
        model = self.model
        forces = model.efforts_of_pieces(
            model.configuration(start + manoeuvre.offset), model.velocity(manoeuvre.velocity),
            model.velocity(manoeuvre.acceleration))
        rate, change = manoeuvre.sizes @ self.rates
        return forces, self.bend(rate, change, manoeuvre.duration)


def carried_rates(links: Links, chain: Chain, model: RobotModel) -> np.ndarray:
    """
    Rates of links in which what slides counts for every link it carries.

    Then a link's rate is no less than that of any link before it, which the bounds above take for
    granted.

    :param links: of the robot.
    :param chain: its joints.
    :param model: says which entries drive the base.
    :return: `(A, K)`.
    """
    rates = links.rates.copy()
    for place in range(len(chain.joints)):
        for before in chain.path(place):
            if chain.joints[before].prismatic:
                entry = chain.joints[before].entry
                rates[entry, place + 1] = rates[entry, before + 1]
    for entry, column in model.base.items():
        if column < 3:
            rates[entry] = rates[entry, 0]
    return rates


def greatest_power(force: np.ndarray, off: np.ndarray, velocity: np.ndarray) -> np.ndarray:
    """
    Total mechanical power along pieces on which speeds change linearly, at most.

    Per joint the power is at most a product of two linear functions of the share x of the piece:
    a quadratic polynomial with Bernstein coefficients f_0 v_0, (f_0 v_1 + f_1 v_0) / 2, f_1 v_1. A
    polynomial, and a sum of them, is nowhere greater than its greatest Bernstein coefficient.

    :param force: at both ends of the pieces, `(L, N, 2, J)`.
    :param off: how far forces leave their chord, `(N, J)`.
    :param velocity: at the samples, `(N + 1, J)`.
    :return: for each payload `(L,)` [W].

    Source: Farouki, The Bernstein polynomial basis: a centennial retrospective, CAGD 29 (2012).
    """
    towards = force * np.sign(velocity[:-1, None])
    towards += off[:, None]
    np.maximum(towards, 0.0, out=towards)
    # speeds at both ends of each piece, (N, J, 2)
    speed = np.abs(velocity).repeat(2, axis=0)[1:-1].reshape(len(off), 2, -1)
    power = towards @ speed.transpose(0, 2, 1)     # every end's force at every end's speed
    ends = np.maximum.reduce(power[:, :, (0, 1), (0, 1)], axis=(1, 2))
    middle = np.maximum.reduce(power[:, :, 0, 1] + power[:, :, 1, 0], axis=1)
    return np.maximum(ends, 0.5 * middle)
