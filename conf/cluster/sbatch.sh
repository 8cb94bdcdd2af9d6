#!/usr/bin/env bash
# sbatch conf/cluster/sbatch.sh experiment=mnist5k/vq budget=20h      (docs/cluster.md)
#SBATCH --job-name=gentok
#SBATCH --output=%x_%j.log
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
# Processes per node (ntasks-per-node) and GPUs per node (gres) are the same number. Five minutes before the time is over, Slurm sends USR1 to
# this shell alone, which has the run save itself and puts the job back into the queue; its next start goes on from there.
set -u

stopped=
trap 'stopped=yes' USR1
srun --kill-on-bad-exit=1 "${PYTHON:-python}" "${TRAIN:-train.py}" cluster=slurm "$@" &
step=$!

told=
while kill -0 "$step" 2>/dev/null; do # looked at every second, so that a signal is heard whenever it comes
    if [ -n "$stopped" ] && [ -z "$told" ]; then
        kill -TERM "$step"
        told=yes
    fi
    sleep 1
done
wait "$step"
status=$?

if [ -n "$stopped" ] && [ "$status" -ne 0 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
