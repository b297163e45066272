//! Connections of the local API on which a client may hand over an open file along with its request.
//!
//! The descriptor comes with the first bytes of the connection, and is for its first request; whoever asks for nothing that needs one
//! has it closed. What it leads to is for the request's answer to judge: a client may hand over anything that it has open itself.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use godwit_runtime::handover;
use nix::sys::socket::MsgFlags;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::unix::SocketAddr;
use tokio::net::{UnixListener, UnixStream};

/// What a client has handed over on one connection.
#[derive(Clone, Debug, Default)]
pub struct Handed(Arc<Mutex<Option<OwnedFd>>>);

impl Handed {
    /// The file, if there is one and nobody has taken it.
    pub fn take(&self) -> Option<File> {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        slot.take().map(File::from)
    }

    fn put(&self, descriptor: OwnedFd) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(descriptor);
    }
}

/// One end of such a connection.
#[derive(Debug)]
pub struct Carrier {
    stream: UnixStream,
    handed: Handed,
    /// Whether nothing was read yet.
    is_new: bool,
    /// What goes with the first bytes that are written.
    parcel: Option<File>,
}

impl Carrier {
    /// The agent's end.
    fn accepted(stream: UnixStream) -> Self {
        Self {
            stream,
            handed: Handed::default(),
            is_new: true,
            parcel: None,
        }
    }

    /// A client's end, with the file that it hands over, if it does.
    pub fn connected(stream: UnixStream, parcel: Option<File>) -> Self {
        Self {
            stream,
            handed: Handed::default(),
            is_new: false,
            parcel,
        }
    }
}

impl AsyncRead for Carrier {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.is_new {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        loop {
            ready!(self.stream.poll_read_ready(context))?;
            let unfilled = buffer.initialize_unfilled();
            let receive = || handover::receive(&self.stream, unfilled, MsgFlags::MSG_DONTWAIT);
            match self.stream.try_io(Interest::READABLE, receive) {
                Ok((n_bytes, descriptor)) => {
                    buffer.advance(n_bytes);
                    self.is_new = false;
                    if let Some(descriptor) = descriptor {
                        self.handed.put(descriptor);
                    }
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Carrier {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let Some(file) = self.parcel.take() else {
            return Pin::new(&mut self.stream).poll_write(context, bytes);
        };
        loop {
            match self.stream.poll_write_ready(context) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    self.parcel = Some(file);
                    return Poll::Pending;
                }
            }
            let send = || handover::send(&self.stream, bytes, Some(file.as_fd()));
            match self.stream.try_io(Interest::WRITABLE, send) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                sent => return Poll::Ready(sent),
            }
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.parcel.is_none() {
            return Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        }
        let first = parts.iter().find(|part| !part.is_empty());
        self.poll_write(context, first.map_or(&[], |part| part))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// A listener whose connections take what is handed over.
#[derive(Debug)]
pub struct Taking(pub UnixListener);

impl Listener for Taking {
    type Io = Carrier;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Carrier, SocketAddr) {
        // That of tokio's listener tries again by itself.
        let (stream, address) = Listener::accept(&mut self.0).await;
        (Carrier::accepted(stream), address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

impl Connected<IncomingStream<'_, Taking>> for Handed {
    fn connect_info(stream: IncomingStream<'_, Taking>) -> Self {
        stream.io().handed.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn file(content: &str) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content.as_bytes()).unwrap();
        file.rewind().unwrap();
        file
    }

    #[tokio::test]
    async fn a_file_goes_with_the_first_bytes_and_is_taken_once() {
        let (client, agent) = UnixStream::pair().unwrap();
        let mut client = Carrier::connected(client, Some(file("content")));
        let mut agent = Carrier::accepted(agent);
        client.write_all(b"request").await.unwrap();
        client.write_all(b" and more").await.unwrap();
        client.shutdown().await.unwrap();
        let mut read = String::new();
        agent.read_to_string(&mut read).await.unwrap();
        assert_eq!(read, "request and more");
        let mut taken = agent.handed.take().unwrap();
        let mut content = String::new();
        taken.read_to_string(&mut content).unwrap();
        assert_eq!(content, "content");
        assert!(agent.handed.take().is_none());
    }

    #[tokio::test]
    async fn one_that_comes_later_is_closed() {
        let (client, agent) = UnixStream::pair().unwrap();
        let mut agent = Carrier::accepted(agent);
        handover::send(&client, b"first", None).unwrap();
        let mut read = [0; 5];
        agent.read_exact(&mut read).await.unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        handover::send(&client, b"later", Some(writer.as_fd())).unwrap();
        drop(writer);
        agent.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"later");
        assert!(agent.handed.take().is_none());
        // Nobody has its other end open any more.
        let mut end = reader;
        assert_eq!(end.read(&mut [0]).unwrap(), 0);
    }
}
