//! What a look at a host or a container has found: a value with a stable code, so that a program can tell findings apart
//! and a person can read what to do.
//!
//! A finding of the level [`Level::Problem`] is an objection: a plan that holds one is refused. Nothing is looked at here.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How much a finding weighs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be, or a figure worth knowing.
    Ok,
    /// It stops nothing, and may surprise.
    Warning,
    /// It stops a move.
    Problem,
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Finding {
    /// Which thing: stable, for programs.
    pub code: Code,
    /// How much it weighs.
    pub level: Level,
    /// The host it was found on; empty until [`Finding::on`] names it.
    pub host: String,
    /// What is so, in one sentence.
    pub text: String,
    /// What to do about it; empty where there is nothing to be done.
    pub remedy: String,
}

impl Finding {
    /// All is well with it.
    pub fn ok(code: Code, text: impl Into<String>) -> Self {
        Self::new(code, Level::Ok, text, "")
    }

    /// Something that stops nothing.
    pub fn warning(code: Code, text: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(code, Level::Warning, text, remedy)
    }

    /// An objection.
    pub fn problem(code: Code, text: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(code, Level::Problem, text, remedy)
    }

    /// An objection out of an error's words, `what is so; what to do`.
    pub fn of_sentence(code: Code, sentence: &str) -> Self {
        let (text, remedy) = sentence.split_once("; ").unwrap_or((sentence, ""));
        Self::problem(code, text, remedy)
    }

    fn new(code: Code, level: Level, text: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            code,
            level,
            host: String::new(),
            text: text.into(),
            remedy: remedy.into(),
        }
    }

    /// Whether it stops a move.
    pub fn is_problem(&self) -> bool {
        self.level == Level::Problem
    }
}

/// Says of all findings on which host they were made.
pub fn on(host: &str, findings: impl IntoIterator<Item = Finding>) -> Vec<Finding> {
    let place = |mut finding: Finding| {
        host.clone_into(&mut finding.host);
        finding
    };
    findings.into_iter().map(place).collect()
}

/// Those that stop a move.
pub fn problems(findings: &[Finding]) -> Vec<Finding> {
    findings
        .iter()
        .filter(|finding| finding.is_problem())
        .cloned()
        .collect()
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.host.is_empty() {
            write!(formatter, "{}: ", self.host)?;
        }
        formatter.write_str(&self.text)?;
        if !self.remedy.is_empty() {
            write!(formatter, "; {}", self.remedy)?;
        }
        Ok(())
    }
}

/// What findings are about. The names are part of the local API and of the protocol between agents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    // -- the container and its engine
    /// The container does not run, or is paused.
    NotRunning,
    /// It has a move already.
    Busy,
    /// It does not run under Godwit, or under a name that another shim may answer to.
    Runtime,
    /// Its shim is of another release.
    ShimVersion,
    /// Memory of it is still on the host that it came from.
    FetchingMemory,
    /// Processes of `docker exec` are in it.
    ExecSessions,
    /// Its writable layer cannot be read.
    WritableLayer,
    /// An annotation says what no option can be.
    Annotation,
    /// A volume.
    Volume,
    /// A mount of a kind that is not moved.
    Mount,
    /// A namespace, a link or volumes shared with another container.
    SharedWithContainer,
    /// A device that the engine gives it by request, such as a GPU.
    DeviceRequest,
    /// It cannot stay at the source.
    KeepSource,
    // -- what its processes hold
    /// Established connections on an address that stays behind.
    TcpConnections,
    /// An open descriptor of a kind that CRIU cannot take: `io_uring`, `perf_event`, `userfaultfd` …
    KernelObject,
    /// An open device.
    OpenDevice,
    /// Memory of a device mapped into a process.
    MappedDevice,
    /// A socket of a family or protocol that CRIU cannot take.
    Socket,
    /// A descriptor of a process outside the container.
    Pidfd,
    /// A watch on the container's own root.
    Inotify,
    /// A namespace made inside the container.
    NestedNamespace,
    /// A process that a signal has stopped.
    StoppedProcess,
    /// A profile of AppArmor or `SELinux` that the destination lacks.
    SecurityProfile,
    // -- the destination
    /// The other agent cannot be asked.
    Peer,
    /// The name is taken.
    Name,
    /// A network is missing or another.
    Network,
    /// The address is in use.
    Address,
    /// A published port is in use.
    Port,
    /// The source of a bind mount is missing.
    BindSource,
    /// A device of the host is missing.
    Device,
    /// Whether the image is there, or is brought along.
    Image,
    /// A checkpoint image: whether it is whole, and fits the container.
    Checkpoint,
    /// Which modes of a move both hosts are able to do.
    Modes,
    /// An archive that is to be imported.
    Archive,
    // -- hosts, alone and compared
    /// The architecture of the processor.
    Architecture,
    /// Instructions that one host's processor has and the other's lacks.
    CpuFlags,
    /// The kernel.
    Kernel,
    /// CRIU.
    Criu,
    /// What CRIU can do on this kernel.
    CriuFeatures,
    /// The library that keeps CRIU from looking at memory which it leaves where it is.
    Lens,
    /// runC.
    Runc,
    /// nftables.
    Nft,
    /// The version of cgroups.
    Cgroups,
    /// Memory that is free, or needed.
    Memory,
    /// Room for images on their way, which are kept in memory.
    ImageRoom,
    /// Room on the engine's disk.
    Disk,
    /// The container engine.
    Engine,
    /// How the engine keeps layers.
    StorageDriver,
    /// Docker's experimental features.
    Experimental,
    /// containerd.
    Containerd,
    /// Our shim, where containerd finds it.
    Shim,
    /// Settings of the kernel.
    Sysctl,
    /// Capabilities of the agent.
    Capabilities,
    /// The agent's configuration.
    Configuration,
    /// Certificates.
    Certificates,
    /// The agent of this host.
    Agent,
    /// The clock.
    Clock,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_reads_as_a_sentence_and_has_a_stable_form() {
        let found = Finding::problem(Code::ExecSessions, "a process was exec'ed", "end it first");
        assert_eq!(found.to_string(), "a process was exec'ed; end it first");
        let [found] = on("ha", [found]).try_into().unwrap();
        assert_eq!(found.to_string(), "ha: a process was exec'ed; end it first");
        let json = serde_json::to_value(&found).unwrap();
        assert_eq!(json["code"], "exec-sessions");
        assert_eq!(json["level"], "problem");
        assert_eq!(serde_json::from_value::<Finding>(json).unwrap(), found);
    }

    #[test]
    fn a_finding_of_an_unknown_kind_is_an_error() {
        let unknown = r#"{"code":"weather","level":"ok","host":"","text":"","remedy":""}"#;
        assert!(serde_json::from_str::<Finding>(unknown).is_err());
    }
}
