//! Whether programs that chose their instructions on one processor find them on another.
//!
//! A program asks the processor what it can do when it starts, and never again: the C library, cryptography, just-in-time
//! compilers and databases all choose functions by that. Which of them a process really uses cannot be seen from
//! outside. So every instruction set that a program can choose by and the source has must be there at the destination. What
//! only the kernel uses (mitigations, timers, virtualisation) does not count.

use std::collections::BTreeSet;

use crate::engine::Container;
use crate::finding::{Code, Finding};

/// The annotation by which a container says that it minds no missing instructions: `ignore`, or the default `strict`.
pub const ANNOTATION: &str = "io.godwit.migrate.cpu";

/// Flags of an x86 processor, as Linux names them, that programs choose by. Families with many members are in
/// [`X86_FAMILIES`].
const X86_FLAGS: &str = "\
    3dnow 3dnowext 3dnowprefetch abm adx aes bmi1 bmi2 cldemote clflush clflushopt clwb clzero cmov \
    cmpccxadd cx16 cx8 enqcmd erms f16c fma fma4 fpu fsgsbase fsrm fxsr fxsr_opt gfni hle lahf_lm lm lwp \
    misalignsse mmx mmxext movbe movdir64b movdiri mwaitx ospke pclmulqdq pku pni popcnt raoint rdpid \
    rdpru rdrand rdseed rdtscp rtm serialize sha512 sha_ni sm3 sm4 ssse3 tbm tsc tsxldtrk user_shstk \
    vaes vpclmulqdq waitpkg xgetbv1 xop xsave xsavec xsaveopt";

/// Beginnings of such flags.
const X86_FAMILIES: &[&str] = &["amx_", "apx", "avx", "sse"];

/// The instruction sets that every processor in this `/proc/cpuinfo` has and programs choose by.
pub fn flags(cpuinfo: &str, architecture: &str) -> BTreeSet<String> {
    // Only x86 mixes what programs use with what the kernel does; elsewhere the line is what programs are told.
    let counts = |flag: &str| {
        architecture != "x86_64"
            || X86_FLAGS.split(' ').any(|known| known == flag)
            || X86_FAMILIES.iter().any(|family| flag.starts_with(family))
    };
    let processors = cpuinfo.lines().filter_map(|line| {
        let (key, flags) = line.split_once(':')?;
        matches!(key.trim_end(), "flags" | "Features" | "features").then_some(flags)
    });
    processors
        .map(|flags| {
            flags
                .split_whitespace()
                .filter(|flag| counts(flag))
                .map(str::to_owned)
                .collect::<BTreeSet<_>>()
        })
        .reduce(|all, one| &all & &one)
        .unwrap_or_default()
}

/// What of `needed`, the source's instructions, `present` lacks: an objection, or a warning where the container says so.
pub fn missing(
    container: &Container,
    needed: &BTreeSet<String>,
    present: &BTreeSet<String>,
) -> Option<Finding> {
    let said = container.annotations().remove(ANNOTATION);
    if let Some(other) = said
        .as_deref()
        .filter(|said| !matches!(*said, "ignore" | "strict"))
    {
        return Some(Finding::problem(
            Code::Annotation,
            format!("annotation {ANNOTATION}={other} has a value it cannot have"),
            "it is ignore or strict",
        ));
    }
    let lacking: Vec<&str> = needed.difference(present).map(String::as_str).collect();
    if lacking.is_empty() {
        return None;
    }
    let text = format!("the processor lacks what the source's has: {}", lacking.join(" "));
    Some(if said.as_deref() == Some("ignore") {
        Finding::warning(
            Code::CpuFlags,
            format!(
                "{text}; {} says {ANNOTATION}=ignore, and a program that uses one of them is killed",
                container.name
            ),
            "",
        )
    } else {
        Finding::problem(
            Code::CpuFlags,
            format!("{text}; a program goes on with what it found when it started"),
            format!(
                "choose another host, mask them on the source, or start it with --annotation {ANNOTATION}=ignore"
            ),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::container::tests::container;
    use crate::finding::Level;

    const EPYC: &str = "processor\t: 0\nflags\t\t: fpu sse4_2 avx2 avx512f constant_tsc ibrs\n\n\
                        processor\t: 1\nflags\t\t: fpu sse4_2 avx2 constant_tsc\n";

    fn set(flags: &[&str]) -> BTreeSet<String> {
        flags.iter().map(|flag| (*flag).to_owned()).collect()
    }

    #[test]
    fn only_what_all_processors_have_and_programs_choose_by_counts() {
        assert_eq!(flags(EPYC, "x86_64"), set(&["fpu", "sse4_2", "avx2"]));
        assert_eq!(
            flags("Features\t: fp asimd sve\n", "aarch64"),
            set(&["fp", "asimd", "sve"])
        );
        assert!(flags("vendor_id: 1\n", "x86_64").is_empty());
    }

    #[test]
    fn a_missing_instruction_set_is_an_objection_unless_the_container_says_otherwise() {
        let (needed, present) = (set(&["avx2", "avx512f"]), set(&["avx2", "amx_tile"]));
        assert_eq!(missing(&container(None), &present, &present), None);
        let told = missing(&container(None), &needed, &present).unwrap();
        assert!(told.is_problem() && told.text.contains(": avx512f;"), "{told}");
        let ignored = container(Some((ANNOTATION, "ignore")));
        assert_eq!(
            missing(&ignored, &needed, &present).unwrap().level,
            Level::Warning
        );
        let misspelt = container(Some((ANNOTATION, "ignored")));
        assert_eq!(
            missing(&misspelt, &present, &present).unwrap().code,
            Code::Annotation
        );
    }
}
