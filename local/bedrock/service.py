"""Amazon Bedrock in the embedded cloud: customization jobs, custom models, serving capacity.

See docs/local-bedrock.md.
"""

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from secrets import choice
from string import ascii_lowercase, digits
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from bedrock.models import (
    FoundationModel,
    HyperparameterError,
    TuningRules,
    UnknownModelError,
    UnusableModelError,
    all_models,
    find_model,
    require_tunable,
    require_usable,
)
from local.bedrock.jobs import Job, Runner
from local.bedrock.listing import page_of
from local.bedrock.refusals import invalid, is_past, known_model, not_found, refuse, today
from local.bedrock.text_model import weights_cache
from local.bedrock.training import TrainingJob
from local.protocol import Service, ServiceError

if TYPE_CHECKING:
    from local.cloud import Cloud


RUNNING_JOBS = 2  # at once, in an account
SECONDS_TO_SERVE = 60  # from Creating to InService or Active
COMMITMENTS = {"OneMonth": timedelta(days=30), "SixMonths": timedelta(days=180)}


@dataclass(frozen=True)
class CustomModel:
    """A tuned model, made by a job."""

    arn: str
    job: Job
    created: datetime

    @property
    def name(self) -> str:
        return self.job.model_name


@dataclass(frozen=True)
class Capacity:
    """A provisioned throughput or custom model deployment. `custom_model` None: a base model's."""

    arn: str
    name: str
    request: Mapping[str, Any]
    base_model: FoundationModel
    custom_model: CustomModel | None
    created: datetime
    ready_at: datetime

    @property
    def is_ready(self) -> bool:
        return datetime.now(UTC) >= self.ready_at


Asked = TypeVar("Asked", Job, Capacity)


class BedrockService(Service):
    """The operations of `bedrock`."""

    name: ClassVar[str] = "bedrock"

    def __init__(self, cloud: "Cloud") -> None:
        self._cloud = cloud
        self._folder = cloud.config.state_dir.resolve() / "bedrock"
        self._lock = threading.RLock()
        self._runner = Runner(self._complete)
        self._jobs: dict[str, Job] = {}
        self._models: dict[str, CustomModel] = {}
        self._throughputs: dict[str, Capacity] = {}
        self._deployments: dict[str, Capacity] = {}
        self._tags: dict[str, list[dict[str, str]]] = {}

    def stop(self) -> None:
        self._runner.stop()

    # Foundation models

    def get_foundation_model(self, request: dict[str, Any]) -> dict[str, Any]:
        model = known_model(request["modelIdentifier"])
        if is_past(model):
            raise not_found(f"{model.id} has reached its end of life.")
        return {"modelDetails": self._foundation_model(model)}

    def list_foundation_models(self, request: dict[str, Any]) -> dict[str, Any]:
        described = [self._foundation_model(model) for model in all_models() if not is_past(model)]
        filters = {
            "byCustomizationType": "customizationsSupported",
            "byOutputModality": "outputModalities",
            "byInferenceType": "inferenceTypesSupported",
        }
        for name, member in filters.items():
            if wanted := request.get(name):
                described = [model for model in described if wanted in model[member]]
        if provider := request.get("byProvider"):
            described = [
                model
                for model in described
                if model["providerName"].casefold() == provider.casefold()
            ]
        return {"modelSummaries": described}

    # Customization jobs

    def create_model_customization_job(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            if earlier := _same_token(self._jobs.values(), request):
                return {"jobArn": earlier.arn}
            model, rules = self._check_model(request)
            refuse(request, "vpcConfig", "customizationConfig")
            hyperparameters = _hyperparameters(rules, request.get("hyperParameters", {}))
            training, validation = _data_uris(request)
            _check_key(request)
            if any(job.name == request["jobName"] for job in self._jobs.values()):
                raise ServiceError(
                    "ConflictException", f"The job name {request['jobName']} is already in use."
                )
            self._check_model_name(request["customModelName"])
            if sum(job.runs for job in self._jobs.values()) >= RUNNING_JOBS:
                raise ServiceError(
                    "ServiceQuotaExceededException",
                    f"{RUNNING_JOBS} model customization jobs are running, which is all that this "
                    "account may run at once. Try again when one has ended.",
                )
            identifier = _new_id()
            job = Job(
                arn=self._arn(f"model-customization-job/{model.id}/{identifier}"),
                request=request,
                base_model=model,
                hyperparameters={name: f"{value:g}" for name, value in hyperparameters.items()},
                folder=self._folder / "jobs" / identifier,
                created=datetime.now(UTC),
            )
            job.folder.mkdir(parents=True)
            config = TrainingJob(
                id=identifier,
                model=self._cloud.config.model,
                weights_cache=str(weights_cache(self._cloud)),
                base_model=model.id,
                training_uri=training,
                validation_uri=validation,
                output_uri=request["outputDataConfig"]["s3Uri"],
                hyperparameters=hyperparameters,
            )
            self._runner.start(job, config, self._cloud.environment())
            self._jobs[job.arn] = job
            self._tags[job.arn] = request.get("jobTags", [])
            return {"jobArn": job.arn}

    def get_model_customization_job(self, request: dict[str, Any]) -> dict[str, Any]:
        job = self._job(request["jobIdentifier"])
        asked = job.request
        return _present(
            jobArn=job.arn,
            jobName=job.name,
            outputModelName=job.model_name,
            outputModelArn=job.model_arn,
            clientRequestToken=asked.get("clientRequestToken"),
            roleArn=asked["roleArn"],
            status=job.status,
            failureMessage=job.failure,
            creationTime=job.created,
            lastModifiedTime=job.changed,
            endTime=job.ended,
            outputModelKmsKeyArn=asked.get("customModelKmsKeyId"),
            **self._made_of(job),
        )

    def list_model_customization_jobs(self, request: dict[str, Any]) -> dict[str, Any]:
        return page_of(
            request,
            "modelCustomizationJobSummaries",
            [
                _present(
                    jobArn=job.arn,
                    baseModelArn=self._foundation_arn(job.base_model),
                    jobName=job.name,
                    status=job.status,
                    lastModifiedTime=job.changed,
                    creationTime=job.created,
                    endTime=job.ended,
                    customModelArn=job.model_arn,
                    customModelName=job.model_name if job.model_arn else None,
                    customizationType="FINE_TUNING",
                )
                for job in self._jobs.copy().values()
            ],
            name="jobName",
            created="creationTime",
            equals={"statusEquals": "status"},
        )

    def stop_model_customization_job(self, request: dict[str, Any]) -> dict[str, Any]:
        job = self._job(request["jobIdentifier"])
        if not self._runner.stop_job(job):
            raise ServiceError(
                "ConflictException",
                f"The job {job.name} is {job.status}: only one that is InProgress can be stopped.",
            )
        return {}

    # Custom models

    def get_custom_model(self, request: dict[str, Any]) -> dict[str, Any]:
        model = self._custom_model(request["modelIdentifier"])
        return _present(
            modelArn=model.arn,
            modelName=model.name,
            jobName=model.job.name,
            jobArn=model.job.arn,
            modelKmsKeyArn=model.job.request.get("customModelKmsKeyId"),
            creationTime=model.created,
            modelStatus="Active",
            **self._made_of(model.job),
        )

    def list_custom_models(self, request: dict[str, Any]) -> dict[str, Any]:
        if request.get("isOwned") is False:
            return {"modelSummaries": []}
        return page_of(
            request,
            "modelSummaries",
            [
                {
                    "modelArn": model.arn,
                    "modelName": model.name,
                    "creationTime": model.created,
                    "baseModelArn": self._foundation_arn(model.job.base_model),
                    "baseModelName": model.job.base_model.name,
                    "customizationType": "FINE_TUNING",
                    "ownerAccountId": self._cloud.config.account_id,
                    "modelStatus": "Active",
                }
                for model in self._models.copy().values()
            ],
            name="modelName",
            created="creationTime",
            equals={
                "baseModelArnEquals": "baseModelArn",
                "foundationModelArnEquals": "baseModelArn",
                "modelStatus": "modelStatus",
            },
        )

    def delete_custom_model(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            model = self._custom_model(request["modelIdentifier"])
            for capacity in [*self._throughputs.values(), *self._deployments.values()]:
                if capacity.custom_model is model:
                    raise ServiceError(
                        "ConflictException", f"{model.name} is served by {capacity.arn}."
                    )
            del self._models[model.arn]
            self._tags.pop(model.arn, None)
            return {}

    # Provisioned throughput

    def create_provisioned_model_throughput(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            if earlier := _same_token(self._throughputs.values(), request):
                return {"provisionedModelArn": earlier.arn}
            base, custom = self._servable(request["modelId"])
            throughput = self._capacity(
                self._throughputs,
                "provisioned-model",
                request["provisionedModelName"],
                request,
                base,
                custom,
            )
            return {"provisionedModelArn": throughput.arn}

    def get_provisioned_model_throughput(self, request: dict[str, Any]) -> dict[str, Any]:
        return self._throughput(_find(self._throughputs, request["provisionedModelId"]))

    def list_provisioned_model_throughputs(self, request: dict[str, Any]) -> dict[str, Any]:
        return page_of(
            request,
            "provisionedModelSummaries",
            [self._throughput(throughput) for throughput in self._throughputs.copy().values()],
            name="provisionedModelName",
            created="creationTime",
            equals={"statusEquals": "status", "modelArnEquals": "modelArn"},
        )

    def delete_provisioned_model_throughput(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            throughput = _find(self._throughputs, request["provisionedModelId"])
            if (until := self._committed_until(throughput)) and until > datetime.now(UTC):
                raise ServiceError("ConflictException", f"Committed until {until.isoformat()}.")
            del self._throughputs[throughput.arn]
            self._tags.pop(throughput.arn, None)
            return {}

    # Custom model deployments

    def create_custom_model_deployment(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            if earlier := _same_token(self._deployments.values(), request):
                return {"customModelDeploymentArn": earlier.arn}
            custom = self._custom_model(request["modelArn"])
            base = custom.job.base_model
            if not require_tunable(base).on_demand:
                raise invalid(
                    f"Custom models of {base.id} cannot be deployed on demand: "
                    "serve them with Provisioned Throughput."
                )
            deployment = self._capacity(
                self._deployments,
                "custom-model-deployment",
                request["modelDeploymentName"],
                request,
                base,
                custom,
            )
            return {"customModelDeploymentArn": deployment.arn}

    def get_custom_model_deployment(self, request: dict[str, Any]) -> dict[str, Any]:
        deployment = _find(self._deployments, request["customModelDeploymentIdentifier"])
        return _present(
            customModelDeploymentArn=deployment.arn,
            modelDeploymentName=deployment.name,
            description=deployment.request.get("description"),
            **_deployed(deployment),
        )

    def list_custom_model_deployments(self, request: dict[str, Any]) -> dict[str, Any]:
        return page_of(
            request,
            "modelDeploymentSummaries",
            [
                {
                    "customModelDeploymentArn": deployment.arn,
                    "customModelDeploymentName": deployment.name,
                    **_deployed(deployment),
                }
                for deployment in self._deployments.copy().values()
            ],
            name="customModelDeploymentName",
            created="createdAt",
            equals={"statusEquals": "status", "modelArnEquals": "modelArn"},
        )

    def delete_custom_model_deployment(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            deployment = _find(self._deployments, request["customModelDeploymentIdentifier"])
            del self._deployments[deployment.arn]
            self._tags.pop(deployment.arn, None)
            return {}

    def list_tags_for_resource(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["resourceARN"] not in self._tags:
            raise not_found(f"No resource {request['resourceARN']}.")
        return {"tags": self._tags[request["resourceARN"]]}

    # For bedrock-runtime

    def serving(self, arn: str) -> Capacity:
        """The provisioned throughput or deployment of an ARN, ready to answer."""
        kind: Literal["InService", "Active"] = (
            "InService" if ":provisioned-model/" in arn else "Active"
        )
        capacity = _find(self._throughputs if kind == "InService" else self._deployments, arn)
        if not capacity.is_ready:
            raise invalid(f"{arn} is Creating: it can be invoked once it is {kind}.")
        return capacity

    def _check_model(self, request: Mapping[str, Any]) -> tuple[FoundationModel, TuningRules]:
        kind = request.get("customizationType", "FINE_TUNING")
        if kind != "FINE_TUNING":
            raise invalid(f"The embedded cloud does FINE_TUNING only, not {kind}.")
        if ":custom-model/" in request["baseModelIdentifier"]:
            raise invalid("The embedded cloud tunes foundation models only, not custom models.")
        try:
            model = find_model(request["baseModelIdentifier"])
            require_usable(model, today())
            rules = require_tunable(model)
        except (UnknownModelError, UnusableModelError) as error:
            raise invalid(str(error)) from error
        region = self._cloud.config.region
        if region not in rules.regions:
            raise invalid(
                f"{model.id} can be fine-tuned in {', '.join(rules.regions)}, not in {region}."
            )
        return model, rules

    def _check_model_name(self, name: str) -> None:
        taken = {model.name for model in self._models.copy().values()}
        taken.update(job.model_name for job in self._jobs.values() if job.runs)
        if name in taken:
            raise ServiceError(
                "ConflictException", f"The custom model name {name} is already in use."
            )

    def _complete(self, job: Job) -> None:
        model = CustomModel(
            arn=job.arn.replace(":model-customization-job/", ":custom-model/"),
            job=job,
            created=datetime.now(UTC),
        )
        self._models[model.arn] = model
        self._tags[model.arn] = job.request.get("customModelTags", [])
        job.model_arn = model.arn

    def _made_of(self, job: Job) -> dict[str, Any]:
        """What a job and the model it made have in common."""
        return {
            "baseModelArn": self._foundation_arn(job.base_model),
            "hyperParameters": job.hyperparameters,
            "trainingDataConfig": job.request["trainingDataConfig"],
            "validationDataConfig": job.request.get("validationDataConfig", {"validators": []}),
            "outputDataConfig": job.request["outputDataConfig"],
            "customizationType": "FINE_TUNING",
            **job.metrics(),
        }

    def _job(self, identifier: str) -> Job:
        for job in self._jobs.copy().values():
            if identifier in (job.arn, job.name):
                return job
        raise not_found(f"No model customization job {identifier}.")

    def _custom_model(self, identifier: str) -> CustomModel:
        for model in self._models.copy().values():
            if identifier in (model.arn, model.name):
                return model
        raise not_found(f"No custom model {identifier}.")

    def _servable(self, identifier: str) -> tuple[FoundationModel, CustomModel | None]:
        """The base and custom model (if it is one) that a provisioned throughput is to serve."""
        try:
            model = find_model(identifier)
        except UnknownModelError:
            custom = self._custom_model(identifier)
            return custom.job.base_model, custom
        if model.end_of_life is not None:
            raise invalid(f"{model.id} is Legacy: it takes no new provisioned throughput.")
        return model, None

    def _capacity(
        self,
        known: dict[str, Capacity],
        kind: str,
        name: str,
        request: Mapping[str, Any],
        base: FoundationModel,
        custom: CustomModel | None,
    ) -> Capacity:
        if any(capacity.name == name for capacity in known.values()):
            raise invalid(f"The name {name} is already in use.")
        now = datetime.now(UTC)
        capacity = Capacity(
            arn=self._arn(f"{kind}/{_new_id()}"),
            name=name,
            request=request,
            base_model=base,
            custom_model=custom,
            created=now,
            ready_at=now + timedelta(seconds=self._cloud.config.scaled(SECONDS_TO_SERVE)),
        )
        known[capacity.arn] = capacity
        self._tags[capacity.arn] = request.get("tags", [])
        return capacity

    def _throughput(self, throughput: Capacity) -> dict[str, Any]:
        foundation = self._foundation_arn(throughput.base_model)
        model = throughput.custom_model.arn if throughput.custom_model else foundation
        return _present(
            provisionedModelName=throughput.name,
            provisionedModelArn=throughput.arn,
            modelArn=model,
            desiredModelArn=model,
            foundationModelArn=foundation,
            modelUnits=throughput.request["modelUnits"],
            desiredModelUnits=throughput.request["modelUnits"],
            status="InService" if throughput.is_ready else "Creating",
            creationTime=throughput.created,
            lastModifiedTime=throughput.ready_at if throughput.is_ready else throughput.created,
            commitmentDuration=throughput.request.get("commitmentDuration"),
            commitmentExpirationTime=self._committed_until(throughput),
        )

    def _committed_until(self, throughput: Capacity) -> datetime | None:
        duration = throughput.request.get("commitmentDuration")
        return throughput.created + COMMITMENTS[duration] if duration else None

    def _foundation_model(self, model: FoundationModel) -> dict[str, Any]:
        outputs = {"text": "TEXT", "image": "IMAGE", "embedding": "EMBEDDING"}
        lifecycle: dict[str, Any] = {"status": "LEGACY" if model.end_of_life else "ACTIVE"}
        if model.end_of_life:
            lifecycle["endOfLifeTime"] = datetime.combine(
                model.end_of_life, datetime.min.time(), UTC
            )
        return {
            "modelArn": self._foundation_arn(model),
            "modelId": model.id,
            "modelName": model.name,
            "providerName": model.provider,
            "inputModalities": ["TEXT"],
            "outputModalities": [outputs[task] for task in model.tasks],
            "responseStreamingSupported": False,
            "customizationsSupported": ["FINE_TUNING"] if model.tuning else [],
            "inferenceTypesSupported": ["PROVISIONED" if model.tuning else "ON_DEMAND"],
            "modelLifecycle": lifecycle,
        }

    def _foundation_arn(self, model: FoundationModel) -> str:
        return f"arn:aws:bedrock:{self._cloud.config.region}::foundation-model/{model.id}"

    def _arn(self, resource: str) -> str:
        config = self._cloud.config
        return f"arn:aws:bedrock:{config.region}:{config.account_id}:{resource}"


def _hyperparameters(rules: TuningRules, asked: Mapping[str, str]) -> dict[str, float]:
    """The value of every hyperparameter, the service's default where none is asked for."""
    if unknown := sorted(set(asked) - set(rules.hyperparameters)):
        raise invalid(
            f"Unknown hyperparameter {', '.join(unknown)}. "
            f"This model takes {', '.join(rules.hyperparameters)}."
        )
    try:
        return {
            name: rule.parse(asked[name]) if name in asked else rule.default
            for name, rule in rules.hyperparameters.items()
        }
    except HyperparameterError as error:
        raise invalid(str(error)) from error


def _data_uris(request: Mapping[str, Any]) -> tuple[str, str | None]:
    """The training object's URI and the validation object's, if any."""
    training = request["trainingDataConfig"]
    refuse(training, "invocationLogsConfig")
    if "s3Uri" not in training:
        raise invalid("trainingDataConfig.s3Uri is missing.")
    validators = request.get("validationDataConfig", {}).get("validators", [])
    if len(validators) > 1:
        raise invalid("validationDataConfig takes one validator at most.")
    return training["s3Uri"], validators[0]["s3Uri"] if validators else None


def _check_key(request: Mapping[str, Any]) -> None:
    key = request.get("customModelKmsKeyId")
    if key is not None and ":key/" not in key:
        raise invalid("The embedded cloud takes customModelKmsKeyId as a key's ARN only.")


def _same_token(known: Iterable[Asked], request: Mapping[str, Any]) -> Asked | None:
    """What an earlier request with this client request token made."""
    token = request.get("clientRequestToken")
    return next(
        (made for made in known if token and made.request.get("clientRequestToken") == token),
        None,
    )


def _find(known: Mapping[str, Capacity], identifier: str) -> Capacity:
    for capacity in list(known.values()):
        if identifier in (capacity.arn, capacity.name, capacity.arn.rpartition("/")[2]):
            return capacity
    raise not_found(f"No provisioned throughput or custom model deployment {identifier}.")


def _deployed(deployment: Capacity) -> dict[str, Any]:
    return {
        "modelArn": deployment.custom_model.arn if deployment.custom_model else None,
        "createdAt": deployment.created,
        "lastUpdatedAt": deployment.ready_at if deployment.is_ready else deployment.created,
        "status": "Active" if deployment.is_ready else "Creating",
    }


def _present(**members: Any) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not None}


def _new_id() -> str:
    return "".join(choice(ascii_lowercase + digits) for _ in range(12))
