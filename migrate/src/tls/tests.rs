//! Two identities over loopback: who is let in, who is not, and what each side says about it.

use std::path::Path;
use std::time::SystemTime;

use rustls::ClientConfig;
use rustls::crypto::aws_lc_rs;
use tempfile::TempDir;
use tokio::net::TcpListener;

use super::*;
use crate::ca;

/// An authority with certificates for `ha` and `hb`.
struct Certificates {
    dir: TempDir,
}

impl Certificates {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        ca::init(&dir.path().join("ca")).unwrap();
        let certificates = Certificates { dir };
        certificates.issue("ha");
        certificates.issue("hb");
        certificates
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn issue(&self, host: &str) {
        ca::issue(&self.path("ca"), host, &["127.0.0.1".into()], &self.path(host)).unwrap();
    }

    fn identity(&self, host: &str) -> Identity {
        Identity::load(&self.path(host)).unwrap()
    }
}

fn peers(names: &[&str]) -> BTreeMap<String, Peer> {
    names
        .iter()
        .map(|name| {
            (
                (*name).to_owned(),
                Peer {
                    address: String::new(),
                },
            )
        })
        .collect()
}

/// `hb` serves one connection, `client` calls it by `name`.
async fn meet(
    server: Identity,
    allowed: &[&str],
    client: &Identity,
    name: &str,
) -> (Result<(Stream, String), TlsError>, Result<Stream, TlsError>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let allowed = peers(allowed);
    tokio::join!(
        async { accept(&server, &allowed, listener.accept().await.unwrap().0).await },
        connect(client, name, &address)
    )
}

#[tokio::test]
async fn both_ends_know_whom_they_talk_to() {
    let certificates = Certificates::new();
    let (accepted, connected) = meet(
        certificates.identity("hb"),
        &["hx", "ha"],
        &certificates.identity("ha"),
        "hb",
    )
    .await;
    let ((mut server, name), mut client) = (accepted.unwrap(), connected.unwrap());
    assert_eq!(name, "ha");

    client.write_all(b"question").await.unwrap();
    client.flush().await.unwrap();
    let mut heard = [0; 8];
    server.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"question");
    let suite = client.get_ref().1.negotiated_cipher_suite().unwrap().suite();
    assert_eq!(suite, rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
}

#[tokio::test]
async fn a_client_of_another_authority_is_refused_and_told_why() {
    let (ours, theirs) = (Certificates::new(), Certificates::new());
    // It trusts our server, so that only its own certificate is wrong.
    let mixed = theirs.path("ha");
    let before = Identity::load(&mixed).unwrap();
    let server = ours.identity("hb");
    let (accepted, connected) = meet(server, &["ha"], &trusting(&before, &ours), "hb").await;
    let refused = accepted.unwrap_err().to_string();
    assert!(
        refused.contains("its certificate is of another authority"),
        "{refused}"
    );
    let told = connected.unwrap_err().to_string();
    assert!(
        told.starts_with("hb refuses this host: this host's certificate is not of its authority"),
        "{told}"
    );
}

#[tokio::test]
async fn a_server_of_another_authority_is_not_trusted() {
    let (ours, theirs) = (Certificates::new(), Certificates::new());
    let (accepted, connected) = meet(theirs.identity("hb"), &["ha"], &ours.identity("ha"), "hb").await;
    let error = connected.unwrap_err();
    assert!(matches!(error, TlsError::NotThePeer { .. }), "{error}");
    assert!(error.to_string().contains("of another authority"), "{error}");
    let error = accepted.unwrap_err().to_string();
    assert!(
        error.contains("does not trust this host's certificate"),
        "{error}"
    );
}

#[tokio::test]
async fn a_certificate_of_no_configured_peer_is_refused_and_told_why() {
    let certificates = Certificates::new();
    let (accepted, connected) = meet(
        certificates.identity("hb"),
        &["hx"],
        &certificates.identity("ha"),
        "hb",
    )
    .await;
    let refused = accepted.unwrap_err().to_string();
    assert!(
        refused.contains("of no configured peer") && refused.contains("\"ha\""),
        "{refused}"
    );
    let told = connected.unwrap_err().to_string();
    assert!(told.contains("does not list this host under [peers]"), "{told}");
}

#[tokio::test]
async fn with_no_peers_nobody_is_let_in() {
    let certificates = Certificates::new();
    let (accepted, connected) = meet(
        certificates.identity("hb"),
        &[],
        &certificates.identity("ha"),
        "hb",
    )
    .await;
    assert!(matches!(accepted.unwrap_err(), TlsError::NotAPeer { .. }));
    assert!(matches!(connected.unwrap_err(), TlsError::RefusedByPeer { .. }));
}

#[tokio::test]
async fn a_server_with_another_hosts_certificate_is_not_trusted() {
    let certificates = Certificates::new();
    certificates.issue("hx");
    let (_, connected) = meet(
        certificates.identity("hx"),
        &["ha"],
        &certificates.identity("ha"),
        "hb",
    )
    .await;
    let error = connected.unwrap_err().to_string();
    assert!(
        error.contains("not trusted to be hb") && error.contains("hx"),
        "{error}"
    );
}

#[tokio::test]
async fn a_certificate_that_expired_meanwhile_is_refused() {
    let certificates = Certificates::new();
    let soon = SystemTime::now() + Duration::from_secs(2);
    ca::issue_until(&certificates.path("ca"), "ha", &certificates.path("late"), soon);
    let client = certificates.identity("late");
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (accepted, connected) = meet(certificates.identity("hb"), &["ha"], &client, "hb").await;
    let refused = accepted.unwrap_err().to_string();
    assert!(refused.contains("its certificate has expired"), "{refused}");
    let told = connected.unwrap_err().to_string();
    assert!(
        told.contains("this host's certificate is not valid at this time"),
        "{told}"
    );
}

#[tokio::test]
async fn a_client_without_certificate_is_refused() {
    let certificates = Certificates::new();
    let mut nameless = certificates.identity("ha");
    nameless.client = anonymous(&certificates);
    let (accepted, connected) = meet(certificates.identity("hb"), &["ha"], &nameless, "hb").await;
    let refused = accepted.unwrap_err().to_string();
    assert!(refused.contains("it has no certificate"), "{refused}");
    let told = connected.unwrap_err().to_string();
    assert!(told.contains("it wants a certificate and got none"), "{told}");
}

#[tokio::test]
async fn a_host_without_agent_is_reported_with_the_remedy() {
    let certificates = Certificates::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let error = connect(&certificates.identity("ha"), "hb", &address)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("is `godwit agent` running on hb?"), "{error}");
}

#[tokio::test]
async fn an_address_that_cannot_be_looked_up_is_reported() {
    let certificates = Certificates::new();
    let error = connect(&certificates.identity("ha"), "hb", "no such host:4690")
        .await
        .unwrap_err();
    assert!(matches!(error, TlsError::UnknownHost { .. }), "{error}");
}

#[tokio::test]
async fn a_service_that_is_no_agent_is_reported() {
    let certificates = Certificates::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let identity = certificates.identity("ha");
    let (connected, ()) = tokio::join!(connect(&identity, "hb", &address), async {
        let (mut connection, _) = listener.accept().await.unwrap();
        connection.write_all(b"SSH-2.0-OpenSSH_10.0\r\n").await.unwrap();
        let _ = connection.read(&mut [0; 4096]).await;
    });
    let error = connected.unwrap_err().to_string();
    assert!(error.contains("does not speak TLS 1.3"), "{error}");
}

#[tokio::test]
async fn a_silent_peer_is_given_up_in_time_on_both_sides() {
    let certificates = Certificates::new();
    let (client, server) = (certificates.identity("ha"), certificates.identity("hb"));
    let deaf = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = deaf.local_addr().unwrap().to_string();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mute = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (connection, _) = listener.accept().await.unwrap();

    let before = Instant::now();
    let allowed = peers(&["ha"]);
    let (connected, accepted) = tokio::join!(
        connect(&client, "hb", &address),
        accept(&server, &allowed, connection)
    );
    assert!(before.elapsed() < Duration::from_secs(5));
    assert!(matches!(connected.unwrap_err(), TlsError::Silent { .. }));
    assert!(matches!(accepted.unwrap_err(), TlsError::Slow { .. }));
    drop(mute);
}

#[test]
fn each_mistake_in_the_files_has_its_own_error() {
    let certificates = Certificates::new();
    let spoil = |act: &dyn Fn(&Path)| {
        certificates.issue("ha");
        let dir = certificates.path("ha");
        act(&dir);
        Identity::load(&dir).unwrap_err()
    };
    let copy = |from: &str, to: &Path| {
        std::fs::copy(certificates.path(from), to).unwrap();
    };

    let error = spoil(&|dir| std::fs::remove_file(dir.join(HOST_KEY)).unwrap());
    assert!(matches!(error, TlsError::Missing { .. }), "{error}");

    let error = spoil(&|dir| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(dir.join(HOST_KEY), PermissionsExt::from_mode(0o640)).unwrap();
    });
    assert!(matches!(error, TlsError::OpenKey { mode: 0o640, .. }), "{error}");

    let error = spoil(&|dir| copy("hb/host.key", &dir.join(HOST_KEY)));
    assert!(matches!(error, TlsError::OtherKey { .. }), "{error}");

    let error = spoil(&|dir| std::fs::write(dir.join(CA_CERTIFICATE), "nothing").unwrap());
    assert!(matches!(error, TlsError::Malformed { .. }), "{error}");

    let other = Certificates::new();
    let error = spoil(&|dir| {
        std::fs::copy(other.path("ha").join(CA_CERTIFICATE), dir.join(CA_CERTIFICATE)).unwrap();
    });
    assert!(matches!(error, TlsError::OtherAuthority { .. }), "{error}");

    let error = spoil(&|dir| {
        let past = SystemTime::now() - Duration::from_secs(60);
        ca::issue_until(&certificates.path("ca"), "ha", dir, past);
    });
    assert!(matches!(error, TlsError::Expired { .. }), "{error}");

    let error = spoil(&|dir| {
        std::fs::remove_file(dir.join(HOST_CERTIFICATE)).unwrap();
        std::fs::create_dir(dir.join(HOST_CERTIFICATE)).unwrap();
    });
    assert!(matches!(error, TlsError::NotAFile { .. }), "{error}");
}

#[test]
fn a_certificate_of_another_host_is_noticed_when_the_agent_starts() {
    let identity = Certificates::new().identity("ha");
    identity.check_name("ha").unwrap();
    let error = identity.check_name("hb").unwrap_err().to_string();
    assert!(
        error.contains("not the certificate of hb") && error.contains("\"ha\""),
        "{error}"
    );
}

fn roots(certificates: &Certificates) -> rustls::RootCertStore {
    use rustls::pki_types::pem::PemObject;
    let mut roots = rustls::RootCertStore::empty();
    let path = certificates.path("ha").join(CA_CERTIFICATE);
    roots
        .add(rustls::pki_types::CertificateDer::from_pem_file(path).unwrap())
        .unwrap();
    roots
}

/// A client that trusts `certificates`' authority and presents nothing.
fn anonymous(certificates: &Certificates) -> std::sync::Arc<ClientConfig> {
    let config = ClientConfig::builder_with_provider(aws_lc_rs::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots(certificates))
        .with_no_client_auth();
    config.into()
}

/// `identity`, but trusting `certificates`' authority as a client.
fn trusting(identity: &Identity, certificates: &Certificates) -> Identity {
    let config = ClientConfig::builder_with_provider(aws_lc_rs::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots(certificates))
        .with_client_cert_resolver(identity.client.client_auth_cert_resolver.clone());
    let mut trusting = identity.clone();
    trusting.client = config.into();
    trusting
}
