"""AWS as moto plays it, on loopback, with zones that can be out of stock. A process of its own.

python -m tests.support.moto_cloud PORT FOLDER    serves until it is killed

A zone is out of stock while FOLDER/out-of-stock/ZONE exists; FOLDER/no-quota/ZONE likewise.
"""

import json
import logging
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import boto3
from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.ec2.models import ec2_backends
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple

REGIONS = ("us-east-1", "us-east-2", "us-west-2")
_ERRORS = {
    "out-of-stock": (
        "InsufficientInstanceCapacity",
        "We currently do not have sufficient capacity",
    ),
    "no-quota": ("MaxSpotInstanceCountExceeded", "Max spot instance count exceeded"),
}
_XML = (
    '<?xml version="1.0" encoding="UTF-8"?><Response><Errors><Error><Code>{}</Code>'
    "<Message>{}</Message></Error></Errors><RequestID>r</RequestID></Response>"
)

_ROLE = "skypilot-v1"

App = Callable[..., Iterable[bytes]]


class ShortStock:
    """Answers launches in some zones as AWS does when it has none left; the rest is moto's."""

    def __init__(self, app: App, folder: Path) -> None:
        self._app = app
        self._folder = folder

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., object]
    ) -> Iterable[bytes]:
        body: bytes = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = _Again(body)
        asked = parse_qs(body.decode("utf-8", "replace"))
        if asked.get("Action") == ["RunInstances"]:
            subnets = {v[0] for k, v in asked.items() if k.endswith("SubnetId")}
            zone = next((_zone_of(subnet) for subnet in subnets), "")
            for name, (code, text) in _ERRORS.items():
                if zone and (self._folder / name / zone).exists():
                    start_response("400 Bad Request", [("Content-Type", "text/xml")])
                    return [_XML.format(code, text).encode()]
        return self._app(environ, start_response)


def _zone_of(subnet_id: str) -> str:
    """Returns a subnet's zone: it is by the subnet that SkyPilot says where."""
    for region in REGIONS:
        for subnet in ec2_backends[DEFAULT_ACCOUNT_ID][region].describe_subnets():
            if subnet.id == subnet_id:
                return str(subnet.availability_zone)
    return ""


class _Again:
    """A body that has been read once."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def read(self, size: int = -1) -> bytes:
        size = len(self._body) if size is None or size < 0 else size
        part, self._body = self._body[:size], self._body[size:]
        return part

    def readline(self, size: int = -1) -> bytes:
        return self.read(size)


def make_networks(endpoint: str, network: str) -> None:
    """Makes a private network in each region.

    Args:
        endpoint: Of moto's AWS.
        network: What all addresses begin with, such as 10.77.
    """
    for i, region in enumerate(REGIONS):
        ec2 = boto3.client("ec2", region_name=region, endpoint_url=endpoint)
        vpc = ec2.create_vpc(CidrBlock=f"{network}.{i * 64}.0/18")["Vpc"]["VpcId"]
        ec2.create_tags(Resources=[vpc], Tags=[{"Key": "Name", "Value": "loopvpc"}])
        zones = ec2.describe_availability_zones()["AvailabilityZones"][:6]
        for j, zone in enumerate(zones):
            block = f"{network}.{i * 64 + j}.0/24"
            ec2.create_subnet(VpcId=vpc, AvailabilityZone=zone["ZoneName"], CidrBlock=block)


def make_role(endpoint: str) -> None:
    """Makes what SkyPilot makes in an account once.

    moto refuses a policy of SkyPilot's that AWS takes, as it says no version. And SkyPilot waits
    15 s after it.
    """
    iam = boto3.client("iam", region_name=REGIONS[0], endpoint_url=endpoint)
    trust = {"Version": "2012-10-17", "Statement": []}
    iam.create_role(RoleName=_ROLE, AssumeRolePolicyDocument=json.dumps(trust))
    iam.create_instance_profile(InstanceProfileName=_ROLE)
    iam.add_role_to_instance_profile(InstanceProfileName=_ROLE, RoleName=_ROLE)


def list_instances(endpoint: str) -> list[dict[str, str]]:
    """Returns what runs or starts: id, zone, market, address and the cluster's name."""
    found = []
    for region in REGIONS:
        ec2 = boto3.client("ec2", region_name=region, endpoint_url=endpoint)
        states = [{"Name": "instance-state-name", "Values": ["pending", "running"]}]
        for reservation in ec2.describe_instances(Filters=states)["Reservations"]:
            for instance in reservation["Instances"]:
                tags = {tag["Key"]: tag["Value"] for tag in instance.get("Tags", [])}
                found.append(
                    {
                        "id": instance["InstanceId"],
                        "region": region,
                        "zone": instance["Placement"]["AvailabilityZone"],
                        "address": instance.get("PrivateIpAddress", ""),
                        "market": instance.get("InstanceLifecycle", "on-demand"),
                        "name": tags.get("skypilot-cluster-name", tags.get("Name", "")),
                    }
                )
    return found


def main(port: int, folder: Path) -> None:
    """Serves."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    app = ShortStock(DomainDispatcherApplication(create_backend_app), folder)
    run_simple("127.0.0.1", port, app, threaded=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
