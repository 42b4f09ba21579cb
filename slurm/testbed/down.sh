#!/usr/bin/env bash
# Takes the testbed down by the pids its own daemons wrote (each checked by name and folder), then removes its folder.
: "${TESTBED:?the folder of the testbed}"
[ -d "$TESTBED" ] || exit 0
export PATH=$PATH:/usr/sbin SLURM_CONF=$TESTBED/etc/slurm.conf
if [ -e "$TESTBED/run/slurmctld.pid" ]; then  # job steps first, their slurmd after them
  jobs=$(timeout 10 squeue -h -o %A 2>/dev/null | sort -u)
  if [ -n "$jobs" ]; then
    # shellcheck disable=SC2086
    timeout 10 scancel --full --signal=KILL $jobs 2>/dev/null; timeout 10 scancel $jobs 2>/dev/null
    for _ in $(seq 100); do [ -z "$(timeout 5 squeue -h -t R,CG,PD 2>/dev/null)" ] && break; sleep 0.1; done
  fi
fi
stop() {  # stop SECONDS NAME PIDFILE…: TERM all at once, wait, KILL what is left
  local seconds=$1 name=$2 file pid pids=(); shift 2
  for file in "$@"; do
    pid=$(cat "$file" 2>/dev/null) || continue
    [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$name" ] || continue
    grep -qzF "$TESTBED" "/proc/$pid/environ" "/proc/$pid/cmdline" 2>/dev/null && pids+=("$pid")
  done
  [ ${#pids[@]} -gt 0 ] || return 0
  kill "${pids[@]}" 2>/dev/null
  for _ in $(seq $((seconds * 10))); do
    local left=(); for pid in "${pids[@]}"; do kill -0 "$pid" 2>/dev/null && left+=("$pid"); done
    [ ${#left[@]} -gt 0 ] || return 0
    pids=("${left[@]}"); sleep 0.1
  done
  kill -9 "${pids[@]}" 2>/dev/null
}
stop 5 slurmd "$TESTBED"/run/slurmd.*.pid &
stop 5 slurmctld "$TESTBED/run/slurmctld.pid" &
wait
stop 3 munged "$TESTBED/run/munged.pid"
rm -rf "$TESTBED"
