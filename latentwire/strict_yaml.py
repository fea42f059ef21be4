"""YAML as ``yaml.safe_load`` reads it, but nothing is lost and everything wrong is one error."""

from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode

_MERGE = "tag:yaml.org,2002:merge"
_VALUE = "tag:yaml.org,2002:value"
_INT_BITS = 1023
"""Of the largest whole number: every one that is read can be a float too, and can be printed."""
_RAISED = (ValueError, LookupError, AttributeError, TypeError, ArithmeticError)
"""What PyYAML's constructors raise where a value does not fit its tag, e.g. 2024-02-31."""


class StrictYamlError(yaml.YAMLError):
    """A text that is YAML in form only; one line says why."""


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses a key given twice, of which PyYAML would drop the first."""

    def compose_mapping_node(self, anchor: dict[Any, Node]) -> MappingNode:
        # Here, and not where mappings are made: by then merged keys (<<) stand among their own.
        node = super().compose_mapping_node(anchor)
        self._refuse_duplicates(node)
        return node

    def construct_yaml_int(self, node: Any) -> int:
        value = int(super().construct_yaml_int(node))
        if value.bit_length() > _INT_BITS:
            raise StrictYamlError(f"{_line(node)}: a number has too many digits")
        return value

    def _refuse_duplicates(self, node: MappingNode) -> None:
        lines: dict[Any, str] = {}
        for key_node, _ in node.value:
            if not isinstance(key_node, ScalarNode) or key_node.tag == _MERGE:
                continue
            # As it is read, since 1 and 0x1 are one key.
            is_plain = key_node.tag == _VALUE
            key = key_node.value if is_plain else self.construct_object(key_node, deep=True)
            if key in lines:
                raise StrictYamlError(
                    f"{_line(key_node)}: the key '{key}' is given twice, first in {lines[key]}; "
                    "remove one"
                )
            lines[key] = _line(key_node)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def _line(node: Any) -> str:
    return f"line {node.start_mark.line + 1}"


def load(text: str) -> Any:
    """The values of a YAML text.

    Raises:
        yaml.YAMLError: it is none, has a key twice, or a value that is not what it says.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise StrictYamlError("it is nested too deeply") from None
    except _RAISED as error:
        what = str(error).partition("\n")[0]
        raise StrictYamlError(f"a value is not what it says ({what})") from None


def load_file(path: Path) -> Any:
    """The values of a YAML file.

    Raises:
        OSError: it cannot be read.
        yaml.YAMLError: as by ``load``, or it is not UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise StrictYamlError(f"it is not UTF-8 ({error})") from None
    return load(text)
