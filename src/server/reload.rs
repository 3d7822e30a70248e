//! The files that may change while the daemon runs: the certificate that clients are shown, and who may do what.
//!
//! One task looks at what is in them, once a second and at SIGHUP. What has changed is taken when it has been the same in two
//! looks, for a file may be half written and a key comes after its certificate; SIGHUP says that all is there. What can't be
//! used is told in the log and in metrics, and what there was before stays in use. Files are named by their paths and read as
//! they are then, so links may lead elsewhere, as they do in volumes of Kubernetes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{self, BoxFuture};
use ring::digest::{Context, SHA256};
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::access::Rules;
use crate::config::{ClientAuth, GrpcTls, Settings};
use crate::meter::calls::Calls;
use crate::meter::door::FileMeter;
use crate::runtime::{Clock, Runtime};
use crate::tls;

/// How often files are looked at: reading some KiB costs nothing.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Nobody has longer ones; what is longer is no certificate, and would fill the memory.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// A certificate that expires so soon should have been replaced by now.
const EXPIRY_WARNING: Duration = Duration::from_secs(14 * 86_400);

/// What is made of the files, as it is now.
pub struct Door {
    /// For handshakes; `None` for no TLS.
    pub tls: Option<watch::Receiver<Arc<tls::Server>>>,
    /// Who may do what; `None` for everybody everything.
    pub access: Option<watch::Receiver<Arc<Rules>>>,
}

/// Files that were good when settings were loaded, and are not any more.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {reason}")]
pub struct BadFiles {
    what: &'static str,
    reason: String,
}

/// Reads the files that the settings name, and has them looked at from now on.
///
/// # Errors
/// [`BadFiles`].
pub async fn start(settings: &Settings, runtime: &Runtime, calls: &Arc<Calls>) -> Result<Door, BadFiles> {
    let mut door = Door { tls: None, access: None };
    let mut watched: Vec<Box<dyn Look>> = Vec::new();
    if let Some((paths, make)) = certificate(&settings.grpc.tls, runtime.clock.clone(), calls.clone()) {
        let (files, receiver) = Files::open(Kind::Certificate, paths, calls.clone(), make).await?;
        door.tls = Some(receiver);
        watched.push(Box::new(files));
    }
    if let Some(path) = settings.access.file.clone() {
        let make = access(&path);
        let (files, receiver) = Files::open(Kind::Access, vec![path], calls.clone(), make).await?;
        door.access = Some(receiver);
        watched.push(Box::new(files));
    }
    if !watched.is_empty() {
        runtime.spawner.spawn(look(watched, runtime.clock.clone()).boxed());
    }
    Ok(door)
}

/// Looks for ever; ends with the daemon's other tasks.
async fn look(mut watched: Vec<Box<dyn Look>>, clock: Arc<dyn Clock>) {
    let mut hangup = signal(SignalKind::hangup()).ok();
    loop {
        let pause = clock.sleep_until(clock.now() + LOOK_INTERVAL);
        let asked = {
            let hung_up = std::pin::pin!(hung_up(hangup.as_mut()));
            matches!(future::select(hung_up, pause).await, future::Either::Left(_))
        };
        if asked {
            tracing::info!("SIGHUP: looking at the certificate and at the rules of access");
        }
        for files in &mut watched {
            files.look(asked).await;
        }
    }
}

async fn hung_up(hangup: Option<&mut Signal>) {
    let heard = match hangup {
        Some(signal) => signal.recv().await,
        None => None,
    };
    if heard.is_none() {
        future::pending().await
    }
}

fn certificate(
    tls: &GrpcTls,
    clock: Arc<dyn Clock>,
    calls: Arc<Calls>,
) -> Option<(Vec<PathBuf>, Make<tls::Server>)> {
    let mut paths = vec![tls.cert_file.clone()?, tls.key_file.clone()?];
    paths.extend(tls.client_ca_file.clone());
    // Settings that were validated have no such list without authorities.
    paths.extend(tls.client_crl_file.clone());
    let required = tls.client_auth == ClientAuth::Required;
    let of_part = paths.clone();
    let make = move |texts: &[Vec<u8>], first: bool| {
        let [certificate, key, of_clients @ ..] = texts else { return Err("files are missing".to_owned()) };
        let revoked = of_clients.get(1).map(Vec::as_slice);
        let clients = of_clients.first().map(|authorities| tls::Clients { authorities, revoked, required });
        let made = tls::server(certificate, key, clients);
        let made = made.map_err(|unfit| {
            let path = |part| match part {
                tls::Part::Certificate => &of_part[0],
                tls::Part::Key => &of_part[1],
                tls::Part::Authorities => &of_part[2],
                tls::Part::Revoked => &of_part[3],
            };
            let told = unfit.iter().map(|unfit| format!("{} {}", path(unfit.part).display(), unfit.rule));
            told.collect::<Vec<_>>().join("; ")
        })?;
        let now_s = clock.wall_unix_ms() / 1_000;
        let left = made.expires_unix_s.saturating_sub(now_s);
        if left == 0 && !first {
            return Err(format!("{} has a certificate that has expired", of_part[0].display()));
        }
        if left == 0 {
            tracing::error!(
                "the certificate that clients are shown has expired (grpc.tls.cert_file): they will refuse it"
            );
        } else if left < EXPIRY_WARNING.as_secs() {
            let days = left / 86_400;
            tracing::warn!(days, "the certificate that clients are shown expires soon (grpc.tls.cert_file)");
        }
        if made.revoked_until_unix_s.is_some_and(|until| until < now_s) {
            tracing::warn!(
                "a list of revoked certificates should have been replaced by now (grpc.tls.client_crl_file): it is used as it is"
            );
        }
        calls.door.set_expiry(made.expires_unix_s);
        calls.door.set_revoked_until(made.revoked_until_unix_s);
        Ok(Arc::new(made))
    };
    Some((paths, Box::new(make)))
}

fn access(path: &Path) -> Make<Rules> {
    let shown = path.display().to_string();
    let make = move |texts: &[Vec<u8>], _first: bool| {
        let text = texts.first().map(Vec::as_slice).unwrap_or_default();
        let text = std::str::from_utf8(text).map_err(|_| format!("{shown} is not UTF-8"))?;
        let rules = Rules::parse(text).map_err(|wrong| format!("{shown}: {wrong}"))?;
        tracing::info!(identities = rules.count(), file = shown, "who may do what is set");
        Ok(Arc::new(rules))
    };
    Box::new(make)
}

#[derive(Clone, Copy)]
enum Kind {
    Certificate,
    Access,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Certificate => "the certificate (grpc.tls)",
            Kind::Access => "the rules of access (access.file)",
        }
    }

    fn meter(self, calls: &Calls) -> &FileMeter {
        match self {
            Kind::Certificate => &calls.door.certificate,
            Kind::Access => &calls.door.access,
        }
    }
}

/// What is in the files, as far as it must be known whether it is the same: no key is kept. Or why they can't be read.
type Mark = Result<Vec<u8>, String>;
/// What is made of them, or what is wrong; true at the first time.
type Make<T> = Box<dyn Fn(&[Vec<u8>], bool) -> Result<Arc<T>, String> + Send + Sync>;

/// Some files, and what is made of them.
struct Files<T> {
    kind: Kind,
    paths: Vec<PathBuf>,
    calls: Arc<Calls>,
    make: Make<T>,
    sender: watch::Sender<Arc<T>>,
    /// Of what is in use.
    used: Mark,
    /// Of the last look.
    seen: Mark,
    /// Of what could not be used, so that it is told once.
    refused: Option<Mark>,
}

impl<T: Send + Sync + 'static> Files<T> {
    /// For the first time, when there is nothing else that could be used.
    async fn open(
        kind: Kind,
        paths: Vec<PathBuf>,
        calls: Arc<Calls>,
        make: Make<T>,
    ) -> Result<(Self, watch::Receiver<Arc<T>>), BadFiles> {
        let bad = |reason| BadFiles { what: kind.name(), reason };
        let texts = read(&paths).await.map_err(bad)?;
        let (sender, receiver) = watch::channel(make(&texts, true).map_err(bad)?);
        let used = Ok(mark(&texts));
        let files = Self { kind, paths, calls, make, sender, seen: used.clone(), used, refused: None };
        Ok((files, receiver))
    }

    async fn look_once(&mut self, asked: bool) {
        let texts = read(&self.paths).await;
        let now = texts.as_ref().map(|texts| mark(texts)).map_err(String::clone);
        let before = std::mem::replace(&mut self.seen, now.clone());
        let file = self.kind.meter(&self.calls);
        if now == self.used {
            self.refused = None;
            file.set_stale(false);
            return;
        }
        if !asked && (now != before || self.refused.as_ref() == Some(&now)) {
            return;
        }
        match texts.and_then(|texts| (self.make)(&texts, false)) {
            Ok(made) => {
                self.sender.send_replace(made);
                (self.used, self.refused) = (now, None);
                file.reloaded.one();
                file.set_stale(false);
                tracing::info!(what = self.kind.name(), "read again and in use from now on");
            }
            Err(reason) => {
                self.refused = Some(now);
                file.failed.one();
                file.set_stale(true);
                tracing::error!(
                    what = self.kind.name(),
                    reason,
                    "what the files have now can't be used, and what they had before is: mend them, and they are read again"
                );
            }
        }
    }
}

trait Look: Send {
    /// Looks whether the files have changed; when `asked` for it, takes them without a second look.
    fn look(&mut self, asked: bool) -> BoxFuture<'_, ()>;
}

impl<T: Send + Sync + 'static> Look for Files<T> {
    fn look(&mut self, asked: bool) -> BoxFuture<'_, ()> {
        self.look_once(asked).boxed()
    }
}

/// What is in all of them.
async fn read(paths: &[PathBuf]) -> Result<Vec<Vec<u8>>, String> {
    let mut texts = Vec::with_capacity(paths.len());
    for path in paths {
        let text = read_one(path).await;
        texts.push(text.map_err(|error| format!("can't read {}: {error}", path.display()))?);
    }
    Ok(texts)
}

async fn read_one(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::new();
    tokio::fs::File::open(path).await?.take(FILE_BYTES_MAX).read_to_end(&mut text).await?;
    Ok(text)
}

fn mark(texts: &[Vec<u8>]) -> Vec<u8> {
    let mut context = Context::new(&SHA256);
    for text in texts {
        context.update(&(text.len() as u64).to_be_bytes());
        context.update(text);
    }
    context.finish().as_ref().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn files(path: &Path) -> (Files<String>, watch::Receiver<Arc<String>>) {
        let make = |texts: &[Vec<u8>], _first: bool| {
            let text = String::from_utf8(texts[0].clone()).unwrap();
            if text.starts_with("bad") { Err(text) } else { Ok(Arc::new(text)) }
        };
        let calls = Arc::new(Calls::of([]));
        Files::open(Kind::Access, vec![path.to_owned()], calls, Box::new(make)).await.unwrap()
    }

    #[tokio::test]
    async fn a_change_is_taken_at_the_second_look_and_at_once_when_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        std::fs::write(&path, "one").unwrap();
        let (mut files, now) = files(&path).await;
        files.look(false).await;
        std::fs::write(&path, "tw").unwrap();
        files.look(false).await;
        std::fs::write(&path, "two").unwrap();
        files.look(false).await;
        assert_eq!(**now.borrow(), "one");
        files.look(false).await;
        assert_eq!(**now.borrow(), "two");
        std::fs::write(&path, "three").unwrap();
        files.look(true).await;
        assert_eq!(**now.borrow(), "three");
        assert_eq!(files.calls.door.access.reloaded.get(), 2);
    }

    #[tokio::test]
    async fn what_can_not_be_used_is_counted_once_and_leaves_what_there_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        std::fs::write(&path, "one").unwrap();
        let (mut files, now) = files(&path).await;
        std::fs::write(&path, "bad").unwrap();
        for _ in 0..4 {
            files.look(false).await;
        }
        let counts = |files: &Files<String>| {
            let access = &files.calls.door.access;
            (access.reloaded.get(), access.failed.get(), access.stale())
        };
        assert_eq!((now.borrow().as_str(), counts(&files)), ("one", (0, 1, true)));
        std::fs::remove_file(&path).unwrap();
        for _ in 0..4 {
            files.look(false).await;
        }
        assert_eq!((now.borrow().as_str(), counts(&files)), ("one", (0, 2, true)));
        // As it was: nothing is read again, and nothing is stale.
        std::fs::write(&path, "one").unwrap();
        files.look(false).await;
        assert_eq!(counts(&files), (0, 2, false));
        std::fs::write(&path, "two").unwrap();
        files.look(false).await;
        files.look(false).await;
        assert_eq!((now.borrow().as_str(), counts(&files)), ("two", (1, 2, false)));
    }

    /// As volumes of Kubernetes change: the path stays, and a link on the way leads elsewhere.
    #[tokio::test]
    async fn links_may_lead_elsewhere() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for (version, text) in [("v1", "one"), ("v2", "two")] {
            std::fs::create_dir(at(version)).unwrap();
            std::fs::write(at(version).join("x"), text).unwrap();
        }
        std::os::unix::fs::symlink("v1", at("data")).unwrap();
        std::os::unix::fs::symlink("data/x", at("x")).unwrap();
        let (mut files, now) = files(&at("x")).await;
        std::os::unix::fs::symlink("v2", at("new")).unwrap();
        std::fs::rename(at("new"), at("data")).unwrap();
        files.look(false).await;
        files.look(false).await;
        assert_eq!(**now.borrow(), "two");
    }

    #[test]
    fn what_moves_from_one_file_to_another_is_a_change() {
        let texts = |first: &str, second: &str| mark(&[first.into(), second.into()]);
        assert_ne!(texts("ab", "c"), texts("a", "bc"));
    }
}
