#!/usr/bin/env bash
# `make demo`: a scripted task for the real OpenClaw, then the trail that it left, read back from Loki.
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"
. scripts/engine.sh

load_env
[ "$(engine_state)" != denied ] || use_sudo
[ "$(engine_state)" = ready ] || fail Demo 'the Docker engine does not answer' "$(engine_state)" 'a running engine' 'make up'
[ -n "$(ours ps -q --filter label=com.docker.compose.service=openclaw)" ] ||
  fail Demo 'the stack is not up' 'no openclaw container runs' 'a running stack' 'make up'
has_profile demo ||
  fail Demo 'the task is written for the demo model' "MODEL_BASE_URL=$MODEL_BASE_URL" 'the demo model' 'talk to your agent, then: make query'

session=demo-$(date -u +%H%M%S)
log Demo "task for the session agent:main:$session" sent
compose exec -T openclaw node /opt/clawtrail/turn.mjs --session "$session" <agent/openclaw/demo.txt >"$LOG" 2>&1 ||
  { show_log 20; fail Demo 'the gateway did not answer' 'the output above' 'an answer' 'make logs S=openclaw'; }
log Demo 'the trail it left in Loki (time is UTC):'
compose run --rm -T operator clawtrail trail "agent:main:$session" --until subagent.end --wait 30 </dev/null
