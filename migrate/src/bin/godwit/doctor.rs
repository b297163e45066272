//! `godwit doctor`: what on this host stands in the way of moves.
//!
//! The agent looks, because it is the agent's environment that counts. Where none answers this command takes the same
//! look by itself, and says so.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use godwit_migrate::config::AgentConfig;
use godwit_migrate::doctor::{self, Diagnosis, Subject};
use godwit_migrate::engine::docker::{DEFAULT_SOCKET, Docker};
use godwit_migrate::engine::set::Engines;
use godwit_migrate::finding::{self, Code, Finding};
use godwit_migrate::host::Tools;

use crate::{client, findings};

/// Used where the configuration cannot be read.
const DEFAULT_TLS: &str = "/etc/godwit/tls";
const DEFAULT_RUN: &str = "/run/godwit";

/// Looks at this host and, through its agent, at `peer`.
pub(crate) async fn run(
    socket: &Path,
    config: &Path,
    peer: Option<&str>,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let path = peer.map_or_else(|| "/v1/doctor".to_owned(), |peer| format!("/v1/doctor/{peer}"));
    let diagnosis: Diagnosis = match client::get(socket, &path).await {
        Ok(diagnosis) => diagnosis,
        Err(error) => match error.downcast_ref::<client::Unreachable>() {
            Some(unreachable) => without_agent(config, peer, unreachable).await,
            None => return Err(error),
        },
    };
    let mut out = anstream::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string(&diagnosis)?)?;
    } else {
        findings::print(&mut out, &diagnosis.findings, true)?;
    }
    Ok(if diagnosis.healthy {
        ExitCode::SUCCESS
    } else {
        crate::EXIT_FAILED.into()
    })
}

/// The look at this host that needs no agent.
async fn without_agent(path: &Path, peer: Option<&str>, why: &client::Unreachable) -> Diagnosis {
    let (config, unusable) = match AgentConfig::load(path) {
        Ok(config) => (Some(config), None),
        Err(error) => (
            None,
            Some(Finding::of_sentence(Code::Configuration, &error.to_string())),
        ),
    };
    let name = config.as_ref().map(|config| config.name.as_str());
    let docker = config.as_ref().and_then(|config| config.docker_socket.clone());
    let docker = Docker::new(docker.unwrap_or_else(|| DEFAULT_SOCKET.into()));
    let engines = Engines::new(vec![Arc::new(docker)]);
    let subject = Subject {
        name,
        engines: &engines,
        tools: &Tools::default(),
        run: config
            .as_ref()
            .map_or(Path::new(DEFAULT_RUN), |config| &config.run_dir),
        tls: config
            .as_ref()
            .map_or(Path::new(DEFAULT_TLS), |config| &config.tls),
    };
    let mut found = doctor::examine(&subject).await.findings;
    let mut more: Vec<Finding> = unusable.into_iter().collect();
    more.push(Finding::of_sentence(Code::Agent, &why.to_string()));
    if let Some(peer) = peer {
        let text = format!("{peer} cannot be asked without an agent here");
        more.push(Finding::problem(
            Code::Peer,
            text,
            "start the agent, or run `godwit doctor` there",
        ));
    }
    let name = name.unwrap_or(doctor::UNNAMED);
    found.extend(finding::on(name, more));
    Diagnosis::new(name, peer, found)
}
