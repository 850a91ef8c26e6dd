"""GraphQL for the W&B test server: selections are resolved from plain dicts, without a schema.

If a newer client selects a field that the server does not know, the field is null in an otherwise complete answer, and
its path is reported. graphql-core is used only for parsing.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import graphql.language.ast as ast
from graphql import parse

# A GraphQL object: maps field names to values, or to functions from the field's arguments to values.
Node = dict[str, Any]


def connection(nodes: Sequence[Node | None]) -> Node:
    """A list as a GraphQL connection, always with a single page."""
    return {
        "edges": [{"node": node, "cursor": str(number)} for number, node in enumerate(nodes)],
        "pageInfo": {"__typename": "PageInfo", "hasNextPage": False, "endCursor": None},
        "totalCount": len(nodes),
    }


class Operation:
    """One query or mutation of a client.

    Args:
        query: GraphQL document.
        variables: variables sent by the client.
        report: called with the path of each field that the server does not know.
    """

    def __init__(self, query: str, variables: dict[str, Any], report: Callable[[str], None]):
        definitions = parse(query).definitions
        self.fragments = {d.name.value: d for d in definitions if isinstance(d, ast.FragmentDefinitionNode)}
        self.definition = next(d for d in definitions if isinstance(d, ast.OperationDefinitionNode))
        self.name = self.definition.name.value if self.definition.name else "unnamed"
        self.is_mutation = self.definition.operation.value == "mutation"
        self.report = report
        self.variables = dict(variables)
        for variable in self.definition.variable_definitions or ():
            self._coerce(variable)

    def _coerce(self, definition: ast.VariableDefinitionNode) -> None:
        """Fill in a default, and turn a single value for a list into a list of one (GraphQL specification, 3.11)."""
        name = definition.variable.name.value
        if name not in self.variables and definition.default_value is not None:
            self.variables[name] = self.value(definition.default_value)
        kind = definition.type.type if isinstance(definition.type, ast.NonNullTypeNode) else definition.type
        given = self.variables.get(name)
        if isinstance(kind, ast.ListTypeNode) and given is not None and not isinstance(given, list):
            self.variables[name] = [given]

    def value(self, node: ast.ValueNode) -> Any:
        """Python value of an argument."""
        match node:
            case ast.VariableNode():
                return self.variables.get(node.name.value)
            case ast.ListValueNode():
                return [self.value(item) for item in node.values]
            case ast.ObjectValueNode():
                return {item.name.value: self.value(item.value) for item in node.fields}
            case ast.IntValueNode():
                return int(node.value)
            case ast.FloatValueNode():
                return float(node.value)
            case ast.NullValueNode():
                return None
        return node.value  # type: ignore[attr-defined]  # a string, a boolean or an enum

    def answer(self, root: Node) -> Any:
        """The selected fields of a root object."""
        return self._select(root, self.definition.selection_set, self.name)

    def _select(self, value: Any, selection: ast.SelectionSetNode | None, path: str) -> Any:
        """The selected fields of an object, or of each object in a list."""
        if value is None or selection is None:
            return value
        if isinstance(value, list):
            return [self._select(item, selection, path) for item in value]
        selected: dict[str, Any] = {}
        for part in selection.selections:
            if not self._included(part):
                continue
            if isinstance(part, ast.FieldNode):
                name = part.name.value
                key = part.alias.value if part.alias else name
                found = self._field(value, part, f"{path}.{name}")
                selected[key] = self._select(found, part.selection_set, f"{path}.{name}")
            else:
                selected |= self._fragment(value, part, path)
        return selected

    def _field(self, value: Node, part: ast.FieldNode, path: str) -> Any:
        """Value of a field; null if the field is unknown."""
        name = part.name.value
        if name not in value:
            self.report(path)
            return None
        found = value[name]
        if not callable(found):
            return found
        arguments = {a.name.value: self.value(a.value) for a in part.arguments or ()}
        known = inspect.signature(found).parameters
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values()):
            for unknown in arguments.keys() - known.keys():
                self.report(f"{path}({unknown})")
                del arguments[unknown]
        return found(**{name: value for name, value in arguments.items() if value is not None})

    def _fragment(self, value: Node, part: ast.SelectionNode, path: str) -> dict[str, Any]:
        """Fields of a named or inline fragment; empty if the fragment applies to another type."""
        if isinstance(part, ast.FragmentSpreadNode):
            return self._select(value, self.fragments[part.name.value].selection_set, path)
        assert isinstance(part, ast.InlineFragmentNode)
        wanted = part.type_condition.name.value if part.type_condition else None
        types = (None, value.get("__typename"), *value.get("__interfaces", ()))
        fits = wanted in types or "__typename" not in value
        return self._select(value, part.selection_set, path) if fits else {}

    def _included(self, part: ast.SelectionNode) -> bool:
        """Whether @include and @skip keep a selection."""
        for directive in part.directives or ():
            condition = self.value((directive.arguments or ())[0].value)
            if condition is (directive.name.value == "skip"):
                return False
        return True
