#!/usr/bin/env bash
# A real one-machine SLURM on the loopback: munge, slurmctld and NODES × slurmd with fake H100s. Root, no cgroups,
# no systemd, no database (bin/sacct answers from the controller's memory). Everything lives below $TESTBED.
#   TESTBED=folder PORT=17800 NODES=2 CPUS=8 GPUS=8 GRACE=10 EXTRA_CONF="lines, the last value wins" ./up.sh
# Prints the exports a client needs; they are also in $TESTBED/env.sh. Down again with down.sh.
set -euo pipefail
: "${TESTBED:?the folder of the testbed}"
PORT=${PORT:-17800} NODES=${NODES:-2} CPUS=${CPUS:-8} MEM=${MEM:-65536} GPUS=${GPUS:-8} GRACE=${GRACE:-10}
here=$(cd "$(dirname "$0")" && pwd)
export PATH=$PATH:/usr/sbin:/sbin
[ "$(id -u)" = 0 ] || { echo "testbed: needs root" >&2; exit 2; }
[ ! -e "$TESTBED/env.sh" ] || { echo "testbed: $TESTBED is up already (down.sh first)" >&2; exit 3; }
host=$(hostname -s)
getent hosts "$host" >/dev/null || { echo "testbed: '$host' does not resolve; add '127.0.0.1 $host' to /etc/hosts" >&2; exit 2; }
umask 022
mkdir -p "$TESTBED"/{bin,etc,log,run,state,spool,gpu}

await() {  # await SECONDS WHAT COMMAND…
  local end=$((SECONDS + $1)) what=$2; shift 2
  until timeout 10 "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $end ] || { echo "testbed: no $what" >&2; tail -n 8 "$TESTBED"/log/*.log >&2; exit 4; }
    sleep 0.05
  done
}

(umask 077; head -c 128 /dev/urandom > "$TESTBED/etc/munge.key")
munged --key-file="$TESTBED/etc/munge.key" --socket="$TESTBED/run/munge.sock" --pid-file="$TESTBED/run/munged.pid" \
       --log-file="$TESTBED/log/munged.log" --seed-file="$TESTBED/state/munge.seed"
await 10 munged munge -n --socket="$TESTBED/run/munge.sock"

nodes=""
for i in $(seq 1 "$NODES"); do
  mkdir -p "$TESTBED/spool/n$i"
  nodes+="NodeName=n$i NodeHostname=$host NodeAddr=127.0.0.1 Port=$((PORT + 10 + i)) CPUs=$CPUS RealMemory=$MEM Gres=gpu:h100:$GPUS Feature=h100 State=UNKNOWN"$'\n'
done
# gres needs character devices: 1,3 is /dev/null
for gpu in $(seq 0 $((GPUS - 1))); do mknod -m 666 "$TESTBED/gpu/nvidia$gpu" c 1 3; done
cat > "$TESTBED/etc/gres.conf" <<CONF
AutoDetect=off
NodeName=n[1-$NODES] Name=gpu Type=h100 File=$TESTBED/gpu/nvidia[0-$((GPUS - 1))]
CONF
# cred_expire is also how long a requeued job is held (below 5 it is refused and 120 is used);
# sched_interval and bf_interval: otherwise a requeued job waits up to a minute for the next pass;
# KillWait: a job that ignores TERM is killed after it.
cat > "$TESTBED/etc/slurm.conf" <<CONF
ClusterName=testbed
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$PORT
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$TESTBED/run/munge.sock,cred_expire=5
CredType=cred/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
ReturnToService=2
SlurmctldParameters=preempt_send_user_signal
SlurmdParameters=config_overrides
SlurmctldPidFile=$TESTBED/run/slurmctld.pid
SlurmdPidFile=$TESTBED/run/slurmd.%n.pid
SlurmctldLogFile=$TESTBED/log/slurmctld.log
SlurmdLogFile=$TESTBED/log/slurmd.%n.log
StateSaveLocation=$TESTBED/state
SlurmdSpoolDir=$TESTBED/spool/%n
InactiveLimit=0
KillWait=5
MinJobAge=600
SlurmdTimeout=300
Waittime=0
JobRequeue=1
MaxArraySize=1001
MaxJobCount=10000
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1,default_queue_depth=1000
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
EnforcePartLimits=ALL
DefMemPerCPU=100
PriorityType=priority/basic
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
${nodes}PartitionName=gpu    Nodes=ALL Default=YES MaxTime=7-0 DefaultTime=60 PriorityTier=10  PreemptMode=OFF State=UP
PartitionName=scav   Nodes=ALL Default=NO  MaxTime=7-0 DefaultTime=60 PriorityTier=1   PreemptMode=REQUEUE GraceTime=$GRACE State=UP
PartitionName=scavk  Nodes=ALL Default=NO  MaxTime=7-0 DefaultTime=60 PriorityTier=1   PreemptMode=CANCEL GraceTime=$GRACE State=UP
PartitionName=urgent Nodes=ALL Default=NO  MaxTime=7-0 DefaultTime=60 PriorityTier=100 PreemptMode=OFF State=UP
${EXTRA_CONF:-}
CONF
export SLURM_CONF=$TESTBED/etc/slurm.conf
cp "$here/sacct" "$TESTBED/bin/sacct"
setsid slurmctld -i </dev/null >"$TESTBED/log/slurmctld.start.log" 2>&1
await 30 slurmctld scontrol ping
# HOSTNAMES=1: what runs on a node sees a host of the node's name, so that others tell by its heartbeat whether it lives.
(cat /etc/hosts; for i in $(seq 1 "$NODES"); do echo "127.0.0.1 n$i"; done) > "$TESTBED/etc/hosts"
for i in $(seq 1 "$NODES"); do
  start=(slurmd -N "n$i")
  [ -z "${HOSTNAMES:-}" ] || start=(unshare --uts --mount --propagation slave -- bash -c
    "hostname n$i && mount --bind '$TESTBED/etc/hosts' /etc/hosts && exec slurmd -N n$i")
  setsid "${start[@]}" </dev/null >"$TESTBED/log/slurmd.n$i.start.log" 2>&1
done
all_idle() { [ "$(sinfo -h -N -p gpu -t idle -o %N | sort -u | wc -l)" = "$NODES" ]; }
export -f all_idle; export NODES
await 60 "idle nodes" bash -c all_idle
printf 'export TESTBED=%q SLURM_CONF=%q PATH=%q:$PATH:/usr/sbin\n' "$TESTBED" "$SLURM_CONF" "$TESTBED/bin" | tee "$TESTBED/env.sh"
