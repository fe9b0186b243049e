"""The committed stubs are what the rules say."""

import ast
import inspect

import pytest

import fusedopt
from fusedopt import stubs


def test_the_committed_stub_is_the_generated_one():
    assert stubs.PATH.read_text() == stubs.stub_text(), "run python -m fusedopt.stubs"


@pytest.mark.parametrize("cls", [fusedopt.SGD, fusedopt.Adam, fusedopt.AdamW])
def test_stub_signature_and_help_name_the_same_arguments(cls):
    classes = {node.name: node for node in ast.parse(stubs.PATH.read_text()).body if isinstance(node, ast.ClassDef)}
    arguments = classes[cls.__name__].body[0].args
    stub = [a.arg for a in (*arguments.args[1:], *arguments.kwonlyargs)]
    assert stub == list(inspect.signature(cls).parameters)
    assert all(f"{name}: " in inspect.getdoc(cls) for name in stub)
