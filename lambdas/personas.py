"""Personas: who answers, from files in S3.

A persona's file is `<key>.json` below the prefix; its texts make the system prompt. What a tuned
model was tuned on it knows by that prompt, to the letter.
"""

import time
from typing import Any
from urllib.parse import urlsplit

from botocore.exceptions import BotoCoreError, ClientError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lambdas.generation import client
from lambdas.http import ApiError, invalid
from lambdas.validation import explain

FRESH_SECONDS = 300.0


class Persona(BaseModel):
    """A character. `voice` and `rules` are sentences that address it."""

    model_config = ConfigDict(extra="forbid", strict=True, defer_build=True)

    name: str = Field(min_length=1, description="With what it is: Marda Quill, innkeeper of …")
    voice: str = Field(min_length=1, description="How it speaks: You are warm and …")
    rules: list[str] = Field(default=[], description="What it always or never does.")

    @property
    def system(self) -> str:
        """The system prompt."""
        return " ".join([f"You are {self.name}.", self.voice, *self.rules])


class Personas:
    """The personas below a prefix in S3 (None: there are none), each kept for some minutes."""

    def __init__(self, uri: str | None) -> None:
        self._s3: Any = uri and client("s3", read_seconds=2)
        parts = urlsplit(uri or "")
        self._bucket, self._prefix = parts.netloc, parts.path.removeprefix("/")
        self._loaded: dict[str, tuple[float, Persona]] = {}

    def find(self, key: str) -> Persona:
        """The persona of a key.

        Raises ApiError: 422 naming those that are known, 502 if it cannot be read.
        """
        loaded_at, persona = self._loaded.get(key, (0.0, None))
        if persona is None or time.monotonic() - loaded_at > FRESH_SECONDS:
            persona = self._load(key)
            self._loaded[key] = time.monotonic(), persona
        return persona

    def _load(self, key: str) -> Persona:
        if not self._s3:
            raise invalid({"persona": f"there is no persona {key!r}: none are deployed"})
        try:
            name = f"{self._prefix}{key}.json"
            text = self._s3.get_object(Bucket=self._bucket, Key=name)["Body"].read()
            return Persona.model_validate_json(text)
        except self._s3.exceptions.NoSuchKey:
            pass
        except ValidationError as error:
            raise ApiError(
                502, "persona_unusable", f"The persona {key!r} is not usable: {explain(error)}."
            ) from error
        except (BotoCoreError, ClientError) as error:
            raise _unreadable() from error
        known = ", ".join(self._known()) or "none"
        raise invalid({"persona": f"there is no persona {key!r}; known are: {known}"})

    def _known(self) -> list[str]:
        try:
            listing = self._s3.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix)
        except (BotoCoreError, ClientError) as error:
            raise _unreadable() from error
        names = [found["Key"].removeprefix(self._prefix) for found in listing.get("Contents", [])]
        return sorted(name.removesuffix(".json") for name in names if name.endswith(".json"))


def _unreadable() -> ApiError:
    return ApiError(502, "personas_unreadable", "The personas could not be read. Try again.")
