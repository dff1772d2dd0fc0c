"""What virtual machines of tests boot: a kernel of Debian's, and a root of this host's files with vbus in it.

    python tests/guest.py    makes both in target/machines, or says what is missing

The root is one archive that the kernel unpacks into memory: this very Python and its standard library, the
libraries that it and the rest are linked with (so the guest's glibc is the host's), `ip` and `tc`, the wheel
that `pip install .` makes, put there by pip, and what vbus depends on, as installed here. Its first process
is `programs/init.py`.
"""

import hashlib
import importlib.metadata
import os
import platform
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent
MACHINES = PROJECT / "target" / "machines"
KERNEL, MODULES, ROOT = MACHINES / "vmlinuz", MACHINES / "modules", MACHINES / "root.cpio"
QEMU = "qemu-system-x86_64"

# In the order in which they can be loaded.
DRIVERS = (
    *("virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci"),
    *("failover", "net_failover", "virtio_net", "sch_netem"),
)
TOOLS = ("ip", "tc")
DIRECTORIES = ("dev", "etc", "proc", "root", "run", "sys", "tmp", "var")
# What no program of a test imports, and is large.
LEFT_OUT = frozenset(
    ("site-packages", "dist-packages", "test", "tests", "idlelib", "tkinter", "lib2to3", "ensurepip")
) | {"turtledemo", "pydoc_data", "unittest", "distutils"}
LEFT_OUT_FILES = re.compile(r"\.opt-\d\.pyc$|^_tkinter\.|^_sqlite3\.")
PACKAGES = {QEMU: "qemu-system-x86", **dict.fromkeys(TOOLS, "iproute2")}
IMAGE = "linux-image-cloud-amd64"

Content = Path | bytes | None
"""What is at a place: a file of the host, these bytes, or an empty directory."""


class NoMachinesError(Exception):
    """No machine can be made here; the text says why, and what to do."""


def main() -> int:
    try:
        require_tools()
        if not KERNEL.exists():
            take_kernel()
        make_root()
    except NoMachinesError as reason:
        print(f"no virtual machines: {reason}", file=sys.stderr)
        return 1
    return 0


# ---- what must be there -------------------------------------------------------------------------


def require() -> None:
    """Says what is missing, if anything is."""
    require_tools()
    if not (KERNEL.exists() and ROOT.exists()):
        raise NoMachinesError("what they boot is not made yet; run ./dev test --machines")


def require_tools() -> None:
    """The emulator, and the tools that are copied into the root."""
    if platform.machine() != "x86_64":
        raise NoMachinesError(f"this is a machine of the kind {platform.machine()}, and theirs is x86_64")
    for program, package in PACKAGES.items():
        if not shutil.which(program):
            raise NoMachinesError(
                f"there is no `{program}`; on Debian and Ubuntu: sudo apt-get install {package}"
            )


def take_kernel() -> None:
    """The kernel of Debian's cloud images, and its drivers, out of their package, which is not installed."""
    for program in ("apt-get", "apt-cache", "dpkg-deb"):
        if not shutil.which(program):
            raise NoMachinesError(
                f"their kernel comes from a package of Debian's, and there is no `{program}`"
            )
    say("getting a kernel")
    depends = run("apt-cache", "depends", IMAGE)
    found = re.search(r"Depends: (linux-image-\S+)", depends)
    if found is None:
        raise NoMachinesError(f"apt knows no {IMAGE}; sudo apt-get update")
    MACHINES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=MACHINES) as name:
        place = Path(name)
        place.chmod(0o755)  # apt goes about it as another user
        run("apt-get", "download", found[1], cwd=place)
        (package,) = place.glob("*.deb")
        run("dpkg-deb", "-x", str(package), "unpacked", cwd=place)
        shutil.rmtree(MODULES, ignore_errors=True)
        MODULES.mkdir()
        for driver in DRIVERS:
            (module,) = (place / "unpacked").rglob(f"{driver}.ko")
            module.rename(MODULES / module.name)
        (image,) = (place / "unpacked" / "boot").glob("vmlinuz-*")
        image.rename(KERNEL)


# ---- the root -----------------------------------------------------------------------------------


def make_root() -> None:
    """Writes it anew, unless vbus and all of this are what they were."""
    wanted = digest()
    stamp = ROOT.with_suffix(".of")
    if ROOT.exists() and stamp.exists() and stamp.read_text() == wanted:
        return
    say("making the machines' root, with vbus in it")
    MACHINES.mkdir(parents=True, exist_ok=True)
    for old in (ROOT, stamp):
        old.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=MACHINES) as name:
        site = Path(name)
        install_wheel(site)
        write_archive(ROOT, dict(contents(site)))
    stamp.write_text(wanted)


def digest() -> str:
    """One text for what vbus and the programs of guests are made of."""
    places = [
        PROJECT / "crates",
        PROJECT / "python",
        PROJECT / "Cargo.lock",
        HERE / "programs",
        Path(__file__),
    ]
    files = [file for place in places for file in ([place] if place.is_file() else sorted(place.rglob("*")))]
    total = hashlib.sha256(f"{sys.version} {sys.base_prefix}".encode())
    for file in files:
        if file.is_file() and "__pycache__" not in file.parts and file.suffix != ".so":
            total.update(str(file.relative_to(PROJECT)).encode() + b"\0" + file.read_bytes())
    return total.hexdigest()


def install_wheel(site: Path) -> None:
    """The wheel of this project, as `pip install .` makes it, and what it depends on."""
    wheels = MACHINES / "wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    run(sys.executable, "-m", "maturin", "build", "--quiet", "--release", "--locked", "--out", str(wheels))
    (wheel,) = wheels.glob("*.whl")
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    run(*pip, "install", "--no-deps", "--no-index", "--target", str(site), str(wheel))
    for package in dependencies("vbus"):
        for file in importlib.metadata.files(package) or ():
            source = Path(file.locate())
            if ".." not in file.parts and source.suffix != ".pyc" and source.exists():
                (site / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, site / file)
    run(sys.executable, "-m", "compileall", "-q", str(site))


def dependencies(package: str) -> set[str]:
    """All that a package needs, without its extras."""
    needed: set[str] = set()
    for line in importlib.metadata.requires(package) or ():
        name = re.match(r"[\w.-]+", line)[0]
        if "extra ==" not in line and name not in needed:
            needed |= {name} | dependencies(name)
    return needed


def contents(site: Path) -> Iterator[tuple[Path, Content]]:
    """Places in the guest, and what is there."""
    python = Path(sys._base_executable).resolve()
    library = Path(os.__file__).resolve().parent
    tools = {Path("/bin", tool): Path(shutil.which(tool)).resolve() for tool in TOOLS}
    yield from ((Path("/", name), None) for name in DIRECTORIES)
    yield Path("/init"), f"#!{python}\n".encode() + (HERE / "programs" / "init.py").read_bytes()
    yield Path("/etc/machine-id"), b"0123456789abcdef0123456789abcdef\n"
    for place, directory in (
        (library, library),
        (Path("/site"), site),
        (Path("/programs"), HERE / "programs"),
    ):
        for file in files_below(directory):
            yield place / file.relative_to(directory), file
    for number, driver in enumerate(DRIVERS):
        yield Path(f"/drivers/{number}-{driver}.ko"), MODULES / f"{driver}.ko"
    yield python, python
    yield from tools.items()
    modules = [file for top in (library, site) for file in files_below(top) if ".so" in file.suffixes]
    yield from ((found, found.resolve()) for found in libraries_of([python, *tools.values(), *modules]))


def files_below(directory: Path) -> Iterator[Path]:
    """Those that somebody imports."""
    for top, directories, names in os.walk(directory):
        directories[:] = [
            name for name in directories if name not in LEFT_OUT and not name.startswith("config-")
        ]
        wanted = (Path(top, name) for name in names if not LEFT_OUT_FILES.search(name))
        yield from (file for file in wanted if file.is_file())


def libraries_of(files: list[Path]) -> set[Path]:
    """What the dynamic linker loads for them, by the names by which it looks."""
    found: set[Path] = set()
    done = subprocess.run(["ldd", *map(str, files)], capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        name = re.match(r"\s+(?:\S+ => )?(/\S+) \(0x", line)
        if name:
            found.add(Path(name[1]))
    return found


# ---- the archive --------------------------------------------------------------------------------


def write_archive(archive: Path, tree: dict[Path, Content]) -> None:
    """A "newc" cpio, which is what the kernel unpacks."""
    made: set[Path] = set()
    with archive.open("wb") as out:
        for place in sorted(tree):
            for above in reversed(place.parents[:-1]):
                if above not in made:
                    made.add(above)
                    out.write(entry(above, stat.S_IFDIR | 0o755))
            content = tree[place]
            if content is None:
                made.add(place)
                out.write(entry(place, stat.S_IFDIR | 0o755))
            elif isinstance(content, bytes):
                out.write(entry(place, stat.S_IFREG | 0o755, 0, content))
            else:
                mtime = int(content.stat().st_mtime)
                out.write(entry(place, stat.S_IFREG | 0o755, mtime, content.read_bytes()))
        out.write(entry(Path("/TRAILER!!!"), 0))


def entry(place: Path, mode: int, mtime: int = 0, data: bytes = b"") -> bytes:
    """One file of the archive. Its time is kept, or Python would compile everything anew."""
    name = str(place).lstrip("/").encode() + b"\0"
    numbers = (0, mode, 0, 0, 1, mtime, len(data), 0, 0, 0, 0, len(name), 0)
    head = b"070701" + b"".join(b"%08X" % number for number in numbers) + name
    return padded(head) + padded(data)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


# ---- helpers ------------------------------------------------------------------------------------


def say(what: str) -> None:
    print(f"== {what}", flush=True)


def run(*words: str, cwd: Path = PROJECT) -> str:
    """What it printed."""
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=cwd)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise NoMachinesError(f"{' '.join(words[:4])}...: {last}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
