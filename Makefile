# The commands of the project; each is one script in scripts/. `make help` lists them.
.DEFAULT_GOAL := help

# What the caller typed reaches the scripts through the environment, untouched by make's own `$`.
override Q := $(value Q)
override ARGS := $(value ARGS)
override REASON := $(value REASON)
override SESSION := $(value SESSION)
export Q ARGS SESSION JSON FOR REASON SINCE S TAIL YES ENV_FILE REGISTRY

.PHONY: help up demo query timeline alerts status logs password break-glass close-glass down clean test bench

help: ## this list
	@awk -F ' *## *' '/^[a-z-]+:.*## / {split($$1, target, ":"); printf "make %-12s %s\n", target[1], $$2}' $(firstword $(MAKEFILE_LIST))

up: ## start everything, and prove it with one event (again: changes nothing)
	@scripts/up.sh

demo: ## give the agent a scripted task, then show the trail it left
	@scripts/demo.sh

query: ## events as JSON lines: make query Q='{job="audit"}' SINCE=1h
	@scripts/stack.sh query

timeline: ## a session across agents, causes before effects: make timeline SESSION=agent:main:demo SINCE=24h JSON=1
	@scripts/stack.sh timeline

alerts: ## what needs a person now, by Loki's rules (loki/rules/)
	@scripts/stack.sh alerts

status: ## service, state, health and memory of each container
	@scripts/stack.sh status

logs: ## what the containers say: make logs S=syslog-ng
	@scripts/stack.sh logs

password: ## Grafana's password (user admin)
	@scripts/stack.sh password

break-glass: ## let actions run unrecorded for a while: make break-glass FOR=15m REASON='…'; it alarms
	@scripts/stack.sh break-glass

close-glass: ## end that before its time
	@scripts/stack.sh close-glass

down: ## stop and remove the containers; data stays
	@scripts/stack.sh down

clean: ## delete everything of this project, after naming it and asking (YES=1: without asking)
	@scripts/stack.sh clean

test: ## all tests, on stacks of their own: make test ARGS='-k spoof'
	@scripts/test.sh

bench: ## the handler beside its peers, in figures: make bench ARGS='-k emit'
	@scripts/bench.sh
