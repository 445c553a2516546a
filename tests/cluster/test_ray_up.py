"""The files of `ray up` against Ray's own validation and what their machines are."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.cluster.instance_types import INSTANCE_TYPES
from tests.support.paths import ROOT

CLUSTER = ROOT / "cluster"
CLOUDS = sorted(
    path for cloud in ("aws", "gcp", "azure") for path in CLUSTER.glob(f"{cloud}/*.yaml")
)
FILES = [*CLOUDS, *sorted(CLUSTER.glob("on-premises/*.yaml"))]
IDS = [str(path.relative_to(CLUSTER)) for path in FILES]
IMAGES = {
    # docs.aws.amazon.com/dlami/latest/devguide: Base OSS Nvidia Driver GPU AMI (Ubuntu 22.04)
    "resolve:ssm:/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id",
    # docs.cloud.google.com/deep-learning-vm/docs/images, and Canonical's for the head
    "projects/deeplearning-platform-release/global/images/family/common-cu129-ubuntu-2204-nvidia-580",
    "projects/ubuntu-os-cloud/global/images/family/ubuntu-2204-lts",
    # learn.microsoft.com/azure/virtual-machines/azure-hpc-vm-images, and Canonical's for the head
    "microsoft-dsvm:ubuntu-hpc:2204",
    "Canonical:0001-com-ubuntu-server-jammy:22_04-lts-gen2",
}  # fmt: skip


def _read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


def prepared(config: dict[str, Any]) -> dict[str, Any]:
    """What `ray up` does with a file before it talks to a cloud."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    if (
        config["provider"]["type"] != "local"
    ):  # whose file is none of the schema before it is filled
        validate_config({"cluster_synced_files": [], **config})  # the file's own keys
    done = prepare_config(copy.deepcopy(config))
    validate_config(done)
    return done


def machine(node: dict[str, Any]) -> tuple[str, str, bool]:
    """Type, image, and whether it may be taken back, of a node of any cloud."""
    if "InstanceType" in node:
        spot = node.get("InstanceMarketOptions") == {"MarketType": "spot"}
        return node["InstanceType"], node["ImageId"], spot
    if "machineType" in node:
        spot = node.get("scheduling", {}).get("provisioningModel") == "SPOT"
        return node["machineType"], node["disks"][0]["initializeParams"]["sourceImage"], spot
    arm = node["azure_arm_parameters"]
    image = ":".join(arm[f"image{part}"] for part in ("Publisher", "Offer", "Sku"))
    return arm["vmSize"], image, arm.get("priority") == "Spot"


def zones(provider: dict[str, Any]) -> set[str]:
    """Where nodes may be: of Azure the region, whose zones such sizes do not have."""
    if provider["type"] == "azure":
        return {provider["location"]}
    return set(provider["availability_zone"].split(","))


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_ray_accepts_it(path: Path) -> None:
    config = prepared(_read(path))
    assert config["cluster_name"].startswith("stepwiser"), "the rights of cluster/iam are for these"


@pytest.mark.parametrize("path", CLOUDS, ids=IDS[: len(CLOUDS)])
def test_its_groups_are_the_three_of_machines_that_are(path: Path) -> None:
    config = prepared(_read(path))
    types = config["available_node_types"]
    assert set(types) == {"head", "learner", "annotator"} and config["head_node_type"] == "head"
    memory = 80 if re.search("p4de|ultragpu|amsr", path.stem) else 40
    for name, group in types.items():
        kind, image, spot = machine(group["node_config"])
        known = INSTANCE_TYPES[kind]
        assert image in IMAGES
        assert group["resources"] == {"CPU": known.cpus, "GPU": known.gpus}
        assert (known.gpus, known.gpu_memory) == ((0, 0) if name == "head" else (8, memory))
        # What a node is and what it says it is: placement reads the label.
        assert spot == (name == "annotator")
        market = "spot" if spot else "on-demand"
        assert group["labels"] == {"ray.io/market-type": market}
        if name != "head":
            assert zones(config["provider"]) <= known.zones
    learner, annotator = types["learner"], types["annotator"]
    assert (learner["min_workers"], annotator["min_workers"]) == (1, 0)
    assert learner["max_workers"] + annotator["max_workers"] == config["max_workers"]
    assert config["idle_timeout_minutes"] == 10


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_every_node_gets_the_token_and_the_same_versions(path: Path) -> None:
    config = prepared(_read(path))
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    for commands in (config["head_setup_commands"], config["worker_setup_commands"]):
        text = "\n".join(commands)
        assert "vllm==0.32.0" in text and "ray==2.60.0" in text and "[gpu]" in text
        assert "RAY_AUTH_MODE=token" in text and "HF_HOME=/shared/huggingface" in text
    started = "\n".join(config["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in started and "ray_bootstrap_config" in started


def test_the_clouds_set_nodes_up_alike() -> None:
    """All but what a cloud's own network, file system and library are."""
    own = re.compile("mount |NCCL|FI_PROVIDER")
    lists = [
        [one for one in _read(path)["setup_commands"] if not own.search(one)] for path in FILES
    ]
    assert all(one == lists[0] for one in lists)


def test_the_head_of_aws_has_its_own_role_and_workers_theirs() -> None:
    for path in CLUSTER.glob("aws/*.yaml"):
        for name, group in _read(path)["available_node_types"].items():
            role = "stepwiser-head" if name == "head" else "stepwiser-worker"
            assert group["node_config"]["IamInstanceProfile"] == {"Name": role}
            assert group["node_config"]["MetadataOptions"]["HttpTokens"] == "required"


def test_nodes_of_google_have_accounts_of_their_own() -> None:
    for path in CLUSTER.glob("gcp/*.yaml"):
        for name, group in _read(path)["available_node_types"].items():
            (account,) = group["node_config"]["serviceAccounts"]
            role = "stepwiser-head" if name == "head" else "stepwiser-worker"
            assert account["email"].startswith(f"{role}@")


def test_azures_libraries_are_those_ray_was_written_for() -> None:
    import ray.autoscaler.azure

    (folder,) = ray.autoscaler.azure.__path__
    (theirs,) = _read(Path(folder) / "defaults.yaml")["head_setup_commands"]
    for path in CLUSTER.glob("azure/*.yaml"):
        (ours,) = _read(path)["head_setup_commands"]
        assert set(re.findall(r"[\w-]+==\S+", ours)) == set(re.findall(r"[\w-]+==\S+", theirs))


def test_efa_has_a_card_for_every_card_of_the_machine() -> None:
    from moto.ec2.models.instance_types import INSTANCE_TYPES as DESCRIBED

    node = _read(CLUSTER / "aws" / "p4de-efa.yaml")["available_node_types"]["learner"][
        "node_config"
    ]
    cards = node["NetworkInterfaces"]
    network = DESCRIBED[node["InstanceType"]]["NetworkInfo"]
    assert (
        len(cards) == network["EfaInfo"]["MaximumEfaInterfaces"] == network["MaximumNetworkCards"]
    )
    assert [card["NetworkCardIndex"] for card in cards] == list(range(len(cards)))
    assert [card["DeviceIndex"] for card in cards] == [0, 1, 1, 1]
    assert {card["InterfaceType"] for card in cards} == {"efa"}


def test_the_table_of_machines_says_of_aws_what_aws_says() -> None:
    from moto.ec2.models.instance_types import INSTANCE_TYPE_OFFERINGS
    from moto.ec2.models.instance_types import INSTANCE_TYPES as DESCRIBED

    offered = INSTANCE_TYPE_OFFERINGS["availability-zone"]["us-east-1"]
    for name, known in INSTANCE_TYPES.items():
        if "." not in name:
            continue  # another cloud's
        described = DESCRIBED[name]
        (gpu,) = described.get("GpuInfo", {"Gpus": [{"Count": 0}]})["Gpus"]
        assert known.cpus == described["VCpuInfo"]["DefaultVCpus"]
        assert known.memory * 1024 == described["MemoryInfo"]["SizeInMiB"]
        assert known.gpus == gpu["Count"]
        if known.gpus:
            assert known.gpu_memory * 1024 == gpu["MemoryInfo"]["SizeInMiB"]
            assert {"spot", "on-demand"} <= set(described["SupportedUsageClasses"])
        there = {one["Location"] for one in offered if one["InstanceType"] == name}
        assert known.zones <= there


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("max_workrs",), 3),
        (("provider_type",), "aws"),
        (("available_node_types", "learner", "min_worker"), 1),
        (("available_node_types", "learner", "resources", "GPU"), "eight"),
        (("available_node_types", "learner", "labels", "ray.io/market-type"), 1),
        (("docker",), {"imag": "x"}),
    ],
)
@pytest.mark.parametrize("cloud", ["aws/p4de.yaml", "gcp/a2-ultragpu-8g.yaml"])
def test_ray_refuses_what_is_misspelled(cloud: str, path: tuple[str, ...], value: Any) -> None:
    config = _read(CLUSTER / cloud)
    node = config
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        prepared(config)


def test_ray_refuses_an_unknown_head_type_and_more_workers_at_least_than_at_most() -> None:
    config = _read(CLUSTER / "aws" / "p4de.yaml")
    with pytest.raises(ValueError, match="head_node_type"):
        prepared(config | {"head_node_type": "nope"})
    with pytest.raises(ValueError, match="max_workers"):
        prepared(config | {"max_workers": 0})


def test_machines_of_ones_own_all_join() -> None:
    config = prepared(_read(CLUSTER / "on-premises" / "machines.yaml"))
    (group,) = config["available_node_types"].values()
    workers = len(config["provider"]["worker_ips"])
    assert (group["min_workers"], group["max_workers"]) == (workers, workers)
