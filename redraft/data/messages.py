"""Conversations, as they lie in files: every fault is one ``ValueError`` with the file, the line and the remedy."""

import json
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypedDict

from redraft.data.sources import records, written
from redraft.errors import unknown

ROLES = ("system", "user", "assistant")

_FORMS = "'messages', 'prompt' and 'completion', or 'instruction', 'input' and 'output'"


class Message(TypedDict):
    """One turn of a conversation: ``role`` is one of ``ROLES``."""

    role: str
    content: str


def conversations(source: str | Path, limit: int | None = None) -> list[list[Message]]:
    """The conversations of a ``.jsonl`` file, in its order, the first ``limit`` of them.

    A line has ``messages``, or ``prompt`` and ``completion`` (texts, or lists of messages), or Alpaca's fields:
    ``instruction``, ``input`` if any, and ``output`` or, in the form of seed tasks, ``instances``, each an example of
    its own. Where a line has several of these, the first counts; other fields are not read.

    Errors: ``ValueError`` naming file, line and remedy for whatever is none of these, a role that is unknown, an answer
    to nothing, a conversation without an answer, and a file without conversations.
    """
    path = Path(source).expanduser()
    if path.suffix != ".jsonl" or not path.is_file():
        names = [other.name for other in path.parent.glob("*.jsonl")] if path.parent.is_dir() else []
        near = get_close_matches(path.name, names, n=1)
        hint = f"; did you mean {str(path.parent / near[0])!r}?" if near else "; check the path"
        raise ValueError(f"{source}: conversations are read from a .jsonl file, and this is none{hint}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}: pass how many conversations to read, at least 1, or None for all")
    found = list(islice(chain.from_iterable(_examples(*one) for one in records(path, f"one with {_FORMS}")), limit))
    if not found:
        raise ValueError(f"{path}: empty, there is no conversation in it; choose a file with some")
    return found


def _examples(where: str, record: Mapping[str, Any]) -> Iterator[list[Message]]:
    """The conversations of one line."""
    if "messages" in record:
        found = [_messages(record["messages"], f"{where}, field 'messages'")]
    elif "prompt" in record and "completion" in record:
        found = [[*_side(record, "prompt", "user", where), *_side(record, "completion", "assistant", where)]]
    elif "instruction" in record and ("output" in record or "instances" in record):
        found = [_alpaca(record["instruction"], *one) for one in _instances(record, where)]
    else:
        raise ValueError(f"{where}: fields {', '.join(map(repr, record)) or 'none'}; write {_FORMS}")
    for messages in found:
        checked(messages, where)
        if messages[-1]["role"] != "assistant":
            raise ValueError(f"{where}: the last message is the {messages[-1]['role']}'s; end with an answer")
        yield messages


def _side(record: Mapping[str, Any], name: str, role: str, where: str) -> list[Message]:
    value, where = record[name], f"{where}, field {name!r}"
    return [{"role": role, "content": _text(value, where)}] if isinstance(value, str) else _messages(value, where)


def _messages(value: Any, where: str) -> list[Message]:
    if not isinstance(value, list):
        raise ValueError(f"{where} is {_short(value)}; write a list of {{'role': ..., 'content': ...}}")
    found = list[Message]()
    for number, one in enumerate(value, 1):
        found.append(_message(one, f"{where}, message {number}"))
    return found


def _message(one: Any, place: str) -> Message:
    if not isinstance(one, Mapping) or not {"role", "content"} <= one.keys():
        raise ValueError(f"{place} is {_short(one)}; write {{'role': ..., 'content': ...}}")
    return {"role": _text(one["role"], f"{place}, 'role'"), "content": _text(one["content"], place)}


def _instances(record: Mapping[str, Any], where: str) -> Iterator[tuple[str, str, str]]:
    """Input, output and place of each example."""
    several: Any = record["instances"] if "output" not in record else [record]
    if not isinstance(several, list) or not several:
        raise ValueError(f"{where}, field 'instances' is {_short(several)}; write a list of {{'input', 'output'}}")
    for one in several:
        if not isinstance(one, dict) or "output" not in one:
            raise ValueError(f"{where}, field 'instances' has {_short(one)}; write {{'input': ..., 'output': ...}}")
        given = "" if one.get("input") is None else _text(one["input"], f"{where}, field 'input'")
        yield given, _text(one["output"], f"{where}, field 'output'"), where


def _alpaca(instruction: Any, given: str, output: str, where: str) -> list[Message]:
    asked = _text(instruction, f"{where}, field 'instruction'")
    asked = f"{asked}\n\n{given}" if given else asked
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": output}]


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where} is {_short(value)}, not a text; write a string")
    return written(value, where)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def checked(messages: Sequence[Message], where: str = "messages") -> None:
    """Refuse what is no conversation: ``ValueError`` for what is no message, an unknown role, an answer to nothing."""
    if not messages:
        raise ValueError(f"{where}: a conversation of no messages; write one at least")
    for number, message in enumerate(messages, 1):
        _message(message, f"{where}, message {number}")
        if message["role"] not in ROLES:
            raise ValueError(f"{where}: {unknown('role', message['role'], ROLES)}")
    roles = [message["role"] for message in messages if message["role"] != "system"]
    if not roles or roles[0] == "assistant":
        begun = "an answer to nothing" if roles else "nothing but instructions"
        raise ValueError(f"{where}: {begun}; begin with a message of the user's, after the system's if there is one")


def remembering(config: str, taught: Mapping[str, str]) -> str:
    """tokenizer_config.json with what a tokenizer was ``taught``, the template where ``transformers`` looks for it."""
    values: dict[str, Any] = json.loads(config)
    if taught:
        values["chat_template"] = taught["template"]
        values["redraft"] = {**values.get("redraft", {}), "taught": dict(taught)}
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"
