"""What a row of a dataset says: the forms records come in, and the clean text in them."""

import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass

from bedrock.conversations import Conversation, Message, RecordError

_UNUSUAL = re.compile(r"[^ -~\n]")
_LINE_ENDS = re.compile(r"\r\n|[\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
_INVISIBLE = re.compile(r"[\x00-\x08\x0e-\x1b\x1f\x7f-\x84\x86-\x9f\xad\u200b\u2060\ufeff]")
_SPACES = re.compile(r"[\xa0\u1680\u2000-\u200a\u202f\u205f\u3000]")
_BLANK_LINES = re.compile(r"\n{3,}")

_PAIRS = (("prompt", "completion"), ("question", "answer"), ("instruction", "output"))


@dataclass(frozen=True)
class Columns:
    """The columns that hold prompt, completion and system prompt; None: those of a known form."""

    prompt: str | None = None
    completion: str | None = None
    system: str | None = None


def normalise(text: str) -> str:
    """Text in Unicode's composed form (NFC), with plain line ends and spaces.

    Control characters, soft hyphens, zero-width spaces and byte order marks are dropped; so are
    spaces at the ends of lines, more than one blank line in a row, and what surrounds the text.
    Indentation and everything that can be seen stays as it is. Raises RecordError for text that is
    no Unicode.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RecordError("not valid UTF-8") from error
    if _UNUSUAL.search(text):
        text = _LINE_ENDS.sub("\n", text)
        text = _INVISIBLE.sub("", text)
        text = _SPACES.sub(" ", text)
        text = unicodedata.normalize("NFC", text)
    text = "\n".join(line.rstrip(" \t") for line in text.split("\n"))
    return _BLANK_LINES.sub("\n\n", text).strip()


def conversation_of(row: object, columns: Columns) -> Conversation:
    """The conversation a row holds, normalised. Raises RecordError saying why there is none.

    Forms: columns named by setting; chat (`messages`, in which the first may be of role `system`);
    prompt and completion; question and answer; instruction, input and output. Each may have a
    `system`. Names are read without regard to case.
    """
    if not isinstance(row, Mapping):
        raise RecordError("not an object")
    fields = {str(name).strip().casefold(): value for name, value in row.items()}
    system = _system(fields, columns)
    if columns.prompt is not None and columns.completion is not None:
        return _pair(system, _text(fields, columns.prompt), _text(fields, columns.completion))
    if fields.get("messages") is not None:
        return _chat(system, fields["messages"])
    for prompt, completion in _PAIRS:
        if prompt in fields and completion in fields:
            question = _text(fields, prompt)
            if prompt == "instruction" and fields.get("input"):
                question = f"{question}\n\n{_text(fields, 'input')}"
            return _pair(system, question, _text(fields, completion))
    raise RecordError(
        "of no known form (prompt and completion, question and answer, "
        "instruction and output, or messages)"
    )


def _system(fields: Mapping[str, object], columns: Columns) -> str | None:
    name = (columns.system or "system").strip().casefold()
    if columns.system is not None and name not in fields:
        raise RecordError(f"{columns.system} is missing")
    value = fields.get(name)
    return None if value is None else _content(name, value) or None


def _pair(system: str | None, question: str, answer: str) -> Conversation:
    return Conversation(system, (Message("user", question), Message("assistant", answer)))


def _chat(system: str | None, messages: object) -> Conversation:
    if isinstance(messages, str):  # a CSV column can hold a list only as JSON
        try:
            messages = json.loads(messages)
        except (ValueError, RecursionError) as error:
            raise RecordError("messages is not valid JSON") from error
    if not isinstance(messages, list) or not all(isinstance(turn, Mapping) for turn in messages):
        raise RecordError("messages must be a list of objects with role and content")
    turns = [(turn.get("role"), _content("content", turn.get("content"))) for turn in messages]
    if turns and turns[0][0] == "system":
        if system is not None:
            raise RecordError("two system prompts")
        system = turns.pop(0)[1] or None
    conversation = []
    for role, text in turns:
        if role not in ("user", "assistant"):
            raise RecordError("a message's role must be user or assistant")
        conversation.append(Message(role, text))
    return Conversation(system, tuple(conversation))


def _text(fields: Mapping[str, object], name: str) -> str:
    value = fields.get(name.strip().casefold())
    if value is None:
        raise RecordError(f"{name} is missing")
    return _content(name, value)


def _content(name: str, content: object) -> str:
    if isinstance(content, str):
        return normalise(content)
    texts = []
    for block in content if isinstance(content, list) else [None]:
        text = block.get("text") if isinstance(block, Mapping) else None
        if not isinstance(text, str):
            raise RecordError(f'{name} must be text, or a list of {{"text": …}}')
        texts.append(text)
    return normalise("\n".join(texts))
