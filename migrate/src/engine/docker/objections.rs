//! Every reason why the Docker of this host cannot take a container, found before anything is changed.
//!
//! Each function looks at one thing and answers with findings: what is in the way, and what to do.
//! They compare and look; only `of_host` touches the host, and it leaves nothing behind: it tries to bind published
//! ports. A missing image is no reason, it is brought along.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use serde_json::Value;
use tokio::net::{TcpListener, UdpSocket};

use super::{create, text};
use crate::engine::{Container, Network, needs};
use crate::finding::{Code, Finding};

/// What in the container's own configuration cannot be moved to any host yet.
pub(super) fn of_configuration(container: &Container) -> Vec<Finding> {
    let mut reasons = Vec::new();
    for mount in &container.mounts {
        match mount.kind.as_str() {
            // What speaks against a volume depends on what is to become of it: `crate::volumes`.
            "bind" | "tmpfs" | "volume" => {}
            kind => reasons.push(Finding::problem(
                Code::Mount,
                format!("mounts of type {kind} are not moved yet: {}", mount.target),
                "use a bind mount, a volume or a tmpfs",
            )),
        }
    }
    let host = &container.description["HostConfig"];
    for (key, what) in [
        ("NetworkMode", "the network"),
        ("PidMode", "the processes"),
        ("IpcMode", "the IPC"),
    ] {
        if let Some(other) = text(&host[key]).strip_prefix("container:") {
            let other = other.get(..12).unwrap_or(other);
            reasons.push(Finding::problem(
                Code::SharedWithContainer,
                format!("it shares {what} of container {other}, which would stay behind"),
                "start it without",
            ));
        }
    }
    for (key, what) in [("VolumesFrom", "uses volumes of"), ("Links", "is linked to")] {
        if host[key].as_array().is_some_and(|list| !list.is_empty()) {
            reasons.push(Finding::problem(
                Code::SharedWithContainer,
                format!("it {what} other containers, which would stay behind"),
                "start it without",
            ));
        }
    }
    if host["DeviceRequests"]
        .as_array()
        .is_some_and(|list| !list.is_empty())
    {
        reasons.push(Finding::problem(
            Code::DeviceRequest,
            "it was given devices by request (--gpus), whose state cannot be moved",
            "start it without",
        ));
    }
    reasons
}

/// A container that has the name already, among those that were `found` by it.
pub(super) fn of_name(container: &Container, found: &Value) -> Option<Finding> {
    let name = &container.name;
    let has_name = |entry: &&Value| {
        let names = entry["Names"].as_array().into_iter().flatten();
        names
            .filter_map(Value::as_str)
            .any(|taken| taken.trim_start_matches('/') == name)
    };
    let holder = found.as_array().into_iter().flatten().find(has_name)?;
    let state = text(&holder["State"]);
    Some(Finding::problem(
        Code::Name,
        format!("a container named {name} is there already ({state})"),
        "remove or rename it",
    ))
}

/// Whether the network of this name (`found`: its inspect answer) can take the container's end of `wanted`.
pub(super) fn of_network(wanted: &Network, found: Option<&Value>) -> Vec<Finding> {
    let name = &wanted.name;
    let Some(found) = found else {
        let subnets: String = wanted
            .subnets
            .iter()
            .map(|subnet| format!("--subnet {subnet} "))
            .collect();
        return vec![Finding::problem(
            Code::Network,
            format!("network {name} is missing"),
            format!(
                "create it as on the source: docker network create -d {} {subnets}{name}",
                wanted.driver
            ),
        )];
    };
    if create::is_predefined(name) {
        return Vec::new();
    }
    let driver = text(&found["Driver"]);
    if driver != wanted.driver {
        return vec![Finding::problem(
            Code::Network,
            format!(
                "network {name} has driver {driver}, on the source it has {}",
                wanted.driver
            ),
            "create it again as on the source",
        )];
    }
    let here = subnets(found);
    if let Some(missing) = wanted.subnets.iter().find(|subnet| !here.contains(subnet)) {
        let here = here.join(", ");
        return vec![Finding::problem(
            Code::Network,
            format!(
                "network {name} has subnet {here}, on the source it has {missing}: the address would not fit"
            ),
            format!("create it again with --subnet {missing}"),
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
            Finding::problem(
                Code::Address,
                format!(
                    "address {} in network {name} is in use by container {holder}",
                    wanted.address
                ),
                "stop that one, or give it another address",
            )
        })
        .collect()
}

/// Whether Docker can run `runtime`: one of its own (`known`, from `GET /info`), or a shim that is installed. Docker
/// itself takes any name that looks like a shim's, and fails at the start.
pub(super) fn of_runtime(runtime: &str, known: &Value) -> Option<Finding> {
    let configured = known.get(runtime);
    let shim = match configured {
        Some(configured) => configured["runtimeType"].as_str()?,
        None => runtime,
    };
    let Some(binary) = needs::shim_binary(shim) else {
        return Some(Finding::problem(
            Code::Runtime,
            format!("docker knows no runtime {runtime}"),
            "add it to daemon.json",
        ));
    };
    needs::missing_shim(runtime, &binary)
}

/// What the container needs of the host itself: paths, devices, ports.
pub(super) async fn of_host(container: &Container) -> Vec<Finding> {
    let mut reasons = needs::missing_sources(container);
    let host = &container.description["HostConfig"];
    for device in host["Devices"].as_array().into_iter().flatten() {
        let path = text(&device["PathOnHost"]);
        if !path.is_empty() && !Path::new(path).exists() {
            reasons.push(Finding::problem(
                Code::Device,
                format!("device {path} does not exist on this host"),
                "choose a host that has it",
            ));
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
async fn of_port(protocol: &str, address: &str, port: &str) -> Option<Finding> {
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
    Some(Finding::problem(
        Code::Port,
        format!("published port {place}/{protocol} cannot be taken: {taken}"),
        "free it or publish another",
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::{DEFAULT_BRIDGE, MACVLAN, container};
    use super::*;
    use crate::engine::Mount;

    fn joined(findings: &[Finding]) -> String {
        findings.iter().map(ToString::to_string).collect()
    }

    fn macvlan() -> Network {
        Network {
            name: "lan".into(),
            driver: "macvlan".into(),
            address: "10.78.9.50".into(),
            mac: "02:42:0a:4d:00:32".into(),
            address_moves: true,
            subnets: vec!["10.78.9.0/24".into()],
        }
    }

    fn here(driver: &str, subnet: &str, holder_address: &str) -> Value {
        json!({
            "Driver": driver,
            "IPAM": { "Config": [{ "Subnet": subnet }] },
            "Containers": { "1": { "Name": "thief", "IPv4Address": holder_address } },
        })
    }

    #[test]
    fn the_same_network_with_the_address_free_is_no_obstacle() {
        let network = here("macvlan", "10.78.9.0/24", "10.78.9.5/24");
        assert!(of_network(&macvlan(), Some(&network)).is_empty());
    }

    #[test]
    fn each_difference_of_a_network_is_told_with_its_remedy() {
        let told = |found: Option<&Value>| joined(&of_network(&macvlan(), found));
        let missing = told(None);
        assert!(
            missing.ends_with("docker network create -d macvlan --subnet 10.78.9.0/24 lan"),
            "{missing}"
        );
        let driver = told(Some(&here("bridge", "10.78.9.0/24", "")));
        assert!(
            driver.contains("has driver bridge, on the source it has macvlan"),
            "{driver}"
        );
        let subnet = told(Some(&here("macvlan", "10.78.8.0/24", "")));
        assert!(subnet.contains("again with --subnet 10.78.9.0/24"), "{subnet}");
        let taken = told(Some(&here("macvlan", "10.78.9.0/24", "10.78.9.50/24")));
        assert!(taken.contains("in use by container thief"), "{taken}");
    }

    #[test]
    fn the_default_bridge_may_differ() {
        let wanted = Network {
            name: "bridge".into(),
            ..macvlan()
        };
        assert!(of_network(&wanted, Some(&here("bridge", "172.17.0.0/16", ""))).is_empty());
    }

    #[test]
    fn a_name_counts_as_taken_only_by_its_bearer() {
        let web = container(MACVLAN);
        let similar = json!([{ "Names": ["/webx", "/other/web2"], "State": "running" }]);
        assert_eq!(of_name(&web, &similar), None);
        let same = json!([{ "Names": ["/web"], "State": "exited" }]);
        assert!(
            of_name(&web, &same)
                .unwrap()
                .text
                .contains("named web is there already (exited)")
        );
    }

    #[test]
    fn mounts_of_other_kinds_and_shared_namespaces_are_told_all_at_once() {
        let mut container = container(MACVLAN);
        assert!(of_configuration(&container).is_empty());
        container.mounts.push(Mount {
            kind: "npipe".into(),
            source: "data".into(),
            target: "/d".into(),
            is_anonymous: false,
        });
        container.description["HostConfig"]["PidMode"] = "container:b769cf91efde0767".into();
        container.description["HostConfig"]["DeviceRequests"] = json!([{ "Driver": "nvidia", "Count": -1 }]);
        let reasons = of_configuration(&container);
        assert_eq!(reasons.len(), 3, "{reasons:?}");
        assert_eq!(reasons[2].code, Code::DeviceRequest);
        assert!(
            reasons[0]
                .text
                .starts_with("mounts of type npipe are not moved yet: /d")
        );
        assert!(
            reasons[1]
                .text
                .contains("the processes of container b769cf91efde,")
        );
    }

    #[test]
    fn a_shim_that_is_not_installed_is_noticed() {
        let known = json!({ "runc": { "path": "runc" } });
        assert_eq!(of_runtime("runc", &known), None);
        let reason = of_runtime("io.containerd.nonesuch.v9", &known).unwrap();
        assert!(
            reason.text.contains("there is no containerd-shim-nonesuch-v9"),
            "{reason}"
        );
        let reason = of_runtime("nonesuch", &known).unwrap();
        assert!(
            reason.text.contains("docker knows no runtime nonesuch"),
            "{reason}"
        );
        let aliased = json!({ "alias": { "runtimeType": "/nonexistent/shim" } });
        assert!(of_runtime("alias", &aliased).is_some());
    }

    #[tokio::test]
    async fn a_published_port_that_is_in_use_is_told() {
        let holder = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = holder.local_addr().unwrap().port().to_string();
        let mut container = container(DEFAULT_BRIDGE);
        let bindings = json!({ "80/tcp": [{ "HostIp": "127.0.0.1", "HostPort": port }] });
        container.description["HostConfig"]["PortBindings"] = bindings;
        let reasons = of_host(&container).await;
        assert!(
            joined(&reasons).contains(&format!("127.0.0.1:{port}/tcp cannot be taken")),
            "{reasons:?}"
        );
        drop(holder);
        assert!(of_host(&container).await.is_empty());
    }

    #[tokio::test]
    async fn a_port_left_to_docker_is_never_in_use() {
        assert_eq!(of_port("tcp", "", "").await, None);
        assert_eq!(of_port("tcp", "", "0").await, None);
    }

    #[tokio::test]
    async fn a_bind_mount_whose_source_is_missing_is_told() {
        let mut container = container(MACVLAN);
        container.mounts[0].source = "/nonexistent/path".into();
        let reasons = of_host(&container).await;
        assert!(
            joined(&reasons).contains("/nonexistent/path does not exist on this host"),
            "{reasons:?}"
        );
    }
}
