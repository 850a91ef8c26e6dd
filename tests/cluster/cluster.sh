#!/usr/bin/env bash
# A real Slurm cluster on one machine, for tests.
#
# cluster.sh install              install the required packages; no-op if all are installed
# cluster.sh up [N]               start a cluster of N nodes n1 n2 ... (default: 3); no-op if it is up
# eval "$(cluster.sh env)"        set the environment for sbatch, srun, squeue, sacct ...
# cluster.sh status               show daemons and nodes; exit code 0 if all are usable
# cluster.sh exec NODE CMD...     run a command on a node
# cluster.sh down                 stop the cluster and everything that runs on it; keeps the logs
#
# Fault injection:
# cluster.sh node-kill|node-start NODE       power a node off and on: all its processes die at once. Their peers see
#                                            closed connections, or silence if the network was down before.
# cluster.sh net-down|net-up NODE            unplug and plug in the network cable
# cluster.sh slurmd-kill|slurmd-start NODE   kill -9 and start slurmd; job processes keep running
# cluster.sh ctld-kill|ctld-start            kill -9 and start slurmctld; jobs keep running
#
# The cluster runs slurmctld, slurmdbd on MariaDB, munge and one slurmd per node. A node is a set of namespaces with its
# own host name, address, ports, processes and /dev/shm. All files are shared, as on NFS. 127.0.0.1 is the node itself,
# 10.78.0.1 is the machine; nothing else is reachable. CPUs, memory and GPUs are only declared: Slurm counts them, but
# nothing enforces the limits. There are no cgroups: a process whose parent died survives scancel and keeps its job in
# COMPLETING. Partitions: main; preempt, whose jobs are requeued for main and urgent; urgent, with the highest priority.
#
# The script needs root (in a container: --privileged) and a firewall that allows traffic on the bridge tinyimnet0. It
# writes only to CLUSTER_STATE and kills only its own processes. Exit codes: 1 on failure, 2 on wrong usage. Variables:
#   CLUSTER_GPUS=4              fake GPUs per node
#   CLUSTER_PREEMPT_SIGNAL=0    signal for preempted jobs. 0: SIGTERM, Slurm's default; 1: the signal of --signal
# For every command:
#   CLUSTER_SLURM=              24.11: the Slurm of Debian 13, which install unpacks in /var/cache/tinyimnet; default: the
#                               Slurm of this machine's Debian or Ubuntu
#   CLUSTER_STATE=/tmp/tinyimnet-cluster    configuration, sockets, logs, database
#   CLUSTER_NUMBER=0            1 to 99: use other ports, addresses, bridge and folder, for several clusters at a time

# shellcheck disable=SC2015 # A && B || C is intended: C runs if A or B fails
set -uo pipefail
umask 022
ulimit -c 0 # otherwise every crashed rank leaves a core dump of 250 MB in the folder of its job

NUMBER=${CLUSTER_NUMBER:-0} GPUS=${CLUSTER_GPUS:-4} PREEMPT_SIGNAL=${CLUSTER_PREEMPT_SIGNAL:-0}
STATE=${CLUSTER_STATE:-/tmp/tinyimnet-cluster${CLUSTER_NUMBER:+-$CLUSTER_NUMBER}}
ETC=$STATE/etc RUN=$STATE/run LOG=$STATE/log
SLURM=${CLUSTER_SLURM:-} ROOT=${CLUSTER_SLURM:+/var/cache/tinyimnet/slurm-$CLUSTER_SLURM}
declare -A RELEASES=([24.11]=trixie) # Debian's release with this version of Slurm
export SLURM_CONF=$ETC/slurm.conf PATH=${ROOT:+$ROOT/bin:}$PATH:/usr/sbin:/sbin LC_ALL=C

say() { echo "cluster.sh: $*" >&2; }
die() { say "$*"; exit 1; }
usage() { say "$*; see 'cluster.sh help'"; exit 2; }

# ---------------------------------------------------------------- processes
# A pid file holds the pid and the start time of the process, so that a later process with the same pid is not killed.
# A zombie counts as dead, because process 1 of a container can take seconds to reap it.
start_time() { # PID
  local stat fields
  stat=$(cat "/proc/$1/stat" 2>/dev/null) && read -ra fields <<<"${stat##*) }" && [ "${fields[0]}" != Z ] &&
    echo "${fields[19]}"
}

pid_of() { # NAME
  local pid time
  read -r pid time 2>/dev/null <"$RUN/$1.pid" && [ -n "$time" ] && [ "$(start_time "$pid")" = "$time" ] && echo "$pid"
}

child_of() { # NAME: the child of unshare or nsenter, which runs inside the namespaces
  local pid children
  pid=$(pid_of "$1") && children=$(cat "/proc/$pid/task/$pid/children" 2>/dev/null) && [ -n "$children" ] &&
    echo "${children%% *}"
}

spawn() { # NAME CMD...: no-op if it runs; does not inherit stdout, whose reader would wait for it, or the lock (fd 9)
  pid_of "$1" >/dev/null && return
  (cd / && exec setsid "${@:2}" </dev/null >>"$LOG/$1.out" 2>&1 9>&-) &
  echo "$! $(start_time $!)" >"$RUN/$1.pid"
}

wait_for() { # SECONDS NAME CMD...: wait until CMD succeeds, as long as NAME runs
  local tenth
  for ((tenth = 0; tenth < $1 * 10; tenth++)); do
    pid_of "$2" >/dev/null || { say "$2 died; see $LOG/$2.out"; return 1; }
    "${@:3}" >/dev/null 2>&1 && return
    sleep 0.1
  done
  say "$2 was not ready after $1 s; see $LOG/$2.out"
  return 1
}

stop() { # NAME SECONDS: SIGTERM, then SIGKILL after SECONDS
  local pid tenth
  for ((tenth = 0; tenth < $2 * 10; tenth++)); do
    pid=$(pid_of "$1") || return 0
    [ "$tenth" -gt 0 ] || kill -TERM "$pid"
    sleep 0.1
  done
  kill -KILL "$pid"
}

# ---------------------------------------------------------------- configuration
configure() { # N
  local gpus=() preempt=() k
  rm -rf "$ETC" "$LOG" "$STATE"/{ctld,spool,gpus,db}
  mkdir -p "$ETC" "$LOG" "$RUN" "$STATE"/{ctld,spool,gpus} && mkdir -m 700 "$RUN/db" || return 1
  { # c10d looks up the names of its peers and warns about missing ones; the ::ffff lines avoid that
    printf '%s\n' "127.0.0.1 localhost" "$NET.1 $(hostname -s)"
    for ((k = 1; k <= $1; k++)); do printf '%s\n' "$NET.$((10 + k)) n$k" "::ffff:$NET.$((10 + k)) n$k"; done
  } >"$ETC/hosts"
  if [ "$GPUS" -gt 0 ]; then
    gpus=("Gres=gpu:$GPUS")
    # without a device file per GPU, jobs get no CUDA_VISIBLE_DEVICES; all of these are /dev/null
    for ((k = 0; k < GPUS; k++)); do mknod -m 666 "$STATE/gpus/gpu$k" c 1 3 || return 1; done
    echo "NodeName=n[1-$1] Name=gpu File=$STATE/gpus/gpu[0-$((GPUS - 1))]" >"$ETC/gres.conf"
  fi
  # Nothing here uses cgroups, but where the kernel has only v2, slurmd asks systemd for a cgroup unless told to use v1.
  echo CgroupPlugin=cgroup/v1 >"$ETC/cgroup.conf"
  [ "$PREEMPT_SIGNAL" = 0 ] || preempt=(SlurmctldParameters=preempt_send_user_signal) # Slurm rejects an empty value
  # cred_expire: delay of a requeued job, 120 s by default; with 5 s a busy machine failed to launch a step in time.
  # SlurmdTimeout is 300 s by default; KillWait has its default.
  # AccountingStoragePass: the munge socket again, because clients of slurmdbd ignore AuthInfo.
  # FirstJobId: from the clock, so that no job finds files of a job of an earlier cluster under its id.
  # MaxArraySize is 1001 by default; the largest index is one less.
  # MinJobAge: scontrol shows a job for two hours after its end. config_overrides: CPUs and memory need not exist.
  cat >"$ETC/slurm.conf" <<CONF
ClusterName=tinyimnet
SlurmctldHost=$(hostname -s)($NET.1)
SlurmctldPort=$PORT
SlurmUser=root
${ROOT:+PluginDir=$ROOT/plugins}
AuthInfo=socket=$RUN/munge.sock,cred_expire=10
StateSaveLocation=$STATE/ctld
SlurmdSpoolDir=$STATE/spool/%n
SlurmctldPidFile=$RUN/slurmctld.self
SlurmdPidFile=$RUN/slurmd.%n.self
SlurmdLogFile=$LOG/slurmd.%n.log
ProctrackType=proctrack/linuxproc
PropagateResourceLimits=NONE
SlurmdParameters=config_overrides
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=1000
GresTypes=gpu
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1,bf_resolution=1
SlurmdTimeout=10
KillWait=30
MinJobAge=7200
MaxArraySize=5
MessageTimeout=20
FirstJobId=$(($(date +%s) / 10 % 60000 * 1000 + 1))
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
${preempt[*]}
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=$NET.1
AccountingStoragePort=$((PORT + 1))
AccountingStoragePass=$RUN/munge.sock
AccountingStorageTRES=gres/gpu
NodeName=DEFAULT CPUs=16 RealMemory=64000 TmpDisk=100000 Port=$((PORT + 2)) ${gpus[*]}
$(for ((k = 1; k <= $1; k++)); do echo "NodeName=n$k NodeAddr=$NET.$((10 + k))"; done)
PartitionName=DEFAULT Nodes=ALL DefaultTime=60
PartitionName=main PriorityTier=50 PreemptMode=OFF Default=YES
PartitionName=preempt PriorityTier=10 PreemptMode=REQUEUE GraceTime=20
PartitionName=urgent PriorityTier=100 PreemptMode=OFF
CONF
  (umask 077 && cat >"$ETC/slurmdbd.conf" && head -c 128 /dev/urandom >"$ETC/munge.key") <<CONF
AuthInfo=socket=$RUN/munge.sock
DbdHost=localhost
DbdPort=$((PORT + 1))
SlurmUser=root
${ROOT:+PluginDir=$ROOT/plugins}
PidFile=$RUN/slurmdbd.self
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
CONF
}

# ---------------------------------------------------------------- daemons and nodes
start_daemons() {
  local mariadb=(--no-defaults --user=root --innodb-buffer-pool-size=16M --innodb-log-file-size=8M)
  spawn munged munged --foreground --force --key-file="$ETC/munge.key" --socket="$RUN/munge.sock" \
    --pid-file="$RUN/munged.self" --seed-file="$RUN/munge.seed"
  wait_for 20 munged munge -S "$RUN/munge.sock" -n || return 1
  if [ ! -d "$STATE/db.empty" ]; then # takes 3 s; kept for the next cluster
    rm -rf "$STATE/db.new"
    mariadb-install-db "${mariadb[@]}" --datadir="$STATE/db.new" --skip-test-db --skip-name-resolve \
      --auth-root-authentication-method=normal >"$LOG/mariadb-install-db.out" 2>&1 ||
      { say "mariadb-install-db failed; see $LOG/mariadb-install-db.out"; return 1; }
    mv "$STATE/db.new" "$STATE/db.empty"
  fi
  [ -d "$STATE/db" ] || cp -a "$STATE/db.empty" "$STATE/db"
  # No users are needed: there is no network, and the socket is in a folder that only root can enter.
  spawn mariadbd mariadbd "${mariadb[@]}" --datadir="$STATE/db" --socket="$RUN/db/my.sock" \
    --pid-file="$RUN/mariadbd.self" --skip-networking --skip-grant-tables --innodb-flush-log-at-trx-commit=0 \
    --innodb-lock-wait-timeout=900
  wait_for 60 mariadbd mariadb --no-defaults -S "$RUN/db/my.sock" -e 'create database if not exists slurm_acct_db' &&
    MYSQL_UNIX_PORT=$RUN/db/my.sock spawn slurmdbd slurmdbd -D && # slurmdbd.conf has no key for this socket
    wait_for 60 slurmdbd bash -c "exec 3<>/dev/tcp/127.0.0.1/$((PORT + 1))" &&
    spawn slurmctld slurmctld -D && wait_for 60 slurmctld bash -c 'scontrol ping | grep -q "is UP"'
}

start_bridge() {
  [ ! -e "$RUN/bridge" ] || return 0
  if ip link show "$BRIDGE" >/dev/null 2>&1; then
    say "another cluster uses the bridge $BRIDGE; set CLUSTER_NUMBER to start a second one"
    return 1
  fi
  ip link add "$BRIDGE" type bridge && : >"$RUN/bridge" && ip addr add "$NET.1/24" dev "$BRIDGE" &&
    ip link set "$BRIDGE" up
}

# Process 1 of a node is a shell that only reaps orphans. When it is killed, the kernel kills every process of the node.
# This simulates a power cut, and lets `down` leave no process behind.
start_node() { # NODE
  local port=$BRIDGE.${1#n} init inside
  if ! pid_of "node.$1" >/dev/null; then
    spawn "node.$1" unshare --net --uts --ipc --mount --pid --fork --kill-child --mount-proc \
      bash -c 'while :; do sleep 1000; done'
    wait_for 10 "node.$1" child_of "node.$1" && init=$(child_of "node.$1") || return 1
    inside=(nsenter -t "$init" -a)
    "${inside[@]}" hostname "$1" && "${inside[@]}" mount --bind "$ETC/hosts" /etc/hosts &&
      "${inside[@]}" mount -t tmpfs -o mode=1777 tmpfs /dev/shm && "${inside[@]}" ip link set lo up &&
      ip link add "$port" type veth peer name eth0 netns "$init" && ip link set "$port" master "$BRIDGE" up &&
      "${inside[@]}" ip addr add "$NET.$((10 + ${1#n}))/24" dev eth0 && "${inside[@]}" ip link set eth0 up ||
      { kill_node "$1"; return 1; }
  fi
  start_slurmd "$1"
}

start_slurmd() { # NODE
  local init
  init=$(child_of "node.$1") || die "$1 is off; start it with node-start"
  spawn "slurmd.$1" nsenter -t "$init" -a slurmd -D -d "$(command -v slurmstepd)" # default: the machine's slurmstepd
}

kill_node() { # NODE
  local pid tenth
  pid=$(child_of "node.$1") || pid=$(pid_of "node.$1") || return 0
  kill -KILL "$pid"
  for ((tenth = 0; tenth < 50; tenth++)); do pid_of "node.$1" >/dev/null || break; sleep 0.1; done
  ip link del "$BRIDGE.${1#n}" 2>/dev/null || : # the kernel would remove it later
}

usable() { # NODE; the state of an unresponsive node ends in a star and does not match
  [[ $(sinfo -h -n "$1" -p main -o %t) =~ ^(idle|mix|alloc|plnd)-?$ ]]
}

# ---------------------------------------------------------------- commands
install_packages() {
  local wanted=(munge mariadb-server-core mariadb-client-core iproute2 util-linux bubblewrap shellcheck)
  local slurm=(slurmctld slurmd slurmdbd slurm-client) missing=() package
  if [ -z "$SLURM" ]; then wanted+=("${slurm[@]}"); else wanted+=(patchelf debian-archive-keyring); fi
  for package in "${wanted[@]}"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
  done
  if [ ${#missing[@]} -gt 0 ]; then
    apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}" ||
      die "apt-get failed"
  fi
  [ -z "$SLURM" ] || install_in_root "${slurm[@]}" || die "cannot install Slurm $SLURM in $ROOT"
  say "all packages are installed"
}

# Unpacks packages of another Debian release in $ROOT, with all libraries that they need, down to libc. The programs in
# $ROOT/bin are patched to load these libraries. So they run without a chroot, and start the machine's own programs as
# jobs. $ROOT is complete or absent.
install_in_root() { # PACKAGE...
  local new=$ROOT.new mirror package libraries program loader apt
  mkdir -p "${ROOT%/*}" && exec 9>"$ROOT.lock" && flock 9 || return 1
  [ ! -d "$ROOT" ] || return 0
  apt=(apt-get -o "Dir::Etc=$new/apt" -o "Dir::State=$new/apt" -o "Dir::Cache=$new/apt" -o Dir::State::Status=/dev/null)
  # shellcheck disable=SC2016 # a format of apt-get
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Label: Debian' | head -n 1) # empty on Ubuntu
  rm -rf "$new" && mkdir -p "$new"/{bin,apt/preferences.d} &&
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]" \
      "${mirror:-http://deb.debian.org/debian} ${RELEASES[$SLURM]} main" >"$new/apt/sources.list" &&
    "${apt[@]}" update && "${apt[@]}" install -y --download-only --no-install-recommends "$@" || return 1
  for package in "$new"/apt/archives/*.deb; do dpkg-deb -x "$package" "$new" || return 1; done
  libraries=$(cd "$new" && echo usr/lib/*-linux-gnu) && ln -s "$libraries/slurm-wlm" "$new/plugins" || return 1
  for program in "$new"/usr/{bin,sbin}/s*; do
    grep -q libslurmfull "$program" || continue
    loader=$(patchelf --print-interpreter "$program") &&
      patchelf --set-interpreter "$ROOT/$libraries/${loader##*/}" \
        --force-rpath --set-rpath "$ROOT/$libraries:$ROOT/plugins" \
        --output "$new/bin/$(basename "$program" -wlm)" "$program" || return 1
  done
  rm -rf "$new/apt" && mv "$new" "$ROOT"
}

bring_up() { # N: start everything that is not running
  local k
  start_bridge && start_daemons || return 1
  for ((k = 1; k <= $1; k++)); do start_node "n$k" && ip link set "$BRIDGE.$k" up || return 1; done
  for ((k = 1; k <= $1; k++)); do wait_for 60 "slurmd.n$k" usable "n$k" || return 1; done
}

up() { # N
  local program shape="$1 nodes, $GPUS GPUs each, number $NUMBER, preemption signal $PREEMPT_SIGNAL"
  shape+=${SLURM:+, Slurm $SLURM}
  for program in munged mariadbd ip "${ROOT:+$ROOT/bin/}"{slurmdbd,slurmctld,slurmd}; do
    command -v "$program" >/dev/null || die "$program is not installed; run cluster.sh install"
  done
  unshare --net --uts --ipc --mount --pid --fork true 2>/dev/null ||
    die "cannot create namespaces; a container needs --privileged"
  if pid_of slurmctld >/dev/null && [ "$(cat "$ETC/shape")" = "$shape" ]; then
    bring_up "$1" || die "the cluster is up but not fully usable; see cluster.sh status"
  else
    down
    trap 'down; die "up was interrupted"' INT TERM
    if ! { configure "$1" && echo "$shape" >"$ETC/shape" && bring_up "$1"; }; then
      down
      rm -rf "$STATE/db.empty" # it may be from another version of MariaDB
      die "up failed; see the lines above and the log that they name"
    fi
  fi
  say "up: $shape"
}

down() {
  local file
  [ -d "$RUN" ] || return 0
  stop slurmctld 5 # first, because it would wait for its nodes
  for file in "$RUN"/node.*.pid; do file=${file##*/node.} && kill_node "${file%.pid}"; done
  stop slurmdbd 10; stop mariadbd 20; stop munged 5
  [ ! -e "$RUN/bridge" ] || ip link del "$BRIDGE"
  rm -rf "$RUN"
}

status() {
  local name pid code=0
  [ -d "$RUN" ] || { echo "not up"; return 1; }
  for name in munged mariadbd slurmdbd slurmctld "${NODES[@]/#/slurmd.}"; do
    pid=$(pid_of "$name") || code=1
    echo "$name: ${pid:-not running}"
  done
  sinfo -N -p main -o '%.8N %.10T %.14C %.8m %G %E'
  for name in "${NODES[@]}"; do usable "$name" || code=1; done
  return $code
}

kill_now() { [ -n "$1" ] || die "the process is not running"; kill -KILL "$1"; }
no_arguments() { [ $# -eq 0 ] || usage "$COMMAND takes no arguments"; }
as_root() { # one process at a time, and only in our own folder, because up deletes parts of it
  [ "$(id -u)" = 0 ] || die "$COMMAND needs root"
  mkdir -p "$STATE" || die "cannot create the folder $STATE"
  [[ -O $STATE && ( -e $STATE/cluster.lock || -z $(ls -A "$STATE") ) ]] ||
    die "$STATE is not yours or contains other files; set CLUSTER_STATE to another folder"
  exec 9>"$STATE/cluster.lock"
  flock -w 120 9 || die "another cluster.sh is running in $STATE"
}
on_cluster() {
  as_root
  [ -d "$RUN" ] || die "the cluster is not up"
}
on_node() {
  [ $# -eq 1 ] || usage "$COMMAND takes a node"
  on_cluster
  [[ " ${NODES[*]} " = *" $1 "* ]] || usage "there is no node '$1'"
}

for setting in "CLUSTER_NUMBER $NUMBER" "CLUSTER_GPUS $GPUS" "CLUSTER_PREEMPT_SIGNAL $PREEMPT_SIGNAL"; do
  [[ $setting =~ \ (0|[1-9][0-9]?)$ ]] || usage "${setting% *} must be a number from 0 to 99"
done
[[ -z $SLURM || -n ${RELEASES[$SLURM]:-} ]] || usage "CLUSTER_SLURM must be one of: ${!RELEASES[*]}"
[[ $STATE =~ ^/[A-Za-z0-9._/-]{1,59}$ ]] || # a socket path has at most 108 characters; slurm.conf has no quoting
  usage "CLUSTER_STATE must be an absolute path of at most 60 letters, digits and ._-/"
BRIDGE=tinyimnet$NUMBER NET=10.$((78 + NUMBER)).0 PORT=$((16900 + 3 * NUMBER)) NODES=()
read -r size _ 2>/dev/null <"$ETC/shape" && for ((k = 1; k <= size; k++)); do NODES+=("n$k"); done

COMMAND=${1-help}
shift
case $COMMAND in
  help | -h | --help) sed -n '2,/^$/s/^# \{0,1\}//p' "$0" ;;
  install) no_arguments "$@" && install_packages ;;
  up) [[ $# -le 1 && ${1-3} =~ ^[1-9][0-9]?$ ]] || usage "up takes a number of nodes from 1 to 99"
    as_root && up "${1-3}" ;;
  down) no_arguments "$@" && as_root && down ;;
  status) no_arguments "$@" && status ;;
  env) no_arguments "$@" && echo "export SLURM_CONF='$SLURM_CONF'"
    [ -z "$SLURM" ] || echo "export PATH='$PATH'" ;;
  node-start) on_node "$@" && start_node "$1" ;;
  node-kill) on_node "$@" && kill_node "$1" ;;
  net-down | net-up) on_node "$@" && ip link set "$BRIDGE.${1#n}" "${COMMAND#net-}" ;;
  slurmd-start) on_node "$@" && start_slurmd "$1" ;;
  slurmd-kill) on_node "$@" && kill_now "$(child_of "slurmd.$1")" ;;
  ctld-start) no_arguments "$@" && on_cluster && start_daemons ;;
  ctld-kill) no_arguments "$@" && on_cluster && kill_now "$(pid_of slurmctld)" ;;
  exec) [ $# -ge 2 ] || usage "exec takes a node and a command"
    init=$(child_of "node.$1") || die "there is no node $1, or it is off"
    exec nsenter -t "$init" -a env -C "$PWD" "${@:2}" ;;
  *) usage "unknown command '$COMMAND'" ;;
esac
