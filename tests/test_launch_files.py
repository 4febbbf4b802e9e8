"""The files of launch/ as far as they can be checked without a cluster: they parse, and say what the code relies on."""

import shutil
import subprocess
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


def job_of(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """JobSet of a file, and its replicated job."""
    jobset = yaml.safe_load(path.read_text())
    (job,) = jobset["spec"]["replicatedJobs"]
    return jobset, job


def test_there_are_files_for_each_kind_of_cluster():
    assert [path.name for path in [*JOBSETS, *SCRIPTS]] == ["gke_gpu.yaml", "gke_tpu.yaml", "slurm.sh", "tpu_pod.sh"]


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


def test_scripts_know_the_exit_statuses():
    for path in SCRIPTS:
        text = path.read_text()
        assert f"0 | {UserError.exit_code} | {TrainingDiverged.exit_code}" in text
    assert f"{SAVED_AND_STOPPED}) scontrol requeue" in (LAUNCH / "slurm.sh").read_text()
