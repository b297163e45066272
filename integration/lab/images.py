"""Container images made from the base's own files, since the lab has no registry.

An image holds a program, what it links to, and little else; it refuses to hold a distribution. Each of the servers keeps
something in its memory alone that a client can change and read back: that shows whether a checkpoint kept it.
"""

import io
import os
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

from .commands import LabError
from .hosts import Host

# Directories which Debian has merged into /usr; interpreters and scripts name them by the old paths.
MERGED = ("bin", "lib", "lib64", "sbin")
IMPORT_DEADLINE_SECONDS = 120.0


# Shared archives of classes for modes that the runtime does not choose by itself.
NEEDLESS = ("__pycache__", "classes_*.jsa")


@dataclass(frozen=True)
class Image:
    """What goes into an image and what it runs. Paths are patterns, as versions are part of some."""

    tag: str
    # With the libraries they link to; those outside the search path get a link in /usr/bin.
    programs: tuple[str, ...]
    trees: tuple[str, ...]
    changes: tuple[str, ...]
    files: dict[str, str] = field(default_factory=dict)


NGINX_CONF = """
daemon off;
worker_processes 2;
user www-data;
pid /tmp/nginx.pid;
error_log stderr;
events {}
http {
    access_log off;
    client_body_temp_path /tmp/client;
    proxy_temp_path /tmp/proxy;
    fastcgi_temp_path /tmp/fastcgi;
    uwsgi_temp_path /tmp/uwsgi;
    scgi_temp_path /tmp/scgi;
    server {
        listen 80;
        location / { return 200 "nginx\\n"; }
        location /status { stub_status; }
    }
}
"""
# Its data lie on the container's own layer, made when it starts: a second's work.
POSTGRES_START = """#!/bin/sh
set -e
[ -e "$PGDATA/PG_VERSION" ] || {
    initdb --auth trust --encoding UTF8 --locale C --no-sync >/dev/null
    echo "host all all all trust" >>"$PGDATA/pg_hba.conf"
}
exec postgres -k /tmp -c listen_addresses='*' -c fsync=off "$@"
"""
JAVA_HOME = "/usr/lib/jvm/java-[0-9][0-9]-openjdk-*"
JAVA_COMPILER = "/usr/share/java/eclipse-jdt-core-compiler-batch"
IMAGES = {
    "redis": Image(
        "redis:8",
        ("/usr/bin/redis-server", "/usr/bin/redis-cli", "/usr/bin/dash"),
        (),
        ("WORKDIR /data", 'CMD ["redis-server", "--save", "", "--protected-mode", "no"]'),
    ),
    "busybox": Image("busybox:latest", ("/usr/bin/busybox",), (), ('CMD ["sh"]',)),
    "python": Image("python:3", ("/usr/bin/python3", "/usr/bin/dash"), ("/usr/lib/python3*",), ('CMD ["python3"]',)),
    # Many processes which share memory; `psql` in it needs no options.
    "postgres": Image(
        "postgres:latest",
        (*(f"/usr/lib/postgresql/*/bin/{name}" for name in ("postgres", "initdb", "psql", "pgbench")), "/usr/bin/dash"),
        ("/usr/lib/postgresql/*/lib", "/usr/share/postgresql/*", "/usr/share/zoneinfo"),
        ("USER postgres", "ENV PGDATA=/tmp/data", "ENV PGHOST=/tmp", 'ENTRYPOINT ["/usr/bin/start"]'),
        {"/usr/bin/start": POSTGRES_START},
    ),
    # A master and two workers on port 80; /status counts the requests since the start.
    "nginx": Image(
        "nginx:latest",
        ("/usr/sbin/nginx", "/usr/bin/dash"),
        (),
        ('CMD ["nginx", "-e", "stderr", "-c", "/etc/nginx.conf"]',),
        {"/etc/nginx.conf": NGINX_CONF},
    ),
    "memcached": Image("memcached:latest", ("/usr/bin/memcached",), (), ('CMD ["memcached", "-u", "memcache"]',)),
    # `javac` compiles: a class of the caller's own, bound or copied into it.
    "java": Image(
        "java:latest",
        (f"{JAVA_HOME}/bin/java", f"{JAVA_HOME}/lib/server/libjvm.so", "/usr/bin/dash"),
        (f"{JAVA_HOME}/conf", f"{JAVA_HOME}/lib", f"{JAVA_HOME}/release", "/etc/java-*-openjdk", f"{JAVA_COMPILER}*.jar"),
        ('CMD ["java", "-version"]',),
        {"/usr/bin/javac": f'#!/bin/sh\nexec java -cp {JAVA_COMPILER}.jar org.eclipse.jdt.internal.compiler.batch.Main "$@"\n'},
    ),
    # Written in Go. It listens on port 80 and keeps the numbers that are put to /metrics/job/NAME, read back from /metrics.
    "go": Image(
        "go:latest",
        ("/usr/bin/prometheus-pushgateway",),
        (),
        ('CMD ["prometheus-pushgateway", "--web.listen-address=:80"]',),
    ),
}
# On ha from the start; the others come when they are asked for.
USUAL = ("redis", "busybox", "python")


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
        present = set()
        programs = [file for pattern in image.programs for file in _matching(host, pattern)]
        for file in sorted({file for program in programs for file in _with_libraries(host, program)}):
            _add(archive, host, file)
            present.add(_name(file))
        for program in programs:
            if Path(program).parent.name == "bin" and Path(program).parent.parent != Path("/usr"):
                archive.addfile(_entry(f"usr/bin/{Path(program).name}", tarfile.SYMTYPE, 0o777, program))
        for tree in [tree for pattern in image.trees for tree in _matching(host, pattern)]:
            archive.add(host.path(tree), arcname=tree.lstrip("/"), filter=lambda entry: _wanted(entry, present))
        for file, text in image.files.items():
            entry = _entry(file.lstrip("/"), tarfile.REGTYPE, 0o755)
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
        if "/usr/bin/busybox" in image.programs:
            for applet in host.run("busybox", "--list").stdout.split():
                if applet != "busybox":
                    archive.addfile(_entry(f"usr/bin/{applet}", tarfile.SYMTYPE, 0o777, "busybox"))
        if "/usr/bin/dash" in image.programs:
            archive.addfile(_entry("usr/bin/sh", tarfile.SYMTYPE, 0o777, "dash"))
    return content.getvalue()


def _matching(host: Host, pattern: str) -> list[str]:
    """The paths in the host that a pattern names; there must be one."""
    root = host.path("/")
    found = [f"/{path.relative_to(root)}" for path in root.glob(pattern.lstrip("/"))]
    if not found:
        raise LabError(f"{host.name} has no {pattern}; an image needs it")
    return found


def _with_libraries(host: Host, program: str) -> set[str]:
    listed = host.run("ldd", program, check=False)  # it fails for a static program, which needs none
    words = {os.path.normpath(word) for word in listed.stdout.split() if word.startswith("/")}
    return {program, *words}


def _add(archive: tarfile.TarFile, host: Host, file: str) -> None:
    """Adds a file's content under the name that programs know it by, whatever links lie on the way."""
    # resolved by the host: the links are absolute in it
    real = host.run("realpath", file).stdout.strip()
    archive.add(host.path(real), arcname=_name(file), filter=_owned_by_root)


def _name(file: str) -> str:
    return f"usr{file}" if file.split("/")[1] in MERGED else file.lstrip("/")


def _owned_by_root(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


def _wanted(entry: tarfile.TarInfo, present: set[str]) -> tarfile.TarInfo | None:
    needless = any(Path(entry.name).match(pattern) for pattern in NEEDLESS)
    return None if needless or entry.name in present else _owned_by_root(entry)


def _entry(name: str, kind: bytes, mode: int, target: str = "") -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.linkname = kind, mode, target
    return entry
