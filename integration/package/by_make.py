"""What is checked of `make install` and `make uninstall`: that the one takes away what the other has brought."""

import subprocess
import tempfile
from pathlib import Path

from lab.layout import REPOSITORY

PREFIX = "/usr/local"
DEADLINE_SECONDS = 60.0
BROUGHT = ("bin/godwit", "bin/containerd-shim-godwit-v2", "lib/godwit/libgodwit_lens.so", "share/man/man1/godwit-migrate.1.gz")


def an_uninstall_leaves_configuration_only(binaries: Path) -> None:
    """A configuration that has been edited stays as it is, by the next installation, too."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        _run("install-tree", str(binaries), directory, PREFIX)
        for file in BROUGHT:
            assert (root / PREFIX.lstrip("/") / file).exists(), file
        unit = root / "usr/local/lib/systemd/system/godwit-agent.service"
        assert f"ExecStart={PREFIX}/bin/godwit agent" in unit.read_text()
        edited = root / "etc/godwit/agent.toml"
        edited.write_text('name = "ha"\n')
        _run("install-tree", str(binaries), directory, PREFIX)
        assert edited.read_text() == 'name = "ha"\n'
        _run("uninstall-tree", directory, PREFIX)
        left = {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}
        assert left == {"etc/godwit/agent.toml", "etc/godwit/shim.toml"}, left


def _run(*argv: str) -> None:
    script, *arguments = argv
    subprocess.run(["bash", str(REPOSITORY / "contrib" / script), *arguments], check=True, timeout=DEADLINE_SECONDS)
