//! The owner of one container: the only task that knows and changes its state.
//!
//! It takes commands from its inbox and happenings from its operations. Whatever takes time (every call of runC)
//! runs as an operation beside it, so that State, Pids, Wait and Stats are answered at any time. A command that
//! must not overlap an operation of the same process waits for its end, in order. Events go out in the order in
//! which this task sees things happen, and an exit it sees before the answer to Start is held back until then:
//! create, start, exec added, exec started, exit of execs, exit of the init, delete.

use std::collections::HashMap;
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use containerd_shim::api::{CreateTaskRequest, DeleteResponse, StateResponse, Status, UpdateTaskRequest};
use containerd_shim::protos::events::task as events;
use containerd_shim::protos::protobuf::{Message, MessageFull};
use containerd_shim::protos::shim::oci::ProcessDetails;
use containerd_shim::protos::types::task::ProcessInfo;
use godwit_runtime::bundle::ExitRecord;
use godwit_runtime::cgroup::Cgroup;
use godwit_runtime::oom::OomWatch;
use godwit_runtime::reaper::Exit;
use godwit_runtime::runc::RuncError;
use log::{error, warn};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::Shim;
use super::command::{Command, Reply, Summary};
use super::create::{self, Created, Identity};
use super::exec::{self, Exec};
use super::lifecycle::{Event, ExecEvent, Lifecycle};
use super::process::Process;
use crate::error::{ShimError, failed};
use crate::io::ProcessIo;
use crate::metrics;
use crate::publisher::{any, timestamp};

/// With its init gone, the kernel kills what else runs in a container; its exit is told after theirs, but not later than this.
const EXECS_DEADLINE: Duration = Duration::from_secs(2);

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
        result: Result<(), ShimError>,
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
    /// The init's exit, seen and not yet told.
    held_exit: Option<Exit>,
    happenings: JoinSet<Happening>,
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
            let mut creation = tokio::spawn(create::create(owner.identity.clone(), request.clone()));
            let created = loop {
                tokio::select! {
                    created = &mut creation => break created.unwrap_or_else(|error| Err(failed("create")(error))),
                    Some(command) = commands.recv() => owner.while_creating(command),
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
        let identity = Identity::of(shim, request)?;
        identity.publish(shim)?;
        Ok(Self {
            shim: shim.clone(),
            identity,
            lifecycle: Lifecycle::Creating,
            init: Process::new(create::stdio(request)),
            execs: HashMap::new(),
            n_execs: 0,
            cgroup: None,
            held_exit: None,
            happenings: JoinSet::new(),
        })
    }

    /// While runC makes the container it cannot be asked for anything but what is known of it.
    fn while_creating(&mut self, command: Command) {
        match command {
            Command::Inspect { reply } => drop(reply.send(Ok(self.summary()))),
            Command::Wait { exec_id, reply } if exec_id.is_empty() => self.init.wait(reply),
            other => other.refuse(ShimError::NotFound(format!(
                "container {} is being created",
                self.identity.id
            ))),
        }
    }

    fn created(&mut self, created: Created, request: &CreateTaskRequest) -> Result<u32, ShimError> {
        self.step(Event::Created)?;
        let id = &self.identity.id;
        let pid = created.pid.unsigned_abs();
        self.init.pid = pid;
        self.init.io = created.io;
        self.cgroup = created.cgroup;
        match self.cgroup.as_ref().map_or(Ok(None), OomWatch::of) {
            Ok(Some(watch)) => self.watch_memory(watch),
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
            Command::Wait { exec_id, reply } => match self.process_mut(&exec_id) {
                Ok(process) => process.wait(reply),
                Err(error) => drop(reply.send(Err(error))),
            },
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
            } => {
                drop(
                    reply.send(
                        self.process_mut(&exec_id)
                            .and_then(|process| process.io.resize(columns, rows)),
                    ),
                );
            }
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
                String::new()
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
                self.publish(&events::TaskOOM {
                    container_id: self.identity.id.clone(),
                    ..Default::default()
                });
                return self.watch_memory(watch);
            }
            Happening::Nothing => return,
        };
        while let Some(command) = self.process_mut(&exec_id).ok().and_then(Process::next_deferred) {
            self.perform(command);
        }
    }

    // The init.

    fn start(&mut self, reply: Reply<u32>) {
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

    fn freeze(&mut self, event: Event, reply: Reply<()>) {
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

    fn publish_frozen(&self, event: Event) {
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

    fn kill(&mut self, signal: u32, all: bool, reply: Reply<()>) {
        if self.lifecycle == Lifecycle::Stopped {
            return drop(reply.send(Err(finished())));
        }
        let Identity { id, runc, .. } = self.identity.clone();
        self.happenings.spawn(async move {
            let _ = reply.send(runc.kill(&id, signal, all).await.map_err(kill_error));
            Happening::Nothing
        });
    }

    fn update(&mut self, request: &UpdateTaskRequest, reply: Reply<()>) {
        let file = self.identity.bundle.join("resources.json");
        let resources = request
            .resources
            .as_ref()
            .map_or(b"{}" as &[u8], |resources| &resources.value);
        if let Err(error) = fs::write(&file, resources) {
            return drop(reply.send(Err(failed("write to the bundle")(error))));
        }
        self.init.operation = Some("update");
        let Identity { id, runc, .. } = self.identity.clone();
        self.happenings.spawn(async move {
            let result = runc
                .update(&id, &file)
                .await
                .map_err(failed("OCI runtime update failed"));
            Happening::Done {
                exec_id: String::new(),
                result,
                reply,
            }
        });
    }

    fn delete(&mut self, reply: Reply<DeleteResponse>) {
        if let Err(error) = self.lifecycle.after(Event::Deleted) {
            return drop(reply.send(Err(error)));
        }
        self.init.operation = Some("delete");
        let force = self.lifecycle != Lifecycle::Stopped;
        let (identity, io) = (self.identity.clone(), self.init.io.clone());
        self.happenings.spawn(async move {
            let result = match identity.runc.delete(&identity.id, force).await {
                Err(error) if !error.is_gone() => Err(failed("OCI runtime delete failed")(error)),
                _ => {
                    io.shutdown().await;
                    identity.withdraw().await;
                    Ok(())
                }
            };
            Happening::Deleted { result, reply }
        });
    }

    fn deleted(&mut self, result: Result<(), ShimError>, reply: Reply<DeleteResponse>) {
        let answer = result
            .and_then(|()| self.step(Event::Deleted))
            .map(|()| self.init.delete_response());
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

    fn init_exited(&mut self, exit: Exit) {
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
    fn tell_held_exit(&mut self) {
        if self.init.operation == Some("start") || self.running_execs() > 0 {
            return;
        }
        if let Some(exit) = self.held_exit.take() {
            self.tell_exit(exit);
        }
    }

    fn tell_exit(&mut self, exit: Exit) {
        if let Err(error) = self.step(Event::Exited) {
            return error!("an exit of container {} does not fit: {error}", self.identity.id);
        }
        self.init.ended(exit.into());
        self.publish(&self.exit_event(&self.identity.id, exit));
    }

    // Further processes.

    fn add_exec(&mut self, request: containerd_shim::api::ExecProcessRequest) -> Result<(), ShimError> {
        if !matches!(self.lifecycle, Lifecycle::Created | Lifecycle::Running) {
            let state = self.lifecycle.name();
            return Err(ShimError::FailedPrecondition(format!(
                "cannot exec in a container that is {state}"
            )));
        }
        if self.execs.contains_key(&request.exec_id) {
            return Err(ShimError::AlreadyExists(format!(
                "exec {} exists",
                request.exec_id
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

    fn start_exec(&mut self, exec_id: String, reply: Reply<u32>) {
        let identity = self.identity.clone();
        let exec = match self.exec_mut(&exec_id) {
            Ok(exec) => exec,
            Err(error) => return drop(reply.send(Err(error))),
        };
        if let Err(error) = exec.lifecycle.after(ExecEvent::Started) {
            return drop(reply.send(Err(error)));
        }
        exec.process.operation = Some("start");
        let (stdio, io) = (exec.process.stdio.clone(), exec.process.io.clone());
        let (description, number) = (exec.description.clone(), exec.number);
        self.happenings.spawn(async move {
            let result = exec::start(identity, stdio, io, description, number).await;
            Happening::ExecStarted {
                exec_id,
                result,
                reply,
            }
        });
    }

    fn exec_started(
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

    fn exec_exited(&mut self, exec_id: &str, exit: Exit) {
        let Ok(exec) = self.exec_mut(exec_id) else { return };
        match exec.lifecycle.after(ExecEvent::Exited) {
            Ok(next) => exec.lifecycle = next,
            Err(error) => return error!("an exit of exec {exec_id} does not fit: {error}"),
        }
        exec.process.ended(exit.into());
        self.publish(&self.exit_event(exec_id, exit));
        self.tell_held_exit();
    }

    fn kill_exec(&mut self, exec_id: &str, signal: u32) -> Result<(), ShimError> {
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

    fn delete_exec(&mut self, exec_id: String, reply: Reply<DeleteResponse>) {
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

    fn running_execs(&self) -> usize {
        let runs = |exec: &&Exec| {
            exec.process.pid != 0 && exec.process.exit.is_none() || exec.process.operation == Some("start")
        };
        self.execs.values().filter(runs).count()
    }

    // What is known.

    fn state(&mut self, exec_id: &str) -> Result<StateResponse, ShimError> {
        let bundle = self.identity.bundle.path().to_string_lossy().into_owned();
        if exec_id.is_empty() {
            let status = match self.init.operation {
                Some("pause") => Status::PAUSING,
                _ => self.lifecycle.status(),
            };
            return Ok(self.init.state_response(&self.identity.id, &bundle, status));
        }
        let exec = self.exec_mut(exec_id)?;
        Ok(exec
            .process
            .state_response(exec_id, &bundle, exec.lifecycle.status()))
    }

    fn summary(&self) -> Summary {
        let running = |(id, exec): (&String, &Exec)| {
            (exec.process.pid != 0 && exec.process.exit.is_none()).then(|| id.clone())
        };
        Summary {
            state: self.lifecycle.name(),
            pid: self.init.pid,
            bundle: self.identity.bundle.path().to_string_lossy().into_owned(),
            rootfs: self.identity.rootfs.to_string_lossy().into_owned(),
            execs: self.execs.iter().filter_map(running).collect(),
        }
    }

    fn pids(&mut self, reply: Reply<Vec<ProcessInfo>>) {
        let execs = self.execs.iter().map(|(id, exec)| (exec.process.pid, id.clone()));
        let execs: HashMap<u32, String> = execs.collect();
        let Identity { id, runc, .. } = self.identity.clone();
        self.happenings.spawn(async move {
            let pids = runc.ps(&id).await.map_err(failed("list the processes"));
            let list = pids.map(|pids| {
                pids.into_iter()
                    .map(|pid| process_info(pid.unsigned_abs(), &execs))
                    .collect()
            });
            let _ = reply.send(list);
            Happening::Nothing
        });
    }

    fn stats(&self) -> Result<containerd_shim::protos::protobuf::well_known_types::any::Any, ShimError> {
        let id = &self.identity.id;
        let cgroup = self
            .cgroup
            .as_ref()
            .filter(|_| self.lifecycle != Lifecycle::Stopped);
        let cgroup = cgroup.ok_or_else(|| ShimError::NotFound(format!("container {id} has no cgroup")))?;
        metrics::read(cgroup).map_err(failed(format!("encode the metrics of container {id}")))
    }

    // Helpers.

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

    fn publish<M: MessageFull + containerd_shim::event::Event>(&self, event: &M) {
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

fn process_info(pid: u32, execs: &HashMap<u32, String>) -> ProcessInfo {
    let details = execs.get(&pid).map(|exec_id| ProcessDetails {
        exec_id: exec_id.clone(),
        ..Default::default()
    });
    ProcessInfo {
        pid,
        info: details
            .and_then(|details| details.write_to_bytes().ok())
            .map(any::<ProcessDetails>)
            .into(),
        ..Default::default()
    }
}

fn kill_error(error: RuncError) -> ShimError {
    if error.is_gone() {
        finished()
    } else {
        failed("OCI runtime kill failed")(error)
    }
}

fn finished() -> ShimError {
    ShimError::NotFound("process already finished".to_owned())
}

fn no_exec(exec_id: &str) -> ShimError {
    ShimError::NotFound(format!("exec {exec_id} is not known"))
}
