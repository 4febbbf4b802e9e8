"""How a process finds the other processes of its run, and how long it waits for them."""

from dataclasses import dataclass
from typing import Literal

from ldm_jax.config.checks import require, require_not_negative, require_positive


@dataclass(frozen=True, kw_only=True)
class DistributedConfig:
    """Other processes of the same run: found by asking the cluster, or given by these flags or the environment."""

    method: Literal["auto", "none", "slurm", "ompi", "mpi4py"] = "auto"
    """Who knows the processes: `auto` asks jax (TPU VM, GKE, Slurm, Open MPI) and runs alone where it sees no cluster;
    `none` runs alone."""
    coordinator: str | None = None
    """Address of process 0 as host:port; default: $JAX_COORDINATOR_ADDRESS."""
    num_processes: int | None = None
    """Processes in all; default: $JAX_NUM_PROCESSES."""
    process_id: int | None = None
    """Number of this process, from 0; default: $JAX_PROCESS_ID."""
    heartbeat_seconds: float = 60.0
    """Time in which a dead or stuck process ends all others."""
    busy_seconds: float = 1800.0
    """The same for what takes long at times: compiling, evaluating, drawing and saving, while the others wait; and for
    getting on with a task that processes share, such as encoding latents, while the others do."""
    longest_seconds: float = 14400.0
    """The same for preparing a data set, which process 0 does for all, and for all being at the same such task."""
    start_seconds: float = 300.0
    """Time in which all processes have to have come."""

    def __post_init__(self) -> None:
        require_positive(self, "heartbeat_seconds", "busy_seconds", "longest_seconds", "start_seconds")
        require(
            self.heartbeat_seconds >= 5,
            f"DistributedConfig.heartbeat_seconds={self.heartbeat_seconds} is shorter than a busy machine may be "
            "silent; use at least 5",
        )
        if self.process_id is not None:
            require_not_negative(self, "process_id")
        if self.num_processes is not None:
            require_positive(self, "num_processes")
            require(
                self.process_id is None or self.process_id < self.num_processes,
                f"DistributedConfig.process_id={self.process_id} must lie between 0 and "
                f"num_processes - 1 = {self.num_processes - 1}",
            )
        if self.coordinator is not None:
            host, _, port = self.coordinator.rpartition(":")
            require(
                bool(host) and port.isdecimal(),
                f"DistributedConfig.coordinator={self.coordinator!r} must be host:port, such as 10.0.0.2:8476",
            )
