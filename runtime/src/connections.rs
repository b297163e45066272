//! The TCP connections of a container, out of the image of its dump.
//!
//! The kernel's own table tells the same, but each look at it walks all buckets of the host: 15 ms for both families, for
//! which a container that is moved would stand still. What no process has open is in neither.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::Path;

use crate::image_file::{Field, damaged, entries, fields};

/// The file of an image that lists what is open.
const FILES: &str = "files.img";

/// In an entry of it (CRIU's `fdinfo.proto`): of which kind it is, the kind that is a socket of an internet family, and where
/// that one is described.
const KIND: u32 = 1;
const INTERNET_SOCKET: u64 = 4;
const DESCRIPTION: u32 = 4;

/// The number of TCP in IP.
pub const TCP: u64 = 6;

/// States of a TCP socket in which it does not depend on its address: `TIME_WAIT`, `CLOSE` and `LISTEN` of
/// `net/tcp_states.h`.
pub const WITHOUT_PEER: [u64; 3] = [6, 7, 10];

/// A connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The container's end.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
    /// Of the socket.
    pub inode: u64,
}

/// The connections in the `image` of a dump that keeps them; one that was to close them says that they are closed. An image
/// without the file is one of tasks that have nothing open.
pub fn in_image(image: &Path) -> io::Result<Vec<Connection>> {
    let (mut found, files) = (Vec::new(), image.join(FILES));
    if !files.try_exists()? {
        return Ok(found);
    }
    entries(&files, |entry| {
        let (mut kind, mut description) = (None, None);
        fields(entry, |number, field| match (number, field) {
            (KIND, Field::Number(value)) => kind = Some(value),
            (DESCRIPTION, Field::Message(message)) => description = Some(message),
            _ => {}
        })?;
        if kind == Some(INTERNET_SOCKET) {
            let description = description.ok_or_else(|| damaged("a socket without a description"))?;
            found.extend(connection(&description)?);
        }
        Ok(())
    })?;
    Ok(found)
}

/// What an `inet_sk_entry` of CRIU's `sk-inet.proto` describes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InternetSocket {
    /// Of the socket.
    pub inode: u64,
    /// The number of its protocol, as in IP.
    pub protocol: u64,
    /// Its state, by the numbers of `net/tcp_states.h`.
    pub state: u64,
    ports: [u64; 2],
    addresses: [Vec<u64>; 2],
}

impl InternetSocket {
    /// Out of its description.
    pub fn read(description: &[u8]) -> io::Result<Self> {
        let mut socket = Self::default();
        fields(description, |number, field| {
            if let Field::Number(value) = field {
                match number {
                    2 => socket.inode = value,
                    5 => socket.protocol = value,
                    6 => socket.state = value,
                    7 => socket.ports[0] = value,
                    8 => socket.ports[1] = value,
                    11 => socket.addresses[0].push(value),
                    12 => socket.addresses[1].push(value),
                    _ => {}
                }
            }
        })?;
        Ok(socket)
    }

    /// The container's end.
    pub fn local(&self) -> io::Result<SocketAddr> {
        end(&self.addresses[0], self.ports[0])
    }

    /// The other end; of a socket without one it has neither address nor port.
    pub fn remote(&self) -> io::Result<SocketAddr> {
        end(&self.addresses[1], self.ports[1])
    }
}

fn connection(description: &[u8]) -> io::Result<Option<Connection>> {
    let socket = InternetSocket::read(description)?;
    if socket.protocol != TCP || WITHOUT_PEER.contains(&socket.state) {
        return Ok(None);
    }
    Ok(Some(Connection {
        local: socket.local()?,
        remote: socket.remote()?,
        inode: socket.inode,
    }))
}

/// An address, as the words in which the kernel holds it, and a port.
fn end(words: &[u64], port: u64) -> io::Result<SocketAddr> {
    let number = |word: &u64| u32::try_from(*word).ok();
    let words: Option<Vec<u32>> = words.iter().map(number).collect();
    let address = words.and_then(|words| address(&words));
    match (address, u16::try_from(port)) {
        (Some(address), Ok(port)) => Ok(SocketAddr::new(address, port)),
        _ => Err(damaged("a socket's address")),
    }
}

/// An address out of one word of IPv4 or four of IPv6, as the kernel holds them; one of IPv4 within IPv6 is told as such.
pub fn address(words: &[u32]) -> Option<IpAddr> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    match <[u8; 4]>::try_from(bytes.as_slice()) {
        Ok(v4) => Some(v4.into()),
        Err(_) => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).to_canonical()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// What CRIU 4.2.1 writes of a connection from 127.0.0.1:33376 to port 4321 there, as far as it is read here.
    const OF_CRIU: &[u8] = &[
        8, 4, 16, 12, 0x22, 34, 8, 12, 16, 0xf5, 0xed, 0xb1, 0x0a, 24, 2, 32, 1, 40, 6, 48, 1, 56, 0xe0,
        0x84, 2, 64, 0xe1, 0x21, 88, 0xff, 0x80, 0x80, 8, 96, 0xff, 0x80, 0x80, 8, 106, 0,
    ];

    fn image(files: &[&[u8]]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let mut content = vec![0; 8];
        for entry in files {
            content.extend(u32::try_from(entry.len()).unwrap().to_le_bytes());
            content.extend(*entry);
        }
        fs::write(directory.path().join(FILES), content).unwrap();
        directory
    }

    fn with(place: usize, value: u8) -> Vec<u8> {
        let mut changed = OF_CRIU.to_vec();
        changed[place] = value;
        changed
    }

    #[test]
    fn connections_are_found_among_all_that_is_open() {
        let (listening, udp, file) = (with(20, 10), with(18, 17), with(1, 1));
        let image = image(&[&file, &listening, OF_CRIU, &udp]);
        let found = in_image(image.path()).unwrap();
        let expected = Connection {
            local: "127.0.0.1:33376".parse().unwrap(),
            remote: "127.0.0.1:4321".parse().unwrap(),
            inode: 0x014c_76f5,
        };
        assert_eq!(found, [expected]);
    }

    #[test]
    fn addresses_of_ipv6_are_four_words_and_those_of_ipv4_in_it_are_told_as_such() {
        let local = end(&[0, 0, 0, u64::from(u32::from_ne_bytes([0, 0, 0, 1]))], 80).unwrap();
        assert_eq!(local, "[::1]:80".parse().unwrap());
        let word = |bytes| u64::from(u32::from_ne_bytes(bytes));
        let mapped = end(&[0, 0, word([0, 0, 255, 255]), word([10, 0, 0, 2])], 80).unwrap();
        assert_eq!(mapped, "10.0.0.2:80".parse().unwrap());
    }

    #[test]
    fn what_is_no_list_of_files_is_an_error() {
        assert!(in_image(image(&[&OF_CRIU[..30]]).path()).is_err());
        assert!(in_image(image(&[&[8, 4]]).path()).is_err(), "no description");
        assert!(end(&[1, 2], 80).is_err());
        assert!(end(&[1], 1 << 16).is_err());
        assert_eq!(in_image(Path::new("/nonexistent")).unwrap(), []);
    }
}
