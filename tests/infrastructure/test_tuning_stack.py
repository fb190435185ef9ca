"""What the settings of tuning make of its stack."""

from templates import of_type, resources_of, tuning_template

from bedrock.models import all_models
from infrastructure.assets import Assets
from workflows.settings import Settings

SCHEDULE = "AWS::Scheduler::Schedule"


def test_schedule_is_only_there_when_it_is_set(assets: Assets) -> None:
    settings = Settings(tuning={"schedule": "rate(7 days)"})
    (schedule,) = of_type(tuning_template(settings, assets), SCHEDULE)
    assert schedule["ScheduleExpression"] == "rate(7 days)"
    assert of_type(tuning_template(Settings(), assets), SCHEDULE) == []


def test_every_base_model_a_run_may_name_may_be_tuned_and_invoked(assets: Assets) -> None:
    template = tuning_template(Settings(), assets)
    tuned = resources_of(template, "bedrock:CreateModelCustomizationJob")
    invoked = resources_of(template, "bedrock:InvokeModel")
    for model in all_models():
        if model.tuning and "us-east-1" in model.tuning.regions:
            assert f"foundation-model/{model.id}" in tuned
            assert f"/{model.invoke_id}" in invoked


def test_a_model_behind_an_inference_profile_may_be_invoked_by_it(assets: Assets) -> None:
    settings = Settings(tuning={"base_model": "amazon.nova-2-lite-v1:0:256k"})
    invoked = resources_of(tuning_template(settings, assets), "bedrock:InvokeModel")
    assert "foundation-model/amazon.nova-2-lite-v1:0" in invoked
    assert "inference-profile/us.amazon.nova-2-lite-v1:0" in invoked
