//! Who may do what, over the wire: every method for every kind of caller, every place in a request where a name stands, and
//! rules that change under calls and streams.

use std::path::PathBuf;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use majorityd::access::methods::{Entrance, METHODS};
use majorityd::access::{Need, Right, Service, token};
use majorityd::config::ClientAuth;
use majorityd::proto::v1;
use majorityd::proto::v1::cluster_service_client::ClusterServiceClient;
use majorityd::proto::v1::kv_service_client::KvServiceClient;
use majorityd::proto::v1::lock_service_client::LockServiceClient;
use majorityd::proto::v1::queue_service_client::QueueServiceClient;
use tempfile::TempDir;
use tokio_stream::StreamExt;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status};

use crate::certificates::Authority;
use crate::metrics::{Scrape, scraped};
use crate::stage::*;

const SERVICES: [Service; 4] = [Service::Locks, Service::Queues, Service::Keys, Service::Cluster];
const RIGHTS: [Right; 4] = [Right::Read, Right::Use, Right::Force, Right::Admin];

/// A cluster with rules in a file, and the daemon that goes by them.
struct Guarded {
    cluster: Cluster,
    folder: TempDir,
}

impl Guarded {
    fn new(rules: &str) -> Self {
        let (mut cluster, folder) = (Cluster::new(), tempfile::tempdir().unwrap());
        cluster.settings.access.file = Some(folder.path().join("access.toml"));
        let guarded = Self { cluster, folder };
        guarded.write(rules);
        guarded
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("access.toml")
    }

    fn write(&self, rules: &str) {
        std::fs::write(self.path(), rules).unwrap();
    }

    /// Writes other rules and waits until the daemon goes by them.
    async fn change(&self, served: &Served, rules: &str) {
        let done = [("what", "access"), ("outcome", "done")];
        let before = Scrape::of(served).await.sum("majorityd_reloads_total", &done);
        self.write(rules);
        scraped(served, |now| now.sum("majorityd_reloads_total", &done) > before).await;
    }
}

/// An identity that is known by its own name as a token.
pub fn identity(name: &str, grants: &[&str]) -> String {
    let hash = token::hash_text(&token::hash(name));
    let grants = grants.join(", ");
    format!("[[identity]]\nname = \"{name}\"\ntoken_sha256 = [\"{hash}\"]\ngrants = [{grants}]\n")
}

pub fn grant(services: &str, prefixes: &str, rights: &str) -> String {
    format!("{{ services = [{services}], prefixes = [{prefixes}], rights = [{rights}] }}")
}

/// Shows a token, or none if it is empty.
#[derive(Clone)]
struct Bearer(String);

impl tonic::service::Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if !self.0.is_empty() {
            let value = format!("Bearer {}", self.0).parse().unwrap();
            request.metadata_mut().insert("authorization", value);
        }
        Ok(request)
    }
}

type Known = InterceptedService<Channel, Bearer>;

async fn known(served: &Served, token: &str) -> Known {
    InterceptedService::new(served.channel().await, Bearer(token.to_owned()))
}

/// Requests as bytes, and answers that nobody looks into.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = ();
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = ();
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<()>, Status> {
        buffer.advance(buffer.remaining());
        Ok(Some(()))
    }
}

/// A request of any method that names this. Names are in the first field of each; those of a batch of writes, and of what
/// opens a stream, are in the first field of that.
fn naming(path: &str, name: &str) -> Bytes {
    let text = |inner: &[u8]| {
        let mut field = vec![0x0a, u8::try_from(inner.len()).unwrap()];
        field.extend_from_slice(inner);
        field
    };
    let named = text(name.as_bytes());
    match path.rsplit('/').next().unwrap() {
        "BatchSet" | "Consume" => text(&named),
        "GetStatus" | "WatchStatus" => Vec::new(),
        _ => named,
    }
    .into()
}

/// What becomes of such a call: all goes through the path for streams, which a call that is none is a case of. One that is let
/// in may have nothing to say, so it has a deadline.
async fn call(client: &Known, path: &'static str, name: &str, let_in: bool) -> Result<(), Status> {
    let mut client = tonic::client::Grpc::new(client.clone());
    within(client.ready()).await.unwrap();
    let mut request = Request::new(tokio_stream::iter([naming(path, name)]));
    if let_in {
        request.set_timeout(Duration::from_millis(300));
    }
    let path = http::uri::PathAndQuery::from_static(path);
    let mut answers = within(client.streaming(request, path, Raw)).await?.into_inner();
    within(answers.next()).await.transpose().map(drop)
}

fn is_refusal(status: &Status) -> bool {
    matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied)
}

fn name_of(need: Need) -> String {
    format!("{}-{}", need.service, need.right)
}

/// All services and rights that can be granted, each to one identity, on names that start with `mine/`.
fn everybody() -> (String, Vec<Need>) {
    let mut rules = String::new();
    let mut needs = Vec::new();
    for need in SERVICES.iter().flat_map(|service| RIGHTS.map(|right| Need { service: *service, right })) {
        let one = grant(&format!("\"{}\"", need.service), "\"mine/\"", &format!("\"{}\"", need.right));
        let one = identity(&name_of(need), &[&one]);
        if majorityd::access::Rules::parse(&one).is_ok() {
            rules += &one;
            needs.push(need);
        }
    }
    (rules, needs)
}

/// Each method against each right there is, on a name that is granted and on one that is not; without a credential; with one
/// that nobody has.
#[tokio::test]
async fn every_method_lets_in_who_has_its_right_on_the_name_and_nobody_else() {
    let (rules, needs) = everybody();
    let served = Guarded::new(&rules).cluster.daemon().await;
    let (nobody, stranger) = (known(&served, "").await, known(&served, "somebody").await);
    let mut clients = Vec::new();
    for need in needs {
        clients.push((need, known(&served, &name_of(need)).await));
    }
    let mut asked = 0;
    for (path, entrance) in METHODS {
        let Entrance::Needs(wanted) = entrance else { continue };
        let status = call(&nobody, path, "mine/a", false).await.unwrap_err();
        assert_eq!(
            (status.code(), reason(&status).as_str()),
            (Code::Unauthenticated, "NO_CREDENTIALS"),
            "{path}"
        );
        let status = call(&stranger, path, "mine/a", false).await.unwrap_err();
        let expected = (Code::Unauthenticated, "UNKNOWN_CREDENTIALS");
        assert_eq!((status.code(), reason(&status).as_str()), expected, "{path}");
        for (need, client) in &clients {
            if need == wanted {
                let answer = call(client, path, "mine/a", true).await;
                assert!(!answer.as_ref().is_err_and(is_refusal), "{path} {need:?}: {answer:?}");
                asked += 1;
                // There is one cluster, and it has no name.
                if need.service == Service::Cluster {
                    continue;
                }
            }
            let name = if need == wanted { "yours" } else { "mine/a" };
            let status = call(client, path, name, false).await.unwrap_err();
            let found =
                (status.code(), reason(&status), metadata(&status, "identity"), metadata(&status, "right"));
            let expected = (
                Code::PermissionDenied,
                "ACCESS_DENIED".to_owned(),
                name_of(*need),
                wanted.right.to_string(),
            );
            assert_eq!(found, expected, "{path} {need:?}");
            assert_eq!(metadata(&status, "service"), wanted.service.to_string(), "{path}");
            if need == wanted {
                let info = tonic_types::StatusExt::get_details_error_info(&status).unwrap().metadata;
                assert_eq!(
                    info.get("name").or(info.get("prefix")).map(String::as_str),
                    Some("yours"),
                    "{path}"
                );
            }
        }
    }
    assert_eq!(asked, 34, "all methods of the API");
    let scrape = Scrape::of(&served).await;
    for (label, count) in [("no_credentials", 34.0), ("unknown_credentials", 34.0)] {
        assert_eq!(scrape.sum("majorityd_access_refusals_total", &[("reason", label)]), count);
    }
    assert!(scrape.sum("majorityd_access_refusals_total", &[("reason", "access_denied")]) > 300.0);
}

/// Whether it was refused for want of a grant, and on what.
fn denied<T: std::fmt::Debug>(answer: Result<T, Status>, name: &str) {
    let status = answer.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::PermissionDenied, "ACCESS_DENIED"),
        "{status:?}"
    );
    let info = tonic_types::StatusExt::get_details_error_info(&status).unwrap().metadata;
    assert_eq!(info.get("name").or(info.get("prefix")).map(String::as_str), Some(name));
    assert!(status.message().contains(&format!("\"{name}\"")), "{}", status.message());
}

fn set(key: &str) -> v1::SetRequest {
    let content = Some(v1::set_request::Content::Text("x".to_owned()));
    v1::SetRequest { key: key.to_owned(), content, ..Default::default() }
}

fn fenced(lock: &str) -> Option<v1::Fence> {
    Some(v1::Fence { lock: lock.to_owned(), token: 7 })
}

#[tokio::test]
async fn every_name_in_a_request_is_looked_at() {
    let rules = [
        identity(
            "keeper",
            &[
                &grant("\"keys\"", "\"mine/\"", "\"read\", \"use\""),
                &grant("\"keys\"", "\"written/\"", "\"use\""),
                &grant("\"locks\"", "\"mine/\"", "\"read\""),
            ],
        ),
        identity("all", &[&grant("\"keys\", \"locks\", \"queues\"", "\"\"", "\"read\", \"use\"")]),
    ];
    let served = Guarded::new(&rules.concat()).cluster.daemon().await;
    let mut kv = KvServiceClient::new(known(&served, "keeper").await);
    let mut all = KvServiceClient::new(known(&served, "all").await);
    for key in ["mine/a", "yours", "min", "mine0"] {
        within(all.set(set(key))).await.unwrap();
    }

    // Batches, wherever in them it stands; nothing of them happens.
    let get =
        |keys: &[&str]| v1::BatchGetRequest { keys: keys.iter().map(|key| (*key).to_owned()).collect() };
    assert_eq!(within(kv.batch_get(get(&["mine/a", "mine/b"]))).await.unwrap().get_ref().entries.len(), 2);
    denied(within(kv.batch_get(get(&["mine/a", "mine/b", "yours"]))).await, "yours");
    let batch = |keys: &[&str]| v1::BatchSetRequest { items: keys.iter().map(|key| set(key)).collect() };
    denied(within(kv.batch_set(batch(&["mine/new", "yours"]))).await, "yours");
    let looked = within(kv.get(v1::GetRequest { key: "mine/new".to_owned() })).await.unwrap();
    assert_eq!(looked.into_inner().key_value, None);

    // Fences, in every write and in a batch of them: an error would tell the lock's highest token.
    within(kv.set(v1::SetRequest { fence: fenced("mine/l"), ..set("mine/f") })).await.unwrap();
    denied(within(kv.set(v1::SetRequest { fence: fenced("yours"), ..set("mine/f") })).await, "yours");
    let key = || "mine/f".to_owned();
    let delete = v1::DeleteRequest { key: key(), fence: fenced("yours"), ..Default::default() };
    denied(within(kv.delete(delete)).await, "yours");
    let increment = v1::IncrementRequest { key: key(), fence: fenced("yours"), ..Default::default() };
    denied(within(kv.increment(increment)).await, "yours");
    let touch = v1::TouchRequest { key: key(), fence: fenced("yours"), ..Default::default() };
    denied(within(kv.touch(touch)).await, "yours");
    let item = v1::SetRequest { fence: fenced("yours"), ..set("mine/f") };
    denied(within(kv.batch_set(v1::BatchSetRequest { items: vec![set("mine/g"), item] })).await, "yours");

    // The value before is read.
    within(kv.set(set("written/a"))).await.unwrap();
    let previous = v1::SetRequest { return_previous: true, ..set("written/a") };
    denied(within(kv.set(previous)).await, "written/a");
    let previous =
        v1::DeleteRequest { key: "written/a".to_owned(), return_previous: true, ..Default::default() };
    denied(within(kv.delete(previous)).await, "written/a");

    // Lists and watches of what is granted, or of a part of it, and of no more.
    let list = |prefix: &str| v1::ListKeysRequest { prefix: prefix.to_owned(), ..Default::default() };
    for (prefix, found) in [("mine/", 2), ("mine/a", 1)] {
        let listed = within(kv.list_keys(list(prefix))).await.unwrap().into_inner();
        assert_eq!(listed.keys.len(), found, "{prefix}");
        assert!(listed.keys.iter().all(|key| key.key.starts_with("mine/")));
    }
    for prefix in ["", "min", "mine", "m", "yours"] {
        denied(within(kv.list_keys(list(prefix))).await, prefix);
        let target = Some(v1::watch_request::Target::Prefix(prefix.to_owned()));
        denied(within(kv.watch(v1::WatchRequest { target, ..Default::default() })).await, prefix);
    }
    let target = Some(v1::watch_request::Target::Key("yours".to_owned()));
    denied(within(kv.watch(v1::WatchRequest { target, ..Default::default() })).await, "yours");
    // A page of another list can't be used to see more.
    let page = v1::ListKeysRequest { prefix: String::new(), page_size: 3, ..Default::default() };
    let page_token = within(all.list_keys(page)).await.unwrap().into_inner().next_page_token;
    let page = v1::ListKeysRequest { prefix: "mine/".to_owned(), page_token, ..Default::default() };
    let answer = within(kv.list_keys(page)).await;
    let seen = answer.map(|page| page.into_inner().keys).unwrap_or_default();
    assert!(seen.iter().all(|key| key.key.starts_with("mine/")), "{seen:?}");
    // A request that breaks rules on a name that is not granted says nothing of either.
    denied(within(kv.get(v1::GetRequest { key: String::new() })).await, "");
}

#[tokio::test]
async fn a_stream_of_items_is_opened_on_what_is_granted() {
    let rules = identity("worker", &[&grant("\"queues\"", "\"mine/\"", "\"use\"")]);
    let served = Guarded::new(&rules).cluster.daemon().await;
    let mut client = QueueServiceClient::new(known(&served, "worker").await);
    let open = |queue: &str| {
        let open = v1::consume_request::Open { queue: queue.to_owned(), ..Default::default() };
        v1::ConsumeRequest { command: Some(v1::consume_request::Command::Open(open)) }
    };
    let mut stream = within(client.consume(tokio_stream::iter([open("yours")]))).await.unwrap().into_inner();
    denied(within(stream.message()).await, "yours");
    assert!(within(stream.next()).await.is_none());
    // A later message can't name another queue.
    let later = tokio_stream::iter([open("mine/q"), open("yours")]);
    let mut stream = within(client.consume(later)).await.unwrap().into_inner();
    let status = within(stream.message()).await.unwrap_err();
    assert_eq!(reason(&status), "INVALID_COMMAND");
}

#[tokio::test]
async fn probes_need_no_credential_and_reflection_needs_one_unless_it_is_open() {
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_client::HealthClient;
    let rules = identity("anybody", &[]);
    let guarded = Guarded::new(&rules);
    let served = guarded.cluster.daemon().await;
    let (nobody, anybody) = (known(&served, "").await, known(&served, "anybody").await);
    within(HealthClient::new(nobody.clone()).check(HealthCheckRequest::default())).await.unwrap();
    let reflection = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    let status = call(&nobody, reflection, "", false).await.unwrap_err();
    assert_eq!(reason(&status), "NO_CREDENTIALS");
    let status = call(&anybody, reflection, "", false).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "it asked for nothing");
    // With no grant at all it may look at what there is, and do nothing.
    denied_wholly(call(&anybody, "/majority.v1.LockService/GetLock", "x", false).await);
    guarded.change(&served, &format!("open_reflection = true\n{rules}")).await;
    assert_eq!(call(&nobody, reflection, "", false).await.unwrap_err().code(), Code::InvalidArgument);
}

fn denied_wholly(answer: Result<(), Status>) {
    assert_eq!(answer.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test]
async fn callers_without_a_credential_may_do_what_is_said_of_them() {
    let anonymous = format!("[anonymous]\ngrants = [{}]\n", grant("\"locks\"", "\"public/\"", "\"read\""));
    let served = Guarded::new(&anonymous).cluster.daemon().await;
    let mut client = served.client().await;
    get(&mut client, "public/x").await;
    let other = v1::GetLockRequest { name: "x".to_owned() };
    let status = within(client.get_lock(other)).await.unwrap_err();
    assert_eq!(
        (status.code(), metadata(&status, "identity")),
        (Code::PermissionDenied, "anonymous".to_owned())
    );
    let mut client = LockServiceClient::new(known(&served, "wrong").await);
    let status =
        within(client.get_lock(v1::GetLockRequest { name: "public/x".to_owned() })).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "a wrong credential is worse than none");
}

#[tokio::test]
async fn a_certificate_says_who_calls_and_a_token_counts_before_it() {
    let (ours, clients) = (Authority::new("ours"), Authority::new("clients"));
    let own = grant("\"locks\"", "\"billing/\"", "\"use\", \"read\"");
    let billing = format!(
        "[[identity]]\nname = \"billing\"\ncertificates = [\"spiffe://x/billing\", \"billing.example\"]\ngrants = [{own}]\n"
    );
    let rules = billing + &identity("ops", &[&grant("\"locks\"", "\"\"", "\"read\"")]);
    let mut guarded = Guarded::new(&rules);
    let tls = &mut guarded.cluster.settings.grpc.tls;
    let (certificate, key) = ours.server().write(guarded.folder.path(), "server");
    (tls.cert_file, tls.key_file) = (Some(certificate), Some(key));
    std::fs::write(guarded.folder.path().join("ca.crt"), &clients.pem).unwrap();
    (tls.client_ca_file, tls.client_auth) =
        (Some(guarded.folder.path().join("ca.crt")), ClientAuth::Optional);
    let served = guarded.cluster.daemon().await;
    let connect = async |names: Option<&[&str]>, token: &str| {
        let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&ours.pem));
        if let Some(names) = names {
            let shown = clients.client(names);
            tls = tls.identity(Identity::from_pem(shown.certificate, shown.key));
        }
        let endpoint = Endpoint::from_shared(format!("https://{}", served.address)).unwrap();
        let channel = within(endpoint.tls_config(tls).unwrap().connect()).await.unwrap();
        LockServiceClient::new(InterceptedService::new(channel, Bearer(token.to_owned())))
    };
    let code = async |names: Option<&[&str]>, token: &str, name: &str| {
        let request = v1::GetLockRequest { name: name.to_owned() };
        let answer = within(connect(names, token).await.get_lock(request)).await;
        answer.map(drop).map_err(|status| (status.code(), reason(&status)))
    };
    let refused = |code: Code, reason: &str| Err((code, reason.to_owned()));
    assert_eq!(code(Some(&["spiffe://x/billing"]), "", "billing/1").await, Ok(()));
    assert_eq!(code(Some(&["other.example", "Billing.example"]), "", "billing/1").await, Ok(()));
    let found = code(Some(&["spiffe://x/billing"]), "", "orders").await;
    assert_eq!(found, refused(Code::PermissionDenied, "ACCESS_DENIED"));
    assert_eq!(code(Some(&["spiffe://x/billing"]), "ops", "orders").await, Ok(()));
    let found = code(Some(&["spiffe://x/billing"]), "wrong", "billing/1").await;
    assert_eq!(found, refused(Code::Unauthenticated, "UNKNOWN_CREDENTIALS"));
    let found = code(Some(&["spiffe://x/other"]), "", "billing/1").await;
    assert_eq!(found, refused(Code::Unauthenticated, "UNKNOWN_CREDENTIALS"));
    let found = code(None, "", "billing/1").await;
    assert_eq!(found, refused(Code::Unauthenticated, "NO_CREDENTIALS"));
    assert_eq!(code(None, "ops", "orders").await, Ok(()));
}

/// The steps of docs/security.md: the new hash beside the old one, callers change, the old one goes.
#[tokio::test]
async fn a_token_changes_under_load_and_no_call_fails() {
    let grants = grant("\"locks\"", "\"\"", "\"use\"");
    let hash = |text: &str| token::hash_text(&token::hash(text));
    let with = |tokens: &[&str]| {
        let hashes: Vec<String> = tokens.iter().map(|text| format!("\"{}\"", hash(text))).collect();
        let hashes = hashes.join(", ");
        format!("[[identity]]\nname = \"a\"\ntoken_sha256 = [{hashes}]\ngrants = [{grants}]\n")
    };
    let guarded = Guarded::new(&with(&["old"]));
    let served = guarded.cluster.daemon().await;
    let (tell, told) = tokio::sync::watch::channel("old");
    let mut callers = Vec::new();
    for number in 0..8 {
        let (channel, told) = (served.channel().await, told.clone());
        callers.push(start(async move {
            let client = |token: &str| {
                LockServiceClient::new(InterceptedService::new(channel.clone(), Bearer(token.to_owned())))
            };
            let request = asking(&format!("lock {number}"), "holder");
            let mut lease = match client("old").acquire(request).await.unwrap().into_inner().outcome {
                Some(v1::acquire_response::Outcome::Lease(lease)) => lease,
                other => panic!("{other:?}"),
            };
            let (mut seen, mut calls) = ("old", 0);
            while seen != "stop" {
                seen = *told.borrow();
                let token = if seen == "old" { "old" } else { "new" };
                let request = v1::ExtendRequest { name: lease.name, lease_id: lease.lease_id, ttl: None };
                let extended = client(token).extend(request).await.expect("no call fails");
                lease = extended.into_inner().lease.unwrap();
                calls += 1;
            }
            calls
        }));
    }
    guarded.change(&served, &with(&["old", "new"])).await;
    tell.send_replace("new");
    // Calls under the old token are over when each caller has made one under the new.
    for _ in 0..20 {
        pause().await;
    }
    let mut last = LockServiceClient::new(known(&served, "new").await);
    let release = || v1::ReleaseRequest { name: "x".to_owned(), lease_id: "0".repeat(32) };
    within(last.release(release())).await.unwrap();
    tell.send_replace("stop");
    for caller in callers {
        assert!(within(caller).await.unwrap() > 0);
    }
    guarded.change(&served, &with(&["new"])).await;
    let mut old = LockServiceClient::new(known(&served, "old").await);
    assert_eq!(within(old.release(release())).await.unwrap_err().code(), Code::Unauthenticated);
    within(last.release(release())).await.unwrap();
    let refusals = Scrape::of(&served).await.sum("majorityd_access_refusals_total", &[]);
    assert_eq!(refusals, 1.0, "only the one at the end");
}

#[tokio::test]
async fn streams_end_when_their_rights_are_gone_and_others_go_on() {
    let rights = "\"read\", \"use\"";
    let everything = "\"locks\", \"queues\", \"keys\", \"cluster\"";
    let stays = identity("stays", &[&grant(everything, "\"\"", rights)]);
    let goes = identity("goes", &[&grant(everything, "\"\"", rights)]);
    let guarded = Guarded::new(&format!("{stays}{goes}"));
    let served = guarded.cluster.daemon().await;
    let channel = known(&served, "goes").await;
    let mut staying = LockServiceClient::new(known(&served, "stays").await);
    let mut stays_held = within(staying.hold(holding("other", "s"))).await.unwrap().into_inner();
    crate::stage::held(&mut stays_held).await;

    let mut locks = LockServiceClient::new(channel.clone());
    let mut held = within(locks.hold(holding("x", "g"))).await.unwrap().into_inner();
    crate::stage::held(&mut held).await;
    let watch = v1::WatchLockRequest { name: "x".to_owned() };
    let mut watched = within(locks.watch_lock(watch)).await.unwrap().into_inner();
    let target = Some(v1::watch_request::Target::Prefix("k".to_owned()));
    let request = v1::WatchRequest { target, ..Default::default() };
    let mut keys = within(KvServiceClient::new(channel.clone()).watch(request)).await.unwrap().into_inner();
    let mut cluster = ClusterServiceClient::new(channel.clone());
    let mut status =
        within(cluster.watch_status(v1::WatchStatusRequest::default())).await.unwrap().into_inner();
    let open = v1::consume_request::Open { queue: "q".to_owned(), ..Default::default() };
    let open = v1::ConsumeRequest { command: Some(v1::consume_request::Command::Open(open)) };
    let commands = tokio_stream::iter([open]).chain(tokio_stream::pending());
    let mut items = within(QueueServiceClient::new(channel).consume(commands)).await.unwrap().into_inner();

    // A change that takes nothing away ends nothing.
    let wider = identity("more", &[]);
    guarded.change(&served, &format!("{stays}{goes}{wider}")).await;
    within(locks.get_lock(v1::GetLockRequest { name: "x".to_owned() })).await.unwrap();
    guarded.change(&served, &stays).await;

    async fn ended<T>(stream: &mut tonic::Streaming<T>) -> Code {
        within(async {
            loop {
                match stream.message().await {
                    Ok(Some(_)) => {}
                    Ok(None) => return Code::Ok,
                    Err(status) => return status.code(),
                }
            }
        })
        .await
    }
    assert_eq!(ended(&mut held).await, Code::Unauthenticated);
    assert_eq!(ended(&mut watched).await, Code::Unauthenticated);
    assert_eq!(ended(&mut keys).await, Code::Unauthenticated);
    assert_eq!(ended(&mut status).await, Code::Unauthenticated);
    assert_eq!(ended(&mut items).await, Code::Unauthenticated);
    // The lease is left as its policy says: it runs out by itself.
    let lock = within(staying.get_lock(v1::GetLockRequest { name: "x".to_owned() })).await.unwrap();
    assert_eq!(lock.into_inner().lock.unwrap().holder.unwrap().owner, "g");
    let lock = within(staying.get_lock(v1::GetLockRequest { name: "other".to_owned() })).await.unwrap();
    assert_eq!(lock.into_inner().lock.unwrap().holder.unwrap().owner, "s");
    assert!(futures::poll!(std::pin::pin!(stays_held.message())).is_pending());
}

/// In line for a lock and for an item: what somebody else gives back goes to nobody who may not have it, and nothing is left behind.
#[tokio::test]
async fn calls_that_wait_end_when_their_rights_are_gone() {
    let all = grant("\"locks\", \"queues\"", "\"\"", "\"read\", \"use\"");
    let narrow = grant("\"locks\", \"queues\"", "\"other\"", "\"read\", \"use\"");
    let stays = identity("stays", &[&all]);
    let (token_goes, name_goes) = (identity("token", &[&all]), identity("name", &[&all]));
    let guarded = Guarded::new(&format!("{stays}{token_goes}{name_goes}"));
    let served = guarded.cluster.daemon().await;
    let staying = known(&served, "stays").await;
    let mut holder = LockServiceClient::new(staying.clone());
    let held = within(holder.acquire(asking("x", "s"))).await.unwrap().into_inner();
    let Some(v1::acquire_response::Outcome::Lease(held)) = held.outcome else { panic!("{held:?}") };
    let reserve =
        || v1::ReserveRequest { queue: "q".to_owned(), wait_timeout: seconds(600), ..Default::default() };
    let mut waiting = Vec::new();
    for name in ["token", "name", "stays"] {
        let channel = known(&served, name).await;
        let mut locks = LockServiceClient::new(channel.clone());
        let request = crate::stage::waiting("x", name);
        let acquired = start(async move { locks.acquire(request).await });
        let reserved = start(async move { QueueServiceClient::new(channel).reserve(reserve()).await });
        waiting.push((acquired, reserved));
    }
    let in_line = |count: u32| {
        let mut holder = holder.clone();
        within(async move {
            loop {
                let request = v1::GetLockRequest { name: "x".to_owned() };
                let lock = holder.get_lock(request).await.unwrap().into_inner().lock.unwrap();
                if lock.waiters == count {
                    return;
                }
                pause().await;
            }
        })
    };
    in_line(3).await;

    guarded.change(&served, &format!("{stays}{}", identity("name", &[&narrow]))).await;
    let (acquired, reserved) = waiting.remove(0);
    for status in [within(acquired).await.unwrap().unwrap_err(), within(reserved).await.unwrap().unwrap_err()]
    {
        assert_eq!((status.code(), reason(&status).as_str()), (Code::Unauthenticated, "UNKNOWN_CREDENTIALS"));
    }
    let (acquired, reserved) = waiting.remove(0);
    for status in [within(acquired).await.unwrap().unwrap_err(), within(reserved).await.unwrap().unwrap_err()]
    {
        assert_eq!((status.code(), reason(&status).as_str()), (Code::PermissionDenied, "ACCESS_DENIED"));
    }
    // The one who stays is next, and gets both.
    in_line(1).await;
    let (name, lease_id) = (held.name, held.lease_id);
    within(holder.release(v1::ReleaseRequest { name, lease_id })).await.unwrap();
    let (acquired, reserved) = waiting.remove(0);
    let acquired = within(acquired).await.unwrap().unwrap().into_inner().outcome;
    assert!(matches!(acquired, Some(v1::acquire_response::Outcome::Lease(lease)) if lease.owner == "stays"));
    let item =
        v1::NewItem { content: Some(v1::new_item::Content::Text("i".to_owned())), ..Default::default() };
    let put = v1::PutRequest { queue: "q".to_owned(), items: vec![item] };
    within(QueueServiceClient::new(staying).put(put)).await.unwrap();
    assert_eq!(within(reserved).await.unwrap().unwrap().into_inner().items.len(), 1);
}

#[tokio::test]
async fn bad_new_rules_leave_the_old_ones_and_show() {
    let rules = identity("a", &[&grant("\"locks\"", "\"\"", "\"read\"")]);
    let guarded = Guarded::new(&rules);
    let served = guarded.cluster.daemon().await;
    let mut client = LockServiceClient::new(known(&served, "a").await);
    let failed = [("what", "access"), ("outcome", "failed")];
    for (at, bad) in ["nonsense", "[[identity]]\nname = \"b\"\n", ""].iter().enumerate() {
        if bad.is_empty() {
            std::fs::remove_file(guarded.path()).unwrap();
        } else {
            guarded.write(bad);
        }
        let now =
            scraped(&served, |now| now.sum("majorityd_reloads_total", &failed) == at as f64 + 1.0).await;
        assert_eq!(now.sum("majorityd_reload_stale", &[("what", "access")]), 1.0);
        within(client.get_lock(v1::GetLockRequest { name: "x".to_owned() })).await.unwrap();
    }
    guarded.change(&served, "").await;
    let status = within(client.get_lock(v1::GetLockRequest { name: "x".to_owned() })).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "an empty file is good, and lets nobody in");
    assert_eq!(Scrape::of(&served).await.sum("majorityd_reload_stale", &[]), 0.0);
}
