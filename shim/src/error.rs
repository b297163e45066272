//! Why a request to the shim failed, by what the caller can do about it, and the ttrpc status it becomes.

use containerd_shim::protos::ttrpc;
use thiserror::Error;
use ttrpc::Code;

/// A request that failed. The texts name the container or process and the cause.
#[derive(Debug, Error)]
pub(crate) enum ShimError {
    /// There is no such container or process, or it has ended.
    #[error("{0}")]
    NotFound(String),
    /// There is one by that name already.
    #[error("{0}")]
    AlreadyExists(String),
    /// It cannot be done in the present state.
    #[error("{0}")]
    FailedPrecondition(String),
    /// The request makes no sense, now or later.
    #[error("{0}")]
    InvalidArgument(String),
    /// The shim does not do this.
    #[error("{0}")]
    Unimplemented(String),
    /// Too much is waiting for the same container.
    #[error("{0}")]
    ResourceExhausted(String),
    /// It was tried and failed.
    #[error("{0}")]
    Failed(String),
}

impl From<ShimError> for ttrpc::Error {
    fn from(error: ShimError) -> Self {
        let code = match &error {
            ShimError::NotFound(_) => Code::NOT_FOUND,
            ShimError::AlreadyExists(_) => Code::ALREADY_EXISTS,
            ShimError::FailedPrecondition(_) => Code::FAILED_PRECONDITION,
            ShimError::InvalidArgument(_) => Code::INVALID_ARGUMENT,
            ShimError::Unimplemented(_) => Code::UNIMPLEMENTED,
            ShimError::ResourceExhausted(_) => Code::RESOURCE_EXHAUSTED,
            ShimError::Failed(_) => Code::UNKNOWN,
        };
        Self::RpcStatus(ttrpc::get_status(code, error.to_string()))
    }
}

/// Turns any error into [`ShimError::Failed`], saying what was being done.
pub(crate) fn failed<E: std::fmt::Display>(doing: impl std::fmt::Display) -> impl FnOnce(E) -> ShimError {
    move |error| ShimError::Failed(format!("{doing}: {error}"))
}
