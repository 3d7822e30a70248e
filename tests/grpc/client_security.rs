//! The client for Rust, against daemons that ask for TLS, certificates and tokens.

use std::time::Duration;

use majorityd::client::{Client, ClientCertificate, ClientError, LockOptions, Loss, Security};
use majorityd::config::ClientAuth;
use majorityd::proto::v1;
use tonic::Code;

use crate::access::{grant, identity};
use crate::certificates::Authority;
use crate::client::example;
use crate::metrics::{Scrape, scraped};
use crate::stage::*;
use crate::tls::Secured;

/// Who signed the daemon's certificate and the client's, and a daemon with TLS that knows callers by their tokens.
struct Stage {
    ours: Authority,
    clients: Authority,
    secured: Secured,
    served: Served,
}

impl Stage {
    async fn new(rules: &str) -> Self {
        let (ours, clients) = (Authority::new("ours"), Authority::new("clients"));
        let mut secured = Secured::new(&ours.server()).asking(&clients, ClientAuth::Required);
        let file = secured.folder.path().join("access.toml");
        std::fs::write(&file, rules).unwrap();
        secured.cluster.settings.access.file = Some(file);
        let served = secured.cluster.daemon().await;
        Self { ours, clients, secured, served }
    }

    fn security(&self, token: &str) -> Security {
        let shown = self.clients.client(&["a.example"]);
        let certificate = ClientCertificate { chain: shown.certificate.into(), key: shown.key.into() };
        Security {
            authorities: Some(self.ours.pem.clone().into()),
            certificate: Some(certificate),
            token: Some(token.to_owned()),
            ..Security::default()
        }
    }

    fn client(&self, security: &Security) -> Client {
        Client::secured([format!("https://{}", self.served.address)], security).unwrap()
    }

    async fn change(&self, rules: &str) {
        let done = [("what", "access"), ("outcome", "done")];
        let before = Scrape::of(&self.served).await.sum("majorityd_reloads_total", &done);
        std::fs::write(self.secured.folder.path().join("access.toml"), rules).unwrap();
        scraped(&self.served, |now| now.sum("majorityd_reloads_total", &done) > before).await;
    }
}

fn all() -> String {
    grant(r#""locks", "queues", "keys""#, r#""""#, r#""read", "use""#)
}

async fn refusal(client: &Client) -> tonic::Status {
    let request = v1::GetLockRequest { name: "x".to_owned() };
    within(client.locks().get_lock(request)).await.unwrap_err()
}

#[tokio::test]
async fn a_client_with_a_certificate_and_a_token_is_served() {
    let stage = Stage::new(&identity("ann", &[&all()])).await;
    within(example::run(&stage.client(&stage.security("ann")))).await.unwrap();
    let denied = stage.client(&stage.security("bob"));
    let status = refusal(&denied).await;
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unauthenticated, "UNKNOWN_CREDENTIALS"));
    // It is no matter of another daemon, or of another try.
    let error = within(denied.lock("x", LockOptions::default())).await.unwrap_err();
    assert!(matches!(&error, ClientError::Call(status) if status.code() == Code::Unauthenticated), "{error}");
}

#[tokio::test]
async fn the_daemon_has_to_be_who_it_says() {
    let stage = Stage::new(&identity("ann", &[&all()])).await;
    let good = stage.security("ann");
    let get = async |security: Security| {
        let client = stage.client(&security);
        within(client.locks().get_lock(v1::GetLockRequest { name: "x".to_owned() })).await.map(drop)
    };
    get(good.clone()).await.unwrap();
    get(Security { server_name: Some("localhost".to_owned()), ..good.clone() }).await.unwrap();
    for bad in [
        Security { server_name: Some("another.example".to_owned()), ..good.clone() },
        Security { authorities: Some(Authority::new("others").pem.into()), ..good.clone() },
        Security { authorities: None, ..good.clone() },
        Security { certificate: None, ..good.clone() },
    ] {
        let status = get(bad.clone()).await.unwrap_err();
        assert_ne!(status.code(), Code::Unauthenticated, "{bad:?}: {status:?}");
    }
}

/// The old token goes after the new one has come, and a lock that is held does not notice.
#[tokio::test]
async fn a_token_is_replaced_under_a_lock_that_is_held() {
    let rules = |tokens: &[&str]| tokens.iter().map(|token| identity(token, &[&all()])).collect::<String>();
    let stage = Stage::new(&rules(&["old", "new"])).await;
    let client = stage.client(&stage.security("old"));
    let options = LockOptions { ttl: Some(Duration::from_secs(3)), ..Default::default() };
    let lock = within(client.lock("orders", options.clone())).await.unwrap();
    let late = stage.client(&stage.security("old"));
    let lost = within(late.lock("mail", options)).await.unwrap();
    client.set_token("new").unwrap();
    stage.change(&rules(&["new"])).await;
    // By then a lock that nobody may extend has run out.
    assert_eq!(within(lost.lost()).await, Loss::Expired);
    assert_eq!(lock.loss(), None);
    assert!(within(lock.release()).await);
}

#[tokio::test]
async fn what_does_not_go_with_an_endpoint_is_refused() {
    let ours = Authority::new("ours");
    let made = |endpoint: &str, security: &Security| Client::secured([endpoint], security).map(drop);
    let token = Security { token: Some("secret".to_owned()), ..Security::default() };
    let authorities = Security { authorities: Some(ours.pem.clone().into()), ..Security::default() };
    let Err(error) = made("http://a.example:1", &token) else { panic!("sends its token to all who listen") };
    assert!(matches!(error, ClientError::Unfit { .. }) && !error.to_string().contains("secret"), "{error}");
    for private in
        ["https://a.example:1", "http://127.0.0.1:1", "http://localhost:1", "http://[::1]:1", "unix:///x"]
    {
        made(private, &token).unwrap();
    }
    made("http://a.example:1", &Security { allow_plaintext_token: true, ..token.clone() }).unwrap();
    let late = Client::new(["http://a.example:1"]).unwrap();
    assert!(matches!(late.set_token("secret"), Err(ClientError::Unfit { .. })));
    assert!(matches!(made("http://127.0.0.1:1", &authorities), Err(ClientError::Unfit { .. })));
    made("https://a.example:1", &authorities).unwrap();
    let (shown, other) = (ours.client(&["a.example"]), ours.client(&["a.example"]));
    let misfit = ClientCertificate { chain: shown.certificate.into(), key: other.key.clone().into() };
    let Err(error) =
        made("https://a.example:1", &Security { certificate: Some(misfit), ..Security::default() })
    else {
        panic!("a key that does not fit")
    };
    assert!(error.to_string().contains("do not fit"), "{error}");
    let nonsense = Security { authorities: Some(b"nonsense".to_vec()), ..Security::default() };
    assert!(matches!(made("https://a.example:1", &nonsense), Err(ClientError::Unfit { .. })));
    for bad in ["", "two words", "line\n", "\u{7f}"] {
        let security = Security { token: Some(bad.to_owned()), ..Security::default() };
        assert!(matches!(made("https://a.example:1", &security), Err(ClientError::Token)), "{bad:?}");
    }
    assert!(!format!("{token:?}").contains("secret"));
}
