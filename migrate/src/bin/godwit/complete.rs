//! What a shell completes besides the command's own words: containers, hosts and moves.
//!
//! The script that a shell loads, printed by `GODWIT_COMPLETE=bash godwit` (or zsh, or fish), asks this program at every tab,
//! so that what it offers is of this version and of this moment. An agent that does not answer, or not soon, offers nothing
//! and says nothing. It is looked for in its usual place: `--socket` and `--config` on the line are not.

use std::ffi::OsStr;
use std::path::Path;
use std::time::Duration;

use clap::{Command, CommandFactory};
use clap_complete::engine::{
    ArgValueCandidates, ArgValueCompleter, CompletionCandidate, PathCompleter, ValueCompleter,
};
use clap_complete::env::CompleteEnv;
use godwit_migrate::agent::containers::ContainerList;
use godwit_migrate::agent::registry::MigrationView;
use godwit_migrate::config::AgentConfig;
use serde::de::DeserializeOwned;

use crate::{Arguments, DEFAULT_CONFIG, DEFAULT_SOCKET, client};

/// What tells this program that a shell asks. `COMPLETE`, the usual one, might be there for another reason.
const VARIABLE: &str = "GODWIT_COMPLETE";

/// Whoever presses tab waits no longer; a hundred containers take some tenths of a second.
const DEADLINE: Duration = Duration::from_secs(1);

/// Answers a shell and ends, if one asks; else does nothing.
pub(crate) fn answer() {
    CompleteEnv::with_factory(factory)
        .var(VARIABLE)
        // by its name: the script outlives the place that this program was called by
        .completer("godwit")
        .complete();
}

fn factory() -> Command {
    Arguments::command()
}

/// Running containers of Godwit, which alone can be moved.
pub(crate) fn containers() -> ArgValueCandidates {
    ArgValueCandidates::new(|| in_state(|state| state == "running"))
}

/// Stopped ones, which can be restored.
pub(crate) fn stopped() -> ArgValueCandidates {
    ArgValueCandidates::new(|| in_state(|state| matches!(state, "created" | "exited")))
}

/// Running containers, and files and directories.
pub(crate) fn containers_and_paths() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| {
        let mut found = PathCompleter::any().complete(current);
        let begin = current.to_string_lossy();
        let containers = in_state(|state| state == "running").into_iter();
        found.extend(containers.filter(|one| one.get_value().to_string_lossy().starts_with(&*begin)));
        found
    })
}

fn in_state(wanted: fn(&str) -> bool) -> Vec<CompletionCandidate> {
    let list: Option<ContainerList> = ask("/v1/containers");
    let containers = list.map_or_else(Vec::new, |list| list.containers);
    containers
        .into_iter()
        .filter(|container| container.under_godwit && wanted(&container.state))
        .map(|container| CompletionCandidate::new(container.name).help(Some(container.image.into())))
        .collect()
}

/// The hosts that the agent's configuration names.
pub(crate) fn hosts() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        let peers = AgentConfig::load(Path::new(DEFAULT_CONFIG)).map(|config| config.peers);
        peers
            .unwrap_or_default()
            .into_iter()
            .map(|(name, peer)| CompletionCandidate::new(name).help(Some(peer.address.into())))
            .collect()
    })
}

/// Moves of this host: under way and over.
pub(crate) fn migrations() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        let views: Vec<MigrationView> = ask("/v1/migrations").unwrap_or_default();
        views
            .into_iter()
            .map(|view| {
                let what = format!("{} with {}, {}", view.container, view.peer, view.state);
                CompletionCandidate::new(view.migration).help(Some(what.into()))
            })
            .collect()
    })
}

fn ask<T: DeserializeOwned>(path: &str) -> Option<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .ok()?;
    runtime.block_on(async {
        tokio::time::timeout(DEADLINE, client::get(Path::new(DEFAULT_SOCKET), path))
            .await
            .ok()?
            .ok()
    })
}
