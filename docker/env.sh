# shellcheck shell=bash
# Environment of the workspace; source it in bash: . docker/env.sh
# What the user has set already (discovery range, profile, renderer) stays.

_liquid_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
case $- in *u*) _liquid_nounset=1; set +u ;; *) _liquid_nounset= ;; esac

if [ -d "$_liquid_root/.venv" ]; then
  VIRTUAL_ENV=$_liquid_root/.venv
  export VIRTUAL_ENV
  case ":$PATH:" in *":$VIRTUAL_ENV/bin:"*) ;; *) export PATH="$VIRTUAL_ENV/bin:$PATH" ;; esac
  # The ROS 2 wheels restart Python to set this path; set here, no process needs to restart.
  if [ -z "${_ROS_WHEELS_BOOTSTRAP_COMPLETE:-}" ]; then
    for _liquid_libs in "$VIRTUAL_ENV"/lib/python3*/site-packages/ros_*.libs; do
      [ -d "$_liquid_libs" ] && LD_LIBRARY_PATH=$_liquid_libs${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    done
    export LD_LIBRARY_PATH=$VIRTUAL_ENV/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    export _ROS_WHEELS_BOOTSTRAP_COMPLETE=1
  fi
  [ -f "$VIRTUAL_ENV/mujoco_gl" ] && export MUJOCO_GL="${MUJOCO_GL:-$(cat "$VIRTUAL_ENV/mujoco_gl")}"
fi
[ -f "$_liquid_root/install/setup.bash" ] && . "$_liquid_root/install/setup.bash"

# With Fast DDS's defaults most images are lost; this profile gives them room in shared memory.
export FASTRTPS_DEFAULT_PROFILES_FILE="${FASTRTPS_DEFAULT_PROFILES_FILE:-$_liquid_root/config/fastdds.xml}"
# A demo must not meet another robot on the network.
export ROS_AUTOMATIC_DISCOVERY_RANGE="${ROS_AUTOMATIC_DISCOVERY_RANGE:-LOCALHOST}"
export PYTHONUNBUFFERED="${PYTHONUNBUFFERED:-1}"

[ -n "$_liquid_nounset" ] && set -u
unset _liquid_root _liquid_nounset _liquid_libs
