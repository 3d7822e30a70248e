//! Who is let in: [`Gate`] asks each call for its credentials and puts a [`Caller`] into its extensions, and every handler
//! asks that one for what its request names, before anything else.
//!
//! A call goes by the rules as they were when it came. Streams, and calls that wait for somebody else, are asked again whenever
//! the rules change or the certificate of the connection lapses, and end when they would not be let in any more.

pub mod names;
mod traced;

use std::fmt;
use std::pin::pin;
use std::sync::Arc;

use futures::future::{self, BoxFuture, Either};
use futures::stream::{self, BoxStream};
use futures::{FutureExt, Stream, StreamExt};
use http::{HeaderMap, header};
use tokio::sync::watch;
use tonic::body::Body;
use tonic::{Extensions, Request, Status};

use self::names::{Ask, Named};
use super::layers::ConnectionInfo;
use super::shown::Shown;
use super::status;
use crate::access::methods::{self, Entrance};
use crate::access::{Credentials, Identity, Need, Refusal, Rules, Service, token};
use crate::meter::calls::Calls;
use crate::telemetry;

/// Lets calls in. Without rules, all of them.
#[derive(Clone)]
pub struct Gate {
    rules: Option<watch::Receiver<Arc<Rules>>>,
    calls: Arc<Calls>,
}

/// Who makes a call.
#[derive(Clone)]
pub struct Caller {
    /// Whom the rules know it for; `None` where nobody is asked.
    known: Option<Known>,
    /// The certificate of its connection.
    shown: Option<Shown>,
    /// Of what the method is.
    service: Option<Service>,
    gate: Gate,
}

#[derive(Clone)]
struct Known {
    credentials: Credentials,
    identity: Arc<Identity>,
    need: Need,
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.known {
            Some(known) => write!(f, "Caller({})", known.identity.name),
            None => f.write_str("Caller(anybody)"),
        }
    }
}

impl Gate {
    /// By these rules, which may change.
    pub fn new(rules: Option<watch::Receiver<Arc<Rules>>>, calls: Arc<Calls>) -> Self {
        Self { rules, calls }
    }

    /// Lets a call in as far as that can be said without its message, or does not. Its token goes no further.
    ///
    /// # Errors
    /// The refusal as the client gets it.
    pub(super) fn admit(&self, request: &mut http::Request<Body>) -> Result<(), Status> {
        let caller = self.caller(request).map_err(|refusal| self.refused(&refusal));
        request.headers_mut().remove(header::AUTHORIZATION);
        request.extensions_mut().insert(caller?);
        Ok(())
    }

    fn caller(&self, request: &http::Request<Body>) -> Result<Caller, Refused> {
        let shown = request.extensions().get::<ConnectionInfo>().and_then(|info| info.certificate.clone());
        // Whoever else may call: a new connection would not come about with it.
        if let Some(refusal) = shown.as_ref().and_then(Shown::refusal) {
            return Err(refusal.into());
        }
        let entrance = methods::entrance(request.uri().path());
        let service = match entrance {
            Some(Entrance::Needs(need)) => Some(need.service),
            Some(Entrance::Open | Entrance::Reflection) | None => None,
        };
        let caller = |known| Ok(Caller { known, shown: shown.clone(), service, gate: self.clone() });
        let Some(rules) = &self.rules else { return caller(None) };
        if entrance == Some(Entrance::Open) {
            return caller(None);
        }
        let rules = rules.borrow().clone();
        if entrance == Some(Entrance::Reflection) && rules.open_reflection {
            return caller(None);
        }
        let credentials = credentials(request.headers(), request.extensions())?;
        let identity = rules.identify(&credentials)?.clone();
        match entrance {
            Some(Entrance::Needs(need)) => {
                identity.has(need)?;
                caller(Some(Known { credentials, identity, need }))
            }
            Some(Entrance::Reflection) if identity.anonymous => Err(Refusal::NoCredentials.into()),
            Some(Entrance::Reflection | Entrance::Open) => caller(None),
            None => Err(Refused::NoSuchMethod),
        }
    }

    fn refused(&self, refused: &Refused) -> Status {
        let Refused::By(refusal) = refused else { return Status::unimplemented("there is no such method") };
        let refusals = &self.calls.door.refusals;
        match refusal {
            Refusal::NoCredentials => refusals.no_credentials.one(),
            Refusal::Malformed | Refusal::UnknownToken | Refusal::UnknownCertificate { .. } => {
                refusals.unknown_credentials.one();
            }
            Refusal::CertificateLapsed { .. } => refusals.certificate_lapsed.one(),
            Refusal::Denied { .. } => refusals.access_denied.one(),
        }
        tracing::debug!(reason = %refusal, "not let in");
        status::refused(refusal)
    }
}

enum Refused {
    By(Refusal),
    NoSuchMethod,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self::By(refusal)
    }
}

/// What came with a call: a token in its headers, a certificate with its connection.
fn credentials(headers: &HeaderMap, extensions: &http::Extensions) -> Result<Credentials, Refusal> {
    let shown = extensions.get::<ConnectionInfo>().and_then(|info| info.certificate.as_ref());
    let mut given = headers.get_all(header::AUTHORIZATION).iter();
    let token = match (given.next(), given.next()) {
        (None, _) => None,
        (Some(header), None) => {
            let header = header.to_str().map_err(|_| Refusal::Malformed)?;
            let (scheme, token) = header.split_once(' ').ok_or(Refusal::Malformed)?;
            let token = token.trim();
            if !scheme.eq_ignore_ascii_case("bearer") || token.is_empty() {
                return Err(Refusal::Malformed);
            }
            Some(token::hash(token))
        }
        // Which of them would be meant?
        (Some(_), Some(_)) => return Err(Refusal::Malformed),
    };
    Ok(Credentials { token, certificate: shown.map(|shown| shown.names.clone()).unwrap_or_default() })
}

/// Asks for everything that a request names.
fn ask(identity: &Identity, need: Need, asks: &[Ask<'_>]) -> Result<(), Refusal> {
    identity.has(need)?;
    asks.iter().try_for_each(|ask| identity.may(ask.need.unwrap_or(need), ask.scope))
}

impl Caller {
    /// Who makes the call to which these extensions belong.
    ///
    /// # Errors
    /// Where nothing has let it in: nobody is taken for somebody by mistake.
    pub fn of(extensions: &Extensions) -> Result<Self, Status> {
        extensions.get::<Self>().cloned().ok_or_else(|| status::refused(&Refusal::NoCredentials))
    }

    /// What the rules call it; `None` where nobody was asked.
    pub fn identity(&self) -> Option<&str> {
        self.known.as_ref().map(|known| known.identity.name.as_str())
    }

    /// Whether the request may have all that it names. A trace of the call is told the names.
    ///
    /// # Errors
    /// The refusal as the client gets it.
    pub fn permit(&self, request: &impl Named) -> Result<(), Status> {
        if self.known.is_none() && !telemetry::is_traced() {
            return Ok(());
        }
        let asks = request.asks();
        traced::record(self.service, &asks);
        let Some(Known { identity, need, .. }) = &self.known else { return Ok(()) };
        ask(identity, *need, &asks).map_err(|refusal| self.gate.refused(&refusal.into()))
    }

    /// Completes when the call would not be let in any more. `None` where that can't be.
    fn revoked<N: Named + Send + Sync>(
        &self,
        request: N,
    ) -> Option<impl Future<Output = Status> + Send + use<N>> {
        let Self { known, shown, gate, .. } = self.clone();
        if known.is_none() && shown.is_none() {
            return None;
        }
        Some(async move {
            let by_rules = async {
                match known {
                    Some(known) => known.revoked(request, &gate).await,
                    None => future::pending().await,
                }
            };
            let by_certificate = async {
                match shown {
                    Some(shown) => shown.lapsed().await,
                    None => future::pending().await,
                }
            };
            let (refusal, _) = future::select(pin!(by_rules), pin!(by_certificate)).await.factor_first();
            gate.refused(&refusal.into())
        })
    }

    /// The request, for [`Caller::unless_revoked`]; `None` where nothing can be revoked, as for most.
    pub fn named<N: Clone>(&self, request: &N) -> Option<N> {
        (self.known.is_some() || self.shown.is_some()).then(|| request.clone())
    }

    /// Gives a call up that waits, when it would not be let in any more, and says why. Only for what may be
    /// dropped at any moment: what it has taken until then is given back, or runs out. Most calls wait with nothing that can be
    /// revoked, so what watches over that is made only where it can.
    ///
    /// # Errors
    /// That refusal, and what the call itself comes to.
    pub fn unless_revoked<'a, T: Send + 'a>(
        &self,
        request: Option<impl Named + Send + Sync + 'static>,
        call: BoxFuture<'a, Result<T, Status>>,
    ) -> BoxFuture<'a, Result<T, Status>> {
        let Some(revoked) = request.and_then(|request| self.revoked(request)) else { return call };
        // The refusal first: what is got in the same moment is not handed out.
        let first = future::select(revoked.boxed(), call);
        first
            .map(|first| match first {
                Either::Left((status, _)) => Err(status),
                Either::Right((answer, _)) => answer,
            })
            .boxed()
    }

    /// Ends a stream when it would not be let in any more, and says why. What it names is that of the request.
    pub fn until_revoked<T: Send + 'static>(
        &self,
        request: impl Named + Send + Sync + 'static,
        events: impl Stream<Item = Result<T, Status>> + Send + 'static,
    ) -> BoxStream<'static, Result<T, Status>> {
        let Some(revoked) = self.revoked(request) else { return events.boxed() };
        let state = Some((events.boxed(), revoked.boxed()));
        let next = move |state: Option<(BoxStream<'static, _>, BoxFuture<'static, Status>)>| async move {
            let (mut events, revoked) = state?;
            // The end first: events that are always there must not hide it.
            match future::select(revoked, events.next()).await {
                Either::Left((status, _)) => Some((Err(status), None)),
                Either::Right((Some(event), revoked)) => Some((event, Some((events, revoked)))),
                Either::Right((None, _)) => None,
            }
        };
        stream::unfold(state, next).boxed()
    }
}

impl Known {
    /// Completes when the rules do not allow this any more.
    async fn revoked(self, request: impl Named + Send + Sync, gate: &Gate) -> Refusal {
        let Some(mut rules) = gate.rules.clone() else { return future::pending().await };
        loop {
            let now = rules.borrow_and_update().clone();
            let asked = now.identify(&self.credentials);
            let asked = asked.and_then(|identity| ask(identity, self.need, &request.asks()));
            if let Err(refusal) = asked {
                return refusal;
            }
            if rules.changed().await.is_err() {
                return future::pending().await;
            }
        }
    }
}

/// Asks the caller of a call for what its request names.
///
/// # Errors
/// The refusal as the client gets it.
pub fn permit<T: Named>(request: &Request<T>) -> Result<Caller, Status> {
    let caller = Caller::of(request.extensions())?;
    caller.permit(request.get_ref())?;
    Ok(caller)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grpc;
    use crate::tls::CertificateName;

    const RULES: &str = r#"
        [[identity]]
        name = "billing"
        token_sha256 = ["ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"]
        grants = [{ services = ["locks"], prefixes = ["b/"], rights = ["use"] }]
    "#;

    fn gate(rules: &str) -> (Gate, watch::Sender<Arc<Rules>>) {
        let (sender, rules) = watch::channel(Arc::new(Rules::parse(rules).unwrap()));
        (Gate::new(Some(rules), Arc::new(grpc::calls())), sender)
    }

    fn call(path: &str, authorization: &[&str]) -> http::Request<Body> {
        let mut request = http::Request::new(Body::empty());
        *request.uri_mut() = path.parse().unwrap();
        for value in authorization {
            request.headers_mut().append(header::AUTHORIZATION, value.parse().unwrap());
        }
        request
    }

    #[test]
    fn every_method_that_is_served_has_its_line_and_every_line_its_method() {
        let calls = grpc::calls();
        let mut served: Vec<String> = calls
            .all()
            .filter(|method| method.service != "other")
            .map(|method| format!("/{}/{}", method.service, method.method))
            .collect();
        let mut listed: Vec<String> = methods::METHODS.iter().map(|(path, _)| (*path).to_owned()).collect();
        served.sort();
        listed.sort();
        assert_eq!(served, listed);
    }

    #[test]
    fn a_token_is_read_from_its_header_and_goes_no_further() {
        let (gate, _sender) = gate(RULES);
        let acquire = "/majority.v1.LockService/Acquire";
        for good in ["Bearer abc", "bearer abc", "BEARER  abc "] {
            let mut request = call(acquire, &[good]);
            gate.admit(&mut request).unwrap();
            assert!(request.headers().is_empty());
            let caller = request.extensions().get::<Caller>().unwrap();
            assert!(
                caller
                    .permit(&crate::proto::v1::ReleaseRequest { name: "b/1".into(), ..Default::default() })
                    .is_ok()
            );
        }
        for bad in [
            &["Bearer"][..],
            &["Bearer "],
            &["Basic abc"],
            &["abc"],
            &["Bearer abc", "Bearer abc"],
            &["Bearer abd"],
        ] {
            let mut request = call(acquire, bad);
            let status = gate.admit(&mut request).unwrap_err();
            assert_eq!(status.code(), tonic::Code::Unauthenticated, "{bad:?}");
            assert!(request.extensions().get::<Caller>().is_none() && request.headers().is_empty());
        }
        assert_eq!(gate.calls.door.refusals.unknown_credentials.get(), 6);
    }

    #[test]
    fn only_what_has_a_line_is_let_in() {
        let (gate, _sender) = gate(RULES);
        let code = |path: &str, authorization: &[&str]| {
            gate.admit(&mut call(path, authorization)).map_err(|status| status.code())
        };
        use tonic::Code::{PermissionDenied, Unauthenticated, Unimplemented};
        let reflection = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
        assert_eq!(code("/grpc.health.v1.Health/Check", &[]), Ok(()));
        assert_eq!(code("/grpc.health.v1.Health/Check", &["nonsense"]), Ok(()));
        assert_eq!(code(reflection, &[]), Err(Unauthenticated));
        assert_eq!(code(reflection, &["Bearer abc"]), Ok(()));
        assert_eq!(code("/majority.v1.LockService/GetLock", &["Bearer abc"]), Err(PermissionDenied));
        for unknown in ["/majority.v1.LockService/acquire", "/majority.v1.LockService/Acquire/", "/x"] {
            assert_eq!(code(unknown, &[]), Err(Unauthenticated));
            assert_eq!(code(unknown, &["Bearer abc"]), Err(Unimplemented));
        }
        let open = Gate::new(None, Arc::new(grpc::calls()));
        assert!(open.admit(&mut call("/x", &["nonsense"])).is_ok());
    }

    /// Handlers are behind the gate; if one were not, nobody would get in.
    #[test]
    fn a_call_that_nobody_let_in_is_refused() {
        let request = Request::new(crate::proto::v1::GetStatusRequest::default());
        assert_eq!(permit(&request).unwrap_err().code(), tonic::Code::Unauthenticated);
    }

    #[tokio::test]
    async fn a_stream_ends_when_its_rights_are_gone_and_not_before() {
        let (gate, sender) = gate(RULES);
        let mut request = call("/majority.v1.LockService/Hold", &["Bearer abc"]);
        gate.admit(&mut request).unwrap();
        let caller = request.extensions().get::<Caller>().unwrap();
        let hold = crate::proto::v1::HoldRequest { name: "b/1".into(), ..Default::default() };
        let endless = || stream::repeat_with(|| Ok(1));
        let mut events = caller.until_revoked(hold.clone(), endless());
        assert_eq!(events.next().await.unwrap().unwrap(), 1);
        sender.send_replace(Arc::new(Rules::parse(&format!("open_reflection = true\n{RULES}")).unwrap()));
        assert_eq!(events.next().await.unwrap().unwrap(), 1);
        let narrower = RULES.replace("b/", "b/2");
        sender.send_replace(Arc::new(Rules::parse(&narrower).unwrap()));
        assert_eq!(events.next().await.unwrap().unwrap_err().code(), tonic::Code::PermissionDenied);
        assert!(events.next().await.is_none());

        // What changed between the request and its stream counts, too.
        let mut events = caller.until_revoked(hold, endless());
        assert_eq!(events.next().await.unwrap().unwrap_err().code(), tonic::Code::PermissionDenied);
    }

    #[test]
    fn the_certificate_of_the_connection_counts_where_there_is_no_token() {
        let rules = RULES.replace("grants", "certificates = [\"b.example\"]\ngrants");
        let (gate, _sender) = gate(&rules);
        let with = |name: &str, authorization: &[&str]| {
            let mut request = call("/majority.v1.LockService/Acquire", authorization);
            let certificate = Shown::testing([CertificateName::parse(name)].into());
            request.extensions_mut().insert(ConnectionInfo::testing(certificate));
            gate.admit(&mut request).is_ok()
        };
        assert!(with("b.example", &[]));
        assert!(!with("c.example", &[]));
        assert!(with("c.example", &["Bearer abc"]));
        assert!(!with("b.example", &["Bearer other"]));
    }
}
