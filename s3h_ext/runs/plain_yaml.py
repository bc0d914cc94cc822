"""YAML for options: limited in size, and without aliases.

Ten lines of aliases can stand for a billion values, which takes forever to traverse.
"""

from __future__ import annotations

from typing import Any

import yaml
from jsonargparse import get_loader, set_loader

__all__ = ["MODE", "load_yaml"]

#: Name of this loader in the parser.
MODE = "s3h-yaml"
MAX_CHARACTERS = 100_000
MAX_DEPTH = 20
# jsonargparse's loader; another one might read the same text differently.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load_yaml(text: str) -> Any:
    """Load ``text`` as jsonargparse's own YAML loader does, within limits.

    Raises:
        yaml.YAMLError: broken YAML, an alias, or a text too long or too deep.

    Example:
        >>> load_yaml("optim: {lr: 1e-1}")
        {'optim': {'lr': 0.1}}
    """
    if len(text) > MAX_CHARACTERS:
        raise yaml.YAMLError(f"expected at most {MAX_CHARACTERS} characters")
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.AliasEvent):
            line = event.start_mark.line + 1 if event.start_mark else "?"
            raise yaml.YAMLError(
                f"line {line}: aliases (*{str(event.anchor)[:60]}) are not accepted, "
                "write the value out"
            )
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise yaml.YAMLError(f"nested deeper than {MAX_DEPTH} levels")
    return get_loader("yaml")(text)


set_loader(MODE, load_yaml, (yaml.YAMLError,))
