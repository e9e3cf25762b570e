"""Keeps a Serve replica on the loopback address when its node is.

Serve's replicas open a gRPC server for calls between deployments. It asks for Ray's token, but it
listens on every address of the machine, and Serve has no setting for that (Ray 2.60). A platform
that promises to listen on loopback only must not: here the server gets the node's own address.
"""

import importlib
import ipaddress
from typing import Any

import ray


def keep_replica_on_loopback() -> None:
    """Call in a replica's constructor: Serve opens the server once that has returned.

    Does nothing on a node with an outer address, where other nodes' replicas need the server.
    """
    node = str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]  # Ray's
    if not ipaddress.ip_address(node).is_loopback:
        return
    replica: Any = importlib.import_module("ray.serve._private.replica")
    open_port = replica.add_port_to_grpc_server

    def open_loopback_port(server: Any, address: str) -> int:
        port: int = open_port(server, address.replace("[::]", f"[{node}]" if ":" in node else node))
        return port

    replica.add_port_to_grpc_server = open_loopback_port
