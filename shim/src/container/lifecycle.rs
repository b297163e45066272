//! The states of a container and of an exec'ed process, and the one function each that moves between them.
//!
//! What is not listed is refused with the state it was refused in.

use containerd_shim::protos::api::Status;

use crate::error::ShimError;

/// What a container is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lifecycle {
    /// runC is making it.
    Creating,
    /// Its ticket was claimed and its checkpoint image is still to come.
    AwaitingImage,
    /// Its namespaces stand, and the gate keeps CRIU from restoring it.
    Gated,
    /// It is there and its process waits to be started.
    Created,
    /// CRIU is at work on restoring it.
    Restoring,
    /// It is restored as a whole, and CRIU waits for the verdict before it lets it run.
    RestoreHeld,
    /// It runs.
    Running,
    /// It is frozen.
    Paused,
    /// CRIU is dumping it.
    Dumping,
    /// It is dumped as a whole, and CRIU waits for the verdict.
    DumpHeld,
    /// Its init has ended.
    Stopped,
    /// It is gone.
    Deleted,
}

/// What happens to a container.
#[allow(
    dead_code,
    reason = "the steps of checkpoint and restore are constructed by their own module"
)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// runC has made it.
    Created,
    /// Its image must be waited for.
    ImageAwaited,
    /// The gate reported its pid.
    Gated,
    /// CRIU was let through to restore it.
    RestoreBegan,
    /// CRIU reported that all is restored.
    RestoreHeld,
    /// Its process runs.
    Started,
    /// It was frozen.
    Paused,
    /// It was thawed.
    Resumed,
    /// A dump has begun.
    DumpBegan,
    /// CRIU reported that all is dumped.
    DumpHeld,
    /// The dump was given up, or left the container running.
    DumpUndone,
    /// Its init ended.
    Exited,
    /// It was removed.
    Deleted,
}

impl Lifecycle {
    /// The state after `event`, or why it cannot happen now.
    pub(crate) fn after(self, event: Event) -> Result<Self, ShimError> {
        use Lifecycle as L;
        Ok(match (self, event) {
            (L::Creating, Event::Created) => L::Created,
            (L::Creating, Event::ImageAwaited) => L::AwaitingImage,
            (L::Creating | L::AwaitingImage, Event::Gated) => L::Gated,
            (L::Gated | L::AwaitingImage, Event::RestoreBegan) => L::Restoring,
            (L::Restoring, Event::RestoreHeld) => L::RestoreHeld,
            (L::Created | L::Restoring | L::RestoreHeld, Event::Started) => L::Running,
            (L::Running, Event::Paused) => L::Paused,
            (L::Paused, Event::Resumed) => L::Running,
            (L::Running | L::Paused, Event::DumpBegan) => L::Dumping,
            (L::Dumping, Event::DumpHeld) => L::DumpHeld,
            (L::Dumping | L::DumpHeld, Event::DumpUndone) => L::Running,
            (L::Stopped | L::Deleted, Event::Exited) => return Err(self.refusal(event)),
            (_, Event::Exited) => L::Stopped,
            (L::Creating | L::AwaitingImage | L::Gated | L::Created | L::Stopped, Event::Deleted) => {
                L::Deleted
            }
            _ => return Err(self.refusal(event)),
        })
    }

    /// The state in containerd's words.
    pub(crate) fn status(self) -> Status {
        match self {
            Self::Creating | Self::AwaitingImage | Self::Gated | Self::Created => Status::CREATED,
            Self::Restoring | Self::RestoreHeld | Self::Running => Status::RUNNING,
            Self::Paused => Status::PAUSED,
            Self::Dumping | Self::DumpHeld => Status::PAUSING,
            Self::Stopped | Self::Deleted => Status::STOPPED,
        }
    }

    /// The state in the shim's own words, as `Inspect` gives it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::AwaitingImage => "awaiting-image",
            Self::Gated => "gated",
            Self::Created => "created",
            Self::Restoring => "restoring",
            Self::RestoreHeld | Self::DumpHeld => "held",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Dumping => "dumping",
            Self::Stopped => "stopped",
            Self::Deleted => "deleted",
        }
    }

    fn refusal(self, event: Event) -> ShimError {
        let verb = match event {
            Event::Created | Event::ImageAwaited | Event::Gated => "create",
            Event::RestoreBegan | Event::RestoreHeld => "restore",
            Event::Started => "start",
            Event::Paused => "pause",
            Event::Resumed => "resume",
            Event::DumpBegan | Event::DumpHeld | Event::DumpUndone => "checkpoint",
            Event::Exited => "end",
            Event::Deleted => "delete",
        };
        ShimError::FailedPrecondition(format!("cannot {verb} a container that is {}", self.name()))
    }
}

/// What an exec'ed process is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExecLifecycle {
    /// It is described and not started.
    Added,
    /// A start has failed; another may be tried.
    Failed,
    /// It runs.
    Running,
    /// It has ended.
    Stopped,
}

/// What happens to an exec'ed process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExecEvent {
    /// It runs.
    Started,
    /// It could not be started.
    StartFailed,
    /// It ended.
    Exited,
    /// It was removed; there is no state after that.
    Deleted,
}

impl ExecLifecycle {
    /// The state after `event`, or why it cannot happen now.
    pub(crate) fn after(self, event: ExecEvent) -> Result<Self, ShimError> {
        match (self, event) {
            (Self::Added | Self::Failed, ExecEvent::Started) => Ok(Self::Running),
            (Self::Added | Self::Failed, ExecEvent::StartFailed) => Ok(Self::Failed),
            (Self::Running, ExecEvent::Exited) => Ok(Self::Stopped),
            (Self::Added | Self::Failed | Self::Stopped, ExecEvent::Deleted) => Ok(Self::Stopped),
            _ => Err(ShimError::FailedPrecondition(format!(
                "a process that is {self:?} cannot be {event:?}"
            ))),
        }
    }

    /// The state in containerd's words.
    pub(crate) fn status(self) -> Status {
        match self {
            Self::Added | Self::Failed => Status::CREATED,
            Self::Running => Status::RUNNING,
            Self::Stopped => Status::STOPPED,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(events: &[Event]) -> Result<Lifecycle, ShimError> {
        events
            .iter()
            .try_fold(Lifecycle::Creating, |state, event| state.after(*event))
    }

    #[test]
    fn a_container_lives_from_create_to_delete() {
        use Event::{Created, Deleted, Exited, Paused, Resumed, Started};
        let life = walk(&[Created, Started, Paused, Resumed, Exited, Deleted]);
        assert_eq!(life.unwrap(), Lifecycle::Deleted);
    }

    #[test]
    fn a_restored_container_is_held_before_it_runs() {
        use Event::{Exited, Gated, ImageAwaited, RestoreBegan, RestoreHeld, Started};
        assert_eq!(
            walk(&[ImageAwaited, Gated, RestoreBegan, RestoreHeld, Started]).unwrap(),
            Lifecycle::Running
        );
        assert_eq!(walk(&[Gated, RestoreBegan, Exited]).unwrap(), Lifecycle::Stopped);
    }

    #[test]
    fn a_dump_ends_in_running_or_stopped_and_nothing_else_happens_meanwhile() {
        use Event::{Created, DumpBegan, DumpHeld, DumpUndone, Exited, Paused, Started};
        let held = [Created, Started, DumpBegan, DumpHeld];
        assert_eq!(
            walk(&held).unwrap().after(DumpUndone).unwrap(),
            Lifecycle::Running
        );
        assert_eq!(walk(&held).unwrap().after(Exited).unwrap(), Lifecycle::Stopped);
        assert!(walk(&held).unwrap().after(Paused).is_err());
        assert!(walk(&held).unwrap().after(DumpBegan).is_err());
    }

    #[test]
    fn a_running_container_cannot_be_deleted_or_started_again() {
        use Event::{Created, Deleted, Exited, Started};
        let running = walk(&[Created, Started]).unwrap();
        assert!(matches!(
            running.after(Deleted),
            Err(ShimError::FailedPrecondition(_))
        ));
        assert!(matches!(
            running.after(Started),
            Err(ShimError::FailedPrecondition(_))
        ));
        assert!(running.after(Exited).unwrap().after(Exited).is_err());
    }

    #[test]
    fn an_exec_that_could_not_start_may_be_tried_again_or_deleted() {
        let failed = ExecLifecycle::Added.after(ExecEvent::StartFailed).unwrap();
        assert_eq!(failed.status(), Status::CREATED);
        assert_eq!(failed.after(ExecEvent::Started).unwrap(), ExecLifecycle::Running);
        assert!(failed.after(ExecEvent::Deleted).is_ok());
        assert!(failed.after(ExecEvent::Exited).is_err());
    }

    #[test]
    fn an_exec_is_deleted_before_or_after_it_ran_never_while() {
        let added = ExecLifecycle::Added;
        assert!(added.after(ExecEvent::Deleted).is_ok());
        let running = added.after(ExecEvent::Started).unwrap();
        assert!(running.after(ExecEvent::Deleted).is_err());
        assert!(
            running
                .after(ExecEvent::Exited)
                .unwrap()
                .after(ExecEvent::Deleted)
                .is_ok()
        );
    }
}
