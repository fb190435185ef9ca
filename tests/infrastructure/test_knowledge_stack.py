"""What the settings of knowledge make of its stack."""

import json
from typing import Any

import pytest
from templates import (
    Template,
    inference_template,
    knowledge_template,
    of_type,
    resources_of,
    statements,
)

from infrastructure.assets import Assets
from workflows.placeholders import placeholders
from workflows.settings import Settings

DOMAIN = "AWS::OpenSearchService::Domain"


@pytest.fixture(scope="module")
def template(assets: Assets) -> Template:
    return knowledge_template(Settings(), assets)


def with_settings(assets: Assets, **knowledge: Any) -> Template:
    return knowledge_template(Settings(knowledge=knowledge), assets)


def job(template: Template) -> tuple[str, dict[str, Any]]:
    """The job's definition as text, and the values of its placeholders."""
    (function,) = of_type(template, "AWS::Lambda::Function")
    text, values = function["Environment"]["Variables"]["PROCESSING_JOB"]["Fn::Sub"]
    return text, values


def test_the_domain_is_encrypted_and_left_to_the_policies_of_roles(template: Template) -> None:
    (domain,) = of_type(template, DOMAIN)
    assert domain["EncryptionAtRestOptions"] == {"Enabled": True}
    assert domain["NodeToNodeEncryptionOptions"] == {"Enabled": True}
    endpoint = domain["DomainEndpointOptions"]
    assert endpoint["EnforceHTTPS"]
    assert endpoint["TLSSecurityPolicy"].startswith("Policy-Min-TLS-1-2")
    (output,) = [o for name, o in template["Outputs"].items() if name == "HydrationRoleArn"]
    security = domain["AdvancedSecurityOptions"]
    assert security["MasterUserOptions"] == {"MasterUserARN": output["Value"]}
    assert (security["Enabled"], security["InternalUserDatabaseEnabled"]) == (True, False)
    (statement,) = domain["AccessPolicies"]["Statement"]
    assert statement["Principal"]["AWS"]["Fn::Join"][1][-1] == ":root"
    assert json.dumps(statement["Resource"]) in resources_of(template, "es:ESHttpPut")


def test_what_cannot_be_made_again_outlives_the_stack(template: Template) -> None:
    kept = {
        resource["Type"]: resource["DeletionPolicy"]
        for resource in template["Resources"].values()
        if resource["Type"] in (DOMAIN, "AWS::S3::Bucket")
    }
    assert kept == {DOMAIN: "RetainExceptOnCreate", "AWS::S3::Bucket": "Retain"}


@pytest.mark.parametrize(("instances", "zones"), [(2, 2), (3, 3), (4, 3)])
def test_a_larger_domain_spreads_over_zones(assets: Assets, instances: int, zones: int) -> None:
    (domain,) = of_type(
        with_settings(assets, opensearch={"instance_count": instances, "volume_gb": 50}), DOMAIN
    )
    cluster = domain["ClusterConfig"]
    assert cluster["InstanceCount"] == instances
    assert cluster["ZoneAwarenessEnabled"]
    assert cluster["ZoneAwarenessConfig"] == {"AvailabilityZoneCount": zones}
    assert domain["EBSOptions"]["VolumeSize"] == 50


@pytest.mark.parametrize(
    ("endpoint", "allowed"),
    [
        (
            "https://search-lore-2-abc0.eu-west-1.es.amazonaws.com",
            ":es:eu-west-1:|:domain/lore-2/*",
        ),
        ("https://search-lore-abc0.aos.us-east-1.on.aws", ":es:us-east-1:|:domain/lore/*"),
        ("https://search.example.com:9200", None),
    ],
)
def test_an_existing_endpoint_takes_the_domains_place(
    assets: Assets, endpoint: str, allowed: str | None
) -> None:
    template = with_settings(assets, opensearch={"endpoint": endpoint})
    assert of_type(template, DOMAIN) == []
    assert template["Outputs"]["IndexLocation"]["Value"] == endpoint
    assert endpoint in json.dumps(of_type(template, "AWS::Lambda::Function"))
    found = [
        resource
        for actions, resources in statements(template)
        if any(action.startswith("es:") for action in actions)
        for resource in resources
    ]
    if allowed is None:  # requests to others than AWS are not signed
        assert found == []
    else:
        (arn,) = found
        text = "|".join(part for part in arn["Fn::Join"][1] if isinstance(part, str))
        assert allowed in text


@pytest.mark.parametrize("endpoint", ["", "https://search.example.com:9200"])
def test_the_apis_are_told_where_to_search(assets: Assets, endpoint: str) -> None:
    template = with_settings(assets, index="lore", opensearch={"endpoint": endpoint})
    (parameter,) = of_type(template, "AWS::SSM::Parameter")
    assert parameter["Name"] == "/quench/index"
    value = parameter["Value"]
    if not endpoint:
        assert {"Fn::GetAtt": ["Domain", "DomainEndpoint"]} in value["Fn::Join"][1]
        value = "".join("host" if isinstance(part, dict) else part for part in value["Fn::Join"][1])
    assert json.loads(value) == {
        "location": endpoint or "https://host",
        "name": "lore",
        "embedding_model": "amazon.titan-embed-text-v2:0",
        "dimensions": 256,
    }


def test_the_function_gets_the_whole_definition_of_the_job(template: Template) -> None:
    (function,) = of_type(template, "AWS::Lambda::Function")
    variables = function["Environment"]["Variables"]
    text, values = job(template)
    assert placeholders(text) == set(values)
    assert json.loads(text)["AppSpecification"]["ContainerEntrypoint"][-1] == "processing.hydrate"
    assert values["DocumentsBucket"] == variables["DOCUMENTS_BUCKET"]
    assert values["HydrationBucket"] == variables["HYDRATION_BUCKET"]


def test_a_job_lets_the_apis_roles_search_a_domain_of_our_own(
    template: Template, assets: Assets
) -> None:
    text, values = job(template)
    arguments = json.loads(text)["AppSpecification"]["ContainerArguments"]
    assert arguments[arguments.index("--reader-roles") + 1] == "${ReaderRoles}"
    parts = values["ReaderRoles"]["Fn::Join"][1]
    arns = "".join(part if isinstance(part, str) else "…" for part in parts).split(",")
    searching = {
        role["RoleName"]
        for stage in ("qa", "prod")
        for role in of_type(inference_template(Settings(), assets, stage), "AWS::IAM::Role")
        if "RoleName" in role
    }
    assert {arn.rpartition("/")[2] for arn in arns} == searching
    assert {arn.rpartition("/")[0] for arn in arns} == {"arn:…:iam::…:role"}


def test_who_reads_an_existing_endpoint_is_left_to_its_owner(assets: Assets) -> None:
    endpoint = "https://search-lore-abc0.aos.us-east-1.on.aws"
    text, values = job(with_settings(assets, opensearch={"endpoint": endpoint}))
    assert "reader" not in text
    assert placeholders(text) == set(values)


def test_the_function_starts_jobs_of_its_own_names_only(template: Template) -> None:
    assert "processing-job/quench-hydration-*" in resources_of(
        template, "sagemaker:CreateProcessingJob"
    )


def test_the_job_invokes_its_model_only(assets: Assets) -> None:
    template = with_settings(
        assets, embedding_model="cohere.embed-multilingual-v3", dimensions=1024
    )
    ((_, resources),) = [s for s in statements(template) if "bedrock:InvokeModel" in s[0]]
    (arn,) = resources
    assert (
        arn["Fn::Join"][1][-1]
        == ":bedrock:us-east-1::foundation-model/cohere.embed-multilingual-v3"
    )


@pytest.mark.parametrize("window", [1, 20, 300])
def test_changes_outlast_their_batch_and_the_longest_job(assets: Assets, window: int) -> None:
    template = with_settings(assets, batch_window_seconds=window)
    (mapping,) = of_type(template, "AWS::Lambda::EventSourceMapping")
    (function,) = of_type(template, "AWS::Lambda::Function")
    queue = template["Resources"][mapping["EventSourceArn"]["Fn::GetAtt"][0]]["Properties"]
    assert mapping["MaximumBatchingWindowInSeconds"] == window
    assert queue["VisibilityTimeout"] > window + function["Timeout"]
    longest_job = 48 * 3600
    assert queue["VisibilityTimeout"] * queue["RedrivePolicy"]["maxReceiveCount"] > longest_job
    assert queue["MessageRetentionPeriod"] > longest_job
