//! The gate: the `createRuntime` hook that stops a restore between the namespaces and everything else.
//!
//! runC runs it by the path `…/gate` in a container's control directory when CRIU has made the namespaces. It makes
//! the new network namespace fit for the engine, tells the shim the real pid and waits for the shim's word. It is a
//! short, single-threaded, blocking program; it knows no lifecycle and decides nothing. Whatever is not a clear "go"
//! fails the hook, and with it the restore: a dead shim never opens a gate.

use std::collections::HashMap;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::poll::{PollFd, PollFlags, poll};
use nix::sched::{CloneFlags, setns};
use serde::{Deserialize, Serialize};

use crate::announce;
use crate::control::ControlDir;
use crate::sys;

/// The name the shim's binary is called by to be the gate.
pub const NAME: &str = "gate";

/// What a gate or a holder tells the shim: one JSON line on `ctl.sock`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "from")]
pub enum Report {
    /// The namespaces stand. The shim answers `go` or closes the connection.
    Gate {
        /// The container's first process, in the shim's pid namespace.
        pid: i32,
    },
    /// CRIU has reached an action; no answer is expected.
    Hold {
        /// CRIU's name of it: `post-dump`, `post-restore` …
        action: String,
    },
    /// Something went amiss that fails nothing; no answer is expected.
    Amiss {
        /// What.
        reason: String,
    },
    /// The holder makes CRIU fail; no answer is expected.
    Refusal {
        /// Why.
        reason: String,
    },
}

/// The shim's answer that opens the gate.
pub const GO: &str = "go";

/// What the gate must know beyond its hook's standard input; written by the shim as `gate.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GateRecord {
    /// Whether the engine fills the network namespace. If not, CRIU restores it whole and the gate leaves it alone.
    pub engine_network: bool,
    /// `net.*` sysctls of the container's configuration, which runC applies on create but not on restore.
    pub sysctls: HashMap<String, String>,
}

/// The part of the OCI state that runC gives its hooks on standard input.
#[derive(Deserialize)]
struct HookState {
    pid: i32,
}

/// Rules that let nothing into or out of a network namespace whose sockets are still to be restored. A packet for a
/// connection that is not there yet would be answered by a reset. CRIU's own packets carry its mark; neighbour
/// discovery passes, since it is how the engine announces the address.
const CLOSED: &str = "table inet godwit {
 chain in { type filter hook input priority -350; policy drop; meta mark 0xc114 accept; meta l4proto ipv6-icmp accept; }
 chain out { type filter hook output priority -350; policy drop; meta mark 0xc114 accept; meta l4proto ipv6-icmp accept; }
}
";

/// Runs the hook; an error is the hook's failure, and its text goes to runC's error message.
pub fn main(called_as: &Path) -> io::Result<()> {
    let control = ControlDir::at(called_as.parent().unwrap_or(Path::new("/")));
    let mut input = String::new();
    io::stdin().read_to_string(&mut input)?;
    let state: HookState = serde_json::from_str(&input)?;
    let record: GateRecord = serde_json::from_slice(&fs::read(control.join("gate.json"))?)?;
    if record.engine_network {
        enter_network_of(state.pid)?;
        nft(CLOSED)?;
        prepare_network(&record)?;
    }
    let mut shim = UnixStream::connect(control.join("ctl.sock"))?;
    send(&mut shim, &Report::Gate { pid: state.pid })?;
    // No deadline of its own: the engine may take its time between Create and Start, and a dead shim closes the stream.
    let mut answer = String::new();
    BufReader::new(shim).read_line(&mut answer)?;
    if answer.trim_end() == GO {
        Ok(())
    } else {
        Err(io::Error::other("the shim gave the restore up"))
    }
}

/// Writes one report, ended by a newline.
pub(crate) fn send(shim: &mut UnixStream, report: &Report) -> io::Result<()> {
    let mut line = serde_json::to_vec(report)?;
    line.push(b'\n');
    shim.write_all(&line)
}

/// Rules between the restore of the sockets and that of the tasks. Each restored connection first sends a bare
/// acknowledgement, the window probe. Through a published port it would be the first packet of its connection that the
/// host's address translation sees: it would be given a wrong port, the peer would answer it by a reset, and the
/// connection would end. The peer's own next packet is translated rightly, and the probe is needed by nobody.
const QUIET: &str = "table inet godwit
delete table inet godwit
table inet godwit {
 chain out { type filter hook output priority -350; meta oifkind \"veth\" tcp flags & (fin | syn | rst | psh | ack) == ack drop; }
}
";

/// Opens a network namespace that a gate has closed, all but for window probes on their way to an address translation.
pub(crate) fn quiet_network(pid: i32) -> io::Result<()> {
    enter_network_of(pid)?;
    nft(QUIET)
}

/// The same table, and nothing is dropped any more.
const OPEN: &str = "table inet godwit {
 chain in { type filter hook input priority -350; policy accept; }
 chain out { type filter hook output priority -350; policy accept; }
}
";

/// In milliseconds. It takes three; a container that has been given away waits for it.
const OPEN_DEADLINE: u16 = 5000;

/// An nft that is ready to let everything into and out of a network namespace that a gate has closed, and does nothing if it
/// is not told to.
#[derive(Debug)]
pub(crate) struct Opener(Child);

impl Opener {
    /// Starts it; what can be missing for that is missing now, and not when there is no way back.
    pub(crate) fn start(pid: i32) -> io::Result<Self> {
        enter_network_of(pid)?;
        start_nft(&["--echo", "-f", "-"], Stdio::piped()).map(Self)
    }

    /// Opens. The table stays, and nft is left to end by itself: what it has changed holds at once, but it closes its socket
    /// only when no processor can be reading what was there before, some 12 ms later.
    pub(crate) fn open(mut self) -> io::Result<()> {
        tell(&mut self.0, OPEN)?;
        let Some(mut stdout) = self.0.stdout.take() else {
            return finish(self.0);
        };
        let mut waited_for = [PollFd::new(stdout.as_fd(), PollFlags::POLLIN)];
        if poll(&mut waited_for, OPEN_DEADLINE)? == 0 {
            return Err(failed("it does not come to an end"));
        }
        // It says what it has changed when the kernel has done it, and nothing before.
        match stdout.read(&mut [0]) {
            Ok(1) => Ok(()),
            _ => finish(self.0),
        }
    }
}

/// Removes what a gate has left in a network namespace, closed or open; nothing to do if there is nothing.
pub(crate) fn remove_table(pid: i32) -> io::Result<()> {
    enter_network_of(pid)?;
    nft("table inet godwit\ndelete table inet godwit\n")
}

/// Takes a network namespace off its networks for good. Tasks that stand still still have a kernel that answers for their
/// addresses, and those are another host's by now.
pub(crate) fn cut_network(pid: i32) -> io::Result<()> {
    enter_network_of(pid)?;
    for device in &nix::net::if_::if_nameindex()? {
        if device.name().to_bytes() != b"lo" {
            sys::set_device(device.name().to_bytes(), false)?;
        }
    }
    Ok(())
}

/// Says on a container's networks that its addresses are here.
pub(crate) fn announce_network(pid: i32) -> io::Result<()> {
    enter_network_of(pid)?;
    announce::all_addresses()
}

pub(crate) fn enter_network_of(pid: i32) -> io::Result<()> {
    let namespace = fs::File::open(format!("/proc/{pid}/ns/net"))?;
    setns(namespace, CloneFlags::CLONE_NEWNET)?;
    Ok(())
}

fn prepare_network(record: &GateRecord) -> io::Result<()> {
    sys::loopback_up()?;
    for (name, value) in &record.sysctls {
        // `/` separates names that contain dots themselves (interfaces); never leave the tree of network sysctls.
        let path = PathBuf::from("/proc/sys").join(name.replace('.', "/"));
        if !name.starts_with("net.") || name.contains("..") {
            continue;
        }
        fs::write(&path, value)
            .map_err(|error| io::Error::new(error.kind(), format!("sysctl {name}={value}: {error}")))?;
    }
    Ok(())
}

fn nft(script: &str) -> io::Result<()> {
    let mut child = start_nft(&["-f", "-"], Stdio::null())?;
    tell(&mut child, script)?;
    finish(child)
}

fn start_nft(arguments: &[&str], stdout: Stdio) -> io::Result<Child> {
    Command::new("nft")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(stdout)
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(&error.to_string()))
}

/// It does what it is told when that has ended.
fn tell(child: &mut Child, script: &str) -> io::Result<()> {
    match child.stdin.take() {
        Some(mut stdin) => stdin.write_all(script.as_bytes()),
        None => Ok(()),
    }
}

fn finish(child: Child) -> io::Result<()> {
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed(String::from_utf8_lossy(&output.stderr).trim()))
}

fn failed(why: &str) -> io::Error {
    io::Error::other(format!("nft: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_one_json_line() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let report = Report::Hold {
            action: "post-dump".into(),
        };
        send(&mut ours, &report).unwrap();
        drop(ours);
        let lines: Vec<String> = BufReader::new(theirs).lines().map(Result::unwrap).collect();
        assert_eq!(lines, [r#"{"from":"hold","action":"post-dump"}"#]);
        assert_eq!(serde_json::from_str::<Report>(&lines[0]).unwrap(), report);
    }

    #[test]
    fn a_closed_network_is_opened_only_when_that_is_said() {
        let thread = std::thread::spawn(|| {
            if let Err(error) = nix::sched::unshare(CloneFlags::CLONE_NEWNET) {
                eprintln!("skipped: no network namespace can be made here: {error}");
                return;
            }
            if let Err(error) = nft(CLOSED) {
                eprintln!("skipped: {error}");
                return;
            }
            let rules = || {
                let listed = Command::new("nft").args(["list", "ruleset"]).output().unwrap();
                String::from_utf8(listed.stdout).unwrap()
            };
            let pid = nix::unistd::gettid().as_raw();
            let opener = Opener::start(pid).unwrap();
            assert_eq!(rules().matches("policy drop").count(), 2);
            drop(opener);
            assert_eq!(rules().matches("policy drop").count(), 2, "it was not told to");
            Opener::start(pid).unwrap().open().unwrap();
            assert_eq!(rules().matches("policy accept").count(), 2);
            assert_eq!(rules().matches("policy drop").count(), 0);
            remove_table(pid).unwrap();
            assert_eq!(rules(), "");
            remove_table(pid).unwrap();
        });
        thread.join().unwrap();
    }
}
