#!/usr/bin/env bash
# `make test`: engine, images and a virtual environment, then pytest. Tests bring up stacks of their own, with their own
# names, ports and folders; a running `make up` is not touched. ARGS='-k name' goes to pytest.
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"
. scripts/engine.sh
. scripts/images.sh

PYTHON_MIN=3.11

main() {
  local python
  python=$(find_python)
  use_env_of_its_own
  ensure_engine_for_tests
  ensure_images
  virtual_environment "$python"
  log Tests "pytest tests ${ARGS:-}"
  # shellcheck disable=SC2086
  exec env ENV_FILE="$ENV_FILE" .venv/bin/python -m pytest tests ${ARGS:-}
}

find_python() {
  local python
  for python in python3 python3.14 python3.13 python3.12 python3.11; do
    if have "$python" && "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$python"
      return
    fi
  done
  fail Python 'not usable for the tests' "$(python3 --version 2>&1 | head -n 1)" "Python $PYTHON_MIN or newer with venv" 'Debian, Ubuntu: apt-get install python3-venv'
}

# The names of the images that were found or built are written here, not into .env.
use_env_of_its_own() {
  ENV_FILE=$ROOT/.test.env
  cp .env.example "$ENV_FILE"
  load_env
}

ensure_engine_for_tests() {
  check_memory
  check_disk
  ensure_engine
  [ "${DOCKER[0]}" = docker ] ||
    fail Checks 'the tests call docker themselves' "$(id -un) may use it only through sudo" 'root, or a member of the group docker' 'sudo make test'
  log Checks "docker $(short_version "$(engine_version)"), compose $(short_version "$(compose_version)")"
}

# Made again only when what it holds has changed.
virtual_environment() {
  local wanted
  wanted=$({ "$1" --version; echo "$ROOT"; cat agent/pyproject.toml tests/requirements.txt; } | cksum)
  if [ -x .venv/bin/python ] && [ "$(cat .venv/made-from 2>/dev/null)" = "$wanted" ]; then
    log Python 'virtual environment .venv' unchanged
    return
  fi
  quietly Python 'making .venv' "$1" -m venv --clear .venv
  quietly Python 'installing the package and the tests'\'' requirements' .venv/bin/python -m pip install -q -e 'agent[stack]' -r tests/requirements.txt
  echo "$wanted" >.venv/made-from
  log Python 'virtual environment .venv' created
}

main
