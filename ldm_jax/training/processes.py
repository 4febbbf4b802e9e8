"""Joining the other processes of a run, waiting for them, and leaving so that none of them waits in vain.

The work is jax's: it finds the cluster, starts the coordination service in process 0 and connects to it. What is added
here is a watch that works alike in all its versions (`ldm_jax.training.watchdog`) and an end that hangs nowhere.
"""

import atexit
import contextlib
import itertools
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax._src import clusters, distributed  # detection, the key-value store and barriers have no public door

from ldm_jax.config import DistributedConfig
from ldm_jax.errors import UserError, is_out_of_memory
from ldm_jax.training.roll_call import RollCall, roll_call
from ldm_jax.training.watchdog import PEER_LOST, Limits, Patience, Watch, end_process

logger = logging.getLogger(__name__)

VARIABLES = {
    "coordinator": "JAX_COORDINATOR_ADDRESS",
    "num_processes": "JAX_NUM_PROCESSES",
    "process_id": "JAX_PROCESS_ID",
}
"""Environment variable of each flag that tells of the other processes."""

_LONG = 7 * 24 * 3600
_LATER = 15
"""Seconds by which jax's own limits are longer: ours come first, and say more."""
_LITTLE = 3
"""Seconds by which process 0 waits longer than the others, that these end by themselves."""
_VERDICT_SECONDS = 5.0

_steps, _barriers = itertools.count(1), itertools.count(1)
_watch: Watch | None = None


class PeerLost(UserError):
    """Other processes did not come, or are gone."""

    exit_code = PEER_LOST


def with_environment(config: DistributedConfig, environment: Mapping[str, str]) -> DistributedConfig:
    """The configuration with what its flags leave open taken from `VARIABLES`.

    Raises:
        UserError: a variable is not a number, or some of the three are given and others are missing.
    """
    given: dict[str, Any] = {name: getattr(config, name) for name in VARIABLES}
    for name, variable in VARIABLES.items():
        if given[name] is None and variable in environment:
            given[name] = environment[variable] if name == "coordinator" else _number(variable, environment[variable])
    missing = [name for name, value in given.items() if value is None]
    if missing and any(given[name] is not None for name in ("num_processes", "process_id")):
        flags = " and ".join(f"--distributed.{name.replace('_', '-')} (${VARIABLES[name]})" for name in missing)
        raise UserError(f"of several processes each needs to know all three: {flags} is missing")
    fields = {name: getattr(config, name) for name in DistributedConfig.__dataclass_fields__}
    return DistributedConfig(**(fields | given))


def _number(variable: str, value: str) -> int:
    if not value.isdecimal():
        raise UserError(f"{variable}={value!r} must be a whole number")
    return int(value)


@contextlib.contextmanager
def joined(config: DistributedConfig) -> Iterator[None]:
    """Be one of the processes of a run while entered, if there are others or a cluster that may send signals.

    Before anything touches a device. Who leaves by an error ends the others with it; `Interrupted` comes to all alike.

    Raises:
        UserError: the flags are wrong, or the cluster that was asked for is not there.
        PeerLost: the others did not come in time.
    """
    config = with_environment(config, os.environ)
    if not _initialize(config):
        yield
        return
    _start_watch(config)
    try:
        yield
    except BaseException as error:
        if isinstance(error, UserError) and error.comes_to_all:
            _end_together()
        else:
            _end_alone(error)
        raise
    _end_together()


def _initialize(config: DistributedConfig) -> bool:
    """Let jax join the processes; False if there are none to join."""
    explicit = config.num_processes is not None
    if config.method == "none" or (config.method == "auto" and not explicit and not _cluster_is_seen()):
        return False
    others: dict[str, Any] = {name: getattr(config, name) for name in VARIABLES} if explicit else {}
    if explicit:
        others["coordinator_address"] = others.pop("coordinator")
    method = "deactivate" if explicit else None if config.method == "auto" else config.method
    call = None
    try:
        if explicit and config.process_id != 0:
            _await_coordinator(config)
        with _all_come(config) as call:
            jax.distributed.initialize(
                **others,
                cluster_detection_method=method,
                initialization_timeout=int(config.start_seconds) + _LATER,
                heartbeat_timeout_seconds=int(config.heartbeat_seconds) + _LATER,
                shutdown_timeout_seconds=int(config.heartbeat_seconds),
            )
    except ValueError as error:
        raise UserError(f"--distributed.method {config.method}: {error}") from error
    except (RuntimeError, OSError) as error:
        if call is not None and call.absent:
            raise PeerLost(
                f"{call.absent} within {config.start_seconds:.0f} s; are all started, and do they reach process 0 at "
                f"{distributed.global_state.coordinator_address}? --distributed.method none runs alone"
            ) from error
        where = f"process 0 at {config.coordinator}" if explicit else "the cluster that jax sees"
        raise PeerLost(
            f"cannot join {where} within {config.start_seconds:.0f} s ({str(error).partition(chr(10))[0]}); are all "
            "processes started, and is its port open? --distributed.method none runs alone"
        ) from error
    return True


@contextlib.contextmanager
def _all_come(config: DistributedConfig) -> Iterator[RollCall]:
    """End this process if the block takes too long, for jax would abort it; process 0 goes by its roll call.

    That aborts those that are still there: who came later than the first by more than the little that it waits longer.
    """
    explicit = config.num_processes is not None
    who = f"process {config.process_id} of {config.num_processes}" if explicit else "this process"
    where = config.coordinator or "process 0 of the cluster that jax sees"
    verdict = (
        f"{who} has waited {config.start_seconds:.0f} s for the others, and not all have come; are all started, and do "
        f"they reach {where}? --distributed.method none runs alone"
    )

    def end() -> None:
        if not call.calls:
            end_process(verdict, PEER_LOST)

    timer = threading.Timer(config.start_seconds, end)
    timer.daemon = True
    with roll_call(int(config.start_seconds) + _LITTLE) as call:
        timer.start()
        try:
            yield call
        finally:
            timer.cancel()


def _cluster_is_seen() -> bool:
    """Whether jax would find a cluster; asked before it is, for it refuses where devices are in use already."""
    kinds = clusters.ClusterEnv._cluster_types
    return any(kind.is_env_present() for kind in kinds if not kind.opt_in_only_method)


def _await_coordinator(config: DistributedConfig) -> None:
    """Return when process 0 listens; jax aborts the process, without a word about where, when that takes too long."""
    host, _, port = str(config.coordinator).rpartition(":")
    until = time.monotonic() + config.start_seconds
    while True:
        try:
            return socket.create_connection((host.strip("[]"), int(port)), timeout=config.start_seconds).close()
        except OSError:
            if time.monotonic() > until:
                raise
        time.sleep(0.2)


def _start_watch(config: DistributedConfig) -> None:
    global _watch
    state = distributed.global_state
    if state.process_id > 0:
        logging.getLogger("ldm_jax").setLevel(logging.ERROR)  # what is news is said once
    if state.num_processes == 1:
        return
    limits = Limits(config.heartbeat_seconds, config.busy_seconds, config.longest_seconds)
    _watch = Watch(state.process_id, state.num_processes, limits)
    host = str(state.coordinator_address).rpartition(":")[0].strip("[]")
    if state.process_id == 0:
        token, server = secrets.token_hex(16), _listen(host)
        _client().key_value_set("ldm_jax/watch", f"{server.getsockname()[1]} {token}")
        _watch.serve(server, token)
    else:
        port, token = _client().blocking_key_value_get("ldm_jax/watch", int(config.start_seconds * 1000)).split()
        _watch.follow(socket.create_connection((host, int(port)), timeout=config.start_seconds), token)
    logger.info("process %d of %d has joined", state.process_id, state.num_processes)


def _listen(host: str) -> socket.socket:
    if host in ("127.0.0.1", "localhost"):
        return socket.create_server(("127.0.0.1", 0))
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def _client() -> Any:
    return distributed.global_state.client


def are_joined() -> bool:
    """Whether this process is one of a run that jax coordinates; it may be the only one."""
    return _client() is not None


def is_first() -> bool:
    """Whether this is the process that writes and speaks for all."""
    return jax.process_index() == 0


def next_step() -> int:
    """A number that grows by one with every call, over all stages: by it jax finds a step for all to stop at."""
    return next(_steps)


def note(task: str, patience: Patience = "busy") -> None:
    """Tell the watch that a task begins, and how long one process may need for it while the others wait."""
    if _watch is not None:
        _watch.note(task, patience)


def advance() -> None:
    """Tell the watch that this process gets on with a task, of which others may have less: as often as it likes."""
    if _watch is not None:
        _watch.advance()


def barrier(name: str, task: str) -> None:
    """Return when all processes have come here, to begin a task; who is dead or stuck before ends them by the watch."""
    note(task)
    if are_joined() and jax.process_count() > 1:
        _client().wait_at_barrier(f"ldm_jax/{name}/{next(_barriers)}", _LONG * 1000)


@contextlib.contextmanager
def first_before_others() -> Iterator[None]:
    """Let process 0 go through the block while the others wait: they find what it has made."""
    barrier("before", "coming to what process 0 prepares for all")
    note("preparing data and folder for all", "longest")
    if not is_first():
        barrier("first", "opening what process 0 has prepared")
    yield
    if is_first():
        barrier("first", "waiting for the others to open it")
    barrier("after", "going on with what is prepared")


def _end_together() -> None:
    barrier("end", "ending")
    if _watch is not None:
        _watch.finish()
    jax.distributed.shutdown()


def _exit_code_of(error: BaseException) -> int:
    """As `cli.run` has it."""
    if isinstance(error, UserError):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return 130
    return UserError.exit_code if isinstance(error, OSError) or is_out_of_memory(error) else 1


def _end_alone(error: BaseException) -> None:
    """End so that the others do not wait: they hear why, and nothing here waits for them."""
    code = _exit_code_of(error)
    if isinstance(error, RuntimeError):  # a collective fails when another process dies: the watch names it and ends us
        time.sleep(_VERDICT_SECONDS)
    if _watch is not None:
        _watch.fail(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}", code)
    atexit.register(os._exit, code)  # comes before jax's own, which would wait for the others
