//! The further processes of a container: added, started, killed, deleted, ended.

use containerd_shim::api::{DeleteResponse, ExecProcessRequest};
use containerd_shim::protos::events::task as events;
use godwit_runtime::reaper::Exit;
use log::error;

use super::super::command::Reply;
use super::super::exec::{self, Exec};
use super::super::lifecycle::{ExecEvent, ExecLifecycle, Lifecycle};
use super::{Happening, Owner, finished, no_exec};
use crate::error::ShimError;
use crate::io::ProcessIo;

impl Owner {
    pub(super) fn add_exec(&mut self, request: ExecProcessRequest) -> Result<(), ShimError> {
        if self.execs.contains_key(&request.exec_id) {
            return Err(ShimError::AlreadyExists(format!(
                "exec {} exists",
                request.exec_id
            )));
        }
        if !matches!(self.lifecycle, Lifecycle::Created | Lifecycle::Running) {
            let state = self.lifecycle.name();
            return Err(ShimError::FailedPrecondition(format!(
                "cannot exec in a container that is {state}"
            )));
        }
        self.n_execs += 1;
        let exec = Exec::describe(&request, self.n_execs)?;
        self.execs.insert(request.exec_id.clone(), exec);
        self.publish(&events::TaskExecAdded {
            container_id: self.identity.id.clone(),
            exec_id: request.exec_id,
            ..Default::default()
        });
        Ok(())
    }

    pub(super) fn start_exec(&mut self, exec_id: String, reply: Reply<u32>) {
        let identity = self.identity.clone();
        let init_ended = self.held_exit.is_some() || self.lifecycle == Lifecycle::Stopped;
        let exec = match self.exec_mut(&exec_id) {
            Ok(exec) => exec,
            Err(error) => return drop(reply.send(Err(error))),
        };
        if let Err(error) = exec.lifecycle.after(ExecEvent::Started) {
            return drop(reply.send(Err(error)));
        }
        if init_ended {
            return drop(reply.send(Err(ShimError::FailedPrecondition(format!(
                "exec {exec_id} cannot start: the container's own process has ended"
            )))));
        }
        exec.process.operation = Some("start");
        let (stdio, io) = (exec.process.stdio.clone(), exec.process.io.clone());
        let (description, number) = (exec.description.clone(), exec.number);
        self.happenings.spawn(async move {
            let result = exec::start(identity, &exec_id, stdio, io, description, number).await;
            Happening::ExecStarted {
                exec_id,
                result,
                reply,
            }
        });
    }

    pub(super) fn exec_started(
        &mut self,
        exec_id: &str,
        result: Result<exec::Started, (ShimError, ProcessIo)>,
        reply: Reply<u32>,
    ) {
        let Ok(exec) = self.exec_mut(exec_id) else {
            return drop(reply.send(Err(no_exec(exec_id))));
        };
        exec.process.operation = None;
        let started = match result {
            Ok(started) => started,
            Err((error, io)) => {
                exec.process.io = io;
                if let Ok(next) = exec.lifecycle.after(ExecEvent::StartFailed) {
                    exec.lifecycle = next;
                }
                // Nothing will ever end that they could be told of.
                exec.process.answer_waiters();
                drop(reply.send(Err(error)));
                return self.tell_held_exit();
            }
        };
        match exec.lifecycle.after(ExecEvent::Started) {
            Ok(next) => exec.lifecycle = next,
            Err(error) => return drop(reply.send(Err(error))),
        }
        let pid = started.pid.unsigned_abs();
        exec.process.pid = pid;
        exec.process.io = started.io;
        let (mut departure, name) = (started.departure, exec_id.to_owned());
        self.happenings.spawn(async move {
            let exit = departure.wait().await;
            Happening::ExecExited { exec_id: name, exit }
        });
        self.publish(&events::TaskExecStarted {
            container_id: self.identity.id.clone(),
            exec_id: exec_id.to_owned(),
            pid,
            ..Default::default()
        });
        let _ = reply.send(Ok(pid));
    }

    pub(super) fn exec_exited(&mut self, exec_id: &str, exit: Exit) {
        let Ok(exec) = self.exec_mut(exec_id) else { return };
        match exec.lifecycle.after(ExecEvent::Exited) {
            Ok(next) => exec.lifecycle = next,
            Err(error) => return error!("an exit of exec {exec_id} does not fit: {error}"),
        }
        exec.process.ended(exit.into());
        self.publish(&self.exit_event(exec_id, exit));
        self.tell_held_exit();
    }

    /// Sets the size of a process's terminal; the init's is left alone once it has ended.
    pub(super) fn resize(&mut self, exec_id: &str, columns: u32, rows: u32) -> Result<(), ShimError> {
        if exec_id.is_empty() {
            return match self.lifecycle {
                Lifecycle::Stopped => Ok(()),
                _ => self.init.io.resize(columns, rows),
            };
        }
        let exec = self.exec_mut(exec_id)?;
        match exec.lifecycle {
            ExecLifecycle::Stopped => Err(ShimError::FailedPrecondition(format!(
                "cannot resize the terminal of exec {exec_id}, which has ended"
            ))),
            _ => exec.process.io.resize(columns, rows),
        }
    }

    pub(super) fn kill_exec(&mut self, exec_id: &str, signal: u32) -> Result<(), ShimError> {
        let reaper = self.shim.reaper.clone();
        let process = &self.exec_mut(exec_id)?.process;
        match (process.pid, &process.exit) {
            (0, _) => Err(ShimError::FailedPrecondition(format!(
                "exec {exec_id} is not started"
            ))),
            (_, Some(_)) => Err(finished()),
            (pid, None) if reaper.kill(pid.cast_signed(), signal.cast_signed()) => Ok(()),
            _ => Err(finished()),
        }
    }

    pub(super) fn delete_exec(&mut self, exec_id: String, reply: Reply<DeleteResponse>) {
        let exec = match self.exec_mut(&exec_id) {
            Ok(exec) => exec,
            Err(error) => return drop(reply.send(Err(error))),
        };
        if let Err(error) = exec.lifecycle.after(ExecEvent::Deleted) {
            return drop(reply.send(Err(error)));
        }
        exec.process.operation = Some("delete");
        let io = exec.process.io.clone();
        self.happenings.spawn(async move {
            io.shutdown().await;
            Happening::ExecDeleted { exec_id, reply }
        });
    }

    pub(super) fn running_execs(&self) -> usize {
        let runs = |exec: &&Exec| {
            exec.process.pid != 0 && exec.process.exit.is_none() || exec.process.operation == Some("start")
        };
        self.execs.values().filter(runs).count()
    }
}
