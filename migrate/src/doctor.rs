//! How a host is, as a place to move containers from and to: each thing that matters, with what to do about it.
//!
//! It looks at this host, and asks the agent of another for its own look and its facts. It changes nothing. Where no agent
//! runs the same look can be taken without one.

use std::path::Path;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::checks::facts::{self, Facts};
use crate::checks::{system, tools};
use crate::deadlines;
use crate::engine::set::Engines;
use crate::failure::{Failure, Problem};
use crate::finding::{self, Code, Finding};
use crate::host::{Host, Tools};
use crate::link::Link;
use crate::message::{Intent, Message};
use crate::phase::{Phase, Role};
use crate::recovery;
use crate::tls::Identity;

/// A certificate that ends sooner than this is to be renewed.
const RENEWAL_DAYS: u64 = 30;

/// No certificate of `godwit ca` is valid for longer.
const MOST_DAYS: u64 = 4000;

/// What one host says of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Health {
    /// What it is.
    pub facts: Facts,
    /// What was found.
    pub findings: Vec<Finding>,
}

/// `GET /v1/doctor`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Diagnosis {
    /// This host's name.
    pub host: String,
    /// The other one that was asked, if any.
    pub peer: Option<String>,
    /// Whether no finding is a problem.
    pub healthy: bool,
    /// All that was found, this host's first.
    pub findings: Vec<Finding>,
}

/// What a host without a name is called.
pub const UNNAMED: &str = "this host";

/// What is looked at.
pub struct Subject<'a> {
    /// The host's name, where a configuration says it.
    pub name: Option<&'a str>,
    /// Its engines.
    pub engines: &'a Engines,
    /// Its programs.
    pub tools: &'a Tools,
    /// Where its images on their way go.
    pub run: &'a Path,
    /// Where its certificates lie.
    pub tls: &'a Path,
}

impl<'a> Subject<'a> {
    /// An agent's host.
    pub fn of(host: &'a Host, tls: &'a Path) -> Self {
        Self {
            name: Some(&host.name),
            engines: &host.engines,
            tools: &host.tools,
            run: &host.places.run,
            tls,
        }
    }
}

impl Diagnosis {
    /// Of these findings.
    pub fn new(host: &str, peer: Option<&str>, findings: Vec<Finding>) -> Self {
        Self {
            host: host.into(),
            peer: peer.map(str::to_owned),
            healthy: !findings.iter().any(Finding::is_problem),
            findings,
        }
    }
}

/// Looks at one host.
pub async fn examine(subject: &Subject<'_>) -> Health {
    let (versions, check, nft, engine) = tokio::join!(
        tools::ask(subject.tools),
        tools::check(subject.tools),
        system::nft(),
        subject.engines.examine(),
    );
    let facts = Facts::of_this_host(&versions);
    let mut findings = vec![system::kernel(&facts.kernel, &facts.architecture)];
    findings.push(system::soft_dirty(versions.soft_dirty));
    findings.extend(tools::judge(&versions));
    findings.push(tools::lens());
    if versions.criu.is_ok() {
        findings.push(check);
    }
    findings.extend(tools::features(&versions));
    findings.push(nft);
    findings.extend(engine);
    findings.push(system::shim());
    findings.extend(system::capabilities());
    findings.extend(system::sysctls());
    findings.extend(system::image_room(subject.run));
    findings.push(certificates(subject.tls, subject.name));
    Health {
        facts,
        findings: finding::on(subject.name.unwrap_or(UNNAMED), findings),
    }
}

/// Whether other agents would accept this host's certificate, and for how long.
fn certificates(tls: &Path, name: Option<&str>) -> Finding {
    const RENEW: &str = "issue another by `godwit ca issue` and restart the agent";
    let identity = match Identity::load(tls).and_then(|identity| {
        name.map_or(Ok(()), |name| identity.check_name(name))?;
        Ok(identity)
    }) {
        Ok(identity) => identity,
        Err(error) => return Finding::of_sentence(Code::Certificates, &error.to_string()),
    };
    let days = identity.days_left(MOST_DAYS);
    let text = format!(
        "the certificate in {} is {}valid for {days} days",
        tls.display(),
        name.map_or_else(String::new, |name| format!("{name}'s and "))
    );
    if days < RENEWAL_DAYS {
        Finding::warning(Code::Certificates, text, RENEW)
    } else {
        Finding::ok(Code::Certificates, text)
    }
}

/// Looks at this agent's host, and has another's agent look at its own.
pub async fn diagnose(host: &Host, tls: &Path, peer: Option<&str>) -> Diagnosis {
    let own = examine(&Subject::of(host, tls)).await;
    let mut findings = own.findings;
    let answers = Finding::ok(Code::Agent, "the agent answers");
    findings.extend(finding::on(&host.name, [answers]));
    if let Some(peer) = peer {
        let asked = Instant::now();
        match ask(host, peer).await {
            Ok(theirs) => {
                let took = u64::try_from(asked.elapsed().as_millis()).unwrap_or(u64::MAX);
                let here = Facts {
                    clock_millis: facts::clock_millis(),
                    ..own.facts
                };
                let differences = facts::differences(&here, &theirs.facts, peer, took);
                findings.extend(finding::on(peer, theirs.findings));
                findings.extend(finding::on(&host.name, differences));
            }
            Err(problem) => {
                let told = Finding::problem(
                    Code::Peer,
                    format!("the agent of {peer} cannot be asked: {problem}"),
                    format!("run `godwit doctor` on {peer}"),
                );
                findings.extend(finding::on(&host.name, [told]));
            }
        }
    }
    Diagnosis::new(&host.name, peer, findings)
}

async fn ask(host: &Host, peer: &str) -> Result<Health, Problem> {
    let mut link = recovery::greet(host, peer, Intent::Doctor).await?;
    let answer = match link.receive("health", deadlines::PLAN).await? {
        Message::Health(health) => Ok(*health),
        other => Err(link.out_of_turn(&other)),
    };
    link.close().await;
    answer
}

/// Answers another agent that asks how this host is.
pub async fn answer(host: &Host, tls: &Path, mut link: Link, versions: &[u32]) {
    let conversation = async {
        recovery::welcome(&mut link, versions).await?;
        let subject = Subject::of(host, tls);
        let health = link.during(async { Ok(examine(&subject).await) }).await?;
        link.send(Message::Health(Box::new(health))).await
    };
    if let Err(Problem::Here(cause)) = conversation.await {
        let failure = Failure::new(Role::Destination, &host.name, Phase::Plan, cause);
        link.try_send(Message::Failed(failure));
    }
    link.close().await;
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::ca;
    use crate::finding::Level;

    #[test]
    fn certificates_are_judged_by_what_a_peer_would_say() {
        let directory = tempfile::tempdir().unwrap();
        let (authority, tls) = (directory.path().join("ca"), directory.path().join("tls"));
        assert!(certificates(&tls, Some("ha")).is_problem());
        ca::init(&authority).unwrap();
        ca::issue(&authority, "ha", &[], &tls).unwrap();
        let good = certificates(&tls, Some("ha"));
        assert_eq!(good.level, Level::Ok, "{good}");
        assert!(
            good.text.contains("valid for 824 days") || good.text.contains("valid for 825 days"),
            "{good}"
        );
        assert!(certificates(&tls, Some("hb")).is_problem());
        assert_eq!(certificates(&tls, None).level, Level::Ok);
        for (days, level) in [(29, Level::Warning), (31, Level::Ok)] {
            let expiry = SystemTime::now() + Duration::from_secs(days * 24 * 3600 + 60);
            ca::issue_until(&authority, "ha", &tls, expiry);
            let told = certificates(&tls, Some("ha"));
            assert_eq!(told.level, level, "{told}");
            assert!(told.text.contains(&format!("for {days} days")), "{told}");
        }
        ca::issue_until(
            &authority,
            "ha",
            &tls,
            SystemTime::now() - Duration::from_secs(60),
        );
        let expired = certificates(&tls, Some("ha"));
        assert!(
            expired.is_problem() && expired.to_string().contains("expired"),
            "{expired}"
        );
    }
}
