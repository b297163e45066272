"""Our own binaries in the hosts, and what an agent needs to know: certificates of one authority, its peers."""

import shutil

from .commands import LabError, run
from .hosts import Host
from .layout import AGENT_PORT, DISK_DIR, HOST_ADDRESSES, binaries_dir

BINARIES = ("godwit", "containerd-shim-godwit-v2")
LENS = "libgodwit_lens.so"
TLS_DIR = "/etc/godwit/tls"


def install_binaries(hosts: list[Host]) -> list[str]:
    """Copies the built binaries into the hosts; says which were there to copy."""
    found = [name for name in BINARIES if (binaries_dir() / name).is_file()]
    for host in hosts:
        for name in found:
            host.install(binaries_dir() / name, f"/usr/local/bin/{name}", 0o755)
        if (binaries_dir() / LENS).is_file():
            host.install(binaries_dir() / LENS, f"/usr/local/lib/godwit/{LENS}", 0o755)
    return found


def configure_agents(hosts: list[Host]) -> None:
    """Makes an authority for the lab, a certificate for each host, and each agent's configuration."""
    godwit = str(binaries_dir() / "godwit")
    if not shutil.which(godwit):
        raise LabError(f"{godwit} is not built; run `make build`, or use `--no-agent`")
    authority = DISK_DIR / "ca"
    run([godwit, "ca", "init", "--dir", str(authority)])
    for host in hosts:
        issued = DISK_DIR / host.name / "tls"
        run([godwit, "ca", "issue", "--dir", str(authority), "--host", host.name, "--address", host.address,
             "--out", str(issued)])  # fmt: skip
        for file in issued.iterdir():
            host.install(file, f"{TLS_DIR}/{file.name}", 0o600)
        host.path(TLS_DIR).chmod(0o700)
        host.write("/etc/godwit/agent.toml", configuration(host.name, host.address))


def configuration(own_name: str, own_address: str) -> str:
    """An agent's configuration: whose it is, and all others as its peers."""
    peers = "".join(
        f'\n[peers.{name}]\naddress = "{address}:{AGENT_PORT}"\n'
        for name, address in HOST_ADDRESSES.items()
        if name != own_name
    )
    return f'name = "{own_name}"\nlisten = "{own_address}:{AGENT_PORT}"\ntls = "{TLS_DIR}"\n{peers}'
