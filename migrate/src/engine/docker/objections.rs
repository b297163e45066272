//! Every reason why the Docker of this host cannot take a container, found before anything is changed.
//!
//! Each function looks at one thing and answers with sentences for a person: what is in the way, and what to do.
//! They compare and look; only `of_host` touches the host, and it leaves nothing behind: it tries to bind published
//! ports. A missing image is no reason, it is brought along.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use serde_json::Value;
use tokio::net::{TcpListener, UdpSocket};

use super::{create, text};
use crate::engine::{Container, Network};

/// Where a shim is looked for besides the agent's own `PATH`: containerd's may be wider.
const SHIM_DIRECTORIES: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin";

/// What in the container's own configuration cannot be moved to any host yet.
pub(super) fn of_configuration(container: &Container) -> Vec<String> {
    let mut reasons = Vec::new();
    for mount in &container.mounts {
        match mount.kind.as_str() {
            "bind" | "tmpfs" => {}
            "volume" => reasons.push(format!(
                "volumes are not moved yet: {} at {} is one; use a bind mount of a path that both hosts have",
                mount.source, mount.target
            )),
            kind => reasons.push(format!(
                "mounts of type {kind} are not moved yet: {}",
                mount.target
            )),
        }
    }
    let host = &container.description["HostConfig"];
    for key in ["NetworkMode", "PidMode", "IpcMode"] {
        if let Some(other) = text(&host[key]).strip_prefix("container:") {
            reasons.push(format!(
                "it shares {key} with container {other}; containers that share namespaces are not moved"
            ));
        }
    }
    for key in ["VolumesFrom", "Links"] {
        if host[key].as_array().is_some_and(|list| !list.is_empty()) {
            reasons.push(format!(
                "it uses {key} of other containers, which stay where they are"
            ));
        }
    }
    reasons
}

/// A container that has the name already; `found` is what an inspect by that name answered, which may as well be one
/// whose id begins so.
pub(super) fn of_name(container: &Container, found: &Value) -> Option<String> {
    (text(&found["Name"]).trim_start_matches('/') == container.name).then(|| {
        let state = text(&found["State"]["Status"]);
        format!(
            "a container named {} is there already ({state}); remove or rename it",
            container.name
        )
    })
}

/// Whether the network of this name (`found`: its inspect answer) can take the container's end of `wanted`.
pub(super) fn of_network(wanted: &Network, found: Option<&Value>) -> Vec<String> {
    let name = &wanted.name;
    let Some(found) = found else {
        let subnets: String = wanted
            .subnets
            .iter()
            .map(|subnet| format!("--subnet {subnet} "))
            .collect();
        return vec![format!(
            "network {name} is missing; create it as on the source: docker network create -d {} {subnets}{name}",
            wanted.driver
        )];
    };
    if create::is_predefined(name) {
        return Vec::new();
    }
    let driver = text(&found["Driver"]);
    if driver != wanted.driver {
        return vec![format!(
            "network {name} has driver {driver}, on the source it has {}",
            wanted.driver
        )];
    }
    let here = subnets(found);
    if let Some(missing) = wanted.subnets.iter().find(|subnet| !here.contains(subnet)) {
        let here = here.join(", ");
        return vec![format!(
            "network {name} has subnet {here}, on the source it has {missing}: the address would not fit; \
             create it again with --subnet {missing}"
        )];
    }
    let attached = found["Containers"].as_object().into_iter().flatten();
    attached
        .filter(|(_, endpoint)| {
            let address = text(&endpoint["IPv4Address"]);
            let address = address.split_once('/').map_or(address, |(address, _)| address);
            !wanted.address.is_empty() && address == wanted.address
        })
        .map(|(_, endpoint)| {
            let holder = text(&endpoint["Name"]);
            format!(
                "address {} in network {name} is in use by container {holder}",
                wanted.address
            )
        })
        .collect()
}

/// Whether Docker can run `runtime`: one of its own (`known`, from `GET /info`), or a shim that is installed. Docker
/// itself takes any name that looks like a shim's, and fails at the start.
pub(super) fn of_runtime(runtime: &str, known: &Value) -> Option<String> {
    let configured = known.get(runtime);
    let shim = match configured {
        Some(configured) => configured["runtimeType"].as_str()?,
        None => runtime,
    };
    let Some(binary) = shim_binary(shim) else {
        return Some(format!(
            "docker knows no runtime {runtime}; add it to daemon.json"
        ));
    };
    if is_installed(&binary) {
        return None;
    }
    let binary = binary.display();
    Some(format!(
        "runtime {runtime} is not installed: there is no {binary} in the search path; install it"
    ))
}

/// What the container needs of the host itself: paths, devices, ports.
pub(super) async fn of_host(container: &Container) -> Vec<String> {
    let mut reasons = Vec::new();
    for mount in container.mounts.iter().filter(|mount| mount.kind == "bind") {
        if !Path::new(&mount.source).exists() {
            let (source, target) = (&mount.source, &mount.target);
            reasons.push(format!(
                "bind mount {target}: {source} does not exist on this host; create it"
            ));
        }
    }
    let host = &container.description["HostConfig"];
    for device in host["Devices"].as_array().into_iter().flatten() {
        let path = text(&device["PathOnHost"]);
        if !path.is_empty() && !Path::new(path).exists() {
            reasons.push(format!("device {path} does not exist on this host"));
        }
    }
    for (container_port, bindings) in host["PortBindings"].as_object().into_iter().flatten() {
        let protocol = container_port
            .rsplit_once('/')
            .map_or("tcp", |(_, protocol)| protocol);
        for binding in bindings.as_array().into_iter().flatten() {
            reasons.extend(of_port(protocol, text(&binding["HostIp"]), text(&binding["HostPort"])).await);
        }
    }
    reasons
}

/// The subnets of a network, as Docker writes them.
pub(super) fn subnets(network: &Value) -> Vec<String> {
    let configured = network["IPAM"]["Config"].as_array().into_iter().flatten();
    configured
        .map(|pool| text(&pool["Subnet"]).to_owned())
        .filter(|subnet| !subnet.is_empty())
        .collect()
}

/// Whether a published port is free, by taking it for a moment. A port left to Docker's choice always is.
async fn of_port(protocol: &str, address: &str, port: &str) -> Option<String> {
    let port: u16 = port.parse().ok().filter(|port| *port != 0)?;
    let address = if address.is_empty() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        address.parse::<IpAddr>().ok()?
    };
    let place = SocketAddr::new(address, port);
    let taken = match protocol {
        "tcp" => TcpListener::bind(place).await.err(),
        "udp" => UdpSocket::bind(place).await.err(),
        _ => None,
    }?;
    Some(format!(
        "published port {place}/{protocol} cannot be taken: {taken}; free it or publish another"
    ))
}

/// containerd's rule: `io.containerd.godwit.v2` runs `containerd-shim-godwit-v2`; an absolute path runs itself.
fn shim_binary(runtime: &str) -> Option<PathBuf> {
    if runtime.starts_with('/') {
        return Some(PathBuf::from(runtime));
    }
    let mut parts = runtime.rsplit('.');
    let (version, name) = (parts.next()?, parts.next()?);
    Some(PathBuf::from(format!("containerd-shim-{name}-{version}")))
}

fn is_installed(binary: &Path) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(std::env::split_paths(SHIM_DIRECTORIES))
        .any(|directory| directory.join(binary).is_file())
}
