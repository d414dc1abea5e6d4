# shellcheck shell=bash
# What every script shares: the log lines, the settings of the env file, docker and compose. Sourced, not run.
set -Eeuo pipefail
export LC_ALL=C.UTF-8

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT"
ENV_FILE=${ENV_FILE:-.env}
DOCKER=(docker)

# Output of long commands goes here; it is shown when one fails.
LOG=$(mktemp "${TMPDIR:-/tmp}/clawtrail.XXXXXX.log")
BASE_DIR=                   # images.sh: the base image while it is made
tidy() { rm -f "$LOG"; [ -z "$BASE_DIR" ] || as_root rm -rf --one-file-system "$BASE_DIR"; }
trap tidy EXIT
# What no check foresaw still says where it happened.
trap 'printf "[x] %s, line %s: exit code %s from: %s\n" "${BASH_SOURCE[0]##*/}" "$LINENO" "$?" "$BASH_COMMAND" >&2' ERR

# log STEP DETAIL [STATE]
log() {
  local gap=$((64 - ${#2}))
  [ "$gap" -gt 0 ] || gap=0
  if [ $# -gt 2 ]; then printf '[+] %-14s %s%*s %s\n' "$1" "$2" "$gap" '' "$3"; else printf '[+] %-14s %s\n' "$1" "$2"; fi
}

# fail STEP WHAT FOUND EXPECTED DO
fail() {
  printf '[x] %-14s %s\n    found     %s\n    expected  %s\n    do        %s\n' "$@" >&2
  exit 1
}

# quietly STEP WHAT COMMAND…: runs the command, shows the end of its output only when it fails.
quietly() {
  local step=$1 what=$2
  shift 2
  "$@" >"$LOG" 2>&1 || { show_log 30; fail "$step" "$what failed" "the output above" 'exit code 0' 'mend the cause, then run the same command again'; }
}

show_log() { tail -n "$1" "$LOG" | sed 's/^/    | /' >&2; }

have() { command -v "$1" >/dev/null 2>&1; }

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

can_be_root() { [ "$(id -u)" = 0 ] || have sudo; }

# agreed QUESTION: asks on a terminal; YES=1 agrees beforehand.
agreed() {
  local answer
  [ "${YES:-}" = 1 ] && return
  [ -t 0 ] || return 2
  read -r -p "    $1 [y/N] " answer
  [[ $answer =~ ^[Yy]([Ee][Ss])?$ ]]
}

# version_ge A B: A is B or newer.
version_ge() { [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$2" ]; }

# The env file rules, over .env.example and over what the shell has exported: compose and the scripts see the same values.
load_env() {
  local file line
  unset COMPOSE_FILE COMPOSE_PROFILES COMPOSE_PROJECT_NAME
  for file in .env.example "$ENV_FILE"; do
    [ -f "$file" ] || continue
    while IFS= read -r line || [ -n "$line" ]; do
      [[ $line =~ ^([A-Za-z_][A-Za-z0-9_]*)=(.*)$ ]] || continue
      unquote "${BASH_REMATCH[2]}"
      export "${BASH_REMATCH[1]}=$VALUE"
    done <"$file"
  done
}

# VALUE: as compose reads it, that is what stands in quotes, or all before a trailing comment.
unquote() {
  case $1 in
    \'*\'*) VALUE=${1#\'}; VALUE=${VALUE%%\'*} ;;
    \"*\"*) VALUE=${1#\"}; VALUE=${VALUE%%\"*} ;;
    *) VALUE=${1%%[[:space:]]#*}; VALUE=${VALUE%"${VALUE##*[![:space:]]}"} ;;
  esac
}

# set_env KEY VALUE: in the env file and for this run.
set_env() {
  local new
  if [ "${!1-}" = "$2" ] && grep -q "^$1=" "$ENV_FILE"; then return; fi
  export "$1=$2"
  new=$(mktemp "$ENV_FILE.XXXXXX")
  KEY=$1 VALUE=$2 awk '
    index($0, ENVIRON["KEY"] "=") == 1 { if (!done) print ENVIRON["KEY"] "=" ENVIRON["VALUE"]; done = 1; next }
    { print }
    END { if (!done) print ENVIRON["KEY"] "=" ENVIRON["VALUE"] }' "$ENV_FILE" >"$new"
  cat "$new" >"$ENV_FILE"
  rm -f "$new"
}

has_profile() { [[ ",${COMPOSE_PROFILES:-}," == *",$1,"* ]]; }

add_profile() { has_profile "$1" || set_env COMPOSE_PROFILES "${COMPOSE_PROFILES:+$COMPOSE_PROFILES,}$1"; }

drop_profile() {
  local rest=",${COMPOSE_PROFILES:-},"
  rest=${rest/",$1,"/,}
  rest=${rest#,}
  set_env COMPOSE_PROFILES "${rest%,}"
}

docker_through_sudo() { DOCKER=(sudo -EH docker); }

# With the rights that docker runs with.
as_docker() { if [ "${DOCKER[0]}" = sudo ]; then sudo "$@"; else "$@"; fi; }

# job_runs PID: of a command that this shell has put in the background.
job_runs() { jobs -pr | grep -qx "$1"; }

docker() { env "${DOCKER[@]}" "$@"; }

compose() { docker compose --env-file "$ENV_FILE" "$@"; }

# ours TYPE…: ids or names of this project's containers (ps), volumes, networks.
ours() { docker "$@" --filter "label=com.docker.compose.project=$COMPOSE_PROJECT_NAME"; }
