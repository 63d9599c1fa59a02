from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from llm_fakes import write_fake_artifact

from autodeploy.cli.main import COMMANDS
from autodeploy.cli.tables import format_bytes, format_table
from autodeploy.llm.artifact_cache import ArtifactCache


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(cli, command):
    code, out, _ = cli(command, "--help")
    assert code == 0
    assert out.startswith(f"usage: autodeploy {command}")


def test_help_and_version(cli):
    code, out, _ = cli("--help")
    assert code == 0
    assert all(command in out for command in COMMANDS)
    assert cli("--version")[1].startswith("autodeploy ")


@pytest.mark.parametrize("arguments", [[], ["frobnicate"], ["cache"], ["cache", "burn"], ["generate"]])
def test_wrong_usage_is_one_line(cli, arguments):
    code, _, err = cli(*arguments)
    assert code == 2
    assert err.count("\n") == 1


def test_serving_commands_import_neither_torch_nor_transformers():
    script = """
import sys
from autodeploy.cli.main import build_parser, main
for command in ("generate", "chat", "inspect", "doctor", "cache", "compile", "verify", "bench", "explain"):
    build_parser(command)
main(["cache", "list"])
main(["doctor"])
print([m for m in sys.modules if m in ("torch", "transformers", "numpy", "tokenizers")])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_python_dash_m():
    done = subprocess.run([sys.executable, "-m", "autodeploy", "--version"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stdout.startswith("autodeploy ")


def test_a_reader_that_leaves_is_no_error():
    command = f"{sys.executable} -m autodeploy generate --help | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr


def test_a_bad_environment_variable_is_named(cli, monkeypatch):
    monkeypatch.setenv("AUTODEPLOY_LOG", "shout")
    code, _, err = cli("cache", "list")
    assert code == 2
    assert "AUTODEPLOY_LOG" in err
    code, out, _ = cli("doctor")
    assert code == 1
    assert "BAD  AUTODEPLOY_LOG" in out


def test_doctor(cli, monkeypatch, tmp_path):
    monkeypatch.setenv("AUTODEPLOY_TREADS", "2")
    code, out, _ = cli("doctor", "--json")
    findings = {finding["name"]: finding for finding in json.loads(out)}
    assert {"processor", "threads", "memory", "runtime", "packages", "compiler", "cache", "gpu"} <= set(findings)
    assert findings["gpu runtime"]["state"] in ("ok", "note")
    assert findings["AUTODEPLOY_TREADS"]["state"] == "note"
    assert str(tmp_path) in findings["cache"]["text"]
    assert code == any(finding["state"] == "bad" for finding in findings.values())
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AUTODEPLOY_CACHE_DIR", str(tmp_path / "file"))
    code, out, _ = cli("doctor")
    assert code == 1
    assert "cannot be written" in out


def test_cache_list_and_clear(cli, tmp_path):
    cache = ArtifactCache(tmp_path / "cache")
    for key in ("abc", "abd", "xyz"):
        cache.find_or_make(key, f"model-{key}", lambda out: write_fake_artifact(out, None), print)
    code, out, _ = cli("cache", "list")
    assert code == 0
    assert "3 artifacts" in out
    assert "model-abd" in out
    assert len(json.loads(cli("cache", "list", "--json")[1])["entries"]) == 3
    assert cli("cache", "clear", "ab")[0] == 2
    assert cli("cache", "clear", "q")[0] == 2
    assert cli("cache", "clear", "abc")[:2] == (0, "1 artifacts removed\n")
    assert cli("cache", "clear")[:2] == (0, "2 artifacts removed\n")
    assert cli("cache", "list")[1].startswith(f"{tmp_path / 'cache'}: 0 artifacts")


def test_tables():
    table = format_table(("name", "size"), [("a", 1), ("long", 22)], right=(1,))
    assert table == "name  size\n----  ----\na        1\nlong    22"
    assert [format_bytes(n) for n in (0, 1023, 1536, 5 << 30, 3 << 40)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "5.0 GiB",
        "3.0 TiB",
    ]


def test_no_command_module_is_missing():
    folder = Path(sys.modules["autodeploy.cli.main"].__file__).parent
    assert {f"{command}_command.py" for command in COMMANDS} <= {path.name for path in folder.iterdir()}
