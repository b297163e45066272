//! Where gate and holder report: the socket `ctl.sock` of a container's control directory.
//!
//! It lives as long as one dump or restore. A line that is no report is ignored: it decides nothing.

use std::fs;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
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
    /// Somebody who has connected and not said all yet.
    reading: Option<Reading>,
}

/// A line with the stream it came by.
type Reading = Pin<Box<dyn Future<Output = (String, UnixStream)> + Send>>;

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
            reading: None,
        })
    }

    /// The next report. May be dropped at any time: what has come of one by then is there at the next call.
    pub(super) async fn next(&mut self) -> io::Result<(Report, Reporter)> {
        loop {
            let reading = match &mut self.reading {
                Some(reading) => reading,
                None => {
                    let (stream, _) = self.listener.accept().await?;
                    self.reading.insert(Box::pin(read_line(stream)))
                }
            };
            let (line, stream) = reading.await;
            self.reading = None;
            if let Ok(report) = serde_json::from_str(&line) {
                return Ok((report, Reporter(stream)));
            }
            log::warn!("{}: {line:?} is no report", self.path.display());
        }
    }
}

/// What a reporter says, as far as it says it in time.
async fn read_line(mut stream: UnixStream) -> (String, UnixStream) {
    let mut line = String::new();
    let mut reader = BufReader::new((&mut stream).take(LINE_BYTES));
    // What is cut short is no report, whatever was the matter.
    let _ = timeout(LINE_DEADLINE, reader.read_line(&mut line)).await;
    (line, stream)
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

    #[tokio::test]
    async fn a_report_is_not_lost_with_who_began_to_read_it() {
        let directory = tempfile::tempdir().unwrap();
        let control = ControlDir::at(directory.path());
        let mut reports = Reports::listen(&control).unwrap();
        let mut holder = std::os::unix::net::UnixStream::connect(control.join("ctl.sock")).unwrap();
        let (said, rest) = b"{\"from\":\"gate\",\"pid\":7}\n".split_at(9);
        for part in [&b""[..], said] {
            holder.write_all(part).unwrap();
            let hurried = timeout(Duration::from_millis(20), reports.next()).await;
            assert!(hurried.is_err(), "there is no whole report yet");
        }
        holder.write_all(rest).unwrap();
        let (report, _) = reports.next().await.unwrap();
        assert_eq!(report, Report::Gate { pid: 7 });
    }
}
