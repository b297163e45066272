//! A container's metrics in containerd's messages, version 1 or 2 as the host's cgroups are.
//!
//! They are what the stock shim reports, field by field: where it reports an empty part for what a kernel does not count,
//! so does this. Nothing is guessed.

mod v1;
mod v2;

use std::collections::HashMap;
use std::fs;

use containerd_shim::protos::protobuf::well_known_types::any::Any;
use containerd_shim::protos::protobuf::{self, Message, MessageField};
use godwit_runtime::cgroup::Cgroup;

use crate::publisher::any;

/// The packages of the two `Metrics`.
pub(crate) const V1_PACKAGE: &str = "io.containerd.cgroups.v1";
pub(crate) const V2_PACKAGE: &str = "io.containerd.cgroups.v2";

/// Reads the metrics of a cgroup, packed as the answer to Stats carries them.
pub(crate) fn read(cgroup: &Cgroup) -> protobuf::Result<Any> {
    match cgroup.unified().filter(|_| cgroup.is_unified()) {
        Some(files) => pack(V2_PACKAGE, &v2::read(files)),
        None => pack(V1_PACKAGE, &v1::read(cgroup)),
    }
}

fn pack<M: Message>(package: &str, message: &M) -> protobuf::Result<Any> {
    Ok(any::<M>(package, message.write_to_bytes()?))
}

fn field<M>(message: Option<M>) -> MessageField<M> {
    MessageField::from_option(message)
}

fn get(table: &HashMap<String, u64>, key: &str) -> u64 {
    table.get(key).copied().unwrap_or_default()
}

/// The sizes of huge pages that this kernel has, as the names of cgroup files spell them.
fn huge_page_sizes() -> Vec<String> {
    let entries = fs::read_dir("/sys/kernel/mm/hugepages")
        .into_iter()
        .flatten()
        .flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter_map(|name| huge_page_size(&name)).collect()
}

fn huge_page_size(directory: &str) -> Option<String> {
    let n_kib: u64 = directory
        .strip_prefix("hugepages-")?
        .strip_suffix("kB")?
        .parse()
        .ok()?;
    Some(match n_kib {
        0..1024 => format!("{n_kib}KB"),
        1024..1_048_576 => format!("{}MB", n_kib >> 10),
        _ => format!("{}GB", n_kib >> 20),
    })
}

/// The lines `DEVICE KEY=VALUE KEY=VALUE` of RDMA's files.
fn rdma_entries(text: &str) -> Vec<(String, u32, u32)> {
    let entry = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [device, counters @ ..] = words.as_slice() else {
            return None;
        };
        let value = |key: &str| {
            let mut values = counters.iter().filter_map(|word| word.split_once('='));
            let (_, value) = values.find(|(name, _)| *name == key)?;
            if value == "max" {
                Some(u32::MAX)
            } else {
                value.parse().ok()
            }
        };
        let counted = |key| value(key).unwrap_or_default();
        (counters.len() == 2).then(|| ((*device).to_owned(), counted("hca_handle"), counted("hca_object")))
    };
    text.lines().filter_map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn huge_pages_are_named_as_in_cgroup_files() {
        let names = [
            "hugepages-64kB",
            "hugepages-2048kB",
            "hugepages-1048576kB",
            "else",
        ];
        let sizes: Vec<_> = names.iter().map(|name| huge_page_size(name)).collect();
        assert_eq!(
            sizes,
            [Some("64KB".into()), Some("2MB".into()), Some("1GB".into()), None]
        );
    }

    #[test]
    fn rdma_is_read_per_device() {
        let entries =
            rdma_entries("mlx4_0 hca_handle=2 hca_object=2000\nocrdma1 hca_handle=3 hca_object=max\n\n");
        assert_eq!(
            entries,
            [("mlx4_0".into(), 2, 2000), ("ocrdma1".into(), 3, u32::MAX)]
        );
    }
}
