"""
Where the robot's points are, how fast, and which torques and ground forces a motion needs.

A thin layer over Pinocchio. The base may hang on a free joint, so that the forces between robot
and floor come out of the same inverse dynamics as the joint torques; joints without an action
(wheels) are locked. Everything is expressed in the root link's frame, REP 103.

Source: Featherstone, Rigid Body Dynamics Algorithms (2008), for the recursive Newton-Euler and
composite-rigid-body algorithms; Carpentier et al., The Pinocchio C++ library, SII 2019.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import numpy as np

from liquid_policy.barrier_kinematics import Attached, Chain, Joint
from liquid_policy.interface import Interface
from liquid_policy.limits import LimitsError
from liquid_policy.safety_spec import PointSpec

BASE_FIELDS = {'twist.linear.x': 0, 'twist.linear.y': 1, 'twist.angular.z': 5}
PAYLOAD_RADIUS = 0.05   # [m]; a solid ball of the payload's mass sits at the tool's frame
CONTACT_HEIGHT = 0.005  # [m]; what is that near the floor carries the robot


def base_entries(interface: Interface) -> dict[int, int]:
    """
    Actions that drive the base.

    :param interface: the robot's interface.
    :return: place among the free joint's velocities (vx, vy, vz, wx, wy, wz) by action entry.
    """
    found = {}
    for name, spec in interface.actions.items():
        if spec.type.startswith('geometry_msgs/msg/Twist'):
            start = interface.slice_of(name).start
            for index, path in enumerate(spec.fields):
                key = path if path.startswith('twist.') else f'twist.{path}'
                if key in BASE_FIELDS:
                    found[start + index] = BASE_FIELDS[key]
    return found


@dataclass(frozen=True, eq=False)
class Body:
    """
    What one link weighs.

    :param joint: place in the chain of the joint it hangs on, -1 for the root link.
    :param mass: [kg].
    :param center: of mass, in the joint's frame, `(3,)` [m].
    :param inertia: greatest moment of inertia about the centre of mass [kg m2].
    """

    joint: int
    mass: float
    center: np.ndarray
    inertia: float


class RobotModel:
    """The robot's kinematics and dynamics in the order of the actions."""

    def __init__(
        self, urdf: str, names: Sequence[str], joint: np.ndarray,
        points: Mapping[str, PointSpec] | None = None, tool: str | None = None,
        payload: tuple[float, ...] = (0.0, 0.0), base: Mapping[int, int] | None = None,
        floating: bool = True,
    ) -> None:
        """
        Read the URDF.

        :param urdf: its text.
        :param names: what each action entry is called; the joint's name where it moves one.
        :param joint: which entries are joints, `(A,)` bool.
        :param points: points to be followed, by name.
        :param tool: frame that carries the payload.
        :param payload: lightest and heaviest load [kg].
        :param base: place among the base's velocities by action entry; see `base_entries`.
        :param floating: whether the root link hangs on a free joint, for the forces between
            robot and floor; False: it is fixed, which is quicker. A driving base floats.
        :raises LimitsError: for joints or frames the URDF does not have.
        """
        import pinocchio
        self._pin = pinocchio
        try:
            whole = pinocchio.buildModelFromXML(
                urdf, pinocchio.JointModelFreeFlyer()) if floating else \
                pinocchio.buildModelFromXML(urdf)
        except Exception as error:  # noqa: BLE001 - urdfdom's errors come as several kinds
            raise LimitsError(f'robot description: Pinocchio cannot read it: {error}') from error
        self.floating = floating
        self._first = 2 if floating else 1   # the first joint that is no root
        used = {name for name, is_joint in zip(names, joint, strict=True) if is_joint}
        missing = used - set(whole.names)
        if missing:
            raise LimitsError(f'the URDF has no joint {", ".join(sorted(missing))}')
        locked = [index for index, name in enumerate(whole.names)
                  if index >= self._first and name not in used]
        model = pinocchio.buildReducedModel(whole, locked, pinocchio.neutral(whole))
        self.entries = np.flatnonzero(joint)
        joints = [model.joints[model.getJointId(names[int(entry)])] for entry in self.entries]
        if any(item.nq != 1 for item in joints):
            raise LimitsError('continuous joints cannot be given an action of a joint velocity in '
                              'this model; give them position limits (type revolute)')
        self._places = np.array([item.idx_q for item in joints], dtype=np.intp)
        self.dofs = np.array([item.idx_v for item in joints], dtype=np.intp)
        # column of the model's velocity for every entry that moves something
        self.moving = np.concatenate([self.entries, np.array(list(base or ()), dtype=np.intp)])
        self.columns = np.concatenate([
            self.dofs, np.array(list((base or {}).values()), dtype=np.intp)]).astype(np.intp)
        self._point_frames = [
            self._add_point(model, name, spec) for name, spec in (points or {}).items()]
        self._tool_frame = None if tool is None else self._frame(model, tool)
        self._model, self._data = model, model.createData()
        self._loaded: list[tuple[Any, Any]] = []
        for mass in sorted(set(payload)):
            loaded = model.copy()
            if mass > 0.0:
                assert self._tool_frame is not None
                frame = model.frames[self._tool_frame]
                ball = pinocchio.Inertia.FromSphere(mass, PAYLOAD_RADIUS)
                loaded.inertias[frame.parentJoint] = (
                    loaded.inertias[frame.parentJoint] + frame.placement.act(ball))
            self._loaded.append((loaded, loaded.createData()))
        # for many samples in one call, where Pinocchio is built with it
        self._pools = [pinocchio.ModelPool(loaded, 1) for loaded, _ in self._loaded] \
            if hasattr(pinocchio, 'rneaInParallel') else []
        self.payloads = tuple(sorted(set(payload)))
        self.nv = model.nv
        self._aligned = pinocchio.ReferenceFrame.LOCAL_WORLD_ALIGNED
        self._rest = pinocchio.neutral(model)
        self._upper = np.triu(np.ones((model.nv, model.nv), dtype=bool))
        self._above = np.triu(self._upper, 1)
        self.base = dict(base or {})
        # whether the model's joints are the actions, in the same order
        self.plain = not floating and self.nv == len(self._rest) == len(names) and bool(
            (self._places == self.entries).all() and (self.dofs == self.entries).all())
        self.chain = self._read_chain(names)
        # action entries in the order of the chain's joints; a slice is quicker
        order = [joint.entry for joint in self.chain.joints]
        self._order: Any = slice(0, len(order)) if order == list(range(len(names))) else order
        self._probe = None if self._tool_frame is None else self._make_probe(model)

    def _frame(self, model: Any, name: str) -> int:
        if not model.existFrame(name):
            raise LimitsError(
                f'the URDF has no frame {name!r}; it has '
                f'{", ".join(frame.name for frame in model.frames[2:])}')
        return model.getFrameId(name)

    def _add_point(self, model: Any, name: str, spec: PointSpec) -> int:
        pin = self._pin
        parent = self._frame(model, spec.frame)
        frame = model.frames[parent]
        offset = pin.SE3(np.eye(3), np.array(spec.offset))
        return model.addFrame(pin.Frame(
            f'point/{name}', frame.parentJoint, parent, frame.placement * offset,
            pin.FrameType.OP_FRAME))

    def _read_chain(self, names: Sequence[str]) -> Chain:
        """The same joints and points for `barrier_kinematics`; the tool comes last."""
        model, data, pin = self._model, self._data, self._pin
        turned = self._rest.copy()
        turned[7 if self.floating else 0:] = 1.0
        pin.forwardKinematics(model, data, turned)
        joints = []
        for index in range(self._first, model.njoints):
            moved = pin.log6(model.jointPlacements[index].actInv(data.liMi[index]))
            slides = float(np.linalg.norm(moved.angular)) < 0.5
            column = model.joints[index].idx_q
            reach = max(abs(model.lowerPositionLimit[column]),
                        abs(model.upperPositionLimit[column]))
            joints.append(Joint(
                list(names).index(model.names[index]), model.parents[index] - self._first,
                model.jointPlacements[index].homogeneous.copy(),
                np.array(moved.linear if slides else moved.angular), slides,
                (float(reach) or np.inf) if slides else 0.0))
        frames = [*self._point_frames, *([] if self._tool_frame is None else [self._tool_frame])]
        return Chain(tuple(joints), tuple(
            Attached(model.frames[frame].parentJoint - self._first,
                     model.frames[frame].placement.translation.copy()) for frame in frames))

    def _make_probe(self, model: Any) -> tuple[Any, Any, Any]:
        """
        A weightless robot without mass, but for 1 kg at the tool, on three sliding joints.

        A fourth turns it as a driving base does. Asked for accelerations q' while everything
        stands, the sliding joints need the force 1 kg * J q': the tool's velocity, from inverse
        dynamics (`tool_velocity`).
        """
        pin, probe = self._pin, self._pin.Model()
        probe.gravity.linear = np.zeros(3)
        root, still = 0, pin.SE3.Identity()
        for axis in (pin.JointModelPX(), pin.JointModelPY(), pin.JointModelPZ(),
                     pin.JointModelRZ()):
            root = probe.addJoint(root, axis, still, f'root_{root}')
        for index in range(self._first, model.njoints):
            parent = model.parents[index]
            probe.addJoint(
                root if parent < self._first else parent - self._first + root + 1,
                model.joints[index], model.jointPlacements[index], model.names[index])
        frame = model.frames[self._tool_frame]
        carrier = frame.parentJoint
        probe.appendBodyToJoint(
            root if carrier < self._first else carrier - self._first + root + 1,
            pin.Inertia(1.0, np.zeros(3), np.zeros((3, 3))), frame.placement)
        return probe, probe.createData(), \
            pin.ModelPool(probe, 1) if hasattr(pin, 'rneaInParallel') else None

    def dof_of(self, place: int) -> int:
        """Place among the model's velocities of one of the chain's joints."""
        return int(self._model.joints[place + self._first].idx_v)

    def bodies(self) -> list[list[Body]]:
        """Weights of all links, for the lightest and the heaviest payload."""
        return [[
            Body(index - self._first, float(model.inertias[index].mass),
                 model.inertias[index].lever.copy(),
                 float(np.linalg.eigvalsh(model.inertias[index].inertia)[-1]))
            for index in range(1, model.njoints)] for model, _ in self._loaded]

    def configuration(self, position: np.ndarray) -> np.ndarray:
        """
        The model's configuration with its root at the origin.

        :param position: of every action entry, `(A,)` or `(S, A)`; only joints are read.
        :return: `(nq,)` or `(S, nq)`.
        """
        if self.plain:
            return position
        configuration = np.empty((*position.shape[:-1], len(self._rest)))
        configuration[...] = self._rest
        configuration[..., self._places] = position[..., self.entries]
        return configuration

    def velocity(self, command: np.ndarray) -> np.ndarray:
        """
        The model's velocity.

        :param command: speed of every action entry, `(A,)` or `(S, A)`; entries that move nothing
            are ignored.
        :return: `(nv,)` or `(S, nv)`.
        """
        if self.plain:
            return command
        velocity = np.zeros((*command.shape[:-1], self.nv))
        velocity[..., self.columns] = command[..., self.moving]
        return velocity

    def points(
        self, configurations: np.ndarray, velocities: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """
        Where the followed points are, and the tool's velocity.

        :param configurations: `(S, nq)`.
        :param velocities: `(S, nv)`.
        :return: points `(S, P, 3)` [m], velocity of the tool `(S, 3)` [m/s], 0 without a tool;
            both in the root's frame.
        """
        pin, model, data, frames = self._pin, self._model, self._data, self._point_frames
        points = np.empty((len(configurations), len(frames), 3))
        tool = np.zeros((len(configurations), 3))
        for sample in range(len(configurations)):
            pin.forwardKinematics(model, data, configurations[sample], velocities[sample])
            for place, frame in enumerate(frames):
                points[sample, place] = pin.updateFramePlacement(model, data, frame).translation
            if self._tool_frame is not None:
                tool[sample] = pin.getFrameVelocity(
                    model, data, self._tool_frame, self._aligned).linear
        return points, tool

    def point_jacobian(self, configuration: np.ndarray, point: int, size: int) -> np.ndarray:
        """
        How a followed point moves with the command.

        :param configuration: `(nq,)`.
        :param point: place of the point, -1 for the tool.
        :param size: number A of action entries.
        :return: `(3, A)`, in the root's frame.
        """
        frame = self._tool_frame if point < 0 else self._point_frames[point]
        full = self._pin.computeFrameJacobian(
            self._model, self._data, configuration, frame, self._aligned)
        jacobian = np.zeros((3, size))
        jacobian[:, self.moving] = full[:3, self.columns]
        return jacobian

    def dynamics(
        self, position: np.ndarray, command: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """
        Inverse dynamics for the lightest and the heaviest payload: force = M acceleration + h.

        Both M and h are affine in the payload's mass, so what holds for both ends of the range
        holds between them.

        :param position: of every action entry, `(A,)`.
        :param command: speed of every action entry, `(A,)`.
        :return: for each payload M `(L, nv, nv)` and h `(L, nv)`; of a floating robot the first
            six rows are force [N] and moment [N m] of the floor on it, in the root's frame.
        """
        pin, count = self._pin, len(self._loaded)
        inertia, bias = np.empty((count, self.nv, self.nv)), np.empty((count, self.nv))
        q, v = self.configuration(position), self.velocity(command)
        for place, (model, data) in enumerate(self._loaded):
            inertia[place] = pin.crba(model, data, q)
            bias[place] = pin.nonLinearEffects(model, data, q, v)
        inertia *= self._upper      # the rest is not always filled
        inertia += (inertia * self._above).transpose(0, 2, 1)
        return inertia, bias

    def gravity(self, position: np.ndarray) -> np.ndarray:
        """
        Forces at rest, for the lightest and the heaviest payload, `(L, nv)`.

        :param position: of every action entry, `(A,)`.
        """
        q = self.configuration(position)
        return np.array([self._pin.computeGeneralizedGravity(model, data, q)
                         for model, data in self._loaded])

    def efforts(
        self, configurations: np.ndarray, velocities: np.ndarray, accelerations: np.ndarray,
    ) -> np.ndarray:
        """
        Forces of a motion for the lightest and the heaviest payload.

        :param configurations: `(S, nq)`.
        :param velocities: `(S, nv)`.
        :param accelerations: `(S, nv)`.
        :return: for each payload `(payloads, S, nv)`, as in `dynamics`.
        """
        forces = np.empty((len(self._loaded), len(configurations), self.nv))
        for place, (model, data) in enumerate(self._loaded):
            self._rnea(model, data, self._pools[place] if self._pools else None,
                       configurations, velocities, accelerations, forces[place])
        return forces

    def _rnea(
        self, model: Any, data: Any, pool: Any, configurations: np.ndarray,
        velocities: np.ndarray, accelerations: np.ndarray, forces: np.ndarray,
    ) -> None:
        """Inverse dynamics of many samples; rows of the arrays, the last one is filled."""
        # In one call it takes half the time, but sets the number of threads for the whole
        # process, torch's included.
        if pool is not None and 'torch' not in sys.modules:
            self._pin.rneaInParallel(
                1, pool, configurations.T, velocities.T, accelerations.T, forces.T)
            return
        rnea = self._pin.rnea
        for sample, state in enumerate(zip(
                configurations, velocities, accelerations, strict=True)):
            forces[sample] = rnea(model, data, *state)

    def efforts_of_pieces(
        self, configurations: np.ndarray, velocities: np.ndarray, accelerations: np.ndarray,
    ) -> np.ndarray:
        """
        Forces at both ends of pieces with constant accelerations, and then, for each payload.

        :param configurations: at the N + 1 ends, `(N + 1, nq)`.
        :param velocities: likewise, `(N + 1, nv)`.
        :param accelerations: of the pieces, and from the last end on, `(N + 1, nv)`.
        :return: at the beginning and the end of each piece, one piece after the other, and last
            with the acceleration that comes then, `(payloads, 2 N + 1, nv)`.
        """
        return self.efforts(
            configurations.repeat(2, axis=0)[1:], velocities.repeat(2, axis=0)[1:],
            accelerations.repeat(2, axis=0)[:-1])

    def tool_velocity(self, position: np.ndarray, speed: np.ndarray) -> np.ndarray:
        """
        How fast joints and base move the tool, in the root's frame.

        :param position: of every action entry, `(S, A)`; only joints are read.
        :param speed: of every action entry, `(S, A)`.
        :return: `(S, 3)` [m/s].
        """
        assert self._probe is not None
        model, data, pool = self._probe
        samples = len(position)
        state = np.zeros((3, samples, model.nv))
        state[0, :, 4:] = position[:, self._order]
        state[2, :, 4:] = speed[:, self._order]
        for entry, column in self.base.items():
            state[2, :, 3 if column == 5 else column] = speed[:, entry]
        forces = np.empty((samples, model.nv))
        self._rnea(model, data, pool, state[0], state[1], state[2], forces)
        return forces[:, :3]

    def tool_slopes(
        self, position: np.ndarray, speed: np.ndarray, size: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        """
        How the tool's velocity changes with speeds of all entries and positions of the joints.

        :param position: of every action entry, `(A,)`; only joints are read.
        :param speed: of every action entry, `(A,)`.
        :param size: number A of action entries.
        :return: derivatives by speeds and by positions, `(3, A)` each, in the root's frame.
        """
        pin, model, data = self._pin, self._model, self._data
        pin.computeForwardKinematicsDerivatives(
            model, data, self.configuration(position), self.velocity(speed), np.zeros(self.nv))
        frame = model.frames[self._tool_frame]
        by_position, by_speed = pin.getPointVelocityDerivatives(
            model, data, frame.parentJoint, frame.placement, self._aligned)
        slopes = np.zeros((2, 3, size))
        slopes[0][:, self.moving] = by_speed[:, self.columns]
        slopes[1][:, self.entries] = by_position[:, self.dofs]
        return slopes[0], slopes[1]

    def balance(self, configuration: np.ndarray) -> list[np.ndarray]:
        """
        The centre of mass for the lightest and the heaviest payload, `(3,)` each [m].

        :param configuration: `(nq,)`.
        """
        return [self._pin.centerOfMass(model, data, configuration).copy()
                for model, data in self._loaded]

    def balance_jacobian(self, configuration: np.ndarray, payload: int, size: int) -> np.ndarray:
        """
        How the centre of mass moves with the joints, `(3, A)`.

        :param configuration: `(nq,)`.
        :param payload: 0 for the lightest, 1 for the heaviest.
        :param size: number A of action entries.
        """
        model, data = self._loaded[payload]
        full = self._pin.jacobianCenterOfMass(model, data, configuration)
        jacobian = np.zeros((3, size))
        jacobian[:, self.entries] = full[:, self.dofs]
        return jacobian


def support_polygon(urdf: str) -> tuple[np.ndarray, float]:
    """
    What the robot stands on: the hull of its collision shapes that touch the floor.

    :param urdf: URDF text; the root's z axis points upwards.
    :return: corners, counter-clockwise, `(n, 2)`, and the floor's height, both in the root's
        frame [m].
    :raises LimitsError: if fewer than three shapes touch the floor.
    """
    import pinocchio
    model = pinocchio.buildModelFromXML(urdf)
    data = model.createData()
    pinocchio.framesForwardKinematics(model, data, pinocchio.neutral(model))
    found = []
    for link in ElementTree.fromstring(urdf).findall('link'):
        frame = data.oMf[model.getFrameId(link.get('name', ''))]
        for collision in link.findall('collision'):
            origin, shape = collision.find('origin'), collision.find('geometry')
            xyz, rpy = (
                np.array([float(v) for v in (
                    (origin.get(key) if origin is not None else None) or '0 0 0').split()])
                for key in ('xyz', 'rpy'))
            place = frame * pinocchio.SE3(pinocchio.rpy.rpyToMatrix(rpy), xyz)
            if shape is not None and len(shape):
                depth = _half_height(shape[0], place.rotation)
                found.append((place.translation[2] - depth, *place.translation[:2]))
    lowest = min((height for height, _, _ in found), default=0.0)
    corners = _hull([(x, y) for height, x, y in found if height < lowest + CONTACT_HEIGHT])
    if len(corners) < 3:
        raise LimitsError(
            'support polygon: expected at least three collision shapes of the URDF on the floor, '
            f'came {len(corners)}; give wheels and casters collision shapes')
    return corners, lowest


def _half_height(shape: ElementTree.Element, rotation: np.ndarray) -> float:
    """How far a collision shape reaches down from its origin [m]."""
    def numbers(key: str) -> list[float]:
        return [float(value) for value in (shape.get(key) or '0').split()]
    if shape.tag == 'sphere':
        return numbers('radius')[0]
    if shape.tag == 'cylinder':
        axis = abs(rotation[2, 2])
        return (numbers('length')[0] / 2 * axis
                + numbers('radius')[0] * float(np.sqrt(max(0.0, 1.0 - axis * axis))))
    if shape.tag == 'box':
        return float(np.abs(rotation[2]) @ np.array(numbers('size')) / 2)
    return 0.0


def _hull(points: list[tuple[float, float]]) -> np.ndarray:
    """Corners of the convex hull, counter-clockwise (Andrew's monotone chain)."""
    points = sorted(set(points))

    def chain(ordered: list[tuple[float, float]]) -> list[tuple[float, float]]:
        kept: list[tuple[float, float]] = []
        for x, y in ordered:
            while len(kept) > 1 and (
                    (kept[-1][0] - kept[-2][0]) * (y - kept[-2][1])
                    - (kept[-1][1] - kept[-2][1]) * (x - kept[-2][0])) <= 1e-12:
                kept.pop()
            kept.append((x, y))
        return kept[:-1]

    return np.array(chain(points) + chain(points[::-1])).reshape(-1, 2)
