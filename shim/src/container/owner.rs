//! The owner of one container: the only task that knows and changes its state.
//!
//! It takes commands from its inbox and happenings from its operations. Whatever takes time (every call of runC)
//! runs as an operation beside it, so that State, Pids, Wait and Stats are answered at any time. A command that
//! must not overlap an operation of the same process waits for its end, in order. Events go out in the order in
//! which this task sees things happen, and an exit it sees before the answer to Start is held back until then:
//! create, start, exec added, exec started, exit of execs, exit of the init, delete.

mod checkpointing;
mod execs;
mod init;
mod known;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use containerd_shim::api::{CreateTaskRequest, DeleteResponse};
use containerd_shim::protos::events::task as events;
use containerd_shim::protos::protobuf::Message;
use godwit_runtime::cgroup::Cgroup;
use godwit_runtime::checkpoint::dump::{Dump, DumpEnd};
use godwit_runtime::checkpoint::lazy::{Arrival, Lease};
use godwit_runtime::checkpoint::restore::Restore;
use godwit_runtime::checkpoint::{CheckpointError, Step};
use godwit_runtime::oom::{OomKills, OomWatch};
use godwit_runtime::reaper::Exit;
use log::{error, warn};
use tokio::sync::{mpsc, oneshot};

use super::Shim;
use super::command::{Command, Delivery, Finished, Held, Reply};
use super::create::{self, Created};
use super::exec::{self, Exec};
use super::identity::{self, Identity};
use super::lifecycle::{Event, Lifecycle};
use super::process::Process;
use super::restore::{Exchange, PendingRestore};
use crate::error::{ShimError, failed};
use crate::io::{Pending, ProcessIo};
use crate::publisher::timestamp;
use crate::task::{self, Tasks};

/// The end of an operation, or of a process.
enum Happening {
    Started {
        result: Result<(), ShimError>,
        reply: Reply<u32>,
    },
    Frozen {
        result: Result<(), ShimError>,
        event: Event,
        reply: Reply<()>,
    },
    /// An operation that changes no state of ours.
    Done {
        exec_id: String,
        result: Result<(), ShimError>,
        reply: Reply<()>,
    },
    Deleted {
        result: Result<DeleteResponse, ShimError>,
        reply: Reply<DeleteResponse>,
    },
    ExecStarted {
        exec_id: String,
        result: Result<exec::Started, (ShimError, ProcessIo)>,
        reply: Reply<u32>,
    },
    ExecDeleted {
        exec_id: String,
        reply: Reply<DeleteResponse>,
    },
    Checkpointed {
        result: Result<DumpEnd, CheckpointError>,
        resume_as: Lifecycle,
        reply: Reply<()>,
    },
    DumpHeld {
        result: Result<Box<(Dump, Vec<Step>)>, CheckpointError>,
        image_dir: PathBuf,
        reply: Reply<Held>,
    },
    DumpEnded(Result<(DumpEnd, Vec<Step>), CheckpointError>),
    RestoreHeld {
        result: Result<Box<(Restore, Vec<Step>)>, CheckpointError>,
        streams: Pending,
        deliverer: Option<Reply<Held>>,
        reply: Reply<u32>,
    },
    RestoreEnded {
        result: Result<(Vec<Step>, ProcessIo, Option<Arrival>), ShimError>,
        reply: Reply<u32>,
    },
    /// No memory is on its way any more.
    MemorySettled,
    Exited(Exit),
    ExecExited {
        exec_id: String,
        exit: Exit,
    },
    ExecsOverdue,
    OutOfMemory(OomWatch),
    /// Something was answered on the side.
    Nothing,
}

struct Owner {
    shim: Arc<Shim>,
    identity: Identity,
    lifecycle: Lifecycle,
    init: Process,
    execs: HashMap<String, Exec>,
    n_execs: u64,
    cgroup: Option<Cgroup>,
    /// The kernel's kills in it for want of memory.
    oom_kills: Option<Arc<OomKills>>,
    /// The init's exit, seen and not yet told.
    held_exit: Option<Exit>,
    /// The restore that this container is made by, until it is started.
    restore: Option<PendingRestore>,
    /// The memory that is still to come after a lazy restore.
    memory: Option<Lease>,
    /// Who waits for the end of a held dump or restore.
    finish_waiters: Vec<Reply<Finished>>,
    happenings: Tasks<Happening>,
}

/// Creates the container, answers, and then serves it until it is deleted.
pub(super) async fn run(
    shim: Arc<Shim>,
    request: CreateTaskRequest,
    reply: Reply<u32>,
    mut commands: mpsc::Receiver<Command>,
) {
    let id = request.id.clone();
    match Owner::begin(&shim, &request) {
        Ok(mut owner) => {
            let (awaited, mut image_awaited) = oneshot::channel();
            let (deliver, delivery) = oneshot::channel();
            let mut deliver = Some(deliver);
            // A creation that awaits no image drops its end; that is an answer too, and there is only one.
            let mut may_await = true;
            let exchange = Exchange { awaited, delivery };
            let mut creation = task::spawn(create::create(owner.identity.clone(), request.clone(), exchange));
            let created = loop {
                tokio::select! {
                    created = &mut creation => break created.unwrap_or_else(|error| Err(failed("create")(error))),
                    awaits = &mut image_awaited, if may_await => {
                        may_await = false;
                        if awaits.is_ok() && let Err(error) = owner.step(Event::ImageAwaited) {
                            error!("{error}");
                        }
                    }
                    Some(command) = commands.recv() => owner.while_creating(command, &mut deliver),
                }
            };
            match created.and_then(|created| owner.created(created, &request)) {
                Ok(pid) => {
                    let _ = reply.send(Ok(pid));
                    owner.serve(commands).await;
                }
                Err(error) => {
                    shim.registry.remove(&id);
                    let _ = reply.send(Err(error));
                }
            }
        }
        Err(error) => {
            shim.registry.remove(&id);
            let _ = reply.send(Err(error));
        }
    }
}

impl Owner {
    fn begin(shim: &Arc<Shim>, request: &CreateTaskRequest) -> Result<Self, ShimError> {
        let mut identity = Identity::of(shim, request)?;
        if let Err(error) = identity.publish(shim) {
            // Nothing else is made yet, and nobody else knows of it.
            let _ = identity.control.remove();
            return Err(error);
        }
        Ok(Self {
            shim: shim.clone(),
            identity,
            lifecycle: Lifecycle::Creating,
            init: Process::new(identity::stdio(request)),
            execs: HashMap::new(),
            n_execs: 0,
            cgroup: None,
            oom_kills: None,
            held_exit: None,
            restore: None,
            memory: None,
            finish_waiters: Vec::new(),
            happenings: Tasks::new(),
        })
    }

    /// While runC makes the container it cannot be asked for anything but what is known of it.
    fn while_creating(&mut self, command: Command, deliver: &mut Option<oneshot::Sender<Delivery>>) {
        match command {
            Command::Finish { reply } => self.finish(reply),
            Command::Deliver(delivery) if self.lifecycle == Lifecycle::AwaitingImage => {
                match deliver.take() {
                    Some(deliver) => drop(deliver.send(delivery)),
                    None => Command::Deliver(delivery).refuse(ShimError::FailedPrecondition(format!(
                        "container {} has got its image already",
                        self.identity.id
                    ))),
                }
            }
            Command::Inspect { reply } => drop(reply.send(Ok(self.summary()))),
            Command::Wait { exec_id, reply } if exec_id.is_empty() => self.init.wait(reply),
            other => other.refuse(ShimError::NotFound(format!(
                "container {} is being created",
                self.identity.id
            ))),
        }
    }

    fn created(&mut self, created: Created, request: &CreateTaskRequest) -> Result<u32, ShimError> {
        self.step(if created.restore.is_some() {
            Event::Gated
        } else {
            Event::Created
        })?;
        self.restore = created.restore;
        let id = &self.identity.id;
        let pid = created.pid.unsigned_abs();
        self.init.pid = pid;
        self.init.io = created.io;
        self.cgroup = created.cgroup;
        match self.cgroup.as_ref().map_or(Ok(None), OomWatch::of) {
            Ok(Some(watch)) => {
                self.oom_kills = Some(watch.kills());
                self.watch_memory(watch);
            }
            Ok(None) => {}
            Err(error) => warn!("a lack of memory in container {id} will not be told: {error}"),
        }
        let mut departure = created.departure;
        self.happenings
            .spawn(async move { Happening::Exited(departure.wait().await) });
        self.publish(&events::TaskCreate {
            container_id: self.identity.id.clone(),
            bundle: request.bundle.clone(),
            rootfs: request.rootfs.clone(),
            io: Some(events::TaskIO {
                stdin: request.stdin.clone(),
                stdout: request.stdout.clone(),
                stderr: request.stderr.clone(),
                terminal: request.terminal,
                ..Default::default()
            })
            .into(),
            checkpoint: request.checkpoint.clone(),
            pid,
            ..Default::default()
        });
        Ok(pid)
    }

    async fn serve(mut self, mut commands: mpsc::Receiver<Command>) {
        while self.lifecycle != Lifecycle::Deleted {
            tokio::select! {
                Some(command) = commands.recv() => self.take(command),
                Some(happened) = self.happenings.join_next() => match happened {
                    Ok(happening) => self.happen(happening),
                    Err(error) => error!("an operation of container {} died: {error}", self.identity.id),
                },
                else => return,
            }
        }
        self.shim.registry.remove(&self.identity.id);
    }

    /// Does a command now, or when the operation it must not overlap is over.
    fn take(&mut self, command: Command) {
        let blocked = command.exclusive_on().map(str::to_owned);
        match blocked.and_then(|exec_id| self.process_mut(&exec_id).ok()) {
            Some(process) if process.operation.is_some() => process.defer(command),
            _ => self.perform(command),
        }
    }

    fn perform(&mut self, command: Command) {
        match command {
            Command::State { exec_id, reply } => drop(reply.send(self.state(&exec_id))),
            Command::Wait { exec_id, reply } => self.wait(&exec_id, reply),
            Command::Pids { reply } => self.pids(reply),
            Command::Stats { reply } => drop(reply.send(self.stats())),
            Command::Inspect { reply } => drop(reply.send(Ok(self.summary()))),
            Command::Start { exec_id, reply } if exec_id.is_empty() => self.start(reply),
            Command::Start { exec_id, reply } => self.start_exec(exec_id, reply),
            Command::Delete { exec_id, reply } if exec_id.is_empty() => self.delete(reply),
            Command::Delete { exec_id, reply } => self.delete_exec(exec_id, reply),
            Command::Kill {
                exec_id,
                signal,
                all,
                reply,
            } if exec_id.is_empty() => self.kill(signal, all, reply),
            Command::Kill {
                exec_id,
                signal,
                reply,
                ..
            } => drop(reply.send(self.kill_exec(&exec_id, signal))),
            Command::Exec { request, reply } => drop(reply.send(self.add_exec(request))),
            Command::Pause { reply } => self.freeze(Event::Paused, reply),
            Command::Resume { reply } => self.freeze(Event::Resumed, reply),
            Command::Update { request, reply } => self.update(&request, reply),
            Command::ResizePty {
                exec_id,
                columns,
                rows,
                reply,
            } => drop(reply.send(self.resize(&exec_id, columns, rows))),
            Command::Checkpoint { order, reply } => self.checkpoint(order, reply),
            Command::Dump { order, reply } => self.dump(order, reply),
            Command::Finish { reply } => self.finish(reply),
            deliver @ Command::Deliver(_) => deliver.refuse(ShimError::FailedPrecondition(format!(
                "container {} waits for no image: it is {}",
                self.identity.id,
                self.lifecycle.name()
            ))),
            Command::CloseIo {
                exec_id,
                stdin,
                reply,
            } => {
                let closed = self.process_mut(&exec_id).map(|process| {
                    if stdin {
                        process.io.close_input();
                    }
                });
                drop(reply.send(closed));
            }
        }
    }

    fn happen(&mut self, happening: Happening) {
        let exec_id = match happening {
            Happening::Started { result, reply } => {
                self.started(result, reply);
                String::new()
            }
            Happening::Checkpointed {
                result,
                resume_as,
                reply,
            } => {
                self.checkpointed(result, resume_as, reply);
                String::new()
            }
            Happening::DumpHeld {
                result,
                image_dir,
                reply,
            } => {
                self.dump_held(result, &image_dir, reply);
                String::new()
            }
            Happening::DumpEnded(result) => {
                self.dump_ended(result);
                String::new()
            }
            Happening::RestoreHeld {
                result,
                streams,
                deliverer,
                reply,
            } => {
                self.restore_held(result, streams, deliverer, reply);
                String::new()
            }
            Happening::RestoreEnded { result, reply } => {
                self.restore_ended(result, reply);
                String::new()
            }
            Happening::MemorySettled => {
                self.memory = None;
                return;
            }
            Happening::Frozen { result, event, reply } => {
                self.init.operation = None;
                let frozen = result.and_then(|()| self.step(event));
                if frozen.is_ok() {
                    self.publish_frozen(event);
                }
                let _ = reply.send(frozen);
                String::new()
            }
            Happening::Done {
                exec_id,
                result,
                reply,
            } => {
                if let Ok(process) = self.process_mut(&exec_id) {
                    process.operation = None;
                }
                let _ = reply.send(result);
                exec_id
            }
            Happening::Deleted { result, reply } => {
                self.init.operation = None;
                self.deleted(result, reply);
                String::new()
            }
            Happening::ExecStarted {
                exec_id,
                result,
                reply,
            } => {
                self.exec_started(&exec_id, result, reply);
                exec_id
            }
            Happening::ExecDeleted { exec_id, reply } => {
                let removed = self.execs.remove(&exec_id);
                let answer = removed.map(|mut exec| {
                    while let Some(waiting) = exec.process.take_deferred() {
                        waiting.refuse(no_exec(&exec_id));
                    }
                    exec.process.delete_response()
                });
                let _ = reply.send(answer.ok_or_else(|| no_exec(&exec_id)));
                exec_id
            }
            Happening::Exited(exit) => {
                self.init_exited(exit);
                String::new()
            }
            Happening::ExecExited { exec_id, exit } => {
                self.exec_exited(&exec_id, exit);
                exec_id
            }
            Happening::ExecsOverdue => {
                if let Some(exit) = self.held_exit.take() {
                    self.tell_exit(exit);
                }
                String::new()
            }
            Happening::OutOfMemory(watch) => {
                self.publish_out_of_memory();
                return self.watch_memory(watch);
            }
            Happening::Nothing => return,
        };
        while let Some(command) = self.process_mut(&exec_id).ok().and_then(Process::next_deferred) {
            self.perform(command);
        }
    }

    fn publish_out_of_memory(&self) {
        self.publish(&events::TaskOOM {
            container_id: self.identity.id.clone(),
            ..Default::default()
        });
    }

    fn watch_memory(&mut self, mut watch: OomWatch) {
        self.happenings.spawn(async move {
            match watch.next().await {
                Some(()) => Happening::OutOfMemory(watch),
                None => Happening::Nothing,
            }
        });
    }

    fn step(&mut self, event: Event) -> Result<(), ShimError> {
        self.lifecycle = self.lifecycle.after(event)?;
        Ok(())
    }

    fn process_mut(&mut self, exec_id: &str) -> Result<&mut Process, ShimError> {
        if exec_id.is_empty() {
            return Ok(&mut self.init);
        }
        self.exec_mut(exec_id).map(|exec| &mut exec.process)
    }

    fn exec_mut(&mut self, exec_id: &str) -> Result<&mut Exec, ShimError> {
        self.execs.get_mut(exec_id).ok_or_else(|| no_exec(exec_id))
    }

    fn publish<M: Message + containerd_shim::event::Event>(&self, event: &M) {
        self.shim.publisher.publish(event);
    }

    fn exit_event(&self, process_id: &str, exit: Exit) -> events::TaskExit {
        events::TaskExit {
            container_id: self.identity.id.clone(),
            id: process_id.to_owned(),
            pid: exit.pid.unsigned_abs(),
            exit_status: exit.status(),
            exited_at: Some(timestamp(exit.at)).into(),
            ..Default::default()
        }
    }
}

fn finished() -> ShimError {
    ShimError::NotFound("process already finished".to_owned())
}

fn no_exec(exec_id: &str) -> ShimError {
    ShimError::NotFound(format!("exec {exec_id} is not known"))
}
