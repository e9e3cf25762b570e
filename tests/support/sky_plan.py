"""Plans tasks with SkyPilot's own code. Runs in SkyPilot's environment, with a HOME of its own.

python sky_plan.py FILE...    prints what SkyPilot says, then a line of JSON for each file
"""

import json
import sys
from importlib import import_module
from typing import Any

# By name: type checkers take the repository's folder sky/ for the package.
sky: Any = import_module("sky")
check: Any = import_module("sky.check")
state: Any = import_module("sky.global_user_state")
capability: Any = import_module("sky.clouds.cloud").CloudCapability
optimizer: Any = import_module("sky.optimizer").Optimizer
yaml_utils: Any = import_module("sky.utils.yaml_utils")

_WORKSPACE = "default"
_SECRETS = [("RAY_AUTH_TOKEN", "t"), ("HF_TOKEN", "t")]
_ENVS = [("RAY_HEAD", "10.0.0.5:6379")]


def main() -> None:
    """Plans each file with the clouds of the test's catalogue enabled."""
    state.set_enabled_clouds(["AWS", "GCP", "Lambda"], capability.COMPUTE, _WORKSPACE)
    allowed = check._get_workspace_allowed_clouds(_WORKSPACE)
    state.set_allowed_clouds(allowed, _WORKSPACE)
    for file in sys.argv[1:]:
        print(json.dumps(plan(file)), flush=True)


def plan(file: str) -> dict[str, object]:
    """Returns what SkyPilot would launch."""
    config = yaml_utils.read_yaml(file)
    envs = [pair for pair in _ENVS if pair[0] in config.get("envs", {})]
    secrets = [pair for pair in _SECRETS if pair[0] in config.get("secrets", {})]
    task = sky.Task.from_yaml_config(config, envs, secrets)
    with sky.Dag() as dag:
        dag.add(task)
    optimizer.optimize(dag, quiet=False)
    best = task.best_resources
    service = task.service
    return {
        "cloud": str(best.cloud),
        "instance_type": best.instance_type,
        "accelerators": best.accelerators,
        "use_spot": best.use_spot,
        "usd_per_h": best.get_cost(3600),
        "ports": best.ports,
        "choices": len(task.resources),
        "readiness_path": service.readiness_path if service else None,
        "spot_placer": service.spot_placer if service else None,
    }


if __name__ == "__main__":
    main()
