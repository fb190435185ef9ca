"""The role of an OpenSearch domain that reads one index, and who has it."""

from collections.abc import Sequence

from opensearchpy import OpenSearch, TransportError

from vectors.index import VectorIndexError


def grant_reader_role(client: OpenSearch, index: str, iam_roles: Sequence[str]) -> None:
    """Lets IAM roles, by their ARNs, search and count an index, and do nothing else.

    For domains with fine-grained access control, whose master user alone may do so. The domain's
    role `<index>-reader` is made or replaced, and afterwards these IAM roles have it, no others.
    Raises VectorIndexError if the domain refuses.

    Source: https://docs.opensearch.org/2.19/security/access-control/default-action-groups/
    """
    role = f"{index}-reader"
    permissions = {
        # _msearch is asked of the cluster; each of its searches is one of an index, as is _count.
        "cluster_permissions": ["indices:data/read/msearch"],
        "index_permissions": [
            # the alias, and the indices behind it: one of six digits after another
            {"index_patterns": [index, f"{index}-??????"], "allowed_actions": ["search"]}
        ],
    }
    try:
        client.security.create_role(role=role, body=permissions)
        client.security.create_role_mapping(role=role, body={"backend_roles": list(iam_roles)})
    except TransportError as error:
        raise VectorIndexError(
            f"The role {role} could not be granted at {client.transport.get_connection().host} to "
            f"{', '.join(iam_roles)}, which are to search there: {error.status_code} "
            f"{error.error}. Is this job's role the master user of the domain, and does the domain "
            "have fine-grained access control?"
        ) from error
