//! The metrics of cgroups of version 1.

use std::collections::HashMap;
use std::fs;

use containerd_shim::protos::cgroups::metrics as v1;
use godwit_runtime::cgroup::{Cgroup, Files};

use super::{field, get, huge_page_sizes, rdma_entries};

/// CPU time of user and system is counted in ticks of 1/100 s; the kernel's USER_HZ is fixed on all our architectures.
const NANOS_PER_TICK: u64 = 10_000_000;

pub(super) fn read(cgroup: &Cgroup) -> v1::Metrics {
    let memory_files = cgroup.controller("memory");
    let oom = memory_files.and_then(|files| files.table("memory.oom_control"));
    v1::Metrics {
        pids: field(cgroup.controller("pids").and_then(pids)),
        cpu: Some(cpu(cgroup)).into(),
        memory: field(memory_files.and_then(memory)),
        memory_oom_control: field(oom.map(|table| v1::MemoryOomControl {
            oom_kill_disable: get(&table, "oom_kill_disable"),
            under_oom: get(&table, "under_oom"),
            oom_kill: get(&table, "oom_kill"),
            ..Default::default()
        })),
        blkio: field(
            cgroup
                .controller("blkio")
                .map(|files| block_io(files, &devices())),
        ),
        hugetlb: cgroup.controller("hugetlb").map(huge_pages).unwrap_or_default(),
        rdma: field(cgroup.controller("rdma").map(rdma)),
        ..Default::default()
    }
}

fn pids(files: Files<'_>) -> Option<v1::PidsStat> {
    // "No limit" is 0 here, and the largest number in version 2.
    let limit = files.number("pids.max").filter(|limit| *limit != u64::MAX);
    Some(v1::PidsStat {
        current: files.number("pids.current")?,
        limit: limit.unwrap_or_default(),
        ..Default::default()
    })
}

fn cpu(cgroup: &Cgroup) -> v1::CPUStat {
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
    v1::CPUStat {
        usage: Some(usage.unwrap_or_default()).into(),
        throttling: Some(throttling.unwrap_or_default()).into(),
        ..Default::default()
    }
}

fn memory(files: Files<'_>) -> Option<v1::MemoryStat> {
    let stat = files.table("memory.stat")?;
    let get = |key: &str| get(&stat, key);
    let entry = |module: &str| {
        let number = |counter: &str| {
            files
                .number(&format!("memory.{module}{counter}"))
                .unwrap_or_default()
        };
        Some(v1::MemoryEntry {
            usage: number("usage_in_bytes"),
            max: number("max_usage_in_bytes"),
            limit: number("limit_in_bytes"),
            failcnt: number("failcnt"),
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

/// The counters of the scheduler that old kernels had, or those of the throttling layer.
fn block_io(files: Files<'_>, devices: &HashMap<(u64, u64), String>) -> v1::BlkIOStat {
    let entries = |name: &str| {
        let text = files.text(&format!("blkio.{name}")).unwrap_or_default();
        block_io_entries(&text, devices)
    };
    let of_scheduler = v1::BlkIOStat {
        sectors_recursive: entries("sectors_recursive"),
        io_service_bytes_recursive: entries("io_service_bytes_recursive"),
        io_serviced_recursive: entries("io_serviced_recursive"),
        io_queued_recursive: entries("io_queued_recursive"),
        io_service_time_recursive: entries("io_service_time_recursive"),
        io_wait_time_recursive: entries("io_wait_time_recursive"),
        io_merged_recursive: entries("io_merged_recursive"),
        io_time_recursive: entries("time_recursive"),
        ..Default::default()
    };
    if of_scheduler != v1::BlkIOStat::default() {
        return of_scheduler;
    }
    v1::BlkIOStat {
        io_service_bytes_recursive: entries("throttle.io_service_bytes"),
        io_serviced_recursive: entries("throttle.io_serviced"),
        ..Default::default()
    }
}

/// Lines `MAJOR:MINOR OPERATION VALUE` or `MAJOR:MINOR VALUE`; the last, a total without a device, is left out.
fn block_io_entries(text: &str, devices: &HashMap<(u64, u64), String>) -> Vec<v1::BlkIOEntry> {
    let entry = |line: &str| {
        let (device, rest) = line.split_once(' ')?;
        let (major, minor) = device.split_once(':')?;
        let (major, minor) = (major.parse().ok()?, minor.parse().ok()?);
        let (op, value) = rest.split_once(' ').unwrap_or(("", rest));
        Some(v1::BlkIOEntry {
            device: devices.get(&(major, minor)).cloned().unwrap_or_default(),
            major,
            minor,
            op: op.to_owned(),
            value: value.trim().parse().ok()?,
            ..Default::default()
        })
    };
    text.lines().filter_map(entry).collect()
}

/// The host's block devices by their numbers.
fn devices() -> HashMap<(u64, u64), String> {
    partitions(&fs::read_to_string("/proc/partitions").unwrap_or_default())
}

fn partitions(text: &str) -> HashMap<(u64, u64), String> {
    let device = |line: &str| {
        let mut words = line.split_whitespace();
        let numbers = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some((numbers, format!("/dev/{}", words.nth(1)?)))
    };
    text.lines().filter_map(device).collect()
}

fn huge_pages(files: Files<'_>) -> Vec<v1::HugetlbStat> {
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
    huge_page_sizes().into_iter().filter_map(stat).collect()
}

fn rdma(files: Files<'_>) -> v1::RdmaStat {
    let entries = |name: &str| {
        let entries = rdma_entries(&files.text(name).unwrap_or_default());
        let entry = |(device, hca_handles, hca_objects)| v1::RdmaEntry {
            device,
            hca_handles,
            hca_objects,
            ..Default::default()
        };
        entries.into_iter().map(entry).collect()
    };
    v1::RdmaStat {
        current: entries("rdma.current"),
        limit: entries("rdma.max"),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_io_is_read_per_device_and_operation() {
        let devices = partitions("major minor  #blocks  name\n\n 254        0  268435456 vda\n");
        let entries = block_io_entries("254:0 Read 4096\n8:1 77\nTotal 12288\n", &devices);
        let read: Vec<_> = entries
            .iter()
            .map(|entry| (entry.device.as_str(), entry.major, entry.op.as_str(), entry.value))
            .collect();
        assert_eq!(read, [("/dev/vda", 254, "Read", 4096), ("", 8, "", 77)]);
    }
}
