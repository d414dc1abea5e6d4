#!/usr/bin/env bash
# What one does with a stack that is there: stack.sh down|clean|status|logs|password|query|timeline|alerts|break-glass|close-glass
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"
. scripts/engine.sh

down() {
  compose "${ALL[@]}" down --remove-orphans >"$LOG" 2>&1 || { show_log 20; exit 1; }
  log Down 'containers and networks removed; data, certificates and secrets stay. Again: make up'
}

# Names what it will delete, asks, and deletes that and nothing else.
clean() {
  local containers volumes networks folders images answer=0
  containers=$(ours ps -a --format '{{.Names}}' | xargs)
  volumes=$(ours volume ls -q | xargs)
  networks=$(ours network ls --format '{{.Name}}' | xargs)
  images=$({
    docker image ls --format '{{.Repository}}:{{.Tag}}' --filter 'reference=clawtrail/*'
    docker image ls -q --filter dangling=true --filter label=org.opencontainers.image.vendor=clawtrail # what newer builds replaced
  } | xargs)
  folders=$(generated | xargs)
  printf '%-12s%s\n' containers "${containers:-none}" volumes "${volumes:-none}" networks "${networks:-none}" \
    images "${images:-none}" generated "${folders:-none}" stays "$ENV_FILE, and everything that is not named here"
  agreed 'Delete all of this, with every recorded event?' || answer=$?
  [ "$answer" != 2 ] || fail Clean 'nothing was deleted' 'no terminal to ask on' 'your consent' 'YES=1 make clean'
  [ "$answer" = 0 ] || fail Clean 'nothing was deleted' 'you said no' 'your consent' 'make down keeps the data'
  compose "${ALL[@]}" down --volumes --remove-orphans >"$LOG" 2>&1 || { show_log 20; exit 1; }
  delete_generated
  delete_images "$images"
  log Clean 'deleted'
}

# What `setup` has made in CERTS_DIR and SECRETS_DIR, by name.
generated() {
  local path
  for path in "$CERTS_DIR"/{ca,server,clients,crl} "$SECRETS_DIR"/{grafana-password,grafana-secret-key,gateway-token,agent-token,nano-agent-token,nano-agent-token-proxy,model-key,nano-model-key,fingerprint-key}; do
    [ ! -e "$path" ] || echo "'$path'"
  done
}

# Other users own these files: in a container as root where an image is left, else on the host.
delete_generated() {
  local image certs=/certs secrets=/secrets run=(docker run --rm --network none --user 0:0 --entrypoint sh)
  [ -n "$(generated)" ] || return 0
  image=$(docker image ls -q --filter 'reference=clawtrail/agent' | head -n 1)
  [ -n "$image" ] || image=$(docker image ls -q --filter 'reference=clawtrail/debian' | head -n 1)
  if [ -n "$image" ]; then
    run+=(-v "$(realpath "$CERTS_DIR"):/certs" -v "$(realpath "$SECRETS_DIR"):/secrets" "$image")
  else run=(as_root sh) certs=$CERTS_DIR secrets=$SECRETS_DIR; fi
  # shellcheck disable=SC2016
  "${run[@]}" -c 'cd "$1" && rm -rf ca server clients crl; cd "$2" && rm -f grafana-password grafana-secret-key gateway-token agent-token nano-agent-token nano-agent-token-proxy model-key nano-model-key fingerprint-key' sh "$certs" "$secrets"
}

# One that another project still uses is kept.
delete_images() {
  local image
  for image in $1; do
    docker image rm "$image" >/dev/null 2>"$LOG" || log Clean "$image is kept: $(tail -n 1 "$LOG")"
  done
}

status() {
  local rows memory
  rows=$(ours ps -a --format '{{.ID}}\t{{.Label "com.docker.compose.service"}}\t{{.State}}\t{{.Status}}')
  if [ -z "$rows" ]; then echo 'nothing runs; start it: make up'; return; fi
  memory=$(docker stats --no-stream --format '{{.ID}}\t{{.MemUsage}}')
  printf '%-14s %-10s %-32s %s\n' SERVICE STATE HEALTH MEMORY
  sort -t $'\t' -k2 <<<"$rows" | while IFS=$'\t' read -r id service state health; do
    printf '%-14s %-10s %-32s %s\n' "$service" "$state" "$health" "$(awk -F'\t' -v id="$id" '$1 == id {print $2}' <<<"$memory")"
  done
}

# Follows on a terminal; elsewhere the last lines, without the terminal codes that compose writes all the same.
logs() {
  if [ -t 1 ]; then compose "${ALL[@]}" logs --tail "${TAIL:-200}" --follow ${S:+"$S"}
  else compose "${ALL[@]}" logs --no-color --tail "${TAIL:-200}" ${S:+"$S"} | sed $'s/^\e\\[2K//'; fi
}

password() {
  [ -d "$CERTS_DIR/server" ] || fail Password 'there is none yet' "no certificates in $CERTS_DIR" 'a stack that was set up' 'make up'
  compose run --rm -T setup clawtrail password </dev/null || exit
}

# Exit code 2: the query is invalid, Loki says why.
query() {
  [ -n "${Q:-}" ] || fail Query 'no query' "Q is empty" "a LogQL query" "make query Q='{job=\"audit\"}' SINCE=1h"
  [ -n "$(ours ps -q --filter label=com.docker.compose.service=loki)" ] || fail Query 'the stack is not up' 'no loki container runs' 'a running stack' 'make up'
  compose run --rm -T operator clawtrail query --since "${SINCE:-1h}" -- "$Q" </dev/null || exit
}

# Whoever may give the engine orders may do this; the forwarder takes it from a process that the engine started, and from nobody else.
break-glass() {
  [ -n "${FOR:-}" ] && [ -n "${REASON:-}" ] || fail Break-glass 'nothing was opened' "FOR=${FOR:-} REASON=${REASON:-}" 'a time and a reason' \
    "make break-glass FOR=15m REASON='why actions must run unrecorded'"
  compose exec -T forwarder clawtrail break-glass --for "$FOR" --reason "$REASON" --by "${SUDO_USER:-${USER:-$(id -un)}}" </dev/null || exit
}

close-glass() {
  compose exec -T forwarder clawtrail break-glass --close --by "${SUDO_USER:-${USER:-$(id -un)}}" </dev/null || exit
}

# Exit code 1: nothing watches.
alerts() {
  [ -n "$(ours ps -q --filter label=com.docker.compose.service=loki)" ] || fail Alerts 'the stack is not up' 'no loki container runs' 'a running stack' 'make up'
  compose run --rm -T operator clawtrail alerts </dev/null || exit
}

# Exit code 1: the store knows no such session.
timeline() {
  [ -n "${SESSION:-}" ] || fail Timeline 'no session' "SESSION is empty" "a session's name" "make timeline SESSION=agent:main:demo"
  [ -n "$(ours ps -q --filter label=com.docker.compose.service=loki)" ] || fail Timeline 'the stack is not up' 'no loki container runs' 'a running stack' 'make up'
  compose run --rm -T operator clawtrail timeline ${JSON:+--json} --since "${SINCE:-24h}" -- "$SESSION" </dev/null || exit
}

case ${1:-} in down|clean|status|logs|password|query|timeline|alerts|break-glass|close-glass) ;; *) echo "usage: $0 down|clean|status|logs|password|query|timeline|alerts|break-glass|close-glass" >&2; exit 2 ;; esac
load_env
[ "$(engine_state)" != denied ] || use_sudo
[ "$(engine_state)" = ready ] || fail "$1" 'the Docker engine does not answer' "$(engine_state)" 'a running engine' 'make up'
[ -f "$ENV_FILE" ] || ENV_FILE=.env.example
ALL=(--profile demo --profile grafana --profile nano --profile setup --profile tools)
"$1"
