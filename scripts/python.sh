#!/usr/bin/env bash
# Python on the host, for the tests and the benchmarks: a virtual environment of their own, made again only when what
# it holds has changed.

PYTHON_MIN=3.11

find_python() {
  local python
  for python in python3 python3.14 python3.13 python3.12 python3.11; do
    if have "$python" && "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$python"
      return
    fi
  done
  fail Python 'not usable' "$(python3 --version 2>&1 | head -n 1)" "Python $PYTHON_MIN or newer with venv" 'Debian, Ubuntu: apt-get install python3-venv'
}

# virtual_environment FOLDER EXTRAS REQUIREMENTS…: of the package with these extras and these files' requirements. What of
# the package is C is compiled into its folder, if there is a compiler and Python's headers.
virtual_environment() {
  local folder=$1 extras=$2 python wanted
  shift 2
  python=$(find_python)
  wanted=$({ "$python" --version; echo "$ROOT $extras"; cat agent/pyproject.toml agent/src/native/* "$@"; } | cksum)
  if [ -x "$folder/bin/python" ] && [ "$(cat "$folder/made-from" 2>/dev/null)" = "$wanted" ]; then
    log Python "virtual environment $folder" unchanged
    return
  fi
  quietly Python "making $folder" "$python" -m venv --clear "$folder"
  # shellcheck disable=SC2046
  quietly Python 'installing the package and what is required' "$folder/bin/python" -m pip install -q -e "agent[$extras]" $(printf -- '-r %s ' "$@")
  echo "$wanted" >"$folder/made-from"
  log Python "virtual environment $folder" created
}
