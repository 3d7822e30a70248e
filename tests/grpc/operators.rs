//! The port for operators: what it answers, and that it stands what is sent to it.

use std::net::SocketAddr;
use std::time::Duration;

use majorityd::config::Settings;
use majorityd::http::Limits;
use majorityd::server::{self, NodesKind, ServeError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use crate::stage::*;

/// Status code, head in lower case, body.
pub struct Answer {
    pub code: u16,
    pub head: String,
    pub body: String,
}

/// Sends this, and reads until the other end closes.
pub async fn send(address: SocketAddr, request: &str) -> Answer {
    let mut stream = within(TcpStream::connect(address)).await.unwrap();
    within(stream.write_all(request.as_bytes())).await.unwrap();
    read(stream).await
}

async fn read(mut stream: TcpStream) -> Answer {
    let mut bytes = Vec::new();
    // What was sent beyond a refusal may have the connection reset after the answer.
    let _ = within(stream.read_to_end(&mut bytes)).await;
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status line");
    Answer { code, head: head.to_lowercase(), body: body.to_owned() }
}

pub async fn get(address: SocketAddr, path: &str) -> Answer {
    send(address, &format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await
}

/// Asks until the answer has this code.
#[track_caller]
fn until_code(address: SocketAddr, path: &'static str, code: u16) -> impl Future<Output = Answer> {
    within(async move {
        loop {
            let answer = get(address, path).await;
            if answer.code == code {
                return answer;
            }
            pause().await;
        }
    })
}

#[tokio::test]
async fn it_is_ready_exactly_while_a_quorum_counts_and_alive_all_the_while() {
    let cluster = Cluster::new();
    let served = cluster.daemon().await;
    let ready = until_code(served.http, "/readyz", 200).await;
    assert!(ready.body.starts_with("serving: "), "{}", ready.body);
    cluster.stop_servers(&[2]);
    assert_eq!(get(served.http, "/readyz").await.code, 200, "two of three are a quorum");
    cluster.stop_servers(&[1]);
    let broken = until_code(served.http, "/readyz", 503).await;
    assert!(broken.body.starts_with("not serving: 1 of 3 nodes count and 2 are needed"), "{}", broken.body);
    let alive = get(served.http, "/livez").await;
    assert_eq!((alive.code, alive.body.as_str()), (200, "ok\n"));
    for path in ["/", "/metrics"] {
        assert_eq!(get(served.http, path).await.code, 200, "{path} is there for just this");
    }
}

#[tokio::test]
async fn a_cut_that_heals_makes_it_ready_again() {
    let cluster = Cluster::new();
    let served = cluster.daemon_behind_network().await;
    until_code(served.http, "/readyz", 200).await;
    cluster.set_network(&[0, 1], Network::Cut);
    until_code(served.http, "/readyz", 503).await;
    cluster.set_network(&[0, 1], Network::Whole);
    until_code(served.http, "/readyz", 200).await;
}

#[tokio::test]
async fn a_daemon_that_shuts_down_is_not_ready_and_says_so() {
    let (_cluster, served, mut client) = alone().await;
    let http = served.http;
    // A held lock is what a shutdown ends, and not what it waits for.
    let mut stream = hold(&mut client, holding("x", "a")).await;
    held(&mut stream).await;
    served.stop.send(()).unwrap();
    let answer = until_code(http, "/readyz", 503).await;
    assert_eq!(answer.body, "shutting down\n");
    assert_eq!(get(http, "/livez").await.code, 200);
    assert!(get(http, "/").await.body.contains("shutting down"));
}

#[tokio::test]
async fn other_paths_and_methods_are_refused() {
    let (_cluster, served, _client) = alone().await;
    for path in ["/metrics/", "/x", "//", "/..", "/%6detrics", "/Metrics", "*"] {
        assert_eq!(get(served.http, path).await.code, 404, "{path}");
    }
    for path in ["/metrics?x=1", "/?", "/readyz?verbose"] {
        assert_eq!(get(served.http, path).await.code, 200, "{path}");
    }
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "QUERY"] {
        for path in ["/", "/metrics", "/livez", "/readyz"] {
            let answer = send(served.http, &format!("{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
            assert_eq!(answer.code, 405, "{method} {path}");
            assert!(answer.head.contains("allow: get, head"), "{}", answer.head);
        }
    }
    let head = send(served.http, "HEAD /readyz HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert_eq!((head.code, head.body.as_str()), (200, ""));
    assert!(!head.head.contains("content-length: 0"), "the length is that of a GET: {}", head.head);
}

#[tokio::test]
async fn the_page_may_load_nothing_and_is_never_kept() {
    let (_cluster, served, _client) = alone().await;
    let page = get(served.http, "/").await;
    for header in [
        "content-type: text/html; charset=utf-8",
        "content-security-policy: default-src 'none';",
        "x-content-type-options: nosniff",
        "cache-control: no-store",
        "connection: close",
    ] {
        assert!(page.head.contains(header), "{header}: {}", page.head);
    }
    assert!(page.body.contains("embedded:0") && page.body.contains("grpc.shutdown_grace"), "{}", page.body);
}

/// Mechanism: hyper bounds the head, and a connection carries one request.
#[tokio::test]
async fn what_is_no_request_or_too_large_is_refused_and_others_are_served() {
    let (_cluster, served, _client) = alone().await;
    let long = "x".repeat(64 << 10);
    let many = "a: b\r\n".repeat(1_000);
    for (request, codes) in [
        (format!("GET /{long} HTTP/1.1\r\nHost: x\r\n\r\n"), &[414, 431][..]),
        (format!("GET / HTTP/1.1\r\nHost: x\r\nX: {long}\r\n\r\n"), &[431]),
        (format!("GET / HTTP/1.1\r\nHost: x\r\n{many}\r\n"), &[431]),
        ("nonsense\r\n\r\n".to_owned(), &[400]),
        ("GET / HTTP/9.9\r\n\r\n".to_owned(), &[400, 505]),
        ("GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n".to_owned(), &[400]),
        ("\0\0\0\0\r\n\r\n".to_owned(), &[400]),
    ] {
        let answer = send(served.http, &request).await;
        let start: String = request.chars().take(40).collect();
        assert!(codes.contains(&answer.code), "{start}…: {}", answer.code);
    }
    // A body is not waited for; a second request on the connection is not answered.
    let body = "GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n";
    assert_eq!(send(served.http, body).await.code, 200);
    let twice = "GET /livez HTTP/1.1\r\nHost: x\r\n\r\nGET /livez HTTP/1.1\r\nHost: x\r\n\r\n";
    assert_eq!(send(served.http, twice).await.body, "ok\n");
}

/// Mechanism: so many connections at a time, each for its time at most. Nobody here sends a whole head but the last.
#[tokio::test]
async fn who_fills_the_port_with_silence_makes_a_probe_late_and_no_more() {
    let mut cluster = Cluster::new();
    cluster.http = Limits { connections: 4, time: Duration::from_millis(200) };
    let served = cluster.daemon().await;
    let mut client = served.client().await;
    let mut silent = Vec::new();
    for _ in 0..20 {
        let mut stream = within(TcpStream::connect(served.http)).await.unwrap();
        within(stream.write_all(b"GET /livez HTTP/1.1\r\nHost: ")).await.unwrap();
        silent.push(stream);
    }
    lease(&mut client, asking("x", "a")).await;
    // Those in the queue have their turn, and none has an answer.
    for mut stream in silent {
        let mut nothing = Vec::new();
        let ended = within(stream.read_to_end(&mut nothing)).await;
        assert!(ended.is_err() || nothing.is_empty(), "{nothing:?}");
    }
    // A busy machine may take longer for an answer than there is time here.
    let answered = async {
        loop {
            let mut stream = TcpStream::connect(served.http).await.unwrap();
            stream.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
            let mut answer = String::new();
            if stream.read_to_string(&mut answer).await.is_ok_and(|length| length > 0) {
                return answer;
            }
        }
    };
    assert!(within(answered).await.starts_with("HTTP/1.1 200"));
}

/// Mechanism: `server::run` as the binary calls it, with nodes in this process.
#[tokio::test]
async fn the_daemon_serves_the_port_until_its_last_call_has_ended() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let http = taken.local_addr().unwrap();
    let mut settings = Settings::default();
    settings.cluster.bootstrap = true;
    settings.grpc.listen = "127.0.0.1:0".parse().unwrap();
    settings.http.listen = Some(http);

    let refused = server::run(settings.clone(), NodesKind::Embedded(1), std::future::pending());
    match within(refused).await {
        Err(error @ ServeError::ListenHttp { .. }) => assert!(error.to_string().contains("http.listen")),
        other => panic!("{other:?}"),
    }

    drop(taken);
    let (stop, stopped) = oneshot::channel::<()>();
    let shutdown = async move {
        let _ = stopped.await;
    };
    let daemon = start(server::run(settings, NodesKind::Embedded(1), shutdown));
    let listens = async {
        while TcpStream::connect(http).await.is_err() {
            pause().await;
        }
    };
    within(listens).await;
    until_code(http, "/readyz", 200).await;
    assert!(get(http, "/metrics").await.body.contains("majorityd_build_info"));
    stop.send(()).unwrap();
    within(daemon).await.unwrap().unwrap();
    assert!(TcpStream::connect(http).await.is_err(), "the port is given back");
}

#[tokio::test]
async fn a_daemon_needs_no_port_for_operators() {
    let mut settings = Settings::default();
    settings.cluster.bootstrap = true;
    settings.grpc.listen = "127.0.0.1:0".parse().unwrap();
    settings.http.listen = None;
    within(server::run(settings, NodesKind::Embedded(1), std::future::ready(()))).await.unwrap();
}
