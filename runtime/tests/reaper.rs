//! The exit dispatcher on real children. One test at a time: it reaps every child of the process.
#![allow(clippy::unwrap_used, reason = "helpers of a test, which fail by panic")]

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use godwit_runtime::reaper::{End, Limits, Reaper, RunError};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::unix::pipe;
use tokio::time::timeout;

const DEADLINE: Duration = Duration::from_secs(10);

const LIMITS: Limits = Limits {
    deadline: DEADLINE,
    output_bytes: 16,
};

fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    command
}

#[tokio::test(flavor = "current_thread")]
async fn the_dispatcher_loses_no_exit_and_signals_no_stranger() {
    nix::sys::prctl::set_child_subreaper(true).unwrap();
    let reaper = Reaper::start().unwrap();
    exits_and_signals_are_told_apart(&reaper).await;
    a_hundred_children_at_once_are_all_heard_of(&reaper).await;
    output_is_bounded(&reaper).await;
    a_command_past_its_deadline_is_killed(&reaper).await;
    an_orphan_that_ended_before_its_pid_was_known_is_still_heard_of(&reaper).await;
    a_reaped_pid_is_not_signalled(&reaper).await;
}

async fn exits_and_signals_are_told_apart(reaper: &Reaper) {
    let output = reaper
        .run(shell("echo out; echo err >&2; exit 7"), LIMITS)
        .await
        .unwrap();
    assert_eq!(output.exit.end, End::Exited(7));
    assert_eq!(output.exit.status(), 7);
    assert_eq!(
        (output.stdout.as_slice(), output.stderr.as_slice()),
        (&b"out\n"[..], &b"err\n"[..])
    );
    // 37 is a real-time signal, which has no name.
    for signal in [9, 37] {
        let output = reaper
            .run(shell(&format!("kill -{signal} $$")), LIMITS)
            .await
            .unwrap();
        assert_eq!(output.exit.end, End::Killed(signal));
        assert_eq!(output.exit.status(), 128 + signal.unsigned_abs());
    }
    assert!(matches!(
        reaper.run(Command::new("/no/such/program"), LIMITS).await,
        Err(RunError::Spawn { .. })
    ));
}

async fn a_hundred_children_at_once_are_all_heard_of(reaper: &Reaper) {
    let spawn = |code: i32| reaper.spawn(&mut shell(&format!("exit {code}"))).unwrap();
    let mut children: Vec<_> = (0..100).map(spawn).collect();
    for (code, child) in (0..).zip(&mut children) {
        let exit = timeout(DEADLINE, child.departure.wait()).await.unwrap();
        assert_eq!(exit.end, End::Exited(code));
    }
}

async fn output_is_bounded(reaper: &Reaper) {
    let output = reaper
        .run(shell("head -c 1000000 /dev/zero"), LIMITS)
        .await
        .unwrap();
    assert_eq!(output.stdout.len(), LIMITS.output_bytes);
    assert!(output.exit.success());
}

async fn a_command_past_its_deadline_is_killed(reaper: &Reaper) {
    let limits = Limits {
        deadline: Duration::from_millis(50),
        ..LIMITS
    };
    let result = timeout(DEADLINE, reaper.run(shell("exec sleep 100"), limits))
        .await
        .unwrap();
    assert!(matches!(result, Err(RunError::Deadline { .. })));
}

async fn an_orphan_that_ended_before_its_pid_was_known_is_still_heard_of(reaper: &Reaper) {
    let nursery = reaper.nursery();
    let mut parent = reaper
        .spawn(shell("(while kill -0 $$ 2>/dev/null; do :; done; exit 5) & echo $!").stdout(Stdio::piped()))
        .unwrap();
    let stdout = pipe::Receiver::from_owned_fd(parent.stdout.take().unwrap().into()).unwrap();
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line).await.unwrap();
    parent.departure.wait().await;
    let orphan: i32 = line.trim().parse().unwrap();
    // The orphan outlives its parent, which could have reaped it otherwise, and is reaped before it is asked for.
    let reaped = async {
        while Path::new("/proc").join(orphan.to_string()).exists() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(DEADLINE, reaped).await.unwrap();
    let exit = timeout(DEADLINE, nursery.adopt(orphan).wait()).await.unwrap();
    assert_eq!((exit.pid, exit.end), (orphan, End::Exited(5)));
}

async fn a_reaped_pid_is_not_signalled(reaper: &Reaper) {
    let mut child = reaper.spawn(&mut shell("exec sleep 100")).unwrap();
    let pid = child.departure.pid();
    assert!(reaper.kill(pid, 15));
    assert_eq!(child.departure.wait().await.end, End::Killed(15));
    assert!(!reaper.kill(pid, 15));
}
