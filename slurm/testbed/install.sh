#!/usr/bin/env bash
# Installs what the testbed and the fault tests need, where it is missing (Debian or Ubuntu, root). About ten seconds.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive PATH=$PATH:/usr/sbin
missing=()
for command in slurmctld slurmd munged; do command -v "$command" >/dev/null || missing=(slurmctld slurmd slurm-client munge); done
command -v strace >/dev/null || missing+=(strace)
[ ${#missing[@]} -eq 0 ] && exit 0
apt-get update -q
apt-get install -y -q --no-install-recommends "${missing[@]}"
