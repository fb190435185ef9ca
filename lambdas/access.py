"""Asking another account or region, as a role there: production's functions do when models and
index are elsewhere, and a release does when production is."""

from functools import cache, partial

from botocore.config import Config
from botocore.credentials import (
    AssumeRoleCredentialFetcher,
    Credentials,
    DeferredRefreshableCredentials,
)
from botocore.session import Session, get_session
from pydantic import BaseModel, ConfigDict, Field

SECONDS = 3.0  # to assume a role, at most; who waits for an answer waits for this, too
_CONFIG = Config(connect_timeout=1, read_timeout=SECONDS - 1, retries={"total_max_attempts": 1})


class Access(BaseModel):
    """A role of another place, and the region to use it in."""

    model_config = ConfigDict(frozen=True, defer_build=True)

    role: str = Field(pattern=r"^arn:[a-z-]+:iam::\d{12}:role/")
    region: str = Field(min_length=1)


class _AssumedRole:
    """In place of what a session finds credentials with."""

    def __init__(self, role: str) -> None:
        self._role = role

    def load_credentials(self) -> Credentials:
        own = get_session()
        fetcher = AssumeRoleCredentialFetcher(
            partial(own.create_client, config=_CONFIG),
            own.get_credentials(),
            self._role,
            extra_args={"RoleSessionName": "quench"},
        )
        return DeferredRefreshableCredentials(fetcher.fetch_credentials, "assume-role")


@cache
def session(access: Access | None = None) -> Session:
    """A session of botocore: as the role, in its region; as the function itself without one.

    The role is assumed when first needed, and again before its credentials expire.
    """
    made = get_session()
    if access is not None:
        made.register_component("credential_provider", _AssumedRole(access.role))
        made.set_config_variable("region", access.region)
    return made
