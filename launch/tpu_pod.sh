#!/usr/bin/env bash
# Train on every worker of one TPU slice: ./launch/tpu_pod.sh openmoji --run-dir gs://BUCKET/runs/openmoji
#
# Set TPU (name), ZONE, SOURCE (what pip installs on the workers: a git+https:// address or a wheel of this project that
# they reach) and, unless gcloud has one, PROJECT. The slice exists already, for example by
#   gcloud compute tpus tpu-vm create $TPU --zone $ZONE --accelerator-type v5litepod-16 --version v2-alpha-tpuv5-lite
# The run folder has to be one that all workers see. jax finds the other workers by itself on a TPU VM.
set -euo pipefail

: "${TPU:?name of the TPU slice}" "${ZONE:?its zone}" "${SOURCE:?what pip installs on the workers, such as git+https://HOST/PATH}"
[[ $# -gt 0 ]] || { echo "say what to train: launch/tpu_pod.sh NAME --run-dir gs://BUCKET/RUN" >&2; exit 2; }
RESTARTS="${RESTARTS:-10}"

on_all_workers() {
  gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" ${PROJECT:+--project "$PROJECT"} --worker all --command "$1"
}

command="ldm train$(printf ' %q' "$@")"
on_all_workers "python3 -m venv \$HOME/ldm && \$HOME/ldm/bin/pip install -q 'ldm_jax[tpu] @ $SOURCE'"

# 0: finished; 2 and 3: would end so again; everything else goes on from the last checkpoint.
for ((attempt = 0; attempt <= RESTARTS; attempt++)); do
  status=0
  on_all_workers "\$HOME/ldm/bin/$command" || status=$?
  case "$status" in 0 | 2 | 3 | 130) exit "$status" ;; esac
  echo "ended with status $status; attempt $((attempt + 1)) of $RESTARTS follows" >&2
  sleep 10
done
exit "$status"
