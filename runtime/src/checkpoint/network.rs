//! Whose business a container's network namespace is at a checkpoint.
//!
//! CRIU can dump a namespace that has only a loopback. A device that the engine put there (veth, macvlan …) has its
//! other end on the host, which CRIU cannot make anew; the engine can, and does so at each start.

use std::fs;
use std::io;

use oci_spec::runtime::LinuxNamespaceType;

use crate::image::NetworkOwner;
use crate::spec::Spec;

/// Devices the kernel makes in each new network namespace by itself.
const KERNEL_DEVICES: &[&str] = &[
    "lo", "tunl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "sit0", "ip6tnl0", "ip6gre0",
];

/// Who fills the network namespace of the running container with configuration `spec` and first process `pid`.
pub(super) fn owner(spec: &Spec, pid: i32) -> io::Result<NetworkOwner> {
    if !has_own_network(spec) {
        return Ok(NetworkOwner::Criu);
    }
    let devices = fs::read_to_string(format!("/proc/{pid}/net/dev"))?;
    Ok(if engine_devices(&devices).next().is_some() {
        NetworkOwner::Engine
    } else {
        NetworkOwner::Criu
    })
}

/// Whether the container has a network namespace that is made with it.
fn has_own_network(spec: &Spec) -> bool {
    spec.has_own_namespace(LinuxNamespaceType::Network)
}

/// The devices in the text of `/proc/PID/net/dev` that somebody put there; two lines of heading come first.
fn engine_devices(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .skip(2)
        .filter_map(|line| line.split_once(':'))
        .map(|(name, _)| name.trim())
        .filter(|name| !KERNEL_DEVICES.contains(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_own_devices_are_nobodys() {
        let text = "Inter-|   Receive\n face |bytes\n    lo: 0 0\n tunl0: 0 0\n  eth0: 1 2\n";
        assert_eq!(engine_devices(text).collect::<Vec<_>>(), ["eth0"]);
    }
}
