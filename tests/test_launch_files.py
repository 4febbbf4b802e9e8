"""The files of launch/ as far as they can be checked without a cluster: they parse, and say what the code relies on."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ldm_jax.config import DistributedConfig, load_experiment
from ldm_jax.errors import UserError
from ldm_jax.training.launcher import FINAL
from ldm_jax.training.loop import TrainingDiverged
from ldm_jax.training.processes import with_environment
from ldm_jax.training.stopping import SAVED_AND_STOPPED

LAUNCH = Path(__file__).parent.parent / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
JOBSETS = sorted(LAUNCH.glob("*.yaml"))


IMAGE = "registry.example/ldm_jax:tpu"


@pytest.fixture
def called(tmp_path: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Runs a script with other commands in the place of those that reach a cluster, and the variables that are given.

    Each of them writes its arguments and what it reads, a line each, and ends with the statuses of $STATUSES in turn.
    """
    (tmp_path / "bin").mkdir()
    for name in ("kubectl", "gcloud", "srun", "scontrol", "sleep"):
        (tmp_path / "bin" / name).write_text(FAKE)
        (tmp_path / "bin" / name).chmod(0o755)

    def call(script: str, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        path = f"{tmp_path / 'bin'}:/usr/bin:/bin"
        environment = {"PATH": path, "RECORD": str(tmp_path / "record"), **variables}
        command = ["bash", str(LAUNCH / script), *arguments]
        return subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20
        )

    return call


FAKE = """#!/usr/bin/env bash
name="$(basename "$0")"
[[ "$name" == kubectl ]] && { cat; exit 0; }
[[ "$name" == sleep ]] && exit 0
echo "$name $*" >> "$RECORD"
[[ "$name" == scontrol || "$*" == *venv* ]] && exit 0
read -r -a statuses <<< "$STATUSES"
exit "${statuses[$(( $(grep -c 'ldm train' "$RECORD") - 1 ))]}"
"""


def job_of(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """JobSet of a file, and its replicated job."""
    jobset = yaml.safe_load(path.read_text())
    (job,) = jobset["spec"]["replicatedJobs"]
    return jobset, job


def test_there_are_files_for_each_kind_of_cluster():
    assert [path.name for path in [*JOBSETS, *SCRIPTS]] == [
        *("gke_gpu.yaml", "gke_tpu.yaml"),
        *("gke.sh", "slurm.sh", "tpu_pod.sh"),
    ]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_shell(path: Path):
    checked = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, timeout=20)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert path.stat().st_mode & 0o111


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_pass_shellcheck(path: Path):
    checked = subprocess.run(["shellcheck", str(path)], capture_output=True, text=True, timeout=20)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("path", JOBSETS, ids=lambda path: path.name)
def test_jobsets_restart_all_hosts_from_the_last_checkpoint(path: Path):
    jobset, job = job_of(path)
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    spec, pod = job["template"]["spec"], job["template"]["spec"]["template"]["spec"]
    assert spec["backoffLimit"] == 0  # one pod alone is never restarted
    assert spec["parallelism"] == spec["completions"]
    assert pod["restartPolicy"] == "Never"  # podFailurePolicy needs it
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0
    assert pod["terminationGracePeriodSeconds"] >= 120


@pytest.mark.parametrize("path", JOBSETS, ids=lambda path: path.name)
def test_jobsets_fail_for_good_where_another_attempt_would_fail_too(path: Path):
    jobset, job = job_of(path)
    (rule,) = job["template"]["spec"]["podFailurePolicy"]["rules"]
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["containerName"] == container["name"]
    assert rule["onExitCodes"]["values"] == [UserError.exit_code, TrainingDiverged.exit_code]
    assert set(rule["onExitCodes"]["values"]) < set(FINAL)
    (final,) = jobset["spec"]["failurePolicy"]["rules"]
    assert final["action"] == "FailJobSet" and final["onJobFailureReasons"] == ["PodFailurePolicy"]


@pytest.mark.parametrize("path", JOBSETS, ids=lambda path: path.name)
def test_jobsets_run_a_command_that_is_one_on_a_volume_that_is_there(path: Path):
    _, job = job_of(path)
    pod = job["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["args"][:2] == ["ldm", "train"] and load_experiment(container["args"][2])
    assert all(isinstance(argument, str) for argument in container["args"])
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(mounted) == {volume["name"] for volume in pod["volumes"]}
    folder = container["args"][container["args"].index("--run-dir") + 1]
    assert folder.startswith(mounted["runs"] + "/")


def test_the_gpu_jobset_tells_each_process_of_the_others():
    jobset, job = job_of(LAUNCH / "gke_gpu.yaml")
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
    given = {variable["name"]: variable.get("value", "1") for variable in container["env"]}
    config = with_environment(DistributedConfig(), given)
    name = jobset["metadata"]["name"]
    assert config.coordinator == f"{name}-{job['name']}-0-0.{name}:8476"
    assert config.num_processes == job["template"]["spec"]["parallelism"] * job["replicas"]
    (index,) = [v["valueFrom"]["fieldRef"]["fieldPath"] for v in container["env"] if "valueFrom" in v]
    assert index == "metadata.annotations['batch.kubernetes.io/job-completion-index']"


def test_the_tpu_jobset_asks_for_whole_slices():
    _, job = job_of(LAUNCH / "gke_tpu.yaml")
    pod = job["template"]["spec"]["template"]["spec"]
    sides = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    chips = int(sides[0]) * int(sides[1])
    (container,) = pod["containers"]
    assert job["template"]["spec"]["parallelism"] * container["resources"]["limits"]["google.com/tpu"] == chips
    data = int(container["args"][container["args"].index("--mesh.data") + 1])
    assert data % job["replicas"] == 0


@pytest.mark.parametrize("path", JOBSETS, ids=lambda path: path.name)
def test_what_differs_from_cluster_to_cluster_is_filled_in(called: Callable[..., Any], path: Path):
    applied = called("gke.sh", str(path), IMAGE=IMAGE, CLAIM="shared")
    assert (applied.returncode, applied.stderr) == (0, "")
    assert "$" not in applied.stdout
    jobset, filled = yaml.safe_load(path.read_text()), yaml.safe_load(applied.stdout)
    (job,) = filled["spec"]["replicatedJobs"]
    pod = job["template"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["image"] == IMAGE
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == "shared"
    assert filled["metadata"] == jobset["metadata"]


WITHOUT = [
    ("gke.sh", ["launch/gke_tpu.yaml"], {}, "IMAGE: image that the pods run"),
    ("gke.sh", [], {"IMAGE": IMAGE}, "which file: launch/gke.sh launch/gke_tpu.yaml"),
    ("gke.sh", ["launch/none.yaml"], {"IMAGE": IMAGE}, "launch/none.yaml is not there: launch/gke.sh launch/gke_tpu"),
    ("tpu_pod.sh", ["openmoji"], {}, "TPU: name of the TPU slice"),
    ("tpu_pod.sh", ["openmoji"], {"TPU": "t", "ZONE": "z"}, "SOURCE: what pip installs on the workers, such as git+"),
    ("tpu_pod.sh", [], {"TPU": "t", "ZONE": "z", "SOURCE": "s"}, "say what to train: launch/tpu_pod.sh NAME --run-dir"),
    ("slurm.sh", [], {}, "say what to train: sbatch launch/slurm.sh NAME --run-dir"),
]


@pytest.mark.parametrize(("script", "arguments", "variables", "message"), WITHOUT)
def test_what_is_not_given_is_named(
    called: Callable[..., Any], script: str, arguments: list[str], variables: dict[str, str], message: str
):
    ended = called(script, *arguments, **variables)
    assert ended.returncode != 0 and ended.stdout == ""
    assert message in ended.stderr


GIVEN = {
    "tpu_pod.sh": {"TPU": "slice", "ZONE": "zone", "SOURCE": "git+https://host/ldm_jax"},
    "slurm.sh": {"SLURM_JOB_ID": "7"},
}
DIVERGED = TrainingDiverged.exit_code


@pytest.mark.parametrize("script", GIVEN)
@pytest.mark.parametrize(
    ("statuses", "status"), [([0], 0), ([76, 1, 0], 0), ([UserError.exit_code], 2), ([76, DIVERGED], 3), ([1] * 3, 1)]
)
def test_scripts_start_again_what_may_end_otherwise(
    called: Callable[..., Any], tmp_path: Path, script: str, statuses: list[int], status: int
):
    ended = called(script, "openmoji", STATUSES=" ".join(map(str, statuses)), RESTARTS="2", **GIVEN[script])
    assert ended.returncode == status, ended.stderr
    attempts = [line for line in (tmp_path / "record").read_text().splitlines() if "ldm train openmoji" in line]
    assert len(attempts) == len(statuses)


def test_slurm_queues_again_what_was_asked_to_stop(called: Callable[..., Any], tmp_path: Path):
    ended = called("slurm.sh", "openmoji", STATUSES=str(SAVED_AND_STOPPED), **GIVEN["slurm.sh"])
    assert ended.returncode == 0
    assert (tmp_path / "record").read_text().splitlines()[1:] == ["scontrol requeue 7"]
