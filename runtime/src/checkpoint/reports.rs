//! Where gate and holder report: the socket `ctl.sock` of a container's control directory.
//!
//! It lives as long as one dump or restore. A line that is no report is ignored: it decides nothing.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use crate::control::ControlDir;
use crate::gate::{GO, Report};

/// A reporter writes its line as soon as it has connected.
const LINE_DEADLINE: Duration = Duration::from_secs(2);

/// Reports are some dozen bytes.
const LINE_BYTES: u64 = 1024;

/// The listening end.
pub(super) struct Reports {
    listener: UnixListener,
    path: PathBuf,
}

/// The stream a report came by; for the gate, the way to answer. Dropping it keeps the gate shut.
pub(super) struct Reporter(UnixStream);

impl Reports {
    /// Listens in a control directory, which belongs to root alone.
    pub(super) fn listen(control: &ControlDir) -> io::Result<Self> {
        let path = control.join("ctl.sock");
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        Ok(Self {
            listener: UnixListener::bind(&path)?,
            path,
        })
    }

    /// The next report. May be dropped while it waits for one.
    pub(super) async fn next(&mut self) -> io::Result<(Report, Reporter)> {
        loop {
            let (mut stream, _) = self.listener.accept().await?;
            let mut line = String::new();
            let mut reader = BufReader::new((&mut stream).take(LINE_BYTES));
            let read = timeout(LINE_DEADLINE, reader.read_line(&mut line)).await;
            if let (Ok(Ok(_)), Ok(report)) = (read, serde_json::from_str(&line)) {
                return Ok((report, Reporter(stream)));
            }
            log::warn!("{}: {line:?} is no report", self.path.display());
        }
    }
}

impl Drop for Reports {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl Reporter {
    /// Opens the gate.
    pub(super) async fn go(mut self) -> io::Result<()> {
        self.0.write_all(GO.as_bytes()).await?;
        self.0.write_all(b"\n").await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, Write};

    #[tokio::test]
    async fn a_gate_is_answered_and_noise_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let control = ControlDir::at(directory.path());
        let mut reports = Reports::listen(&control).unwrap();
        let path = control.join("ctl.sock");
        let gate = std::thread::spawn(move || {
            std::os::unix::net::UnixStream::connect(&path)
                .unwrap()
                .write_all(b"hello\n")
                .unwrap();
            let mut stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
            stream.write_all(b"{\"from\":\"gate\",\"pid\":7}\n").unwrap();
            let mut answer = String::new();
            std::io::BufReader::new(stream).read_line(&mut answer).unwrap();
            answer
        });
        let (report, reporter) = reports.next().await.unwrap();
        assert_eq!(report, Report::Gate { pid: 7 });
        reporter.go().await.unwrap();
        assert_eq!(gate.join().unwrap(), "go\n");
    }
}
