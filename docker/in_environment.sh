#!/usr/bin/env bash
# Run a command in the workspace's environment:
#   docker/in_environment.sh demo            an executable of one of the packages
#   docker/in_environment.sh python3 x.py    any other command
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ $# -eq 0 ]; then
  sed -n '2,4s/^# //p' "${BASH_SOURCE[0]}" >&2
  exit 2
fi
. "$root/docker/env.sh"
for executable in "$root"/install/*/lib/*/"$1"; do
  if [ -x "$executable" ] && [ -f "$executable" ]; then
    shift
    exec "$executable" "$@"
  fi
done
command -v "$1" >/dev/null || {
  echo "in_environment.sh: no executable '$1' in install/ or on PATH; run 'make setup' first" >&2
  exit 127
}
exec "$@"
