//! What would hinder a restore of an image on this host, by the checks and in the words of a plan and of `godwit doctor`.
//!
//! It goes by what the image tells, which is little: neither the kernel nor the CRIU that made it, unless something beside it
//! does. CRIU has the last word.

use std::collections::BTreeSet;

use super::image::Image;
use crate::checks::facts::{self, Facts};
use crate::checks::{system, tools};
use crate::finding::{self, Code, Finding};
use crate::host::Tools;

/// What this host is, asked of its programs.
pub struct Here {
    facts: Facts,
    findings: Vec<Finding>,
}

impl Here {
    /// Asks CRIU and runC for their versions.
    pub async fn ask(tools: &Tools) -> Self {
        let versions = tools::ask(tools).await;
        let facts = Facts::of_this_host(&versions);
        let mut findings = vec![system::kernel(&facts.kernel, &facts.architecture)];
        findings.extend(tools::judge(&versions));
        Self { facts, findings }
    }

    /// Adds to an inspection of an image what speaks for and against a restore here; `name` is this host's.
    pub fn judge(&self, name: &str, image: &mut Image) {
        let mut findings = self.findings.clone();
        findings.extend(of_image(image, &self.facts));
        image.inspection.find(finding::on(name, findings));
    }
}

pub(super) fn of_image(image: &Image, here: &Facts) -> Vec<Finding> {
    let origin = image.inspection.origin.clone().unwrap_or_default();
    let mut findings = vec![whole(image)];
    if image.manifest.as_ref().is_some_and(|manifest| manifest.lazy) {
        findings.push(Finding::problem(
            Code::Checkpoint,
            "most of its memory is not in the image: it was dumped for a move, whose agents bring it",
            "",
        ));
    }
    let there = Facts {
        architecture: origin.architecture.unwrap_or_else(|| here.architecture.clone()),
        kernel: origin.kernel.unwrap_or_default(),
        criu: origin.criu,
        runc: origin.runc,
        ..Facts::default()
    };
    findings.extend(facts::compare(&there, here));
    let needed: BTreeSet<String> = origin.cpu_flags.into_iter().collect();
    let lacking: Vec<&str> = needed.difference(&here.cpu_flags).map(String::as_str).collect();
    if !lacking.is_empty() {
        findings.push(Finding::problem(
            Code::CpuFlags,
            format!(
                "the processor lacks instructions that the image may go on with: {}",
                lacking.join(" ")
            ),
            "choose another host",
        ));
    }
    if let Some(version) = origin
        .cgroup_version
        .filter(|version| *version != here.cgroup_version)
    {
        findings.push(Finding::problem(
            Code::Cgroups,
            format!(
                "the container has cgroups of version {version} mounted, and this host has version {}",
                here.cgroup_version
            ),
            "choose a host with the same version of cgroups",
        ));
    }
    findings
}

fn whole(image: &Image) -> Finding {
    let is_sealed = image
        .inspection
        .origin
        .as_ref()
        .is_some_and(|origin| origin.sealed);
    match &image.damage {
        Some(damage) => Finding::problem(Code::Checkpoint, damage, "make the checkpoint again"),
        None if is_sealed => Finding::ok(
            Code::Checkpoint,
            "all files of the image are there, with all their bytes",
        ),
        None => Finding::warning(
            Code::Checkpoint,
            "the image does not list its files: whether all of them are there cannot be told",
            "",
        ),
    }
}
