#!/usr/bin/env bash
# `make bench`: the handler beside its peers, in a virtual environment of their own; no container is needed.
# ARGS goes to the bench: ARGS='-k emit', ARGS='--rounds 5', ARGS=--quick, ARGS=--write-docs, ARGS=--help.
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"
. scripts/python.sh

main() {
  virtual_environment .venv-bench fast,stack tests/requirements.txt tests/bench/requirements.txt
  cd tests
  # shellcheck disable=SC2086
  exec ../.venv-bench/bin/python -m bench ${ARGS:-}
}

main
