//! A dump under way.
//!
//! `begin` starts `runc checkpoint`; `held` returns at CRIU's post-dump, where a dump with a hold stops until there is
//! a verdict; `end` returns when CRIU and runC are done. The container's tasks are frozen in between and only then.

use std::future::Future;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::Command;
use std::time::Duration;

use super::reports::Reports;
use super::{
    CheckpointError, Clock, Site, Step, furnish, network, unrestorable, write_criu_config,
    write_early_criu_config,
};
use crate::control::write_atomically;
use crate::criu::{self, DUMP_LOG};
use crate::freezer::Freezer;
use crate::gate::Report;
use crate::hold::{self, HoldRecord, POST_DUMP, PRE_DUMP, Settled};
use crate::image::{ImageDir, Manifest, NetworkOwner};
use crate::lens;
use crate::options::{CheckpointOptions, Digests, Tcp};
use crate::pages::left_out;
use crate::reaper::Limits;
use crate::release::Traces;
use crate::runc::RuncError;
use crate::verdict::{self, Verdict};

/// A terabyte of memory at the rate of a slow disk, and the hold on top of it. A dump beyond that hangs.
const DUMP_DEADLINE: Duration = Duration::from_secs(3600);

const OPERATION: &str = "dump";

/// What is to be dumped, and how.
#[derive(Clone, Debug)]
pub struct DumpRequest {
    /// The container's first process.
    pub pid: i32,
    /// Whether it is paused, and is to stay so.
    pub paused: bool,
    /// Whether the container has a terminal.
    pub terminal: bool,
    /// A directory of mode 0700, or where one is to be made; a dump that fails removes what it has made.
    pub image_dir: PathBuf,
    /// Where CRIU keeps logs; ours if none is given.
    pub work_dir: Option<PathBuf>,
    /// The options.
    pub options: CheckpointOptions,
    /// Whether and how the dump is held before its point of no return.
    pub hold: Option<Hold>,
}

/// A dump that waits for a verdict.
#[derive(Clone, Debug)]
pub struct Hold {
    /// Where the verdict will be.
    pub verdict: PathBuf,
    /// How long the holder waits for it before it decides `aborted`.
    pub deadline: Duration,
    /// Pages that can wait stay in the tasks, which stay frozen after `committed` until this file is there. None: the
    /// image holds all.
    pub drained: Option<PathBuf>,
    /// With `drained`: CRIU need not see those pages, because whoever asked for the dump lists them (`pages::left_out`).
    pub leave_out: bool,
}

/// How often it is looked whether the pages left in the tasks are still needed: the agent waits for the answer.
const DRAIN_POLL_INTERVAL: Duration = Duration::from_millis(10);

/// A few calls of nft and of the kernel.
const RELEASE_DEADLINE: Duration = Duration::from_secs(30);

/// How a dump ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DumpEnd {
    /// The container's tasks were killed.
    Killed,
    /// The container runs on: it was to, or the verdict was `aborted`.
    Running,
}

/// A dump under way. Dropped before its end it goes on unobserved; its hold ends it at the deadline.
pub struct Dump {
    site: Site,
    request: DumpRequest,
    image: ImageDir,
    work: PathBuf,
    record: HoldRecord,
    reports: Reports,
    /// Why the holder made CRIU fail.
    refusal: Option<String>,
    call: Pin<Box<dyn Future<Output = Result<(), RuncError>> + Send>>,
    clock: Clock,
}

impl Dump {
    /// Starts runC and CRIU. On an error nothing was started.
    pub fn begin(site: Site, request: DumpRequest) -> Result<Self, CheckpointError> {
        let unready = |error: std::io::Error| CheckpointError::unready(OPERATION, &site, &error);
        if let Some(reason) = unrestorable::reason(request.pid).map_err(unready)? {
            return Err(CheckpointError::unready(OPERATION, &site, &reason));
        }
        let spec = site.bundle.spec().map_err(unready)?;
        let owner = network::owner(&spec, request.pid, request.options.empty_namespaces).map_err(unready)?;
        let work = furnish(&site, "work-dump").map_err(unready)?;
        let work = request.work_dir.clone().unwrap_or(work);
        let drained = request.hold.as_ref().and_then(|hold| hold.drained.clone());
        let besides = drained.as_ref().map_or("", |_| criu::LAZY_DUMP);
        write_criu_config(&site, &request.options, besides).map_err(unready)?;
        let early_config = write_early_criu_config(&site, &request.options).map_err(unready)?;
        let record = HoldRecord {
            verdict: request.hold.as_ref().map(|hold| hold.verdict.clone()),
            hold_ms: request
                .hold
                .as_ref()
                .map(|hold| hold.deadline.as_millis().try_into().unwrap_or(u64::MAX)),
            gated: false,
            freezer: Some(Freezer::of(request.pid).map_err(unready)?),
            paused: request.paused,
            drained,
            own_network: owner == NetworkOwner::Engine && network::has_own_network(&spec),
            traces: Some(Traces {
                pid: request.pid,
                log: work.join(DUMP_LOG),
            }),
            shim: Some(std::process::id()),
        };
        let json = serde_json::to_vec(&record).map_err(|error| unready(error.into()))?;
        write_atomically(&site.control.join("hold.json"), &json).map_err(unready)?;
        let reports = Reports::listen(&site.control).map_err(unready)?;
        // The last before the start, so that little is there to be taken back.
        let image = ImageDir::at(&request.image_dir);
        let mut manifest = Manifest::new(&site.id, owner, request.terminal, request.options.remembered());
        manifest.lazy = record.drained.is_some();
        manifest
            .write(&request.image_dir)
            .inspect_err(|_| image.discard())
            .map_err(unready)?;
        let options = &request.options;
        let mut call = site.runc.call("checkpoint");
        if let (Some(hold), Some(lens)) = (&request.hold, lens::installed()) {
            call = call.variable(lens::LOADER_VARIABLE, lens);
            if hold.leave_out && hold.drained.is_some() {
                let record = request.image_dir.join(left_out::RECORD);
                call = call.variable(left_out::RECORD_VARIABLE, record);
            }
            if owner == NetworkOwner::Engine {
                call = call.variable(lens::UNTRACKED_VARIABLE, "1");
            }
        }
        let call = call
            .variable(criu::CONFIG_VARIABLE, early_config)
            .option("--image-path", &request.image_dir)
            .option("--work-path", &work)
            .flag("--leave-running", options.leave_running)
            .flag("--tcp-established", options.tcp == Tcp::Established)
            .flag("--ext-unix-sk", options.external_unix_sockets)
            .flag("--file-locks", options.file_locks)
            .flag("--shell-job", options.shell_job.unwrap_or(request.terminal))
            .args(if owner == NetworkOwner::Engine {
                &["--empty-ns", "network"][..]
            } else {
                &[]
            })
            .arg(&site.id);
        let running = call
            .spawn()
            .inspect_err(|_| image.discard())
            .map_err(|error| CheckpointError::unready(OPERATION, &site, &error))?;
        let call = Box::pin(running.wait(DUMP_DEADLINE));
        Ok(Self {
            site,
            request,
            image,
            work,
            record,
            reports,
            refusal: None,
            call,
            clock: Clock::start(),
        })
    }

    /// Returns when the image is complete and every task is stopped, with what the steps took.
    pub async fn held(&mut self) -> Result<Vec<Step>, CheckpointError> {
        loop {
            tokio::select! {
                biased;
                report = self.reports.next() => match report {
                    Ok((Report::Hold { action }, _)) if self.note(&action) == POST_DUMP => {
                        self.seal();
                        return Ok(self.clock.take());
                    }
                    Ok((Report::Refusal { reason }, _)) => self.refusal = Some(reason),
                    Ok(_) => {}
                    Err(error) => return Err(CheckpointError::unready(OPERATION, &self.site, &error)),
                },
                result = &mut self.call => {
                    let error = result.err().unwrap_or_else(|| RuncError::Failed {
                        subcommand: "checkpoint".into(),
                        message: "runc ended without a hold: the CRIU configuration was not honoured".into(),
                    });
                    return Err(self.failure(&error));
                }
            }
        }
    }

    /// Returns when the dump is over, with what the steps since `held` took.
    pub async fn end(mut self) -> Result<(DumpEnd, Vec<Step>), CheckpointError> {
        let result = loop {
            tokio::select! {
                biased;
                Ok((report, _)) = self.reports.next() => match report {
                    Report::Hold { action } => drop(self.note(&action)),
                    Report::Refusal { reason } => self.refusal = Some(reason),
                    Report::Amiss { reason } => {
                        log::warn!("dump of container {}: {reason}", self.site.id);
                    }
                    Report::Gate { .. } => {}
                },
                result = &mut self.call => break result,
            }
        };
        settle(&self.site, &self.record).await;
        self.clock.mark("end");
        let hold = self.request.hold.as_ref();
        let verdict = hold.and_then(|hold| verdict::read(&hold.verdict).ok().flatten());
        if result.is_ok() && self.request.hold.is_none() {
            self.seal();
        }
        match result {
            Ok(()) if self.request.options.leave_running => Ok((DumpEnd::Running, self.clock.steps)),
            Ok(()) => Ok((DumpEnd::Killed, self.clock.steps)),
            // CRIU says "failed" when its script refuses; that is what an aborted verdict makes it do.
            Err(_) if verdict == Some(Verdict::Aborted) => Ok((DumpEnd::Running, self.clock.steps)),
            // Its server of pages never comes up: what is left of the tasks was killed just now.
            Err(_) if verdict.is_some() && self.record.drained.is_some() => {
                Ok((DumpEnd::Killed, self.clock.steps))
            }
            Err(error) => Err(self.failure(&error)),
        }
    }

    /// The image is complete. Without its seal it is as good, but damage to it is found later or not at all.
    fn seal(&self) {
        // A move protects what it sends by itself, and its container stands still until this returns.
        let digests = match self.request.hold {
            Some(_) => Digests::None,
            None => self.request.options.digests,
        };
        if let Err(error) = Manifest::seal(&self.request.image_dir, digests) {
            log::warn!(
                "the checkpoint image of container {} stays unsealed: {error}",
                self.site.id
            );
        }
    }

    fn note<'a>(&mut self, action: &'a str) -> &'a str {
        match action {
            PRE_DUMP => self.clock.mark("prepare"),
            "network-lock" => self.clock.mark("freeze"),
            POST_DUMP => self.clock.mark("dump"),
            _ => {}
        }
        action
    }

    fn failure(&self, error: &RuncError) -> CheckpointError {
        let error = match &self.refusal {
            Some(reason) => CheckpointError::unready(OPERATION, &self.site, reason),
            None => CheckpointError::failed(OPERATION, &self.site, &self.work, DUMP_LOG, error),
        };
        // After the log is kept, which may lie in it.
        self.image.discard();
        error
    }
}

/// Lets the tasks run, or makes sure that they do not. The thawer does the same; whichever of us is alive.
async fn settle(site: &Site, record: &HoldRecord) {
    if record.must_release().unwrap_or_default() {
        return settle_apart(site).await;
    }
    loop {
        match record.settle() {
            Ok(Settled::Done) => return,
            Ok(Settled::PagesNeeded) => tokio::time::sleep(DRAIN_POLL_INTERVAL).await,
            Err(error) => return log::error!("container {} may be left frozen: {error}", site.id),
        }
    }
}

/// Has a thawer settle what a CRIU that was killed has left: it needs a process of its own.
async fn settle_apart(site: &Site) {
    let mut thawer = Command::new("/proc/self/exe");
    thawer
        .arg0(site.control.join(hold::THAWER_NAME))
        .arg(hold::NOBODY)
        .current_dir("/");
    let limits = Limits {
        deadline: RELEASE_DEADLINE,
        output_bytes: 1024,
    };
    let why = match site.runc.reaper().run(thawer, limits).await {
        Ok(output) if output.exit.success() => return,
        Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
        Err(error) => error.to_string(),
    };
    log::error!("container {} may have no network: {why}", site.id);
}
