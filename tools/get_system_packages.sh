#!/bin/sh
# Installs by apt, where it may, what some tests compare with; where it may not, those tests skip and say so.
set -u
missing=""
[ -x /usr/sbin/sshd ] || missing="$missing openssh-server"
command -v ssh >/dev/null 2>&1 || missing="$missing openssh-client"
[ -x /usr/lib/openssh/sftp-server ] || missing="$missing openssh-sftp-server"
command -v unshare >/dev/null 2>&1 || missing="$missing util-linux"
command -v chromium >/dev/null 2>&1 || missing="$missing chromium"
command -v busybox >/dev/null 2>&1 || missing="$missing busybox-static"
ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || missing="$missing postgresql"
command -v redis-server >/dev/null 2>&1 || missing="$missing redis-server"
[ -n "$missing" ] || exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq >/dev/null
  left=""
  for package in $missing; do # one at a time: one that cannot be had keeps no other away
    apt-get install -y -qq --no-install-recommends "$package" >/dev/null || left="$left $package"
  done
  missing="$left"
  [ -n "$missing" ] || exit 0
fi
echo "NOT INSTALLED:$missing. The tests that need them will be skipped, and say so." >&2
