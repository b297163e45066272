//! What can be asked of a container's owner. Each command carries the way back for its answer.

use std::path::PathBuf;
use std::time::Duration;

use containerd_shim::api::{
    DeleteResponse, ExecProcessRequest, StateResponse, UpdateTaskRequest, WaitResponse,
};
use containerd_shim::protos::protobuf::well_known_types::any::Any;
use containerd_shim::protos::types::task::ProcessInfo;
use godwit_runtime::checkpoint::Step;
use godwit_runtime::options::Tcp;
use tokio::sync::oneshot;

use crate::error::ShimError;
use crate::options::CheckpointOrder;

/// A dump that is to be held for a verdict.
#[derive(Clone, Debug)]
pub(crate) struct DumpOrder {
    pub(crate) image_dir: PathBuf,
    pub(crate) verdict: PathBuf,
    pub(crate) hold: Duration,
    pub(crate) drained: Option<PathBuf>,
    /// Whether who asks lists those pages by itself.
    pub(crate) leave_out: bool,
    /// Against what the container and the host say of connections.
    pub(crate) tcp: Option<Tcp>,
}

/// An image for a container that was started with a ticket.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub(crate) image_dir: PathBuf,
    pub(crate) verdict: PathBuf,
    /// The socket of the agent that brings the pages which the image leaves out.
    pub(crate) pages: Option<PathBuf>,
    pub(crate) reply: Reply<Held>,
}

/// A dump or restore that waits for its verdict.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) pid: u32,
    pub(crate) steps: Vec<Step>,
    pub(crate) image_bytes: u64,
}

/// What a verdict has led to.
#[derive(Clone, Debug)]
pub(crate) struct Finished {
    pub(crate) running: bool,
    pub(crate) pid: u32,
    pub(crate) steps: Vec<Step>,
}

/// Where an answer goes.
pub(crate) type Reply<T> = oneshot::Sender<Result<T, ShimError>>;

/// What `Inspect` tells of a container.
#[derive(Clone, Debug)]
pub(crate) struct Summary {
    pub(crate) state: &'static str,
    pub(crate) pid: u32,
    pub(crate) bundle: String,
    pub(crate) rootfs: String,
    pub(crate) execs: Vec<String>,
    pub(crate) fetching_memory: bool,
}

/// A request to the owner. An empty `exec_id` means the container's init.
pub(crate) enum Command {
    State {
        exec_id: String,
        reply: Reply<StateResponse>,
    },
    Wait {
        exec_id: String,
        reply: Reply<WaitResponse>,
    },
    Pids {
        reply: Reply<Vec<ProcessInfo>>,
    },
    Stats {
        reply: Reply<Any>,
    },
    Inspect {
        reply: Reply<Summary>,
    },
    Start {
        exec_id: String,
        reply: Reply<u32>,
    },
    Delete {
        exec_id: String,
        reply: Reply<DeleteResponse>,
    },
    Kill {
        exec_id: String,
        signal: u32,
        all: bool,
        reply: Reply<()>,
    },
    Exec {
        request: ExecProcessRequest,
        reply: Reply<()>,
    },
    Pause {
        reply: Reply<()>,
    },
    Resume {
        reply: Reply<()>,
    },
    Update {
        request: UpdateTaskRequest,
        reply: Reply<()>,
    },
    Checkpoint {
        order: CheckpointOrder,
        reply: Reply<()>,
    },
    Dump {
        order: DumpOrder,
        reply: Reply<Held>,
    },
    Deliver(Delivery),
    /// Waits until a held dump or restore is over.
    Finish {
        reply: Reply<Finished>,
    },
    ResizePty {
        exec_id: String,
        columns: u32,
        rows: u32,
        reply: Reply<()>,
    },
    CloseIo {
        exec_id: String,
        stdin: bool,
        reply: Reply<()>,
    },
}

impl Command {
    /// The process whose operations this must not overlap: the init's (an empty name) or an exec's. None for
    /// what may be answered at any time.
    pub(crate) fn exclusive_on(&self) -> Option<&str> {
        match self {
            Self::Start { exec_id, .. } | Self::Delete { exec_id, .. } | Self::Kill { exec_id, .. } => {
                Some(exec_id)
            }
            Self::Pause { .. }
            | Self::Resume { .. }
            | Self::Update { .. }
            | Self::Checkpoint { .. }
            | Self::Dump { .. } => Some(""),
            Self::State { .. }
            | Self::Wait { .. }
            | Self::Pids { .. }
            | Self::Stats { .. }
            | Self::Inspect { .. }
            | Self::Exec { .. }
            | Self::Deliver(_)
            | Self::Finish { .. }
            | Self::ResizePty { .. }
            | Self::CloseIo { .. } => None,
        }
    }

    /// Answers with an error, whatever was asked.
    pub(crate) fn refuse(self, error: ShimError) {
        // Whoever asked may have gone.
        match self {
            Self::State { reply, .. } => drop(reply.send(Err(error))),
            Self::Wait { reply, .. } => drop(reply.send(Err(error))),
            Self::Pids { reply } => drop(reply.send(Err(error))),
            Self::Stats { reply } => drop(reply.send(Err(error))),
            Self::Inspect { reply } => drop(reply.send(Err(error))),
            Self::Start { reply, .. } => drop(reply.send(Err(error))),
            Self::Delete { reply, .. } => drop(reply.send(Err(error))),
            Self::Dump { reply, .. } | Self::Deliver(Delivery { reply, .. }) => drop(reply.send(Err(error))),
            Self::Finish { reply } => drop(reply.send(Err(error))),
            Self::Kill { reply, .. }
            | Self::Exec { reply, .. }
            | Self::Pause { reply }
            | Self::Resume { reply }
            | Self::Update { reply, .. }
            | Self::Checkpoint { reply, .. }
            | Self::ResizePty { reply, .. }
            | Self::CloseIo { reply, .. } => drop(reply.send(Err(error))),
        }
    }
}
