"""Facts about a chat template that its source shows without rendering it."""

from collections.abc import Iterator
from functools import cache

from jinja2 import nodes

from whence_server.text.chat_environment import parse_template

_CONTENT, _TEXT = "content", "text"


@cache
def uses_variable(source: str, name: str) -> bool:
    """Return whether the template reads a variable of this name.

    Raises:
        jinja2.TemplateSyntaxError: the source is malformed.
    """
    read = parse_template(source).find_all(nodes.Name)
    return any(node.name == name and node.ctx == "load" for node in read)


@cache
def iterates_content(source: str) -> bool:
    """Return whether the template iterates over a message's content, and so takes parts.

    A template that does not would write Python's form of the list, or nothing. The idea is vLLM's:
    look for a loop over `message.content`, or over a variable that holds it, whose body reads the
    text of a part.

    Raises:
        jinja2.TemplateSyntaxError: the source is malformed.
    """
    tree = parse_template(source)
    holders = {_CONTENT, *_find_holders(tree)}
    return any(
        _is_content(loop.iter, holders) and _reads_text(loop) for loop in tree.find_all(nodes.For)
    )


def _find_holders(tree: nodes.Template) -> Iterator[str]:
    """Yield the names of variables that are set to a message's content."""
    for assignment in tree.find_all(nodes.Assign):
        target = assignment.target
        if isinstance(target, nodes.Name) and _is_content(assignment.node, {_CONTENT}):
            yield target.name


def _is_content(node: nodes.Node, holders: set[str]) -> bool:
    """Return whether an expression is a message's content, filtered or not."""
    while isinstance(node, nodes.Filter) and node.node is not None:
        node = node.node
    if isinstance(node, nodes.Name):
        return node.name in holders
    return _get_member(node) == _CONTENT


def _reads_text(loop: nodes.For) -> bool:
    kinds = (nodes.Getattr, nodes.Getitem, nodes.Call)
    reads = (node for part in loop.body for node in part.find_all(kinds))
    return any(_get_member(node) == _TEXT for node in reads)


def _get_member(node: nodes.Node) -> str:
    """Return the name that `x.name`, `x["name"]` or `x.get("name")` reads; "" for others."""
    match node:
        case nodes.Getattr():
            return node.attr
        case nodes.Getitem(arg=nodes.Const(value=str() as name)):
            return name
        case nodes.Call(
            node=nodes.Getattr(attr="get"), args=[nodes.Const(value=str() as name), *_]
        ):
            return name
        case _:
            return ""
