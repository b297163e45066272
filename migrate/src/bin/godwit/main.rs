//! `godwit`: the agent and the command line.
//!
//! Every command that concerns a container goes through the local API of the agent on this host; nothing here touches
//! a container, an engine or a peer, but `setup` changes an engine's configuration files, `inspect` reads checkpoint images, and
//! `doctor` looks at this host itself where no agent answers. What a command prints stands in the module of its name.

mod archive;
mod client;
mod complete;
mod containers;
mod doctor;
#[cfg(test)]
mod examples;
mod export;
mod findings;
mod force;
mod help;
mod import;
mod inspect;
mod logger;
mod man;
mod migrate;
mod migrations;
mod order;
mod plan;
mod restore;
mod setup;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use godwit_migrate::config::AgentConfig;
use godwit_migrate::{agent, ca};
use order::MoveOrder;
use tokio_util::sync::CancellationToken;

/// Something failed; nothing has changed, or all is undone.
const EXIT_FAILED: u8 = 1;

const DEFAULT_CONFIG: &str = "/etc/godwit/agent.toml";
const DEFAULT_SOCKET: &str = "/run/godwit/agent.sock";

/// Threads for the agent's tasks: one of them encrypts while another serves; blocking work has its own.
const WORKER_THREADS: usize = 2;

/// Moves running containers between hosts.
#[derive(Debug, Parser)]
#[command(name = "godwit", version, after_help = help::GODWIT)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent of this host.
    #[command(after_help = help::AGENT)]
    Agent {
        /// The agent's configuration.
        #[arg(long, default_value = DEFAULT_CONFIG)]
        config: PathBuf,
    },
    /// Move a running container to another host; ^C aborts up to the commit.
    #[command(after_help = help::MIGRATE)]
    Migrate {
        #[command(flatten)]
        order: MoveOrder,
        /// Print one JSON object a line: every phase, and the report or the error at last.
        #[arg(long)]
        json: bool,
        /// Only plan, as `godwit plan` does.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        agent: AgentSocket,
    },
    /// Say all that would stop a move, and touch nothing.
    #[command(after_help = help::PLAN)]
    Plan {
        #[command(flatten)]
        order: MoveOrder,
        /// Print JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        agent: AgentSocket,
    },
    /// Say what on this host, or between it and another, stands in the way of moves.
    #[command(after_help = help::DOCTOR)]
    Doctor {
        /// Another host, which is asked too and compared with this one.
        #[arg(long, value_name = "HOST", add = complete::hosts())]
        peer: Option<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
        /// The agent's configuration, read where no agent answers.
        #[arg(long, default_value = DEFAULT_CONFIG)]
        config: PathBuf,
        #[command(flatten)]
        agent: AgentSocket,
    },
    /// List the containers of this host, and which of them a move is at.
    #[command(after_help = help::CONTAINERS)]
    Containers {
        /// Print JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        agent: AgentSocket,
    },
    /// Say what there is in a container, in a checkpoint image or in an archive, and what would hinder a restore here.
    #[command(after_help = help::INSPECT)]
    Inspect {
        #[command(flatten)]
        order: inspect::Order,
        #[command(flatten)]
        agent: AgentSocket,
    },
    /// Restore a stopped container from a checkpoint image on this host; nothing is copied.
    #[command(after_help = help::RESTORE)]
    Restore {
        #[command(flatten)]
        order: restore::Order,
        #[command(flatten)]
        agent: AgentSocket,
    },
    /// List the moves of this host, show one, or give one up.
    #[command(after_help = help::MIGRATIONS)]
    Migrations {
        #[command(subcommand)]
        order: Option<migrations::Order>,
        /// Print JSON.
        #[arg(long, global = true)]
        json: bool,
        #[command(flatten)]
        agent: AgentSocket,
    },
    /// Store a running container in a file; ^C leaves it running.
    #[command(after_help = help::EXPORT)]
    Export {
        #[command(flatten)]
        order: export::Order,
        /// Print one JSON object a line: every phase, and the outcome or the error at last.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        agent: AgentSocket,
    },
    /// Make a running container of an archive.
    #[command(after_help = help::IMPORT)]
    Import {
        #[command(flatten)]
        order: import::Order,
        /// Print one JSON object a line: every phase, and the outcome or the error at last.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        agent: AgentSocket,
    },
    /// Have a move that still prepares freeze its container now, whatever is left to be sent then.
    #[command(after_help = help::FORCE_COMPLETE)]
    ForceComplete {
        /// The move, as `godwit migrations` lists it on its source.
        #[arg(add = complete::migrations())]
        migration: String,
        #[command(flatten)]
        agent: AgentSocket,
    },
    /// Make an engine of this host use Godwit, and undo that; restarts nothing.
    #[command(after_help = help::SETUP)]
    Setup(setup::Order),
    /// Make and use the authority by which agents know each other.
    #[command(subcommand, after_help = help::CA)]
    Ca(CaCommand),
    /// Write the manual pages of all commands.
    #[command(hide = true)]
    Man {
        /// Where to.
        dir: PathBuf,
    },
}

#[derive(Debug, clap::Args)]
struct AgentSocket {
    /// The agent's local socket.
    #[arg(long, global = true, default_value = DEFAULT_SOCKET)]
    socket: PathBuf,
}

#[derive(Debug, Subcommand)]
enum CaCommand {
    /// Make a new authority: ca.pem and ca.key, the latter to be kept off the hosts.
    Init {
        /// Where to.
        #[arg(long)]
        dir: PathBuf,
    },
    /// Make a host's certificate and key.
    Issue {
        /// The authority's directory.
        #[arg(long)]
        dir: PathBuf,
        /// The host's name, as the other agents' configurations name it.
        #[arg(long)]
        host: String,
        /// An address under which it is reached; may be given several times.
        #[arg(long)]
        address: Vec<String>,
        /// Where to put ca.pem, host.pem and host.key.
        #[arg(long)]
        out: PathBuf,
    },
}

fn main() -> ExitCode {
    complete::answer();
    let arguments = Arguments::parse();
    let outcome = match arguments.command {
        Command::Agent { config } => run_agent(&config),
        Command::Migrate {
            order,
            json,
            dry_run: false,
            agent,
        } => block_on(migrate::run(&agent.socket, order.into(), json)),
        Command::Migrate {
            order, json, agent, ..
        }
        | Command::Plan { order, json, agent } => block_on(plan::run(&agent.socket, order.into(), json)),
        Command::Doctor {
            peer,
            json,
            config,
            agent,
        } => block_on(doctor::run(&agent.socket, &config, peer.as_deref(), json)),
        Command::Containers { json, agent } => block_on(containers::run(&agent.socket, json)),
        Command::Inspect { order, agent } => block_on(inspect::run(&agent.socket, order)),
        Command::Restore { order, agent } => block_on(restore::run(&agent.socket, order)),
        Command::Export { order, json, agent } => {
            let (request, output) = order.split();
            block_on(export::run(&agent.socket, request, output.as_deref(), json))
        }
        Command::Import { order, json, agent } => {
            let (request, input) = order.split();
            block_on(import::run(&agent.socket, request, input.as_deref(), json))
        }
        Command::ForceComplete { migration, agent } => block_on(force::complete(&agent.socket, &migration)),
        Command::Migrations { order, json, agent } => {
            let order = order.unwrap_or(migrations::Order::List);
            block_on(migrations::run(&agent.socket, order, json))
        }
        Command::Setup(order) => setup::run(&order),
        Command::Man { dir } => man::write(Arguments::command(), &dir).map(|()| ExitCode::SUCCESS),
        Command::Ca(command) => run_ca(command).map(|()| ExitCode::SUCCESS),
    };
    outcome.unwrap_or_else(|error| {
        if !is_hang_up(&error) {
            eprintln!("godwit: {}", told(&error));
        }
        let unreachable = error.downcast_ref::<client::Unreachable>().is_some();
        ExitCode::from(if unreachable {
            client::EXIT_UNREACHABLE
        } else {
            EXIT_FAILED
        })
    })
}

/// Whoever read the output, `head` say, has enough of it.
fn is_hang_up(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<io::Error>();
    io.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// An error and its causes, without those that it quotes itself.
fn told(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

fn run_ca(command: CaCommand) -> anyhow::Result<()> {
    match command {
        CaCommand::Init { dir } => ca::init(&dir)?,
        CaCommand::Issue {
            dir,
            host,
            address,
            out,
        } => ca::issue(&dir, &host, &address, &out)?,
    }
    Ok(())
}

fn run_agent(path: &std::path::Path) -> anyhow::Result<ExitCode> {
    logger::install();
    let config = AgentConfig::load(path)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
            stopped.cancel();
        });
        agent::run(config, stop).await?;
        Ok(ExitCode::SUCCESS)
    })
}

fn block_on(future: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let outcome = runtime.block_on(future);
    // A thread that writes an archive into a pipe may wait for ever for whoever reads it.
    runtime.shutdown_background();
    outcome
}
