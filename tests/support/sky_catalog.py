"""A small price catalogue in SkyPilot's form, invented, for tests that must not ask the internet.

SkyPilot keeps a file that has no digest beside it as its owner's own and never replaces it.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

_GPUS = {"H100": "H100", "A100-80GB": "A100"}
_AWS_ZONES = {
    "us-east-1": ("use1-az1", "use1-az2"),
    "us-east-2": ("use2-az1", "use2-az2"),
    "us-west-2": ("usw2-az1",),
}
_AMI = "ami-1e749f67"
"""Of those that moto has from the start."""
_TAGS = ("custom-gpu-ubuntu", "custom-cpu-ubuntu", "gpu-ubuntu-2204", "cpu-ubuntu-2204")

Row = Sequence[object]


def write_catalog(home: Path) -> None:
    """Writes files for AWS, GCP and Lambda into a home folder."""
    root = home / ".sky" / "catalogs" / "v8"
    _write_aws(root / "aws")
    _write_gcp(root / "gcp")
    _write_lambda(root / "lambda")
    clouds = "['AWS', 'GCP', 'Lambda']"
    _write(
        root / "common" / "accelerators.csv",
        "AcceleratorName,Clouds",
        [[name, clouds] for name in (*_GPUS, "A100")],
    )


def _write_aws(folder: Path) -> None:
    columns = (
        "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,GpuInfo,Price,SpotPrice,"
        "Region,AvailabilityZone,Arch,LocalDiskType,NVMeSupported,LocalDiskSize,LocalDiskCount,"
        "MaximumEfaInterfaces"
    )
    rows: list[Row] = []
    disk = ["ssd", True, 1000, 8, 4]
    for i, (region, zones) in enumerate(_AWS_ZONES.items()):
        for zone in zones:
            at = [region, zone, "x86_64"]
            for type_, gpu, vcpus, gib, price, spot in (
                ("p5.48xlarge", "H100", 192, 2048, 55.0, 18.0 - 2 * i),
                ("p4de.24xlarge", "A100-80GB", 96, 1152, 27.5, 10.0 - i),
            ):
                rows.append([type_, gpu, 8, vcpus, gib, _info(gpu, 8), price, spot, *at, *disk])
            for type_, vcpus, gib, price in (("m6i.large", 2, 8, 0.1), ("m6i.xlarge", 4, 16, 0.2)):
                rows.append([type_, "", "", vcpus, gib, "", price, price * 0.4, *at, *[""] * 5])
    _write(folder / "vms.csv", columns, rows)
    images = [
        [f"skypilot:{tag}", region, "ubuntu", "22.04", _AMI, "20260101", ""]
        for tag in (*_TAGS, "custom-gpu-ubuntu-cuda13")
        for region in _AWS_ZONES
    ]
    _write(folder / "images.csv", _IMAGES, images)
    _write(
        folder / "instance_quota_mapping.csv",
        "InstanceType,OnDemandInstanceCode,SpotInstanceCode",
        [["p5.48xlarge", "L-1", "L-2"]],
    )
    names = [
        [zone, f"{region}{'ab'[i]}"]
        for region, zones in _AWS_ZONES.items()
        for i, zone in enumerate(zones)
    ]
    _write(folder / "az_mappings-default.csv", "AvailabilityZone,AvailabilityZoneName", names)


_IMAGES = "Tag,Region,OS,OSVersion,ImageId,CreationDate,BaseImageId"


def _write_gcp(folder: Path) -> None:
    """On this cloud a GPU and its machine have a row each."""
    columns = (
        "InstanceType,vCPUs,MemoryGiB,AcceleratorName,AcceleratorCount,GpuInfo,Region,"
        "AvailabilityZone,Price,SpotPrice"
    )
    rows: list[Row] = []
    for region, dearer in (("us-central1", 0.0), ("us-east4", 1.0)):
        at = [region, f"{region}-a"]
        for type_, gpu, vcpus, gib, price, spot in (
            ("a3-highgpu-8g", "H100", 208, 1872, 78.0, 14.0),
            ("a2-ultragpu-8g", "A100-80GB", 96, 1360, 31.0, 8.0),
        ):
            rows.append([type_, vcpus, gib, "", "", "", *at, 9.0, 2.5])
            rows.append(["", "", "", gpu, 8, _info(gpu, 8), *at, price, spot + dearer])
        rows.append(["n2-standard-2", 2, 8, "", "", "", *at, 0.1, 0.03])
        rows.append(["n2-standard-4", 4, 16, "", "", "", *at, 0.2, 0.06])
    _write(folder / "vms.csv", columns, rows)
    image = ["", "ubuntu", "22.04", "projects/p/global/images/i", "20260101", ""]
    tags = ("custom-gpu-ubuntu-2204-cuda13", "custom-gpu-ubuntu-2204", "custom-cpu-ubuntu-2204")
    _write(folder / "images.csv", _IMAGES, [[f"skypilot:{tag}", *image] for tag in tags])
    _write(folder / "accelerator_quota_mapping.csv", "Accelerator,OnDemandQuota,SpotQuota", [])


def _write_lambda(folder: Path) -> None:
    columns = (
        "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,Price,Region,GpuInfo,"
        "SpotPrice"
    )
    row = ["gpu_8x_h100_sxm5", "H100", 8, 208, 1800, 24.0, "us-east-1", _info("H100", 8), ""]
    _write(folder / "vms.csv", columns, [row])


def _info(gpu: str, count: int) -> str:
    one = {"Name": _GPUS[gpu], "Count": float(count), "MemoryInfo": {"SizeInMiB": 81920}}
    return repr({"Gpus": [one], "TotalGpuMemoryInMiB": 81920 * count})


def _write(file: Path, columns: str, rows: Sequence[Row]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns.split(","))
        writer.writerows(rows)
