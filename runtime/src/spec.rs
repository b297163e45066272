//! The few fields of a container's `config.json` that Godwit acts upon.
//!
//! The file is the engine's and runC's: whether the rest of it is sound is runC's to say, in its own words. Whoever
//! changes the file does so on the JSON itself, so that nothing it holds is lost. Only what is read here is decoded, by
//! the specification's own types, because decoding all of it would make up a fifth of the shim's code, in memory for
//! every container.

use std::collections::HashMap;
use std::path::Path;

use oci_spec::runtime::{LinuxIdMapping, LinuxNamespace, LinuxNamespaceType, Root};
use serde::{Deserialize, Deserializer};

/// What Godwit reads of a container's configuration.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Spec {
    #[serde(default, deserialize_with = "null_is_default")]
    annotations: HashMap<String, String>,
    #[serde(default)]
    root: Option<Root>,
    #[serde(default, deserialize_with = "null_is_default")]
    linux: Linux,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Linux {
    #[serde(default, deserialize_with = "null_is_default")]
    namespaces: Vec<LinuxNamespace>,
    #[serde(default, deserialize_with = "null_is_default")]
    sysctl: HashMap<String, String>,
    #[serde(default, rename = "gidMappings", deserialize_with = "null_is_default")]
    gid_mappings: Vec<LinuxIdMapping>,
}

impl Spec {
    /// The annotations.
    pub fn annotations(&self) -> &HashMap<String, String> {
        &self.annotations
    }

    /// `root.path`, which may be relative to the bundle.
    pub fn root_path(&self) -> Option<&Path> {
        let path = self.root.as_ref()?.path().as_path();
        (!path.as_os_str().is_empty()).then_some(path)
    }

    /// Whether the container finds its root read-only.
    pub fn root_is_read_only(&self) -> bool {
        self.root.as_ref().and_then(Root::readonly).unwrap_or(false)
    }

    /// True if a namespace of this kind is made with the container and for it alone.
    pub fn has_own_namespace(&self, kind: LinuxNamespaceType) -> bool {
        let is_joined = |namespace: &LinuxNamespace| {
            namespace
                .path()
                .as_ref()
                .is_some_and(|path| !path.as_os_str().is_empty())
        };
        let mut namespaces = self.linux.namespaces.iter();
        namespaces.any(|namespace| namespace.typ() == kind && !is_joined(namespace))
    }

    /// The group of the host that root's group in the container is, if groups are mapped.
    pub fn host_group_of_root(&self) -> Option<u32> {
        let mut mappings = self.linux.gid_mappings.iter();
        let of_root = mappings.find(|mapping| mapping.container_id() == 0)?;
        Some(of_root.host_id())
    }

    /// The kernel settings.
    pub fn sysctls(&self) -> &HashMap<String, String> {
        &self.linux.sysctl
    }
}

/// Go writes `null` where a list or a table is empty.
fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_go_leaves_out_or_writes_as_null_is_empty() {
        for text in [
            r#"{"ociVersion":"1.0.2"}"#,
            r#"{"annotations":null,"root":null,"linux":null}"#,
            r#"{"root":{}}"#,
            r#"{"linux":{"namespaces":null,"sysctl":null}}"#,
        ] {
            let spec: Spec = serde_json::from_str(text).unwrap();
            assert!(
                spec.annotations().is_empty() && spec.sysctls().is_empty(),
                "{text}"
            );
            assert_eq!(spec.root_path(), None, "{text}");
            assert!(!spec.has_own_namespace(LinuxNamespaceType::Pid), "{text}");
        }
    }

    #[test]
    fn a_namespace_with_a_path_is_another_containers() {
        let text = r#"{"root":{"path":"rootfs","readonly":true},"linux":{"sysctl":{"net.ipv4.ip_forward":"1"},
            "namespaces":[{"type":"pid"},{"type":"ipc","path":""},{"type":"network","path":"/proc/1/ns/net"}]}}"#;
        let spec: Spec = serde_json::from_str(text).unwrap();
        use LinuxNamespaceType::{Ipc, Network, Pid, Uts};
        let own = [Pid, Ipc, Network, Uts].map(|kind| spec.has_own_namespace(kind));
        assert_eq!(own, [true, true, false, false]);
        assert_eq!(spec.root_path(), Some(Path::new("rootfs")));
        assert_eq!(spec.sysctls()["net.ipv4.ip_forward"], "1");
    }

    #[test]
    fn a_field_of_another_shape_is_an_error() {
        assert!(serde_json::from_str::<Spec>(r#"{"annotations":["a"]}"#).is_err());
        assert!(serde_json::from_str::<Spec>(r#"{"root":1}"#).is_err());
    }
}
