#!/usr/bin/env bash
# Set up this checkout on a machine with ROS 2 Jazzy (Ubuntu 24.04): dependencies by rosdep, the
# few packages rosdep does not know into .venv (which sees the system's packages), then colcon.
# Afterwards: . docker/env.sh && ros2 launch liquid_policy_node manipulator.launch.py
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=$PWD/.venv
: "${LIQUID_TORCH_INDEX=https://download.pytorch.org/whl/cpu}"
packages=(liquid_policy_msgs liquid_policy_node liquid_trainer_node liquid_policy_sim test)

[ -n "${ROS_DISTRO:-}" ] || {
  echo 'setup_ros: no ROS 2 is sourced; run ". /opt/ros/jazzy/setup.bash" first,' \
    'or docker/setup.sh on a machine without ROS 2' >&2
  exit 1
}

sudo=
[ "$(id -u)" = 0 ] || sudo=sudo
$sudo apt-get update -qq
$sudo apt-get install -y -qq --no-install-recommends \
  g++ make python3-venv python3-dev python3-rosdep python3-colcon-common-extensions \
  libosmesa6 libgl1 >/dev/null
[ -d /etc/ros/rosdep/sources.list.d ] || $sudo rosdep init
rosdep update --rosdistro "$ROS_DISTRO" -q
# Keys that end in -pip are in requirements-ros.txt with their versions.
rosdep install --from-paths "${packages[@]}" --ignore-src -y --rosdistro "$ROS_DISTRO" \
  --skip-keys 'python3-onnxruntime-pip python3-mujoco-pip python3-rosbags-pip'

[ -e "$venv" ] || python3 -m venv --system-site-packages "$venv"
index=()
[ -z "$LIQUID_TORCH_INDEX" ] || index=(--extra-index-url "$LIQUID_TORCH_INDEX")
"$venv/bin/python" -m pip install --disable-pip-version-check ${index[@]+"${index[@]}"} \
  -r docker/requirements-ros.txt
echo osmesa > "$venv/mujoco_gl"

# With the environment's own Python, so that the executables start with it.
"$venv/bin/python" -m colcon build --symlink-install --base-paths "${packages[@]}" \
  --cmake-args -DPython3_EXECUTABLE=/usr/bin/python3
echo 'setup_ros: ready; now ". docker/env.sh" and "ros2 launch liquid_policy_node manipulator.launch.py"'
