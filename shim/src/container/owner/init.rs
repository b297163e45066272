//! The init of a container: start, freeze, kill, update, delete, and its end.

use std::fs;
use std::pin::pin;
use std::time::Duration;

use containerd_shim::api::{DeleteResponse, UpdateTaskRequest};
use containerd_shim::protos::events::task as events;
use godwit_runtime::bundle::ExitRecord;
use godwit_runtime::freezer::Freezer;
use godwit_runtime::reaper::Exit;
use godwit_runtime::runc::RuncError;
use log::{error, warn};
use serde_json::Value;
use tokio::time::{sleep, timeout};

use super::super::command::Reply;
use super::super::identity::Identity;
use super::super::lifecycle::{Event, Lifecycle};
use super::{Happening, Owner, finished};
use crate::error::{ShimError, failed};

/// With its init gone, the kernel kills what else runs in a container; its exit is told after theirs, but not later
/// than this.
const EXECS_DEADLINE: Duration = Duration::from_secs(2);

/// How long runC may take to kill. On cgroup v1 it thaws what is paused, and waits without end where the freezer hangs
/// half-way because a task waits for a device or a file server; such a wait a SIGKILL may well end.
const FREEZING_PATIENCE: Duration = Duration::from_secs(2);

impl Owner {
    pub(super) fn start(&mut self, reply: Reply<u32>) {
        if let Some(pending) = self.restore.take() {
            return self.start_restored(pending, reply);
        }
        if let Err(error) = self.lifecycle.after(Event::Started) {
            return drop(reply.send(Err(error)));
        }
        self.init.operation = Some("start");
        let Identity { id, runc, .. } = self.identity.clone();
        self.happenings.spawn(async move {
            let result = runc.start(&id).await.map_err(failed("OCI runtime start failed"));
            Happening::Started { result, reply }
        });
    }

    pub(super) fn started(&mut self, result: Result<(), ShimError>, reply: Reply<u32>) {
        self.init.operation = None;
        let started = result
            .and_then(|()| self.step(Event::Started))
            .map(|()| self.init.pid);
        if let Ok(pid) = started {
            self.publish(&events::TaskStart {
                container_id: self.identity.id.clone(),
                pid,
                ..Default::default()
            });
        }
        let _ = reply.send(started);
        self.tell_held_exit();
    }

    pub(super) fn freeze(&mut self, event: Event, reply: Reply<()>) {
        if let Err(error) = self.lifecycle.after(event) {
            return drop(reply.send(Err(error)));
        }
        self.init.operation = Some(if event == Event::Paused { "pause" } else { "resume" });
        let Identity { id, runc, .. } = self.identity.clone();
        self.happenings.spawn(async move {
            let result = match event {
                Event::Paused => runc.pause(&id).await.map_err(failed("OCI runtime pause failed")),
                _ => runc
                    .resume(&id)
                    .await
                    .map_err(failed("OCI runtime resume failed")),
            };
            Happening::Frozen { result, event, reply }
        });
    }

    pub(super) fn publish_frozen(&self, event: Event) {
        let container_id = self.identity.id.clone();
        match event {
            Event::Paused => self.publish(&events::TaskPaused {
                container_id,
                ..Default::default()
            }),
            _ => self.publish(&events::TaskResumed {
                container_id,
                ..Default::default()
            }),
        }
    }

    pub(super) fn kill(&mut self, signal: u32, all: bool, reply: Reply<()>) {
        // All of a container that shares its pids with others may outlive its init.
        if self.lifecycle == Lifecycle::Stopped && !all {
            return drop(reply.send(Err(finished())));
        }
        if self.restore.take().is_some() {
            // The gate stays shut for good: CRIU fails, and takes with it what it has made.
            self.end_unstarted();
            return drop(reply.send(Ok(())));
        }
        let Identity { id, runc, .. } = self.identity.clone();
        let pid = self.init.pid.cast_signed();
        self.happenings.spawn(async move {
            let mut kill = pin!(runc.kill(&id, signal, all));
            let killed = match timeout(FREEZING_PATIENCE, &mut kill).await {
                Ok(killed) => killed,
                Err(_) => {
                    // Only what is to die anyway is let go for it; runC would do so itself.
                    if signal == nix::libc::SIGKILL.unsigned_abs()
                        && let Err(error) = Freezer::of(pid).and_then(|freezer| freezer.thaw())
                    {
                        warn!("container {id}, which is killed, may be frozen still: {error}");
                    }
                    kill.await
                }
            };
            let _ = reply.send(killed.map_err(kill_error));
            Happening::Nothing
        });
    }

    pub(super) fn update(&mut self, request: &UpdateTaskRequest, reply: Reply<()>) {
        let file = self.identity.bundle.join("resources.json");
        let prepared = self.resources(request).and_then(|resources| {
            fs::write(&file, resources.to_string()).map_err(failed("write to the bundle"))
        });
        if let Err(error) = prepared {
            return drop(reply.send(Err(error)));
        }
        self.init.operation = Some("update");
        let Identity { id, runc, .. } = self.identity.clone();
        self.happenings.spawn(async move {
            let result = runc
                .update(&id, &file)
                .await
                .map_err(failed("OCI runtime update failed"));
            // Only runC reads it; the bundle takes along what cannot be removed.
            let _ = fs::remove_file(file);
            Happening::Done {
                exec_id: String::new(),
                result,
                reply,
            }
        });
    }

    /// The resources that are asked for, as OCI's JSON; what they mean is runC's to judge. The request's annotations
    /// are for runtimes with resources of their own, and runC has none.
    fn resources(&self, request: &UpdateTaskRequest) -> Result<Value, ShimError> {
        let id = &self.identity.id;
        if self.held_exit.is_some() || self.lifecycle == Lifecycle::Stopped {
            return Err(ShimError::FailedPrecondition(format!(
                "cannot update container {id}, which has ended"
            )));
        }
        let bytes = request
            .resources
            .as_ref()
            .map_or(b"{}" as &[u8], |resources| &resources.value);
        let bad =
            |why: String| ShimError::InvalidArgument(format!("the resources for container {id}: {why}"));
        match serde_json::from_slice(bytes) {
            Ok(resources @ Value::Object(_)) => Ok(resources),
            Ok(_) => Err(bad("they are no JSON object".to_owned())),
            Err(error) => Err(bad(error.to_string())),
        }
    }

    pub(super) fn delete(&mut self, reply: Reply<DeleteResponse>) {
        if let Err(error) = self.lifecycle.after(Event::Deleted) {
            return drop(reply.send(Err(error)));
        }
        self.init.operation = Some("delete");
        let force = self.lifecycle != Lifecycle::Stopped;
        // A container that was never started has no exit, although it is killed now.
        let response = self.init.delete_response();
        let (identity, io) = (self.identity.clone(), self.init.io.clone());
        self.happenings.spawn(async move {
            let result = match identity.runc.delete(&identity.id, force).await {
                Err(error) if !error.is_gone() => Err(failed("OCI runtime delete failed")(error)),
                _ => {
                    io.shutdown().await;
                    identity.withdraw().await;
                    Ok(response)
                }
            };
            Happening::Deleted { result, reply }
        });
    }

    pub(super) fn deleted(
        &mut self,
        result: Result<DeleteResponse, ShimError>,
        reply: Reply<DeleteResponse>,
    ) {
        let answer = result.and_then(|response| self.step(Event::Deleted).map(|()| response));
        if let Ok(response) = &answer {
            while let Some(waiting) = self.init.take_deferred() {
                waiting.refuse(ShimError::NotFound(format!(
                    "container {} is deleted",
                    self.identity.id
                )));
            }
            self.publish(&events::TaskDelete {
                container_id: self.identity.id.clone(),
                pid: response.pid,
                exit_status: response.exit_status,
                exited_at: response.exited_at.clone(),
                ..Default::default()
            });
            // Before the answer, because the engine asks for the shim's end right after it.
            self.shim.registry.remove(&self.identity.id);
        }
        let _ = reply.send(answer);
    }

    pub(super) fn init_exited(&mut self, exit: Exit) {
        let record = ExitRecord::from(exit);
        if let Err(error) = self.identity.bundle.write_exit(&record) {
            // The bundle may be gone already when the container was deleted by force.
            warn!("the exit of container {} is not kept: {error}", self.identity.id);
        }
        if !self.identity.private_pids {
            let Identity { id, runc, .. } = self.identity.clone();
            self.happenings.spawn(async move {
                match runc.kill(&id, nix::libc::SIGKILL.unsigned_abs(), true).await {
                    Err(error) if !error.is_gone() => {
                        warn!("processes of container {id} may be left: {error}");
                    }
                    _ => {}
                }
                Happening::Nothing
            });
        }
        self.held_exit = Some(exit);
        if self.running_execs() > 0 {
            self.happenings.spawn(async {
                sleep(EXECS_DEADLINE).await;
                Happening::ExecsOverdue
            });
        }
        self.tell_held_exit();
    }

    /// Tells the init's exit as soon as it has its turn: after Start and after the exits of all execs.
    pub(super) fn tell_held_exit(&mut self) {
        if matches!(self.init.operation, Some("start" | "checkpoint")) || self.running_execs() > 0 {
            return;
        }
        if let Some(exit) = self.held_exit.take() {
            self.tell_exit(exit);
        }
    }

    pub(super) fn tell_exit(&mut self, exit: Exit) {
        if let Some(memory) = self.memory.take()
            && self.identity.private_pids
        {
            // Without its init nothing is left that a page could come for; what else has the cgroup's name is another's.
            memory.tasks_have_ended();
        }
        if self.lifecycle == Lifecycle::Stopped {
            // A failed restore has ended the container before its half-restored process was gone.
            return;
        }
        if let Err(error) = self.step(Event::Exited) {
            return error!("an exit of container {} does not fit: {error}", self.identity.id);
        }
        self.init.ended(exit.into());
        // What killed it is told before its end: after that the engine looks no more.
        if self.oom_kills.as_ref().is_some_and(|kills| kills.take_untold()) {
            self.publish_out_of_memory();
        }
        self.publish(&self.exit_event(&self.identity.id, exit));
    }
}

fn kill_error(error: RuncError) -> ShimError {
    if error.is_gone() {
        finished()
    } else {
        failed("OCI runtime kill failed")(error)
    }
}
