"""Variables: what actions put out, in the configuration of later ones.

https://docs.aws.amazon.com/codepipeline/latest/userguide/reference-variables.html
"""

import re
from collections.abc import Mapping

_REFERENCE = re.compile(r"#\{([A-Za-z0-9@\-_]+)\.([A-Za-z0-9@\-_]+)\}")


class UnknownVariable(Exception):
    """A reference to a variable that nothing has put out; the message names it."""


def fill(text: str, variables: Mapping[str, Mapping[str, str]]) -> str:
    """A text with every `#{namespace.name}` replaced by its value, taken by namespace and name.

    What is put in is not looked at again. Raises `UnknownVariable`.
    """

    def value(match: re.Match[str]) -> str:
        namespace, name = match.groups()
        if namespace not in variables:
            known = ", ".join(sorted(variables))
            raise UnknownVariable(
                f"{match[0]}: no action that ran before has the namespace {namespace}, only {known}"
            )
        if name not in variables[namespace]:
            known = ", ".join(sorted(variables[namespace])) or "none"
            raise UnknownVariable(
                f"{match[0]}: the namespace {namespace} has no such variable; it has {known}"
            )
        return variables[namespace][name]

    return _REFERENCE.sub(value, text)
