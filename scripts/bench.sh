#!/usr/bin/env bash
# `make bench`: the handler beside its peers, in a virtual environment of their own; no container is needed.
# ARGS goes to the bench: ARGS='-k emit', ARGS='--rounds 5', ARGS=--quick, ARGS=--write-docs, ARGS=--help.
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

PYTHON_MIN=3.11

main() {
  virtual_environment "$(find_python)"
  cd tests
  # shellcheck disable=SC2086
  exec ../.venv-bench/bin/python -m bench ${ARGS:-}
}

find_python() {
  local python
  for python in python3 python3.14 python3.13 python3.12 python3.11; do
    if have "$python" && "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$python"
      return
    fi
  done
  fail Python 'not usable for the benchmarks' "$(python3 --version 2>&1 | head -n 1)" "Python $PYTHON_MIN or newer with venv" 'Debian, Ubuntu: apt-get install python3-venv'
}

# Made again only when what it holds has changed.
virtual_environment() {
  local wanted
  wanted=$({ "$1" --version; echo "$ROOT"; cat agent/pyproject.toml tests/requirements.txt tests/bench/requirements.txt; } | cksum)
  if [ -x .venv-bench/bin/python ] && [ "$(cat .venv-bench/made-from 2>/dev/null)" = "$wanted" ]; then
    return
  fi
  quietly Python 'making .venv-bench' "$1" -m venv --clear .venv-bench
  quietly Python 'installing the package and its peers' .venv-bench/bin/python -m pip install -q -e 'agent[fast,stack]' -r tests/bench/requirements.txt
  echo "$wanted" >.venv-bench/made-from
  log Python 'virtual environment .venv-bench' created
}

main
