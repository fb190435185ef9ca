"""cdk-nag's AwsSolutions rules find nothing in any stack but what is answered, with a reason."""

from dataclasses import dataclass
from typing import Any

import aws_cdk as cdk
import pytest
from cdk_nag import AwsSolutionsChecks

from infrastructure.assets import Assets
from infrastructure.release_stack import ReleaseStack
from workflows.settings import Settings

pytestmark = pytest.mark.slow
PLAIN: dict[str, Any] = {}
EVERYTHING_ELSE: dict[str, Any] = {
    "alarms": {"email": "game@example.com"},
    "api": {
        "authorization": "api-key",
        "guardrail": "abc1:2",
        "personas_uri": "s3://lore/voices/",
        "text_model": "us.amazon.nova-pro-v1:0",
    },
    "knowledge": {"opensearch": {"endpoint": "https://search-lore-abc0.aos.us-east-1.on.aws"}},
    "release": {
        "connection": "arn:aws:codeconnections:us-east-1:123456789012:connection/abc",
        "production_approval": True,
        "repository": "game/quench",
    },
    "tuning": {"base_model": "amazon.nova-2-lite-v1:0:256k", "schedule": "rate(7 days)"},
}
ELSEWHERE: dict[str, Any] = {
    "account": "111111111111",
    "release": {"production_account": "222222222222", "production_region": "us-west-2"},
}


@dataclass(frozen=True)
class Finding:
    rule: str
    path: str


@dataclass(frozen=True)
class Answer:
    rule: str
    path: str
    reason: str

    def answers(self, finding: Finding) -> bool:
        below = f"{finding.path}/".startswith(f"{self.path}/")
        return below and self.rule == finding.rule


@dataclass(frozen=True)
class Report:
    unanswered: set[Finding]
    all: set[Finding]
    answers: list[Answer]


@pytest.fixture(
    scope="module",
    params=[PLAIN, EVERYTHING_ELSE, ELSEWHERE],
    ids=["plain", "everything else", "elsewhere"],
)
def report(request: pytest.FixtureRequest, assets: Assets) -> Report:
    app = cdk.App(analytics_reporting=False, builtin_cloud_formation_validation=False)
    ReleaseStack(app, "Quench", settings=Settings(**request.param), assets=assets)
    rules = AwsSolutionsChecks(app)
    unanswered = findings(rules, app)
    rules._pack_name = "Unanswered"  # by other names, the same rules know no answers
    return Report(unanswered, findings(rules, app), answers(app))


def findings(rules: AwsSolutionsChecks, app: cdk.App) -> set[Finding]:
    return {
        Finding(violation.rule_name.partition("-")[2], resource.construct_path)
        for violation in rules.validate_scope(app).violations
        for resource in violation.violating_resources
    }


def answers(app: cdk.App) -> list[Answer]:
    return [
        Answer(rule.rpartition("AwsSolutions-")[2], construct.node.path, reason)
        for construct in app.node.find_all()
        for entry in construct.node.metadata
        if entry.type == cdk.Validations.ACKNOWLEDGED_RULES_METADATA_KEY
        for rule, reason in entry.data.items()
    ]


def test_nothing_is_found_but_what_is_answered(report: Report) -> None:
    assert report.unanswered == set()
    assert report.all


def test_every_answer_is_a_sentence_on_its_resource(report: Report) -> None:
    for answer in report.answers:
        name = answer.path.rpartition("/")[2]
        assert answer.reason.startswith(f"{name} ")
        assert answer.reason.endswith(".")
        assert len(answer.reason.split()) > 5


def test_every_answer_is_to_something_found(report: Report) -> None:
    stale = [a for a in report.answers if not any(a.answers(finding) for finding in report.all)]
    assert stale == []


def test_a_wildcard_is_answered_by_its_very_resource(report: Report) -> None:
    wildcards = [answer for answer in report.answers if answer.rule.startswith("IAM5")]
    assert wildcards
    assert all(answer.rule.startswith("IAM5[") for answer in wildcards)
