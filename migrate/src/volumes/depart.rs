//! The source's end of volumes: sends their content in rounds, and lets go of what goes with its container.
//!
//! It only reads them, and while the container runs it reads what may be changing: the round in the freeze makes up for it.

use std::io::Write;
use std::path::PathBuf;

use godwit_runtime::delta::{self, Index, Tree};

use super::policy::{Policies, Policy};
use super::{Carried, Offered, copied};
use crate::clock::Remains;
use crate::engine::Container;
use crate::failure::Problem;
use crate::host::Host;
use crate::link::Link;
use crate::message::Purpose;

/// All volumes of a container that leaves.
#[derive(Debug, Default)]
pub struct Departing {
    offered: Vec<Offered>,
    copies: Vec<Copying>,
}

/// One that is copied.
#[derive(Debug)]
struct Copying {
    number: u32,
    path: PathBuf,
    sent: Option<Index>,
    bytes: u64,
}

impl Departing {
    /// Nothing of them has been sent yet.
    pub fn new(offered: &[Offered]) -> Self {
        let copies = copied(offered).map(|(number, offered)| Copying {
            number,
            path: offered.volume.path.clone(),
            sent: None,
            bytes: 0,
        });
        Self {
            copies: copies.collect(),
            offered: offered.to_vec(),
        }
    }

    /// Whether the content of any of them goes over.
    pub fn are_copied(&self) -> bool {
        !self.copies.is_empty()
    }

    /// One round of all: what each holds, or what has changed in it since the last. Returns the bytes sent.
    pub async fn send(&mut self, link: &mut Link) -> Result<u64, Problem> {
        let mut sum = 0;
        for copy in &mut self.copies {
            let called = self.offered[copy.number as usize].called();
            let (path, since) = (copy.path.clone(), copy.sent.take());
            let write = move |out: &mut dyn Write| {
                delta::write(Tree::Plain(&path), since.as_ref(), out)
                    .map_err(|error| Problem::failed(format!("volume {called}: {error}")))
            };
            let (index, bytes) = link.send_bulk(Purpose::Volume(copy.number), write).await?;
            copy.sent = Some(index);
            copy.bytes += bytes;
            sum += bytes;
        }
        Ok(sum)
    }

    /// What became of each, where this is left of the container.
    pub fn report(&self, remains: Remains) -> Vec<Carried> {
        let carried = |(number, offered): (u32, &Offered)| Carried {
            name: offered.volume.name.clone(),
            target: offered.target.clone(),
            policy: offered.policy,
            bytes: self
                .copies
                .iter()
                .find(|copy| copy.number == number)
                .map_or(0, |copy| copy.bytes),
            stays_at_source: remains == Remains::Stopped
                || !(offered.is_anonymous && offered.policy == Policy::Copy),
        };
        (0..).zip(&self.offered).map(carried).collect()
    }
}

/// Removes what goes with a container that was given away and has been removed: its anonymous volumes, if they were copied.
/// May be repeated.
pub async fn release(host: &Host, container: &Container, policies: &Policies) -> Result<(), String> {
    let engine = host
        .engines
        .of(&container.engine)
        .map_err(|error| error.to_string())?;
    let Some(store) = engine.volumes() else {
        return Ok(());
    };
    for mount in &container.mounts {
        let goes = mount.is_anonymous && policies.of(&mount.source, &mount.target) == Policy::Copy;
        if goes
            && !store
                .discard(&mount.source)
                .await
                .map_err(|error| error.to_string())?
        {
            log::info!("volume {} is used by another container and stays", mount.source);
        }
    }
    Ok(())
}
