"""The command line, as a process of its own."""

import base64
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import vbus
from vbus.cli import main
from vbus.cli.output import for_json, for_people


def vbus_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "vbus", *arguments]


def run(*arguments: str, meeting: str, **options) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "VBUS_SHM": meeting}
    return subprocess.run(
        vbus_command(*arguments),
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        timeout=25,
        **options,
    )


def test_version_is_that_of_the_package(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"vbus {vbus.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["echo"],
        ["pub", "a/b"],
        ["pub", "a/b", "1", "--rate", "0"],
        ["echo", "a", "--count", "0"],
    ],
)
def test_wrong_usage_is_exit_status_2(arguments, capsys):
    assert main(arguments) == 2
    assert capsys.readouterr().err


@pytest.mark.parametrize("command", ["hz", "top", "doctor", "record", "play", "call", "explain", "bw"])
def test_commands_that_are_not_there_yet_say_so(command, capsys):
    assert main([command]) == 2
    assert "not in this version" in capsys.readouterr().err


def test_keygen_makes_secrets_that_differ(capsys):
    assert main(["keygen"]) == 0
    assert main(["keygen", "--json"]) == 0
    plain, as_json = capsys.readouterr().out.splitlines()
    assert plain != json.loads(as_json)["secret"]
    assert len(plain) >= 64


def test_a_wrong_domain_fails_with_the_words_of_the_error(capsys):
    assert main(["nodes", "--domain", "a/b"]) == 1
    assert "slash" in capsys.readouterr().err
    assert main(["--domain", "a/b", "nodes"]) == 1


def test_a_secret_file_that_is_not_there_is_named(capsys):
    assert main(["nodes", "--secret-file", "/does/not/exist"]) == 1
    assert "/does/not/exist" in capsys.readouterr().err


def test_json_of_values():
    import numpy as np

    array = np.arange(4, dtype="f4").reshape(2, 2)
    assert for_json(b"\0\xff") == {"base64": base64.b64encode(b"\0\xff").decode()}
    assert for_json({"a": array, 1: (1, float("nan"))}) == {
        "a": {"dtype": "float32", "shape": [2, 2]},
        "1": [1, None],
    }
    assert for_json(array, full=True)["data"] == [[0.0, 1.0], [2.0, 3.0]]
    assert "2x2 float32" in for_people(array)
    assert len(for_people("x" * 10_000)) < 1000 < len(for_people("x" * 10_000, full=True))


def test_nodes_lists_the_others(join, domain, meeting):
    watched = join("camera")
    done = run("nodes", "--domain", domain, "--json", meeting=meeting)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    peer = json.loads(line)
    assert (peer["id"], peer["name"], peer["path"]) == (watched.id, "camera", "shm")
    assert "camera" in run("nodes", "--domain", domain, meeting=meeting).stdout


def test_topics_lists_what_is_published(node, domain, meeting):
    with node.publisher("vision/count", int) as publisher:
        publisher.publish(1)
        done = run("topics", "--domain", domain, "--json", "--wait", "0", meeting=meeting)
    assert done.returncode == 0, done.stderr
    (topic,) = [json.loads(line) for line in done.stdout.splitlines()]
    assert (topic["topic"], topic["type"]) == ("vision/count", "int")
    assert topic["publishers"][0]["peer"]["name"] == "tester"


def test_pub_publishes_json_or_text_and_a_file_raw(node, domain, meeting, tmp_path):
    path = tmp_path / "blob"
    path.write_bytes(b"\0\1\2")
    with node.subscriber("a/**") as subscriber:
        for arguments in (
            ["a/json", '{"x": [1]}'],
            ["a/text", "hello world"],
            ["a/file", "--file", str(path)],
        ):
            done = run("pub", *arguments, "--domain", domain, meeting=meeting)
            assert done.returncode == 0, done.stderr
        done = run("pub", "a/lines", "-", "--domain", domain, meeting=meeting, input="1\ntwo\n")
        assert done.returncode == 0, done.stderr
        samples = [(sample.topic, sample.value) for sample in (subscriber.receive(10) for _ in range(5))]
    assert samples == [
        ("a/json", {"x": [1]}),
        ("a/text", "hello world"),
        ("a/file", b"\0\1\2"),
        ("a/lines", 1),
        ("a/lines", "two"),
    ]


def test_pub_without_a_subscriber_is_fine_and_counts(domain, meeting):
    done = run(
        "pub",
        "a/b",
        "5",
        "--count",
        "3",
        "--rate",
        "1000",
        "--wait",
        "0",
        "--json",
        "--domain",
        domain,
        meeting=meeting,
    )
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["sequence"] for line in done.stdout.splitlines()] == [0, 1, 2]


def test_echo_shows_samples_as_json(node, domain, meeting):
    with node.publisher("a/b", history=3) as publisher:
        publisher.publish({"x": 1}, headers={"frame": "7"})
        publisher.publish(b"\xff")
        done = run(
            "echo", "a/*", "--count", "2", "--timeout", "20", "--json", "--domain", domain, meeting=meeting
        )
    assert done.returncode == 0, done.stderr
    first, second = map(json.loads, done.stdout.splitlines())
    assert (first["topic"], first["value"], first["sequence"], first["headers"]) == (
        "a/b",
        {"x": 1},
        0,
        {"frame": "7"},
    )
    assert second["value"] == {"base64": "/w=="}
    assert first["source"]["name"] == "tester"


def test_echo_that_times_out_is_exit_status_1(domain, meeting):
    assert run("echo", "a/b", "--timeout", "0", "--domain", domain, meeting=meeting).returncode == 1


def test_ctrl_c_is_exit_status_130(node, domain, meeting):
    with node.publisher("a/b") as publisher:
        echo = subprocess.Popen(
            vbus_command("echo", "a/b", "--domain", domain),
            stdout=subprocess.PIPE,
            env={**os.environ, "VBUS_SHM": meeting},
        )
        with echo:
            assert publisher.wait_for_subscribers(1, 20)
            publisher.publish(1)
            assert echo.stdout.readline() == b"a/b: 1\n"
            echo.send_signal(signal.SIGINT)
            assert echo.wait(20) == 130


def test_a_reader_that_has_enough_is_no_failure(node, domain, meeting):
    with node.publisher("a/b") as publisher:
        echo = subprocess.Popen(
            vbus_command("echo", "a/b", "--domain", domain),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "VBUS_SHM": meeting},
        )
        with echo:
            assert publisher.wait_for_subscribers(1, 20)
            publisher.publish(1)
            echo.stdout.readline()
            echo.stdout.close()
            publisher.publish(2)
            assert echo.wait(20) == 0
            assert echo.stderr.read() == b""


def test_shm_ls_shows_the_living_and_gc_leaves_them(node, meeting):
    done = run("shm", "ls", "--json", meeting=meeting)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["state"] for line in done.stdout.splitlines()] == ["alive"]
    assert run("shm", "gc", meeting=meeting).stdout == ""
    assert len(list(Path(meeting).iterdir())) == 1
