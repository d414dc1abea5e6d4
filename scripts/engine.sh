# shellcheck shell=bash
# The checks of `make up`, and a Docker engine where there is none. Sourced after lib.sh.

ENGINE_MIN=20.10 COMPOSE_MIN=2.20 MEMORY_MIN_MB=2800 DISK_MIN_GB=8
INSTALL_DOC=https://docs.docker.com/engine/install

# Everything that can be judged beforehand is judged before anything is changed.
checks() {
  [ "$(engine_state)" != denied ] || use_sudo
  check_tools
  check_memory
  check_disk
  check_ports
  ensure_engine
  log Checks "$(checks_summary)" ${PORTS_OURS:+unchanged}
}

checks_summary() {
  local ports="ports ${PORTS[*]} free"
  [ -z "$PORTS_OURS" ] || ports="ports ${PORTS[*]} ours"
  printf 'docker %s, compose %s, %s CPU, %s GB, disk %s GB, %s' "$(short_version "$(engine_version)")" \
    "$(short_version "$(compose_version)")" "$(docker info -f '{{.NCPU}}')" "$(((MEMORY_MB + 512) / 1024))" "$DISK_GB" "$ports"
}

short_version() { grep -oE '[0-9]+\.[0-9]+' <<<"$1" | head -n 1; }

engine_version() { docker version -f '{{.Server.Version}}'; }

compose_version() { docker compose version --short; }

check_tools() {
  local tool
  for tool in awk sed grep df sort mktemp; do
    have "$tool" || fail Checks "$tool is missing" "no $tool in PATH" "the usual POSIX tools" "install $tool"
  done
}

check_memory() {
  if [ "$(engine_state)" = ready ]; then
    MEMORY_MB=$(($(docker info -f '{{.MemTotal}}') / 1048576))
  else
    MEMORY_MB=$(awk '/^MemTotal/ {print int($2 / 1024)}' /proc/meminfo 2>/dev/null || echo "$MEMORY_MIN_MB")
  fi
  [ "$MEMORY_MB" -ge "$MEMORY_MIN_MB" ] ||
    fail Checks 'too little memory' "$MEMORY_MB MB" "at least 3 GB" 'give this machine (or Docker) more memory'
}

# Free space where Docker stores; a stack that was built here needs only room for its data.
check_disk() {
  local dir=/var/lib/docker need=$DISK_MIN_GB
  if [ "$(engine_state)" = ready ]; then
    dir=$(docker info -f '{{.DockerRootDir}}')
    ! docker image inspect "clawtrail/openclaw:$OPENCLAW_VERSION-$CLAWTRAIL_VERSION" >/dev/null 2>&1 || need=2
  fi
  until [ -d "$dir" ]; do dir=$(dirname "$dir"); done
  DISK_GB=$(df -Pk "$dir" | awk 'NR == 2 {print int($4 / 1048576)}')
  [ "$DISK_GB" -ge "$need" ] ||
    fail Checks "too little disk where Docker stores ($dir)" "$DISK_GB GB free" "at least $need GB" 'free some space there'
}

check_ports() {
  local key port
  PORTS=() PORTS_OURS=
  for key in RECEIVER_PORT LINES_PORT GRAFANA_PORT; do
    [ "$key" != GRAFANA_PORT ] || has_profile grafana || continue
    port=${!key}
    PORTS+=("$port")
    if port_is_ours "$port"; then PORTS_OURS=yes
    elif port_is_taken "$port"; then
      fail Checks "port $port is taken" "$(port_holder "$port")" "port $port free on $BIND" "stop it, or set another $key in $ENV_FILE"
    fi
  done
}

port_is_ours() { [ "$(engine_state)" = ready ] && [ -n "$(ours ps -q --filter "publish=$1")" ]; }

# A listener (state 0A) on the port: on every address, or on the one that is going to be bound.
port_is_taken() {
  local hex any one
  hex=$(printf '%04X' "$1")
  any='0{8}|0{32}'
  one=$(awk -F. '$0 != "0.0.0.0" && NF == 4 {printf "%02X%02X%02X%02X", $4, $3, $2, $1}' <<<"$BIND")
  grep -qsE "^ *[0-9]+: ($any|${one:-[0-9A-F]+}):$hex [0-9A-F]+:[0-9A-F]{4} 0A " /proc/net/tcp /proc/net/tcp6
}

port_holder() {
  local name=
  [ "$(engine_state)" != ready ] || name=$(docker ps --filter "publish=$1" --format 'container {{.Names}}')
  [ -n "$name" ] || name=$(ss -ltnpH "sport = :$1" 2>/dev/null | grep -oE '"[^"]+",pid=[0-9]+' | head -n 1 || true)
  printf '%s' "${name:-another program listens there}"
}

# ready, denied (running, but not for this user), stopped, missing
engine_state() {
  local out
  if out=$(docker version -f '{{.Server.Version}}' 2>&1); then echo ready; return; fi
  case $out in
    *'permission denied'*) echo denied ;;
    *) if PATH=$PATH:/usr/sbin:/sbin have dockerd; then echo stopped; else echo missing; fi ;;
  esac
}

ensure_engine() {
  local state
  state=$(engine_state)
  if [ "$state" != ready ] && [ "$state" != denied ]; then
    [ "$(engine_address)" = default ] || fail Checks 'the Docker engine does not answer' "$(engine_address)" 'a reachable engine' 'start it, or go back to the default: unset DOCKER_HOST; docker context use default'
    [ "$(uname -s)" = Linux ] || fail Checks 'no Docker engine' "$(uname -s), no engine reachable" "engine $ENGINE_MIN or newer, running" "start Docker Desktop, or see $INSTALL_DOC"
    [ "$state" = stopped ] || install_engine
    start_engine
    state=$(engine_state)
  fi
  [ "$state" != denied ] || use_sudo
  ensure_plugins
  version_ge "$(engine_version)" "$ENGINE_MIN" ||
    fail Checks 'the Docker engine is too old' "$(engine_version)" "$ENGINE_MIN or newer" "upgrade it: $INSTALL_DOC"
}

engine_address() {
  if [ -n "${DOCKER_HOST:-}" ]; then echo "DOCKER_HOST=$DOCKER_HOST"; else docker context show 2>/dev/null || echo default; fi
}

# The engine runs, but its socket is closed to this user.
use_sudo() {
  docker_through_sudo
  if ! have sudo || ! sudo -v 2>/dev/null || ! docker version >/dev/null 2>&1; then
    fail Checks 'no right to use Docker' "$(id -un) is refused by the engine's socket" 'root, sudo, or a member of the group docker' "sudo usermod -aG docker $(id -un), then log in again"
  fi
}

distribution() { (. /etc/os-release 2>/dev/null && echo "${ID:-} ${VERSION_ID:-}") || true; }

# PACKAGES for this distribution, from its own archive.
choose_packages() {
  PACKAGES=() FROM_TRIXIE=()
  case $(distribution) in
    'debian 12') PACKAGES=(docker.io iptables ca-certificates) FROM_TRIXIE=(docker-compose/trixie docker-buildx/trixie) ;;
    'debian 1'[3-9]*|'debian ') PACKAGES=(docker.io docker-cli docker-compose docker-buildx iptables ca-certificates) ;;
    'ubuntu '*) PACKAGES=(docker.io docker-compose-v2 docker-buildx iptables ca-certificates) ;;
    *) return 1 ;;
  esac
  can_be_root
}

install_engine() {
  choose_packages ||
    fail Checks 'no Docker engine' "$(distribution), user $(id -un)" "engine $ENGINE_MIN or newer with compose $COMPOSE_MIN or newer" "install it: $INSTALL_DOC (done for you on Debian 12, 13 and Ubuntu, as root or with sudo)"
  log Checks "no Docker engine: installing ${PACKAGES[*]} ${FROM_TRIXIE[*]-}"
  may_install
  apt_install "${PACKAGES[@]}"
  add_from_trixie
}

# Asked on a terminal; without one it is done.
may_install() {
  local answer=0
  agreed 'Install these packages?' || answer=$?
  [ "$answer" != 1 ] || fail Checks 'nothing was installed' 'you said no' 'a Docker engine' "install it yourself: $INSTALL_DOC"
}

apt_install() {
  quietly Checks 'apt-get update' as_root apt-get update
  quietly Checks "installing $*" as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"
}

# Debian 12 has no compose v2; trixie's runs with its engine. Pinned low, so that nothing else comes from trixie.
add_from_trixie() {
  local archive
  [ "${#FROM_TRIXIE[@]}" -gt 0 ] || return 0
  if ! apt-cache madison docker-buildx | grep -q trixie; then
    archive=$(debian_archive)
    as_root tee /etc/apt/sources.list.d/clawtrail-trixie.sources >/dev/null <<END
# For docker-compose and docker-buildx, which Debian 12 lacks. Added by clawtrail.
Types: deb
URIs: $archive
Suites: trixie
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
END
    printf 'Package: *\nPin: release n=trixie\nPin-Priority: 100\n' | as_root tee /etc/apt/preferences.d/clawtrail-trixie >/dev/null
  fi
  apt_install "${FROM_TRIXIE[@]}"
}

# Where this host's own Debian packages come from; empty on other systems.
debian_archive() {
  { grep -rhE '^(deb|URIs:) ' /etc/apt/sources.list /etc/apt/sources.list.d/ 2>/dev/null || true; } |
    { grep -oE '[a-z+]+://[^ ]+/debian/?( |$)' || true; } | head -n 1 | tr -d ' '
}

start_engine() {
  local tries
  can_be_root || fail Checks 'the Docker engine is not running' "user $(id -un), no sudo" 'a running engine' 'start it as root: service docker start'
  log Checks 'starting the Docker engine'
  if [ -d /run/systemd/system ]; then
    quietly Checks 'systemctl enable --now docker' as_root systemctl enable --now docker
  elif [ -x /etc/init.d/docker ] && [ "$(cat /proc/1/comm)" = init ]; then
    quietly Checks 'service docker start' as_root service docker start
  else
    as_root env "PATH=$PATH:/usr/sbin:/sbin" sh -c 'setsid dockerd >/var/log/dockerd.log 2>&1 </dev/null &'
  fi
  for tries in {1..60}; do
    case $(engine_state) in ready|denied) return ;; esac
    # A client in PATH that is too new for this engine gives way to the engine's own.
    if [ "$tries" = 20 ] && /usr/bin/docker version >/dev/null 2>&1; then PATH=/usr/bin:$PATH; return; fi
    sleep 1
  done
  as_root tail -n 20 /var/log/dockerd.log 2>/dev/null | sed 's/^/    | /' >&2 || true
  fail Checks 'the Docker engine did not start' 'no answer within 60 s' 'a running engine' 'see /var/log/dockerd.log or journalctl -u docker'
}

# compose and buildx: from the distribution where its own engine is installed.
ensure_plugins() {
  local found
  plugins_ok && return
  found="compose $(compose_version 2>/dev/null || echo none), buildx $(docker buildx version 2>/dev/null | cut -d' ' -f2 | grep . || echo none)"
  if have dpkg-query && dpkg-query -W -f '${db:Status-Status}' docker.io 2>/dev/null | grep -qx installed && choose_packages; then
    log Checks "$found: installing ${PACKAGES[*]} ${FROM_TRIXIE[*]-}"
    may_install
    apt_install "${PACKAGES[@]}"
    add_from_trixie
  fi
  plugins_ok ||
    fail Checks 'a Docker plugin is missing or too old' "$found" "compose $COMPOSE_MIN or newer, and buildx" "install docker-compose-plugin and docker-buildx-plugin: $INSTALL_DOC"
}

plugins_ok() {
  local version
  version=$(compose_version 2>/dev/null) && version_ge "${version#v}" "$COMPOSE_MIN" && docker buildx version >/dev/null 2>&1
}
