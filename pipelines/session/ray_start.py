"""Ray for one start of the program."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping

import ray

from pipelines.session.plan_table import local_cpus
from serve.proxy_errors import ENVIRONMENT
from stepwiser.config import RunConfig
from stepwiser.errors import UserError

PASSED_ON = (
    "OMP_NUM_THREADS",
    "PYTHONPATH",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "HF_ENDPOINT",
    "WANDB_MODE",
)
"""Variables of this process that those on other nodes get. No token: Ray shows these to whoever
sees its dashboard."""


def start_ray(config: RunConfig) -> bool:
    """Join the cluster that the config or the environment names, or start one of this process.

    Returns whether it was started here, and ends with `ray.shutdown`. Raises UserError where it
    cannot be.
    """
    if any(character.isspace() for character in sys.executable):
        raise UserError(
            f"Ray cannot start workers with the interpreter {sys.executable}: its path has a "
            "space; run .venv/bin/stepwiser, which `make setup` gave a path without one"
        )
    # Submitted jobs and `ray start` leave an address in the environment.
    address = config.cluster.address or os.environ.get("RAY_ADDRESS")
    if address:
        # Ray takes no variable from both, a job and its driver.
        own = _of_job()
        passed = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        variables = {**ENVIRONMENT, **passed}  # the first for the proxies of stage serve
        environment = {"env_vars": {n: value for n, value in variables.items() if n not in own}}
        ray.init(address=address, log_to_driver=False, runtime_env=environment)
        return False
    # One process less for each training: nobody takes this machine away with a notice.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    # Inherited, and not by a runtime environment: that is another process for each worker, and no
    # use of those that Ray starts ahead.
    handed_down = {name: value for name, value in ENVIRONMENT.items() if name not in os.environ}
    os.environ.update(handed_down)
    try:
        ray.init(
            address="local",
            num_cpus=int(local_cpus(config)),
            object_store_memory=config.cluster.object_store_mb * 2**20,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        )
    except BaseException as error:
        ray.shutdown()  # what there is of it
        # Ray gives its own processes 30 seconds, and raises a bare Exception after that.
        if "timed out during startup" not in str(error):
            raise
        raise UserError(
            f"Ray did not start within its 30 seconds on {os.cpu_count()} cores with a load of "
            f"{os.getloadavg()[0]:.0f}: start the same command again when the machine is less "
            "busy"
        ) from error
    finally:
        for name in handed_down:
            del os.environ[name]  # of what this process starts, and not of itself
    return True


def _of_job() -> Mapping[str, str]:
    """Variables that this process has as a job of a cluster; every worker of the job has them."""
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    variables: Mapping[str, str] = (job.get("runtime_env") or {}).get("env_vars") or {}
    return variables
