"""The knowledge stack: what documents need to become searchable, from their bucket to the index."""

from aws_cdk import Duration, RemovalPolicy
from aws_cdk import aws_events as events
from aws_cdk import aws_events_targets as targets
from aws_cdk import aws_iam as iam
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_lambda_event_sources as event_sources
from aws_cdk import aws_logs as logs
from aws_cdk import aws_opensearchservice as opensearch
from aws_cdk import aws_s3 as s3
from aws_cdk import aws_sqs as sqs
from aws_cdk import aws_ssm as ssm
from constructs import Construct

from bedrock.models import find_model
from infrastructure.acknowledged import acknowledge
from infrastructure.assets import Assets
from infrastructure.stack import (
    ALARM_PERIOD,
    FUNCTION_TIMEOUT_SECONDS,
    INDEX_READERS,
    STAGES,
    QuenchStack,
    function_name,
)
from workflows.hydration_job import hydration_job
from workflows.settings import Settings

ENGINE_VERSION = "OpenSearch_2.19"
CHANGES_PER_JOB = 1000
CHANGES_VISIBILITY_SECONDS = 180
CHANGES_RECEIVES = 1000  # the most there is: at 180 seconds, longer than any job may run
REPORTS_KEPT = Duration.days(90)
DOMAIN_DEVIATIONS = {
    "OS1": "is public, since a VPC would cost more than it and guard nothing that IAM does not "
    "(ADR 10)",
    "OS3": "is searched by functions and filled by jobs, which have no addresses of their own: it "
    "asks for signed requests instead (ADR 10)",
    "OS4": "is one small node by default: three dedicated masters would cost more, and what it "
    "holds can be made again from the documents",
    "OS9[LogExport::SEARCH_SLOW_LOGS]": "would log what people ask, whatever api.log_prompts says",
    "OS9[LogExport::INDEX_SLOW_LOGS]": "would log the texts of documents, which stay in its index "
    "and their bucket",
}
INDEX_ACTIONS = ("ESHttpDelete", "ESHttpGet", "ESHttpHead", "ESHttpPost", "ESHttpPut")


class KnowledgeStack(QuenchStack):
    """Documents in, searchable passages out."""

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        settings: Settings,
        assets: Assets,
    ) -> None:
        super().__init__(
            scope,
            construct_id,
            settings=settings,
            assets=assets,
            name="knowledge",
            description="Quench: documents as searchable knowledge",
        )
        knowledge = settings.knowledge
        self.job_prefix = f"{self.prefix}-hydration"
        self.documents_bucket = self._source_bucket("DocumentsBucket")
        self.hydration_bucket = self._bucket(
            "HydrationBucket",
            [
                s3.LifecycleRule(prefix=folder, expiration=REPORTS_KEPT)
                for folder in ("changes/", "reports/")
            ],
        )
        self.dead_letters = self._queue("ChangesDeadLetters", Duration.seconds(30))
        self.changes = self._queue(
            "Changes",
            # A message waits for its batch, and then for the function, out of others' sight.
            Duration.seconds(
                max(
                    CHANGES_VISIBILITY_SECONDS,
                    knowledge.batch_window_seconds + 2 * FUNCTION_TIMEOUT_SECONDS,
                )
            ),
            self.dead_letters,
            CHANGES_RECEIVES,
        )
        self.job_role = self._job_role()
        self.index_location = knowledge.opensearch.endpoint or self._domain_location()
        ssm.StringParameter(
            self,
            "IndexParameter",
            parameter_name=self.index_parameter,
            string_value=self.to_json_string(
                {
                    "location": self.index_location,
                    "name": knowledge.index,
                    "embedding_model": knowledge.embedding_model,
                    "dimensions": knowledge.dimensions,
                }
            ),
            description="Where the knowledge is, and how it is embedded; the APIs search it",
        )
        self.start_hydration = self._start_hydration()
        self._alarms(
            [self.failed_events, self.dead_letters],
            {
                # What came, not what is there: the next job makes good, and nobody empties it.
                "FailedHydrations": self._keep_failed_jobs().metric_number_of_messages_sent(
                    period=ALARM_PERIOD, statistic="Sum"
                )
            },
        )
        self._outputs(
            {
                "DocumentsBucketName": self.documents_bucket.bucket_name,
                "HydrationBucketName": self.hydration_bucket.bucket_name,
                "ChangesQueueUrl": self.changes.queue_url,
                "StartHydrationFunction": self.start_hydration.function_name,
                "HydrationRoleArn": self.job_role.role_arn,
                "IndexLocation": self.index_location,
                "IndexName": knowledge.index,
                "EmbeddingModel": knowledge.embedding_model,
                "EmbeddingDimensions": str(knowledge.dimensions),
            }
        )

    # The job

    def _job_role(self) -> iam.Role:
        role = iam.Role(
            self, "HydrationRole", assumed_by=iam.ServicePrincipal("sagemaker.amazonaws.com")
        )
        documents, hydration = self.documents_bucket, self.hydration_bucket
        self._allow(role, "s3", ("ListBucket",), [documents.bucket_arn, hydration.bucket_arn])
        self._allow(
            role,
            "s3",
            ("GetObject",),
            [documents.arn_for_objects("*"), hydration.arn_for_objects("changes/*")],
            why="reads whatever is a document, and the changes that its job is started for",
        )
        self._allow(
            role,
            "s3",
            ("GetObject", "PutObject", "DeleteObject"),
            [hydration.arn_for_objects("failed/*")],
            why="marks each document that failed by an object, and unmarks it",
        )
        self._allow(
            role,
            "s3",
            ("PutObject",),
            [hydration.arn_for_objects("reports/*")],
            why="writes a report of each job, in a folder of the job's name",
        )
        self._allow(
            role,
            "bedrock",
            ("InvokeModel",),
            self._invocation_arns(find_model(self.settings.knowledge.embedding_model).invoke_id),
            why="embeds in whichever region its model's inference profile chooses",
        )
        if domain := self._domain_arn():
            self._allow(
                role,
                "es",
                INDEX_ACTIONS,
                [f"{domain}/*"],
                why="is the domain's master: it makes the index, fills it and lets others in",
            )
        self.image.repository.grant_pull(role)
        self._allow_job_logs(role)
        return role

    # The index

    def _domain_location(self) -> str:
        """The URL of a domain of our own, closed to all but the account's roles that may use it."""
        size = self.settings.knowledge.opensearch
        zones = min(size.instance_count, 3)
        error_log = self._domain_error_log()
        # The CDK's own Domain would set the access policy by a custom resource.
        domain = opensearch.CfnDomain(
            self,
            "Domain",
            domain_name=self.domain_name,
            engine_version=ENGINE_VERSION,
            cluster_config=opensearch.CfnDomain.ClusterConfigProperty(
                instance_type=size.instance_type,
                instance_count=size.instance_count,
                zone_awareness_enabled=zones > 1,
                zone_awareness_config=opensearch.CfnDomain.ZoneAwarenessConfigProperty(
                    availability_zone_count=zones
                )
                if zones > 1
                else None,
            ),
            ebs_options=opensearch.CfnDomain.EBSOptionsProperty(
                ebs_enabled=True, volume_type="gp3", volume_size=size.volume_gb
            ),
            encryption_at_rest_options=opensearch.CfnDomain.EncryptionAtRestOptionsProperty(
                enabled=True
            ),
            node_to_node_encryption_options=opensearch.CfnDomain.NodeToNodeEncryptionOptionsProperty(
                enabled=True
            ),
            domain_endpoint_options=opensearch.CfnDomain.DomainEndpointOptionsProperty(
                enforce_https=True, tls_security_policy="Policy-Min-TLS-1-2-PFS-2023-10"
            ),
            advanced_security_options=opensearch.CfnDomain.AdvancedSecurityOptionsInputProperty(
                enabled=True,
                internal_user_database_enabled=False,
                master_user_options=opensearch.CfnDomain.MasterUserOptionsProperty(
                    master_user_arn=self.job_role.role_arn
                ),
            ),
            access_policies=iam.PolicyDocument(
                statements=[
                    iam.PolicyStatement(
                        # Whoever has a policy of his own for it: the roles of the APIs are made
                        # later, and a principal that is not there yet would be refused. What each
                        # may do there, the hydration job sets (vectors/reader_role.py).
                        principals=[iam.AccountRootPrincipal()],
                        actions=[f"es:{action}" for action in INDEX_ACTIONS],
                        resources=[f"{self._domain_arn()}/*"],
                    )
                ]
            ),
            log_publishing_options={
                "ES_APPLICATION_LOGS": opensearch.CfnDomain.LogPublishingOptionProperty(
                    enabled=True, cloud_watch_logs_log_group_arn=error_log.log_group_arn
                )
            },
        )
        domain.node.add_dependency(error_log)
        # Its name is its own: a domain left behind by a failed creation would be in the way.
        domain.apply_removal_policy(RemovalPolicy.RETAIN_ON_UPDATE_OR_DELETE)
        for rule, why in DOMAIN_DEVIATIONS.items():
            acknowledge(domain, rule, why)
        if zones == 1:
            acknowledge(
                domain,
                "OS7",
                "has a single node unless knowledge.opensearch.instance_count is raised, and the "
                "documents to fill a new one from",
            )
        return f"https://{domain.attr_domain_endpoint}"

    def _reader_role_arns(self) -> list[str]:
        """Of the functions that search, in every stage: their roles are named as they are."""
        return [
            f"arn:{self.partition}:iam::{self.account}:role/{function_name(prefix, reader)}"
            for prefix in (f"{self.prefix}-{stage}" for stage in STAGES)
            for reader in INDEX_READERS
        ]

    def _domain_error_log(self) -> logs.LogGroup:
        log_group = logs.LogGroup(
            self,
            "DomainErrors",
            log_group_name=f"/aws/opensearch/{self.domain_name}/errors",
            retention=logs.RetentionDays.SIX_MONTHS,
            removal_policy=RemovalPolicy.DESTROY,
        )
        log_group.add_to_resource_policy(
            iam.PolicyStatement(
                principals=[iam.ServicePrincipal("es.amazonaws.com")],
                actions=["logs:CreateLogStream", "logs:PutLogEvents"],
                resources=[log_group.log_group_arn],
                conditions={
                    "StringEquals": {"aws:SourceAccount": self.account},
                    "ArnLike": {"aws:SourceArn": self._arn("es", f"domain/{self.domain_name}")},
                },
            )
        )
        return log_group

    # From a change to a job

    def _start_hydration(self) -> lambda_.Function:
        values = {
            "DocumentsBucket": self.documents_bucket.bucket_name,
            "HydrationBucket": self.hydration_bucket.bucket_name,
            "IndexLocation": self.index_location,
            "ImageUri": self.image.image_uri,
            "RoleArn": self.job_role.role_arn,
        }
        if not self.settings.knowledge.opensearch.endpoint:
            values["ReaderRoles"] = ",".join(self._reader_role_arns())
        job = self._resolved(hydration_job(self.settings), values)
        function = self._event_function(
            "start_hydration",
            "Changed documents, or a request for all of them, start a hydration job",
            {
                "PROCESSING_JOB": job,
                "DOCUMENTS_BUCKET": self.documents_bucket.bucket_name,
                "HYDRATION_BUCKET": self.hydration_bucket.bucket_name,
                "JOB_PREFIX": self.job_prefix,
            },
        )
        self._allow(
            function,
            "sagemaker",
            ("ListProcessingJobs",),
            ["*"],
            why="lists the processing jobs to find one that runs, which SageMaker cannot narrow",
        )
        self._allow(
            function,
            "sagemaker",
            ("CreateProcessingJob", "AddTags"),
            [self._arn("sagemaker", f"processing-job/{self.job_prefix}-*")],
            why="starts hydration jobs, each under a name of its own",
        )
        self._allow(
            function,
            "s3",
            ("PutObject",),
            [self.hydration_bucket.arn_for_objects("changes/*")],
            why="writes the changes of each job to an object named like the job",
        )
        self._allow_pass(function, self.job_role)
        function.add_event_source(
            event_sources.SqsEventSource(
                self.changes,
                batch_size=CHANGES_PER_JOB,
                max_batching_window=Duration.seconds(self.settings.knowledge.batch_window_seconds),
                max_concurrency=2,  # the least there is: more pollers would share a batch out
                report_batch_item_failures=True,
            )
        )
        events.Rule(
            self,
            "DocumentChanged",
            description="A document that comes, changes or goes is noted in the queue of changes",
            event_pattern=events.EventPattern(
                source=["aws.s3"],
                detail_type=["Object Created", "Object Deleted"],
                detail={"bucket": {"name": [self.documents_bucket.bucket_name]}},
            ),
            targets=[targets.SqsQueue(self.changes, dead_letter_queue=self.failed_events)],
        )
        return function

    def _keep_failed_jobs(self) -> sqs.Queue:
        """The events of jobs that failed, or ran out of time and were stopped."""
        failed_jobs = self._queue("FailedHydrations", Duration.seconds(30))
        acknowledge(
            failed_jobs,
            "SQS3",
            "keeps events for people to look at: nothing receives them",
        )
        events.Rule(
            self,
            "HydrationFailed",
            description="Keeps the events of hydration jobs that did not complete",
            event_pattern=events.EventPattern(
                source=["aws.sagemaker"],
                detail_type=["SageMaker Processing Job State Change"],
                detail={
                    "ProcessingJobName": [{"prefix": f"{self.job_prefix}-"}],
                    "ProcessingJobStatus": ["Failed", "Stopped"],
                },
            ),
            targets=[targets.SqsQueue(failed_jobs, dead_letter_queue=self.failed_events)],
        )
        return failed_jobs
