"""Arguments beat environment beat defaults, and what is wrong is said precisely."""

import os

import pytest

from vbus import ConfigError
from vbus.config import MEETING_DIRECTORIES, resolve

SECRET = "correct horse battery staple"


@pytest.mark.contract(
    '`domain` | `VBUS_DOMAIN` | see above | `"default"`',
    "for people; need not be unique | program name and pid",
    "every usable one of `/run/vbus`, `/dev/shm/vbus`, `/tmp/vbus`, at once",
)
def test_defaults_are_those_of_the_documentation():
    settings = resolve()
    assert settings.domain == "default"
    assert settings.name.endswith(f"-{os.getpid()}")
    assert settings.secret is None
    assert settings.shm == MEETING_DIRECTORIES
    assert not settings.shm_required
    assert settings.memory == 0


@pytest.mark.contract("Argument beats environment beats default")
def test_environment_beats_defaults_and_arguments_beat_the_environment(monkeypatch):
    for name, value in {
        "VBUS_NAME": "env",
        "VBUS_DOMAIN": "env-domain",
        "VBUS_SECRET": SECRET,
        "VBUS_SHM": "/env/shm",
        "VBUS_MEMORY": "1000000",
    }.items():
        monkeypatch.setenv(name, value)
    settings = resolve()
    assert (settings.name, settings.domain, settings.memory) == ("env", "env-domain", 1_000_000)
    assert settings.secret == SECRET.encode()
    assert (settings.shm, settings.shm_required) == (("/env/shm",), True)

    settings = resolve(name="arg", domain="arg-domain", secret=b"another long secret", shm="/arg", memory=5)
    assert (settings.name, settings.domain, settings.memory) == ("arg", "arg-domain", 5)
    assert settings.secret == b"another long secret"
    assert settings.shm == ("/arg",)


@pytest.mark.contract("for people; need not be unique | program name and pid")
@pytest.mark.parametrize(
    ("argv0", "name"), [("/usr/bin/detector.py", "detector"), ("-c", "python"), ("", "python")]
)
def test_the_default_name_is_the_program(monkeypatch, argv0, name):
    monkeypatch.setattr("sys.argv", [argv0])
    assert resolve().name == f"{name}-{os.getpid()}"


def test_the_default_name_of_a_package_is_its_own(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/robot/__main__.py"])
    assert resolve().name.startswith("robot-")


@pytest.mark.contract("A message says what was wrong, with the value")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"domain": "a/b"}, ["domain", "'a/b'", "slash"]),
        ({"domain": ""}, ["domain", "empty"]),
        ({"domain": "a\nb"}, ["domain", "control"]),
        ({"domain": "x" * 300}, ["domain", "300", "255"]),
        ({"domain": 5}, ["domain", "5"]),
        ({"name": ""}, ["name", "empty"]),
        ({"name": "a\0b"}, ["name", "control"]),
        ({"secret": ""}, ["secret", "empty", "keygen"]),
        ({"secret": b""}, ["secret", "empty"]),
        ({"secret": "abc"}, ["secret", "3 bytes", "keygen"]),
        ({"secret": 12345678}, ["secret", "int"]),
        ({"secret": SECRET, "open": True}, ["open", "secret"]),
        ({"open": 1}, ["open", "1"]),
        ({"peers": "robot:7000"}, ["peers", "'robot:7000'", "list"]),
        ({"peers": ["robot"]}, ["'robot'", "host:port"]),
        ({"peers": ["robot:0"]}, ["'robot:0'", "port"]),
        ({"peers": ["robot:70000"]}, ["'robot:70000'", "65535"]),
        ({"peers": ["::1:7000"]}, ["'::1:7000'", "IPv6"]),
        ({"peers": [7]}, ["peers", "7"]),
        ({"listen": "everywhere"}, ["listen", "'everywhere'"]),
        ({"discovery": ["telepathy"]}, ["'telepathy'", "mdns"]),
        ({"discovery": []}, ["discovery", "empty"]),
        ({"discovery": "shm"}, ["discovery", "list"]),
        ({"shm": ""}, ["shm", "empty"]),
        ({"shm": 5}, ["shm", "5"]),
        ({"shm": "/a\0b"}, ["shm", "null"]),
        ({"memory": 0}, ["memory", "0"]),
        ({"memory": -1}, ["memory", "-1"]),
        ({"memory": True}, ["memory", "True"]),
        ({"memory": 1.5}, ["memory", "1.5"]),
    ],
)
def test_a_wrong_argument_is_named_with_its_value(arguments, words):
    with pytest.raises(ConfigError) as caught:
        resolve(**arguments)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.contract("A message says what was wrong, with the value")
@pytest.mark.parametrize(
    ("variable", "value", "word"),
    [
        ("VBUS_DOMAIN", "", "empty"),
        ("VBUS_DOMAIN", "a/b", "slash"),
        ("VBUS_SECRET", "", "empty"),
        ("VBUS_SECRET_FILE", "", "empty"),
        ("VBUS_SECRET_FILE", "/does/not/exist", "/does/not/exist"),
        ("VBUS_OPEN", "perhaps", "'perhaps'"),
        ("VBUS_PEERS", "robot", "'robot'"),
        ("VBUS_DISCOVERY", "shm,smoke", "'smoke'"),
        ("VBUS_SHM", "", "empty"),
        ("VBUS_MEMORY", "lots", "'lots'"),
    ],
)
def test_a_wrong_variable_is_named_with_its_value(monkeypatch, variable, value, word):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=word):
        resolve()


@pytest.mark.contract("Empty, or both variables set, is `ConfigError`")
def test_both_secret_variables_are_one_too_many(monkeypatch, tmp_path):
    monkeypatch.setenv("VBUS_SECRET", SECRET)
    monkeypatch.setenv("VBUS_SECRET_FILE", str(tmp_path / "secret"))
    with pytest.raises(ConfigError, match="both set"):
        resolve()
    assert resolve(secret=SECRET).secret == SECRET.encode()


@pytest.mark.contract("Empty, or both variables set, is `ConfigError`")
def test_a_secret_file_is_read_without_its_line_end(monkeypatch, tmp_path):
    path = tmp_path / "secret"
    path.write_bytes(SECRET.encode() + b"\n")
    monkeypatch.setenv("VBUS_SECRET_FILE", str(path))
    assert resolve().secret == SECRET.encode()
    path.write_bytes(b"\n")
    with pytest.raises(ConfigError, match="empty"):
        resolve()


@pytest.mark.contract("secrets never), and what to do about it")
def test_no_error_shows_the_secret(monkeypatch):
    monkeypatch.setenv("VBUS_OPEN", "true")
    with pytest.raises(ConfigError) as caught:
        resolve(secret="hush-hush-hush")
    assert "hush" not in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        resolve(secret="hush")
    assert "hush" not in str(caught.value)


@pytest.mark.contract('`False` or `"off"` for none')
@pytest.mark.parametrize("value", ["0", "false", "False", "off"])
def test_shared_memory_can_be_turned_off(monkeypatch, value):
    monkeypatch.setenv("VBUS_SHM", value)
    assert resolve().shm == ()
    assert resolve(shm=True).shm == MEETING_DIRECTORIES
    monkeypatch.delenv("VBUS_SHM")
    assert resolve(shm=False).shm == resolve(shm="off").shm == ()


def test_a_meeting_directory_may_be_a_path_and_becomes_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve(shm=tmp_path / "meet").shm == (str(tmp_path / "meet"),)
    assert resolve(shm="meet").shm == (str(tmp_path / "meet"),)


@pytest.mark.contract("lists in the environment are comma-separated")
def test_lists_in_the_environment_are_separated_by_commas(monkeypatch):
    monkeypatch.setenv("VBUS_DISCOVERY", "shm, mdns,")
    monkeypatch.setenv("VBUS_PEERS", " ")
    monkeypatch.setenv("VBUS_OPEN", "0")
    assert resolve(listen="off").shm == MEETING_DIRECTORIES


@pytest.mark.contract(
    "`peers` | `VBUS_PEERS`", "`listen` | `VBUS_LISTEN`", "`interfaces` | `VBUS_INTERFACES`"
)
def test_what_is_said_about_the_network_is_kept_as_it_was_said(monkeypatch):
    settings = resolve(open=True, peers=["robot:7000"], listen="[::]:7000", interfaces=["eth0"])
    assert (settings.open, settings.peers) == (True, ("robot:7000",))
    assert (settings.listen, settings.interfaces) == ("[::]:7000", ("eth0",))
    assert resolve(listen="off").listen == "off"
    for name, value in {"PEERS": "a:1, b:2", "LISTEN": "127.0.0.1:0", "INTERFACES": "lo,eth0"}.items():
        monkeypatch.setenv(f"VBUS_{name}", value)
    settings = resolve()
    assert (settings.peers, settings.listen) == (("a:1", "b:2"), "127.0.0.1:0")
    assert settings.interfaces == ("lo", "eth0")


@pytest.mark.contract("`discovery` | `VBUS_DISCOVERY`")
def test_without_shm_among_the_discoveries_no_directory_is_joined():
    assert resolve(discovery=["mdns"]).shm == ()
