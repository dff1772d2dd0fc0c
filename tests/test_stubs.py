"""What `_vbus.pyi` tells type checkers and editors is what the extension has."""

import ast
import inspect
from pathlib import Path

import pytest

import vbus
from vbus import _vbus

STUB = ast.parse(Path(vbus.__file__).with_name("_vbus.pyi").read_text())
CLASSES = {node.name: node for node in STUB.body if isinstance(node, ast.ClassDef)}
FUNCTIONS = {node.name: node for node in STUB.body if isinstance(node, ast.FunctionDef)}
OF_EVERY_OBJECT = set(dir(object)) | {
    "__module__",
    "__doc__",
    "__weakref__",
    "__class_getitem__",
    "__buffer__",
}
# What Python makes of the buffer protocol, and what is no one's business.
HIDDEN = {"__release_buffer__", "__reduce_ex__", "__bool__"}


def members(node):
    """The functions and properties of a class, by name; those of errors are plain attributes."""
    return {
        part.name: part for part in node.body if isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef))
    }


def is_property(function):
    return any(isinstance(one, ast.Name) and one.id == "property" for one in function.decorator_list)


def told(function):
    """Parameters as the stub has them: (name, kind, whether there is a default)."""
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    without = len(positional) - len(arguments.defaults)
    found = [(arg.arg, "positional", at >= without) for at, arg in enumerate(positional)]
    found += [
        (arg.arg, "keyword", default is not None)
        for arg, default in zip(arguments.kwonlyargs, arguments.kw_defaults)
    ]
    found += [(arguments.vararg.arg, "positional", False)] if arguments.vararg else []
    return [one for one in found if one[0] not in ("self", "cls")]


def real(function):
    """The same of what is there."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    return [
        (
            it.name,
            "keyword" if it.kind is keyword else "positional",
            it.default is not inspect.Parameter.empty,
        )
        for it in inspect.signature(function).parameters.values()
        if it.name not in ("self", "cls")
    ]


@pytest.mark.contract("The type information that ships must say the same")
def test_the_stub_has_just_the_names_of_the_extension():
    there = {name for name in dir(_vbus) if not name.startswith("__")}
    assert {*CLASSES, *FUNCTIONS} - {"PeerTuple"} == there


@pytest.mark.contract("The type information that ships must say the same")
@pytest.mark.parametrize(
    "name", [name for name in CLASSES if not issubclass(getattr(_vbus, name), Exception)]
)
def test_a_class_has_just_the_members_of_its_stub(name):
    cls, stub = getattr(_vbus, name), members(CLASSES[name])
    there = {member for member in vars(cls) if member not in OF_EVERY_OBJECT | HIDDEN}
    assert set(stub) - OF_EVERY_OBJECT == there
    for member, function in stub.items():
        if is_property(function):
            its = vars(cls)[member]
            assert inspect.isgetsetdescriptor(its) or inspect.ismemberdescriptor(its), member
        elif member == "__new__":
            assert real(cls) == told(function)
        elif not member.startswith("__"):
            assert real(vars(cls)[member]) == told(function), member


@pytest.mark.contract("The type information that ships must say the same")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_has_the_signature_of_its_stub(name):
    assert real(getattr(_vbus, name)) == told(FUNCTIONS[name])


@pytest.mark.parametrize("name", [name for name in CLASSES if issubclass(getattr(_vbus, name), Exception)])
def test_an_error_has_the_bases_and_attributes_of_its_stub(name):
    cls, stub = getattr(_vbus, name), CLASSES[name]
    assert [base.__name__ for base in cls.__bases__] == [ast.unparse(base) for base in stub.bases]
    attributes = [part.target.id for part in CLASSES["Error"].body if isinstance(part, ast.AnnAssign)]
    error = cls("words")
    for attribute in attributes:
        assert getattr(error, attribute) is None


@pytest.mark.parametrize("name", vbus.__all__)
def test_everything_public_is_there_and_says_what_it_is(name):
    value = getattr(vbus, name)
    assert name == "__version__" or value.__doc__
