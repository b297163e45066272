//! Dump and restore as their container's owner sees them: what may begin when, what follows, who is told.
//!
//! The work is `godwit_runtime::checkpoint`'s; here it becomes operations of the owner, beside which State and Wait are
//! answered. A failed dump puts the container back where it was. A failed restore ends it without an exit event: it
//! never ran, and an engine that saw it "exit" might apply its restart policy and start a second copy afresh.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use containerd_shim::protos::events::task as events;
use godwit_runtime::bundle::ExitRecord;
use godwit_runtime::checkpoint::dump::{Dump, DumpEnd, DumpRequest, Hold};
use godwit_runtime::checkpoint::lazy::Arrival;
use godwit_runtime::checkpoint::restore::Restore;
use godwit_runtime::checkpoint::{CheckpointError, Site, Step};
use godwit_runtime::freezer::Freezer;
use godwit_runtime::image;
use godwit_runtime::options::{CheckpointOptions, Layer};
use godwit_runtime::processes::Doomed;
use godwit_runtime::reaper::{End, Exit};
use log::{info, warn};

use super::super::command::{DumpOrder, Finished, Held, Reply};
use super::super::lifecycle::{Event, Lifecycle};
use super::super::restore::PendingRestore;
use super::{Happening, Owner};
use crate::error::ShimError;
use crate::io::{Pending, ProcessIo};
use crate::options::CheckpointOrder;

impl Owner {
    /// The task API's Checkpoint: dump into a directory, then stop or go on.
    pub(super) fn checkpoint(&mut self, order: CheckpointOrder, reply: Reply<()>) {
        let (options, execs) = match self.prepare_dump(&order.layer, &Layer::default()) {
            Ok(prepared) => prepared,
            Err(error) => return drop(reply.send(Err(error))),
        };
        let request = self.dump_request(order.image_dir, order.work_dir, options, None);
        let resume_as = self.begin_dump();
        let site = self.identity.site();
        self.happenings.spawn(async move {
            let result = match execs.end().await.and_then(|()| Dump::begin(site, request)) {
                Ok(dump) => dump.end().await,
                Err(error) => Err(error),
            };
            Happening::Checkpointed {
                result: result.map(|(end, _)| end),
                resume_as,
                reply,
            }
        });
    }

    pub(super) fn checkpointed(
        &mut self,
        result: Result<DumpEnd, CheckpointError>,
        resume_as: Lifecycle,
        reply: Reply<()>,
    ) {
        self.init.operation = None;
        if !matches!(result, Ok(DumpEnd::Killed)) {
            self.undo_dump(resume_as);
        }
        if result.is_ok() {
            self.publish(&events::TaskCheckpointed {
                container_id: self.identity.id.clone(),
                ..Default::default()
            });
        }
        let answer = result
            .map(drop)
            .map_err(|error| ShimError::Failed(error.to_string()));
        let _ = reply.send(answer);
        self.tell_held_exit();
    }

    /// Godwit's own Dump: held at post-dump until a verdict.
    pub(super) fn dump(&mut self, order: DumpOrder, reply: Reply<Held>) {
        // Whatever is configured, a container that moves does not also stay.
        let asked = Layer {
            leave_running: Some(false),
            tcp: order.tcp,
            ..Layer::default()
        };
        let (options, execs) = match self.prepare_dump(&asked, &usual_of_moves()) {
            Ok(prepared) => prepared,
            Err(error) => return drop(reply.send(Err(error))),
        };
        if self.lifecycle == Lifecycle::Paused {
            let error = "cannot move a container that is paused: resume it first".to_owned();
            return drop(reply.send(Err(ShimError::FailedPrecondition(error))));
        }
        let hold = Hold {
            verdict: order.verdict,
            deadline: order.hold,
            drained: order.drained,
            leave_out: order.leave_out,
        };
        let image_dir = order.image_dir.clone();
        let request = self.dump_request(order.image_dir, None, options, Some(hold));
        self.begin_dump();
        let site = self.identity.site();
        self.happenings.spawn(async move {
            let mut result = execs.end().await.and_then(|()| Dump::begin(site, request));
            let held = match &mut result {
                Ok(dump) => dump.held().await,
                Err(_) => Ok(Vec::new()),
            };
            let result = result.and_then(|dump| held.map(|steps| (dump, steps)));
            Happening::DumpHeld {
                result: result.map(Box::new),
                image_dir,
                reply,
            }
        });
    }

    pub(super) fn dump_held(
        &mut self,
        result: Result<Box<(Dump, Vec<Step>)>, CheckpointError>,
        image_dir: &Path,
        reply: Reply<Held>,
    ) {
        let (dump, steps) = match result {
            Ok(held) => *held,
            Err(error) => {
                self.init.operation = None;
                self.undo_dump(Lifecycle::Running);
                drop(reply.send(Err(ShimError::Failed(error.to_string()))));
                // Who waits for the end of the dump need not know why it failed.
                self.tell_finished(&Ok(Finished {
                    running: self.lifecycle == Lifecycle::Running,
                    pid: self.init.pid,
                    steps: Vec::new(),
                }));
                return self.tell_held_exit();
            }
        };
        if let Err(error) = self.step(Event::DumpHeld) {
            warn!("{error}");
        }
        let _ = reply.send(Ok(Held {
            pid: self.init.pid,
            steps,
            image_bytes: image::size_bytes(image_dir).unwrap_or_default(),
        }));
        self.happenings
            .spawn(async move { Happening::DumpEnded(dump.end().await) });
    }

    pub(super) fn dump_ended(&mut self, result: Result<(DumpEnd, Vec<Step>), CheckpointError>) {
        self.init.operation = None;
        let answer = match result {
            Ok((DumpEnd::Killed, steps)) => Ok(Finished {
                running: false,
                pid: 0,
                steps,
            }),
            Ok((DumpEnd::Running, steps)) => {
                self.undo_dump(Lifecycle::Running);
                Ok(Finished {
                    running: true,
                    pid: self.init.pid,
                    steps,
                })
            }
            Err(error) => {
                self.undo_dump(Lifecycle::Running);
                Err(error.to_string())
            }
        };
        self.tell_finished(&answer);
        self.tell_held_exit();
    }

    /// Waits for the end of what a verdict decides; answers at once if nothing is undecided.
    pub(super) fn finish(&mut self, reply: Reply<Finished>) {
        match self.lifecycle {
            Lifecycle::Creating
            | Lifecycle::AwaitingImage
            | Lifecycle::Gated
            | Lifecycle::Restoring
            | Lifecycle::RestoreHeld
            | Lifecycle::Dumping
            | Lifecycle::DumpHeld => self.finish_waiters.push(reply),
            Lifecycle::Created | Lifecycle::Running | Lifecycle::Paused => {
                let running = Finished {
                    running: true,
                    pid: self.init.pid,
                    steps: Vec::new(),
                };
                drop(reply.send(Ok(running)));
            }
            Lifecycle::Stopped | Lifecycle::Deleted => {
                drop(reply.send(Ok(Finished {
                    running: false,
                    pid: 0,
                    steps: Vec::new(),
                })));
            }
        }
    }

    /// Opens the gate and waits for CRIU's last step before the tasks run.
    pub(super) fn start_restored(&mut self, pending: PendingRestore, reply: Reply<u32>) {
        let PendingRestore {
            mut restore,
            streams,
            deliverer,
        } = pending;
        if let Err(error) = self.step(Event::RestoreBegan) {
            return drop(reply.send(Err(error)));
        }
        self.init.operation = Some("start");
        self.happenings.spawn(async move {
            let held = match restore.open().await {
                Ok(()) => restore.held().await,
                Err(error) => Err(error),
            };
            Happening::RestoreHeld {
                result: held.map(|steps| Box::new((restore, steps))),
                streams,
                deliverer,
                reply,
            }
        });
    }

    pub(super) fn restore_held(
        &mut self,
        result: Result<Box<(Restore, Vec<Step>)>, CheckpointError>,
        streams: Pending,
        deliverer: Option<Reply<Held>>,
        reply: Reply<u32>,
    ) {
        let (restore, steps) = match result {
            Ok(held) => *held,
            Err(error) => {
                if let Some(deliverer) = deliverer {
                    let _ = deliverer.send(Err(ShimError::Failed(error.to_string())));
                }
                return self.restore_ended(Err(ShimError::Failed(error.to_string())), reply);
            }
        };
        if let Err(error) = self.step(Event::RestoreHeld) {
            warn!("{error}");
        }
        if let Some(deliverer) = deliverer {
            let _ = deliverer.send(Ok(Held {
                pid: self.init.pid,
                steps,
                image_bytes: 0,
            }));
        }
        let io = self.init.io.clone();
        self.happenings.spawn(async move {
            let result = match restore.end().await {
                Ok((steps, arrival)) => streams.connect(&io).await.map(|()| (steps, io, arrival)),
                Err(error) => Err(ShimError::Failed(error.to_string())),
            };
            Happening::RestoreEnded { result, reply }
        });
    }

    pub(super) fn restore_ended(
        &mut self,
        result: Result<(Vec<Step>, ProcessIo, Option<Arrival>), ShimError>,
        reply: Reply<u32>,
    ) {
        match result {
            Ok((steps, io, arrival)) => {
                self.init.io = io;
                if let Some(arrival) = arrival {
                    self.await_memory(arrival);
                }
                info!("container {} is restored as {}", self.identity.id, self.init.pid);
                self.started(Ok(()), reply);
                self.tell_finished(&Ok(Finished {
                    running: true,
                    pid: self.init.pid,
                    steps,
                }));
            }
            Err(error) => {
                self.init.operation = None;
                let text = error.to_string();
                self.end_unstarted();
                let _ = reply.send(Err(ShimError::Failed(text.clone())));
                self.tell_finished(&Err(text));
            }
        }
    }

    /// The container runs while memory is on its way. If that is lost, the container is killed and its exit told as any.
    fn await_memory(&mut self, arrival: Arrival) {
        let (lease, end) = arrival.split();
        self.memory = Some(lease);
        self.happenings.spawn(async move {
            end.await;
            Happening::MemorySettled
        });
    }

    /// Ends a container that was to be restored and never ran.
    pub(super) fn end_unstarted(&mut self) {
        let exit = self.held_exit.take().unwrap_or(Exit {
            pid: self.init.pid.cast_signed(),
            end: End::Killed(nix::libc::SIGKILL),
            at: SystemTime::now(),
        });
        if let Err(error) = self.step(Event::Exited) {
            return warn!("{error}");
        }
        self.init.ended(ExitRecord::from(exit));
    }

    /// Whether a dump may begin, how, and which processes are to be ended first.
    fn prepare_dump(
        &self,
        request: &Layer,
        usual: &Layer,
    ) -> Result<(CheckpointOptions, DoomedExecs), ShimError> {
        self.lifecycle.after(Event::DumpBegan)?;
        if self.memory.is_some() {
            return Err(ShimError::FailedPrecondition(format!(
                "container {} cannot be dumped: its memory is still on its way from the other host; wait until the move \
                 has ended",
                self.identity.id
            )));
        }
        let options = self.identity.dump_options(request, usual)?;
        let execs = self.summary().execs;
        if !execs.is_empty() && !options.kill_execs {
            // CRIU refuses them after the freeze; here the reason can be told and costs nothing.
            return Err(ShimError::FailedPrecondition(format!(
                "container {} cannot be dumped while processes started by exec run in it: end {} first, or start it \
                 with the annotation io.godwit.checkpoint.kill-execs=true to have them killed",
                self.identity.id,
                execs.join(", ")
            )));
        }
        let pids = execs.iter().filter_map(|id| self.execs.get(id));
        let doomed = DoomedExecs {
            site: self.identity.site(),
            init: self.init.pid.cast_signed(),
            paused: self.lifecycle == Lifecycle::Paused,
            pids: pids.map(|exec| exec.process.pid.cast_signed()).collect(),
        };
        Ok((options, doomed))
    }

    fn dump_request(
        &self,
        image_dir: PathBuf,
        work_dir: Option<PathBuf>,
        options: CheckpointOptions,
        hold: Option<Hold>,
    ) -> DumpRequest {
        DumpRequest {
            pid: self.init.pid.cast_signed(),
            paused: self.lifecycle == Lifecycle::Paused,
            terminal: self.init.stdio.terminal,
            image_dir,
            work_dir,
            options,
            hold,
        }
    }

    /// The dump begins; returns the state that a container that is not killed goes back to.
    fn begin_dump(&mut self) -> Lifecycle {
        let before = self.lifecycle;
        self.init.operation = Some("checkpoint");
        if let Err(error) = self.step(Event::DumpBegan) {
            warn!("{error}");
        }
        before
    }

    fn undo_dump(&mut self, resume_as: Lifecycle) {
        if self.lifecycle == Lifecycle::Stopped {
            return;
        }
        let back = self.step(Event::DumpUndone).and_then(|()| match resume_as {
            Lifecycle::Paused => self.step(Event::Paused),
            _ => Ok(()),
        });
        if let Err(error) = back {
            warn!("{error}");
        }
    }

    fn tell_finished(&mut self, answer: &Result<Finished, String>) {
        for waiter in self.finish_waiters.drain(..) {
            // Whoever waited may have gone.
            let _ = waiter.send(answer.clone().map_err(ShimError::Failed));
        }
    }
}

/// What a move does where neither the container nor the host says otherwise. A client that is just connecting is no reason
/// to fail it: left out, it tries again or sees a reset.
fn usual_of_moves() -> Layer {
    Layer {
        skip_in_flight: Some(true),
        ..Layer::default()
    }
}

/// Processes of exec that must not be there when a dump begins: they belong to a process tree outside the container.
struct DoomedExecs {
    site: Site,
    init: i32,
    paused: bool,
    pids: Vec<i32>,
}

impl DoomedExecs {
    /// Kills them with all that descends from them or is in their sessions, and waits for their end. What an exec has
    /// left behind when it ended, or has made independent of itself, is the container's by now, and stays.
    async fn end(self) -> Result<(), CheckpointError> {
        if self.pids.is_empty() {
            return Ok(());
        }
        let unready = |error: std::io::Error| CheckpointError::unready("dump", &self.site, &error);
        let mut doomed = Doomed::sessions_of(&self.pids);
        if !self.paused {
            return doomed.end().await.map_err(unready);
        }
        // What is frozen dies only when it thaws, and containerd pauses a container before each checkpoint.
        doomed.kill().map_err(unready)?;
        let freezer = Freezer::of(self.init).map_err(unready)?;
        freezer.thaw().map_err(unready)?;
        let ended = doomed.end().await;
        // The holder waits until all tasks have frozen.
        freezer.pause().map_err(unready)?;
        ended.map_err(unready)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_move_leaves_out_who_is_just_connecting_unless_told_otherwise() {
        let told = Layer {
            skip_in_flight: Some(false),
            ..Layer::default()
        };
        let skips = |layers: &[&Layer]| CheckpointOptions::resolve(layers).skip_in_flight;
        assert!(skips(&[&Layer::default(), &usual_of_moves()]));
        assert!(!skips(&[&told, &usual_of_moves()]));
        assert!(!skips(&[&Layer::default()]));
    }
}
