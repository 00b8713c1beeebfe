#!/usr/bin/env bash
# A real SLURM of its own on the loopback interface: controller, N compute nodes (each pinned to a core), munge. As root; the packages:
#   apt-get install -y --no-install-recommends slurm-wlm munge
# usage:  eval "$(tools/slurm.sh start FOLDER [NODES=2])"; sinfo; sbatch ...
#         tools/slurm.sh kill-node FOLDER n1      # the node's daemon and all it runs, at once, as when the power goes
#         tools/slurm.sh start-node FOLDER n1     # it comes back
#         tools/slurm.sh stop FOLDER
# There is no accounting: sacct fails, squeue and scontrol answer. Jobs of the partition urgent put those of main back into the queue.
# A requeued job starts again after 5 s instead of SLURM's two minutes.
set -euo pipefail
action=${1:?start, kill-node, start-node or stop} dir=$(realpath -m "${2:?folder}")
export SLURM_CONF="$dir/slurm.conf"

end() { if [ -s "$1" ]; then kill "$(cat "$1")" 2>/dev/null || true; rm -f "$1"; fi; }
# processes of a node: its daemon, the jobs by SLURM's variable in their environment, and the helpers (slurmstepd) above those
processes() {
    local pid parent
    for pid in $(pgrep -f . -u "$(id -u)"); do
        if tr '\0' '\n' 2>/dev/null <"/proc/$pid/environ" | grep -cxF -e "SLURMD_NODENAME=$1" -e "SLURM_CONF=$SLURM_CONF" | grep -qx 2; then
            echo "$pid"
            parent=$(awk '/^PPid/ {print $2}' "/proc/$pid/status" 2>/dev/null) || continue
            if grep -qs "^slurmstepd" "/proc/$parent/cmdline"; then echo "$parent"; fi
        fi
    done
    cat "$dir/slurmd.$1.pid" 2>/dev/null || true
}
start_node() {
    local core=$(((${1#n} - 1) % $(nproc)))
    taskset -c "$(taskset -pc $$ | sed 's/.*: //' | tr ',' '\n' | awk -F- '{for (i = $1; i <= ($2 ? $2 : $1); i++) print i}' |
        sed -n "$((core + 1))p")" slurmd -N "$1" -f "$SLURM_CONF" >&2
}

case $action in
start)
    nodes=${3:-2} host=$(hostname -s)
    # ports of its own, so that two of them can run side by side
    base=$((20000 + RANDOM % 20000))
    mkdir -p "$dir"/{state,log,munge}
    for i in $(seq "$nodes"); do mkdir -p "$dir/spool/n$i"; done
    [ -s "$dir/munge/key" ] || head -c 1024 /dev/urandom >"$dir/munge/key"
    chmod 600 "$dir/munge/key"
    chmod 755 "$dir/munge"
    munged --force --key-file="$dir/munge/key" --socket="$dir/munge/socket" --pid-file="$dir/munge/pid" \
        --log-file="$dir/munge/log" --seed-file="$dir/munge/seed" >&2
    memory=$(awk -v n="$nodes" '/MemTotal/ {print int($2 / 1024 * 0.9 / n)}' /proc/meminfo)
    cat >"$SLURM_CONF" <<CONF
ClusterName=local
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$base
AuthType=auth/munge
AuthInfo=socket=$dir/munge/socket,cred_expire=5
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool/%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.%n.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MinJobAge=3600
SlurmdTimeout=3
MessageTimeout=3
TCPTimeout=1
KillWait=2
JobRequeue=1
NodeName=n[1-$nodes] NodeHostname=$host NodeAddr=127.0.0.1 Port=[$((base + 1))-$((base + nodes))] CPUs=1 RealMemory=$memory State=UNKNOWN
PartitionName=main Nodes=n[1-$nodes] Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=n[1-$nodes] MaxTime=INFINITE State=UP PriorityTier=2
CONF
    slurmctld -f "$SLURM_CONF" >&2
    for i in $(seq "$nodes"); do start_node "n$i"; done
    for _ in $(seq 120); do
        [ "$(sinfo -h -N -o %t 2>/dev/null | grep -c idle)" -ge "$nodes" ] && break
        sleep 0.25
    done
    sinfo -N >&2
    echo "export SLURM_CONF='$SLURM_CONF'"
    ;;
kill-node)
    found=$(processes "${3:?node, e.g. n1}")
    # all stand still first: none may tell the controller of another's end
    for signal in STOP KILL; do for pid in $found; do kill -$signal "$pid" 2>/dev/null || true; done; done
    rm -f "$dir/slurmd.$3.pid"
    ;;
start-node) start_node "${3:?node, e.g. n1}" ;;
stop)
    for i in "$dir"/spool/n*; do for pid in $(processes "$(basename "$i")"); do kill -KILL "$pid" 2>/dev/null || true; done; done
    end "$dir/slurmctld.pid"
    sleep 1
    end "$dir/munge/pid"
    ;;
*)
    echo "start, kill-node, start-node or stop, not $action" >&2
    exit 2
    ;;
esac
