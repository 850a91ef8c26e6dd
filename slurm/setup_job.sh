# shellcheck shell=bash
# Job scripts source this file. It reads the site's settings from slurm/site.env, or from $site_env, and sets the job id
# ($job), the GPUs per node ($gpus), the processes per node ($tasks), the end of the job (SLURM_JOB_END_TIME) and what
# stands between srun and its command (${container[@]}).

declare -F fail >/dev/null || fail() { echo "error: $*" >&2; exit 2; }
# What the job submits as its successor: its script and arguments; not a variable of the shell that called sbatch.
[[ $(declare -p submitted 2>/dev/null) == "declare -a"* ]] || submitted=()

# ---- signals: one that Slurm sends to this shell (sbatch --signal=B:USR1@120) would kill it before it requeues the
# job. Each becomes USR1 for the step of `run_step`; other steps stop by the clock (run.stop_before_end).
step=
survive_signals() { trap '[[ -z $step ]] || kill -USR1 "$step"' USR1 USR2 TERM HUP; }

run_step() { # ARGUMENTS OF SRUN: returns the exit code of srun
  local code
  srun "$@" &
  step=$!
  while wait "$step"; code=$?; ((code > 128)) && kill -0 "$step" 2>/dev/null; do :; done # a trap interrupts `wait`
  step=
  return "$code"
}

# ---- slurm/site.env: the variables, functions and limits that it sets stay; options, traps, aliases, redirections and
# `cd` do not. Its first command that fails ends the job, and so does `exit`: the job would train with the wrong
# modules, or count as completed. In a function, because conda's `activate` would read the arguments of the job.
source_site() {
  trap '[[ ${BASH_SOURCE[0]} != "$site_env" ]] || site_line=$LINENO' DEBUG
  trap '[[ ${BASH_SOURCE[0]} != "$site_env" ]] || site_failed $?' ERR # unlike DEBUG, not for commands in functions
  trap 'site_failed $?' EXIT                                          # set -e and set -u
  # shellcheck disable=SC2317
  exit() { [[ $BASHPID == "$$" ]] || builtin exit "$@"; site_failed "${1:-0}"; }
  set -o functrace
  # shellcheck source=/dev/null
  source "$site_env"
}

leave_site() {
  trap - DEBUG ERR EXIT RETURN
  survive_signals
  unset -f exit
  unalias -a
  IFS=$' \t\n'
  eval "$site_restore"
  exec >&"$site_out" 2>&"$site_err" {site_out}>&- {site_err}>&-
  cd "$site_folder" || fail "the folder $site_folder is gone."
}

site_failed() { # EXIT CODE
  leave_site
  fail "$site_env failed in line $site_line with exit code $1: $(sed -n "${site_line}p" "$site_env")"
}

survive_signals
CONTAINER=() # site.env sets it; the shell that called sbatch may use the name for something else
site_env=${site_env:-slurm/site.env}
if [[ -f $site_env ]]; then
  site_restore=$(set +o; shopt -p) site_folder=$PWD site_line=1
  exec {site_out}>&1 {site_err}>&2
  source_site
  code=$?
  leave_site
  # After `source`: 1 is a false test in the last line, and no error; 2 is a syntax error.
  ((code == 0)) || [[ $code == 1 && $(sed -n "${site_line}p" "$site_env") != *return* && -r $site_env ]] ||
    site_failed $code
fi

# ---- the container, in which only the command of a step runs: options of srun (pyxis), or a command before it, which has
# to outlive a signal until the training has saved. Slurm signals the processes below it too, unless it uses cgroups;
# then Apptainer passes the signal on, and others, like bwrap, do not.
[[ ${#CONTAINER[@]} != 1 || ${CONTAINER[0]} != *' '* ]] ||
  fail "CONTAINER in $site_env is '${CONTAINER[*]}' and must be an array: CONTAINER=(${CONTAINER[*]})."
container=("${CONTAINER[@]}")
# shellcheck disable=SC2016
[[ ${container[0]:--} == -* ]] ||
  container=(bash -c 'trap "" USR1 USR2 TERM; exec "$@"' container "${CONTAINER[@]}")

check_python() { # PYTHON: it decides about the requeue, outside the container; the job should not learn at its end
  local why
  why=$("$1" -c 'import tinyimnet.launch.requeue' 2>&1) && return
  echo "error: $1 cannot decide about a requeue (${why##*$'\n'}); in $site_env, put a Python 3.10 or newer with" \
    "PyYAML on PATH (it does not need torch)." >&2
  exit 2
}

# ---- the job, as Slurm has it: sbatch passes on the variables of the calling shell, which may run inside another job
# (salloc, srun --pty, an element of an array). The last element of an array can have the array's own id, for which
# Slurm prints one line per element; hence the grep.
record=$(SLURM_TIME_FORMAT=standard scontrol --oneliner --details show job "$SLURM_JOB_ID" |
  grep "^JobId=$SLURM_JOB_ID ")
field() { [[ $record =~ \ $1=([^ ]+) ]] && echo "${BASH_REMATCH[1]}"; }

gpus_of_nodes() { # the GPUs of each node, "3,1" or, if all have the same, "2"; a node has GRES=gpu:a100:2(IDX:0-1)
  tr ' ' '\n' <<<"$record" | sed -n 's/([^)]*)//g; s/^GRES=//p' | awk -F, '
    { n = 0; for (i = 1; i <= NF; i++) { k = split($i, part, ":"); if (part[1] == "gpu") n += part[k] } print n }' |
    sort -rnu | paste -sd ,
}

nodes=${SLURM_JOB_NUM_NODES:-1} gpus=${SLURM_GPUS_ON_NODE:-0}
tasks=${SLURM_NTASKS_PER_NODE:-$((${SLURM_NTASKS:-nodes} / nodes))}
if [[ -n $record ]]; then # otherwise slurmctld does not answer, and the variables have to do
  [[ -n $(field ArrayTaskId) ]] || unset "${!SLURM_ARRAY_@}"
  [[ $(field Restarts) != 0 ]] || unset SLURM_RESTART_COUNT
  # Slurm sets this itself since 23.02. train.py stops run.stop_before_end seconds earlier, with or without a signal.
  [[ -n ${SLURM_JOB_END_TIME:-} || $(field EndTime) != *T* ]] || SLURM_JOB_END_TIME=$(date -d "$(field EndTime)" +%s)
  gpus=$(gpus_of_nodes) gpus=${gpus:-${SLURM_GPUS_ON_NODE:-0}}
  [[ $gpus != *,* ]] || fail "uneven allocation ($gpus); use --gpus-per-node instead of --gpus."
  all=$(field NumTasks) tasks=$(field NtasksPerN:B:S:C)
  tasks=${tasks%%:*}
  if ((tasks == 0)); then # no --ntasks-per-node; without --ntasks, one task per node, but SLURM_TASKS_PER_NODE has CPUs
    tasks=$((all / nodes))
    ((all == nodes || gpus)) || [[ $SLURM_TASKS_PER_NODE != *,* ]] ||
      fail "uneven allocation ($SLURM_TASKS_PER_NODE); use --ntasks-per-node instead of --ntasks."
    unset SLURM_NTASKS_PER_NODE
  fi
fi
((gpus == 0)) || tasks=$gpus
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}
if [[ $(field Requeue) == 0 ]]; then
  echo "warning: job $job cannot be requeued (--no-requeue, or the cluster's default): a time limit, a preemption or a" \
    "lost node ends it." >&2
  if ((${#submitted[@]})); then
    echo "If the run is to go on, the job then submits its successor (sbatch --dependency=afterany:$job)." >&2
  else
    echo "Submit the same command again to resume, or already now with --dependency=afterany:$job." >&2
  fi
fi

# ---- srun: a step gets all GPUs of its job, and each process sees those on its node. Slurm needs the number, or a job
# with --exclusive has GPUs that its steps do not get. srun rejects some of the other variables in combination;
# --gpus-per-task would restrict each rank to one GPU (by SLURM_TRES_BIND in 24.11), and so would --gpu-bind;
# SLURM_GPU_BIND=none is wrong too: with two or more tasks Slurm (22.05) then unsets CUDA_VISIBLE_DEVICES, and without
# device cgroups two jobs on a node share its GPUs.
unset SLURM_CPUS_PER_GPU SLURM_GPUS "${!SLURM_GPUS_PER_@}" "${!SLURM_GPU_BIND@}" "${!SLURM_CPU_BIND@}" \
  "${!SLURM_MEM_@}" SLURM_NTASKS_PER_GPU SLURM_NTASKS_PER_SOCKET SLURM_NTASKS_PER_CORE SLURM_TRES_PER_TASK \
  SLURM_TRES_BIND
((gpus == 0)) || export SLURM_GPUS_PER_NODE=$gpus
[[ -z ${SLURM_JOB_END_TIME:-} ]] || export SLURM_JOB_END_TIME
# Seconds that a step goes on after the end of its first process. Rank 0 may take minutes longer than the others, with its
# last evaluation and while it waits for W&B; some sites allow seconds (WaitTime). Without a limit, a step whose
# slurmstepd was killed keeps its nodes until the time limit of the job.
export SLURM_WAIT=${SLURM_WAIT:-1800}
# Neighbouring ranks share a node and a socket, like GPUs 0 to 3 usually; Slurm's default alternates sockets.
export SLURM_DISTRIBUTION=block:block SLURM_EXPORT_ENV=ALL PYTHONUNBUFFERED=1
