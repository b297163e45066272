"""The section [godwit] of nova.conf."""

from nova.conf import CONF
from oslo_config import cfg

GROUP = "godwit"
OPTIONS = [
    cfg.StrOpt("docker_socket", default="/run/docker.sock", help="The Docker engine's unix socket."),
    cfg.StrOpt("agent_socket", default="/run/godwit/agent.sock", help="The local unix socket of Godwit's agent."),
    cfg.StrOpt("runtime", default="io.containerd.godwit.v2", help="The runtime that containers are started with."),
    cfg.StrOpt(
        "storage_path",
        help="A directory on the disk where Docker keeps its layers; Docker's own word for it unless told.",
    ),
    cfg.IntOpt(
        "pids_limit",
        default=4096,
        min=0,
        help="Processes that one container may have, unless its flavor says godwit:pids_limit; 0 for no limit.",
    ),
    cfg.StrOpt(
        "migration_mode",
        default="auto",
        choices=["auto", "stop", "pre", "post"],
        help="How memory goes over in a live migration; see `godwit migrate --mode`.",
    ),
    cfg.IntOpt(
        "migration_downtime_ms",
        default=300,
        min=1,
        help="How long a container may stand still in a live migration, as far as the mode can see to that.",
    ),
]

CONF.register_opts(OPTIONS, group=GROUP)
