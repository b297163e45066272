//! A restore under way.
//!
//! `begin` starts `runc restore`; `gated` returns with the real pid when the namespaces stand; `open` lets CRIU go on;
//! `held` returns at CRIU's post-restore, where a restore with a verdict stops until there is one; `end` returns when
//! the container runs, with the memory that is still to come after a lazy restore. Dropped before `open`, the gate stays
//! shut, and runC and CRIU clean up.

use std::collections::HashMap;
use std::fs;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::{Duration, Instant};

use tokio::time::{Interval, MissedTickBehavior, interval, timeout};

use super::lazy::Arrival;
use super::lent::Lent;
use super::reports::{Reporter, Reports};
use super::{CheckpointError, Clock, Site, Step, furnish, network, prepare_restore, write_criu_config};
use crate::control::{ControlDir, write_atomically};
use crate::criu::RESTORE_LOG;
use crate::gate::{GateRecord, Report};
use crate::hold::{HoldRecord, POST_RESTORE};
use crate::image::{Manifest, NetworkOwner, metadata_bytes};
use crate::inventory::{INVENTORY, leave_lock_to_gate};
use crate::options::{CheckpointOptions, Layer, Tcp};
use crate::pages::left_out;
use crate::processes::{Doomed, Known, has_unnoticed_kill};
use crate::runc::{RuncError, Streams};
use crate::spec::Spec;
use crate::verdict::{self, Verdict};

/// A commit that waits for a source that is being repaired: beyond that somebody has forgotten it.
const RESUME_DEADLINE: Duration = Duration::from_secs(24 * 3600);

/// A terabyte of memory at the rate of a slow disk. While CRIU itself is at work it waits for nobody, and hangs if it
/// takes longer.
const WORK_DEADLINE: Duration = Duration::from_secs(3600);

/// CRIU's log describes what the image's metadata describes. Of a small container it has some hundred kilobytes; a restore
/// that goes round in circles writes some hundred megabytes a second, to memory as a rule.
const LOG_FLOOR_BYTES: u64 = 64 << 20;

/// A run of memory pages has ten bytes in the metadata, and some two hundred in the log.
const LOG_PER_METADATA_BYTE: u64 = 32;

/// runC has a cgroup to remove when CRIU is gone.
const CLEAN_UP_DEADLINE: Duration = Duration::from_secs(30);

/// How often its size is looked at.
const LOG_CHECK_INTERVAL: Duration = Duration::from_millis(250);

const OPERATION: &str = "restore";

/// In the control directory: the runC whose restore was the last to begin.
const RECORD: &str = "restore.json";

/// What is to be restored, and how.
#[derive(Clone, Debug)]
pub struct RestoreRequest {
    /// The image.
    pub image_dir: PathBuf,
    /// Where CRIU keeps logs; ours if none is given.
    pub work_dir: Option<PathBuf>,
    /// Options that hold whatever the image says.
    pub told: Layer,
    /// Options where the image says nothing.
    pub usual: Layer,
    /// Whether the container has a terminal.
    pub terminal: bool,
    /// `--no-pivot`.
    pub no_pivot: bool,
    /// Where the verdict will be that the restored tasks wait for. None: they run as soon as they are restored.
    pub verdict: Option<PathBuf>,
    /// The socket of the agent that brings the pages which the image leaves out. None: it leaves out none.
    pub lazy: Option<PathBuf>,
}

/// A restore under way.
pub struct Restore {
    site: Site,
    work: PathBuf,
    reports: Reports,
    gate: Option<Reporter>,
    /// runC's pid.
    runc_pid: i32,
    log_limit: u64,
    log_check: Interval,
    /// Whether CRIU had been killed at the last look, unnoticed by runC.
    criu_was_killed: bool,
    /// Where `aborted` may appear before the holder is there to read it.
    early_verdict: Option<PathBuf>,
    call: Pin<Box<dyn Future<Output = Result<(), RuncError>> + Send>>,
    clock: Clock,
    arrival: Option<Arrival>,
    /// The image, readable to the container's root while it is restored, and more.
    _lent: Lent,
}

impl Restore {
    /// Starts runC and CRIU with the container's streams. On an error nothing was started.
    pub fn begin(site: Site, request: &RestoreRequest, streams: Streams) -> Result<Self, CheckpointError> {
        let unready = |error: io::Error| CheckpointError::unready(OPERATION, &site, &error);
        let refuse = |reason: &str| CheckpointError::unready(OPERATION, &site, &reason);
        if !request.image_dir.join(INVENTORY).is_file() {
            return Err(refuse(&format!(
                "{} holds no checkpoint image",
                request.image_dir.display()
            )));
        }
        if request.image_dir.join(left_out::RECORD).exists() {
            return Err(refuse(
                "the image does not list all of its pages: the dump was not finished",
            ));
        }
        let manifest = Manifest::read(&request.image_dir).map_err(unready)?;
        if let Some(manifest) = &manifest {
            manifest.check(&request.image_dir).map_err(unready)?;
        }
        if manifest
            .as_ref()
            .is_some_and(|manifest| manifest.terminal != request.terminal)
        {
            return Err(refuse(
                "one of the image and the new container has a terminal and the other has none",
            ));
        }
        if manifest.as_ref().is_some_and(|manifest| manifest.lazy) && request.lazy.is_none() {
            return Err(refuse(
                "most of its memory is not in the image: it was dumped for a move, whose agents bring it",
            ));
        }
        // Another shim's image: Docker has them dump without the network, which the engine then makes.
        let spec = site.bundle.spec().map_err(unready)?;
        // Never a namespace that others share, whatever the image says: the gate would cut them off.
        let engine_network = network::has_own_network(&spec)
            && manifest
                .as_ref()
                .is_none_or(|manifest| manifest.network == NetworkOwner::Engine);
        let remembered = manifest.map(|manifest| manifest.options).unwrap_or_default();
        let options = CheckpointOptions::resolve(&[&request.told, &remembered, &request.usual]);
        // Only a move's: any other image is its owner's, and there CRIU's lock covers the change to the quieter table.
        if engine_network && request.verdict.is_some() {
            leave_lock_to_gate(&request.image_dir).map_err(unready)?;
        }
        let work = furnish(&site, "work-restore").map_err(unready)?;
        let work = request.work_dir.clone().unwrap_or(work);
        write_criu_config(&site, &options, "").map_err(unready)?;
        let hold = HoldRecord {
            verdict: request.verdict.clone(),
            gated: engine_network,
            ..HoldRecord::default()
        };
        let gate = GateRecord {
            engine_network,
            sysctls: network_sysctls(&spec),
        };
        for (name, json) in [
            ("hold.json", serde_json::to_vec(&hold)),
            ("gate.json", serde_json::to_vec(&gate)),
        ] {
            let json = json.map_err(|error| unready(error.into()))?;
            write_atomically(&site.control.join(name), &json).map_err(unready)?;
        }
        prepare_restore(&site.bundle, &site.control).map_err(unready)?;
        let metadata = metadata_bytes(&request.image_dir).map_err(unready)?;
        let log_limit = LOG_FLOOR_BYTES.saturating_add(metadata.saturating_mul(LOG_PER_METADATA_BYTE));
        let lent = Lent::lend(&site.control, &site.bundle, &spec, &request.image_dir).map_err(unready)?;
        let reports = Reports::listen(&site.control).map_err(unready)?;
        // Before runC: CRIU connects to it before it makes the first task.
        let arrival = request
            .lazy
            .as_ref()
            .map(|agent| Arrival::begin(&site, &work, agent, &request.image_dir))
            .transpose()
            .map_err(unready)?;
        let call = site
            .runc
            .call("restore")
            .arg("--detach")
            .option("--bundle", site.bundle.path())
            .option("--image-path", &request.image_dir)
            .option("--work-path", &work)
            .flag("--no-pivot", request.no_pivot)
            .flag("--lazy-pages", arrival.is_some())
            .flag("--tcp-established", options.tcp == Tcp::Established)
            .flag("--ext-unix-sk", options.external_unix_sockets)
            .flag("--file-locks", options.file_locks)
            .flag("--shell-job", options.shell_job.unwrap_or(request.terminal))
            .args(if engine_network {
                &["--empty-ns", "network"][..]
            } else {
                &[]
            })
            .streams(streams)
            .arg(&site.id);
        let running = call
            .spawn()
            .map_err(|error| CheckpointError::unready(OPERATION, &site, &error))?;
        let runc_pid = running.pid();
        remember(&site.control, runc_pid);
        // Each part has a deadline of its own, after which CRIU is ended too; the engine's Start is the engine's affair.
        let call = Box::pin(running.wait(Duration::MAX));
        let mut log_check = interval(LOG_CHECK_INTERVAL);
        log_check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self {
            site,
            work,
            reports,
            gate: None,
            runc_pid,
            log_limit,
            log_check,
            criu_was_killed: false,
            early_verdict: request.verdict.clone(),
            call,
            clock: Clock::start(),
            arrival,
            _lent: lent,
        })
    }

    /// Returns the pid of the container's first process when its namespaces stand.
    pub async fn gated(&mut self) -> Result<i32, CheckpointError> {
        let began = Instant::now();
        loop {
            match self.next(began, WORK_DEADLINE).await? {
                Some((Report::Gate { pid }, reporter)) => {
                    self.clock.mark("namespaces");
                    if let Some(arrival) = &self.arrival {
                        let known = arrival.tasks_of(pid).await;
                        known.map_err(|error| CheckpointError::unready(OPERATION, &self.site, &error))?;
                    }
                    // Here, and not by runC: it writes the file when the tasks run, and kills them if it cannot.
                    let written = self.site.bundle.write_init_pid(pid);
                    written.map_err(|error| CheckpointError::unready(OPERATION, &self.site, &error))?;
                    self.gate = Some(reporter);
                    return Ok(pid);
                }
                Some(_) => {}
                None => return Err(self.failure(&ended_early())),
            }
        }
    }

    /// Opens the gate.
    pub async fn open(&mut self) -> Result<(), CheckpointError> {
        self.clock.mark("wiring");
        let Some(gate) = self.gate.take() else {
            return Err(CheckpointError::unready(
                OPERATION,
                &self.site,
                &"its gate is not reached, or open already",
            ));
        };
        gate.go()
            .await
            .map_err(|error| CheckpointError::unready(OPERATION, &self.site, &error))
    }

    /// Returns when everything is restored and nothing runs, with what the steps took.
    pub async fn held(&mut self) -> Result<Vec<Step>, CheckpointError> {
        let began = Instant::now();
        loop {
            match self.next(began, WORK_DEADLINE).await? {
                Some((Report::Hold { action }, _)) if action == POST_RESTORE => {
                    self.clock.mark("restore");
                    // From here on the holder obeys it.
                    self.early_verdict = None;
                    if let Some(arrival) = &self.arrival {
                        arrival.fill().await;
                    }
                    return Ok(self.clock.take());
                }
                Some(_) => {}
                None => return Err(self.failure(&ended_early())),
            }
        }
    }

    /// Returns when the container runs, with what the steps since `held` took and the memory that is still to come.
    pub async fn end(mut self) -> Result<(Vec<Step>, Option<Arrival>), CheckpointError> {
        let began = Instant::now();
        while let Some((report, _)) = self.next(began, RESUME_DEADLINE).await? {
            if let Report::Amiss { reason } = report {
                log::warn!("restore of container {}: {reason}", self.site.id);
            }
        }
        self.clock.mark("resume");
        Ok((self.clock.steps, self.arrival))
    }

    /// The next report, or `None` when runC has succeeded. A restore that goes round in circles, or takes longer than is
    /// `allowed`, is ended.
    async fn next(
        &mut self,
        began: Instant,
        allowed: Duration,
    ) -> Result<Option<(Report, Reporter)>, CheckpointError> {
        loop {
            tokio::select! {
                biased;
                report = self.reports.next() => {
                    return report
                        .map(Some)
                        .map_err(|error| CheckpointError::unready(OPERATION, &self.site, &error));
                }
                result = &mut self.call => return match result {
                    Ok(()) => Ok(None),
                    Err(error) => Err(self.failure(&error)),
                },
                _ = self.log_check.tick() => {}
            }
            // A restore that waits for pages of memory may never come to its holder.
            if let Some(path) = &self.early_verdict
                && matches!(verdict::read(path), Ok(Some(Verdict::Aborted)))
            {
                return Err(self.give_up("the move was aborted".into()).await);
            }
            // Absent until CRIU has begun.
            let written = fs::metadata(self.work.join(RESTORE_LOG)).map_or(0, |log| log.len());
            if written > self.log_limit {
                let reason = format!(
                    "CRIU goes round in circles: its log has {} MiB where {} are enough",
                    written >> 20,
                    self.log_limit >> 20
                );
                return Err(self.give_up(reason).await);
            }
            // runC waits for words on a socket that CRIU's children hold open. When CRIU ends by itself, runC hears of it, and to
            // end the container of a restore that has succeeded would be the worst that can be done.
            let is_killed = has_unnoticed_kill(self.runc_pid);
            if std::mem::replace(&mut self.criu_was_killed, is_killed) && is_killed {
                let reason = "CRIU was killed, or has crashed: look into the kernel's log";
                return Err(self.give_up(reason.into()).await);
            }
            if began.elapsed() >= allowed {
                let reason = format!("it has not come to an end within {allowed:?}");
                return Err(self.give_up(reason).await);
            }
        }
    }

    /// Ends CRIU and what it has restored so far; runC then fails and cleans up.
    async fn give_up(&mut self, reason: String) -> CheckpointError {
        if let Err(error) = Doomed::below(self.runc_pid).end().await {
            log::warn!("of the restore of container {}: {error}", self.site.id);
        }
        if timeout(CLEAN_UP_DEADLINE, &mut self.call).await.is_err() {
            log::warn!("runc restore of container {} does not end", self.site.id);
        }
        CheckpointError::given_up(OPERATION, &self.site, &self.work, RESTORE_LOG, reason)
    }

    fn failure(&self, error: &RuncError) -> CheckpointError {
        CheckpointError::failed(OPERATION, &self.site, &self.work, RESTORE_LOG, error)
    }
}

/// Names runC to whoever cleans up after the shim. A restore without this is ended by its gate, some seconds later.
fn remember(control: &ControlDir, runc_pid: i32) {
    let written = Known::now(runc_pid)
        .and_then(|runc| write_atomically(&control.join(RECORD), &serde_json::to_vec(&runc)?));
    if let Err(error) = written {
        log::warn!("the runc of a restore is not recorded: {error}");
    }
}

/// Ends runC, CRIU and what they have restored so far, if a restore under `control` was under way when its shim ended.
pub async fn end_abandoned(control: &ControlDir) -> io::Result<()> {
    match fs::read(control.join(RECORD)) {
        Ok(text) => Doomed::tree(serde_json::from_slice(&text)?).end().await,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn ended_early() -> RuncError {
    RuncError::Failed {
        subcommand: "restore".into(),
        message: "runc ended without passing the gate: the hook or the CRIU configuration was not honoured"
            .into(),
    }
}

/// The sysctls of the network namespace in a container's configuration.
fn network_sysctls(spec: &Spec) -> HashMap<String, String> {
    let all = spec.sysctls().clone();
    all.into_iter()
        .filter(|(name, _)| name.starts_with("net."))
        .collect()
}
