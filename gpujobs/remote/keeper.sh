# Holds a rented container alive for the attempts in $base/*, or for the one in $base itself, and lets it end when nobody
# needs it any more: the dead-man that works with no controller. $base, $boot_grace_s, $linger_s and $hard_limit_s are set in front of this text.
#
# It ends (exit code 0) when $base/end appears; when every attempt that started has ended and is pulled, or nothing has
# stirred for $linger_s since; when none has started for $boot_grace_s since the last stir; or at $hard_limit_s after boot.
# A stir is the end of an attempt or a new heartbeat. What an earlier use of the container left under $base is set aside.

read_uptime() {
  if [ -r /proc/uptime ]; then
    read -r now_s _ </proc/uptime
    now_s=${now_s%%.*}
  else
    now_s=$(date +%s)
  fi
}

look() { # sets started, ended, pulled (counts) and news (text that changes when something stirs)
  started=0 ended=0 pulled=0 news=
  for attempt in "$base" "$base"/*; do
    [ -f "$attempt/runner.sh" ] || continue
    [ -f "$attempt/heartbeat" ] && read -r beat <"$attempt/heartbeat" && news="$news $attempt $beat"
    [ -d "$attempt/started" ] && [ ! -f "$attempt/stale" ] || continue
    started=$((started + 1))
    if [ -f "$attempt/exit.json" ] || lost "$attempt"; then
      ended=$((ended + 1))
      [ -f "$attempt/pulled" ] && pulled=$((pulled + 1))
    fi
  done
  news="$news $started $ended"
}

lost() { # ATTEMPT: its supervisor is gone
  [ -r "$1/pid" ] || return 1
  read -r supervisor _ <"$1/pid" && ! kill -0 "$supervisor" 2>/dev/null
}

needed() {
  [ ! -f "$base/end" ] && [ $((now_s - boot_s)) -lt "$hard_limit_s" ] || return 1
  if [ "$started" -eq 0 ]; then
    [ $((now_s - stirred_s)) -lt "$boot_grace_s" ]
  elif [ "$ended" -eq "$started" ]; then
    [ "$pulled" -lt "$started" ] && [ $((now_s - stirred_s)) -lt "$linger_s" ]
  fi
}

keep() {
  umask 077
  mkdir -p "$base"
  rm -f "$base/end"
  for attempt in "$base" "$base"/*; do
    [ ! -d "$attempt/started" ] || : >"$attempt/stale"
  done
  read_uptime
  boot_s=$now_s
  stirred_s=$now_s
  seen=
  look
  while needed; do
    sleep 2
    read_uptime
    look
    [ "$news" = "$seen" ] || stirred_s=$now_s
    seen=$news
  done
}

keep </dev/null
exit 0
