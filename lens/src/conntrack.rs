//! The question that CRIU asks in place of the one for all connections that the kernel tracks.
//!
//! To answer that one the kernel walks a table of the whole host, 9 ms for its usual 262,144 buckets, and CRIU asks twice, with
//! the container standing still. Where the engine wires the network anew nothing of the answer has a place, so it is to be
//! empty; the other question is one that the kernel answers so at once. Where the network is restored this is not used.

/// Tells the lens that what is tracked in the container's network is not wanted.
pub(crate) const VARIABLE: &str = "GODWIT_UNTRACKED";

/// A header of netlink and one of netfilter (`linux/netlink.h`, `linux/netfilter/nfnetlink.h`), in the machine's byte order.
pub(crate) type Question = [u8; 20];

/// Where the kind of a question, its flags, and the family of addresses are in it.
const KIND: usize = 4;
const FLAGS: usize = 6;
const FAMILY: usize = 16;

/// `NLM_F_DUMP`: all there are.
const ALL: u16 = 0x300;

/// `IPCTNL_MSG_CT_GET` of `NFNL_SUBSYS_CTNETLINK`: what is tracked.
const TRACKED: u16 = (1 << 8) | 1;

/// `IPCTNL_MSG_EXP_GET` of `NFNL_SUBSYS_CTNETLINK_EXP`: what is expected, a table of few buckets …
const EXPECTED: u16 = (2 << 8) | 1;

/// … of a family of addresses that does not exist.
const NO_FAMILY: u8 = 0xff;

/// Whether what is tracked is not wanted.
pub(crate) fn is_unwanted() -> bool {
    std::env::var_os(VARIABLE).is_some()
}

/// The question that is asked in place of `question`; `None` where that one is asked.
pub(crate) fn instead_of(question: &Question) -> Option<Question> {
    let number = |place: usize| u16::from_ne_bytes([question[place], question[place + 1]]);
    if number(KIND) != TRACKED || number(FLAGS) & ALL != ALL {
        return None;
    }
    let mut other = *question;
    other[KIND..KIND + 2].copy_from_slice(&EXPECTED.to_ne_bytes());
    other[FAMILY] = NO_FAMILY;
    Some(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(kind: u16, flags: u16) -> Question {
        let mut bytes = [0; 20];
        bytes[0] = 20;
        bytes[KIND..KIND + 2].copy_from_slice(&kind.to_ne_bytes());
        bytes[FLAGS..FLAGS + 2].copy_from_slice(&flags.to_ne_bytes());
        bytes[8] = 24;
        bytes
    }

    #[test]
    fn only_the_question_for_all_that_is_tracked_is_exchanged() {
        let mut expected = question(EXPECTED, ALL | 1);
        expected[FAMILY] = NO_FAMILY;
        assert_eq!(instead_of(&question(TRACKED, ALL | 1)), Some(expected));
        assert_eq!(instead_of(&question(TRACKED, 1)), None, "for one of them");
        assert_eq!(instead_of(&question(TRACKED + 1, ALL)), None, "a deletion");
        assert_eq!(instead_of(&question(EXPECTED, ALL)), None);
    }
}
