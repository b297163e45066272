//! What can be told of a container at any time: state, processes, metrics.

use std::collections::HashMap;

use containerd_shim::api::{StateResponse, Status, WaitResponse};
use containerd_shim::protos::protobuf::Message;
use containerd_shim::protos::protobuf::well_known_types::any::Any;
use containerd_shim::protos::shim::oci::ProcessDetails;
use containerd_shim::protos::types::task::ProcessInfo;

use super::super::command::{Reply, Summary};
use super::super::exec::Exec;
use super::super::identity::Identity;
use super::super::lifecycle::ExecLifecycle;
use super::{Happening, Owner};
use crate::error::{ShimError, failed};
use crate::metrics;
use crate::publisher::{DETAILS_PACKAGE, any};

impl Owner {
    pub(super) fn state(&mut self, exec_id: &str) -> Result<StateResponse, ShimError> {
        let bundle = self.identity.bundle.path().to_string_lossy().into_owned();
        let status = match self.init.operation {
            Some("pause") => Status::PAUSING,
            _ => self.lifecycle.status(),
        };
        if exec_id.is_empty() {
            return Ok(self.init.state_response(&self.identity.id, &bundle, status));
        }
        let exec = self.exec_mut(exec_id)?;
        let status = match status {
            // What freezes a container freezes all of its processes.
            Status::PAUSING | Status::PAUSED => status,
            _ => exec.lifecycle.status(),
        };
        Ok(exec.process.state_response(exec_id, &bundle, status))
    }

    pub(super) fn wait(&mut self, exec_id: &str, reply: Reply<WaitResponse>) {
        if exec_id.is_empty() {
            return self.init.wait(reply);
        }
        match self.exec_mut(exec_id) {
            Ok(exec) => {
                exec.process.wait(reply);
                if exec.lifecycle == ExecLifecycle::Failed {
                    exec.process.answer_waiters();
                }
            }
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    pub(super) fn summary(&self) -> Summary {
        let running = |(id, exec): (&String, &Exec)| {
            (exec.process.pid != 0 && exec.process.exit.is_none()).then(|| id.clone())
        };
        Summary {
            state: self.lifecycle.name(),
            pid: self.init.pid,
            bundle: self.identity.bundle.path().to_string_lossy().into_owned(),
            rootfs: self.identity.rootfs.to_string_lossy().into_owned(),
            execs: self.execs.iter().filter_map(running).collect(),
            fetching_memory: self.memory.is_some(),
        }
    }

    pub(super) fn pids(&mut self, reply: Reply<Vec<ProcessInfo>>) {
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

    pub(super) fn stats(&self) -> Result<Any, ShimError> {
        let id = &self.identity.id;
        let cgroup = self.cgroup.as_ref();
        let cgroup = cgroup.ok_or_else(|| ShimError::NotFound(format!("container {id} has no cgroup")))?;
        metrics::read(cgroup).map_err(failed(format!("encode the metrics of container {id}")))
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
            .map(|value| any::<ProcessDetails>(DETAILS_PACKAGE, value))
            .into(),
        ..Default::default()
    }
}
