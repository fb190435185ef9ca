"""A tuning job that never ends in time."""

from stack import Tuning, dialogues, small

SECONDS = 8  # long enough to start the job, and much shorter than the job
SETTINGS = small(tuning={"timeout_hours": SECONDS / 3600, "hyperparameters": {"epochCount": 5}})


def test_a_job_past_the_deadline_is_stopped_and_said_to_be(tuning: Tuning) -> None:
    tuning.upload("datasets/endless.jsonl", dialogues(8_000, "endless"))
    execution = tuning.execution_of("datasets/endless.jsonl")
    assert tuning.end_of(execution)["PipelineExecutionStatus"] == "Failed"
    reason = tuning.steps(execution)["FineTune"]["FailureReason"]
    assert "did not end within" in reason
    job = tuning.tuning_job(execution)
    assert job["status"] in ("Stopping", "Stopped")
