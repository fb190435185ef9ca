"""A document's metadata, in the form that Bedrock Knowledge Bases keeps beside the document.

`lore.pdf` has it in `lore.pdf.metadata.json`: https://docs.aws.amazon.com/bedrock/latest/userguide/
kb-metadata.html. Both forms are known: a plain value, and one with its type.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictStr, ValidationError

from vectors.index import Attribute

SUFFIX = ".metadata.json"
MAXIMUM_BYTES = 10 * 2**10

_Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class SidecarError(Exception):
    """The metadata cannot be read; the message says why."""


class _Typed(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _String(_Typed):
    type: Literal["STRING"]
    stringValue: StrictStr


class _NumberValue(_Typed):
    type: Literal["NUMBER"]
    numberValue: _Number


class _Boolean(_Typed):
    type: Literal["BOOLEAN"]
    booleanValue: StrictBool


class _StringList(_Typed):
    type: Literal["STRING_LIST"]
    stringListValue: list[StrictStr]


class _Value(BaseModel):
    value: Annotated[_String | _NumberValue | _Boolean | _StringList, Field(discriminator="type")]


class _Sidecar(BaseModel):
    metadataAttributes: dict[str, StrictBool | _Number | StrictStr | list[StrictStr] | _Value]


def read_sidecar(content: bytes) -> dict[str, Attribute]:
    """The attributes in the content of a `.metadata.json` file. Raises SidecarError."""
    if len(content) > MAXIMUM_BYTES:
        raise SidecarError(f"larger than {MAXIMUM_BYTES // 2**10} KiB")
    try:
        sidecar = _Sidecar.model_validate_json(content.removeprefix(b"\xef\xbb\xbf"))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise SidecarError(f"{place}: {first['msg']}" if place else first["msg"]) from error
    return {name: _plain(value) for name, value in sidecar.metadataAttributes.items()}


def _plain(value: bool | float | str | list[str] | _Value) -> Attribute:
    if not isinstance(value, _Value):
        return value
    match value.value:
        case _String(stringValue=plain):
            return plain
        case _NumberValue(numberValue=number):
            return number
        case _Boolean(booleanValue=flag):
            return flag
        case _StringList(stringListValue=items):
            return items
