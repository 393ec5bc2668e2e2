"""YAML of recipes: repeated keys are errors, 5e5 is a number, and scalars stay text until the schema gives a type.

Reading takes bounded time and memory, whatever the text is: its depth and the number of its values, with every alias
counted as a copy, have limits. Tags, such as `!!binary`, are errors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

TAG = "tag:yaml.org,2002:"
# PyYAML reads 5e5 as text, as YAML 1.1 does. YAML 1.2 reads it as a number.
EXPONENT = (f"{TAG}float", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"))
# A recipe has a depth of 4 and some hundred values. PyYAML recurses into each level, and aliases of aliases stand for
# exponentially many values.
MAX_DEPTH, MAX_VALUES, MAX_DIGITS = 32, 10_000, 40
# Keys of the draft that `with_draft` keeps: they do not set its size.
KEPT_DRAFT_KEYS = ("init", "context_tokens")


def parse(text: str) -> Any:
    """The parsed value of a text. yaml.YAMLError if it is not YAML, or repeats a key."""
    return yaml.load(text, _Loader)


def flow(value: object) -> str:
    """A value as YAML on one line."""
    text = yaml.dump(value, None, _Dumper, default_flow_style=True, allow_unicode=True, width=2**31, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


def with_draft(text: str, sizes: Mapping[str, int]) -> str:
    """The text of a recipe with the draft's sizes replaced. Everything else, comments included, stays as written."""
    tree = yaml.compose(text, _Loader)
    assert isinstance(tree, yaml.MappingNode), "a recipe is a mapping"
    node = next(value for key, value in tree.value if key.value == "draft")
    draft = {key: value for key, value in parse(text)["draft"].items() if key in KEPT_DRAFT_KEYS} | dict(sizes)
    begin, end = node.start_mark.index, node.end_mark.index
    if node.flow_style:
        return text[:begin] + flow(draft) + text[end:]
    # The block ends at the next key. Comments and blank lines before that key belong to it, and stay.
    kept = re.search(r"\n(\s*(#[^\n]*)?(\n|$))*$", text[begin:end])
    lines = f"\n{' ' * node.start_mark.column}".join(f"{key}: {flow(value)}" for key, value in draft.items())
    return text[:begin] + lines + (kept.group() if kept else "") + text[end:]


def _resolvers(*without: str) -> dict[Any, Any]:
    """PyYAML's rules for plain scalars, without some of them, and with 5e5 as a number."""
    tags = [TAG + name for name in without]
    rules = yaml.SafeLoader.yaml_implicit_resolvers
    return {first: [*(rule for rule in rules[first] if rule[0] not in tags), EXPONENT] for first in rules}


class _Loader(yaml.SafeLoader):
    """Raises an error on what a recipe cannot hold, and on repeated keys. `yes`, `true` and dates stay text until the
    schema gives their type.
    """

    yaml_implicit_resolvers = _resolvers("bool", "timestamp")

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._open_nodes = 0
        # By node: its depth, and the number of its values. Python's ids are unique while the nodes exist.
        self._extents: dict[int, tuple[int, int]] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "tag", None) not in (None, "!"):
            raise _refused(f"the tag {event.tag}", event)
        if self._open_nodes == MAX_DEPTH:
            raise _refused(f"more than {MAX_DEPTH} levels", event)
        self._open_nodes += 1
        node = super().compose_node(parent, index)
        self._open_nodes -= 1
        if node is not None and id(node) not in self._extents:
            if isinstance(event, yaml.AliasEvent):
                raise _refused("an alias of a value that contains it", event)
            self._extents[id(node)] = self._extent(node, event)
        return node

    def _extent(self, node: yaml.Node, event: Any) -> tuple[int, int]:
        """The depth of a node and the number of its values; an error if the node is too large, or no plain text."""
        if isinstance(node, yaml.ScalarNode):
            text: str = node.value
            if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
                raise _refused("a character that is not text", event)
            if node.tag in (f"{TAG}int", f"{TAG}float") and len(text) > MAX_DIGITS:
                raise _refused(f"a number of more than {MAX_DIGITS} characters", event)
            return 1, 1
        pairs = isinstance(node, yaml.MappingNode)
        inner = [child for entry in node.value for child in (entry if pairs else (entry,))]
        extents = [self._extents[id(child)] for child in inner]
        depth, values = 1 + max((d for d, _ in extents), default=0), 1 + sum(v for _, v in extents)
        if depth > MAX_DEPTH or values > MAX_VALUES:
            raise _refused(f"more than {MAX_DEPTH} levels or {MAX_VALUES:,} values", event)
        return depth, values

    def compose_mapping_node(self, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            value = key.value if key.tag == f"{TAG}merge" else self.construct_object(key)
            if value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key `{value}` is repeated", key.start_mark)
            seen.add(value)
        return node


def _refused(found: str, event: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=f"found {found}", problem_mark=event.start_mark)


class _Dumper(yaml.SafeDumper):
    """YAML on one line."""

    yaml_implicit_resolvers = _resolvers()


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar(f"{TAG}str", text, style=None if text.isprintable() else '"')


_Dumper.add_representer(str, _represent_text)
