//! The arguments of `godwit migrate` and `godwit plan`: what is to go where, and how.

use std::num::NonZeroU32;
use std::str::FromStr;

use godwit_migrate::agent::api::MigrateRequest;
use godwit_migrate::bandwidth::Bandwidth;
use godwit_migrate::engine::set::Choice;
use godwit_migrate::mode::Mode;
use godwit_migrate::options::MoveOptions;
use godwit_migrate::tcp::TcpChoice;
use godwit_migrate::volumes::policy::Wish;

use crate::complete;

/// What is to go where, and how.
#[derive(Debug, clap::Args)]
pub(crate) struct MoveOrder {
    /// Name, id or unique prefix of the id; with containerd also NAMESPACE/ID.
    #[arg(add = complete::containers())]
    container: String,
    /// The host, as the agent's configuration names it.
    #[arg(add = complete::hosts())]
    host: String,
    /// How its memory goes over: `stop` while the container stands still, `pre` before, `post` after it runs there, or
    /// `auto`: pre as long as it pays, then post, as far as both hosts can.
    #[arg(long, default_value_t, value_parser = Mode::from_str)]
    mode: Mode,
    /// Milliseconds that the container may stand still; modes pre and auto copy memory beforehand until that is in reach.
    #[arg(long, value_name = "MS", value_parser = whole::<u32>)]
    downtime: Option<u32>,
    /// What becomes of its TCP connections: `keep`, `close`, or `auto`: as the container says, else kept if the addresses
    /// of all go along.
    #[arg(long, default_value_t, value_parser = TcpChoice::from_str)]
    tcp: TcpChoice,
    /// What becomes of its volumes: `copy` (default), `shared` where the other host has the same storage under the same name, or
    /// `skip`; for all of them, or for one by name or place in the container. May be given several times.
    #[arg(long, value_name = "[VOLUME=]POLICY", value_parser = Wish::from_str)]
    volumes: Vec<Wish>,
    /// What it is called at the destination; inside it keeps its host name.
    #[arg(long)]
    name: Option<String>,
    /// Leave the container here as well, stopped, instead of removing it.
    #[arg(long)]
    keep_source: bool,
    /// Give up, and let the container run on here, if the move has not committed after so many seconds.
    #[arg(long, value_name = "SECONDS", value_parser = whole::<NonZeroU32>)]
    timeout: Option<NonZeroU32>,
    /// What the move sends at most, in bits per second: 100M, 2G.
    #[arg(long, value_name = "RATE")]
    bandwidth: Option<Bandwidth>,
    /// Whose container it is: docker, containerd or auto, the first that knows it.
    #[arg(long, default_value_t)]
    engine: Choice,
    /// containerd's namespace, if not `default`; the same as NAMESPACE/ID.
    #[arg(long)]
    namespace: Option<String>,
}

/// A time; what the standard library says of one that is none helps nobody.
fn whole<N: FromStr>(text: &str) -> Result<N, String> {
    text.parse()
        .map_err(|_| format!("{text:?} is no such time: write a whole number, such as 60"))
}

impl From<MoveOrder> for MigrateRequest {
    fn from(order: MoveOrder) -> Self {
        Self {
            container: order.container,
            destination: order.host,
            options: MoveOptions {
                mode: order.mode,
                downtime_ms: order.downtime,
                tcp: order.tcp,
                volumes: order.volumes.into_iter().collect(),
                name: order.name,
                keep_source: order.keep_source,
                timeout_seconds: order.timeout,
                bandwidth: order.bandwidth,
            },
            engine: order.engine,
            namespace: order.namespace,
        }
    }
}
