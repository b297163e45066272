"""Container images made from the base's own files, since the lab has no registry.

An image holds a program, what it links to, and little else; it refuses to hold a distribution.
"""

import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

from .commands import LabError
from .hosts import Host

# Directories which Debian has merged into /usr; interpreters and scripts name them by the old paths.
MERGED = ("bin", "lib", "lib64", "sbin")
IMPORT_DEADLINE_SECONDS = 120.0


@dataclass(frozen=True)
class Image:
    """What goes into an image and what it runs."""

    tag: str
    programs: tuple[str, ...]
    trees: tuple[str, ...]
    changes: tuple[str, ...]


IMAGES = {
    "redis": Image(
        "redis:8",
        ("/usr/bin/redis-server", "/usr/bin/redis-cli", "/usr/bin/dash"),
        (),
        ("WORKDIR /data", 'CMD ["redis-server", "--save", "", "--protected-mode", "no"]'),
    ),
    "busybox": Image("busybox:latest", ("/usr/bin/busybox",), (), ('CMD ["sh"]',)),
    "python": Image("python:3", ("/usr/bin/python3", "/usr/bin/dash"), ("/usr/lib/python3*",), ('CMD ["python3"]',)),
}


def import_image(host: Host, name: str) -> None:
    """Builds an image from the host's files and gives it to the host's Docker."""
    if name not in IMAGES:
        raise LabError(f"no image {name!r}; there are {', '.join(IMAGES)}")
    image = IMAGES[name]
    path = "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    changes = [argument for change in (path, *image.changes) for argument in ("--change", change)]
    host.run(
        "docker", "import", *changes, "-", image.tag, stdin=_archive(host, image), deadline=IMPORT_DEADLINE_SECONDS
    )


def _archive(host: Host, image: Image) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for directory, mode in [("data", 0o755), ("etc", 0o755), ("root", 0o700), ("tmp", 0o1777), ("usr", 0o755)]:
            archive.addfile(_entry(directory, tarfile.DIRTYPE, mode))
        for name in MERGED:
            archive.addfile(_entry(name, tarfile.SYMTYPE, 0o777, f"usr/{name}"))
            archive.addfile(_entry(f"usr/{name}", tarfile.DIRTYPE, 0o755))
        for name in ("passwd", "group"):
            _add(archive, host, f"/etc/{name}")
        for file in sorted({file for program in image.programs for file in _with_libraries(host, program)}):
            _add(archive, host, file)
        for pattern in image.trees:
            for tree in host.path("/").glob(pattern.lstrip("/")):
                archive.add(tree, arcname=str(tree.relative_to(host.path("/"))), filter=_without_caches)
        if "/usr/bin/busybox" in image.programs:
            for applet in host.run("busybox", "--list").stdout.split():
                if applet != "busybox":
                    archive.addfile(_entry(f"usr/bin/{applet}", tarfile.SYMTYPE, 0o777, "busybox"))
        if "/usr/bin/dash" in image.programs:
            archive.addfile(_entry("usr/bin/sh", tarfile.SYMTYPE, 0o777, "dash"))
    return content.getvalue()


def _with_libraries(host: Host, program: str) -> set[str]:
    listed = host.run("ldd", program, check=False)  # it fails for a static program, which needs none
    words = {word for word in listed.stdout.split() if word.startswith("/")}
    return {program, *words}


def _add(archive: tarfile.TarFile, host: Host, file: str) -> None:
    """Adds a file's content under the name that programs know it by, whatever links lie on the way."""
    # resolved by the host: the links are absolute in it
    real = host.run("realpath", file).stdout.strip()
    name = f"usr{file}" if file.split("/")[1] in MERGED else file.lstrip("/")
    archive.add(host.path(real), arcname=name, filter=_owned_by_root)


def _owned_by_root(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


def _without_caches(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if Path(entry.name).name == "__pycache__" else _owned_by_root(entry)


def _entry(name: str, kind: bytes, mode: int, target: str = "") -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.linkname = kind, mode, target
    return entry
