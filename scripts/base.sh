#!/usr/bin/env bash
# base.sh FOLDER [ARCHIVE]: a Debian trixie root for the base image, where no container registry has one.
# Run as root by images.sh. Without ARCHIVE debootstrap uses its own default.
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin LC_ALL=C.UTF-8

main() {
  local dir=$1 archive=${2:-} script=/usr/share/debootstrap/scripts/trixie
  # An older debootstrap does not know the name; the rules are sid's.
  [ -e "$script" ] || script=/usr/share/debootstrap/scripts/sid
  debootstrap --variant=minbase --keyring=/usr/share/keyrings/debian-archive-keyring.gpg trixie "$dir" ${archive:+"$archive"} "$script"
  archive=$(awk '$1 == "deb" {print $2; exit}' "$dir/etc/apt/sources.list")
  leave_out_documentation "$dir"
  security_updates "$dir" "${archive%/}"
  slim "$dir"
  chmod 0755 "$dir"
}

# No service is started inside a build, no manual is unpacked in what is installed later.
leave_out_documentation() {
  printf '#!/bin/sh\nexit 101\n' >"$1/usr/sbin/policy-rc.d"
  chmod 0755 "$1/usr/sbin/policy-rc.d"
  printf 'path-exclude=/usr/share/%s/*\n' man locale info >"$1/etc/dpkg/dpkg.cfg.d/slim"
  printf 'path-exclude=/usr/share/doc/*\npath-include=/usr/share/doc/*/copyright\n' >>"$1/etc/dpkg/dpkg.cfg.d/slim"
}

# The security archive stands beside the main one on most mirrors; where it does not, the base does without.
security_updates() {
  local list=$1/etc/apt/sources.list.d/security.list
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $2-security trixie-security main" >"$list"
  if chroot "$1" apt-get update -o APT::Update::Error-Mode=any; then
    chroot "$1" env DEBIAN_FRONTEND=noninteractive apt-get -y upgrade
  else
    rm -f "$list"
  fi
}

slim() {
  rm -rf "$1"/var/cache/apt/*.bin "$1"/var/cache/apt/archives/*.deb "$1"/var/lib/apt/lists/* \
    "$1"/var/log/*.log "$1"/var/log/apt "$1"/usr/share/man/* "$1"/usr/share/info/* "$1"/usr/share/locale/* \
    "$1"/etc/resolv.conf "$1"/etc/hostname
  find "$1/usr/share/doc" -type f ! -name copyright -delete
  find "$1/usr/share/doc" -type l -delete
  find "$1/usr/share/doc" -type d -empty -delete
}

main "$@"
