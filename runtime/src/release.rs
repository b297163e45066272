//! What a CRIU that was killed amid a dump has left of its own in a container, taken back.
//!
//! While CRIU dumps, it keeps packets away by a table of nft and has each TCP connection in repair. Before it lets the
//! tasks go it takes back both. Neither ends with CRIU: the table is the network namespace's, the repair the socket's, and
//! a program that writes to a socket in repair writes into its receive queue. So this comes before the tasks run.
//! It does not take back rules of iptables, nor CRIU's own code out of a task that it was at work on.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Command;

use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use serde::{Deserialize, Serialize};

use crate::gate::enter_network_of;

/// Ends a repair without the window probe, which CRIU's rules would drop (linux/tcp.h: `TCP_REPAIR_OFF_NO_WP`).
const REPAIR_OFF: u32 = u32::MAX;

/// CRIU names its table by this and the beginning of its run's id.
const TABLE: &str = "CRIU-";

/// What CRIU's log says of a dump that it has brought to an end, good or bad, after it has taken back all.
const ENDS: &[&str] = &["Dumping FAILED", "Dumping finished successfully"];

/// The line that tells an id of the run.
const RUN_ID: &str = "CRIU run id = ";

/// A dump as its release must know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traces {
    /// The container's first process.
    pub pid: i32,
    /// CRIU's log.
    pub log: PathBuf,
}

impl Traces {
    /// Whether CRIU, which runs no more, has ended without a word. A log that cannot be read says nothing.
    pub fn are_left(&self) -> bool {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        !ENDS.iter().any(|end| log.contains(end))
    }

    /// Takes back what is left; `processes` are the container's, which stand still. May be repeated.
    ///
    /// It starts a program and waits for it, and enters the container's network namespace: it is not for a process that
    /// reaps all its children, nor for one that goes on.
    pub fn remove(&self, processes: &[i32]) -> io::Result<()> {
        // In CRIU's own order: a socket in repair drops what it is sent.
        let mended = processes.iter().try_for_each(|pid| mend_sockets(*pid));
        self.remove_table().and(mended)
    }

    fn remove_table(&self) -> io::Result<()> {
        let network = match fs::read_link(format!("/proc/{}/ns/net", self.pid)) {
            // It has ended, and with it what was its own.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        let own_network = network != fs::read_link("/proc/thread-self/ns/net")?;
        enter_network_of(self.pid)?;
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        // It draws two, and says both.
        let ids: Vec<&str> = log
            .lines()
            .filter_map(|line| line.split_once(RUN_ID))
            .map(|(_, id)| id.trim())
            .collect();
        let tables = nft(&["list", "tables", "inet"])?;
        for name in tables.lines().filter_map(|line| line.strip_prefix("table inet ")) {
            if is_ours(name, &ids, own_network) {
                // Made first, so that it is no error if somebody else has removed it meanwhile.
                nft(&[&format!("add table inet {name}; delete table inet {name}")])?;
            }
        }
        Ok(())
    }
}

/// Whether the table is of the run with one of these ids. If none is known, all of CRIU's are, unless the network is the
/// host's, in which other containers may be dumped.
fn is_ours(table: &str, ids: &[&str], own_network: bool) -> bool {
    // The name is cut where CRIU's buffer ends.
    table.strip_prefix(TABLE).is_some_and(|begin| {
        if ids.is_empty() {
            own_network
        } else {
            !begin.is_empty() && ids.iter().any(|id| id.starts_with(begin))
        }
    })
}

/// Ends the repair of a process's sockets. Those that are not in repair, and what is no TCP socket, are left alone.
fn mend_sockets(pid: i32) -> io::Result<()> {
    let Some(id) = Pid::from_raw(pid) else {
        return Ok(());
    };
    let process = match pidfd_open(id, PidfdFlags::empty()) {
        Err(Errno::SRCH) => return Ok(()),
        other => other?,
    };
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let entry = entry?;
        let is_socket = fs::read_link(entry.path())
            .is_ok_and(|target| target.as_os_str().as_encoded_bytes().starts_with(b"socket:"));
        let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
        if let (true, Some(number)) = (is_socket, number) {
            end_repair(&pidfd_getfd(&process, number, PidfdGetfdFlags::empty())?)?;
        }
    }
    Ok(())
}

fn end_repair(socket: &OwnedFd) -> io::Result<()> {
    let in_repair = getsockopt(socket, sockopt::TcpRepair);
    if in_repair.is_ok_and(|value| value != 0) {
        setsockopt(socket, sockopt::TcpRepair, &REPAIR_OFF)?;
        // The end of a repair forbids others the address. What was set before died with CRIU; a server that is started
        // again beside its open connections needs it, and a connection itself is not touched by it.
        setsockopt(socket, sockopt::ReuseAddr, &true)?;
    }
    Ok(())
}

fn nft(arguments: &[&str]) -> io::Result<String> {
    let failed = |why: String| io::Error::other(format!("nft {}: {why}", arguments.join(" ")));
    let output = Command::new("nft")
        .args(arguments)
        .output()
        .map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        return Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_runs_own_table_is_removed_where_the_run_is_known() {
        let ids = ["11111111-0000", "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9"];
        assert!(is_ours("CRIU-0a1b2c3d-4e5f-6071-8", &ids, false));
        assert!(!is_ours("CRIU-ffffffff-4e5f-6071-8", &ids, true));
        assert!(!is_ours("godwit", &ids, true));
        assert!(is_ours("CRIU-ffffffff-4e5f-6071-8", &[], true));
        assert!(!is_ours("CRIU-ffffffff-4e5f-6071-8", &[], false));
    }

    #[test]
    fn a_log_tells_whether_criu_came_to_an_end() {
        let directory = tempfile::tempdir().unwrap();
        let traces = Traces {
            pid: 1,
            log: directory.path().join("dump.log"),
        };
        assert!(traces.are_left());
        fs::write(&traces.log, "(00.1) Running post-dump scripts\n").unwrap();
        assert!(traces.are_left());
        fs::write(
            &traces.log,
            "(00.2) Error (criu/cr-dump.c:2128): Dumping FAILED.\n",
        )
        .unwrap();
        assert!(!traces.are_left());
    }

    #[test]
    fn a_repair_ends_and_the_connection_goes_on() {
        use std::io::{Read, Write};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut one = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut other, _) = listener.accept().unwrap();
        if let Err(error) = setsockopt(&one, sockopt::TcpRepair, &1) {
            println!("skipped: a repair needs CAP_NET_ADMIN: {error}");
            return;
        }
        mend_sockets(std::process::id().cast_signed()).unwrap();
        one.write_all(b"on").unwrap();
        let mut heard = [0; 2];
        other.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"on");
    }
}
