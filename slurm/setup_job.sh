# shellcheck shell=bash
# The scripts of jobs source this: the site's settings (site_env: another file), which job they are (job) and when it ends.
# sbatch hands on the variables of the shell that it is called from; those of a job in which that shell runs (salloc,
# srun --pty, an element of an array) are forgotten here.

site_env=${site_env:-slurm/site.env}
# In a function, so that it has no arguments: conda's `activate` reads them, and `set --` drops those of the job.
# shellcheck source=/dev/null
source_site() { source "$site_env"; }
if [[ -f $site_env ]]; then source_site || { echo "error: $site_env failed." >&2; exit 2; }; fi

# Slurm sets these for elements of arrays and from the second attempt on; where it does not, they are the outer job's. The
# last element of an array can have the array's own id, for which Slurm shows every element, in a line each.
if [[ -n ${SLURM_ARRAY_JOB_ID:-}${SLURM_RESTART_COUNT:-} ]] &&
  shown=$(scontrol --oneliner show job "$SLURM_JOB_ID" | grep "^JobId=$SLURM_JOB_ID "); then
  [[ $shown == *" ArrayTaskId="* ]] || unset "${!SLURM_ARRAY_@}"
  [[ $shown != *" Restarts=0 "* ]] || unset SLURM_RESTART_COUNT
fi
# A step takes what its job has, and one process sees all GPUs of the job on its node: srun refuses some of these together,
# and --gpus-per-task would show each rank one GPU. SLURM_GPU_BIND=none would show it none: with two or more tasks Slurm
# (22.05) then unsets CUDA_VISIBLE_DEVICES, and where cgroups do not constrain devices, two jobs of a node share its GPUs.
unset SLURM_GPUS_PER_TASK SLURM_NTASKS_PER_GPU SLURM_TRES_PER_TASK SLURM_MEM_PER_CPU SLURM_MEM_PER_GPU SLURM_MEM_PER_NODE \
  "${!SLURM_CPU_BIND@}" "${!SLURM_GPU_BIND@}"
export SLURM_EXPORT_ENV=ALL PYTHONUNBUFFERED=1

job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}
# Slurm sets this itself since 23.02. train.py stops run.stop_before_end seconds ahead of it, signal or not.
if [[ -z ${SLURM_JOB_END_TIME:-} ]] && end=$(squeue --noheader --jobs="$job" --format=%e) && [[ $end == *T* ]]; then
  SLURM_JOB_END_TIME=$(date -d "$end" +%s)
  export SLURM_JOB_END_TIME
fi
