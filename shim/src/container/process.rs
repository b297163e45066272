//! What the init of a container and an exec'ed process have in common: streams, pid, exit and who waits for it.

use std::collections::VecDeque;

use containerd_shim::api::{DeleteResponse, StateResponse, Status, WaitResponse};
use containerd_shim::asynchronous::io::Stdio;
use containerd_shim::protos::protobuf::MessageField;
use containerd_shim::protos::protobuf::well_known_types::timestamp::Timestamp;
use godwit_runtime::bundle::ExitRecord;

use super::command::{Command, Reply};
use crate::error::ShimError;
use crate::io::ProcessIo;
use crate::publisher::timestamp;

/// Clients that wait for one process; an engine has one or two.
const WAITERS_BOUND: usize = 1024;

/// Commands that wait for an operation of the same process to end.
const DEFERRED_BOUND: usize = 64;

/// The first second of the year 1, in seconds since 1970: what containerd's clients take for no time at all.
const NEVER_SECONDS: i64 = -62_135_596_800;

/// One process of a container.
#[derive(Default)]
pub(super) struct Process {
    pub(super) stdio: Stdio,
    pub(super) io: ProcessIo,
    /// 0 until it is known.
    pub(super) pid: u32,
    pub(super) exit: Option<ExitRecord>,
    waiters: Vec<Reply<WaitResponse>>,
    /// The operation that is under way, by name.
    pub(super) operation: Option<&'static str>,
    deferred: VecDeque<Command>,
}

impl Process {
    pub(super) fn new(stdio: Stdio) -> Self {
        Self {
            stdio,
            ..Self::default()
        }
    }

    /// Answers when the process has ended, at once if it has.
    pub(super) fn wait(&mut self, reply: Reply<WaitResponse>) {
        match &self.exit {
            Some(exit) => drop(reply.send(Ok(wait_response(Some(exit))))),
            None if self.waiters.len() < WAITERS_BOUND => self.waiters.push(reply),
            None => drop(reply.send(Err(ShimError::ResourceExhausted(
                "too many clients wait for this process".to_owned(),
            )))),
        }
    }

    /// Keeps the exit and answers all who wait for it.
    pub(super) fn ended(&mut self, exit: ExitRecord) {
        self.exit = Some(exit);
        self.answer_waiters();
    }

    /// Answers all who wait for the end, also of a process that never began.
    pub(super) fn answer_waiters(&mut self) {
        for waiter in self.waiters.drain(..) {
            // Whoever waited may have gone.
            let _ = waiter.send(Ok(wait_response(self.exit.as_ref())));
        }
    }

    /// Keeps a command for when the operation under way is over.
    pub(super) fn defer(&mut self, command: Command) {
        if self.deferred.len() < DEFERRED_BOUND {
            return self.deferred.push_back(command);
        }
        let operation = self.operation.unwrap_or("operation");
        command.refuse(ShimError::ResourceExhausted(format!(
            "too many requests wait for a {operation}"
        )));
    }

    /// The next command that waited, unless an operation is under way again.
    pub(super) fn next_deferred(&mut self) -> Option<Command> {
        match self.operation {
            Some(_) => None,
            None => self.deferred.pop_front(),
        }
    }

    /// A command that waited, whatever is under way: for when the process is gone.
    pub(super) fn take_deferred(&mut self) -> Option<Command> {
        self.deferred.pop_front()
    }

    pub(super) fn delete_response(&self) -> DeleteResponse {
        DeleteResponse {
            pid: self.pid,
            exit_status: exit_status(self.exit.as_ref()),
            exited_at: exited_at(self.exit.as_ref()),
            ..Default::default()
        }
    }

    pub(super) fn state_response(&self, id: &str, bundle: &str, status: Status) -> StateResponse {
        StateResponse {
            id: id.to_owned(),
            bundle: bundle.to_owned(),
            pid: self.pid,
            status: status.into(),
            stdin: self.stdio.stdin.clone(),
            stdout: self.stdio.stdout.clone(),
            stderr: self.stdio.stderr.clone(),
            terminal: self.stdio.terminal,
            exit_status: exit_status(self.exit.as_ref()),
            exited_at: exited_at(self.exit.as_ref()),
            ..Default::default()
        }
    }
}

fn wait_response(exit: Option<&ExitRecord>) -> WaitResponse {
    WaitResponse {
        exit_status: exit_status(exit),
        exited_at: exited_at(exit),
        ..Default::default()
    }
}

fn exit_status(exit: Option<&ExitRecord>) -> u32 {
    exit.map_or(0, |exit| exit.status)
}

/// Always there: without the field a client would read 1970.
fn exited_at(exit: Option<&ExitRecord>) -> MessageField<Timestamp> {
    let never = || Timestamp {
        seconds: NEVER_SECONDS,
        ..Default::default()
    };
    Some(exit.map_or_else(never, |exit| timestamp(exit.at()))).into()
}
