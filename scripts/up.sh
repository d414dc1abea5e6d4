#!/usr/bin/env bash
# `make up`: from a fresh clone to a stack that has proven itself. A second run changes nothing that is in order.
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"
. scripts/engine.sh
. scripts/images.sh

PATIENCE=180         # seconds for all containers to be healthy
RESTARTS=8           # a container that was restarted as often meanwhile does not come up any more

main() {
  load_env
  checks
  [ -f "$ENV_FILE" ] || cp .env.example "$ENV_FILE"
  choose_model
  ensure_images
  secrets_and_certificates
  containers
  proof
  farewell
}

# The scripted model runs exactly as long as the env file names it.
choose_model() {
  if [[ $MODEL_BASE_URL =~ //demo-model[:/] ]]; then add_profile demo
  elif has_profile demo; then
    log Model "$MODEL_BASE_URL: the demo model is left out"
    drop_profile demo
  fi
}

# Two lines, printed by `clawtrail setup` itself. Who uses a certificate that is new is started anew.
secrets_and_certificates() {
  local before
  HOST_NAMES=$({ hostname || cat /etc/hostname; hostname -f || true; } 2>/dev/null | sort -u | xargs)
  OWNER_UID=${SUDO_UID:-$(id -u)} # reads the keys of further clients
  export HOST_NAMES OWNER_UID
  before=$(certificates_in_use)
  compose run --rm -T setup </dev/null 2>"$LOG" ||
    { show_log 20; fail Certificates 'clawtrail setup failed' 'the output above' 'exit code 0' 'mend the cause, then: make up'; }
  [ "$before" != "$(certificates_in_use)" ] || return 0
  compose rm --stop --force syslog-ng forwarder </dev/null >"$LOG" 2>&1
}

certificates_in_use() { cat "$CERTS_DIR"/server/*.crt "$CERTS_DIR"/clients/openclaw/*.crt 2>/dev/null | cksum || true; }

containers() {
  local before began=$SECONDS names
  drop_stale
  before=$(states)
  start_containers "$before"
  names=$(compose config --services | xargs)
  if [ "$before" = "$(states)" ]; then log Containers "$names" unchanged
  else log Containers "$names" "healthy in $((SECONDS - began)) s"; fi
}

# One line per container: service, state, health, restarts, exit code, start, name.
states() {
  ours ps -aq --filter label=com.docker.compose.oneoff=False | xargs -r env "${DOCKER[@]}" inspect -f \
    '{{index .Config.Labels "com.docker.compose.service"}} {{.State.Status}} {{if .State.Health}}{{.State.Health.Status}}{{else}}healthy{{end}} {{.RestartCount}} {{.State.ExitCode}} {{.State.StartedAt}} {{.Name}}' \
    2>/dev/null || true
}

# Containers of a service that the env file no longer switches on.
drop_stale() {
  local service name wanted
  wanted=" $(compose config --services | xargs) "
  states | while read -r service _ _ _ _ _ name; do
    [[ $wanted == *" $service "* ]] && continue
    log Containers "$service is switched off: removing it"
    docker rm -f "${name#/}" >/dev/null
  done
}

# Compose waits for dependencies without an end of its own; we do not.
start_containers() {
  local before=$1 up ended='' deadline=$((SECONDS + PATIENCE))
  env "${DOCKER[@]}" compose --env-file "$ENV_FILE" --progress plain up -d </dev/null >"$LOG" 2>&1 &
  up=$!
  while [ "$SECONDS" -lt "$deadline" ]; do
    if [ -z "$ended" ] && ! job_runs "$up"; then
      wait "$up" || blame
      ended=yes
    fi
    [ -z "$ended" ] || ! all_healthy || return 0
    ! keeps_crashing "$before" || break
    sleep 1
  done
  as_docker kill "$up" 2>/dev/null || true
  blame
}

keeps_crashing() {
  { echo "$1"; echo now; states; } | awk -v most="$RESTARTS" '
    $1 == "now" {now = 1; next}
    !now {was[$7] = $4}
    now && $4 - was[$7] >= most {found = 1}
    END {exit !found}'
}

all_healthy() { ! states | grep -qv ' running healthy '; }

# Names the container that keeps the others waiting, and shows its last words.
blame() {
  local service state health restarts code name
  read -r service state health restarts code _ name < <(worst) || true
  if [ -z "${service:-}" ]; then
    show_log 20
    fail Containers 'docker compose could not start them' 'the output above' 'all containers started' "mend the cause, then: make up"
  fi
  docker logs --tail 20 "${name#/}" 2>&1 | sed 's/^/    | /' >&2
  fail Containers "$service does not come up; its last log lines stand above" \
    "$state, $health, restarted $restarts times, exit code $code$(last_check "${name#/}")$(compose_error)" \
    "running and healthy within $PATIENCE s" "make logs S=$service; mend the cause, then: make up"
}

# One that crashed before one that is unhealthy before one that is still starting; one only created is a victim.
worst() {
  states | awk '$2 != "created" && !($2 == "running" && $3 == "healthy") {
    print ($2 != "running" || $4 > 0 ? 1 : $3 == "unhealthy" ? 2 : 3), $0 }' | sort -s -n -k1,1 | head -n 1 | cut -d' ' -f2-
}

last_check() {
  docker inspect -f '{{if .State.Health}}{{range .State.Health.Log}}{{println .Output}}{{end}}{{end}}' "$1" |
    grep . | tail -n 1 | cut -c1-300 | sed 's/^/; health check says: /' || true
}

compose_error() { grep -iE 'error|dependency|failed' "$LOG" | tail -n 1 | sed 's/^ */; compose says: /' || true; }

# One line, printed by `clawtrail prove` itself.
proof() {
  compose run --rm -T operator clawtrail prove </dev/null 2>"$LOG" ||
    { show_log 20; fail Proof 'the event was not found' 'the output above' 'one event sent over mutual TLS, found in Loki' 'make logs S=syslog-ng; make logs S=loki'; }
}

farewell() {
  local host=localhost
  [ "$BIND" = 127.0.0.1 ] || host=$(hostname)
  echo
  ! has_profile grafana || echo "Grafana    http://$host:$GRAFANA_PORT   user admin, password: make password"
  echo "Receiver   $host:$RECEIVER_PORT (RFC 5425 frames), $host:$LINES_PORT (lines of stock handlers), TLS with a client certificate"
  echo "Next       make demo   make query Q='{job=\"audit\"}' SINCE=1h   make help"
}

main
