//! A container's metrics in containerd's messages, version 1 or 2 as the host's cgroups are.
//!
//! What a kernel does not count is left out of the message; nothing is guessed.

use std::collections::HashMap;

use containerd_shim::protos::cgroups::metrics as v1;
use containerd_shim::protos::cgroups_v2::metrics as v2;
use containerd_shim::protos::protobuf::well_known_types::any::Any;
use containerd_shim::protos::protobuf::{self, Message, MessageField};
use godwit_runtime::cgroup::{Cgroup, Files};

use crate::publisher::any;

/// The packages of the two `Metrics`.
pub(crate) const V1_PACKAGE: &str = "io.containerd.cgroups.v1";
pub(crate) const V2_PACKAGE: &str = "io.containerd.cgroups.v2";

/// v1 counts CPU time of user and system in ticks of 1/100 s; the kernel's USER_HZ is fixed on all our architectures.
const NANOS_PER_TICK: u64 = 10_000_000;

/// Reads the metrics of a cgroup, packed as the answer to Stats carries them.
pub(crate) fn read(cgroup: &Cgroup) -> protobuf::Result<Any> {
    match cgroup.unified().filter(|_| cgroup.is_unified()) {
        Some(files) => pack(V2_PACKAGE, &read_v2(files)),
        None => pack(V1_PACKAGE, &read_v1(cgroup)),
    }
}

fn pack<M: Message>(package: &str, message: &M) -> protobuf::Result<Any> {
    Ok(any::<M>(package, message.write_to_bytes()?))
}

fn field<M>(message: Option<M>) -> MessageField<M> {
    MessageField::from_option(message)
}

fn read_v1(cgroup: &Cgroup) -> v1::Metrics {
    let memory = cgroup.controller("memory");
    let oom = memory.and_then(|files| files.table("memory.oom_control"));
    v1::Metrics {
        pids: field(cgroup.controller("pids").and_then(pids_v1)),
        cpu: field(cpu_v1(cgroup)),
        memory: field(memory.and_then(memory_v1)),
        memory_oom_control: field(oom.map(|table| v1::MemoryOomControl {
            oom_kill_disable: get(&table, "oom_kill_disable"),
            under_oom: get(&table, "under_oom"),
            oom_kill: get(&table, "oom_kill"),
            ..Default::default()
        })),
        blkio: field(cgroup.controller("blkio").map(blkio_v1)),
        hugetlb: cgroup.controller("hugetlb").map(hugetlb_v1).unwrap_or_default(),
        ..Default::default()
    }
}

fn pids_v1(files: Files<'_>) -> Option<v1::PidsStat> {
    Some(v1::PidsStat {
        current: files.number("pids.current")?,
        limit: limit_or_none(files.number("pids.max")),
        ..Default::default()
    })
}

fn cpu_v1(cgroup: &Cgroup) -> Option<v1::CPUStat> {
    let usage = cgroup.controller("cpuacct").and_then(|files| {
        let ticks = files.table("cpuacct.stat").unwrap_or_default();
        let per_cpu = files.text("cpuacct.usage_percpu").unwrap_or_default();
        Some(v1::CPUUsage {
            total: files.number("cpuacct.usage")?,
            kernel: get(&ticks, "system") * NANOS_PER_TICK,
            user: get(&ticks, "user") * NANOS_PER_TICK,
            per_cpu: per_cpu
                .split_whitespace()
                .filter_map(|value| value.parse().ok())
                .collect(),
            ..Default::default()
        })
    });
    let throttling = cgroup.controller("cpu").and_then(|files| {
        let table = files.table("cpu.stat")?;
        Some(v1::Throttle {
            periods: get(&table, "nr_periods"),
            throttled_periods: get(&table, "nr_throttled"),
            throttled_time: get(&table, "throttled_time"),
            ..Default::default()
        })
    });
    (usage.is_some() || throttling.is_some()).then(|| v1::CPUStat {
        usage: field(usage),
        throttling: field(throttling),
        ..Default::default()
    })
}

fn memory_v1(files: Files<'_>) -> Option<v1::MemoryStat> {
    let stat = files.table("memory.stat")?;
    let get = |key: &str| get(&stat, key);
    let entry = |module: &str| {
        let name = |counter: &str| files.number(&format!("memory.{module}{counter}"));
        Some(v1::MemoryEntry {
            usage: name("usage_in_bytes")?,
            max: name("max_usage_in_bytes").unwrap_or_default(),
            limit: name("limit_in_bytes").unwrap_or_default(),
            failcnt: name("failcnt").unwrap_or_default(),
            ..Default::default()
        })
    };
    Some(v1::MemoryStat {
        cache: get("cache"),
        rss: get("rss"),
        rss_huge: get("rss_huge"),
        mapped_file: get("mapped_file"),
        dirty: get("dirty"),
        writeback: get("writeback"),
        pg_pg_in: get("pgpgin"),
        pg_pg_out: get("pgpgout"),
        pg_fault: get("pgfault"),
        pg_maj_fault: get("pgmajfault"),
        inactive_anon: get("inactive_anon"),
        active_anon: get("active_anon"),
        inactive_file: get("inactive_file"),
        active_file: get("active_file"),
        unevictable: get("unevictable"),
        hierarchical_memory_limit: get("hierarchical_memory_limit"),
        hierarchical_swap_limit: get("hierarchical_memsw_limit"),
        total_cache: get("total_cache"),
        total_rss: get("total_rss"),
        total_rss_huge: get("total_rss_huge"),
        total_mapped_file: get("total_mapped_file"),
        total_dirty: get("total_dirty"),
        total_writeback: get("total_writeback"),
        total_pg_pg_in: get("total_pgpgin"),
        total_pg_pg_out: get("total_pgpgout"),
        total_pg_fault: get("total_pgfault"),
        total_pg_maj_fault: get("total_pgmajfault"),
        total_inactive_anon: get("total_inactive_anon"),
        total_active_anon: get("total_active_anon"),
        total_inactive_file: get("total_inactive_file"),
        total_active_file: get("total_active_file"),
        total_unevictable: get("total_unevictable"),
        usage: field(entry("")),
        swap: field(entry("memsw.")),
        kernel: field(entry("kmem.")),
        kernel_tcp: field(entry("kmem.tcp.")),
        ..Default::default()
    })
}

fn blkio_v1(files: Files<'_>) -> v1::BlkIOStat {
    // The kernel's own counters, or the throttling layer's where the scheduler keeps none.
    let entries = |own: &str, throttle: &str| {
        let found = blkio_entries(&files.text(own).unwrap_or_default());
        if found.is_empty() {
            blkio_entries(&files.text(throttle).unwrap_or_default())
        } else {
            found
        }
    };
    v1::BlkIOStat {
        io_service_bytes_recursive: entries(
            "blkio.bfq.io_service_bytes_recursive",
            "blkio.throttle.io_service_bytes_recursive",
        ),
        io_serviced_recursive: entries(
            "blkio.bfq.io_serviced_recursive",
            "blkio.throttle.io_serviced_recursive",
        ),
        ..Default::default()
    }
}

/// Lines `MAJOR:MINOR OPERATION VALUE`; the last one, a total without a device, is left out.
fn blkio_entries(text: &str) -> Vec<v1::BlkIOEntry> {
    let entry = |line: &str| {
        let mut words = line.split_whitespace();
        let (major, minor) = words.next()?.split_once(':')?;
        Some(v1::BlkIOEntry {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            op: words.next()?.to_owned(),
            value: words.next()?.parse().ok()?,
            ..Default::default()
        })
    };
    text.lines().filter_map(entry).collect()
}

fn hugetlb_v1(files: Files<'_>) -> Vec<v1::HugetlbStat> {
    let stat = |pagesize: String| {
        let number = |counter: &str| files.number(&format!("hugetlb.{pagesize}.{counter}"));
        Some(v1::HugetlbStat {
            usage: number("usage_in_bytes")?,
            max: number("max_usage_in_bytes").unwrap_or_default(),
            failcnt: number("failcnt").unwrap_or_default(),
            pagesize,
            ..Default::default()
        })
    };
    let sizes = files.names_between("hugetlb.", ".usage_in_bytes");
    // Reservations are counted in files of their own beside these.
    sizes
        .into_iter()
        .filter(|size| !size.contains('.'))
        .filter_map(stat)
        .collect()
}

fn read_v2(files: Files<'_>) -> v2::Metrics {
    let pids = files.number("pids.current").map(|current| v2::PidsStat {
        current,
        limit: limit_or_none(files.number("pids.max")),
        ..Default::default()
    });
    let events = files.table("memory.events").map(|table| v2::MemoryEvents {
        low: get(&table, "low"),
        high: get(&table, "high"),
        max: get(&table, "max"),
        oom: get(&table, "oom"),
        oom_kill: get(&table, "oom_kill"),
        oom_group_kill: get(&table, "oom_group_kill"),
        ..Default::default()
    });
    let io = files.text("io.stat").map(|text| v2::IOStat {
        usage: io_entries(&text),
        psi: field(pressure(files, "io.pressure")),
        ..Default::default()
    });
    v2::Metrics {
        pids: field(pids),
        cpu: field(cpu_v2(files)),
        memory: field(memory_v2(files)),
        memory_events: field(events),
        io: field(io),
        hugetlb: hugetlb_v2(files),
        ..Default::default()
    }
}

fn cpu_v2(files: Files<'_>) -> Option<v2::CPUStat> {
    let table = files.table("cpu.stat")?;
    Some(v2::CPUStat {
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
    })
}

fn memory_v2(files: Files<'_>) -> Option<v2::MemoryStat> {
    let table = files.table("memory.stat")?;
    let get = |key: &str| get(&table, key);
    let number = |name: &str| files.number(name).unwrap_or_default();
    Some(v2::MemoryStat {
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
        workingset_refault: get("workingset_refault_anon") + get("workingset_refault_file"),
        workingset_activate: get("workingset_activate_anon") + get("workingset_activate_file"),
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
    })
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

fn hugetlb_v2(files: Files<'_>) -> Vec<v2::HugeTlbStat> {
    let stat = |pagesize: String| {
        let events = files
            .table(&format!("hugetlb.{pagesize}.events"))
            .unwrap_or_default();
        Some(v2::HugeTlbStat {
            current: files.number(&format!("hugetlb.{pagesize}.current"))?,
            max: files
                .number(&format!("hugetlb.{pagesize}.max"))
                .unwrap_or_default(),
            failcnt: get(&events, "max"),
            pagesize,
            ..Default::default()
        })
    };
    let sizes = files.names_between("hugetlb.", ".current");
    sizes
        .into_iter()
        .filter(|size| !size.contains('.'))
        .filter_map(stat)
        .collect()
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

/// The stock shim gives 0 for "no limit" on processes, and so Docker expects it.
fn limit_or_none(limit: Option<u64>) -> u64 {
    limit.filter(|limit| *limit != u64::MAX).unwrap_or_default()
}

fn get(table: &HashMap<String, u64>, key: &str) -> u64 {
    table.get(key).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_io_is_read_per_device_and_operation() {
        let entries = blkio_entries("254:0 Read 4096\n254:0 Write 8192\nTotal 12288\n");
        assert_eq!(entries.len(), 2);
        assert_eq!(
            (entries[1].major, entries[1].op.as_str(), entries[1].value),
            (254, "Write", 8192)
        );
        let entries = io_entries("254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n");
        assert_eq!((entries[0].rbytes, entries[0].wios), (1, 4));
    }
}
