#!/usr/bin/env bash
# `make test`: engine, images and a virtual environment, then pytest. Tests bring up stacks of their own, with their own
# names, ports and folders; a running `make up` is not touched. ARGS='-k name' goes to pytest.
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"
. scripts/engine.sh
. scripts/images.sh
. scripts/python.sh

main() {
  find_python >/dev/null  # before anything that takes long
  use_env_of_its_own
  ensure_engine_for_tests
  ensure_images
  virtual_environment .venv stack tests/requirements.txt
  log Tests "pytest tests ${ARGS:-}"
  # shellcheck disable=SC2086
  exec env ENV_FILE="$ENV_FILE" .venv/bin/python -m pytest tests ${ARGS:-}
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

main
