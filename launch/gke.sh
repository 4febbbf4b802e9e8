#!/usr/bin/env bash
# Train on GKE, on TPU slices or GPU nodes: IMAGE=europe-docker.pkg.dev/me/ldm/ldm_jax:tpu launch/gke.sh launch/gke_tpu.yaml
#
# Set IMAGE: python with `pip install 'ldm_jax[tpu]'` (or [cuda12]) in a registry that the cluster reaches; and, unless it
# is `runs`, CLAIM: the PersistentVolumeClaim for run folders. It needs JobSet 0.6 or newer in the cluster of kubectl.
set -euo pipefail

usage="launch/gke.sh launch/gke_tpu.yaml or launch/gke_gpu.yaml"
FILE="${1:?which file: $usage}"
: "${IMAGE:?image that the pods run, such as europe-docker.pkg.dev/me/ldm/ldm_jax:tpu}"
export IMAGE CLAIM="${CLAIM:-runs}"
[[ -f "$FILE" ]] || { echo "$FILE is not there: $usage" >&2; exit 2; }

# Filled in by bash itself: envsubst is not everywhere, and leaves a hole for what is not set.
text="$(<"$FILE")"
for name in IMAGE CLAIM; do
  text="${text//\$\{$name\}/${!name}}"
done
kubectl apply -f - <<<"$text"
