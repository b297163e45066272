//! `godwit force-complete`: has a move that still prepares freeze its container now.

use std::path::Path;
use std::process::ExitCode;

use hyper::Method;

use crate::client;

/// Asks the agent of this host, which must be the move's source.
pub(crate) async fn complete(socket: &Path, migration: &str) -> anyhow::Result<ExitCode> {
    let path = format!("/v1/migrations/{migration}/force-complete");
    client::send(socket, Method::POST, &path, None::<&()>).await?;
    Ok(ExitCode::SUCCESS)
}
