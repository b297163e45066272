//! Signatures of two authorities' hosts: each is right for what was signed, by whom and when, and for nothing else.

use std::path::Path;
use std::time::{Duration, SystemTime};

use super::*;
use crate::ca;

const DIGESTS: &[u8] = br#"{"godwit.manifest":"00"}"#;

/// An authority with two hosts.
struct Authority(tempfile::TempDir);

impl Authority {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority = directory.path().join("ca");
        ca::init(&authority).unwrap();
        for host in ["ha", "hb"] {
            ca::issue(&authority, host, &[], &directory.path().join(host)).unwrap();
        }
        Self(directory)
    }

    fn host(&self, name: &str) -> Identity {
        Identity::load(&self.0.path().join(name)).unwrap()
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

fn signature(of: &Identity) -> Signature {
    Signature::parse(&sign(of, DIGESTS).unwrap()).unwrap()
}

#[test]
fn what_a_host_has_signed_every_host_of_its_authority_believes() {
    let authority = Authority::new();
    let (ha, hb) = (authority.host("ha"), authority.host("hb"));
    for reader in [&ha, &hb] {
        assert_eq!(signature(&ha).check(reader, "ha", DIGESTS), Ok(()));
    }
}

#[test]
fn a_signature_is_for_the_sums_that_were_signed_and_no_others() {
    let authority = Authority::new();
    let (ha, hb) = (authority.host("ha"), authority.host("hb"));
    let other = br#"{"godwit.manifest":"01"}"#;
    let told = signature(&ha).check(&hb, "ha", other);
    assert_eq!(told, Err(SignatureError::Wrong { name: "ha".into() }));
}

#[test]
fn a_host_of_another_authority_is_not_believed() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let told = signature(&theirs.host("ha")).check(&ours.host("hb"), "ha", DIGESTS);
    assert_eq!(told, Err(SignatureError::OtherAuthority));
}

#[test]
fn a_certificate_with_another_hosts_signature_proves_nothing() {
    let authority = Authority::new();
    let (ha, hb) = (authority.host("ha"), authority.host("hb"));
    let mixed = Signature {
        certificates: signature(&ha).certificates,
        signature: signature(&hb).signature,
    };
    let told = mixed.check(&hb, "ha", DIGESTS);
    assert_eq!(told, Err(SignatureError::Wrong { name: "ha".into() }));
}

#[test]
fn a_host_signs_for_itself_alone() {
    let authority = Authority::new();
    let (ha, hb) = (authority.host("ha"), authority.host("hb"));
    let told = signature(&hb).check(&ha, "ha", DIGESTS).unwrap_err().to_string();
    assert!(
        told.contains("says that it is of ha") && told.contains("\"hb\""),
        "{told}"
    );
}

#[test]
fn what_is_signed_for_anything_else_is_no_archives() {
    let authority = Authority::new();
    let (ha, hb) = (authority.host("ha"), authority.host("hb"));
    let elsewhere = Signature {
        certificates: signature(&ha).certificates,
        signature: ha.sign(DIGESTS).unwrap(),
    };
    let told = elsewhere.check(&hb, "ha", DIGESTS);
    assert_eq!(told, Err(SignatureError::Wrong { name: "ha".into() }));
}

#[test]
fn a_certificate_is_believed_in_its_time_only() {
    let authority = Authority::new();
    let (ha, hb) = (authority.host("ha"), authority.host("hb"));
    let soon = SystemTime::now() + Duration::from_secs(3600);
    let late = authority.path().join("late");
    ca::issue_until(&authority.path().join("ca"), "ha", &late, soon);
    let late = Identity::load(&late).unwrap();
    let signed = signature(&late);
    let told = |hours: u64| {
        let then = UnixTime::now().as_secs() + hours * 3600;
        let then = UnixTime::since_unix_epoch(Duration::from_secs(then));
        let message = super::signed(DIGESTS);
        let own = late.check_time(then).map_err(|error| error.to_string());
        let others = hb.check_signed(&signed.certificates, "ha", then, &message, &signed.signature);
        (own, others)
    };
    assert_eq!(told(0), (Ok(()), Ok(())));
    let (own, others) = told(2);
    assert_eq!(others, Err(SignatureError::Expired));
    assert!(own.unwrap_err().contains("has expired; issue it again"));
    let before = UnixTime::since_unix_epoch(Duration::from_secs(0));
    let early = hb.check_signed(&signature(&ha).certificates, "ha", before, b"", b"");
    assert_eq!(early, Err(SignatureError::NotYetValid));
}

#[test]
fn a_member_that_is_no_signature_is_refused() {
    let authority = Authority::new();
    let whole = String::from_utf8(sign(&authority.host("ha"), DIGESTS).unwrap()).unwrap();
    let at = whole.find("-----BEGIN GODWIT").unwrap();
    let (certificate, signature) = whole.split_at(at);
    for (member, reason) in [
        (String::new(), "no signature at its end"),
        ("{}".into(), "no signature at its end"),
        (certificate.into(), "no signature at its end"),
        (format!("{signature}{certificate}"), "no signature at its end"),
        (signature.into(), "not certificates alone"),
        (
            format!("{certificate}{signature}{signature}"),
            "not certificates alone",
        ),
        (
            whole.replace("CERTIFICATE", "PRIVATE KEY"),
            "not certificates alone",
        ),
        (whole.replace("MII", "M:I"), "godwit.signature"),
        (whole.replace("END GODWIT", "END OTHER"), "godwit.signature"),
    ] {
        let error = Signature::parse(member.as_bytes()).unwrap_err();
        assert!(matches!(error, ArchiveError::Refused(_)), "{error}");
        assert!(error.to_string().contains(reason), "{error}: {member}");
    }
    assert!(Signature::parse(b"-----BEGIN \xff-----").is_err());
    // What is in it need be no certificate; then it is nobody's.
    let nobodys = whole.replace("MII", "AII");
    let told = Signature::parse(nobodys.as_bytes()).unwrap();
    let told = told.check(&authority.host("hb"), "ha", DIGESTS);
    assert!(matches!(told, Err(SignatureError::BadCertificate(_))), "{told:?}");
}
