//! Whose business a container's network namespace is at a checkpoint.
//!
//! CRIU can dump a namespace that has only a loopback. A device that the engine put there (veth, macvlan …) has its
//! other end on the host, which CRIU cannot make anew; the engine can, and does so at each start.

use std::fs;
use std::io;

use oci_spec::runtime::LinuxNamespaceType;

use crate::image::NetworkOwner;
use crate::options::EmptyNamespaces;
use crate::spec::Spec;

/// Devices the kernel makes in each new network namespace by itself.
const KERNEL_DEVICES: &[&str] = &[
    "lo", "tunl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "sit0", "ip6tnl0", "ip6gre0",
];

/// Who fills the network namespace of the running container with configuration `spec` and first process `pid`.
pub(super) fn owner(spec: &Spec, pid: i32, choice: EmptyNamespaces) -> io::Result<NetworkOwner> {
    // Never a namespace that others share: the gate closes the one it is given, which might be the host's.
    if !has_own_network(spec) || choice == EmptyNamespaces::None {
        return Ok(NetworkOwner::Criu);
    }
    if choice == EmptyNamespaces::Network {
        return Ok(NetworkOwner::Engine);
    }
    let devices = fs::read_to_string(format!("/proc/{pid}/net/dev"))?;
    Ok(if engine_devices(&devices).next().is_some() {
        NetworkOwner::Engine
    } else {
        NetworkOwner::Criu
    })
}

/// Whether the container has a network namespace that is made with it.
pub(super) fn has_own_network(spec: &Spec) -> bool {
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
    fn a_shared_network_is_nobodys_to_empty() {
        let with = |namespaces: &str| -> Spec {
            serde_json::from_str(&format!(
                r#"{{"ociVersion":"1.2.0","linux":{{"namespaces":{namespaces}}}}}"#
            ))
            .unwrap()
        };
        let pid = std::process::id().cast_signed();
        for shared in ["[]", r#"[{"type":"network","path":"/run/netns/pod"}]"#] {
            let owner = owner(&with(shared), pid, EmptyNamespaces::Network).unwrap();
            assert_eq!(owner, NetworkOwner::Criu);
        }
        let own = with(r#"[{"type":"network"}]"#);
        let chosen = |choice| owner(&own, pid, choice).unwrap();
        assert_eq!(chosen(EmptyNamespaces::Network), NetworkOwner::Engine);
        assert_eq!(chosen(EmptyNamespaces::None), NetworkOwner::Criu);
    }

    #[test]
    fn the_kernels_own_devices_are_nobodys() {
        let text = "Inter-|   Receive\n face |bytes\n    lo: 0 0\n tunl0: 0 0\n  eth0: 1 2\n";
        assert_eq!(engine_devices(text).collect::<Vec<_>>(), ["eth0"]);
    }
}
