#!/usr/bin/env bash
# An element of a SLURM array: trains the runs that the list names behind its index.
#
#   slurm_job.sh --members_file=FILE --study=DIR --max_restarts=N
#                [--activate=SCRIPT] [--env=NAME=VALUE]... [--env_file=FILE] -- COMMAND...
#
# SIGTERM reaches the steps, not this script: a script that passes it on to srun has its steps
# killed before they have saved.
set -uo pipefail

refuse() {
  echo "error: $1" >&2
  exit 2
}

members_file='' study='' activate='' env_file='' max_restarts=0 variables=()
while (($#)); do
  case $1 in
    --members_file=*) members_file=${1#*=} ;;
    --study=*) study=${1#*=} ;;
    --max_restarts=*) max_restarts=${1#*=} ;;
    --activate=*) activate=${1#*=} ;;
    --env=*) variables+=("${1#*=}") ;;
    --env_file=*) env_file=${1#*=} ;;
    --) shift && break ;;
    *) refuse "slurm_job.sh does not know $1" ;;
  esac
  shift
done

members=$(sed -n "s/^$SLURM_ARRAY_TASK_ID //p" "$members_file")
[[ -n $members ]] || refuse "$members_file has no line for element $SLURM_ARRAY_TASK_ID"
IFS=, read -r -a runs <<<"$members"

# Whether something of this job is left: a run that has neither ended well nor failed.
left() {
  local run
  for run in "${runs[@]}"; do
    [[ -e $study/runs/$run/DONE || -e $study/runs/$run/FAILED.json ]] || return 0
  done
  return 1
}

# Whether all of it is done; what failed is tried again when it is submitted again.
all_done() {
  local run
  for run in "${runs[@]}"; do
    [[ -e $study/runs/$run/DONE ]] || return 1
  done
}

if all_done; then
  echo "$members: done before"
  exit 0
fi
((${#variables[@]} == 0)) || export "${variables[@]}"
restarts=${SLURM_RESTART_COUNT:-0}
echo "$members: job $SLURM_JOB_ID on ${SLURM_JOB_NODELIST:-?}, start $((restarts + 1))"
if [[ -n $env_file ]]; then
  [[ $(stat -c %a "$env_file") == 600 ]] || refuse "$env_file must have mode 600"
  set -a
  # shellcheck source=/dev/null
  . "$env_file"
  set +a
fi
if [[ -n $activate ]]; then
  set +u # scripts of others read what may not be set
  # shellcheck source=/dev/null
  . "$activate" || refuse "$activate cannot be sourced"
  set -u
fi
export PYTHONUNBUFFERED=1
# Since SLURM 22.05 srun does not take it from sbatch, and would bind a task to one core.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}

# Runs a task's command, and notes its exit code where that is final. Once a task has ended badly
# srun ends the others, and returns that they were ended and not why.
# usage: task FILE COMMAND...
# shellcheck disable=SC2317 # called below, by another shell
task() {
  local code final=$1
  shift
  trap : TERM # the command gets it too, and is to be waited for
  "$@"
  code=$?
  ((code == 0 || code == 75 || code >= 128)) || echo "$code" >"$final"
  exit "$code"
}
export -f task

final=$study/logs/final-$SLURM_JOB_ID
rm -f "$final"
# --export=ALL: or srun would pass on no more than what sbatch was told to.
# shellcheck disable=SC2016 # for the bash of the task
srun --label --kill-on-bad-exit=1 --export=ALL \
  bash -c 'task "$@"' bash "$final" "$@" "--members=$members"
code=$?
if [[ -e $final ]]; then
  code=$(<"$final")
  rm -f "$final"
fi
if ((code == 75 || code >= 128)) && left; then
  if ((restarts < max_restarts)); then
    echo "$members: exit code $code, to be started again"
    scontrol requeue "$SLURM_JOB_ID"
  else
    echo "$members: exit code $code after $restarts restarts, which is the most" >&2
  fi
fi
exit "$code"
