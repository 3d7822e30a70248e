//! Certificates of clients that are good no more while their connections are there.

use majorityd::config::ClientAuth;
use majorityd::proto::v1;
use majorityd::proto::v1::lock_service_client::LockServiceClient;
use majorityd::proto::v1::queue_service_client::QueueServiceClient;
use tonic::{Code, Status};

use crate::certificates::{Authority, Signed};
use crate::metrics::{Scrape, scraped};
use crate::stage::*;
use crate::tls::{Secured, connect, gets_in};

const NAMES: &[&str] = &["a.example"];

/// Calls of one connection that go on: a lock that is held, one that is waited for, and an item that is waited for.
struct Calls {
    locks: Client,
    held: tonic::Streaming<v1::HoldResponse>,
    waits: tokio::task::JoinHandle<Result<(), Status>>,
    reserves: tokio::task::JoinHandle<Result<(), Status>>,
}

impl Calls {
    /// `other` holds the lock that is waited for.
    async fn start(
        served: &Served,
        ours: &Authority,
        shown: &Signed,
        other: &mut Client,
    ) -> Result<Self, String> {
        lease(other, asking("taken", "other")).await;
        let channel = connect(served, ours, Some(shown)).await.map_err(|error| error.to_string())?;
        let mut locks = LockServiceClient::new(channel.clone());
        let asked = holding("x", "goes");
        let mut held = within(locks.hold(asked)).await.map_err(|status| status.to_string())?.into_inner();
        crate::stage::held(&mut held).await;
        let mut waiting_client = locks.clone();
        let waits = start(async move { waiting_client.acquire(waiting("taken", "goes")).await.map(drop) });
        let request =
            v1::ReserveRequest { queue: "q".into(), wait_timeout: seconds(600), ..Default::default() };
        let reserves =
            start(async move { QueueServiceClient::new(channel).reserve(request).await.map(drop) });
        Ok(Self { locks, held, waits, reserves })
    }

    /// All of them end for this reason; later calls are refused for it, until the connection ends.
    async fn lapse(mut self, why: &str) {
        let ended = within(async {
            loop {
                match self.held.message().await {
                    Ok(Some(_)) => {}
                    Ok(None) => panic!("it ended without a word"),
                    Err(status) => return status,
                }
            }
        })
        .await;
        let waits = within(self.waits).await.unwrap().unwrap_err();
        let reserves = within(self.reserves).await.unwrap().unwrap_err();
        for status in [ended, waits, reserves] {
            assert_eq!(
                (status.code(), reason(&status).as_str()),
                (Code::Unauthenticated, "CERTIFICATE_LAPSED")
            );
            assert!(status.message().contains(why), "{status:?}");
        }
        // Refused, and then without a connection, because no new one comes about.
        within(async {
            loop {
                let request = v1::GetLockRequest { name: "x".to_owned() };
                let status = self.locks.get_lock(request).await.unwrap_err();
                match status.code() {
                    Code::Unauthenticated => assert_eq!(reason(&status), "CERTIFICATE_LAPSED"),
                    _ => return,
                }
                pause().await;
            }
        })
        .await;
    }
}

async fn refused(served: &Served) -> f64 {
    Scrape::of(served).await.sum("majorityd_access_refusals_total", &[("reason", "certificate_lapsed")])
}

/// The lease of a held lock stays as its policy says.
async fn is_left(other: &mut Client) {
    assert_eq!(get(other, "x").await.holder.unwrap().owner, "goes");
    assert_eq!(get(other, "taken").await.waiters, 0);
}

#[tokio::test]
async fn calls_end_when_the_certificate_of_their_connection_expires() {
    let (ours, clients) = (Authority::new("ours"), Authority::new("clients"));
    let secured = Secured::new(&ours.server()).asking(&clients, ClientAuth::Required);
    let served = secured.cluster.daemon().await;
    let mut other =
        LockServiceClient::new(connect(&served, &ours, Some(&clients.client(NAMES))).await.unwrap());
    // On a machine that is busy the shortest may have expired before everything is in place.
    for seconds in [2, 4, 8, 16, 32] {
        let shown = clients.client_for(NAMES, seconds);
        if let Ok(calls) = Calls::start(&served, &ours, &shown, &mut other).await {
            calls.lapse("has expired").await;
            assert!(gets_in(&served, &ours, Some(&shown)).await.is_err());
            assert!(refused(&served).await >= 3.0);
            is_left(&mut other).await;
            return;
        }
    }
    panic!("no connection came about within half a minute");
}

#[tokio::test]
async fn calls_end_when_the_authority_of_their_certificate_goes() {
    let (ours, before, after) = (Authority::new("ours"), Authority::new("before"), Authority::new("after"));
    let secured = Secured::new(&ours.server()).asking(&before, ClientAuth::Required);
    let served = secured.cluster.daemon().await;
    let change = async |authorities: &[&Authority]| {
        let pem: String = authorities.iter().map(|authority| authority.pem.as_str()).collect();
        let done = [("what", "certificate"), ("outcome", "done")];
        let changed = Scrape::of(&served).await.sum("majorityd_reloads_total", &done);
        std::fs::write(secured.folder.path().join("clients.crt"), pem).unwrap();
        scraped(&served, |now| now.sum("majorityd_reloads_total", &done) > changed).await;
    };
    change(&[&before, &after]).await;
    let mut other =
        LockServiceClient::new(connect(&served, &ours, Some(&after.client(NAMES))).await.unwrap());
    let calls = Calls::start(&served, &ours, &before.client(NAMES), &mut other).await.unwrap();
    // While both are trusted, nobody is refused.
    secured.replace(&ours.server());
    let done = [("what", "certificate"), ("outcome", "done")];
    scraped(&served, |now| now.sum("majorityd_reloads_total", &done) == 2.0).await;
    assert_eq!(refused(&served).await, 0.0);
    change(&[&after]).await;
    calls.lapse("is of an authority that is not trusted any more").await;
    is_left(&mut other).await;
}

/// In a handshake, and under a connection. Where there are lists, an authority without one lets nobody in.
#[tokio::test]
async fn calls_end_when_their_certificate_is_revoked() {
    let (ours, clients, others) =
        (Authority::new("ours"), Authority::new("clients"), Authority::new("others"));
    let mut secured = Secured::new(&ours.server()).asking(&clients, ClientAuth::Required);
    let pem = [&*clients.pem, &others.pem].concat();
    std::fs::write(secured.folder.path().join("clients.crt"), pem).unwrap();
    let list = secured.folder.path().join("clients.crl");
    std::fs::write(&list, clients.revoking(&[1])).unwrap();
    secured.cluster.settings.grpc.tls.client_crl_file = Some(list.clone());
    let served = secured.cluster.daemon().await;
    let [first, second, third] = [1, 2, 3].map(|number| clients.numbered_client(NAMES, number));
    gets_in(&served, &ours, Some(&first)).await.unwrap_err();
    gets_in(&served, &ours, Some(&others.client(NAMES))).await.unwrap_err();
    let mut other = LockServiceClient::new(connect(&served, &ours, Some(&third)).await.unwrap());
    let calls = Calls::start(&served, &ours, &second, &mut other).await.unwrap();
    let now = Scrape::of(&served).await;
    assert_eq!(now.sum("majorityd_tls_revocation_list_expiry_seconds", &[]), 4_102_444_800.0, "2100-01-01");

    std::fs::write(&list, clients.revoking(&[1, 2])).unwrap();
    calls.lapse("has been revoked").await;
    gets_in(&served, &ours, Some(&second)).await.unwrap_err();
    gets_in(&served, &ours, Some(&third)).await.unwrap();
    is_left(&mut other).await;

    std::fs::write(&list, [clients.revoking(&[1, 2]), others.revoking(&[])].concat()).unwrap();
    let done = [("what", "certificate"), ("outcome", "done")];
    scraped(&served, |now| now.sum("majorityd_reloads_total", &done) == 2.0).await;
    gets_in(&served, &ours, Some(&others.client(NAMES))).await.unwrap();
}
