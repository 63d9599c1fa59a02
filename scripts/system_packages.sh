#!/usr/bin/env bash
# Brings the system packages that the tests need and pip cannot bring; names them in one line where it may not install.
set -euo pipefail
missing=()
have() { dpkg -s "$1" >/dev/null 2>&1; }
command -v g++ >/dev/null || missing+=(g++)
if command -v dpkg >/dev/null; then have libgtest-dev || missing+=(libgtest-dev); have ccache || missing+=(ccache); else
  [ -f /usr/include/gtest/gtest.h ] || missing+=(libgtest-dev)
fi
[ ${#missing[@]} -eq 0 ] && exit 0
install=(apt-get install -y -qq "${missing[@]}")
if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
  { apt-get update -qq && "${install[@]}"; } >/dev/null 2>&1 && exit 0
elif command -v apt-get >/dev/null && command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
  { sudo apt-get update -qq && sudo "${install[@]}"; } >/dev/null 2>&1 && exit 0
fi
echo "make: system packages are missing; please run: sudo apt-get install ${missing[*]}" >&2
exit 1
