# shellcheck shell=bash
# Job scripts source this file. It reads the site's settings from slurm/site.env, or from $site_env, and sets the job id
# ($job) and the end of the job (SLURM_JOB_END_TIME). sbatch passes on the variables of the calling shell; if that shell
# runs inside another job (salloc, srun --pty, an element of an array), this file removes the variables of that job.

site_env=${site_env:-slurm/site.env}
# A function hides the job's arguments: conda's `activate` would read them, and `set --` in site.env would drop them.
# shellcheck source=/dev/null
source_site() { source "$site_env"; }
if [[ -f $site_env ]]; then source_site || { echo "error: sourcing $site_env failed." >&2; exit 2; }; fi

# Slurm sets SLURM_ARRAY_* in array elements and SLURM_RESTART_COUNT from the second attempt on. If this job is not an
# array element or was not restarted, they belong to the outer job. The last element of an array can have the array's
# own id, for which Slurm prints one line per element; hence the grep.
if [[ -n ${SLURM_ARRAY_JOB_ID:-}${SLURM_RESTART_COUNT:-} ]] &&
  shown=$(scontrol --oneliner show job "$SLURM_JOB_ID" | grep "^JobId=$SLURM_JOB_ID "); then
  [[ $shown == *" ArrayTaskId="* ]] || unset "${!SLURM_ARRAY_@}"
  [[ $shown != *" Restarts=0 "* ]] || unset SLURM_RESTART_COUNT
fi
# A step gets all resources of its job, and each process sees all GPUs of the job on its node. srun rejects some of
# these variables in combination, and --gpus-per-task would restrict each rank to one GPU (by SLURM_TRES_BIND in 24.11).
# SLURM_GPU_BIND=none is wrong too: with two or more tasks Slurm (22.05) then unsets CUDA_VISIBLE_DEVICES, and without
# device cgroups two jobs on a node share its GPUs.
unset SLURM_GPUS_PER_TASK SLURM_NTASKS_PER_GPU SLURM_TRES_PER_TASK "${!SLURM_CPU_BIND@}" "${!SLURM_GPU_BIND@}" \
  SLURM_TRES_BIND SLURM_MEM_PER_CPU SLURM_MEM_PER_GPU SLURM_MEM_PER_NODE
export SLURM_EXPORT_ENV=ALL PYTHONUNBUFFERED=1

job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}
# Slurm sets this itself since 23.02. train.py stops run.stop_before_end seconds earlier, with or without a signal.
if [[ -z ${SLURM_JOB_END_TIME:-} ]] && end=$(squeue --noheader --jobs="$job" --format=%e) && [[ $end == *T* ]]; then
  SLURM_JOB_END_TIME=$(date -d "$end" +%s)
  export SLURM_JOB_END_TIME
fi
