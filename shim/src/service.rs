//! containerd's task API: each request becomes one command to its container's owner.
//!
//! Served under both names containerd knows it by, v2 and v3, which have the same messages.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
    CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest, PauseRequest,
    PidsRequest, PidsResponse, ResizePtyRequest, ResumeRequest, ShutdownRequest, StartRequest, StartResponse,
    StateRequest, StateResponse, StatsRequest, StatsResponse, UpdateTaskRequest, WaitRequest, WaitResponse,
};
use containerd_shim::protos::shim_async::{Task, create_task};
use containerd_shim::protos::ttrpc::r#async::{Service, TtrpcContext};
use containerd_shim::{TtrpcResult, protos::ttrpc};

use crate::container::{Command, Registry, Reply, Shim};
use crate::options;

/// What containerd looks for on a shim and can do without.
const UNSERVED: [&str; 1] = ["containerd.runtime.sandbox.v1.Sandbox"];

/// The task service.
pub(crate) struct TaskService {
    shim: Arc<Shim>,
}

/// The service under its two names.
pub(crate) fn services(shim: &Arc<Shim>) -> HashMap<String, Service> {
    let make = || create_task(Arc::new(TaskService { shim: shim.clone() }));
    let renamed = make()
        .into_iter()
        .map(|(name, service)| (name.replace(".v3.", ".v2."), service));
    // Named, so that who tries them reads "unimplemented" as from the stock shim.
    let unserved = UNSERVED.map(|name| {
        let service = Service {
            methods: HashMap::new(),
            streams: HashMap::new(),
        };
        (name.to_owned(), service)
    });
    make().into_iter().chain(renamed).chain(unserved).collect()
}

impl TaskService {
    async fn ask<T>(&self, id: &str, make: impl FnOnce(Reply<T>) -> Command) -> Result<T, ttrpc::Error> {
        Ok(self.shim.registry.get(id)?.ask(make).await?)
    }
}

#[async_trait]
impl Task for TaskService {
    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> TtrpcResult<StateResponse> {
        let exec_id = request.exec_id;
        self.ask(&request.id, |reply| Command::State { exec_id, reply })
            .await
    }

    async fn create(&self, _: &TtrpcContext, request: CreateTaskRequest) -> TtrpcResult<CreateTaskResponse> {
        let pid = Registry::create(&self.shim, request).await?;
        Ok(CreateTaskResponse {
            pid,
            ..Default::default()
        })
    }

    async fn start(&self, _: &TtrpcContext, request: StartRequest) -> TtrpcResult<StartResponse> {
        let exec_id = request.exec_id;
        let pid = self
            .ask(&request.id, |reply| Command::Start { exec_id, reply })
            .await?;
        Ok(StartResponse {
            pid,
            ..Default::default()
        })
    }

    async fn delete(&self, _: &TtrpcContext, request: DeleteRequest) -> TtrpcResult<DeleteResponse> {
        let exec_id = request.exec_id;
        self.ask(&request.id, |reply| Command::Delete { exec_id, reply })
            .await
    }

    async fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> TtrpcResult<PidsResponse> {
        let processes = self.ask(&request.id, |reply| Command::Pids { reply }).await?;
        Ok(PidsResponse {
            processes,
            ..Default::default()
        })
    }

    async fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> TtrpcResult<Empty> {
        self.ask(&request.id, |reply| Command::Pause { reply })
            .await
            .map(empty)
    }

    async fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> TtrpcResult<Empty> {
        self.ask(&request.id, |reply| Command::Resume { reply })
            .await
            .map(empty)
    }

    async fn checkpoint(&self, _: &TtrpcContext, request: CheckpointTaskRequest) -> TtrpcResult<Empty> {
        let order = options::checkpoint_order(&request)?;
        self.ask(&request.id, |reply| Command::Checkpoint { order, reply })
            .await
            .map(empty)
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> TtrpcResult<Empty> {
        let KillRequest {
            exec_id, signal, all, ..
        } = request;
        self.ask(&request.id, |reply| Command::Kill {
            exec_id,
            signal,
            all,
            reply,
        })
        .await
        .map(empty)
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> TtrpcResult<Empty> {
        let id = request.id.clone();
        self.ask(&id, |reply| Command::Exec { request, reply })
            .await
            .map(empty)
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: ResizePtyRequest) -> TtrpcResult<Empty> {
        let ResizePtyRequest {
            exec_id,
            width: columns,
            height: rows,
            ..
        } = request;
        self.ask(&request.id, |reply| Command::ResizePty {
            exec_id,
            columns,
            rows,
            reply,
        })
        .await
        .map(empty)
    }

    async fn close_io(&self, _: &TtrpcContext, request: CloseIORequest) -> TtrpcResult<Empty> {
        let CloseIORequest { exec_id, stdin, .. } = request;
        self.ask(&request.id, |reply| Command::CloseIo {
            exec_id,
            stdin,
            reply,
        })
        .await
        .map(empty)
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateTaskRequest) -> TtrpcResult<Empty> {
        let id = request.id.clone();
        self.ask(&id, |reply| Command::Update { request, reply })
            .await
            .map(empty)
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> TtrpcResult<WaitResponse> {
        let exec_id = request.exec_id;
        self.ask(&request.id, |reply| Command::Wait { exec_id, reply })
            .await
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> TtrpcResult<StatsResponse> {
        let stats = self.ask(&request.id, |reply| Command::Stats { reply }).await?;
        Ok(StatsResponse {
            stats: Some(stats).into(),
            ..Default::default()
        })
    }

    async fn connect(&self, _: &TtrpcContext, request: ConnectRequest) -> TtrpcResult<ConnectResponse> {
        // A shim that serves a pod is asked before its first container is there.
        let asked = self.ask(&request.id, |reply| Command::Inspect { reply }).await;
        Ok(ConnectResponse {
            shim_pid: std::process::id(),
            task_pid: asked.map(|summary| summary.pid).unwrap_or_default(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        })
    }

    async fn shutdown(&self, _: &TtrpcContext, _: ShutdownRequest) -> TtrpcResult<Empty> {
        // The other containers of a pod still need the shim, however much of a hurry somebody is in.
        if self.shim.registry.is_empty() {
            self.shim.shutdown.cancel();
        }
        Ok(Empty::new())
    }
}

fn empty((): ()) -> Empty {
    Empty::new()
}
