"""Runs `ray start` for a further node on the loopback address, where Ray would have but a head.

    python -m cluster.local_node start --address=127.0.0.1:6379 …    as `ray`

Ray knows two worlds: one machine, where every address is the loopback one, and clusters, where it
replaces that address by the machine's outer one, and listens there. A fleet on this machine is
both.
"""

import sys
from typing import Any


def main() -> None:
    """Be `ray`, in a cluster on loopback."""
    from ray._private import ray_constants, services
    from ray.scripts import scripts

    constants: Any = ray_constants
    addresses: Any = services
    # Of this process alone: those that it starts are told by their environment that they are on
    # one machine, and keep to the loopback address.
    constants.ENABLE_RAY_CLUSTER = True
    addresses.resolve_ip_for_localhost = _keep
    sys.argv[0] = "ray"
    command: Any = scripts
    command.main()


def _keep(host: str) -> str:
    return host


if __name__ == "__main__":
    main()
