"""The commands on objects, as in QEMU's qapi/qom.json. The wording was measured with QEMU 11.1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from protocol.qmp import ErrorClass, Json, Object
from vhost_balloon.control.objects import Node, Property, find, tree
from vhost_balloon.errors import CommandError
from vhost_balloon.qmp_server.command import Command, Parameter, check_type
from vhost_balloon.vm.vm import Vm


def not_found(device: str) -> CommandError:
    return CommandError(f"Device '{device}' not found", ErrorClass.DEVICE_NOT_FOUND.value)


def _node(vm: Vm, path: str) -> Node:
    """Raises CommandError, as for a path that is not there if it is ambiguous."""
    found = find(tree(vm.id), path)
    if len(found) != 1:
        raise not_found(path)
    return found[0]


def _unambiguous(vm: Vm, path: str) -> Node:
    if len(find(tree(vm.id), path)) > 1:
        raise CommandError(f"Path '{path}' is ambiguous")
    return _node(vm, path)


def _property(node: Node, name: str) -> Property:
    try:
        return node.all_properties()[name]
    except KeyError:
        raise CommandError(f"Property '{node.type}.{name}' not found") from None


def _get(vm: Vm, arguments: dict[str, Any]) -> Json:
    return _property(_node(vm, arguments["path"]), arguments["property"]).read(vm)


def _set(vm: Vm, arguments: dict[str, Any]) -> Json:
    node, name = _node(vm, arguments["path"]), arguments["property"]
    write = _property(node, name).write
    if write is None:
        raise CommandError(f"Property '{node.type}.{name}' is not writable")
    write(vm, arguments["value"])
    return {}


def _list(vm: Vm, arguments: dict[str, Any]) -> Json:
    properties = _unambiguous(vm, arguments["path"]).all_properties()
    return [_describe(name, property_) for name, property_ in properties.items()]


def _list_get(vm: Vm, arguments: dict[str, Any]) -> Json:
    """Properties with their values, of several objects."""
    for index, path in enumerate(arguments["paths"]):
        check_type(f"paths[{index}]", "str", path)
    nodes = [_unambiguous(vm, path) for path in arguments["paths"]]
    return [
        {
            "properties": [
                {**_describe(name, property_), "value": property_.read(vm)}
                for name, property_ in node.all_properties().items()
            ]
        }
        for node in nodes
    ]


def _describe(name: str, property_: Property) -> Object:
    return {"name": name, "type": property_.type}


_PATH: Final = Parameter("path", "str")
_PROPERTY: Final = (_PATH, Parameter("property", "str"))

QOM_COMMANDS: Final[Mapping[str, Command[Vm]]] = {
    "qom-get": Command(_get, _PROPERTY, "any"),
    "qom-set": Command(_set, (*_PROPERTY, Parameter("value", "any"))),
    "qom-list": Command(_list, (_PATH,), "[ObjectPropertyInfo]"),
    "qom-list-get": Command(_list_get, (Parameter("paths", "[str]"),), "[ObjectPropertiesValues]"),
}
