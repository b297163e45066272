//! What processes have open, in a checkpoint image: `files.img` lists all once, `fdinfo-ID.img` says which descriptors mean them.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;

use godwit_runtime::connections::{InternetSocket, TCP};
use godwit_runtime::image_file::{Field, fields};

use super::budget::Budget;
use super::collected::Collected;
use super::image::{each, number_within, within};
use super::view::{OpenFile, Socket};

const UDP: u64 = 17;

/// Kinds of CRIU's `fdinfo.proto`: number, the field with the description, and what it is called here.
const KINDS: [(u64, u32, &str); 20] = [
    (1, 3, "file"),
    (2, 18, "pipe"),
    (3, 17, "fifo"),
    (4, 4, "internet"),
    (5, 16, "unix"),
    (6, 8, "eventfd"),
    (7, 9, "epoll"),
    (8, 13, "inotify"),
    (9, 10, "signalfd"),
    (10, 6, "packet"),
    (11, 19, "terminal"),
    (12, 14, "fanotify"),
    (13, 7, "netlink"),
    (14, 5, "namespace"),
    (15, 11, "tun"),
    (16, 15, "external"),
    (17, 12, "timerfd"),
    (18, 20, "memfd"),
    (19, 21, "bpf"),
    (20, 22, "pidfd"),
];

/// All that is open in an image, by CRIU's numbers.
#[derive(Debug, Default)]
pub(super) struct Files(BTreeMap<u64, Open>);

#[derive(Debug)]
struct Open {
    kind: &'static str,
    description: Vec<u8>,
    /// Of a file.
    path: Vec<u8>,
}

impl Files {
    /// Reads the list. An image without it is one of tasks that have nothing open.
    pub(super) fn read(collected: &Collected) -> io::Result<Self> {
        let mut found = BTreeMap::new();
        if collected.file("files.img").is_none() {
            return Ok(Self(found));
        }
        each(collected, "files.img", |entry| {
            let kind = number_within(entry, 1)?.unwrap_or(0);
            let Some((_, field, kind)) = KINDS.iter().find(|(number, _, _)| *number == kind) else {
                return Ok(());
            };
            let (Some(id), Some(description)) = (number_within(entry, 2)?, within(entry, *field)?) else {
                return Ok(());
            };
            let path = match *kind {
                "file" => within(&description, 6)?.unwrap_or_default(),
                _ => Vec::new(),
            };
            found.insert(
                id,
                Open {
                    kind,
                    description,
                    path,
                },
            );
            Ok(())
        })?;
        Ok(Self(found))
    }

    /// The path of a file.
    pub(super) fn path(&self, id: u64) -> Option<&[u8]> {
        self.0.get(&id).map(|open| open.path.as_slice())
    }

    /// What a process has open, of which CRIU calls the table `files_id`, or in older images by the pid.
    pub(super) fn of(
        &self,
        collected: &Collected,
        files_id: Option<u64>,
        pid: u32,
        budget: &mut Budget,
    ) -> io::Result<(Vec<OpenFile>, Vec<Socket>)> {
        let (mut files, mut sockets) = (Vec::new(), Vec::new());
        let name = format!("fdinfo-{}.img", files_id.unwrap_or(u64::from(pid)));
        if collected.file(&name).is_none() {
            return Ok((files, sockets));
        }
        each(collected, &name, |entry| {
            let id = number_within(entry, 1)?.unwrap_or(0);
            let descriptor = number_within(entry, 4)?.and_then(|number| u32::try_from(number).ok());
            let (Some(open), Some(descriptor)) = (self.0.get(&id), descriptor) else {
                return Ok(());
            };
            match open.kind {
                "internet" => sockets.push(internet(descriptor, &InternetSocket::read(&open.description)?)),
                "unix" => sockets.push(unix(descriptor, &open.description, budget)?),
                "netlink" | "packet" => sockets.push(Socket::plain(descriptor, open.kind)),
                _ => files.push(self.file(descriptor, open, budget)?),
            }
            budget.entry(b"").map(drop)
        })?;
        files.sort_by_key(|file| file.descriptor);
        sockets.sort_by_key(|socket| socket.descriptor);
        Ok((files, sockets))
    }

    fn file(&self, descriptor: u32, open: &Open, budget: &mut Budget) -> io::Result<OpenFile> {
        let number = |field| number_within(&open.description, field);
        let named = |id: Option<u64>| id.and_then(|id| self.path(id)).unwrap_or_default().to_vec();
        let name = match open.kind {
            "file" => open.path.clone(),
            "pipe" => format!("pipe:[{}]", number(2)?.unwrap_or(0)).into_bytes(),
            "fifo" => named(number(3)?),
            "terminal" => named(number(6)?),
            "external" => within(&open.description, 5)?.unwrap_or_default(),
            _ => Vec::new(),
        };
        Ok(OpenFile {
            descriptor,
            kind: open.kind.into(),
            name: budget.entry(&name)?,
            position: if open.kind == "file" { number(3)? } else { None },
        })
    }
}

impl Socket {
    /// One of which nothing is told but what it is.
    pub(super) fn plain(descriptor: u32, protocol: &str) -> Self {
        Self {
            descriptor,
            protocol: protocol.into(),
            state: String::new(),
            local: String::new(),
            remote: String::new(),
        }
    }
}

fn internet(descriptor: u32, socket: &InternetSocket) -> Socket {
    let protocol = match socket.protocol {
        TCP => "tcp",
        UDP => "udp",
        _ => "socket",
    };
    let mut told = Socket::plain(descriptor, protocol);
    if protocol == "tcp" {
        told.state = tcp_state(socket.state).into();
    }
    told.local = socket.local().map(shown).unwrap_or_default();
    told.remote = socket.remote().map(shown).unwrap_or_default();
    told
}

fn unix(descriptor: u32, description: &[u8], budget: &mut Budget) -> io::Result<Socket> {
    let mut told = Socket::plain(descriptor, "unix");
    let mut name = Vec::new();
    fields(description, |number, value| match (number, value) {
        (4, Field::Number(1)) => told.state = "established".into(),
        (4, Field::Number(10)) => told.state = "listen".into(),
        (11, Field::Message(bytes)) => name = bytes,
        _ => {}
    })?;
    if let Some(first) = name.first_mut()
        && *first == 0
    {
        *first = b'@';
    }
    while name.last() == Some(&0) {
        name.pop();
    }
    told.local = budget.entry(&name)?;
    Ok(told)
}

/// An address for a person; that of no end is empty.
pub(super) fn shown(address: SocketAddr) -> String {
    if address.port() == 0 && address.ip().is_unspecified() {
        return String::new();
    }
    address.to_string()
}

/// The kernel's states of TCP, by their numbers in `net/tcp_states.h`.
pub(super) fn tcp_state(number: u64) -> &'static str {
    match number {
        1 => "established",
        2 => "syn-sent",
        3 => "syn-received",
        4 => "fin-wait-1",
        5 => "fin-wait-2",
        6 => "time-wait",
        7 => "closed",
        8 => "close-wait",
        9 => "last-ack",
        10 => "listen",
        11 => "closing",
        _ => "",
    }
}
