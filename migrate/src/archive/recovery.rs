//! What remains to be done of an export or import by its verdict alone: in unwinding, and after an agent's death.
//!
//! There is no other host to ask. An export without a verdict is aborted, since its client cannot say any more that it has stored the
//! archive. An import without one is undone, and so is one whose container does not run although it was to: the archive is
//! still where it was.

use std::sync::Arc;

use godwit_runtime::verdict::{self, Verdict};

use super::target;
use crate::drain;
use crate::engine::{Container, Created};
use crate::host::Host;
use crate::journal::Found;
use crate::phase::Role;
use crate::places::MigrationId;
use crate::recovery::{
    decide, finish_dump, finish_restore, rearm_restart, remove_places, remove_unfinished, resume_source,
    undo_destination,
};
use crate::shim::ShimClient;

/// Finishes or undoes what was found in the journals. `Err` means: not now.
pub async fn recover(host: &Arc<Host>, found: &Found) -> Result<&'static str, String> {
    let opened = &found.opened;
    let (migration, container) = (&opened.migration, &opened.container);
    let path = host.places.verdict(migration);
    let verdict = |error: std::io::Error| format!("the verdict: {error}");
    match opened.role {
        Role::Source => {
            let marks = found.source_marks();
            let standing = if marks.freezing {
                decide(&path, Verdict::Aborted).await.map_err(verdict)?
            } else {
                Verdict::Aborted
            };
            if marks.disarming {
                release(host, container, migration, standing, None).await?;
            }
            if let (Some(image), Verdict::Aborted) = (found.image(), standing) {
                let engine = host.engines.of(&container.engine);
                let engine = engine.map_err(|error| error.to_string())?;
                target::remove_image(engine.as_ref(), container, migration, image).await?;
            }
            remove_places(host, migration).await?;
            Ok(match standing {
                Verdict::Committed => "stored in an archive, the container is stopped here",
                Verdict::Aborted => "undone, the container is here",
            })
        }
        Role::Destination => {
            let marks = found.destination_marks();
            let standing = verdict::read(&path).map_err(verdict)?;
            match (found.created(), standing) {
                (Some(created), Some(Verdict::Committed)) => {
                    if keep(host, container, created).await.is_ok() {
                        remove_places(host, migration).await?;
                        return Ok("imported, the container runs here");
                    }
                    undo_destination(host, migration, &container.engine, created).await?;
                }
                (Some(created), _) => {
                    decide(&path, Verdict::Aborted).await.map_err(verdict)?;
                    undo_destination(host, migration, &container.engine, created).await?;
                }
                (None, _) if marks.creating => remove_unfinished(host, migration, container).await?,
                (None, _) => {}
            }
            remove_places(host, migration).await?;
            Ok("undone, the container is in its archive")
        }
    }
}

/// Lets a container that was imported run, and its engine start it again.
async fn keep(host: &Host, container: &Container, created: &Created) -> Result<(), String> {
    finish_restore(host, created, None).await?;
    let here = Container {
        id: created.id.clone(),
        ..container.clone()
    };
    rearm_restart(host, &here).await
}

/// An export that is decided: the container runs on, or is stopped as by an operator.
pub async fn release(
    host: &Host,
    container: &Container,
    migration: &MigrationId,
    standing: Verdict,
    shim: Option<Arc<dyn ShimClient>>,
) -> Result<(), String> {
    match standing {
        Verdict::Aborted => {
            match shim {
                Some(shim) => resume_source(Some(shim)).await?,
                None => finish_dump(host, container, None).await?,
            }
            rearm_restart(host, container).await?;
        }
        Verdict::Committed => {
            drain::note_drained(host, migration).map_err(|error| error.to_string())?;
            finish_dump(host, container, shim).await?;
            let stop = async {
                let engine = host.engines.of(&container.engine)?;
                engine.retire(container).await?;
                engine.rearm_stopped(container).await
            };
            stop.await.map_err(|error| error.to_string())?;
        }
    }
    Ok(())
}
