//! The TCP connections of a container that a move would have to leave behind: those whose address here it will not have
//! there.
//!
//! It looks at the container's own sockets only, so that a container in the host's network is not judged by the
//! host's connections. It changes nothing, and does not decide what becomes of a connection.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::Path;

use godwit_runtime::connections::{self, Connection, WITHOUT_PEER};
use godwit_runtime::options::{HOST_FILE, HostLayers, Layer};

use super::proc::Proc;
use crate::engine::Container;
use crate::finding::{Code, Finding};
use crate::tcp::{Fate, Treatment};

/// More connections than this are counted, not named.
const MAX_NAMED: usize = 3;

/// What the connections of `container`, whose first process is `pid`, mean for a move that treats them so.
pub fn judge(container: &Container, treatment: Treatment, pid: u32) -> Option<Finding> {
    let found = of(pid);
    let staying: Vec<_> = found.iter().filter(|one| !moves(container, one)).collect();
    let name = &container.name;
    if treatment == Treatment::Keep {
        let named = named(&staying)?;
        return Some(Finding::problem(
            Code::TcpConnections,
            format!("{name} has TCP connections on an address that cannot move with it ({named})"),
            "move it with --tcp close and they are closed, or put it into a network with a subnet that both hosts share \
             (macvlan)",
        ));
    }
    if treatment.fate(!staying.is_empty()) == Fate::Kept {
        return None;
    }
    let all: Vec<_> = found.iter().collect();
    let named = named(&all)?;
    Some(Finding::warning(
        Code::TcpConnections,
        format!("TCP connections of {name} are going to be closed ({named})"),
        "",
    ))
}

/// Some of the connections by their addresses, and the number of the others; `None` if there are none.
fn named(connections: &[&Connection]) -> Option<String> {
    let name = |one: &&Connection| format!("{} from {}", one.local, one.remote);
    let some: Vec<String> = connections.iter().take(MAX_NAMED).map(name).collect();
    let some = some.join(", ");
    match connections.len() {
        0 => None,
        n_all if n_all > MAX_NAMED => Some(format!("{some} and {} more", n_all - MAX_NAMED)),
        _ => Some(some),
    }
}

/// What the container's annotations say of its dump, else this host's file; or what they cannot say.
pub fn told(container: &Container) -> Result<Layer, String> {
    let layer = Layer::from_annotations(&container.annotations()).map_err(|error| error.to_string())?;
    let host = HostLayers::read(Path::new(HOST_FILE)).map_err(|error| error.to_string())?;
    Ok(Layer::merged(&[&layer, &host.checkpoint]))
}

/// Whether the container will have the connection's address on any host. One of its own subnets goes along with the network,
/// and so does the address that its hardware address makes.
pub fn moves(container: &Container, connection: &Connection) -> bool {
    let mut moving = container.networks.iter().filter(|network| network.address_moves);
    match connection.local.ip() {
        address if address.is_loopback() => true,
        IpAddr::V4(address) => moving.any(|network| network.address.parse() == Ok(address)),
        IpAddr::V6(address) if address.is_unicast_link_local() => moving.next().is_some(),
        IpAddr::V6(address) => moving.any(|network| network.subnets.iter().any(|one| holds(one, address))),
    }
}

/// Whether a subnet, as `fd00::/64`, holds an address.
fn holds(subnet: &str, address: Ipv6Addr) -> bool {
    let Some((network, length)) = subnet.split_once('/') else {
        return false;
    };
    let (Ok(network), Ok(length @ 1..=128)) = (network.parse::<Ipv6Addr>(), length.parse::<u32>()) else {
        return false;
    };
    (network.to_bits() ^ address.to_bits()) >> (128 - length) == 0
}

/// The connections that processes of the container hold, by the kernel's tables.
pub fn of(pid: u32) -> Vec<Connection> {
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
    if WITHOUT_PEER.contains(&u64::from_str_radix(state, 16).ok()?) {
        return None;
    }
    Some(Connection {
        local: parse_endpoint(local)?,
        remote: parse_endpoint(remote)?,
        inode: inode.parse().ok()?,
    })
}

/// `0100007F:1F90`: the address in words of the machine's byte order, the port as a number.
pub(crate) fn parse_endpoint(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let word = |digits| u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok();
    let words: Option<Vec<u32>> = address.as_bytes().chunks(8).map(word).collect();
    let address = connections::address(&words?)?;
    Some(SocketAddr::new(address, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Network;
    use godwit_runtime::options::Tcp;
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
        assert_eq!(parsed.local, "10.0.0.2:8080".parse().unwrap());
        assert_eq!(parsed.remote, "10.0.0.20:54321".parse().unwrap());
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
            of(std::process::id())
                .iter()
                .any(|connection| connection.remote.port() == port)
        };
        assert!(!has_it());
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(has_it());
        drop(stream);
        assert!(!has_it());
    }

    fn at(local: &str) -> Connection {
        Connection {
            local: local.parse().unwrap(),
            remote: "10.0.0.20:54321".parse().unwrap(),
            inode: 1,
        }
    }

    #[test]
    fn an_address_moves_with_its_network_only() {
        let local = at("10.0.0.2:80");
        assert!(moves(&container("10.0.0.2", true, None), &local));
        assert!(!moves(&container("10.0.0.2", false, None), &local));
        assert!(!moves(&container("10.0.0.3", true, None), &local));
        assert!(moves(&container("", false, None), &at("127.0.0.9:80")));
    }

    #[test]
    fn an_ipv6_address_moves_with_the_network_whose_subnet_holds_it() {
        let mut two = container("10.0.0.2", true, None);
        two.networks[0].subnets = vec!["10.0.0.0/24".into(), "fd00:0:0:1::/64".into()];
        assert!(moves(&two, &at("[fd00:0:0:1::2]:80")));
        assert!(!moves(&two, &at("[fd00:0:0:2::2]:80")), "another network's");
        assert!(moves(&two, &at("[fe80::1]:80")));
        assert!(moves(&two, &at("[::1]:80")));
        two.networks[0].address_moves = false;
        assert!(!moves(&two, &at("[fd00:0:0:1::2]:80")));
        assert!(!moves(&two, &at("[fe80::1]:80")));
    }

    #[test]
    fn what_connections_mean_depends_on_how_they_are_treated() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let _stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let judged = |treatment| judge(&container("", false, None), treatment, std::process::id());
        let warned = judged(Treatment::Close).unwrap();
        assert_eq!((warned.code, warned.is_problem()), (Code::TcpConnections, false));
        // Others of this process's tests may have connections on other addresses; a loopback's stop nothing.
        assert_eq!(judged(Treatment::Keep), None);
        assert_eq!(judged(Treatment::ByAddress), None);
    }

    #[test]
    fn the_annotation_says_what_becomes_of_connections_and_a_misspelt_one_is_told() {
        let tcp = |annotation| told(&container("", false, annotation)).map(|layer| layer.tcp);
        assert_eq!(tcp(None), Ok(None));
        assert_eq!(tcp(Some("close")), Ok(Some(Tcp::Close)));
        assert!(tcp(Some("closed")).is_err());
    }
}
