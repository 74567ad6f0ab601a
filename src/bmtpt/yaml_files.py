"""Read YAML, bounded: what is nested too deeply, grows by its aliases or gives a key twice is refused with its line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from bmtpt.errors import BmtptError, SettingsError

MOST_BYTES = 2**24
DEEPEST = 50
"""Most collections inside one another. PyYAML's own recursion ends the process at some ten thousand."""
MOST_NODES = 100_000
"""Most values after every alias is replaced by what it stands for: nine lines of nine aliases make a billion."""

# C's loaders are the same in Python where PyYAML was built without libyaml. The base loader leaves every scalar a text.
LOADERS: dict[str, Any] = {
    "typed": getattr(yaml, "CSafeLoader", yaml.SafeLoader),
    "text": getattr(yaml, "CBaseLoader", yaml.BaseLoader),
}


def read_yaml(
    path: Path, refused: type[BmtptError] = SettingsError, scalars: Literal["typed", "text"] = "typed"
) -> dict[str, Any]:
    """Read a YAML file of 'key: value' lines; an empty one is {}.

    Args:
        refused: Kind of the error that says what is wrong with the file, and where.
        scalars: ``typed`` reads ``no`` as False and 1 as a number, ``text`` leaves them the words that they look like.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)  # a device or a pipe may never end
        if len(data) > MOST_BYTES:
            raise refused(f"{path} has more than {MOST_BYTES:,} bytes; is it the right file?")
        content = _content(data.decode("utf-8-sig"), LOADERS[scalars])
    except OSError as error:
        raise refused(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise refused(f"{path} is not UTF-8 text; save it as UTF-8") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        reason = " ".join(str(getattr(error, "problem", None) or error).split())[:150]
        hint = "" if isinstance(error, _Refused) else "; a text with ': ' or '{' in it needs quotes"
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        raise refused(f"{where}: this YAML cannot be read ({reason}){hint}") from error
    except (ValueError, OverflowError, LookupError, AttributeError) as error:  # a date or a number that is none
        reason = str(error) if isinstance(error, (ValueError, OverflowError)) else "it is not what its tag says"
        raise refused(f"{path}: a value cannot be read ({reason}); put it into quotes") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise refused(f"{path} must hold 'key: value' lines")
    return content


class _Refused(yaml.MarkedYAMLError):
    """YAML that is well-formed, and not read."""

    def __init__(self, problem: str, mark: Any) -> None:
        super().__init__(problem=problem, problem_mark=mark)


def _content(text: str, kind: Any) -> Any:
    _require_bounded(text, kind)
    loader = kind(text)
    try:
        node = loader.get_single_node()
        _require_different_keys(node)
        return None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()


@dataclass
class _Open:
    """A collection that has begun: its anchor, and the values in it so far, aliases replaced."""

    anchor: str | None
    size: int = 1


def _require_bounded(text: str, kind: Any) -> None:
    """Look at the events, of which the parser makes no tree, before anything recurses."""
    stack = [_Open(None)]
    anchors: dict[str, int] = {}
    for event in yaml.parse(text, Loader=kind):
        size = 0
        if isinstance(event, yaml.CollectionStartEvent):
            stack.append(_Open(event.anchor))
            if len(stack) > DEEPEST:
                raise _Refused(f"more than {DEEPEST} brackets or levels inside one another", event.start_mark)
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in anchors:
                raise _Refused(f"the alias *{event.anchor} stands for nothing, or for itself", event.start_mark)
            size = anchors[event.anchor]
            if size + sum(each.size for each in stack) > MOST_NODES:
                raise _Refused(f"its aliases stand for more than {MOST_NODES:,} values", event.start_mark)
        elif isinstance(event, (yaml.ScalarEvent, yaml.CollectionEndEvent)):
            done = stack.pop() if isinstance(event, yaml.CollectionEndEvent) else _Open(event.anchor)
            size = done.size
            if done.anchor:
                anchors[done.anchor] = size
        stack[-1].size += size


def _require_different_keys(node: Any) -> None:
    """Refuse a key that is given twice, of which only the last would count."""
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, item in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise _Refused(f"the key '{key.value[:40]}' is given twice", key.start_mark)
                seen.add(key.value)
            _require_different_keys(item)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _require_different_keys(item)
