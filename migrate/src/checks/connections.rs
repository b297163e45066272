//! The TCP connections of a container that a move would have to leave behind: those whose address here it will not have
//! there.
//!
//! It looks at the container's own sockets only, so that a container in the host's network is not judged by the
//! host's connections. It changes nothing, and does not decide what becomes of a connection.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;

use godwit_runtime::options::{CheckpointOptions, HOST_FILE, HostLayers, Layer, Tcp};

use super::proc::Proc;
use crate::engine::Container;
use crate::finding::{Code, Finding};

/// More connections than this are counted, not named.
const MAX_NAMED: usize = 3;

/// States of the kernel's TCP table in which a socket does not depend on its address: TIME_WAIT, CLOSE and LISTEN.
const WITHOUT_PEER: [&str; 3] = ["06", "07", "0A"];

/// One line of `/proc/PID/net/tcp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Connection {
    local: (IpAddr, u16),
    remote: (IpAddr, u16),
    inode: u64,
}

/// Why the connections of `container`, whose first process is `pid`, forbid a move; `None` if they do not.
pub fn objection(container: &Container, option: Tcp, pid: u32) -> Option<Finding> {
    if option == Tcp::Close {
        return None;
    }
    let staying: Vec<String> = connections_of(pid)
        .into_iter()
        .filter(|connection| !moves(container, connection.local.0))
        .map(|connection| {
            let ((address, port), (peer, peer_port)) = (connection.local, connection.remote);
            format!("{address}:{port} from {peer}:{peer_port}")
        })
        .collect();
    let (first, n_more) = (staying.first()?, staying.len().saturating_sub(MAX_NAMED));
    let named = staying
        .iter()
        .take(MAX_NAMED)
        .skip(1)
        .fold(first.clone(), |named, next| named + ", " + next);
    let more = if n_more == 0 {
        String::new()
    } else {
        format!(" and {n_more} more")
    };
    Some(Finding::problem(
        Code::TcpConnections,
        format!(
            "{} has TCP connections on an address that cannot move with it ({named}{more})",
            container.name
        ),
        "put it into a network with a subnet that both hosts share (macvlan), or start it with --annotation \
         io.godwit.checkpoint.tcp=close and they are closed",
    ))
}

/// What a dump of the container would be told, by its annotations over this host's file; or what they cannot say.
pub fn options(container: &Container) -> Result<CheckpointOptions, String> {
    let layer = Layer::from_annotations(&container.annotations()).map_err(|error| error.to_string())?;
    let host = HostLayers::read(Path::new(HOST_FILE)).map_err(|error| error.to_string())?;
    Ok(CheckpointOptions::resolve(&[&layer, &host.checkpoint]))
}

/// Whether the container will have this address on any host. An IPv6 address counts as its network's IPv4 one does,
/// since only networks of one's own have either.
fn moves(container: &Container, address: IpAddr) -> bool {
    let mut moving = container.networks.iter().filter(|network| network.address_moves);
    address.is_loopback()
        || match address {
            IpAddr::V4(_) => moving.any(|network| network.address.parse() == Ok(address)),
            IpAddr::V6(_) => moving.next().is_some(),
        }
}

/// The connections that processes of the container hold.
fn connections_of(pid: u32) -> Vec<Connection> {
    let tables: Vec<Connection> = ["tcp", "tcp6"]
        .iter()
        .filter_map(|table| fs::read_to_string(format!("/proc/{pid}/net/{table}")).ok())
        .flat_map(|table| table.lines().filter_map(parse).collect::<Vec<_>>())
        .collect();
    if tables.is_empty() {
        return tables;
    }
    let held = sockets_of(pid);
    tables
        .into_iter()
        .filter(|connection| held.contains(&connection.inode))
        .collect()
}

/// The inodes of the sockets that processes of the container have open.
fn sockets_of(pid: u32) -> BTreeSet<u64> {
    let (proc, mut inodes) = (Proc::default(), BTreeSet::new());
    for pid in proc.processes(pid) {
        inodes.extend(proc.descriptors(pid).iter().filter_map(|descriptor| {
            let inode = descriptor.target.strip_prefix("socket:[")?.strip_suffix(']')?;
            inode.parse::<u64>().ok()
        }));
    }
    inodes
}

/// A connection out of a line of the kernel's table; `None` for the heading and for sockets without a peer.
fn parse(line: &str) -> Option<Connection> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (local, remote, state, inode) = (fields.get(1)?, fields.get(2)?, fields.get(3)?, fields.get(9)?);
    if WITHOUT_PEER.contains(state) {
        return None;
    }
    Some(Connection {
        local: parse_endpoint(local)?,
        remote: parse_endpoint(remote)?,
        inode: inode.parse().ok()?,
    })
}

/// `0100007F:1F90`: the address in words of the machine's byte order, the port as a number.
fn parse_endpoint(text: &str) -> Option<(IpAddr, u16)> {
    let (address, port) = text.split_once(':')?;
    let mut bytes = Vec::with_capacity(16);
    for word in address.as_bytes().chunks(8) {
        let word = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    let address = match <[u8; 4]>::try_from(bytes.as_slice()) {
        Ok(v4) => IpAddr::from(v4),
        Err(_) => Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).to_canonical(),
    };
    Some((address, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Network;
    use std::net::{TcpListener, TcpStream};

    fn container(address: &str, address_moves: bool, annotation: Option<&str>) -> Container {
        let annotations = annotation.map(|value| serde_json::json!({ "io.godwit.checkpoint.tcp": value }));
        Container {
            engine: "docker".into(),
            id: "abc".into(),
            name: "web".into(),
            namespace: "moby".into(),
            image_name: String::new(),
            image_id: "sha256:0".into(),
            runtime: "io.containerd.godwit.v2".into(),
            running: true,
            networks: vec![Network {
                name: "n".into(),
                driver: "bridge".into(),
                address: address.into(),
                mac: String::new(),
                address_moves,
                subnets: Vec::new(),
            }],
            mounts: Vec::new(),
            description: serde_json::json!({ "HostConfig": { "Annotations": annotations } }),
        }
    }

    #[test]
    fn lines_of_the_kernels_table_are_understood() {
        let v4 = "   1: 0200000A:1F90 1400000A:D431 01 00000000:00000000 00:00000000 00000000     0        0 4242 1";
        let parsed = parse(v4).unwrap();
        assert_eq!(parsed.local, ("10.0.0.2".parse().unwrap(), 8080));
        assert_eq!(parsed.remote, ("10.0.0.20".parse().unwrap(), 54321));
        assert_eq!(parsed.inode, 4242);
        let mapped = v4.replace("0200000A", "0000000000000000FFFF00000200000A");
        assert_eq!(parse(&mapped).unwrap().local, parsed.local);
        assert_eq!(parse(&v4.replace(" 01 ", " 0A ")), None, "a listener has no peer");
        assert_eq!(
            parse("  sl  local_address rem_address   st tx_queue rx_queue"),
            None
        );
    }

    #[test]
    fn an_own_connection_is_found_and_one_that_is_closed_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let has_it = || {
            connections_of(std::process::id())
                .iter()
                .any(|connection| connection.remote.1 == port)
        };
        assert!(!has_it());
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(has_it());
        drop(stream);
        assert!(!has_it());
    }

    #[test]
    fn an_address_moves_with_its_network_only() {
        let address = "10.0.0.2".parse().unwrap();
        assert!(moves(&container("10.0.0.2", true, None), address));
        assert!(!moves(&container("10.0.0.2", false, None), address));
        assert!(!moves(&container("10.0.0.3", true, None), address));
        assert!(moves(&container("", false, None), "127.0.0.9".parse().unwrap()));
    }

    #[test]
    fn the_annotation_says_what_becomes_of_connections_and_a_misspelt_one_is_told() {
        let tcp = |annotation| options(&container("", false, annotation)).map(|options| options.tcp);
        assert_eq!(tcp(None), Ok(Tcp::Established));
        assert_eq!(tcp(Some("close")), Ok(Tcp::Close));
        assert!(tcp(Some("closed")).is_err());
    }
}
