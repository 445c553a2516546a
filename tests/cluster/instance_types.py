"""What the machines of the cluster files are, as their providers describe them.

AWS: DescribeInstanceTypes and DescribeInstanceTypeOfferings, whose answers moto carries.
Google, docs.cloud.google.com/compute/docs: accelerator-optimized-machines for A2,
general-purpose-machines for N2, gpus/gpu-regions-zones for the zones.
Azure, learn.microsoft.com/azure/virtual-machines/sizes: gpu-accelerated/ndasra100v4-series,
gpu-accelerated/ndma100v4-series, general-purpose/dsv5-series.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class InstanceType:
    """``memory`` in GiB, ``gpu_memory`` of one GPU in GB; ``zones``: some that offer the type."""

    cpus: int
    memory: int
    gpus: int = 0
    gpu_memory: int = 0
    zones: frozenset[str] = frozenset()


INSTANCE_TYPES = {
    "m6i.4xlarge": InstanceType(16, 64),
    "p4d.24xlarge": InstanceType(
        96, 1152, 8, 40, frozenset({"us-east-1a", "us-east-1b", "us-east-1c", "us-east-1d"})
    ),
    "p4de.24xlarge": InstanceType(96, 1152, 8, 80, frozenset({"us-east-1b", "us-east-1c"})),
    "n2-standard-16": InstanceType(16, 64),
    "a2-highgpu-8g": InstanceType(
        96, 680, 8, 40, frozenset({"us-central1-a", "us-central1-b", "us-central1-c"})
    ),
    "a2-ultragpu-8g": InstanceType(
        96, 1360, 8, 80, frozenset({"us-central1-a", "us-central1-c", "us-east4-c"})
    ),
    "Standard_D16s_v5": InstanceType(16, 64),
    "Standard_ND96asr_v4": InstanceType(96, 900, 8, 40, frozenset({"southcentralus", "eastus"})),
    "Standard_ND96amsr_A100_v4": InstanceType(
        96, 1900, 8, 80, frozenset({"southcentralus", "eastus"})
    ),
}
