"""What the coordination service of jax says of processes that have not come, in words."""

import os
import subprocess
import sys

import pytest

from ldm_jax.training.launcher import free_port
from ldm_jax.training.roll_call import RollCall, roll_call

REPORT = (
    "W1129 coordination_service.cc:388] ConnectAfterBarrierPasses: DEADLINE_EXCEEDED: Barrier timed out. Id: "
    "[Init]Wait_for_all_tasks_to_register::0. This usually happens because a task triggered the barrier too early.\n"
    "# of tasks that reached the barrier: {come}.\n"
    "The first task at the barrier: 0. Some timed out task names:\n{names}\n"
    " [type.googleapis.com/tensorflow.CoordinationServiceError='']\n"
)


@pytest.mark.parametrize(
    ("come", "names", "told"),
    [
        ("1/2", ["1"], "process 1 of 2 has not come"),
        ("2/4", ["3", "1"], "processes 1, 3 of 4 have not come"),
        ("2/4", ["/job:jax_worker/replica:0/task:3", "/job:jax_worker/replica:0/task:1"], "processes 1, 3 of 4 have"),
        ("10/64", [str(i) for i in range(10, 30)], "28, 29 and 34 more of 64 have not come"),
    ],
)
def test_who_is_absent_is_named(come: str, names: list[str], told: str):
    report = REPORT.format(come=come, names="\n".join(names))
    assert told in RollCall(report=report + report).absent


@pytest.mark.parametrize("report", ["", "E1129 failed to connect to all addresses\n", REPORT[:150]])
def test_nothing_is_made_up(report: str):
    assert RollCall(report=report).absent == ""


ALONE = """
import os, sys, jax
from ldm_jax.training.roll_call import roll_call
with roll_call(60) as call:
    jax.distributed.initialize(sys.argv[1], 1, 0, cluster_detection_method="deactivate")
    os.write(2, b"heard\\n")
os.write(2, b"not heard\\n")
assert call.calls and "heard" in call.report and "not heard" not in call.report
"""


def test_what_goes_to_stderr_meanwhile_is_passed_on():
    command = [sys.executable, "-c", ALONE, f"127.0.0.1:{free_port()}"]
    ended = subprocess.run(command, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "heard\nnot heard\n" in ended.stderr


def test_jax_is_left_as_it_was():
    from jax._src.lib import _jax

    before = _jax.get_distributed_runtime_service, _jax.get_distributed_runtime_client
    with pytest.raises(KeyError), roll_call(3):
        raise KeyError
    assert (
        _jax.get_distributed_runtime_service,
        _jax.get_distributed_runtime_client,
    ) == before
