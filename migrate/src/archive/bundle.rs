//! The members of an archive by which others know the container: its configuration as podman writes it, its OCI configuration, its
//! networks.
//!
//! They are made of what the engine and the bundle say, for podman's restore and for checkpointctl; an import of ours goes by the
//! manifest. Mounts that an engine makes for every container it starts (`/etc/hosts` and its like) are left out: whoever starts
//! this one makes them anew.

use std::path::Path;

use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::ArchiveError;
use crate::engine::{Container, docker};
use crate::volumes::Offered;
use crate::volumes::policy::Policy;

/// An OCI configuration is some hundred kilobytes.
const CONFIG_LIMIT_BYTES: u64 = 16 << 20;

/// What engines mount into each container from files of their own.
const OF_ENGINES: [&str; 4] = [
    "/etc/hosts",
    "/etc/hostname",
    "/etc/resolv.conf",
    "/run/.containerenv",
];

/// The annotation by which checkpointctl and podman tell whose archive it is, and the value for this layout.
const MANAGER: (&str, &str) = ("io.container.manager", "libpod");

/// Reads the OCI configuration of a container from its bundle.
pub fn spec_of(bundle: &Path) -> Result<Value, ArchiveError> {
    let path = bundle.join("config.json");
    let doing = || format!("reading {}", path.display());
    let size = path.metadata().map_err(ArchiveError::io(doing()))?.len();
    if size > CONFIG_LIMIT_BYTES {
        return Err(ArchiveError::Refused(format!(
            "{} is larger than any",
            path.display()
        )));
    }
    let text = std::fs::read(&path).map_err(ArchiveError::io(doing()))?;
    serde_json::from_slice(&text).map_err(|error| ArchiveError::io(doing())(error.into()))
}

/// `spec.dump`: the configuration without what is this host's alone.
pub fn spec(container: &Container, spec: &Value) -> Value {
    let mut spec = spec.clone();
    if let Some(spec) = spec.as_object_mut() {
        // Programs of the engine and of ours, at paths of this host.
        spec.remove("hooks");
    }
    if let Some(mounts) = spec["mounts"].as_array_mut() {
        mounts.retain(|mount| {
            let destination = mount["destination"].as_str().unwrap_or_default();
            !OF_ENGINES.contains(&destination)
        });
    }
    let mut annotations = match spec["annotations"].take() {
        Value::Object(annotations) => annotations,
        _ => Map::new(),
    };
    // It names a file of this host.
    annotations.remove(godwit_runtime::criu::CONFIG_ANNOTATION);
    annotations.insert(MANAGER.0.into(), MANAGER.1.into());
    annotations.insert("io.godwit.engine".into(), container.engine.clone().into());
    spec["annotations"] = Value::Object(annotations);
    spec
}

/// `config.dump`: podman's `ContainerConfig`, as far as there is anything to say.
pub fn config(container: &Container, spec: &Value, volumes: &[Offered]) -> Value {
    let now = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
    let description = &container.description;
    let created = description["Created"].as_str().unwrap_or(&now);
    let named: Vec<Value> = volumes
        .iter()
        .filter(|one| one.policy == Policy::Copy)
        .map(|one| json!({ "volumeName": one.volume.name, "dest": one.target, "options": ["rw"] }))
        .collect();
    let hostname = spec["hostname"].as_str().unwrap_or_default();
    let image = container
        .image_id
        .strip_prefix("sha256:")
        .unwrap_or(&container.image_id);
    let has_network = container
        .networks
        .iter()
        .any(|network| !network.address.is_empty());
    let labels = match container.engine.as_str() {
        docker::NAME => description["Config"]["Labels"].clone(),
        _ => description["labels"].clone(),
    };
    json!({
        "spec": spec,
        "id": container.id,
        "name": container.name.replace('/', "-"),
        "hostname": hostname,
        "rootfsImageID": image,
        "rootfsImageName": qualified(&container.image_name),
        "rootfsImageRef": container.image_id,
        "namedVolumes": named,
        "createNetNS": true,
        "networkMode": if has_network { "bridge" } else { "none" },
        "newPortMappings": ports(description),
        // Whatever network it was on, on podman's host there is this one.
        "newNetworks": if has_network { json!({ "podman": { "interface_name": "eth0" } }) } else { json!({}) },
        "labels": if labels.is_object() { labels } else { json!({}) },
        "stopSignal": 15,
        "stopTimeout": 10,
        "createdTime": created,
        "checkpointedAt": now,
        "checkpointedTime": now,
        "cgroupManager": "cgroupfs",
        "cgroupsMode": "enabled",
        "logDriver": "k8s-file",
        "runtime": "runc",
        "user": user(spec),
        "command": spec["process"]["args"],
        "userVolumes": [],
        "shmSize": 67_108_864,
    })
}

/// `network.status`: one entry for each network, as podman's `StatusBlock`.
pub fn networks(container: &Container) -> Value {
    let block = |network: &crate::engine::Network| {
        let length = network.subnets.iter().find_map(|subnet| {
            let (start, length) = subnet.split_once('/')?;
            start.contains('.').then_some(length)
        });
        let address = format!("{}/{}", network.address, length.unwrap_or("32"));
        let mut interface = json!({ "subnets": [{ "ipnet": address }] });
        if !network.mac.is_empty() {
            interface["mac_address"] = network.mac.clone().into();
        }
        let interfaces = json!({ "interfaces": { "eth0": interface } });
        (network.name.clone(), interfaces)
    };
    let networks = container.networks.iter();
    let addressed = networks.filter(|network| !network.address.is_empty());
    Value::Object(addressed.map(block).collect())
}

/// An image's name with its registry, which Docker leaves out where it is its own.
fn qualified(name: &str) -> String {
    match name.split_once('/') {
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => name.into(),
        Some(_) => format!("docker.io/{name}"),
        None if name.is_empty() => String::new(),
        None => format!("docker.io/library/{name}"),
    }
}

fn user(spec: &Value) -> String {
    let user = &spec["process"]["user"];
    let number = |key: &str| user[key].as_u64().unwrap_or(0);
    format!("{}:{}", number("uid"), number("gid"))
}

/// Docker's published ports as podman has them.
fn ports(description: &Value) -> Value {
    let mut ports = Vec::new();
    for (key, bindings) in description["HostConfig"]["PortBindings"]
        .as_object()
        .into_iter()
        .flatten()
    {
        let (port, protocol) = key.split_once('/').unwrap_or((key, "tcp"));
        for binding in bindings.as_array().into_iter().flatten() {
            let number = |text: &str| text.parse::<u16>().unwrap_or(0);
            ports.push(json!({
                "host_ip": binding["HostIp"].as_str().unwrap_or_default(),
                "container_port": number(port),
                "host_port": number(binding["HostPort"].as_str().unwrap_or_default()),
                "range": 1,
                "protocol": protocol,
            }));
        }
    }
    Value::Array(ports)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_this_hosts_alone_stays_here() {
        let told = json!({
            "hooks": { "prestart": [{ "path": "/proc/1/exe" }] },
            "mounts": [
                { "destination": "/proc", "type": "proc" },
                { "destination": "/etc/hosts", "type": "bind", "source": "/var/lib/docker/containers/a/hosts" },
            ],
        });
        let spec = spec(&crate::tests::offer().container, &told);
        assert!(spec.get("hooks").is_none());
        assert_eq!(
            spec["mounts"],
            json!([{ "destination": "/proc", "type": "proc" }])
        );
        assert_eq!(spec["annotations"]["io.container.manager"], "libpod");
    }

    #[test]
    fn an_image_is_named_with_its_registry() {
        for (name, whole) in [
            ("redis:8", "docker.io/library/redis:8"),
            ("birds/redis", "docker.io/birds/redis"),
            ("quay.io/redis", "quay.io/redis"),
            ("registry:5000/redis", "registry:5000/redis"),
            ("", ""),
        ] {
            assert_eq!(qualified(name), whole);
        }
    }

    #[test]
    fn addresses_have_the_length_of_their_network() {
        let mut container = crate::tests::offer().container;
        container.networks = vec![crate::engine::Network {
            name: "bridge".into(),
            driver: "bridge".into(),
            address: "172.17.0.2".into(),
            mac: String::new(),
            address_moves: false,
            subnets: vec!["fd00::/64".into(), "172.17.0.0/16".into()],
        }];
        let interface = &networks(&container)["bridge"]["interfaces"]["eth0"];
        assert_eq!(interface, &json!({ "subnets": [{ "ipnet": "172.17.0.2/16" }] }));
    }
}
