//! The plan of a move: everything that stops it, on both hosts, found before anything is touched.
//!
//! A move begins with it, and it can be had without a move (`godwit plan`): then the conversation of the agents ends where
//! a move would begin to prepare. It changes nothing on either host.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use godwit_runtime::options::Layer;
use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::checks::facts::{self, Facts};
use crate::checks::objects::{self, Conditions};
use crate::checks::proc::Proc;
use crate::checks::{connections, container as described, cpu, namespaces, room, security, system, tools};
use crate::deadlines;
use crate::engine::Container;
use crate::failure::{Failure, Problem};
use crate::finding::{self, Code, Finding};
use crate::host::Host;
use crate::link::Link;
use crate::message::{Answer, Intent, Message, Offer};
use crate::options::MoveOptions;
use crate::phase::{Phase, Role};
use crate::recovery;
use crate::shim::{SHIM_PROTOCOL, ShimClient, ShimView};
use crate::tcp::{TcpChoice, Treatment};
use crate::volumes;

/// To look at all descriptors and files of a container; a thousand processes take a tenth of it.
const LOOK_DEADLINE: Duration = Duration::from_secs(5);

/// What a plan says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The container's name.
    pub container: String,
    /// The host it is on.
    pub from: String,
    /// The host it would go to.
    pub to: String,
    /// Whether it can go: no finding is a problem.
    pub possible: bool,
    /// Memory that its image would need, about.
    pub memory_bytes: u64,
    /// What its writable layer holds, about.
    pub files_bytes: u64,
    /// Whether its image would have to be brought along; nothing if the other host did not answer.
    pub image_wanted: Option<bool>,
    /// The modes that CRIU on both hosts is able to do.
    pub modes: Vec<String>,
    /// All that was found; problems first.
    pub findings: Vec<Finding>,
}

/// What the source has seen of its own container.
pub struct Own {
    /// What is to be said to the destination.
    pub offer: Offer,
    /// What was found here.
    pub findings: Vec<Finding>,
    /// The container's shim, if it is one of ours.
    pub shim: Option<Arc<dyn ShimClient>>,
    /// Its first process.
    pub init: u32,
    /// The container's writable layer, if it can be read.
    pub upper: PathBuf,
    /// What becomes of its connections.
    pub connections: Treatment,
}

impl Plan {
    /// Adds what somebody else has found, problems first.
    pub fn object(&mut self, findings: Vec<Finding>) {
        self.findings.extend(findings);
        self.findings
            .sort_by_key(|finding| std::cmp::Reverse(finding.level));
        self.possible = !self.findings.iter().any(Finding::is_problem);
    }
}

/// Plans a move of `container`, which the engine has just described, to the host `destination`.
pub async fn run(
    host: &Host,
    container: Container,
    destination: &str,
    options: &MoveOptions,
) -> Result<Plan, Failure> {
    let failed = |problem| match problem {
        Problem::There(failure) => failure,
        Problem::Here(cause) => Failure::new(Role::Source, &host.name, Phase::Plan, cause),
    };
    let own = look(host, &container, options).await.map_err(failed)?;
    let (source, memory_bytes, files_bytes) = (
        own.offer.source.clone(),
        own.offer.memory_bytes,
        own.offer.files_bytes,
    );
    let mut findings = own.findings;
    let answer = match ask_for_it(host, destination, own.offer).await {
        Ok(answer) => Some(answer),
        // What is wrong here is worth knowing, whether or not the other host can be asked.
        Err(Problem::Here(cause)) => {
            let told = Finding::of_sentence(Code::Peer, &cause.to_string());
            findings.extend(finding::on(&host.name, [told]));
            None
        }
        Err(problem) => return Err(failed(problem)),
    };
    let mut modes = Vec::new();
    if let Some(answer) = &answer {
        findings.extend(finding::on(destination, answer.findings.clone()));
        let possible = source.modes(&answer.facts);
        findings.extend(options.mode.settle(&possible).err());
        modes = possible.into_iter().map(str::to_owned).collect();
    }
    let mut plan = Plan {
        container: container.name,
        from: host.name.clone(),
        to: destination.into(),
        possible: true,
        memory_bytes,
        files_bytes,
        image_wanted: answer.map(|answer| answer.image_wanted),
        modes,
        findings: Vec::new(),
    };
    plan.object(findings);
    Ok(plan)
}

async fn ask_for_it(host: &Host, destination: &str, offer: Offer) -> Result<Answer, Problem> {
    let mut link = recovery::greet(host, destination, Intent::Plan).await?;
    let answer = ask(&mut link, offer).await;
    link.close().await;
    answer
}

/// Source: offers the container and hears what the destination says.
pub async fn ask(link: &mut Link, offer: Offer) -> Result<Answer, Problem> {
    link.send(Message::Offer(Box::new(offer))).await?;
    match link.receive("answer", deadlines::PLAN).await? {
        Message::Answer(answer) => Ok(*answer),
        other => Err(link.out_of_turn(&other)),
    }
}

/// Destination: answers an agent that only plans.
pub async fn answer(host: &Host, mut link: Link, versions: &[u32]) {
    let conversation = async {
        recovery::welcome(&mut link, versions).await?;
        let mut offer = match link.receive("offer", deadlines::PLAN).await? {
            Message::Offer(offer) => *offer,
            other => return Err(link.out_of_turn(&other)),
        };
        let answer = link.during(judge(host, &mut offer)).await?;
        link.send(Message::Answer(Box::new(answer))).await
    };
    if let Err(Problem::Here(cause)) = conversation.await {
        let failure = Failure::new(Role::Destination, &host.name, Phase::Plan, cause);
        link.try_send(Message::Failed(failure));
    }
    link.close().await;
}

/// Destination: everything that speaks against this container here.
///
/// If it is to have another name, the offer is of a container of that name afterwards.
pub async fn judge(host: &Host, offer: &mut Offer) -> Result<Answer, Problem> {
    let engine = host.engines.of(&offer.container.engine)?;
    let mut findings = Vec::new();
    if let Some(name) = &offer.options.name {
        match engine.renamed(&offer.container, name) {
            Ok(renamed) => offer.container = renamed,
            Err(reason) => findings.push(Finding::problem(Code::Name, reason, "choose another")),
        }
    }
    let container = &offer.container;
    let (versions, objections, image_here, storage) = tokio::join!(
        tools::ask(&host.tools),
        engine.objections(container),
        engine.has_image(container),
        engine.storage(),
    );
    let facts = Facts::of_this_host(&versions);
    findings.extend(tools::objections(&versions));
    findings.extend(facts::compare(&offer.source, &facts));
    findings.extend(cpu::missing(container, &offer.source.cpu_flags, &facts.cpu_flags));
    findings.extend(described::cgroups(
        container,
        offer.source.cgroup_version,
        facts.cgroup_version,
    ));
    findings.extend(security::missing(offer.security_profile.as_deref()));
    findings.extend(room::memory(&host.places.run, offer.memory_bytes, 2));
    findings.extend(objections?);
    findings.extend(volumes::judge::arrival(engine.as_ref(), &offer.volumes).await?);

    let image_wanted = !image_here?;
    let layers = if image_wanted { offer.image_bytes } else { 0 };
    if let Some(storage) = storage? {
        findings.extend(volumes::judge::room(
            &storage,
            offer.files_bytes + layers,
            &offer.volumes,
        ));
    }
    findings.push(Finding::ok(
        Code::Image,
        if image_wanted {
            format!("the image is not there and is brought along, {} MB", layers >> 20)
        } else {
            "the image is there".into()
        },
    ));
    Ok(Answer {
        findings,
        image_wanted,
        facts,
    })
}

/// Source: everything that speaks against moving this container away.
pub async fn look(host: &Host, container: &Container, options: &MoveOptions) -> Result<Own, Problem> {
    let engine = host.engines.of(&container.engine)?;
    let (versions, image_bytes) = tokio::join!(tools::ask(&host.tools), engine.image_bytes(container));
    let source = Facts::of_this_host(&versions);
    let cgroup_version = source.cgroup_version;
    let mut findings = tools::objections(&versions);
    let (mut shim, mut init, mut upper, mut seen) = (None, 0, PathBuf::new(), Seen::default());
    let found = host
        .shims
        .find(Role::Source, &container.namespace, &container.id)
        .await?;
    match found {
        Some(found) => {
            let view = found.inspect().await?;
            init = view.pid;
            findings.extend(of_shim(container, &view));
            findings.extend(described::ambiguous_runtime(container));
            match (host.upper_dir)(&view.rootfs) {
                Ok(found) => upper = found,
                Err(error) => findings.push(Finding::problem(
                    Code::WritableLayer,
                    format!("its writable layer cannot be read: {error}"),
                    "",
                )),
            }
            let (container, upper) = (container.clone(), upper.clone());
            let tcp = options.tcp;
            let work = spawn_blocking(move || Seen::look(&container, view.pid, &upper, tcp, cgroup_version));
            seen = timeout(LOOK_DEADLINE, work)
                .await
                .map_err(|_| Problem::failed("its processes and files could not be looked at in time"))?
                .map_err(|error| Problem::failed(error.to_string()))?;
            findings.append(&mut seen.findings);
            shim = Some(found);
        }
        None if !container.running => {
            findings.push(not_running(format!("{} is not running", container.name)));
        }
        None => findings.push(Finding::problem(
            Code::Runtime,
            format!(
                "{} runs under {}, not under Godwit",
                container.name, container.runtime
            ),
            "start it with --runtime io.containerd.godwit.v2",
        )),
    }
    findings.extend(room::memory(&host.places.run, seen.memory_bytes, 1));
    if options.keep_source {
        findings.extend(engine.why_not_kept(container));
    }
    let (offered, found) = volumes::judge::offer(engine.as_ref(), container, &options.volumes).await?;
    findings.extend(found);
    let offer = Offer {
        container: container.clone(),
        options: options.clone(),
        memory_bytes: seen.memory_bytes,
        files_bytes: seen.files_bytes,
        volumes: offered,
        image_bytes: image_bytes?.unwrap_or(0),
        security_profile: seen.security_profile,
        source,
    };
    Ok(Own {
        offer,
        findings: finding::on(&host.name, findings),
        shim,
        init,
        upper,
        connections: seen.connections.unwrap_or(Treatment::Keep),
    })
}

/// What its shim says against a dump of it.
pub(crate) fn of_shim(container: &Container, view: &ShimView) -> Vec<Finding> {
    let (protocol, state) = (view.protocol, &view.state);
    let mut findings = Vec::new();
    if protocol != SHIM_PROTOCOL {
        findings.push(Finding::problem(
            Code::ShimVersion,
            format!(
                "its shim speaks version {protocol} of godwit.v1.Container and this agent {SHIM_PROTOCOL}"
            ),
            "restart the container with the shim of this release",
        ));
    }
    if state != "running" {
        findings.push(not_running(format!("{} is {state}, not running", container.name)));
    } else if !container.running {
        findings.push(not_running(format!("{} is not running", container.name)));
    }
    if view.fetching_memory {
        findings.push(Finding::problem(
            Code::FetchingMemory,
            format!("memory of {} is still on the host it came from", container.name),
            "wait until that move has ended",
        ));
    }
    if !view.execs.is_empty() {
        findings.push(Finding::problem(
            Code::ExecSessions,
            format!(
                "processes exec'ed into it cannot be moved: {}",
                view.execs.join(", ")
            ),
            "end them first",
        ));
    }
    findings
}

fn not_running(text: String) -> Finding {
    Finding::problem(Code::NotRunning, text, "")
}

/// What is seen of a container's processes and files.
#[derive(Default)]
struct Seen {
    findings: Vec<Finding>,
    connections: Option<Treatment>,
    memory_bytes: u64,
    files_bytes: u64,
    security_profile: Option<String>,
}

impl Seen {
    fn look(
        container: &Container,
        pid: u32,
        upper: &std::path::Path,
        tcp: TcpChoice,
        cgroup_version: u8,
    ) -> Self {
        let proc = Proc::default();
        let (told, mut findings) = match connections::told(container) {
            Ok(told) => (told, Vec::new()),
            Err(reason) => {
                let told = Finding::problem(
                    Code::Annotation,
                    reason,
                    "see docs/checkpoint.md for what it can be",
                );
                (Layer::default(), vec![told])
            }
        };
        let conditions = Conditions {
            finds_watches: told.irmap_scan_path.is_some(),
            cgroup_version,
            is_limited: system::is_limited(),
        };
        let treatment = tcp.treatment(told.tcp);
        findings.extend(connections::judge(container, treatment, pid));
        findings.extend(objects::Look::new(&proc, pid, conditions).objections());
        findings.extend(namespaces::nested(&proc, pid));
        Self {
            findings,
            connections: Some(treatment),
            memory_bytes: proc.memory(pid),
            files_bytes: if upper.as_os_str().is_empty() {
                0
            } else {
                room::size_of_files(upper)
            },
            security_profile: security::profile_of(&proc, pid),
        }
    }
}
