"""The one error that ends the evaluation job with a message for the engineer who reads it."""


class EvaluationError(Exception):
    """The job cannot give an honest report: says what happened, to which file, and what to do."""
