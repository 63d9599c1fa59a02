from __future__ import annotations

from pathlib import Path

import pytest

from autodeploy.llm import env


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("512MiB", 512 << 20), ("2 GB", 2 * 10**9), ("1.5GiB", 3 << 29), ("64k", 64000), (" 7 b ", 7)],
)
def test_sizes(text, size):
    assert env.parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1", "1e9", "GiB", "1 XB", "9999999999TiB", "nan", "1.2.3"])
def test_bad_sizes(text):
    with pytest.raises(ValueError, match="expected a size"):
        env.parse_bytes(text)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AUTODEPLOY_CACHE_DIR", "relative/folder"),
        ("AUTODEPLOY_CACHE_MEMORY", "lots"),
        ("AUTODEPLOY_NUM_THREADS", "0"),
        ("AUTODEPLOY_NUM_THREADS", "2.5"),
        ("AUTODEPLOY_LOG", "loud"),
        ("AUTODEPLOY_PROGRESS", "maybe"),
        ("AUTODEPLOY_DUMP", "here"),
    ],
)
def test_a_bad_value_is_an_error_that_names_the_variable(name, value):
    with pytest.raises(ValueError, match=rf"^\[environment\] {name}: expected .*correct it or unset it"):
        env.check_environment({name: value})


def test_good_values_and_defaults():
    environ = {"AUTODEPLOY_NUM_THREADS": "3", "AUTODEPLOY_CACHE_MEMORY": "1GiB", "AUTODEPLOY_LOG": "Info"}
    env.check_environment(environ)
    assert env.NUM_THREADS.get(environ) == 3
    assert env.LOG.get(environ) == "info"
    assert env.LOG.get({}) == "warning"
    assert env.LOG.get({"AUTODEPLOY_LOG": ""}) == "warning"


def test_every_variable_is_in_the_table_and_documented():
    names = [variable.name for variable in env.ENV_VARS]
    assert len(set(names)) == len(names)
    assert all(name.startswith("AUTODEPLOY_") for name in names)
    assert all(variable.doc for variable in env.ENV_VARS)


def test_where_the_cache_lies():
    assert env.cache_root({"AUTODEPLOY_CACHE_DIR": "/a/b", "XDG_CACHE_HOME": "/x"}) == Path("/a/b")
    assert env.cache_root({"XDG_CACHE_HOME": "/x"}) == Path("/x/autodeploy")
    assert env.cache_root({"XDG_CACHE_HOME": "not/absolute"}) == Path.home() / ".cache" / "autodeploy"
    assert env.cache_root({}) == Path.home() / ".cache" / "autodeploy"
