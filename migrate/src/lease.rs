//! A ticket that its agent stands by: touched for as long as the lease lives, withdrawn on demand.
//!
//! Dropping a lease withdraws nothing: a ticket nobody touches ends by itself, and after the commit it does not matter.

use std::path::PathBuf;
use std::sync::Arc;

use godwit_runtime::ticket::{Issued, TOUCH_INTERVAL, Ticket, TicketError};
use tokio::time::sleep;
use tokio_util::task::AbortOnDropHandle;

use crate::engine::Created;
use crate::places::{MigrationId, Places};

/// A ticket and what keeps it fresh.
#[derive(Debug)]
pub struct Lease {
    ticket: Arc<Issued>,
    _touching: AbortOnDropHandle<()>,
}

impl Lease {
    /// Leaves a ticket for a container whose image lies in `image_dir`, or is still to come.
    pub fn issue(
        places: &Places,
        created: &Created,
        migration: &MigrationId,
        image_dir: Option<PathBuf>,
    ) -> Result<Self, TicketError> {
        let ticket = Ticket::new(&created.namespace, &created.id, migration.as_str(), image_dir);
        let ticket = Arc::new(ticket.issue(&places.tickets())?);
        let touched = Arc::clone(&ticket);
        let touching = tokio::spawn(async move {
            // A shim that has dropped the ticket needs no more of it.
            while touched.touch().is_ok() {
                sleep(TOUCH_INTERVAL).await;
            }
        });
        Ok(Self {
            ticket,
            _touching: AbortOnDropHandle::new(touching),
        })
    }

    /// Whether a shim has claimed the ticket.
    pub fn is_claimed(&self) -> bool {
        self.ticket.is_claimed()
    }

    /// Whether the ticket still lies there for a shim to claim it.
    pub fn is_open(&self) -> bool {
        self.ticket.is_open()
    }

    /// Takes the ticket back: a shim that waits on it fails its Create.
    pub fn withdraw(&self) {
        self.ticket.withdraw();
    }
}
