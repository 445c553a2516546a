"""`ray up` and `ray down` on a mock of AWS that asks for rights, with the roles of cluster/iam/aws.

Ray's own code makes every call: its launcher with the rights of a person who has launcher.json, its
autoscaler with those of the head's role. Only SSH leads nowhere.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
import yaml
from moto import mock_aws
from moto.core import DEFAULT_ACCOUNT_ID
from moto.ec2.models import instance_types

from tests.cluster.aws_rights import (
    REGION,
    SPOT_ROLE,
    Account,
    Enforcement,
    Right,
    enforce,
    is_allowed,
    many,
    signed_in,
)
from tests.cluster.ssh_connections import ssh_connections
from tests.support.paths import ROOT

AWS = ROOT / "cluster" / "aws"
IAM = ROOT / "cluster" / "iam" / "aws"
POLICY = {path.stem: path.read_text() for path in IAM.glob("*.json")}
TYPES = {"m6i.4xlarge", "p4d.24xlarge", "p4de.24xlarge"}


@dataclass
class NoSSH:
    """Notes what would be run on a node, and the files that would be copied there."""

    commands: list[str] = field(default_factory=list)
    copied: dict[str, str] = field(default_factory=dict)
    DEVNULL: Any = None

    def check_call(self, command: list[str], **_: Any) -> int:
        self.commands.append(shlex.join(command))
        if command[0] == "rsync" and Path(command[-2]).is_file():
            self.copied[command[-1].partition(":")[2]] = Path(command[-2]).read_text()
        return 0

    def check_output(self, command: list[str], **_: Any) -> bytes:
        self.check_call(command)
        return b""


@pytest.fixture
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A mock account, a home with Ray's token, and nothing that waits for a cloud."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    for name in ("aws.config", "aws.node_provider", "commands", "updater"):
        module = f"ray.autoscaler._private.{name}.time"
        monkeypatch.setattr(module, SimpleNamespace(time=time.time, sleep=lambda _: None))
    monkeypatch.setattr("ray.autoscaler._private.commands.exec_cluster", lambda *_, **__: None)
    user = f"tests-{tmp_path.name}-{os.getpid()}"
    monkeypatch.setattr("ray.autoscaler._private.command_runner.getuser", lambda: user)
    # Of nine hundred types, whose description takes the mock eight seconds each time.
    described = instance_types.InstanceTypeBackend.instance_types
    few = [one for one in described if one["InstanceType"] in TYPES]
    monkeypatch.setattr(instance_types.InstanceTypeBackend, "instance_types", few)
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("0" * 32)
    (tmp_path / "project").mkdir()
    with mock_aws(), signed_in("admin", "of the mock"):
        yield
    # It is there where a test got as far as the head.
    shutil.rmtree(ssh_connections(user), ignore_errors=True)


AWS_COMMAND = """#!/bin/bash
# Note the words; no account has the role for spot yet.
printf '%s\\0' "$@" > "$NOTES/$EPOCHREALTIME"
[ "$2" != get-role ]
"""


def _roles(folder: Path, spot: bool = True) -> None:
    """Do what cluster/iam/aws.sh has the `aws` command do, which takes boto3's words."""
    notes, command = folder / "notes", folder / "bin" / "aws"
    for path in (notes, command.parent):
        path.mkdir()
    command.write_text(AWS_COMMAND)
    command.chmod(0o755)
    environment = {
        "PATH": f"{command.parent}:{os.environ['PATH']}",
        "NOTES": str(notes),
        "BUCKET": "my-runs",
    }
    subprocess.run([IAM.with_suffix(".sh")], env=environment, check=True, timeout=60)
    for note in sorted(notes.iterdir()):
        service, action, *words = note.read_text().split("\0")[:-1]
        if action == "get-role" or (action == "create-service-linked-role" and not spot):
            continue
        given = {}
        for option, value in zip(words[::2], words[1::2], strict=True):
            if value.startswith("file://"):
                value = Path(value.removeprefix("file://")).read_text()
            given[_parameter(option)] = value
        getattr(boto3.client(service), action.replace("-", "_"))(**given)


def _parameter(option: str) -> str:
    """As botocore writes `--aws-service-name`: AWSServiceName."""
    name = "".join(part.capitalize() for part in option.removeprefix("--").split("-"))
    return name.replace("Aws", "AWS")


@contextlib.contextmanager
def _as_person() -> Iterator[None]:
    """Signed in as one who may use `ray up`, and nothing else."""
    iam = boto3.client("iam")
    if not iam.list_users()["Users"]:
        iam.create_user(UserName="launcher")
        (policy,) = iam.list_policies(Scope="Local")["Policies"]
        iam.attach_user_policy(UserName="launcher", PolicyArn=policy["Arn"])
    key = iam.create_access_key(UserName="launcher")["AccessKey"]
    with signed_in(key["AccessKeyId"], key["SecretAccessKey"]):
        yield


@contextlib.contextmanager
def _on_the_head(role: str) -> Iterator[None]:
    """Signed in as a process on the head is, by the passing credentials of its role."""
    arn = f"arn:aws:iam::{DEFAULT_ACCOUNT_ID}:role/{role}"
    given = boto3.client("sts").assume_role(RoleArn=arn, RoleSessionName="i-head")["Credentials"]
    with signed_in(given["AccessKeyId"], given["SecretAccessKey"], given["SessionToken"]):
        yield


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, Any]:
    """The shipped file, with a small folder in the place of the project."""
    config = yaml.safe_load((AWS / "p4de.yaml").read_text())
    config["file_mounts"]["~/stepwiser"] = str(tmp_path / "project")
    return config


def _ray_up(config: dict[str, Any]) -> NoSSH:
    from ray.autoscaler._private import commands

    ssh = NoSSH()
    prepared = commands._bootstrap_config(config, no_config_cache=True)
    commands.get_or_create_head_node(
        prepared,
        "cluster.yaml",
        no_restart=False,
        restart_only=False,
        yes=True,
        override_cluster_name=None,
        _runner=ssh,  # type: ignore[arg-type]
    )
    return ssh


def _autoscaler(text: str, folder: Path) -> Any:
    """What launches nodes on the head, as the monitor there makes it."""
    from ray.autoscaler._private.providers import _get_node_provider
    from ray.autoscaler.v2.instance_manager.config import FileConfigReader
    from ray.autoscaler.v2.instance_manager.node_provider import NodeProviderAdapter

    file = folder / "ray_bootstrap_config.yaml"
    file.write_text(text)
    (Path.home() / "ray_bootstrap_key.pem").touch()
    config = json.loads(text)
    provider = _get_node_provider(config["provider"], config["cluster_name"])
    return NodeProviderAdapter(provider, FileConfigReader(str(file)))


def _launch(adapter: Any, shape: dict[str, int]) -> list[BaseException]:
    """Have the autoscaler launch nodes; returns why it could not."""
    adapter.launch(shape, "request-1")
    adapter._main_executor.shutdown()
    adapter._node_launcher_executors.shutdown()
    return [error.__cause__ for error in adapter.poll_errors()]


def _nodes() -> dict[str, list[dict[str, Any]]]:
    """Instances that are there, by Ray's name of their type."""
    found: dict[str, list[dict[str, Any]]] = {}
    for group in boto3.client("ec2").describe_instances()["Reservations"]:
        for one in group["Instances"]:
            tags = {tag["Key"]: tag["Value"] for tag in one.get("Tags", [])}
            if one["State"]["Name"] in ("pending", "running"):
                found.setdefault(tags["ray-user-node-type"], []).append(one | {"tags": tags})
    return found


def test_from_ray_up_to_ray_down(aws: None, cluster: dict[str, Any], tmp_path: Path) -> None:
    _roles(tmp_path)
    with _as_person(), enforce() as person:
        ssh = _ray_up(cluster)
    (head,) = _nodes()["head"]
    assert head["IamInstanceProfile"]["Arn"].endswith("instance-profile/stepwiser-head")
    assert head["InstanceType"] == "m6i.4xlarge" and "InstanceLifecycle" not in head
    started = next(command for command in ssh.commands if "ray start --head" in command)
    assert "RAY_OVERRIDE_LABELS" in started and "ray.io/market-type" in started
    assert ssh.copied["~/.ray/auth_token"] == "0" * 32

    bootstrap = ssh.copied["~/ray_bootstrap_config.yaml"]
    with _on_the_head("stepwiser-head"), enforce() as autoscaler:
        # The mock launches MinCount instances, and Ray says 1 for that however many it wants.
        for shape in ({"learner": 1, "annotator": 1}, {"annotator": 1}):
            assert not _launch(_autoscaler(bootstrap, tmp_path), shape)
        provider = _autoscaler(bootstrap, tmp_path)._v1_provider
        workers = provider.non_terminated_nodes({"ray-node-type": "worker"})
        provider.set_node_tags(workers[0], {"ray-node-status": "up-to-date"})
    nodes = _nodes()
    assert {kind: len(found) for kind, found in nodes.items()} == {
        "head": 1,
        "learner": 1,
        "annotator": 2,
    }
    for kind in ("learner", "annotator"):
        for one in nodes[kind]:
            assert one["InstanceType"] == "p4de.24xlarge"
            assert one["IamInstanceProfile"]["Arn"].endswith("instance-profile/stepwiser-worker")
            assert one["tags"]["ray-cluster-name"] == "stepwiser-p4de"
            assert (one.get("InstanceLifecycle") == "spot") == (kind == "annotator")

    with _on_the_head("stepwiser-head"), enforce() as idle:
        _autoscaler(bootstrap, tmp_path)._v1_provider.terminate_nodes(
            [one["InstanceId"] for one in nodes["annotator"]]
        )
    assert set(_nodes()) == {"head", "learner"}

    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(cluster))
    from ray.autoscaler._private.commands import teardown_cluster

    with _as_person(), enforce() as down:
        teardown_cluster(str(file), True, False, None, False)
    assert not _nodes()
    _nothing_is_granted_that_nobody_uses("head", "stepwiser-head", autoscaler, idle)
    _nothing_is_granted_that_nobody_uses("launcher", "launcher", person, down)


def _nothing_is_granted_that_nobody_uses(policy: str, who: str, *calls: Enforcement) -> None:
    granted = {
        action
        for statement in json.loads(POLICY[policy])["Statement"]
        for action in many(statement["Action"])
    }
    asked = set[str]().union(*(one.actions(who) for one in calls))
    assert asked == granted


@pytest.fixture
def bootstrap(aws: None, cluster: dict[str, Any], tmp_path: Path) -> str:
    """What `ray up` copies to the head of the shipped file."""
    _roles(tmp_path)
    return _ray_up(cluster).copied["~/ray_bootstrap_config.yaml"]


def _default_role() -> None:
    """As Ray makes it where the head has no profile: `bootstrap_aws` itself does."""
    from ray.autoscaler._private.aws.config import _configure_iam_role

    config = yaml.safe_load((AWS / "p4de.yaml").read_text())
    del config["available_node_types"]["head"]["node_config"]["IamInstanceProfile"]
    _configure_iam_role(config | {"head_node": {}})


@pytest.fixture
def managed_policies(monkeypatch: pytest.MonkeyPatch) -> None:
    """AWS's own policies are in the account that the mock makes after this."""
    monkeypatch.setenv("MOTO_IAM_LOAD_MANAGED_POLICIES", "true")


@pytest.mark.usefixtures("managed_policies")
def test_rays_own_role_cannot_launch_the_workers(bootstrap: str, tmp_path: Path) -> None:
    """AmazonEC2FullAccess and AmazonS3FullAccess do not do for the shipped node types."""
    _default_role()
    image, no_profile = {"ImageId": "ami-12345678"}, {"IamInstanceProfile": None}
    for change, refused in (
        ({}, "ssm:GetParameters"),
        (image, "iam:PassRole"),
        (no_profile, "ssm:GetParameters"),
        (image | no_profile, None),
    ):
        config = json.loads(bootstrap)
        kind = config["available_node_types"]["annotator"]
        node = kind["node_config"] | change
        kind["node_config"] = {key: value for key, value in node.items() if value is not None}
        with _on_the_head("ray-autoscaler-v1"), enforce():
            errors = _launch(_autoscaler(json.dumps(config), tmp_path), {"annotator": 1})
        assert bool(errors) == (refused is not None), (change, errors)
        assert (refused or "") in str(errors), (change, errors)
        assert ("annotator" in _nodes()) == (refused is None)


def _without(statement: str) -> str:
    policy = json.loads(POLICY["head"])
    kept = [one for one in policy["Statement"] if one["Sid"] != statement]
    assert len(kept) == len(policy["Statement"]) - 1
    return json.dumps(policy | {"Statement": kept})


LAUNCHING = (
    "LaunchWorkersOfThisProjectAlone",
    "LaunchWith",
    "TagWhatIsLaunched",
    "GiveWorkersTheirRole",
    "ResolveTheImage",
)


def test_every_statement_of_the_heads_role_is_needed_to_launch(
    bootstrap: str, tmp_path: Path
) -> None:
    for statement in LAUNCHING:
        boto3.client("iam").put_role_policy(
            RoleName="stepwiser-head", PolicyName="head", PolicyDocument=_without(statement)
        )
        with _on_the_head("stepwiser-head"), enforce():
            errors = _launch(_autoscaler(bootstrap, tmp_path), {"annotator": 1})
        assert errors and "annotator" not in _nodes(), statement


def test_spot_needs_its_own_role(aws: None, cluster: dict[str, Any], tmp_path: Path) -> None:
    """Which an account has once somebody asked for spot in the console, or made it."""
    _roles(tmp_path, spot=False)
    text = _ray_up(cluster).copied["~/ray_bootstrap_config.yaml"]
    with _on_the_head("stepwiser-head"), enforce():
        errors = _launch(_autoscaler(text, tmp_path), {"annotator": 1})
        assert not _launch(_autoscaler(text, tmp_path), {"learner": 1})
    assert "iam:CreateServiceLinkedRole" in str(errors) and SPOT_ROLE in str(errors)


def test_learners_joined_by_efa_launch_too(aws: None, tmp_path: Path) -> None:
    _roles(tmp_path)
    ec2 = boto3.client("ec2")
    (subnet,) = ec2.describe_subnets(
        Filters=[{"Name": "availability-zone", "Values": [f"{REGION}b"]}]
    )["Subnets"]
    (group,) = ec2.describe_security_groups(GroupNames=["default"])["SecurityGroups"]
    text = (AWS / "p4de-efa.yaml").read_text()
    text = text.replace("subnet-00000000000000001", subnet["SubnetId"])
    config = yaml.safe_load(text.replace("sg-00000000000000001", group["GroupId"]))
    config["file_mounts"]["~/stepwiser"] = str(tmp_path / "project")
    bootstrap = _ray_up(config).copied["~/ray_bootstrap_config.yaml"]
    with _on_the_head("stepwiser-head"), enforce() as calls:
        assert not _launch(_autoscaler(bootstrap, tmp_path), {"learner": 1})
    asked = {right.resource.rpartition(":")[2] for _, right in calls.asked}
    assert {"placement-group/stepwiser", f"subnet/{subnet['SubnetId']}"} <= asked
    (learner,) = _nodes()["learner"]
    assert learner["IamInstanceProfile"]["Arn"].endswith("instance-profile/stepwiser-worker")


@pytest.mark.parametrize(
    ("action", "resource", "context"),
    [
        ("iam:PassRole", "role/stepwiser-head", {"iam:PassedToService": "ec2.amazonaws.com"}),
        ("iam:PassRole", "role/admin", {"iam:PassedToService": "ec2.amazonaws.com"}),
        ("iam:PassRole", "role/stepwiser-worker", {"iam:PassedToService": "lambda.amazonaws.com"}),
        ("ec2:TerminateInstances", "instance/i-1", {"aws:ResourceTag/ray-cluster-name": "other"}),
        ("ec2:TerminateInstances", "instance/i-1", {}),
        ("ec2:RunInstances", "instance/*", {"ec2:InstanceType": "p5.48xlarge"}),
        ("ec2:StopInstances", "instance/i-1", {}),
        ("s3:DeleteBucket", "stepwiser-runs", {}),
        ("iam:CreateRole", "role/any", {}),
    ],
)
def test_a_head_that_is_taken_over_can_do_no_more(
    action: str, resource: str, context: dict[str, str]
) -> None:
    service = action.partition(":")[0]
    arn = {
        "ec2": f"arn:aws:ec2:{REGION}:123456789012:{resource}",
        "iam": f"arn:aws:iam::123456789012:{resource}",
        "s3": f"arn:aws:s3:::{resource}",
    }[service]
    documents = [json.loads(POLICY["head"]), json.loads(POLICY["runs"])]
    assert not is_allowed(documents, Right(action, arn, context))


def test_a_call_nobody_has_looked_up_is_an_error(aws: None) -> None:
    with pytest.raises(AssertionError, match="ec2:CreateVpc"):
        Account(DEFAULT_ACCOUNT_ID).rights("ec2", {"Action": "CreateVpc"})
