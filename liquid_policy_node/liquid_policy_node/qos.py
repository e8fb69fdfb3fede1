"""
Quality of service of every topic, each profile with its reason.

A publisher here offers at least as much as any subscriber here asks, so no pair is incompatible:
streams are offered as reliable and asked for as best effort. What a robot's own drivers offer,
reliable or not, always suffices.
"""

from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy


def _profile(
    depth: int, reliability: ReliabilityPolicy,
    durability: DurabilityPolicy = DurabilityPolicy.VOLATILE,
) -> QoSProfile:
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST, depth=depth, reliability=reliability,
        durability=durability)


# Camera images, both sides. An old image is worth nothing and a repeated one comes too late;
# through the 32 MB shared-memory segment of config/fastdds.xml best effort loses none. Two deep:
# colour and depth of one moment must not push each other out.
IMAGE = _profile(2, ReliabilityPolicy.BEST_EFFORT)

# Subscriptions to joint states, IMU, odometry, features. Every sample is a tick of the control
# clock, so ten may wait (0.1 s at 100 Hz); never a repeated, late one. Best effort also matches
# drivers that offer no more.
STREAM_IN = _profile(10, ReliabilityPolicy.BEST_EFFORT)

# Publishers of such streams: reliable, so that any recorder or plotter can subscribe.
STREAM_OUT = _profile(10, ReliabilityPolicy.RELIABLE)

# Action proposals, asked for: three deep, because a tick's answer that follows on the heels of an
# image's must not push it out unread; with one, every fiftieth image was answered 10 ms late.
PROPOSAL_IN = _profile(3, ReliabilityPolicy.BEST_EFFORT)

# Action proposals, offered: a lost one is replaced 10 ms later, a queue would only age; reliable
# because a recorder may ask for it.
PROPOSAL_OUT = _profile(1, ReliabilityPolicy.RELIABLE)

# Commands to the robot. ros2_control's controllers ask for reliable; depth 1, since a command
# that waited is a wrong command.
COMMAND = _profile(1, ReliabilityPolicy.RELIABLE)

# Status and demonstrated actions: read by people, recorders and learners; none should be missing.
STATUS = _profile(10, ReliabilityPolicy.RELIABLE)

# The newest model: whoever starts later must hear of it.
MODEL_UPDATE = _profile(1, ReliabilityPolicy.RELIABLE, DurabilityPolicy.TRANSIENT_LOCAL)

# Episode markers: none may be lost, and a recorder that starts late needs the last ones.
EPISODE = _profile(100, ReliabilityPolicy.RELIABLE, DurabilityPolicy.TRANSIENT_LOCAL)

# /diagnostics as the diagnostic aggregator expects it.
DIAGNOSTICS = _profile(10, ReliabilityPolicy.RELIABLE)
