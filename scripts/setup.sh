#!/usr/bin/env bash
# Makes .venv in the clone and builds and installs the package into it.
#
#   scripts/setup.sh         what training needs
#   scripts/setup.sh --dev   also what the tests and the linters need
#
# Safe to repeat: what is there is kept, and only changed sources are compiled again.
# The install is editable: .venv uses python/ of this clone as it stands, and the
# extension module is built in build/venv.
#
# Variables: PYTHON (interpreter for a new .venv), CXX (g++ 12 or newer).
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv="$root/.venv"
build="$root/build/venv"
torch_pin=$(sed -n 's/^PINNED_TORCH = "\(.*\)"/\1/p' "$root/scripts/build_backend.py")
extras=""
case "${1:-}" in
  "") ;;
  --dev) extras="[dev]" ;;
  *) echo "setup.sh: expected no argument or --dev, found '$1'" >&2; exit 2 ;;
esac

say() { printf '[setup] %s\n' "$*"; }
die() { printf '[setup] %s\n' "$@" >&2; exit 1; }

# --- system packages ---------------------------------------------------------------

# Prints a g++ of version 12 or newer, if there is one.
find_compiler() {
  local name
  for name in ${CXX:-} g++ g++-15 g++-14 g++-13 g++-12; do
    if command -v "$name" >/dev/null && [ "$("$name" -dumpversion | cut -d. -f1)" -ge 12 ]
    then
      echo "$name"
      return
    fi
  done
}

# Prints a Python 3.10 to 3.13 that can make a venv and compile extensions.
find_python() {
  local name
  for name in ${PYTHON:-} python3 python3.13 python3.12 python3.11 python3.10; do
    if "$name" - 2>/dev/null <<'PY'
import ensurepip, os, sys, sysconfig, venv
header = os.path.join(sysconfig.get_path("include"), "Python.h")
sys.exit(not ((3, 10) <= sys.version_info[:2] <= (3, 13) and os.path.isfile(header)))
PY
    then
      echo "$name"
      return
    fi
  done
}

# Prints the Debian packages that are missing.
missing_packages() {
  if [ -z "$(find_compiler)" ]; then
    # Ubuntu 22.04 has g++ 11 by default and 12 under its own name.
    if command -v g++ >/dev/null; then echo g++-12; else echo g++; fi
  fi
  if [ ! -x "$venv/bin/python" ] && [ -z "$(find_python)" ]; then
    echo python3-venv python3-dev
  fi
  local tool
  for tool in cmake ninja ccache; do
    command -v "$tool" >/dev/null || echo "${tool/%ninja/ninja-build}"
  done
  has_header() { echo "#include <$1>" | "$(find_compiler)" -std=c++20 -E -x c++ - ; }
  if [ -n "$(find_compiler)" ]; then
    [ -n "${TOMLPLUSPLUS_ROOT:-}" ] || has_header toml++/toml.h >/dev/null 2>&1 ||
      echo libtomlplusplus-dev
    [ -z "$extras" ] || has_header gtest/gtest.h >/dev/null 2>&1 || echo libgtest-dev
  else
    echo libtomlplusplus-dev ${extras:+libgtest-dev}
  fi
}

install_packages() {
  local packages as_root=""
  packages=$(missing_packages | xargs)
  [ -n "$packages" ] || return 0
  local line="apt-get update && apt-get install -y --no-install-recommends $packages"
  if [ "$(id -u)" -ne 0 ]; then
    sudo -n true 2>/dev/null && as_root="sudo -n" ||
      die "missing system packages; run this as root, then start again:" "  $line"
  fi
  command -v apt-get >/dev/null ||
    die "missing system packages, named here as on Debian:" "  $packages"
  say "installing system packages: $packages"
  $as_root apt-get update -qq || say "apt-get update failed; trying with what is known"
  # shellcheck disable=SC2086  # a list of words
  DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq \
    --no-install-recommends $packages </dev/null >/dev/null || die "failed: $line"
  packages=$(missing_packages | xargs)
  [ -z "$packages" ] || die "still missing after apt-get install: $packages"
}

# --- virtual environment -----------------------------------------------------------

make_venv() {
  "$venv/bin/python" -c 'import pip' 2>/dev/null && return
  local python
  python=$(find_python)
  say "making .venv with $("$python" --version)"
  "$python" -m venv --clear "$venv"
}

torch_version() {
  sed -n "s/^__version__ = '\(.*\)'/\1/p" "$site/torch/version.py" 2>/dev/null || true
}

# A number that changes with everything the installed metadata depend on.
installation() {
  { echo "$root $(torch_version)"; cat "$root/pyproject.toml" "$root/scripts/build_backend.py"
  } | cksum | cut -d' ' -f1
}

# Runs a command that builds: shows the compiler's progress; the rest goes to a log,
# which is shown if the command fails.
with_progress() {
  "$@" 2>&1 | tee "$build/setup.log" | sed -un 's/^ *\(\[[1-9][0-9]*\/[0-9]*\] .*\)/\1/p' ||
    { cat "$build/setup.log" >&2; die "failed: $*"; }
}

install_packages
make_venv
export PATH="$venv/bin:$PATH"
site=$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

mkdir -p "$build"
exec 9>"$build/setup.lock"
flock 9

if [ -z "$(torch_version)" ]; then
  say "installing torch $torch_pin"
  python -m pip install "torch==$torch_pin"
fi

# The stamp holds the number of the installation and the extras it has.
read -r installed installed_extras 2>/dev/null <"$venv/installed.txt" || true
if [ "${installed:-}" != "$(installation)" ] ||
  [ "${installed_extras:-}" != "${extras:-${installed_extras:-}}" ]; then
  extras=${extras:-${installed_extras:-}}
  say "building and installing torchtitan_cpp$extras against torch $(torch_version)"
  rm -f "$venv/installed.txt"
  python -m pip install --quiet "scikit-build-core>=1.1"
  with_progress python -m pip install --verbose --no-build-isolation \
    --config-settings=build-dir=build/venv --editable "$root$extras"
  echo "$(installation) $extras" >"$venv/installed.txt"
else
  with_progress env SKBUILD_EDITABLE_VERBOSE=1 python -c \
    'import importlib.util as u; u.find_spec("torchtitan_cpp").loader.rebuild()'
fi
