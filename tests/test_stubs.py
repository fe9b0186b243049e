"""The committed stubs are what the rules say."""

import ast
import importlib
import inspect

import pytest

from fusedopt import stubs


@pytest.mark.parametrize("package", stubs.MODULES)
def test_the_committed_stub_is_the_generated_one(package):
    assert stubs.path(package).read_text() == stubs.stub_text(package), "run python -m fusedopt.stubs"


@pytest.mark.parametrize("package", stubs.MODULES)
@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_stub_signature_and_help_name_the_same_arguments(package, name):
    cls = getattr(importlib.import_module(package), name)
    text = stubs.path(package).read_text()
    classes = {node.name: node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)}
    arguments = classes[name].body[0].args
    stub = [a.arg for a in (*arguments.args[1:], *arguments.kwonlyargs)]
    assert stub == list(inspect.signature(cls).parameters)
    assert all(option in inspect.getdoc(cls) for option in stub)
