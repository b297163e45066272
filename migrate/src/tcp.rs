//! What becomes of a container's TCP connections in a move: asked for, decided, told in the report.
//!
//! CRIU keeps all connections of a restore or closes all. A dump that keeps them can still be restored either way, so where
//! their addresses decide ([`Treatment::ByAddress`]), it is decided when the tasks stand still and no connection can come any
//! more, by a note in the image that has not left yet. Nothing is done to a connection here.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::str::FromStr;

use godwit_runtime::connections::{Connection, in_image};
use godwit_runtime::image::Manifest;
use godwit_runtime::options::Tcp;
use serde::{Deserialize, Serialize};

use crate::checks::connections;
use crate::engine::Container;

/// Connections that a report lists at most: some 400 kB of it. Of the others their number is told.
const MAX_LISTED: usize = 4096;

/// What a user asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TcpChoice {
    /// As the container or its host says; where neither says anything, kept if every connection's address goes along, else
    /// closed.
    #[default]
    Auto,
    /// Kept; a container that has one whose address stays behind is not moved.
    Keep,
    /// Closed.
    Close,
}

/// What it comes to for one container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Treatment {
    /// All are kept.
    Keep,
    /// All are closed.
    Close,
    /// All are kept if every one's address goes along, else all are closed.
    ByAddress,
}

/// What became of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fate {
    /// It goes on.
    Kept,
    /// The container sees it closed.
    Closed,
}

/// A connection that the container had when it was frozen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Told {
    /// The container's end.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
    /// What became of it.
    pub fate: Fate,
}

/// What became of all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Account {
    /// How many go on.
    pub kept: usize,
    /// How many were closed.
    pub closed: usize,
    /// Each of them, 4096 at most.
    pub list: Vec<Told>,
}

impl TcpChoice {
    /// All of them, as they are written.
    pub const NAMES: [&str; 3] = ["auto", "keep", "close"];

    /// What it comes to for a container of which its annotations, or its host's file, say `told`.
    pub fn treatment(self, told: Option<Tcp>) -> Treatment {
        match (self, told) {
            (Self::Keep, _) | (Self::Auto, Some(Tcp::Established)) => Treatment::Keep,
            (Self::Close, _) | (Self::Auto, Some(Tcp::Close)) => Treatment::Close,
            (Self::Auto, None) => Treatment::ByAddress,
        }
    }
}

impl Treatment {
    /// What the dump is told: closed is certain, and spares CRIU the state of each connection.
    pub fn of_dump(self) -> Tcp {
        match self {
            Self::Close => Tcp::Close,
            Self::Keep | Self::ByAddress => Tcp::Established,
        }
    }

    /// What becomes of all connections where some have an address that `stays` behind.
    pub fn fate(self, stays: bool) -> Fate {
        match self {
            Self::Keep => Fate::Kept,
            Self::Close => Fate::Closed,
            Self::ByAddress if stays => Fate::Closed,
            Self::ByAddress => Fate::Kept,
        }
    }

    /// Decides for a container whose tasks stand still, with `pid` the first of them, and notes it in the `image` of their
    /// dump, from which the restore takes it.
    pub fn settle(self, container: &Container, pid: u32, image: &Path) -> io::Result<Account> {
        let found = match self {
            // Nothing that is not on its way yet depends on it, and the image says that they are closed.
            Self::Close => connections::of(pid),
            Self::Keep | Self::ByAddress => in_image(image).unwrap_or_else(|error| {
                log::warn!("connections are looked for in the kernel's table, which takes longer: {error}");
                connections::of(pid)
            }),
        };
        let fate = self.fate(found.iter().any(|one| !connections::moves(container, one)));
        if self == Self::ByAddress && fate == Fate::Closed {
            let mut manifest = Manifest::read(image)?.ok_or(io::ErrorKind::NotFound)?;
            manifest.options.tcp = Some(Tcp::Close);
            manifest.write(image)?;
        }
        Ok(Account::of(&found, fate))
    }
}

impl Account {
    fn of(found: &[Connection], fate: Fate) -> Self {
        let number_if = |wanted| if fate == wanted { found.len() } else { 0 };
        let told = |one: &Connection| Told {
            local: one.local,
            remote: one.remote,
            fate,
        };
        Self {
            kept: number_if(Fate::Kept),
            closed: number_if(Fate::Closed),
            list: found.iter().take(MAX_LISTED).map(told).collect(),
        }
    }
}

impl fmt::Display for TcpChoice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Auto => "auto",
            Self::Keep => "keep",
            Self::Close => "close",
        })
    }
}

impl FromStr for TcpChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "keep" => Ok(Self::Keep),
            "close" => Ok(Self::Close),
            other => Err(format!(
                "{other:?} is nothing that can become of connections; there are {}",
                Self::NAMES.join(", ")
            )),
        }
    }
}

impl fmt::Display for Told {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fate = match self.fate {
            Fate::Kept => "kept",
            Fate::Closed => "closed",
        };
        write!(formatter, "{fate}: {} with {}", self.local, self.remote)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flag_is_stronger_than_the_container_and_the_container_than_auto() {
        let (kept, closed) = (Some(Tcp::Established), Some(Tcp::Close));
        for (choice, told, treatment) in [
            (TcpChoice::Keep, None, Treatment::Keep),
            (TcpChoice::Keep, closed, Treatment::Keep),
            (TcpChoice::Close, None, Treatment::Close),
            (TcpChoice::Close, kept, Treatment::Close),
            (TcpChoice::Auto, kept, Treatment::Keep),
            (TcpChoice::Auto, closed, Treatment::Close),
            (TcpChoice::Auto, None, Treatment::ByAddress),
        ] {
            assert_eq!(choice.treatment(told), treatment, "{choice} {told:?}");
        }
    }

    #[test]
    fn an_address_that_stays_closes_only_where_addresses_decide() {
        assert_eq!(Treatment::Keep.fate(true), Fate::Kept);
        assert_eq!(Treatment::Close.fate(false), Fate::Closed);
        assert_eq!(Treatment::ByAddress.fate(true), Fate::Closed);
        assert_eq!(Treatment::ByAddress.fate(false), Fate::Kept);
        // What is decided later must be open until then.
        assert_eq!(Treatment::ByAddress.of_dump(), Tcp::Established);
    }

    #[test]
    fn choices_are_read_as_they_are_written() {
        for name in TcpChoice::NAMES {
            assert_eq!(name.parse::<TcpChoice>().unwrap().to_string(), name);
        }
        let error = "established".parse::<TcpChoice>().unwrap_err();
        assert!(error.contains("auto, keep, close"), "{error}");
    }

    #[test]
    fn an_account_lists_so_many_and_counts_all() {
        let one = Connection {
            local: "10.0.0.2:80".parse().unwrap(),
            remote: "[fd00::1]:40000".parse().unwrap(),
            inode: 1,
        };
        let account = Account::of(&vec![one; MAX_LISTED + 1], Fate::Closed);
        assert_eq!((account.kept, account.closed), (0, MAX_LISTED + 1));
        assert_eq!(account.list.len(), MAX_LISTED);
        assert_eq!(
            account.list[0].to_string(),
            "closed: 10.0.0.2:80 with [fd00::1]:40000"
        );
    }
}
