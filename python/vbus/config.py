"""What a Node is told: arguments beat the environment, the environment beats defaults."""

# ruff: noqa: PTH100, PTH119, PTH123
# PTH…: importing pathlib takes longer than importing all of vbus.

from __future__ import annotations

import os
import sys

from .errors import ConfigError, quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import TypeAlias

    PathText: TypeAlias = str | os.PathLike[str]

__all__ = ["MEETING_DIRECTORIES", "Settings", "meeting_directories", "resolve", "secret_from_file"]

MEETING_DIRECTORIES = ("/run/vbus", "/dev/shm/vbus", "/tmp/vbus")
"""Where neighbours meet unless `shm` names another place: every usable one, at once."""


class Settings:
    """What `resolve` found; everything checked."""

    __slots__ = (
        "discovery",
        "domain",
        "interfaces",
        "listen",
        "memory",
        "name",
        "open",
        "peers",
        "secret",
        "shm",
        "shm_required",
    )

    def __init__(
        self,
        *,
        name: str,
        domain: str,
        secret: bytes | None,
        shm: tuple[str, ...],
        shm_required: bool,
        memory: int,
        peers: tuple[str, ...],
        listen: str,
        interfaces: tuple[str, ...],
        discovery: tuple[str, ...],
        open: bool,
    ) -> None:
        self.name = name
        self.domain = domain
        self.secret = secret
        self.shm = shm
        """Meeting directories; none means no neighbours."""
        self.shm_required = shm_required
        """Whether somebody named the directory, so that it must be usable."""
        self.memory = memory
        """Bytes; 0 means a quarter of what the machine or the container has."""
        self.peers = peers
        """Each "host:port"."""
        self.listen = listen
        """ "address:port", or "off"."""
        self.interfaces = interfaces
        """Names or addresses; none means all that are up."""
        self.discovery = discovery
        """Any of "shm", "mdns", "peers"."""
        self.open = open
        """Whether strangers may in without a secret."""


def resolve(
    *,
    name: str | None = None,
    domain: str | None = None,
    secret: str | bytes | None = None,
    open: bool | None = None,
    peers: Iterable[str] | None = None,
    listen: str | None = None,
    interfaces: Iterable[str] | None = None,
    discovery: Iterable[str] | None = None,
    shm: PathText | bool | None = None,
    memory: int | None = None,
) -> Settings:
    """The settings of a node. ConfigError names what is wrong, where it came from, and what would be
    right."""
    key = _secret(secret)
    is_open = _open(open)
    if is_open and key is not None:
        raise ConfigError(
            "open and a secret exclude each other: with a secret, only who has it may in; "
            "leave one of them out"
        )
    known, address, spoken = _network(peers, listen, interfaces)
    directories, named = _shm(shm)
    ways = _discovery(discovery)
    if "shm" not in ways:
        directories, named = (), False
    return Settings(
        name=_name(name),
        domain=_domain(domain),
        secret=key,
        shm=directories,
        shm_required=named,
        memory=_memory(memory),
        peers=known,
        listen=address,
        interfaces=spoken,
        discovery=ways,
        open=is_open,
    )


def meeting_directories() -> tuple[str, ...]:
    """The directories that a node without the argument `shm` uses."""
    return _shm(None)[0]


MAX_NAME_BYTES = 255
MIN_SECRET_BYTES = 8
DISCOVERIES = ("shm", "mdns", "peers")


def _name(given: str | None) -> str:
    name, source = _text(given, "name", "VBUS_NAME")
    if name is None:
        return f"{_program()}-{os.getpid()}"
    _check_name(name, source, "name")
    return name


def _domain(given: str | None) -> str:
    domain, source = _text(given, "domain", "VBUS_DOMAIN")
    if domain is None:
        return "default"
    _check_name(domain, source, "domain")
    if "/" in domain:
        raise ConfigError(
            f"{source} is {quote(domain)}, but a domain is one name without a slash; use another letter"
        )
    return domain


def _check_name(value: str, source: str, what: str) -> None:
    if not value:
        raise ConfigError(f"{source} is empty; give a {what} or leave it out")
    try:
        length = len(value.encode())
    except UnicodeEncodeError:
        raise ConfigError(
            f"{source} is {quote(value)}, which is no valid Unicode; use other letters"
        ) from None
    if length > MAX_NAME_BYTES:
        raise ConfigError(
            f"{source} has {length} bytes, more than the {MAX_NAME_BYTES} of a {what}; use a shorter one"
        )
    if not value.isprintable():
        raise ConfigError(
            f"{source} is {quote(value)}, but a {what} has no control characters; leave them out"
        )


def _program() -> str:
    """The name of what runs, as people would say it."""
    path = sys.argv[0] if getattr(sys, "argv", None) else ""
    folder, name = os.path.split(path)
    if name == "__main__.py":  # python -m package
        name = os.path.basename(folder)
    name = name.removesuffix(".py")
    readable = "".join(letter for letter in name if letter.isprintable())[:64]
    return "python" if readable in ("", "-c", "-m", "-") else readable


def _secret(given: object) -> bytes | None:
    """Never shows the secret itself."""
    if given is not None:
        if not isinstance(given, (str, bytes)):
            raise ConfigError(
                f"secret is of type {type(given).__name__}; give str or bytes, best from `vbus keygen`"
            )
        return _checked_secret(given.encode() if isinstance(given, str) else given, "secret")
    text, path = os.environ.get("VBUS_SECRET"), os.environ.get("VBUS_SECRET_FILE")
    if text is not None and path is not None:
        raise ConfigError("VBUS_SECRET and VBUS_SECRET_FILE are both set; unset one of them")
    if text is not None:
        return _checked_secret(os.fsencode(text), "VBUS_SECRET")
    if path is not None:
        return secret_from_file(path, "VBUS_SECRET_FILE")
    return None


def secret_from_file(path: str, source: str) -> bytes:
    """The first thing in a file, without the line's end. ConfigError if it cannot be read or is no secret."""
    if not path:
        raise ConfigError(f"{source} is empty; name a file or leave it out")
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_SECRET_BYTES + 2)
    except OSError as error:
        why = error.strerror or str(error)
        raise ConfigError(
            f"{source} names {quote(path)}, which cannot be read: {why}; check path and mode"
        ) from error
    return _checked_secret(content.rstrip(b"\r\n"), f"the secret in {quote(path)}")


MAX_SECRET_BYTES = 64 * 1024


def _checked_secret(secret: bytes, source: str) -> bytes:
    if not secret:
        raise ConfigError(f"{source} is empty; make one with `vbus keygen`, or leave it out")
    if len(secret) < MIN_SECRET_BYTES:
        raise ConfigError(
            f"{source} has only {len(secret)} bytes, which can be guessed; use {MIN_SECRET_BYTES} or more, "
            "best from `vbus keygen`"
        )
    if len(secret) > MAX_SECRET_BYTES:
        raise ConfigError(
            f"{source} has more than {MAX_SECRET_BYTES} bytes; make a shorter one with `vbus keygen`"
        )
    return secret


def _open(given: object) -> bool:
    if given is not None:
        if not isinstance(given, bool):
            raise ConfigError(f"open is {quote(given)}; give True or False")
        return given
    return _boolean(os.environ.get("VBUS_OPEN"), "VBUS_OPEN") or False


def _network(
    peers: Iterable[str] | None, listen: str | None, interfaces: Iterable[str] | None
) -> tuple[tuple[str, ...], str, tuple[str, ...]]:
    """Peers, address to listen at, interfaces."""
    found = _list(peers, "peers", "VBUS_PEERS") or ()
    for peer in found:
        _check_address(peer, "peers", least_port=1)
    address, source = _text(listen, "listen", "VBUS_LISTEN")
    if address is not None and address != "off":
        _check_address(address, source, least_port=0)
    spoken = _list(interfaces, "interfaces", "VBUS_INTERFACES") or ()
    return found, LISTEN if address is None else address, spoken


LISTEN = "[::]:0"


def _check_address(address: str, source: str, *, least_port: int) -> None:
    host, colon, port = address.rpartition(":")
    if not colon or not host or (":" in host and not (host.startswith("[") and host.endswith("]"))):
        raise ConfigError(
            f'{source} has {quote(address)}; write "host:port", an IPv6 address as "[::1]:7000"'
        )
    if not (port.isascii() and port.isdigit() and least_port <= int(port) <= 65535):
        raise ConfigError(
            f"{source} has {quote(address)}; the port must be a number from {least_port} to 65535"
        )


def _discovery(given: Iterable[str] | None) -> tuple[str, ...]:
    ways = _list(given, "discovery", "VBUS_DISCOVERY")
    if ways is None:
        return DISCOVERIES
    for way in ways:
        if way not in DISCOVERIES:
            raise ConfigError(f'discovery has {quote(way)}; choose from "shm", "mdns" and "peers"')
    if not ways:
        raise ConfigError('discovery is empty; choose from "shm", "mdns" and "peers", or leave it out')
    return ways


def _shm(given: PathText | bool | None) -> tuple[tuple[str, ...], bool]:
    """The meeting directories, and whether they were named."""
    source = "shm"
    if given is None:
        source = "VBUS_SHM"
        text = os.environ.get(source)
        given = _BOOLEANS.get(text.lower(), text) if text is not None else None
    if given is None or given is True:
        return MEETING_DIRECTORIES, False
    if given is False or given == "off":
        return (), False
    try:
        path = os.fspath(given)
    except TypeError:
        path = None
    if not isinstance(path, str):
        raise ConfigError(f'{source} must be the path of a directory, False or "off", not {quote(given)}')
    if not path:
        raise ConfigError(f'{source} is empty; name a directory, or "off" for none')
    if "\0" in path:
        raise ConfigError(f"{source} is {quote(path)}, which is no path; leave the null character out")
    return (os.path.abspath(path),), True


def _memory(given: int | None) -> int:
    value: object = given
    source = "memory"
    if given is None:
        source = "VBUS_MEMORY"
        text = os.environ.get(source)
        if text is None:
            return 0
        value = int(text) if text.isascii() and text.isdigit() else text
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 63:
        raise ConfigError(f"{source} is {quote(value)}; give a number of bytes above 0, such as {256 << 20}")
    return value


_BOOLEANS = {"1": True, "true": True, "0": False, "false": False}


def _boolean(text: str | None, source: str) -> bool | None:
    if text is None:
        return None
    value = _BOOLEANS.get(text.strip().lower())
    if value is None:
        raise ConfigError(f"{source} is {quote(text)}; write 1, 0, true or false")
    return value


def _text(given: object, argument: str, variable: str) -> tuple[str | None, str]:
    """The value and where it came from."""
    if given is None:
        return os.environ.get(variable), variable
    if not isinstance(given, str):
        raise ConfigError(f"{argument} is {quote(given)}; give a str")
    return given, argument


def _list(given: object, argument: str, variable: str) -> tuple[str, ...] | None:
    if given is None:
        text = os.environ.get(variable)
        if text is None:
            return None
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if isinstance(given, (str, bytes)):
        raise ConfigError(f"{argument} is {quote(given)}; give a list of str, even for one")
    values: list[str] = []
    try:
        given_values: Iterable[object] = given  # type: ignore[assignment]  # pyright: ignore
        for value in given_values:
            if not isinstance(value, str):
                raise ConfigError(f"{argument} has {quote(value)}; every entry must be a str")
            values.append(value)
    except TypeError:
        raise ConfigError(f"{argument} must be a list of str, not {quote(given)}") from None
    return tuple(values)
