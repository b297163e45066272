//! A container of podman's, by the archive that `podman container checkpoint --export` has made: what Docker is to make of it, and
//! what its image needs to be restored here.
//!
//! Docker gets the program, its environment and rights, the image by its name, mounts, published ports, volumes. What podman mounts
//! into every container and Docker does not must be there for the restore, since the image says so: it is asked for as a mount of
//! its own. Addresses stay behind: the networks of the two engines are not the same ones.

use std::io;
use std::path::Path;

use godwit_runtime::image::{Manifest, NetworkOwner};
use godwit_runtime::image_file::{self, Field};
use godwit_runtime::options::Layer;
use serde_json::{Map, Value, json};

use super::ArchiveError;
use super::layout;
use super::netns;
use super::read::Staged;
use crate::checks::facts::{Facts, cgroup_version};
use crate::engine::volume::{LOCAL_DRIVER, Volume};
use crate::engine::{Container, Engine, Mount, Network, RUNTIME, docker};
use crate::failure::Problem;
use crate::message::Offer;
use crate::options::MoveOptions;
use crate::volumes::Offered;
use crate::volumes::policy::Policy;

/// What Docker mounts by itself.
const OF_DOCKER: [&str; 4] = ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/shm"];

/// What podman mounts by itself: a file that says so to programs, empty unless they are privileged. Nothing is as empty.
const OF_PODMAN: &str = "/run/.containerenv";
const EMPTY: &str = "/dev/null";

/// Of CRIU's list of files (images/fdinfo.proto, regfile.proto): a file that is none of the special ones, its name, its mode.
const REGULAR_FILE: u32 = 3;
const NAME: u32 = 6;
const MODE: u32 = 10;

/// Docker's names for images that podman calls otherwise.
const PREFIXES: [&str; 3] = ["docker.io/library/", "docker.io/", "localhost/"];

/// The container as a move would offer it.
pub(super) async fn offer(engine: &dyn Engine, staged: &Staged) -> Result<Offer, Problem> {
    let note = |name: &str| -> Result<Value, ArchiveError> {
        let bytes = staged.notes.get(name);
        let bytes = bytes.ok_or_else(|| ArchiveError::Refused(format!("it has no {name}")))?;
        serde_json::from_slice(bytes).map_err(|error| ArchiveError::Refused(format!("{name}: {error}")))
    };
    let failed = |error: ArchiveError| Problem::failed(error.to_string());
    let (config, spec) = (
        note(layout::CONFIG).map_err(failed)?,
        note(layout::SPEC).map_err(failed)?,
    );
    let image_name = text(&config["rootfsImageName"]);
    let (mut name_here, mut image_id) = (image_name.to_owned(), String::new());
    for name in names(image_name) {
        if let Some(id) = engine.find_image(&name).await? {
            (name_here, image_id) = (name, id);
            break;
        }
    }
    let container = Container {
        engine: docker::NAME.into(),
        id: text(&config["id"]).into(),
        name: text(&config["name"]).into(),
        namespace: docker::NAMESPACE.into(),
        image_name: name_here,
        image_id,
        runtime: RUNTIME.into(),
        running: true,
        networks: networks(&spec, &config),
        mounts: mounts(&spec, &config),
        description: description(&spec, &config),
    };
    Ok(Offer {
        container,
        options: MoveOptions::default(),
        memory_bytes: 0,
        files_bytes: 0,
        volumes: volumes(&config),
        image_bytes: 0,
        security_profile: None,
        source: Facts {
            // Whatever it was made on, the image says more, to CRIU.
            architecture: std::env::consts::ARCH.into(),
            cgroup_version: cgroup_version(),
            ..Facts::default()
        },
    })
}

/// Has the image say that the engine makes the network anew, as ours do; podman had it made before, by a path.
pub(super) fn adapt(image: &Path, offer: &Offer) -> io::Result<()> {
    netns::remove(image)?;
    let terminal = offer.container.description["Config"]["Tty"] == true;
    Manifest::new(
        &offer.container.id,
        NetworkOwner::Engine,
        terminal,
        Layer::default(),
    )
    .write(image)
}

/// The permission bits that the root had when a task was dumped; podman makes it with others than Docker, and CRIU compares them.
pub(super) fn root_mode(image: &Path) -> io::Result<Option<u32>> {
    let mut found = None;
    image_file::entries(&image.join("files.img"), |entry| {
        image_file::fields(entry, |number, value| {
            if let (REGULAR_FILE, Field::Message(file)) = (number, value) {
                let (mut is_root, mut mode) = (false, None);
                let read = image_file::fields(&file, |number, value| match (number, value) {
                    (NAME, Field::Message(name)) => is_root = name == b"/",
                    (MODE, Field::Number(number)) => mode = u32::try_from(number & 0o7777).ok(),
                    _ => {}
                });
                if read.is_ok() && is_root {
                    found = found.or(mode);
                }
            }
        })
    })?;
    Ok(found)
}

/// An image's name as Docker may know it.
fn names(name: &str) -> Vec<String> {
    let short = PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix));
    short.into_iter().chain([name]).map(str::to_owned).collect()
}

fn binds(spec: &Value) -> impl Iterator<Item = (&str, &str)> {
    let mounts = spec["mounts"].as_array().into_iter().flatten();
    mounts
        .filter(|mount| mount["type"] == "bind")
        .map(|mount| (text(&mount["source"]), text(&mount["destination"])))
        .filter(|(_, target)| !OF_DOCKER.contains(target))
}

fn volumes(config: &Value) -> Vec<Offered> {
    let named = config["namedVolumes"].as_array().into_iter().flatten();
    let offered = named.map(|volume| Offered {
        volume: Volume {
            name: text(&volume["volumeName"]).into(),
            driver: LOCAL_DRIVER.into(),
            ..Volume::default()
        },
        target: text(&volume["dest"]).into(),
        is_anonymous: false,
        policy: Policy::Copy,
        bytes: 0,
    });
    offered.collect()
}

/// Mounts of the container that are no part of its image, without those of its engine.
fn mounts(spec: &Value, config: &Value) -> Vec<Mount> {
    let volumes = volumes(config);
    let of_volume = |target: &str| volumes.iter().find(|one| one.target == target);
    let bind = |(source, target): (&str, &str)| match of_volume(target) {
        Some(volume) => mount("volume", &volume.volume.name, target),
        None if target == OF_PODMAN => mount("bind", EMPTY, target),
        None => mount("bind", source, target),
    };
    binds(spec).map(bind).collect()
}

fn mount(kind: &str, source: &str, target: &str) -> Mount {
    Mount {
        kind: kind.into(),
        source: source.into(),
        target: target.into(),
        is_anonymous: false,
    }
}

fn networks(spec: &Value, config: &Value) -> Vec<Network> {
    let namespaces = spec["linux"]["namespaces"].as_array().into_iter().flatten();
    let has_own = namespaces.clone().any(|namespace| namespace["type"] == "network");
    if !has_own || config["networkMode"] == "none" {
        return Vec::new();
    }
    vec![Network {
        name: "bridge".into(),
        driver: "bridge".into(),
        address: String::new(),
        mac: String::new(),
        address_moves: false,
        subnets: Vec::new(),
    }]
}

/// What Docker would say of the container, as far as it is asked when it makes one.
fn description(spec: &Value, config: &Value) -> Value {
    let process = &spec["process"];
    let args: Vec<&str> = process["args"]
        .as_array()
        .into_iter()
        .flatten()
        .map(text)
        .collect();
    let (entrypoint, command) = args.split_at(args.len().min(1));
    let user = &process["user"];
    let capabilities = process["capabilities"]["bounding"]
        .as_array()
        .into_iter()
        .flatten();
    let capabilities: Vec<&str> = capabilities
        .map(|one| text(one).trim_start_matches("CAP_"))
        .collect();
    let binds: Vec<String> = mounts(spec, config)
        .iter()
        .map(|mount| format!("{}:{}", mount.source, mount.target))
        .collect();
    let (mut ports, mut exposed) = (Map::new(), Map::new());
    for port in config["newPortMappings"].as_array().into_iter().flatten() {
        let key = format!("{}/{}", port["container_port"], text(&port["protocol"]));
        let binding = json!({ "HostIp": text(&port["host_ip"]), "HostPort": port["host_port"].to_string() });
        exposed.insert(key.clone(), json!({}));
        ports.insert(key, json!([binding]));
    }
    let mode = if networks(spec, config).is_empty() {
        "none"
    } else {
        "bridge"
    };
    json!({
        "Config": {
            "Hostname": text(&spec["hostname"]),
            "User": format!("{}:{}", user["uid"].as_u64().unwrap_or(0), user["gid"].as_u64().unwrap_or(0)),
            "Env": process["env"],
            "Entrypoint": entrypoint,
            "Cmd": command,
            "WorkingDir": text(&process["cwd"]),
            "Tty": process["terminal"] == true,
            "OpenStdin": config["stdin"] == true,
            "Labels": config["labels"],
            "ExposedPorts": exposed,
        },
        "HostConfig": {
            "Runtime": RUNTIME,
            "NetworkMode": mode,
            "PortBindings": ports,
            "Binds": binds,
            // From outside of the container, as podman has its /dev/shm.
            "IpcMode": "shareable",
            "ShmSize": config["shmSize"],
            "CapDrop": ["ALL"],
            "CapAdd": capabilities,
            "MaskedPaths": spec["linux"]["maskedPaths"],
            "ReadonlyPaths": spec["linux"]["readonlyPaths"],
            "ReadonlyRootfs": spec["root"]["readonly"] == true,
        },
        "NetworkSettings": { "Networks": {} },
    })
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> Value {
        json!({
            "hostname": "284d54dc4841",
            "process": { "args": ["redis-server", "--save", ""], "cwd": "/data", "user": { "uid": 7, "gid": 8 },
                         "capabilities": { "bounding": ["CAP_CHOWN"] } },
            "linux": { "namespaces": [{ "type": "network", "path": "/run/netns/x" }] },
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc" },
                { "destination": "/etc/hosts", "type": "bind", "source": "/run/containers/hosts" },
                { "destination": "/run/.containerenv", "type": "bind", "source": "/run/containers/.containerenv" },
                { "destination": "/birds", "type": "bind", "source": "/var/lib/containers/storage/volumes/birds/_data" },
                { "destination": "/srv", "type": "bind", "source": "/srv" },
            ],
        })
    }

    #[test]
    fn docker_is_asked_for_what_podman_made() {
        let config = json!({
            "networkMode": "bridge",
            "namedVolumes": [{ "volumeName": "birds", "dest": "/birds" }],
            "newPortMappings": [{ "container_port": 80, "host_port": 8080, "host_ip": "", "protocol": "tcp" }],
        });
        let told = description(&spec(), &config);
        let binds = json!(["/dev/null:/run/.containerenv", "birds:/birds", "/srv:/srv"]);
        assert_eq!(told["HostConfig"]["Binds"], binds);
        assert_eq!(
            told["HostConfig"]["PortBindings"]["80/tcp"][0]["HostPort"],
            "8080"
        );
        assert_eq!(told["HostConfig"]["CapAdd"], json!(["CHOWN"]));
        assert_eq!(told["Config"]["Entrypoint"], json!(["redis-server"]));
        assert_eq!(told["Config"]["Cmd"], json!(["--save", ""]));
        assert_eq!(told["Config"]["User"], "7:8");
        assert_eq!(volumes(&config)[0].volume.name, "birds");
    }

    #[test]
    fn an_image_is_looked_for_by_dockers_name_first() {
        assert_eq!(
            names("docker.io/library/redis:8"),
            ["redis:8", "docker.io/library/redis:8"]
        );
        assert_eq!(names("localhost/mine"), ["mine", "localhost/mine"]);
        assert_eq!(names("quay.io/x"), ["quay.io/x"]);
    }
}
