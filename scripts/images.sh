# shellcheck shell=bash
# Every image of the stack: taken if present, pulled if a registry answers, else built here. Sourced after lib.sh.
# The names that were chosen are written into the env file, so plain `docker compose` uses the same ones.

REGISTRY=${REGISTRY:-}       # "no": build, whatever a registry has
REGISTRY_DOWN=               # set once none has answered
REGISTRY_PATIENCE=8          # seconds for the first answer
NEW=                         # what this run has made, as ",loki built,openclaw built"

ensure_images() {
  local loki_version
  loki_version=$(sed -n 's#.*github.com/grafana/loki/v3 v\([0-9.]*\).*#\1#p' loki/go.mod | head -n 1)
  use_ca_bundle
  image DEBIAN_IMAGE debian clawtrail/debian:trixie build_base
  build_own
  image SYSLOG_NG_IMAGE syslog-ng clawtrail/syslog-ng:4.12 build_syslog_ng
  image LOKI_IMAGE loki "clawtrail/loki:$loki_version" build_loki
  grafana_image
  report_images
}

# image KEY NAME OWN BUILD: the env file's image, or our own in its place.
image() {
  local key=$1 name=$2 own=$3 build=$4
  if may_use "${!key}" && { present "${!key}" || pulled "$name" "${!key}"; }; then return; fi
  set_env "$key" "$own"
  present "$own" || { say_no_registry; "$build" "$own"; NEW+=",$name built"; }
}

may_use() { [ "$REGISTRY" != no ] || [[ $1 == clawtrail/* ]]; }

present() { docker image inspect "$1" >/dev/null 2>&1; }

# pulled NAME IMAGE: a pull that got its first answer in time runs to its end.
pulled() {
  local out pid waited=0
  if [ "$REGISTRY" = no ] || [ -n "$REGISTRY_DOWN" ] || [[ $2 == clawtrail/* ]]; then return 1; fi
  out=$(mktemp)
  env "${DOCKER[@]}" pull "$2" >"$out" 2>&1 &
  pid=$!
  while job_runs "$pid" && ! grep -q 'Pulling from' "$out"; do
    if [ "$waited" -ge $((REGISTRY_PATIENCE * 4)) ]; then as_docker kill "$pid" 2>/dev/null || true; break; fi
    sleep 0.25
    waited=$((waited + 1))
  done
  if wait "$pid"; then rm -f "$out"; NEW+=",$1 pulled"; return; fi
  cat "$out" >>"$LOG"
  # Whoever answers "not found" or "too many requests" is a registry; else nobody is asked again.
  grep -qiE 'Pulling from|manifest|not found|denied|unauthorized|toomanyrequests' "$out" || REGISTRY_DOWN=yes
  rm -f "$out"
  return 1
}

say_no_registry() {
  [ -z "${SAID:-}" ] || return 0
  SAID=yes
  log Images 'not to be had from a container registry: building here; Loki alone takes 5 to 10 minutes'
}

# Builds trust the CAs that this host trusts.
use_ca_bundle() {
  local file
  for file in "$CA_BUNDLE" /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/ca-bundle.pem /etc/ssl/cert.pem; do
    if [ -s "$file" ]; then set_env CA_BUNDLE "$file"; return; fi
  done
  fail Images 'no CA certificates for the builds' "$CA_BUNDLE does not exist" "the host's CA bundle" "install ca-certificates, or set CA_BUNDLE in $ENV_FILE"
}

build() {
  local image=$1 folder=$2
  shift 2
  quietly Images "building $image" docker buildx build --load --progress=plain --build-arg "DEBIAN_IMAGE=$DEBIAN_IMAGE" --secret "id=ca,src=$CA_BUNDLE" -t "$image" "$@" "$folder"
}

build_loki() { build "$1" loki --build-arg "LOKI_VERSION=${1##*:}"; }

build_syslog_ng() { build "$1" syslog-ng; }

# Debian trixie, straight from Debian's archive (this host's own mirror on Debian).
build_base() {
  need_debootstrap
  BASE_DIR=$(as_root mktemp -d /var/tmp/clawtrail-base.XXXXXX)
  quietly Images "building $1" as_root bash scripts/base.sh "$BASE_DIR" "$(debian_archive)"
  as_root tar -C "$BASE_DIR" --exclude='./dev/*' --exclude='./proc/*' --exclude='./sys/*' -c . |
    quietly Images "importing $1" docker import -c 'CMD ["bash"]' - "$1"
  as_root rm -rf --one-file-system "$BASE_DIR"
  BASE_DIR=
}

need_debootstrap() {
  if PATH=$PATH:/usr/sbin have debootstrap && can_be_root; then return; fi
  if ! have apt-get || ! can_be_root; then
    fail Images 'no base image' 'no container registry answers, and no debootstrap here' 'either of them' "let this machine reach a container registry, or install debootstrap"
  fi
  quietly Images 'apt-get update' as_root apt-get update
  quietly Images 'installing debootstrap' as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends debootstrap debian-archive-keyring
}

# The two images of agent/Dockerfile: built every time, from the cache when nothing changed.
build_own() {
  local before after
  before=$(own_ids)
  # Not through compose: it writes the project's name into the image, so that each project would make it anew.
  build "clawtrail/agent:$CLAWTRAIL_VERSION" agent --target clawtrail
  build "clawtrail/openclaw:$OPENCLAW_VERSION-$CLAWTRAIL_VERSION" agent --target openclaw --build-arg "NODE_VERSION=$NODE_VERSION" --build-arg "OPENCLAW_VERSION=$OPENCLAW_VERSION"
  after=$(own_ids)
  [ "$before" = "$after" ] || NEW+=',clawtrail built,openclaw built'
}

own_ids() { docker image inspect -f '{{.Id}}' "clawtrail/agent:$CLAWTRAIL_VERSION" "clawtrail/openclaw:$OPENCLAW_VERSION-$CLAWTRAIL_VERSION" 2>/dev/null || true; }

# Grafana exists only as its official image. GRAFANA_MISSING remembers that we left it out, not the user.
grafana_image() {
  if has_profile grafana; then
    present "$GRAFANA_IMAGE" || pulled grafana "$GRAFANA_IMAGE" || leave_grafana_out
  elif [ "${GRAFANA_MISSING:-}" = yes ] && present "$GRAFANA_IMAGE"; then
    set_env GRAFANA_MISSING no
    add_profile grafana
  fi
}

leave_grafana_out() {
  log Images "grafana is left out: $GRAFANA_IMAGE is not to be had; once it is here, make up adds it"
  set_env GRAFANA_MISSING yes
  drop_profile grafana
}

report_images() {
  local line
  line="$(word clawtrail "$CLAWTRAIL_VERSION") · $(word openclaw "$OPENCLAW_VERSION") · $(word syslog-ng "$SYSLOG_NG_IMAGE") · $(word loki "$LOKI_IMAGE")"
  ! has_profile grafana || line+=" · $(word grafana "$GRAFANA_IMAGE")"
  if [ -z "$NEW" ]; then log Images "$line" unchanged; else log Images "$line"; fi
}

# word NAME IMAGE: "NAME built" or "NAME pulled" if this run did that, else its version.
word() {
  local how
  how=$(grep -oE ",$1 [a-z]+" <<<"$NEW" || true)
  if [ -n "$how" ]; then printf '%s' "${how#,}"; else printf '%s %s' "$1" "${2##*:}"; fi
}
