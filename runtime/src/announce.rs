//! Tells a container's networks where its addresses are now: by an ARP announcement (RFC 5227) for each of IPv4, by an
//! unsolicited neighbour advertisement (RFC 4861) for each of IPv6.
//!
//! Without it switches go on sending to the port where they saw the address last, and neighbours to its old hardware
//! address, until the container itself says something. The frames are sent whole, past the rules of nft: CRIU's may still
//! hold. Nothing is received, and an answer is not waited for.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;

use nix::ifaddrs::{InterfaceAddress, getifaddrs};
use nix::net::if_::InterfaceFlags;
use nix::sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, sendto, socket};

/// A hardware address of Ethernet.
type Mac = [u8; 6];

/// The kind of devices that have such (`ARPHRD_ETHER`).
const ETHERNET: u16 = 1;

const TYPE_ARP: [u8; 2] = [0x08, 0x06];
const TYPE_IPV6: [u8; 2] = [0x86, 0xdd];

/// All nodes of a link, and the hardware address that they listen to (RFC 2464).
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: Mac = [0x33, 0x33, 0, 0, 0, 1];

const ICMPV6: u8 = 58;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
/// Of an advertisement: it replaces what a neighbour knows.
const OVERRIDE: u8 = 0x20;
/// The option that holds the hardware address, of one unit of eight bytes.
const TARGET_LINK_LAYER: [u8; 2] = [2, 1];
/// Bytes of an advertisement with this option.
const ADVERTISEMENT_BYTES: u8 = 32;

/// Announces every address of the calling thread's network namespace.
pub(crate) fn all_addresses() -> io::Result<()> {
    let found: Vec<InterfaceAddress> = getifaddrs()?.filter(is_announced).collect();
    // A raw socket with protocol 0 receives nothing.
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
    for (device, link, mac) in found.iter().filter_map(ethernet) {
        for frame in found.iter().filter_map(|one| frame_for(one, device, mac)) {
            sendto(socket.as_raw_fd(), &frame, link, MsgFlags::empty())?;
        }
    }
    Ok(())
}

/// Whether anybody asks for addresses on the device.
fn is_announced(found: &InterfaceAddress) -> bool {
    let without = InterfaceFlags::IFF_LOOPBACK | InterfaceFlags::IFF_NOARP;
    found.flags.contains(InterfaceFlags::IFF_UP) && !found.flags.intersects(without)
}

/// A device of Ethernet out of its entry: its name, how to send to it, its hardware address.
fn ethernet(found: &InterfaceAddress) -> Option<(&str, &LinkAddr, Mac)> {
    let link = found.address.as_ref()?.as_link_addr()?;
    let mac = link.addr().filter(|_| link.hatype() == ETHERNET)?;
    Some((&found.interface_name, link, mac))
}

/// The frame that announces an address, if it is one of the device's.
fn frame_for(found: &InterfaceAddress, device: &str, mac: Mac) -> Option<Vec<u8>> {
    if found.interface_name != device {
        return None;
    }
    let address = found.address.as_ref()?;
    if let Some(v4) = address.as_sockaddr_in() {
        return Some(arp(mac, v4.ip()));
    }
    address.as_sockaddr_in6().map(|v6| advertisement(mac, v6.ip()))
}

/// An ARP request by an address for itself, which is how one is announced.
fn arp(mac: Mac, address: Ipv4Addr) -> Vec<u8> {
    let mut frame = Vec::with_capacity(42);
    frame.extend([0xff; 6]);
    frame.extend(mac);
    frame.extend(TYPE_ARP);
    // Ethernet, IPv4, the lengths of their addresses, request.
    frame.extend([0, 1, 0x08, 0, 6, 4, 0, 1]);
    frame.extend(mac);
    frame.extend(address.octets());
    frame.extend([0; 6]);
    frame.extend(address.octets());
    frame
}

/// An advertisement of an address to all nodes.
fn advertisement(mac: Mac, address: Ipv6Addr) -> Vec<u8> {
    let mut body = vec![NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, OVERRIDE, 0, 0, 0];
    body.extend(address.octets());
    body.extend(TARGET_LINK_LAYER);
    body.extend(mac);
    let sum = checksum(address, &body);
    body[2..4].copy_from_slice(&sum.to_be_bytes());

    let mut frame = Vec::with_capacity(14 + 40 + body.len());
    frame.extend(ALL_NODES_MAC);
    frame.extend(mac);
    frame.extend(TYPE_IPV6);
    // Version 6, no class, no flow; the hop limit of 255 proves that no router was between.
    frame.extend([0x60, 0, 0, 0, 0, ADVERTISEMENT_BYTES, ICMPV6, 255]);
    frame.extend(address.octets());
    frame.extend(ALL_NODES.octets());
    frame.extend(body);
    frame
}

/// The checksum of a message to all nodes (RFC 4443, 2.3).
fn checksum(source: Ipv6Addr, body: &[u8]) -> u16 {
    let mut bytes = Vec::with_capacity(40 + body.len());
    bytes.extend(source.octets());
    bytes.extend(ALL_NODES.octets());
    bytes.extend([0, 0, 0, ADVERTISEMENT_BYTES, 0, 0, 0, ICMPV6]);
    bytes.extend(body);
    let words = bytes
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // What is left has sixteen bits.
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = [0x02, 0x42, 0x0a, 0x4d, 0, 0x46];

    #[test]
    fn an_ipv4_address_asks_for_itself() {
        let frame = arp(MAC, Ipv4Addr::new(10, 77, 0, 70));
        assert_eq!(frame.len(), 42);
        assert_eq!(frame[..6], [0xff; 6]);
        assert_eq!(frame[12..14], [0x08, 0x06]);
        assert_eq!(frame[20..22], [0, 1], "a request");
        assert_eq!(frame[22..28], MAC);
        assert_eq!(frame[28..32], frame[38..42], "for itself");
        assert_eq!(frame[28..32], [10, 77, 0, 70]);
    }

    #[test]
    fn an_ipv6_address_is_advertised_to_all_with_a_checksum_that_sums_up() {
        let address: Ipv6Addr = "fd00:77::70".parse().unwrap();
        let frame = advertisement(MAC, address);
        assert_eq!(frame.len(), 14 + 40 + 32);
        assert_eq!(frame[..6], ALL_NODES_MAC);
        assert_eq!(frame[22..38], address.octets());
        assert_eq!(frame[54], 136);
        assert_eq!(frame[58], 0x20, "it overrides");
        assert_eq!(frame[62..78], address.octets());
        assert_eq!(frame[80..86], MAC);
        // A receiver sums over the checksum as well and finds nothing left.
        assert_eq!(checksum(address, &frame[54..]), 0);
        // Computed by hand, so that an error that cancels itself out shows.
        assert_eq!(frame[56..58], [0x4d, 0xfb]);
    }

    #[test]
    fn only_ethernet_that_is_up_is_announced() {
        let thread = std::thread::spawn(|| {
            if let Err(error) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
                eprintln!("skipped: no network namespace can be made here: {error}");
                return;
            }
            crate::sys::loopback_up().unwrap();
            let found: Vec<_> = getifaddrs().unwrap().collect();
            assert!(!found.is_empty());
            assert!(!found.iter().any(is_announced), "{found:?}");
            all_addresses().unwrap();
        });
        thread.join().unwrap();
    }
}
