#!/bin/sh
# Runs one attempt's work on this machine, at most once, whatever becomes of the connection that started it.
# POSIX sh and coreutils only. The folder that this file lies in is the contract:
#
#   work/        the work's current directory
#   setup.sh     optional; runs first. A failure of it ends the attempt with reason "setup"
#   run.sh       the work. Both run under `bash -e` (`sh -e` where there is no bash), one after the other
#   env          `export NAME='value'` lines; removed as soon as run.sh has them, so that no snapshot keeps a secret
#   limits       max_duration_s, grace_s, lease_s (0: none), idle_s (0: none)
#   run.json     the recipe, without values of secrets: from it a run is known again whose ledger is lost
#   installed    everything above is here, whole
#   started/     made by mkdir, which succeeds once: whoever makes it starts the work, nobody else ever does
#   pid, job     "pid birth" of the supervisor and of the part that runs now; birth tells a reused pid apart
#   phase        setup, running, ended
#   output.log   standard output and error of the work
#   heartbeat    changes while a controller cares; with a lease, the work stops when it has not changed for so long
#   cancel       asks for the end: seconds between TERM and KILL
#   gpu          with idle_s: by this machine's uptime, when the GPUs were looked at last, and last seen at work
#   stop         why the work was made to end: cancelled, max_duration, lease, idle
#   exit.json    renamed into place at the very end: {"code", "signal", "reason", "started_at", "ended_at" (epoch
#                seconds of this machine), "log_size" (bytes), "sha256" (of output.log)};
#                reason: exit, setup, cancelled, max_duration, lease, idle, or lost (the supervisor was killed)
#   pulled       the controller has everything: nobody needs to linger
#
# usage: sh runner.sh start | status | cancel [GRACE_S] | tail OFFSET | heartbeat | pulled
set -u
umask 077
here=$(dirname -- "$0")
cd "$here" || exit 70
here=$(pwd -P)

die() {
  echo "$*" >&2
  exit 70
}

pause() { # SECONDS, rounded up to 1 where sleep takes no fraction
  sleep "$1" 2>/dev/null || sleep 1
}

put() { # FILE TEXT: whole or not at all
  write "$1" "$2" || { rm -f reserve && write "$1" "$2"; }
}

write() {
  { printf '%s\n' "$2" >"$1.$$" && mv -f "$1.$$" "$1"; } 2>/dev/null
}

read_uptime() { # sets now_s; the machine's own count, which setting its clock does not move
  if [ -r /proc/uptime ]; then
    read -r now_s _ </proc/uptime
    now_s=${now_s%%.*}
  else
    now_s=$(date +%s)
  fi
}

read_birth() { # PID: sets birth to its start time, or to "none" if it is gone or only waits to be reaped
  birth=none
  [ -r "/proc/$1/stat" ] || {
    [ -d /proc/self ] || birth=unknown
    return 0
  }
  { read -r stat <"/proc/$1/stat"; } 2>/dev/null || return 0
  # shellcheck disable=SC2086 # split on purpose: the fields after the command's name
  set -- ${stat##*) }
  [ "$1" = Z ] || [ "$1" = X ] || birth=${20}
}

alive() { # FILE: does the process that it names still live?
  [ -r "$1" ] || return 1
  read -r alive_pid alive_birth <"$1" || return 1
  kill -0 "$alive_pid" 2>/dev/null || return 1
  read_birth "$alive_pid"
  [ "$birth" = "$alive_birth" ]
}

note_process() { # FILE PID
  read_birth "$2"
  put "$1" "$2 $birth"
}

detach() { # COMMAND...: become it, in a session of its own
  if command -v setsid >/dev/null 2>&1; then
    exec setsid "$@"
  elif command -v python3 >/dev/null 2>&1; then
    exec python3 -c 'import os, sys; os.setsid(); os.execvp(sys.argv[1], sys.argv[1:])' "$@"
  elif command -v perl >/dev/null 2>&1; then
    exec perl -MPOSIX -e 'POSIX::setsid(); exec @ARGV' "$@"
  fi
  exec nohup "$@"
}

# The work and what it has started: its process group, and whatever carries its mark in the environment.

marked() { # prints the pids of processes that carry our mark
  grep -l -F -e "GPUJOBS_MARK=[$here]" /proc/[0-9]*/environ 2>/dev/null | cut -d / -f 3
}

signal_marked() {
  for marked_pid in $(marked); do
    kill -s "$1" "$marked_pid" 2>/dev/null
  done
}

signal_work() { # TERM or KILL
  job_pid=
  [ -r job ] && read -r job_pid _ <job
  if ! signal_group "$1" "$job_pid" || [ "$1" = KILL ]; then
    signal_marked "$1"
  fi
}

signal_group() { # SIGNAL PID: in the one spelling that dash, bash and busybox all take
  [ "${2:-0}" -gt 1 ] && kill "-$1" "-$2" 2>/dev/null
}

work_remains() {
  [ -r job ] && read -r job_pid _ <job || return 1
  signal_group 0 "$job_pid" || alive job
}

end_work() { # SECONDS: wait so long for it to go by itself, then KILL
  while [ "$1" -gt 0 ] && work_remains; do
    sleep 1
    set -- $(($1 - 1))
  done
  signal_work KILL
}

# start

start() {
  [ -f installed ] || die "nothing is installed in $here"
  if ! mkdir started 2>/dev/null; then
    [ -d started ] || die "cannot write to $here: is the disk full?"
    echo already
    return
  fi
  put started/launcher $$ || die "cannot write to $here: is the disk full?"
  (detach sh "$here/runner.sh" supervise </dev/null >/dev/null 2>supervisor.err) &
  until [ -s pid ]; do
    kill -0 $! 2>/dev/null || [ -s pid ] || die "the supervisor did not start: $(tail -c 400 supervisor.err)"
    pause 0.05
  done
  echo started
}

supervise() {
  started_at=$(date +%s)
  max_duration_s=0 grace_s=0 lease_s=0 idle_s=0
  # shellcheck source=/dev/null
  . ./limits
  note_process pid $$ || die "cannot write to $here: is the disk full?"
  head -c 16384 /dev/zero >reserve 2>/dev/null # given back at the end, so that a full disk can still take exit.json
  watch &
  [ "$idle_s" -eq 0 ] || watch_gpus &
  reason="exit"
  code=0
  if [ -f setup.sh ]; then
    run_part setup setup
    [ "$code" -eq 0 ] || reason=setup
  fi
  if [ -f stop ]; then
    [ "$code" -ne 0 ] || code=143
  elif [ "$code" -eq 0 ]; then
    run_part run running
  fi
  finish
}

run_part() { # SCRIPT PHASE: sets code
  put phase "$2"
  (detach sh "$here/runner.sh" work "$1" </dev/null >>output.log 2>&1) &
  note_process job $!
  wait $!
  code=$?
}

work() { # SCRIPT: become the user's script
  umask 022
  for bin in /opt/miniconda3/bin /root/miniconda3/bin; do
    [ -d "$bin" ] && PATH=$bin:$PATH
  done
  export PATH PYTHONUNBUFFERED=1 GPUJOBS_MARK="[$here]"
  set -- "$1" "$(command -v bash || command -v sh)" # the user's variables may have any name, so ours are $1 and $2
  # shellcheck source=/dev/null
  . ./env
  [ "$1" = setup ] || rm -f env
  cd work || exit 70
  exec "$2" -e "../$1.sh"
}

finish() { # what the work left running ends with it: after this the log is final
  if work_remains; then
    [ -f stop ] || signal_work TERM
    [ -s cancel ] && read -r grace_s <cancel
    end_work "$grace_s"
  fi
  signal_marked KILL
  [ -s stop ] && read -r reason <stop
  record_exit
}

record_exit() {
  log_size=$(($(wc -c <output.log)))
  sum=$(sha256sum <output.log)
  signal=null
  [ "$code" -gt 128 ] && signal=$((code - 128))
  rm -f reserve env
  until put exit.json "{\"code\": $code, \"signal\": $signal, \"reason\": \"$reason\", \"started_at\": $started_at, \
\"ended_at\": $(date +%s), \"log_size\": $log_size, \"sha256\": \"${sum%% *}\"}"; do
    [ -d "$here" ] || exit 70 # the work removed this folder: there is nowhere to record anything
    sleep 2
  done
  put phase ended
}

# watch: the second process, which stops the work when its time is up and outlives a killed supervisor

watch() {
  read_uptime
  began_s=$now_s
  beat=
  while sleep 1; do
    [ ! -f exit.json ] || return
    alive pid || {
      bury
      return
    }
    if cause=$(why_stop); then
      put stop "$cause" || : >stop
      stop_work
      return
    fi
    read_lease
  done
}

why_stop() { # prints the reason, if there is one
  read_uptime
  if [ -f cancel ]; then
    echo cancelled
  elif [ $((now_s - began_s)) -ge "$max_duration_s" ]; then
    echo max_duration
  elif [ "$lease_s" -gt 0 ] && [ $((now_s - ${beat_s:-$began_s})) -ge "$lease_s" ]; then
    echo lease
  elif [ "$idle_s" -gt 0 ] && gpus_are_idle; then
    echo idle
  else
    return 1
  fi
}

gpus_are_idle() { # a look that is long ago says nothing: the driver may hang
  [ -r gpu ] && read -r looked_s worked_s <gpu || return 1
  [ $((now_s - looked_s)) -le 60 ] && [ $((looked_s - worked_s)) -ge "$idle_s" ]
}

watch_gpus() { # a process of its own, since asking a broken driver may take for ever
  every_s=$((idle_s / 10))
  [ "$every_s" -ge 1 ] || every_s=1
  [ "$every_s" -le 10 ] || every_s=10
  read_uptime
  worked_s=$now_s
  while sleep "$every_s" && [ ! -f exit.json ] && alive pid; do
    if gpus_work; then
      read_uptime
      worked_s=$now_s
    fi
    read_uptime
    put gpu "$now_s $worked_s"
  done
}

gpus_work() { # or are not known to be idle: set-up does not count, and a GPU that cannot be asked is at work
  [ "$(cat phase 2>/dev/null)" = running ] || return 0
  uses=$(nvidia-smi --query-gpu=utilization.gpu --format=csv,noheader,nounits 2>/dev/null) && [ "$uses" ] || return 0
  for use in $uses; do
    case $use in
      [0-4]) ;;
      *) return 0 ;;
    esac
  done
  return 1
}

read_lease() { # sets beat_s when the heartbeat has changed
  [ "$lease_s" -gt 0 ] && [ -r heartbeat ] && read -r new_beat <heartbeat || return 0
  if [ "$new_beat" != "$beat" ]; then
    beat=$new_beat
    read_uptime
    beat_s=$now_s
  fi
}

stop_work() { # TERM each part once, KILL after the grace, until the supervisor has recorded the end
  left_s=$grace_s
  [ -s cancel ] && read -r left_s <cancel
  told=
  while [ ! -f exit.json ] && alive pid; do
    [ -r job ] && read -r job_pid _ <job
    if [ "$left_s" -le 0 ]; then
      signal_work KILL
    elif [ "${job_pid:-}" != "$told" ]; then
      signal_work TERM
      told=$job_pid
    fi
    left_s=$((left_s - 1))
    sleep 1
  done
  [ -f exit.json ] || bury
}

bury() { # the supervisor is gone without a record: end what it left, and say so
  signal_work TERM
  end_work "$grace_s"
  signal_marked KILL
  [ ! -f exit.json ] || return 0
  code=137
  reason=lost
  started_at=${started_at:-null}
  record_exit
}

# what the controller asks

phase_now() {
  if [ -f exit.json ]; then
    echo ended
  elif [ ! -f installed ]; then
    echo absent
  elif [ ! -d started ]; then
    echo installed
  elif alive pid || launching; then
    cat phase 2>/dev/null || echo setup
  elif [ -f exit.json ]; then # it ended between the two looks
    echo ended
  else
    echo lost
  fi
}

launching() { # somebody holds started/ and has not got to the supervisor yet
  [ ! -f pid ] || return 1
  { read -r launcher <started/launcher; } 2>/dev/null || {
    sleep 1
    { read -r launcher <started/launcher; } 2>/dev/null || return 1
  }
  kill -0 "$launcher" 2>/dev/null || alive pid
}

status() {
  echo "phase $(phase_now)"
  echo "log_size $(($(wc -c 2>/dev/null <output.log || echo 0)))"
  echo "now $(date +%s)"
  [ ! -f exit.json ] || echo "exit $(head -c 4096 exit.json)"
}

settled() {
  [ -f exit.json ] || ! { alive pid || [ ! -d started ] || launching; }
}

follow() { # OFFSET: the log from there on, until the work has ended; the caller asks again for what came last
  if settled; then
    exec tail -c "+$(($1 + 1))" output.log
  fi
  tail -c "+$(($1 + 1))" -f output.log &
  reader=$!
  until settled; do
    kill -0 "$reader" 2>/dev/null || exit 0
    pause 0.2
  done
  kill "$reader" 2>/dev/null
}

cancel() { # GRACE_S: returns when the end is recorded
  if mkdir started 2>/dev/null; then # it never started, and now never will
    code=143
    reason=cancelled
    started_at=null
    record_exit
    return
  fi
  put cancel "$1" || die "cannot write to $here: is the disk full?"
  while [ ! -f exit.json ]; do
    [ -d "$here" ] || die "$here is gone"
    if settled; then
      # shellcheck source=/dev/null
      . ./limits
      grace_s=$1
      bury
    fi
    pause 0.2
  done
}

case ${1-} in
  start | supervise | status) "$1" ;;
  work) work "$2" ;;
  tail) follow "$2" ;;
  cancel)
    [ -f exit.json ] || cancel "${2:-10}"
    ;;
  heartbeat)
    read_uptime
    put heartbeat "$now_s $$"
    ;;
  pulled) : >pulled ;;
  *) die "usage: sh runner.sh start | status | cancel [GRACE_S] | tail OFFSET | heartbeat | pulled" ;;
esac
