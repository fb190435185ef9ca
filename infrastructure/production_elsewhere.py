"""Production in another account or region: what either side lets the other do.

Models and index stay at home, where they were tuned and filled: Bedrock lets no other account and
no other region invoke a tuned model. Production's functions ask them through roles at home, and the
functions of a release tell production what to serve through roles there.
"""

import json

from aws_cdk import aws_iam as iam
from aws_cdk import aws_ssm as ssm
from constructs import Construct

from infrastructure.assets import Assets
from infrastructure.stack import QuenchStack, camel, function_name
from workflows.settings import Place, Settings

PRODUCTION = "prod"


class AccessStack(QuenchStack):
    """At home: a role for each of production's functions that asks models or index.

    They are called as production's own roles are where it is at home, and so the domain knows them.
    """

    def __init__(
        self, scope: Construct, construct_id: str, *, settings: Settings, assets: Assets
    ) -> None:
        super().__init__(
            scope,
            construct_id,
            settings=settings,
            assets=assets,
            name=f"{PRODUCTION}-access",
            description="Quench: what production, which is elsewhere, may ask here",
        )
        self.prefix = f"{settings.name}-{PRODUCTION}"

    def role(self, function: str) -> iam.Role:
        """Whom production's `lambdas/<function>.py` asks as; it is given permissions here."""
        caller = role_arn(self, self.settings.production, caller_name(self.prefix, function))
        return iam.Role(
            self,
            f"{camel(function)}Role",
            role_name=function_name(self.prefix, function),
            assumed_by=_role_of(self.settings.production, caller),
        )

    def access(self, function: str) -> dict[str, str]:
        """What the function must know to ask as that role."""
        return access(self, self.settings.home, function_name(self.prefix, function))


class ProductionStack(QuenchStack):
    """There: what production is deployed with, and who says so."""

    def __init__(
        self, scope: Construct, construct_id: str, *, settings: Settings, assets: Assets
    ) -> None:
        super().__init__(
            scope,
            construct_id,
            settings=settings,
            assets=assets,
            name=f"{PRODUCTION}-parameters",
            description="Quench: the model and the index that production is deployed with",
            place=settings.production,
        )
        parameters = [
            self._parameter("Model", settings.release.production_parameter),
            self._parameter("Index", self.index_parameter),
        ]
        release_model = role_arn(self, settings.home, function_name(settings.name, "release_model"))
        writer = iam.Role(
            self,
            "ReleaseRole",
            role_name=release_role(settings.name),
            assumed_by=_role_of(settings.home, release_model),
        )
        for parameter in parameters:
            self._allow(writer, "ssm", ("PutParameter",), [parameter.parameter_arn])
        # People at home, too, want to know what production serves: home says who may ask.
        reader = iam.Role(
            self,
            "StatusRole",
            role_name=status_role(settings.name),
            assumed_by=iam.AccountPrincipal(settings.account),
        )
        self._allow(
            reader,
            "cloudformation",
            ("DescribeStacks",),
            [self._arn("cloudformation", f"stack/{settings.name}-{PRODUCTION}-inference/*")],
            why="asks what production serves; CloudFormation ends a stack's ARN with an id",
        )

    def _parameter(self, name: str, parameter_name: str) -> ssm.StringParameter:
        """The pipeline writes it before it deploys what reads it."""
        return ssm.StringParameter(
            self,
            name,
            parameter_name=parameter_name,
            string_value=json.dumps({}),
            description="Written by every release, before production is deployed with it",
        )


def release_role(name: str) -> str:
    """The role that release_model writes production's parameters with."""
    return f"{name}-{PRODUCTION}-release"


def status_role(name: str) -> str:
    """The role that restore_model and people ask with what production serves."""
    return f"{name}-{PRODUCTION}-status"


def caller_name(prefix: str, function: str) -> str:
    """The role of one of production's functions, there."""
    return f"{function_name(prefix, function)}-function"


def access(stack: QuenchStack, place: Place, role: str) -> dict[str, str]:
    """What `lambdas.access.Access` reads: a role of another place, and the region to use it in."""
    return {"role": role_arn(stack, place, role), "region": place.region}


def role_arn(stack: QuenchStack, place: Place, role: str) -> str:
    return f"arn:{stack.partition}:iam::{place.account}:role/{role}"


def _role_of(place: Place, arn: str) -> iam.IPrincipal:
    """A role that need not exist yet, which IAM asks of one that a policy names as principal."""
    return iam.AccountPrincipal(place.account).with_conditions(
        {"ArnEquals": {"aws:PrincipalArn": arn}}
    )
