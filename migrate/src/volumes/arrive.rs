//! The destination's end of volumes: makes them, takes their content, and undoes that.
//!
//! What a move may have made, or begun to fill, is in the journal before it is touched, and undone by the journal alone. A
//! volume that was there before and holds something is never written to.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use godwit_runtime::delta::{self, Tree};
use serde::{Deserialize, Serialize};
use tokio::task::{JoinHandle, spawn_blocking};

use super::policy::Policy;
use super::{Offered, copied};
use crate::bulk::ChunkReader;
use crate::deadlines;
use crate::engine::volume::VolumeStore;
use crate::engine::{Created, Engine, EngineError};
use crate::failure::Problem;
use crate::host::Host;
use crate::journal::{Found, Journal, Mark};
use crate::link::Link;
use crate::message::{Message, Purpose};
use crate::places::MigrationId;

/// A named volume that a move has taken for itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// Its name.
    pub name: String,
    /// It was not there before. One that was there was empty.
    pub is_new: bool,
}

/// All volumes of a container that comes.
#[derive(Debug, Default)]
pub struct Arriving {
    offered: Vec<Offered>,
    /// Never dropped half-way: what it asks an engine for must be made, or not, before that can be undone.
    making: Option<JoinHandle<Result<(), Problem>>>,
    paths: HashMap<u32, PathBuf>,
}

impl Arriving {
    /// Makes those that are named and missing. To be called before the container is made, which uses them.
    pub async fn make(
        &mut self,
        offered: Vec<Offered>,
        engine: &Arc<dyn Engine>,
        journal: &Journal,
    ) -> Result<(), Problem> {
        self.offered.clone_from(&offered);
        let (engine, journal) = (Arc::clone(engine), journal.clone());
        self.making = Some(tokio::spawn(async move {
            let named = offered.iter().filter(|offered| !offered.is_anonymous);
            for offered in named.filter(|offered| offered.policy != Policy::Shared) {
                claim(store(engine.as_ref())?, &journal, offered).await?;
            }
            Ok(())
        }));
        self.finish_making().await
    }

    /// Waits for the end of `make`: from then on the journal tells all that was made. May be dropped and called again.
    pub async fn finish_making(&mut self) -> Result<(), Problem> {
        let Some(making) = self.making.as_mut() else {
            return Ok(());
        };
        let outcome = making.await;
        self.making = None;
        outcome.map_err(|error| Problem::failed(error.to_string()))?
    }

    /// Finds out where the content goes, in a container that was made and not started. What its engine has put there from
    /// the image is not what the source has, and is removed.
    pub async fn locate(&mut self, engine: &dyn Engine, created: &Created) -> Result<(), Problem> {
        if copied(&self.offered).next().is_none() {
            return Ok(());
        }
        let paths = store(engine)?.paths(created).await?;
        for (number, offered) in copied(&self.offered) {
            let path = paths.get(&offered.target).cloned().ok_or_else(|| {
                Problem::failed(format!("the engine has made no volume for {}", offered.target))
            })?;
            let called = offered.called();
            empty(path.clone())
                .await
                .map_err(|error| Problem::io(format!("emptying volume {called}"), &error))?;
            self.paths.insert(number, path);
        }
        Ok(())
    }

    /// Where the content of one goes, once that was located.
    pub fn path(&self, number: u32) -> Option<&Path> {
        self.paths.get(&number).map(PathBuf::as_path)
    }

    /// Takes the first round of each, in order.
    pub async fn receive_first(&mut self, link: &mut Link) -> Result<(), Problem> {
        for (number, _) in copied(&self.offered) {
            match link.receive("volume", deadlines::PREPARE).await? {
                Message::Bulk {
                    purpose: Purpose::Volume(sent),
                } if sent == number => self.receive(link, number).await?,
                other => return Err(link.out_of_turn(&other)),
            }
        }
        Ok(())
    }

    /// Takes one round of one, whose message was read.
    pub async fn receive(&self, link: &mut Link, number: u32) -> Result<(), Problem> {
        let path = self
            .paths
            .get(&number)
            .cloned()
            .ok_or_else(|| Problem::protocol(format!("there is no volume {number} to be copied")))?;
        let called = self.offered[number as usize].called();
        let apply = move |input: &mut ChunkReader| {
            delta::apply(Tree::Plain(&path), input)
                .map_err(|error| Problem::failed(format!("volume {called}: {error}")))
        };
        link.receive_bulk_blocking(apply).await?;
        Ok(())
    }
}

fn store(engine: &dyn Engine) -> Result<&dyn VolumeStore, Problem> {
    engine
        .volumes()
        .ok_or_else(|| Problem::protocol(format!("{} keeps no volumes", engine.name())))
}

/// Takes one named volume for the move.
async fn claim(store: &dyn VolumeStore, journal: &Journal, offered: &Offered) -> Result<(), Problem> {
    let volume = &offered.volume;
    let is_new = match store.find(&volume.name).await? {
        None => true,
        Some(_) if offered.policy == Policy::Skip => return Ok(()),
        // The plan has looked, and somebody may have been quick.
        Some(found) if found.is_no_directory().is_none() && is_empty(&found.path) => false,
        Some(_) => {
            let text = format!("volume {} has come to hold something on this host", volume.name);
            return Err(Problem::failed(text));
        }
    };
    let name = volume.name.clone();
    journal
        .note(Mark::Volume(Claim { name, is_new }))
        .await
        .map_err(|error| Problem::io("the journal", &error))?;
    if is_new {
        store.make(volume).await?;
    }
    Ok(())
}

/// Leaves the named volumes of a move as they were before it. Its container must be gone. May be repeated.
pub async fn undo(host: &Host, migration: &MigrationId) -> Result<(), String> {
    let found = Found::read(&host.places.of(migration)).map_err(|error| format!("the journal: {error}"))?;
    let Some(found) = found else { return Ok(()) };
    let mut claims = Vec::new();
    for mark in found.marks {
        if let Mark::Volume(claim) = mark {
            claims.push(claim);
        }
    }
    if claims.is_empty() {
        return Ok(());
    }
    let undo = async {
        let engine = host.engines.of(&found.opened.container.engine)?;
        for claim in &claims {
            match engine.volumes() {
                Some(store) => give_back(store, claim).await?,
                None => log::warn!("{} keeps no volumes", engine.name()),
            }
        }
        Ok::<(), EngineError>(())
    };
    undo.await.map_err(|error| error.to_string())
}

async fn give_back(store: &dyn VolumeStore, claim: &Claim) -> Result<(), EngineError> {
    let name = &claim.name;
    if claim.is_new {
        if !store.discard(name).await? {
            log::warn!("volume {name} was made for a move and is used by a container: it stays");
        }
        return Ok(());
    }
    if let Some(found) = store.find(name).await?
        && store.users(name).await?.is_empty()
        && let Err(error) = empty(found.path).await
    {
        log::warn!("volume {name} was empty before the move and is not again: {error}");
    }
    Ok(())
}

/// Whether a directory holds nothing; one that cannot be read may hold something.
pub(super) fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_none())
}

/// Removes everything in a directory, and not the directory.
async fn empty(directory: PathBuf) -> io::Result<()> {
    let work = move || {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?;
            } else {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    };
    spawn_blocking(work).await.map_err(io::Error::other)?
}
