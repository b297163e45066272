//! The streams as runC and containerd see them, without either: pipes and terminals on one side, fifos on the other.

use super::*;

use std::fs::{self, File, OpenOptions};
use std::io::{IoSlice, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::pty::openpty;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::sys::stat::Mode;
use tokio::sync::{Mutex as AsyncMutex, MutexGuard as AsyncMutexGuard};
use tokio::task::spawn_blocking;

/// Longer than anything here takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(10);

/// One process can have one reaper, and the tests of this crate may share a process.
pub(super) static ONE_REAPER: AsyncMutex<()> = AsyncMutex::const_new(());

/// Fifos in a directory, and what is made of them.
struct Fixture {
    directory: tempfile::TempDir,
    reaper: Reaper,
    _alone: AsyncMutexGuard<'static, ()>,
}

/// A process's side of its streams, without the process.
struct Process {
    stdin: Option<File>,
    stdout: Option<File>,
}

impl Fixture {
    async fn new() -> Self {
        Self {
            _alone: ONE_REAPER.lock().await,
            directory: tempfile::tempdir().unwrap(),
            reaper: Reaper::start().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn fifo(&self, name: &str) -> String {
        let path = self.path(name);
        nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// Connects pipes as `open` does, but keeps the process's ends.
    async fn pipes(&self, stdin: &str, stdout: &str, io: &ProcessIo) -> Process {
        let stdio = Stdio::new(stdin, stdout, "", false);
        let (stdin, [stdout, _]) = targets(&stdio).unwrap();
        let (theirs_in, ours_in) = pipe().unwrap();
        let (ours_out, theirs_out) = pipe().unwrap();
        let outputs = connect_outputs([stdout.clone(), None], false, &self.setting()).await;
        let pending = Pending {
            source: Box::new(Source::Pipes {
                stdin: stdin.is_some().then_some(ours_in),
                outputs: [stdout.is_some().then_some(ours_out), None],
            }),
            stdin,
            sinks: Box::new(outputs.unwrap().destinations),
            logger: None,
        };
        pending.connect(io).await.unwrap();
        Process {
            stdin: Some(File::from(OwnedFd::from(theirs_in))),
            stdout: Some(File::from(OwnedFd::from(theirs_out))),
        }
    }

    /// Hands over a terminal as runC does; returns the process's side of it.
    async fn terminal(&self, stdin: &str, stdout: &str, io: &ProcessIo) -> File {
        let stdio = Stdio::new(stdin, stdout, "", true);
        let (streams, pending) = open(&stdio, self.setting()).await.unwrap();
        let Streams::Console(socket) = streams else {
            panic!("no console")
        };
        let pty = openpty(None, None).unwrap();
        let stream = UnixStream::connect(socket).unwrap();
        let fds = [pty.master.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&fds)];
        let name = [IoSlice::new(b"/dev/ptmx")];
        sendmsg::<()>(stream.as_raw_fd(), &name, &rights, MsgFlags::empty(), None).unwrap();
        pending.connect(io).await.unwrap();
        File::from(pty.slave)
    }

    fn setting(&self) -> Setting<'_> {
        Setting {
            owner: IoOwner {
                uid: nix::unistd::getuid().as_raw(),
                gid: nix::unistd::getgid().as_raw(),
            },
            console: self.path("console.sock"),
            id: "c1",
            namespace: "default",
            reaper: &self.reaper,
        }
    }
}

fn writer(path: &str) -> File {
    OpenOptions::new().write(true).open(path).unwrap()
}

async fn read_to_end(mut file: File) -> String {
    let read = spawn_blocking(move || {
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        text
    });
    timeout(DEADLINE, read).await.unwrap().unwrap()
}

async fn soon(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < DEADLINE, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn input_survives_its_writers_and_ends_after_the_last_word_when_it_is_closed() {
    let fixture = Fixture::new().await;
    let fifo = fixture.fifo("stdin");
    let io = ProcessIo::default();
    let mut process = fixture.pipes(&fifo, "", &io).await;
    for word in ["one ", "two "] {
        writer(&fifo).write_all(word.as_bytes()).unwrap();
    }
    let mut last = writer(&fifo);
    // Written before the copy had a chance to run again.
    last.write_all(b"three").unwrap();
    io.close_input();
    drop(last);
    assert_eq!(read_to_end(process.stdin.take().unwrap()).await, "one two three");
}

#[tokio::test]
async fn a_close_before_the_start_counts_even_after_a_failed_one() {
    let fixture = Fixture::new().await;
    let fifo = fixture.fifo("stdin");
    let io = ProcessIo::default();
    io.close_input();
    let io = io.abort().await;
    let mut process = fixture.pipes(&fifo, "", &io).await;
    assert_eq!(read_to_end(process.stdin.take().unwrap()).await, "");
}

#[tokio::test]
async fn a_terminals_output_goes_to_a_file_and_its_input_comes_from_a_fifo() {
    let fixture = Fixture::new().await;
    let fifo = fixture.fifo("stdin");
    let log = fixture.path("made/log");
    let io = ProcessIo::default();
    let uri = format!("file://{}", log.display());
    let mut slave = fixture.terminal(&fifo, &uri, &io).await;
    io.resize(101, 33).unwrap();
    slave.write_all(b"shown\n").unwrap();
    writer(&fifo).write_all(b"typed\n").unwrap();
    // The terminal turns line ends into two bytes, and echoes.
    soon("both on the screen", || {
        fs::read_to_string(&log)
            .is_ok_and(|text| text == "shown\r\ntyped\r\n" || text == "typed\r\nshown\r\n")
    })
    .await;
    let mut typed = [0; 6];
    slave.read_exact(&mut typed).unwrap();
    assert_eq!(&typed, b"typed\n");
    drop(slave);
    timeout(DEADLINE, io.shutdown()).await.unwrap();
}

#[tokio::test]
async fn a_terminals_output_goes_to_a_logger_that_ends_with_it() {
    let fixture = Fixture::new().await;
    let (program, log) = (fixture.path("logger"), fixture.path("log"));
    let script = format!("#!/bin/sh\nexec 5>&-; /bin/cat <&3 >{}\n", log.display());
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let io = ProcessIo::default();
    let uri = format!("binary://{}", program.display());
    let mut slave = fixture.terminal("", &uri, &io).await;
    slave.write_all(b"shown\n").unwrap();
    drop(slave);
    timeout(DEADLINE, io.shutdown()).await.unwrap();
    assert_eq!(fs::read_to_string(&log).unwrap(), "shown\r\n");
}

#[tokio::test]
async fn a_reader_at_work_gets_all_even_if_the_process_is_deleted_meanwhile() {
    let fixture = Fixture::new().await;
    let fifo = fixture.fifo("stdout");
    let io = ProcessIo::default();
    let reader = File::options()
        .read(true)
        .custom_flags_nonblocking()
        .open(&fifo)
        .unwrap();
    let mut process = fixture.pipes("", &fifo, &io).await;
    let mut stdout = process.stdout.take().unwrap();
    // More than the fifo and the pipe hold together.
    let wrote = spawn_blocking(move || stdout.write_all(&[b'x'; 200_000]).unwrap());
    let deleted = tokio::spawn(io.shutdown());
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!deleted.is_finished());
    blocking(&reader);
    assert_eq!(read_to_end(reader).await.len(), 200_000);
    wrote.await.unwrap();
    timeout(DEADLINE, deleted).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_deleted_process_that_nobody_reads_is_not_waited_for() {
    let fixture = Fixture::new().await;
    let fifo = fixture.fifo("stdout");
    let io = ProcessIo::default();
    let mut process = fixture.pipes("", &fifo, &io).await;
    let mut stdout = process.stdout.take().unwrap();
    let wrote = spawn_blocking(move || stdout.write_all(&[b'x'; 120_000]));
    // It fills the fifo and waits for the pipe.
    soon("the fifo to be full", || unread(&fifo) >= 60_000).await;
    let begin = Instant::now();
    io.shutdown().await;
    assert!(begin.elapsed() < STALL_DEADLINE, "it waited for a reader");
    let _ = wrote.await.unwrap();
}

/// Bytes that wait in a fifo.
fn unread(path: &str) -> usize {
    let look = File::options()
        .write(true)
        .custom_flags_nonblocking()
        .open(path)
        .unwrap();
    Descriptor::new(look).unwrap().unread_bytes().unwrap()
}

fn blocking(file: &File) {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    fcntl(file, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
}

trait NonBlocking {
    fn custom_flags_nonblocking(&mut self) -> &mut Self;
}

impl NonBlocking for OpenOptions {
    fn custom_flags_nonblocking(&mut self) -> &mut Self {
        std::os::unix::fs::OpenOptionsExt::custom_flags(self, nix::libc::O_NONBLOCK)
    }
}

#[test]
fn both_outputs_go_where_stdout_does() {
    let file = Stdio::new("", "file:///log", "/other", false);
    let (_, [stdout, stderr]) = targets(&file).unwrap();
    assert_eq!((stdout.is_some(), &stdout), (true, &stderr));
    let logger = Stdio::new("", "binary:///l", "", false);
    let (_, [stdout, stderr]) = targets(&logger).unwrap();
    assert_eq!((stdout.is_some(), &stdout), (true, &stderr));
    assert!(targets(&Stdio::new("", "/out", "binary:///l", false)).is_err());
    assert!(targets(&Stdio::new("file:///in", "", "", false)).is_err());
    let fifos = Stdio::new("/in", "/out", "/err", false);
    let (stdin, outputs) = targets(&fifos).unwrap();
    assert_eq!(stdin.as_deref(), Some(Path::new("/in")));
    assert_eq!(
        outputs,
        ["/out", "/err"].map(|path| Some(Target::Path(path.into())))
    );
}
