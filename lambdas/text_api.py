"""POST /text: a question, answered by the base model or the tuned one."""

from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from lambdas.answers import Generator
from lambdas.api_models import TextRequest, TextResponse
from lambdas.api_settings import ApiSettings
from lambdas.generation import client
from lambdas.http import logger, parse, respond
from lambdas.personas import Personas
from lambdas.validation import read_environment

environment = read_environment(ApiSettings)
personas = Personas(environment.PERSONAS_URI)
bedrock = client("bedrock-runtime", read_seconds=24, access=environment.ACCESS)
generator = Generator(environment, bedrock, personas)


@logger.inject_lambda_context(clear_state=True)
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Answer one proxy event."""

    def answer(request_id: str) -> TextResponse:
        request = parse(event, TextRequest)
        model = generator.choose(request.model)
        return generator.answer(model, generator.system(request), request, request_id)

    return respond(event, context, answer)
