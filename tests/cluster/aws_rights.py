"""What EC2 asks a caller's policies before it does something, and their answer.

moto checks signatures and whether the name of an action is allowed, but reads neither `Resource`
nor `Condition` for EC2, and asks nothing about what a call needs besides: its access_control.py
says so. `enforce` puts this module in the place of that question, for the calls that Ray makes.

Facts are those of docs.aws.amazon.com: resources and condition keys of each action from
service-authorization/latest/reference/list_amazonec2.html; that an instance profile wants
iam:PassRole on its role from AWSEC2/latest/UserGuide/iam-roles-for-amazon-ec2.html; that
`resolve:ssm:` wants ssm:GetParameters from .../using-systems-manager-parameter-to-find-AMI.html;
what spot wants from .../service-linked-roles-spot-instance-requests.html.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import boto3
import pytest

REGION = "us-east-1"
SPOT_ROLE = "AWSServiceRoleForEC2Spot"


@dataclass(frozen=True)
class Right:
    """One thing that a call needs: an action on a resource, in a context of condition keys."""

    action: str
    resource: str
    context: Mapping[str, str] = field(default_factory=dict, hash=False)


def is_allowed(documents: Iterable[Mapping[str, Any]], right: Right) -> bool:
    """By some statement of the policies, and denied by none."""
    effects = [
        statement["Effect"]
        for document in documents
        for statement in many(document["Statement"])
        if _concerns(statement, right)
    ]
    return "Allow" in effects and "Deny" not in effects


def many(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _like(pattern: str, value: str, flags: int = 0) -> bool:
    words = re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")
    return re.fullmatch(words, value, flags) is not None


def _concerns(statement: Mapping[str, Any], right: Right) -> bool:
    unknown = statement.keys() - {"Sid", "Effect", "Action", "Resource", "Condition"}
    assert not unknown, f"nobody reads {unknown} here"
    return (
        any(_like(action, right.action, re.IGNORECASE) for action in many(statement["Action"]))
        and any(_like(resource, right.resource) for resource in many(statement["Resource"]))
        and all(
            _holds(operator, key, many(values), right.context)
            for operator, keys in statement.get("Condition", {}).items()
            for key, values in keys.items()
        )
    )


def _holds(operator: str, key: str, values: list[str], context: Mapping[str, str]) -> bool:
    value = context.get(key)
    if operator == "StringEquals":
        return value in values
    if operator == "StringLike":
        return value is not None and any(_like(pattern, value) for pattern in values)
    raise AssertionError(f"nobody reads the condition {operator} here")


class Account:
    """The account behind a mock: what EC2 looks up before it asks about rights."""

    def __init__(self, account_id: str) -> None:
        from moto.ec2.models import ec2_backends
        from moto.iam.models import iam_backends

        self._id = account_id
        self._ec2 = ec2_backends[account_id][REGION]
        self._iam = iam_backends[account_id]["aws"]

    def rights(self, service: str, call: Mapping[str, str]) -> list[Right]:
        """What a call needs; ``call``: the parameters as they are on the wire."""
        action = call["Action"]
        name = f"{service}:{action}"
        if service == "ec2" and action.startswith("Describe"):
            return [Right(name, "*")]  # none of them knows resources
        if name == "ec2:RunInstances":
            return self._run(call)
        if name == "ec2:CreateKeyPair":
            return [Right(name, self._arn("key-pair", call["KeyName"]))]
        if name == "ec2:CreateSecurityGroup":
            group = self._arn("security-group", "*")
            tags = self._created(call, action)
            return [Right(name, group), Right(name, self._arn("vpc", call["VpcId"])), *tags]
        if name == "ec2:AuthorizeSecurityGroupIngress":
            return [self._on(name, "security-group", call["GroupId"])]
        if name == "ec2:CreateTags":
            return [self._on(name, "instance", one) for one in _listed(call, "ResourceId")]
        if name == "ec2:TerminateInstances":
            return [self._on(name, "instance", one) for one in _listed(call, "InstanceId")]
        raise AssertionError(f"nobody has looked up what {name} needs")

    def _run(self, call: Mapping[str, str]) -> list[Right]:
        name = "ec2:RunInstances"
        instance = {"ec2:InstanceType": call["InstanceType"]} | _request_tags(call)
        rights = [
            Right(name, self._arn("instance", "*"), instance),
            Right(name, f"arn:aws:ec2:{REGION}::image/ami-0"),
            Right(name, self._arn("network-interface", "*")),
            Right(name, self._arn("volume", "*")),
        ]
        subnets = {v for k, v in call.items() if k.endswith("SubnetId")}
        groups = {v for k, v in call.items() if re.search(r"SecurityGroup(Id)?\.\d+$", k)}
        rights += [Right(name, self._arn("subnet", one)) for one in subnets]
        rights += [Right(name, self._arn("security-group", one)) for one in groups]
        if "KeyName" in call:
            rights.append(Right(name, self._arn("key-pair", call["KeyName"])))
        if group := call.get("Placement.GroupName"):
            rights.append(Right(name, self._arn("placement-group", group)))
        rights += self._created(call, "RunInstances")
        if call["ImageId"].startswith("resolve:ssm:"):
            parameter = call["ImageId"].removeprefix("resolve:ssm:")
            rights.append(Right("ssm:GetParameters", f"arn:aws:ssm:{REGION}::parameter{parameter}"))
        if profile := call.get("IamInstanceProfile.Name") or call.get("IamInstanceProfile.Arn"):
            (role,) = self._iam.get_instance_profile(profile.rpartition("/")[2]).roles
            passed = {"iam:PassedToService": "ec2.amazonaws.com"}
            rights.append(Right("iam:PassRole", role.arn, passed))
        if call.get("InstanceMarketOptions.MarketType") == "spot":
            rights.append(Right(name, self._arn("spot-instances-request", "*")))
            path = "/aws-service-role/spot.amazonaws.com/"
            if all(role.path != path for role in self._iam.get_roles()):
                role_arn = f"arn:aws:iam::{self._id}:role{path}{SPOT_ROLE}"
                whose = {"iam:AWSServiceName": "spot.amazonaws.com"}
                rights.append(Right("iam:CreateServiceLinkedRole", role_arn, whose))
        return rights

    def _created(self, call: Mapping[str, str], action: str) -> list[Right]:
        """Tags that a call gives to what it makes."""
        kinds = [
            v for k, v in call.items() if re.fullmatch(r"TagSpecification\.\d+\.ResourceType", k)
        ]
        context = {"ec2:CreateAction": action} | _request_tags(call)
        return [Right("ec2:CreateTags", self._arn(kind, "*"), context) for kind in kinds]

    def _on(self, action: str, kind: str, name: str) -> Right:
        tags = {
            tag["key"]: tag["value"] for tag in self._ec2.describe_tags({"resource-id": [name]})
        }
        context = {f"aws:ResourceTag/{key}": value for key, value in tags.items()}
        return Right(action, self._arn(kind, name), context)

    def _arn(self, kind: str, name: str) -> str:
        return f"arn:aws:ec2:{REGION}:{self._id}:{kind}/{name}"


def _listed(call: Mapping[str, str], name: str) -> list[str]:
    return [value for key, value in call.items() if re.fullmatch(rf"{name}\.\d+", key)]


def _request_tags(call: Mapping[str, str]) -> dict[str, str]:
    pattern = r"(TagSpecification\.\d+\.Tag\.\d+)\.Key"
    keys = {match[1]: v for k, v in call.items() if (match := re.fullmatch(pattern, k))}
    return {f"aws:RequestTag/{key}": call[f"{prefix}.Value"] for prefix, key in keys.items()}


@dataclass
class Enforcement:
    """Calls that were made while rights were asked about: by whom, and what each needed."""

    asked: list[tuple[str, Right]] = field(default_factory=list)

    def actions(self, role: str) -> set[str]:
        return {right.action for who, right in self.asked if f"/{role}" in who}


@contextlib.contextmanager
def enforce() -> Iterator[Enforcement]:
    """Ask the caller's policies about every call; one that they do not allow fails."""
    from moto import settings
    from moto.core.exceptions import AccessDeniedError
    from moto.iam.access_control import IAMRequestBase

    enforcement = Enforcement()

    def check(request: Any, resource: str) -> None:
        data = {k: v[0] if isinstance(v, list) else v for k, v in request._data.items()}
        key = request._access_key
        documents = [_document(policy) for policy in key.collect_policies()]
        for right in Account(request.account_id).rights(request._service, data):
            enforcement.asked.append((key.arn, right))
            if not is_allowed(documents, right):
                raise AccessDeniedError(
                    user_arn=key.arn, action=f"{right.action} on {right.resource}"
                )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(IAMRequestBase, "check_action_permitted", check)
        patch.setattr(settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0)
        yield enforcement


def _document(policy: Any) -> Mapping[str, Any]:
    """Of a policy that is written into a user or a role, or attached to it."""
    if isinstance(policy, str):
        return json.loads(policy)
    if isinstance(policy, Mapping):
        return json.loads(policy["policy_document"])
    (version,) = [one for one in policy.versions if one.is_default]
    return json.loads(version.document)


@contextlib.contextmanager
def signed_in(access_key: str, secret: str, token: str | None = None) -> Iterator[None]:
    """boto3, and so Ray, with these credentials and no client of another identity."""
    from ray.autoscaler._private import providers
    from ray.autoscaler._private.aws import config, utils

    def forget() -> None:
        utils.resource_cache.cache_clear()
        utils.client_cache.cache_clear()
        config._get_subnets_or_die.cache_clear()
        providers._clear_provider_cache()
        boto3.DEFAULT_SESSION = None

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", access_key)
        patch.setenv("AWS_SECRET_ACCESS_KEY", secret)
        patch.delenv("AWS_SESSION_TOKEN", raising=False)
        if token is not None:
            patch.setenv("AWS_SESSION_TOKEN", token)
        forget()
        try:
            yield
        finally:
            forget()
