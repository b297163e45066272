//! The metrics of cgroups of version 2.

use std::collections::HashMap;

use containerd_shim::protos::cgroups_v2::metrics as v2;
use godwit_runtime::cgroup::Files;

use super::{field, get, huge_page_sizes, rdma_entries};

pub(super) fn read(files: Files<'_>) -> v2::Metrics {
    let pids = v2::PidsStat {
        current: files.number("pids.current").unwrap_or_default(),
        limit: files.number("pids.max").unwrap_or_default(),
        ..Default::default()
    };
    let events = files.table("memory.events").filter(|table| !table.is_empty());
    let events = events.map(|table| v2::MemoryEvents {
        low: get(&table, "low"),
        high: get(&table, "high"),
        max: get(&table, "max"),
        oom: get(&table, "oom"),
        oom_kill: get(&table, "oom_kill"),
        oom_group_kill: get(&table, "oom_group_kill"),
        ..Default::default()
    });
    let io = v2::IOStat {
        usage: io_entries(&files.text("io.stat").unwrap_or_default()),
        psi: field(pressure(files, "io.pressure")),
        ..Default::default()
    };
    v2::Metrics {
        pids: Some(pids).into(),
        cpu: Some(cpu(files)).into(),
        memory: Some(memory(files)).into(),
        memory_events: field(events),
        io: Some(io).into(),
        rdma: Some(rdma(files)).into(),
        hugetlb: huge_page_sizes()
            .into_iter()
            .map(|size| huge_pages(files, size))
            .collect(),
        ..Default::default()
    }
}

fn cpu(files: Files<'_>) -> v2::CPUStat {
    let Some(table) = files.table("cpu.stat") else {
        return v2::CPUStat::default();
    };
    v2::CPUStat {
        usage_usec: get(&table, "usage_usec"),
        user_usec: get(&table, "user_usec"),
        system_usec: get(&table, "system_usec"),
        nr_periods: get(&table, "nr_periods"),
        nr_throttled: get(&table, "nr_throttled"),
        throttled_usec: get(&table, "throttled_usec"),
        nr_bursts: get(&table, "nr_bursts"),
        burst_usec: get(&table, "burst_usec"),
        psi: field(pressure(files, "cpu.pressure")),
        ..Default::default()
    }
}

fn memory(files: Files<'_>) -> v2::MemoryStat {
    let table = files.table("memory.stat").unwrap_or_default();
    let get = |key: &str| get(&table, key);
    let number = |name: &str| files.number(name).unwrap_or_default();
    let mut stat = v2::MemoryStat {
        anon: get("anon"),
        file: get("file"),
        kernel_stack: get("kernel_stack"),
        slab: get("slab"),
        sock: get("sock"),
        shmem: get("shmem"),
        file_mapped: get("file_mapped"),
        file_dirty: get("file_dirty"),
        file_writeback: get("file_writeback"),
        anon_thp: get("anon_thp"),
        inactive_anon: get("inactive_anon"),
        active_anon: get("active_anon"),
        inactive_file: get("inactive_file"),
        active_file: get("active_file"),
        unevictable: get("unevictable"),
        slab_reclaimable: get("slab_reclaimable"),
        slab_unreclaimable: get("slab_unreclaimable"),
        pgfault: get("pgfault"),
        pgmajfault: get("pgmajfault"),
        workingset_refault: get("workingset_refault"),
        workingset_activate: get("workingset_activate"),
        workingset_nodereclaim: get("workingset_nodereclaim"),
        pgrefill: get("pgrefill"),
        pgscan: get("pgscan"),
        pgsteal: get("pgsteal"),
        pgactivate: get("pgactivate"),
        pgdeactivate: get("pgdeactivate"),
        pglazyfree: get("pglazyfree"),
        pglazyfreed: get("pglazyfreed"),
        thp_fault_alloc: get("thp_fault_alloc"),
        thp_collapse_alloc: get("thp_collapse_alloc"),
        usage: number("memory.current"),
        usage_limit: number("memory.max"),
        max_usage: number("memory.peak"),
        swap_usage: number("memory.swap.current"),
        swap_limit: number("memory.swap.max"),
        swap_max_usage: number("memory.swap.peak"),
        psi: field(pressure(files, "memory.pressure")),
        ..Default::default()
    };
    // Newer than the description of the message that we are built with: kernels from 5.9 count these in place of the sums.
    let unknown = stat.special_fields.mut_unknown_fields();
    for (number, key) in [
        (39, "workingset_refault_anon"),
        (40, "workingset_refault_file"),
        (41, "workingset_activate_anon"),
        (42, "workingset_activate_file"),
    ] {
        if get(key) != 0 {
            unknown.add_varint(number, get(key));
        }
    }
    stat
}

/// Lines `MAJOR:MINOR rbytes=N wbytes=N rios=N wios=N …`.
fn io_entries(text: &str) -> Vec<v2::IOEntry> {
    let entry = |line: &str| {
        let mut words = line.split_whitespace();
        let (major, minor) = words.next()?.split_once(':')?;
        let pairs = words.filter_map(|word| word.split_once('='));
        let counters: HashMap<&str, u64> = pairs
            .filter_map(|(key, value)| Some((key, value.parse().ok()?)))
            .collect();
        let get = |key| counters.get(key).copied().unwrap_or_default();
        Some(v2::IOEntry {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            rbytes: get("rbytes"),
            wbytes: get("wbytes"),
            rios: get("rios"),
            wios: get("wios"),
            ..Default::default()
        })
    };
    text.lines().filter_map(entry).collect()
}

fn huge_pages(files: Files<'_>, pagesize: String) -> v2::HugeTlbStat {
    let number = |counter: &str| {
        let number = files.number(&format!("hugetlb.{pagesize}.{counter}"));
        number.unwrap_or_default()
    };
    let events = files.table(&format!("hugetlb.{pagesize}.events"));
    v2::HugeTlbStat {
        current: number("current"),
        max: number("max"),
        failcnt: get(&events.unwrap_or_default(), "max"),
        pagesize,
        ..Default::default()
    }
}

fn rdma(files: Files<'_>) -> v2::RdmaStat {
    let entries = |name: &str| {
        let entries = rdma_entries(&files.text(name).unwrap_or_default());
        let entry = |(device, hca_handles, hca_objects)| v2::RdmaEntry {
            device,
            hca_handles,
            hca_objects,
            ..Default::default()
        };
        entries.into_iter().map(entry).collect()
    };
    v2::RdmaStat {
        current: entries("rdma.current"),
        limit: entries("rdma.max"),
        ..Default::default()
    }
}

/// Lines `some avg10=N avg60=N avg300=N total=N` and `full …`; absent where the kernel keeps no pressure.
fn pressure(files: Files<'_>, name: &str) -> Option<v2::PSIStats> {
    let text = files.text(name)?;
    let line = |kind: &str| {
        let words = text.lines().find_map(|line| line.strip_prefix(kind))?;
        let pairs: HashMap<&str, &str> = words
            .split_whitespace()
            .filter_map(|word| word.split_once('='))
            .collect();
        let average = |key| {
            pairs
                .get(key)
                .and_then(|value| value.parse().ok())
                .unwrap_or_default()
        };
        Some(v2::PSIData {
            avg10: average("avg10"),
            avg60: average("avg60"),
            avg300: average("avg300"),
            total: pairs
                .get("total")
                .and_then(|value| value.parse().ok())
                .unwrap_or_default(),
            ..Default::default()
        })
    };
    Some(v2::PSIStats {
        some: field(line("some ")),
        full: field(line("full ")),
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn io_is_read_per_device() {
        let entries = io_entries("254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n");
        assert_eq!((entries[0].rbytes, entries[0].wios), (1, 4));
    }

    /// The machines at hand have no memory controller of version 2: this is what one would show.
    #[test]
    fn a_directory_with_memory_controller_is_read_as_the_stock_shim_does() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
        write("pids.current", "3\n");
        write("pids.max", "max\n");
        write(
            "memory.stat",
            "anon 4096\nfile 8192\nworkingset_refault_anon 5\nworkingset_refault_file 6\n",
        );
        write("memory.current", "12288\n");
        write("memory.max", "max\n");
        write("memory.swap.max", "1024\n");
        write(
            "memory.events",
            "low 1\nhigh 2\nmax 3\noom 4\noom_kill 5\noom_group_kill 6\n",
        );
        write(
            "memory.pressure",
            "some avg10=1.50 avg60=0.00 avg300=0.00 total=17\nfull avg10=0.00 avg60=0.00 avg300=0.25 total=9\n",
        );
        let metrics = read(Files::at(directory.path()));
        assert_eq!((metrics.pids.current, metrics.pids.limit), (3, u64::MAX));
        let memory = &metrics.memory;
        assert_eq!(
            (memory.anon, memory.file, memory.workingset_refault),
            (4096, 8192, 0)
        );
        assert_eq!(
            (memory.usage, memory.usage_limit, memory.swap_limit),
            (12288, u64::MAX, 1024)
        );
        assert_eq!((memory.psi.some.avg10, memory.psi.full.total), (1.5, 9));
        let refaulted = memory.special_fields.unknown_fields().get(40);
        assert!(
            matches!(refaulted, Some(protobuf::UnknownValueRef::Varint(6))),
            "{refaulted:?}"
        );
        let events = &metrics.memory_events;
        assert_eq!(
            (events.low, events.oom, events.oom_kill, events.oom_group_kill),
            (1, 4, 5, 6)
        );
        assert!(metrics.io.is_some() && metrics.rdma.is_some() && metrics.cpu.is_some());
    }
}
