//! Tasks whose futures lie on the heap, so that all that answer the same are of one type.
//!
//! `tokio` compiles its machinery once for each type of future, and carries a future through it by value: a task that is
//! spawned as it is costs the program some kilobytes of code, and the stack several times its own size, which a shim
//! then has for ever. It does not decide where a task runs, and ends none.

use std::pin::Pin;

use tokio::task::{JoinError, JoinHandle, JoinSet};

/// What runs as a task.
pub(crate) type Task<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Puts a future on the heap.
pub(crate) fn boxed<T>(future: impl Future<Output = T> + Send + 'static) -> Task<T> {
    Box::pin(future)
}

/// Starts a task of its own.
pub(crate) fn spawn<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    tokio::spawn(boxed(future))
}

/// Tasks that end with their owner, and tell it what came of them.
pub(crate) struct Tasks<T>(JoinSet<T>);

impl<T: Send + 'static> Tasks<T> {
    /// None yet.
    pub(crate) fn new() -> Self {
        Self(JoinSet::new())
    }

    /// Starts one more.
    pub(crate) fn spawn(&mut self, future: impl Future<Output = T> + Send + 'static) {
        self.0.spawn(boxed(future));
    }

    /// What came of the next that ends; `None` if there is none. It may be dropped and called again.
    pub(crate) async fn join_next(&mut self) -> Option<Result<T, JoinError>> {
        self.0.join_next().await
    }
}
