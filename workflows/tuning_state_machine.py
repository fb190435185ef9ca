"""The Step Functions machine behind the FineTune step: start, look until done, deploy, call back.

    Start → (full? wait, again) → Wait → Check → … → Deploy → Wait → Check → … → Succeed
    anything else → Fail, which tells the pipeline why

Each task hands the whole state to one function and gets it back with a `status`; the machine only
decides where to go. It has no time-out of its own: a machine that Step Functions times out runs no
handler, and the pipeline would wait. The function compares with the deadline instead.
"""

import json
from dataclasses import dataclass
from typing import Any

from stepfunctions.steps import (
    Catch,
    Chain,
    Choice,
    ChoiceRule,
    Fail,
    LambdaStep,
    Retry,
    Succeed,
    Wait,
)
from stepfunctions.steps.states import Graph

from workflows.settings import Settings

DEPLOYMENT_CHECK_SECONDS = 60
TASK_RETRIES = 6


@dataclass(frozen=True)
class StateMachineResources:
    tuning_job_function: str = "${TuningJobFunction}"


def tuning_state_machine(settings: Settings, resources: StateMachineResources) -> dict[str, Any]:
    """The definition (Amazon States Language) of the machine `<name>-tuning-job`."""

    def task(state: str, action: str) -> LambdaStep:
        step = LambdaStep(
            state,
            parameters={
                "FunctionName": resources.tuning_job_function,
                "Payload": {
                    "action": action,
                    "execution_started.$": "$$.Execution.StartTime",
                    "state.$": "$",
                },
            },
            output_path="$.Payload",
            timeout_seconds=120,
        )
        step.add_retry(
            Retry(
                error_equals=["States.ALL"],
                interval_seconds=5,
                backoff_rate=2.0,
                max_attempts=TASK_RETRIES,
            )
        )
        return step

    def wait(state: str, seconds: int) -> Wait:
        return Wait(state, seconds=seconds)

    start = task("StartJob", "start")
    started = Choice("JobStarted?")
    wait_for_quota = wait("WaitForQuota", settings.tuning.check_seconds)
    wait_for_job = wait("WaitForJob", settings.tuning.check_seconds)
    check = task("CheckJob", "check")
    finished = Choice("JobFinished?")
    succeed = task("ReportSuccess", "succeed")
    fail = task("ReportFailure", "fail")
    done = Succeed("Done")
    failed = Fail(
        "Failed", error="TuningFailed", cause="The job's state and the pipeline's step say why."
    )

    start.next(started)
    started.add_choice(_status("Started"), wait_for_job)
    started.add_choice(_status("QuotaFull"), wait_for_quota)
    started.default_choice(fail)
    wait_for_quota.next(start)
    wait_for_job.next(check)
    check.next(finished)
    finished.add_choice(_status("InProgress"), wait_for_job)
    tasks = [start, check, succeed]

    if settings.tuning.serving == "on-demand":
        deploy = task("Deploy", "deploy")
        wait_for_deployment = wait("WaitForDeployment", DEPLOYMENT_CHECK_SECONDS)
        check_deployment = task("CheckDeployment", "check_deployment")
        deployed = Choice("Deployed?")
        finished.add_choice(_status("Completed"), deploy)
        deploy.next(wait_for_deployment)
        wait_for_deployment.next(check_deployment)
        check_deployment.next(deployed)
        deployed.add_choice(_status("Deploying"), wait_for_deployment)
        deployed.add_choice(_status("Active"), succeed)
        deployed.default_choice(fail)
        tasks += [deploy, check_deployment]
    else:
        finished.add_choice(_status("Completed"), succeed)

    finished.default_choice(fail)
    for step in tasks:
        step.add_catch(Catch(error_equals=["States.ALL"], result_path="$.error", next_step=fail))
    succeed.next(done)
    fail.next(failed)
    definition: dict[str, Any] = json.loads(Graph(Chain([start])).to_json())
    return definition


def _status(value: str) -> ChoiceRule:
    return ChoiceRule.StringEquals(variable="$.status", value=value)
