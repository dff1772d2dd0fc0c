"""The command line, as a process of its own."""

import base64
import contextlib
import dataclasses
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import vbus
from vbus.cli import LATER_COMMANDS, main, parsers
from vbus.cli.output import for_json, for_people

COMMANDS = "every command with `--domain`, `--secret-file`, `--json` (one object per line)"
JSON = 'In JSON bytes are `{"base64": ...}`, arrays'
JSON_NAMES = "JSON of the command line uses the same names"
LOOKING_ON = "Commands subscribe with `drop_oldest`"
STATUS = "Exit status 0 ok, 1 failed, 2 usage, 130 after Ctrl-C"


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


@pytest.mark.contract(COMMANDS)
def test_version_is_that_of_the_package(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"vbus {vbus.__version__}\n"


@pytest.mark.contract(STATUS)
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


@pytest.mark.parametrize("option", ["--count", "--timeout", "--rate"])
def test_a_wrong_number_is_said_with_what_would_be_right(option, capsys):
    command = ["pub", "a", "1"] if option == "--rate" else ["echo", "a"]
    for wrong in ("often", "-1"):
        assert main([*command, option, wrong]) == 2
        assert f"argument {option}: '{wrong}' is not possible; give " in capsys.readouterr().err


@pytest.mark.parametrize("command", ["nodes", "topics", "services"])
def test_an_empty_table_says_where_to_look_and_its_output_stays_a_table(domain, meeting, command):
    done = run(command, "--domain", domain, meeting=meeting)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 1)
    assert repr(domain) in done.stderr
    assert "vbus explain" in done.stderr
    assert run(command, "--domain", domain, "--json", meeting=meeting).stderr == ""


@pytest.mark.parametrize("command", ["echo", "hz", "bw"])
def test_who_waits_for_a_topic_that_nobody_publishes_is_told(domain, meeting, command):
    done = run(command, "misspelt", "--timeout", "0", "--domain", domain, meeting=meeting)
    assert (done.returncode, done.stdout) == (1, "")
    assert "nobody publishes 'misspelt' yet" in done.stderr


@pytest.mark.parametrize("command", LATER_COMMANDS)
def test_commands_that_are_not_there_yet_say_so(command, capsys):
    assert main([command]) == 2
    assert "not in this version" in capsys.readouterr().err
    assert main(["--help"]) == 0
    assert f" {command} " not in capsys.readouterr().out


@pytest.mark.contract(COMMANDS)
def test_keygen_makes_secrets_that_differ(capsys):
    assert main(["keygen"]) == 0
    assert main(["keygen", "--json"]) == 0
    plain, as_json = capsys.readouterr().out.splitlines()
    assert plain != json.loads(as_json)["secret"]
    assert len(plain) >= 64


@pytest.mark.contract(STATUS)
def test_a_wrong_domain_fails_with_the_words_of_the_error(capsys):
    assert main(["nodes", "--domain", "a/b"]) == 1
    assert "slash" in capsys.readouterr().err
    assert main(["--domain", "a/b", "nodes"]) == 1


def test_a_secret_file_that_is_not_there_is_named(capsys):
    assert main(["nodes", "--secret-file", "/does/not/exist"]) == 1
    assert "/does/not/exist" in capsys.readouterr().err


@pytest.mark.contract(JSON)
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


@pytest.mark.contract(COMMANDS)
def test_nodes_lists_the_others(join, domain, meeting):
    watched = join("camera")
    done = run("nodes", "--domain", domain, "--json", meeting=meeting)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    peer = json.loads(line)
    assert (peer["id"], peer["name"], peer["path"]) == (watched.id, "camera", "shm")
    assert "camera" in run("nodes", "--domain", domain, meeting=meeting).stdout


@pytest.mark.contract(COMMANDS, JSON_NAMES)
def test_topics_lists_what_is_published(node, domain, meeting):
    with node.publisher("vision/count", int) as publisher:
        publisher.publish(1)
        done = run("topics", "--domain", domain, "--json", "--wait", "0", meeting=meeting)
    assert done.returncode == 0, done.stderr
    (topic,) = [json.loads(line) for line in done.stdout.splitlines()]
    assert (topic["topic"], topic["type"]) == ("vision/count", "int")
    assert topic["publishers"][0]["peer"]["name"] == "tester"


@pytest.mark.contract(JSON_NAMES)
def test_services_lists_what_is_served(node, domain, meeting):
    with node.serve("math/add", sum, request=list[int], reply=int):
        (service,) = run_json("services", "--domain", domain, meeting=meeting)
        assert set(service) == {field.name for field in dataclasses.fields(vbus.ServiceInfo)}
        assert (service["name"], service["servers"][0]["id"]) == ("math/add", node.id)
        table = run("services", "--domain", domain, meeting=meeting).stdout.splitlines()
        assert table[1].split() == ["math/add", "tester", service["request"], service["reply"]]


@pytest.mark.contract(COMMANDS)
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


@pytest.mark.contract(COMMANDS, STATUS)
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


@pytest.mark.contract(COMMANDS, JSON)
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


@pytest.mark.contract(COMMANDS, STATUS)
def test_echo_that_times_out_is_exit_status_1(domain, meeting):
    assert run("echo", "a/b", "--timeout", "0", "--domain", domain, meeting=meeting).returncode == 1


@pytest.mark.contract(STATUS)
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


@pytest.mark.contract(COMMANDS)
def test_shm_ls_shows_the_living_and_gc_leaves_them(node, meeting):
    done = run("shm", "ls", "--json", meeting=meeting)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["state"] for line in done.stdout.splitlines()] == ["alive"]
    assert run("shm", "gc", meeting=meeting).stdout == ""
    assert len(list(Path(meeting).iterdir())) == 1


# ---- options of all ------------------------------------------------------------------------------


@pytest.mark.contract(COMMANDS)
def test_every_command_takes_domain_secret_file_and_json():
    _, commands = parsers()
    promised = ["nodes", "topics", "echo", "pub", "hz", "bw", "explain", "bench", "shm", "keygen", "demo"]
    assert set(promised) <= set(commands)
    for name, parser in commands.items():
        known = {option for action in parser._actions for option in action.option_strings}
        assert {"--domain", "--secret-file", "--json"} <= known, name


@pytest.mark.contract(COMMANDS)
def test_a_secret_file_lets_a_command_in_and_options_may_stand_before_it(join, meeting, domain, tmp_path):
    (tmp_path / "secret").write_text("correct horse battery staple\n")
    join("guarded", secret="correct horse battery staple")
    options = ("--domain", domain, "--json", "--secret-file", str(tmp_path / "secret"))
    for arguments in (("nodes", *options), (*options, "nodes")):
        (line,) = run(*arguments, meeting=meeting).stdout.splitlines()
        assert json.loads(line)["name"] == "guarded"
    assert run("nodes", "--domain", domain, meeting=meeting).stdout.count("\n") == 1, "only the titles"


@pytest.mark.contract(COMMANDS)
def test_python_m_vbus_is_vbus(meeting):
    by_script = subprocess.run(
        [Path(sys.executable).with_name("vbus"), "--help"], capture_output=True, text=True, check=True
    )
    assert by_script.stdout == run("--help", meeting=meeting).stdout


@pytest.mark.contract(JSON_NAMES)
def test_json_has_the_names_of_the_records(node, join, domain, meeting):
    far = join("far")
    with node.publisher("t", int, depth=1) as publisher, far.subscriber("t", int, depth=2):
        publisher.publish(1)
        (topic,) = run_json("topics", "--wait", "0", "--domain", domain, meeting=meeting)
        peers = run_json("nodes", "--domain", domain, meeting=meeting)
    assert list(topic) == [field.name for field in dataclasses.fields(vbus.TopicInfo)]
    assert list(topic["publishers"][0]) == [field.name for field in dataclasses.fields(vbus.Endpoint)]
    assert list(topic["mismatches"][0]) == [field.name for field in dataclasses.fields(vbus.Mismatch)]
    assert list(peers[0]) == [field.name for field in dataclasses.fields(vbus.Peer)]
    assert sorted(peer["name"] for peer in peers) == ["far", "tester"]


def run_json(*arguments: str, meeting: str) -> list[dict]:
    done = run(*arguments, "--json", meeting=meeting)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


# ---- looking on ----------------------------------------------------------------------------------


@pytest.fixture
def looking_on(domain, meeting):
    """Starts commands that look on; they are ended."""
    running = []

    def look(*arguments: str, **environment: str) -> subprocess.Popen[str]:
        command = subprocess.Popen(
            vbus_command(*arguments, "--domain", domain),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "VBUS_SHM": meeting, **environment},
        )
        running.append(command)
        return command

    yield look
    for command in running:
        command.kill()
        command.wait()
        for pipe in (command.stdin, command.stdout, command.stderr):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


@pytest.mark.contract(COMMANDS)
def test_hz_tells_the_rate_at_which_samples_were_published(node, looking_on):
    with node.publisher("t") as publisher, node.subscriber("t") as subscriber:
        hz = looking_on("hz", "t", "--count", "20", "--timeout", "20", "--json")
        assert publisher.wait_for_subscribers(2, 20)
        for number in range(20):
            publisher.publish(number)
            time.sleep(0.01)  # a rate to measure
        times = [sample.timestamp_ns for sample in subscriber.receive_many(timeout=20)]
        out, err = hz.communicate(timeout=20)
    assert (hz.returncode, err) == (0, "")
    told = json.loads(out.splitlines()[-1])
    assert (told["topic"], told["count"], told["lost"]) == ("t", 20, 0)
    assert told["rate"] == pytest.approx(19e9 / (times[-1] - times[0]))
    assert 0 < told["gaps"]["min"] <= told["gaps"]["mean"] <= told["gaps"]["max"]
    assert told["gaps"]["stddev"] >= 0


@pytest.mark.contract(COMMANDS)
def test_bw_tells_bytes_and_topics_of_a_pattern_apart(node, looking_on):
    with node.publisher("t/a", bytes) as a, node.publisher("t/b", bytes) as b:
        bw = looking_on("bw", "t/*", "--count", "20", "--timeout", "20", "--json")
        assert a.wait_for_subscribers(1, 20)
        assert b.wait_for_subscribers(1, 20)
        for _ in range(10):
            a.publish(bytes(100))
            b.publish(bytes(1000))
            time.sleep(0.01)  # a rate to measure
        out, err = bw.communicate(timeout=20)
    assert (bw.returncode, err) == (0, "")
    one, other = map(json.loads, out.splitlines()[-2:])
    assert (one["topic"], other["topic"]) == ("t/a", "t/b")
    assert one["bytes_per_second"] == pytest.approx(100 * one["rate"])
    assert other["sizes"] == {"min": 1000, "max": 1000, "mean": 1000, "stddev": 0}


@pytest.mark.contract(COMMANDS)
@pytest.mark.parametrize("command", ["hz", "bw"])
def test_one_sample_has_no_rate_so_a_count_of_one_takes_two(node, looking_on, command):
    with node.publisher("t", history=5) as publisher:
        publisher.publish("of another time")
        measuring = looking_on(command, "t", "--count", "1", "--timeout", "20")
        assert publisher.wait_for_subscribers(1, 20)
        publisher.publish("x")
        publisher.publish("x")
        out, _ = measuring.communicate(timeout=20)
    assert measuring.returncode == 0
    assert ("Hz" if command == "hz" else "/s") in out.splitlines()[-1]


@pytest.mark.contract(COMMANDS, STATUS)
@pytest.mark.parametrize("command", ["echo", "hz", "bw"])
def test_a_timeout_that_passes_is_exit_status_1(node, domain, meeting, command):
    with node.publisher("t", history=1) as publisher:
        publisher.publish(1)
        done = run(command, "t", "--count", "9", "--timeout", "0.1", "--domain", domain, meeting=meeting)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.contract(LOOKING_ON)
@pytest.mark.parametrize("command", ["echo", "hz", "bw"])
def test_a_tool_that_stands_still_stops_no_publisher(node, looking_on, command):
    with node.publisher("t", depth=2) as publisher:
        tool = looking_on(command, "t")
        assert publisher.wait_for_subscribers(1, 20)
        tool.send_signal(signal.SIGSTOP)
        for number in range(100):
            publisher.publish(number)
        assert publisher.stats().blocked_seconds == 0
        (topic,) = node.topics()
        assert topic.subscribers[0].qos["on_full"] == "drop_oldest"
        assert topic.mismatches == ()
        tool.send_signal(signal.SIGCONT)


@pytest.mark.contract(STATUS)
@pytest.mark.parametrize("command", ["echo", "hz", "bw", "pub"])
def test_ctrl_c_ends_every_command_that_goes_on_with_130_and_no_word(node, looking_on, command):
    arguments = ["t", "1", "--rate", "100"] if command == "pub" else ["t"]
    with node.publisher("t") as publisher, node.subscriber("t") as subscriber:
        tool = looking_on(command, *arguments)
        if command == "pub":
            subscriber.receive(20)
        else:
            assert publisher.wait_for_subscribers(2, 20)
        tool.send_signal(signal.SIGINT)
        _, err = tool.communicate(timeout=20)
    assert (tool.returncode, err) == (130, "")


@pytest.mark.contract(COMMANDS)
def test_explain_tells_findings_of_all_or_of_one_topic(node, join, domain, meeting):
    alone = run("explain", "--domain", domain + "-alone", "--json", meeting=meeting)
    assert alone.returncode == 0, alone.stderr
    far = join("far")
    with node.publisher("t"), far.subscriber("t"):
        lines = run("explain", "--domain", domain, meeting=meeting).stdout.splitlines()
        assert any("tester" in line and "used" in line for line in lines)
        findings = run_json("explain", "t", "--domain", domain, meeting=meeting)
        assert {frozenset(finding) for finding in findings} == {
            frozenset(field.name for field in dataclasses.fields(vbus.Finding))
        }
        assert {finding["peer"]["name"] for finding in findings if isinstance(finding["peer"], dict)} >= {
            "far"
        }


def test_explain_says_so_when_nobody_else_is_there(domain, meeting):
    done = run("explain", "--domain", domain, meeting=meeting)
    assert done.returncode == 0
    assert domain in done.stdout
    assert "vbus shm ls" in done.stdout


# ---- pub, further --------------------------------------------------------------------------------


@pytest.mark.contract(COMMANDS)
def test_pub_waits_for_a_subscriber_and_flushes(join, domain, meeting, looking_on):
    pub = looking_on("pub", "t", "[1, 2]", "--wait", "20", "--json")
    node = join()
    with node.subscriber("t") as subscriber:
        assert subscriber.receive(20).value == [1, 2]
        out, err = pub.communicate(timeout=20)
    assert (pub.returncode, err) == (0, "")
    assert json.loads(out) == {"topic": "t", "sequence": 0}


@pytest.mark.contract(COMMANDS)
def test_pub_sends_each_line_as_it_comes(node, looking_on):
    with node.subscriber("t") as subscriber:
        pub = looking_on("pub", "t", "-")
        for line, value in (("1", 1), ('{"a": null}', {"a": None}), ("plain words", "plain words"), ("", "")):
            pub.stdin.write(line + "\n")
            pub.stdin.flush()
            assert subscriber.receive(20).value == value
        pub.stdin.close()
        assert pub.wait(20) == 0


@pytest.mark.contract(COMMANDS)
def test_pub_sends_a_file_raw_from_standard_input_too(node, domain, meeting):
    with node.subscriber("t") as subscriber:
        done = run("pub", "t", "--file", "-", "--domain", domain, meeting=meeting, input="[1]\n")
        assert done.returncode == 0, done.stderr
        sample = subscriber.receive(20)
        assert (sample.value, sample.encoding) == (b"[1]\n", "raw")
        done = run("pub", "t", "--file", "/does/not/exist", "--domain", domain, meeting=meeting)
        assert done.returncode == 1
        assert "/does/not/exist" in done.stderr


@pytest.mark.contract(COMMANDS)
def test_pub_keeps_the_rate_and_the_count(node, domain, meeting):
    with node.subscriber("t") as subscriber:
        done = run("pub", "t", "x", "--rate", "4", "--count", "4", "--domain", domain, meeting=meeting)
        assert done.returncode == 0, done.stderr
        times = [sample.timestamp_ns for sample in subscriber.receive_many(timeout=20)]
    assert len(times) == 4
    assert times[-1] - times[0] > 0.3e9, "three quarters of a second, or less if the first one came late"


# ---- terminals and pipes -------------------------------------------------------------------------


@pytest.mark.contract(JSON)
def test_echo_shows_arrays_by_kind_and_whole_if_asked(node, domain, meeting):
    import numpy as np

    with node.publisher("t", history=2) as publisher:
        publisher.publish({"image": np.arange(3, dtype="u2"), "blob": b"\0"})
        arguments = ["echo", "t", "--count", "1", "--timeout", "20", "--domain", domain]
        (plain,) = run_json(*arguments, meeting=meeting)
        (full,) = run_json(*arguments, "--full", meeting=meeting)
    assert plain["value"] == {"image": {"dtype": "uint16", "shape": [3]}, "blob": {"base64": "AA=="}}
    assert full["value"]["image"] == {"dtype": "uint16", "shape": [3], "data": [0, 1, 2]}


def test_a_pipe_gets_plain_lines_at_once(node, looking_on):
    with node.publisher("t") as publisher:
        echo = looking_on("echo", "t")
        assert publisher.wait_for_subscribers(1, 20)
        publisher.publish("\033[31mred\a")
        assert echo.stdout.readline() == "t: '\\x1b[31mred\\x07'\n"


@pytest.mark.parametrize(
    ("variables", "bold"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_a_terminal_gets_bold_titles_unless_it_wants_none(domain, meeting, variables, bold):
    mother, child = pty.openpty()
    with os.fdopen(mother, "rb", buffering=0) as terminal:
        environment = {**os.environ, "TERM": "xterm", "VBUS_SHM": meeting, "VBUS_DOMAIN": domain, **variables}
        done = subprocess.run(vbus_command("nodes"), stdout=child, env=environment, check=False, timeout=25)
        os.close(child)
        assert done.returncode == 0
        assert (b"\033[1m" in terminal.read(4096)) is bold


# ---- completion ----------------------------------------------------------------------------------

COMPLETE = """
source <(vbus completion bash)
COMP_WORDS=({words}) COMP_CWORD={at}
_vbus
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("vbus ec", ["echo"]),
        ("vbus echo --co", ["--count"]),
        ("vbus --domain d ech", ["echo"]),
        ("vbus echo vision/", ["vision/a", "vision/b"]),
        ("vbus hz --count 1 vision/a", ["vision/a"]),
        ("vbus shm l", ["ls"]),
        ("vbus echo --secret-file {meeting}/h", ["{meeting}/here"]),
        ("vbus demo --no", ["--no-containers"]),
    ],
)
def test_bash_completes_commands_options_files_and_the_topics_that_are_there(
    node, domain, meeting, words, expected
):
    publishers = [node.publisher(topic) for topic in ("vision/a", "vision/b", "vision/$(touch x)")]
    Path(meeting, "here").touch()
    words, expected = words.format(meeting=meeting), [word.format(meeting=meeting) for word in expected]
    source = COMPLETE.format(words=words, at=len(words.split()) - 1)
    environment = {**os.environ, "VBUS_SHM": meeting, "VBUS_DOMAIN": domain}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    done = subprocess.run(
        ["bash", "-c", source], capture_output=True, text=True, env=environment, timeout=25, check=False
    )
    assert (done.stdout.split(), done.stderr) == (expected, "")
    assert len(publishers) == 3


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_of_completion_knows_every_command_and_its_shell_can_read_it(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    _, commands = parsers()
    assert [name for name in commands if name not in script] == []
    assert "--role" not in script, "what help does not show"
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True, timeout=25)
