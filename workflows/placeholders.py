"""What a definition leaves to CloudFormation: `${DataBucket}` and the like, resolved by Fn::Sub."""

import re


def placeholders(definition: str) -> set[str]:
    """Names of the `${…}` placeholders in a rendered definition, AWS's own left out."""
    return {name for name in re.findall(r"\$\{([^}]+)\}", definition) if ":" not in name}
