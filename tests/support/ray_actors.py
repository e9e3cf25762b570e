"""Actors that each want a processor. A process of its own, as a driver of Ray is.

python -m tests.support.ray_actors ADDRESS N    prints where they run; ends with its input
"""

import json
import sys
from typing import Any

import ray as untyped_ray

ray: Any = untyped_ray


class Worker:
    """Does nothing, somewhere."""

    def place(self) -> str:
        """Returns the Ray id of the node that it is on."""
        node_id: str = ray.get_runtime_context().get_node_id()
        return node_id


def main(address: str, n_actors: int) -> None:
    """Starts them, and waits."""
    ray.init(address=address, logging_level="ERROR")
    actors = [ray.remote(num_cpus=1)(Worker).remote() for _ in range(n_actors)]
    places = ray.get([actor.place.remote() for actor in actors])
    print(json.dumps(places), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
